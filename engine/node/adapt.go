package node

import (
	"log/slog"
	"time"

	"github.com/infinite-llm/infinite/engine"
	"github.com/infinite-llm/infinite/engine/cluster"
	pb "github.com/infinite-llm/infinite/engine/cluster/clusterpb"
	"github.com/infinite-llm/infinite/engine/config"
	"github.com/infinite-llm/infinite/engine/device"
	"github.com/infinite-llm/infinite/engine/kvcache"
	"github.com/infinite-llm/infinite/engine/model"
	"github.com/infinite-llm/infinite/engine/plan"
	"github.com/infinite-llm/infinite/engine/sched"
)

// Limits that no flag sets.
const stepTimeout = 10 * time.Minute

// StepFlags go into every step. Only tests set them, before Start: batch.FlagEmptyRemote is the negative
// control of exactness.
var StepFlags uint32

// StepDevice makes the device of the step loop. Only tests set it, before Start, to hold steps up.
var StepDevice = func(d *device.Device) engine.Device { return d }

// StepModel takes the place of what an instance measures. Only tests set it, before Start: what a test machine measures is
// not the same twice.
var StepModel *plan.Model

func (n *Node) engineConfig(m *model.Model, place Place) engine.Config {
	return engine.Config{
		Sched: sched.Config{
			MaxNumSeqs: n.cfg.MaxNumSeqs, MaxBatchedTokens: n.cfg.MaxNumBatchedTokens, MaxRows: n.cfg.MaxNumBatchedTokens,
			MaxModelLen: n.cfg.MaxModelLen, MaxWaiting: n.cfg.MaxNumWaiting, MinShared: minShared(n.cfg, place.OnGPU()),
			Waves: n.waves,
		},
		EOS: m.Config.EOS, PeerTimeout: n.cfg.PeerTimeout, StepTimeout: stepTimeout, StepFlags: StepFlags,
		PrefixCaching: n.cfg.EnablePrefixCaching, Guides: newGuides(n.cfg.Model, m.Config), Speculation: speculation(n.cfg),
	}
}

func speculation(cfg config.Config) engine.Speculation {
	s, _ := config.ParseSpeculative(cfg.SpeculativeConfig) // Validate has read it
	return engine.Speculation{Tokens: s.Tokens, MinMatch: s.LookupMin, MaxMatch: s.LookupMax}
}

// minShared resolves --min-shared-prefix. A shared prefix saves computing it once, and costs a round trip a layer in each
// step that uses it: on a GPU computing is cheap, and steps are short.
func minShared(cfg config.Config, onGPU bool) int {
	switch {
	case cfg.MinSharedPrefix < 0 || !cfg.EnablePrefixCaching:
		return 0 // nobody is asked
	case cfg.MinSharedPrefix > 0:
		return cfg.MinSharedPrefix
	case onGPU:
		return 8192
	}
	return 512
}

// lender lets the engine borrow through the rManager.
type lender struct{ *cluster.RManager }

func (l lender) Offload(o sched.Offload) { l.RManager.Offload(o.Request, o.Blocks, o.To) }

func (l lender) Return(x sched.Return) { l.RManager.Return(x.Request, x.From, x.Blocks) }

func (l lender) Search(s sched.Search) { l.RManager.Search(s.Request, s.Keys, s.Near) }

// View is the cluster's as it is: fields that differ would not compile.
func (l lender) View() sched.View { return sched.View(l.RManager.View()) }

// moves adapts the device's moves.
type moves struct{ *device.Device }

func (m moves) MoveWait(timeout time.Duration) (ticket uint64, result error, ok bool, err error) {
	done, ok, err := m.Device.MoveWait(timeout)
	return done.Ticket, done.Err, ok, err
}

// pool is what every instance tells of its memory and its device.
type pool struct {
	kv      *kvcache.Manager
	dev     *device.Device
	id      string
	memory  func() *pb.Memory
	refused refusals
}

// home lets the rManager report to the engine.
type home struct {
	pool
	eng       *engine.Engine
	maxSeqs   int
	layers    int
	roundTrip func() time.Duration // to the farthest peer, of a short message
}

// refusals decides when refused messages are worth a line in the log: a peer may send thousands a second.
type refusals struct {
	told uint64    // messages that were logged
	next time.Time // the earliest time of the next line
}

const refusalsEvery = 10 * time.Second

// look returns how many are to be logged now.
func (r *refusals) look(total uint64, now time.Time) (n uint64) {
	if total == r.told || now.Before(r.next) {
		return 0
	}
	n, r.told, r.next = total-r.told, total, now.Add(refusalsEvery)
	return n
}

// Moved passes on what is the engine's as it is: fields that differ would not compile.
func (h *home) Moved(o cluster.Outcome) { h.eng.Moved(engine.MoveResult(o)) }

func (h *home) Found(id kvcache.RequestID, f []kvcache.Found) { h.eng.Found(id, f) }

func (h *home) PeerLost(instance string) { h.eng.PeerLost(instance) }

func (h *home) Place(number kvcache.RequestID, id, to string, blocks int) error {
	return h.eng.Place(engine.Placing{Request: number, ID: id, To: to, Blocks: blocks})
}

// load is the heartbeat's part that every instance has.
func (p *pool) load() *pb.Load {
	c, d := p.kv.Counts(), p.dev.Stats()
	if n := p.refused.look(d.RefusedMessages, time.Now()); n > 0 {
		slog.Warn("messages of peers were refused", "count", n, "since_start", d.RefusedMessages)
	}
	return &pb.Load{
		KvBlocksTotal: uint32(c.Total), KvBlocksFree: uint32(c.Free), KvBlocksHosted: uint32(c.Hosted), KvBlocksLent: uint32(c.Lent),
		KvBlocksCached: uint32(c.Cached), KvBlocksShared: uint32(c.Shared), Memory: p.memory(),
		Traffic: &pb.Traffic{Queries: d.QueryMessages, Answers: d.ServedMessages, MovedBlocks: d.MovedBlocks, MovedBytes: d.MovedBytes,
			Refused: d.RefusedMessages, QueryBytes: d.QueryBytes, AnswerBytes: d.ServedBytes, AnswerBatches: d.ServedBatches},
		Work: &pb.Work{Steps: d.Steps, StepNs: d.StepNs, RemoteWaitNs: d.RemoteWaitNs, HalvedSteps: d.HalvedSteps},
	}
}

// due is how many blocks of a pool its requests will take for the tokens that they have: a prompt takes them step by step,
// and one that was preempted takes them again. What never began is still the router's to count. What a request needs beyond
// the pool lies with others.
func due(requests []engine.RequestInfo, blockSize, total int) int {
	n := 0
	for _, r := range requests {
		if !r.Begun || r.InWave {
			continue
		}
		missing := (r.Tokens+blockSize-1)/blockSize - r.Local
		for _, s := range r.Spans {
			missing -= s.Blocks
		}
		n += max(0, min(missing, total-r.Local))
	}
	return min(n, total)
}

// Report is what the heartbeat carries.
func (h *home) Report() (*pb.Load, []*pb.Placement) {
	s, requests, load := h.eng.Stats(), h.eng.Requests(), h.load()
	load.Running, load.TokensPerSecond = uint32(s.Running), s.TokensPerSecond
	load.Waiting = uint32(max(0, len(requests)-s.Running)) // also those that the step loop has not seen yet
	load.KvBlocksDue = uint32(due(requests, h.kv.BlockSize(), h.kv.Total()))
	load.Preemptions, load.Recoveries = s.Preemptions, s.Recoveries
	load.PrefixQueries, load.PrefixHits, load.SharedQueries, load.SharedHits = s.PrefixQueries, s.PrefixHits, s.SharedQueries, s.SharedHits
	load.Drafts, load.DraftTokens, load.AcceptedTokens = s.Drafts, s.DraftTokens, s.AcceptedTokens
	load.Waves, load.Assists = s.Waves, s.Assists
	load.MaxNumSeqs, load.PlannedMoves, load.PlannedBlocks, load.ReturnedBlocks = uint32(h.maxSeqs), s.PlannedMoves, s.PlannedBlocks, s.ReturnedBlocks
	m, ok := h.eng.Model()
	if m.Remote == 0 {
		// The first steps that ask a creditor will tell; until then no link is taken for better than it was measured.
		m.Remote = max(m.Base/2, float64(h.layers)*float64(h.roundTrip()))
	}
	if StepModel != nil {
		m, ok = *StepModel, true
	}
	if ok {
		load.Model = &pb.Model{BaseNs: m.Base, PerTokenNs: m.PerToken, PerKvNs: m.PerKV, RemoteNs: m.Remote}
	}
	var places []*pb.Placement
	for _, r := range requests {
		p := &pb.Placement{Id: r.ID, Tokens: uint32(r.Tokens), Arrival: r.Arrival, Number: uint64(r.Request), Movable: uint32(r.Movable),
			Planned: uint32(r.Planned), PlannedTo: r.PlannedTo, Running: r.Running}
		for _, span := range r.Spans {
			p.Spans = append(p.Spans, &pb.Span{Instance: span.Instance, Blocks: uint32(span.Blocks)})
		}
		if r.Local > 0 {
			p.Spans = append(p.Spans, &pb.Span{Instance: h.id, Blocks: uint32(r.Local)})
		}
		places = append(places, p)
	}
	return load, places
}
