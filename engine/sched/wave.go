package sched

import (
	"errors"
	"fmt"

	"github.com/infinite-llm/infinite/engine/kvcache"
)

// A wave: several instances compute one prompt at the same time. It is cut into legs, which they compute in turn, the home
// the last one. A leg needs what the legs before it have computed, layer by layer, so while one instance is in a layer of
// its leg, the next is in the layer before of its own (the device sees to that: a query for what is not there yet is kept).
//
//	home    admit: form --> Formed: blocks, spans --> Started --> its legs, one after the other --> an ordinary request
//	helper  Assist: blocks ------------------------> Started, spans --> its legs ------------------> over
//
// A request of a wave has all its local blocks before the wave starts, and keeps them until it is over.

// Form asks for a wave: the request runs already, with a slot and the blocks of its beginning, and does nothing until
// Formed.
type Form struct {
	Request kvcache.RequestID
	Base    int // tokens whose KV is here
	Tokens  int
	Chunk   int // tokens of a leg
	Parts   int // instances at most, this one with them
}

// phase of a request in a wave.
type phase int

const (
	ordinary phase = iota
	forming        // until Formed, or Started for a helper
	formed         // until Started
	moving         // its legs are under way
)

// wave is a request's part in one.
type wave struct {
	phase  phase
	course kvcache.Course
	leg    int // of course.Legs: the one under way
	helper bool
}

// provided says that the request has all its blocks.
func (w *wave) provided() bool { return w.helper || w.phase > forming }

var errNoWave = errors.New("cannot take part in a wave: this instance has other work")

// wants says whether a request that is about to run is worth a wave: a long prompt, of which no part is with others, while
// others are there who might help.
func (s *Scheduler) wants(r *request, view View) bool {
	return s.cfg.Waves.Parts > 1 && view.Helpers > 0 && !r.alone && r.Rows == 0 &&
		r.Tokens-r.computed >= s.cfg.Waves.MinTokens && s.kv.Size(r.ID).Spans == 0
}

// form asks for a wave of a request that has just been started.
func (s *Scheduler) form(r *request, view View) {
	// A leg is a step's, with room left for a token of each other request: a rest of it would take a step of its own.
	bs := s.kv.BlockSize()
	chunk := max(1, max(s.cfg.MaxBatchedTokens-s.cfg.MaxNumSeqs, s.cfg.MaxBatchedTokens/2)/bs) * bs
	parts := min(s.cfg.Waves.Parts, view.Helpers+1, (r.Tokens-r.computed)/(2*chunk))
	if parts < 2 {
		return
	}
	r.wave = wave{phase: forming}
	s.plan.Forms = append(s.plan.Forms, Form{Request: r.ID, Base: r.computed, Tokens: r.Tokens, Chunk: chunk, Parts: parts})
}

// Formed ends a Form: others help, by the course, and spans are to hold what they compute, in the order of their parts. The
// request has its blocks then, and waits for Started. Without spans, or room, it goes on by itself; false says so.
func (s *Scheduler) Formed(id kvcache.RequestID, c kvcache.Course, spans []kvcache.Span) (back []kvcache.Ended, ok bool) {
	r := s.all[id]
	if r == nil || r.wave.phase != forming || r.wave.helper {
		return kvcache.EndedOf(spans), false
	}
	r.wave.phase = ordinary
	if len(spans) == 0 || c.Base != r.computed || c.End() != r.Tokens || s.kv.Grow(id, c.Own(c.Me)) != nil {
		return kvcache.EndedOf(spans), false
	}
	if s.kv.Join(id, spans) != nil {
		return kvcache.EndedOf(spans), false
	}
	r.wave.phase, r.wave.course = formed, c
	return nil, true
}

// Assist takes a helper's request for a wave, and all its blocks, at once or not at all. c ends with its last leg, and so do
// r.Tokens.
func (s *Scheduler) Assist(r Request, c kvcache.Course) error {
	bs := s.kv.BlockSize()
	need := blocksOf(c.Own(c.Me), bs)
	switch {
	case s.all[r.ID] != nil:
		return fmt.Errorf("cannot schedule request %d twice", r.ID)
	case len(s.slots) <= s.searching || len(s.waiting) > 0 || s.Prefills():
		return errNoWave
	case need+s.outstanding()+s.watermark() > s.kv.Free():
		return fmt.Errorf("cannot take part in a wave: %d blocks of %d are free, it needs %d beside those that run: %w", s.kv.Free(), s.kv.Total(), need, kvcache.ErrNoRoom)
	}
	if err := s.kv.Open(r.ID); err != nil {
		return err
	}
	if err := s.kv.Grow(r.ID, c.Own(c.Me)); err != nil {
		s.kv.Close(r.ID)
		return err
	}
	q := &request{Request: r, active: true, wave: wave{phase: forming, course: c, helper: true}}
	q.slot = s.slots[len(s.slots)-1]
	s.slots = s.slots[:len(s.slots)-1]
	s.all[r.ID] = q
	s.running = insert(s.running, q)
	return nil
}

// Prefills says whether a running request has a step's tokens and more to compute: who helps others then helps nobody.
func (s *Scheduler) Prefills() bool {
	for _, r := range s.running {
		if r.Tokens-r.computed > s.cfg.MaxBatchedTokens {
			return true
		}
	}
	return false
}

// Started says that all instances of a wave know of each other: its legs begin. A helper's request gets its spans with it.
func (s *Scheduler) Started(id kvcache.RequestID, spans []kvcache.Span) error {
	r := s.all[id]
	if r == nil || r.wave.phase != forming && r.wave.phase != formed || r.wave.helper != (r.wave.phase == forming) {
		return fmt.Errorf("cannot start the wave of request %d: %w", id, kvcache.ErrState)
	}
	if r.wave.helper {
		if err := s.kv.Join(id, spans); err != nil {
			return err
		}
	}
	r.wave.phase = moving
	return s.advance(r)
}

// InWave says whether a request is in a wave, or about to be.
func (s *Scheduler) InWave(id kvcache.RequestID) bool {
	r := s.all[id]
	return r != nil && r.wave.phase != ordinary
}

// advance goes on to the request's next leg, over those of the others, or ends the wave.
func (s *Scheduler) advance(r *request) error {
	w := &r.wave
	blocks := make([]int, w.course.Parts-1)
	for ; w.leg < len(w.course.Legs); w.leg++ {
		l := w.course.Legs[w.leg]
		if l.Part == w.course.Me && l.End > r.computed {
			break
		}
		if l.Part != w.course.Me {
			blocks[kvcache.SpanOf(l.Part, w.course.Me)] += (l.End - l.Start) / s.kv.BlockSize()
			r.computed = l.End
		}
	}
	if w.leg < len(w.course.Legs) {
		return s.kv.Advance(r.ID, blocks)
	}
	w.phase = ordinary
	return s.kv.EndWave(r.ID, w.course.Order(s.kv.BlockSize()))
}
