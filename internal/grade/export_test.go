package grade

const (
	MaxSteps = maxSteps
	MaxTail  = maxTail
)

// Steps returns what a comparison cost.
func Steps(a, b string) int {
	c := newComparer()
	c.answers(a, b)
	return maxSteps - c.steps
}

// IsMathematics reports whether an answer parses as mathematics.
func IsMathematics(s string) bool { return readings(Normalize(s), "")[0].tree != nil }
