package server

import (
	"context"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/valyala/fasthttp"
	"github.com/valyala/fasthttp/fasthttpadaptor"
)

// Metrics are the API's counters and, read at every scrape, the cluster's gauges. Where vLLM has the same
// figure the name is vLLM's, with infinite_ in place of vllm:.
type Metrics struct {
	registry   *prometheus.Registry
	inFlight   prometheus.Gauge
	requests   *prometheus.CounterVec
	failures   *prometheus.CounterVec
	prompt     prometheus.Counter
	generation prometheus.Counter
	ttft, itl  prometheus.Histogram
	e2e        prometheus.Histogram
	prompts    prometheus.Histogram // their lengths
	answers    prometheus.Histogram
	// parts of e2e, of choices that had a token
	queue, prefill, decode, inference prometheus.Histogram
}

// times of a choice: until its first step, from there to its first token, from there to its last.
type times struct{ queued, prefill, decode time.Duration }

func newMetrics(b Backend, cfg Config) *Metrics {
	// From a fast step of a small model to a long prompt's prefill.
	buckets := []float64{.00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300}
	lengths := lengthBuckets(cfg.MaxModelLen)
	histogram := func(name, help string, bounds []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: bounds})
	}
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "infinite_requests_in_flight", Help: "Choices being generated or queued."}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "infinite_request_success_total", Help: "Choices that ended, by reason; abort is a client that went away."}, []string{"finished_reason"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "infinite_request_failures_total", Help: "Requests for completions that were refused or failed, by the status their client was told and by endpoint; unknown for requests of any kind that broke off before their path was read."}, []string{"code", "path"}),
		prompt:     prometheus.NewCounter(prometheus.CounterOpts{Name: "infinite_prompt_tokens_total", Help: "Tokens of the prompts that instances took."}),
		generation: prometheus.NewCounter(prometheus.CounterOpts{Name: "infinite_generation_tokens_total", Help: "Tokens generated."}),
		ttft:       histogram("infinite_time_to_first_token_seconds", "From the request's arrival to a choice's first token.", buckets),
		itl:        histogram("infinite_inter_token_latency_seconds", "Between two tokens of a choice.", buckets),
		e2e:        histogram("infinite_e2e_request_latency_seconds", "From the request's arrival to the end of a choice.", buckets),
		queue:      histogram("infinite_request_queue_time_seconds", "How long a choice waited for its first step.", buckets),
		prefill:    histogram("infinite_request_prefill_time_seconds", "From a choice's arrival, less its time in the queue, to its first token.", buckets),
		decode:     histogram("infinite_request_decode_time_seconds", "From a choice's first token to its last.", buckets),
		inference:  histogram("infinite_request_inference_time_seconds", "A choice's prefill and decode.", buckets),
		prompts:    histogram("infinite_request_prompt_tokens", "Tokens of the prompt of a choice that ended.", lengths),
		answers:    histogram("infinite_request_generation_tokens", "Tokens generated for a choice that ended.", lengths),
	}
	model := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "infinite_model_info", Help: "The model that is served; 1.",
		ConstLabels: prometheus.Labels{"model_name": cfg.ModelNames[0], "max_model_len": strconv.Itoa(cfg.MaxModelLen)}})
	model.Set(1)
	m.registry.MustRegister(m.inFlight, m.requests, m.failures, m.prompt, m.generation, m.ttft, m.itl, m.e2e, m.queue, m.prefill, m.decode, m.inference, m.prompts, m.answers,
		model, &clusterCollector{b}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if k := cfg.Keeper; k != nil {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "infinite_instance_restarts_total", Help: "Instances that were started in the place of others that had died."},
			func() float64 { return float64(k.Restarts()) }))
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "infinite_instances_missing", Help: "Instances of the API process that have died and are not back yet."},
			func() float64 { return float64(k.Missing()) }))
	}
	for _, reason := range []string{"stop", "length", "abort"} {
		m.requests.WithLabelValues(reason) // a rate needs a zero to start from
	}
	return m
}

// lengthBuckets are 1, 2, 5, 10, 20 and so on up to the longest that a request may be, as vLLM has them.
func lengthBuckets(longest int) (buckets []float64) {
	for ten := 1.0; ten <= float64(longest); ten *= 10 {
		for _, n := range []float64{ten, 2 * ten, 5 * ten} {
			if n <= float64(longest) {
				buckets = append(buckets, n)
			}
		}
	}
	return buckets
}

func (m *Metrics) started(choices int) { m.inFlight.Add(float64(choices)) }

// finished counts a choice that came to its end.
func (m *Metrics) finished(reason string, arrived time.Time, t times, prompt, generated int) {
	m.inFlight.Dec()
	m.requests.WithLabelValues(reason).Inc()
	m.e2e.Observe(time.Since(arrived).Seconds())
	m.prompts.Observe(float64(prompt))
	m.answers.Observe(float64(generated))
	if generated == 0 {
		return
	}
	m.queue.Observe(t.queued.Seconds())
	m.prefill.Observe(t.prefill.Seconds())
	m.decode.Observe(t.decode.Seconds())
	m.inference.Observe((t.prefill + t.decode).Seconds())
}

// dropped counts choices that did not; gone says that their client left.
func (m *Metrics) dropped(choices int, gone bool) {
	m.inFlight.Sub(float64(choices))
	if gone {
		m.requests.WithLabelValues("abort").Add(float64(choices))
	}
}

// failed counts a request for completions at path whose client is told err.
func (m *Metrics) failed(path string, err error) {
	m.failures.WithLabelValues(strconv.Itoa(asError(err).Status), path).Inc()
}

// token counts one token; last is the time of the one before, zero for the first.
func (m *Metrics) token(arrived, last time.Time) time.Time {
	now := time.Now()
	m.generation.Inc()
	if last.IsZero() {
		m.ttft.Observe(now.Sub(arrived).Seconds())
	} else {
		m.itl.Observe(now.Sub(last).Seconds())
	}
	return now
}

func (m *Metrics) handler() fasthttp.RequestHandler {
	return fasthttpadaptor.NewFastHTTPHandler(promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
}

// clusterCollector reads the placement map at scrape time.
type clusterCollector struct{ b Backend }

func instanceDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, append([]string{"instance"}, labels...), nil)
}

var (
	runningDesc = instanceDesc("infinite_num_requests_running", "Requests that an instance runs.")
	waitingDesc = instanceDesc("infinite_num_requests_waiting", "Requests that wait on an instance.")
	usageDesc   = instanceDesc("infinite_kv_cache_usage_perc", "Share of an instance's KV blocks in use, 1 is all.")
	blocksDesc  = instanceDesc("infinite_kv_blocks", "KV blocks of an instance by state.", "state")
	rateDesc    = instanceDesc("infinite_instance_tokens_per_second", "Token rate of an instance.")
	preemptDesc = instanceDesc("infinite_num_preemptions_total", "Requests preempted for lack of room.")
	queriesDesc = instanceDesc("infinite_prefix_cache_queries_total", "Tokens of requests that began, looked for in the prefix cache.")
	hitsDesc    = instanceDesc("infinite_prefix_cache_hits_total", "Tokens of requests that began whose KV was in the prefix cache.")
	extQueries  = instanceDesc("infinite_external_prefix_cache_queries_total", "Tokens of requests that were searched for with other instances, a part of the queries.")
	draftsDesc  = instanceDesc("infinite_spec_decode_num_drafts_total", "Steps of requests that had tokens guessed ahead.")
	guessedDesc = instanceDesc("infinite_spec_decode_num_draft_tokens_total", "Tokens that were guessed ahead.")
	waveDesc    = instanceDesc("infinite_parallel_prefills_total", "Prompts of an instance's requests that several instances computed together.")
	assistDesc  = instanceDesc("infinite_parallel_prefill_assists_total", "Prompts of other instances' requests of which an instance computed a part.")
	rightDesc   = instanceDesc("infinite_spec_decode_num_accepted_tokens_total", "Guessed tokens that were right.")
	extHits     = instanceDesc("infinite_external_prefix_cache_hits_total", "Tokens of requests whose KV is used at other instances, where it lies, a part of the hits.")
	rehomedDesc = prometheus.NewDesc("infinite_num_rehomed_total", "Requests whose instance was lost or stopped, and that another one went on with.", nil, nil)
	recoverDesc = instanceDesc("infinite_num_recoveries_total", "Requests computed anew, because KV of theirs was lost with a peer.")
	plannedDesc = instanceDesc("infinite_num_planned_moves_total", "Moves of KV blocks that were planned for the cluster's token rate, and that an instance took.")
	placedDesc  = instanceDesc("infinite_kv_blocks_planned_total", "KV blocks that an instance placed with others by such moves.")
	returnDesc  = instanceDesc("infinite_kv_blocks_returned_total", "KV blocks that an instance had back from others that were about to leave.")
	modelDesc   = instanceDesc("infinite_step_model_seconds", "An instance's step time as plans reckon with it, from its own steps: base, for each token, for each token of KV read there, and for asking others.", "term")
	trafficDesc = instanceDesc("infinite_link_messages_total", "Messages of an instance's links: queries to creditors, answers to debtors, and what peers sent and was refused.", "kind")
	movedDesc   = instanceDesc("infinite_kv_blocks_moved_total", "KV blocks that an instance sent to creditors.")
	memoryDesc  = instanceDesc("infinite_memory_bytes", "Device memory of an instance.", "state")
	cacheDesc   = instanceDesc("infinite_cache_config_info", "What an instance's KV cache is made of, and where it computes; 1.", "block_size", "cache_dtype", "device")
	linksDesc   = instanceDesc("infinite_links", "Peers that an instance is connected to and may borrow KV blocks from, by transport.", "transport")
	bytesDesc   = instanceDesc("infinite_link_bytes_total", "Bytes that an instance sent: queries to creditors, answers to debtors, KV blocks to creditors.", "kind")
	servedDesc  = instanceDesc("infinite_served_batches_total", "Calls of an instance's device that computed answers to debtors, one or several at once.")
	stepsDesc   = instanceDesc("infinite_steps_total", "Steps of an instance.")
	halvedDesc  = instanceDesc("infinite_halved_steps_total", "Steps of an instance that were computed in two halves of their rows, while the other half's answers were on their way.")
	timeDesc    = instanceDesc("infinite_step_seconds_total", "Time that an instance spent in steps.")
	waitDesc    = instanceDesc("infinite_remote_wait_seconds_total", "Time of an instance's steps in which creditors' answers were waited for and merged.")
)

func (c *clusterCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{runningDesc, waitingDesc, usageDesc, blocksDesc, rateDesc, preemptDesc, recoverDesc, rehomedDesc, queriesDesc, hitsDesc, extQueries, extHits, draftsDesc, guessedDesc, rightDesc, plannedDesc, placedDesc, returnDesc, modelDesc, trafficDesc, movedDesc, memoryDesc,
		cacheDesc, linksDesc, bytesDesc, servedDesc, stepsDesc, halvedDesc, timeDesc, waitDesc} {
		ch <- d
	}
}

func (c *clusterCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, done := context.WithTimeout(context.Background(), time.Second)
	defer done()
	view, err := c.b.Cluster(ctx)
	if err != nil {
		return
	}
	ch <- prometheus.MustNewConstMetric(rehomedDesc, prometheus.CounterValue, float64(view.Rehomed))
	for _, in := range view.Instances {
		gauge := func(d *prometheus.Desc, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append([]string{in.ID}, labels...)...)
		}
		gauge(blocksDesc, float64(in.KVBlocksTotal), "total")
		gauge(blocksDesc, float64(in.KVBlocksFree), "free")
		gauge(blocksDesc, float64(in.KVBlocksCached), "cached")
		gauge(blocksDesc, float64(in.KVBlocksHosted), "hosted")
		gauge(blocksDesc, float64(in.KVBlocksLent), "lent")
		gauge(blocksDesc, float64(in.KVBlocksShared), "shared")
		gauge(usageDesc, 1-float64(in.KVBlocksFree)/float64(max(1, in.KVBlocksTotal)))
		gauge(runningDesc, float64(in.Running))
		gauge(waitingDesc, float64(in.Waiting))
		gauge(rateDesc, in.TokensPerSecond)
		gauge(memoryDesc, float64(in.MemoryTotal), "total")
		gauge(memoryDesc, float64(in.MemoryUsed), "used")
		gauge(cacheDesc, 1, strconv.Itoa(view.BlockSize), in.KVCacheDType, in.Device)
		for transport, peers := range in.Links {
			gauge(linksDesc, float64(peers), transport)
		}
		if m := in.StepModel; m != nil {
			gauge(modelDesc, m.Base, "base")
			gauge(modelDesc, m.PerToken, "token")
			gauge(modelDesc, m.PerKVToken, "kv_token")
			gauge(modelDesc, m.Remote, "remote")
		}
		counter := func(d *prometheus.Desc, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, append([]string{in.ID}, labels...)...)
		}
		counter(preemptDesc, float64(in.Preemptions))
		counter(recoverDesc, float64(in.Recoveries))
		counter(queriesDesc, float64(in.PrefixQueries))
		counter(hitsDesc, float64(in.PrefixHits))
		counter(plannedDesc, float64(in.PlannedMoves))
		counter(placedDesc, float64(in.PlannedBlocks))
		counter(returnDesc, float64(in.ReturnedBlocks))
		counter(extQueries, float64(in.SharedQueries))
		counter(extHits, float64(in.SharedHits))
		counter(draftsDesc, float64(in.Drafts))
		counter(guessedDesc, float64(in.DraftTokens))
		counter(rightDesc, float64(in.AcceptedTokens))
		counter(waveDesc, float64(in.Waves))
		counter(assistDesc, float64(in.Assists))
		counter(trafficDesc, float64(in.RemoteQueries), "queries")
		counter(trafficDesc, float64(in.RemoteAnswers), "answers")
		counter(trafficDesc, float64(in.RefusedMessages), "refused")
		counter(bytesDesc, float64(in.RemoteQueryBytes), "queries")
		counter(bytesDesc, float64(in.RemoteAnswerBytes), "answers")
		counter(bytesDesc, float64(in.KVBytesMoved), "kv_blocks")
		counter(servedDesc, float64(in.AnswerBatches))
		counter(movedDesc, float64(in.KVBlocksMoved))
		counter(stepsDesc, float64(in.Steps))
		counter(halvedDesc, float64(in.HalvedSteps))
		counter(timeDesc, in.StepSeconds)
		counter(waitDesc, in.RemoteWaitSeconds)
	}
}
