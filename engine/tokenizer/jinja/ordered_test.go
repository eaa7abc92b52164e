package jinja

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// JSON that is given as it was written keeps the order of its keys, and numbers are what Python reads them as.
func TestOrderedJSON(t *testing.T) {
	template := mustParse(t, "{{ v|tojson }}")
	for in, want := range map[string]string{
		` {"b":1,"a":{"z":[],"y":{}},"b":2} `:          `{"b": 2, "a": {"z": [], "y": {}}}`,
		`[1.0,1e3,-0.5,1e22,9223372036854775807,true]`: `[1.0, 1000.0, -0.5, 1e+22, 9223372036854775807, true]`,
		`"\u00e9<\ud800>"`:                             "\"é<\uFFFD>\"",
		`null`:                                         `null`,
	} {
		if got, err := template.Render(map[string]any{"v": []any{json.RawMessage(in)}}); err != nil || got != "["+want+"]" {
			t.Errorf("%s: %q, %v; want %q", in, got, err, want)
		}
	}
	for in, words := range map[string]string{
		``: "cannot read JSON", `[`: "cannot read JSON", `{"a"`: "cannot read JSON", `{"a":`: "cannot read JSON", `{"a":1,}`: "cannot read JSON", `1 2`: "more behind", `{}}`: "more behind",
		`99999999999999999999`:          "too large",
		strings.Repeat("[", 100_000):    "nested",
		strings.Repeat(`{"a":`, 10_000): "nested",
	} {
		if got, err := template.Render(map[string]any{"v": json.RawMessage(in)}); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%.20q: %q, %v; want an error about %q", in, got, err, words)
		}
	}
}

// FuzzOrdered reads what encoding/json reads, and as that does.
func FuzzOrdered(f *testing.F) {
	for _, s := range []string{`{"a":[1,2.5,"x",null,true,{}]}`, `[`, `1 2`, `{"a":1}}`, `"\ud800"`, `[1,]`, ``} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := DecodeOrdered(data)
		valid := json.Valid(data)
		if err != nil && valid && !strings.Contains(err.Error(), "nested") || err == nil && !valid {
			t.Fatalf("%q: %v, valid %v", data, err, valid)
		}
		if err != nil {
			return
		}
		var want any
		d := json.NewDecoder(bytes.NewReader(data))
		d.UseNumber()
		if d.Decode(&want) != nil {
			return
		}
		a, errA := json.Marshal(want)
		b, errB := json.Marshal(plainJSON(v))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("%q: %s, want %s", data, b, a)
		}
	})
}

// plainJSON has maps in place of Dicts.
func plainJSON(v any) any {
	switch v := v.(type) {
	case Dict:
		m := map[string]any{}
		for _, it := range v {
			m[it.Key] = plainJSON(it.Value)
		}
		return m
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = plainJSON(v[i])
		}
		return list
	}
	return v
}
