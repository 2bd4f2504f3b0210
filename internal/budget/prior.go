package budget

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Prior weighs the budgets that a thought is scored at in training (arXiv 2505.13438): one of the constants, or a weight for each
// budget such as "1,1,2,4".
type Prior string

// The paper's priors.
const (
	PriorUniform Prior = "uniform" // 1/S
	PriorLinear  Prior = "linear"  // in proportion to the budget
	PriorBase    Prior = "base"    // all on the largest
)

// Probabilities returns the probability of each of the ascending budgets. [S]
func (p Prior) Probabilities(budgets []int) ([]float64, error) {
	if len(budgets) == 0 {
		return nil, fmt.Errorf("prior %s: no budgets", p)
	}
	for i, b := range budgets {
		if b < 0 || i > 0 && b <= budgets[i-1] {
			return nil, fmt.Errorf("prior %s: budgets %v are not ascending from 0", p, budgets)
		}
	}
	weights := make([]float64, len(budgets))
	switch p {
	case PriorUniform:
		for i := range weights {
			weights[i] = 1
		}
	case PriorLinear:
		for i, b := range budgets {
			weights[i] = float64(b)
		}
	case PriorBase:
		weights[len(weights)-1] = 1
	default:
		parts := strings.Split(string(p), ",")
		if _, err := parseWeight(parts[0]); err != nil && len(parts) == 1 {
			return nil, fmt.Errorf("prior %.32q is not uniform, linear, base or a weight for each budget such as 1,1,2,4", string(p))
		}
		if len(parts) != len(budgets) {
			return nil, fmt.Errorf("prior: %d weights for %d budgets", len(parts), len(budgets))
		}
		for i, part := range parts {
			w, err := parseWeight(part)
			if err != nil {
				return nil, err
			}
			weights[i] = w
		}
	}
	sum := 0.0
	for _, w := range weights {
		sum += w
	}
	if sum == 0 {
		return nil, fmt.Errorf("prior %s: all weights are 0", p)
	}
	for i := range weights {
		weights[i] /= sum
	}
	return weights, nil
}

// maxWeight keeps sums finite.
const maxWeight = 1e9

func parseWeight(s string) (float64, error) {
	s = strings.TrimSpace(s)
	w, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(w) || w < 0 || w > maxWeight {
		return 0, fmt.Errorf("prior: weight %.32q is not a number from 0 to 1e9", s)
	}
	return w, nil
}
