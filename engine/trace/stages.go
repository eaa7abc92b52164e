package trace

import (
	"cmp"
	"slices"
)

// parts are the times that are told of a message.
var parts = []struct {
	name     string
	from, to Stage
}{
	{"post", Posted, Wire},
	{"way out", Wire, Arrived},
	{"compute", Arrived, Computed},
	{"answer", Computed, Returned},
	{"way back", Returned, Back},
	{"merge", Back, Merged},
	{"round trip", Posted, Back},
}

// between is the time from one stage to another; 0 where the other end was quicker than the mark, false
// where one of them was not seen.
func (m *Message) between(from, to Stage) (uint64, bool) {
	a, b := m.at[from], m.at[to]
	if a == 0 || b == 0 {
		return 0, false
	}
	if b < a {
		return 0, true
	}
	return b - a, true
}

type group struct {
	Lane
	times [][]uint64 // by part
}

// laneTimes gathers the messages of each lane. A lane's ends are those that any of its messages showed.
func (t *Trace) laneTimes(messages []*Message, processes []Process, opt Options) []Lane {
	type key struct {
		kind Kind
		lane uint64
	}
	groups := map[key]*group{}
	for _, m := range messages {
		l := t.lanes[m.Lane]
		if opt.Peer >= 0 && !(l.home.is(opt.Peer) || l.creditor.is(opt.Peer)) {
			continue
		}
		k := key{m.Kind, m.Lane}
		g := groups[k]
		if g == nil {
			g = &group{times: make([][]uint64, len(parts))}
			g.Kind, g.Home, g.Creditor = m.Kind, l.home.named(processes), l.creditor.named(processes)
			groups[k] = g
		}
		g.add(m)
	}
	out := make([]Lane, 0, len(groups))
	for _, g := range groups {
		for i, p := range parts {
			if len(g.times[i]) > 0 {
				g.Stages = append(g.Stages, StageTimes{p.name, p.from.String(), p.to.String(), timesOf(g.times[i])})
			}
		}
		out = append(out, g.Lane)
	}
	slices.SortFunc(out, func(a, b Lane) int {
		return cmp.Or(cmp.Compare(b.Kind, a.Kind), cmp.Compare(a.Home.Process, b.Home.Process), cmp.Compare(a.Home.Peer, b.Home.Peer),
			cmp.Compare(a.Creditor.Process, b.Creditor.Process), cmp.Compare(a.Creditor.Peer, b.Creditor.Peer))
	})
	return out
}

func (g *group) add(m *Message) {
	g.Messages++
	g.Rows += m.Rows
	g.Bytes += m.Bytes
	g.Answers += m.Answer
	if m.Whole() {
		g.Whole++
	}
	for i, p := range parts {
		if ns, ok := m.between(p.from, p.to); ok {
			g.times[i] = append(g.times[i], ns)
		}
	}
}

func (e end) is(peer int) bool { return e.seen && e.peer == uint64(peer) }

func (e end) named(processes []Process) End {
	if !e.seen {
		return End{Peer: -1}
	}
	return End{Process: processes[e.process].Name(), Peer: int64(e.peer)}
}
