package reward_test

import (
	"testing"

	"anytime/internal/decode/prompt"
	"anytime/internal/grade"
	"anytime/internal/train/reward"
	"anytime/internal/train/task"
)

func TestOf(t *testing.T) {
	math := task.Problem{ID: "m", Text: "?", Task: "math", Problem: grade.Problem{Answers: []string{`\frac{1}{2}`, "7"}}}
	puzzle := task.Problem{ID: "c", Text: "?", Task: "countdown", Problem: grade.Problem{Numbers: []int64{3, 7, 8}, Target: 29}}
	const (
		cut     = "...\n\n...\n\n</think>\n\n**Final Answer**\n"
		natural = "\n\n**Final Answer**\n"
	)
	for name, test := range map[string]struct {
		p    task.Problem
		r    reward.Response
		want float64
	}{
		"right after a cut":         {math, reward.Response{Thinking: "so", Closing: cut, Summary: `\boxed{7}`}, 1},
		"right in other words":      {math, reward.Response{Thinking: "so", Closing: cut, Summary: `It is $\boxed{0.5}$.`}, 1},
		"right after its own end":   {math, reward.Response{Thinking: "so</think>", Closing: natural, Summary: `\boxed{7}`}, 1},
		"right without a thought":   {math, reward.Response{Closing: cut, Summary: `\boxed{7}`}, 1},
		"more behind the paragraph": {math, reward.Response{Closing: cut, Summary: "\\boxed{7}\n\nBut wait: \\boxed{8}"}, 1},
		"two lines":                 {math, reward.Response{Closing: cut, Summary: "It is\n\\boxed{7}"}, 1},
		"the last box counts":       {math, reward.Response{Closing: cut, Summary: `\boxed{8} or \boxed{7}`}, 1},
		"puzzle":                    {puzzle, reward.Response{Thinking: "3*7", Closing: cut, Summary: `\boxed{(7*3)+8}`}, 1},

		"wrong":                    {math, reward.Response{Closing: cut, Summary: `\boxed{8}`}, 0},
		"wrong at last":            {math, reward.Response{Closing: cut, Summary: `\boxed{7} or \boxed{8}`}, 0},
		"puzzle with other number": {puzzle, reward.Response{Closing: cut, Summary: `\boxed{7*4+1}`}, 0},
		"no box":                   {math, reward.Response{Closing: cut, Summary: `7`}, 0},
		"open box":                 {math, reward.Response{Closing: cut, Summary: `\boxed{7`}, 0},
		"empty":                    {math, reward.Response{Closing: cut}, 0},
		"box in the next one":      {math, reward.Response{Closing: cut, Summary: "Well.\n\n\\boxed{7}"}, 0},
		"begins with a break":      {math, reward.Response{Closing: cut, Summary: "\n\\boxed{7}"}, 0},
		"box only in the thinking": {math, reward.Response{Thinking: `\boxed{7}`, Closing: cut, Summary: "so"}, 0},
		"closed twice by a cut":    {math, reward.Response{Thinking: "so</think>", Closing: cut, Summary: `\boxed{7}`}, 0},
		"closed twice by itself":   {math, reward.Response{Thinking: "so", Closing: cut, Summary: `\boxed{7}</think>`}, 0},
		"closed again far behind":  {math, reward.Response{Thinking: "so", Closing: cut, Summary: "\\boxed{7}\n\nhm</think>"}, 0},
		"never closed":             {math, reward.Response{Thinking: "so", Closing: natural, Summary: `\boxed{7}`}, 0},
		"text ended in thinking":   {math, reward.Response{Thinking: "so", EOS: true, Closing: cut, Summary: `\boxed{7}`}, 0},
		"unknown task":             {task.Problem{Task: "essay"}, reward.Response{Closing: cut, Summary: `\boxed{7}`}, 0},
	} {
		family, err := prompt.Lookup("think")
		if err != nil {
			t.Fatal(err)
		}
		if got := reward.Of(test.p, family, test.r); got != test.want {
			t.Errorf("%s: reward %v, want %v", name, got, test.want)
		}
	}
}

// A family whose closing mark also ends its answers.
func TestStops(t *testing.T) {
	family, err := prompt.Lookup("harmony")
	if err != nil {
		t.Fatal(err)
	}
	p := task.Problem{ID: "m", Text: "?", Task: "math", Problem: grade.Problem{Answers: []string{"7"}}}
	cut := ""
	for _, part := range family.Cut(prompt.StylePaper, "") {
		cut += part.Text
	}
	for summary, want := range map[string]float64{
		`\boxed{7}<|return|>`:          1,
		`\boxed{7}<|end|>`:             1,
		`\boxed{7}`:                    1,
		`hm<|return|> \boxed{7}`:       0,
		`<|end|>\boxed{7}`:             0,
		`\boxed{8}<|return|>\boxed{7}`: 0,
	} {
		if got := reward.Of(p, family, reward.Response{Thinking: "so", Closing: cut, Summary: summary}); got != want {
			t.Errorf("%q: reward %v, want %v", summary, got, want)
		}
	}
}
