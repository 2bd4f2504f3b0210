package server_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"anytime/api"
	"anytime/internal/decode/decodetest"
)

const weatherTool = `"tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}}}]`

// says is a site whose model thinks, and then says the given tokens, whatever it is asked.
func says(t testing.TB, tokens ...string) *site {
	return newSite(t, decodetest.Options{Step: 100 * time.Microsecond, Model: decodetest.Script(steps(), "<think>\n", "</think>", func(string) []string { return tokens })})
}

type call struct{ id, name, arguments string }

// heard joins a stream's deltas as clients do.
func heard(t *testing.T, b *site, body string) (content string, calls []call, finish string, voided bool) {
	t.Helper()
	for _, e := range b.events("POST", "/v1/chat/completions", body) {
		var chunk api.ChatCompletionChunk
		if string(e.Data) == "[DONE]" || json.Unmarshal(e.Data, &chunk) != nil || len(chunk.Choices) == 0 {
			continue
		}
		c := chunk.Choices[0]
		if c.Delta.Content != nil {
			content += *c.Delta.Content
		}
		voided = voided || c.Delta.Reset != nil
		if c.Delta.ToolCalls != nil {
			for _, d := range *c.Delta.ToolCalls {
				if d.Id != nil {
					calls = append(calls, call{id: *d.Id, name: *d.Function.Name})
				}
				if d.Index != len(calls)-1 {
					t.Fatalf("index %d of %d calls", d.Index, len(calls))
				}
				calls[d.Index].arguments += d.Function.Arguments
			}
		}
		if c.FinishReason != nil {
			finish = *c.FinishReason
		}
	}
	return content, calls, finish, voided
}

func TestToolCalls(t *testing.T) {
	whole := "<tool_call>\n" + `{"name": "weather", "arguments": {"place": "a } \" </tool_call> b"}}` + "\n</tool_call>"
	arguments := `{"place": "a } \" </tool_call> b"}`
	letters := func(text string) []string { return strings.Split(text, "") }
	for _, test := range []struct {
		name    string
		says    []string
		content string
		calls   []string // names and arguments
		finish  string
	}{
		{"text", []string{"It is", " warm", " <tool", " or", " so <"}, "It is warm <tool or so <", nil, "stop"},
		{"a call, letter by letter", letters(whole), "", []string{"weather", arguments}, "tool_calls"},
		{"a call at once", []string{whole}, "", []string{"weather", arguments}, "tool_calls"},
		{"text and two calls", append(letters("Let me see.\n"+whole), letters("\n"+whole)...), "Let me see.", []string{"weather", arguments, "weather", arguments}, "tool_calls"},
		{"another order of keys", letters(`<tool_call>{"arguments": {"x": [1]}, "name": "weather"}</tool_call>`), "", []string{"weather", `{"x": [1]}`}, "tool_calls"},
		{"arguments as text", letters(`<tool_call>{"name": "weather", "arguments": "{\"x\": 1}"}</tool_call>`), "", []string{"weather", `{"x": 1}`}, "tool_calls"},
		{"half an object", letters(`<tool_call>{"name": "weather"</tool_call>`), `<tool_call>{"name": "weather"</tool_call>`, nil, "stop"},
		{"no call at all", letters(`<tool_call>weather(Ulm)</tool_call>.`), `<tool_call>weather(Ulm)</tool_call>.`, nil, "stop"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := says(t, test.says...)
			for _, fields := range []string{`"thinking_budget": 5`, `"budget": "5,20s"`} {
				reply := get[api.ChatCompletion](b, "POST", "/v1/chat/completions", chat(weatherTool+", "+fields))
				m := reply.Choices[0].Message
				var calls []call
				if m.ToolCalls != nil {
					for _, c := range *m.ToolCalls {
						calls = append(calls, call{*c.Id, c.Function.Name, c.Function.Arguments})
					}
				}
				check := func(how, content string, calls []call, finish string) {
					var got []string
					ids := map[string]bool{}
					for _, c := range calls {
						got = append(got, c.name, c.arguments)
						ids[c.id] = true
					}
					if strings.TrimSpace(content) != test.content || fmt.Sprintf("%q", got) != fmt.Sprintf("%q", test.calls) || finish != test.finish || len(ids) != len(calls) {
						t.Errorf("%s, %s: %q, %q, %s", fields, how, content, calls, finish)
					}
				}
				content := ""
				if m.Content != nil {
					content = *m.Content
				} else if calls == nil {
					t.Error("content is null and there are no calls")
				}
				check("whole", content, calls, string(reply.Choices[0].FinishReason))
				content, calls, finish, _ := heard(t, b, chat(weatherTool+", "+fields+`, "stream": true`))
				check("streamed", content, calls, finish)
			}
			// Without tools, and where none may be called, it is just text.
			for _, fields := range []string{`"thinking_budget": 5`, weatherTool + `, "tool_choice": "none", "thinking_budget": 5`} {
				reply := get[api.ChatCompletion](b, "POST", "/v1/chat/completions", chat(fields))
				if m := reply.Choices[0].Message; m.ToolCalls != nil || *m.Content != strings.Join(test.says, "") || reply.Choices[0].FinishReason != "stop" {
					t.Errorf("%s: %q", fields, *m.Content)
				}
			}
		})
	}
}

// A call that max_tokens cuts is not one to make.
func TestToolCallCut(t *testing.T) {
	b := says(t, "<tool_call>\n{\"name\": ", `"weather", `, `"arguments": {"place": `, `"Ulm"`, "}}\n</tool_call>")
	reply := get[api.ChatCompletion](b, "POST", "/v1/chat/completions", chat(weatherTool+`, "thinking_budget": 1, "max_tokens": 5`))
	if c := reply.Choices[0]; c.FinishReason != "length" {
		t.Errorf("%+v", c)
	}
	_, calls, finish, _ := heard(t, b, chat(weatherTool+`, "thinking_budget": 1, "max_tokens": 5, "stream": true`))
	if finish != "length" || len(calls) != 1 || json.Valid([]byte(calls[0].arguments)) {
		t.Errorf("%q, %s", calls, finish)
	}
}

// What the engine cannot promise is refused, not ignored: the scripted one knows no grammars. The error is about what the client sent.
func TestToolsWanted(t *testing.T) {
	b := says(t, "Well.")
	for _, test := range []struct{ path, fields, field string }{
		{"/v1/chat/completions", weatherTool + `, "tool_choice": "required"`, "tools"},
		{"/v1/chat/completions", `"response_format": {"type": "json_object"}`, "response_format"},
		{"/v1/chat/completions", `"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}`, "response_format.json_schema.schema"},
		{"/v1/chat/completions", `"grammar": "root ::= \"a\""`, "grammar"},
		{"/v1/responses", `"input": "x", "text": {"format": {"type": "json_object"}}`, "text.format"},
	} {
		body := chat(test.fields)
		if test.path == "/v1/responses" {
			body = "{" + test.fields + "}"
		}
		status, reply := b.call("POST", test.path, body)
		b.envelope(status, reply, 400, "invalid_value", "grammar")
		var e api.Error
		if err := json.Unmarshal(reply, &e); err != nil || e.Error.Param == nil || *e.Error.Param != test.field {
			t.Errorf("%s: %s", test.fields, reply)
		}
	}
}
