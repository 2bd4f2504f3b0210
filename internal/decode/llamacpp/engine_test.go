package llamacpp_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"anytime/internal/decode"
	"anytime/internal/decode/decodetest"
	"anytime/internal/decode/llamacpp"
	"anytime/internal/gguf/tiny"
)

func TestConformance(t *testing.T) {
	e := open(t)
	decodetest.Conformance(t, func(*testing.T) decode.Engine { return e })
}

// A cache that cannot be cut, as of recurrent models, is slower but gives the same.
func TestConformanceWholeState(t *testing.T) {
	llamacpp.SetWholeState(t)
	e := open(t, func(c *llamacpp.Config) { c.Sequences = 4 })
	decodetest.Conformance(t, func(*testing.T) decode.Engine { return e })
}

func equal(t testing.TB, what string, got, want result) {
	t.Helper()
	if !slices.Equal(got.ids(), want.ids()) || got.end != want.end {
		t.Errorf("%s:\n got %d tokens %q, end %q\nwant %d tokens %q, end %q",
			what, len(got.tokens), got.text(), got.end, len(want.tokens), want.text(), want.end)
	}
}

// forkAt forks, forces a suffix and decodes n tokens.
func forkAt(t testing.TB, s decode.Sequence, after int, seed uint64, n int) decode.Sequence {
	t.Helper()
	f, err := s.Fork(after, decode.ForkOptions{Seed: seed})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Append(decode.Text("</think> so")); err != nil {
		t.Fatal(err)
	}
	span(t, f, n, warm)
	return f
}

// workload runs n thoughts with two forks each and returns all that was said. interfere is called once all have begun to speak.
func workload(t *testing.T, e *llamacpp.Engine, n int, interfere func()) []result {
	t.Helper()
	var all []decode.Sequence
	for i := range n {
		s := start(t, e, fmt.Sprintf("Question %d: what is one and two?", i%3), uint64(1000+i))
		all = append(all, s, forkAt(t, s, 40, uint64(100+i), 30), forkAt(t, s, 80, uint64(200+i), 30))
		span(t, s, 200, warm)
	}
	results := make([]result, len(all))
	var wg, speaking sync.WaitGroup
	for i, s := range all {
		if i%3 == 0 {
			speaking.Add(1)
		}
		wg.Go(func() {
			if i%3 == 0 {
				c, err := s.Next(context.Background())
				if err != nil {
					t.Error(err)
				}
				results[i].tokens, results[i].end = c.Tokens, c.End
				speaking.Done()
			}
			if results[i].end != "" { // a reader that waited long for its turn gets all at once
				return
			}
			r, err := read(s)
			if err != nil {
				t.Errorf("sequence %d: %v", i, err)
			}
			results[i].tokens = append(results[i].tokens, r.tokens...)
			results[i].end = r.end
		})
	}
	if interfere != nil {
		speaking.Wait()
		interfere()
	}
	wg.Wait()
	for _, s := range all {
		s.Close()
	}
	return results
}

func same(t *testing.T, got, want []result) {
	t.Helper()
	for i := range want {
		equal(t, fmt.Sprintf("sequence %d", i), got[i], want[i])
	}
}

func TestMoreForksThanSlots(t *testing.T) {
	want := workload(t, open(t), 6, nil)
	got := workload(t, open(t, func(c *llamacpp.Config) { c.Sequences = 3 }), 6, nil)
	same(t, got, want)
}

func TestCacheFullPreempts(t *testing.T) {
	want := workload(t, open(t), 6, nil)
	e := open(t, func(c *llamacpp.Config) { c.ContextTokens, c.CacheTokens = 260, 512 })
	same(t, workload(t, e, 6, nil), want)
	if s := e.Stats(); s.Preemptions == 0 {
		t.Errorf("nothing was preempted: %+v", s)
	}
}

func TestChildKilled(t *testing.T) {
	want := workload(t, open(t), 8, nil)
	restarted := make(chan error, 10)
	e := open(t, func(c *llamacpp.Config) { c.OnRestart = func(err error) { restarted <- err } })
	got := workload(t, e, 8, func() { kill(t, e, syscall.SIGKILL) })
	same(t, got, want)
	if err := <-restarted; err == nil || e.Stats().Restarts != 1 {
		t.Errorf("restarted for %v, stats %+v", err, e.Stats())
	}
}

func TestChildHangs(t *testing.T) {
	want := workload(t, open(t), 2, nil)
	e := open(t, func(c *llamacpp.Config) { c.Watchdog = 2 * time.Second })
	got := workload(t, e, 2, func() { kill(t, e, syscall.SIGSTOP) })
	same(t, got, want)
	if e.Stats().Restarts != 1 {
		t.Errorf("stats %+v", e.Stats())
	}
}

// An engine without work notices, too, and Ready waits for the next child.
func TestIdleChildKilled(t *testing.T) {
	e := open(t)
	s := start(t, e, "Hello", 1)
	span(t, s, 30)
	first := finish(t, s)
	kill(t, e, syscall.SIGKILL)
	if err := e.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	span(t, s, 30)
	second := finish(t, s)
	u := start(t, e, "Hello", 1)
	span(t, u, 60)
	all := finish(t, u)
	equal(t, "before and after", result{tokens: append(first.tokens, second.tokens...), end: decode.EndLimit}, all)
}

func kill(t *testing.T, e *llamacpp.Engine, sig syscall.Signal) {
	t.Helper()
	pid := e.ChildPID()
	if pid == 0 {
		t.Fatal("no child is running")
	}
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
}

func TestOpenFails(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "broken.gguf")
	if err := os.WriteFile(broken, []byte("GGUF and then nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(*llamacpp.Config)
		want   string
	}{
		"no model":        {func(c *llamacpp.Config) { c.ModelPath = "nowhere.gguf" }, "nowhere.gguf"},
		"broken model":    {func(c *llamacpp.Config) { c.ModelPath = broken }, "broken.gguf"},
		"no libraries":    {func(c *llamacpp.Config) { c.LibDir = t.TempDir() }, "libggml"},
		"no such program": {func(c *llamacpp.Config) { c.Command = []string{"/no/such/program"} }, "/no/such/program"},
		"wrong program":   {func(c *llamacpp.Config) { c.Command = []string{"true"} }, "engine process ended"},
		"context of 2^30": {func(c *llamacpp.Config) { c.ContextTokens = 1 << 30 }, "ContextTokens"},
		"cache of 2^30":   {func(c *llamacpp.Config) { c.CacheTokens = 1 << 30 }, "CacheTokens"},
		"small cache":     {func(c *llamacpp.Config) { c.CacheTokens = 100 }, "CacheTokens"},
		"300 sequences":   {func(c *llamacpp.Config) { c.Sequences = 300 }, "Sequences"},
		"small batch":     {func(c *llamacpp.Config) { c.BatchTokens = 8 }, "BatchTokens"},
		"no threads":      {func(c *llamacpp.Config) { c.Threads = -1 }, "Threads"},
		"kv type":         {func(c *llamacpp.Config) { c.KVType = "q3" }, "KVType"},
		"q8_0 unflashed":  {func(c *llamacpp.Config) { c.KVType = "q8_0" }, "FlashAttention"},
		"gpu layers":      {func(c *llamacpp.Config) { c.GPULayers = -2 }, "GPULayers"},
	} {
		t.Run(name, func(t *testing.T) {
			c := exact(t)
			test.change(&c)
			e, err := llamacpp.Open(t.Context(), c)
			if err == nil {
				e.Close()
				t.Fatal("it was opened")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %q does not name %q", err, test.want)
			}
		})
	}
}

// A model that no longer loads fails those who wait, and Ready says why.
func TestModelGone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "model.gguf")
	if err := tiny.WriteFile(path, 1, tiny.Options{}); err != nil {
		t.Fatal(err)
	}
	e := open(t, func(c *llamacpp.Config) { c.ModelPath = path })
	s := start(t, e, "Hello", 1)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	kill(t, e, syscall.SIGKILL)
	span(t, s, 500)
	if _, err := read(s); !errors.Is(err, decode.ErrUnavailable) {
		t.Errorf("sequence: %v", err)
	}
	if err := e.Ready(t.Context()); !errors.Is(err, decode.ErrUnavailable) || !strings.Contains(err.Error(), "model.gguf") {
		t.Errorf("ready: %v", err)
	}
	if _, err := e.Open(t.Context(), decode.Request{Prompt: []decode.Part{decode.Text("a")}}); !errors.Is(err, decode.ErrUnavailable) {
		t.Errorf("open: %v", err)
	}
}

func TestPrefixReuse(t *testing.T) {
	e := open(t)
	prompt := strings.Repeat("one and two are three ", 20)
	prefill := func(prompt string) decode.Prefill {
		s := start(t, e, prompt, 1)
		defer s.Close()
		span(t, s, 4)
		return *finish(t, s).prefill
	}
	first := prefill(prompt)
	if first.Cached != 0 || first.Tokens < 100 {
		t.Errorf("first prompt: %+v", first)
	}
	if again := prefill(prompt); again.Tokens != first.Tokens || again.Cached < first.Tokens-2 {
		t.Errorf("same prompt: %+v after %+v", again, first)
	}
	if longer := prefill(prompt + "and more of it"); longer.Cached < first.Tokens-2 || longer.Cached >= longer.Tokens {
		t.Errorf("longer prompt: %+v after %+v", longer, first)
	}
	if other := prefill("two" + prompt); other.Cached != 0 {
		t.Errorf("other prompt: %+v", other)
	}
	// Prompts that come at the same time share, too.
	before := e.Stats()
	var list []decode.Sequence
	for i := range 4 {
		list = append(list, start(t, e, "now "+prompt, uint64(i)))
	}
	for _, s := range list {
		span(t, s, 4)
	}
	for _, s := range list {
		finish(t, s)
	}
	if n := int(e.Stats().PrefillTokens - before.PrefillTokens); n > first.Tokens+50 {
		t.Errorf("%d tokens were prefilled for 4 equal prompts of %d", n, first.Tokens)
	}
}

func TestContextFull(t *testing.T) {
	e := open(t, func(c *llamacpp.Config) { c.ContextTokens = 64 })
	if _, err := e.Open(t.Context(), decode.Request{Prompt: []decode.Part{{IDs: make([]int32, 64)}}}); !errors.Is(err, decode.ErrContextFull) {
		t.Errorf("prompt of 64: %v", err)
	}
	s, err := e.Open(t.Context(), decode.Request{Prompt: []decode.Part{{IDs: slices.Repeat([]int32{40}, 60)}}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	span(t, s, 10)
	if r := finish(t, s); len(r.tokens) != 4 || r.end != decode.EndContext {
		t.Errorf("%d tokens, end %q; want 4, context", len(r.tokens), r.end)
	}
	span(t, s, 10)
	if r := finish(t, s); len(r.tokens) != 0 || r.end != decode.EndContext {
		t.Errorf("%d tokens, end %q; want 0, context", len(r.tokens), r.end)
	}
	f, err := s.Fork(0, decode.ForkOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Append(decode.Part{IDs: make([]int32, 5)}); err != nil {
		t.Fatal(err)
	}
	span(t, f, 10)
	if r := finish(t, f); len(r.tokens) != 0 || r.end != decode.EndContext {
		t.Errorf("after forced text that does not fit: %d tokens, end %q", len(r.tokens), r.end)
	}
}

func TestLogProbs(t *testing.T) {
	e := open(t)
	s := start(t, e, "Hello", 3)
	span(t, s, 20, warm, func(sp *decode.Span) { sp.TopLogProbs = 20; sp.Sampling.TopK = 3 })
	for _, tok := range finish(t, s).tokens {
		sum := 0.0
		for _, c := range tok.Top {
			sum += math.Exp(float64(c.LogProb))
			if c.ID == tok.ID && c.LogProb != tok.LogProb {
				t.Errorf("token %d has log-prob %v and %v", tok.ID, tok.LogProb, c.LogProb)
			}
		}
		if len(tok.Top) != 20 || sum > 1+1e-5 || sum < 0.05 {
			t.Errorf("%d candidates with probability %v", len(tok.Top), sum)
		}
		if !slices.ContainsFunc(tok.Top[:3], func(c decode.TokenProb) bool { return c.ID == tok.ID }) {
			t.Errorf("token %d is not among the 3 likeliest", tok.ID)
		}
	}
}

func TestEOG(t *testing.T) {
	path := filepath.Join(t.TempDir(), "model.gguf")
	if err := tiny.WriteFile(path, 1, tiny.Options{Rate: map[string]float64{tiny.EOS: 0.5}}); err != nil {
		t.Fatal(err)
	}
	e := open(t, func(c *llamacpp.Config) { c.ModelPath = path })
	s := start(t, e, "Hello", 3)
	span(t, s, 200, warm, func(sp *decode.Span) { sp.MinTokens = 7 })
	r := finish(t, s)
	if r.end != decode.EndEOG || len(r.tokens) < 7 || strings.Contains(r.text(), tiny.EOS) {
		t.Errorf("%d tokens %q, end %q", len(r.tokens), r.text(), r.end)
	}
	span(t, s, 5) // MinTokens 5: thinks on past the end
	if r := finish(t, s); len(r.tokens) != 5 {
		t.Errorf("%d tokens after the end", len(r.tokens))
	}
}

// A reader that does not read stops its own sequence only.
func TestSlowReader(t *testing.T) {
	e := open(t)
	slow, quick := start(t, e, "Hello", 1), start(t, e, "World", 1)
	span(t, slow, 600)
	span(t, quick, 900)
	finish(t, quick)
	if err := e.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := e.Stats().BatchTokens; n > 900+300+20 {
		t.Errorf("%d tokens were decoded: the slow reader's sequence ran ahead", n)
	}
	if r := finish(t, slow); len(r.tokens) != 600 {
		t.Errorf("%d tokens", len(r.tokens))
	}
}

func TestCutBeforeAnything(t *testing.T) {
	e := open(t)
	s := start(t, e, strings.Repeat("Hello world ", 50), 1)
	span(t, s, 600)
	s.Cut()
	if r := finish(t, s); r.end != decode.EndCut && len(r.tokens) >= 600 {
		t.Errorf("%d tokens, end %q", len(r.tokens), r.end)
	}
	f, err := s.Fork(1<<20, decode.ForkOptions{}) // never reached: the cut waits with its span
	if err != nil {
		t.Fatal(err)
	}
	span(t, f, 5)
	f.Cut()
	s.Close()
	if _, err := read(f); !errors.Is(err, decode.ErrNotReached) {
		t.Error(err)
	}
}

func TestCloseWhileDecoding(t *testing.T) {
	e := open(t)
	errs := make(chan error, 4)
	for i := range 4 {
		s := start(t, e, fmt.Sprint("Hello ", i), 1)
		span(t, s, 900)
		if _, err := s.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				if _, err := s.Next(context.Background()); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if err := <-errs; !errors.Is(err, decode.ErrClosed) {
			t.Errorf("Next: %v", err)
		}
	}
	if err := e.Ready(context.Background()); !errors.Is(err, decode.ErrUnavailable) {
		t.Errorf("Ready: %v", err)
	}
	if _, err := e.Open(context.Background(), decode.Request{Prompt: []decode.Part{decode.Text("a")}}); !errors.Is(err, decode.ErrUnavailable) {
		t.Errorf("Open: %v", err)
	}
}
