package tokenizer

import (
	"encoding/json"
	"fmt"
	"maps"
)

// maxHoles bounds how many ids without a piece a vocabulary may have, so that a damaged file cannot ask for a huge
// table.
const maxHoles = 1 << 16

// maxDepth bounds how deep a file may nest its sequences.
const maxDepth = 8

type tokenizerFile struct {
	AddedTokens   []addedToken    `json:"added_tokens"`
	Normalizer    json.RawMessage `json:"normalizer"`
	PreTokenizer  json.RawMessage `json:"pre_tokenizer"`
	PostProcessor json.RawMessage `json:"post_processor"`
	Decoder       json.RawMessage `json:"decoder"`
	Model         json.RawMessage `json:"model"`
}

type modelFile struct {
	Type         string          `json:"type"`
	Vocab        json.RawMessage `json:"vocab"`
	Merges       json.RawMessage `json:"merges"`
	Dropout      *float64        `json:"dropout"`
	UnkToken     *string         `json:"unk_token"`
	Prefix       *string         `json:"continuing_subword_prefix"`
	Suffix       *string         `json:"end_of_word_suffix"`
	FuseUnk      bool            `json:"fuse_unk"`
	ByteFallback bool            `json:"byte_fallback"`
	IgnoreMerges bool            `json:"ignore_merges"`
	UnkID        *int64          `json:"unk_id"`
}

// scoredPiece is an entry of a Unigram vocabulary, written ["piece", score].
type scoredPiece struct {
	piece string
	score float64
}

// UnmarshalJSON reads the pair.
func (p *scoredPiece) UnmarshalJSON(data []byte) error {
	var pair [2]json.RawMessage
	if err := json.Unmarshal(data, &pair); err != nil {
		return err
	}
	if err := json.Unmarshal(pair[0], &p.piece); err != nil {
		return err
	}
	return json.Unmarshal(pair[1], &p.score)
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrUnsupported}, args...)...)
}

func parse(data []byte) (*Tokenizer, error) {
	var file tokenizerFile
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, err
	}
	t := &Tokenizer{ids: map[string]int32{}, special: map[string]bool{}, specials: map[string]string{}}
	if err := t.parseModel(file.Model); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	var err error
	if t.norm, err = parseNormalizer(file.Normalizer, 0); err != nil {
		return nil, fmt.Errorf("normalizer: %w", err)
	}
	if t.pre, err = parsePreTokenizer(file.PreTokenizer, 0); err != nil {
		return nil, fmt.Errorf("pre_tokenizer: %w", err)
	}
	if t.post, err = parsePostProcessor(file.PostProcessor, 0); err != nil {
		return nil, fmt.Errorf("post_processor: %w", err)
	}
	t.noDec = isNull(file.Decoder)
	if t.dec, err = parseDecoder(file.Decoder, false, 0); err != nil {
		return nil, fmt.Errorf("decoder: %w", err)
	}
	modelSize := len(t.ids)
	if err := t.addTokens(file.AddedTokens, modelSize); err != nil {
		return nil, err
	}
	for _, part := range t.post {
		for _, id := range part.ids {
			if !t.known(id) {
				return nil, fmt.Errorf("post_processor: id %d is not in the vocabulary", id)
			}
		}
	}
	return t, nil
}

func isNull(raw json.RawMessage) bool { return len(raw) == 0 || string(raw) == "null" }

func (t *Tokenizer) parseModel(raw json.RawMessage) error {
	var m modelFile
	if isNull(raw) {
		return fmt.Errorf("missing")
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return err
	}
	switch {
	case m.Type == "BPE" || m.Type == "" && !isNull(m.Merges):
		return t.parseBPE(&m)
	case m.Type == "Unigram":
		return t.parseUnigram(&m)
	}
	return unsupported("model %q", m.Type)
}

func (t *Tokenizer) parseBPE(m *modelFile) error {
	if m.Dropout != nil && *m.Dropout != 0 {
		return unsupported("BPE dropout")
	}
	var vocab map[string]int64
	if err := json.Unmarshal(m.Vocab, &vocab); err != nil {
		return fmt.Errorf("vocab: %w", err)
	}
	for piece, id := range vocab {
		if err := t.place(piece, id, len(vocab)); err != nil {
			return err
		}
	}
	b := &bpe{vocab: maps.Clone(t.ids), unk: -1, fuseUnk: m.FuseUnk, ignoreMerges: m.IgnoreMerges}
	if m.UnkToken != nil {
		id, ok := b.vocab[*m.UnkToken]
		if !ok {
			return fmt.Errorf("unk_token %q is not in the vocabulary", *m.UnkToken)
		}
		b.unk = id
	}
	if m.Prefix != nil {
		b.prefix = *m.Prefix
	}
	if m.Suffix != nil {
		b.suffix = *m.Suffix
	}
	if m.ByteFallback {
		b.byteIDs = byteTokens(b.vocab)
	}
	pairs, err := parseMerges(m.Merges)
	if err != nil {
		return fmt.Errorf("merges: %w", err)
	}
	t.model, err = newBPE(b, pairs)
	return err
}

// parseMerges reads both forms: ["a b", ...] and [["a", "b"], ...].
func parseMerges(raw json.RawMessage) ([][2]string, error) {
	var lines []string
	if err := json.Unmarshal(raw, &lines); err != nil {
		var lists [][]string
		if err := json.Unmarshal(raw, &lists); err != nil {
			return nil, err
		}
		pairs := make([][2]string, len(lists))
		for i, list := range lists {
			if len(list) != 2 {
				return nil, fmt.Errorf("entry %d is not a pair", i)
			}
			pairs[i] = [2]string{list[0], list[1]}
		}
		return pairs, nil
	}
	pairs := make([][2]string, 0, len(lines))
	for i, line := range lines {
		if len(line) >= 8 && line[:8] == "#version" {
			continue
		}
		pair, ok := splitMerge(line)
		if !ok {
			return nil, fmt.Errorf("entry %d is not a pair", i)
		}
		pairs = append(pairs, pair)
	}
	return pairs, nil
}

func (t *Tokenizer) parseUnigram(m *modelFile) error {
	var vocab []scoredPiece
	if err := json.Unmarshal(m.Vocab, &vocab); err != nil {
		return fmt.Errorf("vocab: %w", err)
	}
	if len(vocab) == 0 {
		return fmt.Errorf("the vocabulary is empty")
	}
	if m.UnkID == nil {
		return unsupported("Unigram without unk_id")
	}
	if *m.UnkID < 0 || *m.UnkID >= int64(len(vocab)) {
		return fmt.Errorf("unk_id %d is not in the vocabulary", *m.UnkID)
	}
	t.pieces, t.present = make([]string, len(vocab)), make([]bool, len(vocab))
	for id, p := range vocab {
		t.pieces[id], t.present[id] = p.piece, true
		t.ids[p.piece] = int32(id) // of two alike the later counts
	}
	ids := maps.Clone(t.ids)
	var bytes *[256]int32
	if m.ByteFallback {
		bytes = byteTokens(ids)
	}
	t.model = newUnigram(vocab, ids, int32(*m.UnkID), bytes)
	return nil
}

// place enters a piece at its id. count is the number of pieces to come, which bounds the ids.
func (t *Tokenizer) place(piece string, id int64, count int) error {
	if id < 0 || id >= int64(count)+maxHoles {
		return fmt.Errorf("%q has id %d, but there are only %d pieces", piece, id, count)
	}
	if n := int(id) + 1; n > len(t.pieces) {
		if size := max(n, min(count, n+maxHoles)); size > cap(t.pieces) {
			pieces, present := make([]string, n, size), make([]bool, n, size)
			copy(pieces, t.pieces)
			copy(present, t.present)
			t.pieces, t.present = pieces, present
		}
		t.pieces, t.present = t.pieces[:n], t.present[:n]
	}
	if t.present[id] {
		return fmt.Errorf("%q and %q have the same id %d", t.pieces[id], piece, id)
	}
	t.pieces[id], t.present[id] = piece, true
	t.ids[piece] = int32(id)
	return nil
}

// addTokens enters the added tokens. A token the model knows keeps the model's id.
func (t *Tokenizer) addTokens(tokens []addedToken, modelSize int) error {
	seen := map[string]bool{}
	for _, token := range tokens {
		if token.Content == "" || seen[token.Content] {
			continue
		}
		seen[token.Content] = true
		if id, ok := t.ids[token.Content]; ok {
			if int64(id) != token.ID {
				return fmt.Errorf("added token %q has id %d here and %d in the vocabulary", token.Content, token.ID, id)
			}
		} else if err := t.place(token.Content, token.ID, modelSize+len(tokens)); err != nil {
			return fmt.Errorf("added tokens: %w", err)
		}
		if token.Special {
			t.special[token.Content] = true
		}
		if !token.Normalized {
			t.added.plain.add(token.Content, token)
			continue
		}
		pattern := piece{text: token.Content}
		if t.norm != nil {
			pattern = t.norm.normalize(pattern)
		}
		t.added.normalized.add(pattern.text, token)
	}
	return nil
}
