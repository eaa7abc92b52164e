package main

import (
	"strings"
	"testing"
)

// Thoughts are shown on terminals alone, apart from the answer, and are no part of the conversation.
func TestTurn(t *testing.T) {
	for _, c := range []struct {
		thoughts bool
		pieces   [][2]string
		want     string
	}{
		{true, [][2]string{{"", ""}, {"Hm", ""}, {", well", ""}, {"", "Yes"}, {"", "."}}, "\x1b[2mHm\x1b[0m\x1b[2m, well\x1b[0m\n\nYes."},
		{true, [][2]string{{"", "Yes"}, {"", "."}}, "Yes."},
		{false, [][2]string{{"Hm", ""}, {"", "Yes"}, {"", "."}}, "Yes."},
	} {
		var out strings.Builder
		turn := turn{out: &out, thoughts: c.thoughts}
		for _, p := range c.pieces {
			turn.add(p[0], p[1])
		}
		if out.String() != c.want || turn.answer.String() != "Yes." {
			t.Errorf("%q, of it %q", out.String(), turn.answer.String())
		}
	}
}
