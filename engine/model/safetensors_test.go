package model

import (
	"bytes"
	"encoding/binary"
	"os"
	"strings"
	"testing"
)

// pack makes a safetensors file of a header and n bytes of data.
func pack(header string, n int) []byte {
	file := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	file = append(file, header...)
	for i := range n {
		file = append(file, byte(i))
	}
	return file
}

func TestParseSafetensors(t *testing.T) {
	file := pack(`{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2,1],"data_offsets":[4,12]},`+
		`"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},"scalar":{"dtype":"U8","shape":[],"data_offsets":[12,13]},`+
		`"empty":{"dtype":"F16","shape":[3,0],"data_offsets":[4,4]},"six":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[13,16]}}  `, 16)
	entries, err := parseSafetensors(file)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]byte{"a": {0, 1, 2, 3}, "b": {4, 5, 6, 7, 8, 9, 10, 11}, "scalar": {12}, "empty": {}, "six": {13, 14, 15}}
	if len(entries) != len(want) {
		t.Fatalf("%d tensors, want %d", len(entries), len(want))
	}
	for _, e := range entries {
		if !bytes.Equal(e.data, want[e.name]) {
			t.Errorf("%s holds %v, want %v", e.name, e.data, want[e.name])
		}
		if cap(e.data) != len(e.data) {
			t.Errorf("%s could grow into its neighbour", e.name)
		}
	}
	if entries, err := parseSafetensors(pack(`{}`, 0)); err != nil || len(entries) != 0 {
		t.Errorf("an empty file gave %v, %v", entries, err)
	}
}

func TestRefuseSafetensors(t *testing.T) {
	one := func(s string) []byte { return pack(`{"w":`+s+`}`, 8) }
	for _, tc := range []struct {
		name  string
		file  []byte
		names string
	}{
		{"no bytes", nil, "length"},
		{"short length", []byte{1, 2, 3}, "length"},
		{"header beyond the file", binary.LittleEndian.AppendUint64(nil, 1), "header"},
		{"header of 2^64-1", append(binary.LittleEndian.AppendUint64(nil, 1<<64-1), "{}"...), "header"},
		{"no object", pack("[]", 0), "header"},
		{"no header", pack("", 0), "header"},
		{"cut off", pack(`{"w":{"dtype":"F32"`, 0), "header"},
		{"not closed", pack(`{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}`, 8), "header"},
		{"something after", pack(`{}{}`, 0), "follows"},
		{"bad metadata", pack(`{"__metadata__":{"a":1}}`, 0), "__metadata__"},
		{"entry not an object", one(`3`), "w"},
		{"dtype missing", one(`{"shape":[2],"data_offsets":[0,8]}`), "dtype"},
		{"dtype unknown", one(`{"dtype":"F31","shape":[2],"data_offsets":[0,8]}`), "F31"},
		{"shape missing", one(`{"dtype":"F32","data_offsets":[0,8]}`), "shape"},
		{"shape null", one(`{"dtype":"F32","shape":null,"data_offsets":[0,8]}`), "shape"},
		{"shape negative", one(`{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}`), "negative"},
		{"shape fractional", one(`{"dtype":"F32","shape":[2.5],"data_offsets":[0,8]}`), "shape"},
		{"shape overflows", one(`{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}`), "overflows"},
		{"bytes overflow", one(`{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}`), "overflows"},
		{"parts of a byte", one(`{"dtype":"F4","shape":[3],"data_offsets":[0,1]}`), "whole bytes"},
		{"offsets missing", one(`{"dtype":"F32","shape":[2]}`), "data_offsets"},
		{"three offsets", one(`{"dtype":"F32","shape":[2],"data_offsets":[0,4,8]}`), "data_offsets"},
		{"offsets negative", one(`{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}`), "outside"},
		{"offsets reversed", one(`{"dtype":"F32","shape":[2],"data_offsets":[8,0]}`), "outside"},
		{"offsets beyond", one(`{"dtype":"F32","shape":[2],"data_offsets":[4,12]}`), "outside"},
		{"size wrong", one(`{"dtype":"F32","shape":[1],"data_offsets":[0,8]}`), "takes 4 bytes, not 8"},
		{"unknown key", one(`{"dtype":"F32","shape":[2],"data_offsets":[0,8],"scale":1}`), "scale"},
		{"unused end", one(`{"dtype":"F32","shape":[1],"data_offsets":[0,4]}`), "4 of 8 bytes"},
		{"hole", one(`{"dtype":"F32","shape":[1],"data_offsets":[4,8]}`), "hole"},
		{"overlap", pack(`{"v":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}`, 8), "overlap"},
		{"twice", pack(`{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`, 8), "twice"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			entries, err := parseSafetensors(tc.file)
			if err == nil {
				t.Fatalf("accepted as %+v", entries)
			}
			if !strings.Contains(err.Error(), tc.names) {
				t.Errorf("error %q does not name %q", err, tc.names)
			}
		})
	}
}

func TestRefuseIndex(t *testing.T) {
	for text, names := range map[string]string{
		`{}`:                                     "weight_map",
		`{"weight_map":{}}`:                      "weight_map",
		`{"weight_map":{"a":3}}`:                 "weight_map",
		`{"weight_map":{"a":"../x"}}`:            "outside",
		`{"weight_map":{"a":"/etc/passwd"}}`:     "outside",
		`{"weight_map":{"a":"b/../../x"}}`:       "outside",
		`{"weight_map":{"a":""}}`:                "outside",
		`{"weight_map":{"a":"."}}`:               "outside",
		`{"weight_map":{"a":"x.safetensors"}`:    "parse",
		`[{"weight_map":{"a":"x.safetensors"}}]`: "parse",
	} {
		if _, _, err := parseIndex([]byte(text)); err == nil || !strings.Contains(err.Error(), names) {
			t.Errorf("%s gave %v", text, err)
		}
	}
}

// FuzzSafetensors: no panic, and the tensors of what is accepted have the bytes their shapes ask for and lie
// side by side in the file.
func FuzzSafetensors(f *testing.F) {
	f.Add(pack(`{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, 8))
	f.Add(pack(`{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,1],"data_offsets":[4,8]},`+
		`"b":{"dtype":"I8","shape":[4],"data_offsets":[0,4]}}`, 8))
	f.Add([]byte(`{"weight_map":{"a":"x/y"}}`))
	if data, err := os.ReadFile("testdata/mistral/model-00002-of-00002.safetensors"); err == nil {
		f.Add(data[:1024])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if where, shards, err := parseIndex(data); err == nil && (len(where) == 0 || len(shards) == 0) {
			t.Fatal("an empty index was accepted")
		}
		entries, err := parseSafetensors(data)
		if err != nil {
			return
		}
		total := 8 + int(binary.LittleEndian.Uint64(data))
		for _, e := range entries {
			if size, err := byteSize(e.dtype, e.shape); err != nil || size != int64(len(e.data)) {
				t.Fatalf("%s: %d bytes for %v of %s: %v", e.name, len(e.data), e.shape, e.dtype, err)
			}
			total += len(e.data)
		}
		if total != len(data) {
			t.Fatalf("tensors take %d of %d bytes", total, len(data))
		}
	})
}
