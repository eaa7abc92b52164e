package grammar

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// list is n texts of a pattern with their numbers.
func list(pattern string, n int) string {
	out := make([]string, n)
	for i := range out {
		out[i] = strings.ReplaceAll(pattern, "%", fmt.Sprint(10_000+i))
	}
	return strings.Join(out, ",")
}

// referred is a schema of an object with n properties that refer to a part.
func referred(part string, n int) string {
	return `{"$defs":{"a":` + part + `},"type":"object","properties":{` + list(`"%":{"$ref":"#/$defs/a"}`, n) + `}}`
}

// hostileSources take much for their length. What they ask for takes at least so many steps for n, and for some so much
// more than anything else of them where n is enough.
var hostileSources = []struct {
	name, kind string
	enough     int
	text       func(n int) string
	atLeast    func(n int) int
}{
	{"repeated empty texts", GBNF, 1000,
		func(n int) string { return fmt.Sprintf(`root ::= "a" (%s){%d}`, strings.Repeat(`"" `, n), n) }, func(n int) int { return n * n }},
	{"large values that are equal, by references", JSONSchema, 300, func(n int) string {
		big := "[" + strings.Repeat("0,", n) + "0]"
		return `{"a":{"items":{"x":` + big + `}},"b":{"items":{"x":` + big + `}},"allOf":[` + list(`{"$ref":"#/b"},{"$ref":"#/a"}`, n) + `]}`
	}, func(n int) int { return 8 * n * n }},
	{"enums of which all pairs are held against each other", JSONSchema, 300, func(n int) string {
		return `{"oneOf":[{"enum":[` + list("1%", n) + `]},{"enum":[` + list("2%", n) + `]}]}`
	}, func(n int) int { return 8 * n * n }},
	{"references into a large object", JSONSchema, 3000, func(n int) string {
		return `{"d":{` + list(`"%":0`, n) + `,"z":{"type":"string"}},"allOf":[` + list(`{"$ref":"#/d/z"}`, n) + `]}`
	}, func(n int) int { return n * n / 4 }},
	{"required names", JSONSchema, 4000, func(n int) string {
		return `{"type":"object","required":[` + list(`"%"`, n) + `]}`
	}, func(n int) int { return n * n }},
	{"ranges in both cases", Regex, 40, func(n int) string { return "(?i)" + strings.Repeat(`[B-\x{1e900}]`, n) + `{0}x` },
		func(n int) int { return n * 40_000 }},
	{"classes of letters", Regex, 40, func(n int) string { return strings.Repeat(`\pL{0}`, n) + "x" }, func(n int) int { return n * 1000 }},
	{"a range of characters, many times", GBNF, 100, func(n int) string { return fmt.Sprintf(`root ::= [\u0080-\uffff]{%d}`, n) }, func(n int) int { return 3 * n }},
	{"a long constant, by references", JSONSchema, 60, func(n int) string {
		return referred(`{"const":"`+strings.Repeat("x", 60*n)+`"}`, n)
	}, func(n int) int { return 2 * 60 * n * n }},
	{"names that others are not, by references", JSONSchema, 30, func(n int) string {
		return referred(`{"type":"object","properties":{`+list(`"%":true`, n)+`},"additionalProperties":true}`, n)
	}, func(n int) int { return 2 * 50 * n * n }},
	{"limits of numbers, by references", JSONSchema, 5, func(n int) string {
		return referred(`{"type":["number","integer"],"minimum":-`+strings.Repeat("8", maxDigits)+`,"maximum":0.`+strings.Repeat("7", maxDigits-1)+`}`, n)
	}, func(n int) int { return 2 * 1300 * n }},
	{"values of which none has the type, by references", JSONSchema, 1000, func(n int) string {
		return referred(`{"type":"string","enum":[`+list("%", n)+`]}`, n)
	}, func(n int) int { return 8 * n * n }},
	{"types that are there many times", JSONSchema, 4000, func(n int) string {
		return referred(`{"type":[`+list(`"null"`, n)+`],"enum":[`+list("%", n)+`]}`, 20)
	}, func(n int) int { return 20 * 2 * 8 * n }},
	{"branches with many names, by references", JSONSchema, 300, func(n int) string {
		branch := `{"type":"object","properties":{` + list(`"%":true`, n)
		return referred(`{"oneOf":[`+branch+`,"x":{"const":1}},"required":["x"]},`+branch+`,"x":{"const":2}},"required":["x"]}]}`, n)
	}, func(n int) int { return n * n * n / 4 }},
	{"classes of characters, by references", JSONSchema, 30, func(n int) string {
		return referred(`{"type":"string","pattern":"[`+strings.Repeat("a", 600*n)+`]"}`, n)
	}, func(n int) int { return 9 * 600 * n * n }},
	{"beginnings of names of classes", JSONSchema, 4000, func(n int) string {
		return `{"type":"string","pattern":"` + strings.Repeat("[:a", n) + `]"}`
	}, func(n int) int { return 3 * n * n / 64 }},
	{"dots", JSONSchema, 100, func(n int) string { return `{"type":"string","pattern":"` + strings.Repeat(".", n) + `"}` }, func(n int) int { return 20 * n }},
	{"choices that begin alike", Choice, 100, func(n int) string { return `["` + list(`"`+strings.Repeat("a", n)+`%"`, n)[1:] + "]" }, func(n int) int { return n * n }},
}

// Of what a source asks for nothing is done that is not counted.
func TestWorkIsCounted(t *testing.T) {
	for _, s := range hostileSources {
		w := newWork(t.Context(), FullWork)
		err := compileSource(s.kind, s.text(s.enough), w)
		if wrong := (*Error)(nil); err != nil && !errors.As(err, &wrong) {
			t.Errorf("%s: %v", s.name, err)
		}
		if took := FullWork - w.left; took < s.atLeast(s.enough) {
			t.Errorf("%s: %d steps are counted of %d", s.name, took, s.atLeast(s.enough))
		}
	}
}

func compileSource(kind, text string, w *work) (err error) {
	switch kind {
	case JSONSchema:
		_, err = compileSchema(text, w)
	case Regex:
		_, err = compileRegex(text, w)
	case Choice:
		_, err = compileChoice(text, w)
	case GBNF:
		_, err = compileGBNF(text, w)
	}
	return err
}

// The largest of them are refused, or are no more than their limits; they are no work for the quick lane, and end soon
// after nobody waits for them.
func TestHostileSourcesAreBounded(t *testing.T) {
	gone, leave := context.WithCancelCause(t.Context())
	leave(errGone)
	for _, s := range hostileSources {
		lo, hi := 1, MaxSource // by halves, the largest that is no longer than a source may be
		for lo < hi {
			if n := (lo + hi + 1) / 2; n < 20_000 && len(s.text(n)) <= MaxSource {
				lo = n
			} else {
				hi = n - 1
			}
		}
		text := s.text(lo)
		g, err := Compile(s.kind, text)
		if wrong := (*Error)(nil); err != nil && (!errors.As(err, &wrong) || len(err.Error()) > maxPath+maxWords+10) {
			t.Errorf("%s: %.2000v", s.name, err)
		}
		if g != nil && len(g.states) > maxStates {
			t.Errorf("%s: %d states", s.name, len(g.states))
		}
		for want, w := range map[error]*work{ErrUnfinished: newWork(t.Context(), QuickWork), errGone: newWork(gone, FullWork)} {
			all := w.left
			err := compileSource(s.kind, text, w)
			if wrong := (*Error)(nil); !errors.Is(err, want) && (!errors.As(err, &wrong) || all-w.left > QuickWork) {
				t.Errorf("%s: after %d steps %.2000v, wanted %v", s.name, all-w.left, err, want)
			}
		}
	}
}

// What people write is compiled in the quick lane, many times over.
func TestUsualSourcesAreQuick(t *testing.T) {
	for _, s := range append(schemas, person) {
		if _, err := CompileWithin(t.Context(), QuickWork/4, JSONSchema, s); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
}

// A path that each value of a source has does not make many times the source of it, and an error not a whole one.
func TestLongPaths(t *testing.T) {
	const key, items = 40_000, 20_000
	v, err := parseValue(`{"` + strings.Repeat("k", key) + `":[` + strings.TrimSuffix(strings.Repeat("0,", items), ",") + `]}`)
	if err != nil {
		t.Fatal(err)
	}
	bytes := 0
	for _, item := range v.members[0].v.items {
		bytes += len(item.path)
	}
	if len(v.members[0].v.items) != items || bytes > items*(maxPath+3) {
		t.Errorf("%d values have %d bytes of paths", items, bytes)
	}
	if _, err := Compile(Regex, "("+strings.Repeat("x", 100_000)); err == nil || len(err.Error()) > maxWords+3 {
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
}

// What a schema's expressions take of memory is bounded by the work, also that which a slow source is given.
func TestExpressionsAreBounded(t *testing.T) {
	for name, text := range map[string]string{
		"a constant": referred(`{"const":"`+strings.Repeat("x", 30_000)+`"}`, 60),
		"names":      referred(`{"type":"object","properties":{`+list(`"%%%%%%%%":true`, 800)+`},"additionalProperties":true}`, 60),
		"numbers":    referred(`{"type":"number","minimum":-`+strings.Repeat("8", maxDigits)+`,"maximum":0.`+strings.Repeat("7", maxDigits-1)+`}`, 3000),
	} {
		for want, steps := range map[error]int{ErrUnfinished: QuickWork, errLarge: FullWork} {
			v, err := parseValue(text)
			if err != nil {
				t.Fatal(err)
			}
			c := newSchemaCompiler(v, newWork(t.Context(), steps))
			if _, err = c.rule(v); err == nil {
				err = c.run()
			}
			nodes := 0
			for _, e := range c.src.rules {
				if e != nil {
					nodes += e.nodes()
				}
			}
			if !errors.Is(err, want) || nodes > min(steps, maxNodes)+1000 { // any value has some
				t.Errorf("%s: expressions of %d nodes: %v, wanted %v", name, nodes, err, want)
			}
		}
	}
}

// What a pattern's dots are is found in one pass, whatever classes there are: eight times the pattern takes eight times as
// long, where a search from each character would take 64 times.
func TestDotsTakeOnePass(t *testing.T) {
	runtime.LockOSThread() // of which only what it computes counts, however busy the machine is
	defer runtime.UnlockOSThread()
	computed := func() time.Duration {
		var at unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &at); err != nil {
			t.Fatal(err)
		}
		return time.Duration(at.Nano())
	}
	least := func(pattern string) time.Duration {
		took := time.Hour
		for range 20 {
			began := computed()
			dots(pattern)
			took = min(took, computed()-began)
		}
		return took
	}
	const size = MaxSource - 100
	for _, make := range []func(size int) string{
		func(size int) string { return "[" + strings.Repeat(":a", size/2) + "]" },
		func(size int) string { return strings.Repeat("[a]", size/3) },
		func(size int) string { return "[" + strings.Repeat("[:a", size/3) + "]" },
		func(size int) string { return strings.Repeat("[:]", size/3) },
		func(size int) string { return strings.Repeat("[[:alpha:]]", size/11) },
		func(size int) string { return strings.Repeat("[[:", size/3) + ":]]" },
	} {
		if part, whole := least(make(size/8)), least(make(size)); whole > 32*part {
			t.Errorf("%.20s...: %v, an eighth of it %v", make(size), whole, part)
		}
	}
}
