package grade

import (
	"math/big"
	"math/bits"
	"strconv"
)

// prime is safe (half of it is prime too): no small number has a small order modulo it.
const prime = 4611686018427363983

// fingerprint is the value of an expression modulo a prime at a random point, where
// what is not + - × ÷ or a power with a whole exponent is one more variable, named by
// its function and the fingerprints of its arguments. Expressions with one fingerprint
// are equal, whatever their size (Schwartz and Zippel); with two, they differ if both
// are pure, which means that nothing else is in them. ok is false without a value.
type fingerprint struct {
	v        uint64
	pure, ok bool
}

type markKey struct {
	n    *node
	seed byte
}

func (e *evaluator) fingerprint(n *node, seed byte) fingerprint {
	key := markKey{n, seed}
	f, ok := e.marks[key]
	if !ok {
		f = e.mark(n, seed)
		e.marks[key] = f
	}
	return f
}

func (e *evaluator) mark(n *node, seed byte) fingerprint {
	if !e.spend(1) || !n.scalar() || n.op == opSign || n.op == opConst && n.name == "inf" {
		return fingerprint{}
	}
	if r := e.exact(n); r != nil {
		f := fingerprint{residue(r.Num()), true, true}
		return f.divide(fingerprint{residue(r.Denom()), true, true})
	}
	if n.op == opSymbol {
		return fingerprint{hash(n.name, seed) % prime, true, true}
	}
	name := strconv.Itoa(int(n.op)) + n.name // of the new variable, if this is one
	marks := make([]fingerprint, len(n.kids))
	pure := true
	for i, kid := range n.kids {
		marks[i] = e.fingerprint(kid, seed)
		if !marks[i].ok {
			return fingerprint{}
		}
		pure = pure && marks[i].pure
		name += " " + strconv.FormatUint(marks[i].v, 36)
	}
	switch n.op {
	case opAdd:
		return fingerprint{(marks[0].v + marks[1].v) % prime, pure, true}
	case opNeg:
		return fingerprint{(prime - marks[0].v) % prime, pure, true}
	case opMul:
		return fingerprint{mulMod(marks[0].v, marks[1].v), pure, true}
	case opDiv:
		return marks[0].divide(marks[1])
	case opPow:
		if exponent := e.exact(n.kids[1]); exponent != nil && exponent.IsInt() && e.spend(exponent.Num().BitLen()/16) {
			f, size := marks[0], new(big.Int).Abs(exponent.Num())
			if exponent.Sign() < 0 {
				f = fingerprint{1, true, true}.divide(f)
			}
			f.ok = f.ok && (f.v != 0 || exponent.Sign() > 0)
			f.v = powMod(f.v, size.Mod(size, big.NewInt(prime-1)).Uint64()) // Fermat
			return f
		}
	}
	return fingerprint{hash(name, seed) % prime, false, true}
}

func (f fingerprint) divide(g fingerprint) fingerprint {
	return fingerprint{mulMod(f.v, powMod(g.v, prime-2)), f.pure && g.pure, f.ok && g.ok && g.v != 0}
}

func residue(x *big.Int) uint64 { return new(big.Int).Mod(x, big.NewInt(prime)).Uint64() }

func mulMod(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return bits.Rem64(hi, lo, prime)
}

func powMod(base, exponent uint64) uint64 {
	z := uint64(1)
	for ; exponent > 0; exponent >>= 1 {
		if exponent&1 != 0 {
			z = mulMod(z, base)
		}
		base = mulMod(base, base)
	}
	return z
}
