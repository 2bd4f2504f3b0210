package catalog_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/catalog"
	"anytime/internal/decode"
	"anytime/internal/decode/decodetest"
	"anytime/internal/decode/prompt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	step     = 10 * time.Millisecond
	prefill  = time.Millisecond
	loadTime = 3 * time.Second
)

// zoo opens scripted engines and knows which are open.
type zoo struct {
	mu     sync.Mutex
	opened []string // in order
	open   map[string]*engine
	failed error // what opening fails with
}

// engine is a scripted engine with adapters.
type engine struct {
	*decodetest.Engine
	zoo *zoo
	id  string

	mu       sync.Mutex
	adapters map[string]string // file by name
}

func (e *engine) Close() error {
	e.zoo.mu.Lock()
	delete(e.zoo.open, e.id)
	e.zoo.mu.Unlock()
	return e.Engine.Close()
}

func (e *engine) LoadAdapter(_ context.Context, name, path string, _ float32) error {
	if path == "broken.gguf" {
		return errors.New("not an adapter")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.adapters[name] != "" {
		panic("loaded twice under " + name)
	}
	e.adapters[name] = path
	return nil
}

func (e *engine) UnloadAdapter(_ context.Context, name string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.adapters[name] == "" {
		panic(name + " is not loaded")
	}
	delete(e.adapters, name)
	return nil
}

func (e *engine) AdapterNames() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Sorted(maps.Keys(e.adapters))
}

// file is what an adapter was loaded from; "" none.
func (e *engine) file(name string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.adapters[name]
}

// Open lets the scripted model, which knows none, decode with any adapter that is loaded but a silent one.
func (e *engine) Open(ctx context.Context, req decode.Request) (decode.Sequence, error) {
	if file := e.file(req.Adapter); req.Adapter != "" && file == "" {
		return nil, decode.ErrUnknownAdapter
	} else if file == "silent.gguf" {
		return nil, errors.New("the logits are not finite")
	}
	req.Adapter = ""
	return e.Engine.Open(ctx, req)
}

func (z *zoo) model(id string, bytes int64) catalog.ModelConfig {
	return catalog.ModelConfig{ID: id, Bytes: bytes, ContextTokens: 1000, Open: func(ctx context.Context) (decode.Engine, error) {
		z.mu.Lock()
		z.opened = append(z.opened, id)
		if z.open[id] != nil {
			panic("opened twice")
		}
		failed := z.failed
		z.mu.Unlock()
		select {
		case <-time.After(loadTime):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if failed != nil {
			return nil, failed
		}
		e := &engine{Engine: decodetest.New(decodetest.Options{Step: step, Prefill: prefill, Info: decode.Info{ContextTokens: 1000}}), zoo: z, id: id, adapters: map[string]string{}}
		z.mu.Lock()
		defer z.mu.Unlock()
		z.open[id] = e
		return e, nil
	}}
}

func (z *zoo) fail(err error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.failed = err
}

func (z *zoo) opens() int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return len(z.opened)
}

func (z *zoo) isOpen() string {
	z.mu.Lock()
	defer z.mu.Unlock()
	return strings.Join(slices.Sorted(maps.Keys(z.open)), " ")
}

// bench runs a test on a catalog of a (60 bytes), b (40) and c (50), with a bound of 100.
func bench(t *testing.T, test func(t *testing.T, z *zoo, c *catalog.Catalog), change ...func(*catalog.Config)) {
	synctest.Test(t, func(t *testing.T) {
		z := &zoo{open: map[string]*engine{}}
		cfg := catalog.Config{
			Models:      []catalog.ModelConfig{z.model("a", 60), z.model("b", 40), z.model("c", 50)},
			MemoryBytes: 100, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		}
		for _, f := range change {
			f(&cfg)
		}
		c, err := catalog.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		test(t, z, c)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if open := z.isOpen(); open != "" {
			t.Errorf("still open after Close: %s", open)
		}
	})
}

func acquire(t *testing.T, c *catalog.Catalog, name string) (*anytime.Model, func()) {
	t.Helper()
	m, release, err := c.Acquire(t.Context(), name)
	if err != nil {
		t.Fatalf("acquire %q: %v", name, err)
	}
	return m, release
}

func TestAcquireByName(t *testing.T) {
	rows := []struct {
		name, id, adapter string
		err               error
		opens             int // models opened for it
	}{
		{"", "a", "", nil, 1},
		{"default", "a", "", nil, 1},
		{"a", "a", "", nil, 1},
		{"b", "b", "", nil, 1},
		{"a:poet", "a:poet", "poet.gguf", nil, 1},
		{"default:poet", "a:poet", "poet.gguf", nil, 1},
		{"a:bare", "a", "", nil, 1},
		{"a:nobody", "", "", decode.ErrUnknownAdapter, 0},
		{"b:poet", "", "", decode.ErrUnknownAdapter, 0},
		{"A", "", "", anytime.ErrUnknownModel, 0},
		{"d:poet", "", "", anytime.ErrUnknownModel, 0},
		{"a:", "", "", anytime.ErrUnknownModel, 0},
		{":poet", "", "", anytime.ErrUnknownModel, 0},
		{":", "", "", anytime.ErrUnknownModel, 0},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			bench(t, func(t *testing.T, z *zoo, c *catalog.Catalog) {
				m, release, err := c.Acquire(t.Context(), row.name)
				if !errors.Is(err, row.err) || z.opens() != row.opens {
					t.Fatalf("error %v, want %v; %d opened, want %d", err, row.err, z.opens(), row.opens)
				}
				if err != nil {
					if errors.Is(err, anytime.ErrUnknownModel) && !strings.Contains(err.Error(), "a, b, c") {
						t.Errorf("%v: it does not list the models", err)
					}
					return
				}
				defer release()
				if m.ID != row.id || m.Engine.(*engine).file(m.Adapter) != row.adapter || m.Engine == nil || m.Renderer == nil || m.Length == nil || m.MaxThinking != 1000 {
					t.Errorf("%+v", m)
				}
				bare, done := acquire(t, c, strings.TrimSuffix(row.id, ":poet"))
				defer done()
				if bare.Pace != m.Pace || (row.adapter == "") != (bare.Length == m.Length) {
					t.Error("an adapter shares its model's pace, and has its own length of answers")
				}
				again, done := acquire(t, c, row.name)
				defer done()
				if again != m {
					t.Error("asked again, it is another")
				}
				if _, _, err := c.Acquire(t.Context(), strings.TrimSuffix(row.id, ":poet")+":nobody"); !errors.Is(err, decode.ErrUnknownAdapter) {
					t.Errorf("unknown adapter of a loaded model: %v", err)
				}
			}, func(cfg *catalog.Config) { cfg.Models[0].Adapters = files("poet", "poet.gguf") })
		})
	}
}

func TestLoadsOnce(t *testing.T) {
	bench(t, func(t *testing.T, z *zoo, c *catalog.Catalog) {
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				_, release, err := c.Acquire(t.Context(), "a")
				if err != nil {
					t.Error(err)
					return
				}
				release()
				release() // does nothing more
			})
		}
		wg.Wait()
		if z.opens() != 1 {
			t.Errorf("opened %v", z.opened)
		}
	})
}

// Models are used one after the other, each released before the next.
func TestEviction(t *testing.T) {
	rows := []struct{ use, opened, open string }{
		{"a b", "a b", "a b"},       // just fits
		{"a b a b", "a b", "a b"},   // stays
		{"a b c", "a b c", "b c"},   // a was used first
		{"a b a c", "a b c", "c"},   // b was, and freeing it is not enough
		{"a b c a", "a b c a", "a"}, // a needs the room of both
		{"a b c b", "a b c", "b c"}, // nothing to free
		{"b c b a", "b c a", "a b"}, // b was used last
		{"b c c a", "b c a", "a"},   // freeing b is not enough
		{"c a c a", "c a c a", "a"}, // take turns
		{"b c a b c", "b c a b c", "b c"},
	}
	for _, row := range rows {
		t.Run(row.use, func(t *testing.T) {
			bench(t, func(t *testing.T, z *zoo, c *catalog.Catalog) {
				for _, id := range strings.Fields(row.use) {
					m, release := acquire(t, c, id)
					if err := m.Engine.Ready(t.Context()); err != nil {
						t.Errorf("%s: %v", id, err)
					}
					release()
				}
				if opened := strings.Join(z.opened, " "); opened != row.opened || z.isOpen() != row.open {
					t.Errorf("opened %s, want %s; open %s, want %s", opened, row.opened, z.isOpen(), row.open)
				}
			})
		})
	}
}

func TestInUseIsNotClosed(t *testing.T) {
	bench(t, func(t *testing.T, z *zoo, c *catalog.Catalog) {
		_, first := acquire(t, c, "a")
		_, second := acquire(t, c, "a")
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if _, _, err := c.Acquire(ctx, "c"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("c does not fit beside a: %v", err)
		}
		got := make(chan error, 1)
		go func() {
			_, release, err := c.Acquire(t.Context(), "c")
			if err == nil {
				release()
			}
			got <- err
		}()
		first()
		synctest.Wait()
		if z.isOpen() != "a" || z.opens() != 1 {
			t.Errorf("after one of two releases: open %s, opened %v", z.isOpen(), z.opened)
		}
		second()
		if err := <-got; err != nil || z.isOpen() != "c" {
			t.Errorf("after both: %v, open %s", err, z.isOpen())
		}
	})
}

// Closing what other machines hold would free nothing.
func TestRemoteIsNotClosed(t *testing.T) {
	bench(t, func(t *testing.T, z *zoo, c *catalog.Catalog) {
		for _, id := range []string{"a", "b", "c"} {
			_, release := acquire(t, c, id)
			release()
		}
		if z.isOpen() != "a c" {
			t.Errorf("open %s, want a, which takes no memory here, and c", z.isOpen())
		}
	}, func(cfg *catalog.Config) { cfg.Models[0].Bytes, cfg.MemoryBytes = 0, cfg.Models[2].Bytes })
}

func TestNoBound(t *testing.T) {
	bench(t, func(t *testing.T, z *zoo, c *catalog.Catalog) {
		for _, id := range []string{"a", "b", "c"} {
			_, release := acquire(t, c, id)
			release()
		}
		if z.isOpen() != "a b c" {
			t.Errorf("open %s", z.isOpen())
		}
	}, func(cfg *catalog.Config) { cfg.MemoryBytes = 0 })
}

// A client that leaves breaks nothing off: the model is there for the next.
func TestClientLeavesWhileLoading(t *testing.T) {
	bench(t, func(t *testing.T, z *zoo, c *catalog.Catalog) {
		ctx, cancel := context.WithTimeout(t.Context(), loadTime/2)
		defer cancel()
		if _, _, err := c.Acquire(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		_, release := acquire(t, c, "a")
		release()
		if z.opens() != 1 {
			t.Errorf("opened %v", z.opened)
		}
	})
}

func TestLoadFailureAndRetry(t *testing.T) {
	cause := errors.New("out of luck")
	bench(t, func(t *testing.T, z *zoo, c *catalog.Catalog) {
		z.fail(cause)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				_, _, err := c.Acquire(t.Context(), "a")
				var load *catalog.LoadError
				if !errors.As(err, &load) || load.Model != "a" || load.Retry != time.Second || !errors.Is(err, cause) || !errors.Is(err, decode.ErrUnavailable) {
					t.Errorf("%v", err)
				}
				if strings.Contains(err.Error(), cause.Error()) {
					t.Errorf("%v: the cause is for the log", err)
				}
			})
		}
		wg.Wait()
		if _, _, err := c.Acquire(t.Context(), "a"); !errors.Is(err, cause) || z.opens() != 1 {
			t.Errorf("at once: %v, opened %v", err, z.opened)
		}
		if err := c.Ready(t.Context()); !errors.Is(err, decode.ErrUnavailable) {
			t.Errorf("ready: %v", err)
		}
		after(t, time.Second)
		var load *catalog.LoadError
		if _, _, err := c.Acquire(t.Context(), "a"); !errors.As(err, &load) || load.Retry != 2*time.Second || z.opens() != 2 {
			t.Errorf("after a second: %v, opened %v", err, z.opened)
		}
		// What failed holds no memory: the others, which fit only without it, can be loaded.
		z.fail(nil)
		_, b := acquire(t, c, "b")
		_, cc := acquire(t, c, "c")
		b()
		cc()
		after(t, 2*time.Second)
		_, release := acquire(t, c, "a")
		release()
		if err := c.Ready(t.Context()); err != nil {
			t.Errorf("ready: %v", err)
		}
	})
}

func after(t *testing.T, d time.Duration) {
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}

func TestReady(t *testing.T) {
	bench(t, func(t *testing.T, z *zoo, c *catalog.Catalog) {
		if err := c.Ready(t.Context()); !errors.Is(err, decode.ErrUnavailable) {
			t.Errorf("before it is loaded: %v", err)
		}
		_, release := acquire(t, c, "b")
		release()
		if err := c.Ready(t.Context()); !errors.Is(err, decode.ErrUnavailable) {
			t.Errorf("another is loaded: %v", err)
		}
		_, release = acquire(t, c, "a")
		release()
		if err := c.Ready(t.Context()); err != nil {
			t.Errorf("loaded: %v", err)
		}
		_, release = acquire(t, c, "c")
		release()
		if err := c.Ready(t.Context()); err != nil || strings.Contains(z.isOpen(), "a") {
			t.Errorf("closed to make room: %v, open %s", err, z.isOpen())
		}
	})
}

func TestClose(t *testing.T) {
	bench(t, func(t *testing.T, z *zoo, c *catalog.Catalog) {
		acquire(t, c, "a") // never released
		errs := make(chan error, 2)
		for _, id := range []string{"b", "c"} { // b is being loaded, c waits for room
			go func() {
				_, _, err := c.Acquire(t.Context(), id)
				errs <- err
			}()
		}
		synctest.Wait()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := <-errs; !errors.Is(err, decode.ErrUnavailable) {
				t.Errorf("who waited got %v", err)
			}
		}
		if _, _, err := c.Acquire(t.Context(), "a"); !errors.Is(err, decode.ErrUnavailable) {
			t.Errorf("after Close: %v", err)
		}
		if err := c.Ready(t.Context()); !errors.Is(err, decode.ErrUnavailable) {
			t.Errorf("after Close, ready: %v", err)
		}
		if z.isOpen() != "" || c.Models()[0].Loaded {
			t.Errorf("open %s", z.isOpen())
		}
	})
}

func TestPrimed(t *testing.T) {
	bench(t, func(t *testing.T, _ *zoo, c *catalog.Catalog) {
		began := time.Now()
		m, release := acquire(t, c, "a")
		defer release()
		if took := time.Since(began) - loadTime; took > 2*time.Second {
			t.Errorf("the warm-up took %v", took)
		}
		s := m.Pace.Snapshot()
		near := s.Thinking.Mean > step*3/4 && s.Thinking.Mean < step*5/4 // summaries feed it, too
		if !near || s.Thinking.Observations == 0 || s.Prefill.Mean > prefill || s.Prefill.Mean < prefill/2 || s.Prefill.Observations == 0 ||
			s.Overhead.Observations == 0 || s.Summary.Observations == 0 {
			t.Errorf("%+v", s)
		}
		if n := m.Engine.(*engine).Sequences(); n != 0 {
			t.Errorf("%d sequences are left of the warm-up", n)
		}
	})
}

func TestModels(t *testing.T) {
	family, err := prompt.Lookup("qwen3")
	if err != nil {
		t.Fatal(err)
	}
	created, curve := time.Unix(1700000000, 0), &budget.Curve{}
	bench(t, func(t *testing.T, _ *zoo, c *catalog.Catalog) {
		want := []catalog.Info{
			{ID: "a", Default: true, Engine: "llama.cpp", Created: created, ContextTokens: 1000, MaxThinking: 1000, Adapters: []string{"poet", "sage"},
				Curves: map[string]*budget.Curve{catalog.Bare: curve, "sage": curve}, Examples: []string{"Why?"}},
			{ID: "b", ContextTokens: 1000, MaxThinking: 300},
			{ID: "c", MaxThinking: 32768},
		}
		check := func() {
			t.Helper()
			got := c.Models()
			if len(got) != len(want) {
				t.Fatalf("%+v", got)
			}
			for i := range got {
				if got[i].ID != want[i].ID || got[i].Default != want[i].Default || got[i].Loaded != want[i].Loaded || got[i].Created != want[i].Created ||
					got[i].ContextTokens != want[i].ContextTokens || got[i].MaxThinking != want[i].MaxThinking || got[i].Engine != want[i].Engine || !slices.Equal(got[i].Capabilities, want[i].Capabilities) || !slices.Equal(got[i].Adapters, want[i].Adapters) ||
					!maps.Equal(got[i].Curves, want[i].Curves) || !slices.Equal(got[i].Examples, want[i].Examples) {
					t.Errorf("%+v\nwant %+v", got[i], want[i])
				}
			}
		}
		check()
		m, release := acquire(t, c, "a")
		defer release()
		if m.Renderer.Family().Name != "qwen3" {
			t.Errorf("family %q", m.Renderer.Family().Name)
		}
		want[0].Loaded, want[0].Capabilities = true, []string{"token_ids", "log_probs", "seed", "forks"}
		check()
	}, func(cfg *catalog.Config) {
		cfg.Models[0].Created, cfg.Models[0].Family, cfg.Models[0].Engine = created, &family, "llama.cpp"
		cfg.Models[0].Adapters = files("poet", "p")
		cfg.Models[0].Adapters["sage"] = catalog.AdapterConfig{File: "s", Curve: curve}
		cfg.Models[0].Curve, cfg.Models[0].Examples = curve, []string{"Why?"}
		cfg.Models[1].MaxThinking = 300
		cfg.Models[2].ContextTokens = 0
	})
}

func TestNewRefuses(t *testing.T) {
	z := &zoo{}
	for name, row := range map[string]struct {
		models []catalog.ModelConfig
		says   string
	}{
		"none":       {nil, "no model"},
		"no id":      {[]catalog.ModelConfig{z.model("", 1)}, "without a colon"},
		"colon":      {[]catalog.ModelConfig{z.model("a:b", 1)}, "without a colon"},
		"default":    {[]catalog.ModelConfig{z.model("default", 1)}, "other than default"},
		"twice":      {[]catalog.ModelConfig{z.model("a", 1), z.model("a", 1)}, "twice"},
		"too large":  {[]catalog.ModelConfig{z.model("a", 3<<30)}, "takes about 3.0 GiB of memory, but models may take 2.0 GiB"},
		"just right": {[]catalog.ModelConfig{z.model("a", 2<<30)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := catalog.New(catalog.Config{Models: row.models, MemoryBytes: 2 << 30})
			if row.says == "" {
				if err != nil {
					t.Fatal(err)
				}
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			} else if err == nil || !strings.Contains(err.Error(), row.says) {
				t.Errorf("%v; it should say %q", err, row.says)
			}
		})
	}
}
