package router

import (
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/batch"
	"github.com/infinite-llm/infinite/engine/router/routerpb"
)

// list is nil where it is empty, as protobuf has it.
func list[T any](t *rapid.T, name string, g *rapid.Generator[T]) []T {
	l := rapid.SliceOfN(g, 0, 5).Draw(t, name)
	if len(l) == 0 {
		return nil
	}
	return l
}

func drawRequest(t *rapid.T) *engine.Request {
	i32, f32, u32 := rapid.Int32(), rapid.Float32(), rapid.Uint32()
	return &engine.Request{
		ID: rapid.String().Draw(t, "id"), Prompt: list(t, "prompt", i32), Answer: list(t, "answer", i32), StopTokens: list(t, "stop", i32),
		MaxTokens: int(u32.Draw(t, "max")), MinTokens: int(u32.Draw(t, "min")), IgnoreEOS: rapid.Bool().Draw(t, "ignore"),
		Logprobs: rapid.IntRange(-1, 20).Draw(t, "logprobs"), PromptLogprobs: rapid.IntRange(-1, 20).Draw(t, "prompt logprobs"),
		Arrival: rapid.Uint64().Draw(t, "arrival"), CacheSalt: rapid.String().Draw(t, "salt"), Handed: rapid.Bool().Draw(t, "handed"), Later: rapid.Bool().Draw(t, "later"),
		Near: rapid.String().Draw(t, "near"), TellBegun: rapid.Bool().Draw(t, "tell"), Guide: engine.Guide{
			Kind: rapid.String().Draw(t, "kind"), Source: rapid.String().Draw(t, "source"),
			Thoughts: engine.Thoughts{Close: rapid.String().Draw(t, "close"), CloseToken: i32.Draw(t, "close token"), Opened: rapid.Bool().Draw(t, "opened"), Open: i32.Draw(t, "open")},
		},
		Limits: engine.Limits{Allowed: list(t, "allowed", i32), Bad: list(t, "bad", rapid.SliceOfN(i32, 1, 4)), Thought: drawThoughtLimit(t)},
		Bias: list(t, "bias", rapid.Custom(func(t *rapid.T) batch.Bias {
			return batch.Bias{Token: i32.Draw(t, "token"), Value: f32.Draw(t, "value")}
		})),
		Sampling: batch.Sampling{
			Temperature: f32.Draw(t, "temperature"), TopP: f32.Draw(t, "top_p"), MinP: f32.Draw(t, "min_p"), Repetition: f32.Draw(t, "repetition"),
			Presence: f32.Draw(t, "presence"), Frequency: f32.Draw(t, "frequency"), TopK: i32.Draw(t, "top_k"), Seed: rapid.Uint64().Draw(t, "seed"),
		},
	}
}

func drawThoughtLimit(t *rapid.T) *engine.ThoughtLimit {
	if rapid.Bool().Draw(t, "thought") {
		return nil
	}
	i32 := rapid.Int32()
	return &engine.ThoughtLimit{Most: int(rapid.Uint32().Draw(t, "most")), Close: i32.Draw(t, "closes"), Opened: rapid.Bool().Draw(t, "begun"), Open: i32.Draw(t, "opens")}
}

func drawLogprob(t *rapid.T) engine.TokenLogprob {
	return engine.TokenLogprob{
		Token: rapid.Int32().Draw(t, "token"), Logprob: rapid.Float32().Draw(t, "logprob"), Rank: rapid.Int32().Draw(t, "rank"),
		Top: list(t, "top", rapid.Custom(func(t *rapid.T) engine.Alt {
			return engine.Alt{Token: rapid.Int32().Draw(t, "alternative"), Logprob: rapid.Float32().Draw(t, "its")}
		})),
	}
}

// wire sends a message through its encoding.
func wire[M proto.Message](t *rapid.T, m, into M) M {
	b, err := proto.Marshal(m)
	if err == nil {
		err = proto.Unmarshal(b, into)
	}
	if err != nil {
		t.Fatal(err)
	}
	return into
}

func TestRequestSurvives(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRequest(t)
		if got := requestFromPB(wire(t, toPB(r), &routerpb.GenerateRequest{})); !reflect.DeepEqual(got, r) {
			t.Fatalf("got  %+v\nwant %+v", got, r)
		}
	})
	// Every field is drawn, but for the priority, which is in the arrival: a new one has to be sent too.
	if a, b := reflect.TypeFor[engine.Request]().NumField(), 20; a != b {
		t.Errorf("a request has %d fields, this test knows %d", a, b)
	}
	if a, b := reflect.TypeFor[engine.Guide]().NumField()+reflect.TypeFor[engine.Thoughts]().NumField(), 3+4; a != b {
		t.Errorf("a guide and its thoughts have %d fields, the messages carry %d", a, b)
	}
	if a, b := reflect.TypeFor[engine.Limits]().NumField()+reflect.TypeFor[engine.ThoughtLimit]().NumField(), 3+4; a != b {
		t.Errorf("limits have %d fields, the messages carry %d", a, b)
	}
	if a, b := reflect.TypeFor[batch.Sampling]().NumField(), 9; a != b {
		t.Errorf("sampling has %d fields, this test knows %d", a, b)
	}
}

func TestEventSurvives(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ev := engine.Event{
			Token: rapid.Int32().Draw(t, "token"), HasToken: rapid.Bool().Draw(t, "has"), StopToken: rapid.Int32Min(-1).Draw(t, "stop"), Cached: int(rapid.Uint32().Draw(t, "cached")), Queued: time.Duration(rapid.Int64().Draw(t, "queued")), Begun: rapid.Bool().Draw(t, "begun"),
			Finish: rapid.SampledFrom([]string{"", "stop", "length", "error", "abort"}).Draw(t, "finish"), Prompt: list(t, "prompt", rapid.Custom(drawLogprob)),
		}
		for range rapid.IntRange(0, 3).Draw(t, "spans") {
			ev.Spans = append(ev.Spans, engine.SpanInfo{Instance: rapid.StringN(1, 9, 9).Draw(t, "instance"), Blocks: rapid.IntRange(0, 1<<30).Draw(t, "blocks")})
		}
		if rapid.Bool().Draw(t, "logprob") {
			lp := drawLogprob(t)
			ev.Logprob = &lp
		}
		if rapid.Bool().Draw(t, "failed") {
			ev.Err = &Error{rapid.SampledFrom(kinds).Draw(t, "kind"), "x" + rapid.String().Draw(t, "message")}
		}
		if got := eventFromPB(wire(t, eventToPB(ev), &routerpb.GenerateEvent{}), "i0"); !reflect.DeepEqual(got, ev) {
			t.Fatalf("got  %+v\nwant %+v", got, ev)
		}
	})
	if a, b := reflect.TypeFor[engine.Event]().NumField(), 11; a != b {
		t.Errorf("an event has %d fields, this test knows %d", a, b)
	}
}

// What peers send is not trusted: any message makes a request or an event.
func TestEmptyMessages(t *testing.T) {
	if r := requestFromPB(&routerpb.GenerateRequest{}); len(r.Prompt) != 0 {
		t.Errorf("%+v", r)
	}
	if ev := eventFromPB(&routerpb.GenerateEvent{Prompt: []*routerpb.TokenLogprob{{}}, Logprob: &routerpb.TokenLogprob{}}, ""); len(ev.Prompt) != 1 {
		t.Errorf("%+v", ev)
	}
	// The home names its own blocks by nothing; the router knows its name.
	if ev := eventFromPB(&routerpb.GenerateEvent{Spans: []*routerpb.Span{{Instance: "i1", Blocks: 2}, {Blocks: 3}}}, "i0"); !reflect.DeepEqual(ev.Spans, []engine.SpanInfo{{Instance: "i1", Blocks: 2}, {Instance: "i0", Blocks: 3}}) {
		t.Errorf("%+v", ev.Spans)
	}
}
