package server

import (
	"fmt"
	"strings"

	"anytime/api"
	"anytime/internal/decode/prompt"
)

// inputMessages turns a response's input into messages. Reasoning and calls belong to the assistant's message beside them.
func inputMessages(items []api.ResponseInputItem) ([]prompt.Message, error) {
	var list []prompt.Message
	reasoning := ""
	for i, item := range items {
		kind := or(item.Type, "message")
		need := func(field string, there bool) error {
			if !there {
				field = fmt.Sprintf("input[%d].%s", i, field)
				return invalid(field, "%s: is missing", field)
			}
			return nil
		}
		var err error
		switch kind {
		case api.ResponseInputItemTypeReasoning:
			if reasoning = string(or(item.Content, "")); reasoning == "" {
				reasoning = string(or(item.Summary, ""))
			}
			continue
		case api.ResponseInputItemTypeFunctionCall:
			if err = need("name", item.Name != nil); err == nil {
				err = need("call_id", item.CallId != nil)
			}
			if n := len(list); n == 0 || list[n-1].Role != "assistant" {
				list = append(list, prompt.Message{Role: "assistant", Reasoning: reasoning})
			}
			last := &list[len(list)-1]
			last.ToolCalls = append(last.ToolCalls, prompt.ToolCall{ID: or(item.CallId, ""), Name: or(item.Name, ""), Arguments: or(item.Arguments, "{}")})
		case api.ResponseInputItemTypeFunctionCallOutput:
			if err = need("call_id", item.CallId != nil); err == nil {
				err = need("output", item.Output != nil)
			}
			list = append(list, prompt.Message{Role: "tool", Content: string(or(item.Output, "")), ToolCallID: or(item.CallId, "")})
		default:
			if err = need("role", item.Role != nil); err == nil {
				err = need("content", item.Content != nil)
			}
			m := prompt.Message{Role: string(or(item.Role, "")), Content: string(or(item.Content, ""))}
			if m.Role == "assistant" {
				m.Reasoning = reasoning
			}
			list = append(list, m)
		}
		if err != nil {
			return nil, err
		}
		reasoning = ""
	}
	if len(list) == 0 {
		return nil, invalid("input", "input: has no message")
	}
	return list, nil
}

// inputItems turns messages back into items.
func inputItems(run string, messages []prompt.Message) []api.ResponseItem {
	list := []api.ResponseItem{}
	add := func(prefix string, item api.ResponseItem) {
		item.Id = fmt.Sprintf("%s_%s_in%d", prefix, strings.TrimPrefix(run, runPrefix), len(list))
		item.Status = new("completed")
		list = append(list, item)
	}
	for _, m := range messages {
		switch {
		case m.Role == "tool":
			add("fco", api.ResponseItem{Type: "function_call_output", CallId: &m.ToolCallID, Output: &m.Content})
			continue
		case m.Role == "assistant" && m.Content != "":
			add("msg", api.ResponseItem{Type: "message", Role: &m.Role, Content: &[]api.ResponsePart{part(api.ResponsePartTypeOutputText, m.Content)}})
		case m.Role != "assistant":
			add("msg", api.ResponseItem{Type: "message", Role: &m.Role, Content: &[]api.ResponsePart{part(api.ResponsePartTypeInputText, m.Content)}})
		}
		for _, call := range m.ToolCalls {
			add("fc", api.ResponseItem{Type: "function_call", CallId: &call.ID, Name: &call.Name, Arguments: &call.Arguments})
		}
	}
	return list
}
