package server

import (
	"context"
	"errors"
	"time"
)

// A request may have more choices than there are places. It hands over its share, and the rest as these end: the queues
// are for others too, who hear 429 where they are full.
const (
	feedPause = time.Second // each lets one more choice be under way, after the queues were full
	feedEnds  = 8           // and so do as many choices that end
)

// feed is how far a plan's choices are handed over.
type feed struct {
	began time.Time
	taken int // jobs that the backend has, or had
	under int // of them, those that have not ended
	most  int // that may be under way
	share int // that ever may
	ends  int
}

// yield leaves a quarter of what the plan had when the queues were full to others.
func (f *feed) yield() { f.most = max(1, f.under-f.under/4) }

// wait waits until one choice has ended, or for a pause.
func (f *feed) wait(ctx context.Context, ended <-chan struct{}, pause <-chan time.Time) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-ended:
		f.under--
		if f.ends++; f.ends%feedEnds > 0 {
			return nil
		}
	case <-pause:
	}
	f.most = min(f.share, f.most+1)
	return nil
}

// hand gives the backend a job.
func (s *Server) hand(ctx context.Context, p *plan, j *job) (err error) {
	defer recovered(&err)
	stream, err := s.backend.Submit(ctx, j.req)
	if err != nil {
		return err
	}
	j.stream = stream
	p.feed.taken, p.feed.under = p.feed.taken+1, p.feed.under+1
	if j.first {
		s.metrics.prompt.Add(float64(len(j.req.Prompt)))
	}
	return nil
}

// isFull tells whether a request was refused for the moment alone.
func isFull(err error) bool {
	var kind interface{ Kind() string }
	return errors.As(err, &kind) && kind.Kind() == KindQueueFull
}

// submit hands over the first of a plan's jobs: its share of them, as many as find a place, or none.
func (s *Server) submit(ctx context.Context, p *plan) error {
	share := len(p.jobs)
	if s.cfg.Share > 0 {
		share = min(share, s.cfg.Share)
	}
	p.feed = feed{began: time.Now(), most: share, share: share}
	for _, j := range p.jobs[:share] {
		err := s.hand(ctx, p, j)
		if p.feed.taken > 0 && isFull(err) {
			p.feed.yield()
			return nil
		}
		if err != nil {
			p.giveUp()
			return err
		}
	}
	return nil
}

// giveUp ends the jobs that were handed over, which nobody reads.
func (p *plan) giveUp() {
	for _, j := range p.jobs[:p.feed.taken] {
		j.stream.Close()
	}
}

// feedRest hands over the jobs that submit has left, and calls start with each. It returns why one was refused for good.
func (s *Server) feedRest(ctx context.Context, p *plan, ended <-chan struct{}, start func(*job)) error {
	f := &p.feed
	pause := time.NewTicker(feedPause)
	defer pause.Stop()
	for _, j := range p.jobs[f.taken:] {
		for full := false; ; full = true {
			for ; full || f.under >= f.most; full = false {
				if err := f.wait(ctx, ended, pause.C); err != nil {
					return err
				}
			}
			j.waited = time.Since(f.began)
			err := s.hand(ctx, p, j)
			if err == nil {
				break
			}
			if !isFull(err) {
				return err
			}
			f.yield()
		}
		start(j)
	}
	return nil
}
