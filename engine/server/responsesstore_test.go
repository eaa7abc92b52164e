package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/infinite-llm/infinite/engine"
)

type itemPage struct {
	Object string    `json:"object"`
	Data   []gotItem `json:"data"`
	First  *string   `json:"first_id"`
	Last   *string   `json:"last_id"`
	More   bool      `json:"has_more"`
}

// inputs are all input items of a response, page by page.
func (a *api) inputs(id string, limit int) (items []gotItem) {
	a.t.Helper()
	for after := ""; ; {
		r := a.do("GET", fmt.Sprintf("%s/%s/input_items?order=asc&limit=%d&after=%s", responsesPath, id, limit, after), "")
		if r.status != 200 {
			a.t.Fatalf("%d %s", r.status, r.body)
		}
		var page itemPage
		strict(a.t, r.body, &page)
		if page.Object != "list" || len(page.Data) > limit || page.More && len(page.Data) != limit {
			a.t.Fatalf("%s", r.body)
		}
		if items = append(items, page.Data...); !page.More {
			return items
		}
		if *page.First != page.Data[0].ID || *page.Last != page.Data[len(page.Data)-1].ID {
			a.t.Fatalf("%s", r.body)
		}
		after = *page.Last
	}
}

func words(items []gotItem) (list []string) {
	for _, it := range items {
		list = append(list, it.words())
	}
	return list
}

func TestStoredResponse(t *testing.T) {
	a := serve(t, scripted(says(t, "Hello.")...))
	made := a.post(responsesPath, obj{"input": "Hi", "metadata": obj{"a": "b"}}.String())
	var r gotResponse
	strict(t, made.body, &r)
	at := responsesPath + "/" + r.ID
	got := a.do("GET", at, "")
	if got.status != 200 || !bytes.Equal(got.body, made.body) || got.header.Get("Content-Type") != "application/json" {
		t.Errorf("%d %s\nwant %s", got.status, got.body, made.body)
	}
	if head := a.do("HEAD", at, ""); head.status != 200 || len(head.body) != 0 {
		t.Errorf("%d %q", head.status, head.body)
	}
	if diff := cmp.Diff([]string{"message;completed;user;;;;Hi"}, words(a.inputs(r.ID, 20))); diff != "" {
		t.Error(diff)
	}
	wantError(t, a.do("GET", at+"?stream=true", ""), 400, "BadRequestError", "stream")
	for _, query := range []string{"limit=0", "limit=101", "limit=x", "limit="} {
		wantError(t, a.do("GET", at+"/input_items?"+query, ""), 400, "BadRequestError", "limit")
	}
	wantError(t, a.do("GET", at+"/input_items?order=up", ""), 400, "BadRequestError", "order")
	wantError(t, a.do("GET", at+"/input_items?after=msg_1", ""), 400, "BadRequestError", "after")

	gone := a.do("DELETE", at, "")
	if want := fmt.Sprintf(`{"id":%q,"object":"response","deleted":true}`, r.ID); gone.status != 200 || string(gone.body) != want {
		t.Errorf("%d %s, want %s", gone.status, gone.body, want)
	}
	for _, method := range []string{"GET", "DELETE"} {
		wantError(t, a.do(method, at, ""), 404, "NotFoundError", "response_id", r.ID)
	}
	wantError(t, a.do("GET", at+"/input_items", ""), 404, "NotFoundError", "response_id", r.ID)
	wantError(t, a.post(responsesPath, obj{"input": "a", "previous_response_id": r.ID}.String()), 400, "BadRequestError", "previous_response_id", r.ID)
	if r := a.do("POST", at, "{}"); r.status != 405 {
		t.Errorf("%d %s", r.status, r.body)
	}
	if s := a.srv.responses; s.bytes != 0 || len(s.byID) != 0 || len(s.items) != 0 || s.order.Len() != 0 {
		t.Errorf("left: %+v", s)
	}

	kept := a.response(obj{"input": "Hi", "store": false})
	wantError(t, a.do("GET", responsesPath+"/"+kept.ID, ""), 404, "NotFoundError", "response_id")
	events := a.events(obj{"input": "Hi"})
	last := events[len(events)-1].Response
	var stored gotResponse
	strict(t, a.do("GET", responsesPath+"/"+last.ID, "").body, &stored)
	if diff := cmp.Diff(last, &stored); diff != "" {
		t.Error(diff)
	}
}

// The key opens what anybody with it stored, and nothing else does.
func TestStoredResponsesNeedTheKey(t *testing.T) {
	a := serve(t, scripted(says(t, "Hello.")...), func(c *Config) { c.APIKey = "k" })
	made := a.do("POST", responsesPath, `{"input":"a"}`, "Authorization", "Bearer k")
	var r gotResponse
	strict(t, made.body, &r)
	for _, method := range []string{"GET", "DELETE"} {
		wantError(t, a.do(method, responsesPath+"/"+r.ID, ""), 401, "AuthenticationError", "")
	}
	if got := a.do("GET", responsesPath+"/"+r.ID, "", "Authorization", "Bearer k"); got.status != 200 {
		t.Errorf("%d %s", got.status, got.body)
	}
}

// A conversation goes on by the id of its last answer, tools included, as if all of it had been sent.
func TestPreviousResponse(t *testing.T) {
	const text = "Let me see.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>"
	b := scripted(says(t, text)...)
	a := serveWith(t, templated(t, "qwen25"), b, wide)
	first := a.response(asking(obj{"instructions": "first"}))
	call := first.Output[1]
	result := obj{"type": "function_call_output", "call_id": call.CallID, "output": "4"}
	b.setScript(scripted(says(t, "It is 4.")...).script)
	second := bothResponses(t, a, asking(obj{"instructions": "second", "previous_response_id": first.ID, "input": []obj{result}}))
	if str(second.Previous) != first.ID {
		t.Errorf("%+v", second)
	}
	prompt := b.last(t).Prompt
	a.response(asking(obj{"instructions": "second", "store": false, "input": []any{message("user", "a"), message("assistant", "Let me see."), called(call.CallID, "get_weather", `{"city": "Oslo"}`), result}}))
	if want := b.last(t).Prompt; !slices.Equal(prompt, want) {
		t.Errorf("%s\nwant\n%s", testTokenizer(t).Decode(prompt, false), testTokenizer(t).Decode(want, false))
	}
	third := a.response(asking(obj{"previous_response_id": second.ID, "input": "b"}))
	want := []string{"message;completed;user;;;;a", "message;completed;assistant;;;;Let me see.", `function_call;completed;;get_weather;{"city": "Oslo"};;`, `function_call_output;completed;;;;"4";`, "message;completed;assistant;;;;It is 4.", "message;completed;user;;;;b"}
	for _, limit := range []int{1, 2, 6, 100} {
		if diff := cmp.Diff(want, words(a.inputs(third.ID, limit))); diff != "" {
			t.Errorf("%d at once: %s", limit, diff)
		}
	}
	var page itemPage
	strict(t, a.do("GET", responsesPath+"/"+third.ID+"/input_items?limit=2", "").body, &page)
	if got := words(page.Data); !slices.Equal(got, []string{want[5], want[4]}) || !page.More {
		t.Errorf("the last ones come first: %q", got)
	}
	// Without input the last answer is all there is, and with the beginning gone there is no conversation.
	a.response(asking(obj{"previous_response_id": third.ID, "input": nil}))
	a.do("DELETE", responsesPath+"/"+first.ID, "")
	wantError(t, a.post(responsesPath, asking(obj{"previous_response_id": third.ID}).String()), 400, "BadRequestError", "previous_response_id", first.ID)
	if got := words(a.inputs(third.ID, 100)); !slices.Equal(got, want[3:]) {
		t.Errorf("%q", got)
	}
}

// Items that are stored can be sent by their ids alone; what is sent again gets another id in its conversation.
func TestItemReferences(t *testing.T) {
	b := scripted(says(t, "Hello.")...)
	a := serve(t, b)
	first := a.response(obj{"input": []obj{message("user", "a")}})
	id := first.Output[0].ID
	mine := a.inputs(first.ID, 20)[0].ID
	for _, ref := range []obj{{"type": "item_reference", "id": id}, {"id": id}} {
		r := a.response(obj{"input": []obj{{"type": "item_reference", "id": mine}, ref, message("user", "b")}})
		if got := words(a.inputs(r.ID, 20)); !slices.Equal(got, []string{"message;completed;user;;;;a", "message;completed;assistant;;;;Hello.", "message;completed;user;;;;b"}) {
			t.Errorf("%q", got)
		}
	}
	r := a.response(obj{"previous_response_id": first.ID, "input": []obj{
		{"type": "item_reference", "id": id}, {"type": "message", "id": "own", "role": "user", "content": "b"}, {"type": "message", "id": "own", "role": "user", "content": "c"}, {"id": "a b", "role": "user", "content": "d"},
	}})
	var ids []string
	for _, it := range a.inputs(r.ID, 1) {
		ids = append(ids, it.ID)
	}
	if len(ids) != 6 || ids[1] != id || ids[2] == id || ids[3] != "own" || !itemID.MatchString(ids[4]) || !itemID.MatchString(ids[5]) {
		t.Errorf("%q", ids)
	}
	// References are small, whatever they are of.
	many := slices.Repeat([]obj{{"id": id}}, 1000)
	wantError(t, a.post(responsesPath, obj{"input": many}.String()), 400, "BadRequestError", "input", "larger than a request")
	large := serve(t, b, wide, func(c *Config) { c.MaxBodySize = 1 << 20 })
	wantError(t, large.post(responsesPath, obj{"input": slices.Repeat([]obj{message("user", "")}, maxItems+1)}.String()), 400, "BadRequestError", "input", "at most 8192 items")
	for _, one := range []string{first.ID, r.ID} {
		a.do("DELETE", responsesPath+"/"+one, "")
	}
	wantError(t, a.post(responsesPath, obj{"input": []obj{{"type": "item_reference", "id": ids[2]}}}.String()), 400, "BadRequestError", "input", ids[2])
}

// A conversation may be as large as a request.
func TestLongConversation(t *testing.T) {
	a := serve(t, scripted(says(t, "a")...), wide, func(c *Config) { c.MaxBodySize = 4096 })
	r := a.response(obj{"input": strings.Repeat("a", 3000)})
	r = a.response(obj{"input": strings.Repeat("a", 3000), "previous_response_id": r.ID})
	wantError(t, a.post(responsesPath, obj{"input": "a", "previous_response_id": r.ID}.String()), 400, "BadRequestError", "previous_response_id", "of at most 4096")
}

// in and out are ids as this server gives them.
func in(id string) string  { return fmt.Sprintf("msg_%024x", id) }
func out(id string) string { return fmt.Sprintf("fc_%024x", id) }

func TestResponseStoreLimits(t *testing.T) {
	response := func(id, previous string, size int) *keptResponse {
		return &keptResponse{id: id, previous: previous, body: make([]byte, size), input: []storedItem{{in(id), []byte("{}")}}, output: []storedItem{{out(id), []byte("{}")}}}
	}
	s := newResponseStore(3, 1<<20)
	for _, id := range []string{"a", "b", "c"} {
		s.add(response(id, "", 10))
	}
	s.add(response("d", "b", 10))
	if s.get("a") != nil || s.item(in("a")) != nil || s.get("b") == nil || string(s.item(out("b"))) != "{}" {
		t.Error("not the oldest left")
	}
	// What is gone on from is used.
	if items, err := s.chain("d", 100); err != nil || len(items) != 4 || items[0].id != in("b") || items[3].id != out("d") {
		t.Errorf("%v %v", items, err)
	}
	s.add(response("e", "", 10))
	if s.get("c") != nil || s.get("b") == nil {
		t.Error("what is used longest ago stayed")
	}
	if _, err := s.chain("d", 7); err == nil {
		t.Error("a long conversation is taken")
	}
	// What is too large for the store pushes nobody out of it.
	s.add(response("h", "", s.mostBytes/maxStoredShare))
	if s.get("h") != nil || len(s.byID) != 3 || len(s.items) != 6 {
		t.Errorf("%d bytes in %d responses", s.bytes, len(s.byID))
	}
	s = newResponseStore(1000, 1<<20)
	for i := range 40 {
		s.add(response(fmt.Sprint("g", i), "", 60_000))
	}
	if s.get("g39") == nil || s.get("g0") != nil || s.bytes > s.mostBytes || len(s.byID) != 17 {
		t.Errorf("%d bytes in %d responses", s.bytes, len(s.byID))
	}
	// An id is the first one's who has it, and what a client calls its items nobody else can ask for.
	first, second := response("p", "", 10), response("p", "", 10)
	second.id, second.input[0].json = "q", []byte("[]")
	second.input = append(second.input, storedItem{"msg_1", []byte("{}")})
	s.add(first)
	s.add(second)
	if string(s.item(in("p"))) != "{}" || s.item("msg_1") != nil {
		t.Errorf("%s, %s", s.item(in("p")), s.item("msg_1"))
	}
	if s.remove("q"); string(s.item(in("p"))) != "{}" {
		t.Error("it went with another one")
	}
}

// Whatever happens, the store keeps its books and its limits.
func TestAnyResponseStore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newResponseStore(rapid.IntRange(1, 6).Draw(t, "most"), maxStoredShare*rapid.IntRange(1000, 5000).Draw(t, "bytes"))
		names := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f", "g", "h"})
		for i := range rapid.IntRange(1, 40).Draw(t, "steps") {
			id := fmt.Sprint("r", i)
			switch name := names.Draw(t, "name"); rapid.IntRange(0, 3).Draw(t, "what") {
			case 0:
				if e := s.order.Front(); e != nil {
					s.remove(e.Value.(*keptResponse).id)
				}
			case 1:
				if e := s.order.Back(); e != nil {
					if items, err := s.chain(e.Value.(*keptResponse).id, 1<<20); err == nil && len(items) == 0 {
						t.Fatal("no items")
					}
				}
			default:
				previous := ""
				if e := s.order.Back(); e != nil && rapid.Bool().Draw(t, "goes on") {
					previous = e.Value.(*keptResponse).id
				}
				s.add(&keptResponse{id: id, previous: previous, body: make([]byte, rapid.IntRange(0, 3000).Draw(t, "size")), input: []storedItem{{in(name), []byte(name)}}, output: []storedItem{{out(id), nil}}})
			}
			bytes := 0
			for e := s.order.Front(); e != nil; e = e.Next() {
				bytes += e.Value.(*keptResponse).size()
			}
			if bytes != s.bytes || s.bytes > s.mostBytes || len(s.byID) > s.most || len(s.byID) != s.order.Len() || len(s.items) > 2*len(s.byID) {
				t.Fatalf("%d bytes, counted %d, in %d responses, %d items", bytes, s.bytes, len(s.byID), len(s.items))
			}
			for name, k := range s.items {
				if s.get(k.kept.id) != k.kept || s.item(name) == nil && name[0] == 'm' {
					t.Fatalf("%q is of %q, which is gone", name, k.kept.id)
				}
			}
		}
	})
}

// Bodies and items of any kind are planned or refused, and an item that is listed is read as the same.
func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		`{"input":"Hi"}`, `{"input":[{"role":"user","content":"a"}],"instructions":"b"}`, `{"input":[{"type":"message","role":"assistant","content":[{"type":"output_text","text":"a"},{"type":"refusal","refusal":"b"}]}]}`,
		`{"input":[{"type":"function_call","call_id":"1","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"1","output":[{"type":"input_text","text":"a"}]}]}`,
		`{"input":[{"type":"reasoning","summary":[{"type":"summary_text","text":"a"}],"content":[{"type":"reasoning_text","text":"b"}]},{"type":"message","role":"assistant","content":""}]}`,
		`{"input":[{"id":"msg_1"}],"previous_response_id":"resp_1"}`, `{"input":"a","text":{"format":{"type":"json_schema","name":"n","schema":{"type":"object"}},"verbosity":"low"}}`,
		`{"input":"a","tools":[{"type":"function","name":"f"}],"tool_choice":{"type":"allowed_tools","mode":"auto","tools":[{"type":"function","name":"f"}]}}`,
		`{"input":"a","reasoning":{"effort":"low","summary":"auto"},"include":["message.output_text.logprobs"],"top_logprobs":3,"metadata":{"a":"b"},"truncation":"auto"}`, `{"input":[null]}`, `{"input":"\ud800"}`,
	} {
		f.Add([]byte(s))
	}
	s := fuzzServer(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		var req responseRequest
		if err := decode(body, &req); err != nil {
			checkPlan(t, nil, err)
			return
		}
		p, err := s.planResponse(t.Context(), &req)
		checkPlan(t, p, err)
		if err != nil {
			return
		}
		for _, it := range p.own.(*response).input {
			again, err := readItem(it.json)
			if err != nil || !bytes.Equal(again.append(nil, nil), it.json) || bytes.Contains(it.json, []byte("\n")) {
				t.Errorf("%s is read as %+v (%v)", it.json, again, err)
			}
		}
		p.own.(*response).store = false
		for _, d := range []delta{{text: "a", ids: []int32{5}}, {finish: "stop", tokens: []engine.TokenLogprob{{Token: 5}}}} {
			if err := p.own.(*response).add(d); err != nil {
				t.Fatal(err)
			}
		}
		if b := p.own.(*response).end(); !json.Valid(b) || bytes.Contains(b, []byte("\n")) {
			t.Errorf("%s", b)
		}
	})
}
