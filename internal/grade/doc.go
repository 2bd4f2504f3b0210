// Package grade decides whether an answer is right: answer equivalence for
// mathematics ([Equal]), extraction of boxed answers ([Boxed]) and a verifier for
// each kind of task ([VerifierOf]).
//
// An answer goes through one file a step: latex.go takes off its clothing and
// cuts it into tokens, parse.go and operand.go build a small tree, and equal.go
// compares two trees, with units.go for quantities and sets.go for sets of real
// numbers. Numbers are compared exactly first: exact.go evaluates what is rational by
// its form with math/big, fingerprint.go what has variables modulo a prime, and
// precise.go real constants to 300 digits. What is left is evaluated by eval.go in
// complex128, at points of several magnitudes if it has variables. What does not parse
// is compared as text.
//
// Not equal means not equal: 0.333 is not 1/3 and 3.14159265358979 is not π. Values
// that are only known to float64 count as equal only within its rounding. Where a
// notation has several meanings, this is how it is read:
//
//   - Percent: 50\% equals 50\%, 0.5 (its value) and 50 (Hendrycks' and Minerva's
//     graders drop the sign). Degrees likewise: 90^\circ is 90 and π/2.
//     So Equal is symmetric and reflexive, but not transitive.
//   - Units and currency: 5 cm equals 5, 50 mm and 0.05 m, but not 5 kg. A single
//     letter is a variable, 3 n is not 3 and 4\text{i} is 4i, unless it is a known unit
//     and upright, behind 20\, or in a usual form such as 300 K and 9.8 m/s^2. Million,
//     dozen and their like multiply; 5 factorial and 5 (incorrect) are not 5.
//   - Quantities in units of one dimension, each smaller than the one before, are a sum:
//     45°30' is 45.5°, 2 h 30 min is 150 min. 3:05 is a time, and not the ratio 3:5.
//   - "No solution" is the empty set.
//   - 1,000 is a number and (1,000) a pair; in 100,200 both readings are tried.
//   - A list 1,2 and a set \{1,2\} have no order; (1,2) has, and is a point or an
//     open interval. A list equals one tuple in the same order, as do p=1, q=2; with
//     or it equals none, and a set never. The boxes in \boxed{1}, \boxed{2} are a list.
//   - x=5 equals 5, and x\ge 2 equals [2,\infty). Between conditions on one variable,
//     and means the intersection, or the union; a comma means and, or, where that is
//     empty, or.
//   - m+n=33 equals 33, and so does any expression of several symbols or with a
//     function. 2x=33 does not, as it asks for x, nor does the equation of a curve
//     equal its 0.
//   - ± stands for both signs, each on its own, (±1, ±2) for four points; with a ∓ in
//     the same item all go together.
//   - f, g and h before a bracket are functions, unless one of the two answers has them
//     without: f(2x) is not 2f(x), but h(a+b) is ah+bh.
//   - \lfloor x \rfloor is of a real number where the variable is x, y, z or t, of an
//     integer otherwise.
//   - k\pi, k\in\mathbb{Z} and f(n)=n for all n equal k\pi and f(n)=n.
//   - n2^k is n·2^k, and x2 a name. \cot^{-1} is the inverse function, in (0, π).
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
