package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// MaxSpeculativeTokens is the most tokens that a step guesses of a request.
const MaxSpeculativeTokens = 15

// Speculative is what --speculative-config says, with vLLM's keys; the zero value is none.
type Speculative struct {
	Method    string `json:"method"`                 // ngram: guesses come from the request's own text
	Tokens    int    `json:"num_speculative_tokens"` // guessed in a step at most
	LookupMin int    `json:"prompt_lookup_min"`      // last tokens of the text that must have come before
	LookupMax int    `json:"prompt_lookup_max"`      // how many of them are compared
}

// ParseSpeculative reads a JSON object.
func ParseSpeculative(s string) (Speculative, error) {
	if s == "" {
		return Speculative{}, nil
	}
	var v Speculative
	d := json.NewDecoder(bytes.NewReader([]byte(s)))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return Speculative{}, fmt.Errorf(`it is no object like {"method":"ngram","num_speculative_tokens":5}: %w`, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Speculative{}, errors.New("something follows the JSON object")
	}
	switch {
	case v.LookupMin == 0 && v.LookupMax == 0:
		v.LookupMin, v.LookupMax = 3, 8
	case v.LookupMin == 0:
		v.LookupMin = v.LookupMax
	case v.LookupMax == 0:
		v.LookupMax = v.LookupMin
	}
	switch {
	case v.Method != "ngram":
		return Speculative{}, fmt.Errorf("method %q is not ngram, the only one", v.Method)
	case v.Tokens < 1 || v.Tokens > MaxSpeculativeTokens:
		return Speculative{}, fmt.Errorf("num_speculative_tokens %d is not between 1 and %d", v.Tokens, MaxSpeculativeTokens)
	case v.LookupMin < 1 || v.LookupMax < v.LookupMin || v.LookupMax > 64:
		return Speculative{}, fmt.Errorf("prompt_lookup_min %d and prompt_lookup_max %d are not in order between 1 and 64", v.LookupMin, v.LookupMax)
	}
	return v, nil
}
