package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"anytime/api"
	"anytime/internal/anytime"
	"anytime/internal/decode/prompt"
	"anytime/internal/server/sse"
	"anytime/internal/store"
)

// form is how a kind of completion is written: as one reply or as chunks.
type form interface {
	// begin is the first chunk of a choice; nil: none.
	begin(index int) any
	chunk(index int, d delta) any
	end(index int, c *choice) any
	// usage is the last chunk, for those who asked for it.
	usage(u api.CompletionUsage) any
	whole(choices []*choice, u api.CompletionUsage) any
}

// completion is a request of OpenAI's kind: some runs, and how their replies are written.
type completion struct {
	body         api.SamplingFields
	runs         []anytime.Request
	trim         bool // white space before the answer, which chat models put there, is no part of it
	calls        bool // the answer may hold calls of tools
	hideThinking bool
	// form makes the form once the completion has its id.
	form func(meta) form
}

// meta is what all chunks of a completion repeat.
type meta struct {
	id      string
	model   string
	created int64
}

// readCompletion reads the fields that both kinds of completion share. runs has one request, still without a prompt.
func (s *Server) readCompletion(c *call) (completion, error) {
	var k completion
	var fields api.BudgetFields
	if err := c.into(&k.body); err != nil {
		return k, err
	}
	if err := c.into(&fields); err != nil {
		return k, err
	}
	limit, options, err := s.readBudget(fields, c.Header.Get("Budget"), or(k.body.Model, ""))
	if err != nil {
		return k, err
	}
	sampling, err := s.sampling(k.body.Temperature, k.body.TopP, k.body.MinP, k.body.TopK, k.body.LogitBias, k.body.Grammar)
	if err != nil {
		return k, err
	}
	req := anytime.Request{
		Owner: c.owner, Arrived: c.arrived, Model: or(k.body.Model, ""), Template: options, Budget: limit, Sampling: sampling,
		Stop: or(k.body.Stop, nil), AnswerTokens: s.cfg.ChatAnswerTokens, Style: prompt.StyleFamily,
	}
	if req.Priority, err = c.priority(fields.Priority); err != nil {
		return k, err
	}
	if fields.ReasoningBudgetMessage != nil {
		req.Style, req.BudgetMessage = prompt.StyleMessage, *fields.ReasoningBudgetMessage
	}
	k.hideThinking = fields.IncludeReasoning != nil && !*fields.IncludeReasoning || fields.Reasoning != nil && has(fields.Reasoning.Exclude)
	k.runs = []anytime.Request{req}
	return k, nil
}

// multiply makes n runs of each.
func (k *completion) multiply() {
	var all []anytime.Request
	for _, req := range k.runs {
		for range or(k.body.N, 1) {
			req.Seed = seed(k.body.Seed, len(all))
			all = append(all, req)
		}
	}
	k.runs = all
}

// complete starts a completion's runs and replies with what becomes of them.
func (s *Server) complete(w http.ResponseWriter, c *call, prefix string, k completion) (err error) {
	k.multiply()
	ids, err := s.start(w, c, k.runs...)
	if err != nil {
		return err
	}
	leave := func() {
		for _, id := range ids { // those that have ended do not mind
			s.cfg.Solver.Leave(id)
		}
	}
	defer func() {
		if err != nil {
			leave()
		}
	}()
	first, err := s.cfg.Store.Get(c.Context(), ids[0])
	if err != nil {
		return err
	}
	f := k.form(meta{id: prefix + strings.Join(ids, idSeparator), model: first.Model, created: first.Created.Unix()})
	choices := make([]*choice, len(ids))
	for i := range choices {
		choices[i] = k.choice(i, ids[i])
	}
	if has(k.body.Stream) {
		if err := s.streamCompletion(w, c, ids, choices, f, k); err != nil {
			leave()
			s.streamEnded(c.Request, err)
		}
		return nil
	}
	for it := range s.follow(c.Context(), 0, ids...) {
		if it.quiet {
			continue
		}
		if it.err == nil {
			_, it.err = choices[it.run].take(it.event)
		}
		if it.err != nil {
			return it.err
		}
	}
	if err := c.Context().Err(); err != nil {
		return err
	}
	return s.writeJSON(w, http.StatusOK, f.whole(choices, totalUsage(choices, or(k.body.N, 1))))
}

// streamCompletion writes chunks as the runs' events come.
func (s *Server) streamCompletion(w http.ResponseWriter, c *call, ids []string, choices []*choice, f form, k completion) error {
	begun := make([]bool, len(ids))
	left := len(ids)
	err := s.stream(c.Context(), w, 0, ids, func(out *sse.Writer, it item) error {
		send := func(chunk any) error { return out.Event(sse.Event{Data: mustJSON(chunk)}) }
		if !begun[it.run] && it.err == nil {
			begun[it.run] = true
			if first := f.begin(it.run); first != nil {
				if err := send(first); err != nil {
					return err
				}
			}
		}
		var d delta
		if it.err == nil {
			d, it.err = choices[it.run].take(it.event)
		}
		if it.err != nil {
			if c.Context().Err() == nil {
				e := publicError(it.err)
				s.logFailure(c.Context(), e, it.err)
				_ = out.Event(sse.Event{Data: e.body(requestID(c.Context()))})
				_ = out.Event(sse.Event{Data: []byte("[DONE]")})
			}
			return it.err
		}
		if !d.empty() {
			if err := send(f.chunk(it.run, d)); err != nil {
				return err
			}
		}
		if choices[it.run].reply == nil {
			return nil
		}
		if err := send(f.end(it.run, choices[it.run])); err != nil {
			return err
		}
		if left--; left > 0 {
			return nil
		}
		if k.body.StreamOptions != nil && has(k.body.StreamOptions.IncludeUsage) {
			if err := send(f.usage(totalUsage(choices, or(k.body.N, 1)))); err != nil {
				return err
			}
		}
		return out.Event(sse.Event{Data: []byte("[DONE]")})
	})
	if left == 0 {
		return nil // a client that leaves now leaves nothing behind
	}
	return err
}

// idSeparator stands between the ids of the runs in a completion's id; run ids do not contain it.
const idSeparator = "."

func (k *completion) choice(i int, run string) *choice {
	c := &choice{trim: k.trim, hideThinking: k.hideThinking}
	if k.calls {
		// With a deadline an answer under way may be replaced by an earlier one, and half a call cannot be taken back.
		c.calls = &callReader{run: run, whole: k.runs[i].Budget.Deadline > 0, stops: k.runs[i].Stop}
	}
	return c
}

// choice is one of a completion's answers, as far as its events have come.
type choice struct {
	trim         bool
	hideThinking bool
	thinking     strings.Builder
	content      string
	calls        *callReader // nil: the answer holds none
	logProbs     []anytime.TokenLogProb
	reply        *anytime.Reply // once it has ended
}

// delta is what an event adds to a choice.
type delta struct {
	thinking string
	content  string
	calls    []callDelta
	reset    bool // content replaces the content so far
	offset   int  // characters of content before it
	logProbs []anytime.TokenLogProb
}

func (d delta) empty() bool {
	return d.thinking == "" && d.content == "" && d.calls == nil && !d.reset && len(d.logProbs) == 0
}

// take adds an event. The error of a run that failed is a *anytime.RunError.
func (c *choice) take(e store.Event) (d delta, err error) {
	var text anytime.TextData
	switch e.Type {
	case anytime.EventThinking:
		if err := json.Unmarshal(e.Data, &text); err != nil {
			return d, fmt.Errorf("read event %d: %w", e.Offset, err)
		}
		if !c.hideThinking {
			c.thinking.WriteString(text.Text)
			d.thinking = text.Text
		}
	case anytime.EventAnswer:
		if err := json.Unmarshal(e.Data, &text); err != nil {
			return d, fmt.Errorf("read event %d: %w", e.Offset, err)
		}
		d = c.add(text.Text, text.Reset)
		d.logProbs = text.LogProbs
		if text.Reset {
			c.logProbs = nil
		}
		c.logProbs = append(c.logProbs, text.LogProbs...)
	case anytime.EventDone:
		c.reply = &anytime.Reply{}
		if err := json.Unmarshal(e.Data, c.reply); err != nil {
			return d, fmt.Errorf("read event %d: %w", e.Offset, err)
		}
		d = c.settle()
		if c.calls != nil {
			c.calls.cut = c.finishReason() == api.FinishReasonLength
			d.content += c.calls.end()
		}
	case anytime.EventError:
		var failure anytime.RunError
		if err := json.Unmarshal(e.Data, &failure.ErrorData); err != nil {
			return d, fmt.Errorf("read event %d: %w", e.Offset, err)
		}
		return d, &failure
	}
	return d, nil
}

// add appends to the content, or replaces it.
func (c *choice) add(text string, reset bool) delta {
	reset = reset && c.content != ""
	if reset {
		c.content = ""
	}
	if c.trim && c.content == "" {
		text = strings.TrimLeft(text, " \t\r\n")
	}
	d := delta{content: text, reset: reset, offset: len([]rune(c.content))}
	c.content += text
	if c.calls != nil {
		if reset {
			c.calls.reset()
		}
		d.content, d.calls = c.calls.push(text)
	}
	return d
}

// said is the text and the calls of the answer. A call that a stop string cut is none.
func (c *choice) said() (string, []toolCall) {
	if c.calls == nil {
		return c.content, nil
	}
	calls := c.calls.calls
	if n := len(calls); n > 0 && !calls[n-1].complete && c.finishReason() != api.FinishReasonLength {
		calls = calls[:n-1]
	}
	if len(calls) == 0 {
		return c.calls.content, nil
	}
	return strings.TrimSpace(c.calls.content), calls
}

// settle makes the content what the reply says: in a reply at the deadline it may be an earlier answer than the one under way.
func (c *choice) settle() delta {
	whole := c.reply.Summary
	if c.trim {
		whole = strings.TrimLeft(whole, " \t\r\n")
	}
	rest, ok := strings.CutPrefix(whole, c.content)
	switch {
	case strings.TrimSpace(whole) == strings.TrimSpace(c.content):
		return delta{}
	case ok:
		return c.add(rest, false)
	default:
		return c.add(whole, true)
	}
}

// finishReason is OpenAI's: whether the answer, not the thinking, was cut.
func (c *choice) finishReason() api.FinishReason {
	switch c.reply.Stop.Answer {
	case "stop", "checkpoint":
		switch {
		case c.reply.Answer == nil:
		case c.calls != nil && len(c.calls.calls) > 0 && c.calls.calls[0].complete:
			return api.FinishReasonToolCalls
		default:
			return api.FinishReasonStop
		}
	}
	return api.FinishReasonLength
}

func (c *choice) report() *api.BudgetReport {
	r := c.reply
	return &api.BudgetReport{
		Limit: r.Stop.Limit, Used: r.Usage.ThinkingTokens, Forced: r.Stop.Forced, Cause: api.Cause(r.Stop.Cause),
		AnswerLatencyMs: float32(r.Timings.AnswerLatencyMS),
	}
}

// thought is the thinking for a reply; nil: none to show.
func (c *choice) thought() *string {
	if c.thinking.Len() == 0 {
		return nil
	}
	return new(c.thinking.String())
}

// totalUsage adds up the choices, n in a row to each prompt, which counts once, as OpenAI counts it.
func totalUsage(choices []*choice, n int) api.CompletionUsage {
	var u api.CompletionUsage
	for i, c := range choices {
		if i%n == 0 {
			u.PromptTokens += c.reply.Usage.PromptTokens
			u.PromptTokensDetails.CachedTokens += c.reply.Usage.CachedTokens
		}
		u.CompletionTokens += c.reply.Usage.ThinkingTokens + c.reply.Usage.SummaryTokens
		u.CompletionTokensDetails.ReasoningTokens += c.reply.Usage.ThinkingTokens
	}
	u.TotalTokens = u.PromptTokens + u.CompletionTokens
	return u
}

// chatControl makes the completion that is under way answer now.
func (s *Server) chatControl(w http.ResponseWriter, c *call) error {
	var body api.ControlRequest
	if err := c.into(&body); err != nil {
		return err
	}
	_, ids, ok := strings.Cut(body.Id, "-")
	if !ok || !strings.HasPrefix(body.Id, chatPrefix) && !strings.HasPrefix(body.Id, textPrefix) {
		return store.ErrNotFound
	}
	var runs []string
	for id := range strings.SplitSeq(ids, idSeparator) {
		run, err := s.own(c, id)
		if err != nil {
			return err
		}
		runs = append(runs, run.ID)
	}
	running := 0
	for _, id := range runs {
		switch err := s.cfg.Solver.Interrupt(c.Context(), id); {
		case err == nil:
			running++
		case !errors.Is(err, anytime.ErrNotRunning):
			return err
		}
	}
	if running == 0 {
		return anytime.ErrNotRunning
	}
	return s.writeJSON(w, http.StatusOK, api.ControlReply{Id: body.Id, Action: string(body.Action), Success: true})
}
