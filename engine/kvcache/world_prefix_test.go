package kvcache

import "pgregory.net/rapid"

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
	if n := m.InUse(keys); n > used {
		t.Fatalf("%d of %d blocks are said to be in use", n, used)
	}
	before := m.Counts()
	if l.tokens = m.Adopt(id, nil, keys); l.tokens != blocks*worldBlock || m.Adopt(id, nil, keys) != 0 && l.tokens > 0 {
		t.Fatalf("%d blocks match, %d tokens are adopted, and more the next time", blocks, l.tokens)
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
		if x := m.blocks[b]; x.users != 1 || x.key != (Key{}) {
			t.Fatalf("block %d is written to, and has %d users, or a name", b, x.users)
		}
		if w.holds[i][b] = (Key{}); k < len(keys) {
			w.holds[i][b] = keys[k]
		}
	}
	m.Name(id, keys)
}

// finds gives a request the first blocks that keys name at another instance, if that has any, and those here that
// follow.
func (w *world) finds(t *rapid.T, i int, id RequestID, l *life, keys []Key) bool {
	at := w.IntN(len(w.pools))
	if at == i {
		return false
	}
	o := w.pools[at]
	before, hostable := o.Counts(), o.Hostable()
	w.tag++
	h, err := o.Share(name(i), w.tag, keys)
	if err != nil {
		if o.InUse(keys) > 0 && len(o.unused) > 0 || o.Run(keys) > 0 && hostable > 0 || o.Counts() != before {
			t.Fatalf("not shared: %v; %+v became %+v", err, before, o.Counts())
		}
		return false
	}
	after := o.Counts()
	if taken := before.Free - after.Free; taken > hostable || after.Owned-before.Owned != taken || after.Shared-before.Shared != len(h.Blocks) || !h.Shared {
		t.Fatalf("%+v became %+v by a share of %d blocks, %d could be lent", before, after, len(h.Blocks), hostable)
	}
	for k, b := range h.Blocks {
		if w.holds[at][b] != keys[k] {
			t.Fatalf("block %d of instance %d holds something else than block %d of the text", b, at, k)
		}
	}
	if w.IntN(4) == 0 {
		w.lost = append(w.lost, answer{i, at, w.tag})
		return false
	}
	span := Span{Instance: name(at), Peer: w.born[at], Handle: h.Handle, Generation: h.Generation, Blocks: len(h.Blocks), Shared: true}
	if w.names[span] {
		t.Fatalf("%+v was granted before", span)
	}
	w.names[span] = true
	m := w.pools[i]
	follow := m.Run(keys[len(h.Blocks):])
	if l.tokens = m.Adopt(id, []Span{span}, keys); l.tokens != (len(h.Blocks)+follow)*worldBlock {
		t.Fatalf("%d blocks are shared, %d follow here, and %d tokens are adopted", len(h.Blocks), follow, l.tokens)
	}
	tab, err := m.Table(id)
	if err != nil {
		t.Fatal(err)
	}
	for k, b := range tab.Local {
		if w.holds[i][b] != keys[len(h.Blocks)+k] {
			t.Fatalf("block %d of instance %d holds something else than what follows", b, i)
		}
	}
	w.found++
	return true
}
