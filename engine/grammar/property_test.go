package grammar

import (
	"errors"
	"fmt"
	"math/big"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// A grammar of a regular expression takes what package regexp matches as a whole.
func TestRegexIsRegexp(t *testing.T) {
	v := vocabulary(1, 0)
	piece := rapid.SampledFrom([]string{"a", "b", "é", ".", "[ab]", "[^a]", `\d`, `\w`, "(?i:B)", "(a|b)", "(?:ab|é|)", "x{0}"})
	quantifier := rapid.SampledFrom([]string{"", "", "*", "+", "?", "{2}", "{1,3}", "{2,}", "*?"})
	rapid.Check(t, func(rt *rapid.T) {
		pattern := ""
		for range rapid.IntRange(1, 5).Draw(rt, "pieces") {
			if pattern += piece.Draw(rt, "piece") + quantifier.Draw(rt, "q"); rapid.IntRange(0, 5).Draw(rt, "or") == 0 {
				pattern += "|"
			}
		}
		g, err := Compile(Regex, pattern)
		if err != nil {
			var e *Error
			if errors.As(err, &e) {
				rt.Skip(err)
			}
			rt.Fatal(err)
		}
		u, re := NewGuide(g, v), regexp.MustCompile(`\A(?:`+pattern+`)\z`)
		for range 10 {
			s := strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "B", "é", "1", "\n", "_"}), 0, 6).Draw(rt, "text"), "")
			if got, want := whole(t, u, s), re.MatchString(s); got != want {
				rt.Fatalf("%q takes %q: %v, regexp says %v", pattern, s, got, want)
			}
		}
	})
}

// Numbers within limits are those that compare so.
func TestNumberLimits(t *testing.T) {
	v := vocabulary(1, 0)
	number := func(rt *rapid.T) string {
		s := fmt.Sprint(rapid.IntRange(0, 1200).Draw(rt, "units"))
		if rapid.Bool().Draw(rt, "fraction") {
			s += "." + rapid.StringMatching(`[0-9]{1,3}`).Draw(rt, "decimals")
		}
		if rapid.Bool().Draw(rt, "negative") {
			s = "-" + s
		}
		return s
	}
	rat := func(s string) *big.Rat { r, _ := new(big.Rat).SetString(s); return r }
	rapid.Check(t, func(rt *rapid.T) {
		kind := rapid.SampledFrom([]string{"integer", "number"}).Draw(rt, "kind")
		lo, hi := number(rt), number(rt)
		least := rapid.SampledFrom([]string{"minimum", "exclusiveMinimum", ""}).Draw(rt, "least")
		most := rapid.SampledFrom([]string{"maximum", "exclusiveMaximum", ""}).Draw(rt, "most")
		schema := fmt.Sprintf(`{"type":%q`, kind)
		if least != "" {
			schema += fmt.Sprintf(`,%q:%s`, least, lo)
		}
		if most != "" {
			schema += fmt.Sprintf(`,%q:%s`, most, hi)
		}
		g, err := Compile(JSONSchema, schema+"}")
		var u *Guide
		if err == nil {
			u = NewGuide(g, v)
		} else if !strings.Contains(err.Error(), "no text") {
			rt.Fatal(err)
		}
		for range 20 {
			s := number(rt)
			if rapid.IntRange(0, 3).Draw(rt, "a limit") == 0 {
				s = rapid.SampledFrom([]string{lo, hi}).Draw(rt, "which")
			}
			x := rat(s)
			want := (kind == "number" || !strings.Contains(s, ".")) && !(strings.HasPrefix(s, "-") && x.Sign() == 0) &&
				(least == "" || x.Cmp(rat(lo)) > 0 || x.Cmp(rat(lo)) == 0 && least == "minimum") &&
				(most == "" || x.Cmp(rat(hi)) < 0 || x.Cmp(rat(hi)) == 0 && most == "maximum")
			if least+most == "" {
				continue // -0 and exponents are there too
			}
			if got := u != nil && whole(t, u, s); got != want {
				rt.Fatalf("%s} takes %s: %v, wanted %v", schema, s, got, want)
			}
		}
	})
}

// What would take too much is refused, or is no more than its limits say. Each case ends at once or this test's time is over.
func TestHostileSources(t *testing.T) {
	nest := func(open, in, end string, n int) string { return strings.Repeat(open, n) + in + strings.Repeat(end, n) }
	doubled := `{"$defs":{"d0":{"type":"string"}`
	for i := range 40 {
		doubled += fmt.Sprintf(`,"d%d":{"allOf":[{"$ref":"#/$defs/d%d"},{"$ref":"#/$defs/d%d"}]}`, i+1, i, i)
	}
	doubled += `},"$ref":"#/$defs/d40"}`
	for _, c := range []struct{ kind, text string }{
		{Regex, "a{1000}{1000}"}, {Regex, "(?:a{0,1000}){0,1000}"}, {Regex, "(?:(?:a?){1000}){1000}"}, {Regex, nest("(", "a", ")*", 500)},
		{Regex, `[\p{L}\p{N}]{1000}`}, {Regex, strings.Repeat("(a|", 900) + "a" + strings.Repeat(")", 900)},
		{GBNF, `root ::= "a"{1,1000000}`}, {GBNF, `root ::= (""{150000}){150000} "a"`}, {GBNF, "root ::= root \"a\" | \"b\""},
		{GBNF, "root ::= a\na ::= b? c\nb ::= \"b\"\nc ::= a \"x\" | \"y\""}, {GBNF, "root ::= root"}, {GBNF, "root ::= \"a\" root"},
		{GBNF, nest("root ::= (", `"a"`, ")", 200)}, {GBNF, `root ::= "a"` + strings.Repeat("*", 100_000)}, {GBNF, "root ::= x"},
		{JSONSchema, doubled}, {JSONSchema, nest("[", "", "]", 100_000)}, {JSONSchema, nest(`{"items":`, "true", "}", 300)},
		{JSONSchema, `{"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}`},
		{JSONSchema, `{"anyOf":[{"$ref":"#"}],"type":"object"}`}, {JSONSchema, `{"type":"array","maxItems":150001}`},
		{JSONSchema, `{"allOf":[{"properties":{"a":{"$ref":"#"}}},{"properties":{"a":{"type":"object"}}}],"required":["a"]}`},
		{Regex, strings.Repeat("x", MaxSource+1)}, {Choice, `[]`}, {Choice, `[""]`}, {Regex, ""}, {Regex, "\xff"}, {Regex, "("}, {Regex, "^*"}, {GBNF, ""},
	} {
		if _, err := Compile(c.kind, c.text); err == nil {
			t.Errorf("%s %.80s is taken", c.kind, c.text)
		} else if e := (*Error)(nil); !errors.As(err, &e) {
			t.Errorf("%s %.80s: %v is no *Error", c.kind, c.text, err)
		}
	}
}

// A text that can be read in ever more ways ends with an error, and not with ever more work; where ways can be joined,
// it goes on.
func TestAmbiguity(t *testing.T) {
	v := vocabulary(1, 0)
	for _, c := range []struct {
		text string
		ends bool
	}{
		{"root ::= \"a\" root root | \"a\"", true},
		{"root ::= p | q\np ::= \"a\" root? \"b\"\nq ::= \"a\" root? \"c\"", false},
		{"root ::= (\"a\" | \"a\" \"a\")* \"b\"", false},
		{"root ::= s s\ns ::= \"a\" s \"a\" | \"a\" s \"b\" | \"a\" s s | \"a\"", true},
	} {
		u := guide(t, GBNF, c.text, v)
		m := u.Matcher()
		var err error
		for n := 0; n < 1500 && err == nil; n++ {
			if err = m.Accept(2 + 'a'); err == nil && n%100 == 0 {
				_, _, err = m.Mask()
			}
		}
		if c.ends != errors.Is(err, ErrAmbiguous) || !c.ends && err != nil {
			t.Errorf("%s: %v", c.text, err)
		}
		if u.m.size > 4*maxMemory {
			t.Errorf("%s: %d bytes are remembered", c.text, u.m.size)
		}
	}
}

func FuzzCompile(f *testing.F) {
	for i, s := range samples {
		f.Add(uint8(i), s.text)
	}
	for _, s := range schemas {
		f.Add(uint8(0), s)
	}
	v := vocabulary(1, 20, `{"a": 1}`)
	f.Fuzz(func(t *testing.T, which uint8, text string) {
		kind := []string{JSONSchema, Regex, Choice, GBNF}[which%4]
		g, err := Compile(kind, text)
		if err != nil {
			if e := (*Error)(nil); !errors.As(err, &e) {
				t.Fatal(err)
			}
			return
		}
		m := NewGuide(g, v).Matcher()
		for n := 0; n < 30 && !m.MustEnd(); n++ {
			mask, some, err := m.Mask()
			if errors.Is(err, ErrAmbiguous) {
				return
			}
			if err != nil || !some {
				t.Fatalf("nothing is allowed: %v", err)
			}
			last := int32(-1)
			eachBit(mask, func(id int32) {
				if last < 0 || int(id)*7%31 == n {
					last = id
				}
			})
			if err := m.Accept(last); err != nil && !errors.Is(err, ErrAmbiguous) {
				t.Fatal(err)
			}
		}
	})
}
