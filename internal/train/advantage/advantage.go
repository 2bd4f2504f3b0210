// Package advantage turns the scores of forced answers into advantages: BRPO, GRPO and what lies between them (Anytime Reasoning,
// arXiv 2505.13438).
//
// Each of the G traces of a prompt was scored at S budgets, by A summaries at each. A thinking token between two budgets helped every
// answer from the later budget on, so its return is R_s = Σ_{j≥s} P_j q_j, with the prior P over budgets and the mean score q. Its
// baseline mixes two estimates of the return: V1, from the scores of the trace's own past, which count twice as much with each
// budget, and V2, from the returns of its group. Early on there is little past, so BRPO weighs them as s to S-s. Summaries have
// advantages of their own, against those taken at the same point. Advantages are not divided by their deviation.
package advantage

import (
	"fmt"
	"math"

	"anytime/internal/budget"
)

// Thinking is the baseline of thinking tokens.
type Thinking string

// The baselines of thinking tokens.
const (
	BRPO   Thinking = "brpo"   // V1 and V2, mixed
	V1Only Thinking = "v1only" // the trace's own past
	V2Only Thinking = "v2only" // the group's mean return; as in GRPO
	None   Thinking = "none"
)

// Summary is the baseline of summary tokens.
type Summary string

// The baselines of summary tokens.
const (
	// Siblings is the mean over the summaries taken at the same point of the same trace; where each point has only one, over those of
	// the group at the same budget. Every budget counts the same, whatever the prior.
	Siblings Summary = "siblings"
	// LastOnly trains the summaries of the last budget alone, against the group's mean there; as in GRPO.
	LastOnly Summary = "group_last_budget_only"
)

// Method says how advantages are computed. Prior must be resolved to the probability of each budget first: Probabilities, [S].
type Method struct {
	Probabilities []float64
	Thinking      Thinking
	Summary       Summary
}

// New is the method for the ascending budgets, which are in tokens. [S]
func New(prior budget.Prior, budgets []int, thinking Thinking, summary Summary) (Method, error) {
	p, err := prior.Probabilities(budgets)
	if err != nil {
		return Method{}, err
	}
	m := Method{Probabilities: p, Thinking: thinking, Summary: summary}
	return m, m.check()
}

func (m Method) check() error {
	switch m.Thinking {
	case BRPO, V1Only, V2Only, None:
	default:
		return fmt.Errorf("thinking baseline is %.32q: it must be brpo, v1only, v2only or none", m.Thinking)
	}
	switch m.Summary {
	case Siblings, LastOnly:
	default:
		return fmt.Errorf("summary baseline is %.32q: it must be siblings or group_last_budget_only", m.Summary)
	}
	var sum float64
	for _, p := range m.Probabilities {
		if !(p >= 0 && p <= 1) {
			return fmt.Errorf("budget probabilities %v: each must be from 0 to 1", m.Probabilities)
		}
		sum += p
	}
	if math.Abs(sum-1) > 1e-4 {
		return fmt.Errorf("budget probabilities %v add up to %v: it must be 1", m.Probabilities, sum)
	}
	return nil
}

// Scores are the scores of the traces of one prompt.
type Scores struct {
	Score [][][]float64 // of each summary. [G, S, A]
	// Taken is the budget whose summaries stand at each budget: its own index, or, from the budget on before which the trace ended by
	// itself, the first index of those, at whose common point all their summaries were taken. [G, S]
	Taken [][]int
}

// Compute returns the advantage of the thinking tokens that end at each budget [G, S] and of each summary [G, S, A]. Of the budgets
// that merged in a trace that ended early, the first has the advantage of its last tokens; the others have no tokens.
func (m Method) Compute(s Scores) (thinking [][]float64, summary [][][]float64, err error) {
	if err := m.check(); err != nil {
		return nil, nil, err
	}
	if err := s.check(len(m.Probabilities)); err != nil {
		return nil, nil, err
	}
	return m.thinking(s.Score), m.summary(s), nil
}

func (s Scores) check(budgets int) error {
	if len(s.Score) == 0 || len(s.Taken) != len(s.Score) {
		return fmt.Errorf("there are scores of %d traces and budget indices of %d: both must be the same, from 1", len(s.Score), len(s.Taken))
	}
	for g, trace := range s.Score {
		if len(trace) != budgets || len(s.Taken[g]) != budgets {
			return fmt.Errorf("trace %d: it has scores at %d and indices for %d of %d budgets", g, len(trace), len(s.Taken[g]), budgets)
		}
		summaries := len(s.Score[0][0])
		for i, at := range trace {
			if len(at) != summaries || summaries == 0 {
				return fmt.Errorf("trace %d, budget %d: it has %d summaries, the first has %d: both must be the same, from 1", g, i, len(at), summaries)
			}
			for _, r := range at {
				if math.IsNaN(r) || math.IsInf(r, 0) {
					return fmt.Errorf("trace %d, budget %d: a score is %v", g, i, r)
				}
			}
			ended := i > 0 && s.Taken[g][i-1] != i-1
			if t := s.Taken[g][i]; !(t == i && !ended || i > 0 && t == s.Taken[g][i-1]) {
				return fmt.Errorf("trace %d: budget indices %v: each must be its own position, or, once the trace has ended, the one before it again", g, s.Taken[g])
			}
		}
	}
	return nil
}

func (m Method) thinking(score [][][]float64) [][]float64 {
	budgets := len(m.Probabilities)
	tail := make([]float64, budgets+1) // Σ_{j≥s} P_j
	for s := budgets - 1; s >= 0; s-- {
		tail[s] = tail[s+1] + m.Probabilities[s]
	}
	returns := make([][]float64, len(score))
	group := make([]float64, budgets) // V2; of one trace alone it would be its own return
	for g, trace := range score {
		returns[g] = make([]float64, budgets)
		var r float64
		for s := budgets - 1; s >= 0; s-- {
			r += m.Probabilities[s] * mean(trace[s])
			returns[g][s] = r
			if len(score) > 1 {
				group[s] += r / float64(len(score))
			}
		}
	}
	for g, trace := range score {
		var past, weights float64 // Σ_{i<s} 2^i q_i and Σ_{i<s} 2^i, both over 2^(s-1)
		for s := range budgets {
			var own float64 // V1
			if s > 0 {
				past, weights = past/2+mean(trace[s-1]), weights/2+1
				own = past / weights * tail[s]
			}
			switch m.Thinking {
			case BRPO:
				returns[g][s] -= (float64(s)*own + float64(budgets-s)*group[s]) / float64(budgets)
			case V1Only:
				returns[g][s] -= own
			case V2Only:
				returns[g][s] -= group[s]
			}
		}
	}
	return returns
}

func (m Method) summary(s Scores) [][][]float64 {
	budgets, summaries := len(m.Probabilities), len(s.Score[0][0])
	adv := make([][][]float64, len(s.Score))
	for g, trace := range s.Score {
		adv[g] = make([][]float64, budgets)
		for i := range trace {
			adv[g][i] = make([]float64, summaries)
			var siblings []float64
			switch {
			case m.Summary == LastOnly && i < budgets-1:
				continue
			case m.Summary == Siblings && summaries > 1:
				for j, at := range trace {
					if s.Taken[g][j] == s.Taken[g][i] {
						siblings = append(siblings, at...)
					}
				}
			default:
				for _, other := range s.Score {
					siblings = append(siblings, other[i]...)
				}
			}
			for a, r := range trace[i] {
				adv[g][i][a] = r - mean(siblings)
			}
		}
	}
	return adv
}

func mean(values []float64) float64 {
	var sum float64
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}
