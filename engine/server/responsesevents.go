package server

import (
	"bufio"

	"github.com/infinite-llm/infinite/engine"
)

// responseEvents writes the events of a streamed response. Each has its kind twice, as its name and in its data, and the
// next number.
type responseEvents struct {
	r      *response
	w      *bufio.Writer
	buf    []byte
	number int
}

// appendEvent begins an event that has a name. Its data has it too, and more members follow.
func appendEvent(b []byte, kind string) []byte {
	b = append(append(b, `event: `...), kind...)
	return appendString(append(b, "\ndata: {\"type\":"...), kind)
}

func (r *response) events(w *bufio.Writer) events { return &responseEvents{r: r, w: w} }

// event begins an event's data, to which more members follow.
func (st *responseEvents) event(kind string) []byte {
	b := appendInt(append(appendEvent(st.buf[:0], kind), `,"sequence_number":`...), st.number)
	st.number++
	return b
}

func (st *responseEvents) send(b []byte) error {
	st.buf = append(b, "}\n\n"...)
	_, _ = st.w.Write(st.buf)
	return st.w.Flush()
}

// about begins an event about an item, the last one that there is.
func (st *responseEvents) about(kind string, it *item, done bool) []byte {
	index := len(st.r.done)
	if done {
		index--
	}
	b := appendString(append(st.event(kind), `,"item_id":`...), it.id)
	b = appendInt(append(b, `,"output_index":`...), index)
	if it.kind != callItem {
		b = append(b, `,"content_index":0`...)
	}
	return b
}

func (st *responseEvents) state(kind string, response []byte) error {
	return st.send(append(append(st.event(kind), `,"response":`...), response...))
}

func (st *responseEvents) begin() error {
	st.r.listen = st
	response, _ := st.r.append(nil, "in_progress", nil)
	if err := st.state("response.created", response); err != nil {
		return err
	}
	return st.state("response.in_progress", response)
}

func (st *responseEvents) delta(d delta) error { return st.r.add(d) }

func (st *responseEvents) end() {
	kind := "response.completed"
	if st.r.finish == "length" {
		kind = "response.incomplete"
	}
	_ = st.state(kind, st.r.end())
}

// fail sends an error event, and what has become of the response. It is not stored.
func (st *responseEvents) fail(err error) {
	e := asError(err)
	b := appendString(append(st.event("error"), `,"code":`...), e.responseCode())
	b = appendString(append(b, `,"message":`...), e.Message)
	if st.send(append(b, `,"param":null`...)) != nil {
		return
	}
	response, _ := st.r.append(nil, "failed", e)
	_ = st.state("response.failed", response)
}

// pieces are the names of the events about an item's text.
var pieces = map[string]string{
	messageItem: "response.output_text", callItem: "response.function_call_arguments", reasoningItem: "response.reasoning_text",
}

// opened tells of an item, and of the part that its text goes to.
func (st *responseEvents) opened(it *item) error {
	empty := *it
	empty.parts = nil
	b := appendInt(append(st.event("response.output_item.added"), `,"output_index":`...), len(st.r.done))
	if err := st.send(empty.append(append(b, `,"item":`...), nil)); err != nil || it.kind == callItem {
		return err
	}
	return st.send(it.parts[0].append(append(st.about("response.content_part.added", it, false), `,"part":`...), nil))
}

func (st *responseEvents) grew(it *item, text string, tokens []engine.TokenLogprob) error {
	b := appendString(append(st.about(pieces[it.kind]+".delta", it, false), `,"delta":`...), text)
	if it.kind == messageItem {
		b = st.r.p.answer.appendTokens(append(b, `,"logprobs":`...), tokens)
	}
	return st.send(b)
}

func (st *responseEvents) closed(it *item, encoded []byte) error {
	b := st.about(pieces[it.kind]+".done", it, true)
	switch it.kind {
	case callItem:
		b = appendString(append(b, `,"arguments":`...), it.arguments)
	case messageItem:
		b = appendString(append(b, `,"text":`...), it.parts[0].text)
		b = st.r.p.answer.appendTokens(append(b, `,"logprobs":`...), it.parts[0].tokens)
	default:
		b = appendString(append(b, `,"text":`...), it.parts[0].text)
	}
	if err := st.send(b); err != nil {
		return err
	}
	if it.kind != callItem {
		b = append(st.about("response.content_part.done", it, true), `,"part":`...)
		if err := st.send(it.parts[0].append(b, &st.r.p.answer)); err != nil {
			return err
		}
	}
	b = appendInt(append(st.event("response.output_item.done"), `,"output_index":`...), len(st.r.done)-1)
	return st.send(append(append(b, `,"item":`...), encoded...))
}
