// Package sched decides what each step of an instance computes. It is a pure state machine: no clock, no
// goroutine, no I/O. The KV pool's books (kvcache) are its only other state.
//
//	sched.go     requests and their way: Add, Commit, Restart, Remove
//	schedule.go  one step's plan: who runs, how many tokens
//	share.go     a request that may begin with blocks that lie with others
//	pressure.go  what to do when the pool runs short: offload, stall, preempt, fail
//	wave.go      a prompt that several instances compute at the same time
//	planned.go   blocks that a plan for the cluster wants elsewhere
//	back.go      blocks that come back from instances that are about to leave
//	drafts.go    guesses of tokens to come, in what room a step has left
//
// There is no prefill phase and no decode phase. A request has Tokens known tokens and computed ones;
// each step lets requests catch up under one token budget, those that run before those that wait, and
// those one token behind before those further behind. A request whose last known token is in the step
// is sampled.
package sched

import (
	"errors"
	"fmt"
	"slices"

	"github.com/infinite-llm/infinite/engine/kvcache"
)

// Config of a scheduler.
type Config struct {
	MaxNumSeqs       int // requests that run at once; slots are 0..MaxNumSeqs-1
	MaxBatchedTokens int // tokens of a step
	MaxRows          int // rows of logits of a step; default MaxBatchedTokens
	MaxModelLen      int // longest request, in tokens; 0 is no limit
	MaxWaiting       int // requests that may wait
	Watermark        int // blocks kept free while requests run, as far as they need them; default see watermark
	MaxOffload       int // blocks of one offload; default 64
	Patience         int // plans without room before the cluster's last request fails, or one counts as starving; default 250
	Waves            Waves
	MinShared        int // tokens whose KV must be found with others for a request to begin with it; 0: nobody is asked
}

// Waves of prompts that several instances compute together.
type Waves struct {
	Parts     int // instances of one at most; 1 or less: there are none
	MinTokens int // of a prompt, behind what is cached, that is worth one
}

// Request is what the scheduler knows of a request.
type Request struct {
	ID      kvcache.RequestID
	Arrival uint64        // order in the cluster, smaller is older or more urgent (package arrival)
	Tokens  int           // known tokens: at first the prompt's
	Rows    int           // positions [0, Rows) need a row of logits each (prompt log probabilities)
	Handed  bool          // it was taken before, by a home that is lost: a full queue is no reason to refuse it
	Later   bool          // one of the same call was taken before: MoreWaiting of these may wait beyond MaxWaiting
	Keys    []kvcache.Key // of its full blocks, to find some in the pool; none: it computes all of them
	Near    string        // an instance that may have the first of them; "": none is known
}

// View is what an instance knows of the rest of the cluster.
type View struct {
	PeersFree     int      // blocks that others would host now
	OldestArrival uint64   // of all unfinished requests in the cluster; 0 unknown
	OthersRunning int      // requests that run with another home
	Starving      uint64   // arrival of the oldest request elsewhere that has long waited for room; 0 none
	Blocks        int      // of all pools, this one with them; 0 unknown
	Helpers       int      // instances that may take part in a wave
	Leaving       []string // instances that are about to leave, and lend until then
}

// Item is one request's share of a step: N tokens from position Start. Capacity for them is there.
type Item struct {
	Request kvcache.RequestID
	Slot    uint32
	Start   int // KV of those before it is in the cache
	N       int
	First   bool // the first since (re)admission: the slot is to be opened
	Last    bool // the last known token is among them: a new token is sampled
}

// Offload asks for a request's oldest Blocks local blocks to be placed elsewhere. It is in flight until
// Moved.
type Offload struct {
	Request kvcache.RequestID
	Blocks  int
	To      string // the only instance to place them with; "": any
}

// Search asks for what is missing here of the blocks that Keys name to be found with others. The request waits until Found.
type Search struct {
	Request kvcache.RequestID
	Keys    []kvcache.Key
	Near    string // the request's
}

// Preemption is a request that gave up its blocks and waits again.
type Preemption struct {
	Request kvcache.RequestID
	Reason  string
}

// Failure is a request that cannot go on. It is gone from the scheduler.
type Failure struct {
	Request kvcache.RequestID
	Err     error
}

// Plan is one step. Its slices are valid until the next Schedule.
type Plan struct {
	Items     []Item
	Offloads  []Offload
	Returns   []Return
	Searches  []Search
	Forms     []Form
	Preempted []Preemption
	Failed    []Failure
	Release   []kvcache.Ended // spans of preempted and failed requests, and those found for one that could not begin
	Stalled   int             // running requests without room for one token
	Starving  uint64          // arrival of the request here that has long waited for room; 0 none
}

// QueueFullError says that no more requests may wait.
type QueueFullError struct{ Waiting int }

func (e *QueueFullError) Error() string {
	return fmt.Sprintf("cannot take the request: %d requests are waiting", e.Waiting)
}

// Kind is the API's kind of error.
func (e *QueueFullError) Kind() string { return "queue_full" }

// NoRoomError says that a request does not fit the KV cache of the whole cluster, or what is left of it. It is ErrNoRoom.
type NoRoomError struct {
	Request kvcache.RequestID
	Tokens  int // that it has
	Room    int // tokens for which the cluster had room
}

func (e *NoRoomError) Error() string {
	return fmt.Sprintf("cannot fit a request of %d tokens into the KV cache: the cluster has room for %d now", e.Tokens, e.Room)
}

// Kind is the API's kind of error.
func (e *NoRoomError) Kind() string { return "no_room" }

// Is makes errors.Is(err, ErrNoRoom) true.
func (e *NoRoomError) Is(target error) bool { return target == ErrNoRoom }

// ErrNoRoom is every NoRoomError.
var ErrNoRoom = errors.New("the KV cache of the whole cluster has no room")

// Scheduler is the state machine. One goroutine uses it at a time.
type Scheduler struct {
	cfg       Config
	kv        *kvcache.Manager
	all       map[kvcache.RequestID]*request
	running   []*request // by arrival
	waiting   []*request // by arrival
	slots     []uint32   // free ones, the lowest last
	blocked   bool       // the last plan left requests waiting for memory
	searching int        // waiting requests that others are searched for; each keeps a slot
	stuck     int        // plans in a row in which the cluster's last request had no room
	hungry    *request   // the oldest request that has had no room
	hunger    int        // plans in which it had none, less those in which it had some
	plan      Plan
	left      room       // of the last plan's step
	awaited   bool       // a request elsewhere has long waited for room, at the last plan
	order     []*request // scratch

	placedBlocks uint64
}

type request struct {
	Request
	computed  int
	inPlan    int  // tokens of the current plan
	drafts    int  // behind them
	begun     bool // an item of it was committed since (re)admission
	slot      uint32
	active    bool // it runs
	stalled   bool
	moving    int // blocks of the offload in flight
	cooldown  int // plans before another offload is tried
	refused   int // offloads in a row that came to nothing
	returning int // blocks of the return in flight, at most
	rest      int // plans before another return is tried
	misfits   int // plans in a row in which the whole cluster was too small for it
	planned   planned
	wave      wave
	shares    bool // it began with blocks that were found with others
	whole     bool // it is to begin with none of these
	alone     bool // it is in no wave any more: it was in one that came to nothing, or is to have its blocks here

	search search // while it waits
}

// New returns a scheduler over a pool that is its alone to open, grow and close requests in.
func New(cfg Config, kv *kvcache.Manager) (*Scheduler, error) {
	if cfg.MaxRows == 0 {
		cfg.MaxRows = cfg.MaxBatchedTokens
	}
	if cfg.MaxOffload == 0 {
		cfg.MaxOffload = 64
	}
	if cfg.Patience == 0 {
		cfg.Patience = 250
	}
	if cfg.MaxNumSeqs < 1 || cfg.MaxBatchedTokens < cfg.MaxNumSeqs || cfg.MaxRows < cfg.MaxNumSeqs || cfg.MaxWaiting < 1 ||
		cfg.MaxModelLen < 0 || cfg.Watermark < 0 || cfg.MinShared < 0 || cfg.MaxOffload < 1 || cfg.Patience < 1 {
		return nil, fmt.Errorf("cannot schedule with %+v: at least one request must run and wait, and a step must have room for a token and a row of each", cfg)
	}
	s := &Scheduler{cfg: cfg, kv: kv, all: map[kvcache.RequestID]*request{}}
	for i := cfg.MaxNumSeqs; i > 0; i-- {
		s.slots = append(s.slots, uint32(i-1))
	}
	return s, nil
}

func older(a, b *request) int {
	switch {
	case a.Arrival != b.Arrival:
		if a.Arrival < b.Arrival {
			return -1
		}
		return 1
	case a.ID < b.ID:
		return -1
	case a.ID > b.ID:
		return 1
	}
	return 0
}

func insert(list []*request, r *request) []*request {
	at, _ := slices.BinarySearchFunc(list, r, older)
	return slices.Insert(list, at, r)
}

func remove(list []*request, r *request) []*request {
	if at := slices.Index(list, r); at >= 0 {
		return slices.Delete(list, at, at+1)
	}
	return list
}

// MoreWaiting is how many requests may wait beyond MaxWaiting behind others of the same call: as many as a call has at
// most, so that none is refused in the middle for its own size.
const MoreWaiting = 4096

// Room is how many requests Add takes now; below 0: how many wait beyond MaxWaiting. While slots are free and nothing waits
// for memory, requests that will run at once do not count as waiting.
func (s *Scheduler) Room() int {
	room := s.cfg.MaxWaiting - len(s.waiting)
	if !s.blocked {
		room += len(s.slots)
	}
	return room
}

// Takes says whether a queue with so much room takes such a request.
func Takes(room int, handed, later bool) bool {
	return room > 0 || handed || later && room > -MoreWaiting
}

// Add queues a request. A full queue is a *QueueFullError.
func (s *Scheduler) Add(r Request) error {
	switch {
	case r.Tokens < 1:
		return errors.New("cannot schedule a request without tokens")
	case s.cfg.MaxModelLen > 0 && r.Tokens > s.cfg.MaxModelLen:
		return fmt.Errorf("cannot schedule a request of %d tokens, the limit is %d", r.Tokens, s.cfg.MaxModelLen)
	case s.all[r.ID] != nil:
		return fmt.Errorf("cannot schedule request %d twice", r.ID)
	case !Takes(s.Room(), r.Handed, r.Later):
		return &QueueFullError{len(s.waiting)}
	}
	q := &request{Request: r}
	s.all[r.ID] = q
	s.waiting = insert(s.waiting, q)
	return nil
}

// Commit says that the request's share of the last plan was computed, and how many tokens it gained: all but the last of
// more than one are drafts that turned out right, whose KV is there. A request of the plan that is not committed has made no
// progress.
func (s *Scheduler) Commit(id kvcache.RequestID, newTokens int) error {
	r := s.all[id]
	if r == nil || r.inPlan == 0 || newTokens < 0 {
		return fmt.Errorf("cannot commit request %d: it is in no step", id)
	}
	if newTokens > 1+r.drafts {
		return fmt.Errorf("cannot commit %d new tokens of request %d: it has %d drafts in the step", newTokens, id, r.drafts)
	}
	r.computed += r.inPlan + max(0, newTokens-1)
	r.Tokens += newTokens
	r.inPlan, r.drafts, r.begun = 0, 0, true
	if err := s.kv.SetComputed(id, r.computed); err != nil || r.wave.phase != moving {
		return err
	}
	if r.computed < r.wave.course.Legs[r.wave.leg].End {
		return nil
	}
	return s.advance(r)
}

// Name gives a request more keys, after Commit: others may share those blocks whose tokens are computed, and the
// request itself finds them again after a preemption.
func (s *Scheduler) Name(id kvcache.RequestID, keys []kvcache.Key) {
	if r := s.all[id]; r != nil {
		r.Keys = keys
		s.kv.Name(id, keys)
	}
}

// Remove ends a request in any state: finished, cancelled or failed. spans are to be released; with a
// move in flight they come from kvcache's CommitMove or AbortMove.
func (s *Scheduler) Remove(id kvcache.RequestID) (spans []kvcache.Ended, ok bool) {
	r := s.all[id]
	if r == nil {
		return nil, false
	}
	spans = s.stop(r)
	s.waiting = remove(s.waiting, r)
	delete(s.all, id)
	return spans, true
}

// Restart makes a running request wait again, to compute all its tokens anew: a part of its KV is lost. spans are
// to be released, as after Remove. ok is false for a request that does not run.
func (s *Scheduler) Restart(id kvcache.RequestID) (spans []kvcache.Ended, ok bool) {
	r := s.all[id]
	if r == nil || !r.active {
		return nil, false
	}
	return s.requeue(r), true
}

// requeue takes a running request's blocks away; it waits again, by its arrival before all younger ones.
func (s *Scheduler) requeue(r *request) []kvcache.Ended {
	spans := s.stop(r)
	s.waiting = insert(s.waiting, r)
	return spans
}

// stop takes a request's slot and blocks away.
func (s *Scheduler) stop(r *request) []kvcache.Ended {
	if !r.active {
		s.endSearch(r)
		return s.unfind(r)
	}
	s.running = remove(s.running, r)
	at, _ := slices.BinarySearchFunc(s.slots, r.slot, func(a, b uint32) int { return int(b) - int(a) })
	s.slots = slices.Insert(s.slots, at, r.slot)
	r.active, r.stalled, r.computed, r.inPlan, r.drafts, r.begun, r.moving, r.returning, r.rest = false, false, 0, 0, 0, false, 0, 0, 0
	r.alone = r.alone || r.wave.phase != ordinary
	r.planned, r.wave = planned{}, wave{}
	return s.kv.Close(r.ID)
}

// Moved says that the offload in flight is over; its books were settled in kvcache before.
func (s *Scheduler) Moved(id kvcache.RequestID, ok bool) {
	r := s.all[id]
	if r == nil {
		return
	}
	r.moving = 0
	if r.planned.asked > 0 {
		s.placed(r)
		return
	}
	if ok {
		r.refused, r.cooldown = 0, 0
		return
	}
	// A refusal comes with a newer view; asking again at once would only repeat it.
	r.cooldown = min(2<<r.refused, 16)
	r.refused = min(r.refused+1, 3)
}

// Idlers are the requests that the last plan had no room for: those that wait, and those that are stalled.
func (s *Scheduler) Idlers() []kvcache.RequestID {
	var out []kvcache.RequestID
	for _, r := range s.running {
		if r.stalled {
			out = append(out, r.ID)
		}
	}
	for _, r := range s.waiting {
		out = append(out, r.ID)
	}
	return out
}

// Counts are the requests by state, without those that assist: they are other instances'.
func (s *Scheduler) Counts() (running, waiting int) {
	for _, r := range s.running {
		if !r.wave.helper {
			running++
		}
	}
	return running, len(s.waiting)
}

// Idle says that there is no request.
func (s *Scheduler) Idle() bool { return len(s.all) == 0 }
