package top

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"

	"github.com/infinite-llm/infinite/engine/server"
)

// example is one of testdata/samples.json, which the dashboard's test reads too.
type example struct {
	Name    string
	Samples []struct {
		At      int64 `json:"at_ms"`
		Cluster server.ClusterView
		Metrics string
	}
}

func examples(t *testing.T) (list []example) {
	t.Helper()
	data, err := os.ReadFile("testdata/samples.json")
	if err == nil {
		d := json.NewDecoder(bytes.NewReader(data))
		d.DisallowUnknownFields()
		err = d.Decode(&list)
	}
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// figures of all samples, one after the other.
func (e *example) figures(t *testing.T) (out []*Figures) {
	t.Helper()
	h := &History{Interval: time.Second}
	for _, s := range e.Samples {
		tokens, err := ReadTokens(strings.NewReader(s.Metrics))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, h.Add(Sample{At: time.UnixMilli(s.At).UTC(), View: s.Cluster, Tokens: tokens}))
	}
	return out
}

// TestFigures compares with testdata/figures.json; -rewrite writes what comes out.
func TestFigures(t *testing.T) {
	got := map[string][]*Figures{}
	for _, e := range examples(t) {
		got[e.Name] = e.figures(t)
	}
	const file = "testdata/figures.json"
	var b strings.Builder // a line for each sample
	for i, e := range examples(t) {
		fmt.Fprintf(&b, "%s%q: [", []string{"{\n", ",\n"}[min(i, 1)], e.Name)
		for i, f := range got[e.Name] {
			line, err := json.Marshal(f)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "%s%s", []string{"\n ", ",\n "}[min(i, 1)], line)
		}
		b.WriteString("\n]")
	}
	b.WriteString("\n}\n")
	if flag.Lookup("rewrite").Value.String() == "true" {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Error(diff)
	}
	var back map[string][]*Figures
	if err := json.Unmarshal(want, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(back, got); diff != "" {
		t.Errorf("the JSON is not what was told: %s", diff)
	}
}

// TestScripts runs testdata/*.txt; -rewrite writes what comes out.
func TestScripts(t *testing.T) {
	figures := map[string][]*Figures{}
	for _, e := range examples(t) {
		figures[e.Name] = e.figures(t)
	}
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		if filepath.Ext(path) != ".txt" {
			return
		}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			v := View{Source: "http://127.0.0.1:8000", Width: 80, Zone: time.UTC, Away: d.Input, Colour: d.HasArg("colour")}
			for key, into := range map[string]*int{"width": &v.Width, "height": &v.Height} {
				if d.HasArg(key) {
					d.ScanArgs(t, key, into)
				}
			}
			var f *Figures
			if all := figures[d.Cmd]; all != nil {
				f = all[len(all)-1]
			} else if d.Cmd != "nothing" {
				t.Fatalf("%s: no example %s", d.Pos, d.Cmd)
			}
			return strings.ReplaceAll(v.Text(f), "\x1b", "^[")
		})
	})
}

// Whatever a server says, and wherever it is drawn: no line is wider or higher than the terminal, and none has a character
// that it obeys or that is wider than it looks.
func TestTextKeepsToTheTerminal(t *testing.T) {
	drawn := 0
	for _, e := range examples(t) {
		all := e.figures(t)
		for width := 1; width < 200; width += 7 {
			for _, height := range []int{0, 1, 2, 10, 24, 50} {
				got := View{Width: width, Height: height, Zone: time.UTC}.Text(all[len(all)-1])
				lines := strings.Split(strings.TrimSuffix(got, "\n"), "\n")
				if height > 0 && len(lines) > height {
					t.Errorf("%s: %d lines in a terminal of %d", e.Name, len(lines), height)
				}
				for _, line := range lines {
					drawn++
					if n := len([]rune(line)); n > width {
						t.Errorf("%s: %d columns of %d: %q", e.Name, n, width, line)
					}
					for _, r := range line {
						if (r < ' ' || r > '~') && !strings.ContainsRune("█▓▒░·", r) {
							t.Errorf("%s: %q in %q", e.Name, r, line)
						}
					}
				}
			}
		}
	}
	if drawn < 1000 {
		t.Errorf("%d lines", drawn)
	}
}

func known(x float64) Rate { return Rate{x, true} }

// rates are an instance's rates by its id.
func rates(f *Figures) map[string][3]Rate {
	out := map[string][3]Rate{}
	for _, i := range f.Instances {
		out[i.ID] = [3]Rate{i.Steps, i.StepTime, i.Moved}
	}
	return out
}

// By hand, beside the file: an instance that starts anew, one that goes and comes back, one that is new.
func TestRatesOfInstancesThatComeAndGo(t *testing.T) {
	for _, e := range examples(t) {
		if e.Name != "changes" {
			continue
		}
		all := e.figures(t)
		for i, want := range []map[string][3]Rate{
			{"i0": {}, "i1": {}, "i2": {}},
			{"i0": {known(10), known(0.1), known(0)}, "i1": {known(4), known(0.1), known(2)}, "i3": {}},
			{"i0": {known(10), known(0.2), known(2)}, "i1": {known(6), known(0.6 / 6), known(0)}, "i3": {known(2), known(0.5), known(0)}, "i2": {}},
		} {
			if diff := cmp.Diff(want, rates(all[i]), cmp.Comparer(func(a, b float64) bool { return math.Abs(a-b) < 1e-9 })); diff != "" {
				t.Errorf("sample %d: %s", i, diff)
			}
		}
		// The API process began anew before the second sample.
		if c := all[1].Cluster; c.TokensIn != known(30) || c.TokensOut != known(20) || c.Instances != 3 {
			t.Errorf("%+v", c)
		}
		return
	}
	t.Fatal("no example")
}

// What was missed for long is no base: the rate would be that of a time that nobody looked at.
func TestRatesAfterALongTime(t *testing.T) {
	at := time.Unix(1000, 0)
	sample := func(seconds int, steps uint64) Sample {
		return Sample{At: at.Add(time.Duration(seconds) * time.Second), View: server.ClusterView{Instances: []server.InstanceView{{ID: "a", Steps: steps}}}}
	}
	for _, c := range []struct {
		every time.Duration
		after int
		want  Rate
	}{
		{time.Second, 10, known(10)}, {time.Second, 11, Rate{}}, {5 * time.Second, 15, known(100.0 / 15)}, {5 * time.Second, 16, Rate{}},
	} {
		h := &History{Interval: c.every}
		h.Add(sample(0, 100))
		if got := h.Add(sample(c.after, 200)).Instances[0].Steps; got != c.want {
			t.Errorf("every %v, after %d s: %v, want %v", c.every, c.after, got, c.want)
		}
	}
	// Nor is a clock that stands still, or goes back.
	h := &History{Interval: time.Second}
	h.Add(sample(5, 100))
	for _, second := range []int{5, 4} {
		if got := h.Add(sample(second, 200)).Instances[0].Steps; got.Known {
			t.Errorf("at %d s: %v", second, got)
		}
	}
	if got := h.Add(sample(6, 300)).Instances[0].Steps; got != known(200) {
		t.Errorf("a second later: %v", got)
	}
}

// However long it is looked on, and however often, a series is short.
func TestHistoryIsBounded(t *testing.T) {
	for _, every := range []time.Duration{time.Millisecond, 100 * time.Millisecond, time.Second, 9 * time.Second} {
		var s series
		for i := range 10_000 {
			s.add(point{at: time.Unix(0, 0).Add(time.Duration(i) * every)}, mostGap)
		}
		if n := len(s.points); n < 2 || n > 150 {
			t.Errorf("every %v: %d points", every, n)
		}
	}
}

func TestReadTokens(t *testing.T) {
	for text, want := range map[string]*Tokens{
		"":                                 nil,
		"infinite_prompt_tokens_total 3\n": nil,
		"infinite_prompt_tokens_total 3\ninfinite_generation_tokens_total 4.5e+06\n":                              {3, 4.5e6},
		"infinite_prompt_tokens_total x\ninfinite_generation_tokens_total 4\n":                                    nil,
		"infinite_prompt_tokens_total{a=\"b\"} 3\ninfinite_generation_tokens_total 4\n":                           nil,
		"# infinite_prompt_tokens_total 9\ninfinite_generation_tokens_total 4\ninfinite_prompt_tokens_total -3\n": {0, 4},
	} {
		got, err := ReadTokens(strings.NewReader(text))
		if err != nil || !cmp.Equal(got, want) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if _, err := ReadTokens(strings.NewReader(strings.Repeat("x", 1<<20))); err == nil {
		t.Error("a line of a megabyte is read")
	}
}
