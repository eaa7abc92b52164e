package trace

import (
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// script makes events as instances would: two homes, processes 0 and 1, and their creditors 2 and 3.
type script struct {
	events []Event
}

func (s *script) add(at uint64, process uint32, m Mark, args ...uint64) {
	e := Event{Time: at, Mark: m, Process: process}
	copy(e.Args[:], args)
	s.events = append(s.events, e)
}

// message goes through all its stages at from, from+10 ..., but skip.
func (s *script) message(kind Kind, from uint64, home, creditor uint32, lane, id, part uint64, skip ...Stage) {
	for stage := Posted; stage < stages; stage++ {
		if kind == Move && stage == Merged || slices.Contains(skip, stage) {
			continue
		}
		process, peer, bytes := home, uint64(creditor), uint64(1000)
		if !stage.atHome() {
			process, peer = creditor, uint64(home)+100
		}
		if stage > Computed {
			bytes = 2000
		}
		s.add(from+10*uint64(stage), process, Of(kind, stage), peer, lane, id, part, 3, bytes)
	}
}

func (s *script) step(home uint32, id, from, to uint64, shares ...Share) {
	s.add(from, home, StepBegun, id, 5, 9, 2)
	for _, x := range shares {
		s.add(from, home, StepSeq, id, x.Tag, x.Slot, x.Pos0, x.Tokens, x.LocalPos0)
	}
	s.add(to, home, StepEnded, id)
}

// trace takes the events in any order.
func (s *script) trace(seed uint64) *Trace {
	events := append([]Event(nil), s.events...)
	rand.New(rand.NewPCG(seed, 1)).Shuffle(len(events), func(i, k int) { events[i], events[k] = events[k], events[i] })
	t := New()
	for _, e := range events {
		t.Add(e)
	}
	return t
}

func four() Source {
	return Source{Processes: []Process{{PID: 10, Instance: "i0"}, {PID: 11, Instance: "i1"}, {PID: 12}, {PID: 13, Instance: "i3"}}}
}

// Both homes ask both creditors in the same step and layer: lanes keep the messages apart.
func TestJoin(t *testing.T) {
	var s script
	share := Share{Tag: 0xaa, Slot: 4, Pos0: 100, Tokens: 3, LocalPos0: 64}
	for home := range uint32(2) {
		s.step(home, 7, 1000, 2000, share)
		for layer := range uint64(2) {
			for creditor := uint32(2); creditor < 4; creditor++ {
				s.message(Query, 1100+200*layer+uint64(creditor), home, creditor, uint64(home*10+creditor), 7, layer)
			}
		}
		s.message(Move, 1500, home, 2, uint64(home*10+2), 7, 0)
	}
	for seed := range uint64(20) {
		tr := s.trace(seed)
		r := tr.Report(four(), Options{Peer: -1})
		if len(r.Lanes) != 6 || r.Order != (Order{Checked: 10}) || len(r.Notes) != 0 {
			t.Fatalf("%d lanes, %+v, %q", len(r.Lanes), r.Order, r.Notes)
		}
		first := r.Lanes[0]
		if first.Kind != Query || first.Home != (End{"i0", 2}) || first.Creditor != (End{"pid 12", 100}) || first.Messages != 2 || first.Whole != 2 ||
			first.Rows != 6 || first.Bytes != 2000 || first.Answers != 4000 {
			t.Errorf("%+v", first)
		}
		for _, st := range first.Stages {
			want := uint64(10)
			if st.Name == "round trip" {
				want = 50
			}
			if st.Count != 2 || st.P50 != want || st.Max != want {
				t.Errorf("%+v", st)
			}
		}
		if last := r.Lanes[5]; last.Kind != Move || len(last.Stages) != 6 {
			t.Errorf("%+v", last)
		}
		steps := tr.Steps()
		if len(steps) != 2 || len(steps[0].Messages) != 4 || !reflect.DeepEqual(steps[0].Shares, []Share{share}) {
			t.Fatalf("%+v", steps)
		}
		// Two layers, in each two messages a nanosecond apart that are out for 50.
		if away := steps[0].away(); away != 2*51 {
			t.Errorf("messages were out for %d", away)
		}
		if tl := r.Timeline; tl == nil || tl.Step != 7 || len(tl.Messages) != 4 || tl.Messages[0].At["posted"] != 102 || tl.Messages[0].Creditor != "pid 12" {
			t.Errorf("%+v", tl)
		}
	}
}

// A step in halves asks the same creditor twice in a layer.
func TestHalves(t *testing.T) {
	var s script
	s.step(0, 7, 1000, 2000)
	for layer := range uint64(2) {
		for half := range uint64(2) {
			s.message(Query, 1100+200*layer+70*half, 0, 2, 9, 7, half<<16|layer)
		}
	}
	r := s.trace(1).Report(four(), Options{Peer: -1})
	if r.Lanes[0].Messages != 4 || r.Order != (Order{Checked: 4}) || len(r.Timeline.Messages) != 4 {
		t.Fatalf("%+v, %+v", r.Lanes[0], r.Timeline)
	}
	for i, m := range r.Timeline.Messages {
		if m.Layer != uint64(i)/2 || m.Half != uint64(i)%2 {
			t.Errorf("message %d is of layer %d, half %d", i, m.Layer, m.Half)
		}
	}
}

// Only one end is traced: its stages alone are known, and that is said.
func TestOneEnd(t *testing.T) {
	var home, creditor script
	home.step(0, 1, 1, 500)
	home.message(Query, 100, 0, 2, 9, 1, 0, Arrived, Computed, Returned)
	creditor.message(Query, 100, 0, 2, 9, 1, 0, Posted, Wire, Back, Merged)
	for name, s := range map[string]*script{"post merge round trip": &home, "compute answer": &creditor} {
		r := s.trace(1).Report(four(), Options{Peer: -1})
		var got []string
		for _, st := range r.Lanes[0].Stages {
			got = append(got, st.Name)
		}
		if strings.Join(got, " ") != name || r.Order.Checked != 0 || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "one end") {
			t.Errorf("%v, %q", got, r.Notes)
		}
	}
}

// What overtakes a mark is no disorder, time that goes backwards is.
func TestOrder(t *testing.T) {
	for _, c := range []struct {
		want Order
		at   [stages]uint64
	}{
		{Order{Checked: 1}, [stages]uint64{1, 2, 3, 4, 5, 6, 7}},
		{Order{Checked: 1, Overtaken: 1}, [stages]uint64{1, 4, 3, 5, 9, 7, 8}},
		{Order{Checked: 1, Disordered: 1, Overtaken: 1}, [stages]uint64{5, 6, 4, 7, 8, 9, 10}}, // arrived before it was posted
		{Order{Checked: 1, Disordered: 1, Overtaken: 1}, [stages]uint64{1, 2, 3, 8, 9, 7, 10}}, // back before it was computed
		{Order{Checked: 1, Disordered: 1}, [stages]uint64{1, 2, 5, 4, 6, 7, 8}},                // computed before it arrived
	} {
		var s script
		for stage, x := range c.at {
			process := uint32(0)
			if !Stage(stage).atHome() {
				process = 2
			}
			s.add(x, process, Of(Query, Stage(stage)), 1, 1, 1, 1, 1, 1)
		}
		if got := s.trace(3).Report(four(), Options{Peer: -1}).Order; got != c.want {
			t.Errorf("%v: %+v, want %+v", c.at, got, c.want)
		}
	}
}

func TestRequests(t *testing.T) {
	var s script
	for i := range uint64(10) {
		from := 1000 + 1000*i
		s.step(0, i+1, from, from+100+10*i, Share{Tag: 1, Slot: 3, Pos0: 50 + i, Tokens: 1}, Share{Tag: 2, Slot: 4, Pos0: 10 * i, Tokens: 10})
		s.message(Query, from+5, 0, 2, 77, i+1, 0)
	}
	s.add(50000, 0, StepBegun, 99, 1, 1, 1) // it does not end in the trace
	src := four()
	src.Names = map[uint64]string{1: "cmpl-a"}
	r := s.trace(4).Report(src, Options{Peer: -1})
	if len(r.Requests) != 2 {
		t.Fatalf("%+v", r.Requests)
	}
	a, b := r.Requests[0], r.Requests[1]
	if a.Slot != 3 {
		a, b = b, a
	}
	if a.ID != "cmpl-a" || a.From != 50 || a.To != 60 || a.Steps.Count != 10 || a.Steps.Max != 190 || a.Away.P50 != 50 || a.Each[9].Step != 10 || b.To != 100 || b.Tag != "00000002" {
		t.Errorf("%+v\n%+v", a, b)
	}
	if r.Timeline.Step != 10 {
		t.Errorf("the slowest step is %d", r.Timeline.Step)
	}
	r = s.trace(5).Report(src, Options{Peer: 2, Step: 4, Requests: map[uint64]bool{2: true}})
	if len(r.Requests) != 1 || r.Requests[0].Slot != 4 || r.Timeline.Step != 4 || len(r.Lanes) != 1 {
		t.Errorf("%+v, step %+v", r.Requests, r.Timeline)
	}
	if r = s.trace(6).Report(src, Options{Peer: 55}); len(r.Lanes) != 0 || r.Timeline != nil {
		t.Errorf("of a peer that is not there: %+v", r.Lanes)
	}
}

// A stage that comes again does not change the figures, and is told.
func TestRepeated(t *testing.T) {
	var s script
	s.message(Query, 100, 0, 2, 1, 1, 1)
	tr := s.trace(7)
	tr.Add(Event{Time: 9999, Mark: Of(Query, Back), Args: [6]uint64{2, 1, 1, 1}})
	r := tr.Report(four(), Options{Peer: -1})
	if st := r.Lanes[0].Stages; st[len(st)-1].Max != 50 || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "been at before") {
		t.Errorf("%+v, %q", st, r.Notes)
	}
}

// Nothing at all makes a report, too.
func TestEmpty(t *testing.T) {
	r := New().Report(Source{Lost: 3, Refused: []Refusal{
		{Probe: "inf_mark_a", Process: "i0", Reason: "no"}, {Probe: "inf_mark_b", Process: "i0", Reason: "no"}, {Probe: "rxe_rcv", Reason: "none", Remedy: "load it"},
	}}, Options{Peer: -1})
	var text strings.Builder
	if err := r.Text(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"3 lost", "no mark was hit", "no probe on inf_mark_a, inf_mark_b in i0: no\n", "no probe on rxe_rcv: none\n  -> load it\n"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
	data, err := json.Marshal(r)
	if err != nil || !strings.Contains(string(data), `"lanes":[]`) {
		t.Errorf("%s, %v", data, err)
	}
}

func TestMarks(t *testing.T) {
	want := strings.Fields(`inf_mark_query_posted inf_mark_query_wire inf_mark_query_arrived inf_mark_query_computed inf_mark_query_returned
		inf_mark_query_back inf_mark_query_merged inf_mark_move_posted inf_mark_move_wire inf_mark_move_arrived inf_mark_move_computed
		inf_mark_move_returned inf_mark_move_back inf_mark_step_begun inf_mark_step_seq inf_mark_step_ended`)
	for i, m := range Marks() {
		if m.Symbol() != want[i] || int(m) != i+1 {
			t.Errorf("mark %d is %s, want %s", m, m.Symbol(), want[i])
		}
	}
	if len(Marks()) != len(want) {
		t.Errorf("%d marks", len(Marks()))
	}
}

func TestHistogram(t *testing.T) {
	var h Histogram
	for _, ns := range []uint64{0, 1, 2, 3, 4, 1000, 1 << 63} {
		h.Add(ns)
	}
	if h.Count() != 7 || h.Buckets[0] != 2 || h.Buckets[1] != 2 || h.Buckets[2] != 1 || h.Buckets[9] != 1 || h.Buckets[63] != 1 {
		t.Errorf("%v", h.Buckets)
	}
	if h.Quantile(0.5) != 3 || h.Quantile(1) != ^uint64(0) || h.Quantile(0) != 1 {
		t.Errorf("%d %d %d", h.Quantile(0.5), h.Quantile(1), h.Quantile(0))
	}
	if got := (&Histogram{}).Times(); got.Count != 0 || got.Max != 0 {
		t.Errorf("%+v", got)
	}
	var ns []uint64
	for i := range uint64(1000) {
		ns = append(ns, 999-i)
	}
	if x := timesOf(ns); x.P50 != 500 || x.P99 != 990 || x.Max != 999 || x.Count != 1000 || x.Low != 1 || len(x.Buckets) != 10 {
		t.Errorf("%+v", x)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(AppendEvent(nil, Event{Time: 5, Mark: Of(Query, Back), Process: 1, Thread: 7, Args: [6]uint64{1, 2, 3, 4, 5, 6}}))
	f.Add(AppendEvent(nil, Event{Time: 5, Mark: StepSeq, Args: [6]uint64{1, 2, 3}}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Decode(b, 4)
		if err != nil {
			return
		}
		again, err := Decode(AppendEvent(nil, e), 4)
		if err != nil || again != e {
			t.Fatalf("%+v, %+v, %v", e, again, err)
		}
		// Whatever the numbers, there is a report.
		tr := New()
		for m := range Marks() {
			tr.Add(e)
			e.Mark, e.Time = Mark(m+1), e.Time+e.Args[0]
		}
		if err := tr.Report(four(), Options{Peer: -1}).Text(&strings.Builder{}); err != nil {
			t.Fatal(err)
		}
	})
}
