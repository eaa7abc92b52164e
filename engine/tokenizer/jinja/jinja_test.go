package jinja

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"
)

func mustParse(t testing.TB, source string) *Template {
	t.Helper()
	template, err := Parse(source)
	if err != nil {
		t.Fatalf("%s: %v", source, err)
	}
	return template
}

// TestRefused has what Jinja2 can do and this package names as unsupported, when it parses the template.
func TestRefused(t *testing.T) {
	tests := map[string]string{
		"{% include 'x' %}":                           "include",
		"{% import 'x' as y %}":                       "import",
		"{% from 'x' import y %}":                     "from",
		"{% extends 'x' %}":                           "extends",
		"{% block x %}{% endblock %}":                 "block",
		"{% call f() %}{% endcall %}":                 "call",
		"{% autoescape true %}{% endautoescape %}":    "autoescape",
		"{{ x|wordwrap }}":                            "filter wordwrap",
		"{{ x|random }}":                              "filter random",
		"{{ lipsum() }}":                              "lipsum",
		"{{ cycler(1) }}":                             "cycler",
		"{% macro f() %}{{ varargs }}{% endmacro %}":  "varargs",
		"{% macro f() %}{{ caller() }}{% endmacro %}": "caller",
		"{{ self.x() }}":                              "self",
		"{{ 9223372036854775808 }}":                   "9223372036854775808",
		`{{ "\N{DASH}" }}`:                            "string",
		`{{ "\ud800" }}`:                              `\ud800`,
		"{{ x[1, 2] }}":                               "subscript",
		"{{ " + strings.Repeat("(", 200) + "1" + strings.Repeat(")", 200) + " }}": "nesting",
		"{{ " + strings.Repeat("not ", 200) + "1 }}":                              "nesting",
		"{{ " + strings.Repeat("-", 200) + "1 }}":                                 "nesting",
		"{{ 1" + strings.Repeat("+1", 5000) + " }}":                               "operands",
		"{{ x" + strings.Repeat(".x", 200) + " }}":                                "attributes",
		"{{ x" + strings.Repeat("|upper", 200) + " }}":                            "filters",
		strings.Repeat("{% if x %}", 200):                                         "nesting",
		strings.Repeat("{% for x in y %}", 200):                                   "nesting",
		strings.Repeat("{% macro f() %}", 200):                                    "nesting",
		"{% if x %}" + strings.Repeat("{% elif x %}", 5000):                       "",
	}
	for source, want := range tests {
		_, err := Parse(source)
		if want != "" && !errors.Is(err, ErrUnsupported) || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: %v; want it to be unsupported because of %q", source, err, want)
		}
	}
}

func TestParseRejects(t *testing.T) {
	for _, source := range []string{"\xff", strings.Repeat("x", MaxSource+1)} {
		if _, err := Parse(source); err == nil {
			t.Errorf("%.20q is parsed", source)
		}
	}
	_, err := Parse("a\nb\n{{ c d }}")
	var syntax *SyntaxError
	if !errors.As(err, &syntax) || syntax.Line != 3 {
		t.Errorf("the error is %v, want one in line 3", err)
	}
}

// TestTooMuch has templates that must end, and with an error, however much they ask for.
func TestTooMuch(t *testing.T) {
	tests := []string{
		"{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
		"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
		"{% macro f() %}{% for i in range(9) %}{{ f() }}{% endfor %}{% endmacro %}{{ f() }}",
		"{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
		"{{ 'x' * 1000000000000 }}",
		"{{ [1] * 1000000000000 }}",
		"{{ 'x' * 9223372036854775807 }}",
		"{{ 'abc'|center(1000000000000) }}",
		"{{ 'abc'.ljust(1000000000000) }}",
		"{{ 'abc'.zfill(1000000000000) }}",
		"{{ 'a\nb'|indent(1000000000000) }}",
		"{{ [[1]]|tojson(indent=1000000000000) }}",
		"{% set ns = namespace(s='xxxxxxxxxx') %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
		"{% set ns = namespace(s='xxxxxxxxxx') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
		"{% set ns = namespace(l=[1]) %}{% for i in range(64) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
		"{% set ns = namespace(s='aa') %}{% for i in range(64) %}{% set ns.s = ns.s.replace('a', 'aa') %}{% endfor %}",
		"{% set ns = namespace(s='aa') %}{% for i in range(64) %}{% set ns.s = [ns.s]|join|replace('', 'aa') %}{% endfor %}",
		"{% set ns = namespace(s='aa') %}{% for i in range(64) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
		"{% set ns = namespace(l=1) %}{% for i in range(64) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
		"{% set ns = namespace(l=1) %}{% for i in range(64) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l|tojson }}",
		"{% set ns = namespace(l=1) %}{% for i in range(5000) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}",
		"{% set ns = namespace(l=1) %}{% for i in range(5000) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l|tojson }}",
		"{% set a = namespace(l=1) %}{% set b = namespace(l=1) %}{% for i in range(5000) %}{% set a.l = [a.l] %}" +
			"{% set b.l = [b.l] %}{% endfor %}{{ a.l == b.l }}",
		"{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
		"{% set s = 'x' * 1000000 %}{% for i in range(100000) %}{{ s[500000] }}{% endfor %}",
		"{% set s = 'x' * 1000000 %}{% for i in range(100000) %}{{ s|length }}{{ s.find('y') }}{% endfor %}",
		"{% set s = 'x' * 1000000 %}{% for i in range(100000) %}{{ s|upper|first }}{% endfor %}",
		"{% set l = range(100000)|list %}{% for i in range(100000) %}{{ l|sort|first }}{% endfor %}",
		"{% set l = range(100000)|list %}{% for i in range(100000) %}{{ 200000 in l }}{% endfor %}",
		"{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}",
	}
	for _, source := range tests {
		template := mustParse(t, source)
		begin := time.Now()
		text, err := template.Render(nil)
		if !errors.Is(err, ErrTooMuch) {
			t.Errorf("%s\ngives %.40q, %v; want %v", source, text, err, ErrTooMuch)
		}
		if took := time.Since(begin); took > 20*time.Second {
			t.Errorf("%s\ntakes %v", source, took)
		}
	}
}

// TestLongChat renders as much as a long context holds.
func TestLongChat(t *testing.T) {
	template := mustParse(t, "{% for m in messages %}{{ '<' + m.role + '>' + m.content|trim + '\\n' }}{% endfor %}")
	messages := make([]any, 100_000)
	for i := range messages {
		messages[i] = Dict{{"role", "user"}, {"content", strings.Repeat("word ", 100)}}
	}
	text, err := template.Render(map[string]any{"messages": messages})
	if want := 100_000 * (len("<user>\n") + 499); err != nil || len(text) != want {
		t.Errorf("got %d bytes, %v; want %d", len(text), err, want)
	}
}

func TestErrors(t *testing.T) {
	tests := map[string]string{
		"a\n{{ x.y }}": `line 2: "x" is undefined`,
		"{{ m.a.b }}":  "line 1: a dict has no element a",
		"{% if 1 %}\n{% set a = 1 + 'a' %}\n{% endif %}":    "line 2: cannot add",
		"{% for i in 5 %}{% endfor %}":                      "line 1: cannot iterate over an int",
		"{% macro f() %}\n{{ 1/0 }}\n{% endmacro %}{{f()}}": "line 2: cannot divide by zero",
		"{{ 9223372036854775807 + 1 }}":                     "64 bits",
		"{{ '%s' % 1 }}":                                    "unsupported: formatting",
		"{{ '{:>3}'.format(1) }}":                           "unsupported",
		"{{ 'a' is sameas 'a' }}":                           "unsupported",
		"{{ strftime_now('%Q') }}":                          "unsupported",
		"{{ m.update({}) }}":                                "changes it",
	}
	for source, want := range tests {
		_, err := mustParse(t, source).Render(map[string]any{"m": map[string]any{}})
		var failed *RenderError
		if !errors.As(err, &failed) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", source, err, want)
		}
	}
	_, err := mustParse(t, "{{ raise_exception('no') }}").Render(nil)
	var raised *Raised
	if !errors.As(err, &raised) || raised.Message != "no" {
		t.Errorf("the error is %v, want what the template raises", err)
	}
}

func TestVariables(t *testing.T) {
	type named string
	tests := []struct {
		value any
		want  string // "": an error
	}{
		{nil, "None"}, {true, "True"}, {int8(-3), "-3"}, {uint64(7), "7"}, {float32(0.5), "0.5"}, {2.0, "2"}, {1e300, "1e+300"},
		{json.Number("12"), "12"}, {json.Number("1.0"), "1.0"}, {json.Number("9223372036854775808"), ""}, {json.Number("x"), ""},
		{"a\xffb", "a\uFFFDb"}, {[]any{1, "a"}, "[1, 'a']"}, {map[string]any{"b": 1, "a": 2}, "{'a': 2, 'b': 1}"},
		{Dict{{"b", 1}, {"a", 2}, {"b", 3}}, "{'b': 3, 'a': 2}"}, {[]Dict{{{"a", 1}}}, "[{'a': 1}]"},
		{uint64(math.MaxUint64), ""}, {named("x"), ""}, {func() {}, ""}, {struct{}{}, ""}, {[]string{"a"}, ""},
	}
	template := mustParse(t, "{{ v }}")
	for _, c := range tests {
		got, err := template.Render(map[string]any{"v": c.value})
		if c.want == "" && err == nil || c.want != "" && (err != nil || got != c.want) {
			t.Errorf("%#v gives %q, %v; want %q", c.value, got, err, c.want)
		}
	}
	deep := any("x")
	for range 5000 {
		deep = []any{deep}
	}
	if _, err := template.Render(map[string]any{"v": deep}); err == nil {
		t.Error("a value nested 5000 deep is taken")
	}
}

func TestStrftimeNow(t *testing.T) {
	template := mustParse(t, "{{ strftime_now(f) }}")
	template.now = func() time.Time { return time.Date(2024, 7, 6, 15, 4, 5, 678900000, time.UTC) }
	for format, want := range map[string]string{
		"%d %b %Y":             "06 Jul 2024",
		"%Y-%m-%d":             "2024-07-06",
		"%-d %B %y, %A %a":     "6 July 24, Saturday Sat",
		"%H:%M:%S %I %p %f %%": "15:04:05 03 PM 678900 %",
		"%j %-j %e %-m %F %T":  "188 188  6 7 2024-07-06 15:04:05",
		"日 %d":                 "日 06",
	} {
		if got, err := template.Render(map[string]any{"f": format}); err != nil || got != want {
			t.Errorf("%q gives %q, %v; want %q", format, got, err, want)
		}
	}
}

// TestConcurrent renders one template in many goroutines; the race detector watches.
func TestConcurrent(t *testing.T) {
	template := mustParse(t, "{% set ns = namespace(n=0) %}{% macro f(x) %}<{{ x }}>{% endmacro %}{% for i in l|sort %}"+
		"{% set ns.n = ns.n + i %}{{ f(i) }}{{ loop.changed(i) }}{% endfor %}{{ ns.n }}{{ who|upper }}")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 50 {
				got, err := template.Render(map[string]any{"l": []any{3, 1, 2}, "who": fmt.Sprint("g", i)})
				if want := fmt.Sprint("<1>True<2>True<3>True6G", i); err != nil || got != want {
					t.Errorf("got %q, %v; want %q", got, err, want)
				}
			}
		})
	}
	wg.Wait()
}

func FuzzTemplate(f *testing.F) {
	g := readGoldens(f)
	for i, c := range append(g.Fixed, g.Random...) {
		if i%7 == 0 {
			f.Add(c.source)
		}
	}
	f.Fuzz(func(t *testing.T, source string) {
		defer time.AfterFunc(time.Minute, func() { panic("does not end: " + source) }).Stop()
		template, err := Parse(source)
		if err != nil {
			return
		}
		first, err := template.render(g.Vars) // which does not recover
		if errors.Is(err, ErrTooMuch) || strings.Contains(source, "strftime_now") {
			return
		}
		second, again := template.render(g.Vars)
		if first != second || (err == nil) != (again == nil) {
			t.Errorf("%s\ngives %q, %v and then %q, %v", source, first, err, second, again)
		}
	})
}
