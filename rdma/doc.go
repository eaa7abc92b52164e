// Package rdma sets up the links between instances, door 2 of the C data plane.
//
//	endpoint.go   where an instance can be reached, and the choice of a transport
//	hello.go      the handshake: who is calling, and which link is wanted
//	listen.go     the accepting side
//	dial.go       the calling side
//	pipe.go       a connection whose bytes somebody else carries
//	shm.go        the shared memory and the eventfds of a link within one host
//	link.go       the handle to the C link
//	probe.go      latency and bandwidth of a fresh link
//	bench.go      a link's latency and bandwidth in full: `infinite linkbench`
//	discover.go   the RDMA devices of this host
//
// # Handshake
//
// All kinds of connection speak the same: TCP, the abstract unix socket, and for verbs links what the cluster
// carries them by. Numbers are big-endian.
//
//	acceptor  magic [8], nonce [32]
//	dialer    length u32, hello (JSON, at most 4 KiB), HMAC-SHA256 [32]
//	acceptor  length u32, reply (JSON, at most 4 KiB), HMAC-SHA256 [32]
//	dialer    shm only: one byte that carries the memory and two eventfds
//
// The key of both codes is the cluster's secret; the hello's covers the acceptor's nonce, the reply's
// also the hello, which holds a nonce of the dialer. So both sides know that the other has the secret
// and that nothing was replayed. A caller that does not know the secret gets no reply at all.
// The bytes of a link are neither encrypted nor signed: the network between instances is trusted to
// that extent.
package rdma
