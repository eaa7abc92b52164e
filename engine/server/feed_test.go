package server

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine"
)

// places is a backend with so many places, each taken by a choice until its stream is closed.
type places struct {
	*fakeBackend
	mu      sync.Mutex
	limit   int
	under   []*placed
	peak    int
	refused int
	answer  func(*engine.Request) *fakeStream
	fail    func(*engine.Request) error
}

type placed struct {
	*fakeStream
	req *engine.Request
	b   *places
}

func (p *placed) Close() {
	p.fakeStream.Close()
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	for i, q := range p.b.under {
		if q == p {
			p.b.under = append(p.b.under[:i], p.b.under[i+1:]...)
			return
		}
	}
}

func newPlaces(limit int, answer func(*engine.Request) *fakeStream) *places {
	b := &places{fakeBackend: scripted(), limit: limit, answer: answer}
	b.setScript(func(_ context.Context, req *engine.Request) (engine.Stream, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.fail != nil {
			if err := b.fail(req); err != nil {
				return nil, err
			}
		}
		if len(b.under) >= b.limit {
			b.refused++
			return nil, kindError(KindQueueFull)
		}
		p := &placed{b.answer(req), req, b}
		b.under = append(b.under, p)
		b.peak = max(b.peak, len(b.under))
		return p, nil
	})
	return b
}

// of are the choices under way of requests whose first token is this one.
func (b *places) of(first int32) (list []*placed) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.under {
		if p.req.Prompt[0] == first {
			list = append(list, p)
		}
	}
	return list
}

func (b *places) end(list []*placed) {
	for _, p := range list {
		p.ch <- tokens(5)[0]
	}
}

// lists is a body with n prompts of one token.
func lists(n int, id func(int) int32) obj {
	all := make([][]int32, n)
	for i := range all {
		all[i] = []int32{id(i)}
	}
	return obj{"prompt": all}
}

// A request with more choices than there are places has them all answered, in their order.
func TestMoreChoicesThanPlaces(t *testing.T) {
	own := func(i int) int32 { return int32(300 + i%1000) }
	for _, share := range []int{0, 20} {
		b := newPlaces(50, func(r *engine.Request) *fakeStream { return ended(tokens(r.Prompt[0])...) })
		a := serve(t, b, func(c *Config) { c.Share = share })
		body := lists(maxPrompts, own)
		body["n"] = 2
		var out completion
		a.json("/v1/completions", body, &out)
		if len(out.Choices) != 2*maxPrompts || out.Usage.Prompt != maxPrompts || out.Usage.Completion != 2*maxPrompts {
			t.Fatalf("%d choices, %+v", len(out.Choices), out.Usage)
		}
		for i, c := range out.Choices {
			if c.Index != i || c.Text != testTokenizer(t).Decode([]int32{own(i / 2)}, true) {
				t.Fatalf("choice %d is %+v", i, c)
			}
		}
		body["stream"] = true
		seen := map[int]bool{}
		for _, d := range a.chunks("/v1/completions", body) {
			if c := d.text(t).Choices[0]; c.Finish != nil {
				seen[c.Index] = true
			}
		}
		if len(seen) != 2*maxPrompts {
			t.Errorf("%d choices came in a stream", len(seen))
		}
		want := 50
		if share > 0 {
			want = share
		}
		if b.peak != want || (b.refused > 0) != (share == 0) {
			t.Errorf("with a share of %d %d were under way, and %d refused", share, b.peak, b.refused)
		}
		got := a.counters()
		if got["infinite_requests_in_flight"] != "0" || got["infinite_prompt_tokens_total"] != fmt.Sprint(2*maxPrompts) {
			t.Errorf("%s in flight, %s prompt tokens", got["infinite_requests_in_flight"], got["infinite_prompt_tokens_total"])
		}
	}
}

// begin posts a body that nobody reads until the client leaves.
func (a *api) begin(body obj) (leave func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		req, err := http.NewRequestWithContext(ctx, "POST", a.url+"/v1/completions", strings.NewReader(body.String()))
		if err != nil {
			return
		}
		if res, err := a.client.Do(req); err == nil {
			_, _ = io.ReadAll(res.Body)
			_ = res.Body.Close()
		}
	})
	return func() { cancel(); wg.Wait() }
}

// One request's choices leave places to others; who comes when there are none hears so; a client that leaves frees all.
func TestOthersFindPlaces(t *testing.T) {
	const batch, other = 7, 8
	b := newPlaces(50, func(*engine.Request) *fakeStream { return newFakeStream() })
	a := serve(t, b, func(c *Config) { c.Share = 30 })
	leave := a.begin(lists(1000, func(int) int32 { return batch }))
	defer leave()
	eventually(t, "the share", func() bool { return len(b.of(batch)) == 30 })
	leaveOther := a.begin(lists(20, func(int) int32 { return other }))
	defer leaveOther()
	eventually(t, "the others", func() bool { return len(b.of(other)) == 20 })
	wantError(t, a.post("/v1/completions", `{"prompt":[9]}`), 429, "RateLimitError", "")
	if n := len(b.of(batch)); n != 30 {
		t.Errorf("%d of the first request are under way", n)
	}
	if got := a.counters()["infinite_requests_in_flight"]; got != "1020" {
		t.Errorf("%s in flight", got)
	}
	// As they end others are handed over, no more of them than before.
	b.end(b.of(batch)[:10])
	eventually(t, "ten more", func() bool { return b.submitted() >= 61 && len(b.of(batch)) == 30 })
	leave()
	eventually(t, "the end of all of the first request", func() bool { return len(b.of(batch)) == 0 })
	n := b.submitted()
	time.Sleep(10 * time.Millisecond)
	if b.submitted() != n || len(b.of(other)) != 20 {
		t.Errorf("%d submitted after the client left, %d others", b.submitted()-n, len(b.of(other)))
	}
	leaveOther()
	eventually(t, "nothing in flight", func() bool { return a.counters()["infinite_requests_in_flight"] == "0" })
}

// Where it found the queues full a request leaves places as its choices end, and goes on when there are some again.
func TestFullQueuesAreLeft(t *testing.T) {
	const batch, other = 7, 8
	b := newPlaces(40, func(*engine.Request) *fakeStream { return newFakeStream() })
	a := serve(t, b)
	leave := a.begin(lists(200, func(int) int32 { return batch }))
	defer leave()
	eventually(t, "all places taken", func() bool { return b.submitted() == 41 })
	b.end(b.of(batch)[:9])
	eventually(t, "nine places", func() bool { return len(b.of(batch)) <= 32 })
	leaveOther := a.begin(lists(5, func(int) int32 { return other }))
	defer leaveOther()
	eventually(t, "another request", func() bool { return len(b.of(other)) == 5 })
	// Nothing of it is left, and others have all places: it tries on until they leave.
	b.mu.Lock()
	b.limit = 5
	b.mu.Unlock()
	b.end(b.of(batch))
	eventually(t, "the end of what it had", func() bool { return len(b.of(batch)) == 0 })
	leaveOther()
	eventually(t, "more of it", func() bool { return len(b.of(batch)) > 0 })
}

// What goes wrong with a later choice ends all, as with an earlier one.
func TestLaterChoiceFails(t *testing.T) {
	b := newPlaces(10, func(*engine.Request) *fakeStream { return newFakeStream() })
	b.fail = func(r *engine.Request) error {
		if strings.HasSuffix(r.ID, "-15") {
			return kindError(KindUnavailable)
		}
		if !strings.HasSuffix(r.ID, "-0") {
			b.answer = func(*engine.Request) *fakeStream { return ended(tokens(5)...) }
		}
		return nil
	}
	a := serve(t, b)
	body := lists(30, func(int) int32 { return 7 })
	wantError(t, a.post("/v1/completions", body.String()), 503, "ServiceUnavailableError", "")
	body["stream"] = true
	events := a.chunks("/v1/completions", body)
	if last := string(events[len(events)-1]); !strings.Contains(last, `"code":503`) {
		t.Errorf("the stream ends with %s", last)
	}
	eventually(t, "the end of all", func() bool { return len(b.of(7)) == 0 })
	if got := a.counters()["infinite_requests_in_flight"]; got != "0" {
		t.Errorf("%s in flight", got)
	}
}

// A choice that waits for its turn waits in a queue, by the metrics, and not in its prefill too.
func TestTurnsAreWaitedFor(t *testing.T) {
	const wait = 50 * time.Millisecond
	b := newPlaces(1, func(r *engine.Request) *fakeStream {
		if strings.HasSuffix(r.ID, "-1") {
			return ended(tokens(5)...)
		}
		s := newFakeStream()
		time.AfterFunc(wait, func() { s.ch <- tokens(5)[0] })
		return s
	})
	a := serve(t, b, func(c *Config) { c.Share = 1 })
	var out completion
	a.json("/v1/completions", lists(2, func(int) int32 { return 7 }), &out)
	sum := func(name string) (seconds float64) {
		if _, err := fmt.Sscan(a.counters()["infinite_"+name+"_seconds_sum"], &seconds); err != nil {
			t.Error(err)
		}
		return seconds
	}
	queue, prefill, first := sum("request_queue_time"), sum("request_prefill_time"), sum("time_to_first_token")
	if queue < wait.Seconds() || prefill < wait.Seconds() || first < 2*wait.Seconds() || math.Abs(queue+prefill-first) > .001 {
		t.Errorf("queue %v, prefill %v, until the first token %v", queue, prefill, first)
	}
}
