package model

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// drawn is a matrix in 4 bits by its numbers: a weight is scale * (q - zero).
type drawn struct {
	how          Quantized
	n, k, groups int
	q            [][]int     // [n][k]
	zero         [][]int     // [n][groups]
	scale        [][]float32 // [n][groups], which float16 holds
}

func drawMatrix(t *rapid.T) drawn {
	d := drawn{how: Quantized{Method: rapid.SampledFrom([]string{"awq", "gptq", "compressed-tensors"}).Draw(t, "method"), Zeros: true}}
	size := rapid.SampledFrom([]int{32, 64, 96, 128, 256}).Draw(t, "group")
	d.groups = rapid.IntRange(1, 3).Draw(t, "groups")
	d.n, d.k = 8*rapid.IntRange(1, 40).Draw(t, "n / 8"), size*d.groups
	if d.how.GroupSize = size; d.groups == 1 && rapid.Bool().Draw(t, "channel") {
		d.how.GroupSize = 0
	}
	least := 0
	switch d.how.Method {
	case "gptq":
		least = rapid.IntRange(0, 1).Draw(t, "less")
		d.how.ZeroLess = least
	case "compressed-tensors":
		d.how.Zeros = rapid.Bool().Draw(t, "zeros")
	}
	for range d.n {
		q, zero, scale := make([]int, d.k), make([]int, d.groups), make([]float32, d.groups)
		seed := uint32(rapid.Uint32().Draw(t, "row"))
		for i := range q {
			seed = seed*1664525 + 1013904223
			q[i] = int(seed >> 28)
		}
		for g := range zero {
			seed = seed*1664525 + 1013904223
			zero[g], scale[g] = symmetricZero, float32(int(seed>>20&2047)-1024)/512
			if d.how.Zeros {
				zero[g] = int(seed>>28) + least
			}
		}
		d.q, d.zero, d.scale = append(d.q, q), append(d.zero, zero), append(d.scale, scale)
	}
	return d
}

// packWords puts numbers into words, at(i) being the word and the place in it of number i.
func packWords(n int, number func(i int) int, at func(i int) (word, place int)) []byte {
	words := make([]byte, n/2)
	for i := range n {
		word, place := at(i)
		words[4*word+place/2] |= byte(number(i) << (4 * (place % 2)))
	}
	return words
}

// entries are the tensors of a matrix m as a file of its method has them, by the formats' definitions.
func (d *drawn) entries() map[string]*entry {
	n, k, groups := d.n, d.k, d.groups
	list := map[string]*entry{}
	add := func(suffix, dtype string, data []byte, shape ...int64) {
		list["m"+suffix] = &entry{name: "m" + suffix, dtype: dtype, shape: shape, data: data}
	}
	number := func(i int) int { return d.q[i/k][i%k] }
	zero := func(i int) int { return d.zero[i/groups][i%groups] - d.how.ZeroLess }
	scales := make([]byte, 2*n*groups)
	for o := range n {
		for g := range groups {
			half, _ := toF16(d.scale[o][g])
			at := g*n + o
			if d.how.Method == "compressed-tensors" {
				at = o*groups + g
			}
			binary.LittleEndian.PutUint16(scales[2*at:], half)
		}
	}
	across := func(i, of int) (int, int) { // number [o, i] of [n, of], eight outputs a word: [of, n/8]
		o, place := i/of, 0
		for p, output := range []int{0, 2, 4, 6, 1, 3, 5, 7} {
			if output == o%8 {
				place = p
			}
		}
		return i%of*n/8 + o/8, place
	}
	switch d.how.Method {
	case "awq":
		add(".qweight", "I32", packWords(n*k, number, func(i int) (int, int) { return across(i, k) }), int64(k), int64(n/8))
		add(".qzeros", "I32", packWords(n*groups, zero, func(i int) (int, int) { return across(i, groups) }), int64(groups), int64(n/8))
		add(".scales", "F16", scales, int64(groups), int64(n))
	case "gptq":
		add(".qweight", "I32", packWords(n*k, number, func(i int) (int, int) { return i%k/8*n + i/k, i % k % 8 }), int64(k/8), int64(n))
		add(".qzeros", "I32", packWords(n*groups, zero, func(i int) (int, int) { return i%groups*n/8 + i/groups/8, i / groups % 8 }), int64(groups), int64(n/8))
		add(".scales", "F16", scales, int64(groups), int64(n))
		index := make([]byte, 0, 4*k)
		for i := range k {
			index = binary.LittleEndian.AppendUint32(index, uint32(i/(k/groups)))
		}
		add(".g_idx", "I32", index, int64(k))
	default:
		add(".weight_packed", "I32", packWords(n*k, number, func(i int) (int, int) { return i / 8, i % 8 }), int64(n), int64(k/8))
		add(".weight_scale", "F16", scales, int64(n), int64(groups))
		shape := binary.LittleEndian.AppendUint64(nil, uint64(n))
		add(".weight_shape", "I64", binary.LittleEndian.AppendUint64(shape, uint64(k)), 2)
		if d.how.Zeros {
			add(".weight_zero_point", "I32", packWords(n*groups, zero, func(i int) (int, int) { return i/groups/8*groups + i%groups, i / groups % 8 }), int64(n/8), int64(groups))
		}
	}
	return list
}

func (d *drawn) slot() slot {
	return slot{name: "m.weight", role: Gate, expert: -1, shape: []int64{int64(d.n), int64(d.k)}}
}

// Whatever was packed comes out again, number by number.
func TestPacked(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawMatrix(t)
		entries, used := d.entries(), map[string]bool{}
		p, err := findPacked(&d.how, d.slot(), entries, used)
		if err != nil || p == nil || len(used) != len(entries) {
			t.Fatalf("%v, %v, %d of %d tensors used", p, err, len(used), len(entries))
		}
		tensor := Tensor{Rows: d.n, Cols: d.k, DType: p.dtype, packed: p}
		rows, err := tensor.Bytes(bytes.Repeat([]byte{0xff}, d.n*d.k))
		if err != nil {
			t.Fatal(err)
		}
		group := p.dtype.group()
		for i := range d.n * d.k / group {
			o, first := i*group/d.k, i*group%d.k
			g := first / (d.k / d.groups)
			head := rows[i*(4+group/2):]
			scale, zero := fromF16(binary.LittleEndian.Uint16(head)), fromF16(binary.LittleEndian.Uint16(head[2:]))
			if scale != d.scale[o][g] || zero != float32(d.zero[o][g]) {
				t.Fatalf("output %d, input %d: scale %g and zero %g, want %g and %d", o, first, scale, zero, d.scale[o][g], d.zero[o][g])
			}
			for j := range group {
				if q := int(head[4+j/2] >> (4 * (j % 2)) & 15); q != d.q[o][first+j] {
					t.Fatalf("output %d, input %d: %d, want %d", o, first+j, q, d.q[o][first+j])
				}
			}
		}
	})
}

// A matrix with a tensor left out, of another shape or type, or with other contents is refused, and the error names it.
func TestRefusePacked(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawMatrix(t)
		entries := d.entries()
		names := []string{}
		for _, suffix := range []string{".qweight", ".qzeros", ".scales", ".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point"} {
			if entries["m"+suffix] != nil {
				names = append(names, "m"+suffix)
			}
		}
		name := rapid.SampledFrom(names).Draw(t, "name")
		e := entries[name]
		switch rapid.IntRange(0, 2).Draw(t, "fault") {
		case 0:
			if delete(entries, name); strings.HasSuffix(name, "qweight") || strings.HasSuffix(name, "weight_packed") {
				return // the matrix is not there at all
			}
		case 1:
			e.shape[0]++
		default:
			e.dtype = "U8"
		}
		if _, err := findPacked(&d.how, d.slot(), entries, map[string]bool{}); err == nil || !strings.Contains(err.Error(), name) {
			t.Fatalf("%s: %v", name, err)
		}
	})
}

// Groups in another order, shapes that say something else, and scales that are no numbers.
func TestOddPacked(t *testing.T) {
	d := drawn{how: Quantized{Method: "gptq", GroupSize: 32, Zeros: true}, n: 8, k: 64, groups: 2}
	for range d.n {
		d.q, d.zero, d.scale = append(d.q, make([]int, 64)), append(d.zero, []int{1, 2}), append(d.scale, []float32{1, 2})
	}
	entries := d.entries()
	entries["m.g_idx"].data[0] = 1
	if _, err := findPacked(&d.how, d.slot(), entries, map[string]bool{}); err == nil || !strings.Contains(err.Error(), "desc_act") {
		t.Error(err)
	}
	delete(entries, "m.g_idx")
	p, err := findPacked(&d.how, d.slot(), entries, map[string]bool{})
	if err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint16(entries["m.scales"].data[6:], 0x7e00)
	tensor := Tensor{Rows: 8, Cols: 64, DType: p.dtype, packed: p}
	if _, err := tensor.Bytes(nil); err == nil || !strings.Contains(err.Error(), "m.scales") || !strings.Contains(err.Error(), "output 3") {
		t.Error(err)
	}
	d.how = Quantized{Method: "compressed-tensors", GroupSize: 32}
	entries = d.entries()
	entries["m.weight_shape"].data[8]++
	if _, err := findPacked(&d.how, d.slot(), entries, map[string]bool{}); err == nil || !strings.Contains(err.Error(), "weight_shape") {
		t.Error(err)
	}
	d.how.GroupSize = 48
	if _, err := findPacked(&d.how, d.slot(), entries, map[string]bool{}); err == nil {
		t.Error("groups of 48 of 64 inputs are taken")
	}
}

// Every float16 survives, and what lies between two goes to the nearer, of two as near to the even one.
func TestF16(t *testing.T) {
	for h := range 1 << 16 {
		f := fromF16(uint16(h))
		got, ok := toF16(f)
		if finite := h&0x7c00 != 0x7c00; ok != finite || ok && got != uint16(h) {
			t.Fatalf("%#x is %g and %#x, %v", h, f, got, ok)
		}
		if h&0x7fff >= 0x7bff {
			continue
		}
		next := fromF16(uint16(h + 1))
		middle := float32((float64(f) + float64(next)) / 2)
		even := uint16(h + h&1)
		nearer := math.Nextafter32(middle, f)
		if got, _ := toF16(middle); got != even {
			t.Fatalf("between %#x and %#x: %#x", h, h+1, got)
		}
		if got, _ := toF16(nearer); got != uint16(h) {
			t.Fatalf("near %#x: %#x", h, got)
		}
	}
}

// Files of any contents are refused or unpacked.
func FuzzPacked(f *testing.F) {
	for i, method := range []string{"awq", "gptq", "compressed-tensors"} {
		f.Add(i, 64, 8, 2, []byte(strings.Repeat(method, 40)))
	}
	f.Fuzz(func(t *testing.T, method, k, n, groups int, data []byte) {
		k, n, groups = k&0xfff, n&0xff, groups&0xf
		names := []string{"awq", "gptq", "compressed-tensors"}
		how := Quantized{Method: names[(method%3+3)%3], Zeros: method&4 != 0, ZeroLess: method >> 3 & 1}
		if groups > 0 {
			how.GroupSize = k / groups
		}
		entries := map[string]*entry{}
		add := func(suffix, dtype string, each int, shape ...int) {
			size, dims := each, []int64{}
			for _, d := range shape {
				size, dims = size*d, append(dims, int64(d))
			}
			filled := bytes.Repeat(append(data, 1), size/(len(data)+1)+1)[:size]
			entries["m"+suffix] = &entry{name: "m" + suffix, dtype: dtype, shape: dims, data: filled}
		}
		add(".qweight", "I32", 4, k, n/8)
		if how.Method == "gptq" {
			add(".qweight", "I32", 4, k/8, n)
			add(".g_idx", "I64", 8, k)
		}
		add(".qzeros", "I32", 4, groups, n/8)
		add(".scales", "BF16", 2, groups, n)
		add(".weight_packed", "I32", 4, n, k/8)
		add(".weight_scale", "F32", 4, n, groups)
		add(".weight_shape", "I32", 4, 2)
		add(".weight_zero_point", "I32", 4, n/8, groups)
		p, err := findPacked(&how, slot{name: "m.weight", role: Up, expert: -1, shape: []int64{int64(n), int64(k)}}, entries, map[string]bool{})
		if err != nil || p == nil {
			return
		}
		tensor := Tensor{Rows: n, Cols: k, DType: p.dtype, packed: p}
		if rows, err := tensor.Bytes(nil); err == nil && len(rows) != n*int(p.dtype.FourBitsRow(uint64(k))) {
			t.Fatalf("%d bytes of [%d, %d] in %v", len(rows), n, k, p.dtype)
		}
	})
}

// BenchmarkUnpack is the rate of the rows that come out, of a matrix of an 8B model.
func BenchmarkUnpack(b *testing.B) {
	for _, method := range []string{"awq", "gptq", "compressed-tensors"} {
		b.Run(method, func(b *testing.B) {
			const n, k, groups = 14336, 4096, 32
			p := packed{how: &Quantized{Method: method, GroupSize: 128, Zeros: true}, n: n, k: k, groups: groups, dtype: I4x128}
			p.words, p.zeros = bytes.Repeat([]byte{0x53}, n*k/2), bytes.Repeat([]byte{0x77}, n*groups/2)
			p.scales = entry{dtype: "F16", data: bytes.Repeat([]byte{0x10}, 2*n*groups)}
			tensor := Tensor{Rows: n, Cols: k, DType: I4x128, packed: &p}
			rows, err := tensor.Bytes(nil)
			b.SetBytes(int64(len(rows)))
			for err == nil && b.Loop() {
				_, err = tensor.Bytes(rows)
			}
			if err != nil {
				b.Fatal(fmt.Errorf("cannot unpack: %w", err))
			}
		})
	}
}
