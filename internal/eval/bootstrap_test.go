package eval_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"anytime/internal/eval"
)

// column makes series of one value a problem.
func column(values ...float64) [][]float64 {
	series := make([][]float64, len(values))
	for i, v := range values {
		series[i] = []float64{v}
	}
	return series
}

// drawn are n problems, right with the given probability.
func drawn(rng *rand.Rand, n int, p float64) []float64 {
	values := make([]float64, n)
	for i := range values {
		if rng.Float64() < p {
			values[i] = 1
		}
	}
	return values
}

// The interval of 95 % has the true mean in it about so often, and is as wide as the normal approximation's.
func TestBootstrapCoverage(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	const trials, n, p = 120, 40, 0.3
	covered, width := 0, 0.0
	for i := range trials {
		e := eval.Bootstrap(uint64(i), [][][]float64{column(drawn(rng, n, p)...)}, nil)[0]
		if e.Low <= p && p <= e.High {
			covered++
		}
		width += (e.High - e.Low) / trials
	}
	if share := float64(covered) / trials; share < 0.89 || share > 0.99 {
		t.Errorf("%.3f of the intervals have the mean in them", share)
	}
	if want := 2 * 1.96 * math.Sqrt(p*(1-p)/n); math.Abs(width/want-1) > 0.05 {
		t.Errorf("an interval is %.3f wide, want %.3f", width, want)
	}
}

func TestBootstrapPairs(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	easy := drawn(rng, 200, 0.5)
	better := append([]float64(nil), easy...)
	for i := 0; i < 200; i += 10 { // right where it was wrong, one problem in twenty
		better[i] = 1
	}
	e := eval.Bootstrap(1, [][][]float64{column(better...)}, [][][]float64{column(easy...)})[0]
	if e.Low <= 0 || e.High >= 0.1 || e.Mean <= 0.02 {
		t.Errorf("paired, the difference is %+v", e)
	}
	if again := eval.Bootstrap(1, [][][]float64{column(better...)}, [][][]float64{column(easy...)})[0]; again != e {
		t.Errorf("again it is %+v, not %+v", again, e)
	}
	// Independent draws of the same size could not tell.
	other := eval.Bootstrap(1, [][][]float64{column(drawn(rng, 200, 0.55)...)}, [][][]float64{column(drawn(rng, 200, 0.5)...)})[0]
	if other.High-other.Low < 2*(e.High-e.Low) {
		t.Errorf("unpaired, it is %+v", other)
	}
	if same := eval.Bootstrap(1, [][][]float64{column(easy...)}, [][][]float64{column(easy...)})[0]; same != (eval.Estimate{}) {
		t.Errorf("the difference to itself is %+v", same)
	}
}

// Runs that differ widen the interval, however many problems there are.
func TestBootstrapRuns(t *testing.T) {
	of := func(means ...float64) (runs [][][]float64) {
		for _, m := range means {
			values := make([]float64, 1000)
			for i := range values {
				values[i] = m
			}
			runs = append(runs, column(values...))
		}
		return runs
	}
	e := eval.Bootstrap(1, of(0.4, 0.5, 0.6), nil)[0]
	if math.Abs(e.Mean-0.5) > 1e-9 || math.Abs(e.Low-0.4) > 0.04 || math.Abs(e.High-0.6) > 0.04 {
		t.Errorf("of three runs it is %+v", e)
	}
	if e := eval.Bootstrap(1, of(0.4, 0.5, 0.6), of(0.2, 0.2))[0]; math.Abs(e.Mean-0.3) > 1e-9 || e.Low > 0.25 || e.Low < 0.19 {
		t.Errorf("against others it is %+v", e)
	}
}

func TestKnee(t *testing.T) {
	for _, test := range []struct {
		tokens, accuracy []float64
		want             int
	}{
		{[]float64{0, 32, 64, 128, 192, 448}, []float64{.19, .36, .47, .55, .61, .66}, 3},
		{[]float64{0, 10, 20, 30}, []float64{0, .9, .95, 1}, 1},
		{[]float64{0, 10, 20, 30}, []float64{0, .1, .2, .9}, 3},  // it comes only at the end
		{[]float64{0, 10, 20, 20}, []float64{0, .5, .9, .95}, 3}, // nearly a line; more budget that no thought used
		{[]float64{10, 10, 10}, []float64{.1, .2, .3}, 2},        // all thoughts had ended
		{[]float64{0, 10}, []float64{.1, .3}, 1},
		{[]float64{0, 10, 20, 40, 80}, []float64{0, .5, .45, .8, 1}, 1}, // a dent
	} {
		points := make([]eval.Point, len(test.tokens))
		for i := range points {
			points[i] = eval.Point{Tokens: test.tokens[i], Accuracy: eval.Estimate{Mean: test.accuracy[i]}}
		}
		if got := eval.Knee(points); got != test.want {
			t.Errorf("the knee of %v over %v is point %d, want %d", test.accuracy, test.tokens, got, test.want)
		}
	}
}

func TestCompare(t *testing.T) {
	says := func(from uint64) func(int, uint64) []string {
		return func(tokens int, seed uint64) []string {
			if seed%10 < from+uint64(tokens) {
				return []string{`\boxed{7}`}
			}
			return []string{`\boxed{1}`}
		}
	}
	report := func(from, seed uint64, change func(*eval.Report)) *eval.Report {
		c := config(t, 7, counts(9, says(from)), 1, 4)
		c.Seed, c.Traces, c.Summaries = seed, 6, 2
		r := run(t, c)
		if change != nil {
			change(r)
		}
		return r
	}
	same := func(*eval.Report) {}
	good, bad := []*eval.Report{report(5, 1, same), report(5, 2, same)}, []*eval.Report{report(2, 1, same)}
	c, err := eval.Compare(good, bad)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range append(c.Accuracy, c.Mean) {
		if e.Low <= 0.1 || e.High >= 0.5 || math.Abs(e.Mean-0.3) > 0.1 {
			t.Errorf("difference %d is %+v, want about 0.3", i, e)
		}
	}
	back, err := eval.Compare(bad, good)
	if err != nil || math.Abs(back.Mean.Mean+c.Mean.Mean) > 1e-12 || back.Mean.High >= 0 {
		t.Errorf("the other way round it is %+v, %v", back.Mean, err)
	}
	pooled, err := eval.Pool(good)
	want := (good[0].Mean.Mean + good[1].Mean.Mean) / 2
	if err != nil || len(pooled.Accuracy) != 2 || math.Abs(pooled.Mean.Mean-want) > 1e-9 || pooled.Mean.Low >= pooled.Mean.Mean || pooled.Tokens.Mean != 4 {
		t.Errorf("pooled %+v, %v; want a mean of %v", pooled, err, want)
	}

	for want, change := range map[string]func(*eval.Report){
		"other problems":    func(r *eval.Report) { r.Digest = "other" },
		"their budgets are": func(r *eval.Report) { r.Settings.Budgets = []int{1, 5} },
	} {
		other := report(2, 1, change)
		if _, err := eval.Compare(good, []*eval.Report{other}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("compared: %v, want %q", err, want)
		}
		if _, err := eval.Pool([]*eval.Report{good[0], other}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("pooled: %v, want %q", err, want)
		}
	}
	if _, err := eval.Compare(good, nil); err == nil {
		t.Error(fmt.Sprint("compared with nothing: ", err))
	}
	if _, err := eval.Pool(nil); err == nil {
		t.Error("pooled nothing")
	}
}
