package config

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// maxFile bounds a --config file, in bytes.
const maxFile = 1 << 20

// Field is one setting, bound to a Config.
type Field struct {
	Name, Usage string
	Secret      bool
	ptr         any
}

// Fields lists the settings of c in the order of the struct.
func Fields(c *Config) []Field {
	v := reflect.ValueOf(c).Elem()
	out := make([]Field, 0, v.NumField())
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag
		out = append(out, Field{tag.Get("name"), tag.Get("usage"), tag.Get("secret") != "", v.Field(i).Addr().Interface()})
	}
	return out
}

// Env is the variable that sets the field.
func (f Field) Env() string {
	return "INFINITE_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
}

// String is the value as a flag would write it.
func (f Field) String() string {
	switch p := f.ptr.(type) {
	case *[]string:
		return strings.Join(*p, ",")
	case *Size:
		return p.String()
	case *time.Duration:
		return p.String()
	}
	return fmt.Sprint(reflect.ValueOf(f.ptr).Elem().Interface())
}

// IsBool says whether the field is on or off, so that a flag needs no value to turn it on.
func (f Field) IsBool() bool {
	_, is := f.ptr.(*bool)
	return is
}

// Set parses text into the field.
func (f Field) Set(text string) error {
	var err error
	switch p := f.ptr.(type) {
	case *string:
		*p = text
	case *[]string:
		*p = nil
		for _, s := range strings.Split(text, ",") {
			if s = strings.TrimSpace(s); s != "" {
				*p = append(*p, s)
			}
		}
	case *bool:
		var on bool
		if on, err = strconv.ParseBool(text); err != nil {
			return fmt.Errorf("%q is neither true nor false", text)
		}
		*p = on
	case *int:
		var n int
		if n, err = strconv.Atoi(text); err != nil {
			return fmt.Errorf("%q is not a whole number", text)
		}
		*p = n
	case *uint64:
		var n uint64
		if n, err = strconv.ParseUint(text, 10, 64); err != nil {
			return fmt.Errorf("%q is not a whole number from 0", text)
		}
		*p = n
	case *float64:
		var x float64
		if x, err = strconv.ParseFloat(text, 64); err != nil {
			return fmt.Errorf("%q is not a number such as 0.9", text)
		}
		*p = x
	case *Size:
		*p, err = ParseSize(text)
	case *time.Duration:
		var d time.Duration
		if d, err = time.ParseDuration(text); err != nil {
			return fmt.Errorf("%q is not a duration such as 500ms or 10s", text)
		}
		*p = d
	default:
		return fmt.Errorf("a field of type %T cannot be set", p)
	}
	return err
}

// ParseSize reads a number of bytes with an optional unit: B, K, KB, KiB, up to T; powers of 1000 for
// KB, of 1024 for K and KiB.
func ParseSize(text string) (Size, error) {
	t := strings.TrimSpace(text)
	i := strings.IndexFunc(t, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if i < 0 {
		i = len(t)
	}
	n, err := strconv.ParseFloat(t[:i], 64)
	unit := strings.ToLower(strings.TrimSpace(t[i:]))
	base := 1024.0
	if strings.HasSuffix(unit, "b") && !strings.HasSuffix(unit, "ib") && unit != "b" {
		base = 1000
	}
	power := strings.Index("bkmgt", strings.TrimSuffix(strings.TrimSuffix(unit, "b"), "i"))
	if unit == "" || unit == "b" {
		power = 0
	}
	if err != nil || power < 0 || n < 0 || len(unit) > 3 {
		return 0, fmt.Errorf("%q is not a size such as 512MiB or 2GB", text)
	}
	for range power {
		n *= base
	}
	if n > 1<<62 {
		return 0, fmt.Errorf("%q is too large", text)
	}
	return Size(n), nil
}

func (s Size) String() string {
	for i, unit := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if shift := 40 - 10*i; s != 0 && s%(1<<shift) == 0 {
			return strconv.FormatUint(uint64(s)>>shift, 10) + unit
		}
	}
	return strconv.FormatUint(uint64(s), 10)
}

// Load makes a Config of its sources: flags (name -> text, only those given), the environment, and the
// file at path ("" for none). Every error says where the value came from.
func Load(path string, getenv func(string) (string, bool), flags map[string]string) (Config, error) {
	c := Default()
	source := map[string]string{}
	var errs []error
	if path != "" {
		if err := c.loadFile(path, source); err != nil {
			return c, err
		}
	}
	for _, f := range Fields(&c) {
		if text, ok := getenv(f.Env()); ok {
			source[f.Name] = "variable " + f.Env()
			if err := f.Set(text); err != nil {
				if f.Name == "port" && strings.Contains(text, "://") {
					err = fmt.Errorf("%w; Kubernetes sets it so for a service named infinite", err)
				}
				errs = append(errs, fmt.Errorf("cannot use variable %s: %w", f.Env(), err))
			}
		}
		if text, ok := flags[f.Name]; ok {
			source[f.Name] = "flag --" + f.Name
			if err := f.Set(text); err != nil {
				errs = append(errs, fmt.Errorf("cannot use flag --%s: %w", f.Name, err))
			}
		}
	}
	if len(errs) > 0 {
		return c, errors.Join(errs...)
	}
	return c, explain(errors.Join(c.Validate(), c.checkKey(source["api-key"] != "")), source)
}

// explain puts the source of each bad value in front of its error.
func explain(err error, source map[string]string) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range joined.Unwrap() {
			out = append(out, explain(e, source))
		}
		return errors.Join(out...)
	}
	var f *FieldError
	if !errors.As(err, &f) {
		return err
	}
	switch from := source[f.Field]; {
	case from == "":
		return fmt.Errorf("cannot use the default of %s: %w", f.Field, f.Err)
	case strings.HasPrefix(from, "flag ") || strings.HasPrefix(from, "variable "):
		return fmt.Errorf("cannot use %s: %w", from, f.Err)
	default: // a place in a file
		return fmt.Errorf("%s: %w", from, f)
	}
}

func (c *Config) loadFile(path string, source map[string]string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("cannot read the configuration: %w", err)
	}
	if info.Size() > maxFile {
		return fmt.Errorf("cannot read the configuration %s: it has more than %d bytes", path, maxFile)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("cannot read the configuration: %w", err)
	}
	return c.parseFile(path, text, source)
}

func (c *Config) parseFile(path string, text []byte, source map[string]string) error {
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		return fmt.Errorf("cannot read the configuration %s: %w", path, err)
	}
	fields := map[string]Field{}
	for _, f := range Fields(c) {
		fields[f.Name] = f
	}
	var errs []error
	for _, doc := range file.Docs {
		entries, err := mapping(doc.Body)
		if err != nil {
			return fmt.Errorf("cannot read the configuration %s: %w", path, err)
		}
		for _, e := range entries {
			pos := e.Key.GetToken().Position
			at := fmt.Sprintf("%s:%d:%d", path, pos.Line, pos.Column)
			name := strings.ReplaceAll(e.Key.GetToken().Value, "_", "-")
			f, ok := fields[name]
			if !ok {
				errs = append(errs, fmt.Errorf("%s: cannot use %s: there is no such setting", at, name))
				continue
			}
			value, err := scalar(e.Value)
			if err == nil {
				err = f.Set(value)
			}
			if first, twice := source[name]; twice { // a_b beside a-b, or in two documents
				err = fmt.Errorf("it is set already at %s", first)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: cannot use %s: %w", at, name, err))
			}
			source[name] = at
		}
	}
	return errors.Join(errs...)
}

func mapping(n ast.Node) ([]*ast.MappingValueNode, error) {
	switch m := n.(type) {
	case nil:
		return nil, nil
	case *ast.MappingNode:
		return m.Values, nil
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{m}, nil
	case *ast.NullNode, *ast.CommentGroupNode:
		return nil, nil
	}
	return nil, errors.New("it is not a list of settings `name: value`")
}

func scalar(n ast.Node) (string, error) {
	switch v := n.(type) {
	case *ast.SequenceNode:
		var parts []string
		for _, e := range v.Values {
			s, err := scalar(e)
			if err != nil {
				return "", err
			}
			parts = append(parts, s)
		}
		return strings.Join(parts, ","), nil
	case *ast.MappingNode, *ast.MappingValueNode, *ast.AnchorNode, *ast.AliasNode:
		return "", errors.New("a single value or a list is needed")
	case *ast.LiteralNode:
		return v.Value.Value, nil
	case *ast.NullNode:
		return "", nil
	}
	return n.GetToken().Value, nil
}
