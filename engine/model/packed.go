package model

import (
	"encoding/binary"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// A matrix [n, k] in 4 bits, as the files have it. Words are of 32 bits, little endian, of 8 numbers; the i-th has bits 4i
// to 4i + 3, and is the number that stands i-th but for AWQ, whose word of 8 outputs has them in the order 0 2 4 6 1 3 5 7.
//
//	AWQ                 qweight [k, n/8], qzeros [groups, n/8], scales [groups, n]
//	GPTQ                qweight [k/8, n], qzeros [groups, n/8], scales [groups, n], g_idx [k]
//	compressed-tensors  weight_packed [n, k/8], weight_zero_point [n/8, groups], weight_scale [n, groups], weight_shape [2]
//
// A weight is scale * (q - zero), also in compressed-tensors, whose numbers and zeros are both 8 too large. GPTQ's first
// format has zeros that are 1 too small; 15 there is 16. Sources: AutoAWQ's WQLinear_GEMM, AutoGPTQ's QuantLinear,
// compressed-tensors' pack_to_int32.
type packed struct {
	how          *Quantized
	name         string
	n, k, groups int
	dtype        DType // what it becomes
	words        []byte
	zeros        []byte // words; nil: all are 8
	scales       entry
}

// awqOrder is the output that the i-th number of a word is.
var awqOrder = [8]int{0, 2, 4, 6, 1, 3, 5, 7}

const symmetricZero = 8

// findPacked looks for the tensors of a matrix that is not there by its own name; nil where they are not either.
func findPacked(how *Quantized, s slot, byName map[string]*entry, used map[string]bool) (*packed, error) {
	base, ok := strings.CutSuffix(s.name, ".weight")
	if how == nil || !ok || len(s.shape) != 2 || !mayBePacked(s.role) {
		return nil, nil
	}
	main := base + ".qweight"
	if how.Method == "compressed-tensors" {
		main = base + ".weight_packed"
	}
	if byName[main] == nil {
		return nil, nil
	}
	if s.of > 0 {
		return nil, unsupported(main, "a part of a fused matrix")
	}
	p := &packed{how: how, name: base, n: int(s.shape[0]), k: int(s.shape[1])}
	size := how.GroupSize
	if size == 0 {
		size = p.k
	}
	if p.n%8 != 0 || p.k%8 != 0 || p.k%size != 0 || size%32 != 0 {
		return nil, unsupported(main, "[%d, %d] in groups of %d", p.n, p.k, size)
	}
	p.groups = p.k / size
	switch {
	case size%128 == 0:
		p.dtype = I4x128
	case size%64 == 0:
		p.dtype = I4x64
	default:
		p.dtype = I4x32
	}
	f := &finder{entries: byName, used: used, base: base}
	if how.Method == "compressed-tensors" {
		p.findCompressed(f)
	} else {
		p.findGPTQ(f)
	}
	return p, f.err
}

// finder looks for the tensors of one matrix. The first error sticks, as with object.
type finder struct {
	entries map[string]*entry
	used    map[string]bool
	base    string
	err     error
}

func (f *finder) has(suffix string) bool { return f.entries[f.base+suffix] != nil }

// get returns a tensor of one of the types and of the shape, and marks it as used; an empty one after an error.
func (f *finder) get(suffix string, types []string, shape ...int) entry {
	e, name := f.entries[f.base+suffix], f.base+suffix
	want := make([]int64, len(shape))
	for i, d := range shape {
		want[i] = int64(d)
	}
	switch {
	case f.err != nil:
	case e == nil:
		f.err = fmt.Errorf("cannot find tensor %s", name)
	case !slices.Contains(types, e.dtype):
		f.err = unsupported(name, "dtype %s", e.dtype)
	case !slices.Equal(e.shape, want):
		f.err = fmt.Errorf("cannot use tensor %s: its shape is %v where config.json asks for %v", name, e.shape, want)
	default:
		f.used[name] = true
		return *e
	}
	return entry{}
}

var (
	wordTypes  = []string{"I32", "U32"}
	indexTypes = []string{"I32", "I64"}
	scaleTypes = []string{"F16", "BF16", "F32"}
)

// integers are the numbers of a tensor of indexTypes.
func (e *entry) integers() []int64 {
	size := 4
	if e.dtype == "I64" {
		size = 8
	}
	list := make([]int64, len(e.data)/size)
	for i := range list {
		if size == 8 {
			list[i] = int64(binary.LittleEndian.Uint64(e.data[8*i:]))
		} else {
			list[i] = int64(int32(binary.LittleEndian.Uint32(e.data[4*i:])))
		}
	}
	return list
}

// findGPTQ finds the tensors of AWQ too, which has the same names.
func (p *packed) findGPTQ(f *finder) {
	shape := []int{p.k, p.n / 8}
	if p.how.Method == "gptq" {
		shape = []int{p.k / 8, p.n}
	}
	p.words = f.get(".qweight", wordTypes, shape...).data
	p.scales = f.get(".scales", scaleTypes, p.groups, p.n)
	p.zeros = f.get(".qzeros", wordTypes, p.groups, p.n/8).data
	if p.how.Method == "gptq" {
		p.checkOrder(f, ".g_idx")
	}
}

func (p *packed) findCompressed(f *finder) {
	p.words = f.get(".weight_packed", wordTypes, p.n, p.k/8).data
	p.scales = f.get(".weight_scale", scaleTypes, p.n, p.groups)
	shape := f.get(".weight_shape", indexTypes, 2)
	if got := shape.integers(); f.err == nil && (got[0] != int64(p.n) || got[1] != int64(p.k)) {
		f.err = fmt.Errorf("cannot use tensor %s: it says %v where config.json asks for [%d %d]", shape.name, got, p.n, p.k)
	}
	if p.how.Zeros {
		p.zeros = f.get(".weight_zero_point", wordTypes, p.n/8, p.groups).data
	}
	p.checkOrder(f, ".weight_g_idx")
}

// checkOrder refuses groups that are not of consecutive inputs: weights that were quantized by activation order. Some
// writers leave out the tensor where it says nothing.
func (p *packed) checkOrder(f *finder, suffix string) {
	if !f.has(suffix) {
		return
	}
	index := f.get(suffix, indexTypes, p.k)
	for i, group := range index.integers() {
		if group != int64(i/(p.k/p.groups)) {
			f.err = unsupported(index.name, "groups in another order than the inputs (desc_act or actorder)")
			return
		}
	}
}

// rowBytes is the length of a row as the data plane takes it.
func (p *packed) rowBytes() int { return int(p.dtype.FourBitsRow(uint64(p.k))) }

// rows unpacks the matrix into to, which has n rows.
func (p *packed) rows(to []byte) error {
	const block = 128 // outputs: a cache line of words that hold 8 each
	next := make(chan int, (p.n+block-1)/block)
	for first := 0; first < p.n; first += block {
		next <- first
	}
	close(next)
	var all sync.WaitGroup
	errs := make([]error, max(1, runtime.GOMAXPROCS(0)))
	for w := range errs {
		all.Go(func() {
			for first := range next {
				last := min(first+block, p.n)
				p.numbers(to, first, last)
				if err := p.heads(to, first, last); err != nil {
					errs[w] = err
				}
			}
		})
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// numbers writes the outputs' q. 8 inputs of a row lie in 4 bytes, behind the head of their group.
func (p *packed) numbers(to []byte, first, last int) {
	row, group := p.rowBytes(), p.dtype.group()
	for o := first; o < last && p.how.Method == "compressed-tensors"; o++ {
		for i := 0; i < p.k; i += group {
			at := o*row + i/group*(4+group/2) + 4
			copy(to[at:at+group/2], p.words[(o*p.k+i)/2:])
		}
	}
	for i := 0; i < p.k; i += 8 {
		at := first*row + i/group*(4+group/2) + 4 + i%group/2
		switch p.how.Method {
		case "gptq":
			words := p.words[(i/8*p.n+first)*4 : (i/8*p.n+last)*4]
			for o := 0; o < len(words); o += 4 {
				binary.LittleEndian.PutUint32(to[at:], binary.LittleEndian.Uint32(words[o:]))
				at += row
			}
		case "awq":
			for o := first; o < last; o += 8 {
				p.eightByEight(to[at:], row, i, o)
				at += 8 * row
			}
		}
	}
}

// eightByEight turns eight words of AWQ, inputs i.. of outputs o.., into four bytes of each output's row.
func (p *packed) eightByEight(to []byte, row, i, o int) {
	var low, high [4]uint32 // of two inputs: a byte for each of the words' numbers 0, 2, 4 and 6, and for 1, 3, 5 and 7
	for pair := range 4 {
		at := ((i+2*pair)*p.n + o) / 2
		even, odd := binary.LittleEndian.Uint32(p.words[at:]), binary.LittleEndian.Uint32(p.words[at+p.n/2:])
		low[pair] = even&0x0f0f0f0f | odd&0x0f0f0f0f<<4
		high[pair] = even>>4&0x0f0f0f0f | odd&0xf0f0f0f0
	}
	for b := range 4 {
		shift := 8 * b
		binary.LittleEndian.PutUint32(to[awqOrder[2*b]*row:], low[0]>>shift&255|low[1]>>shift&255<<8|low[2]>>shift&255<<16|low[3]>>shift<<24)
		binary.LittleEndian.PutUint32(to[awqOrder[2*b+1]*row:], high[0]>>shift&255|high[1]>>shift&255<<8|high[2]>>shift&255<<16|high[3]>>shift<<24)
	}
}

// heads writes the outputs' scales and zeros. A group of the file may be several of the data plane's.
func (p *packed) heads(to []byte, first, last int) error {
	row, group, size := p.rowBytes(), p.dtype.group(), p.k/p.groups
	for o := first; o < last; o++ {
		for g := range p.groups {
			scale, ok := p.scale(o, g)
			if !ok {
				return fmt.Errorf("cannot use tensor %s: float16 does not hold the scale of output %d and group %d", p.scales.name, o, g)
			}
			zero := smallF16[p.zero(o, g)]
			for i := g * size; i < (g+1)*size; i += group {
				head := to[o*row+i/group*(4+group/2):]
				binary.LittleEndian.PutUint16(head, scale)
				binary.LittleEndian.PutUint16(head[2:], zero)
			}
		}
	}
	return nil
}

// smallF16 are the integers of 0 to 16.
var smallF16 = func() (list [17]uint16) {
	for i := range list {
		list[i], _ = toF16(float32(i))
	}
	return list
}()

// scale is rounded to float16, where a file has more digits; not ok where that does not hold it.
func (p *packed) scale(output, group int) (uint16, bool) {
	at := group*p.n + output
	if p.how.Method == "compressed-tensors" {
		at = output*p.groups + group
	}
	switch p.scales.dtype {
	case "F32":
		return toF16(math.Float32frombits(binary.LittleEndian.Uint32(p.scales.data[4*at:])))
	case "BF16":
		return toF16(math.Float32frombits(uint32(binary.LittleEndian.Uint16(p.scales.data[2*at:])) << 16))
	}
	half := binary.LittleEndian.Uint16(p.scales.data[2*at:])
	return half, half&0x7c00 != 0x7c00
}

func (p *packed) zero(output, group int) int {
	if p.zeros == nil {
		return symmetricZero
	}
	word, number := group*p.n/8+output/8, output%8
	switch p.how.Method {
	case "compressed-tensors":
		word = output/8*p.groups + group
	case "awq":
		number = slices.Index(awqOrder[:], number)
	}
	return int(binary.LittleEndian.Uint32(p.zeros[4*word:])>>(4*number)&15) + p.how.ZeroLess
}

// toF16 rounds to the nearest float16, ties to even; not ok beyond its largest number.
func toF16(f float32) (uint16, bool) {
	size := math.Abs(float64(f))
	sign := uint16(math.Float32bits(f) >> 16 & 0x8000)
	if !(size < 65520) {
		return 0, false
	}
	if size < 0x1p-14 {
		return sign | uint16(math.RoundToEven(size*0x1p24)), true
	}
	fraction, exponent := math.Frexp(size) // fraction in [1/2, 1)
	mantissa := int(math.RoundToEven(fraction * 2048))
	return sign | uint16((exponent+13)<<10+mantissa), true // a carry raises the exponent
}
