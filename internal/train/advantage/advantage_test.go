package advantage_test

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"anytime/internal/budget"
	"anytime/internal/train/advantage"
)

func golden(t *testing.T) advantage.File {
	t.Helper()
	data, err := os.ReadFile("testdata/advantages.json")
	if err != nil {
		t.Fatal(err)
	}
	f, err := advantage.Read(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// farthest is the largest difference of two matrices; infinite if their shapes differ.
func farthest(a, b [][]float64) (d float64) {
	if len(a) != len(b) {
		return math.Inf(1)
	}
	for i := range a {
		if len(a[i]) != len(b[i]) {
			return math.Inf(1)
		}
		for j := range a[i] {
			d = max(d, math.Abs(a[i][j]-b[i][j]))
		}
	}
	return d
}

// TestGolden computes every case of the reference implementation anew, with the probabilities of the file and with the prior's.
func TestGolden(t *testing.T) {
	want := golden(t)
	if len(want.Cases) != 144 {
		t.Fatalf("%d cases", len(want.Cases))
	}
	for i, c := range want.Cases {
		t.Run(fmt.Sprintf("%d %s %s %s", i, c.Prior, c.Thinking, c.Summary), func(t *testing.T) {
			for _, probs := range [][]float64{c.BudgetProbs, nil} {
				got := c
				got.BudgetProbs, got.ThinkingAdvantage, got.SummaryAdvantage = probs, nil, nil
				if err := got.Compute(); err != nil {
					t.Fatal(err)
				}
				if d := farthest([][]float64{got.BudgetProbs}, [][]float64{c.BudgetProbs}); d > 1e-5 {
					t.Errorf("probabilities are %v, want %v", got.BudgetProbs, c.BudgetProbs)
				}
				if d := farthest(got.ThinkingAdvantage, c.ThinkingAdvantage); d > 1e-5 {
					t.Errorf("thinking advantages are off by %g", d)
				}
				if d := farthest(got.SummaryAdvantage, c.SummaryAdvantage); d > 1e-5 {
					t.Errorf("summary advantages are off by %g", d)
				}
			}
		})
	}
}

func TestFileKeepsItsForm(t *testing.T) {
	f := golden(t)
	if err := f.Compute(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := f.Write(&out); err != nil {
		t.Fatal(err)
	}
	again, err := advantage.Read(&out)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range again.Cases {
		if farthest(c.ThinkingAdvantage, f.Cases[i].ThinkingAdvantage)+farthest(c.SummaryAdvantage, f.Cases[i].SummaryAdvantage) != 0 {
			t.Errorf("case %d changed", i)
		}
	}
	if again.About != f.About || len(again.Cases) != len(f.Cases) {
		t.Errorf("%d cases about %q", len(again.Cases), again.About)
	}
}

// TestByHand is small enough to follow: two traces, budgets 100 and 300 under the linear prior (1/4, 3/4), one summary at each.
func TestByHand(t *testing.T) {
	scores := advantage.Scores{
		Score: [][][]float64{{{0}, {1}}, {{1}, {1}}},
		Taken: [][]int{{0, 1}, {0, 0}},
	}
	// Returns: 3/4, 3/4 and 1, 3/4. V2: 7/8, 3/4. V1 at the second budget: 0·3/4 and 1·3/4.
	for _, c := range []struct {
		thinking advantage.Thinking
		want     [][]float64
	}{
		{advantage.None, [][]float64{{.75, .75}, {1, .75}}},
		{advantage.V2Only, [][]float64{{-.125, 0}, {.125, 0}}},
		{advantage.V1Only, [][]float64{{.75, .75}, {1, 0}}},
		{advantage.BRPO, [][]float64{{-.125, .375}, {.125, 0}}},
	} {
		m, err := advantage.New(budget.PriorLinear, []int{100, 300}, c.thinking, advantage.Siblings)
		if err != nil {
			t.Fatal(err)
		}
		thinking, summary, err := m.Compute(scores)
		if err != nil {
			t.Fatal(err)
		}
		if d := farthest(thinking, c.want); d > 1e-12 {
			t.Errorf("%s: %v, want %v", c.thinking, thinking, c.want)
		}
		if got, want := fmt.Sprint(summary), "[[[-0.5] [0]] [[0.5] [0]]]"; got != want {
			t.Errorf("summaries: %s, want %s", got, want)
		}
	}
}

func TestBadInput(t *testing.T) {
	const good = `{"prior":"uniform","thinking_baseline":"brpo","summary_baseline":"siblings","prompts":1,"traces":1,"budgets":3,"summaries":1,` +
		`"scores":[[0,1,1]],"budget_index":[[0,1,1]]}`
	for _, c := range []struct{ name, old, new, want string }{
		{"good", "", "", ""},
		{"prior", "uniform", "zipf", "zipf"},
		{"thinking", "brpo", "ppo", "v1only"},
		{"summary", `siblings"`, `mean"`, "group_last_budget_only"},
		{"no prompts", `"prompts":1`, `"prompts":0`, "prompts is 0"},
		{"too many prompts", `"prompts":1`, `"prompts":2`, "prompts * traces is 2"},
		{"huge", `"prompts":1`, `"prompts":9000000000000000000`, "65536"},
		{"short row", "[[0,1,1]],", "[[0,1]],", "row 0 has 2 scores"},
		{"index ahead", "[[0,1,1]]}", "[[0,2,2]]}", "budget indices [0 2 2]"},
		{"index negative", "[[0,1,1]]}", "[[-1,1,1]]}", "budget indices [-1 1 1]"},
		{"index comes back", "[[0,1,1]]}", "[[0,0,2]]}", "budget indices [0 0 2]"},
		{"probabilities", `"scores"`, `"budget_probs":[1,1,1],"scores"`, "add up to 3"},
		{"probabilities' count", `"scores"`, `"budget_probs":[0.5,0.5],"scores"`, "2 budget_probs for 3"},
		{"negative probability", `"scores"`, `"budget_probs":[-1,1,1],"scores"`, "from 0 to 1"},
		{"unknown key", `"prior"`, `"priors":1,"prior"`, "priors"},
		{"not JSON", "{", "[", "read advantage cases"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := advantage.Read(strings.NewReader(`{"cases":[` + strings.Replace(good, c.old, c.new, 1) + "]}"))
			if err == nil {
				err = f.Compute()
			}
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}
