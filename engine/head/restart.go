package head

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/infinite-llm/infinite/engine/node"
)

// restartWindow is the time in which --max-restarts counts.
const restartWindow = 10 * time.Minute

// slot is a place at which this process keeps an instance.
type slot struct {
	*child
	place  node.Place
	former []string    // ids of those that ended here and were replaced; a name of theirs may still be in etcd
	begun  []time.Time // starts of replacements within restartWindow, oldest first
	due    time.Time   // when the next replacement starts; zero while the child runs, or will have no replacement
	said   bool        // that the child has ended
}

// plan sets when a replacement starts: a second after the child has ended, and twice as long after every other one within
// the window. False: there were as many as may be.
func (s *slot) plan(most int, now time.Time) bool {
	for len(s.begun) > 0 && now.Sub(s.begun[0]) >= restartWindow {
		s.begun = s.begun[1:]
	}
	if len(s.begun) >= most {
		s.due = time.Time{}
		return false
	}
	s.due = now.Add(time.Second << min(len(s.begun), 6))
	s.begun = append(s.begun, s.due)
	return true
}

// waits says whether a replacement will start.
func (s *slot) waits() bool { return !s.due.IsZero() }

// startDue starts the replacements whose time has come, each under a new id, and returns when the next one is due. What
// does not start counts like one that has ended.
func (h *Head) startDue(ctx context.Context, now time.Time) (next <-chan time.Time) {
	var soonest time.Time
	for _, s := range h.slots {
		if s.waits() && !s.due.After(now) {
			if err := h.fill(ctx, s); err != nil && ctx.Err() == nil {
				slog.Error("cannot start an instance anew", "instead_of", s.id, "error", err, "another_try", s.plan(h.cfg.MaxRestarts, time.Now()))
			}
		}
		if s.waits() && (soonest.IsZero() || s.due.Before(soonest)) {
			soonest = s.due
		}
	}
	if soonest.IsZero() {
		return nil
	}
	return time.After(time.Until(soonest))
}

// fill starts an instance at a slot.
func (h *Head) fill(ctx context.Context, s *slot) error {
	id, err := h.manager.NewID(ctx)
	if err != nil {
		return fmt.Errorf("cannot name an instance: %w", err)
	}
	c, err := startChild(h.cfg, s.place, h.ControlAddress(), id, func() {
		select {
		case h.ended <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return err
	}
	if s.child != nil {
		s.former = append(s.former, s.id)
		h.restarts.Add(1)
	}
	s.child, s.due, s.said = c, time.Time{}, false
	return nil
}

// sayEnded tells of a slot's instance that ended, and plans another one unless it was told to end.
func (h *Head) sayEnded(s *slot, own, others int) (why error) {
	s.said = true
	why = s.ended()
	if errors.Is(why, errStopped) {
		slog.Info("an instance has stopped", "instance", s.id, "left_here", own, "left_elsewhere", others)
		return why
	}
	again := "no"
	if s.plan(h.cfg.MaxRestarts, time.Now()) {
		again = "in " + time.Until(s.due).Round(time.Second).String()
	} else if h.cfg.MaxRestarts > 0 {
		again = fmt.Sprintf("no: there were %d in %s", len(s.begun), restartWindow)
	}
	slog.Error("an instance ended", "instance", s.id, "why", why, "left_here", own, "left_elsewhere", others, "started_anew", again)
	return why
}
