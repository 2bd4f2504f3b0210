package llamacpp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"anytime/internal/decode"
	"anytime/internal/gguf"
)

const (
	maxOpen   = 4096 // sequences
	maxQueued = 1024 // operations of a sequence
	maxFailed = 5    // starts in a row before the engine says that it is broken
)

// Engine decodes in a child process, which it replaces when it dies or hangs.
type Engine struct {
	config Config
	child  childConfig
	header *gguf.Header
	stop   context.CancelFunc
	done   chan struct{} // closed when the supervisor has ended

	mu       sync.Mutex // guards what follows, and the sequences
	hello    hello
	proc     *process // nil while the child is being replaced
	frame    time.Time
	slowest  time.Duration
	broken   error // why the child does not start, after some tries
	closed   bool
	nextID   uint64
	dir      string // private copies of the adapters; "" until there is one
	seqs     map[uint64]*sequence
	calls    map[uint64]*call
	names    map[string]*loraAdapter
	adapters map[uint64]*loraAdapter // named or in use
	stats    Stats
	before   Stats // of the children before this one
}

var (
	_ decode.Engine   = (*Engine)(nil)
	_ decode.Adapters = (*Engine)(nil)
)

// Stats are the engine's counters since it was opened, and what it holds now.
type Stats struct {
	Steps         uint64 // batches decoded
	BatchTokens   uint64 // tokens in them
	PrefillTokens uint64 // of these, tokens of prompts, forced text and caches made again
	CachedTokens  uint64 // not decoded because a cache began the same
	Preemptions   uint64 // caches taken from sequences that were not finished
	Evictions     uint64 // caches dropped that were kept for prompts that begin the same
	Restarts      uint64 // of the child
	Sequences     int    // open
	Running       int    // decoding
	Waiting       int    // for a slot
	CacheTokens   int    // KV cells in use
}

// blame is how much a death of the child is held against the sequences that decoded.
type blame int

const (
	killed   blame = 1  // from outside, which is hardly their fault, unless they take all memory
	crashed  blame = 10 // or hung
	maxBlame       = 3 * crashed
)

// call is a question to the child.
type call struct {
	command
	answer chan reply // closed if there will be none
}

type loraAdapter struct {
	id    uint64
	path  string // private copy
	scale float32
	users int
	named bool
}

// Open checks and loads the model. It returns once the child has loaded it.
func Open(ctx context.Context, c Config) (*Engine, error) {
	header, err := gguf.Check(c.ModelPath)
	if err != nil {
		return nil, fmt.Errorf("open engine: %w", err)
	}
	if c, err = c.withDefaults(header); err != nil {
		return nil, err
	}
	e := &Engine{
		config: c, header: header, child: c.forChild(header), done: make(chan struct{}),
		seqs: map[uint64]*sequence{}, calls: map[uint64]*call{}, names: map[string]*loraAdapter{}, adapters: map[uint64]*loraAdapter{},
	}
	life, stop := context.WithCancel(context.Background())
	e.stop = stop
	first := make(chan error, 1)
	go e.supervise(life, first)
	select {
	case err = <-first:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		e.Close()
		return nil, fmt.Errorf("open engine: %w", err)
	}
	return e, nil
}

// Info implements decode.Engine.
func (e *Engine) Info() decode.Info {
	e.mu.Lock()
	h := e.hello
	e.mu.Unlock()
	return decode.Info{
		Model: e.config.Model, Architecture: e.header.Architecture(), ContextTokens: e.config.ContextTokens,
		Vocabulary: h.Vocabulary, ChatTemplate: e.header.ChatTemplate(), BOS: h.BOS, EOS: h.EOS, AddBOS: h.AddBOS,
		SpecialTokens: e.header.SpecialTokens(), MaxSequences: e.config.Sequences,
		AnswerSteps: answerSteps(h.GPULayers),
		Capabilities: decode.Capabilities{
			TokenIDs: true, LogProbs: true, Grammar: true, LogitBias: true, Seed: true, Forks: true, Adapters: true,
		},
	}
}

// Stats returns the engine's counters.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.stats
	s.Sequences = len(e.seqs)
	return s
}

// answerSteps is Info.AnswerSteps. On a GPU a step takes about as long whatever is in it.
func answerSteps(gpuLayers int) int {
	if gpuLayers > 0 {
		return 1
	}
	return 4
}

// GPULayers is how many of the model's layers are on the GPU.
func (e *Engine) GPULayers() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.hello.GPULayers
}

// usable returns why no sequence can be opened. The caller holds mu.
func (e *Engine) usable() error {
	switch {
	case e.closed:
		return fmt.Errorf("%w: it is closed", decode.ErrUnavailable)
	case e.broken != nil:
		return fmt.Errorf("%w: %w", decode.ErrUnavailable, e.broken)
	}
	return nil
}

// Open implements decode.Engine.
func (e *Engine) Open(ctx context.Context, req decode.Request) (decode.Sequence, error) {
	s, err := e.open(req)
	if err != nil {
		return nil, err
	}
	select {
	case <-s.begun:
	case <-ctx.Done():
		s.Close()
		return nil, ctx.Err()
	}
	e.mu.Lock()
	err = s.err
	e.mu.Unlock()
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (e *Engine) open(req decode.Request) (*sequence, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.usable(); err != nil {
		return nil, err
	}
	if err := checkParts(req.Prompt, e.hello.Vocabulary, e.config.ContextTokens, e.hello.MaxPiece); err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(req.Prompt, func(p decode.Part) bool { return p.Text != "" || len(p.IDs) > 0 }) {
		return nil, refuse("prompt", "is empty; it must hold at least one token")
	}
	var a *loraAdapter
	if req.Adapter != "" {
		if a = e.names[req.Adapter]; a == nil {
			return nil, fmt.Errorf("%w: %q", decode.ErrUnknownAdapter, req.Adapter)
		}
	}
	s, err := e.newSequence(req.Seed, req.Priority, a)
	if err != nil {
		return nil, err
	}
	s.queue = []queued{{parts: join(req.Prompt), prompt: true}}
	s.restore()
	return s, nil
}

// Tokenize implements decode.Engine.
func (e *Engine) Tokenize(ctx context.Context, parts ...decode.Part) ([]decode.Token, error) {
	e.mu.Lock()
	h := e.hello
	e.mu.Unlock()
	if err := checkParts(parts, h.Vocabulary, e.config.ContextTokens, h.MaxPiece); err != nil {
		return nil, err
	}
	r, err := e.ask(ctx, command{Kind: cmdTokenize, Parts: join(parts), Prompt: true})
	return r.Tokens, err
}

// Check implements decode.Engine.
func (e *Engine) Check(span decode.Span) error {
	if err := checkSpan(span, e.Info().Vocabulary); err != nil {
		return err
	}
	if span.Sampling.Grammar != "" {
		return checkGrammar(span.Sampling.Grammar)
	}
	return nil
}

// Ready implements decode.Engine: the loop that owns the model answers between two steps.
func (e *Engine) Ready(ctx context.Context) error {
	_, err := e.ask(ctx, command{Kind: cmdPing})
	return err
}

// ask sends a question and waits for the reply, from the next child if this one dies.
func (e *Engine) ask(ctx context.Context, c command) (reply, error) {
	e.mu.Lock()
	if err := e.usable(); err != nil {
		e.mu.Unlock()
		return reply{}, err
	}
	e.nextID++
	c.Call = e.nextID
	q := &call{command: c, answer: make(chan reply, 1)}
	e.calls[c.Call] = q
	e.send(c)
	e.mu.Unlock()
	select {
	case r, ok := <-q.answer:
		if ok {
			return r, r.Err.error()
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		if err := e.usable(); err != nil {
			return reply{}, err
		}
		return reply{}, decode.ErrUnavailable // it was, and is well by now
	case <-ctx.Done():
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.calls, c.Call)
		return reply{}, ctx.Err()
	}
}

// Close implements decode.Engine.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closed = true
	for _, s := range e.seqs {
		s.closed = true
		notify(s.wake)
		s.begin(e.usable())
	}
	e.hangUp()
	e.mu.Unlock()
	e.stop()
	<-e.done
	return os.RemoveAll(e.dir)
}

// hangUp lets go of everybody who waits for a reply. The caller holds mu.
func (e *Engine) hangUp() {
	for id, q := range e.calls {
		close(q.answer)
		delete(e.calls, id)
	}
}

// LoadAdapter implements decode.Adapters. The file is copied: what a child that replaces this one loads must be the same.
func (e *Engine) LoadAdapter(ctx context.Context, name, path string, scale float32) error {
	if name == "" {
		return refuse("adapter", "has no name; it must have one")
	}
	if !(scale > 0 && scale <= 100) {
		return refuse("scale", "is %v; it must be above 0, where 1 applies the adapter as trained, and at most 100", scale)
	}
	a, err := e.newAdapter(scale)
	if err != nil {
		return fmt.Errorf("load adapter %q: %w", name, err)
	}
	if err := copyFile(a.path, path); err != nil {
		return fmt.Errorf("load adapter %q: %w", name, err)
	}
	err = func() error {
		if _, err := gguf.CheckAdapter(a.path, e.header); err != nil {
			return refuse("adapter", "%s is not usable: %s", path, strings.ReplaceAll(err.Error(), a.path, filepath.Base(path)))
		}
		_, err := e.ask(ctx, command{Kind: cmdAdapter, Adapter: a.id, Path: a.path, Scale: scale})
		return err
	}()
	if err != nil {
		e.mu.Lock()
		e.send(command{Kind: cmdUnload, Adapter: a.id}) // it may yet be loaded, if it was ctx that ended
		e.mu.Unlock()
		os.Remove(a.path)
		return fmt.Errorf("load adapter %q: %w", name, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if old := e.names[name]; old != nil {
		e.forget(old)
	}
	a.named = true
	e.names[name], e.adapters[a.id] = a, a
	return nil
}

// newAdapter numbers an adapter and finds it a place.
func (e *Engine) newAdapter(scale float32) (*loraAdapter, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.usable(); err != nil {
		return nil, err
	}
	if e.dir == "" {
		var err error
		if e.dir, err = os.MkdirTemp("", "anytime-engine-"); err != nil {
			return nil, err
		}
	}
	e.nextID++
	return &loraAdapter{id: e.nextID, scale: scale, path: filepath.Join(e.dir, fmt.Sprintf("adapter-%d.gguf", e.nextID))}, nil
}

// UnloadAdapter implements decode.Adapters.
func (e *Engine) UnloadAdapter(_ context.Context, name string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	a := e.names[name]
	if a == nil {
		return fmt.Errorf("%w: %q", decode.ErrUnknownAdapter, name)
	}
	delete(e.names, name)
	e.forget(a)
	return nil
}

// AdapterNames implements decode.Adapters.
func (e *Engine) AdapterNames() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Sorted(maps.Keys(e.names))
}

// forget takes an adapter's name away; the child frees it after its last sequence. The caller holds mu.
func (e *Engine) forget(a *loraAdapter) {
	a.named = false
	e.send(command{Kind: cmdUnload, Adapter: a.id})
	e.release(a)
}

// release forgets an adapter that has neither name nor users. The caller holds mu.
func (e *Engine) release(a *loraAdapter) {
	if !a.named && a.users == 0 {
		delete(e.adapters, a.id)
		os.Remove(a.path)
	}
}

func copyFile(to, from string) (err error) {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return errors.Join(err, w.Close())
}
