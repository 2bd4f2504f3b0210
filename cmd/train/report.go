package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"anytime/internal/eval"
	"anytime/internal/report"
)

// evaluationPage shows a report, beside another of the same problems if there is one.
func evaluationPage(r, other *eval.Report) (report.Page, error) {
	name := modelName(r)
	first, last := r.Points[0], r.Points[len(r.Points)-1]
	page := report.Page{
		Title: "Accuracy of " + name,
		Lead: fmt.Sprintf("%s, %d problems: %s right after %d thinking tokens, %s after %d. %s", r.Data, len(r.Problems), percent(first.Accuracy.Mean),
			first.Budget, percent(last.Accuracy.Mean), last.Budget, recommendation(r)),
	}
	chart := accuracyChart(name + " on " + r.Data)
	if other != nil {
		chart.Series = append(chart.Series, accuracySeries(modelName(other), other, true))
	}
	chart.Series = append(chart.Series, accuracySeries(name, r, false))
	table := &report.Table{Head: []string{"budget", "tokens used", "accuracy", "95 % interval"}}
	votes := r.Settings.Summaries > 1
	if votes {
		table.Head = append(table.Head, fmt.Sprintf("majority of %d", r.Settings.Summaries), "95 % interval")
		chart.Series = append(chart.Series, majoritySeries(r))
	}
	table.Head = append(table.Head, "well-formed")
	tokens := report.Chart{Title: "Thinking tokens used", X: "budget (thinking tokens)", Y: "tokens used (mean)"}
	budgets, used := make([]float64, len(r.Points)), make([]float64, len(r.Points))
	for i, p := range r.Points {
		row := []string{fmt.Sprint(p.Budget), fmt.Sprintf("%.1f", p.Tokens), percent(p.Accuracy.Mean), interval(p.Accuracy)}
		if votes {
			row = append(row, percent(p.Majority.Mean), interval(p.Majority))
		}
		table.Rows = append(table.Rows, append(row, percent(p.WellFormed)))
		budgets[i], used[i] = float64(p.Budget), p.Tokens
	}
	tokens.Series = []report.Series{{Name: "all of the budget", X: budgets, Y: budgets, Reference: true}, {Name: name, X: budgets, Y: used}}
	page.Sections = []report.Section{{
		Chart: &chart, Table: table,
		Note: fmt.Sprintf("Mean over the budgets: %s (%s).", percent(r.Mean.Mean), interval(r.Mean)),
	}}
	if other != nil {
		c, err := eval.Compare([]*eval.Report{r}, []*eval.Report{other})
		if err != nil {
			return page, fmt.Errorf("the reports cannot be compared: %w", err)
		}
		page.Sections = append(page.Sections, report.Section{
			Heading: "Against " + modelName(other), Table: comparisonTable(c),
			Note: "Differences in accuracy on the same problems, in percentage points; intervals of a paired bootstrap over the problems.",
		})
	}
	if sets := setsTable(r); sets != nil {
		page.Sections = append(page.Sections, report.Section{
			Heading: "By set", Table: sets, Note: "Accuracy at each budget in percent; the last line is the mean of the sets, each of which counts the same.",
		})
	}
	page.Sections = append(page.Sections, report.Section{
		Heading: "Tokens", Chart: &tokens,
		Text: []string{fmt.Sprintf("%s of the thoughts ended by themselves within %d tokens.", percent(r.Ended), last.Budget)},
	}, report.Section{
		Heading: "How it was measured",
		Text: []string{
			fmt.Sprintf("Model %s%s. Problems: %d of %s. Thoughts about each: %d; answers at each budget of a thought: %d, of at most %d tokens. Temperature %v, top-p %v, seed %d.",
				r.Settings.Model, withAdapter(r), len(r.Problems), r.Data, r.Settings.Traces, r.Settings.Summaries, r.Settings.SummaryTokens,
				r.Settings.Sampling.Temperature, r.Settings.Sampling.TopP, r.Settings.Seed),
			"One thought serves all budgets: at each, a fork of it is closed and made to answer while the thought goes on. Answers are found as serving finds them, and verified. " +
				"Intervals are percentiles of 2000 bootstrap draws of the problems; where all or no answers are right, Clopper and Pearson's. " +
				"An answer is well-formed if it is boxed and no reasoning leaked into it. " +
				"The budget recommended is the knee of the accuracy over the tokens used (Kneedle: farthest ahead of the straight line from the smallest to the best budget), " +
				"or the best where there is none, or the smallest if what the best gains over it is not beyond doubt.",
		},
	})
	return page, nil
}

// setsTable has the accuracy on each of several data sets; nil if there is one. Of several, a problem's id begins with the set's name.
func setsTable(r *eval.Report) *report.Table {
	names := strings.Split(r.Data, dataSeparator)
	if len(names) < 2 {
		return nil
	}
	t := &report.Table{Head: []string{"set", "problems"}}
	for _, p := range r.Points {
		t.Head = append(t.Head, fmt.Sprint(p.Budget))
	}
	row := func(name, problems string, shares []float64) {
		cells := []string{name, problems}
		for _, share := range shares {
			cells = append(cells, fmt.Sprintf("%.1f", 100*share))
		}
		t.Rows = append(t.Rows, cells)
	}
	all, sets := make([]float64, len(r.Points)), 0.0
	for _, name := range names {
		sums, n := make([]float64, len(r.Points)), 0.0
		for _, p := range r.Problems {
			if strings.HasPrefix(p.ID, name+"/") {
				n++
				for i, share := range p.Accuracy {
					sums[i] += share
				}
			}
		}
		if n == 0 { // none was drawn
			continue
		}
		sets++
		for i := range sums {
			sums[i] /= n
			all[i] += sums[i]
		}
		row(name, fmt.Sprint(n), sums)
	}
	for i := range all {
		all[i] /= sets
	}
	row("mean", fmt.Sprint(len(r.Problems)), all)
	return t
}

func accuracyChart(title string) report.Chart {
	return report.Chart{Title: title, X: "budget (thinking tokens)", Y: "right answers", Share: true}
}

func accuracySeries(name string, r *eval.Report, reference bool) report.Series {
	s := report.Series{Name: name, Reference: reference}
	for _, p := range r.Points {
		s.X, s.Y = append(s.X, float64(p.Budget)), append(s.Y, p.Accuracy.Mean)
		s.Low, s.High = append(s.Low, p.Accuracy.Low), append(s.High, p.Accuracy.High)
	}
	return s
}

func majoritySeries(r *eval.Report) report.Series {
	s := report.Series{Name: fmt.Sprintf("majority of %d", r.Settings.Summaries)}
	for _, p := range r.Points {
		s.X, s.Y = append(s.X, float64(p.Budget)), append(s.Y, p.Majority.Mean)
	}
	return s
}

func comparisonTable(c eval.Figures) *report.Table {
	t := &report.Table{Head: []string{"budget", "difference", "95 % interval"}}
	for i, b := range c.Budgets {
		t.Rows = append(t.Rows, []string{fmt.Sprint(b), points(c.Accuracy[i].Mean), pointsInterval(c.Accuracy[i])})
	}
	t.Rows = append(t.Rows, []string{"mean", points(c.Mean.Mean), pointsInterval(c.Mean)})
	return t
}

func recommendation(r *eval.Report) string {
	if !(r.Gain.Low > 0) {
		return fmt.Sprintf("Recommended budget: %d, the smallest, for it is not beyond doubt that more thinking gains anything (%s points, 95 %%: %s).",
			r.Default, points(r.Gain.Mean), pointsInterval(r.Gain))
	}
	best := slices.MaxFunc(r.Points, func(a, b eval.Point) int { return cmp.Compare(a.Accuracy.Mean, b.Accuracy.Mean) })
	if best.Budget == r.Default {
		return fmt.Sprintf("Recommended budget: %d, the best, for there is no knee before it (the gain is %s points).", r.Default, points(r.Gain.Mean))
	}
	for _, p := range r.Points {
		if p.Budget == r.Default {
			return fmt.Sprintf("Recommended budget: %d, the knee (%s of the gain of %s points).", r.Default,
				percent((p.Accuracy.Mean-r.Points[0].Accuracy.Mean)/r.Gain.Mean), points(r.Gain.Mean))
		}
	}
	return ""
}

// modelName is a model's name without the hash.
func modelName(r *eval.Report) string {
	name, _, _ := strings.Cut(r.Settings.Model, "@")
	name = strings.TrimSuffix(name, ".gguf")
	if r.Settings.Adapter != "" {
		adapter, _, _ := strings.Cut(r.Settings.Adapter, "@")
		name += " with " + strings.TrimSuffix(adapter, ".gguf")
	}
	return name
}

func withAdapter(r *eval.Report) string {
	if r.Settings.Adapter == "" {
		return ""
	}
	return " with the adapter " + r.Settings.Adapter
}

func percent(share float64) string { return fmt.Sprintf("%.1f %%", 100*share) }

func interval(e eval.Estimate) string { return fmt.Sprintf("%.1f to %.1f %%", 100*e.Low, 100*e.High) }

// points are percentage points, as differences of shares are told.
func points(share float64) string { return fmt.Sprintf("%+.1f", 100*share) }

func pointsInterval(e eval.Estimate) string { return points(e.Low) + " to " + points(e.High) }
