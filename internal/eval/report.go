package eval

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"

	"anytime/internal/budget"
	"anytime/internal/train/rollout"
	"anytime/internal/train/task"
)

// Report is what an evaluation found.
type Report struct {
	Format   string           `json:"format"`
	Settings rollout.Settings `json:"settings"`
	Data     string           `json:"data"`   // what was asked
	Digest   string           `json:"digest"` // of the problems
	Points   []Point          `json:"points"` // at each budget, ascending. [S]
	Mean     Estimate         `json:"mean"`   // of the accuracy over the budgets: the anytime mean
	// Ended is the share of thoughts that ended by themselves within the largest budget.
	Ended float64 `json:"ended"`
	// Gain is what the best budget adds to the accuracy of the smallest.
	Gain Estimate `json:"gain"`
	// Default is the budget recommended: the knee of the accuracy over the tokens used, or, if thinking does not help beyond doubt, the
	// smallest.
	Default  int       `json:"default"`
	Problems []Problem `json:"problems"`
}

// Point is what was found at a budget.
type Point struct {
	Budget     int      `json:"budget"`      // thinking tokens that were allowed
	Tokens     float64  `json:"tokens"`      // that were used on average: a thought may end by itself
	Accuracy   Estimate `json:"accuracy"`    // share of right answers
	Majority   Estimate `json:"majority"`    // share of right answers by majority over the votes
	WellFormed float64  `json:"well_formed"` // share of summaries whose answer is boxed and into which no reasoning leaked
}

// Problem is what was found of one problem.
type Problem struct {
	ID       string    `json:"id"`
	Accuracy []float64 `json:"accuracy"` // at each budget, mean over thoughts and votes. [S]
	Majority []float64 `json:"majority"` // mean over thoughts. [S]
	Tokens   float64   `json:"tokens"`   // of its thoughts, on average
}

const format = "anytime evaluation 1"

// summarize computes the figures from those of the problems, and from the counts in the points.
func (r *Report) summarize() {
	thoughts := float64(len(r.Problems) * r.Settings.Traces)
	r.Ended /= thoughts
	f := pool([]*Report{r})
	best := 0
	for i := range r.Points {
		p := &r.Points[i]
		p.Tokens, p.WellFormed = p.Tokens/thoughts, p.WellFormed/(thoughts*float64(r.Settings.Summaries))
		p.Accuracy, p.Majority = f.Accuracy[i], f.Majority[i]
		if p.Accuracy.Mean > r.Points[best].Accuracy.Mean {
			best = i
		}
	}
	r.Mean = f.Mean
	gain := make([]float64, len(r.Problems))
	for i, p := range r.Problems {
		gain[i] = p.Accuracy[best] - p.Accuracy[0]
	}
	r.Gain = Mean(r.Settings.Seed, gain)
	if r.Default = r.Points[0].Budget; r.Gain.Low > 0 {
		r.Default = r.Points[knee(r.Points[:best+1])].Budget
	}
}

// series are the values of each problem: accuracy and majority at each budget, mean accuracy, tokens. [B, 2S+2]
func (r *Report) series() [][]float64 {
	values := make([][]float64, len(r.Problems))
	for i, p := range r.Problems {
		values[i] = slices.Concat(p.Accuracy, p.Majority, []float64{mean(p.Accuracy), p.Tokens})
	}
	return values
}

// knee returns the index of the knee of a curve that rises to its last point: where the accuracy is farthest ahead of the tokens, both as
// shares of their whole rise (Satopää et al., Finding a "Kneedle" in a Haystack, 2011). Where it is nowhere a tenth ahead, it rises as a
// line does or comes only at the end: then there is no knee, and the last point is taken.
func knee(points []Point) int {
	first, last := points[0], points[len(points)-1]
	at, most := len(points)-1, 0.1
	for i, p := range points {
		tokens := 1.0
		if last.Tokens > first.Tokens {
			tokens = (p.Tokens - first.Tokens) / (last.Tokens - first.Tokens)
		}
		ahead := (p.Accuracy.Mean-first.Accuracy.Mean)/(last.Accuracy.Mean-first.Accuracy.Mean) - tokens
		if ahead > most {
			at, most = i, ahead
		}
	}
	return at
}

// Curve is what is kept beside the weights.
func (r *Report) Curve() budget.Curve {
	c := budget.Curve{
		Model: r.Settings.Model, Adapter: r.Settings.Adapter, Data: r.Data, Problems: len(r.Problems), Default: r.Default,
	}
	for _, p := range r.Points {
		c.Points = append(c.Points, budget.CurvePoint{
			Budget: p.Budget, Tokens: p.Tokens, Accuracy: p.Accuracy.Mean, Low: p.Accuracy.Low, High: p.Accuracy.High,
		})
	}
	return c
}

// Write writes a report as JSON.
func (r *Report) Write(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(r)
}

// ReadFile reads a report.
func ReadFile(path string) (*Report, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read evaluation: %w", err)
	}
	var r Report
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("read evaluation %s: %w; it must be a report.json of train eval", path, err)
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("read evaluation %s: %w", path, err)
	}
	return &r, nil
}

func (r *Report) check() error {
	if r.Format != format {
		return fmt.Errorf("its format is %.32q; it must be %q", r.Format, format)
	}
	if err := r.Settings.Validate(); err != nil {
		return err
	}
	budgets := r.Settings.Budgets
	if len(r.Points) != len(budgets) || len(r.Problems) == 0 {
		return fmt.Errorf("it has %d points for %d budgets, and %d problems", len(r.Points), len(budgets), len(r.Problems))
	}
	for i, p := range r.Points {
		if p.Budget != budgets[i] {
			return fmt.Errorf("point %d is of budget %d, the settings say %d", i, p.Budget, budgets[i])
		}
	}
	for _, p := range r.Problems {
		values := slices.Concat(p.Accuracy, p.Majority)
		if !(p.Tokens >= 0) || len(p.Accuracy) != len(budgets) || len(p.Majority) != len(budgets) || slices.ContainsFunc(values, func(v float64) bool { return !(v >= 0 && v <= 1) }) {
			return fmt.Errorf("problem %q has not %d accuracies and majorities from 0 to 1, and tokens", p.ID, len(budgets))
		}
	}
	return r.Curve().Validate()
}

// Figures are those of some runs, or their differences to those of others.
type Figures struct {
	Budgets  []int      `json:"budgets"`
	Accuracy []Estimate `json:"accuracy"` // at each budget. [S]
	Majority []Estimate `json:"majority"` // [S]
	Mean     Estimate   `json:"mean"`     // of the accuracies over the budgets
	Tokens   Estimate   `json:"tokens"`   // of a thought, within the largest budget
}

func figures(budgets []int, e []Estimate) Figures {
	n := len(budgets)
	return Figures{Budgets: budgets, Accuracy: e[:n], Majority: e[n : 2*n], Mean: e[2*n], Tokens: e[2*n+1]}
}

// Pool returns the figures of some runs of the same problems together, such as one for each seed of a training.
func Pool(reports []*Report) (Figures, error) {
	if err := alike(reports); err != nil {
		return Figures{}, err
	}
	return pool(reports), nil
}

func pool(reports []*Report) Figures {
	first := reports[0]
	e := bootstrap(first.Settings.Seed, runs(reports), nil)
	for i := range e[:len(e)-1] { // all but the tokens
		e[i] = e[i].share(len(first.Problems))
	}
	return figures(first.Settings.Budgets, e)
}

// Compare subtracts from the figures of some runs those of others, paired by problem.
func Compare(of, against []*Report) (Figures, error) {
	if err := errors.Join(alike(of), alike(against)); err != nil {
		return Figures{}, err
	}
	if err := alike(slices.Concat(of, against)); err != nil {
		return Figures{}, err
	}
	first := of[0]
	return figures(first.Settings.Budgets, bootstrap(first.Settings.Seed, runs(of), runs(against))), nil
}

func runs(reports []*Report) (values [][][]float64) {
	for _, r := range reports {
		values = append(values, r.series())
	}
	return values
}

// alike says why reports cannot be set side by side.
func alike(reports []*Report) error {
	if len(reports) == 0 {
		return errors.New("there is no report")
	}
	first := reports[0]
	for _, r := range reports[1:] {
		if err := first.comparable(r.Digest, r.Settings.Budgets); err != nil {
			return err
		}
	}
	return nil
}

// Comparable says why what is found of problems at budgets cannot be compared with the report, before it is found.
func (r *Report) Comparable(problems []task.Problem, budgets []int) error {
	return r.comparable(digest(problems), budgets)
}

func (r *Report) comparable(digest string, budgets []int) error {
	switch {
	case r.Digest != digest:
		return fmt.Errorf("there are other problems than the %d of %q; both must be evaluated with the same data, number of problems and seed", len(r.Problems), r.Data)
	case !slices.Equal(r.Settings.Budgets, budgets):
		return fmt.Errorf("their budgets are %v and %v; they must be the same", r.Settings.Budgets, budgets)
	}
	return nil
}

func mean(list []float64) float64 {
	sum := 0.0
	for _, v := range list {
		sum += v
	}
	return sum / math.Max(1, float64(len(list)))
}
