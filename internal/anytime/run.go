package anytime

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"anytime/internal/budget"
	"anytime/internal/decode"
	"anytime/internal/decode/prompt"
	"anytime/internal/grade"
	"anytime/internal/store"
)

// run is one thought under way. Its goroutine owns all fields but those that are said to be fixed or shared.
type run struct {
	// Fixed once admitted.
	solver   *Solver
	id       string
	req      Request
	log      *slog.Logger
	ctx      context.Context
	cancel   context.CancelCauseFunc
	commands chan command
	finished chan struct{} // closed when reply or failure is set
	told     atomic.Bool   // its end, to whoever looks

	reply   Reply
	failure *ErrorData
	taken   bool // neither is, or neither is kept: another server executes it now, or the next process will

	// Fixed once prepared.
	model        *Model
	modelID      string
	release      func()
	family       prompt.Family
	prompt       prompt.Prompt
	promptTokens int
	closeTokens  int  // that close the thinking, at most
	cutTokens    int  // likewise, if it is cut
	roomy        bool // the thinking's limit is the budget's, not what the context leaves
	deadline     time.Time
	late         bool // the deadline passed while the model was loading

	door bool // it may be refused: nobody was promised anything yet

	recorder *recorder
	meter    *budget.Meter
	load     *load  // of its engine
	share    *claim // its part in it
	thought  thought
	recalled int          // thinking tokens with which it began
	start    int          // of these, those before an extension
	earlier  []Checkpoint // of stretches before an extension
	resumed  bool         // after a restart of the server
	begun    bool         // its first event is kept

	seq    decode.Sequence
	base   int // thinking tokens in seq's prompt
	cause  budget.Cause
	closed bool // the model closed its thinking, and its mark is in seq
	tasks  tasks

	link    trace.SpanContext // the span of the request that started it, where there is one
	timings Timings
	usage   Usage
	account account

	workers sync.WaitGroup // goroutines that read forks
}

// command is what others ask of a run: to be cut, for an answer on the way, or why it is as it is. Its channels are buffered.
type command struct {
	cut     budget.Cause
	peek    chan peeked
	explain chan *Explanation
}

type peeked struct {
	checkpoint Checkpoint
	err        error
}

var (
	errCancelled = errors.New("cancelled")
	errDeleted   = fmt.Errorf("deleted: %w", errCancelled)
	errTaken     = errors.New("the run is another server's")
	errLate      = errors.New("the deadline has passed")
)

// lateMargin is how long before the deadline the reply is finished whatever there is: it must still be committed and sent.
const lateMargin = 40 * time.Millisecond

// prepare finds the model, renders the prompt, opens the sequence and the account. Its errors are the client's to see.
func (r *run) prepare(ctx context.Context, t thought) (err error) {
	r.thought, r.recalled, r.link = t, t.tokens, trace.SpanContextFromContext(ctx)
	loading := ctx
	if d := r.req.Budget.Deadline; d > 0 {
		r.deadline = r.req.Arrived.Add(d)
		until := r.deadline.Add(-min(lateMargin, d/4))
		var cancel context.CancelFunc
		loading, cancel = context.WithDeadlineCause(ctx, until, errLate)
		defer cancel()
		if soon := time.Now().Add(time.Second); r.door && until.Before(soon) {
			until = soon // to find out what deadline could be met
		}
		ctx, cancel = context.WithDeadlineCause(ctx, until, errLate)
		defer cancel()
	}
	defer func() {
		switch {
		// Where both end at the same moment, either may be the first to say so.
		case err == nil || !errors.Is(context.Cause(loading), errLate) && !errors.Is(context.Cause(ctx), errLate):
		case !r.door:
			r.late, err = true, nil
			if r.modelID == "" {
				r.modelID = r.req.Model
			}
		case errors.Is(err, context.DeadlineExceeded):
			err = &DeadlineError{Deadline: r.req.Budget.Deadline, Retry: time.Second}
		}
	}()
	if r.model, r.release, err = r.solver.cfg.Models.Acquire(loading, r.req.Model); err != nil {
		return err
	}
	r.modelID = r.model.ID
	if err := r.render(); err != nil {
		return err
	}
	if err := r.model.Engine.Check(r.plan(false, 1).Span); err != nil {
		return err
	}
	parts := slices.Concat(r.prompt.Parts, r.thought.parts)
	tokens, err := r.model.Engine.Tokenize(ctx, parts...)
	if err != nil {
		return err
	}
	r.promptTokens = len(tokens) - r.thought.tokens
	r.usage.PromptTokens = r.promptTokens
	if len(r.thought.parts) > 0 { // text that was put into the thought is no part of the prompt
		asked, err := r.model.Engine.Tokenize(ctx, r.prompt.Parts...)
		if err != nil {
			return err
		}
		r.usage.PromptTokens = len(asked)
	}
	closing, err := r.model.Engine.Tokenize(ctx, slices.Concat(r.closing(true, false), r.closing(true, true))...)
	if err != nil {
		return err
	}
	r.closeTokens = len(closing)
	if closing, err = r.model.Engine.Tokenize(ctx, r.closing(false, false)...); err != nil {
		return err
	}
	r.cutTokens = len(closing)
	limit, err := r.limit()
	if err != nil {
		return err
	}
	r.meter = budget.NewMeter(limit, r.req.Arrived, r.model.MaxThinking+r.start, r.model.Pace, r.cutTokens,
		r.model.Length.Reserve(r.reserve()))
	r.meter.Count(t.tokens)
	if err := r.join(); err != nil {
		return err
	}
	r.timings.OpenedMS = r.elapsed()
	return r.open(ctx)
}

func (r *run) render() error {
	r.family = r.model.Renderer.Family()
	if raw := r.req.Raw; raw != "" {
		opened := strings.LastIndex(raw, strings.TrimSpace(r.family.Open))
		closed := -1
		for _, c := range r.family.Close {
			closed = max(closed, strings.LastIndex(raw, c))
		}
		r.prompt = prompt.Prompt{Parts: []decode.Part{decode.Text(raw)}, Thinking: opened > closed}
		return nil
	}
	var err error
	r.prompt, err = r.model.Renderer.Render(r.req.Messages, r.req.Template)
	return err
}

// reserve is how many tokens are kept for an answer that may be longer where there is room and time; of MaxTokens at most half.
func (r *run) reserve() int {
	n := min(r.req.AnswerTokens, r.solver.cfg.AnswerTokens)
	if r.req.MaxTokens > 0 {
		n = min(n, (r.req.MaxTokens+1)/2)
	}
	return n
}

// limit is the request's budget within what the context and MaxTokens leave for thinking.
func (r *run) limit() (budget.Budget, error) {
	b := r.req.Budget
	r.roomy = true
	if r.req.MaxTokens > 0 {
		b = b.Tighter(budget.Budget{Tokens: max(0, r.req.MaxTokens-r.reserve())})
	}
	if n := r.model.Engine.Info().ContextTokens; n > 0 {
		room := n - r.promptTokens - r.closeTokens - r.reserve()
		if room < r.thought.tokens && n-r.promptTokens-r.closeTokens-r.thought.tokens < 1 {
			return b, fmt.Errorf("%w: %d tokens of prompt and thinking, and %d to close the thinking, leave no room for an answer in %d",
				decode.ErrContextFull, r.promptTokens+r.thought.tokens, r.closeTokens, n)
		}
		if room < b.Tighter(budget.Budget{Tokens: r.model.MaxThinking}).Tokens {
			b = b.Tighter(budget.Budget{Tokens: max(0, room)})
			r.roomy = false
		}
	}
	return b, nil
}

// open starts the thinking's sequence from the prompt and all thinking so far.
func (r *run) open(ctx context.Context) error {
	parts := slices.Concat(r.prompt.Parts, r.thought.parts)
	if r.thought.reopen {
		parts = append(parts, decode.Text(reopening))
	}
	seq, err := r.model.Engine.Open(ctx, decode.Request{
		Prompt: parts, Adapter: r.model.Adapter, Seed: r.seed(0), Priority: r.priority(decode.ClassThinking),
	})
	if err != nil {
		return err
	}
	r.seq, r.base = seq, r.thought.tokens
	return nil
}

func (r *run) priority(c decode.Class) decode.Priority {
	return decode.Priority{Class: c, Deadline: r.deadline}
}

// seed of the n-th sequence of the run; the thinking is the 0th.
func (r *run) seed(n uint64) uint64 {
	if r.req.Seed == nil {
		s := uint64(r.req.Arrived.UnixNano())
		r.req.Seed = &s
	}
	const odd = 0x9e3779b97f4a7c15 // 2^64 over the golden ratio: seeds of neighbours are far apart
	return *r.req.Seed + n*odd
}

func (r *run) elapsed() float64 { return ms(time.Since(r.req.Arrived)) }

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// close gives everything back.
func (r *run) close() {
	r.cancel(nil)
	r.workers.Wait()
	if r.seq != nil {
		_ = r.seq.Close() // nothing depends on it any more
	}
	if r.load != nil {
		r.load.leave(r.share)
		r.solver.release(r.load)
	}
	if r.release != nil {
		r.release()
	}
}

// main is the run's goroutine.
func (r *run) main() {
	defer r.close()
	if !r.begun {
		r.recorder.event(EventRun, r.opening())
	}
	if r.thought.reopen {
		r.thought.addText(reopening)
		r.thought.text += reopening
		r.thought.reopen = false
		r.recorder.text(EventThinking, TextData{Text: reopening, Tokens: r.thought.tokens}, nil)
	}
	r.tasks = newTasks(r)
	defer r.tasks.stop()
	var final answered
	err := errLate
	if !r.late {
		err = r.think()
		r.timings.CutMS = r.elapsed()
		if err == nil {
			r.stopped()
			final, err = r.answer()
		}
	}
	switch {
	case err == nil:
	case errors.Is(err, errLate):
		r.cause = budget.CauseDeadline
		r.stopped()
		final.how = cmp.Or(final.how, "deadline")
		final = r.fallback(final)
	case errors.Is(context.Cause(r.ctx), errTaken):
		r.recorder.leave()
		r.taken = true
		return
	case errors.Is(err, errDeleted):
		r.fail(ErrorData{Code: "cancelled", Message: "the run was cancelled at its client's request"})
		return
	case errors.Is(err, errCancelled):
		r.fail(ErrorData{Code: "cancelled", Message: "the run was cancelled; its thinking is kept and can be extended"})
		return
	case r.solver.ctx.Err() != nil:
		r.taken = true // by the next process
		return
	default:
		r.log.Error("run lost its engine", "error", err)
		r.cause = cmp.Or(r.cause, budget.CauseEngine)
		if final = r.fallback(final); final.answer == nil {
			r.fail(ErrorData{Code: "engine", Message: "the engine failed before there was an answer to give"})
			return
		}
	}
	r.finish(final)
}

// opening is the run's first event, or an extension's.
func (r *run) opening() RunData {
	data := RunData{ID: r.id, Model: r.modelID, Budget: r.req.Budget, Created: r.req.Arrived}
	if r.meter != nil {
		data.Limit = r.meter.Limit()
	}
	return data
}

// finish commits the reply.
func (r *run) finish(final answered) {
	r.usage.ThinkingTokens = r.thought.tokens
	r.timings.DoneMS = r.elapsed()
	if !r.deadline.IsZero() {
		r.timings.DeadlineLeftMS = ms(time.Until(r.deadline))
	}
	r.reply = Reply{
		ID: r.id, Model: r.modelID, Answer: final.answer, Summary: final.summary, Thinking: r.thought.text,
		Stop:        Stop{Cause: r.cause, Forced: r.cause.Forced(), Answer: final.how},
		Confidence:  final.confidence,
		Checkpoints: slices.Concat(r.earlier, r.tasks.checkpoints),
		Usage:       r.usage, Timings: r.timings,
	}
	if r.meter != nil {
		r.reply.Stop.Limit = r.meter.Limit()
		r.reply.Usage.Approximate = !r.model.Engine.Info().Capabilities.TokenIDs
	}
	if r.reply.Checkpoints == nil {
		r.reply.Checkpoints = []Checkpoint{}
	}
	kept := r.reply.Checkpoints
	if final.answer != nil { // an extension shows this answer among those taken on the way
		kept = append(slices.Clip(kept), Checkpoint{
			Tokens: r.thought.tokens, Answer: *final.answer, Summary: final.summary, Confidence: final.confidence, ElapsedMS: r.timings.DoneMS,
		})
	}
	r.solver.cfg.Metrics.done(&r.reply)
	r.trace(&r.reply, nil)
	r.end(EventDone, r.reply, store.Change{State: store.Finished, Reply: mustJSON(r.reply), Request: r.kept(kept)})
	if !r.deadline.IsZero() {
		r.solver.cfg.Metrics.overshot(time.Since(r.deadline))
	}
}

func (r *run) fail(e ErrorData) {
	r.failure = &e
	r.solver.cfg.Metrics.failed(e.Code)
	r.timings.DoneMS = r.elapsed()
	r.trace(nil, &e)
	r.end(EventError, e, store.Change{State: store.Failed, Request: r.kept(slices.Concat(r.earlier, r.tasks.checkpoints))})
}

// kept is the record with which an extension begins.
func (r *run) kept(checkpoints []Checkpoint) []byte {
	return mustJSON(record{
		Request: r.req, Cause: r.cause, Closed: r.cause == budget.CauseNatural, Checkpoints: checkpoints,
		Answered: r.usage.CheckpointTokens + r.usage.SummaryTokens, Explanation: r.explanation(),
	})
}

// end waits for the last commit, but not past the deadline, nor for ever if the store is away.
func (r *run) end(kind string, data any, change store.Change) {
	const patience = 2 * time.Second
	until := time.Now().Add(patience)
	if !r.deadline.IsZero() && r.deadline.Before(until) {
		until = r.deadline
	}
	ctx, cancel := context.WithDeadline(context.Background(), until)
	defer cancel()
	r.tellEnded() // before anyone hears of the end, who may ask the next question at once
	r.told.Store(true)
	r.taken = r.recorder.finish(ctx, kind, data, change) // or a client would be told what nobody will know
}

// tellEnded tells whoever started the run that it has ended, the first time.
func (r *run) tellEnded() {
	if tell := r.req.Ended; tell != nil {
		r.req.Ended = nil
		tell(r.thought.tokens - r.recalled)
	}
}

// equal says whether two answers are the same one.
var equal = grade.Equal
