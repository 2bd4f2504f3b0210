// Package eval measures how right a model's answers are after every budget of thinking: the accuracy that a server with this model,
// adapter and sampling would have.
//
// Run samples with package rollout, as training does: one thought serves all budgets, through forks at each. It grades as serving
// answers, which is more lenient than training's reward: an answer is what package summarize finds in the summary, and it is right
// if the problem's verifier says so. One thing serving does is left out: it would ask again, more firmly, where reasoning leaked into
// an answer.
//
// A Report has the figures with 95 % intervals: percentiles of a bootstrap that draws problems (Efron and Tibshirani, An Introduction
// to the Bootstrap, 1993), since answers to one problem are alike, and that draws runs first where several are pooled. Comparisons
// are paired: both sides are asked the same problems, and what is estimated is the difference on each.
package eval

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"

	"anytime/internal/decode"
	"anytime/internal/decode/prompt"
	"anytime/internal/grade"
	"anytime/internal/summarize"
	"anytime/internal/train/rollout"
	"anytime/internal/train/task"
)

// Config is what an evaluation works with. Of the settings of its rollouts, Traces is the number of thoughts about each problem, and
// Summaries that of the votes at each budget. Its Record makes an evaluation go on where it was stopped.
type Config struct {
	rollout.Config
	Problems []task.Problem
	Data     string // names the problems in the report
}

// Run evaluates. It returns what rollout.Run does where the sampling fails.
func Run(ctx context.Context, c Config) (*Report, error) {
	if len(c.Problems) == 0 {
		return nil, fmt.Errorf("%s: there are no problems", c.Data)
	}
	groups, err := rollout.Run(ctx, c.Config, c.Problems)
	if err != nil {
		return nil, err
	}
	r := &Report{Format: format, Settings: c.Settings, Data: c.Data, Digest: digest(c.Problems), Points: make([]Point, len(c.Budgets))}
	for i, b := range c.Budgets {
		r.Points[i].Budget = b
	}
	for b, p := range c.Problems {
		r.add(c.Renderer.Family(), p, groups[b])
	}
	r.summarize()
	return r, nil
}

// digest tells problems from others.
func digest(problems []task.Problem) string {
	text, _ := json.Marshal(problems) // cannot fail: texts and numbers
	return fmt.Sprintf("%x", sha256.Sum256(text))
}

// add counts the thoughts about a problem; summarize makes means of the counts in the points.
func (r *Report) add(family prompt.Family, p task.Problem, group []rollout.Trace) {
	budgets := len(r.Settings.Budgets)
	result := Problem{ID: p.ID, Accuracy: make([]float64, budgets), Majority: make([]float64, budgets)}
	for _, t := range group {
		result.Tokens += float64(t.Thinking.Tokens)
		if t.Thinking.End == decode.EndUntil || t.Thinking.End == decode.EndEOG {
			r.Ended++
		}
		for _, point := range t.Points {
			for i, votes := range slices.Collect(slices.Chunk(point.Summaries, r.Settings.Summaries)) {
				at := point.Budget + i
				r.Points[at].Tokens += float64(point.After)
				answers := make([]summarize.Summary, len(votes))
				right := map[string]bool{}
				for a, v := range votes {
					answers[a] = serve(family, v.Span)
					answer := answers[a].Answer
					if _, known := right[answer]; !known {
						right[answer] = answer != "" && p.Verify(answer)
					}
					if right[answer] {
						result.Accuracy[at]++
					}
					if _, boxed := grade.Boxed(answers[a].Text); boxed && !answers[a].Escaped {
						r.Points[at].WellFormed++
					}
				}
				if winner, _ := summarize.Majority(answers, grade.Equal); winner >= 0 && right[answers[winner].Answer] {
					result.Majority[at]++
				}
			}
		}
	}
	thoughts := float64(len(group))
	result.Tokens /= thoughts
	for i := range budgets {
		result.Accuracy[i] /= thoughts * float64(r.Settings.Summaries)
		result.Majority[i] /= thoughts
	}
	r.Problems = append(r.Problems, result)
}

// serve returns the answer that serving would have found in a summary. Which token has which part of the text is not recorded, so that its
// confidence is that of the whole summary.
func serve(family prompt.Family, span rollout.Span) summarize.Summary {
	token := decode.Token{ID: -1, Text: span.Text}
	for _, p := range span.LogProbs {
		token.LogProb += p / float32(len(span.LogProbs))
	}
	s, _ := summarize.Take(context.Background(), replay{chunk: decode.Chunk{Tokens: []decode.Token{token}, End: span.End}},
		summarize.Plan{Stop: family.Stops, Reasoning: family.Reasoning(), Announced: true}, nil) // no error: a replay has none
	return s
}

// replay is a sequence that has been decoded before.
type replay struct {
	decode.Sequence // nil: Take needs no more than these
	chunk           decode.Chunk
}

func (replay) Append(...decode.Part) error                  { return nil }
func (replay) Decode(decode.Span) error                     { return nil }
func (r replay) Next(context.Context) (decode.Chunk, error) { return r.chunk, nil }
