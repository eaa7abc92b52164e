package cluster

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/engine/sched"
)

// alone answers as one large instance does, that knows no other.
var alone = sync.OnceValue(func() *soloist { return &soloist{answers: map[string][]int32{}} })

type soloist struct {
	mu      sync.Mutex
	answers map[string][]int32
}

func (s *soloist) answer(t *testing.T, seed, tokens, n int) []int32 {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	key := fmt.Sprint(seed, tokens, n)
	if a, ok := s.answers[key]; ok {
		return a
	}
	dev := openDevice(t, 128)
	defer dev.Close()
	kv, err := kvcache.New(128, testBlock)
	if err != nil {
		t.Fatal(err)
	}
	rman := NewRManager(Config{ID: "alone"}, kv, Device{}, nil)
	eng, err := engine.New(engine.Config{Sched: sched.Config{MaxNumSeqs: 1, MaxBatchedTokens: 32, MaxWaiting: 1, MaxModelLen: 512}}, dev, kv, testLender{rman})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := eng.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	a, err := answer(t, (&instance{t: t, id: "alone", eng: eng}).ask(seed, tokens, n))
	stop()
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}
	s.answers[key] = a
	return a
}

func sameAnswer(t *testing.T, s engine.Stream, seed, tokens, n int) {
	t.Helper()
	got, err := answer(t, s)
	if want := alone().answer(t, seed, tokens, n); err != nil || !slices.Equal(got, want) {
		t.Fatalf("request %d: %d of %d tokens, equal %v: %v", seed, len(got), n, slices.Equal(got, want), err)
	}
}
