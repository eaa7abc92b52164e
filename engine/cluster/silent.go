package cluster

import (
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
)

// silence is since when calls to somebody have gone unanswered; the zero value: the last one was answered.
type silence struct{ since time.Time }

// lasts notes a call at now that was not answered, and says for how long none has been.
func (s *silence) lasts(now time.Time) time.Duration {
	if s.since.IsZero() {
		s.since = now
	}
	return time.Since(s.since)
}

func (s *silence) end() { s.since = time.Time{} }

// askEvery is how often a peer that is no member any more is asked whether it lives.
const askEvery = time.Second

// askGone asks a peer that is no member any more whether it lives. One that lost its lease alone answers, and so does
// one that stops in order; they keep their links and spans. A process that is frozen, or a host that is cut off, does
// not; its links may not tell, since nobody waits for anything over them, and what it has here would stay for ever.
// The caller holds mu.
func (r *RManager) askGone(p *peer, now time.Time) {
	if p.asking || now.Before(p.askAt) || p.session == 0 && p.serving == 0 {
		return
	}
	p.asking, p.askAt = true, now.Add(askEvery)
	r.spawn(func() {
		limited, done := r.call()
		defer done()
		// To release nothing: every instance answers that, whatever it thinks of the caller.
		_, err := p.client.ReleaseKV(limited, &pb.ReleaseKVRequest{Owner: r.cfg.ID})
		r.mu.Lock()
		defer r.mu.Unlock()
		p.asking = false
		switch code := status.Code(err); {
		case code != codes.DeadlineExceeded && code != codes.Unavailable:
			p.goneQuiet.end()
		case p.goneQuiet.lasts(now) >= deafAfter && p.gone:
			p.goneQuiet.end()
			r.dropSoon(p, fmt.Errorf("it is no member any more and answers no calls: %w", err))
		}
	})
}
