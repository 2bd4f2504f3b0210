// Package decodetest holds the scripted engine, a small decode.Engine whose model is a Go function, and the conformance suite that
// every engine passes.
package decodetest

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"anytime/internal/decode"
)

// Model is a scripted model: the text of the token that follows prefix, "" for end of generation. It must be a pure function.
type Model func(prefix string, seed uint64) string

// Words is a Model that babbles: words drawn by a hash of the prefix's end, and of the seed where sampling is on.
func Words(prefix string, seed uint64) string {
	const words = "so let me try one more we get two and then seven minus three is four wait no yes that fits"
	list := strings.Fields(words)
	h := fnv.New64a()
	fmt.Fprintf(h, "%d|%s", seed, prefix[max(0, len(prefix)-64):])
	return " " + list[h.Sum64()%uint64(len(list))]
}

// Script is a Model that thinks the given tokens, then ends the thinking, and answers from as much of the thinking as it finds:
// answer is called with the number of thinking tokens between open and close.
func Script(thinking []string, open, closing string, answer func(thought string) []string) Model {
	return func(prefix string, _ uint64) string {
		_, rest, found := strings.Cut(prefix, open)
		if !found {
			return ""
		}
		thought, after, closed := strings.Cut(rest, closing)
		if !closed {
			n := 0
			for n < len(thinking) && strings.HasPrefix(rest, thinking[n]) {
				rest = rest[len(thinking[n]):]
				n++
			}
			if n < len(thinking) {
				return thinking[n]
			}
			return closing
		}
		// What is decoded of the answer follows what was forced behind the closing text: find how far it has come.
		tokens := answer(thought)
		whole := strings.Join(tokens, "")
		for n := len(tokens); n > 0; n-- {
			said := strings.Join(tokens[:n], "")
			if strings.HasSuffix(after, said) {
				if said == whole {
					return ""
				}
				return tokens[n]
			}
		}
		if len(tokens) == 0 {
			return ""
		}
		return tokens[0]
	}
}

// Options is a scripted engine's model and speed. Its clock is package time's, so that it runs under testing/synctest.
type Options struct {
	Model   Model
	Info    decode.Info   // Capabilities are overwritten with what the scripted engine can do
	Step    time.Duration // to decode a token
	Prefill time.Duration // to prefill a token
	// OnToken is called before a token is decoded; it may block, which stalls the sequence, or fail it.
	OnToken func(prefix string) error
	// OnOpen may fail Open.
	OnOpen func(decode.Request) error
}

// Engine is the scripted engine. Sequences decode beside one another at the same speed, however many they are.
type Engine struct {
	opts Options
	stop context.CancelFunc
	ctx  context.Context
	wg   sync.WaitGroup

	mu   sync.Mutex
	ids  map[string]int32
	text []string
	open int
}

var _ decode.Engine = (*Engine)(nil)

// New returns an engine; Close waits for its goroutines.
func New(opts Options) *Engine {
	if opts.Model == nil {
		opts.Model = Words
	}
	if opts.Info.Model == "" {
		opts.Info.Model = "scripted"
	}
	if opts.Info.ContextTokens == 0 {
		opts.Info.ContextTokens = 1 << 16
	}
	if opts.Info.MaxSequences == 0 {
		opts.Info.MaxSequences = 64
	}
	if opts.Info.EOS == "" {
		opts.Info.EOS = "<|im_end|>"
	}
	if opts.Info.SpecialTokens == nil {
		opts.Info.SpecialTokens = []string{"<|im_start|>", "<|im_end|>", "<think>", "</think>"}
	}
	opts.Info.Capabilities = decode.Capabilities{TokenIDs: true, LogProbs: true, Seed: true, Forks: true}
	ctx, stop := context.WithCancel(context.Background())
	return &Engine{opts: opts, ctx: ctx, stop: stop, ids: map[string]int32{}}
}

// Info implements decode.Engine.
func (e *Engine) Info() decode.Info { return e.opts.Info }

// Ready implements decode.Engine.
func (e *Engine) Ready(context.Context) error { return e.ctx.Err() }

// Sequences is how many were opened, forks included, and not closed.
func (e *Engine) Sequences() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.open
}

// Close implements decode.Engine.
func (e *Engine) Close() error {
	e.stop()
	e.wg.Wait()
	return nil
}

// Tokenize implements decode.Engine: a special token is one token, other text a token for each word with the space before it.
func (e *Engine) Tokenize(_ context.Context, parts ...decode.Part) ([]decode.Token, error) {
	var tokens []decode.Token
	for _, p := range parts {
		if strings.ContainsRune(p.Text, 0) || !utf8.ValidString(p.Text) {
			return nil, &decode.InputError{Field: "prompt", Reason: "holds a NUL byte or invalid UTF-8; it must be UTF-8 text without NUL"}
		}
		for _, id := range p.IDs {
			text, ok := e.lookup(id)
			if !ok {
				return nil, &decode.InputError{Field: "prompt", Reason: fmt.Sprintf("token id %d is not in the vocabulary", id)}
			}
			tokens = append(tokens, decode.Token{ID: id, Text: text})
		}
		for rest := p.Text; rest != ""; {
			n := e.piece(rest, p.Literal)
			tokens = append(tokens, decode.Token{ID: e.intern(rest[:n]), Text: rest[:n]})
			rest = rest[n:]
		}
	}
	return tokens, nil
}

// piece returns the length of text's first token.
func (e *Engine) piece(text string, literal bool) int {
	for _, s := range e.opts.Info.SpecialTokens {
		if strings.HasPrefix(text, s) {
			if literal {
				return 1
			}
			return len(s)
		}
	}
	n := 0
	for n < len(text) && text[n] == ' ' {
		n++
	}
	for n < len(text) && text[n] != ' ' && (n == 0 || text[n] != '<') {
		n++
	}
	return n
}

func (e *Engine) intern(text string) int32 {
	e.mu.Lock()
	defer e.mu.Unlock()
	id, ok := e.ids[text]
	if !ok {
		id = int32(len(e.text))
		e.ids[text] = id
		e.text = append(e.text, text)
	}
	return id
}

func (e *Engine) lookup(id int32) (string, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if id < 0 || int(id) >= len(e.text) {
		return "", false
	}
	return e.text[id], true
}

// Open implements decode.Engine.
func (e *Engine) Open(ctx context.Context, req decode.Request) (decode.Sequence, error) {
	if e.opts.OnOpen != nil {
		if err := e.opts.OnOpen(req); err != nil {
			return nil, err
		}
	}
	if req.Adapter != "" {
		return nil, fmt.Errorf("%w: %q", decode.ErrUnknownAdapter, req.Adapter)
	}
	tokens, err := e.Tokenize(ctx, req.Prompt...)
	if err != nil {
		return nil, err
	}
	if len(tokens) == 0 {
		return nil, &decode.InputError{Field: "prompt", Reason: "is empty; it must hold at least one token"}
	}
	if len(tokens) >= e.opts.Info.ContextTokens {
		return nil, decode.ErrContextFull
	}
	s := e.sequence(req.Seed)
	s.push(operation{forced: tokens})
	s.start()
	return s, nil
}

func (e *Engine) sequence(seed uint64) *sequence {
	e.mu.Lock()
	e.open++
	e.mu.Unlock()
	s := &sequence{engine: e, seed: seed, wake: make(chan struct{}, 1), news: make(chan struct{}, 1)}
	s.ctx, s.stop = context.WithCancel(e.ctx)
	return s
}

type operation struct {
	forced []decode.Token
	span   *decode.Span
}

type pendingFork struct {
	after int
	child *sequence
}

// sequence runs its operations in a goroutine of its own.
type sequence struct {
	engine *Engine
	seed   uint64
	ctx    context.Context
	stop   context.CancelFunc
	wake   chan struct{} // there is an operation, or a fork
	news   chan struct{} // there is a chunk

	mu      sync.Mutex
	tokens  []decode.Token // all of them, forced and decoded
	decoded []int          // decoded[i]: len(tokens) behind the i+1-th decoded token
	start0  int            // len(tokens) behind the prompt
	queue   []operation
	forks   []pendingFork
	chunks  []decode.Chunk
	cut     bool
	inSpan  bool
	err     error // sticky, for Next
	closed  bool
}

func (s *sequence) start() { s.engine.wg.Go(s.run) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (s *sequence) push(op operation) {
	s.mu.Lock()
	s.queue = append(s.queue, op)
	s.mu.Unlock()
	signal(s.wake)
}

func (s *sequence) run() {
	defer s.end()
	first := true
	for {
		s.mu.Lock()
		s.takeForks()
		var op operation
		has := len(s.queue) > 0
		if has {
			op, s.queue = s.queue[0], s.queue[1:]
			s.inSpan = op.span != nil
		}
		s.mu.Unlock()
		switch {
		case !has:
			select {
			case <-s.wake:
			case <-s.ctx.Done():
				return
			}
		case op.span != nil:
			if !s.decode(*op.span) {
				return
			}
		default:
			if !s.sleep(time.Duration(len(op.forced)) * s.engine.opts.Prefill) {
				return
			}
			s.mu.Lock()
			s.tokens = append(s.tokens, op.forced...)
			if first {
				s.start0 = len(s.tokens)
			}
			s.deliver(decode.Chunk{Prefill: &decode.Prefill{
				Tokens: len(op.forced), Took: time.Duration(len(op.forced)) * s.engine.opts.Prefill,
			}})
			s.mu.Unlock()
			first = false
		}
	}
}

func (s *sequence) sleep(d time.Duration) bool {
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-s.ctx.Done():
		}
	}
	return s.ctx.Err() == nil
}

// decode works off a span; false ends the sequence.
func (s *sequence) decode(span decode.Span) bool {
	said := ""
	for n := 0; ; {
		prefix := s.text()
		if hook := s.engine.opts.OnToken; hook != nil {
			if err := hook(prefix); err != nil {
				s.mu.Lock()
				s.err = err
				s.mu.Unlock()
				return false
			}
		}
		if !s.sleep(s.engine.opts.Step) {
			return false
		}
		s.mu.Lock()
		if s.cut {
			s.cut, s.inSpan = false, false
			s.deliver(decode.Chunk{End: decode.EndCut})
			s.mu.Unlock()
			return true
		}
		full := len(s.tokens) >= s.engine.opts.Info.ContextTokens
		s.mu.Unlock()
		seed := uint64(0)
		if span.Sampling.Temperature > 0 {
			seed = s.seed
		}
		text := s.engine.opts.Model(prefix, seed)
		if text == "" && n < span.MinTokens {
			text = " hm"
		}
		chunk := decode.Chunk{}
		switch {
		case full:
			chunk.End = decode.EndContext
		case text == "":
			chunk.End = decode.EndEOG
			chunk.EOG = &decode.Token{ID: s.engine.intern(s.engine.opts.Info.EOS), LogProb: -0.25}
		default:
			n++
			said += text
			tok := decode.Token{ID: s.engine.intern(text), Text: text, LogProb: -0.25}
			if span.TopLogProbs > 0 {
				tok.Top = []decode.TokenProb{{ID: tok.ID, Text: text, LogProb: -0.25}}
			}
			chunk.Tokens = []decode.Token{tok}
			if slices.ContainsFunc(span.Until, func(u string) bool { return strings.Contains(said, u) }) {
				chunk.End = decode.EndUntil
			} else if n == span.MaxTokens {
				chunk.End = decode.EndLimit
			}
		}
		s.mu.Lock()
		if len(chunk.Tokens) > 0 {
			s.tokens = append(s.tokens, chunk.Tokens...)
			s.decoded = append(s.decoded, len(s.tokens))
		}
		s.takeForks()
		s.inSpan = chunk.End == ""
		s.deliver(chunk)
		s.mu.Unlock()
		if chunk.End != "" {
			return true
		}
	}
}

// text is the whole sequence so far.
func (s *sequence) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, t := range s.tokens {
		b.WriteString(t.Text)
	}
	return b.String()
}

// deliver merges a chunk into the last undelivered one of the same span. The caller holds mu.
func (s *sequence) deliver(c decode.Chunk) {
	if n := len(s.chunks); n > 0 && s.chunks[n-1].End == "" && c.Prefill == nil {
		s.chunks[n-1].Tokens = append(s.chunks[n-1].Tokens, c.Tokens...)
		s.chunks[n-1].End, s.chunks[n-1].EOG = c.End, c.EOG
	} else {
		s.chunks = append(s.chunks, c)
	}
	signal(s.news)
}

// takeForks starts the forks whose position the head has reached. The caller holds mu.
func (s *sequence) takeForks() {
	s.forks = slices.DeleteFunc(s.forks, func(f pendingFork) bool {
		at := len(s.tokens)
		switch {
		case s.start0 == 0 || f.after > len(s.decoded):
			return false
		case f.after == 0:
			at = s.start0
		case f.after > 0:
			at = s.decoded[f.after-1]
		}
		f.child.tokens = slices.Clone(s.tokens[:at])
		f.child.start0 = at
		f.child.start()
		return true
	})
}

func (s *sequence) end() {
	s.stop()
	s.mu.Lock()
	if s.err == nil {
		s.err = decode.ErrClosed
		if !s.closed {
			s.err = decode.ErrUnavailable
		}
	}
	for _, f := range s.forks {
		f.child.mu.Lock()
		f.child.err = decode.ErrNotReached
		f.child.mu.Unlock()
		f.child.stop()
		f.child.start() // only to end
	}
	s.forks = nil
	s.mu.Unlock()
	signal(s.news)
}

// Append implements decode.Sequence.
func (s *sequence) Append(parts ...decode.Part) error {
	tokens, err := s.engine.Tokenize(s.ctx, parts...)
	if err != nil {
		return err
	}
	if s.isClosed() {
		return decode.ErrClosed
	}
	s.push(operation{forced: tokens})
	return nil
}

// Decode implements decode.Sequence.
func (s *sequence) Decode(span decode.Span) error {
	if s.isClosed() {
		return decode.ErrClosed
	}
	if err := s.engine.Check(span); err != nil {
		return err
	}
	s.push(operation{span: &span})
	return nil
}

// Check implements decode.Engine.
func (e *Engine) Check(span decode.Span) error {
	switch {
	case span.MaxTokens < 1:
		return &decode.InputError{Field: "max_tokens", Reason: fmt.Sprintf("is %d; it must be at least 1", span.MaxTokens)}
	case span.Sampling.Grammar != "":
		return &decode.InputError{Field: "grammar", Reason: "is not supported by this engine; leave it out"}
	case span.TopLogProbs < 0 || span.TopLogProbs > 20:
		return &decode.InputError{Field: "top_logprobs", Reason: fmt.Sprintf("is %d; it must be 0 to 20", span.TopLogProbs)}
	case len(span.Sampling.LogitBias) > 0:
		return &decode.InputError{Field: "logit_bias", Reason: "is not supported by this engine; leave it out"}
	}
	return nil
}

// Next implements decode.Sequence.
func (s *sequence) Next(ctx context.Context) (decode.Chunk, error) {
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return decode.Chunk{}, decode.ErrClosed
		}
		if len(s.chunks) > 0 {
			c := s.chunks[0]
			s.chunks = s.chunks[1:]
			if len(s.chunks) > 0 {
				signal(s.news)
			}
			s.mu.Unlock()
			return c, nil
		}
		err := s.err
		s.mu.Unlock()
		if err != nil {
			return decode.Chunk{}, err
		}
		select {
		case <-s.news:
		case <-s.ctx.Done():
			s.mu.Lock()
			err, closed := s.err, s.closed
			s.mu.Unlock()
			switch {
			case closed:
				return decode.Chunk{}, decode.ErrClosed
			case err != nil:
				return decode.Chunk{}, err
			}
			return decode.Chunk{}, decode.ErrUnavailable
		case <-ctx.Done():
			return decode.Chunk{}, ctx.Err()
		}
	}
}

// Cut implements decode.Sequence.
func (s *sequence) Cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut = s.inSpan || slices.ContainsFunc(s.queue, func(op operation) bool { return op.span != nil })
}

// Fork implements decode.Sequence.
func (s *sequence) Fork(after int, opts decode.ForkOptions) (decode.Sequence, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.err != nil {
		return nil, decode.ErrClosed
	}
	child := s.engine.sequence(opts.Seed)
	s.forks = append(s.forks, pendingFork{after, child})
	signal(s.wake)
	return child, nil
}

// SetPriority implements decode.Sequence; every sequence has its own goroutine, so there is nothing to order.
func (s *sequence) SetPriority(decode.Priority) {}

// Close implements decode.Sequence.
func (s *sequence) Close() error {
	s.mu.Lock()
	before := s.closed
	s.closed = true
	s.mu.Unlock()
	s.stop()
	if !before {
		s.engine.mu.Lock()
		s.engine.open--
		s.engine.mu.Unlock()
	}
	return nil
}

func (s *sequence) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}
