package engine

import (
	"fmt"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/lookup"
	"github.com/infinite-llm/infinite/engine/sched"
)

// Speculation lets a step compute guesses of the tokens to come behind a request's last token, and sample behind each: as
// many tokens as were guessed right, and one more, come of one step, which for a request with KV elsewhere is one round trip a
// layer. What is sampled at a position depends on the tokens before it and the seed alone, so the answer is the same.
type Speculation struct {
	Tokens   int // guessed of a request in a step, at most; 0: none
	MinMatch int // last tokens of a text that must have come before for a guess
	MaxMatch int // how many of them are compared, to choose among places
}

func (s Speculation) check() error {
	if s.Tokens < 0 || s.Tokens > batch.MaxDrafts || s.Tokens > 0 && (s.MinMatch < 1 || s.MaxMatch < s.MinMatch) {
		return fmt.Errorf("cannot guess %d tokens from %d to %d last ones: 0 to %d, from 1 at least", s.Tokens, s.MinMatch, s.MaxMatch, batch.MaxDrafts)
	}
	return nil
}

// mostIndexed bounds the work for guesses in a step: tokens of texts that are taken into their indexes, some 10 ns each.
// Beyond it each request takes a few, so that no index that is whole falls behind.
const (
	mostIndexed   = 1 << 15
	alwaysIndexed = 2 * (batch.MaxDrafts + 1)
)

// drafting is what guesses of a request's tokens are made from.
type drafting struct {
	index *lookup.Index
	pace  lookup.Pace
}

// draft returns guesses of the tokens behind the item's, which the step and the pool have room for.
func (e *Engine) draft(r *request, it sched.Item) []int32 {
	most := r.MaxTokens - r.generated() - 1 // the row behind them gives one more
	if e.cfg.Speculation.Tokens == 0 || !it.Last || most <= 0 {
		return nil
	}
	if r.masked {
		most = min(most, r.MinTokens-r.generated()-1) // the slot's bias holds for all rows
	}
	d := r.drafting
	if d == nil {
		if e.spareIndex <= 0 {
			return nil
		}
		s := e.cfg.Speculation
		d = &drafting{lookup.New(s.MinMatch, s.MaxMatch, 2*len(r.tokens)), lookup.Pace{Most: s.Tokens}}
		r.drafting = d
	}
	before := d.index.Len()
	whole := d.index.Add(r.tokens, max(e.spareIndex, alwaysIndexed))
	if e.spareIndex -= d.index.Len() - before; !whole {
		return nil
	}
	if most = min(most, d.pace.Next()); most <= 0 {
		return nil
	}
	e.guess = d.index.Draft(e.guess[:0], r.tokens, most)
	masks := r.masks()
	if masks {
		e.guess = e.guess[:min(len(e.guess), e.spareMasks)]
	}
	if r.guided != nil {
		e.guess = r.guided.ahead(e.guess, &e.maskTime)
	}
	if r.limits != nil && masks {
		e.guess = e.within(r, e.guess)
	}
	n := e.sched.Draft(r.id, len(e.guess))
	if masks {
		e.spareMasks -= n
	}
	return e.guess[:n]
}

// guessed takes note of what became of a request's drafts. right may be -1: nothing was sampled.
func (e *Engine) guessed(r *request, drafts, right int) {
	if drafts == 0 {
		return
	}
	right = max(0, right)
	r.drafting.pace.Took(drafts, right)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stats.Drafts++
	e.stats.DraftTokens += uint64(drafts)
	e.stats.AcceptedTokens += uint64(right)
}
