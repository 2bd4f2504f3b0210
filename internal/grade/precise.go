package grade

import (
	"math"
	"math/big"
	"sync"
)

// precision is the number of bits of a real constant where float64 is not enough:
// 10^13 + √2 is not 10^13 + √3.
const precision = 1152

// precise is a real number with a bound on its error: it is within 2^err of f.
type precise struct {
	f   *big.Float
	err int
}

func newFloat() *big.Float { return new(big.Float).SetPrec(precision) }

// rounded is the result of an operation, with the error of its operands.
func rounded(f *big.Float, err int) *precise {
	switch {
	case f.Sign() == 0:
		return &precise{f, err}
	case f.IsInf() || f.MantExp(nil) > 1<<14 || f.MantExp(nil) < -1<<14:
		return nil
	}
	return &precise{f, max(err, f.MantExp(nil)-precision) + 2}
}

// size is the exponent of the number, or of its error where that is larger.
func (p *precise) size() int {
	if p.f.Sign() == 0 {
		return p.err
	}
	return max(p.f.MantExp(nil), p.err)
}

// zero reports whether the number cannot be told from 0.
func (p *precise) zero() bool { return p.f.Sign() == 0 || p.f.MantExp(nil) <= p.err+1 }

func (p *precise) equal(q *precise) bool {
	return (&precise{newFloat().Sub(p.f, q.f), max(p.err, q.err) + 2}).zero()
}

// precisely evaluates a constant of numbers, π, e, + - × ÷, roots, powers and the
// functions whose series are short; nil if it is none, or its value is not real or too
// large or inexact.
func (e *evaluator) precisely(n *node) *precise {
	if p, ok := e.precise[n]; ok {
		return p
	}
	p := e.series(n)
	if p != nil && p.err > max(p.f.MantExp(nil), 0)-precision/2 { // too much was lost
		p = nil
	}
	e.precise[n] = p
	return p
}

func (e *evaluator) series(n *node) *precise {
	if !e.spend(8) || !n.scalar() {
		return nil
	}
	if r := e.exact(n); r != nil {
		return rounded(newFloat().SetRat(r), math.MinInt32)
	}
	switch {
	case n.op == opConst && n.name == "pi", n.op == opWord && n.name == "°":
		p := rounded(pi(), math.MinInt32)
		if n.op == opWord {
			p.f = newFloat().Quo(p.f, big.NewFloat(180))
		}
		return p
	case n.op == opConst && n.name == "e":
		return exponential(&precise{newFloat().SetInt64(1), -precision})
	case n.op == opPow:
		return e.precisePower(n.kids[0], n.kids[1])
	case len(n.kids) == 0 || n.op == opApply || n.op == opFact || n.op == opBinom || n.op == opSign:
		return nil
	}
	a := e.precisely(n.kids[0])
	if a == nil {
		return nil
	}
	switch n.op {
	case opNeg:
		return &precise{newFloat().Neg(a.f), a.err}
	case opRoot:
		if q := e.exact(n.kids[1]); q != nil {
			if q := smallPositive(q, maxDepth); e.spend(q) {
				return a.root(q)
			}
		}
	case opAdd, opMul, opDiv:
		b := e.precisely(n.kids[1])
		switch {
		case b == nil:
		case n.op == opAdd:
			return rounded(newFloat().Add(a.f, b.f), max(a.err, b.err)+1)
		case n.op == opMul:
			return a.times(b)
		default:
			return a.over(b)
		}
	case opCall:
		if !e.spend(200) {
			return nil
		}
		switch n.name {
		case "abs":
			return &precise{newFloat().Abs(a.f), a.err}
		case "exp":
			return exponential(a)
		case "sin":
			return sine(a)
		case "cos", "tan":
			cos := sine(&precise{newFloat().Sub(newFloat().Quo(pi(), big.NewFloat(2)), a.f), max(a.err, -precision) + 2})
			if sin := sine(a); n.name == "tan" && sin != nil && cos != nil {
				return sin.over(cos)
			}
			return cos
		case "sinh", "cosh", "tanh":
			return hyperbolic(n.name, a)
		}
	}
	return nil
}

func (p *precise) times(q *precise) *precise {
	return rounded(newFloat().Mul(p.f, q.f), max(p.err+q.size(), q.err+p.size())+1)
}

func (p *precise) over(q *precise) *precise {
	if q.zero() {
		return nil
	}
	size := q.f.MantExp(nil)
	return rounded(newFloat().Quo(p.f, q.f), max(p.err-size, q.err+p.size()-2*size)+4)
}

// root returns the q-th root by Newton's method.
func (p *precise) root(q int) *precise {
	if q == 0 || p.zero() {
		return nil
	}
	if p.f.Sign() < 0 {
		if q%2 == 0 {
			return nil
		}
		r := (&precise{newFloat().Neg(p.f), p.err}).root(q)
		if r != nil {
			r.f.Neg(r.f)
		}
		return r
	}
	mantissa := newFloat()
	exponent := p.f.MantExp(mantissa)
	m, _ := mantissa.SetMantExp(mantissa, exponent%q).Float64()
	z := newFloat().SetMantExp(newFloat().SetFloat64(math.Pow(m, 1/float64(q))), exponent/q)
	for range 7 { // each doubles the 50 right bits
		power := newFloat().SetInt64(1)
		for range q - 1 {
			power.Mul(power, z)
		}
		z = newFloat().Quo(newFloat().Add(newFloat().Quo(p.f, power), newFloat().Mul(z, newFloat().SetInt64(int64(q-1)))), newFloat().SetInt64(int64(q)))
	}
	return rounded(z, p.err-exponent+z.MantExp(nil)+2)
}

// precisePower raises a constant to a rational power, and e to any.
func (e *evaluator) precisePower(base, exponent *node) *precise {
	if base.op == opConst && base.name == "e" {
		if x := e.precisely(exponent); x != nil && e.spend(200) {
			return exponential(x)
		}
		return nil
	}
	p, r := e.precisely(base), e.exact(exponent)
	if p == nil || r == nil || !r.Num().IsInt64() {
		return nil
	}
	if !r.IsInt() {
		q := smallPositive(new(big.Rat).SetInt(r.Denom()), maxDepth)
		if p.f.Sign() < 0 {
			return nil // the principal root is not real
		}
		if p = p.root(q); p == nil {
			return nil
		}
	}
	k := r.Num().Int64()
	if k < -maxBits || k > maxBits {
		return nil
	}
	z, one := rounded(newFloat().SetInt64(1), math.MinInt32), rounded(newFloat().SetInt64(1), math.MinInt32)
	for size := max(k, -k); size > 0 && z != nil && p != nil; size >>= 1 {
		if size&1 != 0 {
			z = z.times(p)
		}
		p = p.times(p)
	}
	if k < 0 && z != nil {
		return one.over(z)
	}
	return z
}

// pi is Machin's 16·arctan 1/5 - 4·arctan 1/239.
var pi = sync.OnceValue(func() *big.Float {
	arctan := func(k int64) *big.Float {
		sum, power := newFloat(), newFloat().Quo(newFloat().SetInt64(1), newFloat().SetInt64(k))
		for i := int64(1); power.MantExp(nil) > -precision-16; i += 2 {
			term := newFloat().Quo(power, newFloat().SetInt64(i))
			if i%4 == 3 {
				term.Neg(term)
			}
			sum.Add(sum, term)
			power.Quo(power, newFloat().SetInt64(k*k))
		}
		return sum
	}
	return newFloat().Sub(newFloat().Mul(newFloat().SetInt64(16), arctan(5)), newFloat().Mul(newFloat().SetInt64(4), arctan(239)))
})

// exponential is the Taylor series of a small part of x, squared up again.
func exponential(x *precise) *precise {
	const halvings = 24
	if x.size() > 12 {
		return nil
	}
	y := newFloat().SetMantExp(x.f, -halvings)
	sum, term := newFloat().SetInt64(1), newFloat().SetInt64(1)
	for i := int64(1); term.Sign() != 0 && term.MantExp(nil) > -precision-16; i++ {
		term.Mul(term, y).Quo(term, newFloat().SetInt64(i))
		sum.Add(sum, term)
	}
	for range halvings {
		sum.Mul(sum, sum)
	}
	return rounded(sum, sum.MantExp(nil)+max(x.err+1, halvings+4-precision))
}

// sine is the Taylor series of what a multiple of 2π leaves of x.
func sine(x *precise) *precise {
	if x.size() > 40 {
		return nil
	}
	turn := newFloat().Mul(newFloat().SetInt64(2), pi())
	turns, _ := newFloat().Quo(x.f, turn).Int64()
	y := newFloat().Sub(x.f, newFloat().Mul(turn, newFloat().SetInt64(turns)))
	sum, term, square := newFloat().Set(y), newFloat().Set(y), newFloat().Mul(y, y)
	for i := int64(2); term.Sign() != 0 && term.MantExp(nil) > -precision-16; i += 2 {
		term.Mul(term, square).Quo(term, newFloat().SetInt64(-i*(i+1)))
		sum.Add(sum, term)
	}
	return rounded(sum, max(x.err, max(x.size(), 0)+12-precision))
}

func hyperbolic(name string, x *precise) *precise {
	up, down := exponential(x), exponential(&precise{newFloat().Neg(x.f), x.err})
	if up == nil || down == nil {
		return nil
	}
	err := max(up.err, down.err) + 1
	sinh, cosh := rounded(newFloat().Sub(up.f, down.f), err), rounded(newFloat().Add(up.f, down.f), err)
	switch two := rounded(newFloat().SetInt64(2), math.MinInt32); {
	case sinh == nil || cosh == nil:
		return nil
	case name == "tanh":
		return sinh.over(cosh)
	case name == "sinh":
		return sinh.over(two)
	default:
		return cosh.over(two)
	}
}
