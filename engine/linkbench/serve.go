package linkbench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/infinite-llm/infinite/rdma"
)

// ServerOptions is where a Server listens, and for whom.
type ServerOptions struct {
	Cluster, Secret string
	Host            string
	Port            int // 0: a free one
	Verbs           rdma.VerbsConfig
	Silence         time.Duration // longest wait for a client that has come
}

// Server answers one client.
type Server struct {
	options ServerOptions
	door    net.Listener // tells where the links are to be had
	links   *rdma.Listener
	wg      sync.WaitGroup
}

// Listen starts to listen.
func Listen(o ServerOptions) (*Server, error) {
	links, err := rdma.Listen(rdma.ListenConfig{
		Identity: rdma.Identity{ClusterID: o.Cluster, Instance: serverName, Secret: o.Secret},
		Host:     o.Host, MaxSlotBytes: MaxBytes, Verbs: o.Verbs,
	})
	if err != nil {
		return nil, err
	}
	door, err := net.Listen("tcp", net.JoinHostPort(o.Host, strconv.Itoa(o.Port)))
	if err != nil {
		_ = links.Close()
		return nil, fmt.Errorf("cannot listen: %w", err)
	}
	s := &Server{options: o, door: door, links: links}
	s.wg.Go(s.answerDoor)
	return s, nil
}

// Address is what a client connects to. A server that listens on all addresses names its host.
func (s *Server) Address() string {
	a, ok := s.door.Addr().(*net.TCPAddr)
	if host, err := os.Hostname(); ok && err == nil && a.IP.IsUnspecified() {
		return net.JoinHostPort(host, strconv.Itoa(a.Port))
	}
	return s.door.Addr().String()
}

func (s *Server) answerDoor() {
	text, err := json.Marshal(place{version, s.links.Endpoint()})
	if err != nil {
		slog.Error("cannot write where links are to be had", "error", err)
		return
	}
	for {
		conn, err := s.door.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				slog.Error("cannot accept connections any more", "error", err)
			}
			return
		}
		_ = conn.SetDeadline(time.Now().Add(meetLimit))
		_, _ = conn.Write(append(text, '\n')) // less than a socket takes at once
		_ = conn.Close()
	}
}

// Serve waits for a client, as long as it takes, and answers it until it has all it wants.
func (s *Server) Serve(ctx context.Context) error {
	a, err := s.links.Accept(ctx)
	if err != nil {
		return fmt.Errorf("cannot get a client: %w", err)
	}
	s.closeDoor()
	se := session{link: a.Link}
	slog.Debug("a client is there", "transport", a.Info.Transport, "device", a.Info.Device)
	for over := false; !over && err == nil; {
		over, err = s.answer(ctx, &se)
	}
	if closed := se.close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("cannot answer the client over %s: %w", a.Info.Transport, err)
	}
	return nil
}

// answer takes one request and does its part of it.
func (s *Server) answer(ctx context.Context, se *session) (over bool, err error) {
	var q request
	limited, cancel := context.WithTimeoutCause(ctx, s.options.Silence, errSilent)
	defer cancel()
	if err = receive(limited, se.link, &q); err != nil {
		return false, err
	}
	if q.Measure == farewell {
		return true, send(limited, se.link, answer{})
	}
	var a answer
	refusal := q.check(se.link.SlotBytes())
	if refusal == nil && q.Measure == Puts {
		refusal = se.openMemory()
	}
	if refusal != nil {
		a = answer{Error: refusal.Error(), Unsupported: errors.Is(refusal, rdma.ErrUnsupported)}
		if len(a.Error) > 512 {
			a.Error = a.Error[:512]
		}
	}
	if err = send(limited, se.link, a); err != nil || refusal != nil {
		return false, err
	}
	_, err = se.link.Bench(ctx, q.bench(s.options.Silence), nil)
	return false, err
}

func (s *Server) closeDoor() { _ = s.door.Close() }

// Close stops listening.
func (s *Server) Close() {
	s.closeDoor()
	_ = s.links.Close()
	s.wg.Wait()
}
