package head

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/infinite-llm/infinite/engine/cluster"
	"github.com/infinite-llm/infinite/engine/node"
)

// restartWindow is the time in which --max-restarts counts.
const restartWindow = 10 * time.Minute

// nameAgain is when a replacement is tried for again that could not be given a name: etcd is away, and no instance died of it.
const nameAgain = 5 * time.Second

// slot is a place at which this process keeps an instance.
type slot struct {
	*child
	place  node.Place
	former []string    // ids of those that ended here and were replaced; a name of theirs may still be in etcd
	begun  []time.Time // starts of replacements within restartWindow, oldest first
	due    time.Time   // when the next replacement starts; zero while the child runs, or will have none
	rests  bool        // that is only once there were fewer in restartWindow
	filled time.Time   // when the child was started
	joined bool        // the child became a member
	said   bool        // that the child has ended
}

// plan sets when a replacement starts: a second after the child has ended, and twice as long after every other one within
// the window; where there were as many as may be, when the window has moved on.
func (s *slot) plan(most int, now time.Time) {
	for len(s.begun) > 0 && now.Sub(s.begun[0]) >= restartWindow {
		s.begun = s.begun[1:]
	}
	s.due, s.rests = time.Time{}, false
	switch {
	case most == 0:
	case len(s.begun) >= most:
		s.due, s.rests = s.begun[0].Add(restartWindow), true
	default:
		s.due = now.Add(time.Second << min(len(s.begun), 6))
	}
}

// waits says whether a replacement will start.
func (s *slot) waits() bool { return !s.due.IsZero() }

// comes says whether that is soon, so that it is worth to wait for.
func (s *slot) comes() bool { return s.waits() && !s.rests }

// next is when something is to be done about a slot, zero: never.
func (s *slot) next() time.Time {
	if s.ended() == nil && !s.joined {
		return s.filled.Add(startLimit)
	}
	return s.due
}

// keep starts the replacements whose time has come, each under a new id, ends those that do not become members, and returns
// when it is to be called again.
func (h *Head) keep(ctx context.Context, members map[string]cluster.Member, now time.Time) (next <-chan time.Time) {
	var soonest time.Time
	for _, s := range h.slots {
		_, member := members[s.id]
		s.joined = s.joined || member
		switch {
		case s.ended() == nil && !s.joined && !now.Before(s.filled.Add(startLimit)):
			slog.Error("an instance did not join; killing it", "instance", s.id, "limit", startLimit)
			s.filled = now // the next time is for one that does not end
			_ = s.cmd.Process.Kill()
		case s.waits() && !s.due.After(now):
			h.replace(ctx, s)
		}
		if at := s.next(); !at.IsZero() && (soonest.IsZero() || at.Before(soonest)) {
			soonest = at
		}
	}
	if soonest.IsZero() {
		return nil
	}
	return time.After(time.Until(soonest))
}

// replace starts an instance in a dead one's place. One that does not start counts like one that has ended.
func (h *Head) replace(ctx context.Context, s *slot) {
	id, err := h.manager.NewID(ctx)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		s.due, s.rests = time.Now().Add(nameAgain), false
		slog.Warn("cannot name an instance; trying on", "instead_of", s.id, "error", err)
		return
	}
	former := s.id
	s.begun = append(s.begun, time.Now())
	if err = h.fill(s, id); err != nil {
		s.plan(h.cfg.MaxRestarts, time.Now())
		slog.Error("cannot start an instance anew", "instead_of", former, "error", err, "started_anew", s.again())
		return
	}
	s.former = append(s.former, former)
	h.restarts.Add(1)
}

// fill starts an instance at a slot.
func (h *Head) fill(s *slot, id string) error {
	c, err := startChild(h.cfg, s.place, h.ControlAddress(), id, func() {
		select {
		case h.ended <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return err
	}
	s.child, s.due, s.rests, s.filled, s.joined, s.said = c, time.Time{}, false, time.Now(), false, false
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
	s.plan(h.cfg.MaxRestarts, time.Now())
	slog.Error("an instance ended", "instance", s.id, "why", why, "left_here", own, "left_elsewhere", others, "started_anew", s.again())
	return why
}

// again says when a replacement starts.
func (s *slot) again() string {
	if !s.waits() {
		return "no"
	}
	in := "in " + time.Until(s.due).Round(time.Second).String()
	if s.rests {
		in += fmt.Sprintf(", after %d in %s", len(s.begun), restartWindow)
	}
	return in
}

// Restarts is how many instances were started in the place of others.
func (h *Head) Restarts() int64 { return h.restarts.Load() }

// Missing is how many instances of this process have died and are not members again.
func (h *Head) Missing() int { return int(h.missing.Load()) }

// note keeps for others what of the slots they ask.
func (h *Head) note() {
	missing, comes := 0, false
	for _, s := range h.slots {
		comes = comes || s.comes() || s.ended() == nil || !s.said && !s.told()
		if s.waits() || s.ended() == nil && !s.joined {
			missing++
		}
	}
	h.missing.Store(int64(missing))
	h.comes.Store(comes)
}
