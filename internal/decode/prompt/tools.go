package prompt

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// toolsVariable finds templates that look at the tools.
var toolsVariable = regexp.MustCompile(`\btools\b`)

// callTags says whether the template itself tells of tools and writes calls as JSON in <tool_call> tags, as Qwen's up to 3 do.
func (r *Renderer) callTags() bool {
	return toolsVariable.MatchString(r.source) && strings.Contains(r.source, "<tool_call>") && strings.Contains(r.source, "tool_calls") &&
		!strings.Contains(r.source, "<function=")
}

// The words are those of Qwen's templates, which models of other makers have been trained on too.
const (
	toolsIntroduction = "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n" +
		"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
	toolsUse = "</tools>\n\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n" +
		"<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>"
)

// tagged tells tools, calls and their results in the text of messages that any template knows.
func tagged(messages []Message, tools []json.RawMessage) []Message {
	var list []Message
	if len(tools) > 0 {
		var b strings.Builder
		b.WriteString(toolsIntroduction)
		for _, t := range tools {
			b.Write(t)
			b.WriteByte('\n')
		}
		b.WriteString(toolsUse)
		system := Message{Role: "system", Content: b.String()}
		if len(messages) > 0 && (messages[0].Role == "system" || messages[0].Role == "developer") {
			system.Role, system.Content = messages[0].Role, messages[0].Content+"\n\n"+system.Content
			messages = messages[1:]
		}
		list = append(list, system)
	}
	results := false // the last message tells results: what else users say goes into it, for many templates want turns to alternate
	for _, m := range messages {
		switch {
		case m.Role == "tool":
			m = Message{Role: "user", Content: "<tool_response>\n" + m.Content + "\n</tool_response>"}
			if results {
				list[len(list)-1].Content += "\n" + m.Content
				continue
			}
			results = true
		case results && m.Role == "user":
			list[len(list)-1].Content += "\n\n" + m.Content
			continue
		default:
			results = false
			for _, c := range m.ToolCalls {
				name, _ := json.Marshal(c.Name) // text can always be encoded
				m.Content = strings.TrimPrefix(m.Content+fmt.Sprintf("\n<tool_call>\n{\"name\": %s, \"arguments\": %s}\n</tool_call>", name, c.Arguments), "\n")
			}
			m.ToolCalls = nil
		}
		list = append(list, m)
	}
	return list
}
