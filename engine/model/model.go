package model

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"slices"
	"strings"

	"github.com/infinite-llm/infinite/engine/model/bundled"
)

// Model is an open model folder. Its methods are safe for concurrent use, Close apart.
type Model struct {
	Config     *Config           // with the special tokens of generation_config.json, which override
	Generation *GenerationConfig // empty where the folder has no generation_config.json

	// Fingerprint names the model: instances that pool their caches must have the same. It is a SHA-256, in
	// hex, over the architecture, the names, types and shapes of the tensors and samples of their bytes, so it
	// costs little even for weights larger than memory. How the weights are cut into files does not matter.
	Fingerprint string

	src     files
	tensors []Tensor
	entries []entry // of the fingerprint
}

// Open opens the model in a folder and checks that it can be served. The weights are mapped, not read: they
// must not change or shrink while the model is open.
func Open(dir string) (*Model, error) {
	m, err := open(&folder{dir: dir})
	if err != nil {
		return nil, fmt.Errorf("cannot open model %s: %w", dir, err)
	}
	return m, nil
}

// OpenFS is Open from a file system, such as Bundled(). The weights are read into memory.
func OpenFS(fsys fs.FS) (*Model, error) {
	m, err := open(fsFiles{fsys})
	if err != nil {
		return nil, fmt.Errorf("cannot open model: %w", err)
	}
	return m, nil
}

// Bundled is the folder of the model that is part of the binary, its tokenizer included.
func Bundled() fs.FS { return bundled.FS }

func open(src files) (*Model, error) {
	m := &Model{src: src}
	if err := m.load(); err != nil {
		return nil, errors.Join(err, src.close())
	}
	return m, nil
}

func (m *Model) load() error {
	data, err := m.src.small("config.json", maxConfigFile)
	if err != nil {
		return err
	}
	if m.Config, err = ParseConfig(data); err != nil {
		return err
	}
	m.Generation = &GenerationConfig{}
	data, err = m.src.small("generation_config.json", maxConfigFile)
	if err == nil {
		m.Generation, err = ParseGenerationConfig(data, m.Config.VocabSize)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	entries, err := loadEntries(m.src)
	if err != nil {
		return err
	}
	if m.tensors, err = arrange(m.Config, entries); err != nil {
		return err
	}
	if m.Config.DType == "" {
		m.Config.DType = m.tensors[0].DType.String()
	}
	if arch, _ := architectures(m.Config.Arch); arch.family.embedRoot {
		m.Config.EmbedScale = m.Config.rootOfHidden()
	}
	m.entries = entries
	if m.Fingerprint, err = fingerprint(m.Config, entries); err != nil {
		return err
	}
	if m.Generation.EOS != nil {
		m.Config.EOS = slices.Clone(m.Generation.EOS)
	}
	if m.Generation.BOS != nil {
		m.Config.BOS = *m.Generation.BOS
	}
	return nil
}

// Limit says how many tokens the longest request may have, 0 for as many as the model is made for. It settles what
// depends on that, for all requests and all instances of a cluster, whose fingerprints differ otherwise: longrope has
// factors for short and for long requests, and K that was rotated by one cannot be used with the other. As in vLLM and
// llama.cpp the limit decides, and not a request's own length. Before the model is used.
func (m *Model) Limit(tokens int) error {
	r := &m.Config.Rope
	long := r.Type == "longrope" && m.Config.MaxPositions > r.OriginalMaxPositions && (tokens == 0 || tokens > r.OriginalMaxPositions)
	if long == r.Long {
		return nil
	}
	r.Long = long
	var err error
	m.Fingerprint, err = fingerprint(m.Config, m.entries)
	return err
}

// Tensors returns every tensor in the order the data plane takes them: Embed, the layers' from the first, in
// order of role within a layer, FinalNorm, LMHead. With tied embeddings LMHead has the Data of Embed; a data
// plane that shares them itself leaves it out. Fails after Close.
func (m *Model) Tensors() ([]Tensor, error) {
	if m.tensors == nil {
		return nil, errors.New("cannot list the tensors of a closed model")
	}
	return slices.Clone(m.tensors), nil
}

// Int8Group and Int4Group are the numbers of inputs that have a scale of 4 bytes, for each output, in a matrix of
// --quantization int8, and a scale and a zero of 4 bytes together in one of int4.
const (
	Int8Group = 128
	Int4Group = 32
)

// FewBitsRow is the memory of an output with so many inputs in 8 or in 4 bits.
func FewBitsRow(inputs uint64, four bool) uint64 {
	if four {
		return (inputs+1)/2 + 4*((inputs+Int4Group-1)/Int4Group)
	}
	return inputs + 4*((inputs+Int8Group-1)/Int8Group)
}

// WeightBytes is the memory that the weights take: matrices with numbers of so many bytes, vectors always in
// float32, as routers of experts are, and a tied LM head not again. Of several ranks it is the first's, which has most: a part of each
// layer's matrices and of the LM head, and all else.
func (m *Model) WeightBytes(matrix, ranks int) (uint64, error) {
	tensors, err := m.Tensors()
	if err != nil {
		return 0, err
	}
	total := uint64(0)
	for _, t := range tensors {
		switch n := uint64(t.Rows) * uint64(t.Cols); {
		case t.Role == LMHead && m.Config.TieEmbeddings:
		case t.Role == Router || t.Role == SharedRouter: // on every rank, and exact
			total += n * 4
		case t.Rows > 1 && (t.Layer >= 0 || t.Role == LMHead):
			total += n * uint64(matrix) / uint64(max(ranks, 1))
		case t.Rows > 1:
			total += n * uint64(matrix)
		default:
			total += n * 4
		}
	}
	return total, nil
}

// Close releases the weights; the Data of every Tensor is invalid afterwards. A second Close does nothing.
func (m *Model) Close() error {
	if m.tensors == nil {
		return nil
	}
	m.tensors, m.entries = nil, nil
	if err := m.src.close(); err != nil {
		return fmt.Errorf("cannot close model: %w", err)
	}
	return nil
}

const (
	sampleCount = 16 // samples of a tensor's bytes
	sampleBytes = 64
)

func fingerprint(c *Config, entries []entry) (string, error) {
	arch := c.Clone()
	arch.BOS, arch.EOS = 0, nil // when an answer ends does not touch the cache
	data, err := json.Marshal(arch)
	if err != nil {
		return "", fmt.Errorf("cannot encode the configuration: %w", err)
	}
	h := sha256.New()
	field(h, data)
	sorted := slices.Clone(entries)
	slices.SortFunc(sorted, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	for _, e := range sorted {
		field(h, []byte(e.name))
		field(h, []byte(e.dtype))
		field(h, fmt.Append(nil, e.shape))
		sample(h, e.data)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// field writes a length before the bytes, so that no two lists of fields hash alike.
func field(h hash.Hash, b []byte) {
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], uint64(len(b)))
	_, _ = h.Write(n[:]) // a hash.Hash never fails
	_, _ = h.Write(b)
}

// sample hashes evenly spread pieces of data, the first and the last bytes among them; all of it when small.
func sample(h hash.Hash, data []byte) {
	if len(data) <= sampleCount*sampleBytes {
		field(h, data)
		return
	}
	step := (len(data) - sampleBytes) / (sampleCount - 1)
	for i := range sampleCount - 1 {
		field(h, data[i*step:i*step+sampleBytes])
	}
	field(h, data[len(data)-sampleBytes:])
}
