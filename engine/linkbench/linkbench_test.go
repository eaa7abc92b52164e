package linkbench

import (
	"context"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/rdma"
)

func TestFiguresOfRounds(t *testing.T) {
	ns := make([]int64, 200)
	for i := range ns {
		ns[i] = int64((i*37)%200 + 1) // 1..200 in another order
	}
	if got, want := *newRoundTrips(ns), (RoundTrips{Rounds: 200, Min: 1, P50: 100, P99: 198, Max: 200}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got, want := *newRoundTrips([]int64{7}), (RoundTrips{Rounds: 1, Min: 7, P50: 7, P99: 7, Max: 7}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	got := newRate(1000, rdma.BenchResult{Rounds: 4, Took: 2 * time.Second})
	if want := (&Rate{Messages: 4, Seconds: 2, BytesPerSecond: 2000}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestRequestsAreChecked(t *testing.T) {
	good := request{Measure: Latency, Bytes: 4096, Rounds: 1}
	if err := good.check(4096); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*request){
		"kind":       func(q *request) { q.Measure = "all" },
		"no bytes":   func(q *request) { q.Bytes = 0 },
		"too large":  func(q *request) { q.Bytes = 4097 },
		"no rounds":  func(q *request) { q.Rounds = 0 },
		"for ever":   func(q *request) { q.Rounds = maxWireRounds + 1 },
		"warm-up of": func(q *request) { q.Warmup = maxWireRounds + 1 },
	} {
		q := good
		if change(&q); q.check(4096) == nil {
			t.Errorf("%s: %+v was accepted", name, q)
		}
	}
}

// Whatever else listens at the address, it is not taken for a linkbench, and silence ends.
func TestMeetingSomethingElse(t *testing.T) {
	for want, text := range map[string]string{
		"no linkbench listens there": "SSH-2.0-OpenSSH_9.2\r\n",
		"version 7":                  `{"linkbench":7,"endpoint":{}}`,
		"cannot use the address":     `{"linkbench":1,"endpoint":{"tcp_addr":"x"}}`,
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if c, err := l.Accept(); err == nil {
				_, _ = c.Write([]byte(text))
				_ = c.Close()
			}
		}()
		if _, err := meet(t.Context(), l.Addr().String()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
		_ = l.Close()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := meet(ctx, l.Addr().String()); err == nil {
		t.Error("silence was taken for an answer")
	}
}

// Both ends in one process, over tcp: the first client that knows the secret is answered, one that gives up
// leaves the server with an error.
func TestServer(t *testing.T) {
	for _, gives := range []string{"nothing up", "up"} {
		s, err := Listen(ServerOptions{Cluster: "c", Secret: "s", Host: "127.0.0.1", Silence: 20 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- s.Serve(t.Context()) }()
		o := Options{
			Cluster: "c", Secret: "wrong", Link: rdma.Choice{Transport: rdma.TCP}, Sizes: []uint64{64, 9000}, Rounds: 10,
			Duration: time.Minute, Waits: true, Slots: 4, Silence: 20 * time.Second,
		}
		if _, err := Measure(t.Context(), s.Address(), o); err == nil {
			t.Error("a wrong secret was accepted")
		}
		o.Secret = "s"
		ctx := t.Context()
		if gives == "up" {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, 100*time.Millisecond)
			defer cancel()
			o.Rounds = 0
		}
		report, err := Measure(ctx, s.Address(), o)
		failed := <-served
		if gives == "up" {
			if err == nil || failed == nil {
				t.Errorf("the client says %v, the server %v", err, failed)
			}
		} else if err != nil || failed != nil || len(report.Results) != 2 || report.Results[1].Latency.Rounds != 10 {
			t.Errorf("%+v, %v; the server says %v", report, err, failed)
		}
		s.Close()
	}
}
