package probe

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/infinite-llm/infinite/engine/trace"
)

// errNoMark says that a program does not have a mark.
var errNoMark = errors.New("the program has no such function")

// program is where an executable file has the marks.
type program struct {
	info    fs.FileInfo
	offsets map[trace.Mark]uint64 // in the file
	err     error
}

// programs reads each file once: instances mostly run the same one, and its table of symbols is long.
type programs []*program

func (ps *programs) open(path string) *program {
	info, err := os.Stat(path)
	if err != nil {
		return &program{err: fmt.Errorf("cannot look at the program: %w", err)}
	}
	for _, p := range *ps {
		if os.SameFile(p.info, info) {
			return p
		}
	}
	p := &program{info: info}
	p.offsets, p.err = marksOf(path)
	*ps = append(*ps, p)
	return p
}

func (p *program) offset(m trace.Mark) (uint64, error) {
	if p.err != nil {
		return 0, p.err
	}
	at, ok := p.offsets[m]
	if !ok {
		return 0, errNoMark
	}
	return at, nil
}

func marksOf(path string) (map[trace.Mark]uint64, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the program: %w", err)
	}
	defer func() { _ = f.Close() }()
	// What is exported stays in a stripped program.
	symbols, err := f.DynamicSymbols()
	if err == nil || errors.Is(err, elf.ErrNoSymbols) {
		var all []elf.Symbol
		all, err = f.Symbols()
		symbols = append(symbols, all...)
	}
	if err != nil && !errors.Is(err, elf.ErrNoSymbols) {
		return nil, fmt.Errorf("cannot read the program's symbols: %w", err)
	}
	names := map[string]trace.Mark{}
	for _, m := range trace.Marks() {
		names[m.Symbol()] = m
	}
	offsets := map[trace.Mark]uint64{}
	for _, s := range symbols {
		m, ok := names[s.Name]
		if !ok || elf.ST_TYPE(s.Info) != elf.STT_FUNC {
			continue
		}
		for _, seg := range f.Progs {
			if seg.Type == elf.PT_LOAD && seg.Flags&elf.PF_X != 0 && seg.Vaddr <= s.Value && s.Value-seg.Vaddr < seg.Filesz {
				offsets[m] = s.Value - seg.Vaddr + seg.Off
			}
		}
	}
	return offsets, nil
}
