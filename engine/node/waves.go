package node

import (
	"context"
	"fmt"
	"slices"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/cluster"
	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/engine/model"
	"github.com/infinite-llm/infinite/engine/sched"
)

// waves resolves --prefill-context-parallel-size and --min-parallel-prefill. A window asks in which order keys lie, a GPU
// computes a step ahead of the thread that would say how far it is, and the ranks of one instance each hold a part of its
// blocks: none of them has a part in waves.
func waves(cfg config.Config, m *model.Config, place Place) sched.Waves {
	parts := cfg.PrefillContextParallelSize
	if parts == 0 {
		parts = maxWaveParts
	}
	if windowed(m) || place.OnGPU() || cfg.TensorParallelSize > 1 || cfg.MemoryOnly {
		parts = 1
	}
	tokens := cfg.MinParallelPrefill
	if tokens == 0 {
		tokens = 4 * cfg.MaxNumBatchedTokens
	}
	return sched.Waves{Parts: parts, MinTokens: tokens}
}

const maxWaveParts = 16

// windowed says that the attention of some layers has a window, and so asks in which order keys lie.
func windowed(m *model.Config) bool {
	return slices.ContainsFunc(m.SlidingWindow, func(n int) bool { return n > 0 })
}

// FormWave lets the engine form waves through the rManager; what follows lets the rManager have parts in them.
func (l lender) FormWave(f sched.Form, text engine.WaveText) {
	l.RManager.FormWave(cluster.Form{Request: f.Request, Base: f.Base, Chunk: f.Chunk, Parts: f.Parts,
		ID: text.ID, Salt: text.Salt, Text: text.Tokens, Arrival: text.Arrival})
}

func (h *home) Formed(id kvcache.RequestID, number uint32, c kvcache.Course, spans []kvcache.Span) {
	h.eng.Formed(id, engine.Formation{Number: number, Course: c, Spans: spans})
}

func (h *home) Started(id kvcache.RequestID, spans []kvcache.Span, err error) {
	h.eng.Started(id, spans, err)
}

func (h *home) Helps(tokens int) error { return h.eng.Helps(tokens) }

func (h *home) Assist(ctx context.Context, number uint32, f cluster.Form, c kvcache.Course) (kvcache.RequestID, error) {
	for _, t := range f.Text {
		if int(t) >= h.dev.Config().Vocab { // a step with it would be refused, and all that is in it
			return 0, fmt.Errorf("cannot assist with token %d, the model has %d", t, h.dev.Config().Vocab)
		}
	}
	return h.eng.Assist(ctx, engine.Assist{Number: number, Course: c,
		Text: engine.WaveText{ID: f.ID, Tokens: f.Text, Salt: f.Salt, Arrival: f.Arrival}})
}
