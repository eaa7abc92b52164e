package loadgen

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

func made(change func(o *Options)) []Prompt {
	o := options(nil)
	o.Shape.Input, o.Shape.Output, o.Shape.Prefix, o.Seed = 40, 20, 10, 1
	change(&o)
	var list []Prompt
	for i := range 100 {
		list = append(list, o.prompt(0, i))
	}
	return list
}

func TestPromptsHaveTheirLengths(t *testing.T) {
	for _, p := range made(func(*Options) {}) {
		if p.length() != 50 || p.Output != 20 || p.IDs != nil {
			t.Fatalf("%+v", p)
		}
	}
	low, high := 1000, 0
	for _, p := range made(func(o *Options) { o.Shape.Spread, o.Shape.Format = 0.25, Tokens }) {
		if p.length() < 40 || p.length() > 60 || p.Output < 15 || p.Output > 25 || p.Text != "" || slices.Min(p.IDs) < firstID || slices.Max(p.IDs) >= 100 {
			t.Fatalf("%+v", p)
		}
		low, high = min(low, p.length()), max(high, p.length())
	}
	if low != 40 || high != 60 {
		t.Errorf("lengths of 100 prompts are from %d to %d", low, high)
	}
	for _, p := range made(func(o *Options) { o.Shape = Shape{Format: Text, Input: 1, Output: 1, Spread: 0.99, Vocab: 100} }) {
		if p.length() < 1 || p.length() > 2 || p.Output < 1 || p.Output > 2 {
			t.Fatalf("%+v", p)
		}
	}
}

func TestPromptsGoBySeed(t *testing.T) {
	for _, format := range []string{Text, Tokens} {
		same := func(o *Options) { o.Shape.Format, o.Shape.Spread = format, 0.5 }
		a, again := made(same), made(same)
		other := made(func(o *Options) { same(o); o.Seed = 2 })
		plain := made(func(o *Options) { same(o); o.Shape.Prefix = 0 })
		seen := map[string]bool{}
		for i := range a {
			text := func(p Prompt) string { return strings.Trim(fmt.Sprint(p.Text, p.IDs), "[]") }
			if text(a[i]) != text(again[i]) || text(a[i]) == text(other[i]) {
				t.Fatalf("prompt %d is\n%v,\n%v of the same seed and\n%v of another", i, a[i], again[i], other[i])
			}
			// The prefix is the beginning of all, and all that differs from prompts without one.
			prefix := strings.Join(strings.Fields(text(a[i]))[:10], " ")
			if !strings.HasPrefix(text(a[0]), prefix) || text(a[i]) != prefix+" "+text(plain[i]) {
				t.Fatalf("prompt %d is\n%v, without a prefix\n%v", i, a[i], plain[i])
			}
			seen[text(plain[i])[:20]] = true
		}
		if len(seen) < 99 {
			t.Errorf("of 100 prompts %d begin differently behind the prefix", len(seen))
		}
	}
}

func TestArrivals(t *testing.T) {
	o := options(nil)
	if due := o.schedule(inf, 5); !slices.Equal(due, make([]time.Duration, 5)) {
		t.Errorf("all at once is %v", due)
	}
	const n = 20_000
	slow, fast, again := o.schedule(10, n), o.schedule(1000, n), o.schedule(1000, n)
	if slow[0] != 0 || !slices.IsSorted(fast) || !slices.Equal(fast, again) {
		t.Errorf("the first is due at %s; %v", slow[0], fast[:5])
	}
	if ratio := float64(slow[n-1]) / float64(fast[n-1]); math.Abs(ratio-100) > 1e-3 {
		t.Errorf("at a hundredth of the rate the last one is due %g times as late", ratio)
	}
	// Gaps of a Poisson process: their mean is 1/rate, and so is their deviation; 1 - 1/e of them are shorter.
	var sum, squares, shorter float64
	for i := 1; i < n; i++ {
		gap := (fast[i] - fast[i-1]).Seconds() * 1000
		sum, squares = sum+gap, squares+gap*gap
		if gap < 1 {
			shorter++
		}
	}
	mean := sum / (n - 1)
	deviation := math.Sqrt(squares/(n-1) - mean*mean)
	if math.Abs(mean-1) > 0.03 || math.Abs(deviation-1) > 0.05 || math.Abs(shorter/(n-1)-(1-1/math.E)) > 0.02 {
		t.Errorf("gaps have mean %g and deviation %g, %g of them are shorter than 1", mean, deviation, shorter/(n-1))
	}
	o.Seed = 9
	if slices.Equal(o.schedule(1000, n), fast) {
		t.Error("another seed has the same arrivals")
	}
	if due := o.schedule(1e-300, 3); !slices.IsSorted(due) || due[1] <= 0 {
		t.Errorf("of a tiny rate: %v", due)
	}
}

func TestReadDataset(t *testing.T) {
	good := "{\"prompt\":\"a b\",\"output_tokens\":3,\"extra\":[]}\n\n{\"prompt\":\"c\"}\n{\"prompt\":\"d\"}"
	list, err := ReadDataset(strings.NewReader(good), 7, 2)
	if err != nil || fmt.Sprint(list) != fmt.Sprint([]Prompt{{"a b", nil, 3}, {"c", nil, 7}}) {
		t.Errorf("%+v, %v", list, err)
	}
	for text, want := range map[string]string{
		"":                                       "without prompts",
		"\n\n":                                   "without prompts",
		"{\"prompt\":\"a\"}\n{\"prompt\":7}":     "cannot use line 2",
		"{}":                                     "cannot use line 1: it needs a prompt",
		"{\"prompt\":\"\"}":                      "cannot use line 1",
		"{\"prompt\":\"a\",\"output_tokens\":0}": "cannot use line 1",
		"{\"prompt\":\"a\",\"output_tokens\":1e99}": "cannot use line 1",
		"[1]": "cannot use line 1",
		"{\"prompt\":\"" + strings.Repeat("a", maxPromptLine): "cannot read line 1",
	} {
		if _, err := ReadDataset(strings.NewReader(text), 7, 100); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v", text, err)
		}
	}
}

func TestParse(t *testing.T) {
	for text, want := range map[string]Rate{"1": 1, "0.5": 0.5, "inf": inf, "Inf": inf, "1e3": 1000} {
		if got, err := ParseRate(text); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "-1", "nan", "-inf", "fast", "1/s"} {
		if got, err := ParseRate(text); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
	for text, want := range map[string]Limit{
		"ttft:500ms": {"ttft", 500 * time.Millisecond}, "tpot:50": {"tpot", 50 * time.Millisecond}, "e2el:1.5s": {"e2el", 1500 * time.Millisecond},
	} {
		if got, err := ParseLimit(text); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "ttft", "ttft:", "ttft:0", "ttft:-1s", "ttft:soon", "itl:5ms", "ttft:nan", "ttft:1e99", "tpot:inf"} {
		if got, err := ParseLimit(text); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestCheck(t *testing.T) {
	good := options(nil, Load{1, 2})
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(o *Options){
		"the endpoint":        func(o *Options) { o.Endpoint = "embeddings" },
		"send 0 requests":     func(o *Options) { o.Requests = 0 },
		"warm up by -1":       func(o *Options) { o.Warmup = -1 },
		`prompts of "images"`: func(o *Options) { o.Shape.Format = "images" },
		"send token ids":      func(o *Options) { o.Shape.Format, o.Endpoint = Tokens, Chat },
		"of length 0":         func(o *Options) { o.Shape.Input = 0 },
		"answers of 0":        func(o *Options) { o.Shape.Output = 0 },
		"length -1":           func(o *Options) { o.Shape.Prefix = -1 },
		"a share of 1,":       func(o *Options) { o.Shape.Spread = 1 },
		"a share of NaN":      func(o *Options) { o.Shape.Spread = math.NaN() },
		"below 16,":           func(o *Options) { o.Shape.Vocab = 16 },
		"wait 0s":             func(o *Options) { o.Timeout = 0 },
		"no load":             func(o *Options) { o.Loads = nil },
		"send -1 requests":    func(o *Options) { o.Loads = []Load{{-1, 1}} },
		"send NaN requests":   func(o *Options) { o.Loads = []Load{{1, Rate(math.NaN())}} },
	} {
		o := good
		change(&o)
		if _, err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
