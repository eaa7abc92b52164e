package router

import (
	"math"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/arrival"
	"github.com/infinite-llm/infinite/engine/cluster"
	"github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/server"
)

func TestMostRoomIsChosen(t *testing.T) {
	members := map[string]cluster.Member{}
	for _, id := range []string{"a", "b", "c"} {
		members[id] = cluster.Member{ID: id, BlocksTotal: 100}
	}
	pick := func(r *Router, loads map[string]*clusterpb.Load, tried ...string) string {
		not := map[string]bool{}
		for _, id := range tried {
			not[id] = true
		}
		m, c := r.pick(members, loads, &want{need: 30, tried: not})
		if (c != nil) != (m.ID != "") || c != nil && c.instance != m.ID {
			t.Fatalf("%+v %+v", m, c)
		}
		return m.ID
	}
	loads := map[string]*clusterpb.Load{
		"a": {KvBlocksFree: 60, KvBlocksLent: 50}, "b": {KvBlocksFree: 50}, "c": {KvBlocksFree: 40, Running: 1},
	}
	r := New(nil, Config{Secret: secret, BlockSize: 16, PrefixCaching: true})
	var got []string
	for range 4 {
		got = append(got, pick(r, loads))
	}
	// b has 50, then 20; c has 40, then 10; a, which borrows, has 10 and nothing to do.
	if want := []string{"b", "c", "b", "a"}; !slices.Equal(got, want) {
		t.Errorf("chose %v, want %v", got, want)
	}
	if got := pick(r, loads, "a", "b", "c"); got != "" {
		t.Errorf("chose %s, which was tried", got)
	}
	if got := pick(r, loads, "b"); got != "c" {
		t.Errorf("chose %s", got)
	}
	clear(r.charges)
	if got := pick(r, loads); got != "b" {
		t.Errorf("chose %s, after all have ended", got)
	}
	loads["b"].KvBlocksDue, r = 21, New(nil, Config{Secret: secret, BlockSize: 16})
	if got := pick(r, loads); got != "c" {
		t.Errorf("chose %s, whose requests will take what is free", got)
	}
	loads["b"].KvBlocksDue, r = 0, New(nil, Config{Secret: secret, BlockSize: 16})
	loads["b"].Running, loads["b"].Waiting, loads["b"].MaxNumSeqs = 2, 1, 3
	if got := pick(New(nil, Config{Secret: secret, BlockSize: 16}), loads); got != "c" {
		t.Errorf("chose %s, where the one with most room has no seat", got)
	}
	loads["b"].Running = 1
	members["big"] = cluster.Member{ID: "big", BlocksTotal: 1000, MemoryOnly: true}
	if got := pick(New(nil, Config{Secret: secret, BlockSize: 16}), loads); got != "b" {
		t.Errorf("chose %s, where one that runs no requests has most room", got)
	}
	delete(members, "big")
	// Nothing is known of any: by size, evenly.
	got = nil
	for range 3 {
		got = append(got, pick(New(nil, Config{Secret: secret, BlockSize: 16, PrefixCaching: true}), nil), pick(r, nil))
	}
	if want := []string{"a", "a", "a", "b", "a", "c"}; !slices.Equal(got, want) {
		t.Errorf("chose %v, want %v", got, want)
	}
}

// Where all seats are taken those who wait are spread, whatever room there is: many may come within one report.
func TestFewestWaitWhereNoSeatIs(t *testing.T) {
	members := map[string]cluster.Member{"a": {ID: "a", BlocksTotal: 1000}, "b": {ID: "b", BlocksTotal: 1000}}
	loads := map[string]*clusterpb.Load{
		"a": {KvBlocksFree: 900, Running: 8, MaxNumSeqs: 8}, "b": {KvBlocksFree: 100, Running: 8, Waiting: 3, MaxNumSeqs: 8},
	}
	r := New(nil, Config{Secret: secret, BlockSize: 16})
	sent := map[string]int{}
	for range 101 {
		m, _ := r.pick(members, loads, &want{need: 1, tried: map[string]bool{}})
		sent[m.ID]++
	}
	if sent["a"] != 52 || sent["b"] != 49 {
		t.Errorf("sent %v", sent)
	}
}

// A connection lives as long as its instance is a member, and as long as a stream uses it.
func TestConnectionsOfLeavers(t *testing.T) {
	st := newStream(engine.Event{Token: 1, HasToken: true})
	r, m, _ := instance(t, takes(st))
	s, err := r.open(timeout(t), m, &engine.Request{})
	if err != nil {
		t.Fatal(err)
	}
	prune := func(members map[string]cluster.Member) int {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.prune(members)
		return len(r.conns)
	}
	if n := prune(nil); n != 1 {
		t.Fatal("a connection in use was closed")
	}
	if ev, err := s.Next(timeout(t)); err != nil || ev.Token != 1 {
		t.Fatalf("%+v %v", ev, err)
	}
	s.Close()
	s.Close()
	if n := prune(map[string]cluster.Member{m.ID: m}); n != 1 {
		t.Fatal("a member's connection was closed")
	}
	if n := prune(nil); n != 0 {
		t.Fatal("a leaver's connection was kept")
	}
}

func TestStamps(t *testing.T) {
	r := New(nil, Config{Secret: secret, BlockSize: 16, PrefixCaching: true})
	var mu sync.Mutex
	seen := map[uint64]bool{}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			last := uint64(0)
			for range 500 {
				n := r.stamp(0)
				mu.Lock()
				if n <= last || seen[n] {
					t.Errorf("%d after %d", n, last)
				}
				seen[n] = true
				mu.Unlock()
				last = n
			}
		})
	}
	wg.Wait()
}

// Behind what has arrived elsewhere, by whatever clock; nonsense does not end the order.
func TestStampsFollowTheCluster(t *testing.T) {
	r := New(nil, Config{Secret: secret, BlockSize: 16})
	before := arrival.Clock(r.stamp(0))
	ahead := before + uint64(5*time.Hour)>>7
	for _, elsewhere := range []uint64{ahead, before, 0, math.MaxUint64} {
		r.heard(elsewhere)
		first, urgent, second := r.stamp(0), r.stamp(-1), r.stamp(0)
		if c := arrival.Clock(first); c <= ahead || second <= first || arrival.Clock(second) > ahead+1000 {
			t.Errorf("after %d: %d and %d", elsewhere, first, second)
		}
		if urgent >= first || arrival.Clock(urgent) <= arrival.Clock(first) {
			t.Errorf("one of priority -1 has %d beside %d", urgent, first)
		}
	}
}

// Whatever an instance reports is shown.
func TestInstanceView(t *testing.T) {
	in := &clusterpb.InstanceState{Id: "a", Load: &clusterpb.Load{
		KvBlocksTotal: 1, KvBlocksFree: 2, KvBlocksHosted: 3, KvBlocksLent: 4, Running: 5, Waiting: 6, TokensPerSecond: 7.5, Preemptions: 8, Recoveries: 21, PrefixQueries: 22, PrefixHits: 23, KvBlocksCached: 24, KvBlocksShared: 25, SharedQueries: 26, SharedHits: 27, PlannedMoves: 28, PlannedBlocks: 29, ReturnedBlocks: 35,
		Drafts: 30, DraftTokens: 31, AcceptedTokens: 32, Waves: 33, Assists: 34,
		Model:  &clusterpb.Model{BaseNs: 5e8, PerTokenNs: 25e7, PerKvNs: 125e6, RemoteNs: 2e9},
		Memory: &clusterpb.Memory{TotalBytes: 9, UsedBytes: 10}, Links: map[string]uint32{"tcp": 11},
		Traffic: &clusterpb.Traffic{Queries: 12, Answers: 13, MovedBlocks: 14, MovedBytes: 15, Refused: 16, QueryBytes: 17, AnswerBytes: 18, AnswerBatches: 19},
		Work:    &clusterpb.Work{Steps: 20, StepNs: 21e9, RemoteWaitNs: 500e6, HalvedSteps: 30},
	}}
	want := server.InstanceView{
		ID: "a", Device: "cpu", MemoryOnly: true, KVCacheDType: "bfloat16", Links: map[string]uint32{"tcp": 11}, KVBlocksTotal: 1, KVBlocksFree: 2, KVBlocksHosted: 3,
		KVBlocksLent: 4, Running: 5, Waiting: 6, TokensPerSecond: 7.5, Preemptions: 8, Recoveries: 21, PrefixQueries: 22, PrefixHits: 23, KVBlocksCached: 24, KVBlocksShared: 25, SharedQueries: 26, SharedHits: 27, PlannedMoves: 28, PlannedBlocks: 29, ReturnedBlocks: 35, StepModel: &server.StepModel{Base: 0.5, PerToken: 0.25, PerKVToken: 0.125, Remote: 2}, Steps: 20, HalvedSteps: 30, StepSeconds: 21, RemoteWaitSeconds: 0.5,
		RemoteQueries: 12, RemoteQueryBytes: 17, RemoteAnswers: 13, RemoteAnswerBytes: 18, AnswerBatches: 19, KVBlocksMoved: 14, KVBytesMoved: 15,
		Drafts: 30, DraftTokens: 31, AcceptedTokens: 32, Waves: 33, Assists: 34, RefusedMessages: 16, MemoryTotal: 9, MemoryUsed: 10,
	}
	if got := instanceView(in, cluster.Member{Device: "cpu", MemoryOnly: true, KVDType: "bfloat16"}); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	for i, v := 0, reflect.ValueOf(want); i < v.NumField(); i++ {
		if v.Field(i).IsZero() {
			t.Errorf("this test does not know %s", v.Type().Field(i).Name)
		}
	}
	// One that just left, and has reported nothing.
	if got := instanceView(&clusterpb.InstanceState{Id: "a"}, cluster.Member{}); !reflect.DeepEqual(got, server.InstanceView{ID: "a"}) {
		t.Errorf("%+v", got)
	}
}

func TestCapacity(t *testing.T) {
	members := map[string]cluster.Member{"m": {BlocksTotal: 100, MemoryOnly: true}}
	if n := capacity(members, 16); n != 0 {
		t.Errorf("memory alone has room for %d tokens", n)
	}
	members["a"] = cluster.Member{BlocksTotal: 10}
	if n := capacity(members, 16); n != 109*16 {
		t.Errorf("room for %d tokens", n)
	}
}
