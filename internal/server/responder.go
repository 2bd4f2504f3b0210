package server

import (
	"errors"
	"fmt"
	"strings"

	"anytime/api"
	"anytime/internal/anytime"
	"anytime/internal/store"
)

// responder makes a response of its run's events, and of each event those of the response. The same events always make the same, so a
// response can be read, and its stream be gone on with, at any time.
type responder struct {
	reply   api.Response
	failure *anytime.RunError // why the run failed
	run     string
	note    responseNote
	choice  *choice
	begun   bool
	open    bool // the last item is under way
	number  int64
	send    func(kind string, event map[string]any) error // nil: nobody reads
}

func newResponder(run store.Run, note responseNote) *responder {
	r := &responder{reply: note.Response, run: run.ID, note: note, choice: &choice{trim: true, hideThinking: note.Hide}}
	if note.Calls {
		r.choice.calls = &callReader{run: run.ID, whole: note.Whole}
	}
	r.reply.Id, r.reply.Object, r.reply.Model, r.reply.CreatedAt = responseID(run.ID), api.ResponseObjectResponse, run.Model, run.Created.Unix()
	r.reply.Status, r.reply.Output = api.ResponseStatusInProgress, []api.ResponseItem{}
	return r
}

// over reports whether the response has ended.
func (r *responder) over() bool { return r.reply.Status != api.ResponseStatusInProgress }

func (r *responder) emit(kind string, pairs ...any) error {
	if r.send == nil {
		return nil
	}
	event := map[string]any{}
	for i := 0; i < len(pairs); i += 2 {
		event[pairs[i].(string)] = pairs[i+1]
	}
	return r.send(kind, event)
}

// take adds an event of the run.
func (r *responder) take(e store.Event) error {
	if r.over() {
		return nil // of an extension, which the response does not show
	}
	if !r.begun {
		r.begun = true
		for _, kind := range []string{"response.created", "response.in_progress"} {
			if err := r.emit(kind, "response", r.reply); err != nil {
				return err
			}
		}
	}
	d, err := r.choice.take(e)
	var failure *anytime.RunError
	if errors.As(err, &failure) {
		return r.fail(failure)
	}
	if err == nil && d.thinking != "" {
		err = r.think(d.thinking)
	}
	if err == nil && d.reset {
		err = r.void()
	}
	if err == nil && d.content != "" {
		err = r.say(d.content)
	}
	for _, call := range d.calls {
		if err == nil {
			err = r.call(call)
		}
	}
	if err == nil && r.choice.reply != nil {
		err = r.finish()
	}
	return err
}

// item returns the item under way, if it is of a kind.
func (r *responder) item(kind string) *api.ResponseItem {
	if n := len(r.reply.Output); r.open && n > 0 && r.reply.Output[n-1].Type == kind {
		return &r.reply.Output[n-1]
	}
	return nil
}

// add closes the item under way and opens another.
func (r *responder) add(item api.ResponseItem, prefix string) (*api.ResponseItem, error) {
	if err := r.done("completed"); err != nil {
		return nil, err
	}
	n := len(r.reply.Output)
	item.Id, item.Status = fmt.Sprintf("%s_%s_%d", prefix, strings.TrimPrefix(r.run, runPrefix), n), new("in_progress")
	r.reply.Output, r.open = append(r.reply.Output, item), true
	return &r.reply.Output[n], r.emit("response.output_item.added", "output_index", n, "item", item)
}

// part is the one part that a message or a thought has.
func part(kind api.ResponsePartType, text string) api.ResponsePart {
	p := api.ResponsePart{Type: kind, Text: text}
	if kind == api.ResponsePartTypeOutputText {
		p.Annotations, p.Logprobs = &[]any{}, &[]any{}
	}
	return p
}

// on tells of the item under way.
func (r *responder) on(item *api.ResponseItem, kind string, pairs ...any) error {
	return r.emit(kind, append(pairs, "item_id", item.Id, "output_index", len(r.reply.Output)-1)...)
}

func (r *responder) think(text string) (err error) {
	item := r.item("reasoning")
	if item == nil {
		if item, err = r.add(api.ResponseItem{Type: "reasoning", Summary: &[]api.ResponsePart{}}, "rs"); err != nil {
			return err
		}
		if r.note.Summary {
			item.Summary = &[]api.ResponsePart{part(api.ResponsePartTypeSummaryText, "")}
			err = r.on(item, "response.reasoning_summary_part.added", "summary_index", 0, "part", (*item.Summary)[0])
		} else {
			item.Content = &[]api.ResponsePart{part(api.ResponsePartTypeReasoningText, "")}
			err = r.on(item, "response.content_part.added", "content_index", 0, "part", (*item.Content)[0])
		}
		if err != nil {
			return err
		}
	}
	if r.note.Summary {
		(*item.Summary)[0].Text += text
		return r.on(item, "response.reasoning_summary_text.delta", "summary_index", 0, "delta", text)
	}
	(*item.Content)[0].Text += text
	return r.on(item, "response.reasoning_text.delta", "content_index", 0, "delta", text)
}

func (r *responder) say(text string) (err error) {
	item := r.item("message")
	if item == nil {
		if item, err = r.add(api.ResponseItem{Type: "message", Role: new("assistant"), Content: &[]api.ResponsePart{}}, "msg"); err != nil {
			return err
		}
		item.Content = &[]api.ResponsePart{part(api.ResponsePartTypeOutputText, "")}
		if err := r.on(item, "response.content_part.added", "content_index", 0, "part", (*item.Content)[0]); err != nil {
			return err
		}
	}
	(*item.Content)[0].Text += text
	return r.on(item, "response.output_text.delta", "content_index", 0, "delta", text, "logprobs", []any{})
}

func (r *responder) call(d callDelta) (err error) {
	if d.begins {
		_, err = r.add(api.ResponseItem{Type: "function_call", CallId: &d.id, Name: &d.name, Arguments: new("")}, "fc")
	}
	if item := r.item("function_call"); err == nil && item != nil && d.arguments != "" {
		item.Arguments = new(*item.Arguments + d.arguments)
		err = r.on(item, "response.function_call_arguments.delta", "delta", d.arguments)
	}
	if err == nil && d.ends {
		err = r.done("completed")
	}
	return err
}

// done closes the item under way.
func (r *responder) done(status string) (err error) {
	if !r.open {
		return nil
	}
	r.open = false
	n := len(r.reply.Output) - 1
	item := &r.reply.Output[n]
	item.Status = &status
	switch {
	case item.Type == "function_call":
		err = r.on(item, "response.function_call_arguments.done", "name", *item.Name, "arguments", *item.Arguments)
	case item.Type == "message":
		p := (*item.Content)[0]
		err = errors.Join(
			r.on(item, "response.output_text.done", "content_index", 0, "text", p.Text, "logprobs", []any{}),
			r.on(item, "response.content_part.done", "content_index", 0, "part", p))
	case r.note.Summary:
		p := (*item.Summary)[0]
		err = errors.Join(
			r.on(item, "response.reasoning_summary_text.done", "summary_index", 0, "text", p.Text),
			r.on(item, "response.reasoning_summary_part.done", "summary_index", 0, "part", p))
	default:
		p := (*item.Content)[0]
		err = errors.Join(
			r.on(item, "response.reasoning_text.done", "content_index", 0, "text", p.Text),
			r.on(item, "response.content_part.done", "content_index", 0, "part", p))
	}
	return errors.Join(err, r.emit("response.output_item.done", "output_index", n, "item", *item))
}

// void takes back what was answered: the items stay, so that those behind them keep their places, and are empty.
func (r *responder) void() error {
	if err := r.done("incomplete"); err != nil {
		return err
	}
	for i := range r.reply.Output {
		if item := &r.reply.Output[i]; item.Type != "reasoning" {
			*item = api.ResponseItem{Id: item.Id, Type: "message", Role: new("assistant"), Status: new("incomplete"), Content: &[]api.ResponsePart{}}
		}
	}
	return nil
}

func (r *responder) finish() error {
	status, kind := "completed", "response.completed"
	r.reply.Status = api.ResponseStatusCompleted
	if r.choice.finishReason() == api.FinishReasonLength {
		status, kind = "incomplete", "response.incomplete"
		r.reply.Status = api.ResponseStatusIncomplete
	}
	err := r.done(status)
	if status == "incomplete" {
		r.reply.IncompleteDetails = &api.ResponseCut{Reason: "max_output_tokens"}
	}
	r.reply.Budget = r.choice.report()
	u := totalUsage([]*choice{r.choice}, 1)
	usage := &api.ResponseUsage{InputTokens: u.PromptTokens, OutputTokens: u.CompletionTokens, TotalTokens: u.TotalTokens}
	usage.InputTokensDetails.CachedTokens = u.PromptTokensDetails.CachedTokens
	usage.OutputTokensDetails.ReasoningTokens = u.CompletionTokensDetails.ReasoningTokens
	r.reply.Usage = usage
	return errors.Join(err, r.emit(kind, "response", r.reply))
}

func (r *responder) fail(failure *anytime.RunError) error {
	err := r.done("incomplete")
	r.failure, r.reply.Status = failure, api.ResponseStatusFailed
	if failure.Code == "cancelled" {
		r.reply.Status = api.ResponseStatusCancelled
	} else {
		r.reply.Error = &api.ResponseError{Code: "server_error", Message: failure.Message}
	}
	return errors.Join(err, r.emit("response.failed", "response", r.reply))
}
