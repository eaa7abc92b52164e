package device

import (
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/model"
)

func TestLayouts(t *testing.T) {
	for _, m := range mirrors() {
		if m.c.Size() != m.golang.Size() || m.c.NumField() != m.golang.NumField() {
			t.Errorf("%v: %d bytes in %d fields, in C %d in %d", m.golang, m.golang.Size(), m.golang.NumField(), m.c.Size(),
				m.c.NumField())
			continue
		}
		for i := range m.c.NumField() {
			c, g := m.c.Field(i), m.golang.Field(i)
			if c.Offset != g.Offset || c.Type.Size() != g.Type.Size() {
				t.Errorf("%v.%s: %d bytes at %d, in C %d at %d", m.golang, g.Name, g.Type.Size(), g.Offset, c.Type.Size(), c.Offset)
			}
			name := strings.ReplaceAll(c.Name, "_", "")
			if !strings.EqualFold(name, g.Name) && (g.Name != "_" || name != "reserved") {
				t.Errorf("%v.%s stands for C's %s", m.golang, g.Name, c.Name)
			}
			if element(c.Type) != element(g.Type) {
				t.Errorf("%v.%s is a %v, in C a %v", m.golang, g.Name, g.Type, c.Type)
			}
		}
	}
	for name, v := range constants() {
		if v[0] != v[1] {
			t.Errorf("%s is %d, in Go %d", name, v[0], v[1])
		}
	}
}

func element(t reflect.Type) reflect.Kind {
	if t.Kind() == reflect.Array {
		return t.Elem().Kind()
	}
	return t.Kind()
}

func openLlama(t *testing.T) (*Device, *model.Model) {
	t.Helper()
	m, err := model.Open("../model/testdata/llama")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return openModel(t, m, testConfig()), m
}

func TestOpenRefuses(t *testing.T) {
	_, m := openLlama(t)
	good := ForModel(m.Config, testConfig())
	freq, windows := make([]float32, good.HeadDim/2), make([]int32, good.Layers)
	before := OpenCount()
	for name, change := range map[string]func(*Config){
		"dtype":      func(c *Config) { c.DType = F16 },
		"negative":   func(c *Config) { c.MaxSeqs = -1 },
		"huge":       func(c *Config) { c.NumBlocks = 1 << 40 },
		"heads":      func(c *Config) { c.KVHeads = 3 },
		"no blocks":  func(c *Config) { c.NumBlocks = 0 },
		"no layers":  func(c *Config) { c.Layers = 0 },
		"block size": func(c *Config) { c.BlockSize = 0 },
	} {
		c := good
		change(&c)
		if _, err := Open(c, freq, windows); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Open(good, freq[1:], windows); !errors.Is(err, ErrInvalid) {
		t.Errorf("too few frequencies: %v", err)
	}
	d, err := Open(good, freq, windows)
	if err != nil {
		t.Fatal(err)
	}
	var e *Error
	if err := d.Ready(); !errors.As(err, &e) || !errors.Is(err, ErrInvalid) || e.Message == "" || e.Instance != -1 {
		t.Errorf("ready without tensors: %v", err)
	}
	if err := d.Load(11, 1, F32, 2, 2, make([]byte, 16)); !errors.As(err, &e) || e.Layer != 1 {
		t.Errorf("a tensor of a wrong shape: %v", err)
	}
	if d.Step() != nil || OpenCount() != before+1 {
		t.Errorf("step %v, %d devices", d.Step(), OpenCount())
	}
	d.Close()
	if OpenCount() != before {
		t.Errorf("%d devices are open, %d were", OpenCount(), before)
	}
}

func TestClosedDevice(t *testing.T) {
	d, _ := openLlama(t)
	d.Close()
	d.Close()
	_, waitErr := d.Wait(0)
	_, _, moveErr := d.MoveWait(0)
	for i, err := range []error{d.Submit(), d.Run(0), d.OpenSlot(0, greedy, nil, 0, nil), d.SpanSet(0, 0, 0, nil), d.SpanShare(0, 0, 0, nil), d.SpanClose(0, 0),
		d.WaveOpen(1, time.Second), d.SpanWave(0, 0, 0, nil, 1), d.WaveClose(1),
		d.MovePost(0, 0, 0, 0, nil, 0), d.PeerDetach(0), d.PeerStatus(0), d.PeerAttach(0, nil, nil), d.PeerRail(0, 1, true, nil), d.SharePool("", ""), d.Ready(), waitErr, moveErr} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("call %d: %v", i, err)
		}
	}
	if d.ISA() != "" || d.Step() != nil || d.Stats() != (Stats{}) {
		t.Error("a closed device has properties")
	}
}

// A wave is filled by steps that name it, one after the other, and is nobody's before it is opened and after its close.
func TestWave(t *testing.T) {
	d, m := openLlama(t)
	tokens := []int32{1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15}
	r := newRequest(t, d, 0, greedy, tokens, 0, 4)
	feed := func(n int) error {
		s := d.Step()
		s.Reset(1, peerWaitNS, 0)
		seq, err := s.AddSeq(0, r.done, 0, tokens[r.done:r.done+n], r.local, nil)
		if err != nil {
			return err
		}
		s.Seqs[seq].Wave = 3
		if err = d.Run(testWait); err == nil {
			r.done += n
		}
		return err
	}
	for i, err := range []error{feed(8), d.WaveClose(3), d.SpanWave(1, 0, 1, r.local, 3), d.WaveOpen(0, time.Second), d.WaveOpen(3, -1),
		d.WaveOpen(batch.MaxWaves+1, time.Second)} {
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("call %d, without a wave: %v", i, err)
		}
	}
	if err := errors.Join(d.WaveOpen(3, time.Second), d.SpanWave(1, 0, 1, r.local, 3), d.SpanWave(2, 1, 1, r.local[:2], 3), feed(8), feed(4)); err != nil {
		t.Error(err)
	}
	if err := d.SpanWave(4, 2, 1, r.local[1:], 3); !errors.Is(err, ErrInvalid) {
		t.Errorf("other blocks than the wave's: %v", err)
	}
	if err := d.WaveOpen(3, time.Second); !errors.Is(err, ErrInvalid) {
		t.Errorf("opened twice: %v", err)
	}
	r.done = 4
	if err := feed(4); !errors.Is(err, ErrInvalid) {
		t.Errorf("over tokens that are there: %v", err)
	}
	if err := errors.Join(d.WaveClose(3), d.SpanClose(0, 1), d.SpanClose(1, 1)); err != nil {
		t.Error(err)
	}
	c := ForModel(m.Config, testConfig())
	c.TensorParallel = 2
	cut := openModel(t, m, c)
	if err := cut.WaveOpen(1, time.Second); !errors.Is(err, ErrUnsupported) {
		t.Errorf("over two ranks: %v", err)
	}
}

// A device without weights has a pool and answers others; it takes no tensors and no steps.
func TestNoWeights(t *testing.T) {
	m, err := model.Open("../model/testdata/llama")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	d, err := LoadModel(m, Config{DType: F32, BlockSize: 4, NumBlocks: 8, MaxTokens: 8, MaxSeqs: 2, MaxRows: 8, MaxStepBlocks: 8, MaxStepSpans: 8,
		MaxSpans: 8, Threads: 1, NoWeights: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	_, waitErr := d.Wait(0)
	for i, err := range []error{d.Submit(), d.OpenSlot(0, greedy, nil, 0, nil), d.Load(0, -1, F32, 1, 1, make([]byte, 4)), d.Ready(), waitErr} {
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("call %d: %v", i, err)
		}
	}
	if err := errors.Join(d.Err(), d.SpanSet(1, 0, 1, []int32{3, 4}), d.SpanShare(1, 1, 1, []int32{3, 4}), d.SpanClose(0, 1), d.SpanClose(1, 1)); err != nil {
		t.Error(err)
	}
	if d.Step() != nil || d.ISA() == "" || d.Stats() != (Stats{}) {
		t.Errorf("%v %q %+v", d.Step(), d.ISA(), d.Stats())
	}
}

func TestStepErrors(t *testing.T) {
	d, m := openLlama(t)
	s := d.Step()
	s.Reset(1, 0, 0)
	if err := d.Submit(); !errors.Is(err, ErrInvalid) {
		t.Errorf("an empty step: %v", err)
	}
	if _, err := d.Wait(0); !errors.Is(err, ErrInvalid) {
		t.Errorf("wait without a step: %v", err)
	}
	if err := d.OpenSlot(0, batch.Sampling{TopP: 2, Repetition: 1}, nil, 0, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("top_p 2: %v", err)
	}
	if err := d.OpenSlot(0, greedy, nil, 0, make([]batch.Bias, MaxBias+1)); !errors.Is(err, ErrInvalid) {
		t.Errorf("too many biases: %v", err)
	}
	if err := d.OpenSlot(0, greedy, []int32{int32(m.Config.VocabSize)}, 1, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("a token outside the vocabulary: %v", err)
	}
	if err := d.SpanClose(3, 1); !errors.Is(err, ErrStale) {
		t.Errorf("an unknown span: %v", err)
	}
	if err := d.SharePool("none", "cluster"); err == nil {
		t.Error("the pool is registered with a device that is not there")
	}
	if out, puts, why := d.PeerRails(9); out != 0 || puts != 0 || why != "" {
		t.Errorf("an unknown peer has rails %b, %b, %q", out, puts, why)
	}
	if err := d.PeerRail(9, 1, false, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("a rail without a link: %v", err)
	}
	if err := d.PeerStatus(9); err == nil {
		t.Error("an unknown peer is alive")
	}
	if _, ok, err := d.MoveWait(time.Millisecond); ok || err != nil {
		t.Errorf("a move that nobody posted: %v %v", ok, err)
	}
}

// The parameters reach C: bias forces a token, penalties forbid what was said, a seed repeats its draws.
func TestSampling(t *testing.T) {
	d, _ := openLlama(t)
	checkSampling(t, d)
}

func checkSampling(t *testing.T, d *Device) {
	prompt := []int32{5, 9, 77, 30}
	draw := func(s batch.Sampling, bias []batch.Bias) int32 {
		t.Helper()
		r := newRequest(t, d, 2, s, prompt, 0, 4)
		if err := d.OpenSlot(2, s, prompt, len(prompt), bias); err != nil {
			t.Fatal(err)
		}
		return r.feed(len(prompt), batch.Row{Token: 3, Target: -1})[0].Token
	}
	best := draw(greedy, nil)
	if got := draw(greedy, []batch.Bias{{Token: 123, Value: 100}, {Token: 4, Value: -100}}); got != 123 {
		t.Errorf("biased token is %d", got)
	}
	if got := draw(greedy, []batch.Bias{{Token: best, Value: -100}}); got == best {
		t.Errorf("token %d was forbidden", got)
	}
	seen := map[int32]int{}
	for seed := range uint64(40) {
		s := batch.Sampling{Temperature: 3, TopP: 1, Repetition: 1, Seed: seed}
		token := draw(s, nil)
		if draw(s, nil) != token {
			t.Fatalf("seed %d drew twice differently", seed)
		}
		seen[token]++
		s.TopK = 2
		if token = draw(s, nil); token != best {
			seen[-1-token]++
		}
	}
	second := 0
	for token := range seen {
		if token < 0 {
			second++
		}
	}
	if len(seen) < 10 || second != 1 {
		t.Errorf("40 seeds drew %v; top_k 2 knew %d tokens beside the best", seen, second)
	}
}

func TestSizesAndStats(t *testing.T) {
	d, m := openLlama(t)
	c := d.Config()
	if want := uint64(c.Layers * 2 * c.KVHeads * blockSize * c.HeadDim * 4); BlockBytes(c) != want {
		t.Errorf("a block has %d bytes, want %d", BlockBytes(c), want)
	}
	if BlockBytes(Config{}) != 0 || QuerySlotBytes(c) == 0 || QuerySlotBytes(c)%64 != 0 || MoveSlotBytes(c) < BlockBytes(c) {
		t.Errorf("slots of %d and %d bytes", QuerySlotBytes(c), MoveSlotBytes(c))
	}
	r := newRequest(t, d, 0, greedy, make([]int32, 30), 0, 10)
	out := r.feed(30, batch.Row{Token: 29, Target: -1, NTop: batch.MaxTop})[0]
	if out.NTop != batch.MaxTop || out.TopIDs[0] != out.Token || out.TopLogprobs[0] != out.Logprob || math.IsNaN(float64(out.Logprob)) {
		t.Errorf("row %+v", out)
	}
	if s := d.Stats(); s.Steps != 1 || s.Tokens != 30 || s.StepNs == 0 || s.QueryMessages != 0 {
		t.Errorf("counters %+v", s)
	}
	if d.ISA() == "" || LibraryHash("cpu") == "" && LibraryHash("asan") == "" {
		t.Errorf("isa %q, library %q", d.ISA(), LibraryHash("cpu"))
	}
	_ = m
}
