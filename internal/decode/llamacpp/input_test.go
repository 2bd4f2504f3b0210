package llamacpp_test

import (
	"encoding/json"
	"math"
	"strings"
	"syscall"
	"testing"
	"time"

	"anytime/internal/decode"
	"anytime/internal/gguf/tiny"
)

// Every input that would end or hang llama.cpp's process is refused, and the child lives on.
func TestRefused(t *testing.T) {
	e := open(t)
	vocabulary := int32(e.Info().Vocabulary)
	parts := map[string]decode.Part{
		"NUL byte":      decode.Text("a\x00b"),
		"literal NUL":   {Text: "\x00", Literal: true},
		"invalid UTF-8": decode.Text("a\xff"),
		"id too large":  {IDs: []int32{vocabulary}},
		"negative id":   {IDs: []int32{1, -1}},
		"text and ids":  {Text: "a", IDs: []int32{1}},
	}
	s := start(t, e, "Hello", 1)
	for name, p := range parts {
		if _, err := e.Open(t.Context(), decode.Request{Prompt: []decode.Part{p}}); !isInput(err, "prompt") {
			t.Errorf("%s: open: %v", name, err)
		}
		if _, err := e.Tokenize(t.Context(), p); !isInput(err, "prompt") {
			t.Errorf("%s: tokenize: %v", name, err)
		}
		if err := s.Append(p); !isInput(err, "prompt") {
			t.Errorf("%s: append: %v", name, err)
		}
	}
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	sampling := func(p decode.Sampling) decode.Span { return decode.Span{MaxTokens: 1, Sampling: p} }
	for name, test := range map[string]struct {
		field string
		span  decode.Span
	}{
		"no tokens":         {"max_tokens", decode.Span{}},
		"min over max":      {"min_tokens", decode.Span{MaxTokens: 1, MinTokens: 2}},
		"negative top":      {"top_logprobs", decode.Span{MaxTokens: 1, TopLogProbs: -1}},
		"21 top":            {"top_logprobs", decode.Span{MaxTokens: 1, TopLogProbs: 21}},
		"empty stop":        {"stop", decode.Span{MaxTokens: 1, Until: []string{""}}},
		"many stops":        {"stop", decode.Span{MaxTokens: 1, Until: make([]string, 65)}},
		"temperature NaN":   {"temperature", sampling(decode.Sampling{Temperature: nan})},
		"temperature inf":   {"temperature", sampling(decode.Sampling{Temperature: inf})},
		"temperature below": {"temperature", sampling(decode.Sampling{Temperature: -1})},
		"top_k":             {"top_k", sampling(decode.Sampling{TopK: -1})},
		"top_p":             {"top_p", sampling(decode.Sampling{TopP: 1.1})},
		"top_p NaN":         {"top_p", sampling(decode.Sampling{TopP: nan})},
		"min_p":             {"min_p", sampling(decode.Sampling{MinP: -0.1})},
		"bias id":           {"logit_bias", sampling(decode.Sampling{LogitBias: map[int32]float32{vocabulary: 1}})},
		"bias negative id":  {"logit_bias", sampling(decode.Sampling{LogitBias: map[int32]float32{-1: 1}})},
		"bias NaN":          {"logit_bias", sampling(decode.Sampling{LogitBias: map[int32]float32{1: nan}})},
		"bias inf":          {"logit_bias", sampling(decode.Sampling{LogitBias: map[int32]float32{1: inf}})},
		"grammar":           {"grammar", sampling(decode.Sampling{Grammar: "root ::= ("})},
	} {
		if err := s.Decode(test.span); !isInput(err, test.field) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.Fork(-2, decode.ForkOptions{}); !isInput(err, "fork") {
		t.Errorf("fork at -2: %v", err)
	}
	// A batch far over n_batch, more sequences than slots, and the sequence from before.
	span(t, start(t, e, strings.Repeat("abc ", 200), 1), 1)
	for range 40 {
		span(t, start(t, e, "Hello", 1), 2)
	}
	span(t, s, 5)
	if r := finish(t, s); len(r.tokens) != 5 || e.Stats().Restarts != 0 {
		t.Errorf("%d tokens, stats %+v", len(r.tokens), e.Stats())
	}
}

// What makes llama.cpp's tokenizer slow is not slow here.
func TestTokenizeMarks(t *testing.T) {
	e := open(t)
	began := time.Now()
	tokens, err := e.Tokenize(t.Context(), decode.Text(strings.Repeat(tiny.EOS, 900)))
	if err != nil || len(tokens) != 900 {
		t.Fatalf("%d tokens, error %v", len(tokens), err)
	}
	text := strings.Repeat("a</think><|im_end|>", 60)
	tokens, err = e.Tokenize(t.Context(), decode.Part{Text: text, Literal: true}, decode.Text("</think>"))
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for i, tok := range tokens {
		got.WriteString(tok.Text)
		if special := tok.Text == tiny.ThinkClose || tok.Text == tiny.EOS; special != (i == len(tokens)-1) {
			t.Errorf("token %d of %d is %q", i, len(tokens), tok.Text)
		}
	}
	if got.String() != text+"</think>" {
		t.Errorf("text %q", got.String())
	}
	if d := time.Since(began); d > time.Minute {
		t.Errorf("took %v", d)
	}
}

func TestGrammarSpan(t *testing.T) {
	const grammar = `
root  ::= "{\"n\": [" num ("," num){3} "], \"ok\": " ("true" | "false") "}"
num   ::= [0-9]{1,3}
`
	for name, temperature := range map[string]float32{"greedy": 0, "sampled": 1} {
		t.Run(name, func(t *testing.T) {
			run := func(interfere bool) result {
				e := open(t)
				s := start(t, e, "Hello", 5)
				constrained := func(sp *decode.Span) {
					sp.MinTokens = 0
					sp.Sampling = decode.Sampling{Temperature: temperature, Grammar: grammar}
				}
				span(t, s, 100, constrained)
				if interfere {
					c, err := s.Next(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					kill(t, e, syscall.SIGKILL)
					if c.End != "" { // it was done before the test looked
						return result{tokens: c.Tokens, end: c.End}
					}
					r := finish(t, s)
					r.tokens = append(c.Tokens, r.tokens...)
					return r
				}
				return finish(t, s)
			}
			r := run(false)
			var answer struct {
				N  []int
				OK bool
			}
			if err := json.Unmarshal([]byte(r.text()), &answer); err != nil || len(answer.N) != 4 || r.end != decode.EndGrammar {
				t.Errorf("%q, end %q: %v", r.text(), r.end, err)
			}
			equal(t, "after a crash", run(true), r)
		})
	}
}
