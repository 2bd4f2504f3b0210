package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"anytime/internal/decode"
)

const (
	maxOpen   = 4096 // sequences
	maxQueued = 1024 // operations of a sequence
	// window is how many tokens a sequence decodes ahead of its reader before its completion is cancelled, to go on when they are read.
	window = 1024
	// firstPause and lastPause bound the wait before a failed completion is tried again; it doubles with every failure in a row.
	firstPause = 50 * time.Millisecond
	lastPause  = 2 * time.Second
	// slowStart is how many times Patience the first token may take: prompts are prefilled, models loaded, other clients served.
	slowStart = 10
)

// Engine decodes on a server through its Completer.
type Engine struct {
	completer Completer
	config    Config
	ctx       context.Context // of all completions
	stop      context.CancelFunc
	workers   sync.WaitGroup // completions

	mu      sync.Mutex // guards what follows, and the sequences
	closed  bool
	seqs    map[*sequence]struct{}
	waiting []*sequence   // for a slot, in the order in which they came
	running []*completion // that have a slot
	nextID  uint64
	heard   time.Time // when the last token came
}

var _ decode.Engine = (*Engine)(nil)

// New returns an engine. Closing it does not close the completer.
func New(c Completer, config Config) *Engine {
	config.Patience = cmp.Or(config.Patience, time.Minute)
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	ctx, stop := context.WithCancel(context.Background())
	return &Engine{completer: c, config: config, ctx: ctx, stop: stop, seqs: map[*sequence]struct{}{}}
}

// Info implements decode.Engine.
func (e *Engine) Info() decode.Info { return e.config.Info }

// Open implements decode.Engine. The server first hears of the sequence when something is to be decoded; a prompt that it finds too
// long then fails the sequence's Next with decode.ErrContextFull.
func (e *Engine) Open(_ context.Context, req decode.Request) (decode.Sequence, error) {
	if err := checkParts(req.Prompt, e.config.Info); err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(req.Prompt, func(p decode.Part) bool { return p.Text != "" || len(p.IDs) > 0 }) {
		return nil, refuse("prompt", "is empty; it must hold at least one token")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var a *adapter
	if req.Adapter != "" {
		if e.config.Acquire == nil {
			return nil, fmt.Errorf("%w: %q", decode.ErrUnknownAdapter, req.Adapter)
		}
		model, release, err := e.config.Acquire(req.Adapter)
		if err != nil {
			return nil, err
		}
		a = &adapter{model: model, release: release}
	}
	s, err := e.newSequence(req.Seed, req.Priority, a)
	if err != nil {
		if a != nil {
			a.release()
		}
		return nil, err
	}
	s.force(req.Prompt)
	s.base = len(s.pieces)
	return s, nil
}

// newSequence registers a sequence. The caller holds mu.
func (e *Engine) newSequence(seed uint64, p decode.Priority, a *adapter) (*sequence, error) {
	switch {
	case e.closed:
		return nil, fmt.Errorf("%w: it is closed", decode.ErrUnavailable)
	case len(e.seqs) >= maxOpen:
		return nil, fmt.Errorf("%w: %d sequences are open", decode.ErrUnavailable, maxOpen)
	}
	e.nextID++
	s := &sequence{engine: e, id: e.nextID, seed: seed, priority: p, adapter: a, wake: make(chan struct{}, 1)}
	e.seqs[s] = struct{}{}
	if a != nil {
		a.users++
	}
	return s, nil
}

// Tokenize implements decode.Engine.
func (e *Engine) Tokenize(ctx context.Context, parts ...decode.Part) ([]decode.Token, error) {
	if err := checkParts(parts, e.config.Info); err != nil {
		return nil, err
	}
	const tries = 5 // somebody waits for it to begin
	for n := 1; ; n++ {
		tokens, err := e.completer.Tokenize(ctx, parts)
		switch {
		case err == nil || ctx.Err() != nil || final(err):
			return tokens, err
		case n == tries || errors.Is(err, ErrFatal):
			return nil, fmt.Errorf("%w: %w", decode.ErrUnavailable, err)
		}
		select {
		case <-time.After(firstPause << (n - 1)):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// final says that an error is about what was asked, so that asking again cannot help.
func final(err error) bool {
	var input *decode.InputError
	return errors.As(err, &input) || errors.Is(err, decode.ErrContextFull) || errors.Is(err, decode.ErrUnknownAdapter)
}

// Check implements decode.Engine.
func (e *Engine) Check(span decode.Span) error {
	if err := checkSpan(span, e.config.Info); err != nil {
		return err
	}
	return e.completer.Check(span)
}

// Ready implements decode.Engine. Tokens that have just come answer for the server.
func (e *Engine) Ready(ctx context.Context) error {
	const just = 5 * time.Second
	e.mu.Lock()
	closed, heard, busy := e.closed, e.heard, len(e.running) > 0
	e.mu.Unlock()
	switch {
	case closed:
		return fmt.Errorf("%w: it is closed", decode.ErrUnavailable)
	case !heard.IsZero() && time.Since(heard) < just:
		return nil
	}
	return e.completer.Ready(ctx, busy)
}

// Close implements decode.Engine. It waits until no request is under way.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closed = true
	for s := range e.seqs {
		s.close()
	}
	e.mu.Unlock()
	e.stop()
	e.workers.Wait()
	return nil
}

// adapter is what Config.Acquire gave, shared by a sequence and its forks. Its fields are guarded by the engine's mu.
type adapter struct {
	model   string
	release func()
	users   int
}

// schedule gives slots to those that wait, by their priority, the older first; one that comes before a completion under way takes
// its slot. The caller holds mu.
func (e *Engine) schedule() {
	for len(e.waiting) > 0 && !e.closed {
		first := slices.MinFunc(e.waiting, before)
		if e.config.Slots > 0 && len(e.running) >= e.config.Slots {
			last := slices.MaxFunc(e.running, func(a, b *completion) int { return compare(a.priority, b.priority) })
			leaving := slices.ContainsFunc(e.running, func(c *completion) bool { return c.over })
			if s := last.sequence; !leaving && compare(first.priority, last.priority) < 0 {
				last.abandon()
				s.waits = time.Now()
				e.waiting = append(e.waiting, s)
			}
			return // the slot is free when the completion's goroutine has ended
		}
		e.waiting = slices.DeleteFunc(e.waiting, func(s *sequence) bool { return s == first })
		first.begin()
	}
}

func before(a, b *sequence) int {
	return cmp.Or(compare(a.priority, b.priority), cmp.Compare(a.id, b.id))
}

// compare orders by class, then by deadline; no deadline is the last.
func compare(a, b decode.Priority) int {
	if c := cmp.Compare(a.Class, b.Class); c != 0 || a.Deadline.Equal(b.Deadline) {
		return c
	}
	switch {
	case a.Deadline.IsZero():
		return 1
	case b.Deadline.IsZero():
		return -1
	}
	return a.Deadline.Compare(b.Deadline)
}
