package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"anytime/internal/decode"
	"anytime/internal/decode/remote"
)

// member is an engine and its circuit: closed while it is well, open when it is broken, half-open while its keeper asks how it is.
type member struct {
	Member
	router *router

	// Guarded by the router's mu.
	engine   decode.Engine // nil until it was opened
	broken   bool
	failures int // since a token came
	running  int // completions
}

const (
	reachTime = time.Second     // to answer Member.Reach
	askTime   = 5 * time.Second // to be ready
	openTime  = time.Minute
	lastRetry = 30 * time.Second
)

// complete continues a prefix with a sequence of the member's.
func (m *member) complete(ctx context.Context, engine decode.Engine, req remote.Request, emit func(remote.Piece)) (decode.End, error) {
	seq, err := engine.Open(ctx, decode.Request{Prompt: m.begin(engine.Info(), req.Prefix), Seed: req.Seed, Priority: req.Priority})
	if err != nil {
		return "", err
	}
	defer seq.Close()
	err = seq.Decode(decode.Span{
		MaxTokens: req.MaxTokens, MinTokens: req.MinTokens, Until: req.Until, Sampling: req.Sampling, TopLogProbs: req.TopLogProbs,
	})
	if err != nil {
		return "", err
	}
	var prefill *decode.Prefill
	for {
		c, err := m.next(ctx, seq)
		if err != nil {
			return "", err
		}
		if c.Prefill != nil {
			prefill = c.Prefill
		}
		p := remote.Piece{Tokens: slices.Clone(c.Tokens), EOG: c.EOG}
		if len(p.Tokens) > 0 {
			p.Prefill, prefill = prefill, nil
		}
		if len(p.Tokens) > 0 || p.EOG != nil {
			emit(p)
		}
		if c.End != "" {
			return c.End, nil
		}
	}
}

// next waits for a chunk, and while there is none asks whether the engine can still be reached.
func (m *member) next(ctx context.Context, seq decode.Sequence) (decode.Chunk, error) {
	for {
		patience, cancel := context.WithTimeout(ctx, m.router.config.Silence)
		c, err := seq.Next(patience)
		cancel()
		if ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return c, err
		}
		if err := m.reach(ctx); err != nil && ctx.Err() == nil {
			return c, fmt.Errorf("%w: it cannot be reached: %w", decode.ErrUnavailable, err)
		}
	}
}

func (m *member) reach(ctx context.Context) error {
	if m.Reach == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	return m.Reach(ctx)
}

// begin makes a prefix one for the member: some engines put BOS before a prompt by themselves.
func (m *member) begin(its decode.Info, prefix []decode.Part) []decode.Part {
	pool := m.router.info
	if its.AddBOS == pool.AddBOS || pool.BOS == "" || len(prefix) == 0 || len(prefix[0].IDs) > 0 {
		return prefix
	}
	if its.AddBOS {
		prefix = slices.Clone(prefix)
		prefix[0].Text = strings.TrimPrefix(prefix[0].Text, pool.BOS)
		return prefix
	}
	return append([]decode.Part{decode.Text(pool.BOS)}, prefix...)
}

// recover notes that a token came.
func (m *member) recover() {
	m.router.mu.Lock()
	defer m.router.mu.Unlock()
	m.failures = 0
}

// fail opens the circuit, and starts the keeper that closes it again.
func (m *member) fail(err error) {
	r := m.router
	r.mu.Lock()
	defer r.mu.Unlock()
	if m.broken || r.ctx.Err() != nil {
		return
	}
	m.broken = true
	for _, l := range r.lineages {
		if l.home == m {
			l.home = nil
		}
	}
	r.config.Log.Warn("engine is left alone", "model", r.info.Model, "engine", m.Name, "error", err)
	r.keepers.Go(m.keep)
}

// keep asks a broken member again and again how it is, until it is well.
func (m *member) keep() {
	r := m.router
	for {
		r.mu.Lock()
		pause := min(r.config.Retry<<min(m.failures, 16), lastRetry)
		m.failures++
		r.mu.Unlock()
		select {
		case <-time.After(pause):
		case <-r.ctx.Done():
			return
		}
		err := m.ask()
		if r.ctx.Err() != nil {
			return
		}
		if err == nil {
			r.mu.Lock()
			m.broken = false
			r.mu.Unlock()
			r.config.Log.Info("engine is used again", "model", r.info.Model, "engine", m.Name)
			return
		}
		r.config.Log.Warn("engine is still left alone", "model", r.info.Model, "engine", m.Name, "error", err)
	}
}

// ask returns nil if the member can be used. One that was never there is opened.
func (m *member) ask() error {
	r := m.router
	if m.engine != nil {
		if err := m.reach(r.ctx); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(r.ctx, askTime)
		defer cancel()
		return m.engine.Ready(ctx)
	}
	ctx, cancel := context.WithTimeout(r.ctx, openTime)
	defer cancel()
	e, err := m.Open(ctx)
	if err == nil {
		if err = r.suits(ctx, e); err != nil {
			return errors.Join(err, e.Close())
		}
		r.mu.Lock()
		m.engine = e
		r.mu.Unlock()
	}
	return err
}
