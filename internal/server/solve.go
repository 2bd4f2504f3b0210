package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"anytime/api"
	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/decode/prompt"
	"anytime/internal/server/sse"
	"anytime/internal/store"
)

func (s *Server) solve(w http.ResponseWriter, c *call) error {
	var body api.SolveRequest
	if err := c.into(&body); err != nil {
		return err
	}
	req, err := s.solveRequest(c, body)
	if err != nil {
		return err
	}
	ids, err := s.start(w, c, req)
	if err != nil && body.Problem != nil {
		return ofProblem(err)
	}
	if err != nil {
		return err
	}
	return s.answer(w, c, ids[0], 0, body.Thinking, body.Stream)
}

// ofProblem says of the problem what an error says of the message that was made of it.
func ofProblem(err error) error {
	e := publicError(err)
	if !strings.HasPrefix(e.param, "messages") {
		return err
	}
	named := *e
	named.param, named.message = "problem", strings.Replace(e.message, e.param+":", "problem:", 1)
	return &named
}

// solveRequest is the run that a body asks for.
func (s *Server) solveRequest(c *call, body api.SolveRequest) (anytime.Request, error) {
	req := anytime.Request{
		Owner: c.owner, Arrived: c.arrived, Template: prompt.Options{Thinking: true},
		Model: or(body.Model, ""), MaxTokens: or(body.MaxTokens, 0), AnswerTokens: or(body.AnswerTokens, 0), Votes: or(body.Votes, 0),
		OnDisconnect: anytime.OnDisconnect(or(body.OnDisconnect, "")),
		Stop:         or(body.Stop, nil), Seed: seed(body.Seed, 0), VoteTemperature: body.VoteTemperature,
	}
	switch {
	case (body.Problem == nil) == (body.Messages == nil):
		return req, invalid("problem", "give either problem or messages")
	case body.Problem != nil:
		req.Messages = []prompt.Message{{Role: "user", Content: *body.Problem}}
	default:
		var err error
		if req.Messages, err = messages(*body.Messages); err != nil {
			return req, err
		}
	}
	var err error
	if body.Budget != nil && strings.TrimSpace(string(*body.Budget)) == "" {
		return req, &budget.SyntaxError{Reason: "is empty"}
	}
	if req.Budget, _, err = s.readBudget(api.BudgetFields{Budget: body.Budget}, c.Header.Get("Budget"), req.Model); err != nil {
		return req, err
	}
	every := ""
	if body.Every != nil {
		every = strconv.Itoa(*body.Every)
	}
	if req.Checkpoints, err = budget.ParseSchedule(string(or(body.Checkpoints, "")), every); err != nil {
		return req, invalid("checkpoints", "%v", err)
	}
	if req.EarlyStop, err = budget.ParseEarlyStop(or(body.EarlyStop, "")); err != nil {
		return req, invalid("early_stop", "%v", err)
	}
	if body.ReasoningBudgetMessage != nil {
		req.Style, req.BudgetMessage = prompt.StyleMessage, *body.ReasoningBudgetMessage
	}
	if req.Priority, err = c.priority(body.Priority); err != nil {
		return req, err
	}
	req.Sampling, err = s.sampling(body.Temperature, body.TopP, body.MinP, body.TopK, body.LogitBias, body.Grammar)
	return req, err
}

// answer replies with what becomes of a run that this client has set going: its events from behind an offset, or its reply. If the
// client leaves before, the run is told.
func (s *Server) answer(w http.ResponseWriter, c *call, id string, after int64, thinking, stream *bool) error {
	if c.wantsStream(stream) {
		if err := s.streamRun(w, c, id, after, thinking); err != nil {
			s.cfg.Solver.Leave(id)
			s.streamEnded(c.Request, err)
		}
		return nil
	}
	reply, err := s.cfg.Solver.Wait(c.Context(), id)
	if c.Context().Err() != nil {
		s.cfg.Solver.Leave(id)
		return c.Context().Err()
	}
	if err != nil {
		return err
	}
	return s.writeJSON(w, http.StatusOK, shown(reply, has(thinking)))
}

// streamRun streams a run's events from behind an offset. thinking, where it is not nil, leaves the thinking's events out, or puts all
// of its text into the reply as well.
func (s *Server) streamRun(w http.ResponseWriter, c *call, id string, after int64, thinking *bool) error {
	ended, wrote := false, time.Now()
	err := s.stream(c.Context(), w, after, []string{id}, func(out *sse.Writer, it item) error {
		if it.err != nil {
			if c.Context().Err() == nil {
				e := publicError(it.err)
				s.logFailure(c.Context(), e, it.err)
				_ = out.Event(sse.Event{Type: anytime.EventError, Data: mustJSON(anytime.ErrorData{Code: e.code, Message: e.message})})
			}
			return it.err
		}
		if it.event.Type == anytime.EventThinking && !or(thinking, true) {
			if time.Since(wrote) < s.cfg.Ping {
				return nil
			}
			wrote = time.Now()
			return out.Comment("ping")
		}
		wrote = time.Now()
		data := []byte(it.event.Data)
		ended = it.event.Type == anytime.EventDone || it.event.Type == anytime.EventError
		if it.event.Type == anytime.EventDone && !has(thinking) {
			var reply anytime.Reply
			if err := json.Unmarshal(data, &reply); err != nil {
				return fmt.Errorf("read the reply of run %s: %w", id, err)
			}
			data = mustJSON(shown(reply, false))
		}
		return out.Event(sse.Event{ID: strconv.FormatInt(it.event.Offset, 10), Type: it.event.Type, Data: data})
	})
	if ended {
		return nil // a client that leaves now leaves nothing behind, and may have extended the run already
	}
	return err
}

// shownReply is a reply, with its thinking only where it was asked for.
type shownReply struct {
	anytime.Reply
	Thinking *string `json:"thinking,omitempty"`
}

func shown(r anytime.Reply, thinking bool) shownReply {
	v := shownReply{Reply: r}
	if thinking {
		v.Thinking = &r.Thinking
	}
	return v
}

// own returns a run of the caller's; those of others do not exist.
func (s *Server) own(c *call, id string) (store.Run, error) {
	run, err := s.cfg.Store.Get(c.Context(), id)
	if err == nil && run.Owner != c.owner {
		err = store.ErrNotFound
	}
	return run, err
}

func (s *Server) listRuns(w http.ResponseWriter, c *call) error {
	filter := store.Filter{Owner: &c.owner, State: store.State(c.query.Get("state")), Heads: true}
	if v := c.query.Get("limit"); v != "" {
		filter.Limit, _ = strconv.Atoi(v) // the contract has seen to its form
	}
	if v := c.query.Get("before"); v != "" {
		var err error
		if filter.Before, err = time.Parse(time.RFC3339Nano, v); err != nil {
			return invalid("before", "query before: must be a time such as 2026-01-05T10:00:00Z")
		}
	}
	runs, err := s.cfg.Store.List(c.Context(), filter)
	if err != nil {
		return err
	}
	list := api.RunList{Runs: make([]api.RunSummary, 0, len(runs))}
	for _, head := range runs {
		r, err := s.cfg.Store.Get(c.Context(), head.ID) // one at a time: requests and replies may be large
		switch {
		case errors.Is(err, store.ErrNotFound):
			continue // removed meanwhile
		case err != nil:
			return err
		}
		summary := api.RunSummary{
			Id: r.ID, Model: r.Model, State: api.RunState(r.State), Created: r.Created, Updated: r.Updated, Problem: shorten(problemOf(r)), Answer: answerOf(r),
		}
		if summary.Answer != nil {
			*summary.Answer = shorten(*summary.Answer)
		}
		list.Runs = append(list.Runs, summary)
	}
	return s.writeJSON(w, http.StatusOK, list)
}

const listed = 200 // characters of a question, and of an answer, in a list

func shorten(text string) string {
	if utf8.RuneCountInString(text) <= listed {
		return text
	}
	return string([]rune(text)[:listed]) + "…"
}

// problemOf returns what a run was asked: the last of the user's messages, or the raw prompt.
func problemOf(run store.Run) string {
	asked, err := anytime.RequestOf(run)
	if err != nil {
		return "" // of another version
	}
	for _, m := range slices.Backward(asked.Messages) {
		if m.Role == "user" {
			return m.Content
		}
	}
	return asked.Raw
}

// answerOf returns a finished run's answer.
func answerOf(run store.Run) *string {
	var reply anytime.Reply
	if run.Reply == nil || json.Unmarshal(run.Reply, &reply) != nil {
		return nil
	}
	return reply.Answer
}

// runStatus is a run's reply, or what there is so far.
type runStatus struct {
	ID             string               `json:"id"`
	Model          string               `json:"model"`
	State          store.State          `json:"state"`
	Created        time.Time            `json:"created"`
	Problem        string               `json:"problem"`
	LastEvent      int64                `json:"last_event"`
	ThinkingTokens int                  `json:"thinking_tokens"`
	Answer         *string              `json:"answer"`
	Summary        string               `json:"summary"`
	Thinking       *string              `json:"thinking,omitempty"`
	Stop           *anytime.Stop        `json:"stop,omitempty"`
	Confidence     float64              `json:"confidence"`
	Checkpoints    []anytime.Checkpoint `json:"checkpoints"`
	Usage          *anytime.Usage       `json:"usage,omitempty"`
	Timings        *anytime.Timings     `json:"timings,omitempty"`
	Error          *anytime.ErrorData   `json:"error,omitempty"`
	Explanation    *anytime.Explanation `json:"explanation,omitempty"`
}

func (s *Server) getRun(w http.ResponseWriter, c *call) error {
	run, err := s.own(c, c.path("id"))
	if err != nil {
		return err
	}
	status := runStatus{
		ID: run.ID, Model: run.Model, State: run.State, Created: run.Created, Problem: problemOf(run), LastEvent: run.Last, Checkpoints: []anytime.Checkpoint{},
	}
	thinking := ""
	if run.State == store.Finished {
		var reply anytime.Reply
		if err := json.Unmarshal(run.Reply, &reply); err != nil {
			return fmt.Errorf("read the reply of run %s: %w", run.ID, err)
		}
		status.Answer, status.Summary, status.Confidence, thinking = reply.Answer, reply.Summary, reply.Confidence, reply.Thinking
		status.Stop, status.Usage, status.Timings = &reply.Stop, &reply.Usage, &reply.Timings
		status.ThinkingTokens = reply.Usage.ThinkingTokens
		if reply.Checkpoints != nil {
			status.Checkpoints = reply.Checkpoints
		}
	} else if thinking, err = s.soFar(c.Context(), run, &status); err != nil {
		return err
	}
	if c.flag("thinking") {
		status.Thinking = &thinking
	}
	if c.flag("explain") {
		if status.Explanation, err = s.cfg.Solver.Explain(c.Context(), run.ID); err != nil {
			return err
		}
	}
	return s.writeJSON(w, http.StatusOK, status)
}

// soFar gathers what the events of an unfinished run tell.
func (s *Server) soFar(ctx context.Context, run store.Run, status *runStatus) (thinking string, err error) {
	var thought strings.Builder
	const page = 256
	for after := int64(0); after < run.Last; {
		events, err := s.cfg.Store.Events(ctx, run.ID, after, page)
		if err != nil {
			return "", err
		}
		if len(events) == 0 {
			break
		}
		for _, e := range events {
			after = e.Offset
			var err error
			switch e.Type {
			case anytime.EventThinking:
				var text anytime.TextData
				err = json.Unmarshal(e.Data, &text)
				thought.WriteString(text.Text)
				status.ThinkingTokens = text.Tokens
			case anytime.EventCheckpoint:
				var checkpoint anytime.Checkpoint
				err = json.Unmarshal(e.Data, &checkpoint)
				status.Checkpoints = append(status.Checkpoints, checkpoint)
				status.Answer, status.Summary, status.Confidence = &checkpoint.Answer, checkpoint.Summary, checkpoint.Confidence
			case anytime.EventDone: // of before an extension
				var reply anytime.Reply
				err = json.Unmarshal(e.Data, &reply)
				status.Answer, status.Summary, status.Confidence = reply.Answer, reply.Summary, reply.Confidence
			case anytime.EventError:
				if e.Offset == run.Last {
					err = json.Unmarshal(e.Data, &status.Error)
				}
			}
			if err != nil {
				return "", fmt.Errorf("read event %d of run %s: %w", e.Offset, run.ID, err)
			}
		}
	}
	return thought.String(), nil
}

func (s *Server) runEvents(w http.ResponseWriter, c *call) error {
	run, err := s.own(c, c.path("id"))
	if err != nil {
		return err
	}
	var after int64
	for _, v := range []string{c.Header.Get("Last-Event-ID"), c.query.Get("after")} {
		if v == "" {
			continue
		}
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return invalid("after", "%.32q is not the offset of an event", v)
		}
		after = max(after, n)
	}
	if c.Header.Get("Last-Event-ID") != "" && run.State != store.Running {
		rest, err := s.cfg.Store.Events(c.Context(), run.ID, after, 1)
		if err != nil {
			return err
		}
		if len(rest) == 0 {
			w.WriteHeader(http.StatusNoContent) // else an EventSource would ask again and again
			return nil
		}
	}
	if err := s.streamRun(w, c, run.ID, after, c.given("thinking")); err != nil {
		s.streamEnded(c.Request, err)
	}
	return nil
}

func (s *Server) interruptRun(w http.ResponseWriter, c *call) error {
	run, err := s.own(c, c.path("id"))
	if err != nil {
		return err
	}
	if c.flag("continue") {
		checkpoint, err := s.cfg.Solver.Peek(c.Context(), run.ID)
		if err != nil {
			return err
		}
		return s.writeJSON(w, http.StatusOK, checkpoint)
	}
	// Of a run that ended in this moment, or before, the reply is what was asked for.
	if err := s.cfg.Solver.Interrupt(c.Context(), run.ID); err != nil && !errors.Is(err, anytime.ErrNotRunning) {
		return err
	}
	reply, err := s.cfg.Solver.Wait(c.Context(), run.ID)
	if err != nil {
		return err
	}
	return s.writeJSON(w, http.StatusOK, shown(reply, c.flag("thinking")))
}

func (s *Server) extendRun(w http.ResponseWriter, c *call) error {
	run, err := s.own(c, c.path("id"))
	if err != nil {
		return err
	}
	more, err := budget.ParseExtension(c.query.Get("budget"))
	if err != nil {
		return err
	}
	ended, err := s.place(w, c)
	if err != nil {
		return err
	}
	if err := s.cfg.Solver.Extend(c.Context(), run.ID, anytime.Extension{Budget: more, Arrived: c.arrived, Ended: ended}); err != nil {
		ended(0)
		return err
	}
	return s.answer(w, c, run.ID, run.Last, c.given("thinking"), c.given("stream"))
}

func (s *Server) deleteRun(w http.ResponseWriter, c *call) error {
	run, err := s.own(c, c.path("id"))
	if err != nil {
		return err
	}
	if err := s.cfg.Solver.Cancel(c.Context(), run.ID); err != nil && !errors.Is(err, anytime.ErrNotRunning) {
		return err
	}
	if err := s.cfg.Store.Delete(c.Context(), run.ID); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
