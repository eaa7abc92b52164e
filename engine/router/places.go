package router

import (
	"encoding/binary"
	"hash/maphash"
)

const (
	placeTokens = 256     // a prompt is looked at in pieces of so many tokens
	maxPlaces   = 1 << 15 // pieces of one generation: 8 million tokens
)

// places remembers which instance was last sent a prompt that begins in some way. It is a guess of what is in the
// instances' caches: they may have dropped it, or be gone; then the request computes its prompt, as it would elsewhere.
// Of two generations the older one is dropped when the younger is full, so that what is asked for again stays.
type places struct {
	seed          maphash.Seed
	young, former map[uint64]string
}

func newPlaces() places {
	return places{seed: maphash.MakeSeed(), young: map[uint64]string{}}
}

// hashes is one for each beginning of tokens that is a multiple of placeTokens long.
func (p *places) hashes(salt string, tokens []int32) []uint64 {
	out := make([]uint64, 0, len(tokens)/placeTokens)
	last := maphash.String(p.seed, salt)
	text := make([]byte, 0, 8+4*placeTokens)
	for ; len(tokens) >= placeTokens; tokens = tokens[placeTokens:] {
		text = binary.LittleEndian.AppendUint64(text[:0], last)
		for _, t := range tokens[:placeTokens] {
			text = binary.LittleEndian.AppendUint32(text, uint32(t))
		}
		last = maphash.Bytes(p.seed, text)
		out = append(out, last)
	}
	return out
}

// find returns the instance that was last sent the longest of the beginnings, and how many tokens that has.
func (p *places) find(hashes []uint64) (instance string, tokens int) {
	for i := len(hashes) - 1; i >= 0; i-- {
		for _, m := range []map[uint64]string{p.young, p.former} {
			if in, there := m[hashes[i]]; there {
				return in, (i + 1) * placeTokens
			}
		}
	}
	return "", 0
}

// put notes that a prompt was sent to an instance.
func (p *places) put(hashes []uint64, instance string) {
	for _, h := range hashes {
		if len(p.young) >= maxPlaces {
			p.young, p.former = map[uint64]string{}, p.young
		}
		p.young[h] = instance
	}
}
