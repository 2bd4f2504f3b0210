package model

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	. "github.com/gomlx/gomlx/core/graph" //nolint:staticcheck // a graph reads as mathematics
	"github.com/gomlx/gomlx/core/tensors"
)

// Example is a tree to learn from. Each slice has one value for each token, in the order of Tree.Tokens.
type Example struct {
	Tree   Tree
	Weight []float32 // of the token in the loss; 0 for what is not trained, such as the prompt and a trunk's first token
	// For Policy only: the token's advantage, its log-probability under the policy that sampled it and, if Policy.KL is set, under the
	// reference. They matter where Weight is not 0.
	Advantage, Old, Reference []float32
}

// Stats says what a step did. Means are over the tokens that have a weight.
type Stats struct {
	Step         int     // steps taken, this one included
	Loss         float64 // before the step
	GradientNorm float64 // before clipping
	Rate         float64 // learning rate
	Tokens       int     // of the trees
	Padded       int     // tokens computed, with padding
	Trained      int     // tokens with a weight
	Clipped      float64 // share of tokens whose ratio was clipped
	LogProb      float64 // mean
	// KL is the mean of r-log(r)-1, an estimate of the divergence from the policy that sampled; of Policy only.
	KL      float64
	Entropy float64 // mean; only where Policy.Entropy is set
	Elapsed time.Duration
}

// ErrNotFinite is returned by a step whose gradient is infinite or not a number. The weights stay as they were.
var ErrNotFinite = errors.New("the gradient is not finite")

// Step lowers the loss Σ weight·loss over all tokens of all examples by one step of the optimizer. If ctx ends it gives up between two
// passes, and nothing has changed.
func (m *Model) Step(ctx context.Context, examples []Example, loss Loss) (Stats, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.step(ctx, examples, loss)
	if err != nil {
		return Stats{}, fmt.Errorf("training step %d: %w", m.steps+1, err)
	}
	return s, nil
}

func (m *Model) step(ctx context.Context, examples []Example, loss Loss) (s Stats, err error) {
	began := time.Now()
	gradients, s, err := m.gradients(ctx, examples, loss)
	if err != nil {
		return s, err
	}
	if s.GradientNorm, err = m.apply(ctx, gradients); err != nil {
		return s, err
	}
	if !finite(s.GradientNorm) {
		return s, ErrNotFinite
	}
	s.Rate = m.config.Optimizer.rateAt(m.steps)
	m.steps++
	s.Step, s.Elapsed = m.steps, time.Since(began)
	return s, nil
}

// gradients returns the gradient of each trained parameter.
func (m *Model) gradients(ctx context.Context, examples []Example, loss Loss) (sums []*tensors.Tensor, s Stats, err error) {
	switch loss.(type) {
	case CrossEntropy, Policy:
	default:
		return nil, s, fmt.Errorf("the loss is a %T: it must be a CrossEntropy or a Policy", loss)
	}
	if err := loss.check(); err != nil {
		return nil, s, err
	}
	trees := make([]Tree, len(examples))
	for i, e := range examples {
		trees[i] = e.Tree
	}
	groups, err := m.pack(trees)
	if err != nil {
		return nil, s, err
	}
	for i, e := range examples {
		if err := e.check(loss); err != nil {
			return nil, s, fmt.Errorf("example %d: %w", i, err)
		}
		s.Tokens += e.Tree.Len()
		for _, w := range e.Weight {
			if w != 0 {
				s.Trained++
			}
		}
	}
	if s.Trained == 0 {
		return nil, s, errors.New("no token has a weight: there is nothing to train")
	}
	exec, err := m.passOf(loss)
	if err != nil {
		return nil, s, err
	}
	trained := m.trained()
	if len(trained) == 0 {
		return nil, s, errNothing
	}
	for _, p := range trained {
		sum, err := m.tensor(make([]float32, p.size()), p.dims)
		if err != nil {
			return nil, s, err
		}
		sums = append(sums, sum)
	}
	totals := make([]float64, statCount)
	for i, g := range groups {
		inputs := append(m.weights(), m.structure(g)...)
		inputs = append(inputs, float32(1))
		for _, of := range []func(i int) []float32{
			func(i int) []float32 { return examples[i].Weight },
			func(i int) []float32 { return examples[i].Advantage },
			func(i int) []float32 { return examples[i].Old },
			func(i int) []float32 { return examples[i].Reference },
		} {
			inputs = append(inputs, flat(g.spread(of), len(g.trees), g.length()))
		}
		rng := rand.New(rand.NewPCG(m.config.Seed, uint64(m.steps)<<16+uint64(i)))
		random, err := RNGStateFromSeed(rng.Int64())
		if err != nil {
			return nil, s, err
		}
		if inputs, err = m.donate(append(inputs, random), sums...); err != nil {
			return nil, s, err
		}
		out, err := m.pass(ctx, exec, inputs)
		if err != nil {
			return nil, s, err
		}
		sums = out[1:]
		stats, err := take(out[0])
		if err != nil {
			return nil, s, err
		}
		for i, v := range stats {
			totals[i] += float64(v)
		}
		s.Padded += len(g.tokens)
	}
	n := float64(s.Trained)
	s.Loss, s.Clipped, s.LogProb, s.KL, s.Entropy = totals[0], totals[1]/n, totals[2]/n, totals[3]/n, totals[4]/n
	return sums, s, nil
}

func (e Example) check(loss Loss) error {
	n := e.Tree.Len()
	type field struct {
		name   string
		values []float32
		needed bool
	}
	p, isPolicy := loss.(Policy)
	for _, f := range []field{
		{"weights", e.Weight, true}, {"advantages", e.Advantage, isPolicy}, {"old log-probs", e.Old, isPolicy},
		{"reference log-probs", e.Reference, isPolicy && p.KL > 0},
	} {
		if len(f.values) != n && (f.needed || len(f.values) > 0) {
			return fmt.Errorf("there are %d %s for %d tokens", len(f.values), f.name, n)
		}
		for i, v := range f.values {
			if !finite(float64(v)) {
				return fmt.Errorf("%s: that of token %d is %v", f.name, i, v)
			}
		}
	}
	if e.Weight[0] != 0 {
		return fmt.Errorf("the trunk's first token has weight %v: it must be 0, since nothing predicts it", e.Weight[0])
	}
	return nil
}

// trained lists the parameters that are trained.
func (m *Model) trained() []*param {
	var some []*param
	for _, p := range m.params {
		if p.trained {
			some = append(some, p)
		}
	}
	return some
}

// passOf returns the executor of passes under a loss.
func (m *Model) passOf(loss Loss) (*Exec, error) {
	if e := m.passes[loss]; e != nil {
		return e, nil
	}
	e, err := NewExec(m.backend, func(inputs []*Node) []*Node { return m.passGraph(inputs, loss) })
	if err != nil {
		return nil, err
	}
	e.SetMaxCache(-1)
	m.passes[loss] = e
	return e, nil
}

const statCount = 5

// passGraph returns the sums of a pass [statCount] and the gradients, added to those before.
func (m *Model) passGraph(inputs []*Node, loss Loss) []*Node {
	f, rest := newForward(m, inputs)
	weight, advantage, old, reference := rest[0], rest[1], rest[2], rest[3]
	if m.config.LoRA.Dropout > 0 && m.config.Train == Adapter {
		f.dropout, f.random = m.config.LoRA.Dropout, rest[4]
	}
	sums := rest[5:]
	logProb, entropy := f.logProbs(loss.entropy() > 0)
	// Where a token has no weight the values given for it are arbitrary; nothing may become infinite by them.
	trained := NotEqual(weight, ZerosLike(weight))
	now := StopGradient(logProb)
	old, reference = Where(trained, old, now), Where(trained, reference, now)
	each, clipped := loss.tokens(terms{logProb, entropy, advantage, old, reference})
	total := ReduceAllSum(Mul(each, weight))

	none := ZerosLike(weight)
	sum := func(x *Node) *Node {
		if x == nil {
			return ReduceAllSum(none)
		}
		return ReduceAllSum(Where(trained, x, none))
	}
	var clips, kl *Node
	if clipped != nil {
		clips = ConvertDType(clipped, weight.DType())
		d := Sub(now, old)
		kl = Sub(Exp(ClipScalar(d, -farthest, farthest)), AddScalar(d, 1))
	}
	stats := Stack([]*Node{total, sum(clips), sum(now), sum(kl), sum(entropy)}, 0)

	var trainedNodes []*Node
	for _, p := range m.trained() {
		trainedNodes = append(trainedNodes, f.w[p.name])
	}
	outputs := []*Node{stats}
	for i, g := range Gradient(total, trainedNodes...) {
		outputs = append(outputs, Add(sums[i], g))
	}
	return outputs
}

// donate appends tensors to the inputs of a pass, which may reuse their memory: they are gone.
func (m *Model) donate(inputs []any, values ...*tensors.Tensor) ([]any, error) {
	for _, t := range values {
		buffer, err := DonateTensorBuffer(t, m.backend, 0)
		if err != nil {
			return nil, err
		}
		inputs = append(inputs, buffer)
	}
	return inputs, nil
}

// apply takes a step along the gradients, which it uses up, and returns their norm.
func (m *Model) apply(ctx context.Context, gradients []*tensors.Tensor) (norm float64, err error) {
	if m.update == nil {
		if m.update, err = NewExec(m.backend, m.updateGraph); err != nil {
			return 0, err
		}
	}
	params := m.trained()
	for _, p := range params {
		for _, moment := range []**tensors.Tensor{&p.first, &p.second} {
			if *moment == nil {
				if *moment, err = m.tensor(make([]float32, p.size()), p.dims); err != nil {
					return 0, err
				}
			}
		}
	}
	o, step := m.config.Optimizer, float64(m.steps+1)
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	inputs := []any{float32(o.rateAt(m.steps)), float32(1 - math.Pow(o.Beta1, step)), float32(1 - math.Pow(o.Beta2, step))}
	var out []*tensors.Tensor
	for i, p := range params {
		if inputs, err = m.donate(inputs, p.value, p.first, p.second, gradients[i]); err != nil {
			break
		}
	}
	if err == nil {
		out, err = m.pass(context.WithoutCancel(ctx), m.update, inputs)
	}
	if err != nil {
		if m.lost == nil {
			m.lost = fmt.Errorf("the weights were lost in a step that failed: %w", err)
		}
		return 0, m.lost
	}
	for i, p := range params {
		p.value, p.first, p.second = out[1+3*i], out[2+3*i], out[3+3*i]
	}
	n, err := take(out[0])
	if err != nil {
		return 0, err
	}
	return float64(n[0]), nil
}
