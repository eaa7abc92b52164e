package server

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/tokenizer"
)

// answer is the identity that every chunk of an answer repeats.
type answer struct {
	id, object, model string
	created           int64
	chat              bool
	tok               *tokenizer.Tokenizer
	skip              bool // special tokens are left out of the text
	tokensAsIDs       bool // log probabilities name tokens "token_id:5"
}

// tokenText is a token's own text, with what is not UTF-8 replaced, and its bytes.
func (a *answer) tokenText(id int32) (string, []byte) {
	b := a.tok.TokenBytes(id)
	switch {
	case a.tokensAsIDs:
		return "token_id:" + strconv.Itoa(int(id)), b
	case utf8.Valid(b):
		return string(b), b
	}
	return strings.ToValidUTF8(string(b), "\ufffd"), b
}

func (a *answer) head(b []byte, object string) []byte {
	b = append(b, `{"id":`...)
	b = appendString(b, a.id)
	b = append(b, `,"object":`...)
	b = appendString(b, object)
	b = append(b, `,"created":`...)
	b = appendInt(b, int(a.created))
	b = append(b, `,"model":`...)
	return appendString(b, a.model)
}

// tally counts tokens of prompts and answers.
type tally struct {
	prompt, completion int
	cached             int // of the prompts', those whose KV was in the cache; below 0 it is not known yet
	reasoning          int // of the answers', those of thoughts
}

// add counts a delta's tokens; first: its choice is the first one of its prompt.
func (t *tally) add(d delta, first bool) {
	t.completion += len(d.ids)
	t.reasoning += d.thinking
	if first {
		t.cached += d.cached
	}
}

// append appends the object, of a chat with how much of it was thoughts.
func (t tally) append(b []byte, chat bool) []byte {
	b = append(b, `{"prompt_tokens":`...)
	b = appendInt(b, t.prompt)
	b = append(b, `,"completion_tokens":`...)
	b = appendInt(b, t.completion)
	b = append(b, `,"total_tokens":`...)
	b = appendInt(b, t.prompt+t.completion)
	if t.cached >= 0 {
		b = append(b, `,"prompt_tokens_details":{"cached_tokens":`...)
		b = append(appendInt(b, t.cached), '}')
		if chat {
			b = append(b, `,"completion_tokens_details":{"reasoning_tokens":`...)
			b = append(appendInt(b, t.reasoning), '}')
		}
	}
	return append(b, '}')
}

// appendIDs appends a field of token ids.
func appendIDs(b []byte, name string, ids []int32) []byte {
	b = append(b, ',', '"')
	b = append(append(b, name...), `":[`...)
	for i, id := range ids {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendInt(b, int(id))
	}
	return append(b, ']')
}

// appendFinish appends finish_reason and stop_reason of a choice, and kv_placement where it is known.
func appendFinish(b []byte, finish string, reason any, spans []engine.SpanInfo) []byte {
	b = append(b, `,"finish_reason":`...)
	if finish == "" {
		b = append(b, `null`...)
	} else {
		b = appendString(b, finish)
	}
	b = append(b, `,"stop_reason":`...)
	switch r := reason.(type) {
	case string:
		b = appendString(b, r)
	case int32:
		b = appendInt(b, int(r))
	default:
		b = append(b, `null`...)
	}
	return appendPlacement(b, spans)
}

// appendPlacement appends where the KV lay, if that is known, in the order of the text; the last ones are the home's.
func appendPlacement(b []byte, spans []engine.SpanInfo) []byte {
	if len(spans) == 0 {
		return b
	}
	for i, s := range spans {
		if i == 0 {
			b = append(b, `,"kv_placement":[`...)
		} else {
			b = append(b, ',')
		}
		b = append(b, `{"instance":`...)
		b = appendString(b, s.Instance)
		b = append(b, `,"blocks":`...)
		b = append(appendInt(b, s.Blocks), '}')
	}
	return append(b, ']')
}

// appendChatLogprobs appends OpenAI's chat shape: content: a list of tokens.
func (a *answer) appendChatLogprobs(b []byte, tokens []engine.TokenLogprob) []byte {
	return append(a.appendTokens(append(b, `{"content":`...), tokens), '}')
}

// appendTokens appends a list of {token, logprob, bytes, top_logprobs}.
func (a *answer) appendTokens(b []byte, tokens []engine.TokenLogprob) []byte {
	one := func(b []byte, id int32, lp float32) []byte {
		text, raw := a.tokenText(id)
		b = append(b, `{"token":`...)
		b = appendString(b, text)
		b = append(b, `,"logprob":`...)
		b = appendFloat(b, lp)
		b = append(b, `,"bytes":[`...)
		for i, c := range raw {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendInt(b, int(c))
		}
		return append(b, ']')
	}
	b = append(b, '[')
	for i, t := range tokens {
		if i > 0 {
			b = append(b, ',')
		}
		b = one(b, t.Token, t.Logprob)
		b = append(b, `,"top_logprobs":[`...)
		for k, alt := range t.Top {
			if k > 0 {
				b = append(b, ',')
			}
			b = append(one(b, alt.Token, alt.Logprob), '}')
		}
		b = append(b, `]}`...)
	}
	return append(b, ']')
}

// appendTextLogprobs appends OpenAI's completions shape: four lists, one entry per token. offsets are where the tokens
// begin. The first token of an echoed prompt has no log probability: with firstNull it is null.
func (a *answer) appendTextLogprobs(b []byte, tokens []engine.TokenLogprob, offsets []int, firstNull bool) []byte {
	list := func(name string, each func(i int, t engine.TokenLogprob)) {
		b = append(b, name...)
		for i, t := range tokens {
			if i > 0 {
				b = append(b, ',')
			}
			each(i, t)
		}
		b = append(b, ']')
	}
	isNull := func(i int) bool { return firstNull && i == 0 }
	b = append(b, '{')
	list(`"text_offset":[`, func(i int, _ engine.TokenLogprob) { b = appendInt(b, offsets[i]) })
	list(`,"token_logprobs":[`, func(i int, t engine.TokenLogprob) {
		if isNull(i) {
			b = append(b, `null`...)
		} else {
			b = appendFloat(b, t.Logprob)
		}
	})
	list(`,"tokens":[`, func(_ int, t engine.TokenLogprob) {
		text, _ := a.tokenText(t.Token)
		b = appendString(b, text)
	})
	list(`,"top_logprobs":[`, func(i int, t engine.TokenLogprob) {
		if isNull(i) {
			b = append(b, `null`...)
			return
		}
		b = a.appendTop(b, t)
	})
	return append(b, '}')
}

// appendTop is a map from text to log probability: the alternatives, and the chosen token itself.
func (a *answer) appendTop(b []byte, t engine.TokenLogprob) []byte {
	b = append(b, '{')
	chosen, _ := a.tokenText(t.Token)
	seen := map[string]bool{}
	put := func(text string, lp float32) {
		if seen[text] {
			return
		}
		if len(seen) > 0 {
			b = append(b, ',')
		}
		seen[text] = true
		b = append(appendString(b, text), ':')
		b = appendFloat(b, lp)
	}
	for _, alt := range t.Top {
		text, _ := a.tokenText(alt.Token)
		put(text, alt.Logprob)
	}
	put(chosen, t.Logprob)
	return append(b, '}')
}

// appendPromptLogprobs appends vLLM's prompt_logprobs: for each token of the prompt a map from token id to
// its log probability and rank, of the token itself and of k alternatives; null for the first token.
func (a *answer) appendPromptLogprobs(b []byte, prompt []engine.TokenLogprob, k int) []byte {
	b = append(b, `,"prompt_logprobs":[null`...)
	put := func(id int32, lp float32, rank int) {
		text, _ := a.tokenText(id)
		b = append(b, '"')
		b = append(appendInt(b, int(id)), `":{"logprob":`...)
		b = append(appendFloat(b, lp), `,"rank":`...)
		b = append(appendInt(b, rank), `,"decoded_token":`...)
		b = append(appendString(b, text), '}')
	}
	for _, t := range prompt {
		b = append(b, `,{`...)
		put(t.Token, t.Logprob, int(t.Rank))
		for i, alt := range t.Top[:min(k, len(t.Top))] {
			if alt.Token != t.Token {
				b = append(b, ',')
				put(alt.Token, alt.Logprob, i+1)
			}
		}
		b = append(b, '}')
	}
	return append(b, ']')
}

// fewer is prompt with at most k alternatives per token.
func fewer(prompt []engine.TokenLogprob, k int) []engine.TokenLogprob {
	out := make([]engine.TokenLogprob, len(prompt))
	for i, t := range prompt {
		out[i] = t
		out[i].Top = t.Top[:min(max(0, k), len(t.Top))]
	}
	return out
}
