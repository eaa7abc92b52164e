package device

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	blockSize  = 4
	numBlocks  = 128
	testWait   = time.Minute
	peerWaitNS = uint64(20 * time.Second)
)

// golden is what transformers answered, engine/model/testdata.
type golden struct {
	Prompt    []int32 `json:"prompt"`
	Positions []int   `json:"positions"`
	Logits    string  `json:"logits"`
	Greedy    []int32 `json:"greedy"`
	Top       []struct {
		IDs      []int32   `json:"ids"`
		Logprobs []float64 `json:"logprobs"`
	} `json:"top"`
}

// rows decodes the logits, [len(Positions)][vocab].
func (g *golden) rows(t *testing.T, vocab int) [][]float64 {
	t.Helper()
	data, err := base64.StdEncoding.DecodeString(g.Logits)
	if err != nil || len(data) != 4*vocab*len(g.Positions) {
		t.Fatalf("%d bytes of logits: %v", len(data), err)
	}
	rows := make([][]float64, len(g.Positions))
	for i := range rows {
		rows[i] = make([]float64, vocab)
		for v := range rows[i] {
			rows[i][v] = float64(math.Float32frombits(binary.LittleEndian.Uint32(data[4*(i*vocab+v):])))
		}
	}
	return rows
}

// eachGolden runs f for every reference model.
func eachGolden(t *testing.T, f func(t *testing.T, m *model.Model, g *golden)) {
	eachGoldenIn(t, "../model/testdata", f)
}

func eachGoldenIn(t *testing.T, folder string, f func(t *testing.T, m *model.Model, g *golden)) {
	files, err := filepath.Glob(filepath.Join(folder, "*", "golden.json"))
	if err != nil || len(files) < 5 {
		t.Fatalf("%d goldens: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var g golden
			if err := json.Unmarshal(data, &g); err != nil {
				t.Fatal(err)
			}
			m, err := model.Open(filepath.Dir(file))
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			f(t, m, &g)
		})
	}
}

func testConfig() Config {
	return Config{
		DType: F32, BlockSize: blockSize, NumBlocks: numBlocks, MaxTokens: 256, MaxSeqs: 4, MaxRows: 512, MaxStepBlocks: 256,
		MaxStepSpans: 64, MaxSpans: 32, Threads: 2,
	}
}

// openModel opens a device that the test closes at its end.
func openModel(t *testing.T, m *model.Model, c Config) *Device {
	t.Helper()
	d, err := LoadModel(m, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

var greedy = batch.Sampling{TopP: 1, Repetition: 1}

// request is a text on its way through a device: what is computed, and where its KV lies.
type request struct {
	t      *testing.T
	d      *Device
	slot   uint32
	flags  uint32
	tokens []int32
	done   int
	local  []int32 // blocks from position localPos on
	pos    int     // localPos
	spans  []batch.Span
}

// newRequest opens a slot and takes the blocks [first, first+n), in an order that is not theirs.
func newRequest(t *testing.T, d *Device, slot uint32, s batch.Sampling, tokens []int32, first, n int) *request {
	t.Helper()
	if err := d.OpenSlot(slot, s, tokens, len(tokens), nil); err != nil {
		t.Fatal(err)
	}
	r := &request{t: t, d: d, slot: slot, tokens: slices.Clone(tokens)}
	for _, i := range rand.New(rand.NewPCG(1, 2)).Perm(n) {
		r.local = append(r.local, int32(first+i))
	}
	return r
}

// feed computes the next n tokens and returns the rows asked for by want: (token within n, target, alternatives).
func (r *request) feed(n int, want ...batch.Row) []batch.RowOut {
	r.t.Helper()
	s := r.d.Step()
	s.Reset(1, peerWaitNS, r.flags)
	seq, err := s.AddSeq(r.slot, r.done, r.pos, r.tokens[r.done:r.done+n], r.local, r.spans)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, w := range want {
		if _, err := s.AddRow(seq, int(w.Token), w.Target, int(w.NTop)); err != nil {
			r.t.Fatal(err)
		}
	}
	if err := r.d.Run(testWait); err != nil {
		r.t.Fatal(err)
	}
	if err := StatusError(s.SeqOut[seq].Status, s.SeqOut[seq].Peer); err != nil {
		r.t.Fatal(err)
	}
	r.done += n
	return slices.Clone(s.RowOut[:len(want)])
}

// ragged feeds tokens up to end in random chunks without asking for rows.
func (r *request) ragged(rng *rand.Rand, end int) {
	r.t.Helper()
	for r.done < end {
		r.feed(min(1+rng.IntN(40), end-r.done))
	}
}

// decode feeds the last token and appends the answer.
func (r *request) decode(top int) batch.RowOut {
	r.t.Helper()
	out := r.feed(1, batch.Row{Target: -1, NTop: uint32(top)})[0]
	r.tokens = append(r.tokens, out.Token)
	return out
}

// near tells whether two log probabilities agree to 1e-4, relative where they are large.
func near(got float32, want float64) bool { return within(1e-4, got, want) }

func within(tolerance float64, got float32, want float64) bool {
	return math.Abs(float64(got)-want) <= tolerance*max(1, math.Abs(want))
}
