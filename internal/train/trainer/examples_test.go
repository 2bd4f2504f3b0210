package trainer_test

import (
	"math"
	"slices"
	"strings"
	"testing"

	"anytime/internal/budget"
	"anytime/internal/decode"
	"anytime/internal/train/advantage"
	"anytime/internal/train/model"
	"anytime/internal/train/rollout"
	"anytime/internal/train/trainer"
)

// span is n sampled tokens, from first on, whose log-probabilities are theirs over -100.
func span(first, n int) rollout.Span {
	s := rollout.Span{Tokens: n}
	for id := range int32(n) {
		s.IDs = append(s.IDs, int32(first)+id)
		s.LogProbs = append(s.LogProbs, -float32(int32(first)+id)/100)
	}
	return s
}

func summaries(first int, rewards ...float64) (list []rollout.Summary) {
	for i, r := range rewards {
		list = append(list, rollout.Summary{Span: span(first+10*i, 2), Reward: r})
	}
	return list
}

// end adds the end of generation with an id to a span.
func end(s rollout.Span, id int32) rollout.Span {
	s.End, s.EOG = decode.EndEOG, &rollout.EOG{ID: id, LogProb: -float32(id) / 100}
	return s
}

// group is two thoughts under budgets of 0, 4 and 8 tokens: one that ended its text right at the second, with nothing behind it but the
// end, and one that ended by itself after 3 tokens, where the second and the third budget have merged. A summary of it is empty, another
// nothing but its end, and one of the first thought has an end.
func group() (rollout.Settings, []rollout.Trace) {
	s := rollout.Settings{Budgets: []int{0, 4, 8}, Traces: 2, Summaries: 2, SummaryTokens: 5, Sampling: decode.Sampling{Temperature: 1}}
	prompt, cut, own := []int32{1, 2}, []int32{3, 4}, []int32{5}
	first := rollout.Trace{Problem: "p", Prompt: prompt, Thinking: end(span(10, 4), 99), Points: []rollout.Point{
		{Budget: 0, After: 0, Closing: cut, Summaries: summaries(20, 0, 1)},
		{Budget: 1, After: 4, Closing: cut, Summaries: summaries(40, 1, 1)},
		{Budget: 2, After: 4, Closing: cut, EOS: true, Summaries: summaries(60, 0, 0)},
	}}
	second := rollout.Trace{Problem: "p", Index: 1, Prompt: prompt, Thinking: span(10, 3), Points: []rollout.Point{
		{Budget: 0, After: 0, Closing: cut, Summaries: summaries(20, 0, 0)},
		{Budget: 1, After: 3, Closing: own, Summaries: summaries(40, 1, 0, 1, 1)},
	}}
	first.Points[1].Summaries[0].Span = end(span(40, 2), 98)
	second.Points[0].Summaries[0].Span = end(rollout.Span{}, 97)
	second.Points[0].Summaries[1].Span = rollout.Span{}
	return s, []rollout.Trace{first, second}
}

// TestByHand: the scores are 1/2, 1, 0 and 0, 1/2, 1, under the uniform prior. At the second budget the returns are 1/3 and 1/2, V2 is
// 5/12, V1 is 1/3 and 0, and so the baselines are (V1 + 2·V2)/3 = 7/18 and 5/18. In the last segment of the first thought, which has
// nothing but its end, the return is 0, V2 is 1/6, V1 = (1·1/2 + 2·1)/3 · 1/3 = 5/18, the baseline (2·5/18 + 1/6)/3 = 13/54. All other
// segments are empty.
func TestByHand(t *testing.T) {
	s, traces := group()
	type branch struct {
		at     int
		tokens []int32
		adv    float64
	}
	for _, c := range []struct {
		name     string
		prior    budget.Prior
		thinking advantage.Thinking
		summary  advantage.Summary
		adv      [2]float64 // of the thinking tokens
		end      float64    // of the end of the first thought
		branches [2][]branch
	}{
		{
			"brpo", budget.PriorUniform, advantage.BRPO, advantage.Siblings, [2]float64{-1. / 18, 4. / 18}, -13. / 54,
			[2][]branch{
				{
					{2, []int32{3, 4, 20, 21}, -.5}, {2, []int32{3, 4, 30, 31}, .5}, {6, []int32{3, 4, 40, 41, 98}, 0},
					{6, []int32{3, 4, 50, 51}, 0}, {6, []int32{3, 4, 60, 61}, 0}, {6, []int32{3, 4, 70, 71}, 0},
				},
				{
					{2, []int32{3, 4, 97}, 0}, {5, []int32{5, 40, 41}, .25}, {5, []int32{5, 50, 51}, -.75},
					{5, []int32{5, 60, 61}, .25}, {5, []int32{5, 70, 71}, .25},
				},
			},
		},
		{ // Returns of the base prior: the scores at the last budget, 0 and 1.
			"grpo", budget.PriorBase, advantage.V2Only, advantage.LastOnly, [2]float64{-.5, .5}, -.5,
			[2][]branch{
				{{6, []int32{3, 4, 60, 61}, -.5}, {6, []int32{3, 4, 70, 71}, -.5}},
				{{5, []int32{5, 60, 61}, .5}, {5, []int32{5, 70, 71}, .5}},
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := advantage.New(c.prior, s.Budgets, c.thinking, c.summary)
			if err != nil {
				t.Fatal(err)
			}
			examples, err := trainer.FromTraces(m, s, false, traces)
			if err != nil {
				t.Fatal(err)
			}
			answers, err := trainer.FromTraces(m, s, true, traces)
			if err != nil {
				t.Fatal(err)
			}
			for g, e := range answers {
				trunk := len(e.Tree.Trunk)
				if slices.ContainsFunc(e.Weight[:trunk], func(w float32) bool { return w != 0 }) || !slices.Equal(e.Weight[trunk:], examples[g].Weight[trunk:]) ||
					!slices.Equal(e.Advantage[trunk:], examples[g].Advantage[trunk:]) {
					t.Errorf("trace %d, answers only: weights %v", g, e.Weight)
				}
			}
			for g, e := range examples {
				want := model.Tree{Trunk: append([]int32{1, 2}, traces[g].Thinking.IDs...)}
				adv := append([]float64{0, 0}, slices.Repeat([]float64{c.adv[g]}, traces[g].Thinking.Tokens)...)
				if g == 0 {
					want.Trunk, adv = append(want.Trunk, 99), append(adv, c.end)
				}
				for _, b := range c.branches[g] {
					want.Branches = append(want.Branches, model.Branch{At: b.at, Tokens: b.tokens})
					for _, id := range b.tokens {
						if id < 10 {
							adv = append(adv, 0)
						} else {
							adv = append(adv, b.adv)
						}
					}
				}
				if !slices.Equal(e.Tree.Trunk, want.Trunk) || !slices.EqualFunc(e.Tree.Branches, want.Branches, func(a, b model.Branch) bool {
					return a.At == b.At && slices.Equal(a.Tokens, b.Tokens)
				}) {
					t.Fatalf("trace %d: the tree is %v, want %v", g, e.Tree, want)
				}
				for i, id := range want.Tokens() {
					weight, old := 1./38, -float64(id)/100 // 38 = 8 + 3·2·5
					if id < 10 {                           // prompt and closings
						weight, old = 0, 0
					}
					for name, v := range map[string][2]float64{
						"weight": {float64(e.Weight[i]), weight}, "advantage": {float64(e.Advantage[i]), adv[i]}, "old": {float64(e.Old[i]), old},
					} {
						if math.Abs(v[0]-v[1]) > 1e-6 {
							t.Errorf("trace %d, token %d: %s is %v, want %v", g, i, name, v[0], v[1])
						}
					}
				}
				if len(e.Weight) != want.Len() || len(e.Advantage) != want.Len() || len(e.Old) != want.Len() {
					t.Errorf("trace %d: %d weights, %d advantages, %d log-probs of %d tokens", g, len(e.Weight), len(e.Advantage), len(e.Old), want.Len())
				}
			}
		})
	}
}

func TestUnfitTraces(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*rollout.Trace)
		want   string
	}{
		"no ids":       {func(t *rollout.Trace) { t.Thinking.IDs = nil }, "trace 1 of problem \"p\": thinking: 3 tokens have 0 ids"},
		"no log-probs": {func(t *rollout.Trace) { t.Points[1].Summaries[3].LogProbs = nil }, "summary 1 at budget 2: 2 tokens have 2 ids and 0"},
		"no prompt":    {func(t *rollout.Trace) { t.Prompt = nil }, "prompt"},
		"beyond":       {func(t *rollout.Trace) { t.Points[1].After = 4 }, "after 4 of 3"},
		"backwards":    {func(t *rollout.Trace) { t.Points[0].After, t.Points[1].After = 2, 1 }, "after 1 of 3 thinking tokens, behind those after 2"},
	} {
		t.Run(name, func(t *testing.T) {
			s, traces := group()
			c.change(&traces[1])
			m, err := advantage.New(budget.PriorUniform, s.Budgets, advantage.BRPO, advantage.Siblings)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := trainer.FromTraces(m, s, false, traces); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// TestCorrection: three tokens that the trainer finds e, 1 and 1/2 times as likely as the engine, and one that is not trained.
func TestCorrection(t *testing.T) {
	make := func() []model.Example {
		return []model.Example{{Weight: []float32{0, 1, 1, 2}, Old: []float32{0, -3, -1, -1}}}
	}
	logProbs := [][]float32{{-9, -2, -1, -1 - math.Ln2}}
	for _, c := range []struct {
		most        float64
		weight, old []float32
		truncated   float64
	}{
		{0, []float32{0, 1, 1, 2}, []float32{0, -3, -1, -1}, 0},
		{2, []float32{0, 2, 1, 1}, []float32{0, -2, -1, -1 - math.Ln2}, 1. / 3},
		{5, []float32{0, math.E, 1, 1}, []float32{0, -2, -1, -1 - math.Ln2}, 0},
	} {
		x := make()
		m := trainer.Correct(x, logProbs, c.most)
		if near := func(a, b float32) bool { return math.Abs(float64(a-b)) < 1e-6 }; !slices.EqualFunc(x[0].Weight, c.weight, near) || !slices.EqualFunc(x[0].Old, c.old, near) {
			t.Errorf("at most %v: %+v", c.most, x[0])
		}
		if math.Abs(m.Mean-(1+math.Ln2)/3) > 1e-6 || math.Abs(m.Max-1) > 1e-6 || math.Abs(m.Truncated-c.truncated) > 1e-9 {
			t.Errorf("at most %v: %+v", c.most, m)
		}
	}
}
