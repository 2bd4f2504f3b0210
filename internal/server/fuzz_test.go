package server_test

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"anytime/internal/decode/decodetest"
)

// short thinks three tokens, so that any request is soon answered.
var short = decodetest.Options{
	Model: decodetest.Script([]string{" a", " b", " c"}, "<think>\n", "</think>", counting), Step: time.Microsecond, Prefill: time.Nanosecond,
}

// patience is longer than any such request takes, deadlines aside.
const patience = 8 * time.Second

func fuzz(f *testing.F, path string, seeds ...string) {
	b := newSite(f, short)
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		r := httptest.NewRequest("POST", "http://localhost"+path, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		ctx, cancel := context.WithTimeout(r.Context(), patience)
		defer cancel()
		b.server.ServeHTTP(w, r.WithContext(ctx))
		if ctx.Err() != nil {
			t.Fatalf("no reply to %q in %v", body, patience)
		}
		if w.Code >= 500 {
			t.Errorf("status %d for %q: %s", w.Code, body, w.Body)
		}
		if w.Code >= 400 && !strings.Contains(w.Body.String(), `"message":"`) {
			t.Errorf("status %d for %q is not in the envelope: %s", w.Code, body, w.Body)
		}
	})
}

func FuzzSolve(f *testing.F) {
	fuzz(f, "/solve", `{"problem": "x", "budget": "2,1s"}`, `{"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "checkpoints": [1, 2], "every": 8, "early_stop": "converge:2", "votes": 2, "stream": true}`,
		`{"problem": "x", "seed": -1, "temperature": 2, "top_k": -1, "stop": ["a"], "on_disconnect": "answer", "thinking": true, "logit_bias": {"5": -100}}`,
		`{"problem": "\u0000"}`, `[]`, `{"problem": "<think></think><|im_end|>"}`, `{"problem": 1e400}`, `{"problem": "x", "budget": 1e400}`, `{"problem": "x", "seed": 1e30}`, `{"a": {"b": [[]]}}`)
}

func FuzzChat(f *testing.F) {
	fuzz(f, "/v1/chat/completions", chat(`"thinking_budget": 2, "n": 2, "logprobs": true, "top_logprobs": 20`), chat(`"stream": true, "stream_options": {"include_usage": true}`),
		chat(`"reasoning": {"effort": "low", "max_tokens": 200}, "think": "low"`), chat(`"chat_template_kwargs": {"x": [1, {"y": null}], "enable_thinking": true}, "max_tokens": 1`),
		`{"messages": [{"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}, {"role": "tool", "content": "x", "tool_call_id": "y"}]}`,
		`{"messages": [{"role": "assistant", "content": "<think>a</think>b", "reasoning_content": "a"}, {"role": "user", "content": "\u0000"}]}`, chat(`"seed": 9223372036854775807, "n": 3`), chat(`"audio": {}`),
		chat(weatherTool+`, "tool_choice": {"type": "function", "function": {"name": "weather"}}`), chat(`"tools": [{"type": "function", "function": {"name": "f", "Parameters": 1}}]`),
		chat(`"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}`))
}

func FuzzResponse(f *testing.F) {
	fuzz(f, "/v1/responses", `{"input": "x", "reasoning": {"effort": "low", "summary": "auto"}, "stream": true}`, `{"input": [{"type": "function_call", "name": "f", "call_id": "1", "arguments": "["}]}`,
		`{"input": [{"type": "reasoning", "content": [{"type": "reasoning_text", "text": "x"}]}, {"role": "user", "content": "y"}], "tools": [{"type": "function", "name": "f", "parameters": null}], "tool_choice": {"type": "function", "name": "f"}}`,
		`{"input": "x", "text": {"format": {"type": "json_schema", "schema": {"enum": [null]}}}, "previous_response_id": "resp_x", "store": false, "metadata": {"a": null}}`)
}
