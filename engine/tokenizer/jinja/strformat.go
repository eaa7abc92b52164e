package jinja

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// formatMethod is str.format with fields that only name an argument: {}, {0} and {name}.
func formatMethod(st *state, s string, a *args) (any, error) {
	var b strings.Builder
	auto, manual := 0, false
	for s != "" {
		i := strings.IndexAny(s, "{}")
		if i < 0 {
			b.WriteString(s)
			break
		}
		b.WriteString(s[:i])
		s = s[i:]
		if strings.HasPrefix(s, "{{") || strings.HasPrefix(s, "}}") {
			b.WriteByte(s[0])
			s = s[2:]
			continue
		}
		end := strings.IndexByte(s, '}')
		if s[0] == '}' || end < 0 {
			return nil, errors.New("a brace has no counterpart")
		}
		field := s[1:end]
		s = s[end+1:]
		if strings.ContainsAny(field, "{!:.[") {
			return nil, fmt.Errorf("%w: the field {%s}", ErrUnsupported, field)
		}
		v, err := formatField(a, field, &auto, &manual)
		if err != nil {
			return nil, err
		}
		text, err := toString(st, v)
		if err != nil {
			return nil, err
		}
		b.WriteString(text)
		if err := st.spend(len(text)); err != nil {
			return nil, err
		}
	}
	return b.String(), st.spend(len(s))
}

// formatField finds a field's argument. Fields are numbered either all or none.
func formatField(a *args, field string, auto *int, manual *bool) (any, error) {
	at := *auto
	if field != "" {
		n, err := strconv.ParseUint(field, 10, 31)
		if err != nil {
			if i := indexOf(a.names, field); i >= 0 {
				return a.named[i], nil
			}
			return nil, fmt.Errorf("there is no argument %q", field)
		}
		at, *manual = int(n), true
	}
	if field == "" {
		*auto++
	}
	if *manual && *auto > 0 {
		return nil, errors.New("some fields are numbered and some are not")
	}
	if at >= len(a.pos) {
		return nil, fmt.Errorf("there is no argument %d", at)
	}
	return a.pos[at], nil
}
