package server_test

import (
	"fmt"
	"net/http"
	"testing"

	"anytime/api"
	"anytime/internal/decode/decodetest"
)

// TestDialects asks for 16 thinking tokens, none, and no limit, in each way there is.
func TestDialects(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	used := func(fields string, header ...string) int {
		t.Helper()
		reply := get[api.ChatCompletion](b, "POST", "/v1/chat/completions", chat(fields), header...)
		if reply.Budget.Used != reply.Usage.CompletionTokensDetails.ReasoningTokens || *reply.Choices[0].Message.Content == "" {
			t.Errorf("%s: %+v", fields, reply)
		}
		return reply.Budget.Used
	}
	for _, form := range []string{
		`"thinking_token_budget": %d`, `"thinking_budget_tokens": %d`, `"reasoning_budget_tokens": %d`, `"thinking_budget": %d`,
		`"max_thinking_tokens": %d`, `"nvext": {"max_thinking_tokens": %d}`, `"reasoning": {"max_tokens": %d}`,
		`"thinking": {"type": "enabled", "budget_tokens": %d}`, `"custom_params": {"thinking_budget": %d}`,
		`"chat_template_kwargs": {"thinking_budget": %d}`, `"budget": %d`, `"budget": "%d"`, `"budget": "%d,1m"`,
		`"thinking_budget": 16, "reasoning_budget_tokens": %d`, `"think": true, "thinking_budget": %d`, `"thinking_budget": %d, "budget": "1m"`,
	} {
		if n := used(fmt.Sprintf(form, 16)); n != 16 {
			t.Errorf(form+": %d thinking tokens", 16, n)
		}
	}
	for fields, want := range map[string]int{
		`"thinking_budget": 0`:                                   0,
		`"enable_thinking": false`:                               0,
		`"think": false`:                                         0,
		`"reasoning_effort": "none"`:                             0,
		`"reasoning": {"enabled": false}`:                        0,
		`"thinking": {"type": "disabled"}`:                       0,
		`"chat_template_kwargs": {"enable_thinking": false}`:     0,
		`"chat_template_kwargs": {"thinking": false}`:            0,
		`"budget": 0, "think": false`:                            0,
		`"reasoning_effort": "minimal"`:                          maxThinking / 16,
		`"reasoning": {"effort": "low"}`:                         maxThinking / 8,
		`"think": "low"`:                                         maxThinking / 8,
		`"chat_template_kwargs": {"reasoning_effort": "low"}`:    maxThinking / 8,
		`"reasoning_effort": "low", "thinking_budget": 200`:      200,
		`"thinking_budget": -1`:                                  thoughtLength,
		`"reasoning_effort": "max", "thinking_budget": -1`:       thoughtLength,
		`"budget": "max", "think": true`:                         thoughtLength,
		``:                                                       thoughtLength,
		`"reasoning_budget_message": "Enough.", "budget": 8`:     8,
		`"chat_template_kwargs": {"my_variable": 1}, "budget":2`: 2,
	} {
		if n := used(fields); n != want {
			t.Errorf("%s: %d thinking tokens, want %d", fields, n, want)
		}
	}
	if n := used("", "Budget", "16,1m"); n != 16 {
		t.Errorf("Budget header: %d thinking tokens", n)
	}

	for fields, words := range map[string][]string{
		`"thinking_budget": 16, "max_thinking_tokens": 17`:                              {"thinking_budget (16)", "max_thinking_tokens (17)"},
		`"thinking_budget": 16, "reasoning_effort": "low"`:                              {"thinking_budget (16)", "reasoning_effort (low: 200 thinking tokens)"},
		`"thinking_budget": 16, "think": false`:                                         {"thinking_budget (16)", "think (off: 0 thinking tokens)"},
		`"thinking_budget": 0, "think": true`:                                           {"thinking_budget (0)", "think (on)"},
		`"think": true, "chat_template_kwargs": {"enable_thinking": false}`:             {"think (on)", "chat_template_kwargs.enable_thinking (off"},
		`"thinking_budget": -1, "thinking": {"type": "enabled", "budget_tokens": 1024}`: {"thinking_budget (-1)", "thinking.budget_tokens (1024)"},
		`"budget": "512,2s", "reasoning": {"max_tokens": 5}`:                            {"reasoning.max_tokens (5)", "budget (512,2s: 512 thinking tokens)"},
		`"budget": "max", "thinking_budget": 5`:                                         {"budget (max: no limit)", "thinking_budget (5)"},
	} {
		b.refused(400, "conflict", "POST", "/v1/chat/completions", chat(fields), words...)
	}
	for fields, words := range map[string][]string{
		`"thinking_budget": -2`:                         {"thinking_budget", "at least -1"},
		`"thinking_budget": "16"`:                       {"thinking_budget", "integer"},
		`"thinking_budget": 1.5`:                        {"thinking_budget", "integer"},
		`"nvext": {"max_thinking_tokens": 99999999999}`: {"nvext.max_thinking_tokens", "at most"},
		`"reasoning_effort": "huge"`:                    {"reasoning_effort", "none, minimal, low, medium, high, max"},
		`"think": "a lot"`:                              {"think", "medium"},
		`"think": 5`:                                    {"think", "boolean or string"},
		`"thinking": {"type": "sometimes"}`:             {"thinking.type", "disabled"},
		`"budget": "2 s"`:                               {"2 s", "750ms"},
		`"chat_template_kwargs": {"messages": []}`:      {"messages", "set by the server"},
	} {
		b.refused(400, "invalid_value", "POST", "/v1/chat/completions", chat(fields), words...)
	}
	for fields, words := range map[string][]string{
		`"reasoning": {"budget": 5}`: {"reasoning.budget", "max_tokens"},
		`"thinking": {"budget": 5}`:  {"thinking.budget", "budget_tokens"},
	} {
		b.refused(400, "unknown_parameter", "POST", "/v1/chat/completions", chat(fields), words...)
	}
	for _, test := range [][2]string{{`"budget": "1s"`, "2s"}, {`"budget": 5`, "6"}} {
		status, reply := b.call("POST", "/v1/chat/completions", chat(test[0]), "Budget", test[1])
		b.envelope(status, reply, http.StatusBadRequest, "conflict", "budget", "Budget header")
	}
}
