package server

import (
	"context"
	"testing"

	"github.com/infinite-llm/infinite/engine"
)

// Priorities reach every choice's request where the server orders by them; elsewhere any but 0 is refused.
func TestPriority(t *testing.T) {
	var got []int
	b := &fakeBackend{capacity: 1 << 20, script: func(_ context.Context, r *engine.Request) (engine.Stream, error) {
		got = append(got, r.Priority)
		return ended(tokens(5)...), nil
	}}
	a := serve(t, b, func(c *Config) { c.Priorities = true })
	for _, c := range []struct{ path, body, others string }{
		{"/v1/completions", `{"prompt":"a","n":2`, "}"},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":"a"}]`, "}"},
		{"/v1/responses", `{"input":"a"`, "}"},
	} {
		for value, want := range map[string]int{"": 0, `,"priority":null`: 0, `,"priority":-128`: -128, `,"priority":127`: 127} {
			got = nil
			if r := a.post(c.path, c.body+value+c.others); r.status != 200 || len(got) == 0 || got[0] != want || got[len(got)-1] != want {
				t.Errorf("%s with %q: %d, priorities %v: %s", c.path, value, r.status, got, r.body)
			}
		}
		for _, value := range []string{"-129", "128", "1.5", `"high"`, "1e30"} {
			if r := a.post(c.path, c.body+`,"priority":`+value+c.others); r.status != 400 {
				t.Errorf("%s with %s: %d %s", c.path, value, r.status, r.body)
			}
		}
	}
	wantError(t, serve(t, b).post("/v1/completions", `{"prompt":"a","priority":-1}`), 400, "BadRequestError", "priority", "scheduling-policy")
}
