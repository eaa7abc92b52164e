package kvcache

import (
	"slices"

	"pgregory.net/rapid"
)

const families = 3

// textOf is n tokens of a family of prompts, which all begin alike.
func textOf(family, n int) []int32 {
	out := make([]int32, n)
	for i := range out {
		if out[i] = int32(i); i >= 3*worldBlock {
			out[i] += 1000 * int32(family)
		}
	}
	return out
}

func keysOf(family, n int) []Key { return AppendKeys(nil, RootKey(""), textOf(family, n), worldBlock) }

// begins gives a request that was just opened a text, and of the blocks that hold its beginning as many as it wants.
func (w *world) begins(t *rapid.T, i int, id RequestID) *life {
	m, l := w.pools[i], &life{family: w.IntN(families)}
	keys := keysOf(l.family, w.IntN(40))
	if w.IntN(3) == 0 && w.finds(t, i, id, l, keys) {
		w.live[i][id] = l
		return l
	}
	blocks, used := m.Run(keys), 0
	for _, k := range keys[:blocks] {
		if x := m.blocks[m.prefixes.named[k]]; x.users > 0 || x.hosted {
			used++
		}
	}
	if b := m.Begins(nil, keys); b != (Beginning{Blocks: blocks, Last: -1, InUse: used}) {
		t.Fatalf("%d blocks, of which %d are in use, are said to be %+v", blocks, used, b)
	}
	before := m.Counts()
	l.tokens, _ = m.Adopt(id, nil, keys)
	if again, _ := m.Adopt(id, nil, keys); l.tokens != blocks*worldBlock || again != 0 && l.tokens > 0 {
		t.Fatalf("%d blocks match, %d tokens are adopted, and %d the next time", blocks, l.tokens, again)
	}
	if k := m.Counts(); k.Free != before.Free-(blocks-used) || k.Cached != before.Cached-(blocks-used) {
		t.Fatalf("%+v became %+v by %d blocks, %d of them in use", before, k, blocks, used)
	}
	tab, err := m.Table(id)
	if err != nil {
		t.Fatal(err)
	}
	for k, b := range tab.Local {
		if w.holds[i][b] != keys[k] {
			t.Fatalf("block %d of instance %d holds something else than block %d of the text", b, i, k)
		}
	}
	w.adopted += len(tab.Local)
	w.live[i][id] = l
	return l
}

// wrote: the request's tokens from one on are in the cache now, and their blocks are named.
func (w *world) wrote(t *rapid.T, i int, id RequestID, l *life, from int) {
	m := w.pools[i]
	if err := m.SetComputed(id, l.tokens); err != nil {
		t.Fatal(err)
	}
	tab, err := m.Table(id)
	if err != nil {
		t.Fatal(err)
	}
	keys, before := keysOf(l.family, l.tokens), m.Size(id).Spans
	for k := from / worldBlock; k*worldBlock < l.tokens; k++ {
		b := tab.Local[k-before]
		if n := w.tables(i, b); n != 1 || m.blocks[b].key != (Key{}) {
			t.Fatalf("block %d is written to, and in %d tables, or has a name", b, n)
		}
		if w.holds[i][b] = (Key{}); k < len(keys) {
			w.holds[i][b] = keys[k]
		}
	}
	m.Name(id, keys)
}

// tables is how many requests have a block in their tables. Those that are in a wave with one of them may have it too.
func (w *world) tables(i int, b BlockID) (n int) {
	for _, r := range w.pools[i].requests {
		if slices.Contains(r.local, b) {
			n++
		}
	}
	return n
}

// finds gives a request what keys name at other instances, asked in some order, and here.
func (w *world) finds(t *rapid.T, i int, id RequestID, l *life, keys []Key) bool {
	m := w.pools[i]
	var found []Found
	for _, at := range w.Perm(len(w.pools)) {
		if lacks := m.Lacks(found, keys); at != i && len(lacks) > 0 && w.IntN(4) > 0 {
			if f, ok := w.shares(t, i, at, lacks, keys); ok {
				found = append(found, f)
			}
		}
	}
	if w.IntN(3) == 0 && m.Open(1<<40) == nil { // blocks that were here when others were asked are gone
		_ = m.Grow(1<<40, w.IntN(10)*worldBlock)
		m.Close(1 << 40)
	}
	if len(found) == 0 {
		return false
	}
	would, before := m.Begins(found, keys), m.Counts()
	tokens, back := m.Adopt(id, found, keys)
	tab, err := m.Table(id)
	if err != nil {
		t.Fatal(err)
	}
	local := would.Blocks - would.Found
	if tokens != would.Blocks*worldBlock || len(tab.Local) != local || m.Size(id).Spans != would.Found || len(back)+len(tab.Spans) != len(found) {
		t.Fatalf("%+v becomes %d tokens, %+v, %v comes back", would, tokens, tab, back)
	}
	if k := m.Counts(); before.Free-k.Free != local-would.InUse {
		t.Fatalf("%+v became %+v by %+v", before, k, would)
	}
	hole := int32(would.Blocks)
	if there := func(f Found) bool { return slices.Contains(f.Has, hole) }; int(hole) < len(keys) &&
		(m.Run(keys[hole:hole+1]) > 0 || !w.inOrder && slices.ContainsFunc(found, there)) {
		t.Fatalf("%+v ends at a block that is there", would)
	}
	w.release(t, i, back)
	if l.tokens = tokens; m.requests[id].order != nil {
		w.mixed++
		if w.inOrder {
			t.Fatalf("a table is in the order %v", m.requests[id].order)
		}
	}
	w.found++
	return true
}

// shares asks an instance for blocks that another one lacks.
func (w *world) shares(t *rapid.T, i, at int, lacks []int32, keys []Key) (Found, bool) {
	o := w.pools[at]
	asked := make([]Key, len(lacks))
	for k, n := range lacks {
		asked[k] = keys[n]
	}
	before, hostable := o.Counts(), o.Hostable()
	w.tag++
	h, which, err := o.Share(name(i), w.tag, asked)
	if err != nil {
		if o.Begins(nil, asked[:1]).InUse > 0 && len(o.unused) > 0 || o.Run(asked) > 0 && hostable > 0 || o.Counts() != before {
			t.Fatalf("not shared: %v; %+v became %+v", err, before, o.Counts())
		}
		return Found{}, false
	}
	after := o.Counts()
	if taken := before.Free - after.Free; taken > hostable || after.Owned-before.Owned != taken || after.Shared-before.Shared != len(h.Blocks) || !h.Shared || len(which) != len(h.Blocks) || which[0] != 0 {
		t.Fatalf("%+v became %+v by a share of %d blocks, %v, %d could be lent", before, after, len(h.Blocks), which, hostable)
	}
	f := Found{Span: Span{Instance: name(at), Peer: w.born[at], Handle: h.Handle, Generation: h.Generation, Blocks: len(h.Blocks), Shared: true}}
	for k, b := range h.Blocks {
		f.Has = append(f.Has, lacks[which[k]])
		if w.holds[at][b] != asked[which[k]] {
			t.Fatalf("block %d of instance %d holds something else than block %d of the text", b, at, f.Has[k])
		}
	}
	if w.IntN(6) == 0 {
		w.lost = append(w.lost, answer{i, at, w.tag})
		return Found{}, false
	}
	if w.names[f.Span] {
		t.Fatalf("%+v was granted before", f.Span)
	}
	w.names[f.Span] = true
	return f, true
}
