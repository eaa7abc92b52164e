package doctor

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"github.com/infinite-llm/infinite/engine/model"
	"github.com/infinite-llm/infinite/engine/tokenizer"
)

// checkSettings reports each setting that cannot be used.
func checkSettings(_ context.Context, m *Machine) []Result {
	const subject = "settings"
	if m.ConfigErr == nil {
		return []Result{ok("config", subject, "valid; --transport %s, %s", m.Config.Transport, m.poolText())}
	}
	var results []Result
	for line := range strings.Lines(m.ConfigErr.Error()) {
		if line = strings.TrimSpace(line); line != "" {
			const remedy = "correct it (infinite serve --help lists all settings) and run this again; the other lines assume the defaults"
			results = append(results, failure("config", subject, remedy, "%s", line))
		}
	}
	return results
}

func (m *Machine) modelName() string {
	if m.Config.Model == "" {
		return "the bundled model"
	}
	return filepath.Clean(m.Config.Model)
}

func (m *Machine) openModel() (*model.Model, error) {
	if m.Config.Model == "" {
		return model.OpenFS(model.Bundled())
	}
	return model.Open(m.Config.Model)
}

func (m *Machine) hasModel() bool {
	opened, err := m.openModel()
	if err != nil {
		return false
	}
	_ = opened.Close()
	return true
}

func checkModel(_ context.Context, m *Machine) Result {
	const subject = "model"
	if m.ConfigErr != nil {
		return Result{}
	}
	opened, err := m.openModel()
	if err != nil {
		return failure("config", subject, "name a Hugging Face model folder with config.json and safetensors weights", "%s", oneLine(err))
	}
	defer func() { _ = opened.Close() }()
	c := opened.Config
	return ok("config", subject, "%s: %s, %s, %d tokens", m.modelName(), c.Arch, count(c.NumLayers, "layer"), c.MaxPositions)
}

// checkStart asks what serve asks of its settings once it knows the model. What a device or a model itself lacks is
// another check's.
func checkStart(_ context.Context, m *Machine) Result {
	const subject = "start"
	if m.ConfigErr != nil || m.DeviceErr != nil || m.Refused == nil {
		return Result{}
	}
	if !m.hasModel() {
		return Result{}
	}
	if err := m.Refused(); err != nil {
		return failure("config", subject, "change the setting that is named, or leave it out", "%s", oneLine(err))
	}
	return ok("config", subject, "the settings fit %s", m.modelName())
}

func checkTokenizer(_ context.Context, m *Machine) Result {
	const subject = "tokenizer"
	if m.ConfigErr != nil {
		return Result{}
	}
	var tok *tokenizer.Tokenizer
	var err error
	if m.Config.Model == "" {
		tok, err = tokenizer.LoadFS(model.Bundled())
	} else {
		tok, err = tokenizer.Load(m.Config.Model)
	}
	if err != nil {
		return failure("config", subject, "put the model's own tokenizer.json and tokenizer_config.json into the folder", "%s", oneLine(err))
	}
	if m.Config.ChatTemplate != "" {
		if _, err := tok.WithChatTemplateFile(m.Config.ChatTemplate); err != nil {
			return failure("config", subject, "name a file with a chat template that can be used by --chat-template, or leave it out", "%s", oneLine(err))
		}
	}
	return ok("config", subject, "%s has one that can be used", m.modelName())
}

// weightBytes is what the weights take in the memory of an instance on the CPU, or somewhat more: kernels pad some of them.
func weightBytes(opened *model.Model, dtype, quantization string) (uint64, error) {
	tensors, err := opened.Tensors()
	if err != nil {
		return 0, err
	}
	// As --dtype is resolved: matrices in bfloat16 where the checkpoint or the flag says so. Vectors are float32.
	width := uint64(4)
	if dtype == "bfloat16" || dtype == "auto" && opened.Config.DType == "bfloat16" {
		width = 2
	}
	total := uint64(0)
	for _, t := range tensors {
		rows, cols := uint64(t.Rows), uint64(t.Cols)
		switch {
		case rows <= 1 || t.Role == model.Router:
			total += rows * cols * 4
		case t.DType.Size() == 0: // in 4 bits as it comes
			total += rows * t.DType.FourBitsRow(cols)
		case t.Role != model.Embed && quantization != "none": // also a tied head, which is a copy that kernels can read fast
			total += rows * model.FewBitsRow(cols, quantization == "int4" && t.Role != model.LMHead)
		default:
			total += rows * cols * width
		}
	}
	return total, nil
}

// checkNeed compares what the instances will take with what is there.
func checkNeed(_ context.Context, m *Machine) Result {
	const subject = "memory"
	if m.ConfigErr != nil {
		return Result{}
	}
	if m.OnGPU {
		return m.checkGPUNeed()
	}
	room, err := m.usable()
	if err != nil {
		return unknown("config", subject, err)
	}
	n, pool := uint64(m.instances()), m.pool()
	weights, weightText := uint64(0), "weights of unknown size"
	if opened, err := m.openModel(); err == nil {
		weights, err = weightBytes(opened, m.Config.DType, m.Config.Quantization)
		if err == nil {
			weightText = "weights of " + size(weights)
		}
		_ = opened.Close()
	}
	need := n * (weights + pool)
	found := fmt.Sprintf("%s with %s and a pool of %s take %s or more; %s are free", count(int(n), "instance"), weightText, size(pool), size(need), size(room))
	remedy := "use a smaller --kv-cache-memory"
	if fit := room / (weights + pool); n > 1 && fit > 0 {
		remedy = fmt.Sprintf("use --instances %d, or a smaller --kv-cache-memory", fit)
	} else if weights > room/n {
		remedy = "use a smaller model or a machine with more memory"
	}
	switch {
	case need > room:
		return failure("config", subject, remedy, "%s", found)
	case need > room-room/10:
		return warning("config", subject, remedy, "%s", found)
	}
	return ok("config", subject, "%s", found)
}

// checkEtcd asks every endpoint at once.
func checkEtcd(ctx context.Context, m *Machine) []Result {
	const subject = "etcd"
	endpoints := m.Config.EtcdEndpoints
	if m.ConfigErr != nil || m.Config.Join != "" || m.Etcd == nil { // who joins is told by the cluster
		return nil
	}
	if len(endpoints) == 0 {
		if m.Folder != nil {
			if err := m.Folder(); err != nil {
				return []Result{failure("config", subject, "name a folder with room by TMPDIR, or an etcd by --etcd-endpoints", "%s", oneLine(err))}
			}
		}
		return []Result{ok("config", subject, "embedded (no --etcd-endpoints)")}
	}
	limited, done := context.WithTimeout(ctx, askLimit)
	defer done()
	results := make([]Result, len(endpoints))
	var all sync.WaitGroup
	for i, endpoint := range endpoints {
		all.Go(func() {
			if err := m.Etcd(limited, endpoint); err != nil {
				remedy := fmt.Sprintf("start etcd there, or correct --etcd-endpoints (etcdctl --endpoints=%s endpoint health)", endpoint)
				results[i] = failure("config", subject, remedy, "%s does not answer: %s", endpoint, oneLine(err))
				return
			}
			results[i] = ok("config", subject, "%s answers", endpoint)
		})
	}
	all.Wait()
	return results
}

func checkJoin(ctx context.Context, m *Machine) Result {
	const subject = "join"
	if m.ConfigErr != nil || m.Config.Join == "" {
		return Result{}
	}
	limited, done := context.WithTimeout(ctx, askLimit)
	defer done()
	if err := m.Network.Dial(limited, m.Config.Join); err != nil {
		return failure("config", subject, "start the cluster, and give --join the address that it prints for that",
			"cannot reach the cluster at %s: %s", m.Config.Join, oneLine(err))
	}
	if m.Join == nil {
		return ok("config", subject, "something listens at %s", m.Config.Join)
	}
	if m.DeviceErr != nil || !m.hasModel() || m.Refused != nil && m.Refused() != nil {
		return Result{} // serve would not come to ask
	}
	refused, err := m.Join(limited)
	if err != nil && !refused {
		return failure("config", subject, "give --join the address that the API process prints for that, which is not its API's",
			"what listens at %s is no cluster's control plane: %s", m.Config.Join, oneLine(err))
	}
	if err != nil {
		return failure("config", subject, "give the setting that is named the cluster's value, or one that it does not have yet",
			"the cluster at %s does not take this instance in: %s", m.Config.Join, oneLine(err))
	}
	return ok("config", subject, "the cluster at %s takes this instance in", m.Config.Join)
}
