package anytime

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts runs.
type Metrics struct {
	running        prometheus.Gauge
	runs           *prometheus.CounterVec // by how they ended
	thinking       prometheus.Counter
	summaries      prometheus.Counter
	saved          prometheus.Counter
	forced         *prometheus.CounterVec // by cause
	latency        prometheus.Histogram
	overshoot      prometheus.Histogram
	refusals       *prometheus.CounterVec // by reason
	checkpoints    prometheus.Counter
	checkpointCost prometheus.Histogram
	escapes        prometheus.Counter
}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	seconds := prometheus.ExponentialBuckets(0.001, 2, 16) // 1 ms to 33 s
	overshoots := []float64{-10, -5, -2, -1, -0.5, -0.2, -0.1, -0.05, -0.02, 0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5}
	m := &Metrics{
		running:        prometheus.NewGauge(prometheus.GaugeOpts{Name: "anytime_runs_running", Help: "Runs under way."}),
		runs:           prometheus.NewCounterVec(prometheus.CounterOpts{Name: "anytime_runs_total", Help: "Runs that ended, by how: done, or the code of their error."}, []string{"end"}),
		thinking:       prometheus.NewCounter(prometheus.CounterOpts{Name: "anytime_thinking_tokens_total", Help: "Thinking tokens decoded."}),
		summaries:      prometheus.NewCounter(prometheus.CounterOpts{Name: "anytime_summary_tokens_total", Help: "Tokens of answers decoded, checkpoints and votes included."}),
		saved:          prometheus.NewCounter(prometheus.CounterOpts{Name: "anytime_tokens_saved_total", Help: "Thinking tokens that were allowed and not needed: the thinking ended by itself, settled, or was interrupted."}),
		forced:         prometheus.NewCounterVec(prometheus.CounterOpts{Name: "anytime_forced_answers_total", Help: "Answers forced from an unfinished thought, by cause."}, []string{"cause"}),
		latency:        prometheus.NewHistogram(prometheus.HistogramOpts{Name: "anytime_forced_answer_latency_seconds", Help: "From the end of a forced thinking to the first token of its answer.", Buckets: seconds}),
		overshoot:      prometheus.NewHistogram(prometheus.HistogramOpts{Name: "anytime_deadline_overshoot_seconds", Help: "From the deadline until the reply was committed; negative: in time.", Buckets: overshoots}),
		refusals:       prometheus.NewCounterVec(prometheus.CounterOpts{Name: "anytime_refusals_total", Help: "Runs that were not admitted, by reason: deadline (it could not be met), overload (thoughts would be shorter than their floor), runs (too many)."}, []string{"reason"}),
		checkpoints:    prometheus.NewCounter(prometheus.CounterOpts{Name: "anytime_checkpoints_total", Help: "Answers taken on the way."}),
		checkpointCost: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "anytime_checkpoint_seconds", Help: "From fork to answer of a checkpoint.", Buckets: seconds}),
		escapes:        prometheus.NewCounter(prometheus.CounterOpts{Name: "anytime_escapes_total", Help: "Answers into which reasoning leaked, or that were empty, and that were closed again more firmly."}),
	}
	reg.MustRegister(m.running, m.runs, m.thinking, m.summaries, m.saved, m.forced, m.latency, m.overshoot, m.refusals, m.checkpoints, m.checkpointCost, m.escapes)
	return m
}

func (m *Metrics) started() { m.running.Inc() }

// refused counts a run that was not admitted; "" is no such reason.
func (m *Metrics) refused(reason string) {
	if reason != "" {
		m.refusals.WithLabelValues(reason).Inc()
	}
}

func (m *Metrics) overshot(by time.Duration) { m.overshoot.Observe(by.Seconds()) }

func (m *Metrics) done(r *Reply) {
	m.running.Dec()
	m.runs.WithLabelValues("done").Inc()
	m.saved.Add(float64(max(0, r.Stop.Limit-r.Usage.ThinkingTokens)))
	if r.Stop.Forced {
		m.forced.WithLabelValues(string(r.Stop.Cause)).Inc()
		if r.Timings.FirstAnswerMS > 0 {
			m.latency.Observe(r.Timings.AnswerLatencyMS / 1000)
		}
	}
}

func (m *Metrics) failed(code string) {
	m.running.Dec()
	m.runs.WithLabelValues(code).Inc()
}

func (m *Metrics) checkpoint(cost time.Duration) {
	m.checkpoints.Inc()
	m.checkpointCost.Observe(cost.Seconds())
}

func (m *Metrics) thought(tokens int) { m.thinking.Add(float64(tokens)) }

func (m *Metrics) answered(tokens int) { m.summaries.Add(float64(tokens)) }

func (m *Metrics) escaped() { m.escapes.Inc() }
