package grammar

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
)

// branches are n schemas of objects that begin alike.
func branches(n int, schema string) string {
	out := make([]string, n)
	for i := range out {
		out[i] = strings.ReplaceAll(schema, "%", fmt.Sprint(10_000+i))
	}
	return strings.Join(out, ",")
}

// Many branches that begin alike are few states at once, however the source says it, and masks are found for all of it.
func TestManyBranches(t *testing.T) {
	v := vocabulary(1, 400, `{"kind": "k10012", "value": 12, "a": ["x"]}`)
	const kind = `{"type":"object","properties":{"kind":{"const":"k%"},"value":{"type":"integer"}},"required":["kind","value"],"additionalProperties":false}`
	const late = `{"type":"object","properties":{"a":{"type":"array","items":{"type":"string"}},"value":{"type":"integer"},"z%":{"type":"null"}},"required":["a","value","z%"]}`
	var gbnf strings.Builder
	gbnf.WriteString("root ::= r0")
	for i := range 2000 {
		fmt.Fprintf(&gbnf, " | r%d", i)
	}
	for i := range 2000 {
		fmt.Fprintf(&gbnf, "\nr%d ::= \"{ \" [a-z]+ \" %d\" \"}\"", i, 10_000+i)
	}
	for _, c := range []struct{ name, kind, text string }{
		{"anyOf", JSONSchema, `{"anyOf":[` + branches(1200, kind) + `]}`},
		{"oneOf", JSONSchema, `{"oneOf":[` + branches(300, kind) + `]}`},
		{"by reference", JSONSchema, `{"type":"array","minItems":3,"items":{"anyOf":[` + branches(600, `{"$ref":"#/$defs/d%"}`) + `]},"$defs":{` + branches(600, `"d%":`+kind) + `}}`},
		{"beside others", JSONSchema, `{"type":"object","properties":{"a":{"anyOf":[` + branches(600, kind) + `]}},"required":["a"]}`},
		{"late", JSONSchema, `{"anyOf":[` + branches(500, late) + `]}`},
		{"calls of tools", JSONSchema, `{"type":"array","minItems":1,"items":{"anyOf":[` + branches(500, `{"type":"object","properties":{"name":{"enum":["f%"]},"parameters":{"type":"object","properties":{"a":{"type":"string"}}}},"required":["name","parameters"],"additionalProperties":false}`) + `]}}`},
		{"nested", JSONSchema, `{"anyOf":[` + branches(400, `{"type":"object","properties":{"a":{"type":"object","properties":{"kind":{"type":"string"},"value":{"enum":["an answer with some length, number %"]},"b":{"type":"integer"}},"required":["kind","value","b"]}},"required":["a"]}`) + `]}`},
		{"rules", GBNF, gbnf.String()},
	} {
		u := guide(t, c.kind, c.text, v)
		r := rand.New(rand.NewPCG(1, 1))
		most := 0
		for range 5 {
			m := u.Matcher()
			for n := 0; n < 150 && !m.MustEnd(); n++ {
				mask, some, err := m.Mask()
				if err != nil || !some {
					t.Fatalf("%s: %v", c.name, err)
				}
				var ids []int32
				eachBit(mask, func(id int32) { ids = append(ids, id) })
				if err := m.Accept(ids[r.IntN(len(ids))]); err != nil {
					t.Fatalf("%s: %v", c.name, err)
				}
				most = max(most, len(m.at.items))
			}
		}
		if most > 40 {
			t.Errorf("%s: %d states at once", c.name, most)
		}
	}
}

// What is joined takes the texts that it takes apart.
func TestJoinedIsApart(t *testing.T) {
	v := vocabulary(1, 0)
	r := rand.New(rand.NewPCG(3, 1))
	joined := 0
	for range 300 {
		// Rules of pieces, each of which calls those behind it.
		const rules = 6
		text, pattern := make([]string, rules), make([]string, rules)
		for i := rules - 1; i >= 0; i-- {
			for k := range 1 + r.IntN(3) {
				if k > 0 {
					text[i], pattern[i] = text[i]+" | ", pattern[i]+"|"
				}
				for range 1 + r.IntN(3) {
					if to := i + 1 + r.IntN(3); to < rules && r.IntN(2) == 0 {
						repeat := []string{"", "", "?", "{1,2}", "*"}[r.IntN(5)]
						text[i] += fmt.Sprintf("r%d%s ", to, repeat)
						pattern[i] += "(?:" + pattern[to] + ")" + repeat
						continue
					}
					c := string("abc"[r.IntN(3)])
					text[i] += `"` + c + `" `
					pattern[i] += c
				}
			}
		}
		source := "root ::= r0"
		for i := range rules {
			source += fmt.Sprintf("\nr%d ::= %s", i, text[i])
		}
		if len(pattern[0]) > 2000 {
			continue
		}
		g, err := Compile(GBNF, source)
		if err != nil {
			if e := (*Error)(nil); errors.As(err, &e) {
				continue
			}
			t.Fatal(err)
		}
		if len(g.rules) <= rules {
			joined++
		}
		u, re := NewGuide(g, v), regexp.MustCompile(`\A(?:`+pattern[0]+`)\z`)
		for range 30 {
			s := ""
			for range r.IntN(8) {
				s += string("abc"[r.IntN(3)])
			}
			if got, want := whole(t, u, s), re.MatchString(s); got != want {
				t.Fatalf("%s\ntakes %q: %v", source, s, got)
			}
		}
		if s := walk(t, u, r, 10); !re.MatchString(s) {
			t.Fatalf("%s\nmakes %q", source, s)
		}
	}
	if joined < 100 {
		t.Errorf("only %d have rules that are joined", joined)
	}
}

// Where it would not stay deterministic a rule is called as before.
func TestNotJoined(t *testing.T) {
	v := vocabulary(1, 0)
	g, err := Compile(GBNF, "root ::= \"x\" a \"y\" b\na ::= (\"a\" | \"b\")* \"a\" (\"a\" | \"b\"){14}\nb ::= \"c\" d\nd ::= \"d\"")
	if err != nil {
		t.Fatal(err)
	}
	if len(g.rules) != 3 {
		t.Errorf("%d rules, wanted those of root, a, and b with d", len(g.rules))
	}
	u := NewGuide(g, v)
	for s, want := range map[string]bool{
		"xa" + strings.Repeat("b", 14) + "ycd": true, "xabba" + strings.Repeat("b", 14) + "ycd": true, "xb" + strings.Repeat("b", 14) + "ycd": false, "xa" + strings.Repeat("b", 13) + "ycd": false,
	} {
		if got := whole(t, u, s); got != want {
			t.Errorf("%s: %v", s, got)
		}
	}
}
