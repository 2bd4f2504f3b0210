package rollout

import (
	"fmt"

	"anytime/internal/decode"
)

// Trace is one thought about a problem and the summaries taken from it.
type Trace struct {
	Problem  string  `json:"problem"` // its id
	Index    int     `json:"trace"`   // g
	Prompt   []int32 `json:"prompt"`  // token ids, with BOS where the engine adds it
	Thinking Span    `json:"thinking"`
	Points   []Point `json:"points"` // in the order of the thinking
}

// Point is a place in the thinking where summaries were taken: a budget's, or the thinking's own end.
type Point struct {
	Budget int `json:"budget"` // index of the first budget whose summaries are taken here
	After  int `json:"after"`  // thinking tokens before it
	// EOS: the model ended its text here. All rewards are 0; the summaries show what serving would have answered.
	EOS       bool      `json:"eos,omitempty"`
	Closing   []int32   `json:"closing"`   // ids of the forced tokens between thinking and summary, which are not trained
	Summaries []Summary `json:"summaries"` // those of the point's first budget, then of the next … [merged budgets * A]
}

// Summary is the text behind a point, and its reward.
type Summary struct {
	Span
	Reward float64 `json:"reward"`
}

// Span is what the model decoded in one go.
type Span struct {
	Tokens   int        `json:"tokens"`
	IDs      []int32    `json:"ids,omitempty"`      // where the engine has ids. [Tokens]
	LogProbs []float32  `json:"logprobs,omitempty"` // where it has them; natural logarithms at temperature 1. [Tokens]
	Text     string     `json:"text"`
	End      decode.End `json:"end"`
	EOG      *EOG       `json:"eog,omitempty"` // what followed the tokens where End is "eog" and the engine tells
}

// EOG is the end-of-generation token with which the model ended a span. It is not among the span's tokens.
type EOG struct {
	ID      int32   `json:"id"`
	LogProb float32 `json:"logprob"`
}

// Rewards returns the reward of each summary by budget. [S, A]
func (t Trace) Rewards(budgets int) [][]float64 {
	rewards := make([][]float64, 0, budgets)
	for i, p := range t.Points {
		next := budgets
		if i+1 < len(t.Points) {
			next = t.Points[i+1].Budget
		}
		each := len(p.Summaries) / (next - p.Budget)
		for a := 0; a < len(p.Summaries); a += each {
			var row []float64
			for _, s := range p.Summaries[a : a+each] {
				row = append(row, s.Reward)
			}
			rewards = append(rewards, row)
		}
	}
	return rewards
}

// Taken returns for each budget the first of those whose summaries were taken at the same point. [S]
func (t Trace) Taken(budgets int) []int {
	taken := make([]int, budgets)
	for _, p := range t.Points {
		for s := p.Budget; s < budgets; s++ {
			taken[s] = p.Budget
		}
	}
	return taken
}

// SummaryTokens is how many tokens of summaries were decoded.
func (t Trace) SummaryTokens() (n int) {
	for _, p := range t.Points {
		for _, s := range p.Summaries {
			n += s.Tokens
		}
	}
	return n
}

// check says whether the trace, read from a file, can be one made with the settings.
func (t Trace) check(s Settings) error {
	if t.Index < 0 || t.Index >= s.Traces || len(t.Points) == 0 {
		return fmt.Errorf("trace %d of %d has %d points", t.Index, s.Traces, len(t.Points))
	}
	if err := t.Thinking.check(); err != nil {
		return err
	}
	for i, p := range t.Points {
		next := len(s.Budgets)
		if i+1 < len(t.Points) {
			next = t.Points[i+1].Budget
		}
		if p.After < 0 || p.After > t.Thinking.Tokens {
			return fmt.Errorf("point %d stands after %d of %d thinking tokens", i, p.After, t.Thinking.Tokens)
		}
		for _, summary := range p.Summaries {
			if err := summary.check(); err != nil {
				return err
			}
		}
		if i == 0 && p.Budget != 0 || next <= p.Budget || len(p.Summaries) != (next-p.Budget)*s.Summaries {
			return fmt.Errorf("point %d has %d summaries for the budgets from %d to %d", i, len(p.Summaries), p.Budget, next)
		}
	}
	return nil
}

func (s Span) check() error {
	for _, n := range []int{len(s.IDs), len(s.LogProbs)} {
		if n != s.Tokens && n != 0 {
			return fmt.Errorf("a text of %d tokens has %d ids and %d log-probs", s.Tokens, len(s.IDs), len(s.LogProbs))
		}
	}
	if s.EOG != nil && s.End != decode.EndEOG {
		return fmt.Errorf("a text that ended with %q has an end-of-generation token", s.End)
	}
	return nil
}
