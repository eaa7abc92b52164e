package openai

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// MaxEvent bounds a line of a stream, and the data of an event.
const MaxEvent = 1 << 20

var errTooLong = fmt.Errorf("an event has more than %d bytes", MaxEvent)

// Event is one server-sent event. Data is good until the next one is asked for.
type Event struct {
	Name string // "" for a message
	Data []byte
}

// Events reads server-sent events (WHATWG HTML, 9.2). It differs in two points, for servers' sake: data that no
// blank line follows before the end is an event too, and so is a line error:, which llama.cpp's server sent.
type Events struct {
	lines *bufio.Scanner
	data  []byte
	begun bool // the first line was read
}

// NewEvents reads r, no further ahead than r lets it.
func NewEvents(r io.Reader) *Events {
	e := &Events{lines: bufio.NewScanner(r)}
	e.lines.Buffer(nil, MaxEvent)
	e.lines.Split(splitLines())
	return e
}

// Next waits for the next event that has data; io.EOF says that the stream came to its end.
func (e *Events) Next() (Event, error) {
	name, some := "", false
	e.data = e.data[:0]
	for e.lines.Scan() {
		line := e.lines.Bytes()
		if !e.begun {
			line, e.begun = bytes.TrimPrefix(line, []byte("\ufeff")), true
		}
		if len(line) == 0 {
			if some {
				return Event{name, e.data}, nil
			}
			name = ""
			continue
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "event":
			name = string(value)
			continue
		case "error":
			name = "error"
		case "data":
		default: // a comment begins with the colon
			continue
		}
		if some {
			e.data = append(e.data, '\n')
		}
		if e.data, some = append(e.data, value...), true; len(e.data) > MaxEvent {
			return Event{}, errTooLong
		}
	}
	if err := e.lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return Event{}, errTooLong
	} else if err != nil {
		return Event{}, err
	}
	if some {
		return Event{name, e.data}, nil
	}
	return Event{}, io.EOF
}

// splitLines takes \n, \r and \r\n for the end of a line. A \r ends it at once: whether a \n follows may be
// known only when the next event comes.
func splitLines() bufio.SplitFunc {
	afterCR, searched := false, 0 // searched: bytes of the line in which its end is not
	return func(data []byte, atEOF bool) (int, []byte, error) {
		skipped := 0
		if afterCR && len(data) > 0 {
			afterCR = false
			if data[0] == '\n' {
				// Not a step of its own: without a token the scanner would read on before it asks again.
				skipped, data = 1, data[1:]
			}
		}
		// A long line may come in many small pieces; each is looked at once.
		if i := bytes.IndexAny(data[searched:], "\r\n"); i >= 0 {
			i, searched = searched+i, 0
			afterCR = data[i] == '\r'
			return skipped + i + 1, data[:i:i], nil
		}
		searched = len(data)
		if atEOF && len(data) > 0 {
			searched = 0
			return skipped + len(data), data, nil
		}
		return skipped, nil, nil
	}
}
