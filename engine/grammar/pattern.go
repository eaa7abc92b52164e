package grammar

import (
	"errors"
	"strings"
)

func (c *schemaCompiler) pattern(v *value) (*expr, error) {
	if v.kind != 's' {
		return nil, errAt(v.path, "pattern must be a string")
	}
	if err := c.work.spend(len(v.text)); err != nil {
		return nil, err
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
	lastName := strings.LastIndex(pattern, ":]")
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
			n = classLen(rest, lastName-(len(pattern)-len(rest)))
		}
		n = min(n, len(rest))
		b.WriteString(rest[:n])
		rest = rest[n:]
	}
	return b.String()
}

// classLen is the bytes of the class of characters that s begins with. lastName is where the last :] of s is, so that it is
// not looked for from every character where there is none any more.
func classLen(s string, lastName int) int {
	i := 1
	if strings.HasPrefix(s[i:], "^") {
		i++
	}
	if strings.HasPrefix(s[i:], "]") { // it is one of the characters
		i++
	}
	for i < len(s) && s[i] != ']' {
		switch {
		case s[i] == '\\':
			i += 2
		case strings.HasPrefix(s[i:], "[:") && i+2 <= lastName: // of [:] the parser makes no name
			i += 2
			i += strings.Index(s[i:], ":]") + 2
		default:
			i++
		}
	}
	return i + 1
}
