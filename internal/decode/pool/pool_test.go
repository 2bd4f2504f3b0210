package pool_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"anytime/internal/decode"
	"anytime/internal/decode/decodetest"
	"anytime/internal/decode/pool"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is a scripted member that can be killed, made mute, and be started again.
type node struct {
	opts decodetest.Options

	mu     sync.Mutex
	dead   bool // nobody listens
	mute   bool // it decodes nothing
	opened []string
	tokens atomic.Int64
}

var errDead = errors.New("connection refused")

func (n *node) member(name string) pool.Member {
	return pool.Member{Name: name, Open: n.open, Reach: func(context.Context) error { return n.state() }}
}

func (n *node) state() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dead {
		return errDead
	}
	return nil
}

func (n *node) set(dead, mute bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dead, n.mute = dead, mute
}

// prompts are what sequences were opened with.
func (n *node) prompts() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.opened...)
}

func (n *node) open(context.Context) (decode.Engine, error) {
	if err := n.state(); err != nil {
		return nil, err
	}
	opts := n.opts
	opts.OnOpen = func(req decode.Request) error {
		if err := n.state(); err != nil {
			return fmt.Errorf("%w: %w", decode.ErrUnavailable, err)
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		text := ""
		for _, p := range req.Prompt {
			text += p.Text + strings.Repeat("#", len(p.IDs))
		}
		n.opened = append(n.opened, text)
		return nil
	}
	ended := make(chan struct{})
	opts.OnToken = func(string) error {
		n.tokens.Add(1)
		n.mu.Lock()
		dead, mute := n.dead, n.mute
		n.mu.Unlock()
		switch {
		case dead:
			return fmt.Errorf("%w: %w", decode.ErrUnavailable, errDead)
		case mute:
			<-ended
			return decode.ErrUnavailable
		}
		return nil
	}
	e := decodetest.New(opts)
	return readying{e, n, ended}, nil
}

// readying is an engine that is ready when its node is.
type readying struct {
	*decodetest.Engine
	node  *node
	ended chan struct{}
}

func (r readying) Ready(ctx context.Context) error {
	if err := r.node.state(); err != nil {
		return err
	}
	return r.Engine.Ready(ctx)
}

func (r readying) Close() error {
	close(r.ended)
	return r.Engine.Close()
}

func open(t testing.TB, nodes ...*node) *pool.Engine {
	t.Helper()
	c := pool.Config{Model: "pooled"}
	for i, n := range nodes {
		c.Members = append(c.Members, n.member(fmt.Sprint("node ", i)))
	}
	e, err := pool.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func begin(t testing.TB, e decode.Engine, prompt string, n int) decode.Sequence {
	t.Helper()
	s, err := e.Open(t.Context(), decode.Request{Prompt: []decode.Part{decode.Text(prompt)}, Seed: 1})
	if err == nil {
		err = s.Decode(decode.Span{MaxTokens: n})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestConformance(t *testing.T) {
	t.Run("text", func(t *testing.T) {
		e := open(t, &node{}, &node{}, &node{})
		if e.Info().Capabilities.TokenIDs {
			t.Error("the vocabularies are not known, and yet it has token ids")
		}
		decodetest.Conformance(t, func(*testing.T) decode.Engine { return e })
	})
	t.Run("token ids", func(t *testing.T) {
		shared := decodetest.New(decodetest.Options{Info: decode.Info{Vocabulary: 1 << 20}, Model: farewell})
		t.Cleanup(func() { shared.Close() })
		member := pool.Member{Name: "shared", Open: func(context.Context) (decode.Engine, error) { return unclosed{shared}, nil }}
		e, err := pool.Open(t.Context(), pool.Config{Model: "pooled", Members: []pool.Member{member, member}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { e.Close() })
		if !e.Info().Capabilities.TokenIDs {
			t.Error("the vocabularies are the same, and yet it has no token ids")
		}
		decodetest.Conformance(t, func(*testing.T) decode.Engine { return e })
	})
}

func farewell(prefix string, seed uint64) string {
	if strings.HasSuffix(prefix, decodetest.Farewell) {
		return ""
	}
	return decodetest.Words(prefix, seed)
}

type unclosed struct{ decode.Engine }

func (unclosed) Close() error { return nil }

// A member dies, or goes silent, in mid-thought: the thought goes on at the other, and nothing of it is lost or said twice.
func TestFailover(t *testing.T) {
	const length = 400
	for name, row := range map[string]struct{ dead, mute bool }{
		"dead":              {true, false},
		"dead and silent":   {true, true},
		"dead while asked":  {true, false},
		"back after a time": {true, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes := []*node{{opts: decodetest.Options{Step: time.Millisecond}}, {opts: decodetest.Options{Step: time.Millisecond}}}
				e := open(t, nodes...)
				want := decodetest.Join(all(t, begin(t, e, "Think. <think>\n", length)))
				home := nodes[0]
				if len(home.prompts()) == 0 {
					home = nodes[1]
				}
				s := begin(t, e, "Think. <think>\n", length)
				var got []decode.Token
				for len(got) < length/4 {
					c, err := s.Next(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, c.Tokens...)
				}
				began := time.Now()
				home.set(row.dead, row.mute)
				got = append(got, all(t, s)...)
				if text := decodetest.Join(got); text != want || len(got) != length {
					t.Errorf("%d tokens %q, want %d %q", len(got), text, length, want)
				}
				if took := time.Since(began); took > 2*time.Second {
					t.Errorf("it took %v", took)
				}
				if err := e.Ready(t.Context()); err != nil {
					t.Errorf("one is there, and yet the pool is not ready: %v", err)
				}
				home.set(false, false)
				time.Sleep(time.Minute) // of the bubble's clock: the circuit closes
				before := len(home.prompts())
				for i := range 8 {
					begin(t, e, fmt.Sprintf("Think of %d. <think>\n", i), 5000)
				}
				synctest.Wait()
				if n := len(home.prompts()) - before; n == 0 {
					t.Error("a member that is well again is not used")
				}
			})
		})
	}
}

func all(t testing.TB, s decode.Sequence) []decode.Token {
	t.Helper()
	var tokens []decode.Token
	for {
		c, err := s.Next(t.Context())
		if err != nil {
			t.Fatalf("Next: %v", err)
		}
		tokens = append(tokens, c.Tokens...)
		if c.End != "" {
			return tokens
		}
	}
}

// All members are away: the run waits, and goes on when one is back; with none for longer than the patience it fails.
func TestNobodyThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := []*node{{opts: decodetest.Options{Step: time.Millisecond}}, {opts: decodetest.Options{Step: time.Millisecond}}}
		e := open(t, nodes...)
		s := begin(t, e, "Think. <think>\n", 200)
		if _, err := s.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes {
			n.set(true, true)
		}
		back := time.AfterFunc(20*time.Second, func() { nodes[1].set(false, false) })
		defer back.Stop()
		all(t, s)
		nodes[1].set(true, true)
		s = begin(t, e, "Think. <think>\n", 200)
		if _, err := s.Next(t.Context()); !errors.Is(err, decode.ErrUnavailable) {
			t.Errorf("error %v, want %v", err, decode.ErrUnavailable)
		}
		if err := e.Ready(t.Context()); err == nil {
			t.Error("nobody is there, and yet the pool is ready")
		}
	})
}

// Forks and what follows go where the thought is; other thoughts go where there is room.
func TestRouting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := decodetest.Options{Step: time.Millisecond, Info: decode.Info{MaxSequences: 4}}
		nodes := []*node{{opts: opts}, {opts: opts}}
		e := open(t, nodes...)
		s := begin(t, e, "Think long. <think>\n", 300)
		thought := decodetest.Join(all(t, s))
		home, other := nodes[0], nodes[1]
		if len(home.prompts()) == 0 {
			home, other = other, home
		}
		for i := range 3 {
			f, err := s.Fork(100*i, decode.ForkOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := f.Append(decode.Text("\n</think> answer:")); err != nil {
				t.Fatal(err)
			}
			if err := f.Decode(decode.Span{MaxTokens: 5}); err != nil {
				t.Fatal(err)
			}
			all(t, f)
		}
		all(t, begin(t, e, "Think long. <think>\n"+thought, 5)) // another sequence, as for an extended run
		if len(home.prompts()) != 5 || len(other.prompts()) != 0 {
			t.Errorf("%d completions where the thought is, %d elsewhere; want 5 and 0", len(home.prompts()), len(other.prompts()))
		}
		for i := range 7 {
			begin(t, e, fmt.Sprintf("%d. <think>\n", i), 10000)
		}
		synctest.Wait()
		if a, b := len(home.prompts())-5, len(other.prompts()); a < 3 || b < 3 {
			t.Errorf("7 thoughts went %d to one and %d to the other", a, b)
		}
	})
}

// A member that was not there joins later, if it has the same model.
func TestLateMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := decodetest.Options{Step: time.Millisecond, Info: decode.Info{Architecture: "llama", Vocabulary: 1 << 20}}
		strange := opts
		strange.Info.Architecture = "qwen3"
		late, wrong := &node{opts: opts, dead: true}, &node{opts: strange, dead: true}
		e := open(t, &node{opts: opts}, late, wrong)
		late.set(false, false)
		wrong.set(false, false)
		time.Sleep(time.Minute)
		for i := range 9 {
			begin(t, e, fmt.Sprintf("%d. <think>\n", i), 10000)
		}
		synctest.Wait()
		if n := len(late.prompts()); n < 3 {
			t.Errorf("%d of 9 thoughts went to the one that joined", n)
		}
		if n := len(wrong.prompts()); n > 0 {
			t.Errorf("%d thoughts went to another model", n)
		}
	})
}

func TestOpenErrors(t *testing.T) {
	llama := decodetest.Options{Info: decode.Info{Architecture: "llama"}}
	qwen := decodetest.Options{Info: decode.Info{Architecture: "qwen3"}}
	chat := decodetest.Options{Info: decode.Info{SpecialTokens: []string{"<|turn:user|>"}}}
	for says, members := range map[string][]*node{
		"it has no members":                            nil,
		"node 1: connection refused":                   {{dead: true}, {dead: true}},
		`node 1: its model is of architecture "qwen3"`: {{opts: llama}, {opts: qwen}},
		"node 1: it has none of the pool's special":    {{opts: llama}, {opts: chat}},
	} {
		var c pool.Config
		for i, n := range members {
			c.Members = append(c.Members, n.member(fmt.Sprint("node ", i)))
		}
		if e, err := pool.Open(t.Context(), c); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, should say %s", err, says)
			if e != nil {
				e.Close()
			}
		}
	}
}
