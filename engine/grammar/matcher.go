package grammar

import (
	"errors"
	"fmt"
)

// Matcher is one answer's place in a grammar. It is for one goroutine.
type Matcher struct {
	u     *Guide
	at    *config
	begun bool
}

// Matcher begins an answer, which is to be closed.
func (u *Guide) Matcher() *Matcher {
	u.users.Add(1)
	u.mu.Lock()
	defer u.mu.Unlock()
	return &Matcher{u: u, at: u.start}
}

// Close says that the answer is over. It is to be called once.
func (m *Matcher) Close() { m.u.users.Add(-1) }

// Vocabulary is that of the guide.
func (u *Guide) Vocabulary() *Vocabulary { return u.v }

// Ready tells whether the mask is kept, so that Mask takes no time.
func (m *Matcher) Ready() bool {
	m.u.mu.Lock()
	defer m.u.mu.Unlock()
	if !m.begun && m.u.v.first != nil {
		return m.u.first != nil
	}
	return m.at.mask != nil
}

// Mask is the tokens that may come next, bit id%32 of word id/32 for each, and whether there is one. It is shared and
// must not be changed. ErrAmbiguous: that is too much work.
func (m *Matcher) Mask() (mask []uint32, some bool, err error) {
	m.u.mu.Lock()
	defer m.u.mu.Unlock()
	m.at = m.u.tidy(m.at)
	mask, err = m.u.mask(m.at, !m.begun)
	m.u.weigh()
	return mask, err == nil && anyBit(mask), err
}

// Accept takes the next token. A token that Mask does not allow is an error, and so is ErrAmbiguous; either way the
// answer cannot go on.
func (m *Matcher) Accept(id int32) error {
	if !m.u.v.Has(id) {
		return fmt.Errorf("token %d is none of a text", id)
	}
	m.u.mu.Lock()
	defer m.u.mu.Unlock()
	if err := m.run(m.u.v.at(id, !m.begun)); err != nil {
		return fmt.Errorf("token %d: %w", id, err)
	}
	m.begun = true
	return nil
}

// run goes behind a text. The caller holds the guide's lock.
func (m *Matcher) run(text []byte) error {
	m.at = m.u.tidy(m.at)
	m.u.m.work, m.u.m.over = maxMaskWork, false
	next := m.u.run(m.at, text)
	m.u.weigh()
	if m.u.m.work < 0 || next == dead && m.u.m.over {
		return ErrAmbiguous
	}
	if next == dead {
		return errNoText
	}
	m.at = next
	return nil
}

var errNoText = errors.New("it does not go on with a text of the grammar")

// Follow says that the answer's text stands behind another one, and what of it came in one token with the end of that.
func (m *Matcher) Follow(text []byte) error {
	m.begun = true
	if len(text) == 0 {
		return nil
	}
	m.u.mu.Lock()
	defer m.u.mu.Unlock()
	return m.run(text)
}

// MayEnd tells whether the text so far is one of the grammar.
func (m *Matcher) MayEnd() bool { return m.at.ended }

// MustEnd tells whether nothing can follow any more.
func (m *Matcher) MustEnd() bool { return len(m.at.items) == 0 }
