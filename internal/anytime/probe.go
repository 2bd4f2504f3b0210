package anytime

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"anytime/internal/decode"
	"anytime/internal/summarize"
)

// Where all deadlines are refused nothing is measured, and an engine that was slow once would be thought slow for ever. So a refusal
// makes the engine be measured anew, with a little thought of nobody's, if there is no deadline that it could disturb.
const (
	probeEvery  = 2 * time.Second
	probeTime   = 5 * time.Second // at most
	probePrompt = 48              // words, drawn anew so that no cache has them
	probeThink  = 32              // tokens
	probeAnswer = 17
)

// reprobe measures the engine that refused a run anew, if that is worth while.
func (s *Solver) reprobe(r *run, err error) {
	var refused *DeadlineError
	if r.load == nil || !errors.As(err, &refused) || !r.load.idle(time.Now()) {
		return
	}
	release, l := r.release, s.load(r.model)
	r.release = nil // the model, and what is known of its load, are kept until the probe has ended
	s.wg.Go(func() {
		defer release()
		defer s.release(l)
		ctx, cancel := context.WithTimeout(s.ctx, probeTime)
		defer cancel()
		if err := r.probe(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("engine could not be measured", "error", err)
		}
	})
}

// idle says whether there is nobody with a deadline, and notes that the engine is measured now; false if it just was.
func (l *load) idle(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.probed) < probeEvery {
		return false
	}
	for _, c := range l.claims {
		if !c.deadline.IsZero() {
			return false
		}
	}
	l.probed = now
	return true
}

// probe thinks about nothing, answers, and measures both.
func (r *run) probe(ctx context.Context) error {
	var text strings.Builder
	for range probePrompt {
		fmt.Fprintf(&text, " %d", rand.IntN(10)) //nolint:gosec // not a secret
	}
	seq, err := r.model.Engine.Open(ctx, decode.Request{Prompt: []decode.Part{decode.Text(text.String())}})
	if err != nil {
		return err
	}
	defer seq.Close()
	if err := seq.Decode(decode.Span{MaxTokens: probeThink, MinTokens: probeThink}); err != nil {
		return err
	}
	var last time.Time
	for ended := false; !ended; {
		c, err := seq.Next(ctx)
		if err != nil {
			return err
		}
		now := time.Now()
		if p := c.Prefill; p != nil {
			r.model.Pace.ObservePrefill(p.Tokens-p.Cached, p.Took)
		} else if !last.IsZero() && r.load.undisturbed(last) {
			r.model.Pace.ObserveThinking(len(c.Tokens), now.Sub(last))
		}
		last, ended = now, c.End != ""
	}
	fork, err := seq.Fork(decode.Head, decode.ForkOptions{Priority: decode.Priority{Class: decode.ClassAnswer}})
	if err != nil {
		return err
	}
	defer fork.Close()
	answer := decode.Span{MaxTokens: probeAnswer, MinTokens: probeAnswer}
	s, err := summarize.Take(ctx, fork, summarize.Plan{Close: r.closing(false, false), Span: answer}, nil)
	if s.Tokens > 0 {
		r.model.Pace.ObserveOverhead(s.Prefill.Tokens-s.Prefill.Cached, s.First)
		r.model.Pace.ObserveSummary(s.Tokens-1, s.Took-s.First)
	}
	return err
}
