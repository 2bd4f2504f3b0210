// Package pool makes one decode.Engine of several that hold the same model: on other machines, and the embedded one beside them.
//
// The model: package remote keeps the sequences, and the pool is the Completer that continues their prefixes, each completion a
// sequence of a member's. So a run whose engine dies in mid-thought is a prefix that is continued elsewhere, as token ids where all
// members have the same vocabulary, else as text. A fork is a replay of the prefix, which a member that has it in its cache, as the
// embedded engine has its running sequences', does not prefill.
//
// Routing: a thought, its forks and what follows stay at one member, where their cache is. A new one goes where it costs least: the
// part of its prefix that a member has not seen, in tokens, and how busy the member is (route.go).
//
// Health: a member that fails, or is silent and cannot be reached, is left alone for a while that doubles with each failure; then it
// is asked, in the background, whether it is ready (half-open), and is used again if it is. Members that were not there when the pool
// was opened join in the same way (member.go).
//
// What the pool can do is what all its members can do that were there when it was opened; one that joins later must be able to do as much.
package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"anytime/internal/decode"
	"anytime/internal/decode/remote"
)

// Member is an engine of the pool.
type Member struct {
	Name string // for the log
	// Open opens the engine. It is called again while it fails.
	Open func(context.Context) (decode.Engine, error)
	// Reach returns an error if the engine cannot be reached. It is asked while tokens are awaited, and must be quick; nil: the engine
	// itself says when it is away.
	Reach func(context.Context) error
}

// Config is a pool's members and how patient it is. Model and Members are needed.
type Config struct {
	Model   string // id by which requests name it
	Members []Member
	// Patience is how long a run waits while no member is there; default one minute. It should be well above that of the members.
	Patience time.Duration
	// Silence is how long a token may be awaited before the member's Reach is asked; default 300 ms.
	Silence time.Duration
	// Retry is how long a member is left alone after its first failure; default 500 ms.
	Retry time.Duration
	Log   *slog.Logger // default none
}

// Engine is a pool.
type Engine struct {
	*remote.Engine
	router *router
}

var _ decode.Engine = (*Engine)(nil)

// Open opens the members, of which one at least must be there.
func Open(ctx context.Context, c Config) (*Engine, error) {
	if len(c.Members) == 0 {
		return nil, errors.New("open pool: it has no members")
	}
	c.Silence = cmp.Or(c.Silence, 300*time.Millisecond)
	c.Retry = cmp.Or(c.Retry, 500*time.Millisecond)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	r := &router{config: c, seen: newMemory(), lineages: map[string]*lineage{}}
	r.ctx, r.stop = context.WithCancel(context.Background())
	errs := make([]error, len(c.Members))
	var opening sync.WaitGroup
	for i, m := range c.Members {
		opened := &member{Member: m, router: r}
		r.members = append(r.members, opened)
		opening.Go(func() {
			if opened.engine, errs[i] = m.Open(ctx); errs[i] != nil {
				errs[i] = fmt.Errorf("%s: %w", m.Name, errs[i])
			}
		})
	}
	opening.Wait()
	if err := r.agree(ctx, errs); err != nil {
		r.stop()
		return nil, errors.Join(fmt.Errorf("open pool: %w", err), r.close())
	}
	for i, m := range r.members {
		if m.engine == nil {
			m.fail(errs[i])
		}
	}
	return &Engine{
		Engine: remote.New(r, remote.Config{Info: r.info, Patience: c.Patience, Acquire: r.acquire, Log: c.Log}),
		router: r,
	}, nil
}

// Open implements decode.Engine.
func (e *Engine) Open(ctx context.Context, req decode.Request) (decode.Sequence, error) {
	if req.Adapter != "" {
		return nil, fmt.Errorf("%w: %q; a model of several engines has no adapters", decode.ErrUnknownAdapter, req.Adapter)
	}
	req.Adapter = anyLineage
	return e.Engine.Open(ctx, req)
}

// Path says how prefixes are sent to the members, and how many of them are there.
func (e *Engine) Path() string {
	r := e.router
	r.mu.Lock()
	defer r.mu.Unlock()
	there := 0
	for _, m := range r.members {
		if m.engine != nil && !m.broken {
			there++
		}
	}
	how := "prefixes as text"
	if r.info.Capabilities.TokenIDs {
		how = "exact prefixes as token ids"
	}
	return fmt.Sprintf("%s; %d of %d engines are there", how, there, len(r.members))
}

// Close implements decode.Engine. It closes the members.
func (e *Engine) Close() error {
	err := e.Engine.Close()
	e.router.stop()
	e.router.keepers.Wait()
	return errors.Join(err, e.router.close())
}

// router is the remote.Completer that hands completions to members.
type router struct {
	config  Config
	info    decode.Info // what all members can do
	members []*member
	ctx     context.Context // of the keepers
	stop    context.CancelFunc
	keepers sync.WaitGroup // goroutines that look after members that failed

	mu       sync.Mutex // guards what follows, and the members; never held while a member or the engine is called
	lineages map[string]*lineage
	next     int
	seen     *memory
}

// agree makes the pool's Info of the members'. Those that are not of the same model are an error; those that are not there are none, if others are.
func (r *router) agree(ctx context.Context, errs []error) error {
	first := true
	for _, m := range r.members {
		if m.engine == nil {
			continue
		}
		about := m.engine.Info()
		if first {
			r.info, first = about, false
			r.info.Model, r.info.AnswerSteps = r.config.Model, 0
			r.info.Capabilities.Forks, r.info.Capabilities.Adapters = false, false
			continue
		}
		if err := alike(r.info, about); err != nil {
			return fmt.Errorf("%s: %w", m.Name, err)
		}
		same, err := r.sameVocabulary(ctx, m.engine)
		if err != nil {
			return fmt.Errorf("%s: %w", m.Name, err)
		}
		mine, its := &r.info.Capabilities, about.Capabilities
		mine.TokenIDs = mine.TokenIDs && its.TokenIDs && same
		mine.LogProbs = mine.LogProbs && its.LogProbs
		mine.Grammar = mine.Grammar && its.Grammar
		mine.LogitBias = mine.LogitBias && its.LogitBias && mine.TokenIDs
		mine.Seed = mine.Seed && its.Seed
		r.info.MaxSequences += about.MaxSequences
		if n := about.ContextTokens; n > 0 && (r.info.ContextTokens == 0 || n < r.info.ContextTokens) {
			r.info.ContextTokens = n
		}
		r.info.ChatTemplate = cmp.Or(r.info.ChatTemplate, about.ChatTemplate)
		for _, s := range about.SpecialTokens {
			if !slices.Contains(r.info.SpecialTokens, s) {
				r.info.SpecialTokens = append(slices.Clip(r.info.SpecialTokens), s)
			}
		}
	}
	if first {
		return errors.Join(errs...)
	}
	return nil
}

// alike returns an error if two engines cannot have the same model and the same way to be prompted.
func alike(a, b decode.Info) error {
	if a.Architecture != "" && b.Architecture != "" && a.Architecture != b.Architecture {
		return fmt.Errorf("its model is of architecture %q, the pool's of %q: all engines of a model must have the same one", b.Architecture, a.Architecture)
	}
	// The marks of an engine that continues chats are no model's.
	if len(a.SpecialTokens) > 0 && len(b.SpecialTokens) > 0 && !slices.ContainsFunc(a.SpecialTokens, func(s string) bool { return slices.Contains(b.SpecialTokens, s) }) {
		return errors.New("it has none of the pool's special tokens: it has another model, or its server continues chats only, which cannot be mixed with exact completions")
	}
	return nil
}

// sample has what vocabularies differ in: words, numbers, white space, marks, other scripts.
const sample = "The 1234 quick foxes' naïveté costs £5.67;\n\tif (x_1 != 0) { return \"день\" } // 猫\n\n"

// sameVocabulary says whether the ids of another engine mean what those of the first member mean.
func (r *router) sameVocabulary(ctx context.Context, other decode.Engine) (bool, error) {
	i := slices.IndexFunc(r.members, func(m *member) bool { return m.engine != nil })
	first := r.members[i].engine
	about, its := first.Info(), other.Info()
	if !about.Capabilities.TokenIDs || !its.Capabilities.TokenIDs || about.Vocabulary == 0 || about.Vocabulary != its.Vocabulary {
		return false, nil
	}
	var ids [2][]int32
	for i, e := range []decode.Engine{first, other} {
		tokens, err := e.Tokenize(ctx, decode.Text(sample+strings.Join(about.SpecialTokens[:min(len(about.SpecialTokens), 64)], "")))
		if err != nil {
			return false, fmt.Errorf("tokenize: %w", err)
		}
		for _, t := range tokens {
			ids[i] = append(ids[i], t.ID)
		}
	}
	return slices.Equal(ids[0], ids[1]), nil
}

// suits returns an error if a member that joins late cannot do what the pool said that it can.
func (r *router) suits(ctx context.Context, e decode.Engine) error {
	about := e.Info()
	if err := alike(r.info, about); err != nil {
		return err
	}
	pool, its := r.info.Capabilities, about.Capabilities
	if pool.LogProbs && !its.LogProbs || pool.Grammar && !its.Grammar || pool.LogitBias && !its.LogitBias || pool.Seed && !its.Seed ||
		about.ContextTokens > 0 && about.ContextTokens < r.info.ContextTokens {
		return errors.New("it can do less than the engines with which the pool was opened: restart the server while it is there")
	}
	if pool.TokenIDs {
		switch same, err := r.sameVocabulary(ctx, e); {
		case err != nil:
			return err
		case !same:
			return errors.New("its token ids are not the pool's: restart the server while it is there")
		}
	}
	return nil
}

// close closes the members. Nothing uses them any more.
func (r *router) close() error {
	var errs []error
	for _, m := range r.members {
		if m.engine != nil {
			errs = append(errs, m.engine.Close())
		}
	}
	return errors.Join(errs...)
}

// lineage is a sequence with all its forks. Its fields are guarded by the router's mu.
type lineage struct{ home *member }

const anyLineage = "any" // what Acquire is asked for

// acquire is remote.Config.Acquire, which is called once for a sequence and its forks: what it returns tells them from others.
func (r *router) acquire(string) (key string, release func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next++
	key = strconv.Itoa(r.next)
	r.lineages[key] = &lineage{}
	return key, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.lineages, key)
	}, nil
}

// Complete implements remote.Completer.
func (r *router) Complete(ctx context.Context, req remote.Request, emit func(remote.Piece)) (decode.End, error) {
	trail := newTrail(req.Prefix)
	m, engine, err := r.pick(req.Model, trail)
	if err != nil {
		return "", err
	}
	end, err := m.complete(ctx, engine, req, func(p remote.Piece) {
		m.recover()
		for i := range p.Tokens {
			t := &p.Tokens[i]
			if !r.info.Capabilities.TokenIDs {
				forget(t)
			}
			trail.token(*t)
		}
		if p.EOG != nil && !r.info.Capabilities.TokenIDs {
			forget(p.EOG)
		}
		emit(p)
	})
	r.done(m, trail)
	var input *decode.InputError
	if err == nil || ctx.Err() != nil || errors.As(err, &input) || errors.Is(err, decode.ErrContextFull) {
		return end, err
	}
	m.fail(err)
	return "", errors.New(m.Name + ": " + err.Error()) // not wrapped: what is final for the member is not for the run
}

// forget takes ids away that mean nothing elsewhere.
func forget(t *decode.Token) {
	t.ID = -1
	for i := range t.Top {
		t.Top[i].ID = -1
	}
}

// Check implements remote.Completer.
func (r *router) Check(span decode.Span) error {
	for _, e := range r.engines() {
		if err := e.Check(span); err != nil {
			return err
		}
	}
	return nil
}

// Tokenize implements remote.Completer.
func (r *router) Tokenize(ctx context.Context, parts []decode.Part) (tokens []decode.Token, err error) {
	err = fmt.Errorf("%w: no engine of model %q is there", decode.ErrUnavailable, r.info.Model)
	for _, e := range r.engines() {
		var input *decode.InputError
		if tokens, err = e.Tokenize(ctx, parts...); err == nil || errors.As(err, &input) || ctx.Err() != nil {
			break
		}
	}
	if !r.info.Capabilities.TokenIDs {
		for i := range tokens {
			forget(&tokens[i])
		}
	}
	return tokens, err
}

// Ready implements remote.Completer: one member is enough.
func (r *router) Ready(ctx context.Context, _ bool) error {
	err := fmt.Errorf("%w: no engine of model %q is there", decode.ErrUnavailable, r.info.Model)
	for _, e := range r.engines() {
		if err = e.Ready(ctx); err == nil {
			return nil
		}
	}
	return err
}

// engines are those of the members that are there, the well ones first.
func (r *router) engines() []decode.Engine {
	r.mu.Lock()
	defer r.mu.Unlock()
	var well, rest []decode.Engine
	for _, m := range r.members {
		switch {
		case m.engine == nil:
		case m.broken:
			rest = append(rest, m.engine)
		default:
			well = append(well, m.engine)
		}
	}
	return append(well, rest...)
}
