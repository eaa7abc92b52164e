package jinja

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"os"
	"testing"
)

// golden is [the template, its text or null, what raise_exception said if anything].
type golden struct {
	source     string
	text, said *string
}

func (g *golden) UnmarshalJSON(data []byte) error {
	return json.Unmarshal(data, &[]any{&g.source, &g.text, &g.said})
}

type goldens struct {
	Vars   map[string]any `json:"vars"`
	Fixed  []golden       `json:"fixed"`
	Random []golden       `json:"random"`
}

func readGoldens(t testing.TB) goldens {
	t.Helper()
	raw, err := os.ReadFile("testdata/golden.json.gz")
	if err != nil {
		t.Fatal(err)
	}
	zr, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	var g goldens
	if err := json.NewDecoder(zr).Decode(&g); err != nil {
		t.Fatal(err)
	}
	return g
}

// check compares one rendering with Jinja2's and tells whether the template was refused.
func check(t *testing.T, g golden, vars map[string]any) (refused bool) {
	t.Helper()
	var got string
	template, err := Parse(g.source)
	if err == nil {
		got, err = template.Render(vars)
	}
	if errors.Is(err, ErrUnsupported) {
		return true
	}
	var raised *Raised
	switch {
	case g.text != nil && err != nil:
		t.Errorf("%s\nfails: %v\nwant  %q", g.source, err, *g.text)
	case g.text != nil && got != *g.text:
		t.Errorf("%s\ngives %q\nwant  %q", g.source, got, *g.text)
	case g.said != nil && (!errors.As(err, &raised) || raised.Message != *g.said):
		t.Errorf("%s\ngives %q, %v\nwant  it to raise %q", g.source, got, err, *g.said)
	case g.text == nil && err == nil:
		t.Errorf("%s\ngives %q, want an error", g.source, got)
	}
	return false
}

// refusals are the fixed templates that Jinja2 renders and this package does not.
var refusals = map[string]bool{
	"{{ lipsum is defined }}":      true,
	"{{ {x: 2} }}":                 true,
	"{% set loop = 1 %}{{ loop }}": true,
	"{#":                           true,
	"{% raw %}":                    true,
}

func TestGoldens(t *testing.T) {
	g := readGoldens(t)
	if len(g.Fixed) < 300 || len(g.Random) < 1000 {
		t.Fatalf("only %d and %d templates", len(g.Fixed), len(g.Random))
	}
	for _, c := range g.Fixed {
		if refused := check(t, c, g.Vars); c.text != nil && refused != refusals[c.source] {
			t.Errorf("%s\nrefused: %v, want %q", c.source, refused, *c.text)
		}
	}
	refused := 0
	for _, c := range g.Random {
		if check(t, c, g.Vars) && c.text != nil {
			refused++
		}
	}
	if refused*50 > len(g.Random) {
		t.Errorf("%d of %d random templates are refused", refused, len(g.Random))
	}
}
