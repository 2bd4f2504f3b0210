package budget

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Curve is how often a model's answers are right after so much thinking, as an evaluation found it. It is kept beside the weights that
// it was measured with, see CurveFile.
type Curve struct {
	Model    string       `json:"model"`             // whatever tells one set of weights from another
	Adapter  string       `json:"adapter,omitempty"` // likewise; "" the bare model
	Data     string       `json:"data"`              // what was asked
	Problems int          `json:"problems"`          // how many
	Default  int          `json:"default"`           // the budget that is worth its tokens, one of the points'
	Points   []CurvePoint `json:"points"`            // by ascending budget
}

// CurvePoint is a budget of a Curve.
type CurvePoint struct {
	Budget   int     `json:"budget"`   // thinking tokens that were allowed
	Tokens   float64 `json:"tokens"`   // that were used on average: a thought may end by itself
	Accuracy float64 `json:"accuracy"` // share of right answers
	Low      float64 `json:"low"`      // its 95 % interval
	High     float64 `json:"high"`
}

// CurveFile is where the curve of weights is kept: that of reasoner.gguf in reasoner.curve.json.
func CurveFile(weights string) string {
	return strings.TrimSuffix(weights, ".gguf") + ".curve.json"
}

const maxCurve = 1 << 20 // bytes

// ReadCurve reads a curve as JSON.
func ReadCurve(r io.Reader) (Curve, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxCurve+1))
	switch {
	case err != nil:
		return Curve{}, fmt.Errorf("read curve: %w", err)
	case len(data) > maxCurve:
		return Curve{}, fmt.Errorf("read curve: it has more than %d bytes", maxCurve)
	}
	var c Curve
	if err := json.Unmarshal(data, &c); err != nil {
		return Curve{}, fmt.Errorf("read curve: %w", err)
	}
	return c, c.Validate()
}

// Write writes a curve as JSON.
func (c Curve) Write(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(c)
}

// Validate checks that a curve can be one.
func (c Curve) Validate() error {
	if len(c.Points) == 0 {
		return errors.New("curve: it has no points; it must have one for each budget")
	}
	before, known := CurvePoint{Budget: -1}, false
	for _, p := range c.Points {
		switch {
		case p.Budget <= before.Budget || p.Budget > MaxTokens:
			return fmt.Errorf("curve: budget %d behind %d: budgets must ascend, from 0 to %d", p.Budget, before.Budget, MaxTokens)
		case !(p.Tokens >= before.Tokens && p.Tokens <= float64(p.Budget)):
			return fmt.Errorf("curve, budget %d: tokens is %v: it must be at most the budget, and no less than at a smaller one", p.Budget, p.Tokens)
		case !(0 <= p.Low && p.Low <= p.Accuracy && p.Accuracy <= p.High && p.High <= 1):
			return fmt.Errorf("curve, budget %d: accuracy is %v, from %v to %v: these must be shares of 1, low, accuracy and high in order",
				p.Budget, p.Accuracy, p.Low, p.High)
		}
		before, known = p, known || p.Budget == c.Default
	}
	if !known {
		return fmt.Errorf("curve: default is %d, which is none of its budgets", c.Default)
	}
	return nil
}

// At returns the accuracy to expect after a budget of so many thinking tokens: linear between the points, that of the last behind it,
// and below the first on the line from no right answer without any thought.
func (c Curve) At(tokens float64) float64 {
	tokens = max(0, tokens)
	x0, y0 := 0.0, 0.0
	for _, p := range c.Points {
		x, y := float64(p.Budget), p.Accuracy
		switch {
		case tokens == x:
			return y
		case tokens < x:
			return y0 + (y-y0)*(tokens-x0)/(x-x0)
		}
		x0, y0 = x, y
	}
	return y0
}

// Gain returns the accuracy that one more token of budget is worth after so many: the slope there of the least concave curve that no
// point lies above, 0 behind its top. It never rises with the budget, so that tokens handed out one by one to whichever run gains most
// by them raise the sum of the accuracies as far as they can.
func (c Curve) Gain(tokens float64) float64 {
	hull := []CurvePoint{{}} // upper, as Andrew's monotone chain
	for _, p := range c.Points {
		if p.Budget == 0 {
			hull[0] = p
			continue
		}
		for len(hull) > 1 && slope(hull[len(hull)-2], hull[len(hull)-1]) <= slope(hull[len(hull)-1], p) {
			hull = hull[:len(hull)-1]
		}
		hull = append(hull, p)
	}
	for i, p := range hull[1:] {
		if tokens < float64(p.Budget) {
			return max(0, slope(hull[i], p))
		}
	}
	return 0
}

func slope(a, b CurvePoint) float64 {
	return (b.Accuracy - a.Accuracy) / float64(b.Budget-a.Budget)
}
