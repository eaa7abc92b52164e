package server

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/tokenizer"
)

// job is one choice of one prompt on its way through an engine.
type job struct {
	index   int // of the choice in the answer
	req     *engine.Request
	stream  engine.Stream
	stops   []string
	include bool // the stop string stays in the text
	skip    bool // special tokens are left out of the text
	eos     []int32
}

// delta is what one event adds to a choice.
type delta struct {
	index      int
	text       string
	tokens     []engine.TokenLogprob // of this delta, when log probabilities were asked for
	prompt     []engine.TokenLogprob // once, before the first token
	generated  int                   // tokens in this delta
	finish     string                // "" while it goes on
	stopReason any                   // stop string or stop token id
	err        error
}

// run reads a job's events, decodes them and hands deltas to emit until the choice ends. A false from
// emit gives the request up.
func (j *job) run(ctx context.Context, tok *tokenizer.Tokenizer, m *Metrics, emit func(delta) bool) {
	defer j.stream.Close()
	text := stopScanner{stops: j.stops, include: j.include}
	decoder := tok.NewStream(j.skip)
	started, last := time.Now(), time.Time{}
	for {
		ev, err := j.stream.Next(ctx)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			emit(delta{index: j.index, err: err})
			return
		}
		d := delta{index: j.index, prompt: ev.Prompt, finish: ev.Finish}
		if ev.HasToken {
			last = m.token(started, last)
			d.generated = 1
			if ev.Logprob != nil {
				d.tokens = []engine.TokenLogprob{*ev.Logprob}
			}
			// The token that ended the answer is not part of its text, unless it is asked for.
			if ev.Finish != "stop" || j.include {
				text.push(decoder.Push(ev.Token))
			}
		}
		switch {
		case ev.Err != nil:
			d.err = ev.Err
		case ev.Finish != "":
			text.push(decoder.Flush())
			if ev.Finish == "stop" && ev.StopToken >= 0 && !slices.Contains(j.eos, ev.StopToken) {
				d.stopReason = ev.StopToken
			}
		}
		var hit string
		d.text, hit = text.take(ev.Finish != "")
		if hit != "" {
			d.finish, d.stopReason = "stop", hit
		}
		if !emit(d) || d.finish != "" || d.err != nil {
			return
		}
	}
}

// stopScanner holds text back while it may be the beginning of a stop string.
type stopScanner struct {
	stops   []string
	include bool
	held    string
}

func (s *stopScanner) push(piece string) { s.held += piece }

// take returns the text that may leave now, and the stop string that ended it, if one did: the one that
// was complete first, and of two that end at one place the longer, however the text came in pieces.
func (s *stopScanner) take(end bool) (text, hit string) {
	cut := -1
	for _, stop := range s.stops {
		if i := strings.Index(s.held, stop); i >= 0 {
			if e := i + len(stop); cut < 0 || e < cut || e == cut && len(stop) > len(hit) {
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
	return text, ""
}

// tokenText is a token's own text, with what is not UTF-8 replaced, and its bytes.
func tokenText(tok *tokenizer.Tokenizer, id int32) (string, []byte) {
	b := tok.TokenBytes(id)
	if utf8.Valid(b) {
		return string(b), b
	}
	return strings.ToValidUTF8(string(b), "\ufffd"), b
}
