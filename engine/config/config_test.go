package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func noEnv(string) (string, bool) { return "", false }

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "infinite.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDefaultIsValid(t *testing.T) {
	c, err := Load("", noEnv, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), c); diff != "" {
		t.Fatal(diff)
	}
}

func TestOrderOfSources(t *testing.T) {
	path := write(t, "port: 1001\nmax-num-seqs: 7\nkv_cache_memory: 2MiB\nserved-model-name: [a, b]\npeer-timeout: 3s\n")
	env := func(k string) (string, bool) {
		v, ok := map[string]string{"INFINITE_PORT": "1002", "INFINITE_MAX_NUM_SEQS": "8"}[k]
		return v, ok
	}
	c, err := Load(path, env, map[string]string{"port": "1003"})
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Port, want.MaxNumSeqs, want.KVCacheMemory = 1003, 8, 2<<20
	want.ServedModelName, want.PeerTimeout = []string{"a", "b"}, 3*time.Second
	if diff := cmp.Diff(want, c); diff != "" {
		t.Fatal(diff)
	}
}

func TestErrorsNameTheirSource(t *testing.T) {
	cases := []struct {
		name, file string
		env, flags map[string]string
		want       []string
	}{
		{"bad value in a file", "port: 8000\nblock-size: zero\n", nil, nil, []string{"infinite.yaml:2:1", "block-size", "whole number"}},
		{"out of range in a file", "port: 8000\n\nblock-size: 0\n", nil, nil, []string{"infinite.yaml:3:1", "block-size", "between 1 and 512"}},
		{"unknown key", "porrt: 1\n", nil, nil, []string{"infinite.yaml:1:1", "porrt", "no such setting"}},
		{"not a mapping", "- 1\n", nil, nil, []string{"infinite.yaml", "name: value"}},
		{"syntax", "a: [1\n", nil, nil, []string{"infinite.yaml"}},
		{"variable", "", map[string]string{"INFINITE_PORT": "x"}, nil, []string{"INFINITE_PORT", `"x"`}},
		{"variable out of range", "", map[string]string{"INFINITE_PORT": "70000"}, nil, []string{"INFINITE_PORT", "65535"}},
		{"flag", "", nil, map[string]string{"dtype": "int4"}, []string{"flag --dtype", "int4", "bfloat16"}},
		{"a parser that there is not", "tool-call-parser: xml\n", nil, nil, []string{"infinite.yaml:1:1", `"xml"`, "hermes"}},
		{"a KV cache of another fp8", "", nil, map[string]string{"kv-cache-dtype": "fp8_e5m2"}, []string{"flag --kv-cache-dtype", "fp8_e5m2", "fp8_e4m3"}},
		{"open host without a secret", "", nil, map[string]string{"cluster-host": "0.0.0.0"}, []string{"--cluster-host", "secret"}},
		{"no host in a variable", "", map[string]string{"INFINITE_HOST": ""}, nil, []string{"variable INFINITE_HOST: it is empty", "0.0.0.0"}},
		{"no host in a file", "port: 1\nhost:\n", nil, nil, []string{"infinite.yaml:2:1: cannot use host: it is empty"}},
		{"no control host, with a secret", "", nil, map[string]string{"cluster-host": "", "cluster-secret": "s"}, []string{"flag --cluster-host: it is empty"}},
		{"an empty key where others can ask", "host: 0.0.0.0\n", map[string]string{"INFINITE_API_KEY": ""}, nil, []string{"variable INFINITE_API_KEY: it is empty", "0.0.0.0"}},
		{"a name that looks like loopback", "", nil, map[string]string{"cluster-host": "127.example.org"}, []string{"--cluster-host", "secret"}},
		{"a key with a line break", "", map[string]string{"INFINITE_API_KEY": "abc\n"}, nil, []string{"INFINITE_API_KEY", "line break"}},
		{"a service's address", "", map[string]string{"INFINITE_PORT": "tcp://10.0.0.1:8000"}, nil, []string{"INFINITE_PORT", "tcp://10.0.0.1:8000", "Kubernetes"}},
		{"a setting under both names", "max-num-seqs: 7\nmax_num_seqs: 8\n", nil, nil, []string{"infinite.yaml:2:1", "max-num-seqs", "infinite.yaml:1:1"}},
		{"a setting in two documents", "port: 1\n---\nport: 2\n", nil, nil, []string{"infinite.yaml:3:1", "infinite.yaml:1:1"}},
		{"another device", "", nil, map[string]string{"device": "gpu"}, []string{"flag --device", `"gpu"`, "cuda:N"}},
		{"utilization", "", nil, map[string]string{"gpu-memory-utilization": "90%"}, []string{"--gpu-memory-utilization", "90%", "0.9"}},
		{"no rank", "", map[string]string{"INFINITE_TENSOR_PARALLEL_SIZE": "0"}, nil, []string{"INFINITE_TENSOR_PARALLEL_SIZE", "not between 1 and 8"}},
		{"utilization above all", "gpu-memory-utilization: 1.5\n", nil, nil, []string{"infinite.yaml:1:1", "at most 1"}},
		{"utilization that is no number", "", map[string]string{"INFINITE_GPU_MEMORY_UTILIZATION": "NaN"}, nil, []string{"INFINITE_GPU_MEMORY_UTILIZATION", "NaN"}},
		{"plans all the time", "", nil, map[string]string{"rebalance-interval": "10ms"}, []string{"flag --rebalance-interval", "10ms", "100 ms"}},
		{"a cluster without a port", "", nil, map[string]string{"join": "nonsense"}, []string{"flag --join", "nonsense", "host:port"}},
		{"a cluster at port 0", "", nil, map[string]string{"join": "127.0.0.1:0"}, []string{"flag --join", "host:port"}},
		{"a cluster at no host", "", map[string]string{"INFINITE_JOIN": ":8001"}, nil, []string{"INFINITE_JOIN", "host:port"}},
		{"a cluster elsewhere that would be led to itself", "", nil, map[string]string{"join": "10.0.0.1:8001"},
			[]string{"the default of cluster-host", "127.0.0.1 is loopback", "10.0.0.1:8001"}},
		{"the same by a name", "", nil, map[string]string{"join": "there:8001", "cluster-host": "localhost"}, []string{"flag --cluster-host", "localhost is loopback"}},
		{"a cluster elsewhere that would be led to every address", "", nil, map[string]string{"join": "10.0.0.1:8001", "cluster-host": "0.0.0.0", "cluster-secret": "s"},
			[]string{"flag --cluster-host", "0.0.0.0 is every address", "10.0.0.1:8001"}},
		{"memory for nobody", "memory-only: true\n", nil, nil, []string{"infinite.yaml:1:1", "memory-only", "--join"}},
		{"a negative length", "", nil, map[string]string{"min-shared-prefix": "-2"}, []string{"--min-shared-prefix", "-1"}},
		{"size", "", nil, map[string]string{"kv-cache-memory": "1XB"}, []string{"--kv-cache-memory", "1XB"}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			path := ""
			if tc.file != "" {
				path = write(t, tc.file)
			}
			_, err := Load(path, func(k string) (string, bool) { v, ok := tc.env[k]; return v, ok }, tc.flags)
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
		})
	}
}

// The source stands in front once, whatever it is.
func TestErrorTexts(t *testing.T) {
	path := write(t, "\nport: 70000\n")
	for _, x := range []struct {
		path       string
		env, flags map[string]string
		want       string
	}{
		{path, nil, nil, path + ":2:1: cannot use port: 70000 is not between 0 and 65535"},
		{"", map[string]string{"INFINITE_PORT": "70000"}, nil, "cannot use variable INFINITE_PORT: 70000 is not between 0 and 65535"},
		{"", nil, map[string]string{"port": "70000"}, "cannot use flag --port: 70000 is not between 0 and 65535"},
		{path, nil, map[string]string{"port": "1", "max-num-batched-tokens": "8"}, "cannot use the default of max-num-seqs: 64 is more than --max-num-batched-tokens 8, so that a step could not decode all of them"},
	} {
		_, err := Load(x.path, func(k string) (string, bool) { v, ok := x.env[k]; return v, ok }, x.flags)
		if err == nil || err.Error() != x.want {
			t.Errorf("%v, want %s", err, x.want)
		}
	}
}

// An empty text is no value where it would open a door; elsewhere it is the default, in the words of its usage.
func TestEmptyTexts(t *testing.T) {
	for field, wants := range map[string]string{
		"host": "it is empty, which", "cluster-host": "it is empty, which", "cluster-id": `"" is empty`,
		"tool-call-parser": `"" is none`, "dtype": `"" is none`, "kv-cache-dtype": `"" is none`, "quantization": `"" is none`, "isa": `"" is none`,
		"device": `"" is none`, "transport": `"" is none`, "log-level": `"" is none`,
		"model": "", "served-model-name": "", "api-key": "", "chat-template": "", "speculative-config": "", "join": "", "instance-id": "",
		"cluster-secret": "", "etcd-endpoints": "", "rdma-device": "",
	} {
		_, err := Load("", noEnv, map[string]string{field: ""})
		if (err != nil) != (wants != "") || err != nil && err.Error() != strings.Split(err.Error(), "\n")[0] || err != nil && !strings.HasPrefix(err.Error(), "cannot use flag --"+field+": "+wants) {
			t.Errorf("--%s '': %v", field, err)
		}
	}
	// An instance that joins has no API: its head gives it all settings, of which the key may be empty.
	if _, err := Load("", noEnv, map[string]string{"host": "0.0.0.0", "api-key": "", "join": "127.0.0.1:8001"}); err != nil {
		t.Error(err)
	}
	// Nobody said anything of a key.
	if _, err := Load("", noEnv, map[string]string{"host": "0.0.0.0"}); err != nil {
		t.Error(err)
	}
}

// What may be joined from where.
func TestJoinIsTaken(t *testing.T) {
	for join, host := range map[string]string{"127.0.0.1:8001": "127.0.0.1", "localhost:1": "127.0.0.1", "[::1]:8001": "::1", "10.0.0.1:65535": "10.0.0.2",
		"there:8001": "10.0.0.2", "[::]:8001": "0.0.0.0", "0.0.0.0:8001": "127.0.0.1"} {
		c := Default()
		c.Join, c.ClusterHost, c.ClusterSecret = join, host, "s"
		if err := c.Validate(); err != nil {
			t.Errorf("%s from %s: %v", join, host, err)
		}
	}
}

func TestParseDevice(t *testing.T) {
	for text, want := range map[string]int{"auto": -1, "cpu": -1, "cuda": -1, "cuda:0": 0, "cuda:17": 17, "cuda:1023": 1023} {
		kind, gpu, err := ParseDevice(text)
		if first, _, _ := strings.Cut(text, ":"); err != nil || kind != first || gpu != want {
			t.Errorf("ParseDevice(%q) = %q, %d, %v", text, kind, gpu, err)
		}
	}
	for _, text := range []string{"", "gpu", "cuda:", "cuda:-1", "cuda:+1", "cuda:01", "cuda:1024", "cuda:x", "cpu:0", "auto:0", "cuda:0:1", "CUDA"} {
		if kind, gpu, err := ParseDevice(text); err == nil {
			t.Errorf("ParseDevice(%q) = %q, %d", text, kind, gpu)
		}
	}
}

// An instance's settings go to its process as text, and must arrive as they were.
func TestFieldsKeepTheirValues(t *testing.T) {
	want := Default()
	want.GPUMemoryUtilization, want.Device = 0.9/7, "cuda:3"
	flags := map[string]string{}
	for _, f := range Fields(&want) {
		flags[f.Name] = f.String()
	}
	got, err := Load("", noEnv, flags)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatal(diff)
	}
}

func TestLoopback(t *testing.T) {
	for host, want := range map[string]bool{"localhost": true, "127.0.0.1": true, "127.1.2.3": true, "::1": true, "0.0.0.0": false, "": false, "127.example.org": false, "10.0.0.1": false, "::": false} {
		if loopback(host) != want {
			t.Errorf("loopback(%q) = %v", host, !want)
		}
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "17": 17, "1k": 1024, "1KB": 1000, "1.5MiB": 3 << 19, "2 GB": 2e9, "3T": 3 << 40, "5b": 5} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "x", "-1", "1e9x", "1.2.3", "9999999999T", "1kibb"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("ParseSize(%q) = %d", text, got)
		}
	}
}

func FuzzFile(f *testing.F) {
	for _, s := range []string{"port: 1\n", "a: [b, {c: d}]\n", "---\n...\n", "port: &x 1\nhost: *x\n", "model: |\n  x\n", "? a\n: b\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 4096 {
			return
		}
		c := Default()
		_ = c.parseFile("f.yaml", text, map[string]string{})
	})
}
