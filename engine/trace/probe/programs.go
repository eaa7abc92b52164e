package probe

import (
	"fmt"

	"github.com/cilium/ebpf/asm"

	"github.com/infinite-llm/infinite/engine/trace"
)

// argOffsets is where a uprobe's context has the six arguments of a C function: struct pt_regs on x86-64 (rdi,
// rsi, rdx, rcx, r8, r9), struct user_pt_regs on arm64 (x0 to x5).
var argOffsets = map[string][6]int16{
	"amd64": {112, 104, 96, 88, 72, 64},
	"arm64": {0, 8, 16, 24, 32, 40},
}

// noWakeup of bpf_ringbuf_submit: the reader looks by itself, so that a mark does not wait for waking it.
const noWakeup = 1

// markProgram writes an event (trace.EventSize) into the ring, or counts it as lost.
//
//	r6 context, r7 event, r8 time
func markProgram(mark trace.Mark, process uint32, arch string, ring, lost int) (asm.Instructions, error) {
	args, ok := argOffsets[arch]
	if !ok {
		return nil, fmt.Errorf("cannot read a function's arguments on %s", arch)
	}
	p := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.FnKtimeGetNs.Call(),
		asm.Mov.Reg(asm.R8, asm.R0),
		asm.LoadMapPtr(asm.R1, ring),
		asm.Mov.Imm(asm.R2, trace.EventSize),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnRingbufReserve.Call(),
		asm.JEq.Imm(asm.R0, 0, "lost"),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.StoreMem(asm.R7, 0, asm.R8, asm.DWord),
		asm.StoreImm(asm.R7, 8, int64(mark), asm.Word),
		asm.StoreImm(asm.R7, 12, int64(process), asm.Word),
		asm.FnGetCurrentPidTgid.Call(),
		asm.StoreMem(asm.R7, 16, asm.R0, asm.DWord),
	}
	for i, offset := range args {
		p = append(p,
			asm.LoadMem(asm.R1, asm.R6, offset, asm.DWord),
			asm.StoreMem(asm.R7, int16(24+8*i), asm.R1, asm.DWord))
	}
	p = append(p,
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.Mov.Imm(asm.R2, noWakeup),
		asm.FnRingbufSubmit.Call(),
		asm.Ja.Label("out"),
		asm.Mov.Imm(asm.R1, 0).WithSymbol("lost"),
	)
	p = append(p, count(lost, "out")...)
	return append(p, asm.Mov.Imm(asm.R0, 0).WithSymbol("out"), asm.Return()), nil
}

// count adds one to the counter whose index is in r1 and goes on; an index that the map lacks goes to label.
func count(counters int, label string) asm.Instructions {
	return asm.Instructions{
		asm.StoreMem(asm.RFP, -4, asm.R1, asm.Word),
		asm.LoadMapPtr(asm.R1, counters),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, label),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
	}
}

// The counters of a kernel function: one for its calls, then a histogram (trace.Histogram).
const (
	buckets          = 64
	functionCounters = 1 + buckets
)

// beginKey stores at fp-16 who runs the function, and at fp-8 which one: the thread, or where that is a CPU's idle
// one (all of them are 0) the CPU. What runs in an interrupt counts for the thread that it
// interrupts. So an interrupt that calls the function which it interrupted takes over its key, and the outer call is
// counted but not timed.
func beginKey(index int) asm.Instructions {
	return asm.Instructions{
		asm.FnGetCurrentPidTgid.Call(),
		asm.JNE.Imm(asm.R0, 0, "thread"),
		asm.FnGetSmpProcessorId.Call(),
		asm.StoreMem(asm.RFP, -16, asm.R0, asm.DWord).WithSymbol("thread"),
		asm.Mov.Imm(asm.R1, int32(index)),
		asm.StoreMem(asm.RFP, -8, asm.R1, asm.DWord),
	}
}

// enterProgram counts a call of function index and notes when it began.
func enterProgram(index, counters, begun int) asm.Instructions {
	p := asm.Instructions{asm.Mov.Imm(asm.R1, int32(index*functionCounters))}
	p = append(p, count(counters, "out")...)
	p = append(p, beginKey(index)...)
	return append(p,
		asm.FnKtimeGetNs.Call(),
		asm.StoreMem(asm.RFP, -24, asm.R0, asm.DWord),
		asm.LoadMapPtr(asm.R1, begun),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -16),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, -24),
		asm.Mov.Imm(asm.R4, 0), // BPF_ANY
		asm.FnMapUpdateElem.Call(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
		asm.Return(),
	)
}

// leaveProgram adds the time of a call of function index to its histogram.
//
//	r6 when it ended, then how long it took; r7 the bucket
func leaveProgram(index, counters, begun int) asm.Instructions {
	p := asm.Instructions{asm.FnKtimeGetNs.Call(), asm.Mov.Reg(asm.R6, asm.R0)}
	p = append(p, beginKey(index)...)
	p = append(p,
		asm.LoadMapPtr(asm.R1, begun),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -16),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"), // it began before the session
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.Sub.Reg(asm.R6, asm.R1),
		asm.LoadMapPtr(asm.R1, begun),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -16),
		asm.FnMapDeleteElem.Call(),
		asm.Mov.Imm(asm.R7, 0),
	)
	for shift := int32(32); shift > 0; shift /= 2 {
		next := fmt.Sprintf("below %d", shift)
		p = append(p,
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.RSh.Imm(asm.R1, shift),
			asm.JEq.Imm(asm.R1, 0, next),
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.Add.Imm(asm.R7, shift),
			asm.Mov.Reg(asm.R1, asm.R6).WithSymbol(next),
		)
	}
	p = append(p, asm.Mov.Reg(asm.R1, asm.R7), asm.Add.Imm(asm.R1, int32(index*functionCounters+1)))
	p = append(p, count(counters, "out")...)
	return append(p, asm.Mov.Imm(asm.R0, 0).WithSymbol("out"), asm.Return())
}
