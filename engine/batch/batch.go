// Package batch is the Go mirror of one step's input and output, csrc/include/infinite/device.h.
//
// The structs have C's layout to the byte (a test in engine/device compares sizes and offsets), so a
// device can hand out views of buffers that C allocated once, and a step is filled without copying.
package batch

import (
	"errors"
	"fmt"
	"hash/fnv"
)

// MaxTop is the most alternatives reported beside a chosen token.
const MaxTop = 20

// MaxDrafts is the most tokens of a request in a step that are drafts.
const MaxDrafts = 15

// MaxWaves is the most waves of a device that are open at once, and their highest number.
const MaxWaves = 4

// Status codes of a request's share of a step, as in status.h.
const (
	StatusOK        int32 = 0
	StatusPeer      int32 = -3
	StatusTimeout   int32 = -4
	StatusProto     int32 = -5
	StatusStale     int32 = -7
	StatusNotFinite int32 = -10 // a logit is NaN or infinite
)

// Flags of a step, negative controls of tests.
const (
	FlagEmptyRemote uint32 = 1 // remote partials count as empty spans
	FlagNoMasks     uint32 = 2 // rows are sampled as if they had no mask
)

// Head opens a step.
type Head struct {
	StepID        uint64
	PeerTimeoutNS uint64 // longest wait for one remote partial
	NSeqs         uint32
	NTokens       uint32
	NBlocks       uint32
	NSpans        uint32
	NRows         uint32
	Flags         uint32
}

// Seq is one request's share of a step: NTokens consecutive tokens from position Pos0.
// KV of positions [0, LocalPos0) lies in the spans, the rest in the local blocks.
type Seq struct {
	Slot      uint32
	TokenOff  uint32
	NTokens   uint32
	Pos0      uint32
	LocalPos0 uint32 // multiple of the block size
	BlockOff  uint32
	NBlocks   uint32
	SpanOff   uint32
	NSpans    uint32
	Tag       uint32 // names the request in traces, see Tag
	Wave      uint32 // 0: none; else the local blocks are those of this wave, 1 to MaxWaves
}

// Tag is the number by which traces know the request with this id: its FNV-1a hash.
func Tag(id string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id)) // never fails
	return h.Sum32()
}

// Span is a run of a request's blocks on another instance.
type Span struct {
	Peer       uint32
	Handle     uint32
	Generation uint32
	Pos0       uint32
	NTokens    uint32 // multiple of the block size
	_          uint32
}

// Row asks for one row of logits: sample (Target < 0), or the log probability of Target.
type Row struct {
	Token  uint32 // index into the step's tokens
	Seq    uint32 // index into the step's seqs
	Target int32
	NTop   uint32
	Mask   uint32 // 0: none; n: the step's n-th mask says which tokens may be sampled
}

// RowOut answers a Row. Log probabilities are of the model's own distribution, base e.
type RowOut struct {
	Token       int32
	Logprob     float32
	Rank        int32 // 1 is the most likely token
	NTop        uint32
	TopIDs      [MaxTop]int32
	TopLogprobs [MaxTop]float32
}

// SeqOut says whether a request's rows are valid.
type SeqOut struct {
	Status int32
	Peer   int32 // the peer index at fault, -1 where none
}

// Sampling is a request's sampling parameters, mirrored by inf_sampling.
type Sampling struct {
	Temperature float32 // 0 is greedy
	TopP        float32 // (0, 1]
	MinP        float32 // [0, 1)
	Repetition  float32 // > 0; 1 is none
	Presence    float32
	Frequency   float32
	TopK        int32 // 0 is all
	_           uint32
	Seed        uint64
}

// Bias adds Value to the logit of Token.
type Bias struct {
	Token int32
	Value float32
}

// Limits are the capacities of a step's buffers.
type Limits struct {
	MaxTokens, MaxSeqs, MaxRows, MaxBlocks, MaxSpans int
	Vocab                                            int // tokens that a mask speaks of
}

// MaskWords is the number of 32-bit words of a mask: bit i%32 of word i/32 allows token i.
func MaskWords(vocab int) int { return (vocab + 31) / 32 }

// ErrFull says that a step has no room for what was to be added; the step is unchanged.
var ErrFull = errors.New("the step's buffers are full")

// Step is a step's input and output: views of the device's buffers, or of Go memory (NewStep).
// Fill: Reset, then per request AddSeq and AddRow. Read RowOut and SeqOut after the step.
type Step struct {
	Head   *Head
	Seqs   []Seq
	Tokens []int32
	Blocks []int32
	Spans  []Span
	Rows   []Row
	Masks  []uint32 // one behind the other, as many as there are Seqs
	RowOut []RowOut
	SeqOut []SeqOut

	masks int // that rows have
}

// NewStep returns a step in Go memory, for simulated devices and tests.
func NewStep(l Limits) *Step {
	return &Step{
		Head: new(Head), Seqs: make([]Seq, l.MaxSeqs), Tokens: make([]int32, l.MaxTokens),
		Blocks: make([]int32, l.MaxBlocks), Spans: make([]Span, l.MaxSpans), Rows: make([]Row, l.MaxRows),
		RowOut: make([]RowOut, l.MaxRows), SeqOut: make([]SeqOut, l.MaxSeqs), Masks: make([]uint32, l.MaxSeqs*MaskWords(l.Vocab)),
	}
}

// Reset empties the step and names it.
func (s *Step) Reset(id uint64, peerTimeoutNS uint64, flags uint32) {
	*s.Head = Head{StepID: id, PeerTimeoutNS: peerTimeoutNS, Flags: flags}
	s.masks = 0
}

// AddMask gives a row a mask, which the caller fills.
func (s *Step) AddMask(row int) ([]uint32, error) {
	if s.masks == len(s.Seqs) {
		return nil, fmt.Errorf("cannot add a mask: %w", ErrFull)
	}
	words := len(s.Masks) / len(s.Seqs)
	s.masks++
	s.Rows[row].Mask = uint32(s.masks)
	return s.Masks[(s.masks-1)*words : s.masks*words], nil
}

// AddSeq appends a request's share and returns its index. local lists the local block ids.
func (s *Step) AddSeq(slot uint32, pos0, localPos0 int, tokens, local []int32, spans []Span) (int, error) {
	h := s.Head
	if int(h.NSeqs)+1 > len(s.Seqs) || int(h.NTokens)+len(tokens) > len(s.Tokens) ||
		int(h.NBlocks)+len(local) > len(s.Blocks) || int(h.NSpans)+len(spans) > len(s.Spans) {
		return 0, fmt.Errorf("cannot add %d tokens, %d blocks and %d spans: %w", len(tokens), len(local), len(spans), ErrFull)
	}
	i := int(h.NSeqs)
	s.Seqs[i] = Seq{
		Slot: slot, TokenOff: h.NTokens, NTokens: uint32(len(tokens)), Pos0: uint32(pos0), LocalPos0: uint32(localPos0),
		BlockOff: h.NBlocks, NBlocks: uint32(len(local)), SpanOff: h.NSpans, NSpans: uint32(len(spans)),
	}
	copy(s.Tokens[h.NTokens:], tokens)
	copy(s.Blocks[h.NBlocks:], local)
	copy(s.Spans[h.NSpans:], spans)
	h.NSeqs++
	h.NTokens += uint32(len(tokens))
	h.NBlocks += uint32(len(local))
	h.NSpans += uint32(len(spans))
	return i, nil
}

// AddDrafts appends drafts to the last seq's tokens; its local blocks have room for their KV.
func (s *Step) AddDrafts(drafts []int32) error {
	h := s.Head
	if int(h.NTokens)+len(drafts) > len(s.Tokens) {
		return fmt.Errorf("cannot add %d drafts: %w", len(drafts), ErrFull)
	}
	copy(s.Tokens[h.NTokens:], drafts)
	s.Seqs[h.NSeqs-1].NTokens += uint32(len(drafts))
	h.NTokens += uint32(len(drafts))
	return nil
}

// AddRow asks for the logits after token index tok (within the seq's tokens) of seq.
func (s *Step) AddRow(seq, tok int, target int32, nTop int) (int, error) {
	h := s.Head
	if int(h.NRows)+1 > len(s.Rows) {
		return 0, fmt.Errorf("cannot add a row: %w", ErrFull)
	}
	i := int(h.NRows)
	s.Rows[i] = Row{Token: s.Seqs[seq].TokenOff + uint32(tok), Seq: uint32(seq), Target: target, NTop: uint32(nTop)}
	h.NRows++
	return i, nil
}
