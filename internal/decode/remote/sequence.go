package remote

import (
	"context"
	"maps"
	"slices"
	"time"

	"anytime/internal/decode"
)

// sequence is a growing text and the operations that are to make it grow. Its fields are guarded by the engine's mu.
type sequence struct {
	engine   *Engine
	id       uint64
	seed     uint64
	priority decode.Priority
	adapter  *adapter
	wake     chan struct{} // there is something for Next

	parent *sequence // of a fork whose position the parent has not reached
	after  int
	forks  []*sequence // that wait for their position in this one

	pieces  []piece // forced text and decoded tokens; shared with forks, so only ever appended to
	base    int     // len(pieces) where its own spans begin
	decoded []int   // len(pieces) behind each decoded token
	forced  int     // forced text since the last token, in tokens, estimated

	queue []operation
	done  int    // tokens of the span at the queue's front
	said  string // end of its text, long enough to find what ends it
	cut   bool   // the first span is to end
	tries int    // completions of the span that ended before MinTokens

	current  *completion // under way
	waits    time.Time   // since when it waits for a slot
	retry    *time.Timer // nil, or runs until the next try
	failures int         // in a row
	failed   time.Time   // the first of them
	parked   bool        // until its reader has caught up

	chunks    []decode.Chunk
	delivered int // decoded tokens that Next has returned
	err       error
	closed    bool
}

var _ decode.Sequence = (*sequence)(nil)

// operation is forced text or a span.
type operation struct {
	parts []decode.Part
	span  *decode.Span
}

// force appends text. The caller holds mu.
func (s *sequence) force(parts []decode.Part) {
	for _, p := range parts {
		s.pieces = append(s.pieces, piece{Part: p, id: -1})
		s.forced += len(p.IDs) + estimate(p.Text)
	}
}

// advance works off the queue as far as it can without a completion, and asks for one if there is something to decode. The caller holds mu.
func (s *sequence) advance() {
	for s.parent == nil && s.current == nil && s.retry == nil && s.err == nil && !s.closed && len(s.queue) > 0 {
		op := s.queue[0]
		switch {
		case op.span == nil:
			s.force(op.parts)
			s.queue = s.queue[1:]
		case s.cut:
			s.end(decode.EndCut, nil)
		default:
			if s.parked = len(s.decoded)-s.delivered >= window; !s.parked && !slices.Contains(s.engine.waiting, s) {
				s.waits = time.Now()
				s.engine.waiting = append(s.engine.waiting, s)
				s.engine.schedule()
			}
			return
		}
	}
}

// end ends the span at the queue's front. The caller holds mu.
func (s *sequence) end(end decode.End, eog *decode.Token) {
	s.stopWaiting()
	s.queue = s.queue[1:]
	s.done, s.said, s.cut, s.tries = 0, "", false, 0
	s.deliver(decode.Chunk{End: end, EOG: eog})
}

// stopWaiting takes the sequence out of every queue and cancels its completion. The caller holds mu.
func (s *sequence) stopWaiting() {
	if c := s.current; c != nil {
		c.abandon()
	}
	if s.retry != nil {
		s.retry.Stop()
		s.retry = nil
	}
	s.engine.waiting = slices.DeleteFunc(s.engine.waiting, func(w *sequence) bool { return w == s })
}

// fail ends the sequence with an error, and the forks that wait for it. The caller holds mu.
func (s *sequence) fail(err error) {
	s.err = err
	s.stopWaiting()
	notify(s.wake)
	for _, f := range s.forks {
		f.fail(err)
	}
	s.forks = nil
}

// grow appends a decoded token and begins the forks that waited for it. The caller holds mu.
func (s *sequence) grow(t decode.Token) {
	p := piece{id: t.ID}
	if t.ID < 0 {
		p.Text = t.Text
	}
	s.pieces = append(s.pieces, p)
	s.decoded = append(s.decoded, len(s.pieces))
	s.done++
	s.settleForks()
}

// settleForks begins the forks whose position is reached. The caller holds mu.
func (s *sequence) settleForks() {
	s.forks = slices.DeleteFunc(s.forks, func(f *sequence) bool {
		at := 0
		switch {
		case f.after > len(s.decoded):
			return false
		case f.after == decode.Head:
			at = len(s.pieces)
		case f.after == 0:
			at = s.base
		default:
			at = s.decoded[f.after-1]
		}
		f.parent, f.base, f.pieces = nil, at, s.pieces[:at:at]
		f.settleForks()
		f.advance()
		return true
	})
}

// deliver queues a chunk for Next, joined to the last if that is of the same span. The caller holds mu.
func (s *sequence) deliver(c decode.Chunk) {
	if n := len(s.chunks); n > 0 && s.chunks[n-1].End == "" && c.Prefill == nil {
		last := &s.chunks[n-1]
		last.Tokens = append(last.Tokens, c.Tokens...)
		last.End, last.EOG = c.End, c.EOG
	} else {
		s.chunks = append(s.chunks, c)
	}
	notify(s.wake)
}

// usable returns why nothing can be asked of it. The caller holds mu.
func (s *sequence) usable() error {
	if s.closed {
		return decode.ErrClosed
	}
	return s.err
}

func (s *sequence) enqueue(op operation) error {
	s.engine.mu.Lock()
	defer s.engine.mu.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	if len(s.queue) >= maxQueued {
		return refuse("sequence", "has %d operations queued, which is the most; wait for Next", maxQueued)
	}
	s.queue = append(s.queue, op)
	s.advance()
	return nil
}

// Append implements decode.Sequence. If the context has no room for the text, what follows ends with decode.EndContext.
func (s *sequence) Append(parts ...decode.Part) error {
	if err := checkParts(parts, s.engine.config.Info); err != nil {
		return err
	}
	return s.enqueue(operation{parts: slices.Clone(parts)})
}

// Decode implements decode.Sequence.
func (s *sequence) Decode(span decode.Span) error {
	if err := s.engine.Check(span); err != nil {
		return err
	}
	span.Until = slices.Clone(span.Until)
	span.Sampling.LogitBias = maps.Clone(span.Sampling.LogitBias)
	return s.enqueue(operation{span: &span})
}

// Next implements decode.Sequence.
func (s *sequence) Next(ctx context.Context) (decode.Chunk, error) {
	for {
		if c, ok, err := s.take(); err != nil || ok {
			return c, err
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return decode.Chunk{}, ctx.Err()
		}
	}
}

// take returns the oldest chunk, if there is one.
func (s *sequence) take() (decode.Chunk, bool, error) {
	s.engine.mu.Lock()
	defer s.engine.mu.Unlock()
	switch {
	case s.closed:
		notify(s.wake) // for the next call, too
		return decode.Chunk{}, false, decode.ErrClosed
	case len(s.chunks) > 0:
		c := s.chunks[0]
		s.chunks = s.chunks[1:]
		s.delivered += len(c.Tokens)
		if s.parked && len(s.decoded)-s.delivered < window/4 {
			s.advance()
		}
		return c, true, nil
	}
	return decode.Chunk{}, false, s.err
}

// Cut implements decode.Sequence.
func (s *sequence) Cut() {
	s.engine.mu.Lock()
	defer s.engine.mu.Unlock()
	if s.closed || !slices.ContainsFunc(s.queue, func(op operation) bool { return op.span != nil }) {
		return
	}
	s.cut = true
	if s.parent == nil && s.err == nil {
		s.end(decode.EndCut, nil) // forced text before it is in the prefix already
		s.advance()
	}
}

// Fork implements decode.Sequence.
func (s *sequence) Fork(after int, opts decode.ForkOptions) (decode.Sequence, error) {
	if after < decode.Head {
		return nil, refuse("fork", "position is %d; it must be a number of decoded tokens, or Head", after)
	}
	e := s.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := s.usable(); err != nil {
		return nil, err
	}
	f, err := e.newSequence(opts.Seed, opts.Priority, s.adapter)
	if err != nil {
		return nil, err
	}
	f.parent, f.after = s, after
	s.forks = append(s.forks, f)
	if s.parent == nil {
		s.settleForks()
	}
	return f, nil
}

// SetPriority implements decode.Sequence.
func (s *sequence) SetPriority(p decode.Priority) {
	s.engine.mu.Lock()
	defer s.engine.mu.Unlock()
	s.priority = p
	if s.current != nil {
		s.current.priority = p
	}
	s.engine.schedule()
}

// Close implements decode.Sequence.
func (s *sequence) Close() error {
	s.engine.mu.Lock()
	defer s.engine.mu.Unlock()
	s.close()
	return nil
}

// close forgets the sequence. The caller holds mu.
func (s *sequence) close() {
	if s.closed {
		return
	}
	s.closed = true
	s.chunks = nil
	s.stopWaiting()
	notify(s.wake)
	for _, f := range s.forks {
		f.fail(decode.ErrNotReached)
	}
	s.forks = nil
	if p := s.parent; p != nil {
		p.forks = slices.DeleteFunc(p.forks, func(f *sequence) bool { return f == s })
	}
	delete(s.engine.seqs, s)
	if a := s.adapter; a != nil {
		if a.users--; a.users == 0 {
			a.release()
		}
	}
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
