// Package device is door 1 of the C data plane: one instance's model, KV pool and step.
//
//	device.go   open, load, ready, close; sizes
//	model.go    a device from a model folder
//	step.go     the step: submit, wait; sampling slots
//	peers.go    hosted spans, moves, peers; counters
//	gpu.go      GPUs and the library of their kernels; gpu_cuda.go asks the driver, with the tag cuda
//	error.go    C's status as a Go error
//	layout.go   the C layouts that package batch mirrors
//	stamp.go    makes the package stale when the C library changes
//
// A Device is opened, given every tensor, and made ready. From then on one goroutine fills Step and
// calls Submit and Wait, while any others may call the remaining methods. A constant number of calls
// crosses into C per step; C keeps no pointer to Go memory, and its errors name the peer they speak of.
package device
