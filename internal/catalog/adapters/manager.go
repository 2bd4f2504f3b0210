package adapters

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/catalog"
	"anytime/internal/decode"
)

// Config is what a Manager needs.
type Config struct {
	Folder  *Folder
	Catalog *catalog.Catalog
	Models  []Model // those of the catalog whose engines can load adapters
	Gate    Gate
	Margin  float64 // by how much the gate lets the accuracy fall where a request does not say, 0 to 1
	Logger  *slog.Logger
}

// Model is a model that adapters are loaded for.
type Model struct {
	ID string
	// Check returns an error unless the file is an adapter that the model may be given.
	Check func(path string) error
	// Hash tells the model's weights from all others. It may take long.
	Hash func() (string, error)
	// Fixed are adapters that the catalog was made with and the folder does not have: they are not replaced or unloaded.
	Fixed []Fixed
	// Failed says why adapters that were loaded before were not restored, by name.
	Failed map[string]error
}

// Fixed is an adapter of the configuration.
type Fixed struct {
	Name, File, SHA256 string
	Bytes              int64
	Curve              *budget.Curve // nil not known
}

func (f Fixed) record(model string) record {
	r := record{Model: model, Name: f.Name, File: f.File, SHA256: f.SHA256, Bytes: f.Bytes}
	if f.Curve != nil {
		r.Measured = &measured{Curve: *f.Curve}
	}
	return r
}

// Request is a change.
type Request struct {
	Name  string // of the adapter; catalog.Bare, with Default, for none
	Model string // "" or "default": the default model
	// File is one in the folder, or "sha256:…" for one that was uploaded; "": the adapter that has the name already.
	File    string
	SHA256  string // that the file must have; "" any
	Default bool   // make it the default of its model
	Gate    *GateRequest
}

// GateRequest says how an adapter that becomes a default is measured, where that is not as the server is set.
type GateRequest struct {
	Problems []byte   // JSON lines; nil: the server's
	Budgets  []int    // thinking tokens; nil: the server's
	Margin   *float64 // nil: the server's
}

// ConflictError is a change that cannot be made as things stand. Its text is fit for clients.
type ConflictError struct{ Reason string }

func (e *ConflictError) Error() string { return e.Reason }

func conflict(format string, args ...any) error {
	return &ConflictError{fmt.Sprintf(format, args...)}
}

// Manager manages the adapters of a catalog's models. Its methods may be called concurrently.
type Manager struct {
	cfg    Config
	folder *Folder
	log    *slog.Logger
	ctx    context.Context // ends what is being measured
	stop   context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex      // guards what follows, and the folder's state
	busy   map[place]bool  // being changed
	trials map[place]trial // under way, or the last of a name
	failed map[place]error // what was loaded before and could not be restored
}

// place is where an adapter is.
type place struct{ model, name string }

func (p place) String() string { return p.model + ":" + p.name }

// Name is what an adapter's name looks like.
var Name = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

const mostAdapters = 256 // loaded, of all models

// New returns a manager of what the folder and the catalog have. Close it before the catalog.
func New(cfg Config) *Manager {
	m := &Manager{
		cfg: cfg, folder: cfg.Folder, log: cfg.Logger,
		busy: map[place]bool{}, trials: map[place]trial{}, failed: map[place]error{},
	}
	m.ctx, m.stop = context.WithCancel(context.Background())
	for _, model := range cfg.Models {
		for name, err := range model.Failed {
			m.failed[place{model.ID, name}] = err
			m.log.Error("adapter was not restored", "model", model.ID, "adapter", name, "error", err)
		}
	}
	return m
}

// Close ends what is being measured; nothing comes of it.
func (m *Manager) Close() error {
	m.stop()
	m.wg.Wait()
	return nil
}

// Upload keeps a file that is then to be loaded as "sha256:" and the SHA-256 that it must have, in hexadecimal digits. Errors:
// *decode.InputError, *SizeError, the disk's.
func (m *Manager) Upload(ctx context.Context, sum string, from io.Reader) (bytes int64, err error) {
	if !hexDigest.MatchString(sum) {
		return 0, wrong("sha256", "is %.80q; it must be 64 hexadecimal digits in lower case", sum)
	}
	m.sweep()
	_, bytes, err = m.folder.keep(ctx, from, sum)
	return bytes, err
}

func (m *Manager) sweep() {
	m.mu.Lock()
	defer m.mu.Unlock()
	inHand := map[string]bool{}
	for _, t := range m.trials {
		inHand[t.SHA256] = true
	}
	m.folder.sweep(inHand)
}

func (m *Manager) model(id string) (Model, error) {
	known := m.cfg.Catalog.Models()
	if id == "" || id == "default" {
		id = known[0].ID
	}
	if i := slices.IndexFunc(m.cfg.Models, func(model Model) bool { return model.ID == id }); i >= 0 {
		return m.cfg.Models[i], nil
	}
	if slices.ContainsFunc(known, func(info catalog.Info) bool { return info.ID == id }) {
		return Model{}, wrong("model", "is %q, whose engine cannot load adapters", id)
	}
	return Model{}, fmt.Errorf("%w: %.64q; /v1/models lists them", anytime.ErrUnknownModel, id)
}

// change is a Request that was found to be possible.
type change struct {
	place
	model     Model
	record    record
	fixed     bool               // the record is none of the folder's
	candidate *catalog.Candidate // nil: the adapter serves already
	standard  bool               // it becomes the default
	gate      *Evaluation        // nil: it is not measured
	margin    float64
}

// Load makes a change. Where the adapter has to be measured first the change is under way when Load returns, and Get tells what becomes of
// it. Errors: *decode.InputError, *SizeError, *ConflictError, anytime.ErrUnknownModel, decode.ErrUnknownAdapter, decode.ErrUnavailable, the
// disk's.
func (m *Manager) Load(ctx context.Context, req Request) (Adapter, error) {
	model, err := m.model(req.Model)
	if err != nil {
		return Adapter{}, err
	}
	at := place{model.ID, req.Name}
	if req.Name == catalog.Bare {
		return Adapter{Name: catalog.Bare, Model: model.ID, State: Loaded, Default: true}, m.undo(model, req)
	}
	if !Name.MatchString(req.Name) {
		return Adapter{}, wrong("name", "is %.80q; it must be of letters, digits, '.', '_' and '-', begin with a letter or digit, and have at most 64", req.Name)
	}
	if err := m.begin(at); err != nil {
		return Adapter{}, err
	}
	c, err := m.prepare(ctx, model, req)
	if err != nil {
		m.end(at)
		return Adapter{}, err
	}
	if c.gate == nil {
		defer m.end(at)
		if err := m.commit(c); err != nil {
			return Adapter{}, err
		}
		m.mu.Lock()
		delete(m.trials, at)
		m.mu.Unlock()
		return m.Get(at.String())
	}
	if err := m.measure(c); err != nil {
		m.end(at)
		return Adapter{}, err
	}
	return m.Get(at.String())
}

// undo makes the bare model the default again.
func (m *Manager) undo(model Model, req Request) error {
	if !req.Default || req.File != "" || req.SHA256 != "" || req.Gate != nil {
		return wrong("name", "is %q, which stands for the model without an adapter: only default can be set of it", req.Name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	next := m.folder.state.clone()
	delete(next.Defaults, model.ID)
	if err := m.folder.save(next); err != nil {
		return err
	}
	m.log.Info("the bare model is the default", "model", model.ID)
	return m.cfg.Catalog.SetDefaultAdapter(model.ID, "")
}

// begin reserves a name for a change.
func (m *Manager) begin(at place) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.busy[at] {
		return conflict("adapter %s is being changed already; GET /v1/adapters/%s tells when that is done", at, at)
	}
	m.busy[at] = true
	return nil
}

func (m *Manager) end(at place) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.busy, at)
}

// find returns what serves under a name, or nil.
func (m *Manager) find(model Model, name string) (_ *record, fixed bool) {
	for _, f := range model.Fixed {
		if f.Name == name {
			return new(f.record(model.ID)), true
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := m.folder.state.find(model.ID, name); r != nil && m.failed[place{model.ID, name}] == nil {
		found := *r
		return &found, false
	}
	return nil, false
}

// prepare finds out whether a change can be made, and loads the adapter beside those that serve.
func (m *Manager) prepare(ctx context.Context, model Model, req Request) (c change, err error) {
	c = change{place: place{model.ID, req.Name}, model: model, margin: m.cfg.Margin}
	var old *record
	old, c.fixed = m.find(model, req.Name)
	switch {
	case req.File != "" && c.fixed:
		return c, conflict("adapter %s is in the server's configuration; load this one under another name", c.place)
	case req.File == "" && old == nil:
		return c, fmt.Errorf("%w: there is no %s; file must say what to load", decode.ErrUnknownAdapter, c.place)
	case req.File == "" && !req.Default:
		return c, wrong("file", "is missing; it must name a .gguf file in the server's adapter folder, or an uploaded one as sha256:…")
	}
	if req.File != "" {
		c.record = record{Model: model.ID, Name: req.Name, File: req.File, Loaded: time.Now().UTC().Truncate(time.Second)}
		if c.record.SHA256, c.record.Bytes, err = m.folder.take(ctx, req.File, req.SHA256); err != nil {
			return c, err
		}
		if !strings.HasPrefix(req.File, digest) {
			c.record.Measured = m.folder.curve(req.File)
		}
	}
	same := old != nil && (req.File == "" || old.SHA256 == c.record.SHA256)
	if same {
		c.record = *old
	}
	m.mu.Lock()
	was := m.folder.state.Defaults[model.ID] == req.Name
	full := old == nil && len(m.folder.state.Adapters) >= mostAdapters
	m.mu.Unlock()
	c.standard = req.Default || was
	switch {
	case full:
		return c, conflict("%d adapters are loaded, which is the most; unload one", mostAdapters)
	case req.Gate != nil && !c.standard:
		return c, wrong("gate", "is only for an adapter that becomes the default; set default, or leave it out")
	case c.standard && !(same && was):
		if err := c.evaluation(m.cfg.Gate, req.Gate); err != nil {
			return c, err
		}
	}
	if same {
		return c, nil
	}
	path := m.folder.path(c.record.SHA256)
	if err := model.Check(path); err != nil {
		return c, wrong("file", "%s cannot be used with model %q: %s", req.File, model.ID, strings.ReplaceAll(strings.TrimPrefix(err.Error(), "check adapter "+path+": "), path, req.File))
	}
	c.candidate, err = m.cfg.Catalog.LoadAdapter(ctx, model.ID, req.Name, catalog.AdapterConfig{File: path, Curve: c.record.sound()})
	if err != nil && !errors.Is(err, decode.ErrUnavailable) && ctx.Err() == nil {
		err = wrong("file", "%s cannot be used with model %q: %s", req.File, model.ID, strings.ReplaceAll(err.Error(), filepath.Dir(path)+string(filepath.Separator), ""))
	}
	return c, err
}

// commit makes a change: first what outlives the server, then what serves.
func (m *Manager) commit(c change) (err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := m.folder.state.clone()
	if !c.fixed {
		next.put(c.record)
	}
	if c.standard {
		next.Defaults[c.place.model] = c.name
	}
	if !c.fixed {
		_, err = os.Stat(m.folder.path(c.record.SHA256))
	}
	if err == nil {
		err = m.folder.save(next)
	}
	if err != nil {
		c.discard()
		return err
	}
	if c.candidate != nil {
		c.candidate.Publish()
		delete(m.failed, c.place)
	}
	m.log.Info("adapter loaded", "model", c.place.model, "adapter", c.name, "sha256", c.record.SHA256, "default", c.standard)
	if curve := c.record.sound(); curve != nil {
		if err := m.cfg.Catalog.SetCurve(c.place.model, c.name, curve); err != nil {
			return err
		}
	}
	if c.standard {
		return m.cfg.Catalog.SetDefaultAdapter(c.place.model, c.name)
	}
	return nil
}

// Delete unloads an adapter, or ends its being measured, or forgets what was found. Errors: decode.ErrUnknownAdapter, *ConflictError, ctx's, the
// disk's.
func (m *Manager) Delete(ctx context.Context, name string) error {
	a, err := m.Get(name)
	if err != nil {
		return err
	}
	at := place{a.Model, a.Name}
	if a.Fixed {
		return conflict("adapter %s is in the server's configuration; take it out there", at)
	}
	m.mu.Lock()
	t, measured := m.trials[at]
	m.mu.Unlock()
	if measured {
		t.cancel()
		select {
		case <-t.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := m.begin(at); err != nil {
		return err
	}
	defer m.end(at)
	defer m.sweep()
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.trials, at)
	if m.folder.state.find(at.model, at.name) == nil {
		return nil
	}
	next := m.folder.state.clone()
	next.Adapters = slices.DeleteFunc(next.Adapters, func(r record) bool { return r.Model == at.model && r.Name == at.name })
	if next.Defaults[at.model] == at.name {
		delete(next.Defaults, at.model)
	}
	if err := m.folder.save(next); err != nil {
		return err
	}
	m.log.Info("adapter unloaded", "model", at.model, "adapter", at.name)
	if m.failed[at] != nil {
		delete(m.failed, at)
		return nil
	}
	if err := m.cfg.Catalog.DropAdapter(at.model, at.name); !errors.Is(err, decode.ErrUnknownAdapter) && !errors.Is(err, anytime.ErrUnknownModel) {
		return err
	}
	return nil
}

// State is what becomes of requests that name an adapter.
type State string

// Loaded adapters answer at once, idle ones once their model is loaded again. Those measured and those refused have no name yet.
const (
	Loaded    State = "loaded"
	Idle      State = "idle"
	Broken    State = "broken" // it was loaded before, and could not be restored
	Measuring State = "measuring"
	Refused   State = "refused"
	Failed    State = "failed" // it could not be measured
	Passed    State = "passed" // of a Trial only
)

// Adapter is how things stand with a name.
type Adapter struct {
	Name, Model string
	State       State
	Default     bool
	Fixed       bool // from the configuration
	// Of what serves under the name; zero if nothing does.
	File, SHA256 string
	Bytes        int64
	Loaded       time.Time
	Curve        *budget.Curve // nil unknown
	Reason       string        // why it is broken
	Trial        *Trial        // under way, or the last; nil: none
}

// List returns all adapters: by the order of their models, then by name.
func (m *Manager) List() []Adapter {
	m.mu.Lock()
	defer m.mu.Unlock()
	views := map[place]Adapter{}
	add := func(r record, fixed bool) {
		at := place{r.Model, r.Name}
		a := Adapter{
			Name: r.Name, Model: r.Model, State: Idle, Fixed: fixed, File: r.File, SHA256: r.SHA256, Bytes: r.Bytes, Loaded: r.Loaded,
			Default: m.folder.state.Defaults[r.Model] == r.Name, Curve: r.curve(),
		}
		err := m.failed[at]
		inMemory := false
		if err == nil {
			inMemory, err = m.cfg.Catalog.AdapterState(r.Model, r.Name)
		}
		switch {
		case err != nil:
			a.State, a.Reason = Broken, err.Error()
		case inMemory:
			a.State = Loaded
		}
		views[at] = a
	}
	for _, model := range m.cfg.Models {
		for _, f := range model.Fixed {
			add(f.record(model.ID), true)
		}
	}
	for _, r := range m.folder.state.Adapters {
		if _, fixed := views[place{r.Model, r.Name}]; !fixed {
			add(r, false)
		}
	}
	for at, t := range m.trials {
		a, serves := views[at]
		if !serves {
			a = Adapter{Name: at.name, Model: at.model, State: t.State}
		}
		found := *t.Trial
		a.Trial = &found
		views[at] = a
	}
	list := make([]Adapter, 0, len(views))
	for _, a := range views {
		list = append(list, a)
	}
	order := func(id string) int {
		return slices.IndexFunc(m.cfg.Models, func(model Model) bool { return model.ID == id })
	}
	slices.SortFunc(list, func(a, b Adapter) int {
		return cmp.Or(cmp.Compare(order(a.Model), order(b.Model)), strings.Compare(a.Model, b.Model), strings.Compare(a.Name, b.Name))
	})
	return list
}

// Get returns the adapter that a name means: "model:adapter", or its own name where only one model has it. Errors:
// decode.ErrUnknownAdapter, *ConflictError for a name that means several.
func (m *Manager) Get(name string) (Adapter, error) {
	var found []Adapter
	var names []string
	for _, a := range m.List() {
		whole := place{a.Model, a.Name}.String()
		if whole == name {
			return a, nil
		}
		if a.Name == name {
			found, names = append(found, a), append(names, whole)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return Adapter{}, fmt.Errorf("%w: %.128q; GET /v1/adapters lists them", decode.ErrUnknownAdapter, name)
	}
	return Adapter{}, conflict("%q means several: name one of %s", name, strings.Join(names, ", "))
}
