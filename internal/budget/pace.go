package budget

import (
	"math"
	"math/bits"
	"sync"
	"time"
)

// The estimator is that of TCP's retransmission timer (Jacobson 1988; RFC 6298): an exponentially weighted mean and mean deviation,
// of which mean + 4·deviation is the pessimistic value. It differs in six points.
//
//   - The mean has a weight of 1/4, not 1/8: when load comes, estimates must follow within a few observations.
//   - A short stretch of decoding is mostly jitter (tokens arrive in batches), so stretches are gathered into windows of 16 tokens or
//     200 ms, and a window is one observation.
//   - An observation counts as at most mean + max(mean, 4·deviation). So a single stall, however long, no more than doubles a steady
//     estimate; a slow-down that lasts is followed, 4-fold in three windows and 10-fold in five, for the deviation grows with it.
//   - The deviation counts as at least 1/16 of the mean, so that a spell of quiet does not eat the margin: it is at least 25 %.
//   - Load slows thinking and summaries alike, and now the one is observed, now the other. So both feed one estimate of a token, and
//     a summary's token is a slowly followed multiple of it; the overhead of a summary is taken to grow with the load as well.
//   - What load will be is known before it is felt: SetLoad tells how many sequences share the engine. Costs are kept as those of a
//     sequence alone; what each further one adds is learned, see crowding.
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
	// mostStep is the most of a prefill that may be put down to the step.
	mostStep = 0.75

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

// Snapshot is what a Pace knows: costs of a sequence that has the engine to itself.
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
	basis    float64 // the mean of token that overhead is for; 0 unknown

	ratio             float64 // of a summary's token to one of thinking
	thought, answered int     // windows that fed token

	thinkers, answerers float64 // sequences that share the engine now with a thought, with an answer; at least 1
	crowd, prefilled    crowding
	margin              float64 // by which reserves are stretched

	prefilling, thinking, answering window
	first                           int       // tokens of the first prefill, from which a step is still to be taken off; 0: none
	fresh                           estimator // share of a prompt that no cache holds
}

// NewPace starts from what was known before, such as an earlier Snapshot. Estimates without a mean start from a cautious guess;
// the first observation replaces a guess.
func NewPace(prior Snapshot) *Pace {
	p := &Pace{
		prefill:  newEstimator(prior.Prefill, coldPace.Prefill),
		token:    newEstimator(prior.Thinking, coldPace.Thinking),
		overhead: newEstimator(prior.Overhead, coldPace.Overhead),
		ratio:    firstRatio,
		thinkers: 1, answerers: 1,
		margin: 1,
		crowd:  crowding{prior: 0.4}, // a small model on two cores
		// Steps bring a chunk of prefill each and are longer where others decode, but most of a step is the chunk.
		prefilled: crowding{prior: 0.1},
	}
	p.thought = p.token.observations
	if prior.Summary.Mean > 0 && prior.Summary.Observations > 0 {
		p.ratio = scale(float64(prior.Summary.Mean), p.token.mean)
		p.answered = prior.Summary.Observations
		p.token.observations += p.answered
	}
	if p.token.observations > 0 {
		p.basis = p.token.mean
	}
	return p
}

// ObservePrefill records a prefill of so many tokens that no cache held. A step that brought a token alone would have taken its time as
// well: what a token of prefill costs is what the step took longer. Else what a few tokens cost would be far too much for many.
func (p *Pace) ObservePrefill(tokens int, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.thought > 0 {
		took -= time.Duration(min(p.token.mean*p.crowd.factor(p.thinkers), mostStep*float64(took)))
	} else if p.prefill.observations == 0 {
		p.first = tokens
	}
	if cost, load, full := p.prefilling.add(tokens, took, p.thinkers); full {
		p.prefill.observe(p.prefilled.alone(load, cost))
	}
}

// ObserveThinking records a stretch of thinking.
func (p *Pace) ObserveThinking(tokens int, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	cost, load, full := p.thinking.add(tokens, took, p.thinkers)
	if !full {
		return
	}
	cost = p.crowd.alone(load, cost)
	if p.first > 0 {
		off := min(cost/float64(p.first), mostStep*p.prefill.mean)
		p.prefill.mean, p.prefill.deviation = p.prefill.mean-off, max(0, p.prefill.deviation-off/2)
		p.first = 0
	}
	if p.thought++; p.thought == 1 && p.answered > 0 {
		// Only summaries were seen, and what thinking costs was guessed from them: now it is known, and they stay as they are.
		unit := scale(cost, p.token.mean)
		p.token.mean *= unit
		p.token.deviation *= unit
		p.basis *= unit
		p.ratio /= unit
	}
	p.token.observe(cost)
}

// ObserveSummary records a stretch of a summary, its first token not included: that is ObserveOverhead's.
func (p *Pace) ObserveSummary(tokens int, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	cost, load, full := p.answering.add(tokens, took, p.answerers)
	if !full {
		return
	}
	cost /= p.crowd.factor(load)
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
	if p.prefill.observations > 0 && suffixTokens > 0 {
		beside := p.prefilled.factor(p.answerers)
		fixed -= float64(suffixTokens) * p.prefill.mean * beside
		if fixed < 0 { // then it was not the prefill that was thought to take so long
			p.prefill.observe((1 - mostStep/2) * float64(took) / float64(suffixTokens) / beside)
			fixed = mostStep / 2 * float64(took)
		}
	}
	fixed /= p.crowd.factor(p.answerers)
	if p.basis == 0 && p.token.observations > 0 {
		p.basis = p.token.mean
	}
	p.overhead.observe(fixed / scale(p.token.mean, p.basis))
}

// ObserveCached records how much of a prompt a cache held.
func (p *Pace) ObserveCached(cached, tokens int) {
	if tokens <= 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fresh.observe(float64(tokens-min(cached, tokens)) / float64(tokens))
}

// Fresh returns how many tokens of a prompt no cache will hold, at worst: prompts tend to begin alike.
func (p *Pace) Fresh(tokens int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fresh.observations == 0 {
		return tokens
	}
	share := p.fresh.mean + pessimism*max(p.fresh.deviation, leastDeviation)
	return int(math.Ceil(float64(tokens) * min(share, 1)))
}

// SetLoad tells how many sequences a thought, and an answer, shares the engine with from now on, itself included. What was observed is
// taken to have been so until now.
func (p *Pace) SetLoad(thought, answer float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.thinkers, p.answerers = max(1, thought), max(1, answer)
}

// ObserveReserve records whether a deadline's reserve sufficed for a whole answer. Reserves are stretched until all but one in a
// hundred do (a stochastic approximation of that quantile, in the logarithm; Robbins and Monro 1951).
func (p *Pace) ObserveReserve(sufficed bool) {
	const step, misses, most = 0.15, 0.01, 3
	p.mu.Lock()
	defer p.mu.Unlock()
	if sufficed {
		p.margin = max(1, p.margin*math.Exp(-step*misses/(1-misses)))
	} else {
		p.margin = min(most, p.margin*math.Exp(step))
	}
}

// Measured reports whether thinking and answers were seen, so that what this Pace says is not a guess.
func (p *Pace) Measured() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.thought > 0 && p.answered > 0 && p.overhead.observations > 0
}

// Slowdown returns how many times as long as alone a token of thinking takes where so many sequences share the engine.
func (p *Pace) Slowdown(sequences float64) float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.crowd.factor(sequences)
}

// Alone returns how long a token of thinking takes on average where nothing else shares the engine.
func (p *Pace) Alone() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return duration(max(leastCost, p.token.mean))
}

// Prefill returns how long a prefill of so many tokens takes at worst.
func (p *Pace) Prefill(tokens int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return duration(float64(tokens)*p.prefillCost(p.thinkers) + p.step())
}

// step is what a step takes besides what is prefilled in it; it counts once thinking was seen.
func (p *Pace) step() float64 {
	if p.thought == 0 {
		return 0
	}
	return p.token.worst() * p.crowd.factor(p.thinkers)
}

// Thinking returns how long so many tokens of thinking take at worst.
func (p *Pace) Thinking(tokens int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return duration(float64(tokens) * p.token.worst() * p.crowd.factor(p.thinkers))
}

// Summary returns how long it takes at worst to fork, close the thinking with a suffix of so many tokens, and decode an answer.
func (p *Pace) Summary(suffixTokens, answerTokens int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return duration(p.summaryCost(p.answerers, suffixTokens, answerTokens))
}

// reserve returns how long an answer takes from the token of thinking under way to its last one, in the company that it will have: what it
// takes on average and so many deviations. What it is made of does not go wrong all at once, so deviations add up as squares do.
func (p *Pace) reserve(suffixTokens, answerTokens int, c Company, deviations float64) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	answers, beside, rounds := p.crowd.factor(c.Answer), p.prefilled.factor(c.Answer), float64(1+c.Rounds)
	mean, variance := 0.0, 0.0
	for _, part := range []struct {
		*estimator
		times float64
	}{
		{&p.overhead, rounds * answers * scale(p.token.mean, p.basis)},
		{&p.prefill, (rounds*float64(suffixTokens) + float64(c.Prefill)) * beside},
		{&p.token, rounds*answers*float64(answerTokens)*p.ratio + p.crowd.factor(p.thinkers)},
	} {
		mean += part.times * max(leastCost, part.mean)
		variance += math.Pow(part.times*max(part.deviation, leastDeviation*part.mean), 2)
	}
	return duration(p.margin * (mean + deviations*math.Sqrt(variance)))
}

func (p *Pace) prefillCost(sequences float64) float64 {
	return p.prefill.worst() * p.prefilled.factor(sequences)
}

func (p *Pace) summaryCost(answerers float64, suffixTokens, answerTokens int) float64 {
	crowd := p.crowd.factor(answerers)
	return p.overhead.worst()*scale(p.token.mean, p.basis)*crowd + float64(suffixTokens)*p.prefillCost(answerers) +
		float64(answerTokens)*p.ratio*p.token.worst()*crowd
}

// Snapshot returns what is known now.
func (p *Pace) Snapshot() Snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Snapshot{
		Prefill:  p.prefill.estimate(1, p.prefill.observations),
		Thinking: p.token.estimate(1, p.thought),
		Summary:  p.token.estimate(p.ratio, p.answered),
		Overhead: p.overhead.estimate(scale(p.token.mean, p.basis), p.overhead.observations),
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
	shared float64 // sequences that shared the engine, times the time that they did
}

// add returns the cost of a token, in nanoseconds, once the window is full, and how many sequences shared the engine meanwhile.
func (w *window) add(tokens int, took time.Duration, sequences float64) (cost, load float64, full bool) {
	if tokens <= 0 || took < 0 {
		return 0, 0, false
	}
	w.tokens += tokens
	w.took += took
	w.shared += float64(took) * sequences
	if w.tokens < windowTokens && w.took < windowTime {
		return 0, 0, false
	}
	cost, load = float64(w.took)/float64(w.tokens), sequences
	if w.took > 0 {
		load = w.shared / float64(w.took)
	}
	*w = window{}
	return cost, load, true
}

// crowding learns what sharing the engine costs: n sequences together are taken to be 1 + slope·(n-1) times as slow each as one
// alone, slope from 0 (a batch is free) to 1 (as good as one after another). It is the line of least squares through what was seen of
// loads of different orders of magnitude, each of which counts the same however often it was seen, so that a load that lasts does not
// wipe out what is known of others. The line is drawn to prior by as much as a spread of half a sequence weighs.
type crowding struct {
	prior      float64
	load, cost [crowdingLoads]float64 // means of 1, 2 to 3, 4 to 7, … sequences
	seen       [crowdingLoads]int
}

const (
	crowdingLoads  = 8
	crowdingFade   = 1.0 / 32
	crowdingSpread = 1.0 / 4
)

// factor is how many times as slow as alone n sequences are.
func (c *crowding) factor(n float64) float64 { return 1 + c.slope()*max(0, n-1) }

func (c *crowding) slope() float64 {
	var n, others, cost, variance, covariance float64
	for i, seen := range c.seen {
		if seen > 0 {
			n++
			others += (c.load[i] - 1 - others) / n
			cost += (c.cost[i] - cost) / n
		}
	}
	alone := cost / (1 + c.prior*others)
	if n == 0 || alone <= 0 {
		return c.prior
	}
	for i, seen := range c.seen {
		if seen > 0 {
			variance += (c.load[i] - 1 - others) * (c.load[i] - 1 - others) / n
			covariance += (c.load[i] - 1 - others) * (c.cost[i] - cost) / n
		}
	}
	rise := (covariance + crowdingSpread*c.prior*alone) / (variance + crowdingSpread)
	if alone = cost - rise*others; alone <= 0 {
		return 1
	}
	return min(max(0, rise/alone), 1)
}

// alone takes in what a token cost among so many, and returns what it would have cost alone.
func (c *crowding) alone(load, cost float64) float64 {
	const outlier = 4
	load = max(1, load)
	i := min(bits.Len(uint(load))-1, crowdingLoads-1)
	c.seen[i]++
	weight := max(crowdingFade, 1/float64(c.seen[i]))
	seen := cost
	if c.seen[i] > 1 {
		seen = min(seen, max(outlier*c.cost[i], leastOutlier))
	}
	c.load[i] += weight * (load - c.load[i])
	c.cost[i] += weight * (seen - c.cost[i])
	return cost / c.factor(load)
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
