package grammar

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// vocabulary is all bytes and n pieces of the given texts, with a few tokens that never stand in a text.
func vocabulary(seed uint64, n int, texts ...string) *Vocabulary {
	r := rand.New(rand.NewPCG(seed, 1))
	tokens := [][]byte{nil, {}}
	for b := range 256 {
		tokens = append(tokens, []byte{byte(b)})
	}
	for range n {
		s := texts[r.IntN(len(texts))]
		from := r.IntN(len(s))
		tokens = append(tokens, []byte(s[from:min(len(s), from+1+r.IntN(6))]))
	}
	return NewVocabulary(tokens, nil)
}

func guide(t testing.TB, kind, text string, v *Vocabulary) *Guide {
	t.Helper()
	g, err := Compile(kind, text)
	if err != nil {
		t.Fatalf("%s %.200s: %v", kind, text, err)
	}
	return NewGuide(g, v)
}

// accepts tells how many bytes of a text a grammar takes, one at a time, and whether it may end there.
func accepts(t testing.TB, u *Guide, text string) (n int, ends bool) {
	t.Helper()
	m := u.Matcher()
	for i := range len(text) {
		id := slices.IndexFunc(u.v.bytes, func(b []byte) bool { return len(b) == 1 && b[0] == text[i] })
		if m.Accept(int32(id)) != nil {
			return i, false
		}
	}
	return len(text), m.MayEnd()
}

// whole tells whether a text is one of the grammar.
func whole(t testing.TB, u *Guide, text string) bool {
	n, ends := accepts(t, u, text)
	return n == len(text) && ends
}

// walk makes a text of random allowed tokens. After enough of them it ends as soon as it can.
func walk(t testing.TB, u *Guide, r *rand.Rand, enough int) string {
	t.Helper()
	m := u.Matcher()
	var text []byte
	for n := range enough {
		if m.MustEnd() || m.MayEnd() && r.IntN(8) == 0 {
			return string(text)
		}
		mask, some, err := m.Mask()
		if err != nil || !some {
			t.Fatalf("after %q nothing is allowed: %v", text, err)
		}
		var ids []int32
		eachBit(mask, func(id int32) { ids = append(ids, id) })
		id := ids[r.IntN(len(ids))]
		if err := m.Accept(id); err != nil {
			t.Fatalf("after %q %q is in the mask and not accepted: %v", text, u.v.bytes[id], err)
		}
		text = append(text, u.v.at(id, n == 0)...)
	}
	return string(append(text, shortest(t, u, m)...))
}

// shortest is the shortest way to an end.
func shortest(t testing.TB, u *Guide, m *Matcher) []byte {
	t.Helper()
	u.mu.Lock()
	defer u.mu.Unlock()
	type way struct {
		to   *config
		text []byte
	}
	seen := map[*config]bool{}
	for queue := []way{{m.at, nil}}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		if at.to.ended {
			return at.text
		}
		for _, b := range u.g.reps {
			u.m.work = maxMaskWork
			if next := u.m.step(at.to, b); next != dead && !seen[next] {
				seen[next] = true
				queue = append(queue, way{next, append(slices.Clone(at.text), b)})
			}
		}
	}
	t.Fatal("there is no way to an end")
	return nil
}

// brute is the mask found by trying each token.
func brute(u *Guide, m *Matcher) []uint32 {
	mask := make([]uint32, u.v.Words())
	for id := range int32(u.v.Size()) {
		try := *m
		if u.v.Has(id) && try.Accept(id) == nil {
			mask[id/32] |= 1 << (id % 32)
		}
	}
	return mask
}
