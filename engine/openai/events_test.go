package openai

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func readAll(r io.Reader) (list []string, err error) {
	for events := NewEvents(r); ; {
		ev, err := events.Next()
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return list, err
		}
		list = append(list, ev.Name+"|"+string(ev.Data))
	}
}

func TestEvents(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     []string
	}{
		{"nothing", "", nil},
		{"two", "data: a\n\ndata: b\n\n", []string{"|a", "|b"}},
		{"one space of many", "data:a\n\ndata:  b\n\n", []string{"|a", "| b"}},
		{"ends of lines", "data: a\r\n\r\ndata: b\r\rdata: c\n\n", []string{"|a", "|b", "|c"}},
		{"several lines", "data: a\ndata: b\n\n", []string{"|a\nb"}},
		{"comments and strange fields", ": ping\n\nid: 7\nretry: 10\nnonsense\ndata: a\n\n", []string{"|a"}},
		{"a field without a colon", "data\n\n", []string{"|"}},
		{"a name is its event's alone", "event: error\ndata: a\n\ndata: b\n\nevent: x\n\ndata: c\n\n", []string{"error|a", "|b", "|c"}},
		{"llama.cpp's errors", "error: {}\n\n", []string{"error|{}"}},
		{"a mark of byte order", "\ufeffdata: a\n\n", []string{"|a"}},
		{"no blank line at the end", "data: a\n\ndata: [DONE]", []string{"|a", "|[DONE]"}},
	} {
		for how, wrap := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader, "with the end": iotest.DataErrReader,
		} {
			got, err := readAll(wrap(strings.NewReader(c.in)))
			if err != nil || strings.Join(got, ";") != strings.Join(c.want, ";") || len(got) != len(c.want) {
				t.Errorf("%s, %s: %q, %v", c.name, how, got, err)
			}
		}
	}
}

// endless never stops, and counts what is read of it.
type endless struct {
	text string
	read int
}

func (e *endless) Read(b []byte) (int, error) {
	n := copy(b, e.text)
	e.read += n
	return n, nil
}

func TestEventsAreBounded(t *testing.T) {
	for name, text := range map[string]string{"a line": "data: aaaaaaa", "lines": "data: aaaaaaa\n"} {
		r := &endless{text: text}
		if got, err := readAll(r); !errors.Is(err, errTooLong) || len(got) != 0 || r.read > 4*MaxEvent {
			t.Errorf("%s: %d events, %v, %d bytes read", name, len(got), err, r.read)
		}
	}
	broken := errors.New("broken")
	if got, err := readAll(io.MultiReader(strings.NewReader("data: a\n\ndata: b\n\n"), iotest.ErrReader(broken))); !errors.Is(err, broken) || len(got) != 2 {
		t.Errorf("got %q, %v", got, err)
	}
}

// An event is there as soon as its blank line is, also when that ends with a \r that a \n may follow.
func TestEventsAreNotHeldBack(t *testing.T) {
	for _, text := range []string{"data: a\n\n", "data: a\r\n\r\n", "data: a\r\r"} {
		r, w := io.Pipe()
		go func() { _, _ = w.Write([]byte(text)) }()
		events := NewEvents(r)
		if ev, err := events.Next(); err != nil || string(ev.Data) != "a" {
			t.Errorf("%q: %q, %v", text, ev.Data, err)
		}
		_ = r.Close()
	}
}

// simpleEvents says of a whole stream what Events says of it piece by piece.
func simpleEvents(in []byte) (list []string) {
	text := strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(string(bytes.TrimPrefix(in, []byte("\ufeff"))))
	name, data := "", []string(nil)
	for _, line := range append(strings.Split(text, "\n"), "") {
		if line == "" {
			if data != nil {
				list = append(list, name+"|"+strings.Join(data, "\n"))
			}
			name, data = "", nil
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		if field == "event" {
			name = value
		}
		if field == "error" {
			name = "error"
		}
		if field == "data" || field == "error" {
			data = append(data, value)
		}
	}
	return list
}

func FuzzEvents(f *testing.F) {
	for _, seed := range []string{
		"data: {\"choices\":[]}\n\ndata: [DONE]\n\n", ": ping\r\n\r\nevent: error\r\ndata: a\rdata: b\r\n\r\n", "\ufeffdata\n\nerror: x", "\r\n\n\r",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > MaxEvent/2 {
			return
		}
		want := strings.Join(simpleEvents(in), "\x00")
		for _, r := range []io.Reader{bytes.NewReader(in), iotest.OneByteReader(bytes.NewReader(in)), iotest.HalfReader(bytes.NewReader(in))} {
			got, err := readAll(r)
			if err != nil || strings.Join(got, "\x00") != want {
				t.Fatalf("%q: got %q, %v, want %q", in, got, err, want)
			}
		}
	})
}
