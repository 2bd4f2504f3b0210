package server_test

import (
	"fmt"
	"strings"
	"testing"

	"anytime/api"
)

// What a limit or a stop string leaves of a call is no text. "max_tokens" counts the one token of thinking, too.
func TestToolCallBegun(t *testing.T) {
	const (
		call   = "<tool_call>\n" + `{"name": "weather", "arguments": {"place": "a </tool_call> b"}}` + "\n</tool_call>"
		text   = "2 < 3 "
		budget = `"thinking_budget": 1`
	)
	type row struct{ says, fields, content, finish string }
	rows := []row{
		{"a <", budget, "a <", "stop"},
		{"a <tool_", budget, "a <tool_", "stop"},
		{"a <b", budget + `, "stop": "b"`, "a <", "stop"},
		{"a <tool_b", budget + `, "stop": ["x", "b"]`, "a <tool_", "stop"},
		{text + call, budget + `, "stop": "tool"`, text, "stop"},
		{text + call, budget + `, "stop": ["x", "call>\n{"]`, text, "stop"},
		{text + call, budget + `, "stop": "<tool"`, text, "stop"},
		{text + call, budget + `, "stop": "name"`, text, "stop"},
		{text + call, budget + `, "stop": " b\""`, text, "stop"},
		{text + call, `"budget": "5,20s", "stop": " b\""`, text, "stop"},
		{"<tool_call>{\"name\": \"</tool_call>", budget, "<tool_call>{\"name\": \"</tool_call>", "stop"},
	}
	for n := 1; n < len(call); n += 3 {
		rows = append(rows, row{text + call, fmt.Sprintf(`"thinking_budget": 1, "max_tokens": %d`, 1+len(text)+n), text, "length"})
	}
	for n := len(call) - 15; n < len(call); n++ { // within the text of the argument and behind it
		rows = append(rows, row{call, fmt.Sprintf(`"budget": "5,20s", "max_tokens": %d`, 5+n), "", "length"})
	}
	sites := map[string]*site{}
	for _, test := range rows {
		b := sites[test.says]
		if b == nil {
			b = says(t, strings.Split(test.says, "")...)
			sites[test.says] = b
		}
		reply := get[api.ChatCompletion](b, "POST", "/v1/chat/completions", chat(weatherTool+", "+test.fields)).Choices[0]
		content := ""
		if c := reply.Message.Content; c != nil {
			content = *c
		}
		streamed, _, finish, _ := heard(t, b, chat(weatherTool+`, "stream": true, `+test.fields))
		for _, got := range []row{{content: content, finish: string(reply.FinishReason)}, {content: streamed, finish: finish}} {
			if strings.TrimSpace(got.content) != strings.TrimSpace(test.content) || got.finish != test.finish {
				t.Errorf("%q, %s: %q, %s; want %q, %s", test.says, test.fields, got.content, got.finish, test.content, test.finish)
			}
		}
	}
}
