package model

import (
	"fmt"
	"math"

	. "github.com/gomlx/gomlx/core/graph" //nolint:staticcheck // a graph reads as mathematics
)

// ConfigError is a number out of range.
type ConfigError struct {
	Name            string
	Value, From, To float64
}

func (e *ConfigError) Error() string {
	return fmt.Sprintf("%s is %v: it must be from %v to %v", e.Name, e.Value, e.From, e.To)
}

// Optimizer is AdamW (arXiv 1711.05101) with a schedule of its learning rate.
type Optimizer struct {
	Rate float64 // peak learning rate
	// Warmup is the number of steps over which the rate rises to its peak. Then it stays or, if Steps is set, falls to Floor·Rate along
	// half a cosine until step Steps.
	Warmup, Steps int
	Floor         float64
	Beta1, Beta2  float64 // 0.9 and 0.999 by default
	Epsilon       float64 // 1e-8 by default
	Decay         float64 // weight decay, of matrices only
	Clip          float64 // the gradient's norm at most; 1 by default
}

func (o *Optimizer) complete() error {
	for _, v := range []struct {
		name   string
		value  *float64
		absent float64
		to     float64
	}{
		{"learning rate", &o.Rate, 0, 10}, {"floor of the learning rate", &o.Floor, 0, 1},
		{"beta1", &o.Beta1, 0.9, 0.9999999}, {"beta2", &o.Beta2, 0.999, 0.9999999},
		{"epsilon", &o.Epsilon, 1e-8, 1}, {"weight decay", &o.Decay, 0, 10}, {"gradient clip", &o.Clip, 1, 1e9},
	} {
		if *v.value == 0 {
			*v.value = v.absent
		}
		if !(*v.value >= 0 && *v.value <= v.to) {
			return &ConfigError{"optimizer: " + v.name, *v.value, 0, v.to}
		}
	}
	if o.Warmup < 0 || o.Steps < 0 || o.Steps > 0 && o.Steps <= o.Warmup {
		return fmt.Errorf("optimizer: %d warm-up steps of %d: there must be fewer than steps, and none negative", o.Warmup, o.Steps)
	}
	return nil
}

// rateAt is the learning rate of a step, counted from 0.
func (o Optimizer) rateAt(step int) float64 {
	switch {
	case step < o.Warmup:
		return o.Rate * float64(step+1) / float64(o.Warmup)
	case o.Steps == 0:
		return o.Rate
	}
	done := min(float64(step-o.Warmup)/float64(o.Steps-o.Warmup), 1)
	return o.Rate * (o.Floor + (1-o.Floor)*(1+math.Cos(math.Pi*done))/2)
}

// updateGraph applies a step. Inputs: learning rate, 1-β1^t and 1-β2^t, then value, first and second moment and gradient of each trained
// parameter. Outputs: the gradient's norm, then the new value and moments of each; the old ones if the norm is not finite.
func (m *Model) updateGraph(inputs []*Node) []*Node {
	o := m.config.Optimizer
	rate, correct1, correct2 := inputs[0], inputs[1], inputs[2]
	g := rate.Graph()
	inputs = inputs[3:]
	var square *Node
	for i := 3; i < len(inputs); i += 4 {
		s := ReduceAllSum(Mul(inputs[i], inputs[i]))
		if square != nil {
			s = Add(square, s)
		}
		square = s
	}
	norm := Sqrt(square)
	ok := IsFinite(norm)
	clip := Scalar(g, norm.DType(), o.Clip)
	shrink := Where(GreaterThan(norm, clip), Div(clip, norm), OnesLike(norm))
	outputs := []*Node{norm}
	for i := 0; i < len(inputs); i += 4 {
		value, first, second, gradient := inputs[i], inputs[i+1], inputs[i+2], Mul(inputs[i+3], shrink)
		m1 := Add(MulScalar(first, o.Beta1), MulScalar(gradient, 1-o.Beta1))
		m2 := Add(MulScalar(second, o.Beta2), MulScalar(Mul(gradient, gradient), 1-o.Beta2))
		change := Div(Div(m1, correct1), AddScalar(Sqrt(Div(m2, correct2)), o.Epsilon))
		if o.Decay > 0 && value.Rank() == 2 {
			change = Add(change, MulScalar(value, o.Decay))
		}
		next := Sub(value, Mul(change, rate))
		for _, pair := range [][2]*Node{{next, value}, {m1, first}, {m2, second}} {
			outputs = append(outputs, Where(BroadcastToDims(ok, value.Shape().Dimensions...), pair[0], pair[1]))
		}
	}
	return outputs
}
