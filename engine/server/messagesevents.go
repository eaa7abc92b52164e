package server

import (
	"bufio"
	"strings"
)

// messageEvents writes the events of a streamed answer. Each has its kind twice, as its name and in its data.
type messageEvents struct {
	m   *messageAnswer
	w   *bufio.Writer
	buf []byte
}

func (m *messageAnswer) events(w *bufio.Writer) events { return &messageEvents{m: m, w: w} }

func (st *messageEvents) event(kind string) []byte { return appendEvent(st.buf[:0], kind) }

func (st *messageEvents) send(b []byte) error {
	st.buf = append(b, "}\n\n"...)
	_, _ = st.w.Write(st.buf)
	return st.w.Flush()
}

// begin sends the empty message before there is anything of it: how much of the prompt came from the cache is told at the end.
func (st *messageEvents) begin() error {
	st.m.listen = st
	if err := st.send(st.m.append(append(st.event("message_start"), `,"message":`...))); err != nil {
		return err
	}
	return st.send(st.event("ping"))
}

func (st *messageEvents) delta(d delta) error { return st.m.add(d) }

func (st *messageEvents) end() {
	b := append(st.m.appendStop(append(st.event("message_delta"), `,"delta":{`...)), '}')
	b = appendPlacement(st.m.appendUsage(append(b, `,"usage":`...)), st.m.spans)
	if st.send(b) == nil {
		_ = st.send(st.event("message_stop"))
	}
}

// fail sends the error, which is the last event.
func (st *messageEvents) fail(err error) {
	body := asError(err).messageBody("req_" + strings.TrimPrefix(st.m.p.answer.id, "msg_"))
	b := append(append(append(st.buf[:0], "event: error\ndata: "...), body...), "\n\n"...)
	_, _ = st.w.Write(b)
	_ = st.w.Flush()
}

// about begins an event about the open block, or, with its end, about the last one.
func (st *messageEvents) about(kind string, index int) []byte {
	return appendInt(append(st.event(kind), `,"index":`...), index)
}

func (st *messageEvents) opened(b *block) error {
	return st.send(b.append(append(st.about("content_block_start", st.m.done), `,"content_block":`...), "", ""))
}

func (st *messageEvents) grew(b *block, text string) error {
	names := map[string]string{thinkingBlock: `"thinking_delta","thinking":`, textBlock: `"text_delta","text":`, useBlock: `"input_json_delta","partial_json":`}
	return st.change(st.m.done, names[b.kind], text)
}

// change sends a delta of a block, with its text.
func (st *messageEvents) change(index int, name, text string) error {
	to := append(append(st.about("content_block_delta", index), `,"delta":{"type":`...), name...)
	return st.send(append(appendString(to, text), '}'))
}

func (st *messageEvents) closed(b *block, signature string) error {
	index := st.m.done - 1
	if b.kind == thinkingBlock {
		if err := st.change(index, `"signature_delta","signature":`, signature); err != nil {
			return err
		}
	}
	return st.send(st.about("content_block_stop", index))
}
