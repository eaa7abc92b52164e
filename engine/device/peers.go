package device

// #include <stdlib.h>
// #include "infinite/device.h"
import "C"

import (
	"fmt"
	"time"
	"unsafe"
)

// SpanSet opens the span handle at gen for owner, a peer index, or extends it: blocks is the whole list,
// whose beginning may not change. ErrStale: the handle is past that generation.
func (d *Device) SpanSet(owner, handle, gen uint32, blocks []int32) error {
	n, err := blockCount(blocks)
	if err != nil {
		return err
	}
	return d.call("set a hosted span", func(h *C.inf_device, e *C.inf_err) C.int {
		return C.inf_device_span_set(h, C.uint32_t(owner), C.uint32_t(handle), C.uint32_t(gen), int32s(blocks), n, e)
	})
}

// SpanShare opens the span handle at gen for owner over blocks that hold their KV already, and that stay as they are
// until SpanClose: they are readable at once, and no move writes to them.
func (d *Device) SpanShare(owner, handle, gen uint32, blocks []int32) error {
	n, err := blockCount(blocks)
	if err != nil {
		return err
	}
	return d.call("share blocks", func(h *C.inf_device, e *C.inf_err) C.int {
		return C.inf_device_span_share(h, C.uint32_t(owner), C.uint32_t(handle), C.uint32_t(gen), int32s(blocks), n, e)
	})
}

// WaveOpen begins a wave, 1 to batch.MaxWaves: blocks that peers read layer by layer while steps here fill them. A peer
// that asks for what is not there yet is answered once it is, or refused (ErrStale at its end) after patience, which is
// less than the peers' timeout. ErrUnsupported on a GPU, with tensor-parallel ranks and for models with windows.
func (d *Device) WaveOpen(wave uint32, patience time.Duration) error {
	if patience < 0 {
		return fmt.Errorf("cannot open wave %d: a patience of %s: %w", wave, patience, ErrInvalid)
	}
	return d.call("open a wave", func(h *C.inf_device, e *C.inf_err) C.int {
		return C.inf_device_wave_open(h, C.uint32_t(wave), C.uint64_t(patience.Nanoseconds()), e)
	})
}

// SpanWave opens the span handle at gen for owner over the wave's blocks, which steps whose Seq names the wave fill in
// the order of the list; no move writes to them.
func (d *Device) SpanWave(owner, handle, gen uint32, blocks []int32, wave uint32) error {
	n, err := blockCount(blocks)
	if err != nil {
		return err
	}
	return d.call("share a wave's blocks", func(h *C.inf_device, e *C.inf_err) C.int {
		return C.inf_device_span_wave(h, C.uint32_t(owner), C.uint32_t(handle), C.uint32_t(gen), int32s(blocks), n,
			C.uint32_t(wave), e)
	})
}

// WaveClose ends a wave between two steps: its spans are from now on shared ones of the blocks that are full in all
// layers, and peers that wait for more are refused. ErrInvalid if a step with it is under way.
func (d *Device) WaveClose(wave uint32) error {
	return d.call("close a wave", func(h *C.inf_device, e *C.inf_err) C.int {
		return C.inf_device_wave_close(h, C.uint32_t(wave), e)
	})
}

// SpanClose ends a span; when it returns nobody reads or writes the span's blocks. ErrStale if it is unknown.
func (d *Device) SpanClose(handle, gen uint32) error {
	return d.call("close a hosted span", func(h *C.inf_device, e *C.inf_err) C.int {
		return C.inf_device_span_close(h, C.uint32_t(handle), C.uint32_t(gen), e)
	})
}

// MovePost copies own blocks to the peer's span from its block index first on, beside the steps. MoveWait
// reports the ticket; until then the blocks must not be reused.
func (d *Device) MovePost(peer, handle, gen, first uint32, blocks []int32, ticket uint64) error {
	n, err := blockCount(blocks)
	if err != nil {
		return err
	}
	return d.call("post a move", func(h *C.inf_device, e *C.inf_err) C.int {
		return C.inf_device_move_post(h, C.uint32_t(peer), C.uint32_t(handle), C.uint32_t(gen), C.uint32_t(first),
			int32s(blocks), n, C.uint64_t(ticket), e)
	})
}

// MoveDone is a finished move.
type MoveDone struct {
	Ticket uint64
	Err    error // nil: every block is readable at the peer
}

// MoveWait returns the next finished move; false after the timeout.
func (d *Device) MoveWait(timeout time.Duration) (MoveDone, bool, error) {
	var done C.inf_move_done
	status, err := d.status("wait for a move", func(h *C.inf_device, e *C.inf_err) C.int {
		return C.inf_device_move_wait(h, nanos(timeout), &done, e)
	})
	if err != nil || status == C.INF_AGAIN {
		return MoveDone{}, false, err
	}
	return MoveDone{Ticket: uint64(done.ticket), Err: StatusError(int32(done.status), -1)}, true, nil
}

// PeerAttach takes the client ends (inf_link *) towards a creditor, also when it fails: from now on steps may
// name spans there.
func (d *Device) PeerAttach(peer uint32, query, move unsafe.Pointer) error {
	return d.takeLinks("attach a peer", query, move, func(h *C.inf_device, e *C.inf_err) C.int {
		return C.inf_device_peer_attach(h, C.uint32_t(peer), (*C.inf_link)(query), (*C.inf_link)(move), e)
	})
}

// PeerServe takes the server ends (inf_link *) of a debtor's links, also when it fails: its queries and moves
// are answered from now on.
func (d *Device) PeerServe(peer uint32, query, move unsafe.Pointer) error {
	return d.takeLinks("serve a peer", query, move, func(h *C.inf_device, e *C.inf_err) C.int {
		return C.inf_device_peer_serve(h, C.uint32_t(peer), (*C.inf_link)(query), (*C.inf_link)(move), e)
	})
}

// SharePool registers the KV pool with an RDMA device ahead of its first link, which would wait for it; domain is
// the links'. The error says why moves will travel in messages there.
func (d *Device) SharePool(rdmaDevice, domain string) error {
	name, in := C.CString(rdmaDevice), C.CString(domain)
	defer C.free(unsafe.Pointer(name))
	defer C.free(unsafe.Pointer(in))
	return d.call("register the KV pool", func(h *C.inf_device, e *C.inf_err) C.int {
		return C.inf_device_share_pool(h, name, in, e)
	})
}

// MaxRails bounds the move lanes of a peer in one direction.
const MaxRails = int(C.INF_MAX_RAILS)

// PeerRail takes one more move lane (inf_link *) of a peer that is attached, or with server served, also when it
// fails: its rail 1 to MaxRails-1. Moves spread over all rails; one that dies is taken away.
func (d *Device) PeerRail(peer, rail uint32, server bool, move unsafe.Pointer) error {
	var s C.uint32_t
	if server {
		s = 1
	}
	return d.takeLinks("add a rail", nil, move, func(h *C.inf_device, e *C.inf_err) C.int {
		return C.inf_device_peer_rail(h, C.uint32_t(peer), C.uint32_t(rail), s, (*C.inf_link)(move), e)
	})
}

// PeerRails tells which rails of a peer live, bit k for rail k: out towards it, and of these the ones on which
// blocks go from pool to pool. noPuts is why the pool could not be registered.
func (d *Device) PeerRails(peer uint32) (out, puts uint32, noPuts string) {
	var rails C.inf_peer_rails
	_ = d.call("look at the peer's rails", func(h *C.inf_device, e *C.inf_err) C.int {
		return C.inf_device_peer_rails(h, C.uint32_t(peer), &rails, e)
	})
	return uint32(rails.out), uint32(rails.puts), C.GoString(&rails.no_puts[0])
}

func (d *Device) takeLinks(what string, query, move unsafe.Pointer, f func(*C.inf_device, *C.inf_err) C.int) error {
	taken := false
	err := d.call(what, func(h *C.inf_device, e *C.inf_err) C.int {
		taken = true
		return f(h, e)
	})
	if !taken { // a closed device takes nothing, its caller has given the links away
		C.inf_link_close((*C.inf_link)(query))
		C.inf_link_close((*C.inf_link)(move))
	}
	return err
}

// PeerDetach ends everything with the peer.
func (d *Device) PeerDetach(peer uint32) error {
	return d.call("detach a peer", func(h *C.inf_device, e *C.inf_err) C.int {
		return C.inf_device_peer_detach(h, C.uint32_t(peer), e)
	})
}

// PeerStatus is nil while all links of the peer live, else why not.
func (d *Device) PeerStatus(peer uint32) error {
	return d.call("use the peer's links", func(h *C.inf_device, e *C.inf_err) C.int {
		return C.inf_device_peer_status(h, C.uint32_t(peer), e)
	})
}

// Err says why the device has failed for good in what it did for other instances, nil while it is well.
func (d *Device) Err() error {
	return d.call("go on", func(h *C.inf_device, e *C.inf_err) C.int {
		return C.inf_device_fault(h, e)
	})
}

// Stats are counters since Open.
type Stats struct {
	Steps, Tokens                           uint64
	QueryMessages, QueryRows, QueryBytes    uint64 // sent
	ServedMessages, ServedRows, ServedBytes uint64 // answered
	MovedBlocks, MovedBytes                 uint64 // sent
	RefusedMessages                         uint64 // malformed, stale or out of bounds
	RemoteWaitNs, StepNs                    uint64
	ServedBatches                           uint64 // calls that answered messages, of several debtors perhaps
	HalvedSteps                             uint64 // that were computed in halves
	KeptMessages                            uint64 // that waited for what a wave had not computed yet
}

// Stats reads the counters, all zero before Ready and after Close.
func (d *Device) Stats() Stats {
	var s Stats
	_ = d.call("read the counters", func(h *C.inf_device, _ *C.inf_err) C.int {
		return C.inf_device_stats_read(h, (*C.inf_device_stats)(unsafe.Pointer(&s)))
	})
	return s
}
