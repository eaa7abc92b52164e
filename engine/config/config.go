// Package config is the one description of how a process runs: its fields, where their values came
// from, and whether they make sense together.
//
// A value comes from a flag, else from the variable INFINITE_<NAME>, else from the --config file, else
// from the default; an error names the source, for a file with line and column.
package config

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Size is a number of bytes, written as 1048576, 1MiB, 1.5GB.
type Size uint64

// Config of one process. The tag `name` is the flag's name and the file's key.
type Config struct {
	Model           string   `name:"model" usage:"model folder in Hugging Face layout, or the name of one that its tools have in their cache; empty is the bundled model"`
	Revision        string   `name:"revision" usage:"branch, tag or commit of a model that is named and not a folder"`
	ServedModelName []string `name:"served-model-name" usage:"names under which the API knows the model, default the folder's name"`
	Host            string   `name:"host" usage:"address of the API"`
	Port            int      `name:"port" usage:"port of the API, 0 picks a free one"`
	APIKey          string   `name:"api-key" usage:"key that clients must send as a bearer token, or as x-api-key" secret:"true"`
	MaxBodySize     Size     `name:"max-body-size" usage:"largest request body"`

	ChatTemplate    string `name:"chat-template" usage:"file with a chat template (Jinja) that takes the place of the model's own"`
	ToolCallParser  string `name:"tool-call-parser" usage:"form of the calls that are looked for in chats with tools: auto (what the chat template writes), hermes, llama3_json, mistral or none"`
	ReasoningParser string `name:"reasoning-parser" usage:"form of a model's thoughts before its answer, which chats give apart from it: auto (what the chat template speaks of), qwen3, deepseek_r1, mistral or none"`

	MaxModelLen         int    `name:"max-model-len" usage:"longest prompt plus answer, in tokens; 0 is the model's own limit"`
	MaxNumSeqs          int    `name:"max-num-seqs" usage:"requests that run at once on an instance"`
	MaxNumBatchedTokens int    `name:"max-num-batched-tokens" usage:"tokens of one step on an instance"`
	MaxNumWaiting       int    `name:"max-num-waiting" usage:"requests that may wait on an instance; beyond that clients get 429"`
	SchedulingPolicy    string `name:"scheduling-policy" usage:"fcfs: requests go in the order of their arrival; priority: in that of their field priority, smaller first, and of their arrival within one"`
	EnablePrefixCaching bool   `name:"enable-prefix-caching" usage:"requests begin with the KV of earlier ones that began alike; =false computes every prompt whole"`
	MinSharedPrefix     int    `name:"min-shared-prefix" usage:"tokens whose KV another instance must have for a request to use it there, in place; 0 is 8192 on a GPU and 512 on the CPU, -1 never"`

	PrefillContextParallelSize int `name:"prefill-context-parallel-size" usage:"instances that compute a long prompt together, at most; 0 is 16, on the CPU, 1 never"`
	MinParallelPrefill         int `name:"min-parallel-prefill" usage:"tokens of a prompt, behind what is cached, from which on several instances compute it; 0 is four times --max-num-batched-tokens"`

	SpeculativeConfig string `name:"speculative-config" usage:"guess tokens ahead, as JSON: {\"method\":\"ngram\",\"num_speculative_tokens\":5} looks them up in the request's own text; empty is none"`
	BlockSize         int    `name:"block-size" usage:"tokens of a KV block"`
	KVCacheMemory     Size   `name:"kv-cache-memory" usage:"memory of each instance's KV pool; 0 is 256MiB on the CPU and by --gpu-memory-utilization on a GPU"`
	DType             string `name:"dtype" usage:"auto, float32, bfloat16 or, on a GPU, float16"`
	KVCacheDType      string `name:"kv-cache-dtype" usage:"auto (as --dtype), or fp8_e4m3 (fp8 is the same): K and V in 8 bits, with scale 1, saturated at 448"`
	Quantization      string `name:"quantization" usage:"none (as the checkpoint has them), or, on the CPU, int8: matrices in 8 bits, with a scale for each output and 128 inputs, or int4: in 4 bits, with a scale and a zero for each output and 32 inputs, from weights of any dtype"`
	Seed              uint64 `name:"seed" usage:"seed of requests that bring none"`
	Threads           int    `name:"threads" usage:"compute threads of an instance; 0 divides the CPUs among the instances"`
	ISA               string `name:"isa" usage:"auto, avx512, avx2 or c, or avx512_bf16, which auto never is: with weights in bfloat16 it rounds their inputs to bfloat16 too, as a GPU does, and computes prompts in less than two thirds of the time"`

	Device               string  `name:"device" usage:"auto, cpu, cuda (the instances are dealt to the GPUs) or cuda:N (all on that one, or from that one on with --tensor-parallel-size)"`
	TensorParallelSize   int     `name:"tensor-parallel-size" usage:"parts that each instance's model is cut into: so many GPUs, numbered one after another, or parts of the CPU's work"`
	GPUMemoryUtilization float64 `name:"gpu-memory-utilization" usage:"share of each GPU's memory that this process's instances on it may take together"`

	Instances     int      `name:"instances" usage:"instances that this process starts"`
	MaxRestarts   int      `name:"max-restarts" usage:"how often in ten minutes an instance that this process started and that died is started anew; 0 is never"`
	Join          string   `name:"join" usage:"host:port of a running cluster's control address, to add an instance to it"`
	InstanceID    string   `name:"instance-id" usage:"id of the joining instance, default the next free one"`
	MemoryOnly    bool     `name:"memory-only" usage:"with --join: lend this instance's memory alone; no weights are loaded and no request runs here, but KV blocks of others lie here, and attention over them is computed here"`
	ClusterHost   string   `name:"cluster-host" usage:"address of the control plane and of tcp links"`
	ClusterPort   int      `name:"cluster-port" usage:"port of the control plane (for --join), 0 picks a free one"`
	ClusterSecret string   `name:"cluster-secret" usage:"secret that all members know; needed when --cluster-host is not loopback" secret:"true"`
	ClusterID     string   `name:"cluster-id" usage:"name under which this cluster lives in etcd"`
	EtcdEndpoints []string `name:"etcd-endpoints" usage:"URLs of an external etcd; empty embeds one"`
	Transport     string   `name:"transport" usage:"auto, verbs, shm or tcp"`

	RDMADevice       []string `name:"rdma-device" usage:"RDMA devices that verbs links may use; empty is every one with an active port, and on a GPU the nearest are preferred"`
	RDMAGIDIndex     int      `name:"rdma-gid-index" usage:"index in the port's GID table; -1 chooses the GID by address"`
	RDMATrafficClass int      `name:"rdma-traffic-class" usage:"traffic class of verbs links, 0 to 255"`
	RDMAMTU          int      `name:"rdma-mtu" usage:"largest path MTU of verbs links: 256, 512, 1024, 2048 or 4096; 0 is the port's"`

	PeerTimeout       time.Duration `name:"peer-timeout" usage:"longest wait for one partial result of a peer"`
	RebalanceInterval time.Duration `name:"rebalance-interval" usage:"how often moves of KV blocks between instances are planned, by a model of their token rates; 0 is never, and blocks move only where room is short"`
	DrainTimeout      time.Duration `name:"drain-timeout" usage:"longest wait for running requests after SIGTERM"`

	LogLevel string `name:"log-level" usage:"debug, info, warn or error"`
}

// CPUPool is the memory of a KV pool on the CPU for which --kv-cache-memory says nothing.
const CPUPool Size = 256 << 20

// MaxRanks is how many parts an instance's model can be cut into: the GPUs of one host.
const MaxRanks = 8

// Default is the configuration without any source.
func Default() Config {
	return Config{
		Revision: "main", Host: "127.0.0.1", Port: 8000, MaxBodySize: 32 << 20, ToolCallParser: "auto", ReasoningParser: "auto", SchedulingPolicy: "fcfs",
		MaxNumSeqs: 64, MaxNumBatchedTokens: 512, MaxNumWaiting: 1024, BlockSize: 16, EnablePrefixCaching: true,
		DType: "auto", KVCacheDType: "auto", Quantization: "none", ISA: "auto", Device: "auto", TensorParallelSize: 1,
		GPUMemoryUtilization: 0.9,
		Instances:            1, MaxRestarts: 5, ClusterHost: "127.0.0.1", ClusterPort: 8001, ClusterID: "default", Transport: "auto", RDMAGIDIndex: -1,
		PeerTimeout: 10 * time.Second, DrainTimeout: 30 * time.Second, RebalanceInterval: time.Second, LogLevel: "info",
	}
}

// FieldError is a value that makes no sense, by the field's name.
type FieldError struct {
	Field string
	Err   error
}

func (e *FieldError) Error() string { return fmt.Sprintf("cannot use %s: %v", e.Field, e.Err) }
func (e *FieldError) Unwrap() error { return e.Err }

// Validate checks every field, and fields against each other; the errors are *FieldError, joined.
func (c *Config) Validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, &FieldError{field, fmt.Errorf(format, args...)})
	}
	within := func(field string, v, low, high int) {
		if v < low || v > high {
			bad(field, "%d is not between %d and %d", v, low, high)
		}
	}
	oneOf := func(field, v string, allowed ...string) {
		for _, a := range allowed {
			if v == a {
				return
			}
		}
		bad(field, "%q is none of %s", v, strings.Join(allowed, ", "))
	}
	within("port", c.Port, 0, 65535)
	within("cluster-port", c.ClusterPort, 0, 65535)
	within("max-model-len", c.MaxModelLen, 0, 1<<28)
	within("max-num-seqs", c.MaxNumSeqs, 1, 4096)
	within("max-num-batched-tokens", c.MaxNumBatchedTokens, 1, 1<<17)
	within("max-num-waiting", c.MaxNumWaiting, 1, 1<<20)
	within("min-shared-prefix", c.MinSharedPrefix, -1, 1<<28)
	within("prefill-context-parallel-size", c.PrefillContextParallelSize, 0, 64)
	within("min-parallel-prefill", c.MinParallelPrefill, 0, 1<<28)
	if _, err := ParseSpeculative(c.SpeculativeConfig); err != nil {
		bad("speculative-config", "%w", err)
	}
	within("block-size", c.BlockSize, 1, 512)
	within("threads", c.Threads, 0, 1024)
	within("instances", c.Instances, 1, 256)
	within("max-restarts", c.MaxRestarts, 0, 1000)
	if c.MaxNumSeqs > c.MaxNumBatchedTokens {
		bad("max-num-seqs", "%d is more than --max-num-batched-tokens %d, so that a step could not decode all of them", c.MaxNumSeqs, c.MaxNumBatchedTokens)
	}
	if strings.TrimSpace(c.APIKey) != c.APIKey || strings.ContainsFunc(c.APIKey, unicode.IsControl) {
		bad("api-key", "it begins or ends with a blank or has a line break, so that no client could send it")
	}
	if c.MaxBodySize < 1<<10 || c.MaxBodySize > 1<<30 {
		bad("max-body-size", "%d bytes is not between 1 KiB and 1 GiB", c.MaxBodySize)
	}
	if c.KVCacheMemory != 0 && (c.KVCacheMemory < 1<<12 || c.KVCacheMemory > 1<<44) {
		bad("kv-cache-memory", "%d bytes is neither 0 nor between 4 KiB and 16 TiB", c.KVCacheMemory)
	}
	if _, _, err := ParseDevice(c.Device); err != nil {
		bad("device", "%w", err)
	}
	within("tensor-parallel-size", c.TensorParallelSize, 1, MaxRanks)
	if u := c.GPUMemoryUtilization; !(u > 0 && u <= 1) {
		bad("gpu-memory-utilization", "%g is not above 0 and at most 1", u)
	}
	oneOf("reasoning-parser", c.ReasoningParser, "auto", "qwen3", "deepseek_r1", "mistral", "none")
	oneOf("tool-call-parser", c.ToolCallParser, "auto", "hermes", "llama3_json", "mistral", "none")
	oneOf("scheduling-policy", c.SchedulingPolicy, "fcfs", "priority")
	oneOf("dtype", c.DType, "auto", "float32", "bfloat16", "float16")
	oneOf("kv-cache-dtype", c.KVCacheDType, "auto", "fp8_e4m3", "fp8")
	oneOf("quantization", c.Quantization, "none", "int8", "int4")
	oneOf("isa", c.ISA, "auto", "avx512_bf16", "avx512", "avx2", "c")
	oneOf("transport", c.Transport, "auto", "verbs", "shm", "tcp")
	within("rdma-gid-index", c.RDMAGIDIndex, -1, 1<<16)
	within("rdma-traffic-class", c.RDMATrafficClass, 0, 255)
	if !slices.Contains([]int{0, 256, 512, 1024, 2048, 4096}, c.RDMAMTU) {
		bad("rdma-mtu", "%d is none of 0, 256, 512, 1024, 2048, 4096", c.RDMAMTU)
	}
	oneOf("log-level", c.LogLevel, "debug", "info", "warn", "error")
	if c.PeerTimeout < 10*time.Millisecond || c.PeerTimeout > 10*time.Minute {
		bad("peer-timeout", "%s is not between 10 ms and 10 min", c.PeerTimeout)
	}
	if c.DrainTimeout < 0 || c.DrainTimeout > time.Hour {
		bad("drain-timeout", "%s is not between 0 and 1 h", c.DrainTimeout)
	}
	if d := c.RebalanceInterval; d != 0 && (d < 100*time.Millisecond || d > time.Hour) {
		bad("rebalance-interval", "%s is neither 0 nor between 100 ms and 1 h", d)
	}
	c.checkHosts(bad)
	c.checkJoin(bad)
	if c.ClusterID == "" || strings.ContainsAny(c.ClusterID, "/ ") {
		bad("cluster-id", "%q is empty, or has a slash or a blank", c.ClusterID)
	}
	return errors.Join(errs...)
}

// checkHosts refuses to listen where nobody said to: an empty address, such as that of a variable without a value, would
// be every one of the machine.
// MayUseVerbs says whether links between instances may come to use RDMA.
func (c *Config) MayUseVerbs() bool { return c.Transport == "auto" || c.Transport == "verbs" }

func (c *Config) checkHosts(bad func(field, format string, args ...any)) {
	const empty = "it is empty, which would be every address of this machine; 0.0.0.0 or :: says that"
	if c.Host == "" {
		bad("host", empty)
	}
	switch {
	case c.ClusterHost == "":
		bad("cluster-host", empty)
	case !loopback(c.ClusterHost) && c.ClusterSecret == "":
		bad("cluster-host", "%s is not loopback; that needs a --cluster-secret", c.ClusterHost)
	}
}

// checkKey refuses a key that is given and empty where others could ask: it is meant to keep them out, and comes of a
// variable that is not set. An instance that joins has no API, and is given all settings by its head.
func (c *Config) checkKey(given bool) error {
	if !given || c.APIKey != "" || c.Join != "" || c.Host == "" || loopback(c.Host) {
		return nil
	}
	return &FieldError{"api-key", fmt.Errorf("it is empty, so that whoever reaches %s could ask; leave it out if that is meant", c.Host)}
}

// checkJoin checks what --join needs.
func (c *Config) checkJoin(bad func(field, format string, args ...any)) {
	if c.Join == "" {
		if c.MemoryOnly {
			bad("memory-only", "without --join there is nobody to lend to")
		}
		return
	}
	if c.Instances != 1 {
		bad("instances", "with --join a process is one instance")
	}
	host, port, err := net.SplitHostPort(c.Join)
	if n, nerr := strconv.Atoi(port); err != nil || nerr != nil || host == "" || n < 1 || n > 65535 {
		bad("join", "%q is not host:port, as a cluster prints it at its start", c.Join)
		return
	}
	const use = "use an address of this machine that it can reach"
	switch {
	case loopback(host) || net.ParseIP(host).IsUnspecified():
	case loopback(c.ClusterHost):
		bad("cluster-host", "%s is loopback, where the cluster at %s cannot reach this instance; "+use, c.ClusterHost, c.Join)
	case net.ParseIP(c.ClusterHost).IsUnspecified():
		bad("cluster-host", "%s is every address; told to connect to it, the cluster at %s would reach itself; "+use, c.ClusterHost, c.Join)
	}
}

// ParseDevice takes --device apart: its kind, and the number of the GPU that is named, -1 where none is.
func ParseDevice(text string) (kind string, gpu int, err error) {
	kind, number, named := strings.Cut(text, ":")
	if !named && slices.Contains([]string{"auto", "cpu", "cuda"}, kind) {
		return kind, -1, nil
	}
	if kind == "cuda" {
		// What a number's spelling may be, and what the data plane takes.
		if n, err := strconv.Atoi(number); err == nil && strconv.Itoa(n) == number && n >= 0 && n < 1024 {
			return kind, n, nil
		}
	}
	return "", -1, fmt.Errorf("%q is none of auto, cpu, cuda and cuda:N", text)
}

func loopback(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}
