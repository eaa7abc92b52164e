package server

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/valyala/fasthttp"
	"github.com/valyala/fasthttp/fasthttpadaptor"
)

// Metrics are the API's counters and, read at every scrape, the cluster's gauges.
type Metrics struct {
	registry   *prometheus.Registry
	running    prometheus.Gauge
	requests   *prometheus.CounterVec
	prompt     prometheus.Counter
	generation prometheus.Counter
	ttft, itl  prometheus.Histogram
}

func newMetrics(b Backend) *Metrics {
	buckets := []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120}
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		running:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "infinite_requests_in_flight", Help: "Choices being generated or queued."}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "infinite_request_success_total", Help: "Finished choices by reason."}, []string{"finished_reason"}),
		prompt:   prometheus.NewCounter(prometheus.CounterOpts{Name: "infinite_prompt_tokens_total", Help: "Prompt tokens taken."}),
		generation: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "infinite_generation_tokens_total", Help: "Tokens generated."}),
		ttft: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "infinite_time_to_first_token_seconds", Help: "From submission to the first token.", Buckets: buckets}),
		itl:  prometheus.NewHistogram(prometheus.HistogramOpts{Name: "infinite_inter_token_latency_seconds", Help: "Between two tokens of a choice.", Buckets: buckets}),
	}
	m.registry.MustRegister(m.running, m.requests, m.prompt, m.generation, m.ttft, m.itl, &clusterCollector{b})
	return m
}

func (m *Metrics) started(choices, promptTokens int) {
	m.running.Add(float64(choices))
	m.prompt.Add(float64(promptTokens))
}

func (m *Metrics) finished(choices int, reason string) {
	m.running.Sub(float64(choices))
	m.requests.WithLabelValues(reason).Add(float64(choices))
}

// token counts one token; last is the time of the one before, zero for the first.
func (m *Metrics) token(started, last time.Time) time.Time {
	now := time.Now()
	m.generation.Inc()
	if last.IsZero() {
		m.ttft.Observe(now.Sub(started).Seconds())
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

var (
	blocksDesc  = prometheus.NewDesc("infinite_kv_blocks", "KV blocks of an instance by state.", []string{"instance", "state"}, nil)
	loadDesc    = prometheus.NewDesc("infinite_instance_requests", "Requests of an instance by state.", []string{"instance", "state"}, nil)
	rateDesc    = prometheus.NewDesc("infinite_instance_tokens_per_second", "Token rate of an instance.", []string{"instance"}, nil)
	preemptDesc = prometheus.NewDesc("infinite_preemptions_total", "Requests preempted for lack of room.", []string{"instance"}, nil)
	memoryDesc  = prometheus.NewDesc("infinite_memory_bytes", "Device memory of an instance.", []string{"instance", "state"}, nil)
)

func (c *clusterCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{blocksDesc, loadDesc, rateDesc, preemptDesc, memoryDesc} {
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
	for _, in := range view.Instances {
		gauge := func(d *prometheus.Desc, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append([]string{in.ID}, labels...)...)
		}
		gauge(blocksDesc, float64(in.KVBlocksTotal), "total")
		gauge(blocksDesc, float64(in.KVBlocksFree), "free")
		gauge(blocksDesc, float64(in.KVBlocksHosted), "hosted")
		gauge(blocksDesc, float64(in.KVBlocksLent), "lent")
		gauge(loadDesc, float64(in.Running), "running")
		gauge(loadDesc, float64(in.Waiting), "waiting")
		gauge(rateDesc, in.TokensPerSecond)
		gauge(memoryDesc, float64(in.MemoryTotal), "total")
		gauge(memoryDesc, float64(in.MemoryUsed), "used")
		ch <- prometheus.MustNewConstMetric(preemptDesc, prometheus.CounterValue, float64(in.Preemptions), in.ID)
	}
}
