package engine

import (
	"bufio"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/infinite-llm/infinite/"

// layers says what of ours each folder may import. A leaf can be understood, tested and reused alone; and
// nothing below the API, the cluster or the wiring can come to depend on them.
var layers = map[string]struct {
	allowed []string
	why     string
}{
	"engine/arrival":   {nil, "an order of numbers"},
	"engine/batch":     {nil, "it mirrors the C header and nothing else"},
	"engine/cgroup":    {[]string{"engine/hostfs"}, "what a control group leaves a process is asked by those that tell it"},
	"engine/config":    {nil, "settings are plain values; who uses them imports them"},
	"engine/grammar":   {nil, "which tokens may come next depends on a form and a vocabulary of bytes alone"},
	"engine/hostfs":    {nil, "files as text; who reads them knows what they mean"},
	"engine/kvcache":   {nil, "the books of a pool know neither devices nor peers"},
	"engine/tokenizer": {[]string{"engine/tokenizer/jinja"}, "text and token ids, no engine"},
	"engine/model":     {[]string{"engine/model/bundled"}, "files and shapes, no engine"},
	"engine/lookup":    {nil, "how a text may go on is guessed from its tokens alone"},
	"engine/plan":      {nil, "the performance model knows figures, not where they come from or who moves blocks"},
	"engine/sched":     {[]string{"engine/batch", "engine/kvcache"}, "a pure state machine over the KV books"},
	"engine/device":    {[]string{"engine/batch", "engine/model"}, "door 1 is below the engine, which declares what it needs of a device"},
	"engine/linkbench": {[]string{"rdma"}, "it measures links, whatever they are for"},
	"engine/toolcall":  {nil, "a model's text and what is in it, no API and no engine"},
	"engine/reasoning": {nil, "a model's text and what is in it, no API and no engine"},
	"engine/openai":    {nil, "a client of any server's API knows none"},
	"engine/loadgen":   {[]string{"engine/openai"}, "it measures servers of others too, from outside"},
	"rdma":             {nil, "door 2 knows links, not what they are for"},
	"engine":           {[]string{"engine/arrival", "engine/batch", "engine/grammar", "engine/kvcache", "engine/lookup", "engine/plan", "engine/sched", "engine/tokenizer"}, "the step loop reaches device and cluster through its own interfaces"},
	"engine/server":    {[]string{"engine", "engine/arrival", "engine/batch", "engine/grammar", "engine/reasoning", "engine/tokenizer", "engine/toolcall"}, "the API reaches the cluster through its own Backend"},
	"engine/cluster":   {[]string{"engine/arrival", "engine/cluster/clusterpb", "engine/config", "engine/kvcache", "engine/plan", "rdma"}, "managers settle blocks and links; the engine tells them through interfaces"},
	"engine/router": {[]string{"engine", "engine/arrival", "engine/batch", "engine/cluster", "engine/cluster/clusterpb", "engine/router/routerpb", "engine/server"},
		"it is the server's Backend: homes over the cluster's members"},
	"engine/top":         {[]string{"engine/server"}, "figures of what a server said know neither how it was asked nor where they are drawn"},
	"engine/top/live":    {[]string{"engine/openai", "engine/server", "engine/top"}, "it looks at a cluster from outside, by its API alone"},
	"engine/trace":       {nil, "figures of recorded events know neither the kernel nor the engine that is traced"},
	"engine/trace/probe": {[]string{"engine/trace"}, "a tracer looks at an engine from outside, by its marks alone"},
}

// cgo is where import "C" may stand: at the two doors, so that all rules of the C boundary are kept there.
var cgo = []string{"engine/device", "rdma"}

// driver is where the CUDA driver's binding may be imported, and only by files that the tag cuda lets in: it
// links the driver's library, which machines without a GPU lack.
const driver, driverTag = "engine/device", "//go:build cuda\n"

// bpf is where programs for the kernel may be made: what is no tracer must not need the rights for it.
const bpf = "engine/trace/probe"

func TestGoLayers(t *testing.T) {
	seen := map[string]bool{}
	err := filepath.WalkDir("..", func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && d.Name() != "..") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		folder := filepath.ToSlash(filepath.Dir(strings.TrimPrefix(file, "../")))
		seen[folder] = true
		for _, spec := range f.Imports {
			name := strings.Trim(spec.Path.Value, `"`)
			if name == "C" && !slices.Contains(cgo, folder) {
				t.Errorf("%s imports C: only %v may", file, cgo)
			}
			if strings.HasPrefix(name, "gorgonia.org/") && (folder != driver || !tagged(file)) {
				t.Errorf("%s imports %s: only files of %s with the tag cuda may", file, name, driver)
			}
			if strings.HasPrefix(name, "github.com/cilium/ebpf") && folder != bpf {
				t.Errorf("%s imports %s: only %s may", file, name, bpf)
			}
			ours, is := strings.CutPrefix(name, module)
			if rule, held := layers[folder]; is && held && !slices.Contains(rule.allowed, ours) {
				t.Errorf("%s imports %s: %s", file, ours, rule.why)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for folder := range layers {
		if !seen[folder] {
			t.Errorf("a rule speaks of %s, which has no Go files", folder)
		}
	}
}

func tagged(file string) bool {
	text, err := os.ReadFile(file)
	return err == nil && strings.HasPrefix(string(text), driverTag)
}

// cLayers says which headers of ours the C folders may include, by their first part.
var cLayers = map[string]struct {
	allowed []string
	why     string
}{
	"include":   {[]string{"infinite"}, "the doors are all that Go sees"},
	"kernels":   {[]string{"infinite", "kernels", "runtime/clock.h", "runtime/fail.h", "runtime/pages.h"}, "arithmetic knows no model and no peer"},
	"transport": {[]string{"infinite", "transport", "runtime/clock.h", "runtime/vigil.h"}, "links carry bytes and know nothing of attention"},
	"dist":      {[]string{"infinite", "kernels", "dist", "runtime/clock.h"}, "the one place that sees both kernels and links"},
	"model":     {[]string{"infinite", "kernels", "dist", "model", "runtime/fail.h", "runtime/pages.h"}, "the order of layers is written over the table of operations"},
}

var include = regexp.MustCompile(`^#include "([^"]+)"`)

func TestCLayers(t *testing.T) {
	seen := 0
	err := filepath.WalkDir("../csrc", func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !slices.Contains([]string{".c", ".h", ".cu", ".cuh"}, path.Ext(file)) {
			return err
		}
		part := strings.Split(filepath.ToSlash(file), "/")[2]
		rule, held := cLayers[part]
		if !held {
			return nil
		}
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			m := include.FindStringSubmatch(lines.Text())
			if m == nil {
				continue
			}
			seen++
			first, _, _ := strings.Cut(m[1], "/")
			if !slices.Contains(rule.allowed, first) && !slices.Contains(rule.allowed, m[1]) {
				t.Errorf("%s includes %s: %s", file, m[1], rule.why)
			}
		}
		return nil
	})
	if err != nil || seen < 20 {
		t.Fatalf("%d includes: %v", seen, err)
	}
}
