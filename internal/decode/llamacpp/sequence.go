package llamacpp

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"anytime/internal/decode"
)

// sequence is the parent's side of a sequence. It knows everything that is needed to begin it again in another child: the tokens
// so far, in the order in which they came, and what is still queued. Its fields are guarded by the engine's mu.
type sequence struct {
	engine  *Engine
	id      uint64
	seed    uint64
	adapter *loraAdapter

	begun     chan struct{} // closed once the prompt is at the head, or err is set
	wake      chan struct{} // there is something for Next
	priority  decode.Priority
	parent    *sequence // of a fork that has not begun
	after     int
	tokens    []int32
	base      int     // len(tokens) where its own spans begin
	decoded   []int32 // len(tokens) behind each decoded token
	queue     []queued
	done      int  // tokens of the span at the queue's front
	cut       bool // the first span is to end
	chunks    []decode.Chunk
	delivered int   // decoded tokens that Next has returned
	acked     int   // of these, told to the child
	live      bool  // the child knows it
	blame     blame // for children that died while it decoded, since its last step forward
	restarted int   // children that died since its last chunk
	err       error
	closed    bool
}

var _ decode.Sequence = (*sequence)(nil)

// queued is forced text or a span that is not finished.
type queued struct {
	parts  []decode.Part
	prompt bool
	span   *decode.Span
}

// newSequence registers a sequence. The caller holds mu.
func (e *Engine) newSequence(seed uint64, p decode.Priority, a *loraAdapter) (*sequence, error) {
	if len(e.seqs) >= maxOpen {
		return nil, fmt.Errorf("%w: %d sequences are open", decode.ErrUnavailable, maxOpen)
	}
	e.nextID++
	s := &sequence{
		engine: e, id: e.nextID, seed: seed, priority: p, adapter: a, begun: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	e.seqs[s.id] = s
	if a != nil {
		a.users++
	}
	return s, nil
}

// begin notes that the sequence has begun, or never will. The caller holds mu.
func (s *sequence) begin(err error) {
	if s.err == nil && err != nil {
		s.err = err
		notify(s.wake)
	}
	select {
	case <-s.begun:
	default:
		close(s.begun)
	}
}

// send passes a command about the sequence to a child that knows it. The caller holds mu.
func (s *sequence) send(c command) {
	if s.live {
		c.Seq = s.id
		s.engine.send(c)
	}
}

// restore makes the child begin the sequence where it is, with all that is queued. The caller holds mu.
func (s *sequence) restore() {
	if s.engine.proc == nil {
		return
	}
	if p := s.parent; p != nil && p.closed {
		// The child that was to fork it is gone, and so is its parent.
		switch {
		case s.after > len(p.decoded) || p.parent != nil:
			s.begin(decode.ErrNotReached)
		case s.after == decode.Head:
			s.inherit(len(p.tokens))
		case s.after == 0:
			s.inherit(p.base)
		default:
			s.inherit(int(p.decoded[s.after-1]))
		}
	}
	if s.err != nil || s.closed {
		return
	}
	c := command{
		Kind: cmdOpen, Tokens: s.tokens, Decoded: s.decoded, Base: s.base, Count: s.delivered, Seed: s.seed,
		Class: s.priority.Class, Deadline: unixNano(s.priority.Deadline),
	}
	if s.adapter != nil {
		c.Adapter = s.adapter.id
	}
	if s.parent != nil {
		c.Kind, c.From, c.After = cmdFork, s.parent.id, s.after
	}
	s.acked = s.delivered
	s.live = true
	s.send(c)
	for i, q := range s.queue {
		s.sendQueued(q, i == 0)
	}
	if s.cut {
		s.send(command{Kind: cmdCut})
	}
}

func (s *sequence) sendQueued(q queued, first bool) {
	c := command{Kind: cmdAppend, Parts: q.parts, Prompt: q.prompt}
	if q.span != nil {
		c.Kind, c.Span = cmdSpan, q.span
		if first {
			c.Done = s.done
		}
	}
	s.send(c)
}

// inherit takes over the first n tokens of the parent.
func (s *sequence) inherit(n int) {
	s.tokens = slices.Clone(s.parent.tokens[:n])
	s.base = n
	s.parent = nil
	s.begin(nil)
}

// apply takes in news from the child. The caller holds mu.
func (s *sequence) apply(u update) {
	if len(u.Tokens) > 0 || u.End != "" {
		s.blame = 0
	}
	if u.Forked && s.parent != nil {
		s.inherit(u.Shared)
	}
	if u.Applied {
		s.tokens = append(s.tokens, u.Forced...)
		if s.queue[0].prompt {
			s.base = len(s.tokens)
		}
		s.queue = s.queue[1:]
		s.begin(nil)
	}
	for _, t := range u.Tokens {
		s.tokens = append(s.tokens, t.ID)
		s.decoded = append(s.decoded, int32(len(s.tokens)))
		s.done++
	}
	if len(u.Tokens) > 0 || u.End != "" {
		s.deliver(decode.Chunk{Tokens: u.Tokens, End: u.End, EOG: u.EOG, Prefill: u.Prefill, Preempted: u.Preempted, Restarted: s.restarted})
		s.restarted = 0
	}
	if u.End != "" {
		s.queue = s.queue[1:]
		s.done, s.cut = 0, false
	}
	if u.Err != nil {
		s.begin(u.Err.error())
	}
	if u.Closed {
		delete(s.engine.seqs, s.id)
	}
}

// deliver queues a chunk for Next, joined to the last if that is of the same span.
func (s *sequence) deliver(c decode.Chunk) {
	if s.closed {
		return
	}
	if n := len(s.chunks); n > 0 && s.chunks[n-1].End == "" {
		last := &s.chunks[n-1]
		last.Tokens = append(last.Tokens, c.Tokens...)
		last.End, last.EOG = c.End, c.EOG
		last.Preempted += c.Preempted
		last.Restarted += c.Restarted
	} else {
		s.chunks = append(s.chunks, c)
	}
	notify(s.wake)
}

// usable returns why nothing can be queued. The caller holds mu.
func (s *sequence) usable() error {
	switch {
	case s.closed:
		return decode.ErrClosed
	case s.err != nil:
		return s.err
	case len(s.queue) >= maxQueued:
		return refuse("sequence", "has %d operations queued, which is the most; wait for Next", maxQueued)
	}
	return nil
}

func (s *sequence) enqueue(q queued) error {
	s.engine.mu.Lock()
	defer s.engine.mu.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	s.queue = append(s.queue, q)
	s.sendQueued(q, false)
	return nil
}

// Append implements decode.Sequence. Text that the context has no room for is not appended, and what follows ends with
// decode.EndContext.
func (s *sequence) Append(parts ...decode.Part) error {
	e := s.engine
	e.mu.Lock()
	h := e.hello
	e.mu.Unlock()
	if err := checkParts(parts, h.Vocabulary, e.config.ContextTokens, h.MaxPiece); err != nil {
		return err
	}
	return s.enqueue(queued{parts: join(parts)})
}

// Decode implements decode.Sequence.
func (s *sequence) Decode(span decode.Span) error {
	if err := s.engine.Check(span); err != nil {
		return err
	}
	span.Until = slices.Clone(span.Until)
	span.Sampling.LogitBias = maps.Clone(span.Sampling.LogitBias)
	return s.enqueue(queued{span: &span})
}

// Next implements decode.Sequence.
func (s *sequence) Next(ctx context.Context) (decode.Chunk, error) {
	for {
		if c, err := s.take(); err != nil || len(c.Tokens) > 0 || c.End != "" {
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
func (s *sequence) take() (decode.Chunk, error) {
	s.engine.mu.Lock()
	defer s.engine.mu.Unlock()
	switch {
	case s.closed:
		notify(s.wake) // for the next call, too
		return decode.Chunk{}, decode.ErrClosed
	case len(s.chunks) > 0:
		c := s.chunks[0]
		s.chunks = s.chunks[1:]
		s.delivered += len(c.Tokens)
		if s.delivered-s.acked >= window/4 {
			s.acked = s.delivered
			s.send(command{Kind: cmdAck, Count: s.acked})
		}
		return c, nil
	}
	return decode.Chunk{}, s.err
}

// Cut implements decode.Sequence.
func (s *sequence) Cut() {
	s.engine.mu.Lock()
	defer s.engine.mu.Unlock()
	if slices.ContainsFunc(s.queue, func(q queued) bool { return q.span != nil }) {
		s.cut = true
		s.send(command{Kind: cmdCut})
	}
}

// Fork implements decode.Sequence.
func (s *sequence) Fork(after int, opts decode.ForkOptions) (decode.Sequence, error) {
	if after < decode.Head {
		return nil, refuse("fork", "position is %d; it must be a number of decoded tokens, or Head", after)
	}
	s.engine.mu.Lock()
	defer s.engine.mu.Unlock()
	if s.closed {
		return nil, decode.ErrClosed
	} else if s.err != nil {
		return nil, s.err
	}
	f, err := s.engine.newSequence(opts.Seed, opts.Priority, s.adapter)
	if err != nil {
		return nil, err
	}
	f.parent, f.after = s, after
	if s.live {
		f.restore()
	}
	return f, nil
}

// SetPriority implements decode.Sequence.
func (s *sequence) SetPriority(p decode.Priority) {
	s.engine.mu.Lock()
	defer s.engine.mu.Unlock()
	s.priority = p
	s.send(command{Kind: cmdPriority, Class: p.Class, Deadline: unixNano(p.Deadline)})
}

// Close implements decode.Sequence.
func (s *sequence) Close() error {
	e := s.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.chunks = nil
	notify(s.wake)
	s.begin(decode.ErrClosed)
	if s.adapter != nil {
		s.adapter.users--
		e.release(s.adapter)
	}
	if s.send(command{Kind: cmdClose}); !s.live {
		delete(e.seqs, s.id)
	}
	return nil
}
