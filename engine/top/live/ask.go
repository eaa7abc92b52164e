package live

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/infinite-llm/infinite/engine/openai"
	"github.com/infinite-llm/infinite/engine/top"
)

const (
	// askTime is how long an answer may take; then the server is away.
	askTime = 5 * time.Second
	// maxMetrics is how much of /metrics is read, in bytes.
	maxMetrics = 16 << 20
)

// Server asks a server's API.
type Server struct{ Client *openai.Client }

// Ask is what the server says now. Without /metrics, which something between may keep back, there is no rate of tokens.
func (s *Server) Ask(ctx context.Context) (top.Sample, error) {
	ctx, done := context.WithTimeout(ctx, askTime)
	defer done()
	var sample top.Sample
	if err := s.Client.Get(ctx, "/cluster", &sample.View); err != nil {
		return sample, fmt.Errorf("cannot look at the cluster: %w", err)
	}
	sample.At = time.Now()
	resp, err := s.Client.Do(ctx, http.MethodGet, "/metrics", nil)
	if err != nil {
		return sample, nil
	}
	defer func() { _ = resp.Body.Close() }()
	if t, err := top.ReadTokens(io.LimitReader(resp.Body, maxMetrics)); err == nil {
		sample.Tokens = t
	}
	return sample, nil
}
