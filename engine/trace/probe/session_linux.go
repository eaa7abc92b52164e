package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"

	"github.com/infinite-llm/infinite/engine/trace"
)

// license of the programs: they call no helper that is for GPL programs alone.
const license = "Apache-2.0"

const (
	// look is how often the ring is read.
	look = 50 * time.Millisecond
	// atOnce bounds the calls of kernel functions that are under way.
	atOnce = 8192
)

// Session is a set of attached probes.
type Session struct {
	ring, lost      *ebpf.Map
	counters, begun *ebpf.Map // of kernel functions; nil without
	reader          *ringbuf.Reader
	programs        []*ebpf.Program
	links           []link.Link
	files           programs
	processes       []trace.Process
	functions       []attached
	refused         []trace.Refusal
	facts           facts
	unknown         int
}

// attached is a kernel function that is counted.
type attached struct {
	function
	index   int
	untimed string // why there is no probe at its end
}

// Open attaches what can be attached; Refused has the rest. It fails when no mark of any process has a probe. What
// it attached is there until Close, or until this process ends.
func Open(cfg Config) (*Session, error) {
	s := &Session{processes: append([]trace.Process(nil), cfg.Processes...), facts: thisKernel("/")}
	if err := s.open(cfg); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Session) open(cfg Config) error {
	// Kernels before 5.11 count maps as locked memory. If the limit stays, making them says so.
	_ = rlimit.RemoveMemlock()
	var err error
	if s.ring, err = ebpf.NewMap(&ebpf.MapSpec{Name: "infinite_events", Type: ebpf.RingBuf, MaxEntries: cfg.RingBytes}); err != nil {
		return s.cannot("make a ring for events", err)
	}
	if s.lost, err = ebpf.NewMap(&ebpf.MapSpec{Name: "infinite_lost", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}); err != nil {
		return s.cannot("make a counter", err)
	}
	if s.reader, err = ringbuf.NewReader(s.ring); err != nil {
		return s.cannot("read the ring", err)
	}
	marks := 0
	for i := range s.processes {
		s.attachMarks(i)
		marks += s.processes[i].Marks
	}
	if marks == 0 {
		if len(s.refused) == 0 {
			return errors.New("cannot trace: there is no process")
		}
		r := s.refused[0]
		return &cannotError{what: "attach any probe to a mark", reason: r.Reason, remedy: r.Remedy}
	}
	if cfg.Functions {
		s.attachFunctions()
	}
	return nil
}

func (s *Session) load(name string, p asm.Instructions) (*ebpf.Program, error) {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: name, Type: ebpf.Kprobe, Instructions: p, License: license})
	if err == nil {
		s.programs = append(s.programs, prog)
	}
	return prog, err
}

// attachMarks gives every mark of a process its probe. The program is reached by the process, so that one which was
// replaced on disk since, or lies in a container, is the right one.
func (s *Session) attachMarks(i int) {
	p := &s.processes[i]
	path := exe("/proc", p.PID)
	file := s.files.open(path)
	for _, m := range trace.Marks() {
		offset, err := file.offset(m)
		if err == nil {
			err = s.attachMark(path, offset, m, i)
		}
		if err == nil {
			p.Marks++
			continue
		}
		reason, remedy := s.facts.explain(err, uprobe)
		s.refused = append(s.refused, trace.Refusal{Probe: m.Symbol(), Process: p.Name(), Reason: reason, Remedy: remedy})
	}
}

func (s *Session) attachMark(path string, offset uint64, m trace.Mark, i int) error {
	code, err := markProgram(m, uint32(i), runtime.GOARCH, s.ring.FD(), s.lost.FD())
	if err != nil {
		return err
	}
	prog, err := s.load("infinite_mark", code)
	if err != nil {
		return fmt.Errorf("cannot load a program: %w", err)
	}
	file, err := link.OpenExecutable(path)
	if err != nil {
		return err
	}
	l, err := file.Uprobe("", prog, &link.UprobeOptions{Address: offset, PID: s.processes[i].PID})
	if err != nil {
		return fmt.Errorf("cannot attach a uprobe: %w", err)
	}
	s.links = append(s.links, l)
	return nil
}

func (s *Session) refuse(f function, err error) {
	reason, remedy := s.facts.explain(err, kprobe)
	s.refused = append(s.refused, trace.Refusal{Probe: f.name, Reason: reason, Remedy: remedy})
}

func (s *Session) attachFunctions() {
	has := map[string]bool{}
	symbols, err := os.Open("/proc/kallsyms")
	if err == nil {
		has, err = present(symbols, functions)
		_ = symbols.Close()
	}
	if err == nil && !s.facts.kprobes {
		err = errNoKprobes
	}
	if err == nil {
		err = s.makeCounters()
	}
	for i, f := range functions {
		switch {
		case err != nil:
			s.refuse(f, err)
		case !has[f.name]:
			s.refuse(f, s.facts.absent(f.name))
		default:
			s.attachFunction(f, i)
		}
	}
}

func (s *Session) makeCounters() (err error) {
	n := uint32(len(functions) * functionCounters)
	if s.counters, err = ebpf.NewMap(&ebpf.MapSpec{Name: "infinite_calls", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: n}); err != nil {
		return fmt.Errorf("cannot make counters: %w", err)
	}
	// Least recently used ones make room: a call whose end was missed must not stay for ever.
	if s.begun, err = ebpf.NewMap(&ebpf.MapSpec{Name: "infinite_begun", Type: ebpf.LRUHash, KeySize: 16, ValueSize: 8, MaxEntries: atOnce}); err != nil {
		return fmt.Errorf("cannot make a table of calls: %w", err)
	}
	return nil
}

func (s *Session) attachFunction(f function, index int) {
	enter, err := s.load("infinite_enter", enterProgram(index, s.counters.FD(), s.begun.FD()))
	if err != nil {
		s.refuse(f, fmt.Errorf("cannot load a program: %w", err))
		return
	}
	// The end first, so that no call is counted as begun whose end is not looked at.
	untimed := ""
	leave, err := s.load("infinite_leave", leaveProgram(index, s.counters.FD(), s.begun.FD()))
	var end, begin link.Link
	if err == nil {
		end, err = link.Kretprobe(f.name, leave, nil)
	}
	if err != nil {
		untimed, _ = s.facts.explain(err, kprobe)
	} else {
		s.links = append(s.links, end)
	}
	if begin, err = link.Kprobe(f.name, enter, nil); err != nil {
		s.refuse(f, fmt.Errorf("cannot attach a kprobe: %w", err))
		return
	}
	s.links = append(s.links, begin)
	s.functions = append(s.functions, attached{f, index, untimed})
}

// Processes are those of the config, with the number of their marks that have a probe.
func (s *Session) Processes() []trace.Process { return s.processes }

// Refused lists the probes that could not be attached.
func (s *Session) Refused() []trace.Refusal { return s.refused }

// Read gives f every event until ctx ends, and what is in the ring then.
func (s *Session) Read(ctx context.Context, f func(trace.Event)) error {
	var rec ringbuf.Record
	for ctx.Err() == nil {
		s.reader.SetDeadline(time.Now().Add(look))
		for ctx.Err() == nil {
			if ok, err := s.next(&rec, f); err != nil {
				return err
			} else if !ok {
				break
			}
		}
	}
	// The probes are still there, so that there may be no end of it.
	s.reader.SetDeadline(time.Now())
	for left := s.reader.AvailableBytes(); left > 0; left -= trace.EventSize {
		if ok, err := s.next(&rec, f); err != nil || !ok {
			return err
		}
	}
	return nil
}

// next gives f the next event; false when none has come before the reader's deadline.
func (s *Session) next(rec *ringbuf.Record, f func(trace.Event)) (bool, error) {
	err := s.reader.ReadInto(rec)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot read events: %w", err)
	}
	e, err := trace.Decode(rec.RawSample, len(s.processes))
	if err != nil {
		s.unknown++
		return true, nil
	}
	s.processes[e.Process].Events++
	f(e)
	return true, nil
}

// Lost counts events that found no room in the ring.
func (s *Session) Lost() (n uint64, err error) {
	if err = s.lost.Lookup(uint32(0), &n); err != nil {
		return 0, fmt.Errorf("cannot read how many events were lost: %w", err)
	}
	return n, nil
}

// Unknown counts events that could not be read.
func (s *Session) Unknown() int { return s.unknown }

// Functions reads the counters of the kernel's functions.
func (s *Session) Functions() ([]trace.Function, error) {
	var out []trace.Function
	for _, a := range s.functions {
		f := trace.Function{Name: a.name, Does: a.does, Untimed: a.untimed}
		var h trace.Histogram
		for i := range functionCounters {
			to := &f.Calls
			if i > 0 {
				to = &h.Buckets[i-1]
			}
			if err := s.counters.Lookup(uint32(a.index*functionCounters+i), to); err != nil {
				return nil, fmt.Errorf("cannot read the counters of %s: %w", a.name, err)
			}
		}
		f.Times = h.Times()
		out = append(out, f)
	}
	return out, nil
}

// detach takes the probes away, all at a time: for each the kernel waits until no CPU can be in it.
func (s *Session) detach() error {
	errs := make([]error, len(s.links))
	var all sync.WaitGroup
	for i, l := range s.links {
		all.Go(func() {
			if err := l.Close(); err != nil {
				errs[i] = fmt.Errorf("cannot detach a probe: %w", err)
			}
		})
	}
	all.Wait()
	s.links = nil
	return errors.Join(errs...)
}

// Close takes all away. The kernel waits up to a tenth of a second for each probe.
func (s *Session) Close() error {
	errs := []error{s.detach()}
	for _, p := range s.programs {
		errs = append(errs, p.Close())
	}
	if s.reader != nil {
		errs = append(errs, s.reader.Close())
	}
	for _, m := range []*ebpf.Map{s.ring, s.lost, s.counters, s.begun} {
		errs = append(errs, m.Close()) // of nil as well
	}
	return errors.Join(errs...)
}

func (s *Session) cannot(what string, err error) error {
	reason, remedy := s.facts.explain(err, maps)
	return &cannotError{what, reason, remedy}
}
