//go:build !asan

package device

// #cgo LDFLAGS: -L${SRCDIR}/../../.build/cpu
import "C"
