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

// watchInstances says of each instance of this process that it ended, and what is left, and starts others in their place,
// until ctx ends. When nobody is left who could serve, and none will be started, this process cannot go on, and whoever
// watches over it should hear of that.
func (h *Head) watchInstances(ctx context.Context) {
	last := errStopped // why the last instance of this process ended
	served := false
	var alone <-chan time.Time
	for {
		members, changed := h.manager.Directory().Members()
		due := h.keep(ctx, members, time.Now())
		own, others := left(h.slots, members)
		fresh := false
		for _, s := range h.slots {
			if s.ended() != nil && !s.said && !s.told() {
				last, fresh = fmt.Errorf("instance %s: %w", s.id, h.sayEnded(s, own, others)), true
			}
		}
		if h.note(); fresh {
			continue // what was planned for them is to be waited for
		}
		served = served || others > 0 // also beside its own: they may be between leases when those end
		switch {
		case own+others > 0 || h.comes.Load(): // also after a wait
			alone = nil
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
		case <-due:
		case <-alone:
			h.fail(fmt.Errorf("cannot go on: no instance of this process is left, and no other one has served for %s; the last here: %w", regainLimit, last))
			return
		case <-ctx.Done():
			return
		}
	}
}

// left counts the instances of this process that run, and the members of others that run requests.
func left(slots []*slot, members map[string]cluster.Member) (own, others int) {
	mine := map[string]bool{}
	for _, s := range slots {
		mine[s.id] = true
		for _, id := range s.former {
			mine[id] = true
		}
		if s.ended() == nil {
			own++
		}
	}
	for id, m := range members {
		if !mine[id] && !m.MemoryOnly {
			others++
		}
	}
	return own, others
}
