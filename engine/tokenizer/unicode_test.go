package tokenizer

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"hash"
	"io"
	"os"
	"strings"
	"testing"
)

// everyRune calls f for each character of the planes that have any, private ones left out.
func everyRune(f func(ch string)) {
	for r := rune(0); r < 0xE1000; r++ {
		if r < 0xD800 || r >= 0xE000 && r < 0x40000 || r >= 0xE0000 {
			f(string(r))
		}
	}
}

// TestEveryCharacter compares what the normalizers and pre-tokenizers do with every character of Unicode with hashes of
// what the reference does.
func TestEveryCharacter(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	raw, err := os.ReadFile("testdata/unicode.json")
	if err != nil {
		t.Fatal(err)
	}
	var want map[string]string
	if err := json.Unmarshal(raw, &want); err != nil {
		t.Fatal(err)
	}
	check := func(name string, feed func(t *testing.T, h hash.Hash)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := sha256.New()
			feed(t, h)
			if got := hex.EncodeToString(h.Sum(nil)); got != want[name] {
				t.Errorf("the hash is %s, want %s", got, want[name])
			}
		})
	}
	for _, name := range strings.Fields("NFC NFD NFKC NFKD Lowercase StripAccents Strip") {
		check(name, func(t *testing.T, h hash.Hash) {
			n, err := parseNormalizer(json.RawMessage(`{"type":"`+name+`"}`), 0)
			if err != nil {
				t.Fatal(err)
			}
			everyRune(func(ch string) {
				for _, s := range []string{ch, "e\u0345" + ch, ch + "\u0334\u0301"} {
					io.WriteString(h, n.normalize(piece{text: s}).text+"\n")
				}
			})
		})
	}
	settings := map[string]string{"Digits": `,"individual_digits":true`, "ByteLevel": `,"add_prefix_space":false`}
	for _, name := range strings.Fields("Whitespace WhitespaceSplit Punctuation Digits ByteLevel") {
		check(name, func(t *testing.T, h hash.Hash) {
			cuts, err := parsePreTokenizer(json.RawMessage(`{"type":"`+name+`"`+settings[name]+`}`), 0)
			if err != nil {
				t.Fatal(err)
			}
			everyRune(func(ch string) {
				for _, p := range cuts[0].split(piece{text: "a" + ch + " " + ch + "1", id: -1, origin: true}, nil) {
					io.WriteString(h, p.text+"\n")
				}
			})
		})
	}
}
