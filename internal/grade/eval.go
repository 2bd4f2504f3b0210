package grade

import (
	"hash/fnv"
	"math"
	"math/big"
	"math/cmplx"
	"strings"
)

// Two inexact values are equal if they differ by no more than what float64 loses,
// as a share of the largest intermediate value; an inexact value equals a rational
// only if that is, moreover, simple: 3.14159265358979 is no simple rational, so it
// cannot be π, but √2·√8 is 4.
const (
	pointTolerance    = 1e-11 // at points, with variables
	constantTolerance = 1e-12
	rationalTolerance = 1e-13
	simpleBits        = 40  // numerator and denominator together
	preciseBits       = 256 // the same where the value is known to precision
	points            = 16
	minPoints         = 3 // at which both sides must be defined
)

// value is a number with the size of the largest term that went into it (a measure
// of its rounding error). off means that a root, logarithm or power left the reals.
type value struct {
	v     complex128
	scale float64
	off   bool
}

var undefined = value{v: cmplx.NaN()}

func (x value) usable() bool { return !cmplx.IsNaN(x.v) && !math.IsNaN(x.scale) }

// traits of a tree.
type traits struct {
	variables bool
	grid      grid
	words     bool // has a unit or a word
	signs     int  // how many ±
	linked    bool // has a ∓, so that all signs go together
}

// grid says which variables are integers at the points.
type grid int

const (
	reals    grid = iota // none
	indices              // all but x, y, z and t: there are floors
	integers             // all: there are factorials or (-1)^n
)

type printKey struct {
	n    *node
	grid grid
}

// evaluator evaluates nodes within a budget of steps, each node once a point.
type evaluator struct {
	steps   int
	exacts  map[*node]*big.Rat
	traits  map[*node]traits
	prints  map[printKey][]value
	marks   map[markKey]fingerprint
	precise map[*node]*precise
}

func newEvaluator() *evaluator {
	return &evaluator{maxSteps, make(map[*node]*big.Rat), make(map[*node]traits), make(map[printKey][]value), make(map[markKey]fingerprint), make(map[*node]*precise)}
}

func (e *evaluator) spend(n int) bool {
	e.steps -= n
	return e.steps >= 0
}

// equal compares two scalars.
func (e *evaluator) equal(a, b *node) bool {
	ra, rb := e.exact(a), e.exact(b)
	if ra != nil && rb != nil {
		return ra.Cmp(rb) == 0
	}
	fa, fb := e.fingerprint(a, 0), e.fingerprint(b, 0)
	if fa.ok && fb.ok && (fa.v == fb.v || fa.pure && fb.pure) {
		return fa.v == fb.v
	}
	ta, tb := e.traitsOf(a), e.traitsOf(b)
	if !ta.variables && !tb.variables {
		pa, pb := e.precisely(a), e.precisely(b)
		known := pa != nil && pb != nil
		tolerance, limit := constantTolerance, simpleBits
		if known {
			limit = preciseBits
		}
		for _, r := range []*big.Rat{ra, rb} {
			if r != nil {
				tolerance = rationalTolerance
				if r.Num().BitLen()+r.Denom().BitLen() > limit {
					return false
				}
			}
		}
		if known {
			return pa.equal(pb)
		}
		return near(e.at(a, 0, reals), e.at(b, 0, reals), tolerance)
	}
	g := max(ta.grid, tb.grid)
	xs, ys := e.print(a, g), e.print(b, g)
	return agree(xs, ys, func(x, y value) bool { return near(x, y, pointTolerance) })
}

// agree reports whether same holds wherever both are defined, in the reals if they
// are so at enough points.
func agree(xs, ys []value, same func(x, y value) bool) bool {
	for _, complexToo := range []bool{false, true} {
		n := 0
		for i := range min(len(xs), len(ys)) {
			x, y := xs[i], ys[i]
			if !x.usable() || !y.usable() || (x.off || y.off) && !complexToo {
				continue
			}
			if !same(x, y) {
				return false
			}
			n++
		}
		if n >= minPoints {
			return true
		}
	}
	return false
}

func near(x, y value, tolerance float64) bool {
	if !x.usable() || !y.usable() {
		return false
	}
	if cmplx.IsInf(x.v) || cmplx.IsInf(y.v) {
		return x.v == y.v
	}
	return cmplx.Abs(x.v-y.v) <= tolerance*max(x.scale, y.scale)
}

// proportional reports whether a = k·b with one constant k ≠ 0, which must be
// positive for the two sides of inequalities.
func (e *evaluator) proportional(a, b *node, positive bool) bool {
	ta, tb := e.traitsOf(a), e.traitsOf(b)
	if !ta.variables || !tb.variables {
		return false
	}
	if fa, fb := e.fingerprint(a, 0), e.fingerprint(b, 0); fa.ok && fb.ok && fa.pure && fb.pure {
		ga, gb := e.fingerprint(a, 1), e.fingerprint(b, 1)
		if mulMod(fa.v, gb.v) != mulMod(ga.v, fb.v) {
			return false
		}
		if !positive {
			return fa.v != 0 && fb.v != 0
		}
	}
	g := max(ta.grid, tb.grid)
	xs, ys := e.print(a, g), e.print(b, g)
	var k complex128
	return agree(xs, ys, func(x, y value) bool {
		if cmplx.Abs(y.v) <= pointTolerance*y.scale || cmplx.Abs(x.v) <= pointTolerance*x.scale {
			return false
		}
		if k == 0 {
			k = x.v / y.v
		}
		if imag(k) != 0 || positive && real(k) < 0 {
			return false
		}
		return cmplx.Abs(x.v-k*y.v) <= pointTolerance*max(x.scale, cmplx.Abs(k)*y.scale)
	})
}

func (e *evaluator) traitsOf(n *node) traits {
	if t, ok := e.traits[n]; ok {
		return t
	}
	var t traits
	for _, kid := range n.kids {
		k := e.traitsOf(kid)
		t.variables = t.variables || k.variables
		t.grid = max(t.grid, k.grid)
		t.words = t.words || k.words
		t.signs += k.signs
		t.linked = t.linked || k.linked
	}
	switch n.op {
	case opSymbol:
		t.variables = true
	case opWord:
		_, known := wordValues[n.name]
		known = known || scales[n.name] != nil
		t.variables = !known
		t.words = true
	case opApply:
		t.variables = true
	case opSign:
		t.signs++
		t.linked = t.linked || n.name == "∓"
	case opFact, opBinom:
		t.needs(integers)
	case opCall:
		switch n.name {
		case "floor", "ceil":
			t.needs(indices)
		case "!!":
			t.needs(integers)
		}
	case opPow:
		if n.kids[0].op == opNeg && e.traitsOf(n.kids[1]).variables {
			t.needs(integers)
		}
	}
	e.traits[n] = t
	return t
}

// needs asks for a grid if there are variables.
func (t *traits) needs(g grid) {
	if t.variables {
		t.grid = max(t.grid, g)
	}
}

// wordValues are the units that are numbers.
var wordValues = map[string]float64{"%": 0.01, "°": math.Pi / 180, "percent": 0.01, "degrees": math.Pi / 180, "degree": math.Pi / 180}

// print evaluates n at the points.
func (e *evaluator) print(n *node, g grid) []value {
	key := printKey{n, g}
	if values, ok := e.prints[key]; ok {
		return values
	}
	values := make([]value, points)
	for i := range values {
		values[i] = e.at(n, i, g)
	}
	e.prints[key] = values
	return values
}

// coordinate is the value of a variable at a point. At half the points it is small, in
// ±(0.25, 3) or 1..24; at the others it goes through the magnitudes up to 2000 and both
// signs, so that where |x-5| or ⌊n/25⌋ changes its form there are points on both sides.
func coordinate(name string, point int, g grid) float64 {
	sum := hash(name, byte(point))
	far := 1.0 // times the small range
	if point%2 == 1 {
		far = [...]float64{6, 40, 600}[(point/2+int(hash(name, points)%3))%3]
	}
	if g == integers || g == indices && !strings.Contains("xyzt", name[:1]) {
		return float64(1 + sum%uint64(24*min(far, 40)))
	}
	x := far * (0.25 + 2.75*float64(sum>>11)/(1<<53))
	if point%4 >= 2 {
		x = -x
	}
	if g == indices && point%4 == 0 { // ⌈x⌉ is ⌊x⌋+1 elsewhere
		return math.Round(x)
	}
	return x
}

func hash(name string, salt byte) uint64 {
	h := fnv.New64a()
	h.Write([]byte(name))
	h.Write([]byte{0, salt})
	sum := h.Sum64()
	sum = (sum ^ sum>>31) * 0x9e3779b97f4a7c15 // FNV mixes its last byte poorly
	return sum ^ sum>>32
}

// at evaluates n at a point.
func (e *evaluator) at(n *node, point int, g grid) value {
	if !e.spend(1) || !n.scalar() {
		return undefined
	}
	if r := e.exact(n); r != nil {
		f, _ := r.Float64()
		if math.IsInf(f, 0) || f == 0 && r.Sign() != 0 {
			return undefined
		}
		return realValue(f)
	}
	switch n.op {
	case opSymbol:
		return realValue(coordinate(n.name, point, g))
	case opWord:
		if x, ok := wordValues[n.name]; ok {
			return realValue(x)
		}
		return realValue(math.Abs(coordinate(n.name, point, g)))
	case opConst:
		switch n.name {
		case "pi":
			return realValue(math.Pi)
		case "e":
			return realValue(math.E)
		case "i":
			return value{v: 1i, scale: 1}
		}
		return value{v: complex(math.Inf(1), 0)}
	}
	if n.op == opApply {
		return e.apply(n, point, g)
	}
	var kids [2]value
	off := false
	for i, kid := range n.kids {
		x := e.at(kid, point, g)
		if !x.usable() {
			return undefined
		}
		off = off || x.off
		kids[i] = x
	}
	a, b := kids[0], kids[1]
	var z value
	switch n.op {
	case opAdd:
		z = value{v: a.v + b.v, scale: max(a.scale, b.scale)}
	case opNeg:
		z = value{v: -a.v, scale: a.scale}
	case opMul:
		z = value{v: mul(a.v, b.v), scale: a.scale * b.scale}
	case opDiv:
		if cmplx.Abs(b.v) <= rationalTolerance*b.scale {
			return undefined
		}
		size := cmplx.Abs(b.v)
		z = value{v: div(a.v, b.v), scale: a.scale / size * (b.scale / size)}
	case opPow:
		z = pow(a, b)
	case opRoot:
		z = root(a, b)
	case opFact:
		z = realValue(factorial(a.v))
		z.scale *= max(1, a.scale)
	case opBinom:
		z = realValue(binomial(a.v, b.v))
		z.scale *= max(1, a.scale)
	case opCall:
		z = call(n.name, a, b, len(n.kids) > 1)
	default:
		return undefined
	}
	if imag(z.v) == 0 {
		z.v = complex(real(z.v), 0) // no negative zero, which would choose a branch
	}
	overflow := cmplx.IsInf(z.v) && !cmplx.IsInf(a.v) && !cmplx.IsInf(b.v)
	underflow := z.v == 0 && (n.op == opPow || n.op == opDiv || n.op == opMul && b.v != 0) && a.v != 0
	if overflow || underflow || n.op == opCall && n.name == "exp" && z.v == 0 {
		return undefined
	}
	z.scale = max(z.scale, cmplx.Abs(z.v))
	z.off = z.off || off
	return z
}

// apply evaluates a function that is not known as a smooth one of its own, which obeys
// no law that the known ones obey.
func (e *evaluator) apply(n *node, point int, g grid) value {
	phase := float64(hash(n.name, byte(len(n.kids))) % 1000)
	sum, scale, off := complex(phase, 0), phase, false
	for i, kid := range n.kids {
		x := e.at(kid, point, g)
		if !x.usable() {
			return undefined
		}
		weight := 0.2 + float64(hash(n.name, byte(i))%1000)/1000
		sum += complex(weight, 0) * x.v
		scale += x.scale
		off = off || x.off
	}
	v := 3 + cmplx.Sin(sum) + cmplx.Cos(1.7*sum)
	return value{v: v, scale: max(scale, cmplx.Abs(v)), off: off}
}

func realValue(x float64) value { return value{v: complex(x, 0), scale: math.Abs(x)} }

func isReal(z complex128) bool { return imag(z) == 0 }

func mul(a, b complex128) complex128 {
	if isReal(a) && isReal(b) { // keeps infinities
		return complex(real(a)*real(b), 0)
	}
	return a * b
}

func div(a, b complex128) complex128 {
	if isReal(a) && isReal(b) {
		return complex(real(a)/real(b), 0)
	}
	return a / b
}

// relative is the rounding error of x as a share of x.
func relative(x value) float64 {
	if x.v == 0 {
		return 1
	}
	return x.scale / cmplx.Abs(x.v)
}

func pow(a, b value) value {
	z := value{}
	negative := isReal(a.v) && real(a.v) < 0
	whole := isReal(b.v) && real(b.v) == math.Trunc(real(b.v))
	switch {
	case a.v == 0 && real(b.v) <= 0:
		return undefined
	case isReal(a.v) && isReal(b.v) && (whole || !negative):
		z.v = complex(math.Pow(real(a.v), real(b.v)), 0)
	case whole && math.Abs(real(b.v)) <= maxDepth:
		z.v = 1
		for range int(math.Abs(real(b.v))) {
			z.v *= a.v
		}
		if real(b.v) < 0 {
			z.v = 1 / z.v
		}
	default:
		z.v = cmplx.Pow(a.v, b.v)
		z.off = negative
	}
	logA := 1.0
	if a.v != 0 {
		logA = math.Abs(math.Log(cmplx.Abs(a.v)))
	}
	growth := max(1, cmplx.Abs(b.v)*relative(a), logA*b.scale)
	z.scale = cmplx.Abs(z.v) * growth
	if a.v == 0 {
		z.scale = 1
	}
	return z
}

// root is the real root of a real number where there is one, else the principal.
func root(a, index value) value {
	q := real(index.v)
	if !isReal(index.v) || q == 0 {
		return undefined
	}
	odd := q == math.Trunc(q) && math.Mod(q, 2) != 0
	if isReal(a.v) && real(a.v) < 0 && odd {
		return value{v: complex(-math.Pow(-real(a.v), 1/q), 0), scale: math.Pow(-real(a.v), 1/q) * relative(a)}
	}
	if q == 2 {
		z := value{v: cmplx.Sqrt(a.v), off: isReal(a.v) && real(a.v) < 0}
		if a.v == 0 || cmplx.Abs(a.v) < rationalTolerance*a.scale { // the root of a rounding error
			return value{scale: 1 + a.scale}
		}
		z.scale = cmplx.Abs(z.v) * relative(a)
		return z
	}
	return pow(a, reciprocal(index))
}

func reciprocal(x value) value {
	return value{v: div(1, x.v), scale: relative(x) / cmplx.Abs(x.v), off: x.off}
}

func factorial(z complex128) float64 {
	x := real(z)
	if !isReal(z) || x < 0 && x == math.Trunc(x) {
		return math.NaN()
	}
	return math.Gamma(x + 1)
}

func doubleFactorial(z complex128) float64 {
	x := real(z)
	if !isReal(z) || x < -1 || x > 600 || x != math.Trunc(x) {
		return math.NaN()
	}
	product := 1.0
	for ; x > 1; x -= 2 {
		product *= x
	}
	return product
}

func binomial(n, k complex128) float64 {
	x, y := real(n), real(k)
	if isReal(n) && isReal(k) && x == math.Trunc(x) && x >= 0 && y == math.Trunc(y) && (y < 0 || y > x) {
		return 0
	}
	return factorial(n) / factorial(k) / factorial(n-k)
}

func call(name string, a, b value, hasBase bool) value {
	x := a.v
	z := value{scale: max(1, a.scale)}
	switch name {
	case "sin":
		z.v = cmplx.Sin(x)
		z.scale = a.scale
	case "cos":
		z.v = cmplx.Cos(x)
	case "tan", "cot", "sec", "csc":
		sin, cos := cmplx.Sin(x), cmplx.Cos(x)
		num, den := sin, cos
		switch name {
		case "cot":
			num, den = cos, sin
		case "sec":
			num = 1
		case "csc":
			num, den = 1, sin
		}
		if cmplx.Abs(den) < rationalTolerance*z.scale {
			return undefined
		}
		z.v = num / den
		z.scale *= (1 + cmplx.Abs(z.v)*cmplx.Abs(z.v))
	case "cis":
		z.v = cmplx.Exp(1i * x)
	case "arcsin", "asin":
		z.v = cmplx.Asin(x)
		z.off = isReal(x) && math.Abs(real(x)) > 1
	case "arccos", "acos":
		z.v = cmplx.Acos(x)
		z.off = isReal(x) && math.Abs(real(x)) > 1
	case "arctan", "atan":
		z.v = cmplx.Atan(x)
	case "arccot": // in (0, π)
		z.v = math.Pi/2 - cmplx.Atan(x)
	case "arcsec", "arccsc":
		inverse := reciprocal(a)
		if x == 0 {
			return undefined
		}
		return call(map[string]string{"arcsec": "arccos", "arccsc": "arcsin"}[name], inverse, b, false)
	case "arcsinh", "asinh", "arsinh":
		z.v = cmplx.Asinh(x)
		if isReal(x) {
			z.v = complex(math.Asinh(real(x)), 0)
		}
	case "arccosh", "acosh", "arcosh":
		z.v = cmplx.Acosh(x)
		z.off = isReal(x) && real(x) < 1
	case "arctanh", "atanh", "artanh":
		z.v = cmplx.Atanh(x)
		z.off = isReal(x) && math.Abs(real(x)) >= 1
	case "!!":
		z = realValue(doubleFactorial(x))
	case "sinh":
		z.v = cmplx.Sinh(x)
		z.scale *= max(1, cmplx.Abs(z.v))
	case "cosh":
		z.v = cmplx.Cosh(x)
		z.scale *= cmplx.Abs(z.v)
	case "tanh":
		z.v = cmplx.Tanh(x)
	case "exp":
		return pow(realValue(math.E), a)
	case "ln", "log", "lg":
		if cmplx.Abs(x) <= rationalTolerance*a.scale {
			return undefined
		}
		z.v = cmplx.Log(x)
		z.scale = max(1, relative(a), cmplx.Abs(z.v))
		z.off = isReal(x) && real(x) < 0
		if name == "lg" {
			z.v /= complex(math.Ln10, 0)
		}
		if hasBase {
			base := call("ln", b, b, false)
			if !base.usable() || cmplx.Abs(base.v) <= rationalTolerance*base.scale {
				return undefined
			}
			size := cmplx.Abs(base.v)
			z.v = div(z.v, base.v)
			z.scale = z.scale / size * (base.scale / size)
			z.off = z.off || base.off
		}
	case "abs":
		z.v = complex(cmplx.Abs(x), 0)
		z.scale = a.scale
	case "floor", "ceil":
		if !isReal(x) {
			return undefined
		}
		r := real(x)
		if whole := math.Round(r); math.Abs(r-whole) <= constantTolerance*max(1, a.scale) {
			r = whole // a rounding error below an integer
		}
		if name == "floor" {
			r = math.Floor(r)
		} else {
			r = math.Ceil(r)
		}
		return realValue(r)
	default:
		return undefined
	}
	return z
}
