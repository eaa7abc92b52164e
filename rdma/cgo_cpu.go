//go:build !asan

package rdma

// #cgo LDFLAGS: -L${SRCDIR}/../.build/cpu
import "C"
