package kvcache

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// check verifies the invariant from the blocks themselves, not from the counters.
func (m *Manager) check() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	state := make([]string, m.total)
	claim := func(blocks []BlockID, as string) error {
		for _, b := range blocks {
			if state[b] != "" {
				return fmt.Errorf("block %d is %s and %s", b, state[b], as)
			}
			state[b] = as
		}
		return nil
	}
	errs := []error{claim(m.free, "free"), m.checkCached(claim)}
	lent, hosted := 0, 0
	users, tables := make([]int32, m.total), make([]int, m.total)
	for id, r := range m.requests {
		for i, b := range r.local {
			tables[b]++
			if users[b]++; slices.Index(r.local, b) != i {
				errs = append(errs, fmt.Errorf("block %d is twice in request %d", b, id))
			}
		}
		for _, b := range r.arriving {
			users[b]++
		}
		in := 0
		for _, s := range r.spans {
			if in += s.Blocks; !s.Shared {
				lent += s.Blocks
			}
		}
		if in != r.inSpans || r.moving > len(r.local) || r.moving > 0 && !r.closed && r.moving == len(r.local) {
			errs = append(errs, fmt.Errorf("request %d: %+v", id, *r))
		}
	}
	shared := 0
	for h := range m.slots {
		if m.slots[h].shared {
			shared += len(m.slots[h].blocks)
			for _, b := range m.slots[h].blocks {
				users[b]++
			}
		}
	}
	owned := 0
	for b, n := range users {
		if n != m.blocks[b].users {
			errs = append(errs, fmt.Errorf("block %d is in %d tables, and counts %d", b, n, m.blocks[b].users))
		}
		if n > 0 && !m.blocks[b].hosted {
			owned++
			errs = append(errs, claim([]BlockID{BlockID(b)}, "owned"))
		}
		if tables[b] > 1 && m.blocks[b].key == (Key{}) { // a wave's are with others before they have one
			errs = append(errs, fmt.Errorf("block %d is shared and has no name", b))
		}
	}
	for h := range m.slots {
		if m.slots[h].shared {
			continue
		}
		errs = append(errs, claim(m.slots[h].blocks, fmt.Sprintf("hosted in %d", h)))
		for _, b := range m.slots[h].blocks {
			if hosted++; !m.blocks[b].hosted {
				errs = append(errs, fmt.Errorf("block %d is hosted and does not say so", b))
			}
		}
	}
	if shared != m.shared {
		errs = append(errs, fmt.Errorf("%d/%d blocks are shared with others", shared, m.shared))
	}
	if owned != m.owned || lent != m.lent || hosted != m.hosted || m.available()+owned+hosted != m.total {
		errs = append(errs, fmt.Errorf("free %d, owned %d/%d, hosted %d/%d, lent %d/%d of %d", m.available(), owned, m.owned, hosted, m.hosted, lent, m.lent, m.total))
	}
	if i := slices.Index(state, ""); i >= 0 {
		errs = append(errs, fmt.Errorf("block %d is lost", i))
	}
	return errors.Join(errs...)
}

// checkCached: the order of eviction is the same in both directions, what is cached has a name, and every name is of
// one block, which is cached or owned.
func (m *Manager) checkCached(claim func([]BlockID, string) error) error {
	var errs []error
	var order []BlockID
	for b := m.prefixes.oldest; b >= 0 && len(order) <= m.total; b = m.blocks[b].newer {
		order = append(order, b)
	}
	errs = append(errs, claim(order, "cached"))
	at := len(order)
	for b := m.prefixes.newest; b >= 0 && at > 0; b = m.blocks[b].older {
		if at--; order[at] != b {
			errs = append(errs, fmt.Errorf("cached blocks are %v from the oldest, and %d is at %d from the newest", order, b, at))
		}
	}
	if at != 0 || len(order) != m.prefixes.cached {
		errs = append(errs, fmt.Errorf("%d blocks are cached, %d are in order", m.prefixes.cached, len(order)))
	}
	named := 0
	for b := range m.blocks {
		x := &m.blocks[b]
		if x.key == (Key{}) {
			if slices.Contains(order, BlockID(b)) {
				errs = append(errs, fmt.Errorf("block %d is cached and has no name", b))
			}
			continue
		}
		named++
		if m.prefixes.named[x.key] != BlockID(b) || x.users == 0 && !x.hosted && !slices.Contains(order, BlockID(b)) {
			errs = append(errs, fmt.Errorf("block %d has a name, %d users, and is not found or not cached", b, x.users))
		}
	}
	if named != len(m.prefixes.named) {
		errs = append(errs, fmt.Errorf("%d names are of %d blocks", len(m.prefixes.named), named))
	}
	return errors.Join(errs...)
}

func TestNewRefuses(t *testing.T) {
	for _, c := range [][2]int{{0, 16}, {-1, 16}, {4, 0}} {
		if _, err := New(c[0], c[1]); err == nil {
			t.Errorf("New(%d, %d) made a pool", c[0], c[1])
		}
	}
}

// TestScripts runs testdata/*.txt; -rewrite writes what comes out.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		if filepath.Ext(path) != ".txt" {
			return // rapid keeps what made a property fail in testdata/rapid
		}
		var m *Manager
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			out := runCommand(t, &m, d)
			if err := m.check(); err != nil {
				t.Fatalf("%s: %v", d.Pos, err)
			}
			return out
		})
	})
}

// command is one of a script's, with its arguments.
type command struct {
	id, n, handle, generation, blocks, size, maxSpans, has int
	at, owner, text                                        string
	on                                                     bool
	found                                                  string // spans: a:0,1/b:5
	inOrder                                                bool
}

// spans are those that were found.
func (c command) spans() (out []Found) {
	for i, text := range strings.Split(c.found, "/") {
		at, places, there := strings.Cut(text, ":")
		if !there {
			return nil
		}
		f := Found{Span: Span{Instance: at, Handle: uint32(c.handle + i), Generation: 9, Shared: true}}
		for _, p := range strings.Split(places, ",") {
			n, _ := strconv.Atoi(p)
			f.Has = append(f.Has, int32(n))
		}
		f.Blocks = len(f.Has)
		out = append(out, f)
	}
	return out
}

func parseCommand(t *testing.T, d *datadriven.TestData) (c command) {
	for _, a := range []struct {
		key string
		p   any
	}{{"id", &c.id}, {"n", &c.n}, {"handle", &c.handle}, {"gen", &c.generation}, {"blocks", &c.blocks}, {"size", &c.size},
		{"spans", &c.maxSpans}, {"has", &c.has}, {"at", &c.at}, {"owner", &c.owner}, {"on", &c.on}, {"text", &c.text}, {"found", &c.found}, {"in-order", &c.inOrder}} {
		if d.HasArg(a.key) {
			d.ScanArgs(t, a.key, a.p)
		}
	}
	return c
}

func runCommand(t *testing.T, mp **Manager, d *datadriven.TestData) string {
	c := parseCommand(t, d)
	m, r := *mp, RequestID(c.id)
	result := func(err error, format string, args ...any) string {
		if err != nil {
			return err.Error() + "\n"
		}
		return strings.TrimSpace(fmt.Sprintf(format, args...)) + "\n"
	}
	switch d.Cmd {
	case "new":
		var err error
		*mp, err = NewWithOptions(c.blocks, c.size, Options{MaxSpans: c.maxSpans, InOrder: c.inOrder})
		return result(err, "ok")
	case "open":
		return result(m.Open(r), "ok")
	case "grow":
		return result(m.Grow(r, c.n), "capacity %d", m.Capacity(r))
	case "computed":
		return result(m.SetComputed(r, c.n), "ok")
	case "name":
		m.Name(r, keysOfText(m, c.text))
		return result(nil, "%+v", m.Counts())
	case "match":
		keys := keysOfText(m, c.text)
		return result(nil, "%d blocks, %d in use", m.Run(keys), m.Begins(nil, keys).InUse)
	case "share":
		h, which, err := m.Share(c.owner, 7, keysOfText(m, c.text))
		if n := len(which); n > 0 && int(which[n-1]) != n-1 {
			return result(err, "%+v, which are %v, %+v", h, which, m.Counts())
		}
		return result(err, "%+v %+v", h, m.Counts())
	case "name-hosted":
		return result(m.NameHosted(c.owner, uint32(c.handle), uint32(c.generation), c.has, keysOfText(m, c.text)), "%+v", m.Counts())
	case "moving-keys":
		return result(nil, "%d", len(m.MovingKeys(r)))
	case "lead":
		keys := keysOfText(m, c.text)
		return result(nil, "%q, %d uses", m.Lead(keys, len(keys)-1), m.Uses(keys[len(keys)-1]))
	case "drop-lead":
		keys := keysOfText(m, c.text)
		m.DropLead(keys, len(keys)-1, c.at)
		return result(nil, "%q", m.Lead(keys, len(keys)-1))
	case "shares":
		return result(nil, "%v", m.Shares(r))
	case "adopt":
		found, keys := c.spans(), keysOfText(m, c.text)
		would := m.Begins(found, keys)
		tokens, back := m.Adopt(r, found, keys)
		if found == nil {
			return result(nil, "%d tokens", tokens)
		}
		return result(nil, "%d tokens, release %v\n%+v", tokens, endedText(back), would)
	case "lacks":
		return result(nil, "%v", m.Lacks(c.spans(), keysOfText(m, c.text)))
	case "order":
		var order []int
		for i := range m.Size(r).Spans + m.Size(r).Local {
			k, _ := m.requests[r].key(i)
			order = append(order, slices.Index(m.requests[r].keys, k))
		}
		return result(nil, "%v", order)
	case "begin":
		got, err := m.BeginMove(r, Span{Instance: c.at, Handle: uint32(c.handle), Generation: uint32(c.generation), Blocks: c.has}, c.n)
		return result(err, "moving %v", got)
	case "commit":
		orphans, err := m.CommitMove(r, c.n)
		return result(err, "orphans %v", endedText(orphans))
	case "abort":
		orphans, err := m.AbortMove(r)
		return result(err, "orphans %v", endedText(orphans))
	case "away":
		at, n, all := m.Away(r, strings.Split(c.at, ","))
		return result(nil, "%d at %q, %d in all", n, at, all)
	case "return":
		ret, err := m.BeginReturn(r, c.at, 0, c.n)
		return result(err, "from %v, block %d on, into %d.%d %v", ret.From, ret.First, ret.Into.Handle, ret.Into.Generation, ret.Into.Blocks)
	case "returned":
		ended, err := m.EndReturn(r, c.on)
		return result(err, "release %v", endedText(ended))
	case "give":
		got, err := m.Give(c.owner, uint32(c.handle), uint32(c.generation), c.has, c.n)
		return result(err, "%v", got)
	case "given":
		m.Given(uint32(c.handle))
		return result(nil, "%+v", m.Counts())
	case "close":
		return result(nil, "release %v", endedText(m.Close(r)))
	case "table":
		tab, err := m.Table(r)
		moving := 0
		if err == nil {
			moving = m.requests[r].moving
		}
		return result(err, "spans %v local %v moving %d", tab.Spans, tab.Local, moving)
	case "at":
		return result(nil, "%v lends %v", m.RequestsAt(c.at), m.Lends(c.at))
	case "host":
		h, err := m.Host(c.owner, 7, c.n)
		return result(err, "%+v", h)
	case "extend":
		h, err := m.ExtendHost(c.owner, uint32(c.handle), uint32(c.generation), c.has, c.n)
		return result(err, "%+v", h)
	case "unhost":
		return result(m.Unhost(c.owner, uint32(c.handle), uint32(c.generation), keysOfText(m, c.text)), "ok")
	case "hosted":
		return result(nil, "%+v", m.HostedOf(c.owner))
	case "pressure":
		m.SetPressure(c.on)
		return result(nil, "hostable %d", m.Hostable())
	case "demand":
		m.SetDemand(c.n)
		return result(nil, "hostable %d", m.Hostable())
	case "counts":
		return result(nil, "%+v", m.Counts())
	}
	t.Fatalf("%s: no command %s", d.Pos, d.Cmd)
	return ""
}

// endedText is what was ended, and how many of its blocks' keys are known.
func endedText(ended []Ended) string {
	var out []string
	for _, e := range ended {
		out = append(out, fmt.Sprintf("%v keys %d", e.Span, len(e.Keys)))
	}
	return fmt.Sprint(out)
}

// keysOfText takes letters for tokens.
func keysOfText(m *Manager, text string) []Key {
	return AppendKeys(nil, RootKey(""), []rune(text), m.blockSize)
}

func TestKeys(t *testing.T) {
	root := RootKey("")
	a := AppendKeys(nil, root, []int32{1, 2, 3, 4, 5, 6, 7}, 2)
	for cut := range 7 {
		b := AppendKeys(nil, root, []int32{1, 2, 3, 4, 5, 6, 7}[:cut], 2)
		if len(b) != cut/2 || !slices.Equal(b, a[:len(b)]) {
			t.Errorf("the first %d tokens have %d keys, or other ones", cut, len(b))
		}
		if c := AppendKeys(slices.Clone(b), root, []int32{1, 2, 3, 4, 5, 6, 7}, 2); !slices.Equal(c, a) {
			t.Errorf("keys that go on after %d tokens differ", cut)
		}
	}
	// Another token, another order, another beginning, another salt, another size of blocks: other keys.
	seen := map[Key]string{}
	for what, keys := range map[string][]Key{
		"these": a, "a token": AppendKeys(nil, root, []int32{1, 9, 3, 4, 5, 6}, 2), "order": AppendKeys(nil, root, []int32{2, 1, 4, 3, 6, 5}, 2),
		"beginning": AppendKeys(nil, root, []int32{3, 4, 5, 6}, 2), "salt": AppendKeys(nil, RootKey("x"), []int32{1, 2, 3, 4, 5, 6}, 2),
		"size": AppendKeys(nil, root, []int32{1, 2, 3, 4, 5, 6}, 3),
	} {
		for _, k := range keys {
			if seen[k] != "" || k == (Key{}) {
				t.Errorf("%s has a key of %s", what, seen[k])
			}
			seen[k] = what
		}
	}
	// A salt made of what the first block's key is made of does not lead to the second's.
	salt := string(root[:])
	for _, token := range []byte{1, 2} {
		salt += string([]byte{token, 0, 0, 0})
	}
	for _, kind := range []string{"", "\x00", "\x01"} {
		if forged := AppendKeys(nil, RootKey(kind+salt), []int32{3, 4}, 2); forged[0] == a[1] {
			t.Error("a salt has a block's key")
		}
	}
}

// What is remembered of others has a bound, and what was noted last stays. A shared span is never extended.
func TestLeads(t *testing.T) {
	m, err := New(8, 2)
	if err != nil {
		t.Fatal(err)
	}
	keys := AppendKeys(nil, RootKey(""), make([]int32, 6*maxLeads), 2)
	for i, k := range keys {
		m.leads.put(k, "a", 1, i%2 == 0)
	}
	if n := len(m.leads.young) + len(m.leads.former); n > 2*maxLeads || m.Lead(keys, len(keys)-1) != "a" || m.Lead(keys, 0) != "" {
		t.Errorf("%d leads, the last %q, the first %q", n, m.Lead(keys, len(keys)-1), m.Lead(keys, 0))
	}
	shared := Span{Instance: "a", Handle: 1, Generation: 1, Blocks: 2, Shared: true}
	if err := m.Open(1); err != nil {
		t.Fatal(err)
	}
	if tokens, _ := m.Adopt(1, []Found{{shared, []int32{0, 1}}}, keys[:2]); tokens != 4 || m.Grow(1, 12) != nil || m.SetComputed(1, 11) != nil {
		t.Fatal(tokens)
	}
	if _, err := m.BeginMove(1, shared, 1); !errors.Is(err, ErrState) {
		t.Errorf("a shared span was extended: %v", err)
	}
}

func TestConcurrentUse(t *testing.T) {
	m, err := New(64, 4)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Add(2)
		go func() {
			defer wg.Done()
			for k := range 200 {
				id := RequestID(g*1000 + k)
				if err := m.Open(id); err != nil {
					t.Error(err)
				}
				_ = m.Grow(id, k%40)
				_, _ = m.Table(id)
				m.Close(id)
			}
		}()
		go func() {
			defer wg.Done()
			for k := range 200 {
				if h, err := m.Host(name(g), 0, 1+k%5); err == nil {
					if err := m.Unhost(name(g), h.Handle, h.Generation, nil); err != nil {
						t.Error(err)
					}
				}
			}
		}()
	}
	wg.Wait()
	if err := m.check(); err != nil || m.Free() != 64 {
		t.Fatalf("%d free: %v", m.Free(), err)
	}
}
