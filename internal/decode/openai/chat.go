package openai

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"anytime/internal/decode"
	"anytime/internal/decode/remote"
)

// chatTemplate is what the engine gives as its chat template where the server applies the real one: prompts made by it can be read
// back into messages. Its marks are special tokens, so what looks like one in a user's text comes as Literal.
const chatTemplate = `{% for m in messages %}{{ '<|turn:' + m.role + '|>' + (m.content or '') }}{% endfor %}<|turn:assistant|>`

var (
	turnMark  = regexp.MustCompile(`<\|turn:(system|developer|user|assistant|tool)\|>`)
	turnMarks = strings.Fields(`<|turn:system|> <|turn:developer|> <|turn:user|> <|turn:assistant|> <|turn:tool|>`)
)

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
	Prefix  bool   `json:"prefix,omitempty"`
}

// readChat reads a prefix back into messages, the last of them the assistant's as far as it has come.
func readChat(prefix []decode.Part) ([]message, error) {
	var list []message
	for _, p := range prefix {
		text := p.Text
		for text != "" {
			at := []int(nil)
			if !p.Literal {
				at = turnMark.FindStringSubmatchIndex(text)
			}
			said := text
			if at != nil {
				said = text[:at[0]]
			}
			if len(list) > 0 {
				list[len(list)-1].Content += said
			} else if said != "" {
				return nil, refuse("prompt", "is plain text, but the engine's server has no /v1/completions and can only continue a chat; send messages")
			}
			if at == nil {
				break
			}
			list = append(list, message{Role: text[at[2]:at[3]]})
			text = text[at[1]:]
		}
	}
	if len(list) < 2 || list[len(list)-1].Role != "assistant" {
		return nil, refuse("prompt", "is no chat that the assistant's message ends, and the engine's server can only continue one; send messages")
	}
	return list, nil
}

// prefill is how a server is told to continue the assistant's message instead of beginning another.
type prefill struct {
	name   string
	fields map[string]any
	prefix bool // the message itself is marked
}

var prefills = []prefill{
	// vLLM, SGLang, llama-server, and those that go on with a last message of the assistant's without being told
	{"continue_final_message", map[string]any{"continue_final_message": true, "add_generation_prompt": false}, false},
	{"prefix", nil, true}, // Mistral, DeepSeek
	{"a last message of the assistant's", nil, false},
}

// completeChat continues the assistant's message. A server that takes the thinking apart leaves out the mark between it and the
// answer: the one that the caller waits for stands in its place.
func (s *server) completeChat(ctx context.Context, req remote.Request, emit func(remote.Piece)) (decode.End, error) {
	list, err := readChat(req.Prefix)
	if err != nil {
		return "", err
	}
	body := s.sampling(req)
	if last := len(list) - 1; list[last].Content == "" {
		list = list[:last] // nothing to continue
	} else {
		list[last].Prefix = s.prefill.prefix
		for name, value := range s.prefill.fields {
			body[name] = value
		}
	}
	body["messages"] = list
	if n, ok := body["logprobs"]; ok {
		body["logprobs"], body["top_logprobs"] = true, n
	}
	switch s.kind {
	case llamaServer:
		body["reasoning_format"] = "none"
	case sglang:
		body["separate_reasoning"] = false
	}
	r := reader{server: s, ctx: ctx, emit: emit, began: time.Now()}
	reasoning := false
	err = s.stream(ctx, true, body, func(e *event) error {
		if len(e.Choices) == 0 {
			return r.take(e)
		}
		c := &e.Choices[0]
		thought := c.Delta.ReasoningContent
		if thought == "" {
			thought = c.Delta.Reasoning
		}
		if reasoning && c.Delta.Content != "" {
			r.add(decode.Token{ID: -1, Text: closingMark(req)})
		}
		reasoning = thought != "" || reasoning && c.Delta.Content == ""
		c.Text = thought + c.Delta.Content
		return r.take(e)
	})
	if err != nil {
		return "", err
	}
	return r.end(req.MaxTokens)
}

// tryChat finds out how the server continues a message, by whether it does: it is to go on in the middle of a word, with which no
// message begins.
func (s *server) tryChat(ctx context.Context, forced bool) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	prefix := []decode.Part{decode.Text("<|turn:user|>Count in words.<|turn:assistant|>one two three four five six sev")}
	s.info.ChatTemplate, s.info.SpecialTokens, s.info.BOS, s.info.EOS, s.info.AddBOS = chatTemplate, turnMarks, "", "", false
	s.encode, s.bos = nil, nil
	var errs []error
	for _, s.prefill = range prefills {
		for _, s.logProbs = range []bool{true, false} {
			text, probable := "", false
			req := remote.Request{Prefix: prefix, MaxTokens: 4, TopLogProbs: 1}
			_, err := s.completeChat(ctx, req, func(p remote.Piece) {
				for _, t := range p.Tokens {
					text += t.Text
					probable = probable || len(t.Top) > 0
				}
			})
			var e *serverError
			if errors.As(err, &e) && s.logProbs && strings.Contains(strings.ToLower(e.message), "logprob") {
				continue
			}
			if err != nil {
				errs = append(errs, err)
				break
			}
			s.logProbs = probable
			s.info.Capabilities.LogProbs = probable
			if forced || strings.HasPrefix(text, "en") {
				return nil
			}
			errs = append(errs, fmt.Errorf("with %s it went on with %q behind \"six sev\"", s.prefill.name, text))
			break
		}
	}
	return s.explain(fmt.Errorf("%s does not continue the assistant's message, which thoughts and answers need: %w; if it does, set the engine's API to chat", s.base, errors.Join(errs...)))
}
