package eval

import (
	"math"
	"math/rand/v2"
	"slices"
)

// Estimate is a mean with its 95 % interval.
type Estimate struct {
	Mean float64 `json:"mean"`
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

const draws = 2000

// bootstrap estimates the mean of each series over runs and problems, or its difference to that of other runs of the same problems. Values
// are [run, problem, series]. Each draw draws as many runs as there are on each side, and then problems, the same for all of them.
func bootstrap(seed uint64, of, against [][][]float64) []Estimate {
	rng := rand.New(rand.NewPCG(seed, 0))
	problems, series := len(of[0]), len(of[0][0])
	times := make([]float64, problems) // how often each problem was drawn
	add := func(sums []float64, runs [][][]float64, weight float64, draw bool) {
		for i := range runs {
			if draw && len(runs) > 1 {
				i = rng.IntN(len(runs))
			}
			for p, values := range runs[i] {
				if times[p] != 0 {
					for k, v := range values {
						sums[k] += weight * times[p] * v
					}
				}
			}
		}
	}
	difference := func(draw bool) []float64 {
		sums := make([]float64, series)
		add(sums, of, 1/float64(len(of)*problems), draw)
		if len(against) > 0 {
			add(sums, against, -1/float64(len(against)*problems), draw)
		}
		return sums
	}
	for p := range times {
		times[p] = 1
	}
	means := difference(false)
	drawn := make([][]float64, series) // [series, draws]
	for range draws {
		clear(times)
		for range problems {
			times[rng.IntN(problems)]++
		}
		for k, v := range difference(true) {
			drawn[k] = append(drawn[k], v)
		}
	}
	figures := make([]Estimate, series)
	for k, list := range drawn {
		slices.Sort(list)
		figures[k] = Estimate{round(means[k]), round(min(means[k], list[draws*25/1000])), round(max(means[k], list[draws*975/1000-1]))}
	}
	return figures
}

// Mean estimates the mean of values, such as differences of pairs.
func Mean(seed uint64, values []float64) Estimate {
	series := make([][]float64, len(values))
	for i, v := range values {
		series[i] = []float64{v}
	}
	return bootstrap(seed, [][][]float64{series}, nil)[0]
}

// share makes an estimate one of a share of n problems. Where all problems were right, or none, nothing can be drawn but the same: the
// interval is then that of Clopper and Pearson, which knows how few they may have been.
func (e Estimate) share(n int) Estimate {
	bound := math.Pow(0.025, 1/float64(n))
	switch {
	case e.High == 0:
		e.High = 1 - bound
	case e.Low == 1:
		e.Low = bound
	}
	return e
}

// round takes off what the order of additions has left.
func round(v float64) float64 { return math.Round(v*1e12) / 1e12 }
