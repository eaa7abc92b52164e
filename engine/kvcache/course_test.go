package kvcache

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// A course covers the text without gap or overlap, in legs of whole blocks but for the last, which is the home's; the orders
// of its parts' tables are permutations of the full blocks.
func TestCourse(t *testing.T) {
	const bs = 4
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.IntRange(2, 6).Draw(t, "parts")
		chunk := bs * rapid.IntRange(1, 5).Draw(t, "chunk")
		base := bs * rapid.IntRange(0, 9).Draw(t, "base")
		tokens := base + parts*chunk + rapid.IntRange(0, 200).Draw(t, "more")
		home := Cut(base, tokens, chunk, parts, parts-1)
		at, sum := 0, 0
		for i, l := range home.Legs {
			if l.Start != at || l.End <= l.Start || l.End%bs != 0 && i+1 < len(home.Legs) || l.Part < 0 || l.Part >= parts {
				t.Fatalf("leg %d of %+v", i, home.Legs)
			}
			at = l.End
		}
		if at != tokens || home.Legs[len(home.Legs)-1].Part != parts-1 {
			t.Fatalf("%d tokens: %+v", tokens, home.Legs)
		}
		for part := range parts {
			sum += home.Own(part)
			c := Cut(base, tokens, chunk, parts, part).Until(part)
			if c.Legs[len(c.Legs)-1].Part != part || c.Own(part) != home.Own(part) {
				t.Fatalf("part %d ends with %+v", part, c.Legs)
			}
			order := slices.Sorted(slices.Values(c.Order(bs)))
			for i, b := range order {
				if int(b) != i {
					t.Fatalf("part %d's table has the blocks %v", part, order)
				}
			}
			if len(order) != c.End()/bs {
				t.Fatalf("part %d's table has %d blocks of %d tokens", part, len(order), c.End())
			}
			own := c.Order(bs)[len(order)-c.Own(part)/bs:]
			for i, l := 0, c.Legs; len(l) > 0; l = l[1:] {
				for b := l[0].Start / bs; l[0].Part == part && b < l[0].End/bs; b++ {
					if own[i] != int32(b) {
						t.Fatalf("part %d's own blocks are %v", part, own)
					}
					i++
				}
			}
		}
		if sum != tokens {
			t.Fatalf("the parts have %d of %d tokens", sum, tokens)
		}
	})
}
