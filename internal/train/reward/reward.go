// Package reward scores the summaries of thoughts: 1 for a right answer in the right form, else 0 (Anytime Reasoning, arXiv
// 2505.13438). It is strict, where serving is lenient: what training rewards is what the model will do.
package reward

import (
	"strings"

	"anytime/internal/decode/prompt"
	"anytime/internal/grade"
	"anytime/internal/train/task"
)

// Response is what a model has said to a problem, the forced text included.
type Response struct {
	Thinking string // up to the cut, or to its own end, with the closing mark that the model wrote
	EOS      bool   // the model ended its text within the thinking
	Closing  string // forced; it ends in the header of the answer
	Summary  string // without the end of the text
}

// Of returns the reward of a response: 1 if the paragraph behind the header has a box, the last of which holds a right answer, and
// thinking and all that follows it were closed exactly once. A response whose thinking has the end of the text in it gets 0.
func Of(p task.Problem, family prompt.Family, r Response) float64 {
	summary := r.Summary
	for _, stop := range family.Stops {
		summary, _, _ = strings.Cut(summary, stop)
	}
	closed := 0
	for _, mark := range family.Close {
		closed += strings.Count(r.Thinking+r.Closing+summary, mark)
	}
	// The header ends in a line break: a summary that begins with another has left its paragraph.
	paragraph, _, _ := strings.Cut("\n"+summary, "\n\n")
	answer, boxed := grade.Boxed(paragraph)
	if r.EOS || closed != 1 || !boxed || !p.Verify(answer) {
		return 0
	}
	return 1
}
