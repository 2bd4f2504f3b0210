// Package grade decides whether an answer is right: answer equivalence for
// mathematics ([Equal]), extraction of boxed answers ([Boxed]) and a verifier for
// each kind of task ([VerifierOf]).
//
// An answer goes through one file a step: latex.go takes off its clothing and
// cuts it into tokens, parse.go and operand.go build a small tree, exact.go
// evaluates it with math/big where it is rational by its form, eval.go in
// complex128 where it is not, at several points if it has variables, and equal.go
// compares two trees, with units.go for quantities. What does not parse is
// compared as text.
//
// Not equal means not equal: 0.333 is not 1/3 and 3.14159265358979 is not π. Two
// inexact values count as equal only within the rounding of float64. Where a
// notation has several meanings, this is how it is read:
//
//   - Percent: 50\% equals 50\%, 0.5 (its value) and 50 (Hendrycks' and Minerva's
//     graders drop the sign). Degrees likewise: 90^\circ is 90 and π/2.
//     So Equal is symmetric and reflexive, but not transitive.
//   - Units and currency: 5 cm equals 5, 50 mm and 0.05 m, but not 5 kg. A single
//     italic letter is a variable, never a unit: 3 n is not 3.
//   - 1,000 is a number and (1,000) a pair; in 100,200 both readings are tried.
//   - A list 1,2 and a set \{1,2\} have no order; (1,2) has, and is a point or an
//     open interval. A list is not a tuple.
//   - x=5 equals 5, and x\ge 2 equals [2,\infty).
//   - 204_5 (base five) equals itself only, or converting would be no task.
//   - \log without a base is natural, as in SymPy; \lg is decimal.
//   - Variables are real; sqrt(a)sqrt(b) equals sqrt(ab) where both are defined.
//
// Time and memory are bounded by the caps below, whatever the input; what exceeds
// them is equal only to the same text.
package grade

const (
	maxInput = 2048    // bytes of an answer, once unboxed
	maxDepth = 60      // nesting of groups, brackets and functions
	maxBits  = 1 << 13 // of an exact numerator or denominator: 2466 digits
	maxSteps = 20000   // evaluation steps of one Equal; a big number costs several
)
