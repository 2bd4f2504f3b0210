// Package elastic decides how long thoughts may be when many share an engine.
//
// Runs that share an engine slow one another down. Up to a bound on that slowdown nobody is touched. Beyond it thinking is shortened
// so that a thought takes about as long as it would at the bound: where the engine is s times as slow as for a run alone, and the bound
// is b, runs together may think b/s of what they asked for. So the work that waits grows much more slowly than the number of runs, and
// when the load falls thoughts that still go on get back what was taken.
//
// That much thinking is divided as follows:
//
//   - Where the accuracy over the budget is known for a model, nobody thinks for longer than is worth its tokens.
//   - Each run has a floor, which nobody goes below. Where not even the floors fit, a newcomer is to be refused.
//   - What is left is divided among keys, weighted and max-min fair: who asks for less than a fair share gets all of it, and many
//     runs of one key do not take from another's. Since runs that decode together are equally fast, a key with many of them at once has the
//     more of the engine; so its part is the smaller by as much.
//   - A key's part goes to where it buys most. Where accuracies are known thinking goes to the run that gains
//     most by its next token until the part is spent, which leaves all at equal marginal accuracy for each second of the engine: the
//     condition of optimality in arXiv 2601.10274, with the price of a second set by the queue that is there instead of by a known
//     arrival rate. Where they are not, runs think in proportion to what they asked for.
//
// Everything here is a function of its arguments; there is no clock and no lock.
package elastic

import (
	"cmp"
	"math"
	"slices"
	"time"

	"anytime/internal/budget"
)

// Config bounds what load may do to thoughts.
type Config struct {
	// Slowdown is how many times as long as alone a thought may take before it is shortened; at least 1. 0: thoughts are never shortened.
	Slowdown float64
	// Floor is the thinking tokens below which no thought is shortened.
	Floor int
}

// Run is what is asked for.
type Run struct {
	Key    string  // whose it is
	Weight float64 // over 0: what a token of this run is worth beside one of another; a key weighs as much as its runs on average
	Limit  int     // thinking tokens that it would have with the engine to itself
	Reach  int     // those that it can come to before its deadline as fast as things are; as Limit where it has none
	Fixed  bool    // it is not to be shortened
	Curve  *budget.Curve
}

// Share returns the thinking tokens of each run where the engine is so many times as slow as for a run alone; false: not even the
// floors fit into what there is to divide.
func (c Config) Share(slowdown float64, runs []Run) (tokens []int, fits bool) {
	tokens = make([]int, len(runs))
	for i, r := range runs {
		tokens[i] = r.Limit
	}
	if c.Slowdown <= 0 || slowdown <= c.Slowdown {
		return tokens, true
	}
	d := division{runs: runs, more: make([]float64, len(runs)), asked: make([]float64, len(runs)), keys: map[string][]int{}}
	reach := make([]int, len(runs)) // of what it wants
	var wanted, floors float64
	for i, r := range runs {
		if r.Fixed {
			continue
		}
		want := min(r.Limit, max(c.Floor, useful(r)))
		reach[i] = min(want, r.Reach)
		tokens[i] = min(reach[i], c.Floor)
		d.more[i] = float64(reach[i] - tokens[i])
		d.asked[i] = float64(want)
		wanted += float64(want)
		floors += float64(tokens[i])
		d.keys[r.Key] = append(d.keys[r.Key], i)
	}
	left := wanted*c.Slowdown/slowdown - floors
	for i, n := range d.divide(max(0, left), tokens) {
		if tokens[i] += int(n); tokens[i] >= reach[i]-1 && d.asked[i] > 0 {
			tokens[i] = int(d.asked[i]) // a deadline comes before it gets as far as it may, unless things get faster
		}
	}
	return tokens, left >= 0 || floors == 0
}

// useful is how much thinking is worth its tokens, as far as is known.
func useful(r Run) int {
	if r.Curve == nil {
		return r.Limit
	}
	return r.Curve.Default
}

// division is what is divided among whom.
type division struct {
	runs  []Run
	asked []float64        // tokens that a run wants
	more  []float64        // of these, how many it can use beyond its floor
	keys  map[string][]int // indices of runs
}

// divide gives out so many tokens; floors are those that runs have already.
func (d *division) divide(tokens float64, floors []int) []float64 {
	var names []string
	for name := range d.keys {
		names = append(names, name)
	}
	slices.Sort(names)
	wants, weights := make([]float64, len(names)), make([]float64, len(names))
	for k, name := range names {
		n := float64(len(d.keys[name]))
		for _, i := range d.keys[name] {
			wants[k] += d.more[i]
			weights[k] += d.runs[i].Weight / n / n // the mean; and n runs at once have n times as much of the engine as one
		}
	}
	given := make([]float64, len(d.runs))
	for k, part := range fill(tokens, wants, weights) {
		if wants[k] == 0 {
			continue
		}
		var known, unknown []int
		var wantsKnown float64
		for _, i := range d.keys[names[k]] {
			if d.runs[i].Curve != nil {
				known = append(known, i)
				wantsKnown += d.more[i]
			} else {
				unknown = append(unknown, i)
			}
		}
		d.byGain(part*wantsKnown/wants[k], known, floors, given)
		d.inProportion(part*(wants[k]-wantsKnown)/wants[k], unknown, given)
	}
	return given
}

func (d *division) inProportion(tokens float64, runs []int, given []float64) {
	wants, rates := make([]float64, len(runs)), make([]float64, len(runs))
	for j, i := range runs {
		wants[j] = d.more[i]
		rates[j] = d.asked[i] * d.runs[i].Weight
	}
	for j, n := range fill(tokens, wants, rates) {
		given[runs[j]] = n
	}
}

// piece is a stretch of a run's thinking in which every token gains the same.
type piece struct {
	run    int
	tokens float64
	gain   float64 // weighted
}

// byGain gives tokens to the pieces that gain most; equal ones share.
func (d *division) byGain(tokens float64, runs []int, floors []int, given []float64) {
	var pieces []piece
	for _, i := range runs {
		r := d.runs[i]
		from, end := float64(floors[i]), float64(floors[i])+d.more[i]
		for _, p := range r.Curve.Points {
			to := min(float64(p.Budget), end)
			if to > from {
				pieces = append(pieces, piece{i, to - from, r.Weight * r.Curve.Gain(from)})
				from = to
			}
		}
	}
	slices.SortStableFunc(pieces, func(a, b piece) int { return cmp.Compare(b.gain, a.gain) })
	for len(pieces) > 0 && tokens > 0 {
		n := 1
		for n < len(pieces) && pieces[n].gain == pieces[0].gain {
			n++
		}
		wants := make([]float64, n)
		for j, p := range pieces[:n] {
			wants[j] = p.tokens
		}
		for j, x := range fill(tokens, wants, wants) {
			given[pieces[j].run] += x
			tokens -= x
		}
		pieces = pieces[n:]
	}
}

// fill divides an amount: each gets what it wants, but no more than its rate times a level that is the same for all.
func fill(amount float64, wants, rates []float64) []float64 {
	given := make([]float64, len(wants))
	order := make([]int, 0, len(wants))
	rest := 0.0 // of the rates of those that are not served yet
	for i := range wants {
		if wants[i] > 0 && rates[i] > 0 {
			order = append(order, i)
			rest += rates[i]
		}
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(wants[a]/rates[a], wants[b]/rates[b]) })
	for _, i := range order { // who is content with the lowest level first
		given[i] = max(0, min(wants[i], amount*rates[i]/rest))
		amount -= given[i]
		rest -= rates[i]
	}
	return given
}

// Smoother follows a slowdown with some delay, so that one run that comes or goes does not cut or spare another by itself.
// Its zero value follows from 1.
type Smoother struct {
	value float64
	at    time.Time
}

// follow is the time in which a Smoother comes to within 1/e of a change.
const follow = time.Second

// Observe takes in the slowdown at a time and returns the smoothed one.
func (s *Smoother) Observe(now time.Time, slowdown float64) float64 {
	if s.at.IsZero() {
		s.value, s.at = 1, now
	}
	passed := max(0, now.Sub(s.at))
	s.value += (slowdown - s.value) * (1 - math.Exp(-float64(passed)/float64(follow)))
	s.at = now
	return s.value
}
