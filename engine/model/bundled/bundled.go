// Package bundled holds the small model that is part of the binary: its weights, its configuration, its
// tokenizer and a sample of its work. README.md tells what it is and how it was made.
package bundled

import "embed"

// FS has the files of the model's folder at its root.
//
//go:embed *.json *.safetensors *.md *.txt
var FS embed.FS
