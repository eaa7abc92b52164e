package engine

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/infinite-llm/infinite/engine/grammar"
)

// Thoughts are free, and the form begins behind them, wherever the answer goes on.
func TestThoughtsBeforeAForm(t *testing.T) {
	c := newGuidedSim(t, 1, 64)
	form := regexp.MustCompile(`^[0-9]{4}x$`)
	for seed := range 6 {
		p := prompt(seed, 20)
		free := want(uint64(seed), p, 900)
		text := firstOf(free, 30, func(t int32) bool { return t >= ' ' && t < 128 })
		closing := string(rune(free[text]))
		for _, x := range []struct {
			name     string
			thoughts Thoughts
			think    int // tokens
		}{
			{"opened", Thoughts{Opened: true, Close: closing, CloseToken: -1}, text + 1},
			{"closed by a token", Thoughts{Opened: true, Close: "</think>", CloseToken: free[text+3]}, 1 + slices.Index(free, free[text+3])},
			{"opened by a token", Thoughts{Open: free[0], Close: closing, CloseToken: -1}, text + 1},
			{"another token would open", Thoughts{Open: '9' + 1, Close: closing, CloseToken: -1}, 0},
			{"never opened", Thoughts{Open: -1, Close: closing, CloseToken: -1}, 0},
			{"none", Thoughts{}, 0},
		} {
			r := Request{Prompt: p, MaxTokens: 950, Sampling: sampling(uint64(seed)), Guide: Guide{grammar.Regex, "[0-9]{4}x", x.thoughts}}
			got, last := answerOf(t, submit(t, c.nodes[0], r))
			if len(got) != x.think+5 || !slices.Equal(got[:x.think], free[:x.think]) || !form.MatchString(textOf(got[x.think:])) || last.Finish != "stop" {
				t.Fatalf("%s, %d: %q, %s, %v; the free answer is %q", x.name, seed, textOf(got), last.Finish, last.Err, textOf(free))
			}
			for n := 1; n < len(got); n += 1 + len(got)/40 {
				r.Answer = got[:n]
				if rest, last := answerOf(t, submit(t, c.nodes[0], r)); !slices.Equal(rest, got[n:]) || last.Finish != "stop" {
					t.Fatalf("%s, %d, after %q: %q", x.name, seed, textOf(got[:n]), textOf(rest))
				}
			}
		}
	}
	r := Request{Prompt: prompt(1, 20), MaxTokens: 5, Logprobs: -1, PromptLogprobs: -1, Guide: Guide{grammar.Regex, "a", Thoughts{Open: fakeVocab, Close: "a"}}}
	if _, err := c.nodes[0].eng.Submit(t.Context(), &r); err == nil {
		t.Error("thoughts begin with a token that is none")
	}
	c.settled()
}

// firstOf is the first place from least on of a token that is of a kind and did not come before.
func firstOf(tokens []int32, least int, kind func(int32) bool) int {
	for k := least; ; k++ {
		if kind(tokens[k]) && !slices.Contains(tokens[:k], tokens[k]) {
			return k
		}
	}
}

// The end of thoughts is found in whatever tokens it comes, and what follows it in the same token is the form's.
func TestThoughtsEnd(t *testing.T) {
	pieces := []string{"a", "<", "/", "think", ">", "</", "</think>", "k>", "</think>\n", ">{", ">\n [", "</t", "hink", "", "[]"}
	tokens := make([][]byte, len(pieces))
	for i, p := range pieces {
		tokens[i] = []byte(p)
	}
	v := grammar.NewVocabulary(tokens, nil)
	rapid.Check(t, func(t *rapid.T) {
		th := thinking{Thoughts: Thoughts{Opened: true, Close: "</think>", CloseToken: -1}, begun: true}
		text := ""
		for !strings.Contains(text, "</think>") && len(text) < 200 {
			i := rapid.IntRange(0, len(pieces)-1).Draw(t, "token")
			drafts := []int32{int32(i), 6}
			free := th.free(drafts, v)
			rest, closed := th.read(int32(i), v)
			text += pieces[i]
			_, want, over := strings.Cut(text, "</think>")
			if closed != over || string(rest) != strings.TrimLeft(want, "\n ") {
				t.Fatalf("%q: %v, %q", text, closed, rest)
			}
			if n := map[bool]int{true: 0, false: 1}[closed]; len(free) != n {
				t.Fatalf("%q: %d drafts are free", text, len(free))
			}
		}
	})
}
