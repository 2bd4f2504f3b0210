package adapters_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/catalog"
	"anytime/internal/catalog/adapters"
	"anytime/internal/decode"
	"anytime/internal/decode/decodetest"
	"anytime/internal/gguf"
	"anytime/internal/gguf/tiny"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// engine is a scripted engine that takes any adapter.
type engine struct {
	*decodetest.Engine
	mu    sync.Mutex
	files map[string]string // content by key
}

func (e *engine) LoadAdapter(_ context.Context, key, path string, _ float32) error {
	data, err := os.ReadFile(path)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.files[key] = string(data)
	return err
}

func (e *engine) UnloadAdapter(_ context.Context, key string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.files, key)
	return nil
}

func (e *engine) AdapterNames() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Sorted(maps.Keys(e.files))
}

func (e *engine) content(key string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.files[key]
}

func (e *engine) Open(ctx context.Context, req decode.Request) (decode.Sequence, error) {
	req.Adapter = ""
	return e.Engine.Open(ctx, req)
}

// gate measures what it is told to: the accuracy of a model by what it has for an adapter.
type gate struct {
	own   bool                 // there are problems without a request's
	found map[string][]float64 // by the adapter's content, "" the bare model
	err   error
	asked chan string // gets what is measured, if set; then it waits for go or the end
	let   chan struct{}

	mu   sync.Mutex
	runs []string // of what
}

func (g *gate) Evaluation(problems []byte, budgets []int) (*adapters.Evaluation, error) {
	if problems == nil && !g.own {
		return nil, nil
	}
	if string(problems) == "wrong" {
		return nil, &decode.InputError{Field: "gate.problems", Reason: "is wrong"}
	}
	return &adapters.Evaluation{Key: fmt.Sprintf("%s %v", problems, budgets), Thoughts: 4, Run: func(ctx context.Context, m *anytime.Model, onThought func()) (budget.Curve, error) {
		content := m.Engine.(*engine).content(m.Adapter)
		g.mu.Lock()
		g.runs = append(g.runs, content)
		g.mu.Unlock()
		if g.asked != nil {
			select {
			case g.asked <- content:
			case <-ctx.Done():
				return budget.Curve{}, ctx.Err()
			}
			select {
			case <-g.let:
			case <-ctx.Done():
				return budget.Curve{}, ctx.Err()
			}
		}
		for range 4 {
			onThought()
		}
		var c budget.Curve
		for i, a := range g.found[content] {
			c.Points = append(c.Points, budget.CurvePoint{Budget: 64 << i, Tokens: 64, Accuracy: a, Low: a, High: a})
		}
		return c, g.err
	}}, nil
}

// bench is a manager of the models m and n, and all that it stands on.
type bench struct {
	t       *testing.T
	dir     string
	catalog *catalog.Catalog
	*adapters.Manager
	gate    *gate
	engines map[string]*engine
	once    func()
}

var (
	one, two, qwen []byte // adapters
	header         *gguf.Header
)

func files(t *testing.T) {
	t.Helper()
	if header != nil {
		return
	}
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	read := func(name string, write func(path string) error) []byte {
		if err := write(path(name)); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path(name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	one = read("one", func(p string) error { return tiny.WriteAdapter(p, 1, "") })
	two = read("two", func(p string) error { return tiny.WriteAdapter(p, 2, "") })
	qwen = read("qwen", func(p string) error { return tiny.WriteAdapter(p, 2, "qwen2") })
	read("model", func(p string) error { return tiny.WriteFile(p, 1, tiny.Options{}) })
	var err error
	if header, err = gguf.Check(path("model")); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, dir string, g *gate, change ...func([]adapters.Model, []catalog.ModelConfig)) *bench {
	t.Helper()
	files(t)
	if dir == "" {
		dir = t.TempDir()
	}
	folder, err := adapters.OpenFolder(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	b := &bench{t: t, dir: dir, gate: g, engines: map[string]*engine{}}
	var hosts []adapters.Model
	var models []catalog.ModelConfig
	for _, id := range []string{"m", "n"} {
		host := adapters.Model{ID: id, Hash: func() (string, error) { return id, nil }, Check: func(path string) error {
			_, err := gguf.CheckAdapter(path, header)
			return err
		}}
		model := catalog.ModelConfig{ID: id, Bytes: 1, ContextTokens: 1000, Open: func(context.Context) (decode.Engine, error) {
			e := &engine{Engine: decodetest.New(decodetest.Options{Info: decode.Info{ContextTokens: 1000}}), files: map[string]string{}}
			b.engines[id] = e
			return e, nil
		}}
		var standard string
		model.Adapters, standard, host.Failed = folder.Restore(id, host.Check)
		if _, ok := model.Adapters[standard]; ok {
			model.Adapter = standard
		}
		hosts, models = append(hosts, host), append(models, model)
	}
	for _, f := range change {
		f(hosts, models)
	}
	if b.catalog, err = catalog.New(catalog.Config{Models: models, Logger: log}); err != nil {
		t.Fatal(err)
	}
	b.Manager = adapters.New(adapters.Config{Folder: folder, Catalog: b.catalog, Models: hosts, Gate: g, Margin: 0.05, Logger: log})
	b.once = sync.OnceFunc(func() {
		if err := errors.Join(b.Close(), b.catalog.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(b.once)
	return b
}

func (b *bench) put(name string, data []byte) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), data, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) load(req adapters.Request) adapters.Adapter {
	b.t.Helper()
	a, err := b.Load(b.t.Context(), req)
	if err != nil {
		b.t.Fatalf("%+v: %v", req, err)
	}
	return a
}

// serves checks what answers under a name.
func (b *bench) serves(name string, content []byte) {
	b.t.Helper()
	m, release, err := b.catalog.Acquire(b.t.Context(), name)
	if err != nil {
		b.t.Errorf("%s: %v", name, err)
		return
	}
	defer release()
	if m.Engine.(*engine).content(m.Adapter) != string(content) {
		b.t.Errorf("%s is %s, with other weights than it should have", name, m.ID)
	}
}

func (b *bench) lacks(name string) {
	b.t.Helper()
	if _, _, err := b.catalog.Acquire(b.t.Context(), name); !errors.Is(err, decode.ErrUnknownAdapter) {
		b.t.Errorf("%s: %v", name, err)
	}
}

// ended waits until an adapter has been measured.
func (b *bench) ended(name string) adapters.Adapter {
	b.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		a, err := b.Get(name)
		if err != nil || a.Trial == nil {
			b.t.Fatalf("%s: %+v, %v", name, a, err)
		}
		if a.Trial.State != adapters.Measuring {
			return a
		}
		select {
		case <-tick.C:
		case <-b.t.Context().Done():
			b.t.Fatal("it is still being measured")
		}
	}
}

func hashOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func TestLoad(t *testing.T) {
	b := open(t, "", &gate{})
	b.put("one.gguf", one)
	before := time.Now().Add(-time.Second)
	a := b.load(adapters.Request{Name: "poet", File: "one.gguf", SHA256: hashOf(one)})
	if a.State != adapters.Loaded || a.Model != "m" || a.Default || a.File != "one.gguf" || a.SHA256 != hashOf(one) || a.Bytes != int64(len(one)) || a.Loaded.Before(before) || a.Trial != nil {
		t.Errorf("%+v", a)
	}
	b.serves("m:poet", one)
	b.serves("m", nil)
	// Other weights under the same name; the file that they came from may change.
	b.put("one.gguf", two)
	b.serves("m:poet", one)
	b.load(adapters.Request{Name: "poet", File: "one.gguf"})
	b.serves("m:poet", two)
	if names := b.engines["m"].AdapterNames(); len(names) != 1 {
		t.Errorf("the engine has %q", names)
	}
	// The same again is nothing new.
	key := b.engines["m"].AdapterNames()
	if a := b.load(adapters.Request{Name: "poet", File: "one.gguf", Default: true}); !a.Default || !slices.Equal(key, b.engines["m"].AdapterNames()) {
		t.Errorf("%+v", a)
	}
	b.serves("m", two)
	b.serves("m:bare", nil)
	if a := b.load(adapters.Request{Name: "bare", Default: true}); a.Name != "bare" || !a.Default {
		t.Errorf("%+v", a)
	}
	b.serves("m", nil)
	b.load(adapters.Request{Name: "poet", Default: true})
	b.serves("m", two)
	// One of another model, and a name that both have.
	b.put("two.gguf", two)
	b.load(adapters.Request{Name: "poet", Model: "n", File: "two.gguf"})
	var conflict *adapters.ConflictError
	if err := b.Delete(t.Context(), "poet"); !errors.As(err, &conflict) || !strings.Contains(err.Error(), "m:poet, n:poet") {
		t.Errorf("%v", err)
	}
	if err := b.Delete(t.Context(), "m:poet"); err != nil {
		t.Fatal(err)
	}
	b.lacks("m:poet")
	b.serves("m", nil)
	b.serves("n:poet", two)
	if err := b.Delete(t.Context(), "poet"); err != nil || len(b.List()) != 0 {
		t.Errorf("%v, %+v", err, b.List())
	}
	if err := b.Delete(t.Context(), "poet"); !errors.Is(err, decode.ErrUnknownAdapter) {
		t.Errorf("twice: %v", err)
	}
}

func TestLoadRefuses(t *testing.T) {
	b := open(t, "", &gate{})
	outside := filepath.Join(t.TempDir(), "outside.gguf")
	if err := os.WriteFile(outside, one, 0o600); err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(b.dir, name) }
	for _, err := range []error{
		os.Symlink(outside, at("link.gguf")), os.Symlink(filepath.Dir(outside), at("away")), syscall.Mkfifo(at("pipe.gguf"), 0o600), os.Mkdir(at("folder.gguf"), 0o700),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	b.put("one.gguf", one)
	b.put("one.txt", one)
	b.put("qwen.gguf", qwen)
	b.put("junk.gguf", []byte("GGUF junk"))
	b.put("cut.gguf", one[:len(one)/2])
	b.put("large.gguf", make([]byte, 1<<20+1))
	margin := 2.0
	relative, err := filepath.Rel(b.dir, outside)
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		adapters.Request
		says string
	}{
		"no name":           {adapters.Request{File: "one.gguf"}, "name: is"},
		"a path as name":    {adapters.Request{Name: "../x", File: "one.gguf"}, "name: is"},
		"a colon":           {adapters.Request{Name: "a:b", File: "one.gguf"}, "name: is"},
		"bare with a file":  {adapters.Request{Name: "bare", File: "one.gguf", Default: true}, "only default can be set"},
		"bare for nothing":  {adapters.Request{Name: "bare"}, "only default can be set"},
		"no model":          {adapters.Request{Name: "x", Model: "z", File: "one.gguf"}, `no such model: "z"`},
		"no file":           {adapters.Request{Name: "x"}, "there is no m:x"},
		"unknown":           {adapters.Request{Name: "x", Default: true}, "there is no m:x"},
		"absent":            {adapters.Request{Name: "x", File: "none.gguf"}, "not there"},
		"absolute":          {adapters.Request{Name: "x", File: outside}, "in the server's adapter folder"},
		"traversal":         {adapters.Request{Name: "x", File: relative}, "in the server's adapter folder"},
		"traversal within":  {adapters.Request{Name: "x", File: "loaded/../../x.gguf"}, "in the server's adapter folder"},
		"NUL":               {adapters.Request{Name: "x", File: "one\x00.gguf"}, "in the server's adapter folder"},
		"a link out":        {adapters.Request{Name: "x", File: "link.gguf"}, "cannot be opened within"},
		"a folder out":      {adapters.Request{Name: "x", File: "away/outside.gguf"}, "cannot be opened within"},
		"a pipe":            {adapters.Request{Name: "x", File: "pipe.gguf"}, "not a regular file"},
		"a folder":          {adapters.Request{Name: "x", File: "folder.gguf"}, "not a regular file"},
		"another extension": {adapters.Request{Name: "x", File: "one.txt"}, ".gguf"},
		"junk":              {adapters.Request{Name: "x", File: "junk.gguf"}, "junk.gguf cannot be used with model"},
		"cut off":           {adapters.Request{Name: "x", File: "cut.gguf"}, "cut.gguf cannot be used with model"},
		"another model's":   {adapters.Request{Name: "x", File: "qwen.gguf"}, `it must be the string "llama"`},
		"too large":         {adapters.Request{Name: "x", File: "large.gguf"}, "larger than 1048576 bytes"},
		"another file":      {adapters.Request{Name: "x", File: "one.gguf", SHA256: hashOf(two)}, "sha256: is " + hashOf(two)},
		"not uploaded":      {adapters.Request{Name: "x", File: "sha256:" + hashOf(two)}, "not uploaded"},
		"two digests":       {adapters.Request{Name: "x", File: "sha256:" + hashOf(two), SHA256: hashOf(one)}, "but file says"},
		"no digest":         {adapters.Request{Name: "x", File: "sha256:../../../x"}, "64 hexadecimal digits"},
		"a gate for none":   {adapters.Request{Name: "x", File: "one.gguf", Gate: &adapters.GateRequest{Problems: []byte("x")}}, "becomes the default"},
		"wrong problems":    {adapters.Request{Name: "x", File: "one.gguf", Default: true, Gate: &adapters.GateRequest{Problems: []byte("wrong")}}, "gate.problems: is wrong"},
		"no problems":       {adapters.Request{Name: "x", File: "one.gguf", Default: true, Gate: &adapters.GateRequest{Budgets: []int{1}}}, "gate.problems: is missing"},
		"a wrong margin":    {adapters.Request{Name: "x", File: "one.gguf", Default: true, Gate: &adapters.GateRequest{Problems: []byte("x"), Margin: &margin}}, "gate.margin: is 2"},
	} {
		if _, err := b.Load(t.Context(), row.Request); err == nil || !strings.Contains(err.Error(), row.says) || strings.Contains(err.Error(), b.dir) {
			t.Errorf("%s: %v; it should say %q", name, err, row.says)
		}
	}
	if list := b.List(); len(list) != 0 {
		t.Errorf("%+v", list)
	}
	if e := b.engines["m"]; e != nil && len(e.AdapterNames()) != 0 {
		t.Errorf("the engine has %q", e.AdapterNames())
	}
	b.load(adapters.Request{Name: "x", File: "one.gguf"}) // what was refused reserves nothing
	if _, err := b.Load(t.Context(), adapters.Request{Name: "x", SHA256: hashOf(one)}); err == nil || !strings.Contains(err.Error(), "file: is missing") {
		t.Errorf("nothing to do: %v", err)
	}
}

// A model whose engine takes no adapters, the default at that.
func TestLoadElsewhere(t *testing.T) {
	b := open(t, "", &gate{}, func(hosts []adapters.Model, models []catalog.ModelConfig) { models[0].ID = "remote" })
	b.put("one.gguf", one)
	var input *decode.InputError
	for _, model := range []string{"", "remote"} {
		if _, err := b.Load(t.Context(), adapters.Request{Name: "x", Model: model, File: "one.gguf"}); !errors.As(err, &input) || !strings.Contains(err.Error(), `"remote", whose engine cannot`) {
			t.Errorf("%q: %v", model, err)
		}
	}
	b.load(adapters.Request{Name: "x", Model: "n", File: "one.gguf"})
	b.serves("n:x", one)
}

func TestUpload(t *testing.T) {
	b := open(t, "", &gate{})
	for name, row := range map[string]struct {
		sum  string
		from io.Reader
		says string
	}{
		"another file": {hashOf(two), bytes.NewReader(one), "the file that came has " + hashOf(one)},
		"too large":    {hashOf(one), io.LimitReader(endless{}, 1<<30), "larger than"},
		"no digest":    {"../../x", bytes.NewReader(one), "64 hexadecimal digits"},
		"upper case":   {strings.ToUpper(hashOf(one)), bytes.NewReader(one), "64 hexadecimal digits"},
		"broken off":   {hashOf(one), io.MultiReader(bytes.NewReader(one[:100]), broken{}), "broken off"},
	} {
		if _, err := b.Upload(t.Context(), row.sum, row.from); err == nil || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(b.dir, "loaded", "*")); len(left) != 0 {
		t.Errorf("left over: %q", left)
	}
	n, err := b.Upload(t.Context(), hashOf(one), bytes.NewReader(one))
	if err != nil || n != int64(len(one)) {
		t.Fatal(n, err)
	}
	b.load(adapters.Request{Name: "x", File: "sha256:" + hashOf(one)})
	b.serves("m:x", one)
	// What nobody has loaded goes after a while, what is loaded stays.
	if _, err := b.Upload(t.Context(), hashOf(two), bytes.NewReader(two)); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-2 * time.Hour)
	for _, data := range [][]byte{one, two} {
		if err := os.Chtimes(filepath.Join(b.dir, "loaded", hashOf(data)+".gguf"), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Upload(t.Context(), hashOf(qwen), bytes.NewReader(qwen)); err != nil {
		t.Fatal(err)
	}
	left, _ := filepath.Glob(filepath.Join(b.dir, "loaded", "*"))
	want := []string{filepath.Join(b.dir, "loaded", hashOf(one)+".gguf"), filepath.Join(b.dir, "loaded", hashOf(qwen)+".gguf")}
	slices.Sort(want)
	if !slices.Equal(left, want) {
		t.Errorf("left %q, want %q", left, want)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("broken off") }

func TestRestore(t *testing.T) {
	b := open(t, "", &gate{})
	b.put("one.gguf", one)
	b.put("two.gguf", two)
	b.load(adapters.Request{Name: "poet", File: "one.gguf"})
	b.load(adapters.Request{Name: "sage", File: "two.gguf", Default: true})
	b.load(adapters.Request{Name: "gone", File: "two.gguf", Model: "n", Default: true})
	if err := b.Delete(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	b.once()
	b.put("one.gguf", two) // it is not read again

	b = open(t, b.dir, &gate{})
	if list := b.List(); len(list) != 2 || list[0].Name != "poet" || list[0].State != adapters.Idle || !list[1].Default || list[1].SHA256 != hashOf(two) {
		t.Errorf("%+v", list)
	}
	b.serves("m:poet", one)
	b.serves("m", two)
	b.serves("n", nil)
	b.once()

	// A damaged default leaves the bare model; the same file loaded again mends it.
	kept := filepath.Join(b.dir, "loaded", hashOf(two)+".gguf")
	if err := os.WriteFile(kept, append(bytes.Clone(two), 0), 0o600); err != nil {
		t.Fatal(err)
	}
	b = open(t, b.dir, &gate{})
	if a, err := b.Get("sage"); err != nil || a.State != adapters.Broken || !strings.Contains(a.Reason, "damaged") || !a.Default {
		t.Errorf("%+v, %v", a, err)
	}
	b.serves("m", nil)
	b.serves("m:poet", one)
	if a := b.load(adapters.Request{Name: "sage", File: "two.gguf"}); a.State != adapters.Loaded || !a.Default {
		t.Errorf("%+v", a)
	}
	b.serves("m", two)
	b.once()
	if err := os.Remove(kept); err != nil {
		t.Fatal(err)
	}
	b = open(t, b.dir, &gate{})
	if err := b.Delete(t.Context(), "sage"); err != nil || len(b.List()) != 1 {
		t.Errorf("%v, %+v", err, b.List())
	}
	b.once()

	for name, state := range map[string]string{
		"cut off": `{"format": "anytime ad`, "another's": `{"format": "adapters"}`,
		"a path": `{"format": "anytime adapters 1", "adapters": [{"model": "m", "name": "x", "sha256": "../../x"}]}`,
	} {
		b.put("state.json", []byte(state))
		if _, err := adapters.OpenFolder(b.dir, 1<<20); err == nil || !strings.Contains(err.Error(), "state.json") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Nothing changes if what is to outlive the server cannot be kept.
func TestStateNotKept(t *testing.T) {
	b := open(t, "", &gate{})
	b.put("one.gguf", one)
	b.put("two.gguf", two)
	b.load(adapters.Request{Name: "x", File: "one.gguf"})
	state := filepath.Join(b.dir, "state.json")
	if err := errors.Join(os.Remove(state), os.Mkdir(state, 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, req := range []adapters.Request{{Name: "y", File: "two.gguf"}, {Name: "x", File: "two.gguf"}, {Name: "x", Default: true}} {
		if _, err := b.Load(t.Context(), req); err == nil {
			t.Errorf("%+v was not refused", req)
		}
	}
	if err := b.Delete(t.Context(), "x"); err == nil {
		t.Error("the delete was not refused")
	}
	b.serves("m", nil)
	b.serves("m:x", one)
	b.lacks("m:y")
	if names := b.engines["m"].AdapterNames(); len(names) != 1 || len(b.List()) != 1 {
		t.Errorf("the engine has %q, listed %+v", names, b.List())
	}
}

func TestFixed(t *testing.T) {
	dir := t.TempDir()
	files(t)
	path := filepath.Join(t.TempDir(), "fixed.gguf")
	if err := os.WriteFile(path, one, 0o600); err != nil {
		t.Fatal(err)
	}
	fix := func(hosts []adapters.Model, models []catalog.ModelConfig) {
		hosts[0].Fixed = []adapters.Fixed{{Name: "fixed", File: path, SHA256: hashOf(one), Bytes: int64(len(one))}}
		models[0].Adapters["fixed"] = catalog.AdapterConfig{File: path}
	}
	b := open(t, dir, &gate{}, fix)
	b.put("two.gguf", two)
	var conflict *adapters.ConflictError
	if _, err := b.Load(t.Context(), adapters.Request{Name: "fixed", File: "two.gguf"}); !errors.As(err, &conflict) {
		t.Errorf("replaced: %v", err)
	}
	if err := b.Delete(t.Context(), "fixed"); !errors.As(err, &conflict) {
		t.Errorf("unloaded: %v", err)
	}
	if a := b.load(adapters.Request{Name: "fixed", Default: true}); !a.Fixed || !a.Default || a.SHA256 != hashOf(one) || a.File != path {
		t.Errorf("%+v", a)
	}
	b.serves("m", one)
	b.once()
	if data, err := os.ReadFile(filepath.Join(dir, "state.json")); err != nil || strings.Contains(string(data), hashOf(one)) || !strings.Contains(string(data), `"m": "fixed"`) {
		t.Errorf("%v: %s", err, data)
	}
}
