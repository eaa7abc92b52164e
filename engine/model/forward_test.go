package model

import (
	"cmp"
	"encoding/binary"
	"math"
	"slices"
)

// reference is a plain forward pass in float64 that shares nothing with the data plane: it proves that the
// tensors, their order and roles, the rope table and the windows mean what transformers means by them.
type reference struct {
	c     *Config
	w     map[[3]int][]float64 // (role, layer, expert) -> values
	inv   []float64
	scale float64
	local []float64 // of layers with a window, where they have their own
}

func newReference(m *Model) (*reference, error) {
	tensors, err := m.Tensors()
	if err != nil {
		return nil, err
	}
	r := &reference{c: m.Config, w: map[[3]int][]float64{}}
	for _, t := range tensors {
		r.w[[3]int{int(t.Role), t.Layer, t.Expert}] = widen(t)
	}
	r.inv, r.scale = m.Config.RopeTable()
	r.local = m.Config.LocalRopeTable()
	return r, nil
}

func widen(t Tensor) []float64 {
	out := make([]float64, t.Rows*t.Cols)
	for i := range out {
		switch t.DType {
		case F32:
			out[i] = float64(math.Float32frombits(binary.LittleEndian.Uint32(t.Data[4*i:])))
		case BF16:
			out[i] = float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(t.Data[2*i:])) << 16))
		case F16:
			h := binary.LittleEndian.Uint16(t.Data[2*i:])
			exponent, fraction := int(h>>10&31), float64(h&1023)
			v := math.Ldexp(1+fraction/1024, exponent-15)
			if exponent == 0 {
				v = math.Ldexp(fraction/1024, -14)
			}
			if h>>15 == 1 {
				v = -v
			}
			out[i] = v
		}
	}
	return out
}

func (r *reference) at(role Role, layer int) []float64 { return r.w[[3]int{int(role), layer, -1}] }

func silu(x float64) float64 { return x / (1 + math.Exp(-x)) }
func gelu(x float64) float64 {
	return x / 2 * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(x+0.044715*x*x*x)))
}

// gated is down(activation(gate x) * up x).
func gated(activation func(float64) float64, gate, up, down, x []float64) []float64 {
	g, u := linear(gate, x, nil), linear(up, x, nil)
	for j, v := range g {
		u[j] *= activation(v)
	}
	return linear(down, u, nil)
}

// softcap64 is cap tanh(x / cap), x where cap is 0.
func softcap64(x, bound float64) float64 {
	if bound == 0 {
		return x
	}
	return bound * math.Tanh(x/bound)
}

// mlp is what a layer adds behind its second norm.
func (r *reference) mlp(l int, x []float64) []float64 {
	e := r.c.Experts
	if e == nil || !e.Layers[l] {
		activation := silu
		if r.c.Activation == GELUTanh {
			activation = gelu
		}
		return gated(activation, r.at(Gate, l), r.at(Up, l), r.at(Down, l), x)
	}
	p := linear(r.at(Router, l), x, nil)
	var sum float64
	for i, v := range p {
		p[i] = math.Exp(v)
		sum += p[i]
	}
	order := make([]int, len(p))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(p[b], p[a]) })
	if order = order[:e.PerToken]; e.Normalise {
		sum = 0
		for _, i := range order {
			sum += p[i]
		}
	}
	out := make([]float64, len(x))
	add := func(factor float64, y []float64) {
		for i, v := range y {
			out[i] += factor * v
		}
	}
	for _, i := range order {
		w := func(role Role) []float64 { return r.w[[3]int{int(role), l, i}] }
		add(p[i]/sum, gated(silu, w(ExpertGate), w(ExpertUp), w(ExpertDown), x))
	}
	if e.Shared > 0 {
		logit := linear(r.at(SharedRouter, l), x, nil)[0]
		add(1/(1+math.Exp(-logit)), gated(silu, r.at(SharedGate, l), r.at(SharedUp, l), r.at(SharedDown, l), x))
	}
	return out
}

// linear is w x + bias; w is [rows, len(x)], bias may be nil.
func linear(w, x, bias []float64) []float64 {
	out := make([]float64, len(w)/len(x))
	for i := range out {
		var sum float64
		for j, v := range x {
			sum += w[i*len(x)+j] * v
		}
		if bias != nil {
			sum += bias[i]
		}
		out[i] = sum
	}
	return out
}

func rmsNorm(x, weight []float64, eps float64) []float64 {
	var sum float64
	for _, v := range x {
		sum += v * v
	}
	f := 1 / math.Sqrt(sum/float64(len(x))+eps)
	out := make([]float64, len(x))
	for i, v := range x {
		out[i] = v * f * weight[i]
	}
	return out
}

// heads norms and turns the heads of x, [heads * head_dim], for a position in a layer.
func (r *reference) heads(x, norm []float64, layer, position int) {
	d, inv, scale := r.c.HeadDim, r.inv, r.scale
	if r.local != nil && r.c.SlidingWindow[layer] > 0 {
		inv, scale = r.local, 1
	}
	if r.c.QKNormAll {
		copy(x, rmsNorm(x, norm, float64(r.c.RMSNormEps)))
		norm = nil
	}
	for h := 0; h < len(x); h += d {
		head := x[h : h+d]
		if norm != nil {
			copy(head, rmsNorm(head, norm, float64(r.c.RMSNormEps)))
		}
		half := len(inv)
		for i, f := range inv {
			angle := float64(float32(position) * float32(f))
			sin, cos := math.Sincos(angle)
			a, b := head[i], head[i+half]
			head[i] = (a*cos - b*sin) * scale
			head[i+half] = (b*cos + a*sin) * scale
		}
	}
}

// attend is the attention of a query over the keys and values it sees, [tokens][kv_heads * head_dim].
func (r *reference) attend(q []float64, k, v [][]float64, window int) []float64 {
	d, group := r.c.HeadDim, r.c.NumHeads/r.c.NumKVHeads
	first := 0
	if window > 0 {
		first = max(0, len(k)-window)
	}
	out := make([]float64, len(q))
	for h := range r.c.NumHeads {
		kv := h / group * d
		scores, top := make([]float64, len(k)), math.Inf(-1)
		for j := first; j < len(k); j++ {
			for i := range d {
				scores[j] += q[h*d+i] * k[j][kv+i]
			}
			if r.c.AttnScale > 0 {
				scores[j] *= r.c.AttnScale
			} else {
				scores[j] /= math.Sqrt(float64(d))
			}
			scores[j] = softcap64(scores[j], r.c.AttnSoftcap)
			top = max(top, scores[j])
		}
		var sum float64
		for j := first; j < len(k); j++ {
			p := math.Exp(scores[j] - top)
			sum += p
			for i := range d {
				out[h*d+i] += p * v[j][kv+i]
			}
		}
		for i := range d {
			out[h*d+i] /= sum
		}
	}
	return out
}

// logits returns the logits after each token, [tokens][vocab].
func (r *reference) logits(tokens []int) [][]float64 {
	h, eps := r.c.HiddenSize, float64(r.c.RMSNormEps)
	x := make([][]float64, len(tokens))
	for i, id := range tokens {
		x[i] = append([]float64(nil), r.at(Embed, -1)[id*h:(id+1)*h]...)
		for j := range x[i] {
			x[i][j] *= cmp.Or(r.c.EmbedScale, 1)
		}
	}
	for l := range r.c.NumLayers {
		var k, v [][]float64
		for i := range x {
			in := r.norm(x[i], AttnNorm, l)
			q := linear(r.at(Q, l), in, r.at(QBias, l))
			key := linear(r.at(K, l), in, r.at(KBias, l))
			r.heads(q, r.at(QNorm, l), l, i)
			r.heads(key, r.at(KNorm, l), l, i)
			k, v = append(k, key), append(v, linear(r.at(V, l), in, r.at(VBias, l)))
			addTo(x[i], r.norm(linear(r.at(O, l), r.attend(q, k, v, r.c.SlidingWindow[l]), nil), AttnPostNorm, l))
			in = r.norm(x[i], MLPNorm, l)
			addTo(x[i], r.norm(r.mlp(l, in), MLPPostNorm, l))
		}
	}
	for i := range x {
		x[i] = linear(r.at(LMHead, -1), rmsNorm(x[i], r.at(FinalNorm, -1), eps), nil)
		for j := range x[i] {
			x[i][j] = softcap64(x[i][j], r.c.LogitSoftcap)
		}
	}
	return x
}

// norm is x where the layer has no norm of this role.
func (r *reference) norm(x []float64, role Role, layer int) []float64 {
	weight := r.at(role, layer)
	if weight == nil {
		return x
	}
	return rmsNorm(x, weight, float64(r.c.RMSNormEps))
}

func addTo(x, y []float64) {
	for i, v := range y {
		x[i] += v
	}
}
