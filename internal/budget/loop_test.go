package budget_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"anytime/internal/budget"
)

// firstLoop returns after how many of the tokens a loop was seen, 0 never.
func firstLoop(tokens []int64) int {
	var l budget.Loop
	for i, token := range tokens {
		if l.Observe(token) {
			return i + 1
		}
	}
	return 0
}

// byBytes and byWords are the finest and the coarsest that tokenizers do.
func byBytes(text string) (tokens []int64) {
	for _, b := range []byte(text) {
		tokens = append(tokens, int64(b))
	}
	return tokens
}

func byWords(text string) (tokens []int64) {
	for word := range strings.SplitAfterSeq(text, " ") {
		tokens = append(tokens, budget.TextKey(word))
	}
	return tokens
}

func TestLoopIsFoundWithinItsBound(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		period := rapid.IntRange(1, 256).Draw(rt, "period")
		prefix := rapid.SliceOfN(rapid.Int64Range(0, 9), 0, 700).Draw(rt, "prefix")
		// A word without repetition has the period of its length and no smaller one, and cannot go on from the prefix.
		distinct := rapid.Bool().Draw(rt, "distinct")
		word := make([]int64, period)
		for i := range word {
			if distinct {
				word[i] = int64(100 + i)
			} else {
				word[i] = rapid.Int64Range(0, 3).Draw(rt, "token")
			}
		}
		bound := 512 + 4*period
		tokens := append([]int64(nil), prefix...)
		for i := range bound {
			tokens = append(tokens, word[i%period])
		}
		at := firstLoop(tokens)
		if at == 0 {
			rt.Fatalf("period %d: no loop in %d tokens behind %d", period, bound, len(prefix))
		}
		if distinct && at != len(tokens) && at > len(prefix) {
			rt.Fatalf("period %d: loop after %d tokens, bound %d", period, at-len(prefix), bound)
		}
	})
}

func TestLoopOfText(t *testing.T) {
	loop := "Wait, let me check that again. 12*5=60; 60-5=55. That is not 37.\n"
	for name, tokens := range map[string][]int64{
		"bytes": byBytes(searchLines(40) + strings.Repeat(loop, 40)),
		"words": byWords(searchLines(40) + strings.Repeat(loop, 100)),
	} {
		if firstLoop(tokens) == 0 {
			t.Errorf("%s: not found", name)
		}
	}
}

// searchLines is a Countdown search: lines of one form, none like another for long.
func searchLines(n int) string {
	var b strings.Builder
	rng := rand.New(rand.NewPCG(1, 2))
	for range n {
		x, y, z := rng.IntN(13)+1, rng.IntN(13)+1, rng.IntN(13)+1
		fmt.Fprintf(&b, "%d*%d=%d;%d-%d=%d?37\n", x, y, x*y, x*y, z, x*y-z)
	}
	return b.String()
}

func TestHonestRepetitionIsNoLoop(t *testing.T) {
	var counting, table, code, times strings.Builder
	for i := range 500 {
		fmt.Fprintf(&counting, "%d, ", i+1)
		fmt.Fprintf(&code, "\tcase %d:\n\t\treturn x + %d\n", i, i)
	}
	table.WriteString("| n | n squared | even |\n|---|---|---|\n")
	for i := range 200 {
		fmt.Fprintf(&table, "| %d | %d | %t |\n", i, i*i, i%2 == 0)
	}
	for i := range 20 {
		for j := range 20 {
			fmt.Fprintf(&times, "%d x %d = %d\n", i, j, i*j)
		}
	}
	for name, text := range map[string]string{
		"search":       searchLines(500),
		"digits":       "1/7 = 0." + strings.Repeat("142857", 50) + "…",
		"zeros":        "10^400 = 1" + strings.Repeat("0", 400),
		"ruler":        strings.Repeat("=", 120) + "\n" + strings.Repeat("-", 120) + "\n",
		"matrix":       strings.Repeat(strings.Repeat("0 ", 12)+"\n", 12),
		"identity":     identity(40),
		"counting":     counting.String(),
		"table":        table.String(),
		"code":         code.String(),
		"times":        times.String(),
		"second try":   strings.Repeat(searchLines(30), 2),
		"wait":         strings.Repeat("Wait, no. Let me try again.\n", 15),
		"empty table":  strings.Repeat("|   |   |   |   |\n", 25),
		"short spaces": strings.Repeat(" ", 500),
	} {
		if at := firstLoop(byBytes(text)); at != 0 {
			t.Errorf("%s by bytes: a loop after %d tokens", name, at)
		}
		if at := firstLoop(byWords(text)); at != 0 {
			t.Errorf("%s by words: a loop after %d tokens", name, at)
		}
	}
}

func identity(n int) string {
	var b strings.Builder
	for i := range n {
		for j := range n {
			if i == j {
				b.WriteString("1 ")
			} else {
				b.WriteString("0 ")
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestLoopWithACounterIsNoLoop(t *testing.T) {
	var tokens []int64
	for i := range int64(400) {
		tokens = append(tokens, 1, 2, 3, 1000+i, 4, 5)
	}
	if at := firstLoop(tokens); at != 0 {
		t.Errorf("a loop after %d tokens", at)
	}
}

func BenchmarkLoop(b *testing.B) {
	tokens := byBytes(searchLines(200))
	var l budget.Loop
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		l.Observe(tokens[i%len(tokens)])
		i++
	}
}
