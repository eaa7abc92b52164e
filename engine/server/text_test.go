package server

import (
	"context"
	"encoding/json"
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/infinite-llm/infinite/engine"
)

// directStop finds the stop string that is complete first, the longest of those, character by character.
// None may end in the first spared bytes.
func directStop(text string, stops []string, spared int) (before, hit string) {
	for end := spared + 1; end <= len(text); end++ {
		for _, s := range stops {
			if strings.HasSuffix(text[:end], s) && len(s) > len(hit) {
				hit = s
			}
		}
		if hit != "" {
			return text[:end-len(hit)], hit
		}
	}
	return text, ""
}

// scan pushes pieces one at a time, as a job does, the first ones spared, and returns everything that left.
func scan(t *rapid.T, s *stopScanner, pieces []string, spared int) (out, hit string) {
	for i, p := range pieces {
		s.push(p)
		if i < spared {
			s.spare()
		}
		var text string
		text, hit = s.take(i == len(pieces)-1)
		if !utf8.ValidString(text) {
			t.Fatalf("torn text %q of %q", text, pieces)
		}
		if out += text; hit != "" {
			break
		}
	}
	return out, hit
}

func TestStopScanner(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// Few letters, so that stops overlap with the text and each other; a letter of two bytes among them.
		word := func(low, high int) *rapid.Generator[string] {
			return rapid.StringOfN(rapid.SampledFrom([]rune("abé")), low, high, -1)
		}
		pieces := rapid.SliceOfN(word(0, 4), 1, 12).Draw(t, "pieces")
		stops := rapid.SliceOfN(word(1, 4), 0, 4).Draw(t, "stops")
		include := rapid.Bool().Draw(t, "include")
		spared := rapid.IntRange(0, len(pieces)).Draw(t, "spared")
		want, wantHit := directStop(strings.Join(pieces, ""), stops, len(strings.Join(pieces[:spared], "")))
		if include {
			want += wantHit
		}
		got, hit := scan(t, &stopScanner{stops: stops, include: include}, pieces, spared)
		if got != want || hit != wantHit {
			t.Fatalf("got %q ended by %q, want %q ended by %q", got, hit, want, wantHit)
		}
	})
}

// What cannot begin a stop string any more leaves at once.
func TestStopScannerHoldsLittle(t *testing.T) {
	s := stopScanner{stops: []string{"END", "\n\n"}}
	for _, x := range []struct{ push, want string }{{"a", "a"}, {"E", ""}, {"N", ""}, {"x", "ENx"}, {"b\n", "b"}, {"c", "\nc"}, {"EEN", "E"}} {
		s.push(x.push)
		if got, hit := s.take(false); got != x.want || hit != "" {
			t.Errorf("after %q: %q ended by %q, want %q", x.push, got, hit, x.want)
		}
	}
	s.push("D")
	if got, hit := s.take(false); got != "" || hit != "END" {
		t.Errorf("%q ended by %q", got, hit)
	}
}

func TestAppendString(t *testing.T) {
	check := func(t rapid.TB, s string) {
		got := appendString([]byte("x"), s)[1:]
		var back, want string
		if err := json.Unmarshal(got, &back); err != nil {
			t.Fatalf("%q became %s: %v", s, got, err)
		}
		b, err := json.Marshal(s)
		if err == nil {
			err = json.Unmarshal(b, &want)
		}
		if err != nil {
			t.Fatal(err)
		}
		if back != want {
			t.Fatalf("%q came back as %q, want %q", s, back, want)
		}
		if strings.ContainsAny(string(got), "\n\r") {
			t.Fatalf("%q breaks an event's line: %s", s, got)
		}
	}
	for c := range 256 {
		check(t, string([]byte{byte(c)}))
		check(t, string(rune(c)))
	}
	for _, s := range []string{"", "\u2028\u2029", "\xed\xa0\x80", "\xf0\x9f\x98", "😀", "\ufffd", "</script>", `\"\\`} {
		check(t, s)
	}
	rapid.Check(t, func(t *rapid.T) { check(t, rapid.String().Draw(t, "text")) })
	rapid.Check(t, func(t *rapid.T) { check(t, string(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes"))) })
}

func TestAppendFloat(t *testing.T) {
	check := func(t rapid.TB, f float32) {
		var back float32
		b := appendFloat(nil, f)
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatalf("%g became %s: %v", f, b, err)
		}
		if f >= -9999 && f <= 9999 && back != f {
			t.Fatalf("%g came back as %g", f, back)
		}
	}
	inf := float32(math.Inf(1))
	for _, f := range []float32{0, -0.5, -1e-30, math.SmallestNonzeroFloat32, -9999, math.MaxFloat32, -math.MaxFloat32, inf, -inf, float32(math.NaN())} {
		check(t, f)
	}
	rapid.Check(t, func(t *rapid.T) { check(t, rapid.Float32().Draw(t, "f")) })
}

// fuzzServer plans requests; it does not listen.
func fuzzServer(t testing.TB) *Server {
	s, err := New(testConfig(), testTokenizer(t), scripted())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.cancel(nil)
		s.watcher.close()
	})
	return s
}

// checkPlan holds what every engine relies on.
func checkPlan(t *testing.T, p *plan, err error) {
	if err != nil {
		if e := asError(err); e.Status < 400 || e.Status > 499 || !json.Valid(e.body()) {
			t.Errorf("refused with %d %s", e.Status, e.body())
		}
		return
	}
	if len(p.jobs) == 0 || len(p.jobs) > maxJobs {
		t.Fatalf("%d jobs", len(p.jobs))
	}
	for _, j := range p.jobs {
		r := j.req
		total := len(r.Prompt) + r.MaxTokens
		if len(r.Prompt) == 0 || r.MaxTokens < 0 || r.MaxTokens == 0 && len(p.echo) == 0 || total > maxLen || r.MinTokens < 0 || r.MinTokens > r.MaxTokens {
			t.Errorf("a request of %d prompt tokens, %d to %d more", len(r.Prompt), r.MinTokens, r.MaxTokens)
		}
		for _, id := range append(r.Prompt, r.StopTokens...) {
			if id < 0 || id >= vocab {
				t.Errorf("token %d", id)
			}
		}
		s := r.Sampling
		if !(s.Temperature >= 0 && s.Temperature <= math.MaxFloat32) || !(s.TopP > 0 && s.TopP <= 1) || !(s.MinP >= 0 && s.MinP < 1) ||
			!(s.Repetition >= .001 && s.Repetition <= 1000) || s.TopK < 0 || r.Logprobs < -1 || r.Logprobs > maxTopLogprobs {
			t.Errorf("sampling %+v, %d log probabilities", s, r.Logprobs)
		}
	}
}

func FuzzBody(f *testing.F) {
	for _, s := range []string{
		`{"prompt":"Hello","max_tokens":5}`, `{"prompt":["a","b"],"n":2,"echo":true,"logprobs":1}`, `{"prompt":[[1,2],[3]],"stop":["x","y"]}`,
		`{"prompt":[1,2,3],"logit_bias":{"5":-100},"seed":-1,"top_k":-1}`, `{"prompt":"a","stream":true,"stream_options":{"include_usage":true}}`,
		`{"messages":[{"role":"user","content":"Hi"}],"temperature":0.5}`, `{"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]}`,
		`{"messages":[{"role":"user","content":null}],"logprobs":true,"top_logprobs":3,"max_completion_tokens":4}`,
		`{"messages":[{"role":"system","content":"\ud800"}],"chat_template_kwargs":{"x":[1,{}]}}`, `{"prompt":"a","max_tokens":9223372036854775807}`,
		`{"prompt":"a","n":128,"min_tokens":-9223372036854775808}`, `[]`, `null`, `{`, `{"prompt":"\u0000"}`, `{"prompt":"a"} {"prompt":"b"}`,
		`{"prompt":"a","response_format":{"type":"json_schema","json_schema":{"schema":{"type":"object"}}}}`, `{"prompt":"a","structured_outputs":{"regex":"a|b"}}`,
		`{"prompt":"a","response_format":{"type":"text"},"tools":[],"stop":null,"temperature":1e-320}`, "{\"prompt\":\"\xff\"}",
		`{"prompt":["a",null,[1]],"max_tokens":"3.0","stop":[null],"stop_token_ids":[null],"truncate_prompt_tokens":-1,"min_tokens":1.0}`,
		`{"prompt":[[1],[2,3]],"max_tokens":0,"echo":true,"prompt_logprobs":2,"request_id":"x","ignore_eos":true,"stop_token_ids":[3]}`,
		`{"messages":[{"role":"assistant","content":[" a ",{"type":"refusal","refusal":"b"}]}],"continue_final_message":true,"tools":[{}],"tool_choice":"none"}`,
		`{"prompt":"a","prompt":["b"],"PROMPT":"c"}`, strings.Repeat(`[`, 100),
	} {
		f.Add([]byte(s))
	}
	s := fuzzServer(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		var c completionRequest
		if err := decode(body, &c); err == nil {
			p, err := s.planCompletion(t.Context(), &c, nil)
			checkPlan(t, p, err)
		} else {
			checkPlan(t, nil, err)
		}
		var ch chatRequest
		if err := decode(body, &ch); err == nil {
			p, err := s.planChat(t.Context(), &ch, nil)
			checkPlan(t, p, err)
		}
	})
}

// runJob puts together what tokens make; the text of every delta must be whole characters.
func runJob(t rapid.TB, j *job, events []engine.Event) (text string, last delta) {
	tok, err := loadTokenizer()
	if err != nil {
		t.Fatal(err)
	}
	j.stream = ended(events...)
	var b strings.Builder
	j.run(context.Background(), tok, newMetrics(scripted(), Config{ModelNames: []string{modelName}, MaxModelLen: maxLen}), func(d delta) bool {
		if !utf8.ValidString(d.text) {
			t.Fatalf("torn text %q", d.text)
		}
		b.WriteString(d.text)
		last = d
		return true
	})
	return b.String(), last
}

func TestJobText(t *testing.T) {
	tok := testTokenizer(t)
	rapid.Check(t, func(t *rapid.T) {
		want := strings.ReplaceAll(rapid.StringN(1, 30, -1).Draw(t, "text"), "\ufffd", "?")
		events := tokens(tok.Encode(want, false)...)
		if got, last := runJob(t, &job{req: &engine.Request{}, skip: true}, events); got != want || last.finish != "length" {
			t.Fatalf("%q became %q, %q", want, got, last.finish)
		}
		stops := rapid.SliceOfN(rapid.StringN(1, 3, -1), 0, 3).Draw(t, "stops")
		if at := []rune(want); rapid.Bool().Draw(t, "within") {
			from := rapid.IntRange(0, len(at)-1).Draw(t, "from")
			stops = append(stops, string(at[from:min(len(at), from+3)]))
		}
		before, hit := directStop(want, stops, 0)
		got, last := runJob(t, &job{req: &engine.Request{}, skip: true, stops: stops}, events)
		if got != before || hit != "" && (last.finish != "stop" || last.stopReason != hit) {
			t.Fatalf("%q with stops %q became %q %q %v, want %q %q", want, stops, got, last.finish, last.stopReason, before, hit)
		}
	})
}

// Tokens at random need not make UTF-8; the text still is, and is what Decode says.
func TestJobRandomTokens(t *testing.T) {
	tok := testTokenizer(t)
	rapid.Check(t, func(t *rapid.T) {
		ids := rapid.SliceOfN(rapid.Int32Range(0, vocab-1), 1, 20).Draw(t, "ids")
		skip := rapid.Bool().Draw(t, "skip")
		got, last := runJob(t, &job{req: &engine.Request{}, skip: skip}, tokens(ids...))
		if want := tok.Decode(ids, skip); got != want || last.finish != "length" {
			t.Fatalf("%q, want %q", got, want)
		}
	})
}
