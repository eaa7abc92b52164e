package reasoning

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// read feeds pieces and puts together what comes of them.
func read(f Form, prompt string, pieces ...string) (thought, answer string) {
	p := New(f, prompt)
	for _, piece := range pieces {
		t, a := p.Feed(piece)
		thought += t
		answer += a
	}
	t, a := p.Finish()
	return thought + t, answer + a
}

func TestParser(t *testing.T) {
	for _, c := range []struct {
		name            string
		form            Form
		prompt, text    string
		thought, answer string
	}{
		{"none", Qwen3, "", "Yes.", "", "Yes."},
		{"nothing", Qwen3, "", "", "", ""},
		{"opened by the model", Qwen3, "", "<think>\nHm, well.\n</think>\n\nYes.\n", "Hm, well.", "Yes.\n"},
		{"blanks before", Qwen3, "", " \n<think>Hm</think>Yes", "Hm", "Yes"},
		{"opened by the template", Qwen3, "<|im_start|>assistant\n<think>\n", "Hm.\n\nWell.\n</think>\n\nYes.", "Hm.\n\nWell.", "Yes."},
		{"opened by both", Qwen3, "<think>\n", "<think>\nHm\n</think>\nYes", "Hm", "Yes"},
		{"opened thrice", Qwen3, "<think>\n", "<think>\n<think>Hm</think>Yes", "<think>Hm", "Yes"},
		{"closed by the template", Qwen3, "<think>\n\n</think>\n\n", " Yes <think>no</think>", "", " Yes <think>no</think>"},
		{"without thoughts", Qwen3, "<think>", "\n\n</think>\n\nYes", "", "Yes"},
		{"later marks are text", Qwen3, "", "So: <think>a</think> b", "", "So: <think>a</think> b"},
		{"marks behind thoughts too", Qwen3, "", "<think>a</think>b<think>c</think>d", "a", "b<think>c</think>d"},
		{"blanks that are no mark's", Qwen3, "", " \n<thin", "", " \n<thin"},
		{"cut off", Qwen3, "", "<think>Hm, ", "Hm,", ""},
		{"cut off in the mark", Qwen3, "", "<think>Hm\n</thi", "Hm\n</thi", ""},
		{"cut off in the second first mark", Qwen3, "<think>", "<th", "<th", ""},
		{"what is like a mark", Qwen3, "", "<think>a </ b </think b </think></think>", "a </ b </think b", "</think>"},
		{"nobody opened", DeepSeekR1, "Assistant:", "Hm\n</think>\nYes", "Hm", "Yes"},
		{"the model opened", DeepSeekR1, "Assistant:", "<think>\nHm\n</think>\nYes", "Hm", "Yes"},
		{"closed before", DeepSeekR1, "</think>\n", "Yes", "", "Yes"},
		{"Mistral", Mistral, "", "[THINK]Hm <think>[/THINK]Yes", "Hm <think>", "Yes"},
	} {
		if thought, answer := read(c.form, c.prompt, c.text); thought != c.thought || answer != c.answer {
			t.Errorf("%s: %q and %q, want %q and %q", c.name, thought, answer, c.thought, c.answer)
		}
		if thought, answer := read(c.form, c.prompt, strings.Split(c.text, "")...); thought != c.thought || answer != c.answer {
			t.Errorf("%s, in characters: %q and %q, want %q and %q", c.name, thought, answer, c.thought, c.answer)
		}
	}
}

func TestContinue(t *testing.T) {
	for _, c := range []struct {
		form                  Form
		turn, text            string
		thought, answer, name string
	}{
		{Qwen3, "<think> Hm, ", " well</think> Yes", " well", "Yes", "in thoughts"},
		{Qwen3, "<think>\n", "\nHm</think> Yes", "Hm", "Yes", "at their beginning"},
		{Qwen3, "<think> Hm</think> So", " it is <think>a</think>", "", " it is <think>a</think>", "in the answer"},
		{DeepSeekR1, "<think> Hm</think> So", " it is", "", " it is", "in the answer of one that always thinks"},
		{DeepSeekR1, "So", " it is", "", " it is", "without thoughts"},
		{DeepSeekR1, "<think>a</think>The <think>", " mark</think>", "", " mark</think>", "behind a mark in the answer"},
		{Qwen3, "In HTML, <think>", " is no mark", "", " is no mark", "behind a mark in an answer without thoughts"},
		{Qwen3, "<think>Hm, so ", " \nit </think>Yes", " \nit", "Yes", "behind a blank"},
	} {
		p := Continue(c.form, c.turn)
		thought, answer := p.Feed(c.text)
		t2, a2 := p.Finish()
		if thought+t2 != c.thought || answer+a2 != c.answer {
			t.Errorf("%s: %q and %q", c.name, thought+t2, answer+a2)
		}
	}
}

// Whatever comes in whatever pieces, the same is found, and nothing is lost but marks and the blanks beside them.
func TestPieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		form := rapid.SampledFrom(Forms()).Draw(t, "form")
		m := form.Markers()
		prompt := rapid.SampledFrom([]string{"", m[0], m[0] + "\n", m[1] + "\n", "a"}).Draw(t, "prompt")
		parts := rapid.SliceOf(rapid.SampledFrom([]string{m[0], m[1], m[1][:4], m[0][:3], "<", "k>", "]", " ", "\n", "\u00a0", "é", "a", "b"})).Draw(t, "parts")
		text := strings.Join(parts, "")
		var pieces []string
		for rest := text; rest != ""; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "n")
			for n < len(rest) && !utf8.RuneStart(rest[n]) {
				n++
			}
			pieces = append(pieces, rest[:n])
			rest = rest[n:]
		}
		thought, answer := read(form, prompt, text)
		if a, b := read(form, prompt, pieces...); a != thought || b != answer {
			t.Fatalf("%q in one piece is %q and %q, in pieces %q and %q", text, thought, answer, a, b)
		}
		bare := func(s string) string {
			return strings.Join(strings.Fields(strings.NewReplacer(m[0], "", m[1], "").Replace(s)), "")
		}
		if bare(thought+answer) != bare(text) && bare(thought)+bare(answer) != bare(text) {
			t.Fatalf("%q came to %q and %q", text, thought, answer)
		}
		if strings.Contains(thought, m[1]) {
			t.Fatalf("%q has the thought %q", text, thought)
		}
	})
}

// What comes is held back no longer than it must be.
func TestNothingIsHeldBack(t *testing.T) {
	p := New(Qwen3, "")
	for _, c := range []struct{ text, thought, answer string }{
		{"<thi", "", ""}, {"nk>", "", ""}, {"\n", "", ""}, {"Hm", "Hm", ""}, {", ", ",", ""}, {"well", " well", ""}, {" </th", "", ""},
		{"at", " </that", ""}, {"\n</think", "", ""}, {">", "", ""}, {"\n", "", ""}, {"Yes", "", "Yes"}, {" ", "", " "}, {"<think>", "", "<think>"},
	} {
		if thought, answer := p.Feed(c.text); thought != c.thought || answer != c.answer {
			t.Errorf("behind %q: %q and %q", c.text, thought, answer)
		}
	}
}

// Blanks without end are read once each: a hundred thousand of them in single pieces take no time to speak of.
func TestManyBlanks(t *testing.T) {
	const n = 100_000
	for _, opening := range []string{"", "<think>", "<think>a"} {
		p := New(Qwen3, "")
		p.Feed(opening)
		moved := testing.AllocsPerRun(1, func() {
			for range n {
				p.Feed("\n")
			}
		})
		if moved > 1000 {
			t.Errorf("behind %q: %g pieces of memory", opening, moved)
		}
		thought, answer := p.Feed("b")
		if len(thought+answer) != 1 && len(thought+answer) != 2*n+1 { // AllocsPerRun runs it twice
			t.Errorf("behind %q: %d bytes", opening, len(thought+answer))
		}
	}
}

func TestDetect(t *testing.T) {
	for _, c := range []struct {
		template string
		form     Form
	}{
		{"{{ messages }}", ""}, {"", ""}, {"{% set content = content.split('</think>')[-1] %}", Qwen3}, {"<think>\\n", Qwen3}, {"{{ '[THINK]' }}", Mistral},
	} {
		if form, ok := Detect(c.template); form != c.form || ok != (c.form != "") {
			t.Errorf("%s: %q", c.template, form)
		}
	}
	for name, want := range map[string]Form{"qwen3": Qwen3, "qwen25": "", "llama31": "", "mistral_v11": ""} {
		source, err := os.ReadFile(filepath.Join("../tokenizer/testdata/chat", name+".jinja"))
		if err != nil {
			t.Fatal(err)
		}
		if form, _ := Detect(string(source)); form != want {
			t.Errorf("%s: %q", name, form)
		}
	}
}
