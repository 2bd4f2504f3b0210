package main

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"anytime/internal/decode/llamacpp"
)

// engines are the open engines, whose counters it collects.
type engines struct {
	restarts prometheus.Counter

	mu   sync.Mutex
	open map[string]*tracked // by model id
}

func newEngines() *engines {
	return &engines{
		open: map[string]*tracked{},
		restarts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "anytime_engine_restarts_total", Help: "Engine processes that died or hung and were replaced.",
		}),
	}
}

// tracked is an engine that is collected until it is closed.
type tracked struct {
	*llamacpp.Engine
	id      string
	engines *engines
}

func (e *engines) track(id string, engine *llamacpp.Engine) *tracked {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := &tracked{engine, id, e}
	e.open[id] = t
	return t
}

// Close implements decode.Engine.
func (t *tracked) Close() error {
	t.engines.mu.Lock()
	if t.engines.open[t.id] == t {
		delete(t.engines.open, t.id)
	}
	t.engines.mu.Unlock()
	return t.Engine.Close()
}

// engineMetric is one figure of llamacpp.Stats.
type engineMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(llamacpp.Stats) float64
}

func newEngineMetric(name, help string, kind prometheus.ValueType, value func(llamacpp.Stats) float64) engineMetric {
	return engineMetric{prometheus.NewDesc("anytime_engine_"+name, help, []string{"model"}, nil), kind, value}
}

var engineMetrics = []engineMetric{
	newEngineMetric("steps_total", "Batches decoded since the model was loaded.", prometheus.CounterValue, func(s llamacpp.Stats) float64 { return float64(s.Steps) }),
	newEngineMetric("batch_tokens_total", "Tokens in these batches.", prometheus.CounterValue, func(s llamacpp.Stats) float64 { return float64(s.BatchTokens) }),
	newEngineMetric("prefill_tokens_total", "Tokens of prompts, forced text and caches made again among them.", prometheus.CounterValue, func(s llamacpp.Stats) float64 { return float64(s.PrefillTokens) }),
	newEngineMetric("cached_tokens_total", "Tokens that were not decoded because a cache began the same.", prometheus.CounterValue, func(s llamacpp.Stats) float64 { return float64(s.CachedTokens) }),
	newEngineMetric("preemptions_total", "Caches taken from sequences that were not finished.", prometheus.CounterValue, func(s llamacpp.Stats) float64 { return float64(s.Preemptions) }),
	newEngineMetric("evictions_total", "Caches dropped that were kept for prompts that begin the same.", prometheus.CounterValue, func(s llamacpp.Stats) float64 { return float64(s.Evictions) }),
	newEngineMetric("sequences_running", "Sequences that decode.", prometheus.GaugeValue, func(s llamacpp.Stats) float64 { return float64(s.Running) }),
	newEngineMetric("sequences_waiting", "Sequences that wait for a slot.", prometheus.GaugeValue, func(s llamacpp.Stats) float64 { return float64(s.Waiting) }),
	newEngineMetric("cache_tokens", "KV cells in use.", prometheus.GaugeValue, func(s llamacpp.Stats) float64 { return float64(s.CacheTokens) }),
}

// Describe implements prometheus.Collector.
func (e *engines) Describe(out chan<- *prometheus.Desc) {
	e.restarts.Describe(out)
	for _, m := range engineMetrics {
		out <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (e *engines) Collect(out chan<- prometheus.Metric) {
	e.restarts.Collect(out)
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, engine := range e.open {
		stats := engine.Stats()
		for _, m := range engineMetrics {
			out <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(stats), id)
		}
	}
}
