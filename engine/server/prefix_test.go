package server

import (
	"context"
	"testing"

	"github.com/infinite-llm/infinite/engine"
)

// Of each prompt usage tells once how many of its tokens were in the cache, however many answers it gets.
func TestCachedTokens(t *testing.T) {
	b := scripted()
	b.setScript(func(_ context.Context, r *engine.Request) (engine.Stream, error) {
		events := tokens(5, 6)
		events[0].Cached = len(r.Prompt) - 1
		return ended(events...), nil
	})
	a := serve(t, b)
	const want = 2 + 4 // of prompts of 3 and 5 tokens
	body := obj{"prompt": [][]int{{5, 6, 7}, {5, 6, 7, 8, 9}}, "n": 2}
	var out completion
	a.ok("/v1/completions", body.String(), &out)
	if out.Usage.Prompt != 8 || out.Usage.Details.Cached != want {
		t.Errorf("usage %+v", *out.Usage)
	}
	body["stream_options"] = obj{"include_usage": true}
	events := a.chunks("/v1/completions", body)
	if u := events[len(events)-1].text(t).Usage; u == nil || u.Prompt != 8 || u.Details.Cached != want {
		t.Errorf("usage at the end of a stream %+v", u)
	}
	var chat chatAnswer
	a.ok("/v1/chat/completions", chatBody(obj{"n": 3}).String(), &chat)
	if chat.Usage.Details.Cached != chat.Usage.Prompt-1 {
		t.Errorf("usage of a chat %+v", *chat.Usage)
	}
}

func TestCacheSalt(t *testing.T) {
	b := scripted(tokens(5)...)
	a := serve(t, b)
	for _, salt := range []string{"", "one"} {
		body := obj{"prompt": "a"}
		if salt != "" {
			body["cache_salt"] = salt
		}
		var out completion
		a.ok("/v1/completions", body.String(), &out)
		if got := b.last(t).CacheSalt; got != salt {
			t.Errorf("salt %q instead of %q", got, salt)
		}
	}
}
