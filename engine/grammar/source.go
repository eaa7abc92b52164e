package grammar

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
)

// Kinds of sources.
const (
	JSONSchema = "json_schema" // the source is a JSON schema
	JSONObject = "json_object" // any JSON object; the source is empty
	Regex      = "regex"       // a regular expression that the whole text matches
	Choice     = "choice"      // a JSON list of texts, one of which it is
	GBNF       = "grammar"     // llama.cpp's grammars
)

// maxChoices is the most texts of a choice.
const maxChoices = 10_000

// Compile makes a grammar of a source, or says in an *Error why it cannot be used.
func Compile(kind, text string) (*Grammar, error) {
	return CompileWithin(context.Background(), FullWork, kind, text)
}

// CompileWithin is Compile that ends with the context, whose cause is the error then, and with ErrUnfinished after so
// many steps, if those are fewer than FullWork.
func CompileWithin(ctx context.Context, steps int, kind, text string) (*Grammar, error) {
	if len(text) > MaxSource {
		return nil, errAt("", "it has %d bytes, the limit is %d", len(text), MaxSource)
	}
	var g *Grammar
	var err error
	w := newWork(ctx, steps)
	switch kind {
	case JSONSchema:
		g, err = compileSchema(text, w)
	case JSONObject:
		g, err = compileAnyObject(w)
	case Regex:
		g, err = compileRegex(text, w)
	case Choice:
		g, err = compileChoice(text, w)
	case GBNF:
		g, err = compileGBNF(text, w)
	default:
		return nil, fmt.Errorf("cannot compile a %q: there is no such kind of source", kind)
	}
	if err != nil {
		return nil, err
	}
	if !g.readsBytes() {
		return nil, errAt("", "only the empty text satisfies it")
	}
	return g, nil
}

func compileChoice(text string, w *work) (*Grammar, error) {
	var list []string
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, errAt("", "a choice is a list of texts")
	}
	if len(list) == 0 || len(list) > maxChoices {
		return nil, errAt("", "a choice has 1 to %d texts, not %d", maxChoices, len(list))
	}
	e := none()
	for _, s := range list {
		e.subs = append(e.subs, lit(strings.ToValidUTF8(s, "\uFFFD")))
	}
	return compile(&source{rules: []*expr{e}, names: []string{""}}, w)
}

// readsBytes tells whether a text of the grammar has bytes.
func (g *Grammar) readsBytes() bool {
	m := newMachine(g)
	m.work = maxMaskWork
	return len(m.from(item{g.rules[0].start, m.bottom(0)}).items) > 0
}
