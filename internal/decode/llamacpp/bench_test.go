package llamacpp_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"anytime/internal/decode"
	"anytime/internal/decode/llamacpp"
)

// benchConfig runs the model of ANYTIME_TEST_MODEL, else the tiny one.
func benchConfig(b *testing.B) llamacpp.Config {
	c := llamacpp.Config{ModelPath: os.Getenv("ANYTIME_TEST_MODEL"), LibDir: libDir(b), ContextTokens: 2048, CacheTokens: 8192}
	if c.ModelPath == "" {
		c.ModelPath = modelPath
	}
	return c
}

const benchPrompt = "What is one and two? Think about it step by step, then say it."

// BenchmarkSteps decodes n sequences at once.
func BenchmarkSteps(b *testing.B) {
	const steps = 100
	e, err := llamacpp.Open(b.Context(), benchConfig(b))
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	for _, n := range []int{1, 4, 16} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				var list []decode.Sequence
				for range n {
					list = append(list, start(b, e, benchPrompt, 1))
				}
				for _, s := range list {
					span(b, s, steps)
				}
				for _, s := range list {
					finish(b, s)
					s.Close()
				}
			}
			b.ReportMetric(float64(b.N*n*steps)/b.Elapsed().Seconds(), "tokens/s")
		})
	}
}

// BenchmarkFork measures from the interrupt of a thought to the first token of its answer, by a fork and by a fresh prefill.
func BenchmarkFork(b *testing.B) {
	const suffix = "\n</think>\n\n**Final Answer**\n"
	e, err := llamacpp.Open(b.Context(), benchConfig(b))
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	for _, n := range []int{256, 1024} {
		s := start(b, e, benchPrompt, 1)
		span(b, s, n)
		thought := finish(b, s).ids()
		b.Run(fmt.Sprintf("fork-%d", n), func(b *testing.B) {
			for b.Loop() {
				f, err := s.Fork(decode.Head, decode.ForkOptions{})
				if err != nil {
					b.Fatal(err)
				}
				if err := f.Append(decode.Text(suffix)); err != nil {
					b.Fatal(err)
				}
				span(b, f, 1)
				finish(b, f)
				f.Close()
			}
		})
		s.Close()
		b.Run(fmt.Sprintf("prefill-%d", n), func(b *testing.B) {
			i := 0
			for b.Loop() {
				i++
				// Another first word: nothing is cached.
				f, err := e.Open(b.Context(), decode.Request{Prompt: []decode.Part{
					decode.Text(fmt.Sprint(time.Now().UnixNano()%1000, " ", i, benchPrompt)), {IDs: thought}, decode.Text(suffix),
				}})
				if err != nil {
					b.Fatal(err)
				}
				span(b, f, 1)
				finish(b, f)
				f.Close()
			}
		})
	}
}
