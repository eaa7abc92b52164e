package jinja

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strings"
)

var (
	errOverflow = fmt.Errorf("%w: an integer of more than 64 bits", ErrUnsupported)
	errZero     = errors.New("cannot divide by zero")
)

func (e *unary) eval(st *state, sc *scope) (any, error) {
	v, err := e.of.eval(st, sc)
	if err != nil {
		return nil, err
	}
	if i, ok := integer(v); ok {
		if !e.minus {
			return i, nil
		}
		if i == math.MinInt {
			return nil, errOverflow
		}
		return -i, nil
	}
	if f, ok := v.(float64); ok {
		if e.minus {
			return -f, nil
		}
		return f, nil
	}
	if err := defined(v); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("cannot use a sign before %s", typeName(v))
}

func (e *binary) eval(st *state, sc *scope) (any, error) {
	left, err := e.left.eval(st, sc)
	if err != nil {
		return nil, err
	}
	right, err := e.right.eval(st, sc)
	if err != nil {
		return nil, err
	}
	return operate(st, e.op, left, right)
}

func operate(st *state, op string, a, b any) (any, error) {
	if err := st.step(); err != nil {
		return nil, err
	}
	if i, ok := integer(a); ok {
		if j, ok := integer(b); ok {
			return integers(op, i, j)
		}
	}
	if x, ok := number(a); ok {
		if y, ok := number(b); ok {
			return floats(op, x, y)
		}
	}
	if _, ok := plain(a).(string); ok && op == "%" {
		return nil, fmt.Errorf("%w: formatting a string with %%", ErrUnsupported)
	}
	for _, v := range []any{a, b} {
		if err := defined(v); err != nil {
			return nil, err
		}
	}
	switch op {
	case "+":
		return add(st, a, b)
	case "*":
		if n, ok := integer(b); ok {
			return repeat(st, a, n)
		}
		if n, ok := integer(a); ok {
			return repeat(st, b, n)
		}
	}
	return nil, fmt.Errorf("cannot apply %s to %s and %s", op, typeName(a), typeName(b))
}

func integers(op string, i, j int) (any, error) {
	switch op {
	case "+":
		if sum := i + j; (sum > i) == (j > 0) {
			return sum, nil
		}
		return nil, errOverflow
	case "-":
		if diff := i - j; (diff < i) == (j > 0) {
			return diff, nil
		}
		return nil, errOverflow
	case "*":
		return multiply(i, j)
	case "/":
		if j == 0 {
			return nil, errZero
		}
		if abs(i) > 1<<53 || abs(j) > 1<<53 {
			return nil, errOverflow // the exact quotient need not be that of the rounded operands
		}
		return float64(i) / float64(j), nil
	case "//", "%":
		if j == 0 {
			return nil, errZero
		}
		if j == -1 { // the one quotient that can overflow
			if op == "%" {
				return 0, nil
			}
			return multiply(i, -1)
		}
		q, r := i/j, i%j
		if r != 0 && (r < 0) != (j < 0) { // Python rounds down
			q, r = q-1, r+j
		}
		if op == "%" {
			return r, nil
		}
		return q, nil
	}
	return power(i, j)
}

func abs(i int) uint {
	if i < 0 {
		return -uint(i)
	}
	return uint(i)
}

func multiply(i, j int) (any, error) {
	high, low := bits.Mul(abs(i), abs(j))
	negative := (i < 0) != (j < 0)
	switch {
	case high != 0 || low > 1<<63 || low == 1<<63 && !negative:
		return nil, errOverflow
	case negative:
		return int(-low), nil
	}
	return int(low), nil
}

func power(i, j int) (any, error) {
	if j < 0 {
		if i == 0 {
			return nil, errZero
		}
		return math.Pow(float64(i), float64(j)), nil
	}
	switch i {
	case 0, 1:
		if j == 0 {
			return 1, nil
		}
		return i, nil
	case -1:
		return 1 - 2*(j%2), nil
	}
	if j > 63 {
		return nil, errOverflow
	}
	result := any(1)
	for range j {
		var err error
		if result, err = multiply(result.(int), i); err != nil {
			return nil, err
		}
	}
	return result, nil
}

func floats(op string, x, y float64) (any, error) {
	switch op {
	case "+":
		return x + y, nil
	case "-":
		return x - y, nil
	case "*":
		return x * y, nil
	}
	if y == 0 && op != "**" {
		return nil, errZero
	}
	switch op {
	case "/":
		return x / y, nil
	case "//", "%":
		q, r := floorDivide(x, y)
		if op == "%" {
			return r, nil
		}
		return q, nil
	}
	v := math.Pow(x, y)
	switch {
	case x == 0 && y < 0:
		return nil, errZero
	case math.IsInf(v, 0) && !math.IsInf(x, 0) && !math.IsInf(y, 0):
		return nil, errors.New("the result is too large")
	case math.IsNaN(v) && !math.IsNaN(x) && !math.IsNaN(y):
		return nil, fmt.Errorf("%w: complex numbers", ErrUnsupported)
	}
	return v, nil
}

// floorDivide is Python's divmod of floats.
func floorDivide(x, y float64) (q, r float64) {
	r = math.Mod(x, y)
	q = (x - r) / y
	if r != 0 && (r < 0) != (y < 0) {
		r += y
		q--
	}
	if r == 0 {
		r = math.Copysign(0, y)
	}
	if q == 0 {
		return math.Copysign(0, x/y), r
	}
	floor := math.Floor(q)
	if q-floor > 0.5 {
		floor++
	}
	return floor, r
}

func add(st *state, a, b any) (any, error) {
	if _, ok := b.(markup); ok {
		return addMarkup(st, a, b)
	}
	switch a := a.(type) {
	case markup:
		return addMarkup(st, a, b)
	case string:
		if b, ok := b.(string); ok {
			if err := st.spend(len(a) + len(b)); err != nil {
				return nil, err
			}
			return a + b, nil
		}
	case *seq:
		if b, ok := b.(*seq); ok && a.kind == b.kind && a.kind != rangeKind {
			if err := st.spendItems(len(a.items) + len(b.items)); err != nil {
				return nil, err
			}
			items := make([]any, 0, len(a.items)+len(b.items))
			return &seq{items: append(append(items, a.items...), b.items...), kind: a.kind}, nil
		}
	}
	return nil, fmt.Errorf("cannot add %s and %s", typeName(a), typeName(b))
}

func repeat(st *state, v any, n int) (any, error) {
	n = max(n, 0)
	switch v := v.(type) {
	case markup:
		made, err := repeat(st, string(v), n)
		return marked(v, made), err
	case string:
		if v == "" || n == 0 {
			return "", nil
		}
		if n > st.bytes/len(v) {
			return nil, ErrTooMuch
		}
		return strings.Repeat(v, n), st.spend(n * len(v))
	case *seq:
		if v.kind == rangeKind {
			break
		}
		if len(v.items) > 0 && n > st.bytes/itemBytes/len(v.items) {
			return nil, ErrTooMuch
		}
		if err := st.spendItems(n * len(v.items)); err != nil {
			return nil, err
		}
		items := make([]any, 0, n*len(v.items))
		for range n * min(1, len(v.items)) {
			items = append(items, v.items...)
		}
		return &seq{items: items, kind: v.kind}, nil
	}
	return nil, fmt.Errorf("cannot repeat %s", typeName(v))
}

func (e *slice) eval(st *state, sc *scope) (any, error) {
	of, err := e.of.eval(st, sc)
	if err != nil {
		return nil, err
	}
	var bounds [3]any
	for i, part := range []expr{e.start, e.stop, e.step} {
		if part == nil {
			continue
		}
		if bounds[i], err = part.eval(st, sc); err != nil {
			return nil, err
		}
	}
	if err := st.step(); err != nil {
		return nil, err
	}
	if s, ok := plain(of).(string); ok {
		items, err := iterate(st, s)
		if err != nil {
			return nil, err
		}
		items, err = sliceOf(items, bounds)
		if err != nil {
			return nil, err
		}
		made, err := joinStrings(st, items, "")
		return marked(of, made), err
	}
	s, ok := of.(*seq)
	if !ok || s.kind == rangeKind {
		if err := defined(of); err != nil {
			return nil, err
		}
		// Jinja2 fails too, unless it sees a constant: then it gives an undefined value.
		return nil, fmt.Errorf("%w: slicing %s", ErrUnsupported, typeName(of))
	}
	if err := st.spendItems(len(s.items)); err != nil {
		return nil, err
	}
	items, err := sliceOf(s.items, bounds)
	return &seq{items: items, kind: s.kind}, err
}

// sliceOf is Python's items[start:stop:step].
func sliceOf(items []any, bounds [3]any) ([]any, error) {
	step, n := 1, len(items)
	if bounds[2] != nil {
		s, ok := integer(bounds[2])
		if !ok || s == 0 {
			return nil, errors.New("a slice's step must be an integer other than 0")
		}
		step = s
	}
	low, high := 0, n // what the bounds are clipped to
	if step < 0 {
		low, high = -1, n-1
	}
	ends := [2]int{low, high}
	if step < 0 {
		ends = [2]int{high, low}
	}
	for i, bound := range bounds[:2] {
		if bound == nil {
			continue
		}
		at, ok := integer(bound)
		if !ok {
			return nil, errors.New("a slice's bounds must be integers")
		}
		if at < 0 {
			at += n
		}
		ends[i] = min(max(at, low), high)
	}
	if step == 1 {
		return items[ends[0]:max(ends[0], ends[1]):max(ends[0], ends[1])], nil
	}
	out := []any{}
	for i := ends[0]; step > 0 && i < ends[1] || step < 0 && i > ends[1]; i += step {
		out = append(out, items[i])
		if step > n || step < -n {
			break // the next index could overflow
		}
	}
	return out, nil
}
