package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"anytime/internal/eval"
	"anytime/internal/gguf"
	"anytime/internal/report"
	"anytime/internal/train/trainer"
)

var compareCommand = command{
	name: "compare", args: " FOLDER", about: "Compare the recipes of the paper by runs of each",
	manual: `
FOLDER has what runs/comparison.sh makes: the folder base with the evaluation of the model that all began with, and for each run a folder
RECIPE-SEED with what train rl wrote and, in eval, its evaluation on the same problems. Runs that are not finished are named and left out.

-out gets comparison.md and comparison.html with the tables and figures, the figures as PNG, and comparison.json.

`,
	setup: func(flags *flag.FlagSet) runner {
		out := flags.String("out", "", "`folder` of the results; needed")
		return func(_ context.Context, args []string, stdout, _ io.Writer) error {
			switch {
			case len(args) != 1:
				return usagef("it takes one folder of runs; %d are given", len(args))
			case *out == "":
				return usagef("-out is needed: name the folder of the results")
			}
			c, err := readComparison(args[0])
			if err != nil {
				return err
			}
			return c.write(*out, stdout)
		}
	},
}

// comparison is what the runs found. It is written as JSON.
type comparison struct {
	Base       eval.Figures `json:"base"`
	Recipes    []compared   `json:"recipes"` // in the paper's order; those with a run
	Claims     []claim      `json:"claims"`
	Unfinished []string     `json:"unfinished,omitempty"` // runs left out

	base *eval.Report
}

// compared is what the runs of one recipe found, together.
type compared struct {
	Recipe      string       `json:"recipe"`
	Seeds       []int        `json:"seeds"`
	Figures     eval.Figures `json:"figures"`
	AgainstBase eval.Figures `json:"against_base"`
	Rounds      []averages   `json:"rounds"` // means over the runs

	reports []*eval.Report
}

// averages are means over the runs of a recipe in one round of training.
type averages struct {
	Reward   float64 `json:"reward"` // at the largest budget
	Thinking float64 `json:"thinking"`
	Variance float64 `json:"advantage_variance"`
}

// claim is a difference that the paper reports, and what it is here. Differences of accuracy are shares of 1.
type claim struct {
	What    string        `json:"what"`
	Of      string        `json:"of"`
	Against string        `json:"against"`
	Paper   string        `json:"paper"` // its figure, in points, or only the sign
	Found   eval.Estimate `json:"found"`
	Verdict string        `json:"verdict"`
}

const baseFolder = "base"

func readComparison(folder string) (*comparison, error) {
	c := &comparison{}
	var err error
	if c.base, err = eval.ReadFile(filepath.Join(folder, baseFolder, "report.json")); err != nil {
		return nil, err
	}
	if c.Base, err = eval.Pool([]*eval.Report{c.base}); err != nil {
		return nil, err
	}
	for _, recipe := range trainer.Recipes {
		g, err := c.readRecipe(folder, recipe.Name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", recipe.Name, err)
		}
		if len(g.Seeds) > 0 {
			c.Recipes = append(c.Recipes, g)
		}
	}
	if len(c.Recipes) == 0 {
		return nil, fmt.Errorf("%s has no finished run; it must have folders such as brpo-uniform-1 with %s in them", folder, filepath.Join("eval", "report.json"))
	}
	return c, c.claim()
}

// readRecipe reads the finished runs of a recipe.
func (c *comparison) readRecipe(folder, name string) (compared, error) {
	g := compared{Recipe: name}
	found, err := filepath.Glob(filepath.Join(folder, name+"-*"))
	if err != nil {
		return g, err
	}
	slices.Sort(found)
	var runs [][]trainer.Round
	for _, path := range found {
		seed, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(path), name+"-"))
		if err != nil {
			continue // another recipe's
		}
		r, err := eval.ReadFile(filepath.Join(path, "eval", "report.json"))
		if errors.Is(err, os.ErrNotExist) {
			c.Unfinished = append(c.Unfinished, filepath.Base(path))
			continue
		}
		if err != nil {
			return g, err
		}
		rounds, err := readRounds(filepath.Join(path, "metrics.jsonl"))
		if err != nil {
			return g, err
		}
		g.Seeds, g.reports, runs = append(g.Seeds, seed), append(g.reports, r), append(runs, rounds)
	}
	if len(g.Seeds) == 0 {
		return g, nil
	}
	g.Rounds = average(runs)
	if g.Figures, err = eval.Pool(g.reports); err != nil {
		return g, err
	}
	g.AgainstBase, err = eval.Compare(g.reports, []*eval.Report{c.base})
	return g, err
}

// readRounds reads the metrics of a run.
func readRounds(path string) ([]trainer.Round, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var rounds []trainer.Round
	for d := json.NewDecoder(bytes.NewReader(data)); ; {
		var r trainer.Round
		switch err := d.Decode(&r); {
		case errors.Is(err, io.EOF) && len(rounds) == 0:
			return nil, fmt.Errorf("%s has no rounds", path)
		case errors.Is(err, io.EOF):
			return rounds, nil
		case err != nil:
			return nil, fmt.Errorf("%s: round %d: %w", path, len(rounds)+1, err)
		case len(r.Accuracy) == 0:
			return nil, fmt.Errorf("%s: round %d has no accuracy; it must be the metrics of train rl", path, len(rounds)+1)
		}
		rounds = append(rounds, r)
	}
}

// average takes the means over runs, as far as all of them went.
func average(runs [][]trainer.Round) []averages {
	n := len(runs[0])
	for _, r := range runs {
		n = min(n, len(r))
	}
	list := make([]averages, n)
	for _, r := range runs {
		for i, round := range r[:n] {
			share := 1 / float64(len(runs))
			list[i].Reward += share * round.Accuracy[len(round.Accuracy)-1].Mean
			list[i].Thinking += share * round.Thinking
			list[i].Variance += share * round.AdvantageVariance
		}
	}
	return list
}

func (c *comparison) find(recipe string) (compared, bool) {
	i := slices.IndexFunc(c.Recipes, func(g compared) bool { return g.Recipe == recipe })
	if i < 0 {
		return compared{}, false
	}
	return c.Recipes[i], true
}

// The paper's differences are read off its curves of the average over five data sets (arXiv 2505.13438), to 0.4 points or so; of the
// ablations it is the sign that it reports.
var paperClaims = []struct {
	of, against, what, paper string
	figure                   func(eval.Figures) eval.Estimate
}{
	{"brpo-uniform", "grpo", "mean accuracy", "+3.0", meanOf},
	{"brpo-uniform", "grpo", "accuracy at the smallest budget", "+5.1", smallest},
	{"brpo-uniform", "grpo", "accuracy at the largest budget", "+1.8", largest},
	{"brpo-uniform", baseFolder, "mean accuracy", "+6.3", meanOf},
	{"grpo", baseFolder, "mean accuracy", "+3.3", meanOf},
	{"grpo", baseFolder, "accuracy at the largest budget", "+5.1", largest},
	{"grpo-linear", "grpo", "mean accuracy", "+", meanOf},
	{"grpo-decouple", "grpo", "mean accuracy", "+", meanOf},
	{"grpo-vr", "grpo", "mean accuracy", "+", meanOf},
	{"brpo-base", "grpo-decouple", "mean accuracy", "+", meanOf},
}

func meanOf(f eval.Figures) eval.Estimate   { return f.Mean }
func smallest(f eval.Figures) eval.Estimate { return f.Accuracy[0] }
func largest(f eval.Figures) eval.Estimate  { return f.Accuracy[len(f.Accuracy)-1] }

// claim sets what was found beside what the paper claims.
func (c *comparison) claim() error {
	for _, p := range paperClaims {
		of, ok := c.find(p.of)
		against := compared{reports: []*eval.Report{c.base}}
		if p.against != baseFolder {
			var found bool
			against, found = c.find(p.against)
			ok = ok && found
		}
		if !ok {
			continue
		}
		f, err := eval.Compare(of.reports, against.reports)
		if err != nil {
			return fmt.Errorf("compare %s with %s: %w", p.of, p.against, err)
		}
		c.Claims = append(c.Claims, claim{p.what, p.of, p.against, p.paper, p.figure(f), verdict(p.figure(f), 1)})
	}
	// The two differ in nothing but the baseline of the thinking; their rounds have the same problems.
	of, ok := c.find("brpo-base")
	against, found := c.find("grpo-decouple")
	if ok && found && slices.Equal(of.Seeds, against.Seeds) {
		var differences []float64
		for i := range min(len(of.Rounds), len(against.Rounds)) {
			differences = append(differences, of.Rounds[i].Variance-against.Rounds[i].Variance)
		}
		e := eval.Mean(1, differences)
		c.Claims = append(c.Claims, claim{varianceClaim, of.Recipe, against.Recipe, "−", e, verdict(e, -1)})
	}
	return nil
}

const varianceClaim = "mean variance of the advantages"

// verdict says whether a difference has the sign that the paper reports.
func verdict(e eval.Estimate, sign float64) string {
	switch {
	case min(e.Low*sign, e.High*sign) > 0:
		return "as in the paper"
	case max(e.Low*sign, e.High*sign) < 0:
		return "the opposite"
	}
	return "not decided"
}

func (c *comparison) write(out string, stdout io.Writer) error {
	if err := os.MkdirAll(out, 0o755); err != nil { //nolint:gosec // as any output
		return err
	}
	page := c.page()
	files := map[string]func(io.Writer) error{
		"comparison.md": page.WriteMarkdown, "comparison.html": page.WriteHTML,
		"comparison.json": func(w io.Writer) error {
			e := json.NewEncoder(w)
			e.SetEscapeHTML(false)
			return e.Encode(c)
		},
	}
	for _, s := range page.Sections {
		if s.Chart != nil {
			files[s.File] = s.Chart.WritePNG
		}
	}
	for name, write := range files {
		if err := gguf.WriteFile(filepath.Join(out, name), write); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	for _, s := range page.Sections {
		if s.Table != nil {
			fmt.Fprintln(stdout, s.Heading)
			if err := s.Table.WriteText(stdout); err != nil {
				return err
			}
			fmt.Fprintln(stdout)
		}
	}
	fmt.Fprintln(stdout, filepath.Join(out, "comparison.html"))
	return nil
}

// page shows the comparison.
func (c *comparison) page() report.Page {
	budgets := c.Base.Budgets
	seeds := 0
	for _, g := range c.Recipes {
		seeds += len(g.Seeds)
	}
	page := report.Page{
		Title: "The recipes of the paper, in small",
		Lead: fmt.Sprintf("%d runs of %d recipes from the same model, each evaluated on %d problems (%s) at the budgets %s. Intervals are of 95 %%.",
			seeds, len(c.Recipes), len(c.base.Problems), c.base.Data, strings.ReplaceAll(strings.Trim(fmt.Sprint(budgets), "[]"), " ", ", ")),
	}
	accuracy := accuracyChart("Accuracy on " + c.base.Data)
	accuracy.Series = append(accuracy.Series, accuracySeries(baseFolder, c.base, true))
	table := &report.Table{Head: []string{"accuracy, %", "seeds"}}
	for _, b := range budgets {
		table.Head = append(table.Head, fmt.Sprint(b))
	}
	table.Head = append(table.Head, "mean", "95 % interval", "tokens of a thought")
	row := func(name, seeds string, f eval.Figures) []string {
		cells := []string{name, seeds}
		for _, e := range f.Accuracy {
			cells = append(cells, fmt.Sprintf("%.1f", 100*e.Mean))
		}
		return append(cells, fmt.Sprintf("%.1f", 100*f.Mean.Mean), fmt.Sprintf("%.1f to %.1f", 100*f.Mean.Low, 100*f.Mean.High), fmt.Sprintf("%.0f", f.Tokens.Mean))
	}
	table.Rows = append(table.Rows, row(baseFolder, "", c.Base))
	gain := report.Chart{Title: "Accuracy against the base model", X: accuracy.X, Y: "percentage points"}
	gain.Series = append(gain.Series, report.Series{Name: baseFolder, X: accuracy.Series[0].X, Y: make([]float64, len(budgets)), Reference: true})
	base := &report.Table{Head: []string{"recipe", "mean", "95 % interval", fmt.Sprintf("at %d", budgets[len(budgets)-1]), "95 % interval", "tokens of a thought", "95 % interval"}}
	training := &report.Table{Head: []string{"recipe", "rounds", "advantage variance", "reward, first rounds", "reward, last rounds", "thinking, first", "thinking, last"}}
	charts := []report.Chart{
		{Title: "Reward at the largest budget, in training", X: "round", Y: "right answers", Share: true},
		{Title: "Thinking tokens, in training", X: "round", Y: "tokens of a thought (mean)"},
		{Title: "Variance of the advantages, in training", X: "round", Y: "variance"},
	}
	for _, g := range c.Recipes {
		table.Rows = append(table.Rows, row(g.Recipe, fmt.Sprint(len(g.Seeds)), g.Figures))
		d, last := g.AgainstBase, largest(g.AgainstBase)
		base.Rows = append(base.Rows, []string{
			g.Recipe, points(d.Mean.Mean), pointsInterval(d.Mean), points(last.Mean), pointsInterval(last),
			fmt.Sprintf("%+.0f", d.Tokens.Mean), fmt.Sprintf("%+.0f to %+.0f", d.Tokens.Low, d.Tokens.High),
		})
		training.Rows = append(training.Rows, g.trainingRow())
	}
	// The lines of those with more seeds come first.
	ranked := slices.SortedStableFunc(slices.Values(c.Recipes), func(a, b compared) int { return len(b.Seeds) - len(a.Seeds) })
	for _, g := range ranked {
		accuracy.Series = append(accuracy.Series, g.series(budgets, g.Figures.Accuracy, 1))
		gain.Series = append(gain.Series, g.series(budgets, g.AgainstBase.Accuracy, 100))
		lines := [3]report.Series{{Name: g.Recipe}, {Name: g.Recipe}, {Name: g.Recipe}}
		for i, r := range g.Rounds {
			for k, v := range []float64{r.Reward, r.Thinking, r.Variance} {
				lines[k].X, lines[k].Y = append(lines[k].X, float64(i+1)), append(lines[k].Y, v)
			}
		}
		for k := range charts {
			lines[k].Y = smooth(lines[k].Y)
			charts[k].Series = append(charts[k].Series, lines[k])
		}
	}
	page.Sections = []report.Section{
		{Heading: "Accuracy", Chart: &accuracy, File: "accuracy.png", Table: table, Note: "Bands where there are several seeds: over problems and seeds."},
		{Heading: "Against the base model", Chart: &gain, File: "gain.png", Table: base, Note: "In percentage points and tokens; paired by problem."},
		{Heading: "What the paper found, and what was found here", Table: c.claimTable(),
			Note: "The paper's figures are points of the average accuracy over five sets of mathematics with a model of 1.5B parameters at budgets of 1k to 8k tokens, read off its curves. " +
				"As in the paper: the interval lies on its side of 0."},
		{Heading: "Training", Chart: &charts[0], File: "reward.png", Table: training, Note: "First and last: means over the first and the last fifth of the rounds. Lines are means over the seeds and over five rounds."},
		{Chart: &charts[1], File: "thinking.png"},
		{Chart: &charts[2], File: "variance.png"},
	}
	if len(c.Unfinished) > 0 {
		page.Sections = append(page.Sections, report.Section{Heading: "Not finished", Text: []string{strings.Join(c.Unfinished, ", ")}})
	}
	return page
}

// series is a recipe's line over budgets, with the interval where there are several seeds: more bands would hide the lines.
func (g compared) series(budgets []int, estimates []eval.Estimate, scale float64) report.Series {
	s := report.Series{Name: g.Recipe}
	for i, e := range estimates {
		s.X, s.Y = append(s.X, float64(budgets[i])), append(s.Y, scale*e.Mean)
		if len(g.Seeds) > 1 {
			s.Low, s.High = append(s.Low, scale*e.Low), append(s.High, scale*e.High)
		}
	}
	return s
}

// smooth takes the mean of each value and those at most two away.
func smooth(values []float64) []float64 {
	smoothed := make([]float64, len(values))
	for i := range values {
		near := values[max(0, i-2):min(len(values), i+3)]
		for _, v := range near {
			smoothed[i] += v / float64(len(near))
		}
	}
	return smoothed
}

// trainingRow is a recipe's line of the table of training.
func (g compared) trainingRow() []string {
	n := len(g.Rounds) // not 0
	few := max(1, n/5)
	mean := func(rounds []averages, of func(averages) float64) (sum float64) {
		for _, r := range rounds {
			sum += of(r) / float64(len(rounds))
		}
		return sum
	}
	reward := func(r averages) float64 { return r.Reward }
	thinking := func(r averages) float64 { return r.Thinking }
	first, last := g.Rounds[:few], g.Rounds[n-few:]
	return []string{
		g.Recipe, fmt.Sprint(n), fmt.Sprintf("%.4f", mean(g.Rounds, func(r averages) float64 { return r.Variance })),
		percent(mean(first, reward)), percent(mean(last, reward)), fmt.Sprintf("%.0f", mean(first, thinking)), fmt.Sprintf("%.0f", mean(last, thinking)),
	}
}

func (c *comparison) claimTable() *report.Table {
	t := &report.Table{Head: []string{"difference", "paper", "here", "95 % interval", ""}}
	for _, x := range c.Claims {
		found, between := points(x.Found.Mean), pointsInterval(x.Found)
		if x.What == varianceClaim {
			found, between = fmt.Sprintf("%+.4f", x.Found.Mean), fmt.Sprintf("%+.4f to %+.4f", x.Found.Low, x.Found.High)
		}
		t.Rows = append(t.Rows, []string{x.Of + " against " + x.Against + ": " + x.What, x.Paper, found, between, x.Verdict})
	}
	return t
}
