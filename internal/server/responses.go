package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"anytime/api"
	"anytime/internal/anytime"
	"anytime/internal/decode/prompt"
	"anytime/internal/server/sse"
	"anytime/internal/store"
)

const (
	responsePrefix = "resp_"
	runPrefix      = "run_"
)

func responseID(run string) string { return responsePrefix + strings.TrimPrefix(run, runPrefix) }

// responseNote is kept with a response's run: what its response repeats of the request, and how it is written.
type responseNote struct {
	Response api.Response `json:"response"` // without what became of the run
	Head     int          `json:"head"`     // messages before the conversation: instructions
	Calls    bool         `json:"calls"`    // the answer may hold calls
	Whole    bool         `json:"whole"`    // of which half ones must not be told
	Summary  bool         `json:"summary"`  // the thinking is told as its summary
	Hide     bool         `json:"hide"`     // not at all
}

func (s *Server) createResponse(w http.ResponseWriter, c *call) (err error) {
	var body api.ResponseRequest
	if err := c.into(&body); err != nil {
		return err
	}
	req, note, err := s.responseRun(c, &body)
	if err != nil {
		return err
	}
	keep, background, stream := note.Response.Store, has(body.Background), has(body.Stream)
	if background && !keep {
		return invalid("background", "background: wants store not to be false, or nobody could read the response")
	}
	if background {
		req.OnDisconnect = anytime.Continue
	}
	req.Client = mustJSON(note)
	ids, err := s.start(w, c, req)
	if err != nil {
		return err
	}
	id := ids[0]
	left := true // until the client has its response
	defer func() {
		if left {
			s.cfg.Solver.Leave(id)
		}
		if !keep {
			s.forget(c, id)
		}
	}()
	run, err := s.cfg.Store.Get(c.Context(), id)
	if err != nil {
		return err
	}
	switch {
	case stream:
		err := s.streamResponse(w, c, newResponder(run, note), 0)
		left = err != nil
		s.streamEnded(c.Request, err)
		return nil
	case background:
		left = false
		return s.writeJSON(w, http.StatusOK, newResponder(run, note).reply)
	}
	r := newResponder(run, note)
	for it := range s.follow(c.Context(), 0, id) {
		switch {
		case it.quiet:
		case it.err != nil:
			return it.err
		default:
			if err := r.take(it.event); err != nil {
				return err
			}
		}
	}
	if err := c.Context().Err(); err != nil {
		return err
	}
	left = false
	if r.failure != nil && r.failure.Code != "cancelled" {
		return r.failure
	}
	return s.writeJSON(w, http.StatusOK, r.reply)
}

// forget removes the run of a response that is not to be stored.
func (s *Server) forget(c *call, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context()), s.cfg.Timeout)
	defer cancel()
	if err := s.cfg.Solver.Cancel(ctx, id); err != nil && !errors.Is(err, anytime.ErrNotRunning) {
		s.log.Warn("response is not removed", "run", id, "error", err)
		return
	}
	if err := s.cfg.Store.Delete(ctx, id); err != nil && !errors.Is(err, store.ErrNotFound) {
		s.log.Warn("response is not removed", "run", id, "error", err)
	}
}

// responseRun is the run that a request asks for, and the note that is kept with it.
func (s *Server) responseRun(c *call, body *api.ResponseRequest) (req anytime.Request, note responseNote, err error) {
	var fields api.BudgetFields
	if err := c.into(&fields); err != nil {
		return req, note, err
	}
	limit, options, err := s.readBudget(fields, c.Header.Get("Budget"), or(body.Model, ""))
	if err != nil {
		return req, note, err
	}
	sampling, err := s.sampling(body.Temperature, body.TopP, body.MinP, body.TopK, nil, body.Grammar)
	if err != nil {
		return req, note, err
	}
	req = anytime.Request{
		Owner: c.owner, Arrived: c.arrived, Model: or(body.Model, ""), Template: options, Budget: limit, Sampling: sampling, Seed: seed(body.Seed, 0),
		MaxTokens: or(body.MaxOutputTokens, 0), AnswerTokens: s.cfg.ChatAnswerTokens, Style: prompt.StyleFamily,
	}
	if req.Priority, err = c.priority(fields.Priority); err != nil {
		return req, note, err
	}
	if fields.ReasoningBudgetMessage != nil {
		req.Style, req.BudgetMessage = prompt.StyleMessage, *fields.ReasoningBudgetMessage
	}
	if body.Instructions != nil {
		req.Messages = []prompt.Message{{Role: "system", Content: *body.Instructions}}
	}
	note.Head = len(req.Messages)
	if body.PreviousResponseId != nil {
		before, err := s.conversation(c, *body.PreviousResponseId)
		if err != nil {
			return req, note, err
		}
		req.Messages = append(req.Messages, before...)
	}
	input, err := inputMessages(body.Input)
	if err != nil {
		return req, note, err
	}
	req.Messages = append(req.Messages, input...)
	answer, err := c.responseShape(body)
	if err != nil {
		return req, note, err
	}
	if err := answer.apply(&req); err != nil {
		return req, note, err
	}
	c.schema, note.Calls, note.Whole = answer.field(), answer.callsTools(), limit.Deadline > 0
	note.Hide = fields.IncludeReasoning != nil && !*fields.IncludeReasoning || fields.Reasoning != nil && has(fields.Reasoning.Exclude)
	note.Summary = fields.Reasoning != nil && (fields.Reasoning.Summary != nil || fields.Reasoning.GenerateSummary != nil)
	note.Response, err = c.repeated(body)
	return req, note, err
}

// repeated is what a response repeats of its request.
func (c *call) repeated(body *api.ResponseRequest) (r api.Response, err error) {
	same := struct { // fields of the same name are of the same form, but for the budget
		*api.Response
		Budget json.RawMessage `json:"budget"`
	}{Response: &r}
	if err := c.into(&same); err != nil {
		return r, err
	}
	r.Store = body.Store == nil || *body.Store
	r.ParallelToolCalls = body.ParallelToolCalls == nil || *body.ParallelToolCalls
	r.Truncation = "disabled"
	if r.Text == nil {
		r.Text = map[string]any{}
	}
	if r.Text["format"] == nil {
		r.Text["format"] = map[string]any{"type": "text"}
	}
	if r.ToolChoice == nil {
		r.ToolChoice = "auto"
	}
	if r.Tools == nil {
		r.Tools = []map[string]any{}
	}
	if r.Metadata == nil {
		r.Metadata = map[string]string{}
	}
	return r, nil
}

// responseShape reads text.format and the tools, whose definitions are turned into the form that chat templates know.
func (c *call) responseShape(body *api.ResponseRequest) (shape, error) {
	var raw struct {
		Tools []struct {
			Name        string          `json:"name"`
			Description json.RawMessage `json:"description,omitempty"`
			Parameters  json.RawMessage `json:"parameters,omitempty"`
		} `json:"tools"`
		Text struct {
			Format struct {
				Schema json.RawMessage `json:"schema"`
			} `json:"format"`
		} `json:"text"`
	}
	if err := json.Unmarshal(c.raw, &raw); err != nil {
		return shape{}, invalid("", "the body: %v", err)
	}
	s := shape{
		choice: body.ToolChoice, single: body.ParallelToolCalls != nil && !*body.ParallelToolCalls,
		formatField: "text.format.schema", parametersField: "tools[%d].parameters",
	}
	if body.Text != nil && body.Text.Format != nil {
		switch body.Text.Format.Type {
		case api.ResponseTextFormatTypeJsonObject:
			s.format, s.formatField = anyObject, "text.format"
		case api.ResponseTextFormatTypeJsonSchema:
			if s.format = present(raw.Text.Format.Schema); s.format == nil {
				return s, invalid("text.format.schema", "text.format.schema: is missing")
			}
		}
	}
	for i, t := range raw.Tools {
		if t.Name == "" {
			field := fmt.Sprintf("tools[%d].name", i)
			return s, invalid(field, "%s: is missing", field)
		}
		s.tools = append(s.tools, tool{Function: toolFunction{t.Name, t.Parameters}, raw: mustJSON(map[string]any{"type": "function", "function": t})})
	}
	return s, nil
}

// ownResponse returns the run of a response of the caller's.
func (s *Server) ownResponse(c *call, id string) (run store.Run, asked anytime.Request, note responseNote, err error) {
	name, ok := strings.CutPrefix(id, responsePrefix)
	if !ok {
		return run, asked, note, errNoResponse
	}
	if run, err = s.own(c, runPrefix+name); err != nil {
		if errors.Is(err, store.ErrNotFound) {
			err = errNoResponse
		}
		return run, asked, note, err
	}
	if asked, err = anytime.RequestOf(run); err != nil {
		return run, asked, note, err
	}
	if asked.Client == nil { // another kind of run
		return run, asked, note, errNoResponse
	}
	if err := json.Unmarshal(asked.Client, &note); err != nil {
		return run, asked, note, fmt.Errorf("read what is kept of response %s: %w", id, err)
	}
	return run, asked, note, nil
}

var errNoResponse = &httpError{status: http.StatusNotFound, kind: typeNotFound, code: "response_not_found", param: "id", message: "no such response"}

// state replays the events of a response's run.
func (s *Server) state(c *call, run store.Run, note responseNote) (*responder, error) {
	const page = 256
	r := newResponder(run, note)
	for after := int64(0); after < run.Last && !r.over(); {
		events, err := s.cfg.Store.Events(c.Context(), run.ID, after, page)
		if err != nil {
			return nil, err
		}
		if len(events) == 0 {
			break
		}
		for _, e := range events {
			after = e.Offset
			if r.over() {
				break
			}
			if err := r.take(e); err != nil {
				return nil, err
			}
		}
	}
	return r, nil
}

// conversation is what a response was asked, without its instructions, and what it answered.
func (s *Server) conversation(c *call, id string) ([]prompt.Message, error) {
	const field = "previous_response_id"
	run, asked, note, err := s.ownResponse(c, id)
	if errors.Is(err, errNoResponse) {
		return nil, &httpError{status: http.StatusNotFound, kind: typeNotFound, code: "previous_response_not_found", param: field, message: field + ": no such response"}
	}
	if err != nil {
		return nil, err
	}
	if run.State == store.Running {
		return nil, &httpError{status: http.StatusConflict, kind: typeConflict, code: "run_running", param: field, message: field + ": this response is still in progress"}
	}
	r, err := s.state(c, run, note)
	if err != nil {
		return nil, err
	}
	if r.failure != nil {
		return nil, invalid(field, "%s: this response has failed, so there is nothing to go on from", field)
	}
	said := prompt.Message{Role: "assistant"}
	text, calls := r.choice.said()
	said.Content = text
	for _, call := range calls {
		said.ToolCalls = append(said.ToolCalls, prompt.ToolCall{ID: call.id, Name: call.name, Arguments: call.arguments})
	}
	return append(asked.Messages[note.Head:], said), nil
}

func (s *Server) getResponse(w http.ResponseWriter, c *call) error {
	run, _, note, err := s.ownResponse(c, c.path("id"))
	if err != nil {
		return err
	}
	if c.wantsStream(c.given("stream")) {
		after := int64(-1)
		if v := c.query.Get("starting_after"); v != "" {
			after, _ = strconv.ParseInt(v, 10, 64) // the contract has seen to its form
		}
		s.streamEnded(c.Request, s.streamResponse(w, c, newResponder(run, note), after+1))
		return nil
	}
	r, err := s.state(c, run, note)
	if err != nil {
		return err
	}
	return s.writeJSON(w, http.StatusOK, r.reply)
}

func (s *Server) cancelResponse(w http.ResponseWriter, c *call) error {
	run, _, note, err := s.ownResponse(c, c.path("id"))
	if err != nil {
		return err
	}
	if err := s.cfg.Solver.Cancel(c.Context(), run.ID); err != nil && !errors.Is(err, anytime.ErrNotRunning) {
		return err
	}
	if run, err = s.own(c, run.ID); err != nil {
		return err
	}
	r, err := s.state(c, run, note)
	if err != nil {
		return err
	}
	return s.writeJSON(w, http.StatusOK, r.reply)
}

func (s *Server) deleteResponse(w http.ResponseWriter, c *call) error {
	run, _, _, err := s.ownResponse(c, c.path("id"))
	if err != nil {
		return err
	}
	if err := s.cfg.Solver.Cancel(c.Context(), run.ID); err != nil && !errors.Is(err, anytime.ErrNotRunning) {
		return err
	}
	if err := s.cfg.Store.Delete(c.Context(), run.ID); err != nil {
		return err
	}
	return s.writeJSON(w, http.StatusOK, api.ResponseDeleted{Id: c.path("id"), Object: api.ResponseDeletedObjectResponse, Deleted: true})
}

func (s *Server) listInputItems(w http.ResponseWriter, c *call) error {
	run, asked, note, err := s.ownResponse(c, c.path("id"))
	if err != nil {
		return err
	}
	list := api.ResponseItemList{Object: "list", Data: inputItems(run.ID, asked.Messages[note.Head:])}
	if n := len(list.Data); n > 0 {
		list.FirstId, list.LastId = &list.Data[0].Id, &list.Data[n-1].Id
	}
	return s.writeJSON(w, http.StatusOK, list)
}

// streamResponse writes a run's events as a response's, from a number on.
func (s *Server) streamResponse(w http.ResponseWriter, c *call, r *responder, from int64) error {
	var out *sse.Writer
	r.send = func(kind string, event map[string]any) error {
		if r.number++; r.number <= from {
			return nil
		}
		event["type"], event["sequence_number"] = kind, r.number-1
		return out.Event(sse.Event{Type: kind, Data: mustJSON(event)})
	}
	return s.stream(c.Context(), w, 0, []string{r.run}, func(to *sse.Writer, it item) error {
		out = to
		if it.err == nil {
			it.err = r.take(it.event)
		}
		if it.err != nil && c.Context().Err() == nil {
			e := publicError(it.err)
			s.logFailure(c.Context(), e, it.err)
			_ = r.send("error", map[string]any{"code": e.code, "message": e.message, "param": nil})
		}
		return it.err
	})
}
