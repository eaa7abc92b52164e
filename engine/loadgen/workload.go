package loadgen

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"time"
)

// Prompt is what one request asks.
type Prompt struct {
	Text   string
	IDs    []int32 // in place of Text
	Output int     // tokens asked for
}

// length is in words or ids, which stand for tokens where a server does not count.
func (p Prompt) length() int {
	if p.IDs != nil {
		return len(p.IDs)
	}
	return len(strings.Fields(p.Text))
}

// stream is what random numbers are for. Each has its own, so that none depends on what others took.
type stream uint64

const (
	lengths stream = iota
	contents
	prefixes
	arrivals
)

func (o *Options) random(s stream, point, request int) *rand.Rand {
	var key [32]byte
	for i, x := range []uint64{o.Seed, uint64(s), uint64(point), uint64(request)} {
		binary.LittleEndian.PutUint64(key[8*i:], x)
	}
	return rand.New(rand.NewChaCha8(key))
}

// prompt is the i-th of a point. All points have the same lengths, but each has its own words: a server that
// caches prefixes would answer the second point from what it keeps of the first.
func (o *Options) prompt(point, i int) Prompt {
	if len(o.Dataset) > 0 {
		return o.Dataset[i%len(o.Dataset)]
	}
	s, r := &o.Shape, o.random(lengths, 0, i)
	input, output := vary(r, s.Input, s.Spread), vary(r, s.Output, s.Spread)
	if s.Format == Tokens {
		ids := make([]int32, 0, s.Prefix+input)
		ids = s.ids(ids, o.random(prefixes, 0, 0), s.Prefix)
		return Prompt{IDs: s.ids(ids, o.random(contents, point, i), input), Output: output}
	}
	var b strings.Builder
	writeWords(&b, o.random(prefixes, 0, 0), s.Prefix)
	writeWords(&b, o.random(contents, point, i), input)
	return Prompt{Text: b.String(), Output: output}
}

// vary draws evenly from n less and n plus a share of it, as vLLM's random data set does; at least 1.
func vary(r *rand.Rand, n int, share float64) int {
	low, high := int(math.Floor(float64(n)*(1-share))), int(math.Ceil(float64(n)*(1+share)))
	return max(1, low+r.IntN(high-low+1))
}

func (s *Shape) ids(ids []int32, r *rand.Rand, n int) []int32 {
	for range n {
		ids = append(ids, int32(firstID+r.IntN(s.Vocab-firstID)))
	}
	return ids
}

// words are so common that in most vocabularies each is one token.
var words = strings.Fields(`the of and to in is that it was for on are as with his they be at one have this from or had by
but not what all were we when your can said there use an each which she do how their if will up other about out many
then them these so some her would make like him into time has look two more write go see number no way could people my
than first water been call who its now find long down day did get come made may part`)

func writeWords(b *strings.Builder, r *rand.Rand, n int) {
	for range n {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(words[r.IntN(len(words))])
	}
}

// schedule is when each of n requests is due after the first one, which is due at once: a Poisson process. Its
// pattern is the same at every rate.
func (o *Options) schedule(rate Rate, n int) []time.Duration {
	due, at, r := make([]time.Duration, n), 0.0, o.random(arrivals, 0, 0)
	for i := 1; i < n && !math.IsInf(float64(rate), 1); i++ {
		at += r.ExpFloat64() / float64(rate)
		due[i] = time.Duration(min(at*float64(time.Second), math.MaxInt64/2))
	}
	return due
}

// body is the request for p.
func (o *Options) body(p Prompt) ([]byte, error) {
	b := map[string]any{
		"model": o.Model, "max_tokens": p.Output, "temperature": 0,
		"stream": true, "stream_options": map[string]any{"include_usage": true},
	}
	if o.IgnoreEOS {
		b["ignore_eos"] = true
	}
	switch {
	case o.Endpoint == Chat:
		b["messages"] = []map[string]string{{"role": "user", "content": p.Text}}
	case p.IDs != nil:
		b["prompt"] = p.IDs
	default:
		b["prompt"] = p.Text
	}
	data, err := json.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("cannot encode a request: %w", err)
	}
	return data, nil
}
