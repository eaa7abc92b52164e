// Package cluster is the control plane between instances.
//
//	etcd.go        the embedded etcd of a cluster that brings none
//	member.go      who is there: one lease per instance, one watch per process
//	gmanager.go    the placement map, made of heartbeats; one elected process answers for it
//	heartbeat.go   an instance's side of the heartbeat
//	rmanager.go    an instance's KV blocks towards others: borrowing room and moving blocks there
//	host.go        the other side: reserving room for others' blocks, and giving it back
//	peers.go       links to every other instance, their set-up, loss and return
//
// Nothing on the token path waits for etcd or for the gManager: steps, streams and existing spans go on
// while either is away.
package cluster
