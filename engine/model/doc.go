// Package model reads Hugging Face model folders: config.json, generation_config.json and safetensors weights.
//
// It is strict: whatever would change the arithmetic and is not known here is refused with the name of the
// key or the tensor, so that a model either gives the answers of its reference implementation or does not
// start. Sizes are bounded, so that no product of them overflows an int64 and none divides by zero.
//
// The architectures are those of Llama, Mistral, Qwen 2 and 3 (config.go), mixtures of experts (experts.go), and Gemma, OLMo,
// Phi-3 and Granite (families.go).
// Errors that concern an unsupported feature are *UnsupportedError; errors.As tells them from damage.
package model

import "fmt"

// UnsupportedError names a feature of a model that is understood but cannot be served.
type UnsupportedError struct {
	Key  string // the key of config.json or the name of the tensor
	What string // the value or feature that is not supported
}

// Error implements error.
func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("cannot serve this model: %s: %s is not supported", e.Key, e.What)
}

func unsupported(key, format string, args ...any) error {
	return &UnsupportedError{Key: key, What: fmt.Sprintf(format, args...)}
}
