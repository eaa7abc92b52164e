package top

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// letters stand for instances in the bars of requests, in the order of their rows.
const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// letter of an instance by its place, "+" for those beyond the letters and those that are no more there.
func letter(place int) part {
	if place < 0 || place >= len(letters) {
		return part{dim, "+"}
	}
	return part{firstLetter + style(place%letterStyles), letters[place : place+1]}
}

const (
	mostBar  = 40 // columns of a bar
	wideBar  = 12 // of an instance's pool, where all of it is one row
	mostID   = 24 // characters of a request's id
	mostName = 16 // of an instance's, and of a device's
)

// instanceTables are the instances' pools and their work, beside each other where there is room.
func (f *Figures) instanceTables(width int) []table {
	names := func() table {
		return f.column("ID", false, func(i *Instance) string { return shorter(i.ID, mostName) }).lettered()
	}
	if one := append(append(names(), f.pools(wideBar)...), f.work()...); one.columns(width) <= width {
		return []table{one}
	}
	// The bar has what the others leave.
	pools := append(names(), f.pools(0)...)
	bar := min(mostBar, max(4, width-pools.columns(width)))
	return []table{append(names(), f.pools(bar)...), append(names(), f.work()...)}
}

// shorter is text in at most so many characters.
func shorter(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return text[:most-2] + ".."
}

func (f *Figures) column(title string, right bool, cell func(*Instance) string) column {
	c := column{title: title, right: right}
	for i := range f.Instances {
		c.cells = append(c.cells, text(cell(&f.Instances[i])))
	}
	return c
}

// lettered is a table of the letters and the column.
func (c column) lettered() table {
	marks := column{title: " "}
	for i := range c.cells {
		marks.cells = append(marks.cells, row{letter(i)})
	}
	return table{marks, c}
}

// pools has a bar of so many columns, beyond its frame and the share in use.
func (f *Figures) pools(width int) table {
	number := func(title string, of func(*Pool) int) column {
		return f.column(title, true, func(i *Instance) string { return short(of(&i.Pool)) })
	}
	pool := column{title: "POOL IN USE"}
	for i := range f.Instances {
		p := &f.Instances[i].Pool
		used := per(float64(p.Total-p.Free), float64(p.Total)).percent()
		pool.cells = append(pool.cells, append(append(text("["), p.bar(width, p.shared())...), part{plain, fmt.Sprintf("] %4s", used)}))
	}
	return table{
		pool,
		number("BLOCKS", func(p *Pool) int { return p.Total }), number("FREE", func(p *Pool) int { return p.Free }),
		number("CACHED", func(p *Pool) int { return p.Cached }), number("HOSTED", func(p *Pool) int { return p.Hosted }),
		number("LENT", func(p *Pool) int { return p.Lent }), number("SHARED", func(p *Pool) int { return p.Shared }),
		f.column("MEMORY", true, func(i *Instance) string {
			if i.MemoryTotal == 0 {
				return "-"
			}
			return memory(i.MemoryUsed) + "/" + memory(i.MemoryTotal)
		}),
	}
}

func (f *Figures) work() table {
	rate := func(title string, of func(*Instance) string) column { return f.column(title, true, of) }
	return table{
		rate("RUN", func(i *Instance) string { return short(i.Running) }), rate("WAIT", func(i *Instance) string { return short(i.Waiting) }),
		rate("TOK/S", func(i *Instance) string { return Rate{i.TokensPerSecond, true}.short() }),
		rate("STEP/S", func(i *Instance) string { return i.Steps.short() }), rate("STEP", func(i *Instance) string { return i.StepTime.time() }),
		rate("REMOTE", func(i *Instance) string { return i.RemoteWait.percent() }), rate("MOVE/S", func(i *Instance) string { return i.Moved.short() }),
		rate("HITS", func(i *Instance) string { return i.Hits.percent() }), rate("SHARED", func(i *Instance) string { return i.HitsElsewhere.percent() }),
		f.column("DEVICE", false, func(i *Instance) string { return i.device() }),
		f.column("LINKS", false, func(i *Instance) string { return i.links() }),
	}
}

// device is short: what a GPU is called in full is in the JSON.
func (i *Instance) device() string {
	d, _, _ := strings.Cut(i.Device, " ")
	if i.MemoryOnly {
		d += " mem"
	}
	return shorter(orDash(d), mostName)
}

func (i *Instance) links() string {
	var out []string
	for _, transport := range slices.Sorted(maps.Keys(i.Links)) {
		out = append(out, fmt.Sprintf("%s %s", transport, short(i.Links[transport])))
	}
	return orDash(strings.Join(out, " "))
}

// requestTable has the first n requests.
func (f *Figures) requestTable(width, n int) table {
	places := map[string]int{}
	for i := range f.Instances {
		places[f.Instances[i].ID] = i
	}
	cells := func(title string, right bool, of func(*Request) string) column {
		c := column{title: title, right: right}
		for i := range f.Requests[:n] {
			c.cells = append(c.cells, text(of(&f.Requests[i])))
		}
		return c
	}
	t := table{
		cells("REQUEST", false, func(r *Request) string { return shorter(r.ID, mostID) }),
		cells("HOME", false, func(r *Request) string { return shorter(r.Home, mostName) }), cells("TOKENS", true, func(r *Request) string { return short(r.Tokens) }),
		cells("BLOCKS", true, func(r *Request) string { return short(r.Blocks) }),
	}
	left := width - t.columns(width) - 4
	lies := column{title: "KV, FROM THE FIRST TOKEN ON"}
	for i := range f.Requests[:n] {
		lies.cells = append(lies.cells, f.Requests[i].lies(places, min(mostBar, max(10, left/2))))
	}
	return append(t, lies)
}

// lies is a bar, cut by instance, and the blocks on each.
func (r *Request) lies(places map[string]int, width int) row {
	var pieces []piece
	var list []string
	for _, s := range r.Spans {
		place, there := places[s.Instance]
		if !there {
			place = -1
		}
		l := letter(place)
		pieces = append(pieces, piece{l.style, l.text, s.Blocks})
		list = append(list, l.text+" "+short(s.Blocks))
	}
	return append(append(text("["), bar(width, pieces, r.Blocks)...), part{plain, "] " + strings.Join(list, ", ")})
}
