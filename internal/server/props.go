package server

import (
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strings"
	"unicode/utf8"

	"anytime/api"
	"anytime/internal/decode"
)

// What llama-server's clients ask for besides completions, in its words.

func (s *Server) props(w http.ResponseWriter, c *call) error {
	model, release, err := s.cfg.Models.Acquire(c.Context(), c.query.Get("model"))
	if err != nil {
		return err
	}
	defer release()
	info, d := model.Engine.Info(), s.cfg.Sampling
	p := api.Props{
		TotalSlots: info.MaxSequences, ModelAlias: model.ID, ModelPath: model.ID, ChatTemplate: model.Renderer.Source(),
		ChatTemplateCaps: &map[string]bool{"supports_tools": true, "supports_tool_calls": true, "supports_parallel_tool_calls": true, "supports_system_role": true},
		BosToken:         info.BOS, EosToken: info.EOS, BuildInfo: build(),
	}
	p.DefaultGenerationSettings.NCtx = info.ContextTokens
	params := &p.DefaultGenerationSettings.Params
	params.Temperature, params.TopK, params.TopP, params.MinP = d.Temperature, d.TopK, d.TopP, d.MinP
	return s.writeJSON(w, http.StatusOK, p)
}

// build names this build of the server.
func build() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return "anytime " + info.Main.Version
	}
	return "anytime"
}

// tokens asks a model's engine for the tokens of a part; field is the request's, for errors.
func (s *Server) tokens(c *call, name, field string, part decode.Part) (list []decode.Token, info decode.Info, err error) {
	model, release, err := s.cfg.Models.Acquire(c.Context(), name)
	if err != nil {
		return nil, info, err
	}
	defer release()
	if info = model.Engine.Info(); !info.Capabilities.TokenIDs {
		return nil, info, invalid("model", "model: its engine does not tell its tokens")
	}
	list, err = model.Engine.Tokenize(c.Context(), part)
	var input *decode.InputError
	switch {
	case errors.As(err, &input):
		err = invalid(field, "%s: %s", field, input.Reason)
	case errors.Is(err, decode.ErrContextFull):
		err = &httpError{status: http.StatusBadRequest, kind: typeRequest, code: "context_length_exceeded", param: field,
			message: fmt.Sprintf("%s: is longer than the model's context, which is %d tokens", field, info.ContextTokens)}
	}
	return list, info, err
}

func (s *Server) tokenize(w http.ResponseWriter, c *call) error {
	var body api.TokenizeRequest
	if err := c.into(&body); err != nil {
		return err
	}
	special := body.ParseSpecial == nil || *body.ParseSpecial
	list, info, err := s.tokens(c, or(body.Model, ""), "content", decode.Part{Text: body.Content, Literal: !special})
	if err != nil {
		return err
	}
	// The engine puts the mark of the beginning before every text that lacks it.
	marked := special && strings.HasPrefix(body.Content, info.BOS)
	if info.AddBOS && !marked && !has(body.AddSpecial) && len(list) > 0 {
		list = list[1:]
	}
	type token struct {
		ID    int32 `json:"id"`
		Piece any   `json:"piece"`
	}
	out := make([]any, len(list))
	for i, t := range list {
		switch {
		case !has(body.WithPieces):
			out[i] = t.ID
		case utf8.ValidString(t.Text):
			out[i] = token{t.ID, t.Text}
		default:
			out[i] = token{t.ID, byteValues(t.Text)}
		}
	}
	return s.writeJSON(w, http.StatusOK, map[string]any{"tokens": out})
}

func (s *Server) detokenize(w http.ResponseWriter, c *call) error {
	var body api.DetokenizeRequest
	if err := c.into(&body); err != nil {
		return err
	}
	list, _, err := s.tokens(c, or(body.Model, ""), "tokens", decode.Part{IDs: body.Tokens})
	if err != nil {
		return err
	}
	var text strings.Builder
	for _, t := range list[len(list)-len(body.Tokens):] { // less the mark of the beginning
		text.WriteString(t.Text)
	}
	return s.writeJSON(w, http.StatusOK, api.DetokenizeReply{Content: strings.ToValidUTF8(text.String(), "\ufffd")})
}

func (s *Server) applyTemplate(w http.ResponseWriter, c *call) error {
	k, err := s.readChat(c)
	if err != nil {
		return err
	}
	model, release, err := s.cfg.Models.Acquire(c.Context(), k.runs[0].Model)
	if err != nil {
		return err
	}
	defer release()
	p, err := model.Renderer.Render(k.runs[0].Messages, k.runs[0].Template)
	if err != nil {
		return err
	}
	var text strings.Builder
	for _, part := range p.Parts {
		text.WriteString(part.Text)
	}
	return s.writeJSON(w, http.StatusOK, api.TemplateReply{Prompt: text.String()})
}
