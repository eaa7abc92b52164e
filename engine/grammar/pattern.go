package grammar

import (
	"errors"
	"strings"
)

func (c *schemaCompiler) pattern(v *value) (*expr, error) {
	if v.kind != 's' {
		return nil, errAt(v.path, "pattern must be a string")
	}
	re, err := parseRegex(dots(v.text), c.work)
	var e *expr
	if err == nil {
		e, err = (&regexCompiler{escaped}).search(re, 0)
	}
	var wrong *Error
	if errors.As(err, &wrong) {
		return nil, &Error{v.path, wrong.Msg}
	}
	if err != nil {
		return nil, err
	}
	return seq(lit(`"`), e, lit(`"`)), nil
}

// dots writes a pattern's dots as what they are in ECMA-262, whose expressions JSON Schema means: no dot takes an end of a
// line, of which others know \n alone. It is done before the pattern is parsed, for the parser makes one class of
// alternatives that are characters.
func dots(pattern string) string {
	const dot = `[^\n\r\x{2028}\x{2029}]`
	if strings.Contains(pattern, "(?s") { // which ECMA-262 does not know, and which says what a dot takes
		return pattern
	}
	var b strings.Builder
	for rest := pattern; rest != ""; {
		n := 1
		switch {
		case rest[0] == '.':
			b.WriteString(dot)
			rest = rest[1:]
			continue
		case strings.HasPrefix(rest, `\Q`):
			if n = strings.Index(rest, `\E`); n < 0 {
				n = len(rest)
			}
		case rest[0] == '\\':
			n = 2
		case rest[0] == '[':
			n = classLen(rest)
		}
		n = min(n, len(rest))
		b.WriteString(rest[:n])
		rest = rest[n:]
	}
	return b.String()
}

// classLen is the bytes of the class of characters that s begins with.
func classLen(s string) int {
	i := 1
	if strings.HasPrefix(s[i:], "^") {
		i++
	}
	if strings.HasPrefix(s[i:], "]") { // it is one of the characters
		i++
	}
	for i < len(s) && s[i] != ']' {
		switch end := strings.Index(s[i:], ":]"); {
		case s[i] == '\\':
			i += 2
		case strings.HasPrefix(s[i:], "[:") && end > 0:
			i += end + 2
		default:
			i++
		}
	}
	return i + 1
}
