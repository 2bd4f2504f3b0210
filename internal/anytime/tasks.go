package anytime

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"anytime/internal/budget"
	"anytime/internal/decode"
	"anytime/internal/summarize"
)

// task is an answer being taken on the way.
type task struct {
	at      int // thinking tokens that it is taken from
	cancel  context.CancelFunc
	peek    chan peeked // who asked for it; nil: the schedule
	done    bool
	beside  spell // thinking while it was taken
	summary summarize.Summary
	elapsed float64 // when it was there
	err     error
}

func (t *task) cost() time.Duration { return t.summary.Took }

// tasks takes the answers on the way: each in a fork of the thinking, read by a goroutine of its own.
type tasks struct {
	run         *run
	results     chan *task
	pending     []*task // by position
	armed       int     // position up to which the schedule's forks were asked for
	checkpoints []Checkpoint
	rule        *budget.Rule
	settled     *Checkpoint // on which the rule ended the thinking, if it is whole
	forks       uint64
}

// ahead is how many of the schedule's forks are asked for before the thinking gets there, so that none is missed.
const ahead = 3

func newTasks(r *run) tasks {
	return tasks{run: r, results: make(chan *task), armed: r.thought.tokens, rule: r.req.EarlyStop.Rule(equal)}
}

// again takes up the schedule after the sequence was opened anew.
func (ts *tasks) again(r *run) tasks {
	fresh := newTasks(r)
	fresh.checkpoints, fresh.rule, fresh.settled, fresh.forks = ts.checkpoints, ts.rule, ts.settled, ts.forks
	return fresh
}

// schedule is the request's, or one that lets early stopping look now and then.
func (ts *tasks) schedule() budget.Schedule {
	s := ts.run.req.Checkpoints
	if s.Every == 0 && len(s.At) == 0 && ts.run.req.EarlyStop != (budget.EarlyStop{}) {
		const looks, least = 16, 32
		s.Every = max(least, ts.run.meter.Limit()/looks)
	}
	return s
}

// arm asks for the next of the schedule's forks. One at the very limit would be the final answer.
func (ts *tasks) arm() {
	schedule := ts.schedule()
	waiting := 0
	for _, t := range ts.pending {
		if t.at > ts.run.meter.Used() {
			waiting++
		}
	}
	for ; waiting < ahead; waiting++ {
		at, ok := schedule.Next(ts.armed)
		if !ok || at >= ts.run.meter.Limit() {
			return
		}
		ts.armed = at
		ts.take(at, nil)
	}
}

// peek takes an answer as soon as may be, for someone who waits for it.
func (ts *tasks) peek(reply chan peeked) { ts.take(ts.run.meter.Used()+1, reply) }

func (ts *tasks) take(at int, reply chan peeked) {
	r := ts.run
	ts.forks++
	r.account.forks++
	ctx, cancel := context.WithCancel(r.ctx)
	t := &task{at: at, cancel: cancel, peek: reply}
	ts.pending = append(ts.pending, t)
	slices.SortStableFunc(ts.pending, func(a, b *task) int { return cmp.Compare(a.at, b.at) })
	// Not urgent: the answer that a client waits for, with a deadline, goes first.
	fork, err := r.seq.Fork(at-r.base, decode.ForkOptions{Seed: r.seed(1<<32 + ts.forks), Priority: decode.Priority{Class: decode.ClassAnswer}})
	results := ts.results
	plan := r.plan(false, r.reserve())
	r.workers.Go(func() {
		if err == nil {
			t.summary, t.err = summarize.Take(ctx, fork, plan, nil)
			_ = fork.Close()
		} else {
			t.err = err
		}
		t.elapsed = r.elapsed()
		select {
		case results <- t:
		case <-r.ctx.Done():
		}
	})
}

// settle takes in a result, reports the checkpoints that are complete in their order, and says whether they end the thinking.
func (ts *tasks) settle(t *task) (cause budget.Cause, settled bool) {
	t.cancel()
	t.done = true
	r := ts.run
	for len(ts.pending) > 0 && ts.pending[0].done {
		t := ts.pending[0]
		ts.pending = ts.pending[1:]
		if t.err != nil {
			if t.peek != nil {
				t.peek <- peeked{err: t.err}
			}
			if !errors.Is(t.err, context.Canceled) && !errors.Is(t.err, decode.ErrNotReached) {
				r.log.Warn("no answer at a checkpoint", "tokens", t.at, "error", t.err)
			}
			continue
		}
		r.spend(t.summary.Tokens)
		r.observe(t.summary)
		r.account.checkpoints = append(r.account.checkpoints, r.account.cost(t.at, t.summary, t.beside))
		c := Checkpoint{
			Tokens: t.at, Answer: t.summary.Answer, Summary: t.summary.Text, Confidence: t.summary.Confidence,
			ElapsedMS: t.elapsed, CostMS: ms(t.cost()),
		}
		whole := t.summary.Ended != decode.EndLimit && t.summary.Ended != decode.EndContext
		if r.req.Structured && !whole {
			c.Answer = "" // half a JSON text is none
		}
		ts.checkpoints = append(ts.checkpoints, c)
		r.recorder.event(EventCheckpoint, c)
		r.solver.cfg.Metrics.checkpoint(t.cost())
		if t.peek != nil {
			t.peek <- peeked{checkpoint: c}
		}
		if by, ok := ts.rule.Observe(c.Answer, c.Confidence); ok && !settled {
			cause, settled = by, true
			if whole {
				ts.settled = &c
			}
		}
	}
	return cause, settled
}

// conclude gives up the forks that the thinking, which has ended, did not reach; who waits for one gets an answer from its end.
func (ts *tasks) conclude() {
	end := ts.run.meter.Used()
	var waiting []chan peeked
	ts.pending = slices.DeleteFunc(ts.pending, func(t *task) bool {
		if t.at <= end {
			return false
		}
		t.cancel()
		if t.peek != nil {
			waiting = append(waiting, t.peek)
		}
		return true
	})
	for _, reply := range waiting {
		ts.take(end, reply)
	}
}

// stop gives up all of them.
func (ts *tasks) stop() {
	for _, t := range ts.pending {
		t.cancel()
		if t.peek != nil {
			t.peek <- peeked{err: ErrNotRunning}
		}
	}
	ts.pending = nil
}

// newest returns the last answer there is.
func (ts *tasks) newest() (Checkpoint, bool) {
	all := slices.Concat(ts.run.earlier, ts.checkpoints)
	for _, c := range slices.Backward(all) {
		if c.Answer != "" {
			return c, true
		}
	}
	return Checkpoint{}, false
}
