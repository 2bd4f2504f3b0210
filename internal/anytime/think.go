package anytime

import (
	"context"
	"errors"
	"time"

	"anytime/internal/budget"
	"anytime/internal/decode"
)

// arrival is a chunk of the thinking, or the end of its engine.
type arrival struct {
	chunk decode.Chunk
	err   error
	at    time.Time
}

// maxReopen is how often a thought whose engine failed is opened again from its tokens.
const maxReopen = 3

// think decodes the thinking until something ends it, and leaves the sequence parked there with r.cause set. Errors: errLate,
// errCancelled, the engine's.
func (r *run) think() error {
	if r.thought.ended {
		return nil
	}
	if !r.prompt.Thinking {
		r.cause = budget.CauseNatural
		return nil
	}
	late := r.lateTimer()
	defer late.Stop()
	last := r.thought.tokens // at the last failure
	for failures := 0; ; failures++ {
		left := r.meter.Limit() - r.meter.Used()
		if left <= 0 {
			r.cause = r.spent()
			return nil
		}
		err := r.decode(left, late.C)
		if r.thought.tokens >= last+comesOn {
			failures = 0
		}
		last = r.thought.tokens
		if err == nil || errors.Is(err, errLate) || errors.Is(err, errCancelled) || r.ctx.Err() != nil || failures == maxReopen {
			return err
		}
		r.account.setbacks.Reopened++
		r.log.Warn("engine failed in mid-thought, going on from the tokens so far", "tokens", r.thought.tokens, "error", err)
		_ = r.seq.Close() // it is dead
		r.tasks.stop()
		r.meter.Count(r.thought.tokens - r.meter.Used()) // what the gate held is decoded again
		if err := r.reopen(late.C); err != nil {
			return err
		}
		r.tasks = r.tasks.again(r)
	}
}

// reopen opens the thinking again. While the engine is away, and there is nothing yet that an answer could be made of, it waits: for the
// engine, as long as nobody wants the run to end.
func (r *run) reopen(late <-chan time.Time) error {
	const pause = time.Second
	for {
		err := r.open(r.ctx)
		if _, ok := r.tasks.newest(); !errors.Is(err, decode.ErrUnavailable) || ok || r.thought.text != "" {
			return err
		}
		select {
		case <-time.After(pause):
		case <-r.ctx.Done():
			return context.Cause(r.ctx)
		case <-late:
			return errLate
		case c := <-r.commands:
			switch {
			case c.explain != nil:
				c.explain <- r.explanation()
			case c.peek != nil:
				c.peek <- peeked{err: err}
			case c.cut == budget.CauseDrain: // the next process may find the engine well
				r.cancel(errTaken)
			default:
				return err
			}
		}
	}
}

// spent says whose limit the thinking has met.
func (r *run) spent() budget.Cause {
	if r.roomy {
		return budget.CauseTokens
	}
	return budget.CauseContext
}

// lateTimer fires when the reply must be finished whatever there is; never without a deadline.
func (r *run) lateTimer() *time.Timer {
	if r.deadline.IsZero() {
		t := time.NewTimer(time.Hour)
		t.Stop()
		return t
	}
	return time.NewTimer(time.Until(r.deadline.Add(-min(lateMargin, r.req.Budget.Deadline/4))))
}

// decode runs one span of thinking to its end.
func (r *run) decode(left int, late <-chan time.Time) error {
	gate := decode.Gate{Markers: r.family.Close}
	var loop budget.Loop
	var last time.Time
	var thinking time.Duration // spent on tokens
	auto := budget.NewAuto(r.meter)
	explicit := r.req.Checkpoints.Every > 0 || len(r.req.Checkpoints.At) > 0

	r.load.decode(r.share, 1)
	defer r.load.decode(r.share, 0)
	r.tasks.arm()
	span := decode.Span{MaxTokens: left, Until: r.family.Close, Sampling: r.req.Sampling}
	span.Sampling.Grammar, span.Sampling.LogitBias = "", nil
	if err := r.seq.Decode(span); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(r.ctx)
	defer stop()
	arrivals := make(chan arrival)
	seq := r.seq
	r.workers.Go(func() { pump(ctx, seq, arrivals) })

	cut := time.NewTimer(time.Hour)
	defer cut.Stop()
	// The engine may have nothing to say for long, and meanwhile others come: look again soon, however far off the cut.
	aim := func() (due bool) {
		cut.Stop()
		if r.deadline.IsZero() || r.cause != "" {
			return false
		}
		r.load.expect(r.share, r.meter)
		now := time.Now()
		left := r.meter.CutAt(now).Sub(now)
		cut.Reset(min(left, balanceEvery))
		return left <= 0
	}
	aim()
	for {
		select {
		case <-r.ctx.Done():
			return context.Cause(r.ctx)
		case <-late:
			r.show(gate.Flush())
			return errLate
		case <-cut.C:
			if aim() {
				r.cut(budget.CauseDeadline)
			}
		case c := <-r.commands:
			switch {
			case c.explain != nil:
				c.explain <- r.explanation()
			case c.peek != nil:
				r.tasks.peek(c.peek)
			default:
				r.cut(c.cut)
			}
		case t := <-r.tasks.results:
			if cause, settled := r.tasks.settle(t); settled {
				r.cut(cause)
			}
			auto.Observe(thinking, t.cost())
		case a := <-arrivals:
			if a.err != nil {
				return a.err
			}
			if p := a.chunk.Prefill; p != nil {
				r.prefilled(*p)
				last = time.Time{} // tokens that come with it are not timed
			}
			r.account.setback(a.chunk)
			n := len(a.chunk.Tokens)
			r.meter.Count(n)
			if n > 0 {
				if r.timings.FirstThinkingMS == 0 {
					r.timings.FirstThinkingMS = ms(a.at.Sub(r.req.Arrived))
				}
				if !last.IsZero() {
					thinking += a.at.Sub(last)
					r.account.thought(n, a.at.Sub(last), r.tasks.pending, r.meter.Used())
					if r.load.undisturbed(last) {
						r.model.Pace.ObserveThinking(n, a.at.Sub(last))
					}
				}
				last = a.at
				r.timings.PerThinkingMS = ms(thinking) / float64(max(1, r.meter.Used()-r.base))
			}
			passed, _ := gate.Push(a.chunk.Tokens...)
			for _, t := range a.chunk.Tokens {
				if loop.Observe(key(t)) {
					r.cut(budget.CauseLoop)
				}
			}
			if a.chunk.End != "" {
				if a.chunk.End != decode.EndUntil {
					passed = append(passed, gate.Flush()...)
				}
				r.show(passed)
				r.ended(a.chunk.End)
				return nil
			}
			r.show(passed)
			if r.load.exceeded(r.share, r.meter.Used()-r.recalled, a.at) {
				r.cut(budget.CauseOverload)
			}
			r.tasks.arm()
			if at, ok := auto.Next(a.at, thinking); ok && !explicit && !at.After(a.at) {
				r.tasks.take(r.meter.Used()+1, nil)
			}
			aim()
		}
	}
}

// pump reads a span's chunks until its end.
func pump(ctx context.Context, seq decode.Sequence, arrivals chan<- arrival) {
	for {
		chunk, err := seq.Next(ctx)
		select {
		case arrivals <- arrival{chunk, err, time.Now()}:
		case <-ctx.Done():
			return
		}
		if err != nil || chunk.End != "" {
			return
		}
	}
}

// key identifies a token for the loop detection.
func key(t decode.Token) int64 {
	if t.ID >= 0 {
		return int64(t.ID)
	}
	return budget.TextKey(t.Text)
}

// cut ends the thinking for a cause; the first one counts.
func (r *run) cut(cause budget.Cause) {
	if r.cause == "" {
		r.cause = cause
		r.seq.Cut()
	}
}

// ended turns a span's end into the run's cause. The model's own ends, and a limit met, come before a cut that was under way.
func (r *run) ended(end decode.End) {
	switch end {
	case decode.EndUntil:
		r.cause, r.closed = budget.CauseNatural, true
	case decode.EndEOG:
		r.cause = budget.CauseEOSInThinking
	case decode.EndLimit:
		r.cause = r.spent()
	case decode.EndContext:
		r.cause = budget.CauseContext
	}
}

// show adds thinking that passed the gate to the thought and its events.
func (r *run) show(tokens []decode.Token) {
	if len(tokens) == 0 {
		return
	}
	before := len(r.thought.text)
	r.thought.add(tokens)
	r.solver.cfg.Metrics.thought(len(tokens))
	r.recorder.text(EventThinking, TextData{Text: r.thought.text[before:], Tokens: r.thought.tokens}, tokens)
}

func (r *run) prefilled(p decode.Prefill) {
	r.usage.CachedTokens = min(max(r.usage.CachedTokens, p.Cached), r.promptTokens)
	if r.load.undisturbed(time.Now().Add(-p.Took)) {
		r.model.Pace.ObservePrefill(p.Tokens-p.Cached, p.Took)
	}
	if len(r.account.prefills) == 0 {
		r.model.Pace.ObserveCached(p.Cached, p.Tokens)
	}
	r.load.prefilled(r.share)
	r.account.prefills = append(r.account.prefills, PrefillCost{p.Tokens, p.Cached, ms(p.Queued), ms(p.Took)})
}
