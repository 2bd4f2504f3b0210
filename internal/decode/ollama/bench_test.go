package ollama_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ollama/ollama/api"

	"anytime/internal/decode"
	"anytime/internal/decode/decodetest"
	"anytime/internal/decode/ollama"
	"anytime/internal/decode/remote"
)

// smol starts an Ollama with the default model.
func smol(b *testing.B) (*process, *ollama.Engine) {
	b.Helper()
	path := os.Getenv("ANYTIME_TEST_MODEL")
	if path == "" {
		b.Skip("ANYTIME_TEST_MODEL names no model")
	}
	if found, _ := filepath.Glob("../../../engine/ollama/ollama-v*"); len(found) == 0 {
		b.Skip("no Ollama is built: run engine/ollama.sh")
	}
	o := start(b)
	o.create("smol", "FROM "+path+"\n")
	return o, o.open(b, "smol", func(c *ollama.Config) { c.ContextTokens = 4096 })
}

func chat(user string) string {
	return "<|im_start|>user\n" + user + "<|im_end|>\n<|im_start|>assistant\n"
}

// BenchmarkForcedAnswer is the time from the wish for an answer to its first token, when a thought of 256 or 1024 tokens is in Ollama's
// cache: by closing a fork of the thought, and the naive way, a new chat with the question and the thought in it.
func BenchmarkForcedAnswer(b *testing.B) {
	_, e := smol(b)
	const question = "A farmer has 17 sheep. All but 9 run away. How many are left?"
	opening := chat(question) + "<think>\n"
	first := func(text string) {
		ask(b, e, prompted(text), decode.Span{MaxTokens: 1, MinTokens: 1})
	}
	for _, size := range []struct {
		name   string
		tokens int
	}{{"256", 256}, {"1024", 1024}} {
		thought := "" // what it says makes no difference to the time
		for i := 0; len(remote.Estimate(thought)) < size.tokens; i++ {
			thought += fmt.Sprintf("Let me see once more: there are %d sheep, and so many stay. ", i%17)
		}
		for name, text := range map[string]string{
			"forced": opening + thought + "...\n\n...\n\n</think>\n\n**Final Answer**\n",
			"naive":  chat(question + "\nThese are your thoughts so far:\n" + thought + "\nStop thinking and answer now."),
		} {
			b.Run(name+"/"+size.name, func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					first("Anything else.")
					first(opening + thought) // as it is when the thought is cut
					b.StartTimer()
					first(text)
				}
				b.ReportMetric(float64(b.Elapsed().Microseconds())/1000/float64(b.N), "ms/answer")
			})
		}
	}
}

// BenchmarkDecode compares tokens/s of a greedy span with Ollama asked directly, and with what log-probabilities cost.
func BenchmarkDecode(b *testing.B) {
	o, e := smol(b)
	const tokens, text = 128, "Once upon a time"
	direct := func(logProbs bool) func(b *testing.B) {
		return func(b *testing.B) {
			client := api.NewClient(&url.URL{Scheme: "http", Host: o.address}, http.DefaultClient)
			for b.Loop() {
				n := 0
				err := client.Generate(context.Background(), &api.GenerateRequest{
					Model: "smol", Prompt: text, Raw: true, Logprobs: logProbs,
					Options: map[string]any{"num_predict": tokens, "num_ctx": 4096, "num_thread": 1, "temperature": 0, "repeat_penalty": 1, "stop": []string{}},
				}, func(r api.GenerateResponse) error {
					n = r.EvalCount
					return nil
				})
				if err != nil || n != tokens {
					b.Fatalf("%d tokens, %v", n, err)
				}
			}
			b.ReportMetric(tokens*float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
		}
	}
	b.Run("direct", direct(false))
	b.Run("direct with log-probs", direct(true))
	b.Run("engine", func(b *testing.B) {
		for b.Loop() {
			got, _ := ask(b, e, prompted(text), decode.Span{MaxTokens: tokens, Sampling: decode.Sampling{}})
			if len(got) != tokens || strings.TrimSpace(decodetest.Join(got)) == "" {
				b.Fatalf("%d tokens", len(got))
			}
		}
		b.ReportMetric(tokens*float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
	})
	http.DefaultClient.CloseIdleConnections()
}
