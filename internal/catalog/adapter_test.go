package catalog_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/catalog"
	"anytime/internal/decode"
)

// files are adapters, from names and files in turn.
func files(pairs ...string) map[string]catalog.AdapterConfig {
	all := map[string]catalog.AdapterConfig{}
	for p := range slices.Chunk(pairs, 2) {
		all[p[0]] = catalog.AdapterConfig{File: p[1]}
	}
	return all
}

// tuned gives model a the adapters poet and sage, of which sage is the default.
func tuned(cfg *catalog.Config) {
	cfg.Models[0].Adapters, cfg.Models[0].Adapter = files("poet", "poet.gguf", "sage", "sage.gguf"), "sage"
}

// answers checks which adapter's file a name stands for, and by what id.
func answers(t *testing.T, c *catalog.Catalog, name, file, id string) {
	t.Helper()
	m, release, err := c.Acquire(t.Context(), name)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	defer release()
	if got := m.Engine.(*engine).file(m.Adapter); got != file || m.ID != id {
		t.Errorf("%s is %s with %q, want %s with %q", name, m.ID, got, id, file)
	}
}

// loadAdapter makes a file an adapter of model a.
func loadAdapter(t *testing.T, c *catalog.Catalog, name, file string) {
	t.Helper()
	k, err := c.LoadAdapter(t.Context(), "a", name, catalog.AdapterConfig{File: file})
	if err != nil {
		t.Fatal(err)
	}
	k.Publish()
}

func TestDefaultAdapter(t *testing.T) {
	bench(t, func(t *testing.T, _ *zoo, c *catalog.Catalog) {
		for name, want := range map[string][2]string{
			"": {"sage.gguf", "a:sage"}, "default": {"sage.gguf", "a:sage"}, "a": {"sage.gguf", "a:sage"}, "a:sage": {"sage.gguf", "a:sage"},
			"a:poet": {"poet.gguf", "a:poet"}, "a:bare": {"", "a:bare"}, "default:bare": {"", "a:bare"}, "b": {"", "b"}, "b:bare": {"", "b"},
		} {
			answers(t, c, name, want[0], want[1])
		}
		if info := c.Models()[0]; info.Adapter != "sage" || !slices.Equal(info.Adapters, []string{"poet", "sage"}) {
			t.Errorf("%+v", info)
		}
		for name, want := range map[string][2]string{"poet": {"poet.gguf", "a:poet"}, "": {"", "a"}} {
			if err := c.SetDefaultAdapter("a", name); err != nil {
				t.Fatal(err)
			}
			answers(t, c, "a", want[0], want[1])
		}
		if err := c.SetDefaultAdapter("a", "nobody"); !errors.Is(err, decode.ErrUnknownAdapter) {
			t.Errorf("unknown adapter: %v", err)
		}
		if err := c.SetDefaultAdapter("nobody", "poet"); !errors.Is(err, anytime.ErrUnknownModel) {
			t.Errorf("unknown model: %v", err)
		}
	}, tuned)
}

// Who has an adapter keeps it while its name is given to other weights and taken away; it is unloaded when the last lets go.
func TestAdapterKeptInUse(t *testing.T) {
	bench(t, func(t *testing.T, _ *zoo, c *catalog.Catalog) {
		first, releaseFirst := acquire(t, c, "a:poet")
		again, releaseAgain := acquire(t, c, "a:poet")
		if first != again {
			t.Error("two who ask for the same adapter have two models")
		}
		e := first.Engine.(*engine)
		loadAdapter(t, c, "poet", "better.gguf")
		answers(t, c, "a:poet", "better.gguf", "a:poet")
		second, releaseSecond := acquire(t, c, "a:poet")
		if err := c.DropAdapter("a", "poet"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Acquire(t.Context(), "a:poet"); !errors.Is(err, decode.ErrUnknownAdapter) {
			t.Errorf("after the drop: %v", err)
		}
		if err := c.DropAdapter("a", "poet"); !errors.Is(err, decode.ErrUnknownAdapter) {
			t.Errorf("dropped twice: %v", err)
		}
		// They could still open sequences.
		for m, file := range map[*anytime.Model]string{first: "poet.gguf", second: "better.gguf"} {
			s, err := m.Engine.Open(t.Context(), decode.Request{Prompt: []decode.Part{decode.Text("x")}, Adapter: m.Adapter})
			if err != nil || e.file(m.Adapter) != file {
				t.Fatalf("%s: %v", file, err)
			}
			s.Close()
		}
		releaseFirst()
		releaseFirst()
		if e.file(first.Adapter) == "" {
			t.Error("unloaded though one has it")
		}
		releaseAgain()
		releaseSecond()
		if e.file(first.Adapter) != "" || e.file(second.Adapter) != "" || len(e.AdapterNames()) != 1 {
			t.Errorf("left in the engine: %q", e.AdapterNames())
		}
		// A dropped default leaves the bare model.
		if err := c.DropAdapter("a", "sage"); err != nil {
			t.Fatal(err)
		}
		answers(t, c, "a", "", "a")
	}, tuned)
}

func TestAdapterCandidate(t *testing.T) {
	bench(t, func(t *testing.T, z *zoo, c *catalog.Catalog) {
		k, err := c.LoadAdapter(t.Context(), "default", "new", catalog.AdapterConfig{File: "new.gguf"})
		if err != nil {
			t.Fatal(err)
		}
		e := k.Model().Engine.(*engine)
		if _, _, err := c.Acquire(t.Context(), "a:new"); !errors.Is(err, decode.ErrUnknownAdapter) {
			t.Errorf("named before it is published: %v", err)
		}
		if e.file(k.Model().Adapter) != "new.gguf" || k.Model().ID != "a:new" {
			t.Errorf("%+v", k.Model())
		}
		// Its model is not closed to make room for c.
		ctx, cancel := context.WithTimeout(t.Context(), 10*loadTime)
		defer cancel()
		if _, _, err := c.Acquire(ctx, "c"); !errors.Is(err, context.DeadlineExceeded) || z.isOpen() != "a" {
			t.Errorf("%v, open %s", err, z.isOpen())
		}
		k.Discard()
		if names := e.AdapterNames(); len(names) != 0 {
			t.Errorf("left in the engine: %q", names)
		}
		for file, says := range map[string]string{"broken.gguf": "not an adapter", "silent.gguf": "does not decode with it: the logits are not finite"} {
			if _, err := c.LoadAdapter(t.Context(), "a", "new", catalog.AdapterConfig{File: file}); err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("%s: %v", file, err)
			}
		}
		if _, err := c.LoadAdapter(t.Context(), "nobody", "new", catalog.AdapterConfig{}); !errors.Is(err, anytime.ErrUnknownModel) {
			t.Errorf("unknown model: %v", err)
		}
		if names := e.AdapterNames(); len(names) != 0 {
			t.Errorf("left in the engine: %q", names)
		}
		_, release := acquire(t, c, "c") // nothing holds a any more
		release()
	})
}

// Adapters that were loaded while it served are there again after the model was closed to make room.
func TestAdaptersOutliveEviction(t *testing.T) {
	bench(t, func(t *testing.T, z *zoo, c *catalog.Catalog) {
		loadAdapter(t, c, "new", "new.gguf")
		loadAdapter(t, c, "old", "old.gguf")
		loadAdapter(t, c, "old", "older.gguf")
		if err := c.SetDefaultAdapter("a", "new"); err != nil {
			t.Fatal(err)
		}
		_, release := acquire(t, c, "c")
		release()
		if inMemory, err := c.AdapterState("a", "new"); inMemory || err != nil || z.isOpen() != "c" {
			t.Errorf("in memory %v, %v, open %s", inMemory, err, z.isOpen())
		}
		if err := c.DropAdapter("a", "sage"); err != nil {
			t.Fatal(err)
		}
		answers(t, c, "a", "new.gguf", "a:new")
		answers(t, c, "a:old", "older.gguf", "a:old")
		if inMemory, err := c.AdapterState("a", "new"); !inMemory || err != nil {
			t.Errorf("in memory %v, %v", inMemory, err)
		}
		m, release := acquire(t, c, "a:bare")
		defer release()
		if names := m.Engine.(*engine).AdapterNames(); len(names) != 3 {
			t.Errorf("the engine has %q", names)
		}
	}, tuned)
}

// One that cannot be loaded with its model is not to be had, and the model serves without it.
func TestBrokenAdapter(t *testing.T) {
	bench(t, func(t *testing.T, _ *zoo, c *catalog.Catalog) {
		answers(t, c, "a", "", "a:bare")
		answers(t, c, "a:poet", "poet.gguf", "a:poet")
		if _, _, err := c.Acquire(t.Context(), "a:sage"); !errors.Is(err, decode.ErrUnavailable) {
			t.Errorf("the broken one: %v", err)
		}
		if inMemory, err := c.AdapterState("a", "sage"); inMemory || err == nil {
			t.Errorf("in memory %v, %v", inMemory, err)
		}
		loadAdapter(t, c, "sage", "mended.gguf")
		answers(t, c, "a", "mended.gguf", "a:sage")
	}, tuned, func(cfg *catalog.Config) { cfg.Models[0].Adapters["sage"] = catalog.AdapterConfig{File: "broken.gguf"} })
}

func TestCurves(t *testing.T) {
	bare, poet, found := &budget.Curve{}, &budget.Curve{}, &budget.Curve{}
	bench(t, func(t *testing.T, _ *zoo, c *catalog.Catalog) {
		has := func(name string, want *budget.Curve) {
			t.Helper()
			m, release := acquire(t, c, name)
			defer release()
			if m.Curve != want {
				t.Errorf("%s has the curve %p, want %p", name, m.Curve, want)
			}
		}
		has("a:bare", bare)
		has("a:poet", poet)
		has("a", nil) // sage's is not known
		before, release := acquire(t, c, "a")
		defer release()
		if err := c.SetCurve("a", "sage", found); err != nil {
			t.Fatal(err)
		}
		has("a", found)
		if before.Curve != nil {
			t.Error("a run's model was changed under it")
		}
	}, tuned, func(cfg *catalog.Config) {
		cfg.Models[0].Curve = bare
		cfg.Models[0].Adapters["poet"] = catalog.AdapterConfig{File: "poet.gguf", Curve: poet}
	})
}

func TestAdapterNamesRefused(t *testing.T) {
	z := &zoo{}
	for name, row := range map[string]struct {
		adapters map[string]catalog.AdapterConfig
		standard string
		says     string
	}{
		"bare":            {files("bare", "x"), "", "other than bare"},
		"colon":           {files("a:b", "x"), "", "without a colon"},
		"unknown default": {files("a", "x"), "b", "is none of its adapters"},
	} {
		m := z.model("m", 1)
		m.Adapters, m.Adapter = row.adapters, row.standard
		if _, err := catalog.New(catalog.Config{Models: []catalog.ModelConfig{m}}); err == nil || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
