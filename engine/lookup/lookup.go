// Package lookup guesses how a text goes on from the text itself: where its last tokens came before, what followed them may
// follow again. Answers that quote a document, repeat a name or edit a text are full of that. It is the "ngram" or "prompt
// lookup" way of speculative decoding (Saxena, "Prompt Lookup Decoding"): no second model, and a wrong guess costs no more than
// its place in a step.
package lookup

// candidates is how many earlier places are looked at for the one that is alike the longest; the latest come first.
const candidates = 32

// Index finds earlier places of a text's last tokens. It is for one goroutine, and one text that only grows.
//
// Like LZ77 matchers it chains the places whose last min tokens have the same hash: 4 bytes per token, and 4 per bucket.
type Index struct {
	min, max int
	head     []int32 // by hash: the last place, one past its position; 0: none
	prev     []int32 // by position of a place: the place before it in its chain, likewise
	mask     uint32
}

// New returns the index of an empty text. A place counts where at least min last tokens are alike; how many more are, up to
// max, says which of them is best. size is about how long the text becomes.
func New(min, max, size int) *Index {
	n := 1 << 8
	for n < size && n < 1<<20 {
		n *= 2
	}
	return &Index{min: min, max: max, head: make([]int32, n), mask: uint32(n - 1)}
}

// hash is FNV-1a of the min tokens up to and with position at, by words.
func (x *Index) hash(tokens []int32, at int) uint32 {
	h := uint32(2166136261)
	for _, t := range tokens[at+1-x.min : at+1] {
		h = (h ^ uint32(t)) * 16777619
	}
	return (h ^ h>>15) & x.mask
}

// Add takes more of the text, at most that many of the tokens that it does not have, and tells whether it has all that it
// can use: the last token is no place, since nothing follows it yet.
func (x *Index) Add(tokens []int32, most int) bool {
	end := min(len(tokens)-1, len(x.prev)+most)
	for at := len(x.prev); at < end; at++ {
		if at+1 < x.min {
			x.prev = append(x.prev, 0)
			continue
		}
		h := x.hash(tokens, at)
		x.prev = append(x.prev, x.head[h])
		x.head[h] = int32(at + 1)
	}
	return len(x.prev) >= len(tokens)-1
}

// Len is how many tokens of the text it has.
func (x *Index) Len() int { return len(x.prev) }

// Draft appends up to n tokens to dst that may follow the text, none where nothing in it is alike. The text is what Add has
// taken, and one token more.
func (x *Index) Draft(dst, tokens []int32, n int) []int32 {
	last := len(tokens) - 1
	if n <= 0 || last < x.min {
		return dst
	}
	best, length := -1, x.min-1
	at := int(x.head[x.hash(tokens, last)]) - 1
	for tried := 0; at >= 0 && tried < candidates && length < x.max; tried++ {
		if k := x.alike(tokens, at, last); k > length {
			best, length = at, k
		}
		at = int(x.prev[at]) - 1
	}
	if best < 0 {
		return dst
	}
	from := len(dst)
	for k := range n {
		next := best + 1 + k
		if next > last { // the end of the text is alike to itself: it repeats
			dst = append(dst, dst[from+next-last-1])
			continue
		}
		dst = append(dst, tokens[next])
	}
	return dst
}

// alike is how many tokens before and at two positions are the same, up to max.
func (x *Index) alike(tokens []int32, at, last int) int {
	k := 0
	for k < x.max && at-k >= 0 && tokens[at-k] == tokens[last-k] {
		k++
	}
	return k
}
