package cluster

import (
	"slices"
	"testing"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/kvcache"
)

// word is what an instance says when the block at a position is the first that is missing.
type word struct {
	blocks  []int32 // of the text; those that are asked for are shared
	next    string
	unknown bool
}

// somebody is what instances have, by the first block that they are asked for.
type somebody map[string]map[int32]word

// run is blocks [from, from+n).
func run(from, n int32) (out []int32) {
	for i := range n {
		out = append(out, from+i)
	}
	return out
}

func TestTrail(t *testing.T) {
	keys := kvcache.AppendKeys(nil, kvcache.RootKey(""), prompt(1, 40), testBlock)
	all := word{blocks: run(0, 10)}
	for _, tc := range []struct {
		name    string
		inOrder bool
		near    string
		leads   map[int]string
		here    []int32
		world   somebody
		asked   string
		reach   int
	}{
		{name: "nobody", asked: ""},
		{name: "near has all", near: "a", world: somebody{"a": {0: all}}, asked: "a", reach: 10},
		{name: "near has none", near: "a", leads: map[int]string{0: "a"}, world: somebody{"a": {0: {unknown: true}}}, asked: "a"},
		{name: "own leads", leads: map[int]string{0: "a", 4: "b"}, world: somebody{"a": {0: {blocks: run(0, 4)}}, "b": {4: {blocks: run(4, 3)}}}, asked: "ab", reach: 7},
		{name: "it goes on here", leads: map[int]string{0: "a", 4: "b"}, here: run(4, 6), world: somebody{"a": {0: all}}, asked: "a", reach: 10},
		{name: "it goes on here, but not to the end", leads: map[int]string{0: "a", 7: "b"}, here: run(4, 3),
			world: somebody{"a": {0: {blocks: run(0, 4)}}, "b": {7: {blocks: run(4, 5)}}}, asked: "ab", reach: 9},
		{name: "here it begins", leads: map[int]string{0: "x", 3: "a"}, here: run(0, 3), world: somebody{"a": {3: all}}, asked: "a", reach: 10},
		{name: "it is here", near: "a", here: run(0, 10), asked: "", reach: 10},
		{name: "legs of a wave", near: "a", leads: map[int]string{}, here: []int32{2, 5, 8}, world: somebody{
			"a": {0: {blocks: []int32{0, 3, 6, 9}, next: "b"}}, "b": {1: {blocks: []int32{1, 4, 7}}}}, asked: "ab", reach: 10},
		{name: "a leg is missing", near: "a", leads: map[int]string{4: "c"}, here: []int32{2, 5, 8}, world: somebody{
			"a": {0: {blocks: []int32{0, 3, 6, 9}, next: "b"}}, "b": {1: {blocks: []int32{1, 7}}}}, asked: "abca", reach: 4},
		{name: "near knows who", near: "h", world: somebody{"h": {0: {unknown: true, next: "a"}, 4: {unknown: true, next: "b"}, 8: {blocks: run(8, 2)}},
			"a": {0: {blocks: run(0, 4)}}, "b": {4: {blocks: run(4, 4)}}}, asked: "hahbh", reach: 10},
		{name: "a circle", near: "a", world: somebody{"a": {0: {unknown: true, next: "b"}}, "b": {0: {unknown: true, next: "a"}}}, asked: "ab"},
		{name: "to itself", near: "a", world: somebody{"a": {0: {blocks: run(0, 4), next: "a"}}}, asked: "a", reach: 4},
		{name: "back to me", near: "a", world: somebody{"a": {0: {next: "me"}}}, asked: "a"},
		{name: "past me", near: "a", leads: map[int]string{0: "me", 4: "b"}, world: somebody{"a": {0: {blocks: run(0, 4), next: "me"}}, "b": {4: {blocks: run(4, 6)}}},
			asked: "ab", reach: 10},
		{name: "no room there", leads: map[int]string{0: "a"}, asked: "a"},

		{name: "in order, it goes on here", inOrder: true, leads: map[int]string{0: "a", 4: "b"}, here: run(4, 6),
			world: somebody{"a": {0: {blocks: run(0, 4)}}}, asked: "a", reach: 10},
		{name: "in order, it goes on here, but not to the end", inOrder: true, leads: map[int]string{0: "a", 4: "b"}, here: run(4, 3),
			world: somebody{"a": {0: {blocks: run(0, 4)}}, "b": {4: {blocks: run(4, 5)}}}, asked: "ab", reach: 9},
		{name: "in order, others have no more than what is here", inOrder: true, leads: map[int]string{0: "a", 4: "b"}, here: run(4, 5),
			world: somebody{"a": {0: {blocks: run(0, 4)}}, "b": {4: {blocks: run(4, 5)}}}, asked: "ab", reach: 9},
		{name: "in order, here it begins", inOrder: true, near: "a", here: run(0, 1), world: somebody{"a": {0: all}}, asked: "a", reach: 10},
	} {
		t.Run(tc.name, func(t *testing.T) {
			known := knows{poolOf(t, keys, tc.here, tc.inOrder), tc.leads}
			tr := trail{me: "me", keys: keys, near: tc.near, kv: known, asked: map[string]bool{}}
			asked := ""
			for range maxAsked {
				who := tr.next()
				if who == "" {
					break
				}
				asked += who
				says := tc.world[who][tr.lacks[0]]
				f := kvcache.Found{}
				for _, at := range says.blocks {
					if slices.Contains(tr.lacks, at) {
						f.Has = append(f.Has, at)
					}
				}
				if f.Blocks = len(f.Has); f.Blocks > 0 && !tr.worth(f) {
					break
				}
				tr.answer(who, f, &pb.ShareKVReply{Next: says.next, Unknown: says.unknown})
			}
			if reach := known.Begins(tr.found, keys).Blocks; asked != tc.asked || reach != tc.reach {
				t.Errorf("asked %q up to block %d, want %q and %d", asked, reach, tc.asked, tc.reach)
			}
			if lead := known.Lead(keys, 0); tc.name == "no room there" && lead != "a" || tc.name == "near has none" && lead != "" {
				t.Errorf("the lead is %q", lead)
			}
		})
	}
}

// knows is a pool whose leads are by positions.
type knows struct {
	*kvcache.Manager
	leads map[int]string
}

// poolOf has those blocks of a text.
func poolOf(t *testing.T, keys []kvcache.Key, here []int32, inOrder bool) *kvcache.Manager {
	t.Helper()
	kv, err := kvcache.NewWithOptions(len(keys), testBlock, kvcache.Options{InOrder: inOrder})
	if err != nil {
		t.Fatal(err)
	}
	var some []kvcache.Key
	for _, at := range here {
		some = append(some, keys[at])
	}
	if len(some) == 0 {
		return kv
	}
	h, err := kv.Host("other", 0, len(some))
	if err == nil {
		err = kv.Unhost("other", h.Handle, h.Generation, some)
	}
	if err != nil {
		t.Fatal(err)
	}
	return kv
}

func (k knows) Lead(_ []kvcache.Key, at int) string { return k.leads[at] }

func (k knows) DropLead(_ []kvcache.Key, at int, instance string) {
	if k.leads[at] == instance {
		delete(k.leads, at)
	}
}

// What a reply says of its blocks is checked before any is read.
func TestRuns(t *testing.T) {
	asked := []int32{2, 3, 5, 9, 10, 11, 40}
	for _, tc := range []struct {
		name   string
		blocks uint32
		runs   []uint32
		want   []int32
	}{
		{"the first ones", 3, nil, []int32{2, 3, 5}},
		{"all", 7, nil, asked},
		{"said of the first ones", 3, []uint32{0, 3}, []int32{2, 3, 5}},
		{"runs", 4, []uint32{0, 1, 3, 2, 6, 1}, []int32{2, 9, 10, 40}},
		{"side by side", 3, []uint32{0, 1, 1, 2}, []int32{2, 3, 5}},
		{"more than asked for", 8, nil, nil},
		{"not the first", 2, []uint32{1, 2}, nil},
		{"more than said", 3, []uint32{0, 1, 3, 1}, nil},
		{"fewer than said", 1, []uint32{0, 1, 3, 1}, nil},
		{"half a run", 1, []uint32{0, 1, 3}, nil},
		{"behind the end", 3, []uint32{0, 1, 6, 2}, nil},
		{"far behind the end", 1, []uint32{0, 1, 1 << 31, 1 << 31}, nil},
		{"descending", 2, []uint32{0, 1, 4, 1, 3, 1}, nil},
		{"twice", 3, []uint32{0, 2, 1, 1}, nil},
		{"an empty run", 1, []uint32{0, 1, 4, 0}, nil},
	} {
		got, err := whichOf(&pb.ShareKVReply{Blocks: tc.blocks, Generation: 1, Runs: tc.runs}, asked)
		if (err == nil) != (tc.want != nil) || !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v %v", tc.name, got, err)
		}
	}
	if _, err := whichOf(&pb.ShareKVReply{Blocks: 1}, asked); err == nil {
		t.Error("a span without a generation was taken")
	}
	for _, which := range [][]int32{nil, {0}, {0, 1, 2}, {0, 2, 3, 6}, {0, 1, 6}} {
		var want []int32
		for _, i := range which {
			want = append(want, asked[i])
		}
		got, err := whichOf(&pb.ShareKVReply{Blocks: uint32(len(which)), Generation: 1, Runs: runsOf(which)}, asked)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%v became %v: %v", which, got, err)
		}
	}
}
