package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestSettings(t *testing.T) {
	wrong := func(m *Machine) {
		m.ConfigErr = errors.Join(errors.New("infinite.yaml:3:1: cannot use port"), errors.New("cannot use flag --isa"))
	}
	runTable(t, plain, checkSettings, []test{
		{name: "valid", level: OK, found: "--transport auto, --kv-cache-memory 256MiB"},
		{name: "wrong", alter: wrong, level: Error, found: "infinite.yaml:3:1", remedy: "correct it"},
		{name: "wrong twice", alter: wrong, at: 1, level: Error, found: "--isa"},
	})
	// What depends on settings says nothing then.
	Run(t.Context(), machine(plain, wrong), Checks(), func(r Result) {
		if r.Check == "config" && r.Subject != "settings" || r.Subject == "port" || r.Subject == "cluster-host" {
			t.Errorf("%s", r.Line(false))
		}
	})
}

func TestModel(t *testing.T) {
	empty := t.TempDir()
	folder := func(name string) func(m *Machine) { return func(m *Machine) { m.Config.Model = name } }
	template := func(source string) func(m *Machine) {
		path := filepath.Join(t.TempDir(), "chat.jinja")
		if err := os.WriteFile(path, []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
		return func(m *Machine) { m.Config.ChatTemplate = path }
	}
	runTable(t, plain, one(checkModel), []test{
		{name: "bundled", level: OK, found: "the bundled model: Llama"},
		{name: "no folder", alter: folder(empty + "/none"), level: Error, found: "cannot open model", remedy: "config.json"},
		{name: "empty folder", alter: folder(empty), level: Error, found: "cannot open model"},
	})
	runTable(t, plain, one(checkTokenizer), []test{
		{name: "bundled", level: OK, found: "the bundled model"},
		{name: "empty folder", alter: folder(empty), level: Error, remedy: "tokenizer.json"},
		{name: "another template", alter: template("{{ messages }}"), level: OK},
		{name: "a broken template", alter: template("{% if %}"), level: Error, found: "cannot use the chat template", remedy: "--chat-template"},
		{name: "no template", alter: func(m *Machine) { m.Config.ChatTemplate = empty + "/none" }, level: Error, found: "cannot read the chat template", remedy: "--chat-template"},
	})
}

// What serve refuses is an error here, too, once, and not beside a device that cannot be used.
func TestStart(t *testing.T) {
	refuse := func(m *Machine) {
		m.Refused = func() error { return errors.New("cannot use --dtype float16\non the CPU") }
	}
	runTable(t, plain, one(checkStart), []test{
		{name: "fits", alter: func(m *Machine) { m.Refused = func() error { return nil } }, level: OK, found: "the settings fit the bundled model"},
		{name: "refused", alter: refuse, level: Error, found: "cannot use --dtype float16", remedy: "the setting that is named"},
	})
	for _, alter := range []func(m *Machine){
		func(*Machine) {},
		func(m *Machine) { refuse(m); m.DeviceErr = errors.New("no GPU") },
		func(m *Machine) { m.Refused, m.Config.Model = func() error { return nil }, "/nonexist" },
	} {
		if r := one(checkStart)(t.Context(), machine(plain, alter)); r != nil {
			t.Errorf("%v", r)
		}
	}
}

func TestNeed(t *testing.T) {
	free := func(kib string) tree {
		return tree{"/proc/meminfo": "MemTotal: 99999999 kB\nMemAvailable: " + kib + " kB\n"}
	}
	instances := func(n int) func(m *Machine) { return func(m *Machine) { m.Config.Instances = n } }
	runTable(t, plain, one(checkNeed), []test{
		{name: "fits", level: OK, found: "1 instance with weights of 5.4 MiB and a pool of 256.0 MiB take 261.4 MiB or more; 8.0 GiB are free"},
		{name: "barely", change: free("280000"), level: Warning, found: "273.4 MiB are free", remedy: "smaller --kv-cache-memory"},
		{name: "does not fit", change: free("200000"), level: Error, remedy: "use a smaller --kv-cache-memory"},
		{name: "too many", change: free("600000"), alter: instances(3), level: Error, found: "3 instances", remedy: "use --instances 2"},
		{name: "weights alone do not fit", change: free("2000"), level: Error, remedy: "smaller model"},
		{name: "limit of the group", change: tree{"/sys/fs/cgroup/user.slice/memory.max": "104857600"}, level: Error, found: "99.0 MiB are free"},
		{name: "no model", alter: func(m *Machine) { m.Config.Model = "/nowhere" }, level: OK, found: "weights of unknown size"},
		{name: "memory unknown", change: tree{"/proc/meminfo": ""}, level: Warning, found: "unknown: "},
	})
}

// The weights are counted as the data plane keeps them.
func TestWeightBytes(t *testing.T) {
	opened, err := machine(plain, nil).openModel()
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	auto, err := weightBytes(opened, "auto", "none")
	if err != nil {
		t.Fatal(err)
	}
	c := opened.Config
	if !c.TieEmbeddings {
		t.Fatal("the bundled model's head is not tied")
	}
	// Numbers of its matrices, and of its vectors: two norms a layer and the last one.
	table := uint64(c.VocabSize * c.HiddenSize)
	layer := uint64(c.HiddenSize*(2*c.NumHeads+2*c.NumKVHeads)*c.HeadDim + 3*c.HiddenSize*c.IntermediateSize)
	vectors := uint64(4 * c.HiddenSize * (2*c.NumLayers + 1))
	wide, _ := weightBytes(opened, "float32", "none")
	narrow, _ := weightBytes(opened, "bfloat16", "none")
	matrices := 2*table + uint64(c.NumLayers)*layer // the head is one more
	if wide != 4*matrices+vectors || narrow != 2*matrices+vectors || auto != narrow && auto != wide {
		t.Errorf("bfloat16 %d, float32 %d, auto %d of %d numbers", narrow, wide, auto, matrices)
	}
	small, _ := weightBytes(opened, "float32", "int8")
	if least := 4*table + table + uint64(c.NumLayers)*layer + vectors; small < least+least/100 || small > least+least/10 {
		t.Errorf("int8 %d, which is not a little more than %d", small, least)
	}
	least := 4*table + table + uint64(c.NumLayers)*layer/2 + vectors
	if smaller, _ := weightBytes(opened, "float32", "int4"); smaller < least+least/50 || smaller > least+least/5 {
		t.Errorf("int4 %d, which is not a little more than %d", smaller, least)
	}
	opened.Close()
	if _, err := weightBytes(opened, "auto", "none"); err == nil {
		t.Error("a closed model has weights")
	}
}

func TestEtcd(t *testing.T) {
	answers := func(dead ...string) func(m *Machine) {
		return func(m *Machine) {
			m.Config.EtcdEndpoints = []string{"http://a:2379", "http://b:2379"}
			m.Etcd = func(ctx context.Context, endpoint string) error {
				if limit, has := ctx.Deadline(); !has || time.Until(limit) > checkLimit {
					return errors.New("no limit")
				}
				for _, d := range dead {
					if d == endpoint {
						return errors.New("connection refused")
					}
				}
				return nil
			}
		}
	}
	runTable(t, plain, checkEtcd, []test{
		{name: "embedded", level: OK, found: "embedded"},
		{name: "no folder", alter: func(m *Machine) { m.Folder = func() error { return errors.New("no space left") } }, level: Error, found: "no space left", remedy: "TMPDIR"},
		{name: "answers", alter: answers(), at: 1, level: OK, found: "http://b:2379 answers"},
		{name: "one is dead", alter: answers("http://b:2379"), level: OK, found: "http://a:2379 answers"},
		{name: "the dead one", alter: answers("http://b:2379"), at: 1, level: Error, found: "http://b:2379 does not answer: connection refused", remedy: "etcdctl --endpoints=http://b:2379"},
	})
	if r := checkEtcd(t.Context(), machine(plain, func(m *Machine) { m.Config.Join = "h:1" })); r != nil {
		t.Errorf("one that joins: %v", r)
	}
}

func TestJoin(t *testing.T) {
	runTable(t, plain, one(checkJoin), []test{
		{name: "answers", alter: func(m *Machine) { m.Config.Join = "h:8001" }, level: OK, found: "something listens at h:8001"},
		{name: "takes it in", alter: func(m *Machine) {
			m.Config.Join, m.Join = "h:8001", func(context.Context) (bool, error) { return false, nil }
		}, level: OK, found: "the cluster at h:8001 takes this instance in"},
		{name: "does not take it in", alter: func(m *Machine) {
			m.Config.Join, m.Join = "h:8001", func(context.Context) (bool, error) {
				return true, errors.New("cannot join as a: that instance is a member")
			}
		}, level: Error, found: "that instance is a member", remedy: "or one that it does not have yet"},
		{name: "the API's port", alter: func(m *Machine) {
			m.Config.Join, m.Join = "h:8000", func(context.Context) (bool, error) {
				return false, errors.New("error reading server preface: http2: frame too large")
			}
		}, level: Error, found: "what listens at h:8000 is no cluster's control plane: error reading", remedy: "not its API's"},
		{name: "does not", alter: func(m *Machine) {
			m.Config.Join, m.Network = "h:8001", &fakeNetwork{dial: errors.New("connection refused")}
		}, level: Error, found: "connection refused", remedy: "--join"},
	})
	if r := one(checkJoin)(t.Context(), machine(plain, nil)); r != nil {
		t.Errorf("without --join: %v", r)
	}
	// What keeps serve from asking is another check's.
	for name, alter := range map[string]func(m *Machine){
		"no model": func(m *Machine) { m.Config.Model = "/nonexist" },
		"settings": func(m *Machine) {
			m.Refused = func() error { return errors.New("cannot use --tensor-parallel-size 3") }
		},
		"device": func(m *Machine) { m.DeviceErr = errors.New("no GPU") },
	} {
		asked := func(m *Machine) {
			m.Config.Join, m.Join = "h:8001", func(context.Context) (bool, error) { return true, errors.New("cannot join") }
			alter(m)
		}
		if r := one(checkJoin)(t.Context(), machine(plain, asked)); r != nil {
			t.Errorf("%s: %v", name, r)
		}
	}
}

// The real machine may be anything, but every line of it is whole, and soon there.
func TestThisMachine(t *testing.T) {
	m := This()
	m.Config.Port, m.Config.ClusterPort = 0, 0
	before := time.Now()
	Run(t.Context(), m, Checks(), func(r Result) {
		checkShape(t, r)
		if testing.Verbose() {
			t.Log(r.Line(false))
		}
	})
	if took := time.Since(before); took > time.Minute {
		t.Errorf("it took %s", took)
	}
}
