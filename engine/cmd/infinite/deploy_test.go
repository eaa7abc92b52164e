package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/server"
)

const deploy = "../../../tools/deploy/"

// settings are those that a deployed `infinite serve` has by its arguments and variables.
func settings(t *testing.T, args []string, env map[string]string) config.Config {
	t.Helper()
	if len(args) == 0 || args[0] != "serve" {
		t.Fatalf("not serve: %q", args)
	}
	for name, value := range env {
		t.Setenv(name, value)
	}
	cmd := &cobra.Command{Use: "serve"}
	load := bindFlags(cmd)
	here := slices.Clone(args[1:])
	for i := range here {
		here[i] = strings.Replace(here[i], "/etc/infinite/", deploy, 1)
	}
	if err := cmd.ParseFlags(here); err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	cfg, err := load()
	if err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return cfg
}

func readDeployed(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(deploy + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestDeployedService(t *testing.T) {
	unit := readDeployed(t, "infinite.service")
	value := func(name string) string {
		_, rest, found := strings.Cut(unit, "\n"+name+"=")
		if !found {
			t.Fatalf("the unit has no %s", name)
		}
		line, _, _ := strings.Cut(rest, "\n")
		return line
	}
	start := strings.Fields(value("ExecStart"))
	cfg := settings(t, start[1:], nil)
	if stop, err := time.ParseDuration(value("TimeoutStopSec")); err != nil || stop < cfg.DrainTimeout+10*time.Second {
		t.Errorf("the unit is killed after %s (%v), draining takes %s", stop, err, cfg.DrainTimeout)
	}
	// What is commented out is right, too: a head with an address, and an instance that joins it.
	text := readDeployed(t, "infinite.yaml")
	uncommented := func(keys ...string) string {
		var out []string
		for line := range strings.Lines(text) {
			key, _, _ := strings.Cut(strings.TrimPrefix(line, "# "), ":")
			commented := strings.HasPrefix(line, "#")
			if i := slices.Index(keys, key); i >= 0 && commented {
				out = append(out, strings.TrimPrefix(line, "# "))
				keys = slices.Delete(slices.Clone(keys), i, i+1) // the first of its kind
			}
		}
		if len(keys) > 0 {
			t.Fatalf("the settings have no %q", keys)
		}
		return strings.Join(out, "")
	}
	secret := func(name string) (string, bool) { return "s3cret", name == "INFINITE_CLUSTER_SECRET" }
	file := filepath.Join(t.TempDir(), "infinite.yaml")
	load := func(settings string) config.Config {
		if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, err := config.Load(file, secret, nil)
		if err != nil {
			t.Fatalf("%v:\n%s", err, settings)
		}
		return cfg
	}
	head := load(text + uncommented("cluster-host", "cluster-port"))
	_, further, _ := strings.Cut(text, "# On each further machine")
	text = further
	joining := load(uncommented("join", "cluster-host"))
	if want := net.JoinHostPort(head.ClusterHost, fmt.Sprint(head.ClusterPort)); joining.Join != want || joining.ClusterHost == head.ClusterHost {
		t.Errorf("an instance at %s joins %s, the head is at %s", joining.ClusterHost, joining.Join, want)
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("the unit's syntax: there is no systemd-analyze")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	unitFile := filepath.Join(t.TempDir(), "infinite.service")
	if err = os.WriteFile(unitFile, []byte(strings.Replace(unit, start[0], self, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", "--man=no", unitFile).CombinedOutput(); err != nil || bytes.Contains(out, []byte("infinite.service:")) {
		t.Errorf("systemd-analyze: %v\n%s", err, out)
	}
}

func TestDockerfile(t *testing.T) {
	text := readDeployed(t, "Dockerfile")
	mod, err := os.ReadFile("../../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	_, version, _ := strings.Cut(string(mod), "\ngo ")
	minor := strings.Join(strings.Split(strings.Fields(version)[0], ".")[:2], ".")
	if !strings.Contains(text, "ARG GO=golang:"+minor+"-") {
		t.Errorf("the image is not built with Go %s, which go.mod wants", minor)
	}
	_, cmd, _ := strings.Cut(text, "\nCMD ")
	var args []string
	if err := yaml.Unmarshal([]byte(cmd), &args); err != nil {
		t.Fatal(err)
	}
	if cfg := settings(t, args, nil); cfg.Host != "0.0.0.0" || !strings.Contains(text, fmt.Sprintf("EXPOSE %d %d", cfg.Port, cfg.ClusterPort)) {
		t.Errorf("a container with %q is reached by nobody", args)
	}
}

// object is what of Kubernetes' objects is looked at.
type object struct {
	Kind     string
	Metadata struct{ Name string }
	Spec     struct {
		Selector yaml.MapSlice
		Ports    []struct {
			Port       int
			TargetPort string `yaml:"targetPort"`
		}
		Replicas int
		Template struct {
			Metadata struct {
				Labels yaml.MapSlice
			}
			Spec struct {
				EnableServiceLinks *bool `yaml:"enableServiceLinks"`
				Grace              int   `yaml:"terminationGracePeriodSeconds"`
				Containers         []struct {
					Args  []string
					Ports []struct {
						Name          string
						ContainerPort int `yaml:"containerPort"`
					}
					Readiness healthProbe `yaml:"readinessProbe"`
					Liveness  healthProbe `yaml:"livenessProbe"`
				}
			}
		}
	}
}

type healthProbe struct {
	HTTPGet struct{ Path, Port string } `yaml:"httpGet"`
}

// ask is the status that a server gives a probe, 0 for none.
func (p healthProbe) ask(server *process) int {
	r, err := http.Get(server.url + p.HTTPGet.Path)
	if err != nil {
		return 0
	}
	_ = r.Body.Close()
	return r.StatusCode
}

func kubernetes(t *testing.T) map[string]object {
	t.Helper()
	objects := map[string]object{}
	d := yaml.NewDecoder(strings.NewReader(readDeployed(t, "kubernetes.yaml")))
	for {
		var o object
		if err := d.Decode(&o); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		objects[o.Kind+"/"+o.Metadata.Name] = o
	}
	if len(objects) != 4 {
		t.Fatalf("there are %d objects", len(objects))
	}
	return objects
}

// The manifest's processes, as pods with addresses of their own: a prompt that no instance has room for is answered, the
// probe sees when, and an instance that is told to end does so within its time.
func TestKubernetes(t *testing.T) {
	objects := kubernetes(t)
	api, instance := objects["Deployment/infinite-api"], objects["Deployment/infinite-instance"]
	secret := map[string]string{"INFINITE_CLUSTER_SECRET": "s3cret"}
	port := map[string]int{}
	for _, p := range api.Spec.Template.Spec.Containers[0].Ports {
		port[p.Name] = p.ContainerPort
	}
	for name, o := range objects {
		if o.Kind == "Service" {
			if fmt.Sprint(o.Spec.Selector) != fmt.Sprint(api.Spec.Template.Metadata.Labels) || port[o.Spec.Ports[0].TargetPort] != o.Spec.Ports[0].Port {
				t.Errorf("%s leads nowhere: %+v", name, o.Spec)
			}
			continue
		}
		pod := o.Spec.Template.Spec
		cfg := settings(t, expand(pod.Containers[0].Args, "10.1.2.3"), secret)
		if pod.EnableServiceLinks == nil || *pod.EnableServiceLinks {
			t.Errorf("%s: a service's variables would be settings", name)
		}
		if grace := time.Duration(pod.Grace) * time.Second; grace < cfg.DrainTimeout+10*time.Second {
			t.Errorf("%s is killed after %s, draining takes %s", name, grace, cfg.DrainTimeout)
		}
		if cfg.Join == "" && (cfg.Port != port["http"] || cfg.ClusterPort != port["control"] || cfg.Host != "0.0.0.0") {
			t.Errorf("%s: nothing listens at the ports %v", name, port)
		}
		if host, at, _ := net.SplitHostPort(cfg.Join); cfg.Join != "" {
			control, found := objects["Service/"+host]
			if !found || fmt.Sprint(control.Spec.Ports[0].Port) != at {
				t.Errorf("%s joins %s, which is no service", name, cfg.Join)
			}
		}
	}

	t.Setenv("INFINITE_CLUSTER_SECRET", "s3cret")
	const pool = 30
	small := []string{"--threads", "1", poolFlag(t, pool), "--dtype", "float32"}
	args := func(o object, address string, more ...string) []string {
		return slices.Concat(expand(o.Spec.Template.Spec.Containers[0].Args, address), small, more)
	}
	p := serve(t, args(api, "127.0.0.11", "--host", "127.0.0.1", "--port", "0", "--cluster-port", "0")[1:]...)
	if host, _, _ := net.SplitHostPort(p.join); host != "127.0.0.11" {
		t.Fatalf("the control plane is at %s", p.join)
	}
	var joined []*exec.Cmd
	log := &process{t: t}
	for i := range instance.Spec.Replicas {
		joined = append(joined, command(args(instance, fmt.Sprintf("127.0.0.%d", 12+i), "--join", p.join)...))
		startBeside(t, joined[i], log)
	}
	p.eventually("all instances", func(v server.ClusterView) bool { return len(v.Instances) == 1+instance.Spec.Replicas })
	probes := api.Spec.Template.Spec.Containers[0]
	poll(t, "ready", func() bool { return probes.Readiness.ask(p) == http.StatusOK })
	if got := probes.Liveness.ask(p); got != http.StatusOK {
		t.Errorf("it is killed for status %d", got)
	}
	if got := p.complete(body(prompt(16*(pool+10), 1), 16)); got.status != 200 || got.usage.Completion != 16 {
		t.Fatalf("a prompt that is larger than a pool: %d, %s", got.status, got.message)
	}
	if err := joined[0].Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- joined[0].Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("an instance did not end well: %v\n%s", err, log.logs())
		}
	case <-ctx.Done():
		t.Error("an instance did not end")
	}
}

func expand(args []string, address string) []string {
	out := slices.Clone(args)
	for i := range out {
		out[i] = strings.ReplaceAll(out[i], "$(POD_IP)", address)
	}
	return out
}
