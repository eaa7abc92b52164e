package main

import (
	"slices"
	"syscall"
	"testing"

	"github.com/infinite-llm/infinite/engine/server"
)

// An instance that lends its memory alone holds KV of prompts that no other one has room for, and computes attention over
// it; it is no request's home. What was asked before is found there. It ends when nobody needs it any more.
func TestMemoryOnly(t *testing.T) {
	whole := serve(t, "--dtype", "float32", "--no-enable-prefix-caching", poolFlag(t, 200))
	for _, transport := range []string{"shm", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			h := holdSteps(t, 1)
			defer h.release()
			p := serve(t, "--dtype", "float32", "--transport", transport, "--min-shared-prefix", "64", poolFlag(t, 40))
			log := &process{t: t}
			keeper := command("serve", "--join", p.join, "--memory-only", "--dtype", "float32", "--transport", transport, "--instance-id", "m", "--threads", "1", poolFlag(t, 160))
			startBeside(t, keeper, log)
			p.instances(2)
			lends := func(in server.InstanceView) bool { return in.ID == "m" && in.MemoryOnly && in.Steps == 0 && in.Running == 0 }

			long := p.stream(body(prompt(2000, 1), 60))
			long.next()
			p.eventually("most of it lies where memory is lent", func(v server.ClusterView) bool {
				return slices.ContainsFunc(v.Instances, func(in server.InstanceView) bool { return lends(in) && in.KVBlocksHosted > 80 && in.RemoteAnswers > 0 })
			})
			// It is told to end, and waits for the request.
			if err := keeper.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			p.instances(1)
			h.release()
			sameAnswer(t, whole.complete(body(prompt(2000, 1), 60)), long.rest())
			if err := keeper.Wait(); err != nil {
				t.Errorf("it did not end well: %v\n%s", err, log.logs())
			}
			p.eventually("all blocks free, nothing computed anew", func(v server.ClusterView) bool {
				return idle(v) && len(v.Instances) == 1 && v.Instances[0].Recoveries == 0
			})

			again := command("serve", "--join", p.join, "--memory-only", "--dtype", "float32", "--transport", transport, "--instance-id", "m", "--threads", "1", poolFlag(t, 160))
			startBeside(t, again, &process{t: t})
			p.instances(2)
			for i := range 3 {
				req := body(append(prompt(2000, 2), 30+i), 20)
				got := p.complete(req)
				sameAnswer(t, whole.complete(req), got)
				if i > 0 && got.cached < 1800 {
					t.Errorf("KV of %d of 2,000 tokens was there", got.cached)
				}
				p.eventually("all blocks free", idle)
			}
			// Many at once, each of which would go where there is most room.
			var streams []*stream
			for i := range 8 {
				streams = append(streams, p.stream(body(prompt(60, 10+i), 20)))
			}
			for i, s := range streams {
				sameAnswer(t, whole.complete(body(prompt(60, 10+i), 20)), s.rest())
			}
			p.eventually("they ran elsewhere", func(v server.ClusterView) bool { return slices.ContainsFunc(v.Instances, lends) && idle(v) })
		})
	}
}
