package elastic_test

import (
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"anytime/internal/budget"
	"anytime/internal/elastic"
)

// curve rises to its points and is flat behind them.
func curve(points ...float64) *budget.Curve {
	c := &budget.Curve{Model: "m"}
	for i := 0; i < len(points); i += 2 {
		c.Points = append(c.Points, budget.CurvePoint{Budget: int(points[i]), Tokens: points[i], Accuracy: points[i+1], High: 1})
	}
	c.Default = int(points[len(points)-4]) // what follows is flat
	return c
}

var (
	easy = curve(0, 0.2, 50, 0.8, 100, 0.9, 400, 0.9)
	hard = curve(0, 0, 50, 0.05, 100, 0.1, 400, 0.7, 900, 0.7)
)

func TestShare(t *testing.T) {
	run := func(key string, weight float64, limit int, c *budget.Curve) elastic.Run {
		return elastic.Run{Key: key, Weight: weight, Limit: limit, Reach: limit, Curve: c}
	}
	for _, test := range []struct {
		name     string
		slowdown float64
		runs     []elastic.Run
		want     []int
		refuse   bool
	}{
		{"under the bound nobody is touched", 2, []elastic.Run{run("a", 1, 400, nil), run("a", 1, 5000, easy)}, []int{400, 5000}, false},
		{"in proportion", 4, []elastic.Run{run("a", 1, 410, nil), run("a", 1, 210, nil)}, []int{201, 108}, false},
		{"by weight", 4, []elastic.Run{run("a", 1, 210, nil), run("a", 3, 210, nil)}, []int{57, 152}, false},
		{"a floor", 20, []elastic.Run{run("a", 1, 100, nil), run("a", 1, 5, nil)}, []int{10, 5}, true},
		{"the floors just fit", 20, []elastic.Run{run("a", 1, 100, nil), run("a", 1, 100, nil)}, []int{10, 10}, false},
		{"keys are fair", 4, []elastic.Run{run("a", 1, 110, nil), run("b", 1, 110, nil), run("b", 1, 110, nil), run("b", 1, 110, nil)}, []int{110, 36, 36, 36}, false},
		{"a key's weight", 4, []elastic.Run{run("a", 1, 110, nil), run("b", 3, 110, nil)}, []int{32, 77}, false},
		{"who asks for little gets it", 4, []elastic.Run{run("a", 1, 30, nil), run("b", 1, 330, nil)}, []int{30, 150}, false},
		// 500 useful tokens, of which 250: 10 each, then the steep ones.
		{"where it buys most", 4, []elastic.Run{run("a", 1, 500, easy), run("a", 1, 500, hard)}, []int{100, 150}, false},
		{"equals share", 4, []elastic.Run{run("a", 1, 200, easy), run("a", 1, 200, easy)}, []int{50, 50}, false},
		{"nothing is shared out that buys nothing", 2.5, []elastic.Run{run("a", 1, 5000, easy)}, []int{80}, false},
		{"known and unknown", 4, []elastic.Run{run("a", 1, 110, easy), run("a", 1, 110, nil)}, []int{50, 54}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, fits := elastic.Config{Slowdown: 2, Floor: 10}.Share(test.slowdown, test.runs)
			near := slices.EqualFunc(got, test.want, func(a, b int) bool { return a == b || a == b-1 })
			if !near || fits == test.refuse {
				t.Errorf("got %v, fits %v; want %v, %v", got, fits, test.want, !test.refuse)
			}
		})
	}
	t.Run("what a deadline leaves no time for is others'", func(t *testing.T) {
		short := run("a", 1, 200, nil)
		short.Reach = 50
		got, _ := elastic.Config{Slowdown: 2, Floor: 10}.Share(4, []elastic.Run{short, run("a", 1, 200, nil)})
		if !slices.Equal(got, []int{200, 150}) {
			t.Errorf("got %v", got)
		}
	})
	t.Run("who is fixed keeps its own", func(t *testing.T) {
		fixed := elastic.Run{Key: "a", Weight: 1, Limit: 500, Reach: 500, Fixed: true}
		got, fits := elastic.Config{Slowdown: 2, Floor: 10}.Share(8, []elastic.Run{fixed, run("a", 1, 400, nil)})
		if !slices.Equal(got, []int{500, 100}) || !fits {
			t.Errorf("got %v, fits %v", got, fits)
		}
	})
	t.Run("off", func(t *testing.T) {
		got, fits := elastic.Config{Floor: 10}.Share(100, []elastic.Run{run("a", 1, 400, nil)})
		if !slices.Equal(got, []int{400}) || !fits {
			t.Errorf("got %v, fits %v", got, fits)
		}
	})
}

// Whatever runs there are: nobody goes over the limit or below the floor, what is given out is what there is, the more load the less
// for all together, and of keys of equal weight none has less, for as many runs, unless it has all that it can use.
func TestShareHolds(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		cfg := elastic.Config{Slowdown: rapid.Float64Range(1, 8).Draw(rt, "bound"), Floor: rapid.IntRange(1, 100).Draw(rt, "floor")}
		var runs []elastic.Run
		for range rapid.IntRange(0, 30).Draw(rt, "runs") {
			limit := rapid.IntRange(0, 3000).Draw(rt, "limit")
			runs = append(runs, elastic.Run{
				Key: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "key"), Weight: 1,
				Limit: limit, Reach: limit, Fixed: rapid.IntRange(0, 9).Draw(rt, "fixed") == 0,
				Curve: rapid.SampledFrom([]*budget.Curve{nil, easy, hard}).Draw(rt, "curve"),
			})
		}
		slowdown := rapid.Float64Range(1, 100).Draw(rt, "slowdown")
		got, fits := cfg.Share(slowdown, runs)
		more, _ := cfg.Share(slowdown*1.5, runs)
		sum, sumMore := 0, 0
		count := map[string]int{}
		given, all := map[string]int{}, map[string]bool{"a": true, "b": true, "c": true}
		for i, r := range runs {
			if got[i] > r.Limit || got[i] < min(cfg.Floor, r.Limit) || r.Fixed && got[i] != r.Limit {
				rt.Fatalf("run %d of limit %d, fixed %v, has %d", i, r.Limit, r.Fixed, got[i])
			}
			sum += got[i]
			sumMore += more[i]
			if !r.Fixed {
				count[r.Key]++
				given[r.Key] += got[i] - min(cfg.Floor, got[i])
				most := r.Limit
				if r.Curve == easy {
					most = min(most, 100)
				} else if r.Curve == hard {
					most = min(most, 400)
				}
				all[r.Key] = all[r.Key] && got[i] >= most-1
			}
		}
		if sumMore > sum+len(runs) {
			rt.Fatalf("%d tokens, and %d under more load", sum, sumMore)
		}
		if slowdown <= cfg.Slowdown || !fits {
			return
		}
		for x, a := range given {
			for y, b := range given {
				if (a+len(runs))*count[x] < b*count[y] && !all[x] {
					rt.Fatalf("%d runs of key %s have %d tokens beyond their floors, %d of %s %d", count[x], x, a, count[y], y, b)
				}
			}
		}
	})
}

// The division by gain is the best there is: moving tokens from one run to another never helps.
func TestShareIsOptimal(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		runs := make([]elastic.Run, rapid.IntRange(2, 8).Draw(rt, "runs"))
		for i := range runs {
			limit := rapid.IntRange(20, 500).Draw(rt, "limit")
			runs[i] = elastic.Run{Weight: 1, Limit: limit, Reach: limit, Curve: rapid.SampledFrom([]*budget.Curve{easy, hard}).Draw(rt, "curve")}
		}
		got, _ := elastic.Config{Slowdown: 1, Floor: 1}.Share(rapid.Float64Range(1.1, 20).Draw(rt, "slowdown"), runs)
		for i, a := range runs {
			for j, b := range runs {
				const eps = 1 // tokens lost in rounding
				best := b.Curve.Gain(float64(got[j] + eps))
				worst := a.Curve.Gain(float64(got[i] - 1 - eps))
				if i != j && got[i] > 1+eps && got[j]+eps < min(b.Limit, map[*budget.Curve]int{easy: 100, hard: 400}[b.Curve]) && best > worst {
					rt.Fatalf("run %d at %d tokens gains %v, run %d at %d only %v", j, got[j], best, i, got[i], worst)
				}
			}
		}
	})
}

func TestSmoother(t *testing.T) {
	now := time.Unix(1e9, 0)
	var s elastic.Smoother
	if v := s.Observe(now, 11); v != 1 {
		t.Errorf("at first %v", v)
	}
	for range 100 {
		now = now.Add(10 * time.Millisecond)
		s.Observe(now, 11)
	}
	if v := s.Observe(now, 11); math.Abs(v-(11-10/math.E)) > 0.01 {
		t.Errorf("after a second %v", v)
	}
	if v := s.Observe(now.Add(time.Minute), 2); math.Abs(v-2) > 0.01 {
		t.Errorf("after a minute %v", v)
	}
}
