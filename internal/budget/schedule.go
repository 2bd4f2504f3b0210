package budget

import (
	"fmt"
	"strconv"
	"strings"
)

// Bounds of a Schedule.
const (
	maxCheckpoints = 64
	minEvery       = 8 // thinking tokens; closer together, the answers cost more than the thinking
)

// Schedule says after how many thinking tokens answers are taken on the way. Its zero value takes none.
type Schedule struct {
	At    []int `json:"at,omitempty"`    // after these
	Every int   `json:"every,omitempty"` // and each time after so many more; 0 none
}

// ParseSchedule reads the parameters checkpoints ("64,128,256", ascending) and every ("128"); each may be empty.
func ParseSchedule(checkpoints, every string) (Schedule, error) {
	var s Schedule
	if checkpoints = strings.TrimSpace(checkpoints); checkpoints != "" {
		parts := strings.SplitN(checkpoints, ",", maxCheckpoints+1)
		if len(parts) > maxCheckpoints {
			return Schedule{}, fmt.Errorf("checkpoints: at most %d of them", maxCheckpoints)
		}
		last := 0
		for _, part := range parts {
			at, err := parseTokens(part)
			if err != nil {
				return Schedule{}, fmt.Errorf("checkpoints: %w", err)
			}
			if at <= last {
				return Schedule{}, fmt.Errorf("checkpoints: %d after %d: they are thinking tokens from 1, ascending, such as 64,128,256", at, last)
			}
			s.At = append(s.At, at)
			last = at
		}
	}
	if every = strings.TrimSpace(every); every != "" {
		n, err := parseTokens(every)
		if err != nil {
			return Schedule{}, fmt.Errorf("every: %w", err)
		}
		if n < minEvery {
			return Schedule{}, fmt.Errorf("every: %d is less than %d thinking tokens", n, minEvery)
		}
		s.Every = n
	}
	return s, nil
}

// parseTokens reads a count of tokens in plain digits.
func parseTokens(s string) (int, error) {
	s = strings.TrimSpace(s)
	n, err := strconv.Atoi(s)
	switch {
	case s == "" || strings.Trim(s, "0123456789") != "":
		return 0, fmt.Errorf("%.32q is not a whole number of tokens", s)
	case err != nil || n > MaxTokens:
		return 0, fmt.Errorf("%.32q is more than %d tokens", s, MaxTokens)
	}
	return n, nil
}

// Next returns the first checkpoint behind the after-th thinking token; false: there is none.
func (s Schedule) Next(after int) (int, bool) {
	next, ok := 0, false
	if s.Every > 0 {
		next, ok = (max(after, 0)/s.Every+1)*s.Every, true
	}
	for _, at := range s.At {
		if at > after && (!ok || at < next) {
			next, ok = at, true
		}
	}
	return next, ok
}
