package adapters_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"anytime/internal/catalog"
	"anytime/internal/catalog/adapters"
)

func TestGate(t *testing.T) {
	files(t)
	small, none := 0.01, 0.0
	for name, row := range map[string]struct {
		bare, adapter []float64
		margin        *float64
		state         adapters.State
		says          string
	}{
		"better":             {[]float64{0.2, 0.4}, []float64{0.3, 0.5}, nil, adapters.Passed, ""},
		"the same":           {[]float64{0.2, 0.4}, []float64{0.2, 0.4}, &none, adapters.Passed, ""},
		"within the margin":  {[]float64{0.2, 0.4}, []float64{0.15, 0.4}, nil, adapters.Passed, ""},
		"beyond at one":      {[]float64{0.2, 0.4}, []float64{0.9, 0.34}, nil, adapters.Refused, "with 128 thinking tokens its accuracy is 0.340, the bare model's 0.400: that is 0.060 less, and the margin is 0.050"},
		"beyond at both":     {[]float64{0.3, 0.4}, []float64{0.1, 0.3}, nil, adapters.Refused, "with 64 thinking tokens its accuracy is 0.100"},
		"a margin of theirs": {[]float64{0.2, 0.4}, []float64{0.2, 0.38}, &small, adapters.Refused, "the margin is 0.010"},
		"other budgets":      {[]float64{0.2, 0.4}, []float64{0.2}, nil, adapters.Refused, "at 1 budgets"},
	} {
		t.Run(name, func(t *testing.T) {
			b := open(t, "", &gate{own: true, found: map[string][]float64{"": row.bare, string(one): {1, 1}, string(two): row.adapter}})
			b.put("one.gguf", one)
			b.put("two.gguf", two)
			b.load(adapters.Request{Name: "old", File: "one.gguf", Default: true})
			b.ended("old")
			req := adapters.Request{Name: "x", File: "two.gguf", Default: true}
			if row.margin != nil {
				req.Gate = &adapters.GateRequest{Margin: row.margin}
			}
			b.load(req)
			a := b.ended("x")
			trial := a.Trial
			if trial.State != row.state || !strings.Contains(trial.Reason, row.says) || (trial.Reason == "") != (row.says == "") || trial.SHA256 != hashOf(two) || trial.Done != 8 || trial.Of != 8 {
				t.Fatalf("%+v", trial)
			}
			for i, found := range row.bare {
				if trial.Base.Points[i].Accuracy != found {
					t.Errorf("bare curve %+v", trial.Base)
				}
			}
			for i, found := range row.adapter {
				if trial.Adapter.Points[i].Accuracy != found {
					t.Errorf("adapter's curve %+v", trial.Adapter)
				}
			}
			if row.state == adapters.Passed {
				b.serves("m", two)
				if a.State != adapters.Loaded || !a.Default || a.Curve == nil {
					t.Errorf("%+v", a)
				}
				return
			}
			// As it was before.
			b.serves("m", one)
			b.lacks("m:x")
			if names := b.engines["m"].AdapterNames(); len(names) != 1 || a.State != adapters.Refused || a.Default {
				t.Errorf("the engine has %q; %+v", names, a)
			}
			if err := b.Delete(t.Context(), "x"); err != nil || len(b.List()) != 1 {
				t.Errorf("%v, %+v", err, b.List())
			}
		})
	}
}

// The default under another name's weights, the default by another request, and what was measured before.
func TestGateWhen(t *testing.T) {
	files(t)
	g := &gate{own: true, found: map[string][]float64{"": {0.5}, string(one): {0.6}, string(two): {0.1}}}
	b := open(t, "", g)
	b.put("one.gguf", one)
	b.put("two.gguf", two)
	if a := b.load(adapters.Request{Name: "x", File: "two.gguf"}); a.Trial != nil {
		t.Errorf("measured though it is no default: %+v", a.Trial)
	}
	b.load(adapters.Request{Name: "x", Default: true})
	if a := b.ended("x"); a.Trial.State != adapters.Refused || a.State != adapters.Loaded || a.Default {
		t.Errorf("%+v", a)
	}
	b.serves("m", nil)
	b.serves("m:x", two) // as before
	b.load(adapters.Request{Name: "x", File: "one.gguf", Default: true})
	if a := b.ended("x"); a.Trial.State != adapters.Passed || !a.Default {
		t.Errorf("%+v", a)
	}
	b.serves("m", one)
	b.load(adapters.Request{Name: "x", File: "two.gguf"}) // it would be the default
	if a := b.ended("x"); a.Trial.State != adapters.Refused || a.SHA256 != hashOf(one) || a.State != adapters.Loaded || !a.Default {
		t.Errorf("%+v", a)
	}
	b.serves("m", one)
	b.serves("m:x", one)
	b.load(adapters.Request{Name: "bare", Default: true})
	b.load(adapters.Request{Name: "x", Default: true})
	b.ended("x")
	b.serves("m", one)
	if want := []string{"", string(two), string(one), string(two)}; !slices.Equal(g.runs, want) {
		t.Errorf("%d were measured, want %d: the bare model and what was accepted once each", len(g.runs), len(want))
	}
	b.once()

	g = &gate{own: true, found: g.found}
	b = open(t, b.dir, g)
	b.serves("m", one)
	b.load(adapters.Request{Name: "y", File: "two.gguf", Default: true})
	b.ended("y")
	b.load(adapters.Request{Name: "y", File: "one.gguf", Default: true, Gate: &adapters.GateRequest{Budgets: []int{7}}})
	if b.ended("y"); len(g.runs) != 3 || g.runs[0] != string(two) || g.runs[1] != "" {
		t.Errorf("after a restart %d were measured: the bare model is known but at other budgets", len(g.runs))
	}
}

func TestGateFails(t *testing.T) {
	files(t)
	g := &gate{own: true, err: errors.New("the engine is gone"), found: map[string][]float64{"": {0.5}, string(one): {0.6}}}
	b := open(t, "", g, func(hosts []adapters.Model, _ []catalog.ModelConfig) {
		hosts[1].Hash = func() (string, error) { return "", errors.New("the disk is gone") }
	})
	b.put("one.gguf", one)
	for model, says := range map[string]string{"m": "measure m:bare: the engine is gone", "n": "the disk is gone"} {
		b.load(adapters.Request{Name: "x", Model: model, File: "one.gguf", Default: true})
		a := b.ended(model + ":x")
		if a.State != adapters.Failed || a.Trial.State != adapters.Failed || !strings.Contains(a.Trial.Reason, says) {
			t.Errorf("%+v, %+v", a, a.Trial)
		}
		b.serves(model, nil)
		b.lacks(model + ":x")
		if names := b.engines[model].AdapterNames(); len(names) != 0 {
			t.Errorf("the engine has %q", names)
		}
	}
}

// While one is measured it has no name, others can be loaded but not measured, and it can be deleted.
func TestGateMeasuring(t *testing.T) {
	files(t)
	g := &gate{own: true, found: map[string][]float64{"": {0.5}, string(one): {0.6}, string(two): {0.6}}, asked: make(chan string), let: make(chan struct{})}
	b := open(t, "", g)
	b.put("one.gguf", one)
	b.put("two.gguf", two)
	a := b.load(adapters.Request{Name: "x", File: "one.gguf", Default: true})
	if a.State != adapters.Measuring || a.Trial.State != adapters.Measuring || a.Trial.Of != 8 || a.Default || a.SHA256 != "" {
		t.Errorf("%+v, %+v", a, a.Trial)
	}
	<-g.asked
	g.let <- struct{}{}
	<-g.asked
	if a, _ := b.Get("x"); a.Trial.Done != 4 || a.Trial.Base == nil || a.Trial.Adapter != nil {
		t.Errorf("%+v", a.Trial)
	}
	b.lacks("m:x")
	b.serves("m", nil)
	var conflict *adapters.ConflictError
	if _, err := b.Load(t.Context(), adapters.Request{Name: "x", File: "two.gguf"}); !errors.As(err, &conflict) {
		t.Errorf("the same name: %v", err)
	}
	if _, err := b.Load(t.Context(), adapters.Request{Name: "y", File: "two.gguf", Default: true}); !errors.As(err, &conflict) || !strings.Contains(err.Error(), "one is measured at a time") {
		t.Errorf("another to be measured: %v", err)
	}
	b.load(adapters.Request{Name: "z", File: "two.gguf"})
	b.serves("m:z", two)
	if names := b.engines["m"].AdapterNames(); len(names) != 2 {
		t.Errorf("the engine has %q", names)
	}
	if err := b.Delete(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Get("x"); err == nil {
		t.Error("it is still known")
	}
	b.serves("m", nil)
	if names := b.engines["m"].AdapterNames(); len(names) != 1 {
		t.Errorf("the engine has %q", names)
	}
	// The server stops: nothing comes of it.
	b.load(adapters.Request{Name: "x", File: "one.gguf", Default: true})
	<-g.asked
	b.once()
	b = open(t, b.dir, &gate{})
	b.serves("m", nil)
	b.serves("m:z", two)
	b.lacks("m:x")
}
