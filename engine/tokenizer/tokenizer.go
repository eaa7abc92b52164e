// Package tokenizer turns text into token ids and back, exactly as the model's own tokenizer.json says, and renders
// the model's chat template.
//
// Byte-level BPE (GPT-2, Llama-3, Qwen), SentencePiece-style BPE with byte fallback (Llama-2, Mistral) and Unigram are
// supported. A file that asks for anything else is refused when it is loaded, by the name of what is not supported, so
// that no model is ever served with almost the right tokens. The "truncation" and "padding" settings of a file are
// ignored: a prompt is served whole or not at all.
//
// The chat template is parsed with the files, and one that uses what is not supported is refused too. Of Jinja2 that is
// inheritance, inclusion, call blocks and a dozen filters; package jinja has the list.
//
// A Tokenizer does not change after Load and may be used by any number of goroutines.
package tokenizer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/infinite-llm/infinite/engine/tokenizer/jinja"
)

// ErrUnsupported is wrapped by the error of Load when a file is sound but asks for something this package does not do.
var ErrUnsupported = errors.New("unsupported")

// Tokenizer is a loaded tokenizer.json with the special tokens and chat template beside it.
type Tokenizer struct {
	norm  normalizer // nil: none
	pre   []preTokenizer
	model model
	post  []templatePart // nil: nothing is added
	dec   []decoderSpec  // in order; nil: the pieces are joined by blanks
	noDec bool

	added   addedVocabulary
	pieces  []string // by id; "" where no piece has that id
	present []bool   // whether an id has a piece
	ids     map[string]int32
	special map[string]bool // by content, as the reference filters

	bos, eos named
	specials map[string]string // "bos_token" -> "<s>", for the chat template
	chat     *jinja.Template   // nil: the model has none
	toolChat *jinja.Template   // of conversations with tools; nil: chat is
	chatText string            // their sources
}

type named struct {
	id int32
	ok bool
}

// model cuts one pre-tokenized piece into token ids.
type model interface {
	tokenize(piece string, out []int32) []int32
}

// Load reads the tokenizer of a model folder: tokenizer.json, and if present tokenizer_config.json,
// chat_template.jinja and additional_chat_templates/tool_use.jinja.
func Load(dir string) (*Tokenizer, error) {
	t, err := LoadFS(os.DirFS(dir))
	if err != nil {
		return nil, fmt.Errorf("cannot load the tokenizer of %s: %w", dir, err)
	}
	return t, nil
}

// LoadFS is Load for a file system rooted at the model folder.
func LoadFS(fsys fs.FS) (*Tokenizer, error) {
	data, err := fs.ReadFile(fsys, "tokenizer.json")
	if err != nil {
		return nil, fmt.Errorf("cannot read tokenizer.json: %w", err)
	}
	t, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("cannot use tokenizer.json: %w", err)
	}
	if err := t.loadConfig(fsys); err != nil {
		return nil, err
	}
	return t, nil
}

// Encode returns the token ids of text. The names of added tokens in the text become those tokens, as the reference
// does. addSpecial adds what the model's post-processor adds, usually the BOS. Bytes that are not UTF-8 are read as
// U+FFFD, one for each maximal invalid part.
func (t *Tokenizer) Encode(text string, addSpecial bool) []int32 {
	text = validUTF8(text)
	var ids []int32
	if addSpecial && t.post != nil {
		for _, part := range t.post {
			if part.sequence {
				ids = t.encode(text, ids)
			} else {
				ids = append(ids, part.ids...)
			}
		}
		return ids
	}
	return t.encode(text, ids)
}

// Added is how many tokens addSpecial puts in front of a text's own, and how many behind them.
func (t *Tokenizer) Added() (front, behind int) {
	into := &front
	for _, part := range t.post {
		if part.sequence {
			into = &behind
		}
		*into += len(part.ids)
	}
	return front, behind
}

func (t *Tokenizer) encode(text string, ids []int32) []int32 {
	var pieces, spare []piece
	for _, raw := range t.added.plain.cut(piece{text: text, id: -1, origin: true}, nil) {
		if raw.id >= 0 {
			pieces = append(pieces, raw)
			continue
		}
		if t.norm != nil {
			raw = t.norm.normalize(raw)
		}
		pieces = t.added.normalized.cut(raw, pieces)
	}
	for _, pre := range t.pre {
		spare = spare[:0]
		for _, p := range pieces {
			if p.id >= 0 {
				spare = append(spare, p)
			} else {
				spare = pre.split(p, spare)
			}
		}
		pieces, spare = spare, pieces
	}
	for _, p := range pieces {
		if p.id >= 0 {
			ids = append(ids, p.id)
		} else if p.text != "" {
			ids = t.model.tokenize(p.text, ids)
		}
	}
	return ids
}

// VocabSize is one more than the highest id that has a piece.
func (t *Tokenizer) VocabSize() int { return len(t.pieces) }

// TokenString returns the vocabulary's own spelling of a token ("Ġthe", "▁the", "<0x0A>"); "" for an unknown id.
func (t *Tokenizer) TokenString(id int32) string {
	if !t.known(id) {
		return ""
	}
	return t.pieces[id]
}

// TokenBytes returns the bytes a token stands for in the middle of a text; nil for an unknown id. They need not be
// whole UTF-8 characters.
func (t *Tokenizer) TokenBytes(id int32) []byte {
	if !t.known(id) {
		return nil
	}
	return tokenBytes(t.dec, t.pieces[id])
}

// TextBytes returns the bytes that a token adds to the text of an answer: as its first token, or behind others. Those of
// all tokens of an answer, one behind the other, are what Decode makes of it if they are UTF-8.
func (t *Tokenizer) TextBytes(id int32, first bool) []byte {
	if !t.known(id) {
		return nil
	}
	if t.noDec {
		if first {
			return []byte(t.pieces[id])
		}
		return []byte(" " + t.pieces[id])
	}
	return textBytes(t.dec, t.pieces[id], first)
}

// TokenID returns the id of a vocabulary piece, added tokens included.
func (t *Tokenizer) TokenID(piece string) (int32, bool) {
	id, ok := t.ids[piece]
	return id, ok
}

// IsSpecial tells whether a token is a control token, which Decode leaves out when skipSpecial is set.
func (t *Tokenizer) IsSpecial(id int32) bool { return t.known(id) && t.special[t.pieces[id]] }

// BOS is the beginning-of-text token that tokenizer_config.json names.
func (t *Tokenizer) BOS() (int32, bool) { return t.bos.id, t.bos.ok }

// EOS is the end-of-text token that tokenizer_config.json names. A model may have further ones in its
// generation_config.json.
func (t *Tokenizer) EOS() (int32, bool) { return t.eos.id, t.eos.ok }

func (t *Tokenizer) known(id int32) bool {
	return id >= 0 && int(id) < len(t.pieces) && t.present[id]
}
