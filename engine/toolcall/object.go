package toolcall

import "encoding/json"

// result is what a byte did to what is read.
type result uint8

const (
	more result = iota
	done        // it was the last one
	bad         // it cannot stand there, and was not taken
)

// object follows the JSON object of a call: {"name": "f", "arguments": {...}}, also with "parameters", in any order
// and beside other keys. Keys and the name must be JSON; of the values it follows only brackets and strings, since
// arguments go to the client as the model wrote them.
type object struct {
	at      place
	name    string // once it is known
	hasArgs bool   // arguments have begun
	word    []byte // of the key or the name that is read, with its quotes
	escaped bool
	what    member
	value   value
}

type place uint8

const (
	start       place = iota
	beforeKey         // or the end of an empty object
	beforeNext        // a key must follow
	inKey             //
	beforeColon       //
	beforeValue       //
	inNameValue       //
	inValue           // with brackets or quotes
	inScalar          //
	beforeComma       // or the end
)

type member uint8

const (
	other member = iota
	isName
	isArguments
)

// step reads a byte, and tells whether it is one of the arguments.
func (o *object) step(c byte) (got result, isArgs bool) {
	switch o.at {
	case inKey, inNameValue:
		return o.inWord(c), false
	case inValue:
		got := o.value.step(c)
		if got == done {
			o.at = beforeComma
			return more, o.what == isArguments
		}
		return got, got == more && o.what == isArguments
	case inScalar:
		if nameByte(c) || c == '+' {
			return more, false
		}
		o.at = beforeComma
	}
	if blank(c) {
		return more, false
	}
	switch {
	case o.at == start && c == '{':
		o.at = beforeKey
	case (o.at == beforeKey || o.at == beforeNext) && c == '"':
		o.at, o.word = inKey, append(o.word[:0], c)
	case o.at == beforeColon && c == ':':
		o.at = beforeValue
	case o.at == beforeValue:
		return o.begin(c)
	case o.at == beforeComma && c == ',':
		o.at = beforeNext
	case (o.at == beforeComma || o.at == beforeKey) && c == '}':
		return done, false
	default:
		return bad, false
	}
	return more, false
}

// begin reads the first byte of a value.
func (o *object) begin(c byte) (got result, isArgs bool) {
	switch {
	case o.what == isArguments && c != '{', o.what == isName && c != '"':
		return bad, false
	case o.what == isName:
		o.at, o.word = inNameValue, append(o.word[:0], c)
	case c == '{' || c == '[' || c == '"':
		o.at, o.value, o.hasArgs = inValue, value{}, o.hasArgs || o.what == isArguments
		o.value.step(c)
		return more, o.what == isArguments
	case nameByte(c):
		o.at = inScalar
	default:
		return bad, false
	}
	return more, false
}

// inWord reads on in a key or in the name.
func (o *object) inWord(c byte) result {
	if c < ' ' || len(o.word) >= maxName+2 {
		return bad
	}
	o.word = append(o.word, c)
	if o.escaped || c != '"' {
		o.escaped = !o.escaped && c == '\\'
		return more
	}
	var word string
	if json.Unmarshal(o.word, &word) != nil {
		o.word = o.word[:len(o.word)-1]
		return bad
	}
	if o.at == inNameValue {
		if word == "" {
			return bad
		}
		o.name, o.at = word, beforeComma
		return more
	}
	o.at, o.what = beforeColon, other
	switch {
	case word == "name" && o.name == "":
		o.what = isName
	case (word == "arguments" || word == "parameters") && !o.hasArgs:
		o.what = isArguments
	}
	return more
}

// value follows a list, an object or a string by its brackets and quotes. Nothing in JSON has a < outside of its
// strings, while markers do: a value whose end the model forgot ends there.
type value struct {
	depth           int
	quoted, escaped bool
}

func (v *value) step(c byte) result {
	switch {
	case v.escaped:
		v.escaped = false
		return more
	case c == '"':
		v.quoted = !v.quoted
	case v.quoted:
		v.escaped = c == '\\'
		return more
	case c == '{' || c == '[':
		v.depth++
	case c == '}' || c == ']':
		v.depth--
	case c == '<':
		return bad
	}
	if v.depth == 0 && !v.quoted {
		return done
	}
	return more
}
