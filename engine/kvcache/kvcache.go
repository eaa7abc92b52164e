// Package kvcache keeps the books of one instance's KV pool: which block belongs to which request, which
// blocks lie with other instances, and which blocks here hold other instances' requests.
//
//	kvcache.go  the pool, requests and their tables
//	move.go     a request's oldest blocks on their way to another instance
//	back.go     blocks on their way back from there
//	host.go     other instances' blocks in this pool
//	prefix.go   blocks that are found by what they hold: shared by requests, kept when nobody uses them
//	share.go    the same with other instances: a prefix is used where it lies
//	found.go    what a request begins with: blocks here and with others, in any order
//	wave.go     a prompt that several instances compute at the same time
//
// A block is in exactly one state: free, owned by requests (of others too, which share it), or hosted. So
// free + owned + hosted is the size of the pool after every operation. A part of the free ones is cached: they
// still hold KV that a request to come may begin with, and are taken last. Hosted blocks are never lent on: when
// their owner ends they are free, or owned by those who share them.
//
// A Manager holds no KV, only block numbers; it does no I/O.
package kvcache

import (
	"errors"
	"fmt"
	"slices"
	"sync"
)

// BlockID is a block's index in the pool.
type BlockID = int32

// RequestID names a request on its instance; it is unique there, and never used again.
type RequestID uint64

// Span is a run of a request's full blocks on another instance.
type Span struct {
	Instance                 string
	Peer, Handle, Generation uint32
	Blocks                   int
	Shared                   bool // the instance has them for itself too: they were found there, and no move adds to them
	Cut                      bool // it had more blocks, which came back: no move adds to it
}

// Table says where a request's KV lies: Spans hold the oldest blocks, then Local, in the order in which they came to be
// there, which is that of the text unless the request was in a wave, or began with blocks of several instances. Local blocks
// that are being copied to another instance are readable here until CommitMove.
type Table struct {
	Spans []Span
	Local []BlockID
}

// Counts are the pool's blocks by state, with Cached a part of Free; Lent: blocks of this instance's requests that were
// moved to others; Shared: uses of blocks here by requests of others.
type Counts struct{ Total, Free, Owned, Hosted, Lent, Cached, Shared int }

var (
	// ErrNoRoom says that the pool has too few free blocks; nothing was changed.
	ErrNoRoom = errors.New("the KV pool has no room")
	// ErrUnknown says that there is no such request or span.
	ErrUnknown = errors.New("unknown to the KV pool")
	// ErrState says that the operation does not fit what the request does now.
	ErrState = errors.New("not possible in this state")
)

// Options of a Manager.
type Options struct {
	MaxSpans int  // hosted spans at a time: handles are 0..MaxSpans-1; default 4096
	InOrder  bool // tables are in the order of the text: some layers' attention has a window
}

// Manager keeps one pool. It is safe for concurrent use: the step loop owns the requests' tables, the
// rManager's server hosts spans.
type Manager struct {
	mu        sync.Mutex
	total     int
	blockSize int
	inOrder   bool
	free      []BlockID // without those that are cached; a stack, so that blocks just freed are used first
	blocks    []block   // by BlockID
	prefixes  prefixes
	requests  map[RequestID]*request
	leads     leads
	owned     int // blocks, however many requests share them
	lent      int // blocks in spans that are not shared
	shared    int // blocks in slots that are shared, each as often as it is

	pressure bool
	demand   int

	slots  []hostSlot // by handle
	unused []uint32   // handles without a span, a stack
	hosted int
}

type request struct {
	spans    []Span
	inSpans  int // blocks
	local    []BlockID
	computed int       // tokens whose KV is in the cache
	named    int       // blocks that Name has looked at
	keys     []Key     // of its blocks, as far as they were told
	moving   int       // of local, from the front
	to       Span      // where they go, while moving > 0
	arriving []BlockID // that take what comes back from the end of from; owned, and in no table yet
	from     Span
	closed   bool
	wave     bool    // it is one of a wave's: wave.go
	order    []int32 // the block of the text that the table's block i is; behind its end i itself
}

// New returns a pool of total blocks of blockSize tokens.
func New(total, blockSize int) (*Manager, error) {
	return NewWithOptions(total, blockSize, Options{})
}

// NewWithOptions is New with options.
func NewWithOptions(total, blockSize int, o Options) (*Manager, error) {
	if o.MaxSpans == 0 {
		o.MaxSpans = 4096
	}
	if total < 1 || total > 1<<30 || blockSize < 1 || o.MaxSpans < 1 {
		return nil, fmt.Errorf("cannot make a pool of %d blocks of %d tokens and %d spans", total, blockSize, o.MaxSpans)
	}
	m := &Manager{
		total: total, blockSize: blockSize, inOrder: o.InOrder, free: make([]BlockID, total), blocks: make([]block, total),
		prefixes: prefixes{named: map[Key]BlockID{}, oldest: -1, newest: -1},
		requests: map[RequestID]*request{}, slots: make([]hostSlot, o.MaxSpans), unused: make([]uint32, o.MaxSpans),
	}
	for i := range m.free {
		m.free[i] = BlockID(total - 1 - i)
	}
	for i := range m.unused {
		m.unused[i] = uint32(o.MaxSpans - 1 - i)
	}
	return m, nil
}

// BlockSize is the tokens of a block.
func (m *Manager) BlockSize() int { return m.blockSize }

// Total is the number of blocks of the pool.
func (m *Manager) Total() int { return m.total }

// Free is the number of free blocks, with those that are cached.
func (m *Manager) Free() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.available()
}

func (m *Manager) available() int { return len(m.free) + m.prefixes.cached }

// Counts counts the blocks by state.
func (m *Manager) Counts() Counts {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Counts{Total: m.total, Free: m.available(), Owned: m.owned, Hosted: m.hosted, Lent: m.lent, Cached: m.prefixes.cached, Shared: m.shared}
}

// Open starts an empty table for a request.
func (m *Manager) Open(id RequestID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.requests[id] != nil {
		return fmt.Errorf("cannot open request %d: it is open: %w", id, ErrState)
	}
	m.requests[id] = &request{}
	return nil
}

// CanOpen is false while a request is open, or was and has a move in flight.
func (m *Manager) CanOpen(id RequestID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.requests[id] == nil
}

// get returns an open request.
func (m *Manager) get(id RequestID) (*request, error) {
	r := m.requests[id]
	if r == nil || r.closed {
		return nil, fmt.Errorf("cannot find request %d: %w", id, ErrUnknown)
	}
	return r, nil
}

// Grow takes local blocks so that positions [0, tokens) fit: all that are needed, or none and ErrNoRoom.
func (m *Manager) Grow(id RequestID, tokens int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.get(id)
	if err != nil {
		return err
	}
	n := (tokens+m.blockSize-1)/m.blockSize - r.inSpans - len(r.local)
	if n <= 0 {
		return nil
	}
	if free := m.available(); n > free {
		return fmt.Errorf("cannot add %d blocks to request %d, %d are free: %w", n, id, free, ErrNoRoom)
	}
	r.local = append(r.local, m.take(n)...)
	for _, b := range r.local[len(r.local)-n:] {
		m.blocks[b].users = 1
	}
	m.owned += n
	return nil
}

// take pops n free blocks, cached ones last; the result is valid until the next operation.
func (m *Manager) take(n int) []BlockID {
	for len(m.free) < n {
		m.evict()
	}
	at := len(m.free) - n
	out := m.free[at:]
	m.free = m.free[:at]
	slices.Reverse(out)
	return out
}

// Capacity is the number of tokens for which the request has blocks, 0 for an unknown request.
func (m *Manager) Capacity(id RequestID) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.get(id)
	if err != nil {
		return 0
	}
	return (r.inSpans + len(r.local)) * m.blockSize
}

// SetComputed says that the KV of positions [0, tokens) is in the cache. Only full blocks below it move,
// so a block that a running step still fills is never copied.
func (m *Manager) SetComputed(id RequestID, tokens int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.get(id)
	if err != nil {
		return err
	}
	if tokens < r.computed || tokens > (r.inSpans+len(r.local))*m.blockSize {
		return fmt.Errorf("cannot have %d tokens of request %d computed, it had %d and has %d blocks: %w",
			tokens, id, r.computed, r.inSpans+len(r.local), ErrState)
	}
	r.computed = tokens
	return nil
}

// Table returns a copy of a request's table.
func (m *Manager) Table(id RequestID) (Table, error) {
	var t Table
	err := m.AppendTable(id, &t)
	return t, err
}

// AppendTable fills t with a request's table, in t's memory where it is large enough.
func (m *Manager) AppendTable(id RequestID, t *Table) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.get(id)
	if err != nil {
		return err
	}
	t.Spans = append(t.Spans[:0], r.spans...)
	t.Local = append(t.Local[:0], r.local...)
	return nil
}

// Size of a request's table: blocks with others, local blocks, and those of them that could be marked as
// moving now, and that are.
type Size struct{ Spans, Local, Movable, Moving int }

// Size returns the size of a request's table, zero for an unknown request.
func (m *Manager) Size(id RequestID) Size {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.get(id)
	if err != nil {
		return Size{}
	}
	return Size{Spans: r.inSpans, Local: len(r.local), Movable: m.movable(r), Moving: r.moving}
}

// Close ends a request: its local blocks are free where no other shares them, and spans lists what its creditors should free.
// With a move in flight the moving blocks stay owned, and the spans stay, until CommitMove or AbortMove,
// which then return all spans: a creditor must not free what is still written. So it is with one back, until EndReturn.
func (m *Manager) Close(id RequestID) (spans []Ended) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.get(id)
	if err != nil {
		return nil
	}
	m.release(r.local[r.moving:])
	r.local = r.local[:r.moving]
	r.closed = true
	if r.underWay() {
		return nil
	}
	return m.forget(id, r)
}

// forget removes a closed request without blocks.
func (m *Manager) forget(id RequestID, r *request) []Ended {
	delete(m.requests, id)
	for _, s := range r.spans {
		if !s.Shared {
			m.lent -= s.Blocks
		}
	}
	return m.ended(r)
}

// release takes blocks from a request. The last ones become the oldest that are cached: without those before them they
// are of no use.
func (m *Manager) release(blocks []BlockID) {
	for _, b := range slices.Backward(blocks) {
		if m.blocks[b].users--; m.blocks[b].users > 0 || m.blocks[b].hosted {
			continue
		}
		m.owned--
		if m.blocks[b].key != (Key{}) {
			m.cache(b)
		} else {
			m.free = append(m.free, b)
		}
	}
}

// Lends tells whether any request, open or about to be forgotten, has blocks at the instance or on the way there.
func (m *Manager) Lends(instance string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.requests {
		if r.moving > 0 && r.to.Instance == instance ||
			slices.ContainsFunc(r.spans, func(s Span) bool { return s.Instance == instance }) {
			return true
		}
	}
	return false
}

// RequestsAt lists the open requests that have a span at the instance, in ascending order.
func (m *Manager) RequestsAt(instance string) []RequestID {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ids []RequestID
	for id, r := range m.requests {
		if !r.closed && slices.ContainsFunc(r.spans, func(s Span) bool { return s.Instance == instance }) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}
