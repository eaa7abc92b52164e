package trace

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Text writes the report for people to read.
func (r *Report) Text(w io.Writer) error {
	p := &printer{w: w}
	p.f("%d events in %.1f s, %d lost\n", r.Events, r.Seconds, r.Lost)
	for _, pr := range r.Processes {
		p.f("  %s (pid %d): %d of %d marks have a probe, %d events\n", pr.Name(), pr.PID, pr.Marks, lastMark, pr.Events)
	}
	for _, n := range r.Notes {
		p.f("note: %s\n", n)
	}
	p.refused(r.Refused)
	for _, l := range r.Lanes {
		p.lane(l)
	}
	if r.Order.Checked > 0 {
		p.f("\norder: %d messages were seen at both ends, %d out of order; in %d an end saw a message before the other's mark of having sent it\n",
			r.Order.Checked, r.Order.Disordered, r.Order.Overtaken)
	}
	p.functions(r.Functions)
	p.requests(r.Requests)
	if r.Timeline != nil {
		p.timeline(r.Timeline)
	}
	return p.err
}

type printer struct {
	w   io.Writer
	err error
}

func (p *printer) f(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

// table aligns rows whose cells are parted by tabs.
func (p *printer) table(rows []string) {
	tw := tabwriter.NewWriter(p.w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(tw, "  "+row)
	}
	if err := tw.Flush(); p.err == nil {
		p.err = err
	}
}

// refused names each probe that is missing; what the same reason keeps from all marks stands together.
func (p *printer) refused(list []Refusal) {
	type why struct{ process, reason, remedy string }
	var order []why
	names := map[why][]string{}
	for _, x := range list {
		k := why{x.Process, x.Reason, x.Remedy}
		if names[k] == nil {
			order = append(order, k)
		}
		names[k] = append(names[k], x.Probe)
	}
	for _, k := range order {
		where := ""
		if k.process != "" {
			where = " in " + k.process
		}
		p.f("no probe on %s%s: %s\n", strings.Join(names[k], ", "), where, k.reason)
		if k.remedy != "" {
			p.f("  -> %s\n", k.remedy)
		}
	}
}

func (p *printer) lane(l Lane) {
	what, unit := "queries", "rows"
	if l.Kind == Move {
		what, unit = "moves", "blocks"
	}
	p.f("\n%s from %s to %s: %d messages (%d seen whole), %d %s, %d bytes out, %d back\n", what, l.Home.text(), l.Creditor.text(),
		l.Messages, l.Whole, l.Rows, unit, l.Bytes, l.Answers)
	rows := []string{"stage\tcount\tp50\tp99\tmax\tby powers of two"}
	for _, s := range l.Stages {
		rows = append(rows, fmt.Sprintf("%s\t%s", s.Name, s.row()))
	}
	p.table(rows)
}

func (e End) text() string {
	if e.Process == "" {
		return "a process that is not traced"
	}
	return fmt.Sprintf("%s (which calls the other peer %d)", e.Process, e.Peer)
}

func (t Times) row() string {
	if t.Count == 0 {
		return "0\t\t\t\t"
	}
	return fmt.Sprintf("%d\t%s\t%s\t%s\t%s", t.Count, us(t.P50), us(t.P99), us(t.Max), t.bars())
}

// us is a time in microseconds with three digits that count.
func us(ns uint64) string {
	x := float64(ns) / 1000
	switch {
	case x >= 100:
		return fmt.Sprintf("%.0fus", x)
	case x >= 10:
		return fmt.Sprintf("%.1fus", x)
	}
	return fmt.Sprintf("%.2fus", x)
}

var levels = []rune(" ▁▂▃▄▅▆▇█")

// bars are the buckets, between their bounds. What is there at all shows.
func (t Times) bars() string {
	most := uint64(1)
	for _, n := range t.Buckets {
		most = max(most, n)
	}
	var b strings.Builder
	for _, n := range t.Buckets {
		i := 0
		if n > 0 {
			i = 1 + int(float64(n)/float64(most)*float64(len(levels)-2))
		}
		b.WriteRune(levels[min(i, len(levels)-1)])
	}
	return fmt.Sprintf("%s |%s| %s", us(t.Low), b.String(), us(t.Low<<len(t.Buckets)))
}

func (p *printer) functions(list []Function) {
	if len(list) == 0 {
		return
	}
	p.f("\nin the kernel, by all processes (quantiles are upper bounds of powers of two; of calls within each other on one thread the inner one is timed)\n")
	rows := []string{"function\tcalls\ttimed\tp50\tp99\tmax\tby powers of two"}
	for _, f := range list {
		if f.Calls == 0 {
			rows = append(rows, f.Name+"\t0\t\t\t\t\t"+f.Does)
			continue
		}
		row := f.Times.row()
		if f.Untimed != "" {
			row = "0\t\t\t\tnot timed: " + f.Untimed
		}
		rows = append(rows, fmt.Sprintf("%s\t%d\t%s", f.Name, f.Calls, row))
	}
	p.table(rows)
}

// name is the id where it is known, else the tag.
func name(id, tag string) string {
	if id != "" {
		return id
	}
	return "#" + tag
}

func (p *printer) requests(list []Request) {
	if len(list) == 0 {
		return
	}
	p.f("\nrequests whose KV lies with others\n")
	rows := []string{"request\thome\tslot\tpositions\tsteps\tp50\tp99\tmax\ta message out, p50"}
	for _, r := range list {
		rows = append(rows, fmt.Sprintf("%s\t%s\t%d\t%d..%d\t%d\t%s\t%s\t%s\t%s", name(r.ID, r.Tag), r.Home, r.Slot, r.From, r.To-1, r.Steps.Count,
			us(r.Steps.P50), us(r.Steps.P99), us(r.Steps.Max), us(r.Away.P50)))
	}
	p.table(rows)
}

// layerCell marks messages of a step's second half.
func layerCell(m TimedMessage) string {
	if m.Half > 0 {
		return fmt.Sprintf("%d'", m.Layer)
	}
	return fmt.Sprint(m.Layer)
}

func (p *printer) timeline(t *Timeline) {
	p.f("\nstep %d of %s: %s, of it %s with a message out; %d requests, %d tokens\n", t.Step, t.Home, us(t.Took), us(t.Away), t.Requests, t.Tokens)
	for _, s := range t.Shares {
		p.f("  request %s, slot %d: positions %d..%d, %d tokens of KV with others\n", name(s.ID, tagText(s.Tag)), s.Slot, s.Pos0, s.Pos0+s.Tokens-1, s.LocalPos0)
	}
	rows := []string{"layer\tpeer\trows\tbytes\t" + strings.Join(stageNames[:], "\t")}
	for _, m := range t.Messages {
		cells := []string{layerCell(m), fmt.Sprint(m.Peer), fmt.Sprint(m.Rows), fmt.Sprint(m.Bytes)}
		if m.Creditor != "" {
			cells[1] += " " + m.Creditor
		}
		for _, s := range stageNames {
			at, ok := m.At[s]
			if !ok {
				cells = append(cells, "-")
				continue
			}
			cells = append(cells, fmt.Sprintf("%.1f", float64(at)/1000))
		}
		rows = append(rows, strings.Join(cells, "\t"))
	}
	p.f("  microseconds after the step's beginning; ' is a step's second half\n")
	p.table(rows)
}
