package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/infinite-llm/infinite/engine/node"
)

// idsOf reads tokens that the API gave as ids.
func idsOf(t *testing.T, a answer) (ids []int32) {
	t.Helper()
	for _, s := range a.tokens {
		var id int32
		if _, err := fmt.Sscanf(s, "token_id:%d", &id); err != nil {
			t.Fatalf("%q is no token id: %v", s, err)
		}
		ids = append(ids, id)
	}
	return ids
}

// contains tells whether all holds part.
func contains(all, part []int32) bool {
	for i := range all {
		if i+len(part) <= len(all) && slices.Equal(all[i:i+len(part)], part) {
			return true
		}
	}
	return false
}

// allowed_token_ids and bad_words hold for an answer that is spread over three instances as for one, with guesses ahead too.
func TestLimits(t *testing.T) {
	single := serve(t, "--dtype", "float32", poolFlag(t, 100))
	spread := serve(t, "--dtype", "float32", "--instances", "3", poolFlag(t, 20), "--speculative-config",
		`{"method":"ngram","num_speculative_tokens":4,"prompt_lookup_min":2}`)
	b := body(prompt(300, 3), 400)
	b["return_tokens_as_token_ids"], b["temperature"], b["seed"] = true, 1, 5
	free := single.complete(b)
	ids := idsOf(t, free)

	// Every third kind of token of the free answer, and some that are none of it.
	kinds := slices.Compact(slices.Sorted(slices.Values(ids)))
	allowed := []int32{11, 12, 13}
	for i := 0; i < len(kinds); i += 3 {
		allowed = append(allowed, kinds[i])
	}
	b["allowed_token_ids"] = allowed
	want := single.complete(b)
	for _, id := range idsOf(t, want) {
		if !slices.Contains(allowed, id) {
			t.Fatalf("token %d is not among %v", id, allowed)
		}
	}
	if slices.Equal(want.tokens, free.tokens) {
		t.Error("the answer was within its limits without them")
	}
	sameAnswer(t, want, spread.complete(b))

	delete(b, "allowed_token_ids")
	tok, err := node.OpenTokenizer("")
	if err != nil {
		t.Fatal(err)
	}
	// A word at the beginning of a text, and behind a space where that is as many tokens and another first one.
	spelled := func(word string) [][]int32 {
		out := [][]int32{tok.Encode(word, false)}
		if spaced := tok.Encode(" "+word, false); len(spaced) == len(out[0]) && spaced[0] != out[0][0] {
			out = append(out, spaced)
		}
		return out
	}
	var bad []string
	for _, word := range strings.Fields(free.text) {
		if has := func(s []int32) bool { return contains(ids, s) }; slices.ContainsFunc(spelled(word), has) && len(bad) < 8 {
			bad = append(bad, word)
		}
	}
	if len(bad) == 0 {
		t.Fatalf("no word of %q is spelled as it is alone", free.text)
	}
	b["bad_words"] = bad
	want = single.complete(b)
	got := idsOf(t, want)
	if slices.Equal(got, ids) {
		t.Errorf("the answer is the same without %q", bad)
	}
	for _, word := range bad {
		for _, s := range spelled(word) {
			if contains(got, s) {
				t.Errorf("%q, %v, is in %v", word, s, got)
			}
		}
	}
	sameAnswer(t, want, spread.complete(b))
	spread.eventually("all blocks free", idle)
}
