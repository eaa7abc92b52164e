package device

import (
	"embed"
	"strings"
)

// The build writes the hash of each C library that it made into stamp/, one file per preset. Embedding
// them makes this package stale when a library changes, which go build would not notice otherwise.
//
//go:embed all:stamp
var stamps embed.FS

// LibraryHash returns the SHA-256, in hex, of the C library of a preset ("cpu", "asan") as it was when
// this package was built, "" if it was not built then.
func LibraryHash(preset string) string {
	line, err := stamps.ReadFile("stamp/" + preset)
	if err != nil {
		return ""
	}
	hash, _, _ := strings.Cut(string(line), " ")
	return hash
}
