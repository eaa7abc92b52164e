package grammar

import (
	"cmp"
	"strconv"
	"strings"
)

// decimal is a number without an exponent: whole has no leading zeros, but for 0 itself, and fraction no trailing ones.
type decimal struct {
	negative        bool
	units, decimals string
}

// maxDigits bounds a limit's digits.
const maxDigits = 40

// parseDecimal reads a JSON number; false where it has too many digits.
func parseDecimal(s string) (decimal, bool) {
	var d decimal
	s, d.negative = strings.CutPrefix(s, "-")
	exp := 0
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		var err error
		if exp, err = strconv.Atoi(s[i+1:]); err != nil || exp < -maxDigits || exp > maxDigits {
			return d, false
		}
		s = s[:i]
	}
	d.units, d.decimals, _ = strings.Cut(s, ".")
	for ; exp > 0; exp-- {
		next := "0"
		if d.decimals != "" {
			next, d.decimals = d.decimals[:1], d.decimals[1:]
		}
		d.units += next
	}
	for ; exp < 0; exp++ {
		next := "0"
		if d.units != "" {
			next, d.units = d.units[len(d.units)-1:], d.units[:len(d.units)-1]
		}
		d.decimals = next + d.decimals
	}
	d.units = strings.TrimLeft(d.units, "0")
	if d.units == "" {
		d.units = "0"
	}
	d.decimals = strings.TrimRight(d.decimals, "0")
	if d.units == "0" && d.decimals == "" {
		d.negative = false
	}
	return d, len(d.units)+len(d.decimals) <= maxDigits
}

func (d decimal) whole() bool { return d.decimals == "" }

// compareSizes compares without the signs.
func compareSizes(a, b decimal) int {
	return cmp.Or(cmp.Compare(len(a.units), len(b.units)), strings.Compare(a.units, b.units), strings.Compare(a.decimals, b.decimals))
}

func compareDecimals(a, b decimal) int {
	switch {
	case a.negative && b.negative:
		return compareSizes(b, a)
	case a.negative:
		return -1
	case b.negative:
		return 1
	}
	return compareSizes(a, b)
}

// limit is a bound of a number; nil: there is none. open: the bound itself is not within.
type limit struct {
	decimal
	open bool
}

func digit() *expr       { return chars('0', '9') }
func digits(n int) *expr { return rep(digit(), n, n) }
func fraction() *expr    { return seq(chars('.', '.'), rep(digit(), 1, forever)) }
func between(lo, hi byte) *expr {
	if lo > hi {
		return none()
	}
	return chars(rune(lo), rune(hi))
}

// number is a JSON number of any size, or an integer. Exponents have two digits at most, so that each fits a double.
func number(integer bool) *expr {
	units := alt(lit("0"), seq(chars('1', '9'), rep(digit(), 0, forever)))
	if integer {
		return seq(opt(lit("-")), units)
	}
	exponent := seq(chars('E', 'E', 'e', 'e'), opt(chars('+', '+', '-', '-')), rep(digit(), 1, 2))
	return seq(opt(lit("-")), units, opt(fraction()), opt(exponent))
}

// numberWithin is a number within limits, without an exponent.
func numberWithin(lo, hi *limit, integer bool) *expr {
	if lo == nil && hi == nil {
		return number(integer)
	}
	e := none()
	var least, most *limit // of the size
	// Not negative, and 0 among them.
	if hi == nil || !hi.negative {
		if least = nil; lo != nil && !lo.negative {
			least = lo
		}
		e.subs = append(e.subs, sizes(least, hi, integer))
	}
	// Negative. -0 is 0, and is written so above.
	if lo == nil || lo.negative {
		least, most = &limit{decimal{units: "0"}, true}, nil
		if hi != nil && hi.negative {
			least = &limit{decimal{units: hi.units, decimals: hi.decimals}, hi.open}
		}
		if lo != nil {
			most = &limit{decimal{units: lo.units, decimals: lo.decimals}, lo.open}
		}
		e.subs = append(e.subs, seq(lit("-"), sizes(least, most, integer)))
	}
	return e
}

// sizes is the numbers without a sign within limits. By the number of digits before the point: where a number has as
// many as a limit, its digits are held against the limit's.
func sizes(lo, hi *limit, integer bool) *expr {
	if lo == nil {
		lo = &limit{decimal{units: "0"}, false}
	}
	if hi != nil {
		if c := compareSizes(lo.decimal, hi.decimal); c > 0 || c == 0 && (lo.open || hi.open) {
			return none()
		}
	}
	e := none()
	for n := len(lo.units); ; n++ {
		if hi == nil && n > len(lo.units) {
			tail := seq(chars('1', '9'), rep(digit(), n-1, forever))
			e.subs = append(e.subs, seq(tail, freeFraction(integer)))
			return e
		}
		if hi != nil && n > len(hi.units) {
			return e
		}
		c := comparison{integer: integer, n: n}
		if n == len(lo.units) {
			c.lo = lo
		}
		if hi != nil && n == len(hi.units) {
			c.hi = hi
		}
		e.subs = append(e.subs, c.units(0, c.lo != nil, c.hi != nil))
	}
}

func freeFraction(integer bool) *expr {
	if integer {
		return seq()
	}
	return opt(fraction())
}

// comparison holds numbers with n digits before the point against limits with as many, or none.
type comparison struct {
	lo, hi  *limit
	n       int
	integer bool
}

// units is the rest from the digit at on. low: the digits so far are those of lo, high: of hi.
func (c *comparison) units(at int, low, high bool) *expr {
	if at == c.n {
		return c.point(low, high)
	}
	from, to := byte('0'), byte('9')
	if at == 0 && c.n > 1 {
		from = '1'
	}
	if !low && !high {
		return seq(between(from, to), digits(c.n-at-1), freeFraction(c.integer))
	}
	return c.digits(from, to, digitAt(c.lo, low, at, true), digitAt(c.hi, high, at, true), func(low, high bool) *expr { return c.units(at+1, low, high) }, low, high)
}

// digitAt is a limit's digit before or behind the point, where it is compared with.
func digitAt(l *limit, on bool, at int, units bool) byte {
	switch {
	case !on:
		return 0
	case units:
		return l.units[at]
	case at < len(l.decimals):
		return l.decimals[at]
	}
	return '0'
}

// digits branches on one digit: equal to a limit's, or between.
func (c *comparison) digits(from, to, l, h byte, rest func(low, high bool) *expr, low, high bool) *expr {
	e := none()
	if low && high && l == h {
		return seq(between(l, l), rest(true, true))
	}
	if low {
		e.subs = append(e.subs, seq(between(l, l), rest(true, false)))
		from = l + 1
	}
	if high {
		e.subs = append(e.subs, seq(between(h, h), rest(false, true)))
		to = h - 1
	}
	if from <= to {
		e.subs = append(e.subs, seq(between(from, to), rest(false, false)))
	}
	return e
}

// point is what may follow the digits before the point.
func (c *comparison) point(low, high bool) *expr {
	// Without a fraction, which is one of zeros.
	ends := func() bool {
		return (!low || c.lo.whole() && !c.lo.open) && (!high || !c.hi.whole() || !c.hi.open)
	}
	e := none()
	if ends() {
		e.subs = append(e.subs, seq())
	}
	if !c.integer {
		e.subs = append(e.subs, seq(lit("."), c.decimals(0, low, high)))
	}
	return e
}

// decimals is the digits behind the point from at on, one at least.
func (c *comparison) decimals(at int, low, high bool) *expr {
	some := func(least int) *expr { return rep(digit(), least, forever) }
	least := 0
	if at == 0 {
		least = 1
	}
	if !low && !high {
		return some(least)
	}
	e := none()
	// It may end here, as if zeros followed.
	lowEnds := !low || at >= len(c.lo.decimals) && !c.lo.open
	highEnds := !high || at < len(c.hi.decimals) || !c.hi.open
	if at > 0 && lowEnds && highEnds {
		e.subs = append(e.subs, seq())
	}
	longest := 0
	if low {
		longest = len(c.lo.decimals)
	}
	if high {
		longest = max(longest, len(c.hi.decimals))
	}
	if at < longest {
		e.subs = append(e.subs, c.digits('0', '9', digitAt(c.lo, low, at, false), digitAt(c.hi, high, at, false),
			func(low, high bool) *expr { return c.decimals(at+1, low, high) }, low, high))
		return e
	}
	// Behind all digits of the limits: those that are still equal to one.
	zeros := rep(lit("0"), least, forever)
	switch {
	case high && (!c.hi.open && (!low || !c.lo.open)): // only zeros stay within
		e.subs = append(e.subs, zeros)
	case high:
	case c.lo.open:
		e.subs = append(e.subs, seq(rep(lit("0"), 0, forever), chars('1', '9'), some(0)))
	default:
		e.subs = append(e.subs, some(least))
	}
	return e
}
