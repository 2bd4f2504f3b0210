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
	"slices"

	"anytime/internal/train/advantage"
	"anytime/internal/train/model"
	"anytime/internal/train/rollout"
)

// FromTraces makes an example of each trace of one problem [G]: prompt and thinking are the trunk, each summary is a branch behind its
// forced closing. Sampled tokens are trained, with their advantages and the engine's log-probabilities; so are the end-of-generation tokens
// that ended a span, or nothing would teach the model to stop. One that ended the thinking counts to its last segment; branches do not
// see it.
//
// answersOnly: the thinking is not trained.
//
// Each token counts 1/(b_S + S·A·longest summary), a constant: a long response weighs as much per token as a short one.
func FromTraces(m advantage.Method, s rollout.Settings, answersOnly bool, group []rollout.Trace) ([]model.Example, error) {
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
		b := builder{weight: weight, answersOnly: answersOnly}
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
	weight      float32 // of a trained token
	answersOnly bool
}

func (b *builder) trace(t rollout.Trace, summaries int, thinking []float64, summary [][]float64, lastOnly bool) error {
	if len(t.Prompt) == 0 {
		return fmt.Errorf("its prompt has no token ids")
	}
	if err := whole(t.Thinking); err != nil {
		return fmt.Errorf("thinking: %w", err)
	}
	thought, thoughtLogProbs := sampled(t.Thinking)
	b.Tree.Trunk = slices.Concat(t.Prompt, thought)
	b.forced(len(t.Prompt))
	from := 0
	for i, p := range t.Points {
		if p.After < from || p.After > t.Thinking.Tokens {
			return fmt.Errorf("summaries are taken after %d of %d thinking tokens, behind those after %d", p.After, t.Thinking.Tokens, from)
		}
		to := p.After
		if i == len(t.Points)-1 && to == t.Thinking.Tokens {
			to = len(thought)
		}
		if b.answersOnly {
			b.forced(to - from)
		} else {
			b.sampled(thoughtLogProbs[from:to], thinking[p.Budget])
		}
		from = to
	}
	b.forced(len(thought) - from)
	for _, p := range t.Points {
		for i, y := range p.Summaries {
			at, a := p.Budget+i/summaries, i%summaries
			if lastOnly && at < len(summary)-1 {
				continue // not trained: left out
			}
			if err := whole(y.Span); err != nil {
				return fmt.Errorf("summary %d at budget %d: %w", a, at, err)
			}
			ids, logProbs := sampled(y.Span)
			if len(ids) == 0 {
				continue
			}
			b.Tree.Branches = append(b.Tree.Branches, model.Branch{At: len(t.Prompt) + p.After, Tokens: slices.Concat(p.Closing, ids)})
			b.forced(len(p.Closing))
			b.sampled(logProbs, summary[at][a])
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

// sampled is all that the model drew for a span: its tokens and the one that ended it.
func sampled(s rollout.Span) (ids []int32, logProbs []float32) {
	ids, logProbs = slices.Clone(s.IDs), slices.Clone(s.LogProbs)
	if s.EOG != nil {
		ids, logProbs = append(ids, s.EOG.ID), append(logProbs, s.EOG.LogProb)
	}
	return ids, logProbs
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
	Mean      float64 `json:"mean"` // of the absolute difference
	Max       float64 `json:"max"`
	Truncated float64 `json:"truncated"` // share of the tokens whose importance weight was cut to the cap
}

// correct compares the log-probabilities of the policy that sampled, as the engine gave them, with the trainer's own. Where most is above 0
// it also makes the examples ready for a loss that is corrected for the difference: a token's weight is multiplied by its importance
// weight min(p_trainer/p_engine, most), and its old log-probability becomes the trainer's, so that the loss clips on the change of the
// weights alone. (Truncated importance sampling, Yao et al. 2025, https://fengyao.notion.site/off-policy-rl; the truncation is Ionides's,
// doi 10.1198/106186008X320456.)
func correct(examples []model.Example, logProbs [][]float32, most float64) (m Mismatch) {
	n := float64(max(trained(examples), 1))
	for i, e := range examples {
		for j, w := range e.Weight {
			if w == 0 {
				continue
			}
			d := float64(logProbs[i][j] - e.Old[j])
			m.Mean, m.Max = m.Mean+math.Abs(d)/n, max(m.Max, math.Abs(d))
			if most <= 0 {
				continue
			}
			ratio := math.Exp(d)
			if ratio > most {
				ratio = most
				m.Truncated += 1 / n
			}
			e.Weight[j], e.Old[j] = w*float32(ratio), logProbs[i][j]
		}
	}
	return m
}

// refer gives the examples the log-probabilities of the reference, and returns the estimate of the divergence from it that Policy.KL
// penalises, as a mean over the trained tokens.
func refer(examples []model.Example, logProbs, reference [][]float32) (kl float64) {
	for i := range examples {
		examples[i].Reference = reference[i]
		for j, w := range examples[i].Weight {
			if w != 0 {
				d := min(float64(reference[i][j]-logProbs[i][j]), 20) // as in the loss
				kl += math.Exp(d) - d - 1
			}
		}
	}
	return kl / float64(max(trained(examples), 1))
}
