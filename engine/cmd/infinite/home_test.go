package main

import (
	"slices"
	"syscall"
	"testing"

	"github.com/infinite-llm/infinite/engine/server"
)

// An instance that is told to end gives back what requests of others have with it, as soon as these have room at home: it
// ends long before they do, and none is computed anew.
func TestKVComesHome(t *testing.T) {
	// Both run where most is free. Together they have more than their home's 140 blocks; when the second has ended there is room for all of the first.
	first, second := func() map[string]any { return body(prompt(1600, 1), 600) }, body(prompt(800, 2), 60)
	whole := serve(t, "--dtype", "float32", "--no-enable-prefix-caching", poolFlag(t, 400))
	wantFirst, wantSecond := whole.complete(first()), whole.complete(second)
	for name, flags := range map[string][]string{
		"shm": {"--transport", "shm"}, "tcp": {"--transport", "tcp"}, "memory alone": {"--transport", "tcp", "--memory-only"},
	} {
		t.Run(name, func(t *testing.T) {
			p := serve(t, append([]string{"--dtype", "float32", poolFlag(t, 140)}, flags[:2]...)...)
			log := &process{t: t}
			other := command(append([]string{"serve", "--join", p.join, "--dtype", "float32", "--instance-id", "j", "--threads", "1", poolFlag(t, 36)}, flags...)...)
			startBeside(t, other, log)
			p.instances(2)
			long := p.stream(first())
			long.next()
			sameAnswer(t, wantSecond, p.complete(second))
			p.eventually("some lies with the other", func(v server.ClusterView) bool {
				return slices.ContainsFunc(v.Instances, func(in server.InstanceView) bool { return in.ID == "j" && in.KVBlocksHosted > 0 })
			})
			if err := other.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if err := other.Wait(); err != nil {
				t.Errorf("it did not end well: %v\n%s", err, log.logs())
			}
			p.eventually("it came home", func(v server.ClusterView) bool {
				return len(v.Instances) == 1 && v.Instances[0].ReturnedBlocks > 0 && v.Instances[0].KVBlocksLent == 0
			})
			sameAnswer(t, wantFirst, long.rest())
			p.eventually("all blocks free, nothing computed anew", func(v server.ClusterView) bool {
				return idle(v) && v.Instances[0].Recoveries == 0
			})
		})
	}
}
