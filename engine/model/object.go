package model

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
)

// object reads a JSON object key by key. Struct tags are not used, because encoding/json matches them without
// regard to case, and because the difference between absent, null and a value matters here. The first error
// sticks and every later read returns its default, so that a reader checks once, at the end.
type object struct {
	name string // of the file, for messages; nested objects have "name: key."
	m    map[string]json.RawMessage
	err  error
}

func parseObject(name string, data []byte) (*object, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("cannot parse %s: %w", name, err)
	}
	if m == nil {
		return nil, fmt.Errorf("cannot parse %s: it is null, not an object", name)
	}
	return &object{name: name, m: m}, nil
}

func (o *object) fail(key, format string, args ...any) {
	if o.err == nil {
		o.err = fmt.Errorf("cannot use %s: %s %s", o.name, key, fmt.Sprintf(format, args...))
	}
}

func (o *object) refuse(key, format string, args ...any) {
	if o.err == nil {
		o.err = unsupported(key, format, args...)
	}
}

// has reports whether the key is there and not null.
func (o *object) has(key string) bool {
	raw, ok := o.m[key]
	return ok && !isNull(raw)
}

func (o *object) isNull(key string) bool {
	raw, ok := o.m[key]
	return ok && isNull(raw)
}

func isNull(raw json.RawMessage) bool { return bytes.Equal(bytes.TrimSpace(raw), []byte("null")) }

// short cuts a value for a message.
func short(raw []byte) string {
	if len(raw) > 60 {
		return string(raw[:57]) + "..."
	}
	return string(raw)
}

// integer reads a JSON number with an integral value; 4096.0 and 1e6 count, as Python's users write them.
func integer(raw json.RawMessage) (int64, bool) {
	s := string(bytes.TrimSpace(raw))
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return n, true
	}
	f, ok := number(raw)
	if !ok || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
		return 0, false
	}
	return int64(f), true
}

func number(raw json.RawMessage) (float64, bool) {
	var f *float64
	if err := json.Unmarshal(raw, &f); err != nil || f == nil {
		return 0, false
	}
	return *f, true
}

// intIn reads a required integer in [lo, hi].
func (o *object) intIn(key string, lo, hi int64) int {
	if !o.has(key) {
		o.fail(key, "is missing")
		return int(lo)
	}
	return o.intOr(key, lo, lo, hi)
}

// intOrIn is intIn where def is 0, else intOr.
func (o *object) intOrIn(key string, def, lo, hi int64) int {
	if def == 0 {
		return o.intIn(key, lo, hi)
	}
	return o.intOr(key, def, lo, hi)
}

// intOr reads an integer in [lo, hi]; absent and null give def.
func (o *object) intOr(key string, def, lo, hi int64) int {
	if !o.has(key) {
		return int(def)
	}
	n, ok := integer(o.m[key])
	switch {
	case !ok:
		o.fail(key, "must be an integer, not %s", short(o.m[key]))
	case n < lo || n > hi:
		o.fail(key, "must be between %d and %d, not %d", lo, hi, n)
	default:
		return int(n)
	}
	return int(lo)
}

// floatOr reads a finite number in [lo, hi]; absent and null give def.
func (o *object) floatOr(key string, def, lo, hi float64) float64 {
	if !o.has(key) {
		return def
	}
	f, ok := number(o.m[key])
	switch {
	case !ok:
		o.fail(key, "must be a number, not %s", short(o.m[key]))
	case f < lo || f > hi:
		o.fail(key, "must be between %g and %g, not %g", lo, hi, f)
	default:
		return f
	}
	return def
}

func (o *object) boolOr(key string, def bool) bool {
	if !o.has(key) {
		return def
	}
	var b bool
	if err := json.Unmarshal(o.m[key], &b); err != nil {
		o.fail(key, "must be true or false, not %s", short(o.m[key]))
		return def
	}
	return b
}

func (o *object) stringOr(key, def string) string {
	if !o.has(key) {
		return def
	}
	var s string
	if err := json.Unmarshal(o.m[key], &s); err != nil {
		o.fail(key, "must be a string, not %s", short(o.m[key]))
		return def
	}
	return s
}

// strings reads a list of strings; absent and null give nil.
func (o *object) strings(key string) []string {
	if !o.has(key) {
		return nil
	}
	var s []string
	if err := json.Unmarshal(o.m[key], &s); err != nil {
		o.fail(key, "must be a list of strings, not %s", short(o.m[key]))
		return nil
	}
	return s
}

// object reads a nested object; absent, null and {} give nil.
func (o *object) object(key string) *object {
	if !o.has(key) {
		return nil
	}
	var m map[string]json.RawMessage
	if err := json.Unmarshal(o.m[key], &m); err != nil {
		o.fail(key, "must be an object, not %s", short(o.m[key]))
		return nil
	}
	if len(m) == 0 {
		return nil
	}
	return &object{name: o.name + ": " + key, m: m}
}

// tokens reads one token id or a list of them, each in [0, vocab). An absent key gives those of def that the
// vocabulary has, null gives none.
func (o *object) tokens(key string, def []int32, vocab int) []int32 {
	raw, ok := o.m[key]
	if !ok {
		return slices.DeleteFunc(slices.Clone(def), func(id int32) bool { return id < 0 || int(id) >= vocab })
	}
	if isNull(raw) {
		return nil
	}
	list := []json.RawMessage{raw}
	if bytes.HasPrefix(bytes.TrimSpace(raw), []byte("[")) {
		list = nil
		if err := json.Unmarshal(raw, &list); err != nil {
			o.fail(key, "must be a token id or a list of them, not %s", short(raw))
			return nil
		}
	}
	var ids []int32
	for _, raw := range list {
		n, ok := integer(raw)
		if !ok || n < 0 || n >= int64(vocab) {
			o.fail(key, "must hold token ids below the vocabulary size %d, not %s", vocab, short(raw))
			return nil
		}
		ids = append(ids, int32(n))
	}
	return ids
}
