package catalog

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/decode"
)

// Bare is the name, where an adapter's would be, of a model without any: "id:bare".
const Bare = "bare"

// adapter is a LoRA adapter of a model. The engine knows it by a key that no other ever has. So one whose name was given to other
// weights, or taken away, stays what it is for those who have it, even where they open further sequences; its caches are its own.
type adapter struct {
	AdapterConfig
	name, key string

	// Guarded by Catalog.mu.
	model   *anytime.Model // the model with it, while that is loaded and has it
	users   int            // who has it
	dropped bool           // no name leads to it
	failure error          // why it was not loaded with its model
}

func (c *Catalog) newModel(cfg ModelConfig) (*model, error) {
	m := &model{ModelConfig: cfg, adapters: map[string]*adapter{}, standard: cfg.Adapter}
	for name, a := range cfg.Adapters {
		if name == "" || name == Bare || strings.Contains(name, ":") {
			return nil, fmt.Errorf("model %q: adapter name %q: it must be a name without a colon, other than %s", cfg.ID, name, Bare)
		}
		m.adapters[name] = c.newAdapter(name, a)
	}
	if cfg.Adapter != "" && m.adapters[cfg.Adapter] == nil {
		return nil, fmt.Errorf("model %q: its default adapter %q is none of its adapters", cfg.ID, cfg.Adapter)
	}
	return m, nil
}

// newAdapter gives an adapter its key. The caller holds mu, or nobody has the catalog yet.
func (c *Catalog) newAdapter(name string, cfg AdapterConfig) *adapter {
	c.loras++
	return &adapter{AdapterConfig: cfg, name: name, key: fmt.Sprintf("%.48s.%d", strings.ReplaceAll(name, "/", "-"), c.loras)} // a name for every engine
}

// choose returns the adapter that a request for a name gets; nil is the bare model. The caller holds mu, as for what follows up to
// loadAdapters.
func (m *model) choose(name string) (*adapter, error) {
	switch name {
	case Bare:
		return nil, nil
	case "":
		if a := m.adapters[m.standard]; a != nil && a.failure == nil {
			return a, nil
		}
		return nil, nil // where the default is broken, rather the bare model than none
	}
	switch a := m.adapters[name]; {
	case a == nil:
		return nil, fmt.Errorf("%w: model %q has none called %.64q", decode.ErrUnknownAdapter, m.ID, name)
	case a.failure != nil:
		return nil, fmt.Errorf("%w: adapter %q of model %q could not be loaded, the server's log says why", decode.ErrUnavailable, name, m.ID)
	default:
		return a, nil
	}
}

// give hands a loaded model out, with an adapter or nil.
func (c *Catalog) give(m *model, a *adapter) (_ *anytime.Model, release func(), err error) {
	given := m.bare
	switch {
	case a != nil:
		given = a.model
		a.users++
	case m.standard != "":
		given = m.named
	}
	released := false
	return given, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if released {
			return
		}
		released = true
		if a != nil {
			a.users--
			m.tidy(a)
		}
		c.use(m, -1)
	}, nil
}

// tidy frees an adapter that has neither a name nor users.
func (m *model) tidy(a *adapter) {
	if !a.dropped || a.users > 0 || a.model == nil || m.state != loaded {
		return
	}
	a.model = nil
	_ = m.engine.(decode.Adapters).UnloadAdapter(context.Background(), a.key) // that the engine has lost it already is as well
}

// drop takes an adapter's name away.
func (m *model) drop(name string) {
	if a := m.adapters[name]; a != nil {
		delete(m.adapters, name)
		a.dropped = true
		m.tidy(a)
	}
}

// with returns the model with an adapter, which the engine has under a key.
func (m *model) with(bare *anytime.Model, name, key string, curve *budget.Curve) *anytime.Model {
	v := *bare
	v.ID, v.Adapter, v.Length, v.Curve = m.ID+":"+name, key, new(budget.Length), curve
	return &v
}

// loadAdapters loads adapters into the engine of a model that nobody has yet. One that fails does not keep the model from serving.
func (c *Catalog) loadAdapters(m *model, engine decode.Engine, list []*adapter) map[*adapter]error {
	failed := map[*adapter]error{}
	for _, a := range list {
		err := loadAdapter(c.ctx, engine, a)
		if err != nil && c.ctx.Err() == nil {
			failed[a] = err
			c.log.Error("adapter was not loaded", "model", m.ID, "adapter", a.name, "error", err)
		}
	}
	return failed
}

func loadAdapter(ctx context.Context, engine decode.Engine, a *adapter) error {
	loader, ok := engine.(decode.Adapters)
	if !ok {
		return &decode.InputError{Field: "model", Reason: "its engine cannot load adapters"}
	}
	return loader.LoadAdapter(ctx, a.key, a.File, 1)
}

// Candidate is an adapter that its model's engine has loaded, and that no request can name. Publish or Discard must follow.
type Candidate struct {
	catalog *Catalog
	of      *model
	adapter *adapter
	release func()
}

// trialTime bounds how long it may take to load an adapter and decode with it.
const trialTime = time.Minute

// LoadAdapter loads a model, if need be, and an adapter of it from a file, and has a few tokens decoded with it. Errors: those of Acquire,
// *decode.InputError, the engine's.
func (c *Catalog) LoadAdapter(ctx context.Context, id, name string, cfg AdapterConfig) (_ *Candidate, err error) {
	m, err := c.find(id)
	if err != nil {
		return nil, err
	}
	bare, release, err := c.Acquire(ctx, m.ID+":"+Bare)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	k := &Candidate{catalog: c, of: m, adapter: c.newAdapter(name, cfg), release: release}
	c.mu.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, trialTime, fmt.Errorf("%w: it took more than %v", decode.ErrUnavailable, trialTime))
	defer cancel()
	if err = loadAdapter(ctx, bare.Engine, k.adapter); err != nil {
		release()
	} else {
		k.adapter.model = m.with(bare, name, k.adapter.key, cfg.Curve)
		probe := *k.adapter.model
		probe.Pace = budget.NewPace(budget.Snapshot{}) // what first use costs is not to be learned from
		if err = think(ctx, &probe, "Hello!", 2); err == nil {
			return k, nil
		}
		k.Discard()
		err = fmt.Errorf("the model does not decode with it: %w", err)
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return nil, fmt.Errorf("load adapter %q: %w", name, err)
}

// Model returns the model with the adapter.
func (k *Candidate) Model() *anytime.Model { return k.adapter.model }

// Publish gives the adapter its name. One that had it serves on for those who have it.
func (k *Candidate) Publish() {
	k.catalog.mu.Lock()
	k.of.drop(k.adapter.name)
	k.of.adapters[k.adapter.name] = k.adapter
	k.catalog.mu.Unlock()
	k.release()
}

// Discard unloads the adapter.
func (k *Candidate) Discard() {
	k.catalog.mu.Lock()
	k.adapter.dropped = true
	k.of.tidy(k.adapter)
	k.catalog.mu.Unlock()
	k.release()
}

// SetCurve makes known how accurate a model is with an adapter. Runs that have it do not learn of it.
func (c *Catalog) SetCurve(id, name string, curve *budget.Curve) error {
	return c.change(id, name, func(m *model) {
		a := m.adapters[name]
		if a.Curve = curve; a.model != nil {
			known := *a.model
			known.Curve = curve
			a.model = &known
		}
	})
}

// SetDefaultAdapter makes a model's id alone stand for the model with an adapter; "" for the bare model.
func (c *Catalog) SetDefaultAdapter(id, name string) error {
	return c.change(id, name, func(m *model) { m.standard = name })
}

// DropAdapter takes an adapter's name away. It serves on for those who have it. If it was the default, the model's id alone stands for
// the bare model from now on.
func (c *Catalog) DropAdapter(id, name string) error {
	return c.change(id, name, func(m *model) {
		m.drop(name)
		if m.standard == name {
			m.standard = ""
		}
	})
}

func (c *Catalog) change(id, name string, change func(*model)) error {
	m, err := c.find(id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if name != "" && m.adapters[name] == nil {
		return fmt.Errorf("%w: model %q has none called %.64q", decode.ErrUnknownAdapter, m.ID, name)
	}
	change(m)
	return nil
}

// AdapterState reports whether an adapter is in its engine's memory now, or why it could not be loaded with its model.
func (c *Catalog) AdapterState(id, name string) (inMemory bool, err error) {
	m, err := c.find(id)
	if err != nil {
		return false, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	a := m.adapters[name]
	if a == nil {
		return false, errors.New("the server did not load it")
	}
	return a.model != nil && m.state == loaded, a.failure
}
