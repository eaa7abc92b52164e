package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"strconv"
)

// agentEnv makes this test binary the agent of a guest, listening there: it runs scripts for a test outside
// (hosts_test.go), and takes other requests on to the guest's API.
const agentEnv = "INFINITE_TEST_AGENT"

// agentHold is a guest's file for holdEnv.
const agentHold = "/tmp/hold"

// statusTrailer has a script's exit status, behind what it printed.
const statusTrailer = "Status"

func agent(address string) int {
	api := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: "127.0.0.1:8000"}) },
		FlushInterval: -1, // events come one by one
	}
	mux := http.NewServeMux()
	mux.Handle("/", api)
	mux.HandleFunc("POST /agent", runScript)
	fmt.Fprintln(os.Stderr, http.ListenAndServe(address, mux))
	return 1
}

// runScript runs what it is sent by a shell, in which $infinite is this program, and gives back what it prints as that
// comes. The script goes on when the caller does not.
func runScript(w http.ResponseWriter, r *http.Request) {
	script, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	program := command()
	cmd := exec.Command("sh", "-c", string(script))
	cmd.Env = append(program.Env, "infinite="+program.Path, holdEnv+"="+agentHold)
	w.Header().Set("Trailer", statusTrailer)
	w.WriteHeader(http.StatusOK)
	out := flushed{w, http.NewResponseController(w)}
	cmd.Stdout, cmd.Stderr = out, out
	_ = out.c.Flush()
	if err = cmd.Run(); err != nil && cmd.ProcessState == nil {
		fmt.Fprintln(out, err)
		return
	}
	w.Header().Set(statusTrailer, strconv.Itoa(cmd.ProcessState.ExitCode()))
}

// flushed sends at once what is written, and never fails: a script must not end because nobody listens any more.
type flushed struct {
	w io.Writer
	c *http.ResponseController
}

func (f flushed) Write(b []byte) (int, error) {
	_, _ = f.w.Write(b)
	_ = f.c.Flush()
	return len(b), nil
}
