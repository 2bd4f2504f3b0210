// Package budget says how long a run may think, and when it must stop to answer in time.
//
// A Budget is thinking tokens, a deadline for the finished answer, or both; Parse reads its grammar. A Meter keeps one run's account
// of it. Tokens are exact. A deadline is kept by cutting the thinking while a reserve for the closing, a whole answer and its
// delivery is left, and what that reserve must be is told by a Pace: the measured speeds of one model on one engine, pessimistic by
// their deviation. Schedule and Auto say when answers are taken on the way; EarlyStop and Loop stop a thought that has settled or
// goes in circles; Prior weighs budgets in training.
//
// Nothing here reads a clock or starts a goroutine: times come from the caller. A Pace is shared by concurrent runs; a Meter, an
// Auto, a Rule and a Loop belong to one run's goroutine.
package budget

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Bounds of a budget.
const (
	Unlimited   = -1 // as Tokens: as many as the server allows
	MaxTokens   = 10_000_000
	MinDeadline = time.Millisecond
	MaxDeadline = 24 * time.Hour
)

// Grammar and ExtensionGrammar are shown in errors.
const (
	Grammar          = "a budget is " + forms + ", 0 (answer now) or " + most
	ExtensionGrammar = "what is added is " + forms + " or " + most

	forms = "thinking tokens (512), a deadline for the whole answer (2s, 750ms, 1m30s), both (512,2s)"
	most  = "max or -1 (the server's cap); at most 10000000 tokens, deadlines from 1ms to 24h"
)

// deadlineForm is what time.ParseDuration reads, but for the size of its numbers, of which its errors do not tell.
var deadlineForm = regexp.MustCompile(`^(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+$`)

// maxInput is longer than any budget need be.
const maxInput = 64

// Budget bounds the thinking of one run. Its zero value answers at once.
type Budget struct {
	Tokens   int           // thinking tokens; Unlimited: the server's cap
	Deadline time.Duration // of the whole finished answer, from the request's arrival; 0 none
}

// SyntaxError is a budget that could not be read.
type SyntaxError struct {
	Input     string // as given, shortened where it is very long
	Reason    string
	Extension bool // it was to be added to another
}

func (e *SyntaxError) Error() string {
	grammar := Grammar
	if e.Extension {
		grammar = ExtensionGrammar
	}
	return fmt.Sprintf("budget %q: %s; %s", e.Input, e.Reason, grammar)
}

// Parse reads a budget: "512", "2s", "750ms", "1m30s", "512,2s" in either order, "0", "max" or "-1", also with a deadline, or "" for max.
// Its errors are *SyntaxError.
func Parse(s string) (Budget, error) { return parse(s, false) }

// ParseExtension reads what is added to a budget that was spent: as Parse, but numbers may carry a "+", and it may be neither "" nor
// 0 tokens.
func ParseExtension(s string) (Budget, error) { return parse(s, true) }

func parse(s string, extension bool) (Budget, error) {
	fail := func(format string, args ...any) (Budget, error) {
		if len(s) > maxInput {
			s = strings.ToValidUTF8(s[:maxInput], "") + "…"
		}
		return Budget{}, &SyntaxError{Input: s, Reason: fmt.Sprintf(format, args...), Extension: extension}
	}
	b := Budget{Tokens: Unlimited}
	text := strings.TrimSpace(s)
	switch {
	case text == "" && extension:
		return fail("is empty")
	case text == "":
		return b, nil
	case len(text) > maxInput:
		return fail("longer than %d characters", maxInput)
	}
	counted := false
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		number := part
		if extension {
			number = strings.TrimPrefix(part, "+")
		}
		switch {
		case part == "max" || part == "-1":
			if counted {
				return fail("tokens are given twice")
			}
			counted = true
		case number == "":
			return fail("a number is missing")
		case number[0] == '-':
			return fail("%q is negative", part)
		case number[0] == '+':
			return fail("%q has a sign", part)
		case strings.Trim(number, "0123456789") == "":
			if counted {
				return fail("tokens are given twice")
			}
			counted = true
			tokens, err := strconv.Atoi(number)
			if err != nil || tokens > MaxTokens {
				return fail("more than %d tokens", MaxTokens)
			}
			if extension && tokens == 0 {
				return fail("an extension by 0 tokens adds nothing")
			}
			b.Tokens = tokens
		default:
			if b.Deadline != 0 {
				return fail("the deadline is given twice")
			}
			if !deadlineForm.MatchString(number) {
				return fail("%q is neither a whole number of tokens nor a duration such as 2s", part)
			}
			deadline, err := time.ParseDuration(number)
			switch {
			case err != nil || deadline > MaxDeadline:
				return fail("the deadline is too long; the longest is 24h")
			case deadline < MinDeadline:
				return fail("the deadline is too short; the shortest is 1ms")
			}
			b.Deadline = deadline
		}
	}
	return b, nil
}

// String returns the canonical form: Parse(b.String()) == b for every budget that Parse returns.
func (b Budget) String() string {
	tokens := strconv.Itoa(b.Tokens)
	switch {
	case b.Deadline == 0 && b.Tokens == Unlimited:
		return "max"
	case b.Deadline == 0:
		return tokens
	case b.Tokens == Unlimited:
		return formatDeadline(b.Deadline)
	default:
		return tokens + "," + formatDeadline(b.Deadline)
	}
}

// formatDeadline is Duration.String without trailing zero units: 1m and not 1m0s.
func formatDeadline(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// MarshalText writes the canonical form.
func (b Budget) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText reads what Parse does.
func (b *Budget) UnmarshalText(text []byte) error {
	parsed, err := Parse(string(text))
	if err == nil {
		*b = parsed
	}
	return err
}

// Tighter returns the tighter of both in tokens and in deadline.
func (b Budget) Tighter(o Budget) Budget {
	if b.Tokens == Unlimited || o.Tokens != Unlimited && o.Tokens < b.Tokens {
		b.Tokens = o.Tokens
	}
	if b.Deadline == 0 || o.Deadline != 0 && o.Deadline < b.Deadline {
		b.Deadline = o.Deadline
	}
	return b
}
