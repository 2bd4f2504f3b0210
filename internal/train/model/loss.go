package model

import (
	. "github.com/gomlx/gomlx/core/graph" //nolint:staticcheck // a graph reads as mathematics
)

// Loss is what a step lowers: a weighted sum over tokens. It is a CrossEntropy or a Policy. Graphs are compiled for each loss, with
// other numbers in a Policy anew.
type Loss interface {
	// tokens returns the loss of each token and whether it was clipped. All are [B, T].
	tokens(t terms) (loss, clipped *Node)
	entropy() float64
	check() error
}

// terms are what a loss is made of.
type terms struct {
	logProb, entropy          *Node // of the weights that are trained; entropy may be nil
	advantage, old, reference *Node // as in Example
}

// CrossEntropy is -log p of each token.
type CrossEntropy struct{}

func (CrossEntropy) tokens(t terms) (loss, clipped *Node) { return Neg(t.logProb), nil }
func (CrossEntropy) entropy() float64                     { return 0 }
func (CrossEntropy) check() error                         { return nil }

// Policy is the clipped policy loss -min(r·A, clip(r, 1-Low, 1+High)·A) of each token, with r the ratio of its probability to that under
// the policy that sampled it, and A its advantage.
type Policy struct {
	Low, High float64 // 0.2 each in PPO and in the paper
	// KL weighs a penalty on leaving the reference: exp(d)-d-1 with d the reference's log-probability less the policy's, an estimate of
	// the divergence that is never negative (http://joschu.net/blog/kl-approx.html).
	KL      float64
	Entropy float64 // weighs a bonus on the entropy of each token's distribution
}

func (p Policy) entropy() float64 { return p.Entropy }

func (p Policy) check() error {
	for _, v := range []struct {
		name  string
		value float64
		most  float64
	}{{"low", p.Low, 1}, {"high", p.High, 1e6}, {"KL", p.KL, 1e6}, {"entropy", p.Entropy, 1e6}} {
		if !(v.value >= 0 && v.value <= v.most) {
			return &ConfigError{"policy loss: " + v.name, v.value, 0, v.most}
		}
	}
	return nil
}

// farthest bounds the logarithm of a ratio, so that it stays finite.
const farthest = 20

func (p Policy) tokens(t terms) (loss, clipped *Node) {
	ratio := Exp(ClipScalar(Sub(t.logProb, t.old), -farthest, farthest))
	gain := GreaterOrEqual(t.advantage, ZerosLike(t.advantage))
	scalar := func(v float64) *Node { return AddScalar(ZerosLike(ratio), v) }
	clipped = Or(
		And(gain, GreaterThan(ratio, scalar(1+p.High))),
		And(LogicalNot(gain), LessThan(ratio, scalar(1-p.Low))))
	bound := Where(gain, scalar(1+p.High), scalar(1-p.Low))
	loss = Neg(Mul(Where(clipped, bound, ratio), t.advantage))
	if p.KL > 0 {
		d := ClipScalar(Sub(t.reference, t.logProb), -farthest, farthest)
		loss = Add(loss, MulScalar(Sub(Exp(d), AddScalar(d, 1)), p.KL))
	}
	if p.Entropy > 0 {
		loss = Sub(loss, MulScalar(t.entropy, p.Entropy))
	}
	return loss, clipped
}
