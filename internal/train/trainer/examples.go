// Package trainer is the training loop: supervised fine-tuning on a teacher's thoughts, and rounds of BRPO (Anytime Reasoning, arXiv
// 2505.13438) on a model's own.
//
// A round samples traces on the serving engine, turns their rewards into advantages, takes a step of the policy loss for each
// mini-batch, and gives the adapter back to the engine, which samples the next round with it. What is trained on is what was served: the
// tokens and log-probabilities are the engine's.
//
// A run lives in a folder. What a unit of work (a step of fine-tuning, a round) has done is committed by its checkpoint, the last
// file that it writes; a run that was killed goes on behind the last one committed.
package trainer

import (
	"fmt"
	"math"

	"anytime/internal/train/advantage"
	"anytime/internal/train/model"
	"anytime/internal/train/rollout"
)

// FromTraces makes an example of each trace of one problem [G]: prompt and thinking are the trunk, each summary is a branch behind its
// forced closing. Sampled tokens are trained, with their advantages and the engine's log-probabilities. The end-of-text token that ends
// a span is not recorded, and so not trained.
//
// Each token counts 1/(b_S + S·A·longest summary), a constant: a long response weighs as much per token as a short one.
func FromTraces(m advantage.Method, s rollout.Settings, group []rollout.Trace) ([]model.Example, error) {
	budgets := len(s.Budgets)
	var scores advantage.Scores
	for _, t := range group {
		scores.Score = append(scores.Score, t.Rewards(budgets))
		scores.Taken = append(scores.Taken, t.Taken(budgets))
	}
	thinking, summary, err := m.Compute(scores)
	if err != nil {
		return nil, err
	}
	weight := float32(1 / float64(s.Budgets[budgets-1]+budgets*s.Summaries*s.SummaryTokens))
	examples := make([]model.Example, len(group))
	for g, t := range group {
		b := builder{weight: weight}
		if err := b.trace(t, s.Summaries, thinking[g], summary[g], m.Summary == advantage.LastOnly); err != nil {
			return nil, fmt.Errorf("trace %d of problem %q: %w", t.Index, t.Problem, err)
		}
		examples[g] = b.Example
	}
	return examples, nil
}

// builder puts an example together in the order of its tree's tokens.
type builder struct {
	model.Example
	weight float32 // of a trained token
}

func (b *builder) trace(t rollout.Trace, summaries int, thinking []float64, summary [][]float64, lastOnly bool) error {
	if len(t.Prompt) == 0 {
		return fmt.Errorf("its prompt has no token ids")
	}
	if err := whole(t.Thinking); err != nil {
		return fmt.Errorf("thinking: %w", err)
	}
	b.Tree.Trunk = append(append([]int32{}, t.Prompt...), t.Thinking.IDs...)
	b.forced(len(t.Prompt))
	from := 0
	for _, p := range t.Points {
		if p.After < from || p.After > t.Thinking.Tokens {
			return fmt.Errorf("summaries are taken after %d of %d thinking tokens, behind those after %d", p.After, t.Thinking.Tokens, from)
		}
		b.sampled(t.Thinking.LogProbs[from:p.After], thinking[p.Budget])
		from = p.After
	}
	b.forced(t.Thinking.Tokens - from)
	for _, p := range t.Points {
		for i, y := range p.Summaries {
			at, a := p.Budget+i/summaries, i%summaries
			if y.Tokens == 0 || lastOnly && at < len(summary)-1 {
				continue // not trained: left out
			}
			if err := whole(y.Span); err != nil {
				return fmt.Errorf("summary %d at budget %d: %w", a, at, err)
			}
			b.Tree.Branches = append(b.Tree.Branches, model.Branch{
				At: len(t.Prompt) + p.After, Tokens: append(append([]int32{}, p.Closing...), y.IDs...),
			})
			b.forced(len(p.Closing))
			b.sampled(y.LogProbs, summary[at][a])
		}
	}
	return nil
}

// whole says whether a span can be trained on.
func whole(s rollout.Span) error {
	if len(s.IDs) != s.Tokens || len(s.LogProbs) != s.Tokens {
		return fmt.Errorf("%d tokens have %d ids and %d log-probabilities: an engine that gives both is needed", s.Tokens, len(s.IDs), len(s.LogProbs))
	}
	return nil
}

// forced adds tokens that are not trained.
func (b *builder) forced(n int) {
	b.Weight = append(b.Weight, make([]float32, n)...)
	b.Advantage = append(b.Advantage, make([]float32, n)...)
	b.Old = append(b.Old, make([]float32, n)...)
}

// sampled adds trained tokens.
func (b *builder) sampled(logProbs []float32, advantage float64) {
	for _, p := range logProbs {
		b.Weight = append(b.Weight, b.weight)
		b.Advantage = append(b.Advantage, float32(advantage))
		b.Old = append(b.Old, p)
	}
}

// trained counts the tokens that have a weight.
func trained(examples []model.Example) (n int) {
	for _, e := range examples {
		for _, w := range e.Weight {
			if w != 0 {
				n++
			}
		}
	}
	return n
}

// spread is the mean and variance of the advantages of trained tokens.
func spread(examples []model.Example) (mean, variance float64) {
	var sum, squares float64
	for _, e := range examples {
		for i, w := range e.Weight {
			if w != 0 {
				a := float64(e.Advantage[i])
				sum, squares = sum+a, squares+a*a
			}
		}
	}
	n := float64(max(trained(examples), 1))
	return sum / n, max(0, squares/n-sum*sum/n/n)
}

// Mismatch is how far the engine's log-probabilities of the sampled tokens are from the trainer's, of the same weights.
type Mismatch struct {
	Mean float64 `json:"mean"` // of the absolute difference
	Max  float64 `json:"max"`
}

func mismatch(examples []model.Example, logProbs [][]float32) (m Mismatch) {
	for i, e := range examples {
		for j, w := range e.Weight {
			if w != 0 {
				d := math.Abs(float64(logProbs[i][j] - e.Old[j]))
				m.Mean, m.Max = m.Mean+d, max(m.Max, d)
			}
		}
	}
	m.Mean /= float64(max(trained(examples), 1))
	return m
}
