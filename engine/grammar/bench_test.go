package grammar

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// large is a vocabulary of 128K tokens that resembles those of models: words and their beginnings with and without a
// blank, in several scripts, digits, and runs of punctuation as JSON has them.
func large() *Vocabulary {
	r := rand.New(rand.NewPCG(1, 2))
	tokens := [][]byte{nil}
	seen := map[string]bool{}
	add := func(s string) {
		if !seen[s] {
			seen[s] = true
			tokens = append(tokens, []byte(s))
		}
	}
	for b := range 256 {
		add(string([]byte{byte(b)}))
	}
	for i := range 1000 {
		add(strings.Repeat("0", i%3) + string(rune('0'+i%10)) + string(rune('0'+i/10%10)) + string(rune('0'+i/100)))
	}
	marks := []string{`"`, `":`, `",`, `{"`, `"}`, `}`, `]`, `,`, ` `, "\n", "  ", `\`, `:`, `(`, `'`, `;`, `/`}
	for len(tokens) < 8000 {
		add(marks[r.IntN(len(marks))] + marks[r.IntN(len(marks))] + marks[r.IntN(len(marks))] + marks[r.IntN(len(marks))])
	}
	letters := []string{"etaoinshrdlu", "abcdefghijklmnopqrstuvwxyz", "аеиностр", "的一是不了"}
	for len(tokens) < 128<<10 {
		set := []rune(letters[min(3, r.IntN(20)/5)])
		word := ""
		if r.IntN(2) == 0 {
			word = " "
		}
		for range 2 + r.IntN(8) {
			word += string(set[r.IntN(len(set))])
		}
		add(word)
	}
	return NewVocabulary(tokens, nil)
}

const person = `{"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer"},"tags":{"type":"array","items":{"type":"string","maxLength":40}},"address":{"type":"object","properties":{"street":{"type":"string"},"zip":{"type":"string","pattern":"^\\d{5}$"}},"required":["street","zip"]}},"required":["name","age","tags","address"]}`

// What a request costs before it is queued, with the masks that are made ahead.
func BenchmarkNewGuide(b *testing.B) {
	v := large()
	for b.Loop() {
		g, err := Compile(JSONSchema, person)
		if err != nil {
			b.Fatal(err)
		}
		NewGuide(g, v)
	}
}

func benchmarkAnswer(b *testing.B, mask func(m *Matcher) error) {
	v := large()
	u := guide(b, JSONSchema, person, v)
	text := `{"name": "Ada Lovelace", "age": 36, "tags": ["mathematics", "engines"], "address": {"street": "St James Square 12", "zip": "12345"}}`
	ids := map[string]int32{}
	for id, t := range v.bytes {
		if len(t) == 1 {
			ids[string(t)] = int32(id)
		}
	}
	run := func() {
		m := u.Matcher()
		for i := range len(text) {
			if err := mask(m); err != nil {
				b.Fatal(err)
			}
			if err := m.Accept(ids[text[i:i+1]]); err != nil {
				b.Fatal(err)
			}
		}
	}
	run()
	for b.Loop() {
		run()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(text)), "ns/token")
}

// A token of an answer whose places have been seen: the step loop's part.
func BenchmarkTokenSeen(b *testing.B) {
	to := make([]uint32, large().Words())
	benchmarkAnswer(b, func(m *Matcher) error {
		mask, _, err := m.Mask()
		copy(to, mask)
		return err
	})
}

// A token at a place that has not been seen, in a rule that has.
func BenchmarkTokenNewPlace(b *testing.B) {
	benchmarkAnswer(b, func(m *Matcher) error {
		m.u.m.forget()
		_, _, err := m.Mask()
		return err
	})
}

// A token in a state that has not been seen.
func BenchmarkTokenNewState(b *testing.B) {
	benchmarkAnswer(b, func(m *Matcher) error {
		m.u.m.forget()
		clear(m.u.parts)
		_, _, err := m.Mask()
		return err
	})
}
