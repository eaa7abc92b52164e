package device

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/infinite-llm/infinite/engine/model"
)

func eachFourBits(t *testing.T, f func(t *testing.T, m *model.Model, g *golden)) {
	eachGoldenIn(t, "../model/testdata/quantized", f)
}

// Checkpoints in 4 bits by every instruction set, and over two ranks. Inputs are rounded to 16 bits, which these models'
// log probabilities show.
func TestGoldenFourBits(t *testing.T) {
	eachFourBits(t, func(t *testing.T, m *model.Model, g *golden) {
		for isa := 1; isa <= 4; isa++ {
			c := testConfig()
			c.ISA = isa
			d, err := LoadModel(m, c, nil)
			if err != nil {
				t.Logf("instruction set %d: %v", isa, err)
				continue
			}
			checkClose(t, d, g, m.Config.VocabSize, 1e-3)
			d.Close()
		}
		c := testConfig()
		c.TensorParallel = 2
		d, err := LoadModel(m, c, nil)
		if m.Config.Quantized.GroupSize == 64 || m.Config.Quantized.GroupSize == 32 {
			checkClose(t, openModel(t, m, c), g, m.Config.VocabSize, 1e-3)
		} else if err == nil { // 128 inputs of two ranks are less than a group for each
			t.Error("a group was cut over two ranks")
		}
		if err == nil {
			d.Close()
		}
	})
}

// What the unpacked rows stand for is what the reference multiplies with.
func TestGoldenFourBitsExactly(t *testing.T) {
	eachFourBits(t, func(t *testing.T, m *model.Model, g *golden) {
		tensors, err := m.Tensors()
		if err != nil {
			t.Fatal(err)
		}
		four := 0
		for i := range tensors {
			t := &tensors[i]
			if group := groupOf(t.DType); group > 0 {
				four++
				*t = widened(*t, group)
			}
		}
		if four != 7*m.Config.NumLayers {
			t.Fatalf("%d matrices in 4 bits", four)
		}
		freqs, _ := m.Config.RopeTable()
		invFreq := make([]float32, len(freqs))
		for i, f := range freqs {
			invFreq[i] = float32(f)
		}
		d, err := Open(ForModel(m.Config, testConfig()), invFreq, make([]int32, m.Config.NumLayers))
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		for _, w := range tensors {
			if err := d.LoadExpert(int(w.Role), w.Layer, w.Expert, int(w.DType), int64(w.Rows), int64(w.Cols), w.Data); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Ready(); err != nil {
			t.Fatal(err)
		}
		checkGolden(t, d, g, m.Config.VocabSize, 1e-4)
	})
}

func groupOf(d model.DType) int {
	return map[model.DType]int{model.I4x32: 32, model.I4x64: 64, model.I4x128: 128}[d]
}

// widened is the same matrix in float32.
func widened(t model.Tensor, group int) model.Tensor {
	data, err := t.Bytes(nil)
	if err != nil {
		panic(err)
	}
	wide := make([]byte, 0, 4*t.Rows*t.Cols)
	for range t.Rows * t.Cols / group {
		scale, zero := halfOf(data), halfOf(data[2:])
		for i := range group {
			q := data[4+i/2] >> (4 * (i % 2)) & 15
			wide = binary.LittleEndian.AppendUint32(wide, math.Float32bits(float32(scale*(float64(q)-zero))))
		}
		data = data[4+group/2:]
	}
	return model.Tensor{Role: t.Role, Layer: t.Layer, Expert: t.Expert, Rows: t.Rows, Cols: t.Cols, DType: model.F32, Data: wide}
}

// halfOf reads a float16.
func halfOf(b []byte) float64 {
	h := binary.LittleEndian.Uint16(b)
	exponent, f := int(h>>10&31), float64(h&1023)
	if exponent > 0 {
		f += 1024
	}
	f = math.Ldexp(f, max(exponent, 1)-25)
	if h>>15 == 1 {
		f = -f
	}
	return f
}
