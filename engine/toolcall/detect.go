package toolcall

import "strings"

// Detect tells in which form text, which a chat template made of a conversation in which a function of this name was
// called, has that call: the one whose parser finds it there.
func Detect(text, name string) (Form, bool) {
	for _, f := range []Form{Hermes, Mistral} {
		if finds(f, text, name) {
			return f, true
		}
	}
	// Without a marker a call stands where an answer begins, behind what the template writes before it.
	for rest := text; ; {
		at := strings.Index(rest, `"`+name+`"`)
		if at < 0 {
			return "", false
		}
		from := strings.LastIndexByte(rest[:at], '{')
		if _, after, _ := strings.Cut(rest[at:], `"parameters"`); from >= 0 && after != "" && finds(Llama3JSON, rest[from:], name) {
			return Llama3JSON, true
		}
		rest = rest[at+1:]
	}
}

func finds(f Form, text, name string) bool {
	for _, ev := range New(f).Feed(text) {
		if ev.Kind == Begin && ev.Text == name {
			return true
		}
	}
	return false
}
