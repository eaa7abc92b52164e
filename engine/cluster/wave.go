package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/kvcache"
)

// Waves: several instances compute one prompt at the same time. The home's side is form.go, the others' assist.go;
// here is what a part in a wave is.
//
//	home                                      those that assist
//	FormWave: JoinWave, ticket 0 ----------> who would keeps its part
//	JoinWave ------------------------------> blocks, a span over them for each of the others
//	Formed: own blocks, spans (loop)
//	StartWave: own spans; BeginWave -------> spans of all the others; their legs begin
//	Started: own legs begin (loop)
//	... request ends: ReleaseKV -----------> the home's span ends, and with it, if it goes on, the part in the wave
//
// An instance has a part in one wave at a time: of two, each could wait for a leg of the other's that waits for one of its.

// WaveHome is the step loop of this instance, as far as waves go. Formed and Started are called under the manager's lock, so
// they neither wait nor call back.
type WaveHome interface {
	// Formed reports the end of a FormWave: number is the device's, spans, without blocks, are to hold what the others
	// compute, in the order of their parts. Without spans nobody assists.
	Formed(id kvcache.RequestID, number uint32, c kvcache.Course, spans []kvcache.Span)
	// Started reports the end of a StartWave, or begins the wave of a request that assists, with its spans. With err it ends.
	Started(id kvcache.RequestID, spans []kvcache.Span, err error)
	// Helps says why this instance would not take so many tokens' blocks for a wave now; it does not wait.
	Helps(tokens int) error
	// Assist takes a request for a wave, and its blocks.
	Assist(ctx context.Context, number uint32, f Form, c kvcache.Course) (kvcache.RequestID, error)
}

// WaveDevice is what waves do with the device.
type WaveDevice interface {
	WaveOpen(wave uint32, patience time.Duration) error
	SpanWave(owner, handle, generation uint32, blocks []int32, wave uint32) error
	WaveClose(wave uint32) error
}

// Form asks for a wave: at most Parts instances, this one with them, compute the tokens of Text behind Base.
type Form struct {
	Request            kvcache.RequestID
	Base, Chunk, Parts int
	ID, Salt           string
	Text               []int32
	Arrival            uint64
}

const (
	maxParts   = 64
	maxWaves   = 4                // numbers of the device's
	waveAnswer = 2 * time.Second  // to call; who is asked takes the request between two steps
	beginLimit = 30 * time.Second // from JoinWave to BeginWave, with a step of the home's between
)

var (
	errBusyWave  = errors.New("this instance has a part in a wave")
	errNoHelp    = errors.New("nobody assists")
	errWaveOver  = errors.New("the wave came to nothing")
	errWaveStale = errors.New("links changed while the wave was formed")
)

// waves is the part in a wave that this instance has, and what it has said to assist with. Guarded by RManager.mu.
type waves struct {
	home   WaveHome // nil: this instance has no part in any
	device WaveDevice
	number uint32               // the last one's
	own    *wavePart            // nil: there is none
	joined map[slotID]*wavePart // those this instance assists with, by their homes' spans, as long as these last
}

// wavePart is a part in a wave.
type wavePart struct {
	number  uint32
	request kvcache.RequestID // 0 while one that assists has none yet
	opened  bool              // the device knows the number
	ended   bool
	begun   bool
	// Of one that assists: for whom it is kept, until that joins; the other parts, in order; for how long queries wait.
	keptFor  *peer
	others   []string
	patience time.Duration
	slots    []kvcache.Hosted // spans here over its blocks
	course   kvcache.Course
	helpers  []joined // of a home, in the order of parts
}

// joined is an instance that assists, over one session with it.
type joined struct {
	creditor
	span   kvcache.Span
	others []*pb.WaveSpan // its spans for all of the others
}

// Waves lets this instance have parts in waves. It is called before Start.
func (r *RManager) Waves(home WaveHome, device WaveDevice) {
	r.waves = waves{home: home, device: device, joined: map[slotID]*wavePart{}}
}

// takePart gives the instance a part in a wave; nil if it has one.
func (r *RManager) takePart(request kvcache.RequestID) *wavePart {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := &r.waves
	if w.home == nil || w.own != nil || r.closed {
		return nil
	}
	w.number = w.number%maxWaves + 1
	w.own = &wavePart{number: w.number, request: request}
	return w.own
}

// openPart lets the device know a part.
func (r *RManager) openPart(w *wavePart) error {
	if err := r.waves.device.WaveOpen(w.number, cmp.Or(w.patience, r.cfg.WavePatience)); err != nil {
		return err
	}
	r.mu.Lock()
	w.opened = true
	ended := w.ended
	r.mu.Unlock()
	if ended {
		r.closePart(w)
		return errWaveOver
	}
	return nil
}

// EndWave says that a request's part in a wave is over. It comes between two steps.
func (r *RManager) EndWave(id kvcache.RequestID) {
	r.mu.Lock()
	w := r.waves.own
	if w == nil || w.request != id {
		r.mu.Unlock()
		return
	}
	r.mu.Unlock()
	r.endPart(w)
}

func (r *RManager) endPart(w *wavePart) {
	r.mu.Lock()
	was, opened := w.ended, w.opened
	w.ended = true
	if r.waves.own == w {
		r.waves.own = nil
	}
	r.mu.Unlock()
	if !was && opened {
		r.closePart(w)
	}
}

func (r *RManager) closePart(w *wavePart) {
	if err := r.waves.device.WaveClose(w.number); err != nil {
		slog.Error("cannot end a wave", "wave", w.number, "error", err)
	}
}

// shareWave opens a span for a peer over the part's blocks.
func (r *RManager) shareWave(w *wavePart, p *peer) error {
	p.hostMu.Lock()
	defer p.hostMu.Unlock()
	r.mu.Lock()
	serves := p.serving != 0 && !p.upgrading
	r.mu.Unlock()
	if !serves {
		return fmt.Errorf("there is no link from %s", p.id)
	}
	return r.openSlot(w, p, 0)
}

// openSlot is shareWave for a caller that holds the peer's hostMu and has seen that it is served.
func (r *RManager) openSlot(w *wavePart, p *peer, ticket uint64) error {
	h, err := r.kv.ShareWave(w.request, p.id, ticket)
	if err != nil {
		return err
	}
	if err := r.waves.device.SpanWave(p.index, h.Handle, h.Generation, h.Blocks, w.number); err != nil {
		r.unhost(h, nil)
		return err
	}
	h.Blocks = nil
	r.mu.Lock()
	w.slots = append(w.slots, h)
	r.mu.Unlock()
	return nil
}

// endSlots ends the spans here over a part's blocks that are still open: nobody else may know of them.
func (r *RManager) endSlots(w *wavePart) {
	r.mu.Lock()
	slots := slices.Clone(w.slots)
	r.mu.Unlock()
	for _, h := range slots {
		p := r.peerByID(h.Owner)
		if p == nil {
			continue // freed with its links
		}
		p.hostMu.Lock()
		for _, there := range r.kv.HandlesOf(h.Owner) {
			if there.Handle == h.Handle && there.Generation == h.Generation {
				r.unhost(there, nil)
			}
		}
		p.hostMu.Unlock()
	}
}
