package kvcache

import (
	"crypto/sha256"
	"encoding/binary"
)

// Key names what a full block holds: all tokens of a request up to the block's end, since K and V of a token depend on
// those before it. It is the SHA-256 of the key of the block before it and the block's tokens, so that nobody can make
// a prompt, or a salt, that has the KV of another one. The zero Key names nothing.
type Key [sha256.Size]byte

// What is hashed begins with its kind: no salt has a block's key.
const (
	ofSalt  = 0
	ofBlock = 1
)

// RootKey is what the first block's key is made with. Requests with different salts share no blocks.
func RootKey(salt string) Key { return sha256.Sum256(append([]byte{ofSalt}, salt...)) }

// AppendKeys extends keys to one for each full block of tokens: keys[i] is block i's.
func AppendKeys(keys []Key, root Key, tokens []int32, blockSize int) []Key {
	parent := root
	if n := len(keys); n > 0 {
		parent = keys[n-1]
	}
	text := make([]byte, 0, 1+len(parent)+4*blockSize)
	for end := (len(keys) + 1) * blockSize; end <= len(tokens); end += blockSize {
		text = append(append(text[:0], ofBlock), parent[:]...)
		for _, t := range tokens[end-blockSize : end] {
			text = binary.LittleEndian.AppendUint32(text, uint32(t))
		}
		parent = sha256.Sum256(text)
		keys = append(keys, parent)
	}
	return keys
}

// block is what the pool knows of a block beside its state.
//
//	free     no users, no key
//	cached   no users, a key: its KV is whole, and it is taken when no block is free
//	owned    users have it in their tables: requests, and slots that share it; with a key others may join them
//	hosted   its owner is another instance's request; with a key there may be users beside it, who keep the block, owned
//	         by them, when the owner ends
//
// A block with a key is never written to: it is full.
type block struct {
	users        int32
	hosted       bool
	key          Key
	older, newer BlockID // neighbours in the order of eviction, while it is cached; -1 is the end
}

// prefixes finds blocks by what they hold, and orders the cached ones by age. The list is in the blocks themselves, and
// not a container/list: between two steps the blocks of a long request become cached, and that allocates nothing.
type prefixes struct {
	named          map[Key]BlockID
	oldest, newest BlockID
	cached         int
}

// Name says what the request's blocks hold: keys[i] is block i's. Those whose tokens are all computed can be found by
// others from now on. A block that holds the same as one that was named before stays the request's alone.
func (m *Manager) Name(id RequestID, keys []Key) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.get(id)
	if err != nil {
		return
	}
	if r.keys = keys; r.wave {
		return
	}
	for i := max(r.named, r.inSpans); i < r.computed/m.blockSize; i++ {
		k, known := r.key(i)
		if !known {
			break
		}
		m.name(r.local[i-r.inSpans], k)
		r.named = i + 1
	}
}

// Shares tells whether another request, here or elsewhere, has the first of this one's local blocks too: to move that
// frees nothing here.
func (m *Manager) Shares(id RequestID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.get(id)
	if err != nil || len(r.local) == 0 {
		return false
	}
	first := &m.blocks[r.local[0]]
	return first.users > 1 || first.hosted
}

// cache keeps a block that nobody uses any more.
func (m *Manager) cache(b BlockID) {
	p := &m.prefixes
	m.blocks[b].older, m.blocks[b].newer = p.newest, -1
	if p.newest >= 0 {
		m.blocks[p.newest].newer = b
	} else {
		p.oldest = b
	}
	p.newest = b
	p.cached++
}

// uncache takes a block out of the order of eviction.
func (m *Manager) uncache(b BlockID) {
	p, x := &m.prefixes, &m.blocks[b]
	if x.older >= 0 {
		m.blocks[x.older].newer = x.newer
	} else {
		p.oldest = x.newer
	}
	if x.newer >= 0 {
		m.blocks[x.newer].older = x.older
	} else {
		p.newest = x.older
	}
	p.cached--
}

// evict makes the block that was cached longest ago free.
func (m *Manager) evict() {
	b := m.prefixes.oldest
	m.uncache(b)
	delete(m.prefixes.named, m.blocks[b].key)
	m.blocks[b].key = Key{}
	m.free = append(m.free, b)
}
