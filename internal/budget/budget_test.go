package budget_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"anytime/internal/budget"
)

func TestParse(t *testing.T) {
	const all = budget.Unlimited
	for in, want := range map[string]budget.Budget{
		"":             {Tokens: all},
		"  ":           {Tokens: all},
		"max":          {Tokens: all},
		"0":            {Tokens: 0},
		"512":          {Tokens: 512},
		" 512 ":        {Tokens: 512},
		"007":          {Tokens: 7},
		"10000000":     {Tokens: 10_000_000},
		"2s":           {Tokens: all, Deadline: 2 * time.Second},
		"750ms":        {Tokens: all, Deadline: 750 * time.Millisecond},
		"1ms":          {Tokens: all, Deadline: time.Millisecond},
		"24h":          {Tokens: all, Deadline: 24 * time.Hour},
		"1m30s":        {Tokens: all, Deadline: 90 * time.Second},
		"1.5s":         {Tokens: all, Deadline: 1500 * time.Millisecond},
		"512,2s":       {Tokens: 512, Deadline: 2 * time.Second},
		"2s,512":       {Tokens: 512, Deadline: 2 * time.Second},
		" 512 , 2s ":   {Tokens: 512, Deadline: 2 * time.Second},
		"0,2s":         {Tokens: 0, Deadline: 2 * time.Second},
		"1.123456789s": {Tokens: all, Deadline: 1123456789},
		"-1":           {Tokens: all},
		"max,2s":       {Tokens: all, Deadline: 2 * time.Second},
		"2s, max":      {Tokens: all, Deadline: 2 * time.Second},
		"-1,2s":        {Tokens: all, Deadline: 2 * time.Second},
	} {
		if got, err := budget.Parse(in); err != nil || got != want {
			t.Errorf("Parse(%q) = %+v, %v; want %+v", in, got, err, want)
		}
		none := want.Tokens == 0 || strings.TrimSpace(in) == ""
		if got, err := budget.ParseExtension(in); (err != nil) != none || err == nil && got != want {
			t.Errorf("ParseExtension(%q) = %+v, %v; want %+v, an error for nothing", in, got, err, want)
		}
	}
}

func TestParseExtension(t *testing.T) {
	for in, want := range map[string]budget.Budget{
		"+1000":      {Tokens: 1000},
		"+2s":        {Tokens: budget.Unlimited, Deadline: 2 * time.Second},
		"+1000,+2s":  {Tokens: 1000, Deadline: 2 * time.Second},
		"+2s, 1000":  {Tokens: 1000, Deadline: 2 * time.Second},
		" 1000, +2s": {Tokens: 1000, Deadline: 2 * time.Second}, // "+1000,…" in a query, where + is a space
	} {
		if got, err := budget.ParseExtension(in); err != nil || got != want {
			t.Errorf("ParseExtension(%q) = %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"0", "+0", "+0,2s", "++5", "+-5", "+ 5", "+", "+max", "+-1", "-5", "+5,+5", ""} {
		_, err := budget.ParseExtension(in)
		if err == nil || !strings.Contains(err.Error(), budget.ExtensionGrammar) || strings.Contains(err.Error(), "answer now") {
			t.Errorf("ParseExtension(%q): %v, want an error with what may be added", in, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, in := range []string{
		"-2", "-01", "-2s", "+5", "+2s", "1.5", "1e3", "1e3s", "0x10", "0x1p3s", "NaN", "nan", "Inf", "inf", "infs", "1_000", "१२",
		"10000001", "99999999999999999999", "0s", "0ms", "999us", "24h1ns", "25h", "9999999999h", "1d", "2S", "MAX",
		"512,512", "2s,3s", "512,2s,512", "512,", ",512", ",", "512;2s", "512 2s", "1m 30s", "512,max", "max,max", "max,-1", "-1,512", "s", "ms",
		"5\x00", "\xff", strings.Repeat("1", 100), strings.Repeat("é", 100),
	} {
		_, err := budget.Parse(in)
		var syntax *budget.SyntaxError
		switch {
		case !errors.As(err, &syntax):
			t.Errorf("Parse(%q): error %v, want a SyntaxError", in, err)
		case syntax.Reason == "" || !strings.Contains(err.Error(), budget.Grammar):
			t.Errorf("Parse(%q): %v: without reason or grammar", in, err)
		case len(syntax.Input) > 80:
			t.Errorf("Parse(%q): repeats %d bytes of input", in, len(syntax.Input))
		}
	}
}

// TestParseReasons holds errors to say what is wrong.
func TestParseReasons(t *testing.T) {
	for in, reason := range map[string]string{
		"99999999h": "too long; the longest is 24h", "25h": "too long; the longest is 24h", "9999999999999999999999s": "too long",
		"0s": "too short; the shortest is 1ms", "2s,3s": "the deadline is given twice", "max,512": "tokens are given twice", "-5": `"-5" is negative`,
		"1d": "neither a whole number", "2s1": "neither a whole number", "1h-5m": "neither a whole number",
	} {
		if _, err := budget.Parse(in); err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("Parse(%q): %v, want %q", in, err, reason)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "max", "0", "512", "2s", "1m30s", "512,2s", "2s,512", "+1000,+2s", "-1", "1.5h", "1e9", "0x1p-2", "NaN", "24h0m0.000000001s", "\xff,"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b, err := budget.Parse(s)
		if err != nil {
			if b != (budget.Budget{}) {
				t.Fatalf("Parse(%q) = %+v with an error", s, b)
			}
		} else {
			check(t, b)
			if e, err := budget.ParseExtension(s); b.Tokens != 0 && strings.TrimSpace(s) != "" && (err != nil || e != b) {
				t.Fatalf("ParseExtension(%q) = %+v, %v; Parse %+v", s, e, err, b)
			}
		}
		if e, err := budget.ParseExtension(s); err == nil {
			check(t, e)
		}
	})
}

// check holds a parsed budget to the bounds and to its canonical form.
func check(t *testing.T, b budget.Budget) {
	t.Helper()
	if b.Tokens < budget.Unlimited || b.Tokens > budget.MaxTokens {
		t.Fatalf("%+v: tokens out of bounds", b)
	}
	if b.Deadline != 0 && (b.Deadline < budget.MinDeadline || b.Deadline > budget.MaxDeadline) {
		t.Fatalf("%+v: deadline out of bounds", b)
	}
	if again, err := budget.Parse(b.String()); err != nil || again != b {
		t.Fatalf("Parse(%q) = %+v, %v; want %+v", b.String(), again, err, b)
	}
}

func TestString(t *testing.T) {
	for in, want := range map[string]string{
		"": "max", "max": "max", "0": "0", "2000ms": "2s", "60s": "1m", "3600s": "1h", "1h30m": "1h30m", "2s,5": "5,2s", "1h0m1s": "1h0m1s", "24h": "24h",
	} {
		b, err := budget.Parse(in)
		if err != nil || b.String() != want {
			t.Errorf("Parse(%q).String() = %q, %v; want %q", in, b, err, want)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		b := drawBudget(rt)
		if got, err := budget.Parse(b.String()); err != nil || got != b {
			rt.Fatalf("Parse(%q) = %+v, %v", b.String(), got, err)
		}
	})
}

func drawBudget(rt *rapid.T) budget.Budget {
	b := budget.Budget{Tokens: rapid.IntRange(budget.Unlimited, budget.MaxTokens).Draw(rt, "tokens")}
	if rapid.Bool().Draw(rt, "has deadline") {
		b.Deadline = time.Duration(rapid.Int64Range(int64(budget.MinDeadline), int64(budget.MaxDeadline)).Draw(rt, "deadline"))
	}
	return b
}

func TestBudgetJSON(t *testing.T) {
	type request struct {
		Budget budget.Budget `json:"budget"`
	}
	in := request{budget.Budget{Tokens: 512, Deadline: 2 * time.Second}}
	text, err := json.Marshal(in)
	if err != nil || string(text) != `{"budget":"512,2s"}` {
		t.Fatalf("%s, %v", text, err)
	}
	var out request
	if err := json.Unmarshal(text, &out); err != nil || out != in {
		t.Fatalf("%+v, %v", out, err)
	}
	if err := json.Unmarshal([]byte(`{"budget":"soon"}`), &out); err == nil || out != in {
		t.Errorf("bad budget: error %v, left %+v", err, out)
	}
}

func TestTighter(t *testing.T) {
	for _, c := range [][3]string{
		{"max", "max", "max"},
		{"512", "max", "512"},
		{"512", "0", "0"},
		{"2s", "3s", "2s"},
		{"512", "2s", "512,2s"},
		{"100,3s", "200,2s", "100,2s"},
	} {
		a, errA := budget.Parse(c[0])
		b, errB := budget.Parse(c[1])
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if got := a.Tighter(b).String(); got != c[2] {
			t.Errorf("%s and %s: %s, want %s", c[0], c[1], got, c[2])
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		a, b := drawBudget(rt), drawBudget(rt)
		if a.Tighter(b) != b.Tighter(a) || a.Tighter(a) != a || a.Tighter(b).Tighter(a) != a.Tighter(b) {
			rt.Fatalf("%v, %v: not a minimum", a, b)
		}
	})
}

func TestForced(t *testing.T) {
	if budget.CauseNatural.Forced() || !budget.CauseDeadline.Forced() || !budget.CauseEOSInThinking.Forced() {
		t.Error("only natural is not forced")
	}
}

func TestSchedule(t *testing.T) {
	for _, c := range []struct {
		at, every string
		want      []int // checkpoints up to 300
	}{
		{"", "", nil},
		{"64,128,256", "", []int{64, 128, 256}},
		{" 1 , 2 ", "", []int{1, 2}},
		{"", "100", []int{100, 200, 300}},
		{"50, 200", "100", []int{50, 100, 200, 300}},
		{"301", "", nil},
	} {
		s, err := budget.ParseSchedule(c.at, c.every)
		if err != nil {
			t.Errorf("%q %q: %v", c.at, c.every, err)
		}
		var again budget.Schedule
		if text, err := json.Marshal(s); err != nil || json.Unmarshal(text, &again) != nil {
			t.Errorf("%q %q: JSON %s, %v", c.at, c.every, text, err)
		}
		var got []int
		for at, ok := again.Next(0); ok && at <= 300; at, ok = again.Next(at) {
			got = append(got, at)
		}
		if len(got) != len(c.want) {
			t.Fatalf("%q %q: %v, want %v", c.at, c.every, got, c.want)
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%q %q: %v, want %v", c.at, c.every, got, c.want)
			}
		}
	}
	for _, c := range [][2]string{
		{"0", ""}, {"-1", ""}, {"2,1", ""}, {"1,1", ""}, {"1,,2", ""}, {"1.5", ""}, {"x", ""}, {"+5", ""}, {"10000001", ""}, {"99999999999999999999", ""},
		{strings.Repeat("1,", 64) + "1", ""}, {"", "7"}, {"", "0"}, {"", "-8"}, {"", "1e3"}, {"", "8,9"}, {"", "99999999999999999999"},
	} {
		if s, err := budget.ParseSchedule(c[0], c[1]); err == nil {
			t.Errorf("ParseSchedule(%q, %q) = %+v, want an error", c[0], c[1], s)
		}
	}
}

func TestPrior(t *testing.T) {
	budgets := []int{2000, 4000, 6000, 8000}
	for prior, want := range map[budget.Prior][]float64{
		budget.PriorUniform: {.25, .25, .25, .25},
		budget.PriorLinear:  {.1, .2, .3, .4},
		budget.PriorBase:    {0, 0, 0, 1},
		"1, 1, 2, 4":        {.125, .125, .25, .5},
		"0,0,1,0":           {0, 0, 1, 0},
	} {
		got, err := prior.Probabilities(budgets)
		if err != nil || len(got) != len(want) {
			t.Fatalf("%s: %v, %v", prior, got, err)
		}
		for i := range got {
			if d := got[i] - want[i]; d > 1e-12 || d < -1e-12 {
				t.Errorf("%s: %v, want %v", prior, got, want)
			}
		}
	}
	for _, prior := range []budget.Prior{"", "gaussian", "1,2", "1,2,3,x", "1,2,3,-1", "1,2,3,NaN", "1,2,3,Inf", "0,0,0,0"} {
		if got, err := prior.Probabilities(budgets); err == nil {
			t.Errorf("prior %q: %v, want an error", prior, got)
		}
	}
	for _, bad := range [][]int{nil, {2, 2}, {3, 2}, {-1, 2}, {0}} {
		if got, err := budget.PriorLinear.Probabilities(bad); err == nil {
			t.Errorf("budgets %v: %v, want an error", bad, got)
		}
	}
}

func TestEarlyStop(t *testing.T) {
	for in, want := range map[string]string{
		"": "off", "off": "off", "converge": "converge:3", "converge:4": "converge:4", " converge:2 ": "converge:2",
		"confident": "confident:0.95", "confident:0.9": "confident:0.9", "confident:1": "confident:1", "confident:.5": "confident:0.5",
	} {
		e, err := budget.ParseEarlyStop(in)
		if err != nil || e.String() != want {
			t.Errorf("ParseEarlyStop(%q) = %v, %v; want %s", in, e, err, want)
		}
		if want == "off" && e != (budget.EarlyStop{}) {
			t.Errorf("ParseEarlyStop(%q) = %+v, want the zero value", in, e)
		}
		text, err := json.Marshal(e)
		var again budget.EarlyStop
		if err != nil || json.Unmarshal(text, &again) != nil || again != e {
			t.Errorf("%q: JSON %s, %v: %+v, want %+v", in, text, err, again, e)
		}
	}
	for _, in := range []string{
		"on", "off:1", ":", "converge:", "converge:1", "converge:0", "converge:-3", "converge:65", "converge:257", "converge:2.5", "converge:3:3",
		"confident:", "confident:0", "confident:1.01", "confident:-0.5", "confident:NaN", "confident:Inf", "confident:1e-1", "confident:0x1p-1", "confident:.",
	} {
		if e, err := budget.ParseEarlyStop(in); err == nil {
			t.Errorf("ParseEarlyStop(%q) = %v, want an error", in, e)
		}
	}
}

func TestRule(t *testing.T) {
	type answer struct {
		text       string
		confidence float64
	}
	for _, c := range []struct {
		stop  budget.EarlyStop
		in    []answer
		at    int // index of the answer that stops; -1 none
		cause budget.Cause
	}{
		{budget.EarlyStop{}, []answer{{"7", 1}, {"7", 1}, {"7", 1}, {"7", 1}}, -1, ""},
		{budget.EarlyStop{Mode: budget.StopConverge}, []answer{{"7", 0}, {"7", 0}, {"7", 0}}, 2, budget.CauseConverged},
		{budget.EarlyStop{Mode: budget.StopConverge, K: 2}, []answer{{"7", 0}, {"8", 0}, {"7", 0}, {"7.0", 0}}, 3, budget.CauseConverged},
		{budget.EarlyStop{Mode: budget.StopConverge, K: 2}, []answer{{"7", 0}, {"", 0}, {"7", 0}, {"", 0}, {"", 0}}, -1, ""},
		{budget.EarlyStop{Mode: budget.StopConfident}, []answer{{"7", .9}, {"", 1}, {"8", .95}}, 2, budget.CauseConfident},
		{budget.EarlyStop{Mode: budget.StopConfident, Threshold: .5}, []answer{{"7", .49}, {"7", .5}}, 1, budget.CauseConfident},
	} {
		rule := c.stop.Rule(func(a, b string) bool { return strings.TrimSuffix(a, ".0") == strings.TrimSuffix(b, ".0") })
		at, cause := -1, budget.Cause("")
		for i, a := range c.in {
			if got, stop := rule.Observe(a.text, a.confidence); stop {
				at, cause = i, got
				break
			}
		}
		if at != c.at || cause != c.cause {
			t.Errorf("%v over %v: stopped at %d (%s), want %d (%s)", c.stop, c.in, at, cause, c.at, c.cause)
		}
	}
}
