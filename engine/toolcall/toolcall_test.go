package toolcall

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// found is what an answer comes to.
type found struct {
	Content string
	Calls   []call
}

type call struct{ Name, Args string }

func (f *found) add(t rapid.TB, events []Event) {
	t.Helper()
	for _, ev := range events {
		switch {
		case ev.Text == "":
			t.Fatalf("an event adds nothing: %+v", ev)
		case ev.Kind == Content:
			f.Content += ev.Text
		case ev.Kind == Begin && ev.Call == len(f.Calls):
			f.Calls = append(f.Calls, call{Name: ev.Text})
		case ev.Kind == Arguments && ev.Call == len(f.Calls)-1:
			f.Calls[ev.Call].Args += ev.Text
		default:
			t.Fatalf("event %+v after %d calls", ev, len(f.Calls))
		}
	}
}

// read parses an answer that comes in these pieces.
func read(t rapid.TB, p *Parser, pieces ...string) (f found) {
	t.Helper()
	for _, piece := range pieces {
		f.add(t, p.Feed(piece))
	}
	f.add(t, p.Finish())
	return f
}

// parsers makes every parser that there is.
var parsers = map[string]func() *Parser{
	"hermes": func() *Parser { return New(Hermes) }, "llama3_json": func() *Parser { return New(Llama3JSON) },
	"mistral": func() *Parser { return New(Mistral) }, "none": func() *Parser { return New("") },
	"list": NewList, "named": func() *Parser { return NewNamed("f") },
}

func TestAnswers(t *testing.T) {
	one := []call{{"f", `{"a": 1}`}}
	two := []call{{"f", `{"a": 1}`}, {"g", `{}`}}
	for _, x := range []struct {
		form, text, content string
		calls               []call
	}{
		{"hermes", "Hello.", "Hello.", nil},
		{"hermes", "  a < b\n", "  a < b\n", nil},
		{"hermes", "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>", "", one},
		{"hermes", "<tool_call>{\"arguments\": {\"a\": 1}, \"name\": \"f\"}</tool_call>", "", one},
		{"hermes", "Let me see.\n<tool_call>\n{\"name\":\"f\",\"arguments\":{\"a\": 1}}</tool_call>\n<tool_call>{\"name\": \"g\", \"arguments\": {}}</tool_call>\n", "Let me see.", two},
		{"hermes", "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\": 1}}</tool_call> and then", " and then", one},
		{"hermes", `<tool_call>{"name":"f","parameters":{"a": 1}}`, "", one},
		{"hermes", `<tool_call>{"name":"f","arguments":{"a": 1}} </tool_`, "", one},
		{"hermes", `<tool_call>{"name":"f","arguments":{"a": 1}}` + "\n" + `<tool_call>{"name":"g","arguments":{}}`, "", two},
		{"hermes", `<tool_call>{"id":[1,{"x":"}"}],"n":-1.5e+3,"b":true,"name":"\u0066","arguments":{"a": 1},"z":null}</tool_call>`, "", one},
		{"hermes", `<tool_call>{"name":"f","arguments":{"a": "</tool_call> \"}"}}</tool_call>`, "", []call{{"f", `{"a": "</tool_call> \"}"}`}}},
		{"hermes", `<tool_call>{"name":"f","arguments":{"é": [1, {"b": "\\"}]}}</tool_call>`, "", []call{{"f", `{"é": [1, {"b": "\\"}]}`}}},
		// Broken behind the beginning of the arguments: the call is there, as the model wrote it.
		{"hermes", `<tool_call>{"name":"f","arguments":{"a": [1`, "", []call{{"f", `{"a": [1`}}},
		{"hermes", `<tool_call>{"name":"f","arguments":{"a": [1</tool_call><tool_call>{"name":"g","arguments":{}}</tool_call>`, "", []call{{"f", `{"a": [1`}, {"g", `{}`}}},
		{"hermes", `<tool_call>{"name":"f","arguments":{'a': 1}}</tool_call>`, "", []call{{"f", `{'a': 1}`}}},
		{"hermes", `<tool_call>{"name":"f","arguments":{"a": 1} oops</tool_call>`, " oops</tool_call>", one},
		// Before it: content.
		{"hermes", `<tool_call>{"name":"f"}</tool_call>`, `<tool_call>{"name":"f"}</tool_call>`, nil},
		{"hermes", `<tool_call>{"name":"f","arguments":"{}"}</tool_call>`, `<tool_call>{"name":"f","arguments":"{}"}</tool_call>`, nil},
		{"hermes", `<tool_call>{"name":"","arguments":{}}</tool_call>`, `<tool_call>{"name":"","arguments":{}}</tool_call>`, nil},
		{"hermes", `<tool_call>{"name":5,"arguments":{}}</tool_call>`, `<tool_call>{"name":5,"arguments":{}}</tool_call>`, nil},
		{"hermes", `<tool_call>{"name":"\x","arguments":{}}</tool_call>`, `<tool_call>{"name":"\x","arguments":{}}</tool_call>`, nil},
		{"hermes", ` <tool_call> <tool_call>{"name":"f","arguments":{"a": 1}}`, ` <tool_call> `, one},
		{"hermes", "a <tool_cal", "a <tool_cal", nil},
		{"hermes", "<<tool_call>{\"name\":\"f\",\"arguments\":{\"a\": 1}}", "<", one},
		{"hermes", "<tool_call>\n<function=f>\n</function>\n</tool_call>", "<tool_call>\n<function=f>\n</function>\n</tool_call>", nil},
		{"hermes", `<tool_call>{"` + strings.Repeat("k", maxName+1) + `":`, `<tool_call>{"` + strings.Repeat("k", maxName+1) + `":`, nil},

		{"llama3_json", `{"name": "f", "parameters": {"a": 1}}`, "", one},
		{"llama3_json", "\n<|python_tag|>" + `{"type": "function", "name": "f", "parameters": {"a": 1}}`, "", one},
		{"llama3_json", `{"name": "f", "parameters": {"a": 1}}; {"name": "g", "arguments": {}}`, "", two},
		{"llama3_json", `{"name": "f", "parameters": {"a": 1}}` + "\n" + `{"name": "g", "arguments": {}}` + "\n", "", two},
		{"llama3_json", `{"name": "f", "parameters": {"a": 1}}; so`, "; so", one},
		{"llama3_json", `{"name": "f", "parameters": {"a": 1}};`, "", one},
		{"llama3_json", `I call <|python_tag|>{"name": "f", "parameters": {"a": 1}}`, "I call", one},
		{"llama3_json", `It is {"name": "f", "parameters": {}}`, `It is {"name": "f", "parameters": {}}`, nil},
		{"llama3_json", `{"city": "Oslo", "name": "x"} is it`, `{"city": "Oslo", "name": "x"} is it`, nil},
		{"llama3_json", `{a}`, `{a}`, nil},
		{"llama3_json", `<|python_tag|>search.call(query="x")`, `<|python_tag|>search.call(query="x")`, nil},

		{"mistral", `[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "123456789"}, {"name": "g", "arguments": {}}]`, "", two},
		{"mistral", `Yes. [TOOL_CALLS]f{"a": 1}[TOOL_CALLS]g{}`, "Yes.", two},
		{"mistral", `[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]a1B2c3D4e[ARGS]{}`, "", two},
		{"mistral", `[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}`, "", one},
		{"mistral", `[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, so`, `, so`, one},
		{"mistral", `[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}] so`, ` so`, one},
		{"mistral", `[TOOL_CALLS][]`, `[TOOL_CALLS][]`, nil},
		{"mistral", `[TOOL_CALLS]f`, `[TOOL_CALLS]f`, nil},
		{"mistral", `[TOOL_CALLS]f [x`, `[TOOL_CALLS]f [x`, nil},
		{"mistral", `[TOOL_CALLS]f[CALL_ID]!`, `[TOOL_CALLS]f[CALL_ID]!`, nil},
		{"mistral", `[TOOL_CALLS]f {"a": "]"`, "", []call{{"f", `{"a": "]"`}}},
		{"mistral", `[TOOL_CALLS]f{"a": <b>`, "<b>", []call{{"f", `{"a": `}}},
		{"mistral", `[TOOL_CALLS]` + strings.Repeat("n", maxName+1) + `{}`, `[TOOL_CALLS]` + strings.Repeat("n", maxName+1) + `{}`, nil},
		{"mistral", `[1] [TOOL`, `[1] [TOOL`, nil},

		{"list", ` [ {"name": "f", "parameters": {"a": 1}} , {"name":"g","parameters":{}}]` + "\n", "", two},
		{"list", `[{"name": "f", "parameters": {"a": 1}}, {"na`, "", one},
		{"list", `[{"na`, `[{"na`, nil},
		{"list", `no`, `no`, nil},
		{"named", `{"a": 1}`, "", one},
		{"named", ``, "", nil},
		{"none", `<tool_call>{"name":"f","arguments":{}}</tool_call> `, `<tool_call>{"name":"f","arguments":{}}</tool_call> `, nil},
	} {
		whole := read(t, parsers[x.form](), x.text)
		if diff := cmp.Diff(found{x.content, x.calls}, whole); diff != "" {
			t.Errorf("%s %q:\n%s", x.form, x.text, diff)
		}
		if bytes := read(t, parsers[x.form](), strings.Split(x.text, "")...); !cmp.Equal(whole, bytes) {
			t.Errorf("%s %q: in pieces %+v, whole %+v", x.form, x.text, bytes, whole)
		}
	}
}

// What can be no call any more leaves at once, and so do the name and each piece of the arguments.
func TestNothingIsHeldLonger(t *testing.T) {
	for _, x := range []struct {
		form string
		text string // its pieces end with |, and what each tells follows the same way
		want string
	}{
		{"hermes", "Hi |<to|ol|<tool_call>|{\"na|me\": \"f\", \"arguments\": |{\"a|\": 1}|}</tool", "content:Hi|||content: <tool|||begin:f arguments:{\"a|arguments:\": 1}||"},
		{"hermes", "<tool_call>|{x|y", "|content:<tool_call>{x|content:y"},
		{"hermes", "a |b|<|a", "content:a|content: b||content:<a"},
		{"mistral", "[TOOL_CALLS]|get|{\"a\"|:1|}|", "||begin:get arguments:{\"a\"|arguments::1|arguments:}||"},
		{"llama3_json", "{|\"name\":\"f\",\"parameters\":{|}|}", "|begin:f arguments:{|arguments:}|"},
		{"llama3_json", "{|\"a\":1}|.", "|content:{\"a\":1}|content:."},
		{"named", "{|}", "begin:f arguments:{|arguments:}"},
	} {
		var got []string
		p := parsers[x.form]()
		for _, piece := range strings.Split(x.text, "|") {
			var told []string
			for _, ev := range p.Feed(piece) {
				told = append(told, []string{"content:", "begin:", "arguments:"}[ev.Kind]+ev.Text)
			}
			got = append(got, strings.Join(told, " "))
		}
		want := strings.Split(x.want, "|")
		for len(want) > len(got) && want[len(want)-1] == "" {
			want = want[:len(want)-1]
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s %q:\n%s", x.form, x.text, diff)
		}
	}
}

// fragments are what answers are made of, well-formed and not.
var fragments = []string{
	"<tool_call>", "</tool_call>", "<tool_", "<|python_tag|>", "[TOOL_CALLS]", "[TOOL", "[CALL_ID]", "[ARGS]", "f", "é", " ", "\n", ";", ",", "[", "]", "{", "}",
	`{"name": "f", "arguments": {"a": "x"}}`, `{"name": "g", "parameters": {}}`, `"name"`, `"arguments"`, ":", `"`, `\`, "<", `{"a": [1, {"b": "}"}]}`, "12.5",
}

// pieces cuts a text anywhere.
func pieces(t *rapid.T, text string) (out []string) {
	for text != "" {
		n := rapid.IntRange(1, min(len(text), 12)).Draw(t, "cut")
		out, text = append(out, text[:n]), text[n:]
	}
	return out
}

// check holds for every text: how it is cut does not matter, and what is told is in it, in order. Without a call
// nothing may be missing.
func check(t rapid.TB, name, text string, cut []string) {
	t.Helper()
	whole := read(t, parsers[name](), text)
	if parts := read(t, parsers[name](), cut...); !cmp.Equal(whole, parts) {
		t.Fatalf("%s %q: cut %q gives %+v, whole %+v", name, text, cut, parts, whole)
	}
	if len(whole.Calls) == 0 && whole.Content != text {
		t.Fatalf("%s %q: only %q is left", name, text, whole.Content)
	}
	rest := text
	for _, ev := range append(parsers[name]().Feed(text), Event{}) {
		if name == "named" || ev.Kind == Begin {
			continue
		}
		at := strings.Index(rest, ev.Text)
		if at < 0 {
			t.Fatalf("%s %q: %q is not behind what was told before", name, text, ev.Text)
		}
		if ev.Kind == Arguments && ev.Text[0] != '{' {
			t.Fatalf("%s %q: arguments %q", name, text, ev.Text)
		}
		rest = rest[at:]
	}
}

func TestAnyCutGivesTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := strings.Join(rapid.SliceOfN(rapid.SampledFrom(fragments), 0, 25).Draw(t, "text"), "")
		cut := pieces(t, text)
		for name := range parsers {
			check(t, name, text, cut)
		}
	})
}

// Calls that are written well are found, every one, with the content around them.
func TestEveryCallIsFound(t *testing.T) {
	write := map[string]func(content string, calls []call, blank string) string{
		"hermes": func(content string, calls []call, blank string) string {
			for _, c := range calls {
				content += fmt.Sprintf("%s<tool_call>%s{\"name\":%s%q, \"arguments\": %s}%s</tool_call>", blank, blank, blank, c.Name, c.Args, blank)
			}
			return content
		},
		"llama3_json": func(content string, calls []call, blank string) string {
			var list []string
			for _, c := range calls {
				list = append(list, fmt.Sprintf(`{"parameters":%s%s, "name": %q}`, blank, c.Args, c.Name))
			}
			if len(list) == 0 {
				return content
			}
			return content + blank + "<|python_tag|>" + strings.Join(list, ";"+blank)
		},
		"mistral": func(content string, calls []call, blank string) string {
			for _, c := range calls {
				content += blank + "[TOOL_CALLS]" + c.Name + blank + c.Args
			}
			return content
		},
		"list": func(_ string, calls []call, blank string) string {
			var list []string
			for _, c := range calls {
				list = append(list, fmt.Sprintf(`{"name": %q,%s"parameters":%s}`, c.Name, blank, c.Args))
			}
			return blank + "[" + strings.Join(list, ","+blank) + "]"
		},
	}
	rapid.Check(t, func(t *rapid.T) {
		want := found{Content: rapid.StringMatching(`([A-Za-z é.<:]{0,20}[a-z.])?`).Draw(t, "content")}
		for range rapid.IntRange(1, 3).Draw(t, "calls") {
			text := rapid.StringMatching(`[a-zé{}<>\[\] ]{0,12}`).Draw(t, "value")
			want.Calls = append(want.Calls, call{rapid.StringMatching(`[A-Za-z0-9_-]{1,10}`).Draw(t, "name"), fmt.Sprintf(`{"k": [%q, {"n": -1.5}], "z": {}}`, text)})
		}
		blank := rapid.SampledFrom([]string{"", " ", "\n"}).Draw(t, "blank")
		for name, w := range write {
			want := want
			if name == "list" {
				want.Content = ""
			}
			text := w(want.Content, want.Calls, blank)
			if got := read(t, parsers[name](), pieces(t, text)...); !cmp.Equal(want, got) {
				t.Fatalf("%s %q: %+v, want %+v", name, text, got, want)
			}
		}
	})
}

func TestDetect(t *testing.T) {
	for text, want := range map[string]Form{
		"<tool_call>\n{\"name\": <function-name>, \"arguments\": <args>}\n</tool_call> x <tool_call>{\"name\": \"probe\", \"arguments\": {}}": Hermes,
		`[TOOL_CALLS] [{"name": "probe", "arguments": {}}]`:                             Mistral,
		`[TOOL_CALLS]probe[ARGS]{}</s>`:                                                 Mistral,
		`<|end_header_id|>` + "\n\n" + `{"name": "probe", "parameters": {"a": 1}}<eot>`: Llama3JSON,
		`"probe" {"name": "probe", "parameters": {}}`:                                   Llama3JSON,
		`{"name": "probe", "arguments": {}}`:                                            "",
		`<tool_call><function=probe>`:                                                   "",
		`probe`:                                                                         "",
	} {
		if got, ok := Detect(text, "probe"); got != want || ok != (want != "") {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	for _, f := range Forms() {
		if len(f.Markers()) == 0 || slices.Contains(f.Markers(), "") {
			t.Errorf("%s has the markers %q", f, f.Markers())
		}
	}
}

// FuzzParser reads any text in pieces of any sizes.
func FuzzParser(f *testing.F) {
	for i := range fragments {
		f.Add(strings.Join(fragments[i:], ""), []byte{1, 2, 3})
	}
	f.Add(`<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>`, []byte{5})
	f.Add(`[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "f", "arguments": {}}]`, []byte{200})
	f.Fuzz(func(t *testing.T, text string, cuts []byte) {
		var cut []string
		for rest := text; rest != ""; {
			n := len(rest)
			if len(cuts) > 0 {
				n = min(n, 1+int(cuts[len(cut)%len(cuts)]))
			}
			cut, rest = append(cut, rest[:n]), rest[n:]
		}
		for name := range parsers {
			check(t, name, text, cut)
		}
	})
}
