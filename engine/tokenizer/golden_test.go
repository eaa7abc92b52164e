package tokenizer

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// readGz decodes testdata/name, which is gzipped JSON.
func readGz(t testing.TB, name string, into any) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	zr, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.NewDecoder(zr).Decode(into); err != nil {
		t.Fatal(err)
	}
}

// forms are the folders of testdata that hold a tokenizer and its reference.
func forms(t testing.TB) []string {
	t.Helper()
	paths, err := filepath.Glob("testdata/*/golden.json.gz")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	names := make([]string, len(paths))
	for i, p := range paths {
		names[i] = filepath.Base(filepath.Dir(p))
	}
	return names
}

func load(t testing.TB, form string) *Tokenizer {
	t.Helper()
	tok, err := Load(filepath.Join("testdata", form))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func corpus(t testing.TB) []string {
	t.Helper()
	var encoded []string
	readGz(t, "corpus.json.gz", &encoded)
	texts := make([]string, len(encoded))
	for i, e := range encoded {
		raw, err := base64.StdEncoding.DecodeString(e)
		if err != nil {
			t.Fatal(err)
		}
		texts[i] = string(raw)
	}
	return texts
}

// encodeGolden is [index of the text, ids, ids with special tokens or null if the same, decoded without special tokens
// or null if it is the text, decoded with them or null if the same].
type encodeGolden struct {
	index       int
	plain, full []int32
	skip, keep  *string
}

func (g *encodeGolden) UnmarshalJSON(data []byte) error {
	return json.Unmarshal(data, &[]any{&g.index, &g.plain, &g.full, &g.skip, &g.keep})
}

// decodeGolden is [ids, decoded without special tokens, with them].
type decodeGolden struct {
	ids        []int32
	skip, keep string
}

func (g *decodeGolden) UnmarshalJSON(data []byte) error {
	return json.Unmarshal(data, &[]any{&g.ids, &g.skip, &g.keep})
}

type goldens struct {
	Encode []encodeGolden `json:"encode"`
	Decode []decodeGolden `json:"decode"`
}

// checkDecode compares Decode and a Stream with the reference.
func checkDecode(t *testing.T, tok *Tokenizer, ids []int32, skip bool, want string) {
	t.Helper()
	if got := tok.Decode(ids, skip); got != want {
		t.Errorf("Decode(%v, %v) = %q, want %q", ids, skip, got, want)
	}
	if got := streamed(t, tok, ids, skip); got != want {
		t.Errorf("streaming %v (skip %v) gives %q, want %q", ids, skip, got, want)
	}
}

// streamed joins a stream's parts, each of which must be whole characters.
func streamed(t interface{ Errorf(string, ...any) }, tok *Tokenizer, ids []int32, skip bool) string {
	var b strings.Builder
	s := tok.NewStream(skip)
	add := func(part string) {
		if !utf8.ValidString(part) {
			t.Errorf("the stream of %v emits half a character: %q", ids, part)
		}
		b.WriteString(part)
	}
	for _, id := range ids {
		add(s.Push(id))
	}
	add(s.Flush())
	return b.String()
}

func TestGoldens(t *testing.T) {
	texts := corpus(t)
	for _, form := range forms(t) {
		t.Run(form, func(t *testing.T) {
			tok := load(t, form)
			var g goldens
			readGz(t, form+"/golden.json.gz", &g)
			if len(g.Encode) < 100 || len(g.Decode) < 100 {
				t.Fatalf("only %d and %d cases", len(g.Encode), len(g.Decode))
			}
			for _, c := range g.Encode {
				text := texts[c.index]
				full := c.full
				if full == nil {
					full = c.plain
				}
				if got := tok.Encode(text, false); !slices.Equal(got, c.plain) {
					t.Errorf("Encode(%q) = %v, want %v", text, names(tok, got), names(tok, c.plain))
				}
				if got := tok.Encode(text, true); !slices.Equal(got, full) {
					t.Errorf("Encode(%q, special) = %v, want %v", text, names(tok, got), names(tok, full))
				}
				skip := strings.ToValidUTF8(validUTF8(text), "")
				if c.skip != nil {
					skip = *c.skip
				}
				keep := skip
				if c.keep != nil {
					keep = *c.keep
				}
				checkDecode(t, tok, full, true, skip)
				checkDecode(t, tok, full, false, keep)
			}
			for _, c := range g.Decode {
				checkDecode(t, tok, c.ids, true, c.skip)
				checkDecode(t, tok, c.ids, false, c.keep)
			}
		})
	}
}

func names(tok *Tokenizer, ids []int32) []string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = tok.TokenString(id)
	}
	return out
}
