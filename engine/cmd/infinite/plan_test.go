package main

import (
	"slices"
	"testing"

	"github.com/infinite-llm/infinite/engine/server"
)

// Half of a request's KV goes to an instance that idles, though no pool is short of blocks, and the answer is that of one
// instance. With plans turned off it stays.
func TestPlannedMove(t *testing.T) {
	req := body(prompt(1600, 1), 1500)
	want := serve(t, "--dtype", "float32", poolFlag(t, 400)).complete(req)
	home := func(v server.ClusterView) *server.InstanceView {
		if len(v.Requests) != 1 {
			return nil
		}
		at := slices.IndexFunc(v.Instances, func(in server.InstanceView) bool { return in.ID == v.Requests[0].Home })
		if at < 0 {
			return nil
		}
		return &v.Instances[at]
	}
	planned := func(v server.ClusterView) (moves, blocks uint64) {
		for _, in := range v.Instances {
			moves, blocks = moves+in.PlannedMoves, blocks+in.PlannedBlocks
		}
		return moves, blocks
	}
	for _, transport := range []string{"shm", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			t.Setenv(splitEnv, "1")
			h := holdSteps(t, 1)
			defer h.release()
			p := serve(t, "--dtype", "float32", "--instances", "2", "--rebalance-interval", "100ms", "--transport", transport, poolFlag(t, 400))
			s := p.stream(body(prompt(1600, 1), 1500))
			s.next()
			p.eventually("a move is planned, and waits for the step's end", func(v server.ClusterView) bool {
				in := home(v)
				return in != nil && in.PlannedMoves == 1 && in.StepModel != nil && in.StepModel.Base == 1e-3
			})
			h.release()
			sameAnswer(t, want, s.rest())
			p.eventually("its blocks were placed, and all are free again", func(v server.ClusterView) bool {
				_, blocks := planned(v)
				return blocks >= 45 && idle(v)
			})
			p.logged(`KV blocks are to move.*modelled_gain`)
			p.eventually("nobody was preempted, and nothing recomputed", func(v server.ClusterView) bool {
				return !slices.ContainsFunc(v.Instances, func(in server.InstanceView) bool { return in.Preemptions+in.Recoveries > 0 })
			})
		})
	}
	t.Run("turned off", func(t *testing.T) {
		t.Setenv(splitEnv, "1")
		p := serve(t, "--dtype", "float32", "--instances", "2", "--rebalance-interval", "0", poolFlag(t, 400))
		sameAnswer(t, want, p.complete(req))
		p.eventually("no move was planned", func(v server.ClusterView) bool {
			moves, _ := planned(v)
			return moves == 0 && idle(v)
		})
	})
}
