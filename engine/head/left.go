package head

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/infinite-llm/infinite/engine/cluster"
)

// regainLimit is how long a process that has no instance of its own any more waits for others to serve again: a member is
// off the list for moments when its machine stalls, or is started anew.
const regainLimit = 10 * time.Second

// watch calls watchInstances until unwatch, which returns when it has ended: what Close stops did not end by itself.
func (h *Head) watch() {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.watchInstances(ctx)
	}()
	h.unwatch = func() { stop(); <-done }
}

// watchInstances says of each instance of this process that it ended, and what is left, until ctx ends. When nobody is left
// who could serve, this process cannot go on: nobody would ever start its instances again, and whoever watches over it
// should hear of that.
func (h *Head) watchInstances(ctx context.Context) {
	said := map[string]bool{}
	last := errStopped // why the last instance of this process ended
	served := false
	var alone <-chan time.Time
	for {
		members, changed := h.manager.Directory().Members()
		ended, others := left(h.children, members)
		own := len(h.children) - len(ended)
		for _, c := range ended {
			if err := c.ended(); !said[c.id] && !c.told() {
				said[c.id], last = true, fmt.Errorf("instance %s: %w", c.id, err)
				sayEnded(c.id, err, own, others)
			}
		}
		if others > 0 { // also beside its own: they may be between leases when those end
			served, alone = true, nil
		}
		switch {
		case own+others > 0:
		case !served:
			h.fail(fmt.Errorf("cannot go on: no instance is left; the last: %w", last))
			return
		case alone == nil:
			slog.Warn("no instance serves any more; waiting for one to join again", "limit", regainLimit)
			alone = time.After(regainLimit)
		}
		select {
		case <-changed:
		case <-h.ended:
		case <-alone:
			h.fail(fmt.Errorf("cannot go on: no instance of this process is left, and no other one has served for %s; the last here: %w", regainLimit, last))
			return
		case <-ctx.Done():
			return
		}
	}
}

// left finds the instances of this process that have ended, and counts the members of others that run requests.
func left(children []*child, members map[string]cluster.Member) (ended []*child, others int) {
	mine := map[string]bool{}
	for _, c := range children {
		mine[c.id] = true
		if c.ended() != nil {
			ended = append(ended, c)
		}
	}
	for id, m := range members {
		if !mine[id] && !m.MemoryOnly {
			others++
		}
	}
	return ended, others
}

func sayEnded(id string, err error, own, others int) {
	if err == errStopped {
		slog.Info("an instance has stopped", "instance", id, "left_here", own, "left_elsewhere", others)
		return
	}
	slog.Error("an instance ended", "instance", id, "why", err, "left_here", own, "left_elsewhere", others)
}
