package budget_test

import (
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"

	"anytime/internal/budget"
)

func curve(accuracies ...float64) budget.Curve {
	c := budget.Curve{Model: "m.gguf@1", Data: "d", Problems: 9, Default: 64}
	for i, b := range []int{0, 64, 128, 256, 512}[:len(accuracies)] {
		a := accuracies[i]
		c.Points = append(c.Points, budget.CurvePoint{Budget: b, Tokens: float64(b) / 2, Accuracy: a, Low: a / 2, High: (1 + a) / 2})
	}
	return c
}

func TestCurveFile(t *testing.T) {
	for weights, want := range map[string]string{
		"models/reasoner.gguf": "models/reasoner.curve.json", "a.gguf/adapter.gguf": "a.gguf/adapter.curve.json", "blob": "blob.curve.json",
	} {
		if got := budget.CurveFile(weights); got != want {
			t.Errorf("the curve of %s is %s, want %s", weights, got, want)
		}
	}
}

func TestCurveRoundTrip(t *testing.T) {
	c := curve(0.1, 0.3, 0.2)
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := budget.ReadCurve(strings.NewReader(string(text))); err != nil || !reflect.DeepEqual(got, c) {
		t.Errorf("read %+v, %v; want %+v", got, err, c)
	}
	for want, change := range map[string]func(c *budget.Curve){
		"no points":                            func(c *budget.Curve) { c.Points = nil },
		"budget 64 behind 64":                  func(c *budget.Curve) { c.Points[2].Budget = 64 },
		"budget -1 behind":                     func(c *budget.Curve) { c.Points[0].Budget = -1 },
		"budget 10000001":                      func(c *budget.Curve) { c.Points[2].Budget = 10_000_001 },
		"budget 128: tokens is 129":            func(c *budget.Curve) { c.Points[2].Tokens = 129 },
		"budget 128: tokens is 31":             func(c *budget.Curve) { c.Points[2].Tokens = 31 },
		"budget 0: tokens is -1":               func(c *budget.Curve) { c.Points[0].Tokens = -1 },
		"budget 64: accuracy is 1.5":           func(c *budget.Curve) { c.Points[1].Accuracy = 1.5 },
		"budget 64: accuracy is 0.3, from 0.4": func(c *budget.Curve) { c.Points[1].Low = 0.4 },
		"from -0.1":                            func(c *budget.Curve) { c.Points[1].Low = -0.1 },
		"to 2":                                 func(c *budget.Curve) { c.Points[1].High = 2 },
		"default is 65":                        func(c *budget.Curve) { c.Default = 65 },
	} {
		c := curve(0.1, 0.3, 0.2)
		change(&c)
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := budget.ReadCurve(strings.NewReader(string(text))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	for want, text := range map[string]string{
		"read curve":     "nonsense",
		"number 1e999":   `{"points":[{"budget":1,"accuracy":1e999}]}`,
		"more than 1048": strings.Repeat(" ", 1<<20+1),
		"no points":      `{}`,
	} {
		if _, err := budget.ReadCurve(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	nan := curve(math.NaN())
	if nan.Default = 0; nan.Validate() == nil {
		t.Error("NaN is an accuracy")
	}
}

func TestCurveAt(t *testing.T) {
	c := curve(0.1, 0.3, 0.2, 0.6) // at 0, 64, 128, 256
	late := c
	late.Points = c.Points[1:]
	for _, test := range []struct {
		c            budget.Curve
		tokens, want float64
	}{
		{c, -5, 0.1}, {c, 0, 0.1}, {c, 32, 0.2}, {c, 64, 0.3}, {c, 96, 0.25}, {c, 128, 0.2}, {c, 192, 0.4}, {c, 256, 0.6}, {c, 1e9, 0.6},
		{late, 0, 0}, {late, 16, 0.075}, {late, 64, 0.3}, {budget.Curve{}, 7, 0},
	} {
		if got := test.c.At(test.tokens); !(math.Abs(got-test.want) < 1e-12) {
			t.Errorf("at %v it is %v, want %v", test.tokens, got, test.want)
		}
	}
}

func TestCurveGain(t *testing.T) {
	c := curve(0.1, 0.3, 0.2, 0.6, 0.5) // 0.2 lies below its neighbours
	late := c
	late.Points = c.Points[2:4] // from the origin straight to 256, as 128 lies below
	for _, test := range []struct {
		c            budget.Curve
		tokens, want float64
	}{
		{c, 0, 0.2 / 64}, {c, 63, 0.2 / 64}, {c, 64, 0.3 / 192}, {c, 200, 0.3 / 192}, {c, 256, 0}, {c, 512, 0}, {c, 1e9, 0},
		{late, 0, 0.6 / 256}, {late, 200, 0.6 / 256}, {late, 256, 0}, {curve(0.4), 0, 0}, {curve(0.4, 0.3), 0, 0}, {budget.Curve{}, 0, 0},
	} {
		if got := test.c.Gain(test.tokens); !(math.Abs(got-test.want) < 1e-12) {
			t.Errorf("the gain at %v of %v is %v, want %v", test.tokens, test.c.Points, got, test.want)
		}
	}
	for tokens, before := 0.0, math.Inf(1); tokens < 600; tokens++ {
		if g := c.Gain(tokens); g > before || g < 0 {
			t.Fatalf("the gain rises to %v at %v", g, tokens)
		} else {
			before = g
		}
	}
}
