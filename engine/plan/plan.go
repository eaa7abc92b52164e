package plan

import (
	"cmp"
	"slices"
)

const (
	// fullPool is the share of its pool up to which a creditor may be filled by plans: the rest is for what it is asked
	// itself.
	fullPool = 0.9
	// fullMemory is the share of its device's memory, whoever has taken it, above which an instance is no creditor. It
	// is above any --gpu-memory-utilization that leaves the driver room: a pool that is taken at the start is no reason.
	fullMemory = 0.98
	// leastGain is what a move must raise the rate of those concerned by, as a share: the model is not more exact, and a
	// balanced cluster is left alone.
	leastGain = 0.05

	maxCreditors = 8    // that are tried for a debtor, those with most room
	maxSpans     = 8    // of a request, beyond which plans do not cut it further: each is looked up in every step
	maxMoves     = 1024 // of one plan
	maxWaiting   = 64   // waiting requests to the admission of each of which a number of blocks is fitted
)

// Move is blocks of a request that should lie elsewhere: the oldest ones at their home.
type Move struct {
	Home, To string
	Number   uint64 // the home's for the request
	ID       string // the request's public id
	Blocks   int
	Gain     float64 // of the cluster's modelled rate, in tokens per second
}

// Moves plans moves, each worth it after those before it. It returns nothing for a cluster that they have been made in.
//
// Debtors are instances whose steps are measured, whose batch is below the point where f saturates, that host nothing and
// have no plan to carry out; those with the smallest batch come first. Creditors are those that borrow nothing and have
// room below the thresholds, most room first. A debtor gives blocks of its longest request, as many as raise the modelled
// rate most. What lies with a creditor does not come back by a plan, so plans never go in circles.
func Moves(s *Snapshot) []Move {
	c := newCluster(s)
	order := slices.Clone(c.at)
	slices.SortStableFunc(order, func(a, b *instance) int {
		return cmp.Or(cmp.Compare(a.running, b.running), cmp.Compare(a.id, b.id))
	})
	var out []Move
	for more := true; more; {
		more = false
		for _, d := range order {
			for len(out) < maxMoves {
				moves := c.best(d)
				if len(moves) == 0 {
					break
				}
				out, more = append(out, moves...), true
			}
		}
	}
	return out[:min(len(out), maxMoves)]
}

// best makes those moves from d that raise the modelled rate most, if they are worth it: to one creditor, or to several
// at once, since a step waits for the slowest of them, and a first one that is given half would leave nothing to gain
// for a second.
func (c *cluster) best(d *instance) []Move {
	if !d.known || d.hosts || d.planned || float64(d.running) >= d.model.Saturation() {
		return nil
	}
	r := d.longest()
	if r == nil {
		return nil
	}
	creditors := c.creditors(d, r)
	var chosen []part
	gain := 0.0
	for _, creditor := range creditors {
		if n, g := c.fit(d, r, creditor); g > gain {
			chosen, gain = []part{{creditor, n}}, g
		}
	}
	extra := leastGain * c.rate(d) // that another creditor must bring
	for k := range creditors {
		if parts := c.even(d, r, creditors[:k+1]); len(parts) > 1 {
			if g, worth := c.gain(d, r, parts); worth && g > gain+extra {
				chosen, gain = parts, g
			}
		}
	}
	var out []Move
	for _, p := range chosen {
		before := c.around(d, chosen)
		c.give(d, r, p)
		out = append(out, Move{Home: d.id, To: p.to.id, Number: r.Number, ID: r.ID, Blocks: p.blocks, Gain: c.around(d, chosen) - before})
	}
	if len(out) > 1 {
		for i := range out {
			out[i].Gain = gain / float64(len(out)) // one alone may bring nothing yet
		}
	}
	return out
}

// give makes a move for good.
func (c *cluster) give(d *instance, r *request, p part) {
	c.move(d, r, p.to, p.blocks)
	d.borrows = true
	if r.last != p.to.number {
		r.last = p.to.number
		r.spans++
	}
}

// longest is the running request with most blocks that may move, nil where there is none.
func (in *instance) longest() *request {
	var out *request
	for _, r := range in.requests {
		if r.movable > 0 && r.spans < maxSpans && (out == nil || r.movable > out.movable) {
			out = r
		}
	}
	return out
}

// creditors are those with most room that d's request may go to. Among equals the one that has the end of it goes first.
func (c *cluster) creditors(d *instance, r *request) []*instance {
	var out []*instance
	for _, in := range c.at {
		if in != d && in.room > 0 && !in.borrows && !in.planned && !c.barred[Pair{d.id, in.id}] {
			out = append(out, in)
		}
	}
	slices.SortFunc(out, func(a, b *instance) int {
		if a.room == b.room && (a.number == r.last) != (b.number == r.last) {
			if a.number == r.last {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(b.room, a.room), cmp.Compare(a.id, b.id))
	})
	return out[:min(len(out), maxCreditors)]
}

// gain is by how much moves of one request raise the rate; worth says whether that is enough.
func (c *cluster) gain(d *instance, r *request, parts []part) (gain float64, worth bool) {
	before := c.around(d, parts)
	for i := range parts {
		p := &parts[i]
		hosted := p.to.hosts
		c.move(d, r, p.to, p.blocks)
		p.to.hosts = hosted // it is a try
	}
	gain = c.around(d, parts) - before
	for _, p := range parts {
		c.move(d, r, p.to, -p.blocks)
	}
	return gain, gain > leastGain*before
}

// fit finds the number of blocks that raises the rate most when they go from d to a creditor, and by how much; 0 and 0
// where no number is worth it. The rate has a corner where both parts of the attention take the same time, and steps
// where a waiting request finds room.
func (c *cluster) fit(d *instance, r *request, creditor *instance) (blocks int, gain float64) {
	most := min(r.movable, creditor.room)
	if most < 1 {
		return 0, 0
	}
	parts := make([]part, 1)
	try := func(n int) {
		if n = min(n, most); n < 1 {
			return
		}
		parts[0] = part{creditor, n}
		if g, worth := c.gain(d, r, parts); worth && (g > gain || g == gain && n < blocks) {
			blocks, gain = n, g
		}
	}
	for k := range 16 {
		try(most * (k + 1) / 16)
	}
	for k := 1; k < min(len(d.sizes), maxWaiting+1); k++ {
		try(d.need + d.sizes[k] - d.free)
	}
	try(d.need - d.free)
	for _, p := range c.even(d, r, []*instance{creditor}) {
		try(p.blocks)
	}
	return blocks, gain
}

// even shares d's KV out so that its attention takes as long here as with each of the creditors, as far as they have
// room and the request has blocks that may move.
func (c *cluster) even(d *instance, r *request, creditors []*instance) []part {
	_, admitted := d.batch()
	own := d.model.PerKV * c.blockSize
	// here is in blocks; all parts take t.
	here := float64(d.here) + float64(d.tokens[admitted])/c.blockSize
	sum, weight := here, 1/own
	for _, creditor := range creditors {
		each := c.answer(loan{creditor.number, 1})
		sum += d.model.remote()/each + float64(d.with(creditor))
		weight += 1 / each
	}
	t := sum / weight
	var out []part
	left := r.movable
	for _, creditor := range creditors {
		n := int((t-d.model.remote())/c.answer(loan{creditor.number, 1})) - d.with(creditor)
		if n = min(n, creditor.room, left); n > 0 {
			out = append(out, part{creditor, n})
			left -= n
		}
	}
	return out
}
