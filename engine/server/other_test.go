package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestModels(t *testing.T) {
	a := serve(t, scripted())
	var list struct {
		Object string      `json:"object"`
		Data   []modelCard `json:"data"`
	}
	strict(t, a.do("GET", "/v1/models", "").body, &list)
	if list.Object != "list" || len(list.Data) != 2 {
		t.Fatalf("%+v", list)
	}
	for i, id := range []string{modelName, "org/alias"} {
		var one modelCard
		strict(t, a.do("GET", "/v1/models/"+id, "").body, &one)
		if one != list.Data[i] || one.ID != id || one.Object != "model" || one.MaxModelLen != maxLen || one.OwnedBy == "" || one.Created == 0 {
			t.Errorf("%s: %+v", id, one)
		}
	}
}

func TestTokenizeAndBack(t *testing.T) {
	a, tok := serve(t, scripted()), testTokenizer(t)
	for _, text := range []string{"", "Hello there.", "<|eot_id|>ends", "naïve 😀\n\n  x", "日本語"} {
		var out struct {
			Count   int      `json:"count"`
			MaxLen  int      `json:"max_model_len"`
			Tokens  []int32  `json:"tokens"`
			Strings []string `json:"token_strs"`
		}
		a.ok("/tokenize", obj{"prompt": text, "return_token_strs": true}.String(), &out)
		if want := tok.Encode(text, true); !slices.Equal(out.Tokens, want) || out.Count != len(want) || out.MaxLen != maxLen || len(out.Strings) != len(want) || out.Tokens == nil {
			t.Errorf("%q: %+v, want %v", text, out, want)
		}
		for i, s := range out.Strings {
			if s != tok.TokenString(out.Tokens[i]) {
				t.Errorf("token %d is called %q", out.Tokens[i], s)
			}
		}
		var back struct{ Prompt *string }
		a.ok("/detokenize", obj{"tokens": out.Tokens}.String(), &back)
		if back.Prompt == nil || *back.Prompt != text {
			t.Errorf("%q came back as %v", text, back.Prompt)
		}
	}
}

func TestTokenizeChat(t *testing.T) {
	b := scripted(tokens(5)...)
	a := serve(t, b)
	messages := []obj{{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}}
	var out struct{ Tokens []int32 }
	count := func(body obj) []int32 {
		r := a.post("/tokenize", body.String())
		if err := json.Unmarshal(r.body, &out); err != nil || r.status != 200 {
			t.Fatalf("%d %s: %v", r.status, r.body, err)
		}
		return slices.Clone(out.Tokens)
	}
	with := count(obj{"messages": messages})
	without := count(obj{"messages": messages, "add_generation_prompt": false})
	if len(without) >= len(with) || !slices.Equal(with[:len(without)], without) {
		t.Errorf("%v with and %v without the generation prompt", with, without)
	}
	var answer chatAnswer
	a.ok("/v1/chat/completions", obj{"messages": messages}.String(), &answer)
	if got := b.last(t).Prompt; !slices.Equal(got, with) {
		t.Errorf("the chat's prompt is %v, /tokenize says %v", got, with)
	}
	if with[0] != 0 || slices.Contains(with[1:], 0) {
		t.Errorf("the prompt %v does not begin with one BOS", with)
	}
}

func TestHealth(t *testing.T) {
	b := scripted()
	a := serve(t, b)
	if r := a.do("GET", "/health", ""); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
	b.setCapacity(0)
	wantError(t, a.do("GET", "/health", ""), 503, "ServiceUnavailableError", "")
}

func TestCluster(t *testing.T) {
	b := scripted()
	b.view = &ClusterView{
		BlockSize: 16, GManager: "a",
		Instances: []InstanceView{{ID: "a", KVBlocksTotal: 10, KVBlocksFree: 4, KVBlocksHosted: 3, KVBlocksLent: 2}},
		Requests:  []RequestPlacement{{ID: "r", Home: "a", Tokens: 70, Spans: []SpanView{{"b", 2}, {"a", 3}}}},
	}
	a := serve(t, b)
	var got struct {
		BlockSize int `json:"block_size"`
		Instances []map[string]any
		Requests  []map[string]any
	}
	if err := json.Unmarshal(a.do("GET", "/cluster", "").body, &got); err != nil {
		t.Fatal(err)
	}
	if got.BlockSize != 16 || len(got.Instances) != 1 || len(got.Requests) != 1 {
		t.Fatalf("%+v", got)
	}
	for k, v := range map[string]any{"id": "a", "kv_blocks_total": 10.0, "kv_blocks_free": 4.0, "kv_blocks_hosted": 3.0, "kv_blocks_lent": 2.0} {
		if got.Instances[0][k] != v {
			t.Errorf("%s is %v, want %v", k, got.Instances[0][k], v)
		}
	}
	want := `map[home:a id:r spans:[map[blocks:2 instance:b] map[blocks:3 instance:a]] tokens:70]`
	if s := fmt.Sprint(got.Requests[0]); s != want {
		t.Errorf("request %s, want %s", s, want)
	}
	b.setError(errors.New("no manager"))
	wantError(t, a.do("GET", "/cluster", ""), 503, "ServiceUnavailableError", "", "no manager")
}

// counters reads /metrics as series -> value.
func (a *api) counters() map[string]string {
	a.t.Helper()
	r := a.do("GET", "/metrics", "")
	if r.status != 200 {
		a.t.Fatalf("%d %s", r.status, r.body)
	}
	out := map[string]string{}
	for line := range strings.Lines(string(r.body)) {
		line = strings.TrimSpace(line)
		if at := strings.LastIndexByte(line, ' '); at >= 0 && !strings.HasPrefix(line, "#") { // a label may have spaces
			out[line[:at]] = line[at+1:]
		}
	}
	return out
}

func TestMetrics(t *testing.T) {
	b := scripted(says(t, "Hello there.")...)
	b.view = &ClusterView{BlockSize: 16, Rehomed: 33, Instances: []InstanceView{{
		ID: "a", Device: "cuda:1 (G)", KVCacheDType: "fp8_e4m3", Links: map[string]uint32{"shm": 2, "tcp": 1}, KVBlocksTotal: 20, KVBlocksFree: 5, KVBlocksLent: 2,
		Running: 3, Waiting: 5, Preemptions: 7, Recoveries: 8, PrefixQueries: 31, PrefixHits: 32, PlannedMoves: 34, PlannedBlocks: 35, ReturnedBlocks: 47, StepModel: &StepModel{0.5, 0.25, 0.125, 2}, KVBlocksCached: 4, RefusedMessages: 9, KVBlocksMoved: 11, KVBytesMoved: 12, RemoteQueryBytes: 13, RemoteAnswerBytes: 14,
		Drafts: 36, DraftTokens: 37, AcceptedTokens: 38, Waves: 45, Assists: 46, AnswerBatches: 15, Steps: 16, HalvedSteps: 39, StepSeconds: 1.5, RemoteWaitSeconds: 0.25}}}
	a := serve(t, b)
	var out completion
	a.ok("/v1/completions", `{"prompt":[5,6,7],"n":2}`, &out)
	a.ok("/v1/completions", `{"prompt":[5,6,7],"stop":"Hello"}`, &out)
	if r := a.post("/v1/completions", `{"prompt":"a","stream":true}`); r.status != 200 {
		t.Fatal(r.status)
	}
	b.setScript(nil)
	a.post("/v1/completions", `{"prompt":[5]}`)
	a.post("/v1/completions", `{"prompt":[5],"model":"gpt"}`)
	got := a.counters()
	n := len(says(t, "Hello there."))
	cut := out.Usage.Completion
	for k, v := range map[string]string{
		`infinite_request_success_total{finished_reason="stop"}`:                                              "4",
		`infinite_request_success_total{finished_reason="abort"}`:                                             "0",
		`infinite_request_failures_total{code="500",path="/v1/completions"}`:                                  "1",
		`infinite_request_failures_total{code="404",path="/v1/completions"}`:                                  "1",
		`infinite_requests_in_flight`:                                                                         "0",
		`infinite_prompt_tokens_total`:                                                                        fmt.Sprint(3 + 3 + len(testTokenizer(t).Encode("a", true))),
		`infinite_generation_tokens_total`:                                                                    fmt.Sprint(3*n + cut),
		`infinite_time_to_first_token_seconds_count`:                                                          "4",
		`infinite_inter_token_latency_seconds_count`:                                                          fmt.Sprint(3*(n-1) + cut - 1),
		`infinite_kv_blocks{instance="a",state="total"}`:                                                      "20",
		`infinite_kv_blocks{instance="a",state="lent"}`:                                                       "2",
		`infinite_e2e_request_latency_seconds_count`:                                                          "4",
		`infinite_num_requests_running{instance="a"}`:                                                         "3",
		`infinite_num_requests_waiting{instance="a"}`:                                                         "5",
		`infinite_kv_cache_usage_perc{instance="a"}`:                                                          "0.75",
		`infinite_num_preemptions_total{instance="a"}`:                                                        "7",
		`infinite_num_rehomed_total`:                                                                          "33",
		`infinite_num_recoveries_total{instance="a"}`:                                                         "8",
		`infinite_prefix_cache_queries_total{instance="a"}`:                                                   "31",
		`infinite_prefix_cache_hits_total{instance="a"}`:                                                      "32",
		`infinite_num_planned_moves_total{instance="a"}`:                                                      "34",
		`infinite_kv_blocks_planned_total{instance="a"}`:                                                      "35",
		`infinite_kv_blocks_returned_total{instance="a"}`:                                                     "47",
		`infinite_spec_decode_num_drafts_total{instance="a"}`:                                                 "36",
		`infinite_spec_decode_num_draft_tokens_total{instance="a"}`:                                           "37",
		`infinite_parallel_prefills_total{instance="a"}`:                                                      "45",
		`infinite_parallel_prefill_assists_total{instance="a"}`:                                               "46",
		`infinite_spec_decode_num_accepted_tokens_total{instance="a"}`:                                        "38",
		`infinite_step_model_seconds{instance="a",term="base"}`:                                               "0.5",
		`infinite_step_model_seconds{instance="a",term="token"}`:                                              "0.25",
		`infinite_step_model_seconds{instance="a",term="kv_token"}`:                                           "0.125",
		`infinite_step_model_seconds{instance="a",term="remote"}`:                                             "2",
		`infinite_kv_blocks{instance="a",state="cached"}`:                                                     "4",
		`infinite_link_messages_total{instance="a",kind="refused"}`:                                           "9",
		`infinite_kv_blocks_moved_total{instance="a"}`:                                                        "11",
		`infinite_link_bytes_total{instance="a",kind="kv_blocks"}`:                                            "12",
		`infinite_link_bytes_total{instance="a",kind="queries"}`:                                              "13",
		`infinite_link_bytes_total{instance="a",kind="answers"}`:                                              "14",
		`infinite_served_batches_total{instance="a"}`:                                                         "15",
		`infinite_halved_steps_total{instance="a"}`:                                                           "39",
		`infinite_steps_total{instance="a"}`:                                                                  "16",
		`infinite_step_seconds_total{instance="a"}`:                                                           "1.5",
		`infinite_remote_wait_seconds_total{instance="a"}`:                                                    "0.25",
		`infinite_links{instance="a",transport="shm"}`:                                                        "2",
		`infinite_links{instance="a",transport="tcp"}`:                                                        "1",
		`infinite_model_info{max_model_len="512",model_name="small"}`:                                         "1",
		`infinite_request_prompt_tokens_sum`:                                                                  fmt.Sprint(3 + 3 + 3 + len(testTokenizer(t).Encode("a", true))),
		`infinite_request_prompt_tokens_bucket{le="500"}`:                                                     "4",
		`infinite_request_generation_tokens_sum`:                                                              fmt.Sprint(3*n + cut),
		`infinite_cache_config_info{block_size="16",cache_dtype="fp8_e4m3",device="cuda:1 (G)",instance="a"}`: "1",
	} {
		if got[k] != v {
			t.Errorf("%s is %q, want %q", k, got[k], v)
		}
	}
	if t.Failed() {
		for _, k := range slices.Sorted(maps.Keys(got)) {
			t.Logf("%s %s", k, got[k])
		}
	}
	// Without a manager the API's own counters are still there.
	b.setError(errors.New("no manager"))
	if v := a.counters()[`infinite_requests_in_flight`]; v != "0" {
		t.Errorf("in flight %q", v)
	}
}
