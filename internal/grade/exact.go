package grade

import "math/big"

// exact returns the value of n if it is rational by its form and not too large,
// else nil. The caller must not change it.
func (e *evaluator) exact(n *node) *big.Rat {
	if r, ok := e.exacts[n]; ok {
		return r
	}
	r := e.exactly(n)
	if r != nil {
		bits := r.Num().BitLen() + r.Denom().BitLen()
		if bits > 2*maxBits || !e.spend(1+bits/16) {
			r = nil
		}
	}
	e.exacts[n] = r
	return r
}

func (e *evaluator) exactly(n *node) *big.Rat {
	if !e.spend(1) {
		return nil
	}
	switch n.op {
	case opNumber:
		return n.num
	case opWord:
		if n.name == "%" || n.name == "percent" {
			return big.NewRat(1, 100)
		}
		return scales[n.name] // nil if it is none
	case opPow:
		return e.exactPow(n)
	case opSymbol, opConst, opSign, opApply:
		return nil
	}
	if !n.scalar() {
		return nil
	}
	kids := make([]*big.Rat, len(n.kids))
	for i, kid := range n.kids {
		if kids[i] = e.exact(kid); kids[i] == nil {
			return nil
		}
	}
	z := new(big.Rat)
	switch n.op {
	case opAdd:
		return z.Add(kids[0], kids[1])
	case opNeg:
		return z.Neg(kids[0])
	case opMul:
		return z.Mul(kids[0], kids[1])
	case opDiv:
		if kids[1].Sign() != 0 {
			return z.Quo(kids[0], kids[1])
		}
	case opRoot:
		if q := smallPositive(kids[1], maxDepth); q > 0 {
			return rootOf(kids[0], q)
		}
	case opFact:
		if kids[0].Sign() == 0 {
			return z.SetInt64(1)
		}
		if k := smallPositive(kids[0], 900); k > 0 && e.spend(k) {
			return z.SetInt(new(big.Int).MulRange(1, int64(k)))
		}
	case opBinom:
		if m := smallPositive(kids[0], 2000); m > 0 && kids[1].IsInt() && kids[1].Num().IsInt64() && e.spend(m) {
			if k := kids[1].Num().Int64(); k >= 0 && k <= int64(m) {
				return z.SetInt(new(big.Int).Binomial(int64(m), k))
			}
			return z
		}
	case opCall:
		switch n.name {
		case "!!":
			if k := smallPositive(kids[0], 900); k > 0 && e.spend(k) {
				product := big.NewInt(1)
				for ; k > 1; k -= 2 {
					product.Mul(product, big.NewInt(int64(k)))
				}
				return z.SetInt(product)
			}
		case "abs":
			return z.Abs(kids[0])
		case "floor", "ceil":
			q := new(big.Int).Div(kids[0].Num(), kids[0].Denom()) // Euclidean: floor, as the denominator is positive
			if n.name == "ceil" && !kids[0].IsInt() {
				q.Add(q, big.NewInt(1))
			}
			return z.SetInt(q)
		}
	}
	return nil
}

// smallPositive returns an integer in 1..limit, else 0.
func smallPositive(r *big.Rat, limit int64) int {
	if r.IsInt() && r.Sign() > 0 && r.Num().IsInt64() && r.Num().Int64() <= limit {
		return int(r.Num().Int64())
	}
	return 0
}

// exactPow raises a rational, or a root of one, to a rational power.
func (e *evaluator) exactPow(n *node) *big.Rat {
	base, exponent := n.kids[0], e.exact(n.kids[1])
	if exponent == nil {
		return nil
	}
	if base.op == opRoot { // (√2)^60 is 2^30
		if q := e.exact(base.kids[1]); q != nil && q.Sign() > 0 {
			if r := e.exact(base.kids[0]); r != nil && r.Sign() > 0 {
				base, exponent = base.kids[0], new(big.Rat).Quo(exponent, q)
			}
		}
	}
	r := e.exact(base)
	if r == nil || !exponent.Num().IsInt64() || !exponent.Denom().IsInt64() {
		return nil
	}
	p, q := exponent.Num().Int64(), exponent.Denom().Int64()
	if q > maxDepth || q > 1 && r.Sign() < 0 {
		return nil
	}
	if r.Sign() == 0 {
		switch {
		case p > 0:
			return new(big.Rat)
		case p == 0:
			return big.NewRat(1, 1)
		}
		return nil
	}
	if q > 1 {
		if r = rootOf(r, int(q)); r == nil {
			return nil
		}
	}
	if r.IsInt() && r.Num().IsInt64() && (r.Num().Int64() == 1 || r.Num().Int64() == -1) {
		if p%2 == 0 {
			return big.NewRat(1, 1)
		}
		return r
	}
	if p > maxBits || p < -maxBits {
		return nil
	}
	size := max(p, -p)
	bits := int64(max(r.Num().BitLen(), r.Denom().BitLen()))
	if (bits-1)*size > maxBits || !e.spend(int(bits*size/16)) {
		return nil
	}
	num := new(big.Int).Exp(r.Num(), big.NewInt(size), nil)
	den := new(big.Int).Exp(r.Denom(), big.NewInt(size), nil)
	if p < 0 {
		num, den = den, num
	}
	return new(big.Rat).SetFrac(num, den)
}

// rootOf returns the real q-th root of r if it is rational.
func rootOf(r *big.Rat, q int) *big.Rat {
	if r.Sign() < 0 {
		if q%2 == 0 {
			return nil
		}
		if z := rootOf(new(big.Rat).Neg(r), q); z != nil {
			return z.Neg(z)
		}
		return nil
	}
	num, den := intRoot(r.Num(), q), intRoot(r.Denom(), q)
	if num == nil || den == nil {
		return nil
	}
	return new(big.Rat).SetFrac(num, den)
}

// intRoot returns the q-th root of x ≥ 0 if it is an integer, by Newton's method
// from above.
func intRoot(x *big.Int, q int) *big.Int {
	if x.Sign() == 0 || q == 1 {
		return x
	}
	k := big.NewInt(int64(q))
	k1 := big.NewInt(int64(q - 1))
	z := new(big.Int).Lsh(big.NewInt(1), uint(x.BitLen()/q+1))
	for {
		y := new(big.Int).Quo(x, new(big.Int).Exp(z, k1, nil))
		y.Add(y, new(big.Int).Mul(z, k1)).Quo(y, k)
		if y.Cmp(z) >= 0 {
			break
		}
		z = y
	}
	if new(big.Int).Exp(z, k, nil).Cmp(x) != 0 {
		return nil
	}
	return z
}
