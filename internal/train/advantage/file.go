package advantage

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"anytime/internal/budget"
)

// File is a list of cases in JSON: scores, and the advantages once they are computed.
type File struct {
	About string `json:"about,omitempty"`
	Cases []Case `json:"cases"`
}

// Case is the scores of some prompts of the same shape, and how to compute their advantages.
type Case struct {
	Prior     budget.Prior `json:"prior"`
	Thinking  Thinking     `json:"thinking_baseline"`
	Summary   Summary      `json:"summary_baseline"`
	Prompts   int          `json:"prompts"`   // B
	Traces    int          `json:"traces"`    // G
	Budgets   int          `json:"budgets"`   // S
	Summaries int          `json:"summaries"` // A
	// BudgetProbs is the prior's probability of each budget. Where absent it is the prior's for evenly spaced budgets. [S]
	BudgetProbs       []float64   `json:"budget_probs"`
	Scores            [][]float64 `json:"scores"`       // [B*G, S*A]
	BudgetIndex       [][]int     `json:"budget_index"` // where each summary was taken, as in Scores.Taken. [B*G, S*A]
	ThinkingAdvantage [][]float64 `json:"thinking_advantage"`
	SummaryAdvantage  [][]float64 `json:"summary_advantage"`
}

// Read reads a file.
func Read(r io.Reader) (File, error) {
	var f File
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return File{}, fmt.Errorf("read advantage cases: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return File{}, errors.New("read advantage cases: there is more behind the JSON object")
	}
	return f, nil
}

// Write writes the file as one line of JSON.
func (f File) Write(w io.Writer) error { return json.NewEncoder(w).Encode(f) }

// Compute fills in the advantages of every case.
func (f File) Compute() error {
	for i := range f.Cases {
		if err := f.Cases[i].Compute(); err != nil {
			return fmt.Errorf("case %d: %w", i, err)
		}
	}
	return nil
}

// Compute fills in ThinkingAdvantage [B*G, S] and SummaryAdvantage [B*G, S*A], and BudgetProbs where it was absent.
func (c *Case) Compute() error {
	for name, n := range map[string]int{"prompts": c.Prompts, "traces": c.Traces, "budgets": c.Budgets, "summaries": c.Summaries} {
		if n < 1 || n > 1<<16 {
			return fmt.Errorf("%s is %d: it must be from 1 to 65536", name, n)
		}
	}
	if rows := c.Prompts * c.Traces; len(c.Scores) != rows || len(c.BudgetIndex) != rows {
		return fmt.Errorf("scores have %d rows and budget_index has %d: prompts * traces is %d", len(c.Scores), len(c.BudgetIndex), rows)
	}
	m := Method{Probabilities: c.BudgetProbs, Thinking: c.Thinking, Summary: c.Summary}
	if m.Probabilities == nil {
		even := make([]int, c.Budgets)
		for s := range even {
			even[s] = s + 1
		}
		var err error
		if m, err = New(c.Prior, even, c.Thinking, c.Summary); err != nil {
			return err
		}
	}
	if len(m.Probabilities) != c.Budgets {
		return fmt.Errorf("there are %d budget_probs for %d budgets", len(m.Probabilities), c.Budgets)
	}
	var thinkingAdvantage, summaryAdvantage [][]float64
	for b := range c.Prompts {
		scores, err := c.prompt(b)
		if err != nil {
			return err
		}
		thinking, summary, err := m.Compute(scores)
		if err != nil {
			return fmt.Errorf("prompt %d: %w", b, err)
		}
		thinkingAdvantage = append(thinkingAdvantage, thinking...)
		for _, trace := range summary {
			var row []float64
			for _, at := range trace {
				row = append(row, at...)
			}
			summaryAdvantage = append(summaryAdvantage, row)
		}
	}
	c.BudgetProbs, c.ThinkingAdvantage, c.SummaryAdvantage = m.Probabilities, thinkingAdvantage, summaryAdvantage
	return nil
}

// prompt cuts the rows of one prompt out of the case.
func (c *Case) prompt(b int) (Scores, error) {
	var s Scores
	for row := b * c.Traces; row < (b+1)*c.Traces; row++ {
		score, index := c.Scores[row], c.BudgetIndex[row]
		if columns := c.Budgets * c.Summaries; len(score) != columns || len(index) != columns {
			return s, fmt.Errorf("row %d has %d scores and %d budget_index: budgets * summaries is %d", row, len(score), len(index), columns)
		}
		var at [][]float64
		var taken []int
		for i := 0; i < len(score); i += c.Summaries {
			at = append(at, score[i:i+c.Summaries])
			taken = append(taken, index[i])
			for _, t := range index[i : i+c.Summaries] {
				if t != index[i] {
					return s, fmt.Errorf("row %d: the summaries at budget %d have different budget_index", row, i/c.Summaries)
				}
			}
		}
		s.Score, s.Taken = append(s.Score, at), append(s.Taken, taken)
	}
	return s, nil
}
