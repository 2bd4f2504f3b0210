package budget

import (
	"fmt"
	"strconv"
	"strings"
)

// The modes of an EarlyStop, besides "" for off.
const (
	StopConverge  = "converge"  // K equal answers in a row
	StopConfident = "confident" // one answer of a confidence of at least Threshold
)

// Defaults of an EarlyStop. Two equal answers in a row are often one guess made twice before the thought got anywhere; the third
// is what makes it a habit. 0.95 is the threshold of DEER (arXiv 2504.15895), which measures confidence as we do, by the
// probability of the tokens of an answer forced on the way.
const (
	defaultK         = 3
	defaultThreshold = 0.95
)

// maxK is more equal answers than anyone waits for.
const maxK = 64

const earlyStopGrammar = "early_stop is off, converge or converge:4 (equal answers in a row, 2 to 64), confident or confident:0.9 (probability over 0, at most 1)"

// EarlyStop says when the answers taken on the way end the thinking. Its zero value is off. As text it is what ParseEarlyStop reads.
type EarlyStop struct {
	Mode      string  // "" off
	K         int     // of StopConverge; 0: 3
	Threshold float64 // of StopConfident; 0: 0.95
}

// ParseEarlyStop reads "off", "converge", "converge:4", "confident", "confident:0.9", or "" for off.
func ParseEarlyStop(s string) (EarlyStop, error) {
	mode, arg, hasArg := strings.Cut(strings.TrimSpace(s), ":")
	e := EarlyStop{Mode: mode}
	ok := false
	switch mode {
	case "", "off":
		e.Mode, ok = "", !hasArg
	case StopConverge:
		ok = true
		if hasArg {
			n, err := strconv.ParseUint(arg, 10, 8)
			e.K, ok = int(n), err == nil && n >= 2 && n <= maxK
		}
	case StopConfident:
		ok = true
		if hasArg {
			t, err := strconv.ParseFloat(arg, 64)
			// Plain decimals only: ParseFloat alone takes NaN, hexadecimal and exponents.
			e.Threshold, ok = t, err == nil && strings.Trim(arg, "0123456789.") == "" && t > 0 && t <= 1
		}
	}
	if !ok {
		return EarlyStop{}, fmt.Errorf("early_stop %.32q: %s", s, earlyStopGrammar)
	}
	return e.withDefaults(), nil
}

func (e EarlyStop) withDefaults() EarlyStop {
	if e.Mode == StopConverge && e.K == 0 {
		e.K = defaultK
	}
	if e.Mode == StopConfident && e.Threshold == 0 {
		e.Threshold = defaultThreshold
	}
	return e
}

// String returns the form that ParseEarlyStop reads.
func (e EarlyStop) String() string {
	e = e.withDefaults()
	switch e.Mode {
	case StopConverge:
		return fmt.Sprintf("%s:%d", e.Mode, e.K)
	case StopConfident:
		return e.Mode + ":" + strconv.FormatFloat(e.Threshold, 'f', -1, 64)
	default:
		return "off"
	}
}

// MarshalText writes String's form.
func (e EarlyStop) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// UnmarshalText reads what ParseEarlyStop does.
func (e *EarlyStop) UnmarshalText(text []byte) error {
	parsed, err := ParseEarlyStop(string(text))
	if err == nil {
		*e = parsed
	}
	return err
}

// Rule watches the answers of one run.
type Rule struct {
	stop   EarlyStop
	equal  func(a, b string) bool
	streak string // the first answer of the row: each is compared with it, since equal need not be transitive
	length int
}

// Rule starts watching; equal says whether two answers are the same.
func (e EarlyStop) Rule(equal func(a, b string) bool) *Rule {
	return &Rule{stop: e.withDefaults(), equal: equal}
}

// Observe takes the answers in the order of their checkpoints, with their confidence from 0 to 1, and returns true, with the cause,
// once the thinking may end. "" is no answer: it ends a row and is never confident.
func (r *Rule) Observe(answer string, confidence float64) (Cause, bool) {
	switch r.stop.Mode {
	case StopConverge:
		switch {
		case answer == "":
			r.length = 0
		case r.length > 0 && r.equal(r.streak, answer):
			r.length++
		default:
			r.streak, r.length = answer, 1
		}
		return CauseConverged, r.length >= r.stop.K
	case StopConfident:
		return CauseConfident, answer != "" && confidence >= r.stop.Threshold
	}
	return "", false
}
