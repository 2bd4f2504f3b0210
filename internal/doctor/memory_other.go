//go:build !linux && !darwin

package doctor

// Memory is 0: unknown.
func Memory() int64 { return 0 }

func available() int64 { return 0 }
