package top

import (
	"fmt"
	"strings"
	"time"
)

// View is how figures are drawn.
type View struct {
	Source string // what was asked
	Width  int    // columns; lines are cut there
	Height int    // lines; 0: as many as it takes
	Colour bool
	Zone   *time.Location // nil: this machine's
	// Away says that the server is away, and since when; "" if it is not. Then the figures are the last that it told.
	Away string
}

// fewRequests are shown where there is room for more.
const fewRequests = 10

// lowTerminal is below what height there is no room for what instances do, beside their pools.
const lowTerminal = 20

// Text draws figures; f is nil while nothing was told yet.
func (v View) Text(f *Figures) string {
	rows := v.head(f)
	if f != nil {
		rows = append(rows, v.body(f, len(rows))...)
	}
	if v.Height > 0 && len(rows) > v.Height {
		rows = rows[:v.Height]
	}
	var b strings.Builder
	for _, r := range rows {
		r.write(&b, v.Width, v.Colour)
		b.WriteByte('\n')
	}
	return b.String()
}

// head is what is said of the whole cluster.
func (v View) head(f *Figures) []row {
	title := row{{bold, "infinite top"}, {plain, "  " + v.Source}}
	if f == nil {
		return append([]row{title}, v.away()...)
	}
	zone := v.Zone
	if zone == nil {
		zone = time.Local
	}
	title = append(title, part{plain, f.At.In(zone).Format("  15:04:05") + "  gManager " + orDash(f.GManager)})
	c, p := &f.Cluster, &f.Cluster.Pool
	shared := 0
	for i := range f.Instances {
		shared += f.Instances[i].Pool.shared()
	}
	rows := append([]row{title}, v.away()...)
	rows = append(rows,
		append(c.instances(), part{plain, fmt.Sprintf("   requests %s running, %s waiting   tokens/s %s in, %s out",
			short(c.Running), short(c.Waiting), c.TokensIn.short(), c.TokensOut.short())}),
		append(append(text("KV pool ["), p.bar(min(30, max(10, v.Width-64)), shared)...), part{plain, fmt.Sprintf("] %s of %s blocks in use (%s), of %s each",
			short(p.Total-p.Free), short(p.Total), per(float64(p.Total-p.Free), float64(p.Total)).percent(), plural(f.BlockSize, "token"))}),
		row{{plain, "  "}, {ofOwn, glyphs[0]}, {plain, " own " + short(p.Own-shared) + "  "}, {ofShared, glyphs[1]}, {plain, " shared " + short(shared) + "  "},
			{ofHosted, glyphs[2]}, {plain, " hosted " + short(p.Hosted) + "  "}, {ofCached, glyphs[3]}, {plain, " cached " + short(p.Cached) + "  "},
			{dim, glyphs[4]}, {plain, " free " + short(p.Free-p.Cached) + "   lent " + short(p.Lent)}},
		text(fmt.Sprintf("so far %s, %s, %s, %s", plural(c.Waves, "parallel prefill"), plural(c.Preemptions, "preemption"),
			plural(c.Recoveries, "recovery"), short(c.Rehomed)+" rehomed")))
	return rows
}

// instances says how many there are, and are not.
func (c *Totals) instances() row {
	r := text(plural(c.Instances, "instance"))
	if c.Missing > 0 {
		r = append(r, part{plain, ", "}, part{alarm, short(c.Missing) + " missing"})
	}
	return r
}

func (v View) away() []row {
	if v.Away == "" {
		return nil
	}
	return []row{{{alarm, v.Away}}}
}

// body is the tables, so long that they have room below a head of so many rows.
func (v View) body(f *Figures, head int) []row {
	tables := f.instanceTables(v.Width)
	requests := min(len(f.Requests), fewRequests)
	instances := len(f.Instances)
	if v.Height > 0 {
		if v.Height < lowTerminal {
			tables = tables[:1]
		}
		// Each table has a blank line, its title, and a line for what is left out.
		room := v.Height - head - 3*(len(tables)+1)
		requests = min(len(f.Requests), max(room-instances*len(tables), min(requests, room/3), 0))
		instances = min(instances, max(0, (room-requests)/len(tables)))
	}
	var rows []row
	for _, t := range tables {
		rows = append(append(rows, row{}), cut(t.rows(v.Width), instances, len(f.Instances), "instance")...)
	}
	if f.Cluster.Requests == 0 {
		return append(rows, row{}, text("no requests"))
	}
	return append(append(rows, row{}), cut(f.requestTable(v.Width, requests).rows(v.Width), requests, f.Cluster.Requests, "request")...)
}

// cut keeps the title and so many rows of all, and says how many are left out.
func cut(rows []row, kept, all int, what string) []row {
	rows = rows[:1+kept]
	if kept < all {
		rows = append(rows, row{{dim, fmt.Sprintf("  and %s more", plural(all-kept, what))}})
	}
	return rows
}

// glyphs of own blocks that nobody else uses, shared, hosted, cached and free ones.
var glyphs = [...]string{"█", "▓", "▒", "░", "·"}

// shared is how many of the own blocks are used by others at most: one may be used several times.
func (p *Pool) shared() int { return min(p.Shared, p.Own) }

// bar draws the pool, of whose own blocks so many are shared.
func (p *Pool) bar(width, shared int) row {
	return bar(width, []piece{{ofOwn, glyphs[0], p.Own - shared}, {ofShared, glyphs[1], shared}, {ofHosted, glyphs[2], p.Hosted},
		{ofCached, glyphs[3], p.Cached}, {dim, glyphs[4], p.Free - p.Cached}}, p.Total)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	if stem, is := strings.CutSuffix(what, "y"); is {
		return short(n) + " " + stem + "ies"
	}
	return short(n) + " " + what + "s"
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// short is a count in at most five characters.
func short(n int) string {
	if n < 100_000 {
		return fmt.Sprint(n)
	}
	return scaled(float64(n), 1000, "kMGTP")
}

// scaled is x over the largest power of base that it is above, in three digits, with the power's letter.
func scaled(x, base float64, letters string) string {
	i := -1
	for x >= base && i < len(letters)-1 {
		x /= base
		i++
	}
	digits := 0
	if x < 9.95 {
		digits = 1
	}
	letter := ""
	if i >= 0 {
		letter = letters[i : i+1]
	}
	return fmt.Sprintf("%.*f%s", digits, x, letter)
}

func memory(n int) string { return scaled(float64(n), 1024, "KMGTP") }

// short is a rate per second.
func (r Rate) short() string {
	switch {
	case !r.Known:
		return "-"
	case r.Value == 0:
		return "0"
	case r.Value < 100_000:
		return strings.TrimSuffix(fmt.Sprintf("%.*f", digits(r.Value), r.Value), ".0")
	}
	return scaled(r.Value, 1000, "kMGTP")
}

func digits(x float64) int {
	if x < 9.95 {
		return 1
	}
	return 0
}

func (r Rate) percent() string {
	if !r.Known {
		return "-"
	}
	return fmt.Sprintf("%.0f%%", 100*r.Value)
}

// time is a time in seconds, with three digits that count.
func (r Rate) time() string {
	x, unit := r.Value, "s"
	switch {
	case !r.Known:
		return "-"
	case x >= 1000:
		return r.short() + unit
	case x < 1e-3:
		x, unit = x*1e6, "us"
	case x < 1:
		x, unit = x*1e3, "ms"
	}
	return fmt.Sprintf("%.*f%s", digits(x), x, unit)
}
