package device

// #include "infinite/device.h"
import "C"

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"github.com/infinite-llm/infinite/engine/batch"
)

// Step is the device's step: views of memory that C allocated once, valid until Close, nil before Ready.
// It may be touched between Wait and Submit only.
func (d *Device) Step() *batch.Step {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.step
}

// Submit checks the step's whole input and starts it. A refusal (ErrInvalid) loses nothing.
func (d *Device) Submit() error {
	return d.call("start a step", func(h *C.inf_device, e *C.inf_err) C.int { return C.inf_device_submit(h, e) })
}

// nanos is a timeout for C, where a negative one is none.
func nanos(timeout time.Duration) C.int64_t { return C.int64_t(timeout.Nanoseconds()) }

// Wait returns true when the step is over, false after the timeout (none if negative), when it goes on.
// Single requests may have failed: SeqOut.
func (d *Device) Wait(timeout time.Duration) (bool, error) {
	status, err := d.status("wait for a step", func(h *C.inf_device, e *C.inf_err) C.int {
		return C.inf_device_wait(h, nanos(timeout), e)
	})
	return status == C.INF_OK && err == nil, err
}

// Run is Submit and Wait. After ErrTimeout the step still goes on, and Wait must be called again.
func (d *Device) Run(timeout time.Duration) error {
	if err := d.Submit(); err != nil {
		return err
	}
	done, err := d.Wait(timeout)
	if err == nil && !done {
		err = fmt.Errorf("cannot finish a step in %s: %w", timeout, ErrTimeout)
	}
	return err
}

// OpenSlot prepares a sampling slot for a request whose text so far is tokens, the first nPrompt of them the
// prompt. The slot must not be in the step in flight.
func (d *Device) OpenSlot(slot uint32, s batch.Sampling, tokens []int32, nPrompt int, bias []batch.Bias) error {
	if len(bias) > MaxBias {
		return fmt.Errorf("cannot open a sampling slot: %d logit biases, at most %d: %w", len(bias), MaxBias, ErrInvalid)
	}
	ids, values := make([]int32, len(bias)), make([]float32, len(bias))
	for i, b := range bias {
		ids[i], values[i] = b.Token, b.Value
	}
	return d.call("open a sampling slot", func(h *C.inf_device, e *C.inf_err) C.int {
		return C.inf_device_slot_open(h, C.uint32_t(slot), (*C.inf_sampling)(unsafe.Pointer(&s)), int32s(tokens),
			C.int64_t(len(tokens)), C.int64_t(nPrompt), int32s(ids), (*C.float)(unsafe.SliceData(values)), C.int32_t(len(bias)), e)
	})
}

func int32s(s []int32) *C.int32_t { return (*C.int32_t)(unsafe.SliceData(s)) }

// errTooMany: more entries than C counts.
var errTooMany = errors.New("too many blocks")

func blockCount(blocks []int32) (C.int32_t, error) {
	if len(blocks) > 1<<30 {
		return 0, fmt.Errorf("cannot pass %d blocks: %w", len(blocks), errTooMany)
	}
	return C.int32_t(len(blocks)), nil
}
