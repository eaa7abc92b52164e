package cluster

import (
	"slices"
	"testing"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/kvcache"
)

// somebody is what instances have: a number of blocks of the text from a position on, and whom they name for the next.
type somebody map[string]map[int]*pb.ShareKVReply

func TestTrail(t *testing.T) {
	keys := kvcache.AppendKeys(nil, kvcache.RootKey(""), prompt(1, 40), testBlock)
	for _, tc := range []struct {
		name  string
		near  string
		leads map[int]string
		here  int // the first of the blocks that are here, if any is
		until int // behind the last one; 0: all are
		world somebody
		asked string
		at    int
	}{
		{name: "nobody", asked: ""},
		{name: "near has all", near: "a", world: somebody{"a": {0: {Blocks: 10}}}, asked: "a", at: 10},
		{name: "near has none", near: "a", leads: map[int]string{0: "a"}, world: somebody{"a": {0: {Unknown: true}}}, asked: "a"},
		{name: "own leads", leads: map[int]string{0: "a", 4: "b"}, world: somebody{"a": {0: {Blocks: 4}}, "b": {4: {Blocks: 3}}}, asked: "ab", at: 7},
		{name: "it goes on here", leads: map[int]string{0: "a", 4: "b"}, here: 4, world: somebody{"a": {0: {Blocks: 4}}}, asked: "a", at: 4},
		{name: "it goes on here, but not to the end", leads: map[int]string{0: "a", 4: "b"}, here: 4, until: 7,
			world: somebody{"a": {0: {Blocks: 4}}, "b": {4: {Blocks: 5}}}, asked: "ab", at: 9},
		{name: "others have no more than what is here", leads: map[int]string{0: "a", 4: "b"}, here: 4, until: 9,
			world: somebody{"a": {0: {Blocks: 4}}, "b": {4: {Blocks: 5}}}, asked: "ab", at: 4},
		{name: "here it begins", near: "a", here: 0, until: 1, world: somebody{"a": {0: {Blocks: 10}}}, asked: "a", at: 10},
		{name: "near knows who", near: "h", world: somebody{"h": {0: {Unknown: true, Next: "a"}, 4: {Unknown: true, Next: "b"}, 8: {Blocks: 2}},
			"a": {0: {Blocks: 4}}, "b": {4: {Blocks: 4}}}, asked: "hahbh", at: 10},
		{name: "a circle", near: "a", world: somebody{"a": {0: {Unknown: true, Next: "b"}}, "b": {0: {Unknown: true, Next: "a"}}}, asked: "ab"},
		{name: "to itself", near: "a", world: somebody{"a": {0: {Blocks: 4, Next: "a"}}}, asked: "a", at: 4},
		{name: "back to me", near: "a", world: somebody{"a": {0: {Next: "me"}}}, asked: "a"},
		{name: "no room there", leads: map[int]string{0: "a"}, world: somebody{"a": {0: {Blocks: 0}}}, asked: "a"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			known := &knows{keys: keys, leads: tc.leads, from: tc.here, until: tc.until}
			if tc.until == 0 && tc.here > 0 {
				known.until = len(keys)
			}
			tr := trail{keys: keys, near: tc.near, kv: known, asked: map[string]bool{}}
			asked := ""
			for range maxAsked {
				who := tr.next()
				if who == "" || who == "me" {
					break
				}
				asked += who
				reply := tc.world[who][tr.at]
				if reply == nil {
					reply = &pb.ShareKVReply{}
				}
				if reply.Blocks > 0 && !tr.worth(int(reply.Blocks)) {
					break
				}
				tr.answer(who, reply)
			}
			if asked != tc.asked || tr.at != tc.at {
				t.Errorf("asked %q up to block %d, want %q and %d", asked, tr.at, tc.asked, tc.at)
			}
			if lead := known.Lead(keys[0]); tc.name == "no room there" && lead != "a" || tc.name == "near has none" && lead != "" {
				t.Errorf("the lead is %q", lead)
			}
		})
	}
}

// knows is a pool's knowledge, by positions.
type knows struct {
	keys  []kvcache.Key
	leads map[int]string
	from  int // of the blocks that are here
	until int
}

func (k *knows) Run(keys []kvcache.Key) int {
	if at := slices.Index(k.keys, keys[0]); at >= k.from {
		return min(max(0, k.until-at), len(keys))
	}
	return 0
}

func (k *knows) Lead(key kvcache.Key) string { return k.leads[slices.Index(k.keys, key)] }

func (k *knows) DropLead(key kvcache.Key, instance string) {
	if at := slices.Index(k.keys, key); k.leads[at] == instance {
		delete(k.leads, at)
	}
}
