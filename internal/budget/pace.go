package budget

import (
	"math"
	"sync"
	"time"
)

// The estimator is that of TCP's retransmission timer (Jacobson 1988; RFC 6298): an exponentially weighted mean and mean deviation,
// of which mean + 4·deviation is the pessimistic value. It differs in five points.
//
//   - The mean has a weight of 1/4, not 1/8: when load comes, estimates must follow within a few observations.
//   - A short stretch of decoding is mostly jitter (tokens arrive in batches), so stretches are gathered into windows of 16 tokens or
//     200 ms, and a window is one observation.
//   - An observation counts as at most mean + max(mean, 4·deviation). So a single stall, however long, no more than doubles a steady
//     estimate; a slow-down that lasts is followed, 4-fold in three windows and 10-fold in five, for the deviation grows with it.
//   - The deviation counts as at least 1/16 of the mean, so that a spell of quiet does not eat the margin: it is at least 25 %.
//   - Load slows thinking and summaries alike, and now the one is observed, now the other. So both feed one estimate of a token, and
//     a summary's token is a slowly followed multiple of it; the overhead of a summary is taken to grow with the load as well.
const (
	meanWeight      = 1.0 / 4
	deviationWeight = 1.0 / 4
	pessimism       = 4.0 // deviations
	leastDeviation  = 1.0 / 16
	windowTokens    = 16
	windowTime      = 200 * time.Millisecond

	// What is below these is noise of clocks and batching, in nanoseconds.
	leastCost    = float64(time.Microsecond)
	leastOutlier = float64(time.Millisecond)

	// firstRatio is what an answer's token is taken to cost in thinking tokens at first: forks decode beside others.
	firstRatio  = 2.0
	ratioWeight = 1.0 / 8
	// mostScale bounds what a multiple may be, either way: beyond it, something was not measured but disturbed.
	mostScale = 16.0
)

// coldPace holds until something was measured: a model of 1.5B parameters on two cores. It is slow on purpose. A server that is not
// primed keeps its first deadlines by thinking less than it could.
var coldPace = Snapshot{
	Prefill:  Estimate{Mean: 20 * time.Millisecond, Deviation: 2500 * time.Microsecond},
	Thinking: Estimate{Mean: 30 * time.Millisecond, Deviation: 5 * time.Millisecond},
	Overhead: Estimate{Mean: 300 * time.Millisecond, Deviation: 50 * time.Millisecond},
}

// Estimate is a measured cost.
type Estimate struct {
	Mean         time.Duration `json:"mean_ns"`
	Deviation    time.Duration `json:"deviation_ns"` // mean absolute deviation
	Observations int           `json:"observations"` // 0: a guess
}

// Snapshot is what a Pace knows.
type Snapshot struct {
	Prefill  Estimate `json:"prefill"`  // per token
	Thinking Estimate `json:"thinking"` // per token
	Summary  Estimate `json:"summary"`  // per token after the first
	Overhead Estimate `json:"overhead"` // of a summary: from the fork to its first token, but for the prefill of its suffix
}

// Pace measures how fast one model on one engine is, and says what things will take: not on average but at worst, short of a
// mishap. Its methods may be called concurrently.
type Pace struct {
	mu       sync.Mutex
	prefill  estimator // a token
	token    estimator // a token of thinking
	overhead estimator
	load     float64 // the mean of token that overhead is for; 0 unknown

	ratio             float64 // of a summary's token to one of thinking
	thought, answered int     // windows that fed token

	prefilling, thinking, answering window
}

// NewPace starts from what was known before, such as an earlier Snapshot. Estimates without a mean start from a cautious guess;
// the first observation replaces a guess.
func NewPace(prior Snapshot) *Pace {
	p := &Pace{
		prefill:  newEstimator(prior.Prefill, coldPace.Prefill),
		token:    newEstimator(prior.Thinking, coldPace.Thinking),
		overhead: newEstimator(prior.Overhead, coldPace.Overhead),
		ratio:    firstRatio,
	}
	p.thought = p.token.observations
	if prior.Summary.Mean > 0 && prior.Summary.Observations > 0 {
		p.ratio = scale(float64(prior.Summary.Mean), p.token.mean)
		p.answered = prior.Summary.Observations
		p.token.observations += p.answered
	}
	if p.token.observations > 0 {
		p.load = p.token.mean
	}
	return p
}

// ObservePrefill records a prefill of so many tokens that no cache held.
func (p *Pace) ObservePrefill(tokens int, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if cost, full := p.prefilling.add(tokens, took); full {
		p.prefill.observe(cost)
	}
}

// ObserveThinking records a stretch of thinking.
func (p *Pace) ObserveThinking(tokens int, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	cost, full := p.thinking.add(tokens, took)
	if !full {
		return
	}
	if p.thought++; p.thought == 1 && p.answered > 0 {
		// Only summaries were seen, and what thinking costs was guessed from them: now it is known, and they stay as they are.
		unit := scale(cost, p.token.mean)
		p.token.mean *= unit
		p.token.deviation *= unit
		p.load *= unit
		p.ratio /= unit
	}
	p.token.observe(cost)
}

// ObserveSummary records a stretch of a summary, its first token not included: that is ObserveOverhead's.
func (p *Pace) ObserveSummary(tokens int, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	cost, full := p.answering.add(tokens, took)
	if !full {
		return
	}
	p.answered++
	if p.thought > 0 {
		// The guess that it starts from counts as an observation.
		ratio := min(scale(cost, p.token.mean), 4*p.ratio)
		p.ratio += max(ratioWeight, 1/float64(p.answered+1)) * (ratio - p.ratio)
	}
	p.token.observe(cost / p.ratio)
}

// ObserveOverhead records how long it took from asking for a fork to its first token, behind a suffix of so many tokens.
func (p *Pace) ObserveOverhead(suffixTokens int, took time.Duration) {
	if suffixTokens < 0 || took < 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	fixed := float64(took)
	if p.prefill.observations > 0 {
		fixed = max(0, fixed-float64(suffixTokens)*p.prefill.mean)
	}
	if p.load == 0 && p.token.observations > 0 {
		p.load = p.token.mean
	}
	p.overhead.observe(fixed / scale(p.token.mean, p.load))
}

// Prefill returns how long a prefill of so many tokens takes at worst.
func (p *Pace) Prefill(tokens int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return duration(float64(tokens) * p.prefill.worst())
}

// Thinking returns how long so many tokens of thinking take at worst.
func (p *Pace) Thinking(tokens int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return duration(float64(tokens) * p.token.worst())
}

// Summary returns how long it takes at worst to fork, close the thinking with a suffix of so many tokens, and decode an answer.
func (p *Pace) Summary(suffixTokens, answerTokens int) time.Duration {
	fixed, token := p.summaryCost(suffixTokens)
	return duration(fixed + float64(answerTokens)*token)
}

// summaryCost returns what a summary costs at worst before its first token, and for each token, in nanoseconds.
func (p *Pace) summaryCost(suffixTokens int) (fixed, token float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fixed = p.overhead.worst()*scale(p.token.mean, p.load) + float64(suffixTokens)*p.prefill.worst()
	return fixed, p.ratio * p.token.worst()
}

// Snapshot returns what is known now.
func (p *Pace) Snapshot() Snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Snapshot{
		Prefill:  p.prefill.estimate(1, p.prefill.observations),
		Thinking: p.token.estimate(1, p.thought),
		Summary:  p.token.estimate(p.ratio, p.answered),
		Overhead: p.overhead.estimate(scale(p.token.mean, p.load), p.overhead.observations),
	}
}

// scale is a multiple within its bounds; 1 where one of both is not known.
func scale(a, b float64) float64 {
	if a <= 0 || b <= 0 {
		return 1
	}
	return min(max(a/b, 1/mostScale), mostScale)
}

// window gathers stretches until they are worth an observation.
type window struct {
	tokens int
	took   time.Duration
}

// add returns the cost of a token, in nanoseconds, once the window is full.
func (w *window) add(tokens int, took time.Duration) (float64, bool) {
	if tokens <= 0 || took < 0 {
		return 0, false
	}
	w.tokens += tokens
	w.took += took
	if w.tokens < windowTokens && w.took < windowTime {
		return 0, false
	}
	cost := float64(w.took) / float64(w.tokens)
	*w = window{}
	return cost, true
}

// estimator follows one cost, in nanoseconds.
type estimator struct {
	mean, deviation float64
	observations    int
}

func newEstimator(prior, cold Estimate) estimator {
	if prior.Mean <= 0 || prior.Deviation < 0 || prior.Observations < 0 {
		prior = cold
	}
	return estimator{mean: float64(prior.Mean), deviation: float64(prior.Deviation), observations: prior.Observations}
}

func (e *estimator) observe(cost float64) {
	if e.observations++; e.observations == 1 {
		e.mean, e.deviation = cost, cost/2
		return
	}
	off := min(cost-e.mean, max(e.mean, pessimism*e.deviation, leastOutlier))
	e.deviation += deviationWeight * (math.Abs(off) - e.deviation)
	e.mean += meanWeight * off
}

func (e *estimator) worst() float64 {
	return max(leastCost, e.mean+pessimism*max(e.deviation, leastDeviation*e.mean))
}

func (e *estimator) estimate(scale float64, observations int) Estimate {
	return Estimate{Mean: duration(scale * e.mean), Deviation: duration(scale * e.deviation), Observations: observations}
}

// duration rounds nanoseconds up, and bounds them so that a few of them can be added.
func duration(ns float64) time.Duration {
	return time.Duration(math.Ceil(min(max(ns, 0), 1<<60)))
}
