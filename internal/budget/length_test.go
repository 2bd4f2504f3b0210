package budget_test

import (
	"testing"

	"anytime/internal/budget"
)

func TestLength(t *testing.T) {
	tests := []struct {
		name      string
		seen      []int
		atMost    int
		low, high int
	}{
		{"nothing seen", nil, 128, 24, 24},
		{"too little seen", []int{10}, 128, 24, 24},
		{"steady", []int{20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20}, 128, 21, 30},
		{"varied", []int{10, 40, 10, 40, 10, 40, 10, 40, 10, 40}, 128, 41, 128},
		{"always cut off", []int{64, 64, 64, 64, 64, 64, 64, 64, 64, 64}, 64, 64, 64},
		{"never above the cap", []int{500, 500, 500, 500, 500}, 100, 100, 100},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var l budget.Length
			for _, n := range test.seen {
				l.Observe(n)
			}
			if got := l.Reserve(test.atMost); got < test.low || got > test.high {
				t.Errorf("reserve %d, want %d to %d", got, test.low, test.high)
			}
		})
	}
}
