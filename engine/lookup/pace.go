package lookup

// longestPause is the most steps without drafts after drafts that were all wrong.
const longestPause = 15

// Pace says how many drafts are worth a place in a request's next step, by what became of those before. Each costs
// arithmetic, so a text that cannot be guessed soon has few of them, seldom.
type Pace struct {
	Most int // drafts of a step

	next   int // 0: none was tried yet
	misses int // steps in a row whose drafts were all wrong
	pause  int // steps without drafts that are left
}

// Next is how many drafts the next step may have.
func (p *Pace) Next() int {
	if p.pause > 0 {
		p.pause--
		return 0
	}
	if p.next == 0 {
		p.next = (p.Most + 1) / 2
	}
	return p.next
}

// Took says how many drafts a step had, one at least, and how many of them were right.
func (p *Pace) Took(drafts, right int) {
	switch {
	case right == drafts:
		p.next, p.misses = min(p.Most, max(p.next, 2*drafts)), 0
	case right > 0:
		p.next, p.misses = min(p.Most, right+1), 0
	default:
		p.next = max(1, p.next/2)
		p.pause = min(1<<min(p.misses, 4)-1, longestPause)
		p.misses++
	}
}
