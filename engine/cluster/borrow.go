package cluster

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/rdma"
)

const (
	maxOffloads = 256 // that are queued
	maxReturns  = 16  // likewise; the scheduler asks for one at a time
	placers     = 4   // offloads that are placed at a time
	maxFailures = 10  // calls in a row without an answer before a creditor is given up, if they take deafAfter
)

var (
	errBusy = errors.New("too many moves are queued")
	errLost = errors.New("the links to the creditor ended meanwhile")
)

// offload asks for a request's oldest blocks to be placed elsewhere; with from, for blocks there to come back.
type offload struct {
	request kvcache.RequestID
	blocks  int
	to      string // the only creditor that is asked; "": whoever has room
	from    string
}

// placed is the outcome of an offload or a return, over one session with a creditor.
type placed struct {
	peer    *peer
	session uint64
	span    kvcache.Span
	began   bool          // blocks were marked as moving
	first   int           // of the span's blocks that moved
	keys    []kvcache.Key // what these hold, as far as that is known
}

// Offload asks for n of a request's oldest blocks to be placed elsewhere, with an instance if one is named; the outcome
// goes to Home.Moved.
func (r *RManager) Offload(request kvcache.RequestID, n int, to string) {
	r.queue(r.offloads, offload{request: request, blocks: n, to: to})
}

// Return asks for up to n of a request's blocks to come back from an instance; the outcome goes to Home.Moved.
func (r *RManager) Return(request kvcache.RequestID, from string, n int) {
	r.queue(r.returns, offload{request: request, blocks: n, from: from})
}

func (r *RManager) queue(to chan<- offload, o offload) {
	select {
	case to <- o:
	default:
		r.report(o, placed{}, errBusy)
	}
}

// returnLoop is offloadLoop of what comes back: it may take long, and pressure waits for offloads.
func (r *RManager) returnLoop() { r.moveEach(r.returns, r.bring) }

func (r *RManager) offloadLoop() { r.moveEach(r.offloads, r.place) }

func (r *RManager) moveEach(queue <-chan offload, move func(offload) (placed, error)) {
	for {
		select {
		case <-r.ctx.Done():
			return
		case o := <-queue:
			done, err := move(o)
			if err != nil {
				slog.Debug("a move came to nothing", "request", uint64(o.request), "blocks", o.blocks, "from", o.from, "error", err)
			}
			r.report(o, done, err)
			if err == nil {
				r.nameThere(done)
			}
		}
	}
}

// nameThere tells a creditor what the blocks hold that have just moved there, so that others find them. When it is not
// heard, the end of the span says it.
func (r *RManager) nameThere(done placed) {
	if len(done.keys) == 0 {
		return
	}
	limited, cancel := r.call()
	defer cancel()
	req := &pb.NameKVRequest{
		Owner: r.cfg.ID, Handle: done.span.Handle, Generation: done.span.Generation, Session: done.session,
		First: uint32(done.first), Keys: bytesOf(done.keys),
	}
	if _, err := done.peer.client.NameKV(limited, req); err != nil {
		slog.Debug("cannot tell a creditor what blocks hold", "peer", done.peer.id, "blocks", len(done.keys), "error", err)
	}
}

// report tells the step loop. What was moved over a session that is over is lost, and the step loop has
// heard of its end; but the blocks are still here, so the move came to nothing, and that is all.
func (r *RManager) report(o offload, done placed, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil && done.peer.session != done.session {
		err = errLost
	}
	r.home.Moved(Outcome{Request: o.request, Span: done.span, Back: o.from != "", Began: done.began, Err: err})
}

// place reserves room with one creditor, marks the blocks as moving and copies them there.
func (r *RManager) place(o offload) (placed, error) {
	table, err := r.kv.Table(o.request)
	if err != nil {
		return placed{}, err
	}
	var last kvcache.Span
	if n := len(table.Spans); n > 0 && !table.Spans[n-1].Shared && !table.Spans[n-1].Cut {
		last = table.Spans[n-1]
	}
	for _, c := range r.creditorsFor(o, last.Instance) {
		if !r.hold(c) {
			continue
		}
		to, n := r.tryMove(c, o, last)
		if n == 0 {
			r.unhold(c)
			continue
		}
		blocks, err := r.kv.BeginMove(o.request, to, n)
		r.unhold(c) // from here on the pool knows
		if err != nil {
			// The request ended meanwhile, and its spans with it; one that was opened just now would stay.
			if to.Blocks == 0 {
				r.Release([]kvcache.Ended{{Span: to}})
			}
			return placed{}, err
		}
		done := placed{peer: c.peer, session: c.session, span: to, began: true, first: to.Blocks, keys: r.kv.MovingKeys(o.request)}
		done.span.Blocks = n
		if err = r.copyBlocks(c, to, blocks); err != nil {
			// The peers disagree about the span, or cannot talk: both start afresh.
			r.drop(c.peer, c.session, fmt.Errorf("cannot move blocks: %w", err))
		}
		return done, err
	}
	return placed{}, fmt.Errorf("cannot place %d blocks: no creditor has room", o.blocks)
}

// tryMove asks a creditor for room, in the request's last span when that lies there. It returns the span,
// as the request has it now, and the number of blocks reserved behind it, 0 for a refusal.
func (r *RManager) tryMove(c creditor, o offload, last kvcache.Span) (to kvcache.Span, n int) {
	limited, done := r.call()
	defer done()
	req := &pb.TryMoveKVRequest{Owner: r.cfg.ID, Request: uint64(o.request), Blocks: uint32(o.blocks), Session: c.session, Ticket: r.nextTicket()}
	to = kvcache.Span{Instance: c.peer.id, Peer: c.peer.index}
	if last.Instance == to.Instance && last.Peer == to.Peer {
		to = last
		req.Handle, req.Generation, req.First = last.Handle, last.Generation, uint32(last.Blocks)
	}
	grant, err := c.peer.client.TryMoveKV(limited, req)
	switch {
	case err != nil:
	case grant.Accepted > req.Blocks || grant.Accepted > 0 && grant.Generation == 0 ||
		to.Blocks > 0 && grant.Accepted > 0 && (grant.Handle != to.Handle || grant.Generation != to.Generation):
		err = fmt.Errorf("cannot use a grant of %d blocks in span %d.%d for %d", grant.Accepted, grant.Handle, grant.Generation, o.blocks)
	default:
		r.answered(c.peer, int(grant.Hostable))
		to.Handle, to.Generation = grant.Handle, grant.Generation
		return to, int(grant.Accepted)
	}
	r.unanswered(c, err)
	if to.Blocks == 0 {
		// The call may have been heard. Room behind an old span ends with that, or is found again.
		r.giveUp(c, req.Ticket)
	}
	return to, 0
}

func (r *RManager) answered(p *peer, hostable int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p.hostable, p.told = hostable, time.Now()
	p.failures = 0
	p.quiet.end()
}

// unanswered notes that a creditor gave no answer that could be used. It keeps the room that it said to
// have, so that nobody is preempted for a moment's trouble; but one that never answers would be waited for
// in vain, and is given up.
func (r *RManager) unanswered(c creditor, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := c.peer
	quiet := p.quiet.lasts(time.Now())
	if p.failures++; p.failures == 1 {
		slog.Warn("cannot ask a creditor", "peer", p.id, "error", err)
	}
	if p.session == c.session && p.failures >= maxFailures && quiet > deafAfter {
		r.dropSoon(p, fmt.Errorf("it answers no calls: %w", err))
	}
}

func (r *RManager) nextTicket() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.number++
	return r.number
}

// post begins to move blocks behind those that lie in the span; what comes of it is told in the end.
func (r *RManager) post(c creditor, to kvcache.Span, blocks []int32) (<-chan error, error) {
	done := make(chan error, 1)
	ticket := r.nextTicket()
	r.mu.Lock()
	over := c.peer.session != c.session
	if !over {
		r.tickets[ticket] = done
	}
	r.mu.Unlock()
	if over {
		return nil, errLost
	}
	if err := r.moves.MovePost(c.peer.index, to.Handle, to.Generation, uint32(to.Blocks), blocks, ticket); err != nil {
		r.mu.Lock()
		delete(r.tickets, ticket)
		r.mu.Unlock()
		return nil, err
	}
	return done, nil
}

// copyBlocks moves blocks behind those that lie in the span.
func (r *RManager) copyBlocks(c creditor, to kvcache.Span, blocks []int32) error {
	done, err := r.post(c, to, blocks)
	if err != nil {
		return err
	}
	// The device reads the blocks until it reports the move, so nothing but its report ends this wait;
	// its own stall deadline bounds it, and losing the peer's links ends the move at once.
	limit := time.NewTimer(r.cfg.MoveTimeout)
	defer limit.Stop()
	select {
	case err := <-done:
		if err == nil {
			r.sayWay(c)
		}
		return err
	case <-limit.C:
	}
	r.drop(c.peer, c.session, fmt.Errorf("a move of %d blocks took longer than %s", len(blocks), r.cfg.MoveTimeout))
	return <-done
}

// sayWay logs once per session on one host how blocks get to the peer: the devices settle that with the first move.
func (r *RManager) sayWay(c creditor) {
	r.mu.Lock()
	due := c.peer.session == c.session && c.peer.info.Transport == rdma.SHM && !c.peer.waySaid
	c.peer.waySaid = c.peer.waySaid || due
	r.mu.Unlock()
	if !due {
		return
	}
	if _, puts, why := r.rails.PeerRails(c.peer.index); puts&1 != 0 {
		slog.Info("blocks move to a peer from GPU to GPU", "peer", c.peer.id)
	} else if why != "" {
		slog.Warn("blocks move to a peer through messages", "peer", c.peer.id, "why", why)
	}
}

// takeMoves hands the device's reports to those who wait, as long as anybody may.
func (r *RManager) takeMoves() {
	for {
		select {
		case <-r.movesEnded:
			return
		default:
		}
		ticket, result, ok, err := r.moves.MoveWait(50 * time.Millisecond)
		if err != nil {
			slog.Error("cannot wait for moves", "error", err)
			time.Sleep(50 * time.Millisecond)
		}
		if !ok {
			continue
		}
		r.mu.Lock()
		done := r.tickets[ticket]
		delete(r.tickets, ticket)
		r.mu.Unlock()
		if done != nil {
			done <- result
		}
	}
}
