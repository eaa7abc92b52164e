package server

import (
	"bufio"
	"context"
	"io"
	"net"
	"slices"

	"github.com/valyala/fasthttp"

	"github.com/infinite-llm/infinite/engine"
)

// events are those of one answer, as they are sent.
type events interface {
	begin() error
	delta(delta) error
	end()
	fail(error) // the answer broke off; the status line is out
}

// ownAnswer is the answer of an API that does not have the shapes of chats and completions.
type ownAnswer interface {
	whole(ctx context.Context) ([]byte, error)
	events(w *bufio.Writer) events
}

// streamPlan answers with server-sent events.
func (s *Server) streamPlan(ctx *fasthttp.RequestCtx, work context.Context, p *plan, done func()) {
	ctx.SetContentType("text/event-stream; charset=utf-8")
	ctx.Response.Header.Set("Cache-Control", "no-cache")
	ctx.Response.Header.Set("X-Accel-Buffering", "no")
	ctx.Response.ImmediateHeaderFlush = true // the first token may be long in coming
	endpoint := path(ctx)
	send := func(w *bufio.Writer) {
		defer done()
		st := p.events(w)
		err := st.begin()
		if err == nil {
			err = s.parts(work, p, st.delta)
		} else {
			for _, j := range p.jobs {
				j.stream.Close()
			}
			s.metrics.dropped(len(p.jobs), true)
		}
		switch {
		case err == nil:
			st.end()
		case work.Err() == nil || s.ctx.Err() != nil:
			s.metrics.failed(endpoint, err)
			st.fail(err)
		}
	}
	if !ctx.Request.Header.IsHTTP11() {
		untilClose(ctx, send)
		return
	}
	ctx.SetBodyStream(body{fasthttp.NewStreamReader(send), done}, -1)
}

// parts is deltas, cut into what events have room for.
func (s *Server) parts(ctx context.Context, p *plan, each func(delta) error) error {
	return s.deltas(ctx, p, func(d delta) (err error) {
		defer recovered(&err)
		for _, part := range d.parts() {
			if err := each(part); err != nil {
				return err
			}
		}
		return nil
	})
}

func (p *plan) events(w *bufio.Writer) events {
	if p.own != nil {
		return p.own.events(w)
	}
	return &sse{p: p, w: w, places: make([]place, len(p.jobs)), begun: make([]bool, len(p.jobs)), generated: make([]int, len(p.jobs))}
}

// untilClose answers a client of HTTP/1.0, to whom nothing may be sent in chunks (RFC 9112, 6.1): the end of
// the connection is the end of the body. fasthttp has no such answers, so this writes one itself, before the
// handler returns, and leaves fasthttp a connection that was taken over and is only to be closed.
func untilClose(ctx *fasthttp.RequestCtx, events fasthttp.StreamWriter) {
	ctx.HijackSetNoResponse(true)
	ctx.Hijack(func(net.Conn) {})
	w := bufio.NewWriter(ctx.Conn())
	h := &ctx.Response.Header
	allowOrigin(h) // allowOrigins comes too late
	h.SetConnectionClose()
	_ = h.Write(w) // w keeps an error for the first event
	_ = w.Flush()
	events(w)
	_ = w.Flush()
}

// body is a streamed answer on its way to the client. A connection that fails while it is written to is
// closed before the watcher hears of it; but then the body is closed too.
type body struct {
	io.ReadCloser
	done func()
}

func (b body) Close() error {
	b.done()
	return b.ReadCloser.Close()
}

// sse writes one answer's events: a chunk per delta, then [DONE].
type sse struct {
	p         *plan
	w         *bufio.Writer
	buf       []byte
	places    []place
	begun     []bool // a chunk went out
	generated []int  // tokens, by choice
	tally     tally  // of all choices so far
}

func (st *sse) event(data []byte) error {
	_, _ = st.w.WriteString("data: ")
	_, _ = st.w.Write(data)
	_, _ = st.w.WriteString("\n\n")
	return st.w.Flush()
}

func (st *sse) chunk() []byte {
	a := &st.p.answer
	object := a.object
	if a.chat {
		object = "chat.completion.chunk"
	}
	return append(a.head(st.buf[:0], object), `,"choices":[`...)
}

// close ends a choice's chunk and sends it; with include_usage it says usage: null, or how far the choice is.
func (st *sse) close(b []byte, choice int) error {
	b = append(b, ']')
	// A chat's prompt goes with the chunk that has the role.
	if st.p.tokenIDs && st.p.answer.chat && !st.begun[choice] {
		b = appendIDs(b, "prompt_token_ids", st.p.jobs[choice].req.Prompt)
	}
	st.begun[choice] = true
	switch st.p.usage {
	case usageLast:
		b = append(b, `,"usage":null`...)
	case usageEvery:
		b = append(b, `,"usage":`...)
		b = tally{prompt: len(st.p.jobs[choice].req.Prompt), completion: st.generated[choice], cached: -1}.append(b, false)
	}
	st.buf = append(b, '}')
	return st.event(st.buf)
}

// begin sends the role of every chat choice.
func (st *sse) begin() error {
	if !st.p.answer.chat {
		return nil
	}
	for i := range st.p.jobs {
		b := append(st.chunk(), `{"index":`...)
		b = appendInt(b, i)
		b = append(b, `,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}`...)
		if err := st.close(b, i); err != nil {
			return err
		}
	}
	return nil
}

func (st *sse) delta(d delta) error {
	st.generated[d.index] += len(d.ids)
	st.tally.add(d, st.p.jobs[d.index].first)
	first := len(st.p.echo) > 0 && !st.begun[d.index]
	if d.text == "" && d.reasoning == "" && len(d.calls) == 0 && d.finish == "" && len(d.tokens) == 0 && len(d.prompt) == 0 && !first && !(st.p.tokenIDs && len(d.ids) > 0) {
		return nil
	}
	b := append(st.chunk(), `{"index":`...)
	b = appendInt(b, d.index)
	if st.p.answer.chat {
		b = append(b, `,"delta":`...)
		b = appendDelta(b, d)
		b = append(b, `,"logprobs":`...)
		if st.p.logprobs && len(d.tokens) > 0 {
			b = st.p.answer.appendChatLogprobs(b, d.tokens)
		} else {
			b = append(b, `null`...)
		}
	} else {
		b = st.appendText(b, d, first)
	}
	b = appendFinish(b, d.finish, d.stopReason, d.spans)
	if st.p.tokenIDs {
		b = appendIDs(b, "token_ids", d.ids)
		if !st.p.answer.chat && !st.begun[d.index] {
			b = appendIDs(b, "prompt_token_ids", st.p.jobs[d.index].req.Prompt)
		}
	}
	return st.close(append(b, '}'), d.index)
}

func (st *sse) appendText(b []byte, d delta, first bool) []byte {
	text, tokens := d.text, d.tokens
	if first {
		e := st.p.echo[d.index/(len(st.p.jobs)/len(st.p.echo))]
		text, st.places[d.index] = e.text+text, startOf(e, 1+len(d.prompt))
		tokens = slices.Concat([]engine.TokenLogprob{{Token: e.first}}, d.prompt, d.tokens)
	}
	b = append(b, `,"text":`...)
	b = appendString(b, text)
	b = append(b, `,"logprobs":`...)
	if !st.p.logprobs {
		return append(b, `null`...)
	}
	// Tokens go with the text that says where they are, which may come later.
	tokens, offsets := st.p.answer.locate(&st.places[d.index], tokens, d.finish != "")
	if len(tokens) == 0 {
		return append(b, `null`...)
	}
	return st.p.answer.appendTextLogprobs(b, tokens, offsets, first)
}

// fail sends an error event, which is what OpenAI's clients raise.
func (st *sse) fail(err error) {
	_ = st.event(asError(err).body())
	_ = st.event([]byte("[DONE]"))
}

func (st *sse) end() {
	if st.p.usage != usageNever {
		st.tally.prompt = st.p.promptTokens
		b := append(st.chunk(), `],"usage":`...)
		b = append(st.tally.append(b, st.p.answer.chat), '}')
		if st.event(b) != nil {
			return
		}
	}
	_ = st.event([]byte("[DONE]"))
}
