package grammar

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestRegexTexts(t *testing.T) {
	v := vocabulary(1, 0)
	for _, c := range []struct {
		pattern string
		yes, no []string
	}{
		{`a|bc`, []string{"a", "bc"}, []string{"", "b", "abc", "ab"}},
		{`^[a-c]{2,3}$`, []string{"ab", "abc"}, []string{"a", "abca", "ad"}},
		{`(?i)ok\d+`, []string{"OK1", "oK42"}, []string{"ok", "1"}},
		{`.ä€😀`, []string{"xä€😀", "ßä€😀"}, []string{"\nä€😀", "ä€😀"}},
		{`[^x]*z`, []string{"z", "\nü😀z"}, []string{"xz", "z\xff"}},
		{`(ab?)*c`, []string{"c", "aabac"}, []string{"abb"}},
		{`\x{10ffff}?\x{7ff}`, []string{"\u07ff", "\U0010ffff\u07ff"}, []string{"\u0800"}},
		{`(|a)+b`, []string{"b", "aab"}, []string{"a"}},
	} {
		u := guide(t, Regex, c.pattern, v)
		for _, s := range c.yes {
			if n, ends := accepts(t, u, s); n < len(s) || !ends {
				t.Errorf("%s does not take %q: %d bytes, ends %v", c.pattern, s, n, ends)
			}
		}
		for _, s := range c.no {
			if whole(t, u, s) {
				t.Errorf("%s takes %q", c.pattern, s)
			}
		}
	}
}

func TestGBNFTexts(t *testing.T) {
	v := vocabulary(1, 0)
	for _, c := range []struct {
		text    string
		yes, no []string
	}{
		{"root ::= item+ # a comment\nitem ::= \"- \" [^\\n]+ \"\\n\"", []string{"- a\n", "- a\n- b c\n"}, []string{"", "- \n", "- a"}},
		{"root ::= (expr \"=\" num \"\\n\")+\nexpr ::= num ([-+*/] num)*\nnum ::= [0-9]{1,3} |\n  \"(\" expr \")\"", []string{"1+2=3\n", "((1)*22)-4=0\n1=1\n"}, []string{"1+2\n", "(1=2\n", "1234=1\n"}},
		{"root ::= a a a\na ::= \"x\"?", []string{"x", "xx", "xxx"}, []string{"xxxx"}},
		{"root ::= \"a\" root \"b\" | \"a\" root \"c\" | \"\"", []string{"ab", "aacb", "aaabcb"}, []string{"aab", "abb", "b"}},
		{"root ::= \"\\x41\\u00e4\\U0001F600\" .", []string{"Aä😀."}, []string{"Aä😀"}},
		{"root ::= [\\]a-]+\n  | \"z\"", []string{"]a-", "z"}, []string{"b"}},
	} {
		u := guide(t, GBNF, c.text, v)
		for _, s := range c.yes {
			if n, ends := accepts(t, u, s); n < len(s) || !ends {
				t.Errorf("%s\ndoes not take %q: %d bytes, ends %v", c.text, s, n, ends)
			}
		}
		for _, s := range c.no {
			if whole(t, u, s) {
				t.Errorf("%s\ntakes %q", c.text, s)
			}
		}
	}
}

// grammars that exercise calls, ambiguity, empty rules and many states.
var samples = []struct{ kind, text string }{
	{JSONObject, ""},
	{JSONSchema, `{"type":"object","properties":{"name":{"type":"string","maxLength":5},"age":{"type":"integer","minimum":0,"maximum":120},"tags":{"type":"array","items":{"enum":["a","b","c\"d"]}}},"required":["name"],"additionalProperties":{"type":"null"}}`},
	{JSONSchema, `{"$ref":"#/$defs/t","$defs":{"t":{"type":"object","properties":{"v":{"type":"number"},"kids":{"type":"array","items":{"$ref":"#/$defs/t"},"maxItems":3}},"required":["v","kids"]}}}`},
	{Regex, `(\d{4}-\d{2}|[a-z]+(?:, ?[a-z]+)*)!?`},
	{Regex, `(a|b)*a(a|b){12}`},
	{Choice, `["yes","yes, but","no","nö"]`},
	{GBNF, "root ::= (expr \";\")+\nexpr ::= term | term \"+\" expr\nterm ::= [0-9]+ | \"(\" expr \")\" | opt opt \"x\"\nopt ::= \"~\"?"},
	// Plain characters in runs of some length, that end where others follow, or do not.
	{GBNF, "root ::= w w w | w \"\\\"\" root\nw ::= [^\"\\\\\\x00-\\x1f]{1,3}"},
	{GBNF, "root ::= (w \"\\\"\")+ \"\\n\"\nw ::= [^\"\\\\\\x00-\\x1f]{2,4} | [a-c]*"},
	{Regex, `[^"\\\x00-\x1f]{0,40}|[a-zé"]{3,5}`},
	{GBNF, "root ::= \"a\" root root | \"a\" | \"b\" root"},
	{GBNF, "root ::= p | q\np ::= \"a\" root? \"b\"\nq ::= \"a\" root? \"c\""},
}

// Masks are what trying each token finds, at every place of random texts, with masks that are kept and without.
func TestMaskIsBruteForce(t *testing.T) {
	v := vocabulary(3, 600, `{"name": "x", "age": 12, "tags": ["a", "b"]}, {"v": -1.5e3, "kids": []}`, "yes, but nö", "a+b;(12)~~x;", "aabbccab", `\u00e4\n"},{"`, "2024-12!, abc")
	for i, s := range samples {
		u := guide(t, s.kind, s.text, v)
		r := rand.New(rand.NewPCG(uint64(i), 7))
		for range 6 {
			m := u.Matcher()
			for range 40 {
				mask, some, err := m.Mask()
				if err != nil {
					t.Fatalf("%s: %v", s.text, err)
				}
				want := brute(u, m)
				if !slices.Equal(mask, want) || some != anyBit(want) {
					t.Fatalf("%s: a mask differs from what tokens are accepted", s.text)
				}
				if !some {
					if !m.MustEnd() || !m.MayEnd() {
						t.Fatalf("%s: nothing is allowed, and it is not the end", s.text)
					}
					break
				}
				var ids []int32
				eachBit(mask, func(id int32) { ids = append(ids, id) })
				if err := m.Accept(ids[r.IntN(len(ids))]); err != nil {
					t.Fatal(err)
				}
				if r.IntN(10) == 0 { // as when too much was remembered
					u.mu.Lock()
					u.kept = maxMemory
					u.mu.Unlock()
				}
			}
		}
	}
}
