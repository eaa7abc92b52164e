package jinja

import (
	"fmt"
	"strings"
	"time"
)

// directives are those of strftime, in the layouts of package time.
var directives = map[byte]string{
	'Y': "2006", 'y': "06", 'm': "01", 'B': "January", 'b': "Jan", 'd': "02", 'e': "_2", 'A': "Monday", 'a': "Mon",
	'H': "15", 'I': "03", 'M': "04", 'S': "05", 'p': "PM", 'j': "002", 'F': "2006-01-02", 'T': "15:04:05",
	'D': "01/02/06", 'R': "15:04", 'f': ".000000",
}

// strftimeNow is the local time by a format of strftime. The directives with a hyphen leave out leading zeros.
func strftimeNow(st *state, a *args) (any, error) {
	format := a.text(a.bind(1, "format")[0], "")
	if a.err != nil {
		return nil, a.err
	}
	if err := st.spend(len(format) * 10); err != nil {
		return nil, err
	}
	return strftime(st.now(), format)
}

func strftime(now time.Time, format string) (any, error) {
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' {
			b.WriteByte(format[i])
			continue
		}
		i++
		plain := i < len(format) && format[i] == '-'
		if plain {
			i++
		}
		if i < len(format) && format[i] == '%' && !plain {
			b.WriteByte('%')
			continue
		}
		if i >= len(format) || directives[format[i]] == "" {
			return nil, fmt.Errorf("%w: the format %q", ErrUnsupported, format)
		}
		s := now.Format(directives[format[i]])
		switch {
		case format[i] == 'f':
			s = s[1:]
		case plain:
			if s = strings.TrimLeft(s, "0 "); s == "" {
				s = "0"
			}
		}
		b.WriteString(s)
	}
	return b.String(), nil
}
