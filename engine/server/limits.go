package server

import (
	"slices"
	"strings"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/arrival"
)

// Limits of bad_words: each step holds an answer's end against all of them.
const (
	maxBadWords     = 1024
	maxBadBytes     = 1024
	maxBadWordBytes = 16 << 10 // of all
)

// limits makes the engine's of allowed_token_ids, bad_words and thinking_token_budget.
func (s *Server) limits(c *common) (engine.Limits, error) {
	l := engine.Limits{Thought: c.thought}
	if c.AllowedTokenIDs != nil && len(c.AllowedTokenIDs) == 0 {
		return l, badRequest("allowed_token_ids", "allowed_token_ids must not be empty, if it is given.")
	}
	if err := s.checkIDs("allowed_token_ids", c.AllowedTokenIDs); err != nil {
		return l, err
	}
	l.Allowed = slices.Clone([]int32(c.AllowedTokenIDs))
	slices.Sort(l.Allowed)
	l.Allowed = slices.Compact(l.Allowed)
	if len(c.BadWords) > maxBadWords {
		return l, badRequest("bad_words", "bad_words may have at most %d strings, got %d.", maxBadWords, len(c.BadWords))
	}
	sum := 0
	for _, word := range c.BadWords {
		if strings.TrimSpace(word) == "" || len(word) > maxBadBytes {
			return l, badRequest("bad_words", "bad_words must have between 1 and %d bytes each, and not be of spaces alone.", maxBadBytes)
		}
		if sum += len(word); sum > maxBadWordBytes {
			return l, badRequest("bad_words", "all bad_words together may have at most %d bytes.", maxBadWordBytes)
		}
		l.Bad = append(l.Bad, s.spellings(word)...)
	}
	return l, nil
}

// spellings are a word's tokens where a text begins with it, and behind a space where that is another first token and as many of
// them, which is what vLLM keeps from being sampled too.
func (s *Server) spellings(word string) [][]int32 {
	word = strings.TrimLeft(word, " \t\n\v\f\r")
	out := [][]int32{s.tok.Encode(word, false)}
	if spaced := s.tok.Encode(" "+word, false); len(spaced) > 0 && len(spaced) == len(out[0]) && spaced[0] != out[0][0] {
		out = append(out, spaced)
	}
	return out
}

// priority is that of a request.
func (s *Server) priority(c *common) (int, error) {
	switch p := c.Priority; {
	case p != 0 && !s.cfg.Priorities:
		return 0, badRequest("priority", "priority other than 0 is not supported: this server has no --scheduling-policy priority.")
	case p < arrival.MinPriority || p > arrival.MaxPriority:
		return 0, badRequest("priority", "priority must be between %d and %d, got %d.", arrival.MinPriority, arrival.MaxPriority, p)
	default:
		return int(p), nil
	}
}
