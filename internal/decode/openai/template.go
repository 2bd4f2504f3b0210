package openai

import (
	"context"
	"fmt"
	"strings"
)

// learnTemplate makes a chat template of what vLLM or SGLang render where they do not tell their own: a chat in which each message is
// a mark, so that what stands between the marks can be seen. Templates that treat some messages differently from others of the same role
// (the last, those with tools) are met in what they do with plain chats only. It is "" where the server renders nothing.
func (s *server) learnTemplate(ctx context.Context) string {
	const system, user, assistant, next = "qzsystemqz", "qzuserqz", "qzassistantqz", "qznextqz"
	say := func(role, content string) map[string]string {
		return map[string]string{"role": role, "content": content}
	}
	bare, ok := between(s.render(ctx, say("user", user)), user)
	if !ok {
		return ""
	}
	begin, end := bare[0], bare[1]
	turn := end + "\n" // of a chat that renders one question only: as if it were asked again
	after := turn
	if chat, ok := between(s.render(ctx, say("user", user), say("assistant", assistant), say("user", next)), user, assistant, next); ok {
		begin, turn, after, end = chat[0], chat[1], chat[2], chat[3]
	}
	told, behind := begin, ""
	if chat, ok := between(s.render(ctx, say("system", system), say("user", user)), system, user); ok {
		told, behind = chat[0], chat[1]
	}
	quote := func(text string) string {
		return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`, "\r", `\r`, "\t", `\t`).Replace(text) + "'"
	}
	return fmt.Sprintf(`{%%- for m in messages -%%}
{%%- if loop.first and m.role == 'system' -%%}{{ %s }}{%%- elif loop.first -%%}{{ %s }}
{%%- elif loop.index0 == 1 and messages[0].role == 'system' -%%}{{ %s }}
{%%- elif m.role == 'assistant' -%%}{{ %s }}{%%- else -%%}{{ %s }}{%%- endif -%%}
{{ m.content }}{%%- endfor -%%}{{ %s }}`, quote(told), quote(begin), quote(behind), quote(turn), quote(after), quote(end))
}

// render has the server apply its chat template, and returns the prompt; "" if it does not.
func (s *server) render(ctx context.Context, messages ...map[string]string) string {
	var tokens struct {
		Tokens []int32 `json:"tokens"`
	}
	in := map[string]any{"model": s.model, "messages": messages, "add_generation_prompt": true}
	if s.post(ctx, s.root+"/tokenize", in, &tokens) != nil || len(tokens.Tokens) == 0 {
		return ""
	}
	var text struct {
		Prompt string `json:"prompt"` // vLLM's
		Text   string `json:"text"`   // SGLang's
	}
	if s.post(ctx, s.root+"/detokenize", map[string]any{"model": s.model, "tokens": tokens.Tokens, "skip_special_tokens": false}, &text) != nil {
		return ""
	}
	return text.Prompt + text.Text
}

// between cuts a text at the marks, each of which must be there once, in this order.
func between(text string, marks ...string) (pieces []string, ok bool) {
	for _, mark := range marks {
		before, rest, found := strings.Cut(text, mark)
		if !found || strings.Contains(rest, mark) {
			return nil, false
		}
		pieces, text = append(pieces, before), rest
	}
	return append(pieces, text), true
}

// tokenText is the text of a special token, which may be written with its properties.
func tokenText(v any) string {
	if m, ok := v.(map[string]any); ok {
		v = m["content"]
	}
	text, _ := v.(string)
	return text
}
