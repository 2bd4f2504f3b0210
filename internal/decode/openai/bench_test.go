package openai_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"anytime/internal/decode"
	"anytime/internal/decode/openai"
)

// BenchmarkForcedAnswer compares how long it takes from the end of a thought to the answer's first token: by continuing the exact
// prefix with the closing text, and the naive way, which asks the chat again with the question and the thought in it. llama-server keeps the
// thought's cache in either case; what another prompt shares with it is all that the naive way has of that.
func BenchmarkForcedAnswer(b *testing.B) {
	if !all() {
		b.Skip("with ANYTIME_TEST_ALL=1: it wants a real llama-server")
	}
	p := llamaServer(b, smollm(b), "-c", "4096", "-np", "1")
	e := connect(b, openai.Config{URL: p.url})
	const question = "What is 17 * 24? Think about it for long."
	musing := strings.Repeat("First I try 17 times 20, which is 340. Then there are 4 more of 17, wait, that is 68. Let me see whether the sum is right. ", 60)
	tokens, err := e.Tokenize(b.Context(), decode.Text(musing))
	if err != nil {
		b.Fatal(err)
	}
	for _, length := range []int{256, 1024} {
		thinking := decode.Part{}
		for _, t := range tokens[:length] {
			thinking.IDs = append(thinking.IDs, t.ID)
		}
		thought := join(tokens[:length])
		for _, way := range []string{"prefix", "chat"} {
			b.Run(fmt.Sprintf("%s/%d", way, length), func(b *testing.B) {
				var total time.Duration
				n := 0
				for b.Loop() {
					b.StopTimer()
					n++ // another question each time, so that no cache is left from before
					asked := fmt.Sprintf("%d. %s", n+length, question)
					s := begin(b, e, decode.Text("<|im_start|>user\n"+asked+"<|im_end|>\n<|im_start|>assistant\n<think>\n"), thinking)
					span(b, s, decode.Span{MaxTokens: 1, MinTokens: 1}) // the thought is in the server's cache, as if decoded there
					b.StartTimer()
					began := time.Now()
					if way == "prefix" {
						if err := s.Append(decode.Text("\n</think>\n\n**Final Answer**\n")); err != nil {
							b.Fatal(err)
						}
						span(b, s, decode.Span{MaxTokens: 1, MinTokens: 1})
					} else {
						firstChatToken(b, p.url, asked, thought)
					}
					total += time.Since(began)
					s.Close()
				}
				b.ReportMetric(float64(total.Microseconds())/1000/float64(n), "ms/answer")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// firstChatToken asks the chat for an answer to the question after the thought, and waits for its first token.
func firstChatToken(b *testing.B, url, question, thought string) {
	body, err := json.Marshal(map[string]any{"stream": true, "max_tokens": 1, "messages": []map[string]string{
		{"role": "user", "content": question + "\n\nThoughts so far:\n" + thought + "\n\nGive your final answer now."},
	}})
	if err != nil {
		b.Fatal(err)
	}
	resp, err := http.Post(url+"/v1/chat/completions", "application/json", bytes.NewReader(body))
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if strings.Contains(lines.Text(), `"content":"`) {
			return
		}
	}
	b.Fatalf("no token came: %v", lines.Err())
}
