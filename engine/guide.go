package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/infinite-llm/infinite/engine/grammar"
	"github.com/infinite-llm/infinite/engine/sched"
)

// Guide is a form that an answer is held to: a kind of source that grammar.Compile knows, and the source. The zero
// Guide is none.
type Guide struct {
	Kind, Source string
	Thoughts     Thoughts // before it
}

// Guides compiles forms for a model's vocabulary.
type Guides interface {
	// Get may take seconds. What is wrong with the source is a *grammar.Error. The guide's memory counts while it has a
	// matcher that is not closed.
	Get(ctx context.Context, kind, source string) (*grammar.Guide, error)
}

// guided is a request's place in the form of its answer. The loop owns it once the request is queued.
type guided struct {
	m        *grammar.Matcher
	words    *grammar.Vocabulary
	thinking *thinking // nil: the form has begun
	ends     []int32   // stop tokens that are no text: they may come where the form may end
	err      error     // there is no mask
	late     bool      // the mask did not come in time for the step
	// The masks of the step's rows: what may come next, and behind each draft.
	places []place
}

// place is what may come somewhere in an answer.
type place struct {
	mask   []uint32
	some   bool // the mask allows a token
	mayEnd bool // the form may end there
}

// guide makes the place behind the answer so far; nil where the request has no form.
func (e *Engine) guide(ctx context.Context, req *Request) (*guided, error) {
	if req.Guide == (Guide{}) {
		return nil, nil
	}
	if e.cfg.Guides == nil {
		return nil, errors.New("cannot hold an answer to a form: this engine has no vocabulary")
	}
	u, err := e.cfg.Guides.Get(ctx, req.Guide.Kind, req.Guide.Source)
	if errors.Is(err, grammar.ErrBusy) {
		return nil, &Error{"queue_full", fmt.Sprintf("cannot take the request: %v", err)}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot hold the answer to its form: %w", err)
	}
	st := e.dev.Step()
	if words := u.Vocabulary().Words(); words*len(st.Seqs) != len(st.Masks) {
		return nil, fmt.Errorf("cannot hold the answer to its form: masks have %d words, the device's others", words)
	}
	if size := u.Vocabulary().Size(); int(req.Guide.Thoughts.Open) >= size {
		return nil, fmt.Errorf("cannot hold the answer to its form: thoughts begin with token %d of %d", req.Guide.Thoughts.Open, size)
	}
	g := &guided{m: u.Matcher(), words: u.Vocabulary(), thinking: newThinking(req.Guide.Thoughts)}
	if err := g.resume(req.Answer); err != nil {
		g.close()
		return nil, err
	}
	for _, t := range req.StopTokens {
		if !u.Vocabulary().Has(t) && (!req.IgnoreEOS || !slices.Contains(e.cfg.EOS, t)) {
			g.ends = append(g.ends, t)
		}
	}
	return g, nil
}

// resume goes to the place behind an answer.
func (g *guided) resume(answer []int32) error {
	for _, t := range answer {
		if err := g.take(t); err != nil {
			return fmt.Errorf("cannot go on with an answer that does not have its form: %w", err)
		}
	}
	if g.thinking == nil && g.m.MustEnd() {
		return errors.New("cannot go on with an answer that has come to the end of its form")
	}
	return nil
}

// close lets go of what the form takes, once; nil is no form.
func (g *guided) close() {
	if g != nil {
		g.m.Close()
	}
}

// lookAll finds the masks of a step's requests. The device waits meanwhile, and all others: what is not found in MaskTime
// is late. The first is found in any case, and those that were late come first the next time.
func (e *Engine) lookAll(p *sched.Plan) {
	e.looks = e.looks[:0]
	for _, it := range p.Items {
		if r := e.get(it.Request); needsMask(r, it) {
			e.looks = append(e.looks, r)
		}
	}
	slices.SortFunc(e.looks, func(a, b *request) int {
		if was, is := a.id <= e.looked, b.id <= e.looked; was != is {
			if was {
				return 1
			}
			return -1
		}
		return cmp.Compare(a.id, b.id)
	})
	var spent time.Duration
	made := 0
	for _, r := range e.looks {
		if !r.formed() {
			continue // limits take no time
		}
		g := r.guided
		ready := g.m.Ready()
		if g.late = !ready && made > 0 && spent >= e.cfg.MaskTime; g.late {
			continue
		}
		began := time.Now()
		g.err = g.look()
		if spent += time.Since(began); !ready {
			made++
			e.looked = r.id
		}
	}
	e.spareMasks, e.maskTime = len(e.dev.Step().Seqs)-len(e.looks), e.cfg.MaskTime-spent
}

// look finds what may come next, before the request has a part of the step.
func (g *guided) look() error {
	g.places = g.places[:0]
	return g.add(g.m)
}

// add finds the next place.
func (g *guided) add(m *grammar.Matcher) error {
	mask, some, err := m.Mask()
	if err != nil {
		return fmt.Errorf("cannot hold the answer to its form any longer: %w", err)
	}
	if !some && !(m.MayEnd() && len(g.ends) > 0) {
		return errors.New("cannot hold the answer to its form: no token of the vocabulary goes on with it")
	}
	g.places = append(g.places, place{mask, some, m.MayEnd()})
	return nil
}

// ahead finds the places behind drafts, and returns those of them that go on with the form, and behind which there is more to
// come. What is left of the time for masks is for those here, too: where the drafts are right the next step needs them. To
// follow a draft also takes time.
func (g *guided) ahead(drafts []int32, left *time.Duration) []int32 {
	switch {
	case g.waits():
		return g.thinking.free(drafts, g.words)
	case g.opens():
		return drafts[:0]
	}
	m := *g.m
	g.places = g.places[:1]
	for k, t := range drafts {
		if *left <= 0 {
			return drafts[:k]
		}
		began := time.Now()
		goes := m.Accept(t) == nil && !m.MustEnd() && g.add(&m) == nil
		if *left -= time.Since(began); !goes {
			return drafts[:k]
		}
	}
	return drafts
}

// fill gives a mask behind k drafts what look found for it. mayStop: stop tokens may come, where the form may end.
func (g *guided) fill(to []uint32, k int, mayStop bool) {
	at := &g.places[k]
	copy(to, at.mask)
	if g.opens() {
		to[g.thinking.Open/32] |= 1 << (g.thinking.Open % 32)
	}
	if at.mayEnd && (mayStop || !at.some) {
		for _, t := range g.ends {
			to[t/32] |= 1 << (t % 32)
		}
	}
}

// accept takes the token that was sampled behind k drafts. over: nothing can follow it.
func (g *guided) accept(token int32, k int) (over bool, err error) {
	if !g.waits() && slices.Contains(g.ends, token) && g.m.MayEnd() {
		return !g.places[k].some, nil // where nothing else may come it ends the answer, also before MinTokens
	}
	if err := g.take(token); err != nil {
		return false, fmt.Errorf("cannot hold the answer to its form: %w", err)
	}
	return g.thinking == nil && g.m.MustEnd(), nil
}
