package top

import (
	"maps"
	"slices"

	"github.com/infinite-llm/infinite/engine/server"
)

// Add takes the next sample, and returns the figures at its time.
func (h *History) Add(s Sample) *Figures {
	if h.instances == nil {
		h.instances = map[string]*series{}
	}
	f := &Figures{At: s.At, GManager: name(s.View.GManager), BlockSize: count(s.View.BlockSize), Instances: []Instance{}, Requests: s.requests()}
	c := &f.Cluster
	c.Requests, c.Rehomed, c.Missing = len(s.View.Requests), count(s.View.Rehomed), count(s.View.Missing)
	c.TokensIn, c.TokensOut = h.tokens(&s)
	here := map[string]bool{}
	for _, in := range s.instances() {
		i := instance(&in)
		h.rates(&i, instancePoint(s.At, &in))
		f.Instances = append(f.Instances, i)
		here[i.ID] = true
		c.Pool.add(i.Pool)
		c.Running += i.Running
		c.Waiting += i.Waiting
		c.Preemptions += count(in.Preemptions)
		c.Recoveries += count(in.Recoveries)
		c.Waves += count(in.Waves)
	}
	c.Instances = len(f.Instances)
	maps.DeleteFunc(h.instances, func(id string, _ *series) bool { return !here[id] })
	return f
}

func instance(in *server.InstanceView) Instance {
	i := Instance{
		ID: in.ID, Device: name(in.Device), MemoryOnly: in.MemoryOnly, Pool: poolOf(in), Running: count(in.Running), Waiting: count(in.Waiting),
		TokensPerSecond: number(in.TokensPerSecond), Links: map[string]int{},
		MemoryTotal: count(in.MemoryTotal), MemoryUsed: count(in.MemoryUsed),
	}
	for _, transport := range slices.Sorted(maps.Keys(in.Links)) {
		if len(i.Links) < maxLinks {
			i.Links[name(transport)] = count(in.Links[transport])
		}
	}
	return i
}
