//go:build asan

package device

// #cgo CFLAGS: -fsanitize=address,undefined
// #cgo LDFLAGS: -L${SRCDIR}/../../.build/asan -fsanitize=address,undefined
import "C"
