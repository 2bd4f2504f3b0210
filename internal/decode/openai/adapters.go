package openai

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"anytime/internal/decode"
)

// loras are the LoRA adapters of a server. llama-server has those that it was started with, and each request says how much of each
// it wants; vLLM loads them at any time and serves each as a model of its own.
type loras struct {
	*client
	kind   kind
	listed []lora         // what llama-server was started with
	wait   sync.WaitGroup // for unloading

	mu    sync.Mutex // guards what follows
	names map[string]*lora
	keys  map[string]*lora // named or in use, by what remote.Request.Model holds
	next  int
}

type lora struct {
	key   string
	id    int     // llama-server's
	path  string  // there
	scale float32 // likewise
	model string  // vLLM's
	ours  bool    // loaded by us, and so to be unloaded
	named bool
	users int
}

func newLoras(c *client, k kind) *loras {
	return &loras{client: c, kind: k, names: map[string]*lora{}, keys: map[string]*lora{}}
}

// set gives an adapter a name. The caller holds mu, or knows of no other.
func (l *loras) set(name string, a *lora) (replaced *lora) {
	l.next++
	a.key, a.named = fmt.Sprint(l.next), true
	old := l.names[name]
	l.names[name], l.keys[a.key] = a, a
	return old
}

// apply puts the adapter of a key into a request, and keeps the others out of it.
func (l *loras) apply(body map[string]any, key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.keys[key]
	switch {
	case l.kind == llamaServer && len(l.listed) > 0:
		list := make([]map[string]any, len(l.listed))
		for i, known := range l.listed {
			list[i] = map[string]any{"id": known.id, "scale": float32(0)}
			if a != nil && a.id == known.id {
				list[i]["scale"] = a.scale
			}
		}
		body["lora"] = list
	case a != nil:
		body["model"] = a.model
	}
}

// acquire is remote.Config.Acquire.
func (l *loras) acquire(name string) (key string, release func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.names[name]
	if a == nil {
		return "", nil, fmt.Errorf("%w: %q", decode.ErrUnknownAdapter, name)
	}
	a.users++
	return a.key, func() {
		l.mu.Lock()
		a.users--
		l.mu.Unlock()
		l.release(a)
	}, nil
}

// release unloads an adapter that has neither name nor users. It is called under the engine's mutex, so it does not wait for the server.
func (l *loras) release(a *lora) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.named || a.users > 0 {
		return
	}
	delete(l.keys, a.key)
	if a.ours {
		l.wait.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
			defer cancel()
			// It may be gone already: the server may have been started anew.
			_ = l.post(ctx, l.base+"/unload_lora_adapter", map[string]any{"lora_name": a.model}, nil)
		})
	}
}

// adapting is an engine whose server has adapters.
type adapting struct{ *Engine }

var _ decode.Adapters = adapting{}

// LoadAdapter implements decode.Adapters. The path is one of the server's machine.
func (e adapting) LoadAdapter(ctx context.Context, name, path string, scale float32) error {
	l := e.server.lora
	if name == "" || strings.ContainsAny(name, "/\x00") {
		return refuse("adapter", "has the name %q; it must be one without a slash", name)
	}
	if !(scale > 0 && scale <= 100) {
		return refuse("scale", "is %v; it must be above 0, where 1 applies the adapter as trained, and at most 100", scale)
	}
	a := &lora{id: -1, scale: scale}
	if l.kind == llamaServer {
		for _, known := range l.listed {
			if known.path == path || a.id < 0 && filepath.Base(known.path) == filepath.Base(path) {
				a.id = known.id
			}
		}
		if a.id < 0 {
			return refuse("adapter", "%s is not loaded: llama-server takes adapters only when it is started; start it with --lora %s --lora-init-without-apply", path, path)
		}
	} else {
		if scale != 1 {
			return refuse("scale", "is %v; this server applies adapters as they were trained, so it must be 1", scale)
		}
		l.mu.Lock()
		l.next++
		a.model, a.ours = fmt.Sprintf("%s-%d", name, l.next), true // what is loaded under a name may still be in use
		l.mu.Unlock()
		if err := l.post(ctx, l.base+"/load_lora_adapter", map[string]any{"lora_name": a.model, "lora_path": path}, nil); err != nil {
			return fmt.Errorf("load adapter %q: %w", name, e.server.explain(err))
		}
	}
	l.mu.Lock()
	old := l.set(name, a)
	l.mu.Unlock()
	l.forget(old)
	return nil
}

// UnloadAdapter implements decode.Adapters.
func (e adapting) UnloadAdapter(_ context.Context, name string) error {
	l := e.server.lora
	l.mu.Lock()
	a := l.names[name]
	delete(l.names, name)
	l.mu.Unlock()
	if a == nil {
		return fmt.Errorf("%w: %q", decode.ErrUnknownAdapter, name)
	}
	l.forget(a)
	return nil
}

// AdapterNames implements decode.Adapters.
func (e adapting) AdapterNames() []string {
	l := e.server.lora
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(maps.Keys(l.names))
}

// forget takes an adapter's name away.
func (l *loras) forget(a *lora) {
	if a == nil {
		return
	}
	l.mu.Lock()
	a.named = false
	l.mu.Unlock()
	l.release(a)
}

func refuse(field, format string, args ...any) error {
	return &decode.InputError{Field: field, Reason: fmt.Sprintf(format, args...)}
}
