package server

import (
	"cmp"
	"fmt"
	"net/http"
	"unicode/utf8"

	"anytime/api"
	"anytime/internal/anytime"
	"anytime/internal/catalog"
)

// maxCompletions bounds the runs of one request.
const maxCompletions = 16

func (s *Server) completion(w http.ResponseWriter, c *call) error {
	var body api.CompletionRequest
	if err := c.into(&body); err != nil {
		return err
	}
	k, err := s.readCompletion(c)
	if err != nil {
		return err
	}
	if n := len(body.Prompt) * or(body.N, 1); n > maxCompletions {
		return invalid("n", "n: %d prompts by %d completions are more than %d", len(body.Prompt), or(body.N, 1), maxCompletions)
	}
	req := k.runs[0]
	req.MaxTokens = or(body.MaxTokens, 0)
	req.LogProbs, req.TopLogProbs = body.Logprobs != nil, or(body.Logprobs, 0)
	k.runs = nil
	for _, text := range body.Prompt {
		req.Raw = text
		k.runs = append(k.runs, req)
	}
	k.form = func(m meta) form { return textForm{m, req.LogProbs} }
	return s.complete(w, c, textPrefix, k)
}

// textForm writes text completions.
type textForm struct {
	meta
	logProbs bool
}

func (f textForm) piece(choices ...api.CompletionChoice) api.Completion {
	if choices == nil {
		choices = []api.CompletionChoice{}
	}
	return api.Completion{Id: f.id, Object: api.TextCompletion, Created: f.created, Model: f.model, Choices: choices}
}

func (f textForm) begin(int) any { return nil }

func (f textForm) chunk(index int, d delta) any {
	choice := api.CompletionChoice{Index: index, Text: d.content, Logprobs: f.probabilities(d.logProbs, d.offset)}
	if d.thinking != "" {
		choice.ReasoningContent = &d.thinking
	}
	if d.reset {
		choice.Reset = &d.reset
		choice.Text = "\n\n" + d.content
	}
	return f.piece(choice)
}

func (f textForm) end(index int, c *choice) any {
	p := f.piece(api.CompletionChoice{Index: index, FinishReason: new(string(c.finishReason())), Budget: c.report()})
	p.Budget = c.report()
	return p
}

func (f textForm) usage(u api.CompletionUsage) any {
	p := f.piece()
	p.Usage = &u
	return p
}

func (f textForm) whole(choices []*choice, u api.CompletionUsage) any {
	p := f.piece()
	for i, c := range choices {
		p.Choices = append(p.Choices, api.CompletionChoice{
			Index: i, Text: c.content, ReasoningContent: c.thought(), FinishReason: new(string(c.finishReason())),
			Logprobs: f.probabilities(c.logProbs, 0), Budget: c.report(),
		})
	}
	p.Usage, p.Budget = &u, choices[0].report()
	return p
}

// probabilities writes log-probabilities of tokens that begin at a character of the text.
func (f textForm) probabilities(list []anytime.TokenLogProb, offset int) *api.CompletionLogprobs {
	if !f.logProbs || list == nil {
		return nil
	}
	out := &api.CompletionLogprobs{}
	for _, t := range list {
		out.Tokens = append(out.Tokens, t.Token)
		out.TokenLogprobs = append(out.TokenLogprobs, t.LogProb)
		out.TextOffset = append(out.TextOffset, offset)
		offset += utf8.RuneCountInString(t.Token)
		top := map[string]float32{}
		for _, alt := range t.Top {
			top[alt.Token] = alt.LogProb
		}
		out.TopLogprobs = append(out.TopLogprobs, top)
	}
	return out
}

func (s *Server) listModels(w http.ResponseWriter, _ *call) error {
	list := api.ModelList{Object: api.List, Data: []api.Model{}}
	for _, m := range s.cfg.Models.Models() {
		list.Data = append(list.Data, describe(m, ""))
		if m.Adapter != "" {
			list.Data = append(list.Data, describe(m, catalog.Bare))
		}
		for _, adapter := range m.Adapters {
			list.Data = append(list.Data, describe(m, adapter))
		}
	}
	return s.writeJSON(w, http.StatusOK, list)
}

func (s *Server) getModel(w http.ResponseWriter, c *call) error {
	name := c.path("id")
	m, err := s.findModel(name)
	if err != nil {
		return fmt.Errorf("%w: /v1/models lists them", err)
	}
	adapter := ""
	if name != "default" && name != m.ID {
		adapter = name[len(m.ID)+1:]
	}
	return s.writeJSON(w, http.StatusOK, describe(m, adapter))
}

func describe(m Model, adapter string) api.Model {
	d := api.Model{
		Id: m.ID, Object: api.ModelObjectModel, Created: max(0, m.Created.Unix()), OwnedBy: "anytime", Default: m.Default, Loaded: m.Loaded, Adapters: []string{},
	}
	if m.ContextTokens > 0 {
		d.ContextTokens = &m.ContextTokens
	}
	if m.MaxThinking > 0 {
		d.MaxThinkingTokens = &m.MaxThinking
	}
	if m.Engine != "" {
		d.Engine = &m.Engine
	}
	if m.Path != "" {
		d.Path = &m.Path
	}
	if m.Capabilities != nil {
		d.Capabilities = &m.Capabilities
	}
	if adapter == "" {
		d.Adapters = append(d.Adapters, m.Adapters...)
		if m.Adapter != "" {
			d.DefaultAdapter = &m.Adapter
		}
		if m.Examples != nil {
			d.Examples = &m.Examples
		}
		adapter = cmp.Or(m.Adapter, catalog.Bare)
	} else {
		d.Id, d.Parent, d.Default = m.ID+":"+adapter, &m.ID, false
	}
	d.Curve = describeCurve(m.Curves[adapter])
	return d
}
