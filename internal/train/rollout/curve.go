package rollout

import (
	"math/rand/v2"
	"slices"
)

// Accuracy is the mean reward at a budget, with its 95 % interval.
type Accuracy struct {
	Budget int     `json:"budget"` // thinking tokens
	Mean   float64 `json:"mean"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
}

// Curve returns the accuracy at each budget over the traces of some problems. The intervals are percentiles of a bootstrap that
// draws problems, since the traces of one are alike. [S]
func Curve(s Settings, traces [][]Trace) []Accuracy {
	const draws = 2000
	curve := make([]Accuracy, len(s.Budgets))
	means := make([][]float64, len(s.Budgets)) // of each problem. [S, B]
	for i, b := range s.Budgets {
		curve[i].Budget = b
		means[i] = make([]float64, len(traces))
	}
	for b, group := range traces {
		for _, t := range group {
			for i, row := range t.Rewards(len(s.Budgets)) {
				for _, r := range row {
					means[i][b] += r / float64(len(row)*len(group))
				}
			}
		}
	}
	rng := rand.New(rand.NewPCG(s.Seed, 0))
	drawn := make([][]float64, len(s.Budgets))
	for range draws {
		sums := make([]float64, len(s.Budgets))
		for range traces {
			b := rng.IntN(len(traces))
			for i := range sums {
				sums[i] += means[i][b]
			}
		}
		for i, sum := range sums {
			drawn[i] = append(drawn[i], sum/float64(max(1, len(traces))))
		}
	}
	for i := range curve {
		slices.Sort(drawn[i])
		curve[i].Low, curve[i].High = drawn[i][draws*25/1000], drawn[i][draws*975/1000]
		for _, m := range means[i] {
			curve[i].Mean += m / float64(len(means[i]))
		}
	}
	return curve
}
