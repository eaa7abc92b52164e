package config

import (
	"strings"
	"testing"
)

func TestParseSpeculative(t *testing.T) {
	for _, x := range []struct {
		in   string
		want Speculative
		err  string
	}{
		{in: ""},
		{in: `{"method":"ngram","num_speculative_tokens":5}`, want: Speculative{"ngram", 5, 3, 8}},
		{in: ` {"method":"ngram","num_speculative_tokens":15,"prompt_lookup_max":4} `, want: Speculative{"ngram", 15, 4, 4}},
		{in: `{"method":"ngram","num_speculative_tokens":1,"prompt_lookup_min":2}`, want: Speculative{"ngram", 1, 2, 2}},
		{in: `{"method":"ngram","num_speculative_tokens":1,"prompt_lookup_min":2,"prompt_lookup_max":64}`, want: Speculative{"ngram", 1, 2, 64}},
		{in: `ngram`, err: "no object"},
		{in: `5`, err: "no object"},
		{in: `{}`, err: `method ""`},
		{in: `{"method":"eagle","num_speculative_tokens":5}`, err: `method "eagle"`},
		{in: `{"method":"ngram"}`, err: "num_speculative_tokens 0"},
		{in: `{"method":"ngram","num_speculative_tokens":16}`, err: "num_speculative_tokens 16"},
		{in: `{"method":"ngram","num_speculative_tokens":-1}`, err: "num_speculative_tokens -1"},
		{in: `{"method":"ngram","num_speculative_tokens":5,"prompt_lookup_min":5,"prompt_lookup_max":4}`, err: "not in order"},
		{in: `{"method":"ngram","num_speculative_tokens":5,"prompt_lookup_min":-1}`, err: "not in order"},
		{in: `{"method":"ngram","num_speculative_tokens":5,"prompt_lookup_max":65}`, err: "not in order"},
		{in: `{"method":"ngram","num_speculative_tokens":5,"draft_model":"x"}`, err: "draft_model"},
		{in: `{"method":"ngram","num_speculative_tokens":5} {}`, err: "follows"},
	} {
		got, err := ParseSpeculative(x.in)
		if got != x.want || (err != nil) != (x.err != "") || err != nil && !strings.Contains(err.Error(), x.err) {
			t.Errorf("%s: %+v, %v", x.in, got, err)
		}
		c := Default()
		c.SpeculativeConfig = x.in
		if err := c.Validate(); (err != nil) != (x.err != "") || err != nil && !strings.Contains(err.Error(), "speculative-config") {
			t.Errorf("%s: %v", x.in, err)
		}
	}
}
