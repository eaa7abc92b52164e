package model

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
)

// DType is the type of a tensor's elements, with the numbers of the data plane's header.
type DType int32

// The types of weights that can be served.
const (
	F32  DType = 1
	F16  DType = 2
	BF16 DType = 3
)

// The types of matrices of checkpoints in 4 bits: integers of 0 to 15, a weight being scale * (q - zero), with a scale and
// a zero for each output and so many inputs. A row of a tensor is groups of scale and zero, in float16, and the group's
// integers, two in a byte, the first in the lower half.
const (
	I4x32  DType = 6
	I4x64  DType = 7
	I4x128 DType = 8
)

// Size returns the bytes of one element, 0 for an unknown type.
func (d DType) Size() int {
	switch d {
	case F32:
		return 4
	case F16, BF16:
		return 2
	}
	return 0
}

// group is the number of inputs that share a scale in a type of 4 bits; 0 for all others.
func (d DType) group() int {
	switch d {
	case I4x32:
		return 32
	case I4x64:
		return 64
	case I4x128:
		return 128
	}
	return 0
}

// FourBitsRow returns the bytes of a row of so many numbers in a type of 4 bits.
func (d DType) FourBitsRow(cols uint64) uint64 {
	group := uint64(max(d.group(), 1))
	return cols / group * (4 + group/2)
}

// String returns the name in config.json's dtype.
func (d DType) String() string {
	switch d {
	case F32:
		return "float32"
	case F16:
		return "float16"
	case BF16:
		return "bfloat16"
	case I4x32, I4x64, I4x128:
		return fmt.Sprintf("int4 by %d", d.group())
	}
	return fmt.Sprintf("DType(%d)", int32(d))
}

// maxHeader is the longest safetensors header the format's reference implementation reads.
const maxHeader = 100_000_000

// entry is a tensor of a safetensors file. Data views the file.
type entry struct {
	name  string
	dtype string // as the file spells it
	shape []int64
	data  []byte
}

// weightType returns the type of the weights, or a refusal that names the tensor.
func (e *entry) weightType() (DType, error) {
	switch e.dtype {
	case "F32":
		return F32, nil
	case "F16":
		return F16, nil
	case "BF16":
		return BF16, nil
	}
	return 0, unsupported(e.name, "dtype %s", e.dtype)
}

// elementBits knows the types of the safetensors format, so that a file with any of them can be checked.
func elementBits(dtype string) (int64, bool) {
	switch dtype {
	case "F4":
		return 4, true
	case "F6_E2M3", "F6_E3M2":
		return 6, true
	case "BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ":
		return 8, true
	case "U16", "I16", "F16", "BF16":
		return 16, true
	case "U32", "I32", "F32":
		return 32, true
	case "U64", "I64", "F64", "C64":
		return 64, true
	}
	return 0, false
}

// parseSafetensors reads a whole safetensors file without copying its tensors.
//
// The file is: u64 n (little endian), n bytes of JSON {name: {dtype, shape, data_offsets: [begin, end)}}, then
// the tensors. As the format demands, they cover the rest of the file exactly, without hole or overlap.
// Source: https://github.com/huggingface/safetensors#format
func parseSafetensors(file []byte) ([]entry, error) {
	if len(file) < 8 {
		return nil, fmt.Errorf("cannot read its length: the file has %d bytes", len(file))
	}
	n := binary.LittleEndian.Uint64(file)
	if n > maxHeader || n > uint64(len(file)-8) {
		return nil, fmt.Errorf("cannot hold a header of %d bytes in %d bytes of file", n, len(file))
	}
	head, body := file[8:8+n], file[8+n:]
	if len(head) == 0 || head[0] != '{' {
		return nil, fmt.Errorf("cannot find the header: it does not start with {")
	}
	entries, spans, err := parseHeader(head, body)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(spans, func(a, b span) int {
		if a.begin != b.begin {
			return int(min(1, max(-1, a.begin-b.begin)))
		}
		return int(min(1, max(-1, a.end-b.end)))
	})
	var at int64
	for _, s := range spans {
		if s.begin != at {
			what := "a hole before"
			if s.begin < at {
				what = "an overlap with"
			}
			return nil, fmt.Errorf("cannot place tensor %s at [%d, %d): %s it", s.name, s.begin, s.end, what)
		}
		at = s.end
	}
	if at != int64(len(body)) {
		return nil, fmt.Errorf("cannot account for the file: tensors take %d of %d bytes", at, len(body))
	}
	return entries, nil
}

type span struct {
	name       string
	begin, end int64
}

// parseHeader goes through the header with a token decoder, because a map would hide duplicate names.
func parseHeader(head, body []byte) ([]entry, []span, error) {
	dec := json.NewDecoder(bytes.NewReader(head))
	if _, err := dec.Token(); err != nil {
		return nil, nil, fmt.Errorf("cannot parse the header: %w", err)
	}
	var entries []entry
	var spans []span
	seen := map[string]bool{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, nil, fmt.Errorf("cannot parse the header: %w", err)
		}
		name, _ := tok.(string)
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return nil, nil, fmt.Errorf("cannot parse the header at %s: %w", short([]byte(name)), err)
		}
		if seen[name] {
			return nil, nil, fmt.Errorf("cannot have tensor %s twice", short([]byte(name)))
		}
		seen[name] = true
		if name == "__metadata__" {
			var m map[string]string
			if err := json.Unmarshal(raw, &m); err != nil {
				return nil, nil, fmt.Errorf("cannot parse __metadata__: %w", err)
			}
			continue
		}
		e, s, err := parseEntry(strings.Clone(name), raw, body)
		if err != nil {
			return nil, nil, fmt.Errorf("cannot use tensor %s: %w", short([]byte(name)), err)
		}
		entries, spans = append(entries, e), append(spans, s)
	}
	if _, err := dec.Token(); err != nil {
		return nil, nil, fmt.Errorf("cannot parse the header: %w", err)
	}
	if rest := bytes.TrimSpace(head[dec.InputOffset():]); len(rest) > 0 {
		return nil, nil, fmt.Errorf("cannot parse the header: something follows its end")
	}
	return entries, spans, nil
}

func parseEntry(name string, raw json.RawMessage, body []byte) (entry, span, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil {
		return entry{}, span{}, err
	}
	for key := range m {
		if key != "dtype" && key != "shape" && key != "data_offsets" {
			return entry{}, span{}, fmt.Errorf("unknown key %s", short([]byte(key)))
		}
	}
	e := entry{name: name}
	var offsets []int64
	if err := json.Unmarshal(m["dtype"], &e.dtype); err != nil {
		return entry{}, span{}, fmt.Errorf("dtype: %w", orMissing(m["dtype"], err))
	}
	if err := json.Unmarshal(m["shape"], &e.shape); err != nil || e.shape == nil {
		return entry{}, span{}, fmt.Errorf("shape: %w", orMissing(m["shape"], err))
	}
	if err := json.Unmarshal(m["data_offsets"], &offsets); err != nil || len(offsets) != 2 {
		return entry{}, span{}, fmt.Errorf("data_offsets: %w", orMissing(m["data_offsets"], err))
	}
	size, err := byteSize(e.dtype, e.shape)
	if err != nil {
		return entry{}, span{}, err
	}
	begin, end := offsets[0], offsets[1]
	if begin < 0 || begin > end || end > int64(len(body)) {
		return entry{}, span{}, fmt.Errorf("offsets [%d, %d) lie outside the %d bytes of data", begin, end, len(body))
	}
	if end-begin != size {
		return entry{}, span{}, fmt.Errorf("shape %v of %s takes %d bytes, not %d", e.shape, e.dtype, size, end-begin)
	}
	e.data = body[begin:end:end]
	return e, span{name, begin, end}, nil
}

func orMissing(raw json.RawMessage, err error) error {
	switch {
	case raw == nil:
		return fmt.Errorf("missing")
	case err == nil:
		return fmt.Errorf("malformed: %s", short(raw))
	}
	return err
}

// byteSize is the number of bytes of a tensor, checked against overflow.
func byteSize(dtype string, shape []int64) (int64, error) {
	bits, ok := elementBits(dtype)
	if !ok {
		return 0, fmt.Errorf("unknown dtype %q", short([]byte(dtype)))
	}
	elements := int64(1)
	for _, d := range shape {
		if d < 0 {
			return 0, fmt.Errorf("negative dimension %d", d)
		}
		if d != 0 && elements > math.MaxInt64/d {
			return 0, fmt.Errorf("shape %v overflows", shape)
		}
		elements *= d
	}
	if elements > math.MaxInt64/bits {
		return 0, fmt.Errorf("shape %v overflows", shape)
	}
	if elements*bits%8 != 0 {
		return 0, fmt.Errorf("shape %v of %s does not fill whole bytes", shape, dtype)
	}
	return elements * bits / 8, nil
}
