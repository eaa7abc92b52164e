package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"reflect"
	"strings"
	"sync"
	"unicode/utf8"
)

// decode reads a request body; what does not fit becomes a 400 that names the field.
func decode(body []byte, into any) error {
	if !utf8.Valid(body) {
		return badRequest("", "cannot read the body: it is not valid UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(body))
	err := d.Decode(&object{into})
	if err == nil {
		if _, err = d.Token(); errors.Is(err, io.EOF) {
			return nil
		}
		return badRequest("", "cannot read the body: there is more after the JSON object")
	}
	var typed *json.UnmarshalTypeError
	var mine *Error
	switch {
	case errors.As(err, &mine):
		return mine
	case errors.As(err, &typed):
		name := typed.Field
		if name == "" {
			name = "the body"
		}
		return badRequest(typed.Field, "cannot use a %s for %s: %s is needed", typed.Value, name, jsonType(typed.Type))
	case errors.Is(err, io.EOF):
		return badRequest("", "cannot read the body as JSON: it is empty")
	}
	return badRequest("", "cannot read the body as JSON: %v", err)
}

// object is a JSON object whose members go to the struct that into points to.
type object struct{ into any }

func (o *object) UnmarshalJSON(b []byte) error { return readObject(b, o.into) }

// readObject is json.Unmarshal of a valid object into the struct that into points to, but that a key must be
// a field's name exactly: encoding/json would take Max_Tokens for max_tokens, which OpenAI and vLLM do not know.
// It is about the keys of this struct alone; the types of its fields see to theirs.
func readObject(b []byte, into any) error {
	v := reflect.ValueOf(into).Elem()
	if isNull(b) {
		return nil
	}
	if b[0] != '{' {
		return mismatch(b, v.Type())
	}
	fields := fieldsOf(v.Type())
	for key, value := range members(b) {
		index, known := fields[key]
		if !known {
			continue
		}
		if err := json.Unmarshal(value, v.FieldByIndex(index).Addr().Interface()); err != nil {
			var typed *json.UnmarshalTypeError
			if errors.As(err, &typed) {
				typed.Field = strings.TrimSuffix(key+"."+typed.Field, ".")
			}
			return err
		}
	}
	return nil
}

var fieldTables sync.Map // of structs: reflect.Type -> map[string][]int

// fieldsOf says where a struct's fields are by their JSON names, those of embedded structs included.
func fieldsOf(t reflect.Type) map[string][]int {
	if table, ok := fieldTables.Load(t); ok {
		return table.(map[string][]int)
	}
	table := map[string][]int{}
	for _, f := range reflect.VisibleFields(t) {
		if name := f.Tag.Get("json"); name != "" {
			table[name] = f.Index
		}
	}
	fieldTables.Store(t, table)
	return table
}

// members are the keys and values of a valid JSON object, in order. Values are parts of b: a body may be large,
// and a decoder of tokens would copy each.
func members(b []byte) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		for i := 1; ; {
			for strings.IndexByte(" \t\r\n,", b[i]) >= 0 {
				i++
			}
			if b[i] == '}' {
				return
			}
			end := i + valueLen(b[i:])
			var key string
			_ = json.Unmarshal(b[i:end], &key) // it is a valid string
			for i = end; strings.IndexByte(" \t\r\n:", b[i]) >= 0; {
				i++
			}
			end = i + valueLen(b[i:])
			if !yield(key, b[i:end]) {
				return
			}
			i = end
		}
	}
}

// valueLen is the length of the valid JSON value at the beginning of b, behind which its object goes on.
func valueLen(b []byte) int {
	depth, quoted := 0, false
	for i := 0; i < len(b); i++ {
		c := b[i]
		switch {
		case quoted && c == '\\':
			i++
			continue
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			depth--
		}
		// A string or a list ends with its last byte, a number or a word before the next one.
		if depth == 0 && !quoted && (strings.IndexByte(`"}]`, c) >= 0 || i+1 < len(b) && strings.IndexByte(" \t\r\n,}]", b[i+1]) >= 0) {
			return i + 1
		}
	}
	return len(b)
}

// jsonType is what a client knows a Go type as.
func jsonType(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Int, reflect.Int32:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a string"
	case reflect.Slice:
		return "a list"
	}
	return "an object"
}
