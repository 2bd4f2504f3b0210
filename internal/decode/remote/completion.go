package remote

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"anytime/internal/decode"
)

// completion is one request to the server, in a goroutine of its own. It holds a slot until the goroutine has ended, also when the
// sequence wants nothing of it any more. Its fields are guarded by the engine's mu.
type completion struct {
	sequence *sequence
	priority decode.Priority
	cancel   context.CancelFunc
	over     bool // the sequence wants nothing of it any more
	silence  *time.Timer
	began    time.Time
	queued   time.Duration   // before it began
	first    bool            // no token has come
	prefill  *decode.Prefill // as the server told it
	eog      *decode.Token
}

// begin starts a completion of the span at the queue's front. The caller holds mu.
func (s *sequence) begin() {
	e := s.engine
	span := s.queue[0].span
	req := Request{
		Prefix: join(s.pieces), Seed: mix(s.seed, uint64(len(s.pieces)), uint64(s.tries)),
		MaxTokens: span.MaxTokens - s.done, MinTokens: max(0, span.MinTokens-s.done), Until: span.Until, Sampling: span.Sampling,
		TopLogProbs: span.TopLogProbs, Priority: s.priority,
	}
	if s.adapter != nil {
		req.Model = s.adapter.model
	}
	if s.tries > 0 { // the model wants to end, and must not
		req.Sampling.Temperature = max(req.Sampling.Temperature, 1)
	}
	ctx, cancel := context.WithCancel(e.ctx)
	now := time.Now()
	c := &completion{sequence: s, priority: s.priority, cancel: cancel, began: now, queued: now.Sub(s.waits), first: true}
	c.silence = time.AfterFunc(slowStart*e.config.Patience, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if c.over {
			cancel()
		} else {
			c.abandon()
			s.failedTo(fmt.Errorf("the server was silent for %v", time.Since(now).Round(time.Millisecond)))
		}
	})
	s.current = c
	e.running = append(e.running, c)
	e.workers.Go(func() {
		end, err := e.completer.Complete(ctx, req, c.arrived)
		cancel()
		c.silence.Stop()
		e.mu.Lock()
		defer e.mu.Unlock()
		e.running = slices.DeleteFunc(e.running, func(r *completion) bool { return r == c })
		if !c.over {
			c.leave()
			s.ended(c, end, err)
		}
		e.schedule()
	})
}

// leave parts the sequence from the completion; what still comes of it is dropped. The caller holds mu.
func (c *completion) leave() {
	c.over = true
	c.sequence.current = nil
}

// abandon cancels the completion. The caller holds mu.
func (c *completion) abandon() {
	c.leave()
	c.cancel()
	c.silence.Stop()
}

// arrived takes in what the server sent.
func (c *completion) arrived(p Piece) {
	s := c.sequence
	e := s.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	if c.over {
		return
	}
	if p.EOG != nil {
		c.eog = p.EOG
	}
	if p.Prefill != nil {
		c.prefill = p.Prefill
	}
	if len(p.Tokens) == 0 {
		return
	}
	now := time.Now()
	e.heard = now
	c.silence.Reset(e.config.Patience)
	s.failures = 0
	var chunk decode.Chunk
	if c.first && s.forced > 0 {
		chunk.Prefill = c.prefill
		if chunk.Prefill == nil {
			chunk.Prefill = &decode.Prefill{Tokens: s.forced, Queued: c.queued, Took: now.Sub(c.began)}
		}
		s.forced = 0
	}
	c.first = false
	span := s.queue[0].span
	var end decode.End
	for _, t := range p.Tokens {
		s.grow(t)
		chunk.Tokens = append(chunk.Tokens, t)
		if s.completes(span, t.Text) {
			end = decode.EndUntil
		} else if s.done == span.MaxTokens {
			end = decode.EndLimit
		}
		if end != "" {
			break
		}
	}
	s.deliver(chunk)
	switch {
	case end == decode.EndLimit:
		// The server stops there by itself: its last words are waited for, by the slot but not by the sequence, so that the connection is kept.
		c.leave()
		c.silence.Reset(time.Second)
		s.end(end, nil)
		s.advance()
	case end != "":
		s.end(end, nil)
		s.advance()
	case len(s.decoded)-s.delivered >= window:
		c.abandon()
		s.advance() // parks
	}
}

// completes adds text to a span and reports whether one of its Until is there. The caller holds mu.
func (s *sequence) completes(span *decode.Span, text string) bool {
	longest := 0
	s.said += text
	for _, u := range span.Until {
		if longest = max(longest, len(u)); strings.Contains(s.said, u) {
			return true
		}
	}
	s.said = s.said[max(0, len(s.said)-longest):]
	return false
}

// ended takes in how a completion ended that the sequence did not cancel. The caller holds mu.
func (s *sequence) ended(c *completion, end decode.End, err error) {
	const maxTries = 3 // to make a model say something that has nothing to say
	span := s.queue[0].span
	switch {
	case errors.Is(err, decode.ErrContextFull) && len(s.pieces) > s.base:
		s.end(decode.EndContext, nil)
	case err != nil:
		s.failedTo(err)
		return
	case end == decode.EndLimit: // and yet there are fewer tokens
		if c.first {
			s.failedTo(errors.New("the server ended the completion at its limit without a token"))
			return
		}
	case end == decode.EndEOG && s.done < span.MinTokens && s.tries < maxTries:
		s.tries++
	case end == "":
		s.failedTo(errors.New("the server did not say why the completion ended"))
		return
	default:
		s.end(end, c.eog)
	}
	s.advance()
}

// failedTo notes that a completion failed, and tries again later if that may help. The caller holds mu.
func (s *sequence) failedTo(err error) {
	e := s.engine
	now := time.Now()
	if s.failures++; s.failures == 1 {
		s.failed = now
	}
	switch {
	case final(err):
		s.fail(err)
	case errors.Is(err, ErrFatal), s.failures > 1 && now.Sub(s.failed) >= e.config.Patience:
		s.fail(fmt.Errorf("%w: %w", decode.ErrUnavailable, err))
	default:
		pause := min(firstPause<<min(s.failures-1, 10), lastPause)
		e.config.Log.Warn("completion failed, going on from the tokens so far", "model", e.config.Info.Model, "tokens", len(s.decoded), "failures", s.failures, "pause", pause, "error", err)
		var t *time.Timer
		t = time.AfterFunc(pause, func() {
			e.mu.Lock()
			defer e.mu.Unlock()
			if s.retry == t {
				s.retry = nil
				s.advance()
			}
		})
		s.retry = t
	}
}

// mix makes the seed of a completion: of the same sequence at the same place it is the same.
func mix(values ...uint64) uint64 { // splitmix64
	var z uint64
	for _, v := range values {
		z = (z ^ v) + 0x9e3779b97f4a7c15
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		z ^= z >> 31
	}
	return z
}
