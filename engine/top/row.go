package top

import (
	"strings"
	"unicode/utf8"
)

// style is how text looks where there are colours.
type style int

const (
	plain style = iota
	bold
	dim
	alarm
	ofOwn
	ofShared
	ofHosted
	ofCached
	firstLetter // and letterStyles-1 behind it
)

const letterStyles = 6

// codes are ANSI's.
var codes = [...]string{bold: "1", dim: "2", alarm: "1;31", ofOwn: "32", ofShared: "35", ofHosted: "34", ofCached: "36",
	firstLetter: "30;42", "30;44", "30;45", "30;46", "30;43", "30;47"}

// part is text in one style. Every character of it takes one column.
type part struct {
	style style
	text  string
}

// row is a line.
type row []part

func text(t string) row { return row{{plain, t}} }

// columns is how wide the row is.
func (r row) columns() (n int) {
	for _, p := range r {
		n += utf8.RuneCountInString(p.text)
	}
	return n
}

// padded is r with spaces to a width, before it if right.
func (r row) padded(width int, right bool) row {
	space := text(strings.Repeat(" ", max(0, width-r.columns())))
	if right {
		return append(space, r...)
	}
	return append(r[:len(r):len(r)], space...)
}

// write writes r, cut to width, without spaces at its end.
func (r row) write(b *strings.Builder, width int, colour bool) {
	var line strings.Builder
	for _, p := range r {
		runes := []rune(p.text)
		runes = runes[:min(len(runes), width)]
		width -= len(runes)
		if colour && p.style != plain && len(runes) > 0 {
			line.WriteString("\x1b[" + codes[p.style] + "m" + string(runes) + "\x1b[0m")
		} else {
			line.WriteString(string(runes))
		}
	}
	b.WriteString(strings.TrimRight(line.String(), " "))
}

// piece is a piece of a bar.
type piece struct {
	style style
	glyph string // of one column
	n     int
}

// bar draws pieces of a whole in so many columns. What is there at all shows, if there are columns for all.
func bar(width int, pieces []piece, whole int) row {
	sum := 0
	for _, p := range pieces {
		sum += p.n
	}
	whole = max(whole, sum, 1)
	cells, at := make([]int, len(pieces)), 0
	for i, p := range pieces {
		from := share(at, whole, width)
		at += p.n
		cells[i] = share(at, whole, width) - from
	}
	for i, p := range pieces {
		if p.n == 0 || cells[i] > 0 {
			continue
		}
		if most := largest(cells); cells[most] > 1 {
			cells[most]--
			cells[i]++
		}
	}
	out := row{}
	for i, p := range pieces {
		out = append(out, part{p.style, strings.Repeat(p.glyph, cells[i])})
	}
	return out
}

// share is width * n / whole, rounded.
func share(n, whole, width int) int { return int(float64(n)/float64(whole)*float64(width) + 0.5) }

func largest(list []int) (at int) {
	for i, n := range list {
		if n > list[at] {
			at = i
		}
	}
	return at
}

// table is columns side by side.
type table []column

type column struct {
	title string
	right bool
	cells []row
}

// wideGap is from what width on columns are two spaces apart, in place of one.
const wideGap = 100

// rows are the title and the cells.
func (t table) rows(width int) []row {
	gap := text(" ")
	if width >= wideGap {
		gap = text("  ")
	}
	var out []row
	for c, col := range t {
		width := col.width()
		for i, cell := range append([]row{{{bold, col.title}}}, col.cells...) {
			if i == len(out) {
				out = append(out, row{})
			}
			if c > 0 {
				out[i] = append(out[i], gap...)
			}
			out[i] = append(out[i], cell.padded(width, col.right)...)
		}
	}
	return out
}

// columns is how wide the table is in a terminal of a width.
func (t table) columns(width int) int { return t.rows(width)[0].columns() }

func (c *column) width() int {
	n := len(c.title)
	for _, cell := range c.cells {
		n = max(n, cell.columns())
	}
	return n
}
