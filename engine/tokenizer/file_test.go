package tokenizer

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
)

// tiny is a tokenizer.json with a few pieces and further settings in front.
func tiny(settings string) string {
	return `{` + settings + `"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}}`
}

// bpeFile is a tokenizer.json with a vocabulary and merges.
func bpeFile(vocab, merges string) string {
	return fmt.Sprintf(`{"model":{"type":"BPE","vocab":%s,"merges":%s}}`, vocab, merges)
}

// brokenFiles must be refused, and the error must hold want.
var brokenFiles = []struct {
	name, json, want string
	unsupported      bool
}{
	{"empty", ``, "JSON", false},
	{"no model", `{}`, "model: missing", false},
	{"wrong type", `{"model":5}`, "model", false},
	{"wrong vocab", bpeFile(`[1]`, `[]`), "vocab", false},
	{"negative id", bpeFile(`{"a":-1}`, `[]`), `"a" has id -1`, false},
	{"huge id", bpeFile(`{"a":2000000000}`, `[]`), `"a" has id 2000000000`, false},
	{"id beyond 64 bits", bpeFile(`{"a":99999999999999999999}`, `[]`), "vocab", false},
	{"fractional id", bpeFile(`{"a":0.5}`, `[]`), "vocab", false},
	{"id used twice", bpeFile(`{"a":0,"b":0}`, `[]`), "the same id 0", false},
	{"merge of unknown", bpeFile(`{"a":0}`, `["a x"]`), `merge 0: "x" is not in the vocabulary`, false},
	{"merge into unknown", bpeFile(`{"a":0,"b":1}`, `["a b"]`), `merge 0: "ab" is not in the vocabulary`, false},
	{"merge of three", bpeFile(`{"a":0}`, `["a a a"]`), "entry 0 is not a pair", false},
	{"merge of one", bpeFile(`{"a":0}`, `[["a"]]`), "entry 0 is not a pair", false},
	{"dropout", `{"model":{"type":"BPE","dropout":0.1,"vocab":{},"merges":[]}}`, "dropout", true},
	{"unknown unk", `{"model":{"type":"BPE","unk_token":"?","vocab":{},"merges":[]}}`, `unk_token "?"`, false},
	{"word piece", `{"model":{"type":"WordPiece","vocab":{}}}`, `model "WordPiece"`, true},
	{"no pieces", `{"model":{"type":"Unigram","unk_id":0,"vocab":[]}}`, "empty", false},
	{"no unk", `{"model":{"type":"Unigram","vocab":[["a",0]]}}`, "unk_id", true},
	{"unk out of range", `{"model":{"type":"Unigram","unk_id":7,"vocab":[["a",0]]}}`, "unk_id 7", false},
	{"negative unk", `{"model":{"type":"Unigram","unk_id":-1,"vocab":[["a",0]]}}`, "unk_id -1", false},
	{"half a piece", `{"model":{"type":"Unigram","unk_id":0,"vocab":[["a"]]}}`, "vocab", false},
	{"added id out of range", tiny(`"added_tokens":[{"id":90000,"content":"x"}],`), `"x" has id 90000`, false},
	{"added id negative", tiny(`"added_tokens":[{"id":-1,"content":"x"}],`), `"x" has id -1`, false},
	{"added id taken", tiny(`"added_tokens":[{"id":1,"content":"x"}],`), "the same id 1", false},
	{"added id wrong", tiny(`"added_tokens":[{"id":5,"content":"a"}],`), `"a" has id 5 here and 0`, false},
	{"pattern", tiny(`"pre_tokenizer":{"type":"Split","pattern":{"Regex":"x+"},"behavior":"Isolated"},`), `pattern "x+"`, true},
	{"no pattern", tiny(`"pre_tokenizer":{"type":"Split","behavior":"Isolated"},`), "missing pattern", false},
	{"behavior", tiny(`"pre_tokenizer":{"type":"Split","pattern":{"String":"x"},"behavior":"Odd"},`), `"Odd"`, true},
	{"replace pattern", tiny(`"normalizer":{"type":"Replace","pattern":{"Regex":"[a]"},"content":""},`),
		`pattern "[a]"`, true},
	{"normalizer", tiny(`"normalizer":{"type":"Precompiled"},`), `normalizer "Precompiled"`, true},
	{"pre_tokenizer", tiny(`"pre_tokenizer":{"type":"BertPreTokenizer"},`), `"BertPreTokenizer"`, true},
	{"nested", tiny(`"normalizer":` + strings.Repeat(`{"type":"Sequence","normalizers":[`, 20) + strings.Repeat(`]}`, 20) + `,`),
		"nested", true},
	{"metaspace", tiny(`"pre_tokenizer":{"type":"Metaspace","replacement":"xx"},`), `"xx" of Metaspace`, false},
	{"metaspace scheme", tiny(`"pre_tokenizer":{"type":"Metaspace","replacement":"_","prepend_scheme":"odd"},`),
		`"odd"`, true},
	{"decoder", tiny(`"decoder":{"type":"CTC"},`), `decoder "CTC"`, true},
	{"strip at the end", tiny(`"decoder":{"type":"Strip","content":"a","start":0,"stop":1},`), "Strip", true},
	{"bytes after fuse", tiny(`"decoder":{"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"ByteFallback"}]},`),
		"joined", true},
	{"post_processor", tiny(`"post_processor":{"type":"Odd"},`), `post_processor "Odd"`, true},
	{"post id unknown", tiny(`"post_processor":{"type":"RobertaProcessing","sep":["a",0],"cls":["x",9]},`),
		"id 9", false},
	{"post id huge", tiny(`"post_processor":{"type":"RobertaProcessing","sep":["a",0],"cls":["x",5000000000]},`),
		"5000000000", false},
	{"post without text", tiny(`"post_processor":{"type":"TemplateProcessing","single":[]},`),
		"appears 0 times", false},
	{"post undefined", tiny(`"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"x"}}]},`),
		"not defined", false},
}

func TestParseRefuses(t *testing.T) {
	for _, c := range brokenFiles {
		t.Run(c.name, func(t *testing.T) {
			_, err := parse([]byte(c.json))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("the error is %v, want one about %q", err, c.want)
			}
			if errors.Is(err, ErrUnsupported) != c.unsupported {
				t.Errorf("%v is unsupported: %v, want %v", err, !c.unsupported, c.unsupported)
			}
		})
	}
}

func TestParseTakesHoles(t *testing.T) {
	tok, err := parse([]byte(bpeFile(`{"a":0,"b":1000}`, `[]`)))
	if err != nil {
		t.Fatal(err)
	}
	if tok.VocabSize() != 1001 {
		t.Errorf("the vocabulary has %d ids, want 1001", tok.VocabSize())
	}
	for _, id := range []int32{-1, 1, 999, 1001, 1 << 30} {
		if s, b := tok.TokenString(id), tok.TokenBytes(id); s != "" || b != nil || tok.IsSpecial(id) {
			t.Errorf("the unknown id %d has the piece %q", id, s)
		}
	}
	if got := tok.Decode([]int32{0, 5, 1000, -7}, false); got != "a b" {
		t.Errorf("Decode leaves %q of the known ids, want %q", got, "a b")
	}
}

func TestLoadFS(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	const config = `{"bos_token":{"content":"a"},"eos_token":"b","pad_token":null,"extra_special_tokens":["x"],
		"chat_template":%s}`
	with := func(template string) fstest.MapFS {
		return fstest.MapFS{"tokenizer.json": file(tiny(``)), "tokenizer_config.json": file(fmt.Sprintf(config, template))}
	}
	tests := []struct {
		name        string
		fsys        fstest.MapFS
		want        string // of the template, or of the error
		failed      bool
		unsupported bool
	}{
		{"text", with(`"{{ bos_token }}-{{ eos_token }}-{{ pad_token }}-{{ tools is none }}"`), "a-b--True", false, false},
		{"list", with(`[{"name":"tool_use","template":"t"},{"name":"default","template":"d"}]`), "d", false, false},
		{"broken", with(`"{% if %}"`), "cannot use the chat template", true, false},
		{"unsupported", with(`"{% include 'x' %}"`), "include", true, true},
		{"not a template", with(`5`), "chat_template", true, false},
		{"no file", fstest.MapFS{}, "tokenizer.json", true, false},
		{"broken config", fstest.MapFS{"tokenizer.json": file(tiny(``)), "tokenizer_config.json": file(`[`)},
			"tokenizer_config.json", true, false},
	}
	for _, c := range tests {
		t.Run(c.name, func(t *testing.T) {
			tok, err := LoadFS(c.fsys)
			if c.failed {
				if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrUnsupported) != c.unsupported {
					t.Errorf("the error is %v, want one about %q (unsupported: %v)", err, c.want, c.unsupported)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, err := tok.ApplyChat(nil, false, nil); err != nil || got != c.want {
				t.Errorf("the template gives %q, %v; want %q", got, err, c.want)
			}
		})
	}
	fsys := with(`"config"`)
	fsys["chat_template.jinja"] = file("file")
	tok, err := LoadFS(fsys)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := tok.ApplyChat(nil, false, nil); err != nil || got != "file" {
		t.Errorf("got %q, %v; want the template of chat_template.jinja", got, err)
	}
	if bos, ok := tok.BOS(); bos != 0 || !ok {
		t.Errorf("the BOS is %d, %v", bos, ok)
	}
	if eos, ok := tok.EOS(); eos != 1 || !ok {
		t.Errorf("the EOS is %d, %v", eos, ok)
	}
}
