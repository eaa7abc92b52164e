package router

import (
	"context"
	"errors"
	"io"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/router/routerpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Submitter runs requests; *engine.Engine is one.
type Submitter interface {
	Submit(ctx context.Context, req *engine.Request) (engine.Stream, error)
}

// Inference serves an instance's engine to API processes.
type Inference struct {
	routerpb.UnimplementedInferenceServer
	engine Submitter
	// nextReport is the number of the instance's first heartbeat that is sure to show what has happened until now; never 0.
	nextReport func() uint64
}

// NewInference serves e on an instance whose heartbeats are numbered.
func NewInference(e Submitter, nextReport func() uint64) *Inference {
	return &Inference{engine: e, nextReport: nextReport}
}

// Generate runs one request: first an event that says whether it is taken, then one before its first step, then its tokens.
func (s *Inference) Generate(p *routerpb.GenerateRequest, out grpc.ServerStreamingServer[routerpb.GenerateEvent]) error {
	ctx := out.Context()
	st, err := s.engine.Submit(ctx, requestFromPB(p))
	if err != nil {
		return out.Send(&routerpb.GenerateEvent{Error: err.Error(), ErrorKind: kindOf(err)})
	}
	defer st.Close()
	if err = out.Send(&routerpb.GenerateEvent{Accepted: true, Report: s.nextReport()}); err != nil {
		return err
	}
	for {
		ev, err := st.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return status.Error(codes.Aborted, err.Error())
		}
		if ev.Begun {
			p := eventToPB(ev)
			p.Report = s.nextReport()
			err = out.Send(p)
		} else {
			err = sendEvent(out.Send, ev)
		}
		if err != nil {
			return err
		}
	}
}

// promptPiece is how many of a prompt's tokens one message has the log probabilities of: with all alternatives some
// hundred KiB, where those of a whole prompt may be more than a message can be.
const promptPiece = 1024

// sendEvent sends an event, what is long of it in pieces.
func sendEvent(send func(*routerpb.GenerateEvent) error, ev engine.Event) error {
	for len(ev.Prompt) > promptPiece {
		p := eventToPB(engine.Event{Prompt: ev.Prompt[:promptPiece]})
		p.More = true
		if err := send(p); err != nil {
			return err
		}
		ev.Prompt = ev.Prompt[promptPiece:]
	}
	return send(eventToPB(ev))
}

// kindOf is the API's kind of an error, "internal" where it has none.
func kindOf(err error) string {
	var k interface{ Kind() string }
	if errors.As(err, &k) {
		return k.Kind()
	}
	return "internal"
}
