package catalog

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/decode"
	"anytime/internal/decode/prompt"
	"anytime/internal/summarize"
)

// load closes the idle models whose memory m takes over, then loads m. makeRoom has set the states.
func (c *Catalog) load(m *model, idle []*model) {
	for _, other := range idle {
		if err := other.close(); err != nil {
			c.log.Error("model was not closed cleanly", "model", other.ID, "error", err)
		}
		c.log.Info("model closed to make room", "model", other.ID, "for", m.ID)
		c.mu.Lock()
		other.state = unloaded
		c.wake()
		c.mu.Unlock()
	}
	began := time.Now()
	c.mu.Lock()
	adapters := slices.SortedFunc(maps.Values(m.adapters), func(a, b *adapter) int { return strings.Compare(a.name, b.name) })
	c.mu.Unlock()
	bare, err := m.open(c.ctx)
	opened := time.Now()
	var failed map[*adapter]error
	if err == nil {
		failed = c.loadAdapters(m, bare.Engine, adapters)
		c.prime(bare)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.wake()
	if err != nil {
		pause := firstRetry
		if m.failure != nil {
			pause = min(2*m.failure.Retry, lastRetry)
		}
		m.state, m.failure, m.retry = unloaded, &LoadError{m.ID, pause, err}, time.Now().Add(pause)
		c.bytes -= m.Bytes
		if c.ctx.Err() == nil {
			c.log.Error("model was not loaded", "model", m.ID, "retry_after", pause, "error", err)
		}
		return
	}
	m.state, m.failure, m.proven = loaded, nil, true
	m.engine, m.bare, m.named = bare.Engine, bare, m.with(bare, Bare, "", bare.Curve)
	for _, a := range adapters {
		a.model = nil
		if a.failure = failed[a]; a.failure == nil {
			a.model = m.with(bare, a.name, a.key, a.Curve)
		}
		m.tidy(a) // it may have lost its name meanwhile
	}
	pace := bare.Pace.Snapshot()
	c.log.Info("model loaded", "model", m.ID, "took", opened.Sub(began).Round(time.Millisecond),
		"measured_in", time.Since(opened).Round(time.Millisecond), "memory_bytes", m.Bytes,
		"family", bare.Renderer.Family().Name, "thinking_per_token", pace.Thinking.Mean, "adapters", len(adapters)-len(failed))
}

// open loads the model.
func (m *model) open(ctx context.Context) (_ *anytime.Model, err error) {
	engine, err := m.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, engine.Close())
		}
	}()
	info := engine.Info()
	family := prompt.Detect(info)
	if m.Family != nil {
		family = *m.Family
	}
	renderer, err := prompt.New(info, family, m.Template)
	if err != nil {
		return nil, err
	}
	return &anytime.Model{
		ID: m.ID, Engine: engine, Renderer: renderer, Pace: budget.NewPace(budget.Snapshot{}), Length: new(budget.Length), Curve: m.Curve,
		MaxThinking: m.maxThinking(info.ContextTokens),
	}, nil
}

// close frees the model. The caller has made sure that nobody loads or closes it meanwhile.
func (m *model) close() error {
	engine := m.engine
	m.engine, m.bare, m.named = nil, nil, nil
	return engine.Close()
}

// The warm-up's size: some windows of a Pace, whose estimates start pessimistic. A model too slow for it is measured as far as it gets.
const (
	primeTokens  = 80 // of thinking
	primeAnswer  = 49 // tokens
	primeTime    = 15 * time.Second
	primeThought = 6 * time.Second
)

// primeQuestion is long enough for its prefill to be measured.
const primeQuestion = "A farmer has seventeen sheep and buys five more every week, but each month a third of all her sheep are sold at the market. " +
	"How many sheep does she have after three months of four weeks?"

// prime measures the engine, so that the first deadlines are kept with what is true of it and not with a guess. The first tokens take
// the cost of first use (pages of the weights are read, buffers made): what they say counts only where time is up for more.
func (c *Catalog) prime(m *anytime.Model) {
	ctx, cancel := context.WithTimeout(c.ctx, primeTime)
	defer cancel()
	err := think(ctx, m, "Hello!", 2)
	if err == nil {
		first := m.Pace
		m.Pace = budget.NewPace(budget.Snapshot{})
		err = think(ctx, m, primeQuestion, primeTokens)
		if m.Pace.Snapshot().Thinking.Observations == 0 {
			m.Pace = first
		}
	}
	if err != nil && c.ctx.Err() == nil {
		c.log.Warn("model was not measured whole, so the first deadlines may be kept badly", "model", m.ID, "error", err)
	}
}

// think thinks a little about a question, answers it, and measures both.
func think(ctx context.Context, m *anytime.Model, question string, tokens int) error {
	p, err := m.Renderer.Render([]prompt.Message{{Role: "user", Content: question}}, prompt.Options{Thinking: true})
	if err != nil {
		return err
	}
	seq, err := m.Engine.Open(ctx, decode.Request{Prompt: p.Parts, Adapter: m.Adapter})
	if err != nil {
		return err
	}
	defer seq.Close()
	if err := seq.Decode(decode.Span{MaxTokens: tokens, MinTokens: tokens}); err != nil {
		return err
	}
	long := time.AfterFunc(primeThought, seq.Cut)
	defer long.Stop()
	var last time.Time
	for ended := false; !ended; {
		chunk, err := seq.Next(ctx)
		if err != nil {
			return err
		}
		now := time.Now()
		if prefill := chunk.Prefill; prefill != nil {
			m.Pace.ObservePrefill(prefill.Tokens-prefill.Cached, prefill.Took)
		} else if !last.IsZero() {
			m.Pace.ObserveThinking(len(chunk.Tokens), now.Sub(last))
		}
		last = now
		ended = chunk.End != ""
	}
	fork, err := seq.Fork(decode.Head, decode.ForkOptions{})
	if err != nil {
		return err
	}
	defer fork.Close()
	var closing []decode.Part
	if p.Thinking {
		closing = m.Renderer.Family().Cut(prompt.StylePaper, "")
	}
	answer := decode.Span{MaxTokens: min(tokens, primeAnswer)}
	answer.MinTokens = answer.MaxTokens
	s, err := summarize.Take(ctx, fork, summarize.Plan{Close: closing, Span: answer}, nil)
	if s.Tokens > 0 {
		m.Pace.ObserveOverhead(s.Prefill.Tokens-s.Prefill.Cached, s.First)
		m.Pace.ObserveSummary(s.Tokens-1, s.Took-s.First)
	}
	return err
}
