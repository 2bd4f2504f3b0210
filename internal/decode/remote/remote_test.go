package remote_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"anytime/internal/decode"
	"anytime/internal/decode/decodetest"
	"anytime/internal/decode/remote"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a Completer whose model is the scripted engine's: each completion is a sequence of that. The hooks make it fail.
type server struct {
	engine *decodetest.Engine
	ids    bool // tokens carry ids
	before func(n int, req remote.Request) error
	token  func(ctx context.Context, n, count int) error // before the count-th token of the n-th completion goes out
	ready  error

	tokenize func() error // before it does

	completions, open, most atomic.Int32
}

func newServer(t *testing.T, opts decodetest.Options) *server {
	s := &server{engine: decodetest.New(opts)}
	t.Cleanup(func() { s.engine.Close() })
	return s
}

func (s *server) info() decode.Info {
	i := s.engine.Info()
	i.Vocabulary = 1 << 20
	i.Capabilities = decode.Capabilities{LogProbs: true, Seed: s.token == nil, TokenIDs: s.ids}
	return i
}

func (s *server) Complete(ctx context.Context, req remote.Request, emit func(remote.Piece)) (decode.End, error) {
	n := int(s.completions.Add(1))
	s.most.Store(max(s.most.Load(), s.open.Add(1)))
	defer s.open.Add(-1)
	if s.before != nil {
		if err := s.before(n, req); err != nil {
			return "", err
		}
	}
	seq, err := s.engine.Open(ctx, decode.Request{Prompt: req.Prefix, Seed: req.Seed})
	if err != nil {
		return "", err
	}
	defer seq.Close()
	if err := seq.Decode(decode.Span{MaxTokens: req.MaxTokens, Sampling: req.Sampling, TopLogProbs: req.TopLogProbs}); err != nil {
		return "", err
	}
	for count := 0; ; {
		c, err := seq.Next(ctx)
		if err != nil {
			return "", err
		}
		p := remote.Piece{EOG: c.EOG}
		if s.ids {
			p.Prefill = c.Prefill
		}
		if p.Prefill != nil {
			p.Prefill.Cached = 0
		}
		for _, t := range c.Tokens {
			if count++; s.token != nil {
				if err := s.token(ctx, n, count); err != nil {
					emit(p)
					return "", err
				}
			}
			if !s.ids {
				t.ID = -1
				for i := range t.Top {
					t.Top[i].ID = -1
				}
			}
			p.Tokens = append(p.Tokens, t)
		}
		emit(p)
		if c.End != "" {
			return c.End, nil
		}
	}
}

func (s *server) Check(decode.Span) error { return nil }

func (s *server) Tokenize(ctx context.Context, parts []decode.Part) ([]decode.Token, error) {
	if s.tokenize != nil {
		if err := s.tokenize(); err != nil {
			return nil, err
		}
	}
	return s.engine.Tokenize(ctx, parts...)
}

func (s *server) Ready(context.Context, bool) error { return s.ready }

func open(t *testing.T, s *server, change ...func(*remote.Config)) *remote.Engine {
	t.Helper()
	c := remote.Config{Info: s.info()}
	for _, f := range change {
		f(&c)
	}
	e := remote.New(s, c)
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func slots(n int) func(*remote.Config) { return func(c *remote.Config) { c.Slots = n } }

func TestConformance(t *testing.T) {
	farewell := decodetest.Options{Model: func(prefix string, seed uint64) string {
		if prefix == decodetest.Farewell {
			return ""
		}
		return decodetest.Words(prefix, seed)
	}}
	broken := func(_ context.Context, n, count int) error {
		if n%3 != 0 && count > 15 {
			return io.ErrUnexpectedEOF
		}
		return nil
	}
	for name, test := range map[string]struct {
		ids    bool
		change []func(*remote.Config)
		token  func(context.Context, int, int) error
	}{
		"text":              {},
		"token ids":         {ids: true},
		"one slot":          {change: []func(*remote.Config){slots(1)}},
		"two slots":         {ids: true, change: []func(*remote.Config){slots(2)}},
		"streams break off": {token: broken, change: []func(*remote.Config){slots(2)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, farewell)
			s.ids, s.token = test.ids, test.token
			e := open(t, s, test.change...)
			decodetest.Conformance(t, func(*testing.T) decode.Engine { return e })
		})
	}
}

func start(t *testing.T, e decode.Engine, class decode.Class) decode.Sequence {
	t.Helper()
	s, err := e.Open(t.Context(), decode.Request{Prompt: []decode.Part{decode.Text("Why?")}, Seed: 5, Priority: decode.Priority{Class: class}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func span(t *testing.T, s decode.Sequence, n int) {
	t.Helper()
	if err := s.Decode(decode.Span{MaxTokens: n}); err != nil {
		t.Fatal(err)
	}
}

func read(s decode.Sequence) (tokens []decode.Token, end decode.End, err error) {
	for {
		c, err := s.Next(context.Background())
		if err != nil {
			return tokens, "", err
		}
		if tokens = append(tokens, c.Tokens...); c.End != "" {
			return tokens, c.End, nil
		}
	}
}

// reference is what the model says without anything in its way.
func reference(t *testing.T, n int) string {
	t.Helper()
	seq := start(t, open(t, newServer(t, decodetest.Options{})), decode.ClassThinking)
	span(t, seq, n)
	tokens, _, err := read(seq)
	if err != nil {
		t.Fatal(err)
	}
	return decodetest.Join(tokens)
}

// Every way in which a completion can fail, at its beginning and in its midst: nothing is lost, nothing comes twice.
func TestGoesOnAfterFailures(t *testing.T) {
	for name, test := range map[string]struct {
		before func(n int, _ remote.Request) error
		token  func(ctx context.Context, n, count int) error
	}{
		"refused connections": {before: func(n int, _ remote.Request) error {
			if n < 6 {
				return errors.New("connection refused")
			}
			return nil
		}},
		"broken in the midst": {token: func(_ context.Context, n, count int) error {
			if n < 8 && count == 7 {
				return io.ErrUnexpectedEOF
			}
			return nil
		}},
		"silent after a few": {token: func(ctx context.Context, n, count int) error {
			if n < 4 && count == 9 {
				<-ctx.Done() // for ever
			}
			return nil
		}},
		"silent from the start": {before: func(n int, _ remote.Request) error { return nil }, token: func(ctx context.Context, n, _ int) error {
			if n == 1 {
				<-ctx.Done()
			}
			return nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				want := reference(t, 100)
				s := newServer(t, decodetest.Options{Step: time.Millisecond})
				s.before, s.token = test.before, test.token
				seq := start(t, open(t, s), decode.ClassThinking)
				span(t, seq, 100)
				tokens, end, err := read(seq)
				if err != nil || end != decode.EndLimit || decodetest.Join(tokens) != want {
					t.Errorf("end %q, %v:\n got %q\nwant %q", end, err, decodetest.Join(tokens), want)
				}
			})
		})
	}
}

func TestGivesUp(t *testing.T) {
	input := &decode.InputError{Field: "prompt", Reason: "has an image mark"}
	for name, test := range map[string]struct {
		err   error
		want  error
		after time.Duration // at least
		tries int32         // at least
	}{
		"away":            {errors.New("connection refused"), decode.ErrUnavailable, time.Minute, 20},
		"fatal":           {fmt.Errorf("%w: no such model", remote.ErrFatal), decode.ErrUnavailable, 0, 1},
		"prompt too long": {decode.ErrContextFull, decode.ErrContextFull, 0, 1},
		"bad input":       {input, input, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer(t, decodetest.Options{})
				s.before = func(int, remote.Request) error { return test.err }
				seq := start(t, open(t, s), decode.ClassThinking)
				fork, err := seq.Fork(50, decode.ForkOptions{})
				if err != nil {
					t.Fatal(err)
				}
				defer fork.Close()
				began := time.Now()
				span(t, seq, 100)
				if _, _, err := read(seq); !errors.Is(err, test.want) {
					t.Errorf("error %v, want %v", err, test.want)
				}
				if took, n := time.Since(began), s.completions.Load(); took < test.after || n < test.tries || test.tries == 1 && n > 1 {
					t.Errorf("gave up after %v and %d tries", took, n)
				}
				span2 := decode.Span{MaxTokens: 1}
				if err := seq.Decode(span2); !errors.Is(err, test.want) {
					t.Errorf("Decode afterwards: %v", err)
				}
				if _, _, err := read(fork); !errors.Is(err, test.want) {
					t.Errorf("fork that waited: %v", err)
				}
			})
		})
	}
}

// A context that is full in the midst of a run ends the span, not the run.
func TestTokenizeTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, decodetest.Options{})
		e := open(t, s)
		away := errors.New("the server answered 502 Bad Gateway")
		for _, test := range []struct {
			err   error
			fails int
			tries int
			want  error
		}{
			{away, 3, 4, nil},
			{away, 100, 5, decode.ErrUnavailable},
			{fmt.Errorf("refused: %w", remote.ErrFatal), 100, 1, decode.ErrUnavailable},
			{decode.ErrContextFull, 100, 1, decode.ErrContextFull},
		} {
			tries := 0
			s.tokenize = func() error {
				if tries++; tries <= test.fails {
					return test.err
				}
				return nil
			}
			if _, err := e.Tokenize(t.Context(), decode.Text("Why?")); !errors.Is(err, test.want) || tries != test.tries {
				t.Errorf("%v %d times: %v after %d tries, want %v after %d", test.err, test.fails, err, tries, test.want, test.tries)
			}
		}
	})
}

func TestContextFullLater(t *testing.T) {
	s := newServer(t, decodetest.Options{})
	s.before = func(n int, _ remote.Request) error {
		if n == 2 {
			return decode.ErrContextFull
		}
		return nil
	}
	seq := start(t, open(t, s), decode.ClassThinking)
	span(t, seq, 5)
	span(t, seq, 5)
	for i, want := range []decode.End{decode.EndLimit, decode.EndContext} {
		if _, end, err := read(seq); err != nil || end != want {
			t.Errorf("span %d: end %q, %v; want %q", i, end, err, want)
		}
	}
}

// With one slot an answer pauses the thought, which then goes on; the answer does not wait for its end.
func TestAnswerTakesTheSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		want := reference(t, 400)
		s := newServer(t, decodetest.Options{Step: 10 * time.Millisecond})
		e := open(t, s, slots(1))
		thought := start(t, e, decode.ClassThinking)
		other := start(t, e, decode.ClassThinking) // waits behind it
		span(t, thought, 400)
		span(t, other, 1)
		began := time.Now()
		fork, err := thought.Fork(100, decode.ForkOptions{Priority: decode.Priority{Class: decode.ClassAnswer}})
		if err != nil {
			t.Fatal(err)
		}
		defer fork.Close()
		if err := fork.Append(decode.Text(" so")); err != nil {
			t.Fatal(err)
		}
		span(t, fork, 20)
		var wg sync.WaitGroup
		wg.Go(func() {
			tokens, end, err := read(fork)
			if took := time.Since(began); err != nil || end != decode.EndLimit || len(tokens) != 20 || took > 1300*time.Millisecond {
				t.Errorf("answer: %d tokens, end %q, %v, after %v", len(tokens), end, err, took)
			}
		})
		wg.Go(func() {
			tokens, _, err := read(thought)
			if took := time.Since(began); err != nil || decodetest.Join(tokens) != want || took > 4300*time.Millisecond {
				t.Errorf("thought: %v, after %v\n got %q\nwant %q", err, took, decodetest.Join(tokens), want)
			}
		})
		wg.Wait()
		if _, _, err := read(other); err != nil {
			t.Error(err)
		}
		if s.most.Load() != 1 {
			t.Errorf("%d completions at once in one slot", s.most.Load())
		}
	})
}

func TestEarliestDeadlineFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := open(t, newServer(t, decodetest.Options{Step: 10 * time.Millisecond}), slots(1))
		var mu sync.Mutex
		var order []string
		var wg sync.WaitGroup
		for _, run := range []struct {
			name     string
			deadline time.Duration
		}{{"none", 0}, {"late", time.Hour}, {"soon", time.Minute}} {
			s := start(t, e, decode.ClassThinking)
			if run.deadline > 0 {
				s.SetPriority(decode.Priority{Class: decode.ClassThinking, Deadline: time.Now().Add(run.deadline)})
			}
			span(t, s, 20)
			wg.Go(func() {
				if _, _, err := read(s); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				order = append(order, run.name)
			})
			synctest.Wait()
		}
		wg.Wait()
		if want := []string{"soon", "late", "none"}; !slices.Equal(order, want) {
			t.Errorf("finished in the order %v, want %v", order, want)
		}
	})
}

// A reader that does not read holds up its own sequence only, and gets everything when it does.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		want := reference(t, 3000)
		s := newServer(t, decodetest.Options{})
		e := open(t, s, slots(1))
		slow, other := start(t, e, decode.ClassThinking), start(t, e, decode.ClassThinking)
		span(t, slow, 3000)
		synctest.Wait()
		if s.open.Load() != 0 {
			t.Error("the server decodes for a reader that does not read")
		}
		span(t, other, 50)
		if _, _, err := read(other); err != nil {
			t.Fatal(err)
		}
		tokens, end, err := read(slow)
		if err != nil || end != decode.EndLimit || decodetest.Join(tokens) != want {
			t.Errorf("%d tokens, end %q, %v", len(tokens), end, err)
		}
	})
}

// Cancelling reaches the server.
func TestCancelsUpstream(t *testing.T) {
	for name, cancel := range map[string]func(decode.Sequence, *remote.Engine){
		"cut":          func(s decode.Sequence, _ *remote.Engine) { s.Cut() },
		"close":        func(s decode.Sequence, _ *remote.Engine) { s.Close() },
		"engine close": func(_ decode.Sequence, e *remote.Engine) { e.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer(t, decodetest.Options{Step: time.Second})
				e := open(t, s)
				seq := start(t, e, decode.ClassThinking)
				span(t, seq, 1000)
				if _, err := seq.Next(t.Context()); err != nil {
					t.Fatal(err)
				}
				cancel(seq, e)
				synctest.Wait()
				if n := s.open.Load(); n != 0 {
					t.Errorf("%d completions are still under way", n)
				}
			})
		})
	}
}

// A model that ends too early is asked again, with other seeds and hotter.
func TestMinTokens(t *testing.T) {
	s := newServer(t, decodetest.Options{Model: func(prefix string, seed uint64) string {
		if seed == 0 { // greedy
			return ""
		}
		return decodetest.Words(prefix, seed)
	}})
	seq := start(t, open(t, s), decode.ClassAnswer)
	if err := seq.Decode(decode.Span{MaxTokens: 5, MinTokens: 1}); err != nil {
		t.Fatal(err)
	}
	if tokens, end, err := read(seq); err != nil || end != decode.EndLimit || len(tokens) != 5 {
		t.Errorf("%d tokens, end %q, %v", len(tokens), end, err)
	}
	dumb := newServer(t, decodetest.Options{Model: func(string, uint64) string { return "" }})
	seq = start(t, open(t, dumb), decode.ClassAnswer)
	if err := seq.Decode(decode.Span{MaxTokens: 5, MinTokens: 1}); err != nil {
		t.Fatal(err)
	}
	if tokens, end, err := read(seq); err != nil || end != decode.EndEOG || len(tokens) != 0 || dumb.completions.Load() > 5 {
		t.Errorf("%d tokens, end %q, %v after %d tries", len(tokens), end, err, dumb.completions.Load())
	}
}

func TestAdapters(t *testing.T) {
	s := newServer(t, decodetest.Options{})
	var mu sync.Mutex
	var models []string
	s.before = func(_ int, req remote.Request) error {
		mu.Lock()
		defer mu.Unlock()
		models = append(models, req.Model)
		return nil
	}
	released := 0
	e := open(t, s, func(c *remote.Config) {
		c.Acquire = func(name string) (string, func(), error) {
			if name != "math" {
				return "", nil, decode.ErrUnknownAdapter
			}
			return "base+math", func() { released++ }, nil
		}
	})
	req := decode.Request{Prompt: []decode.Part{decode.Text("a")}, Adapter: "poetry"}
	if _, err := e.Open(t.Context(), req); !errors.Is(err, decode.ErrUnknownAdapter) {
		t.Errorf("unknown adapter: %v", err)
	}
	req.Adapter = "math"
	seq, err := e.Open(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	fork, err := seq.Fork(0, decode.ForkOptions{})
	if err != nil {
		t.Fatal(err)
	}
	span(t, seq, 1)
	span(t, fork, 1)
	for _, s := range []decode.Sequence{seq, fork} {
		if _, _, err := read(s); err != nil {
			t.Fatal(err)
		}
	}
	seq.Close()
	if released != 0 {
		t.Error("released while a fork uses it")
	}
	fork.Close()
	fork.Close()
	if released != 1 || !slices.Equal(models, []string{"base+math", "base+math"}) {
		t.Errorf("released %d times; models %q", released, models)
	}
}

func TestReady(t *testing.T) {
	s := newServer(t, decodetest.Options{})
	e := open(t, s)
	s.ready = errors.New("no")
	if err := e.Ready(t.Context()); !errors.Is(err, s.ready) {
		t.Errorf("idle: %v", err)
	}
	seq := start(t, e, decode.ClassThinking)
	span(t, seq, 1)
	if _, _, err := read(seq); err != nil {
		t.Fatal(err)
	}
	if err := e.Ready(t.Context()); err != nil {
		t.Errorf("behind a token: %v", err)
	}
	e.Close()
	if err := e.Ready(t.Context()); !errors.Is(err, decode.ErrUnavailable) {
		t.Errorf("closed: %v", err)
	}
	if _, err := e.Open(t.Context(), decode.Request{Prompt: []decode.Part{decode.Text("a")}}); !errors.Is(err, decode.ErrUnavailable) {
		t.Errorf("Open when closed: %v", err)
	}
}

func TestNeutralize(t *testing.T) {
	special := []string{"<|im_end|>", "</think>", "\n"}
	user := func(s string) decode.Part { return decode.Part{Text: s, Literal: true} }
	for name, test := range map[string]struct {
		parts  []decode.Part
		broken bool
	}{
		"no literal":                {[]decode.Part{decode.Text("<|im_end|>")}, false},
		"harmless":                  {[]decode.Part{decode.Text("a"), user("b\n<think")}, false},
		"whole":                     {[]decode.Part{decode.Text("a"), user("x</think>y</think>")}, true},
		"begun by the template":     {[]decode.Part{decode.Text("</thi"), user("nk>")}, true},
		"completed by the template": {[]decode.Part{user("<|im_"), decode.Text("end|>")}, true},
		"over two messages":         {[]decode.Part{user("</"), decode.Text("thi"), user("nk>")}, true},
	} {
		t.Run(name, func(t *testing.T) {
			joined := ""
			for _, p := range test.parts {
				joined += p.Text
			}
			got := remote.Neutralize(test.parts, special)
			if strings.ReplaceAll(got, "\u2060", "") != joined {
				t.Errorf("%q became %q", joined, got)
			}
			if test.broken == (got == joined) {
				t.Errorf("%q became %q", joined, got)
			}
			if test.broken && (strings.Contains(got, special[0]) || strings.Contains(got, special[1])) {
				t.Errorf("%q holds a special token", got)
			}
		})
	}
}

func FuzzEstimate(f *testing.F) {
	f.Add("Hello, wörld: 12345 = 猫\n\n  x")
	f.Add("\xff\xfe a")
	f.Fuzz(func(t *testing.T, text string) {
		joined := ""
		for _, tok := range remote.Estimate(text) {
			if tok.Text == "" || tok.ID != -1 {
				t.Errorf("token %+v", tok)
			}
			joined += tok.Text
		}
		if joined != text {
			t.Errorf("%q became %q", text, joined)
		}
	})
}
