package server

import (
	"net/http"

	"anytime/api"
	"anytime/internal/anytime"
)

const (
	chatPrefix = "chatcmpl-"
	textPrefix = "cmpl-"
)

func (s *Server) chatCompletion(w http.ResponseWriter, c *call) error {
	k, err := s.readChat(c)
	if err != nil {
		return err
	}
	return s.complete(w, c, chatPrefix, k)
}

func (s *Server) readChat(c *call) (k completion, err error) {
	var body api.ChatCompletionRequest
	if err := c.into(&body); err != nil {
		return k, err
	}
	if k, err = s.readCompletion(c); err != nil {
		return k, err
	}
	req := &k.runs[0]
	if req.Messages, err = messages(body.Messages); err != nil {
		return k, err
	}
	if body.MaxTokens != nil && body.MaxCompletionTokens != nil && *body.MaxTokens != *body.MaxCompletionTokens {
		return k, &httpError{status: http.StatusBadRequest, kind: typeRequest, code: "conflict", param: "max_tokens",
			message: "max_tokens and max_completion_tokens disagree; give one of them"}
	}
	req.MaxTokens = or(body.MaxCompletionTokens, or(body.MaxTokens, 0))
	req.LogProbs, req.TopLogProbs = has(body.Logprobs), or(body.TopLogprobs, 0)
	if req.TopLogProbs > 0 && !req.LogProbs {
		return k, invalid("top_logprobs", "top_logprobs: wants logprobs to be true")
	}
	answer, err := c.chatShape(&body)
	if err != nil {
		return k, err
	}
	if err := answer.apply(req); err != nil {
		return k, err
	}
	c.schema, k.trim, k.calls = answer.field(), true, answer.callsTools()
	logProbs := req.LogProbs
	k.form = func(m meta) form { return chatForm{m, logProbs} }
	return k, nil
}

// chatForm writes chat completions.
type chatForm struct {
	meta
	logProbs bool
}

func (f chatForm) piece(choices ...api.ChatChunkChoice) api.ChatCompletionChunk {
	if choices == nil {
		choices = []api.ChatChunkChoice{}
	}
	return api.ChatCompletionChunk{Id: f.id, Object: api.ChatCompletionChunkObjectChatCompletionChunk, Created: f.created, Model: f.model, Choices: choices}
}

func (f chatForm) begin(index int) any {
	return f.piece(api.ChatChunkChoice{Index: index, Delta: api.ChatDelta{Role: new(api.ChatDeltaRoleAssistant), Content: new("")}})
}

func (f chatForm) chunk(index int, d delta) any {
	choice := api.ChatChunkChoice{Index: index}
	if d.thinking != "" {
		choice.Delta.ReasoningContent, choice.Delta.Reasoning = &d.thinking, &d.thinking
	}
	if d.reset {
		// Clients that do not know of resets have the text so far before this one: keep them apart.
		choice.Delta.Reset = &d.reset
		d.content = "\n\n" + d.content
	}
	if d.content != "" {
		choice.Delta.Content = &d.content
	}
	if d.calls != nil {
		calls := make([]api.ToolCallDelta, len(d.calls))
		for i, call := range d.calls {
			calls[i].Index, calls[i].Function.Arguments = call.index, call.arguments
			if call.begins {
				calls[i].Id, calls[i].Type, calls[i].Function.Name = &call.id, new(api.ToolCallDeltaTypeFunction), &call.name
			}
		}
		choice.Delta.ToolCalls = &calls
	}
	choice.Logprobs = f.probabilities(d.logProbs)
	return f.piece(choice)
}

func (f chatForm) end(index int, c *choice) any {
	p := f.piece(api.ChatChunkChoice{Index: index, FinishReason: new(string(c.finishReason())), Budget: c.report()})
	p.Budget = c.report()
	return p
}

func (f chatForm) usage(u api.CompletionUsage) any {
	p := f.piece()
	p.Usage = &u
	return p
}

func (f chatForm) whole(choices []*choice, u api.CompletionUsage) any {
	reply := api.ChatCompletion{
		Id: f.id, Object: api.ChatCompletionObjectChatCompletion, Created: f.created, Model: f.model, Usage: u, Budget: choices[0].report(),
	}
	for i, c := range choices {
		choice := api.ChatChoice{Index: i, FinishReason: c.finishReason(), Budget: c.report(), Logprobs: f.probabilities(c.logProbs)}
		choice.Message = api.ChatAnswer{Role: api.ChatAnswerRoleAssistant, ReasoningContent: c.thought(), Reasoning: c.thought()}
		text, calls := c.said()
		if text != "" || calls == nil {
			choice.Message.Content = &text
		}
		if calls != nil {
			list := make([]api.ToolCall, len(calls))
			for i, call := range calls {
				list[i] = api.ToolCall{Id: &call.id, Type: new(api.ToolCallTypeFunction), Function: api.FunctionCall{Name: call.name, Arguments: call.arguments}}
			}
			choice.Message.ToolCalls = &list
		}
		reply.Choices = append(reply.Choices, choice)
	}
	return reply
}

// probabilities writes log-probabilities; nil where none were asked for, or there are none in a chunk.
func (f chatForm) probabilities(list []anytime.TokenLogProb) *api.ChatLogprobs {
	if !f.logProbs || list == nil {
		return nil
	}
	out := &api.ChatLogprobs{Content: make([]api.TokenLogprob, len(list))}
	for i, t := range list {
		out.Content[i] = api.TokenLogprob{Token: t.Token, Logprob: t.LogProb, Bytes: byteValues(t.Token), TopLogprobs: []api.TopLogprob{}}
		for _, alt := range t.Top {
			out.Content[i].TopLogprobs = append(out.Content[i].TopLogprobs, api.TopLogprob{Token: alt.Token, Logprob: alt.LogProb, Bytes: byteValues(alt.Token)})
		}
	}
	return out
}

func byteValues(s string) []int {
	values := make([]int, len(s))
	for i := range len(s) {
		values[i] = int(s[i])
	}
	return values
}
