// Package cluster is the control plane between instances.
//
//	etcd.go        the embedded etcd of a cluster that brings none, and connections to any
//	etcdlog.go     what the embedded etcd says, and what it would end the process for
//	folder.go      where the embedded etcd writes, and what killed processes left there
//	member.go      who is there: one lease per instance, one watch per process
//	manager.go     an API process's side: Join, and the placement map for the API
//	gmanager.go    the placement map, made of heartbeats; one elected process answers for it
//	rebalance.go   the gManager's plans: from the placement map to calls for moves
//	heartbeat.go   an instance's side of the heartbeat
//	rmanager.go    an instance's KV blocks towards others: its parts, what it knows of the cluster
//	borrow.go      room with creditors: asking for it, moving blocks there
//	release.go     giving room back
//	back.go        having blocks back from instances that are about to leave, and giving them back
//	movekv.go      moves that the gManager plans, at the homes of the requests
//	search.go      finding what a request begins with in the pools of others
//	host.go        the other side: reserving room for others' blocks, and freeing it
//	share.go       the other side of a search
//	wave.go        prompts that several instances compute: a part in a wave
//	form.go        forming one for a request of this instance
//	assist.go      the other side: joining another one's
//	peers.go       links to every other instance, their set-up, loss and return
//	improve.go     more rails, and a better transport where one can be had again
//	leave.go       the end of links on purpose, and what is told before it
//	connect.go     what carries the set-up of verbs links
//	accept.go      the other side of the links
//	auth.go        what every gRPC connection between processes has
//
// Nothing on the token path waits for etcd or for the gManager: steps, streams and existing spans go on
// while either is away. Blocks are borrowed and given back meanwhile too: a gManager that cannot reach
// etcd stays one, and without any, creditors say themselves what room they have.
//
// The links of two instances have a session, a number that the debtor draws for each pair of lanes. Calls
// about spans carry it, so that one that is late, or is about links that are gone, means nothing.
package cluster
