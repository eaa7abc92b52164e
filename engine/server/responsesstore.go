package server

import (
	"container/list"
	"fmt"
	"regexp"
	"slices"
	"sync"
)

// Limits of what is kept of responses, by all clients. Agents keep one a turn, of some ten KiB; what resends a whole
// conversation with every turn, as many do, is kept as often.
const (
	maxResponses     = 16384
	maxResponseBytes = 256 << 20
	storedOverhead   = 256  // bytes that an answer, or an item of one, takes beside its text
	maxStoredShare   = 16   // an answer that takes more than this part of the store is not kept: it would push out all others
	maxItems         = 8192 // of a conversation
)

// responseStore keeps answers in this process's memory. What was used longest ago leaves first, where used means that it
// was stored, or that a later one goes on from it.
//
// An answer has its own items alone and the id of the one that it goes on from. So a conversation of n turns is kept
// once, not n times, and ends where one of its turns is gone or was deleted.
type responseStore struct {
	most, mostBytes int

	mu    sync.Mutex
	byID  map[string]*list.Element
	order list.List           // of *keptResponse, the next one to leave first
	items map[string]storedAt // by ids that this server gave; what clients call theirs others might guess
	bytes int
}

// storedItem is an item as it is listed. Nobody changes it.
type storedItem struct {
	id   string
	json []byte
}

// storedAt is an item and the answer that has it.
type storedAt struct {
	kept *keptResponse
	json []byte
}

// ownID is what ids look like that rename gives.
var ownID = regexp.MustCompile(`^(msg|fc|fco|rs)_[0-9a-f]{24}$`)

// keptResponse is an answer in the store. Nobody changes it.
type keptResponse struct {
	id, previous  string
	body          []byte // the answer as it was
	input, output []storedItem
}

func newResponseStore(most, mostBytes int) *responseStore {
	return &responseStore{most: most, mostBytes: mostBytes, byID: map[string]*list.Element{}, items: map[string]storedAt{}}
}

// goneError is about an answer that is not in the store, or not any more.
type goneError struct{ id string }

func (e *goneError) Error() string {
	return fmt.Sprintf("Response with id '%s' not found: it was not stored, was deleted, or left this server's limited memory", e.id)
}

// size is what it takes of the store. Output items are parts of the body.
func (k *keptResponse) size() int {
	n := storedOverhead + cap(k.body)
	for _, it := range k.input {
		n += storedOverhead + cap(it.json)
	}
	return n + storedOverhead*len(k.output)
}

func (k *keptResponse) all() []storedItem { return slices.Concat(k.input, k.output) }

// add stores an answer, unless it is too large.
func (s *responseStore) add(k *keptResponse) {
	if k.size() > s.mostBytes/maxStoredShare {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byID[k.id] = s.order.PushBack(k)
	s.bytes += k.size()
	for _, it := range k.all() {
		if _, taken := s.items[it.id]; !taken && ownID.MatchString(it.id) {
			s.items[it.id] = storedAt{k, it.json}
		}
	}
	for len(s.byID) > s.most || s.bytes > s.mostBytes {
		s.drop(s.order.Front())
	}
}

func (s *responseStore) drop(e *list.Element) {
	k := s.order.Remove(e).(*keptResponse)
	delete(s.byID, k.id)
	s.bytes -= k.size()
	for _, it := range k.all() {
		if s.items[it.id].kept == k {
			delete(s.items, it.id)
		}
	}
}

func (s *responseStore) remove(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.byID[id]
	if ok {
		s.drop(e)
	}
	return ok
}

// get is an answer, nil: none.
func (s *responseStore) get(id string) *keptResponse {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.byID[id]; ok {
		return e.Value.(*keptResponse)
	}
	return nil
}

// item is an item by its id, nil: none.
func (s *responseStore) item(id string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.items[id].json
}

// walk returns the answers that lead to one, that one last. It ends at one that is gone.
func (s *responseStore) walk(id string) (chain []*list.Element, gone error) {
	for id != "" {
		e, ok := s.byID[id]
		if !ok {
			gone = &goneError{id}
			break
		}
		chain = append(chain, e)
		id = e.Value.(*keptResponse).previous
	}
	if len(chain) == 0 && gone == nil {
		gone = &goneError{id}
	}
	slices.Reverse(chain)
	return chain, gone
}

// chain is a conversation up to an answer, for one that goes on from it. It may have as many bytes as a request.
func (s *responseStore) chain(id string, most int) ([]storedItem, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	chain, gone := s.walk(id)
	if gone != nil {
		return nil, gone
	}
	n, bytes := 0, 0
	for _, e := range chain {
		k := e.Value.(*keptResponse)
		s.order.MoveToBack(e)
		n += len(k.input) + len(k.output)
		for _, list := range [][]storedItem{k.input, k.output} {
			for _, it := range list {
				bytes += len(it.json)
			}
		}
	}
	switch {
	case bytes > most:
		return nil, fmt.Errorf("the conversation up to the response '%s' has %d bytes, of at most %d", id, bytes, most)
	case n > maxItems:
		return nil, fmt.Errorf("the conversation up to the response '%s' has %d items, of at most %d", id, n, maxItems)
	}
	items := make([]storedItem, 0, n)
	for _, e := range chain {
		items = append(items, e.Value.(*keptResponse).all()...)
	}
	return items, nil
}

// inputOf is what the conversation was in front of an answer, as far back as it is kept.
func (s *responseStore) inputOf(id string) ([]storedItem, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	chain, _ := s.walk(id)
	if len(chain) == 0 {
		return nil, false
	}
	var items []storedItem
	for i, e := range chain {
		k := e.Value.(*keptResponse)
		if items = append(items, k.input...); i < len(chain)-1 {
			items = append(items, k.output...)
		}
	}
	return items, true
}
