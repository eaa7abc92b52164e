package lookup

import (
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// plain looks at every earlier place, the latest first.
func plain(tokens []int32, least, most, n int) []int32 {
	last := len(tokens) - 1
	best, length := -1, least-1
	for at := last - 1; at >= 0; at-- {
		k := 0
		for k < most && at-k >= 0 && tokens[at-k] == tokens[last-k] {
			k++
		}
		if k > length {
			best, length = at, k
		}
	}
	if best < 0 {
		return nil
	}
	all := slices.Clone(tokens)
	for k := range n {
		all = append(all, all[best+1+k])
	}
	return all[len(tokens):]
}

// With few places the index finds what a search of the whole text finds; with many it finds one that is alike, too.
func TestDraft(t *testing.T) {
	few, many := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		kinds, least := 1+rng.IntN(30), 1+rng.IntN(4)
		most := least + rng.IntN(6)
		x := New(least, most, rng.IntN(600))
		var text []int32
		for len(text) < 300 {
			for range 1 + rng.IntN(20) {
				text = append(text, int32(rng.IntN(kinds)))
			}
			if at := rng.IntN(len(text)); rng.IntN(3) == 0 { // quoted
				text = append(text, text[at:min(len(text), at+rng.IntN(40))]...)
			}
			for !x.Add(text, 1+rng.IntN(50)) {
				if got := x.Draft(nil, text[:len(x.prev)+1], 3); len(got) > 3 {
					t.Fatal(got)
				}
			}
			n := rng.IntN(8)
			got, want := x.Draft([]int32{-1}, text, n)[1:], plain(text, least, most, n)
			if len(got) != len(want) {
				t.Fatalf("%d drafts, not %d", len(got), len(want))
			}
			tail := text[max(0, len(text)-least):]
			places := 0
			for at := range text[:len(text)-1] {
				if at+1 >= least && slices.Equal(text[at+1-least:at+1], tail) {
					places++
				}
			}
			if places > candidates/2 {
				many++ // others of the same hash may be among the candidates
				continue
			}
			if few++; n > 0 && !slices.Equal(got, want) {
				t.Fatalf("behind %v: %v, not %v", text, got, want)
			}
		}
	})
	if few == 0 || many == 0 {
		t.Errorf("%d texts with few places, %d with many", few, many)
	}
}

func TestDraftRepeats(t *testing.T) {
	text := []int32{9, 1, 2, 3, 1, 2, 3, 1}
	x := New(2, 4, 0)
	if !x.Add(text, len(text)) {
		t.Fatal("not all of the text was taken")
	}
	if got := x.Draft(nil, text, 8); !slices.Equal(got, []int32{2, 3, 1, 2, 3, 1, 2, 3}) {
		t.Error(got)
	}
	if got := x.Draft(nil, append(text, 7), 8); len(got) > 0 {
		t.Error(got)
	}
	for _, short := range [][]int32{{}, {1}, {1, 1}} {
		y := New(2, 4, 0)
		if got := y.Draft(nil, short, 3); !y.Add(short, 9) || len(got) > 0 {
			t.Error(short, got)
		}
	}
}

// What is right is drafted more and more, what is wrong soon seldom, and what becomes right again is found out.
func TestPace(t *testing.T) {
	p := Pace{Most: 6}
	var tried []int
	run := func(steps, right int) {
		tried = tried[:0]
		for range steps {
			n := p.Next()
			tried = append(tried, n)
			if n > 0 {
				p.Took(n, min(n, right))
			}
		}
	}
	check := func(want ...int) {
		t.Helper()
		if !slices.Equal(tried, want) {
			t.Errorf("drafts %v, not %v", tried, want)
		}
	}
	run(4, 6)
	check(3, 6, 6, 6)
	run(3, 2)
	check(6, 3, 3)
	run(20, 0)
	check(3, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0)
	run(100, 0)
	if n := len(slices.DeleteFunc(tried, func(n int) bool { return n == 0 })); n > 7 {
		t.Errorf("%d of 100 steps have drafts that are never right", n)
	}
	p.pause = 0
	run(4, 6)
	check(1, 2, 4, 6)
	one := Pace{Most: 1}
	one.Took(one.Next(), 1)
	if n := one.Next(); n != 1 {
		t.Error(n)
	}
}

func BenchmarkDraft(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	text := make([]int32, 1<<20)
	for i := range text {
		text[i] = int32(rng.IntN(50)) // many places
	}
	x := New(3, 8, len(text))
	b.Run("index of 1,024 tokens", func(b *testing.B) {
		for range b.N {
			y := *x
			y.prev = y.prev[:0]
			y.Add(text[:1025], 1024)
		}
	})
	x.Add(text, len(text))
	b.Run("drafts", func(b *testing.B) {
		var dst []int32
		for range b.N {
			dst = x.Draft(dst[:0], text, 5)
		}
	})
}
