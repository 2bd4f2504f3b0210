package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/shared"

	"anytime/internal/gguf/tiny"
)

// OpenAI's own Go client against the real binary, with a key.
func TestOpenAIClient(t *testing.T) {
	keys := filepath.Join(t.TempDir(), "keys")
	write(t, keys, "test:sk-0123456789abcdef:admin\n")
	s := start(t, "", append(exact(talker), "-max-thinking", "400", "-keys-file", keys)...)
	ctx := context.Background()
	client := openai.NewClient(option.WithBaseURL(s.url+"/v1"), option.WithAPIKey("sk-0123456789abcdef"), option.WithMaxRetries(0))
	params := openai.ChatCompletionNewParams{
		Model:               "default",
		Messages:            []openai.ChatCompletionMessageParamUnion{openai.SystemMessage("Count."), openai.UserMessage("How many?")},
		ReasoningEffort:     shared.ReasoningEffortMedium, // a quarter of 400
		MaxCompletionTokens: openai.Int(120),
		Temperature:         openai.Float(0),
		Logprobs:            openai.Bool(true),
		TopLogprobs:         openai.Int(2),
	}
	reply, err := client.Chat.Completions.New(ctx, params)
	if err != nil {
		t.Fatal(err)
	}
	choice := reply.Choices[0]
	if choice.Message.Content == "" || reply.Usage.CompletionTokens > 120 || len(choice.Logprobs.Content) == 0 || len(choice.Logprobs.Content[0].TopLogprobs) != 2 {
		t.Errorf("reply %s", reply.RawJSON())
	}
	stream := client.Chat.Completions.NewStreaming(ctx, params)
	var sum openai.ChatCompletionAccumulator
	for stream.Next() {
		if chunk := stream.Current(); !sum.AddChunk(chunk) {
			t.Errorf("chunk does not fit: %s", chunk.RawJSON())
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if got := sum.Choices[0]; got.Message.Content != choice.Message.Content || got.FinishReason != choice.FinishReason {
		t.Errorf("streamed %q (%s), whole %q (%s)", got.Message.Content, got.FinishReason, choice.Message.Content, choice.FinishReason)
	}
	if n := reply.Usage.CompletionTokensDetails.ReasoningTokens; n == 0 || n > 100 {
		t.Errorf("%d reasoning tokens of at most 100", n)
	}
	page, err := client.Models.List(ctx)
	if err != nil || len(page.Data) != 1 || page.Data[0].ID != "talker" {
		t.Errorf("models %+v, %v", page, err)
	}
	stranger := openai.NewClient(option.WithBaseURL(s.url+"/v1"), option.WithAPIKey("sk-wrong"), option.WithMaxRetries(0))
	var refused *openai.Error
	if _, err := stranger.Chat.Completions.New(ctx, params); !errors.As(err, &refused) || refused.StatusCode != http.StatusUnauthorized {
		t.Errorf("wrong key: %v", err)
	}
}

// Each way to say how long to think has its effect, over HTTP, on the real engine.
func TestBudgetDialects(t *testing.T) {
	s := start(t, "", append(exact(talker), "-max-thinking", "160")...)
	tests := []struct {
		field    string
		thinking int
	}{
		{`"thinking_token_budget": 20`, 20},
		{`"thinking_budget_tokens": 21`, 21},
		{`"reasoning_budget_tokens": 22`, 22},
		{`"thinking_budget": 23`, 23},
		{`"max_thinking_tokens": 24`, 24},
		{`"nvext": {"max_thinking_tokens": 25}`, 25},
		{`"reasoning": {"max_tokens": 26}`, 26},
		{`"reasoning": {"effort": "low"}`, 20},
		{`"reasoning_effort": "medium"`, 40},
		{`"reasoning_effort": "high"`, 80},
		{`"reasoning_effort": "minimal"`, 10},
		{`"reasoning_effort": "none"`, 0},
		{`"thinking": {"type": "enabled", "budget_tokens": 27}`, 27},
		{`"think": false`, 0},
		{`"think": "low"`, 20},
		{`"custom_params": {"thinking_budget": 28}`, 28},
		{`"chat_template_kwargs": {"enable_thinking": false}`, 0},
		{`"chat_template_kwargs": {"thinking_budget": 29}`, 29},
		{`"budget": "30"`, 30},
		{`"budget": 31`, 31},
		{`"thinking_budget": -1`, 160},
		{`"thinking_budget": 0`, 0},
		{`"max_tokens": 188`, 94},  // half is kept for the answer
		{`"max_tokens": 280`, 152}, // 128 are
		{`"reasoning_budget_message": "Time is up.", "thinking_budget": 12`, 12},
	}
	for _, test := range tests {
		t.Run(test.field, func(t *testing.T) {
			var reply struct {
				Choices []struct {
					Message struct {
						Content          string `json:"content"`
						Reasoning        string `json:"reasoning"`
						ReasoningContent string `json:"reasoning_content"`
					} `json:"message"`
					FinishReason string `json:"finish_reason"`
				} `json:"choices"`
				Usage struct {
					Details struct {
						Reasoning int `json:"reasoning_tokens"`
					} `json:"completion_tokens_details"`
				} `json:"usage"`
				Budget struct {
					Used  int    `json:"used"`
					Cause string `json:"cause"`
				} `json:"budget"`
			}
			limit := `, "max_tokens": 300`
			if strings.Contains(test.field, `"max_tokens"`) {
				limit = ""
			}
			body := `{"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, ` + test.field + limit + `}`
			s.into(s.do("POST", "/v1/chat/completions", body), &reply)
			c := reply.Choices[0]
			if reply.Usage.Details.Reasoning != test.thinking || reply.Budget.Used != test.thinking {
				t.Errorf("%d reasoning tokens (budget says %+v), want %d", reply.Usage.Details.Reasoning, reply.Budget, test.thinking)
			}
			if c.Message.Content == "" || c.Message.Reasoning != c.Message.ReasoningContent || (c.Message.Reasoning == "") != (test.thinking == 0) {
				t.Errorf("message %+v", c.Message)
			}
			if c.FinishReason != "stop" && c.FinishReason != "length" {
				t.Errorf("finish_reason %q", c.FinishReason)
			}
		})
	}
}

func TestChatControl(t *testing.T) {
	s := start(t, "", "-model", talker)
	body := map[string]any{"messages": []any{map[string]any{"role": "user", "content": "Think."}}, "stream": true}
	controlled := false
	var content strings.Builder
	events := s.events(context.Background(), "POST", "/v1/chat/completions", body, func(e event) bool {
		var chunk struct {
			ID string `json:"id"`
		}
		if !controlled && strings.Contains(e.data, "reasoning_content") && json.Unmarshal([]byte(e.data), &chunk) == nil {
			controlled = true
			if r := s.do("POST", "/v1/chat/completions/control", map[string]any{"id": chunk.ID, "action": "reasoning_end"}); r.status != http.StatusOK {
				t.Errorf("control: %d %s", r.status, r.body)
			}
		}
		return false
	})
	for _, e := range events {
		var chunk struct {
			Choices []struct {
				Delta struct {
					Content string `json:"content"`
				} `json:"delta"`
			} `json:"choices"`
		}
		if json.Unmarshal([]byte(e.data), &chunk) == nil && len(chunk.Choices) > 0 {
			content.WriteString(chunk.Choices[0].Delta.Content)
		}
	}
	if !controlled || content.Len() == 0 || events[len(events)-1].data != "[DONE]" {
		t.Errorf("controlled %v, content %q, last %q", controlled, content.String(), events[len(events)-1].data)
	}
}

func TestCompletions(t *testing.T) {
	s := start(t, "", exact(talker)...)
	var reply struct {
		Choices []struct {
			Text string `json:"text"`
		} `json:"choices"`
	}
	s.into(s.do("POST", "/v1/completions", map[string]any{"prompt": "one two", "max_tokens": 8, "temperature": 0, "n": 2}), &reply)
	if len(reply.Choices) != 2 || reply.Choices[0].Text == "" || reply.Choices[0].Text != reply.Choices[1].Text {
		t.Errorf("%+v", reply)
	}
	s.into(s.do("POST", "/v1/completions", map[string]any{"prompt": "one two", "max_tokens": 8, "grammar": `root ::= "yes" | "no"`}), &reply)
	if text := reply.Choices[0].Text; text != "yes" && text != "no" {
		t.Errorf("grammar: %q", text)
	}
}

// Several models and an adapter: each request gets the one it names.
func TestModelsAndAdapters(t *testing.T) {
	adapter := filepath.Join(t.TempDir(), "tuned.gguf")
	if err := tiny.WriteAdapter(adapter, 5, "llama"); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "other.gguf")
	if err := tiny.WriteFile(other, 2, tiny.Options{}); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "config.yaml")
	write(t, config, fmt.Sprintf("models:\n  - {id: base, path: %q, adapters: {tuned: %q}}\n  - {id: other, path: %q}\n", talker, adapter, other))
	s := start(t, "", "-config", config, "-kv-type", "f32", "-flash-attention", "off")
	answers := map[string]string{}
	for range 2 { // the second round finds caches of the first
		for _, model := range []string{"base", "base:tuned", "other", "default"} {
			body := asked("Who are you?", 1)
			body["model"] = model
			reply := s.solve("budget=40", body)
			if before, again := answers[model]; again && before != reply.Thinking {
				t.Errorf("%s first thought %q, then %q", model, before, reply.Thinking)
			}
			answers[model] = reply.Thinking
		}
	}
	if answers["default"] != answers["base"] || answers["base:tuned"] == answers["base"] || answers["other"] == answers["base"] {
		t.Errorf("%q", answers)
	}
	var list struct {
		Data []struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	s.into(s.do("GET", "/v1/models", nil), &list)
	if got := fmt.Sprint(list.Data); got != "[{base} {base:tuned} {other}]" {
		t.Errorf("models %s", got)
	}
}

func TestOtherEndpoints(t *testing.T) {
	s := start(t, "", "-model", talker)
	for path, says := range map[string]string{
		"/healthz": "", "/readyz": "ok", "/metrics": `anytime_engine_steps_total{model="talker"}`, "/openapi.yaml": "openapi: 3",
		"/docs": "/solve/{id}/interrupt", "/solve": "runs", "/v1/models/talker": "talker",
	} {
		if r := s.do("GET", path, nil); r.status != http.StatusOK || !strings.Contains(string(r.body), says) {
			t.Errorf("%s: %d, without %q: %.200s", path, r.status, says, r.body)
		}
	}
	if r := s.do("POST", "/solve", `{"problem":"x"}`, "Content-Type", "text/plain"); r.status != http.StatusUnsupportedMediaType {
		t.Errorf("no JSON content type: %d", r.status)
	}
	if r := s.do("POST", "/solve", problem("x"), "Origin", "https://evil.example"); r.status != http.StatusForbidden {
		t.Errorf("foreign origin: %d", r.status)
	}
}
