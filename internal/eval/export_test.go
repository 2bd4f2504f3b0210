package eval

// What the statistics are tested by.
var (
	Bootstrap = bootstrap
	Knee      = knee
)
