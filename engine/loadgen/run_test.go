package loadgen

import (
	"context"
	"fmt"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func near(t *testing.T, what string, got, want float64) {
	t.Helper()
	if math.Abs(got-want) > 1e-6*math.Max(1, math.Abs(want)) {
		t.Errorf("%s is %g, want %g", what, got, want)
	}
}

// Over a server of known times every figure is known: 6 answers of 5 tokens take 30 ms each.
func TestClosedLoop(t *testing.T) {
	for _, c := range []struct{ concurrency, rounds int }{{1, 6}, {2, 3}, {4, 2}, {6, 1}, {0, 1}} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake()
			o := options(f, Load{c.concurrency, inf})
			o.Goodput = []Limit{{"ttft", 10 * time.Millisecond}, {"tpot", 5 * time.Millisecond}, {"e2el", 30 * time.Millisecond}}
			p := run(t, t.Context(), o).Points[0]
			places := c.concurrency
			if places == 0 {
				places = 6
			}
			if p.OK != 6 || p.Asked != 6 || p.Failed+p.Stopped+p.Unsent+p.Uncounted != 0 || p.Input != 42 || p.Output != 30 || p.Good.Requests != 6 {
				t.Errorf("point is %+v", p)
			}
			if f.most != places || p.Peak != places {
				t.Errorf("%d requests at once, as the server saw, and %d as is told; want %d", f.most, p.Peak, places)
			}
			seconds := 0.030 * float64(c.rounds)
			near(t, "duration", p.Seconds, seconds)
			near(t, "requests/s", p.RequestRate, 6/seconds)
			near(t, "input tokens/s", p.InputRate, 42/seconds)
			near(t, "output tokens/s", p.OutputRate, 30/seconds)
			near(t, "goodput", p.Good.PerSecond, 6/seconds)
			for name, x := range map[string]struct {
				got   Times
				count int
				ms    float64
			}{"ttft": {p.TTFT, 6, 10}, "tpot": {p.TPOT, 6, 5}, "itl": {p.ITL, 24, 5}, "e2el": {p.E2EL, 6, 30}} {
				if want := (Times{x.count, x.ms, x.ms, x.ms, x.ms, x.ms}); x.got != want {
					t.Errorf("%s: %+v, want %+v", name, x.got, want)
				}
			}
		})
	}
}

// Requests leave when the schedule has them, in its order, however many are under way.
func TestOpenLoop(t *testing.T) {
	for _, rate := range []Rate{1, 100, 5000} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake()
			o := options(f, Load{0, rate})
			o.Requests, o.Seed = 50, 3
			p := run(t, t.Context(), o).Points[0]
			if p.OK != 50 || p.Late.Max != 0 {
				t.Errorf("point is %+v", p)
			}
			due := o.schedule(rate, 50)
			for i, q := range f.asked {
				if q.at != due[i] || string(q.Prompt) != fmt.Sprintf("%q", o.prompt(0, i).Text) {
					t.Fatalf("request %d came after %s, due after %s: %s", i, q.at, due[i], q.Prompt)
				}
			}
			near(t, "duration", p.Seconds, (due[49] + 30*time.Millisecond).Seconds())
		})
	}
}

// With both limits who is due waits for a place, which is no part of its latency.
func TestOpenLoopOfLimitedConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		p := run(t, t.Context(), options(f, Load{1, 1e6})).Points[0]
		if f.most != 1 || p.OK != 6 {
			t.Errorf("%d at once: %+v", f.most, p)
		}
		near(t, "e2el", p.E2EL.Max, 30)
		near(t, "duration", p.Seconds, 0.180)
		if p.Late.Max < 149 || p.Late.Max > 150 {
			t.Errorf("the last one was %g ms late", p.Late.Max)
		}
	})
}

// A sweep has its points in order; none but the warm-up shares prompts with another, nor counts it.
func TestSweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		o := options(f, Load{1, inf}, Load{3, inf})
		o.Warmup = 2
		r := run(t, t.Context(), o)
		if len(r.Points) != 2 || r.Points[0].Concurrency != 1 || r.Points[1].Concurrency != 3 || r.Points[0].OK != 6 || r.Points[1].OK != 6 {
			t.Errorf("points are %+v", r.Points)
		}
		seen := map[string]bool{}
		for _, q := range f.asked {
			seen[string(q.Prompt)] = true
		}
		if len(f.asked) != 14 || len(seen) != 14 {
			t.Errorf("%d requests with %d different prompts, want 14", len(f.asked), len(seen))
		}
	})
}

// Chunks of several tokens: what the server counts is believed; where it does not count chunks are tokens.
func TestWhoCounts(t *testing.T) {
	for _, c := range []struct {
		noUsage                  bool
		input, output, uncounted int
		tpot                     float64
	}{{false, 42, 60, 0, 20.0 / 9}, {true, 48, 30, 6, 5}} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake()
			f.perChunk, f.noUsage = 2, c.noUsage
			o := options(f, Load{1, inf})
			o.Shape.Output = 10 // 5 chunks
			p := run(t, t.Context(), o).Points[0]
			if p.Input != c.input || p.Output != c.output || p.Uncounted != c.uncounted || p.ITL.Count != 24 {
				t.Errorf("point is %+v", p)
			}
			near(t, "tpot", p.TPOT.Mean, c.tpot)
			near(t, "itl", p.ITL.Mean, 5)
		})
	}
}

// Failures have no part in times and tokens; the same errors are counted together, and of many kinds some.
func TestFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.fail = func(n int) (int, string) {
			switch {
			case n%2 == 0:
				return 0, ""
			case n < 10:
				return 429, `{"error":{"message":"queue is full"}}`
			}
			return 500, fmt.Sprintf(`{"error":{"message":"broken %d"}}`, n)
		}
		o := options(f, Load{1, inf})
		o.Requests = 30
		r := run(t, t.Context(), o)
		p := r.Points[0]
		want := []Failure{{"queue is full (429 Too Many Requests)", 5}}
		for n := 11; n < 18; n += 2 {
			want = append(want, Failure{fmt.Sprintf("broken %d (500 Internal Server Error)", n), 1})
		}
		want = append(want, Failure{otherErrors, 6})
		if d := cmp.Diff(want, p.Errors); d != "" || p.OK != 15 || p.Failed != 15 || p.TTFT.Count != 15 || p.Output != 75 {
			t.Errorf("%s\n%+v", d, p)
		}
		near(t, "requests/s", p.RequestRate, 15/0.450)
		if r.Verdict(false) != nil || r.Verdict(true) == nil {
			t.Errorf("verdicts are %v and %v", r.Verdict(false), r.Verdict(true))
		}
	})
}

func TestEveryRequestFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.fail = func(int) (int, string) { return 404, `{"error":{"message":"no such model"}}` }
		o := options(f, Load{2, inf})
		if r := run(t, t.Context(), o); r.Verdict(false) == nil || r.Points[0].Failed != 6 {
			t.Errorf("report is %+v", r)
		}
		o.Warmup = 1
		if _, err := Run(t.Context(), o); err == nil || err.Error() != "cannot warm up: no such model (404 Not Found)" {
			t.Error(err)
		}
	})
}

// A request that takes too long fails, the others do not.
func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options(newFake(), Load{0, inf})
		o.Timeout = 29 * time.Millisecond
		p := run(t, t.Context(), o).Points[0]
		if d := cmp.Diff([]Failure{{"no end within 29ms", 6}}, p.Errors); d != "" || p.OK != 0 || p.Stopped != 0 {
			t.Error(d, p)
		}
		near(t, "duration", p.Seconds, 0.029)
	})
}

// An interruption leaves what was answered until then.
func TestInterruption(t *testing.T) {
	for _, c := range []struct {
		load                Load
		after               time.Duration
		ok, stopped, unsent int
	}{
		{Load{2, inf}, 75 * time.Millisecond, 4, 2, 0},
		{Load{1, inf}, 40 * time.Millisecond, 1, 1, 4},
		{Load{0, 1e-6}, time.Second, 1, 0, 5}, // while it waits for the time
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), c.after)
			defer cancel()
			r := run(t, ctx, options(newFake(), c.load, c.load))
			p := r.Points[0]
			if !r.Interrupted || len(r.Points) != 1 || p.OK != c.ok || p.Stopped != c.stopped || p.Unsent != c.unsent || p.Failed != 0 || r.Verdict(false) == nil {
				t.Errorf("%+v: %+v", c, r)
			}
			near(t, "duration", p.Seconds, c.after.Seconds())
		})
	}
}

// What is asked is what was chosen.
func TestWhatIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ask := func(change func(o *Options)) []asked {
			f := newFake()
			o := options(f, Load{1, inf})
			change(&o)
			run(t, t.Context(), o)
			for _, q := range f.asked {
				if q.Model != "m" || !q.Stream || !q.Options.IncludeUsage {
					t.Errorf("asked %+v", q)
				}
			}
			return f.asked
		}
		q := ask(func(o *Options) {})[0]
		if q.path != "/v1/completions" || q.MaxTokens != 5 || !q.IgnoreEOS || q.Messages != nil {
			t.Errorf("asked %+v", q)
		}
		q = ask(func(o *Options) { o.Endpoint, o.IgnoreEOS = Chat, false })[0]
		if q.path != "/v1/chat/completions" || q.IgnoreEOS || len(q.Messages) != 1 || q.Messages[0].Role != "user" || q.Messages[0].Content == "" || q.Prompt != nil {
			t.Errorf("asked %+v", q)
		}
		var got []string
		for _, q := range ask(func(o *Options) { o.Dataset, o.Requests = []Prompt{{Text: "a", Output: 1}, {Text: "b", Output: 2}}, 3 }) {
			got = append(got, fmt.Sprintf("%s %d", q.Prompt, q.MaxTokens))
		}
		if !slices.Equal(got, []string{`"a" 1`, `"b" 2`, `"a" 1`}) {
			t.Errorf("of a data set it asked %q", got)
		}
	})
}
