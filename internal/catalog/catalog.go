// Package catalog keeps the models that a server can be asked for, and gives them to runs.
//
// A model is loaded when it is first asked for, by however many at once. What loaded models take stays within a bound of memory: to
// make room, models that nobody uses are closed, the one whose last use is longest ago first; one in use never is, and who asks
// for a model that does not fit beside it waits. A load that fails fails everyone who waits for it, and for a short while, which
// doubles with each failure, whoever asks next; then it is tried again.
//
// A model's adapters are changed while it serves (adapter.go): who has one keeps it, whatever becomes of its name.
//
// A mutex guards all state. Loading happens in goroutines that belong to the catalog, not to who asked, so a client that leaves
// does not break off a load that others wait for. Every change wakes all who wait, and they look again.
package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/decode"
	"anytime/internal/decode/prompt"
)

// ModelConfig is a model that can be asked for.
type ModelConfig struct {
	ID string // without ":", which divides it from an adapter's name
	// Open loads the model. It is called again after the engine was closed to make room.
	Open          func(ctx context.Context) (decode.Engine, error)
	Engine        string                   // what decodes it, for Models
	Bytes         int64                    // of memory that it takes when it is loaded; 0 where that is another machine's
	ContextTokens int                      // for Models, before it is loaded; 0 unknown
	Created       time.Time                // for Models
	Family        *prompt.Family           // nil: detected
	Template      string                   // chat template; "" the model's own
	Curve         *budget.Curve            // nil not known
	Examples      []string                 // questions that suit it, for Models
	Adapters      map[string]AdapterConfig // LoRA adapters by name, loaded with the model
	Adapter       string                   // the one that requests get which name the model alone; "" none
	MaxThinking   int                      // tokens that "max" stands for; 0 the context, at most 32768
}

// AdapterConfig is a LoRA adapter of a model.
type AdapterConfig struct {
	File  string
	Curve *budget.Curve // of the model with it; nil not known
}

// Config is what a catalog needs.
type Config struct {
	Models []ModelConfig // at least one; the first is the default
	// MemoryBytes bounds what loaded models take together; 0 no bound.
	MemoryBytes int64
	Logger      *slog.Logger
}

const (
	mostThinking = 32768 // tokens; ModelConfig.MaxThinking's default
	firstRetry   = time.Second
	lastRetry    = time.Minute
)

// LoadError is why a model could not be loaded. Its text is fit for clients; Err has the cause.
type LoadError struct {
	Model string
	Retry time.Duration // until it is tried again
	Err   error
}

func (e *LoadError) Error() string {
	return fmt.Sprintf("%v: model %q could not be loaded, the server's log says why; it is tried again after %v", decode.ErrUnavailable, e.Model, e.Retry)
}

// Unwrap makes it a decode.ErrUnavailable.
func (e *LoadError) Unwrap() []error { return []error{decode.ErrUnavailable, e.Err} }

// Info describes a model, loaded or not.
type Info struct {
	ID            string
	Default       bool
	Loaded        bool
	Created       time.Time
	ContextTokens int // 0 unknown
	MaxThinking   int // tokens
	Engine        string
	Capabilities  []string // what the engine can do; nil while it is not loaded
	Path          string   // how an engine elsewhere is used, while it is loaded
	Adapters      []string
	Adapter       string                   // the one that the model's name alone stands for; "" none
	Curves        map[string]*budget.Curve // those that are known, by adapter; Bare without one
	Examples      []string                 // questions that suit it
}

// Catalog is the models. Its methods may be called concurrently.
type Catalog struct {
	log   *slog.Logger
	bound int64
	all   []*model // the default first
	ctx   context.Context
	stop  context.CancelFunc
	loads sync.WaitGroup

	mu      sync.Mutex    // guards what follows, and what is said so in the models
	bytes   int64         // of models that are loaded or being loaded
	changed chan struct{} // closed, and replaced, whenever someone who waits should look again
	uses    uint64
	loras   uint64 // adapters that were ever named to an engine
	closed  bool
}

var _ anytime.Models = (*Catalog)(nil)

type state int

const (
	unloaded state = iota
	loading
	loaded
	closing
)

type model struct {
	ModelConfig

	// Guarded by Catalog.mu.
	state    state
	users    int    // who has it or waits for it; it is not closed while there are any
	lastUse  uint64 // of Catalog.uses
	engine   decode.Engine
	bare     *anytime.Model      // while it is loaded
	named    *anytime.Model      // the same, with Bare in its id
	adapters map[string]*adapter // by name
	standard string              // the adapter that the model's name alone stands for; "" none
	proven   bool                // it was loaded before
	failure  *LoadError          // of the last load
	retry    time.Time           // not to be loaded before
}

// New returns a catalog in which nothing is loaded. Close it.
func New(cfg Config) (*Catalog, error) {
	if len(cfg.Models) == 0 {
		return nil, errors.New("catalog: there is no model")
	}
	c := &Catalog{log: cfg.Logger, bound: cfg.MemoryBytes, changed: make(chan struct{})}
	for _, m := range cfg.Models {
		switch {
		case m.ID == "" || strings.Contains(m.ID, ":") || m.ID == "default":
			return nil, fmt.Errorf("model id %q: it must be a name without a colon, other than default", m.ID)
		case c.byID(m.ID) != nil:
			return nil, fmt.Errorf("model id %q is there twice: give one of the models another id", m.ID)
		case c.bound > 0 && m.Bytes > c.bound:
			return nil, fmt.Errorf("model %q takes about %.1f GiB of memory, but models may take %.1f GiB: raise the bound, or shorten the context or its cache",
				m.ID, gib(m.Bytes), gib(c.bound))
		}
		known, err := c.newModel(m)
		if err != nil {
			return nil, err
		}
		c.all = append(c.all, known)
	}
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c, nil
}

func gib(bytes int64) float64 { return float64(bytes) / (1 << 30) }

func (c *Catalog) byID(id string) *model {
	if i := slices.IndexFunc(c.all, func(m *model) bool { return m.ID == id }); i >= 0 {
		return c.all[i]
	}
	return nil
}

// find looks a model up; "" and "default" are the default.
func (c *Catalog) find(id string) (*model, error) {
	if id == "" || id == "default" {
		return c.all[0], nil
	}
	if m := c.byID(id); m != nil {
		return m, nil
	}
	ids := make([]string, len(c.all))
	for i, m := range c.all {
		ids[i] = m.ID
	}
	return nil, fmt.Errorf("%w: %.64q; there is %s", anytime.ErrUnknownModel, id, strings.Join(ids, ", "))
}

// Acquire implements anytime.Models. A model's id alone stands for the model with its default adapter, if it has one; id:bare is the
// model without any.
func (c *Catalog) Acquire(ctx context.Context, name string) (_ *anytime.Model, release func(), err error) {
	id, adapter, divided := strings.Cut(name, ":")
	if divided && (id == "" || adapter == "") {
		id = name // no model's
	}
	m, err := c.find(id)
	if err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.use(m, +1)
	defer func() {
		if err != nil {
			c.use(m, -1)
		}
	}()
	for {
		switch {
		case c.closed:
			return nil, nil, fmt.Errorf("%w: the server is stopping", decode.ErrUnavailable)
		case m.state == loaded:
			a, err := m.choose(adapter)
			if err != nil {
				return nil, nil, err
			}
			return c.give(m, a)
		case m.state == unloaded:
			if _, err := m.choose(adapter); err != nil {
				return nil, nil, err
			}
			if time.Now().Before(m.retry) {
				return nil, nil, m.failure
			}
			if idle, ok := c.makeRoom(m); ok {
				c.loads.Go(func() { c.load(m, idle) })
			}
		}
		if err := c.wait(ctx); err != nil {
			return nil, nil, err
		}
	}
}

// use counts a user of a model in (+1) or out (-1). The caller holds mu, as for all that follow down to Models.
func (c *Catalog) use(m *model, n int) {
	m.users += n
	c.uses++
	m.lastUse = c.uses
	if m.users == 0 {
		c.wake()
	}
}

func (c *Catalog) wake() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// wait gives up mu until something has changed.
func (c *Catalog) wait(ctx context.Context) error {
	changed := c.changed
	c.mu.Unlock()
	defer c.mu.Lock()
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// makeRoom reserves memory for a model that is to be loaded. It returns the idle models that have to be closed before.
func (c *Catalog) makeRoom(m *model) (idle []*model, ok bool) {
	if c.bound > 0 {
		missing := c.bytes + m.Bytes - c.bound
		var all []*model
		for _, other := range c.all {
			if other.state == loaded && other.users == 0 && other.Bytes > 0 {
				all = append(all, other)
			}
		}
		slices.SortFunc(all, func(a, b *model) int { return cmp.Compare(a.lastUse, b.lastUse) })
		for _, other := range all {
			if missing > 0 {
				idle = append(idle, other)
				missing -= other.Bytes
			}
		}
		if missing > 0 {
			return nil, false
		}
	}
	for _, other := range idle {
		other.state = closing
		c.bytes -= other.Bytes
	}
	m.state = loading
	c.bytes += m.Bytes
	return idle, true
}

// Models lists the models as configured, the default first.
func (c *Catalog) Models() []Info {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]Info, len(c.all))
	for i, m := range c.all {
		info := Info{
			ID: m.ID, Default: i == 0, Loaded: m.state == loaded, Created: m.Created, ContextTokens: m.ContextTokens,
			Engine:   m.Engine,
			Adapters: slices.Sorted(maps.Keys(m.adapters)), Adapter: m.standard, Curves: m.curves(), Examples: m.Examples,
		}
		if m.state == loaded {
			about := m.engine.Info()
			info.ContextTokens, info.Capabilities = about.ContextTokens, capabilities(about.Capabilities)
			if e, ok := m.engine.(interface{ Path() string }); ok {
				info.Path = e.Path()
			}
		}
		info.MaxThinking = m.maxThinking(info.ContextTokens)
		list[i] = info
	}
	return list
}

func (m *model) curves() map[string]*budget.Curve {
	known := map[string]*budget.Curve{}
	if m.Curve != nil {
		known[Bare] = m.Curve
	}
	for name, a := range m.adapters {
		if a.Curve != nil {
			known[name] = a.Curve
		}
	}
	return known
}

// capabilities names what an engine can do.
func capabilities(can decode.Capabilities) []string {
	list := []string{}
	for _, c := range []struct {
		can  bool
		name string
	}{
		{can.TokenIDs, "token_ids"}, {can.LogProbs, "log_probs"}, {can.Grammar, "grammar"}, {can.LogitBias, "logit_bias"}, {can.Seed, "seed"},
		{can.Forks, "forks"}, {can.Adapters, "adapters"},
	} {
		if c.can {
			list = append(list, c.name)
		}
	}
	return list
}

func (m *model) maxThinking(contextTokens int) int {
	switch {
	case m.MaxThinking > 0:
		return m.MaxThinking
	case contextTokens > 0:
		return min(mostThinking, contextTokens)
	}
	return mostThinking
}

// Ready returns nil when the default model answers. One that was closed to make room for others counts as ready: the next request
// loads it.
func (c *Catalog) Ready(ctx context.Context) error {
	m := c.all[0]
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return fmt.Errorf("%w: the server is stopping", decode.ErrUnavailable)
	case m.failure != nil:
		return m.failure
	case !m.proven:
		return fmt.Errorf("%w: model %q is being loaded", decode.ErrUnavailable, m.ID)
	case m.state != loaded:
		return nil
	}
	m.users++ // it is not closed meanwhile; asking is no use that counts
	engine := m.engine
	c.mu.Unlock()
	err := engine.Ready(ctx)
	c.mu.Lock()
	if m.users--; m.users == 0 {
		c.wake()
	}
	return err
}

// Close closes all models, also those in use. Who waits for one gets decode.ErrUnavailable.
func (c *Catalog) Close() error {
	c.mu.Lock()
	c.closed = true
	c.wake()
	c.mu.Unlock()
	c.stop()
	c.loads.Wait() // nothing is loaded or closed from here on but by us
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, m := range c.all {
		if m.state == loaded {
			errs = append(errs, m.close())
			m.state = unloaded
		}
	}
	return errors.Join(errs...)
}
