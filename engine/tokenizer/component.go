package tokenizer

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// component is any normalizer, pre-tokenizer, post-processor or decoder of a file: a type and its settings.
type component struct {
	Type          string            `json:"type"`
	Normalizers   []json.RawMessage `json:"normalizers"`
	PreTokenizers []json.RawMessage `json:"pretokenizers"`
	Processors    []json.RawMessage `json:"processors"`
	Decoders      []json.RawMessage `json:"decoders"`

	Pattern          json.RawMessage `json:"pattern"`
	Content          string          `json:"content"`
	Prepend          string          `json:"prepend"`
	StripLeft        *bool           `json:"strip_left"`
	StripRight       *bool           `json:"strip_right"`
	Behavior         behavior        `json:"behavior"`
	Invert           bool            `json:"invert"`
	AddPrefixSpace   *bool           `json:"add_prefix_space"`
	UseRegex         *bool           `json:"use_regex"`
	IndividualDigits bool            `json:"individual_digits"`
	Replacement      string          `json:"replacement"`
	PrependScheme    *string         `json:"prepend_scheme"`
	Split            *bool           `json:"split"`
	Start            int             `json:"start"`
	Stop             int             `json:"stop"`

	Single        []map[string]templateItem  `json:"single"`
	SpecialTokens map[string]templateSpecial `json:"special_tokens"`
	Sep           *tokenPair                 `json:"sep"`
	Cls           *tokenPair                 `json:"cls"`
}

func parseComponent(raw json.RawMessage, depth int) (*component, error) {
	if depth > maxDepth {
		return nil, unsupported("sequences nested more than %d deep", maxDepth)
	}
	var c component
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, err
	}
	return &c, nil
}

func orTrue(b *bool) bool { return b == nil || *b }

// parsePattern reads {"String": s} or {"Regex": r}; text is the fixed text, "" for a regex.
func parsePattern(raw json.RawMessage) (scan scanner, text string, err error) {
	var p struct {
		String *string `json:"String"`
		Regex  *string `json:"Regex"`
	}
	if isNull(raw) {
		return nil, "", fmt.Errorf("missing pattern")
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return nil, "", fmt.Errorf("pattern: %w", err)
	}
	switch {
	case p.String != nil:
		return literal(*p.String), *p.String, nil
	case p.Regex == nil:
		return nil, "", fmt.Errorf("pattern is neither String nor Regex")
	}
	scan = scannerFor(*p.Regex)
	if scan == nil {
		return nil, "", unsupported("pattern %q", *p.Regex)
	}
	return scan, "", nil
}

func parseNormalizer(raw json.RawMessage, depth int) (normalizer, error) {
	if isNull(raw) {
		return nil, nil
	}
	c, err := parseComponent(raw, depth)
	if err != nil {
		return nil, err
	}
	switch c.Type {
	case "Sequence":
		var all normalizers
		for _, raw := range c.Normalizers {
			n, err := parseNormalizer(raw, depth+1)
			if err != nil {
				return nil, err
			}
			if n != nil {
				all = append(all, n)
			}
		}
		return all, nil
	case "NFC":
		return unicodeForm(norm.NFC), nil
	case "NFD":
		return unicodeForm(norm.NFD), nil
	case "NFKC":
		return unicodeForm(norm.NFKC), nil
	case "NFKD":
		return unicodeForm(norm.NFKD), nil
	case "Lowercase":
		return normalizeFunc(lowercase), nil
	case "StripAccents":
		return normalizeFunc(stripAccents), nil
	case "Strip":
		return strip{left: orTrue(c.StripLeft), right: orTrue(c.StripRight)}, nil
	case "Prepend":
		return prepend(c.Prepend), nil
	case "Replace":
		scan, _, err := parsePattern(c.Pattern)
		if err != nil {
			return nil, fmt.Errorf("the normalizer Replace: %w", err)
		}
		return replaceAll{scan: scan, content: c.Content}, nil
	}
	return nil, unsupported("normalizer %q", c.Type)
}

func parsePreTokenizer(raw json.RawMessage, depth int) ([]preTokenizer, error) {
	if isNull(raw) {
		return nil, nil
	}
	c, err := parseComponent(raw, depth)
	if err != nil {
		return nil, err
	}
	one := func(scan scanner, b behavior) ([]preTokenizer, error) {
		return []preTokenizer{&splitter{scan: scan, behavior: b}}, nil
	}
	switch c.Type {
	case "Sequence":
		var all []preTokenizer
		for _, raw := range c.PreTokenizers {
			p, err := parsePreTokenizer(raw, depth+1)
			if err != nil {
				return nil, err
			}
			all = append(all, p...)
		}
		return all, nil
	case "ByteLevel":
		return []preTokenizer{&byteLevel{
			prefixSpace: orTrue(c.AddPrefixSpace), regex: orTrue(c.UseRegex),
			cut: splitter{scan: scanGPT2, behavior: isolated},
		}}, nil
	case "Split":
		scan, _, err := parsePattern(c.Pattern)
		if err != nil {
			return nil, fmt.Errorf("the pre_tokenizer Split: %w", err)
		}
		if !c.Behavior.valid() {
			return nil, unsupported("Split behavior %q", c.Behavior)
		}
		return []preTokenizer{&splitter{scan: scan, behavior: c.Behavior, invert: c.Invert}}, nil
	case "Metaspace":
		m, err := parseMetaspace(c)
		return []preTokenizer{m}, err
	case "Digits":
		if c.IndividualDigits {
			return one(runeScanner(isNumeric), isolated)
		}
		return one(runeScanner(isNumeric), contiguous)
	case "Whitespace":
		return []preTokenizer{&splitter{scan: scanWords, behavior: removed, invert: true}}, nil
	case "WhitespaceSplit":
		return one(runeScanner(isSpace), removed)
	case "Punctuation":
		if c.Behavior == "" {
			c.Behavior = isolated
		}
		if !c.Behavior.valid() {
			return nil, unsupported("Punctuation behavior %q", c.Behavior)
		}
		return one(runeScanner(isPunctuation), c.Behavior)
	}
	return nil, unsupported("pre_tokenizer %q", c.Type)
}

// parseMetaspace reads both the present form and the older one that has only add_prefix_space.
func parseMetaspace(c *component) (*metaspace, error) {
	if utf8.RuneCountInString(c.Replacement) != 1 {
		return nil, fmt.Errorf("the replacement %q of Metaspace is not one character", c.Replacement)
	}
	m := &metaspace{replacement: c.Replacement, scheme: "always"}
	if c.PrependScheme != nil {
		m.scheme = *c.PrependScheme
	}
	switch m.scheme {
	case "always", "first", "never":
	default:
		return nil, unsupported("Metaspace prepend_scheme %q", m.scheme)
	}
	if c.AddPrefixSpace != nil && !*c.AddPrefixSpace {
		if c.PrependScheme != nil && m.scheme != "never" {
			return nil, fmt.Errorf("the add_prefix_space of Metaspace contradicts its prepend_scheme %q", m.scheme)
		}
		m.scheme = "never"
	}
	if orTrue(c.Split) {
		m.cut = &splitter{scan: literal(c.Replacement), behavior: mergedAfter}
	}
	return m, nil
}

// templateItem is a part of a TemplateProcessing: {"SpecialToken": {"id": "<s>"}} or {"Sequence": {"id": "A"}}.
type templateItem struct {
	ID string `json:"id"`
}

type templateSpecial struct {
	IDs []int64 `json:"ids"`
}

// tokenPair is ["</s>", 2].
type tokenPair struct{ id int64 }

// UnmarshalJSON reads the pair.
func (p *tokenPair) UnmarshalJSON(data []byte) error {
	var pair [2]json.RawMessage
	if err := json.Unmarshal(data, &pair); err != nil {
		return err
	}
	return json.Unmarshal(pair[1], &p.id)
}

// templatePart is what the post-processor puts into an encoding: ids, or the text's own.
type templatePart struct {
	sequence bool
	ids      []int32
}

func parsePostProcessor(raw json.RawMessage, depth int) ([]templatePart, error) {
	if isNull(raw) {
		return nil, nil
	}
	c, err := parseComponent(raw, depth)
	if err != nil {
		return nil, err
	}
	switch c.Type {
	case "Sequence":
		return parseProcessors(c.Processors, depth)
	case "ByteLevel":
		return nil, nil // only corrects offsets
	case "TemplateProcessing":
		return parseTemplate(c)
	case "BertProcessing", "RobertaProcessing":
		if c.Sep == nil || c.Cls == nil {
			return nil, fmt.Errorf("%s lacks sep or cls", c.Type)
		}
		cls, err := narrowIDs([]int64{c.Cls.id})
		if err != nil {
			return nil, err
		}
		sep, err := narrowIDs([]int64{c.Sep.id})
		return []templatePart{{ids: cls}, {sequence: true}, {ids: sep}}, err
	}
	return nil, unsupported("post_processor %q", c.Type)
}

// parseProcessors reads a sequence, of which at most one may add tokens.
func parseProcessors(raws []json.RawMessage, depth int) ([]templatePart, error) {
	var all []templatePart
	for _, raw := range raws {
		parts, err := parsePostProcessor(raw, depth+1)
		if err != nil {
			return nil, err
		}
		if parts != nil && all != nil {
			return nil, unsupported("two post_processors that add tokens")
		}
		if parts != nil {
			all = parts
		}
	}
	return all, nil
}

func parseTemplate(c *component) ([]templatePart, error) {
	parts := []templatePart{}
	sequences := 0
	for _, item := range c.Single {
		if len(item) != 1 {
			return nil, fmt.Errorf("a part of TemplateProcessing is not one item")
		}
		for kind, it := range item {
			switch kind {
			case "Sequence":
				if it.ID != "A" {
					return nil, fmt.Errorf("the sequence %q of TemplateProcessing is unknown", it.ID)
				}
				sequences++
				parts = append(parts, templatePart{sequence: true})
			case "SpecialToken":
				special, ok := c.SpecialTokens[it.ID]
				if !ok {
					return nil, fmt.Errorf("the special token %q of TemplateProcessing is not defined", it.ID)
				}
				ids, err := narrowIDs(special.IDs)
				if err != nil {
					return nil, err
				}
				parts = append(parts, templatePart{ids: ids})
			default:
				return nil, unsupported("TemplateProcessing part %q", kind)
			}
		}
	}
	if sequences != 1 {
		return nil, fmt.Errorf("the text appears %d times in TemplateProcessing, not once", sequences)
	}
	return parts, nil
}

func narrowIDs(wide []int64) ([]int32, error) {
	ids := make([]int32, len(wide))
	for i, id := range wide {
		if id < 0 || id > 1<<30 {
			return nil, fmt.Errorf("id %d is out of range", id)
		}
		ids[i] = int32(id)
	}
	return ids, nil
}

// parseDecoder flattens a decoder into its stages. fused says whether the stages before join the pieces.
func parseDecoder(raw json.RawMessage, fused bool, depth int) ([]decoderSpec, error) {
	if isNull(raw) {
		return nil, nil
	}
	c, err := parseComponent(raw, depth)
	if err != nil {
		return nil, err
	}
	spec := decoderSpec{fused: fused}
	switch c.Type {
	case "Sequence":
		var all []decoderSpec
		for _, raw := range c.Decoders {
			specs, err := parseDecoder(raw, fused, depth+1)
			if err != nil {
				return nil, err
			}
			all = append(all, specs...)
			for _, s := range specs {
				fused = fused || s.kind == decodeFuse || s.kind == decodeByteLevel
			}
		}
		return all, nil
	case "ByteLevel":
		spec.kind = decodeByteLevel
	case "ByteFallback":
		spec.kind = decodeByteFallback
	case "Fuse":
		spec.kind = decodeFuse
	case "Metaspace":
		m, err := parseMetaspace(c)
		if err != nil {
			return nil, err
		}
		spec.kind, spec.pattern, spec.keepFirst = decodeMetaspace, m.replacement, m.scheme == "never"
	case "Replace":
		_, text, err := parsePattern(c.Pattern)
		if err != nil {
			return nil, fmt.Errorf("the decoder Replace: %w", err)
		}
		if text == "" {
			return nil, unsupported("decoder Replace by a pattern")
		}
		spec.kind, spec.pattern, spec.content = decodeReplace, text, c.Content
	case "Strip":
		if utf8.RuneCountInString(c.Content) != 1 || c.Start < 0 || c.Stop < 0 {
			return nil, fmt.Errorf("the decoder Strip cuts %q, %d and %d times", c.Content, c.Start, c.Stop)
		}
		if c.Stop > 0 { // the reference itself panics on pieces that are shorter
			return nil, unsupported("decoder Strip at the end of pieces")
		}
		spec.kind, spec.pattern, spec.start = decodeStrip, c.Content, c.Start
	default:
		return nil, unsupported("decoder %q", c.Type)
	}
	return []decoderSpec{spec}, checkFused(spec)
}

// checkFused refuses stages whose work on joined pieces could depend on text that has not come yet.
func checkFused(s decoderSpec) error {
	if !s.fused {
		return nil
	}
	switch s.kind {
	case decodeByteLevel, decodeByteFallback:
		return unsupported("a byte decoder after the pieces are joined")
	case decodeReplace:
		if utf8.RuneCountInString(s.pattern) != 1 {
			return unsupported("decoder Replace of %q after the pieces are joined", strings.ToValidUTF8(s.pattern, "?"))
		}
	}
	return nil
}
