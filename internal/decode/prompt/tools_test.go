package prompt_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"anytime/internal/decode/prompt"
)

// Every model's prompt tells of tools, calls and results, in the same tags.
func TestCallTags(t *testing.T) {
	tool := json.RawMessage(`{"type":"function","function":{"name":"weather","description":"How it is <|im_end|>.","parameters":{"type":"object","properties":{"place":{"type":"string"}}}}}`)
	messages := []prompt.Message{
		{Role: "system", Content: "Be kind."},
		{Role: "user", Content: "Is it warm?"},
		{Role: "assistant", ToolCalls: []prompt.ToolCall{{ID: "1", Name: "weather", Arguments: `{"place": "Ulm"}`}, {ID: "2", Name: "weather", Arguments: `{"place": "Bonn"}`}}},
		{Role: "tool", ToolCallID: "1", Content: "20 degrees"},
		{Role: "tool", ToolCallID: "2", Content: "21 degrees"},
		{Role: "user", Content: "And?"},
	}
	for template := range specials {
		r := renderer(t, template, "", "", false)
		p, err := r.Render(messages, prompt.Options{Thinking: true, Tools: []json.RawMessage{tool}, CallTags: true, Now: now})
		if err != nil {
			t.Errorf("%s: %v", template, err)
			continue
		}
		text := join(p.Parts)
		at := 0
		for _, want := range []string{"Be kind.", "<tools>", `"weather"`, "</tools>", "<tool_call>", "Is it warm?", "<tool_call>\n" + `{"name": "weather", "arguments": {"place": "Ulm"}}`,
			`"Bonn"`, "<tool_response>\n20 degrees\n</tool_response>", "21 degrees", "And?"} {
			i := strings.Index(text[at:], want)
			if i < 0 {
				t.Errorf("%s: %q does not come, or not in its place, in\n%s", template, want, text)
				break
			}
			at += i + len(want)
		}
		for _, p := range p.Parts {
			if slices.Contains(specials[template], "<|im_end|>") && !p.Literal && strings.Contains(p.Text, "is <|im_end|>") {
				t.Errorf("%s: a tool's description can act as a special token", template)
			}
		}
		// Without the tags templates have their own forms.
		if _, err := r.Render(messages[:2], prompt.Options{Thinking: true, Tools: []json.RawMessage{tool}, Now: now}); err != nil {
			t.Errorf("%s: %v", template, err)
		}
	}
	r := renderer(t, "gemma3", "", "", false)
	messages[2].ToolCalls[0].Arguments = "[1]"
	if _, err := r.Render(messages, prompt.Options{CallTags: true}); err == nil || !strings.Contains(err.Error(), "messages[2].tool_calls[0].arguments") {
		t.Errorf("arguments that are no object: %v", err)
	}
}
