package device

import (
	"fmt"

	"github.com/infinite-llm/infinite/engine/model"
)

// ForModel fills the model's part of a config.
func ForModel(m *model.Config, c Config) Config {
	_, scale := m.RopeTable()
	c.Layers, c.Hidden, c.Intermediate = m.NumLayers, m.HiddenSize, m.IntermediateSize
	c.Heads, c.KVHeads, c.HeadDim, c.Vocab = m.NumHeads, m.NumKVHeads, m.HeadDim, m.VocabSize
	c.QKVBias, c.QKNorm, c.Tied = m.QKVBias, m.QKNorm, m.TieEmbeddings
	c.RMSEps, c.RopeScale = m.RMSNormEps, float32(scale)
	c.PostNorms, c.NoPreNorms, c.QKNormAll = m.PostNorms, m.NoPreNorms, m.QKNormAll
	c.GELU, c.RotaryDim = m.Activation == model.GELUTanh, m.RotaryDim
	c.AttnScale, c.AttnSoftcap = float32(m.AttnScale), float32(m.AttnSoftcap)
	c.LogitSoftcap, c.EmbedScale = float32(m.LogitSoftcap), float32(m.EmbedScale)
	c.LocalRope = m.LocalTheta > 0
	if e := m.Experts; e != nil {
		c.Experts, c.ExpertsPerToken, c.ExpertIntermediate, c.SharedIntermediate = e.Count, e.PerToken, e.Intermediate, e.Shared
		c.NormTopK = e.Normalise
	}
	return c
}

// LoadModel opens a device for the model, loads its tensors and makes it ready. The model may be closed after.
// Only the limits and DType of c are the caller's. progress, if not nil, hears how many tensors are in.
func LoadModel(m *model.Model, c Config, progress func(done, all int)) (*Device, error) {
	freqs, _ := m.Config.RopeTable()
	freqs = append(freqs, m.Config.LocalRopeTable()...)
	invFreq := make([]float32, len(freqs))
	for i, f := range freqs {
		invFreq[i] = float32(f)
	}
	windows := make([]int32, m.Config.NumLayers)
	for i, w := range m.Config.SlidingWindow {
		windows[i] = int32(w)
	}
	var tensors []model.Tensor
	if !c.NoWeights {
		var err error
		if tensors, err = m.Tensors(); err != nil {
			return nil, err
		}
	}
	d, err := Open(ForModel(m.Config, c), invFreq, windows)
	if err != nil {
		return nil, err
	}
	var unpacked []byte
	for i, t := range tensors {
		data, err := t.Bytes(unpacked)
		if err == nil {
			err = d.LoadExpert(int(t.Role), t.Layer, t.Expert, int(t.DType), int64(t.Rows), int64(t.Cols), data)
		}
		if t.Data == nil {
			unpacked = data
		}
		if err != nil {
			d.Close()
			return nil, fmt.Errorf("cannot load tensor %d of %d: %w", i+1, len(tensors), err)
		}
		if progress != nil {
			progress(i+1, len(tensors))
		}
	}
	if err := d.Ready(); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}
