package plan

import "sort"

const (
	// lead is how many blocks beyond those of its tokens every running request should find: a plan that acts only when
	// it must comes too late.
	lead = 4
	// shared is what a creditor's part takes longer when it has steps of its own, which share its device.
	shared = 2
)

// Instance is one instance as its heartbeat tells of it. What is read from outside may be anything; figures that
// contradict each other are taken as the smaller ones.
type Instance struct {
	ID       string
	Model    Model
	Known    bool // Model is; without it the instance has no part as a debtor
	Blocks   int  // of its pool
	Free     int  // of them
	Hosted   int  // of them, for others: who hosts is no debtor
	Lent     int  // of its requests, with others: who borrows is no creditor (its pool refuses)
	Hostable int  // that its pool would host now
	MaxSeqs  int  // requests that run at once; 0: not known
	// Memory is the share of its device's memory that anybody has taken, as NVML or /proc tell; 0: not known.
	Memory   float64
	Requests []Request // its own, the oldest first
}

// Request is an unfinished request of an instance.
type Request struct {
	Number  uint64 // its home's for it
	ID      string // the public one
	Tokens  int
	Running bool // else it waits, and has no block
	Local   int  // blocks with its home
	Movable int  // of them that may move now, the oldest: fewer than Local
	Spans   []Span
	// Blocks of an earlier plan that are still to be placed, and where: the home is left alone meanwhile.
	Planned   int
	PlannedTo string
}

// Span is a run of a request's blocks on another instance.
type Span struct {
	Instance string
	Blocks   int
}

// Pair is a home and a creditor.
type Pair struct{ Home, To string }

// Snapshot is the cluster at a time.
type Snapshot struct {
	BlockSize int // tokens
	Instances []Instance
	Barred    map[Pair]bool // between which nothing is to be moved
}

// cluster is a snapshot in the form in which rates are quick to compute. A move changes it, and back.
type cluster struct {
	blockSize float64
	at        []*instance
	index     map[string]int
	barred    map[Pair]bool
}

type instance struct {
	id       string
	number   int // in cluster.at
	model    Model
	known    bool
	blocks   int
	free     int
	room     int  // blocks that it may host yet
	borrows  bool // and so it never hosts
	hosts    bool // and so no plan lets it borrow
	busy     bool // it has steps of its own
	planned  bool // a plan of its is being carried out
	running  int
	need     int   // blocks that its running requests take soon
	sizes    []int // blocks that its first waiting requests take together: none, one, two and so on
	tokens   []int // which they have
	here     int   // blocks of running requests in its own pool
	there    []loan
	debtors  []int // numbers of those that have blocks here
	requests []*request
}

// loan is how many blocks of an instance lie with a creditor.
type loan struct{ creditor, blocks int }

type request struct {
	*Request
	movable int
	spans   int
	last    int // the creditor that has its last span, -1: none
}

func newCluster(s *Snapshot) *cluster {
	c := &cluster{blockSize: float64(max(1, s.BlockSize)), index: map[string]int{}, barred: s.Barred}
	var from []*Instance // of c.at
	for i := range s.Instances {
		in := &s.Instances[i]
		if _, twice := c.index[in.ID]; twice || in.ID == "" {
			continue
		}
		c.index[in.ID] = len(c.at)
		c.at = append(c.at, newInstance(in, len(c.at), max(1, s.BlockSize)))
		from = append(from, in)
	}
	for i, in := range from {
		c.addSpans(c.at[i], in.Requests)
	}
	c.standIn()
	return c
}

func newInstance(in *Instance, number, blockSize int) *instance {
	m := in.Model
	out := &instance{
		id: in.ID, number: number, model: m, known: in.Known && m.Base > 0 && m.PerToken > 0 && m.PerKV > 0 && m.Remote >= 0,
		blocks: max(0, in.Blocks), free: max(0, min(in.Free, in.Blocks)), borrows: in.Lent > 0, hosts: in.Hosted > 0,
		sizes: []int{0}, tokens: []int{0},
	}
	out.room = max(0, min(in.Hostable, out.free, out.free-int(float64(out.blocks)*(1-fullPool))))
	if in.Memory > fullMemory {
		out.room = 0
	}
	for i := range in.Requests {
		r := &in.Requests[i]
		out.busy = true
		size := (max(0, r.Tokens) + blockSize - 1) / blockSize
		if !r.Running {
			out.sizes = append(out.sizes, out.sizes[len(out.sizes)-1]+size+lead)
			out.tokens = append(out.tokens, out.tokens[len(out.tokens)-1]+max(0, r.Tokens))
			continue
		}
		held := max(0, r.Local)
		for _, s := range r.Spans {
			held += max(0, s.Blocks)
		}
		out.running++
		out.need += max(0, size+lead-held)
		out.here += max(0, r.Local)
		out.planned = out.planned || r.Planned > 0
		q := &request{Request: r, movable: max(0, min(r.Movable, r.Local-1)), spans: len(r.Spans), last: -1}
		if held < size {
			q.movable = 0 // it is in its prompt: every chunk of that would carry hundreds of queries to the creditor
		}
		out.requests = append(out.requests, q)
	}
	if in.MaxSeqs > 0 {
		most := max(0, min(in.MaxSeqs-out.running, len(out.sizes)-1))
		out.sizes, out.tokens = out.sizes[:most+1], out.tokens[:most+1]
	}
	return out
}

// addSpans books what an instance's running requests have with others, or will by a plan under way.
func (c *cluster) addSpans(d *instance, list []Request) {
	k := 0
	for i := range list {
		if !list[i].Running {
			continue
		}
		for _, s := range list[i].Spans {
			d.borrows = d.borrows || s.Blocks > 0
			if at, ok := c.index[s.Instance]; ok && at != d.number && s.Blocks > 0 {
				c.lend(d, c.at[at], s.Blocks)
				d.requests[k].last = at
			}
		}
		if at, ok := c.index[list[i].PlannedTo]; ok && list[i].Planned > 0 {
			c.at[at].room = max(0, c.at[at].room-list[i].Planned)
			c.at[at].hosts = true
			d.borrows = true
		}
		k++
	}
}

// lend books blocks of d with a creditor; fewer than none take them back.
func (c *cluster) lend(d, creditor *instance, blocks int) {
	creditor.hosts = creditor.hosts || blocks > 0
	for i := range d.there {
		if d.there[i].creditor == creditor.number {
			d.there[i].blocks += blocks
			return
		}
	}
	d.there = append(d.there, loan{creditor.number, blocks})
	creditor.debtors = append(creditor.debtors, d.number)
}

// standIn gives instances that have not measured themselves the means of those that have: all serve the same model.
// So what they run and host has a price, though they are no debtors.
func (c *cluster) standIn() {
	var sum Model
	n := 0.0
	for _, in := range c.at {
		if in.known {
			n++
			sum.Base += in.model.Base
			sum.PerToken += in.model.PerToken
			sum.PerKV += in.model.PerKV
		}
	}
	for _, in := range c.at {
		if !in.known && n > 0 {
			in.model = Model{Base: sum.Base / n, PerToken: sum.PerToken / n, PerKV: sum.PerKV / n}
		}
	}
}

// batch is how many requests an instance can have in its steps, and how many of those that wait are among them. Those
// that run come first; while there are fewer blocks than they need, a part of them stalls.
func (in *instance) batch() (n float64, admitted int) {
	left := in.free - in.need
	if left < 0 {
		return float64(in.running) * float64(in.free) / float64(in.need), 0
	}
	admitted = sort.SearchInts(in.sizes, left+1) - 1
	return float64(in.running + admitted), admitted
}

// step is how long a step of an instance takes, in nanoseconds.
func (c *cluster) step(in *instance, batch float64, admitted int) float64 {
	attention := in.model.PerKV * (float64(in.here)*c.blockSize + float64(in.tokens[admitted]))
	for _, l := range in.there {
		if l.blocks > 0 {
			attention = max(attention, in.model.remote()+c.answer(l))
		}
	}
	return in.model.Base + in.model.PerToken*batch + attention
}

// answer is how long a creditor takes for its part of a debtor's step.
func (c *cluster) answer(l loan) float64 {
	creditor := c.at[l.creditor]
	t := creditor.model.PerKV * float64(l.blocks) * c.blockSize
	if creditor.busy {
		t *= shared
	}
	return t
}

// rate is the tokens that an instance generates per second. What it computes for debtors it does not compute for itself.
func (c *cluster) rate(in *instance) float64 {
	batch, admitted := in.batch()
	if batch == 0 {
		return 0
	}
	taken := 0.0
	for _, k := range in.debtors {
		d := c.at[k]
		n, more := d.batch()
		if n == 0 {
			continue
		}
		for _, l := range d.there {
			if l.creditor == in.number {
				taken += in.model.PerKV * float64(l.blocks) * c.blockSize / c.step(d, n, more)
			}
		}
	}
	return 1e9 * batch / c.step(in, batch, admitted) * max(0, 1-taken)
}

// around is the rate of a debtor, its creditors, and others: those that moves between them change.
func (c *cluster) around(d *instance, others []part) float64 {
	sum := c.rate(d)
	for _, l := range d.there {
		if l.blocks > 0 {
			sum += c.rate(c.at[l.creditor])
		}
	}
	for _, p := range others {
		if d.with(p.to) == 0 {
			sum += c.rate(p.to)
		}
	}
	return sum
}

// with is how many blocks of the instance lie with a creditor.
func (in *instance) with(creditor *instance) int {
	for _, l := range in.there {
		if l.creditor == creditor.number {
			return l.blocks
		}
	}
	return 0
}

// part is blocks for a creditor.
type part struct {
	to     *instance
	blocks int
}

// move books n blocks of a request of d with a creditor; fewer than none bring them back.
func (c *cluster) move(d *instance, r *request, creditor *instance, n int) {
	d.free += n
	d.here -= n
	r.movable -= n
	creditor.free -= n
	creditor.room -= n
	c.lend(d, creditor, n)
}

// Rate is the modelled token rate of a snapshot, in tokens per second.
func Rate(s *Snapshot) float64 {
	c := newCluster(s)
	sum := 0.0
	for _, in := range c.at {
		sum += c.rate(in)
	}
	return sum
}
