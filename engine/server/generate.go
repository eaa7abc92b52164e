package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/tokenizer"
)

// job is one choice of one prompt on its way through an engine.
type job struct {
	index   int // of the choice in the answer
	req     *engine.Request
	arrived time.Time // of the client's request
	stream  engine.Stream
	stops   []string
	include bool    // the stop string stays in the text
	skip    bool    // special tokens are left out of the text
	eos     []int32 // tokens whose end needs no reason

	thoughts *thoughtReader // nil: there are none in the text
	calls    *callReader    // nil: all text is content

	placement bool // where the KV lay is told at the end
	first     bool // of the choices of its prompt: usage counts a prompt once
}

// delta is what one event adds to a choice.
type delta struct {
	index      int
	reasoning  string // of the thoughts before the text
	text       string
	calls      []callDelta
	tokens     []engine.TokenLogprob // of this delta, when log probabilities were asked for
	prompt     []engine.TokenLogprob // once, before the first token
	ids        []int32               // of this delta, also of a token that has no text
	thinking   int                   // how many of them are of thoughts
	cached     int                   // tokens of the prompt whose KV was there; once
	times      times                 // with the finish
	finish     string                // "" while it goes on
	stopReason any                   // stop string or stop token id
	spans      []engine.SpanInfo     // with the finish, when the placement was asked for
	err        error
}

// run reads a job's events, decodes them and hands deltas to emit until the choice ends. A false from
// emit gives the request up.
func (j *job) run(ctx context.Context, tok *tokenizer.Tokenizer, m *Metrics, emit func(delta) bool) {
	defer j.stream.Close()
	if err := j.read(ctx, tok, m, emit); err != nil {
		emit(delta{index: j.index, err: err})
	}
}

func (j *job) read(ctx context.Context, tok *tokenizer.Tokenizer, m *Metrics, emit func(delta) bool) (err error) {
	defer recovered(&err)
	text := stopScanner{stops: j.stops, include: j.include}
	decoder := tok.NewStream(j.skip)
	decoder.Keep(slices.Concat(j.thoughts.marks(), j.calls.marks())...)
	var first, last time.Time
	generated, queued := 0, time.Duration(0)
	for {
		ev, err := j.stream.Next(ctx)
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		d := delta{index: j.index, prompt: ev.Prompt, cached: ev.Cached, finish: ev.Finish}
		queued += ev.Queued
		if ev.HasToken {
			if last = m.token(j.arrived, last); generated == 0 {
				first = last
			}
			d.ids = []int32{ev.Token}
			generated++
			if ev.Logprob != nil {
				d.tokens = []engine.TokenLogprob{*ev.Logprob}
			}
			// The token that ended the answer is not part of its text, unless it is asked for.
			if ev.Finish != "stop" || ev.StopToken < 0 || j.include {
				text.push(decoder.Push(ev.Token))
			}
			if generated <= j.req.MinTokens {
				text.spare()
			}
		}
		if ev.Err != nil {
			return ev.Err
		}
		if ev.Finish != "" {
			text.push(decoder.Flush())
			if ev.Finish == "stop" && ev.StopToken >= 0 && !slices.Contains(j.eos, ev.StopToken) {
				d.stopReason = ev.StopToken
			}
			if j.placement {
				d.spans = ev.Spans
			}
		}
		var hit string
		d.text, hit = text.take(ev.Finish != "")
		if hit != "" {
			d.finish, d.stopReason = "stop", hit
		}
		j.thoughts.take(&d)
		if j.calls != nil {
			d.text, d.calls = j.calls.read(d.text, d.finish != "")
			d.finish = j.calls.finish(d.finish)
		}
		if d.finish != "" && generated > 0 {
			d.times = times{queued, first.Sub(j.arrived) - queued, last.Sub(first)}
		}
		if !emit(d) || d.finish != "" {
			return nil
		}
	}
}

// recovered makes an error of a panic, so that one request does not take the process with it.
func recovered(err *error) {
	if v := recover(); v != nil {
		slog.Error("answering a request panicked", "panic", v, "stack", string(debug.Stack()))
		*err = errors.New("cannot answer: internal error")
	}
}

// stopScanner holds text back while it may be the beginning of a stop string.
type stopScanner struct {
	stops   []string
	include bool
	held    string
	spared  int // bytes of held in which no stop string may end
}

func (s *stopScanner) push(piece string) { s.held += piece }

// spare keeps stop strings from ending in the text so far, since min_tokens wants it.
func (s *stopScanner) spare() { s.spared = len(s.held) }

// take returns the text that may leave now, and the stop string that ended it, if one did: the one that
// was complete first, and of two that end at one place the longer, however the text came in pieces.
func (s *stopScanner) take(end bool) (text, hit string) {
	cut := -1
	for _, stop := range s.stops {
		from := min(max(0, s.spared-len(stop)+1), len(s.held))
		if i := strings.Index(s.held[from:], stop); i >= 0 {
			if e := from + i + len(stop); cut < 0 || e < cut || e == cut && len(stop) > len(hit) {
				cut, hit = e, stop
			}
		}
	}
	if cut >= 0 {
		if !s.include {
			cut -= len(hit)
		}
		text, s.held = s.held[:cut], ""
		return text, hit
	}
	keep := 0
	if !end {
		for _, stop := range s.stops {
			for n := min(len(stop)-1, len(s.held)); n > keep; n-- {
				if strings.HasSuffix(s.held, stop[:n]) {
					keep = n
				}
			}
		}
	}
	text, s.held = s.held[:len(s.held)-keep], s.held[len(s.held)-keep:]
	s.spared = max(0, s.spared-len(text))
	return text, ""
}
