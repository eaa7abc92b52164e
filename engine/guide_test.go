package engine

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/grammar"
	"github.com/infinite-llm/infinite/engine/sched"
)

const fakeEOS = 7 // of the simulated engines

// fakeGuides compiles for the simulated vocabulary, whose first tokens are the bytes but for control characters.
type fakeGuides struct{}

func (fakeGuides) Get(_ context.Context, kind, source string) (*grammar.Guide, error) {
	g, err := grammar.Compile(kind, source)
	if err != nil {
		return nil, err
	}
	tokens := make([][]byte, fakeVocab)
	for b := ' '; b < 256; b++ {
		tokens[b] = []byte{byte(b)}
	}
	return grammar.NewGuide(g, grammar.NewVocabulary(tokens, nil)), nil
}

func newGuidedSim(t *testing.T, n, blocks int) *simCluster {
	c := newSim(t, n, blocks, sched.Config{MaxNumSeqs: 8, MaxBatchedTokens: 64, MaxModelLen: 2000, MaxWaiting: 8})
	for _, nd := range c.nodes {
		nd.eng.cfg.Guides = fakeGuides{}
	}
	return c
}

// answerOf reads a stream to its end.
func answerOf(t *testing.T, s Stream) (tokens []int32, last Event) {
	t.Helper()
	for {
		ev, err := s.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if ev.HasToken {
			tokens = append(tokens, ev.Token)
		}
		if ev.Finish != "" {
			return tokens, ev
		}
	}
}

func textOf(tokens []int32) string {
	var b strings.Builder
	for _, t := range tokens {
		if t != fakeEOS {
			b.WriteByte(byte(t))
		}
	}
	return b.String()
}

func TestGuidedAnswers(t *testing.T) {
	c := newGuidedSim(t, 1, 64)
	for _, x := range []struct {
		name, pattern string
		r             Request
		finish        string
		eos           bool // is the last token
	}{
		{"a fixed length", "[a-f]{3}x[0-9]{2}", Request{MaxTokens: 50}, "stop", false},
		{"also at the last token", "[a-f]{3}x[0-9]{2}", Request{MaxTokens: 6}, "stop", false},
		{"cut", "[a-f]{3}x[0-9]{2}", Request{MaxTokens: 5}, "length", false},
		{"EOS where it may end", "(?:ab)+", Request{MaxTokens: 500, StopTokens: []int32{fakeEOS}}, "stop", true},
		{"not before MinTokens", "(?:ab)+", Request{MaxTokens: 500, MinTokens: 41, StopTokens: []int32{fakeEOS}}, "stop", true},
		{"the form's end comes before MinTokens", "[ab]{4}", Request{MaxTokens: 500, MinTokens: 40, StopTokens: []int32{fakeEOS}}, "stop", false},
		{"without EOS", "(?:ab)+", Request{MaxTokens: 60, IgnoreEOS: true, StopTokens: []int32{fakeEOS}}, "length", false},
		{"without EOS the form ends it", "a{1,9}", Request{MaxTokens: 60, IgnoreEOS: true}, "stop", false},
	} {
		x.r.Prompt, x.r.Guide, x.r.Sampling.Seed = prompt(3, 20), Guide{Kind: grammar.Regex, Source: x.pattern}, 5
		got, last := answerOf(t, submit(t, c.nodes[0], x.r))
		full := regexp.MustCompile(`\A(?:` + x.pattern + `)\z`)
		if text := textOf(got); last.Finish != x.finish || last.Finish == "stop" && !full.MatchString(text) || len(got) < x.r.MinTokens && x.eos {
			t.Errorf("%s: %q, %s, %v", x.name, text, last.Finish, last.Err)
		}
		if eos := got[len(got)-1] == fakeEOS; eos != x.eos || eos != (last.StopToken == fakeEOS) {
			t.Errorf("%s: its last token is %d, its stop token %d", x.name, got[len(got)-1], last.StopToken)
		}
	}
	c.settled()
}

// Any part of an answer may come from another home; the rest is the same.
func TestGuidedAnswerGoesOn(t *testing.T) {
	c := newGuidedSim(t, 1, 64)
	r := Request{Prompt: prompt(9, 30), MaxTokens: 40, Guide: Guide{Kind: grammar.JSONSchema, Source: `{"type":"array","items":{"enum":[true,false,null]},"minItems":4,"maxItems":4}`}}
	want, _ := answerOf(t, submit(t, c.nodes[0], r))
	if len(want) < 10 {
		t.Fatalf("%q", textOf(want))
	}
	for n := 1; n < len(want); n++ {
		r.Answer = want[:n]
		if got, last := answerOf(t, submit(t, c.nodes[0], r)); !slices.Equal(got, want[n:]) || last.Finish != "stop" {
			t.Errorf("after %q: %q", textOf(want[:n]), textOf(got))
		}
	}
	for _, bad := range [][]int32{{'x'}, {'[', fakeEOS}, want} {
		r.Answer = bad
		if _, err := c.nodes[0].eng.Submit(t.Context(), &r); err == nil {
			t.Errorf("an answer that begins with %q goes on", textOf(bad))
		}
	}
	r.Answer, r.Guide.Source = nil, `{"type":`
	if _, err := c.nodes[0].eng.Submit(t.Context(), &r); err == nil {
		t.Error("a source that is none is taken")
	}
}

// Requests with and without a form, more than fit the pool at once, so that some are preempted and computed anew.
func TestGuidedAmongOthers(t *testing.T) {
	c := newGuidedSim(t, 1, 14)
	source := `{"type":"array","items":{"type":"integer"},"minItems":30,"maxItems":30}`
	var streams []Stream
	release := c.nodes[0].hold(true) // so that they run beside each other
	for i := range 8 {
		r := Request{Prompt: prompt(i, 20), MaxTokens: 90, Sampling: batch.Sampling{Seed: uint64(i)}}
		if i%2 == 0 {
			r.Guide = Guide{Kind: grammar.JSONSchema, Source: source}
		}
		streams = append(streams, submit(t, c.nodes[0], r))
	}
	release()
	u, err := fakeGuides{}.Get(t.Context(), grammar.JSONSchema, source)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range streams {
		got, last := answerOf(t, s)
		if i%2 == 1 {
			if w := want(uint64(i), prompt(i, 20), 90); !slices.Equal(got, w) {
				t.Errorf("request %d, which has no form: %v, not %v", i, got, w)
			}
			continue
		}
		m := u.Matcher()
		for _, id := range got {
			if err := m.Accept(id); err != nil {
				t.Fatalf("request %d: %q: %v", i, textOf(got), err)
			}
		}
		if last.Finish == "stop" && !m.MayEnd() || last.Err != nil {
			t.Errorf("request %d: %q ends with %s, %v", i, textOf(got), last.Finish, last.Err)
		}
	}
	if s := c.nodes[0].eng.Stats(); s.Preemptions == 0 {
		t.Error("none was preempted: the pool is too large for this test")
	}
}

// The negative control: without masks the simulated model does not answer in the form, and that is noticed.
func TestGuidedWithoutMasks(t *testing.T) {
	c := newGuidedSim(t, 1, 64)
	c.nodes[0].eng.cfg.StepFlags = batch.FlagNoMasks
	r := Request{Prompt: prompt(3, 20), MaxTokens: 50, Guide: Guide{Kind: grammar.Regex, Source: "[ab]{40}"}}
	if _, last := answerOf(t, submit(t, c.nodes[0], r)); last.Finish != "error" || last.Err == nil || !strings.Contains(last.Err.Error(), "form") {
		t.Errorf("%s %v", last.Finish, last.Err)
	}
}

// A vocabulary that cannot write what a form asks for ends the request with an error.
func TestGuidedWithoutTokens(t *testing.T) {
	c := newGuidedSim(t, 1, 64)
	r := Request{Prompt: prompt(3, 20), MaxTokens: 50, Guide: Guide{Kind: grammar.Regex, Source: "a\nb"}}
	if got, last := answerOf(t, submit(t, c.nodes[0], r)); textOf(got) != "a" || last.Finish != "error" {
		t.Errorf("%q %s %v", textOf(got), last.Finish, last.Err)
	}
}
