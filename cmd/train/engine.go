package main

import (
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"anytime/internal/decode"
	"anytime/internal/decode/endpoint"
	"anytime/internal/decode/llamacpp"
	"anytime/internal/decode/prompt"
	"anytime/internal/hub"
)

// modelFlags name a model and how it is run, for the commands that decode.
type modelFlags struct {
	model, adapter, family string
	remote                 string // model on another server, in place of model; "" none
	engine                 llamacpp.Config
}

func (m *modelFlags) define(flags *flag.FlagSet) {
	flags.StringVar(&m.model, "model", "", "GGUF `file` of the model, or hf.co/OWNER/REPO[:QUANTIZATION], which is fetched into "+fetched+"; needed")
	flags.StringVar(&m.adapter, "adapter", "", "GGUF `file` of a LoRA adapter for it")
	flags.StringVar(&m.family, "family", "", "`family` of the model, which says how it thinks; by default told by its template")
	flags.StringVar(&m.engine.LibDir, "engine-lib", "engine/lib", "`folder` of the llama.cpp libraries")
	flags.IntVar(&m.engine.ContextTokens, "ctx", 0, "`tokens` of the longest sequence; 0: the model's own, at most 8192")
	flags.IntVar(&m.engine.CacheTokens, "cache-tokens", 0, "`tokens` in the KV cache that all sequences share; 0: four contexts, at most 32768")
	flags.IntVar(&m.engine.Sequences, "sequences", 32, "`sequences` that decode at once, 2 to 256")
	flags.IntVar(&m.engine.Threads, "threads", runtime.NumCPU(), "`threads` of the engine; 0: all cores but one")
	flags.IntVar(&m.engine.GPULayers, "gpu-layers", 0, "`layers` on the GPU; -1: all that fit")
	flags.StringVar(&m.engine.KVType, "kv-type", "f16", "`type` of the KV cache: f16, q8_0 or f32")
	flags.StringVar(&m.engine.FlashAttention, "flash-attention", "auto", "auto, on or off")
}

// engineKey holds the API key of a server that decodes: command lines can be read by everyone on the machine.
const engineKey = "ANYTIME_ENGINE_KEY"

// defineRemote is for the commands that need the model's tokens only, and not its weights.
func (m *modelFlags) defineRemote(flags *flag.FlagSet) {
	flags.StringVar(&m.remote, "engine", "", "model on another `server` in place of -model: ollama:NAME, ollama:NAME@URL or openai:MODEL@URL; an API key is taken from the environment's "+engineKey)
}

// named returns an error unless the flags name one model.
func (m *modelFlags) named() error {
	switch {
	case m.remote == "" && m.model == "":
		return usagef("-model is needed: name the GGUF file of a model")
	case m.remote == "" && (m.engine.Sequences < 2 || m.engine.Sequences > 256):
		return usagef("-sequences is %d: it must be from 2 to 256, for a thought and an answer from it", m.engine.Sequences)
	case m.remote == "":
		return nil
	case m.model != "":
		return usagef("-model and -engine are both given: a model is decoded either here or by another server")
	}
	if _, err := endpoint.Parse(m.remote); err != nil {
		return usagef("-engine is %w", err)
	}
	return nil
}

// openRemote connects to the server that has the model.
func (m *modelFlags) openRemote(ctx context.Context, stderr io.Writer) (_ model, err error) {
	at, err := endpoint.Parse(m.remote)
	if err != nil {
		return model{}, usageError{err}
	}
	at.ContextTokens = m.engine.ContextTokens
	at.Log = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if at.Kind == endpoint.OpenAI {
		at.Key, at.LogProbs = os.Getenv(engineKey), true
	}
	loaded := model{id: m.remote}
	if loaded.engine, err = at.Open(ctx); err != nil {
		return model{}, err
	}
	defer func() {
		if err != nil {
			loaded.engine.Close()
		}
	}()
	if m.adapter != "" {
		loader, ok := loaded.engine.(decode.Adapters)
		if !ok {
			return model{}, usagef("-adapter: %s takes no adapters", m.remote)
		}
		if loaded.adapter, err = identify(m.adapter); err != nil {
			return model{}, fmt.Errorf("adapter: %w", err)
		}
		loaded.adapter = strings.ReplaceAll(loaded.adapter, "@", "-") // a name for every engine
		if err = loader.LoadAdapter(ctx, loaded.adapter, m.adapter, 1); err != nil {
			return model{}, err
		}
	}
	loaded.renderer, err = m.prompts(loaded.engine.Info())
	return loaded, err
}

// model is a loaded model. Without modelFlags.remote its engine is a *llamacpp.Engine.
type model struct {
	engine   decode.Engine
	renderer *prompt.Renderer
	id       string // name and hash of the file
	adapter  string // id of the adapter, by which the engine knows it; "" none
}

// fetched is where models are kept that come from elsewhere: the server's folder for them.
const fetched = "data/models"

// fetch makes sure that the model is here, and names its file.
func (m *modelFlags) fetch(ctx context.Context, stderr io.Writer) error {
	h, err := hub.New(hub.Config{Dir: fetched, Token: os.Getenv("HF_TOKEN"), Progress: hub.Reporter(stderr)})
	if err != nil {
		return err
	}
	path, err := h.Fetch(ctx, m.model)
	if err != nil {
		return err
	}
	m.model = path
	return nil
}

// open loads the model. The caller closes the engine.
func (m *modelFlags) open(ctx context.Context, stderr io.Writer) (_ model, err error) {
	if err := m.named(); err != nil {
		return model{}, err
	}
	if m.remote != "" {
		return m.openRemote(ctx, stderr)
	}
	if err := m.fetch(ctx, stderr); err != nil {
		return model{}, err
	}
	var loaded model
	if loaded.id, err = identify(m.model); err != nil {
		return model{}, fmt.Errorf("model: %w", err)
	}
	if m.adapter != "" {
		if loaded.adapter, err = identify(m.adapter); err != nil {
			return model{}, fmt.Errorf("adapter: %w", err)
		}
	}
	if found, _ := filepath.Glob(filepath.Join(m.engine.LibDir, "libllama.*")); len(found) == 0 {
		return model{}, usagef("-engine-lib is %q, which has no libllama: `make engine` fetches the libraries into engine/lib", m.engine.LibDir)
	}
	m.engine.ModelPath = m.model
	m.engine.BatchTokens = max(512, m.engine.Sequences)
	m.engine.Log = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	engine, err := llamacpp.Open(ctx, m.engine)
	if err != nil {
		return model{}, err
	}
	loaded.engine = engine
	defer func() {
		if err != nil {
			engine.Close()
		}
	}()
	if m.adapter != "" {
		if err = engine.LoadAdapter(ctx, loaded.adapter, m.adapter, 1); err != nil {
			return model{}, err
		}
	}
	if loaded.renderer, err = m.prompts(loaded.engine.Info()); err != nil {
		return model{}, err
	}
	return loaded, nil
}

func (m *modelFlags) prompts(info decode.Info) (*prompt.Renderer, error) {
	family := prompt.Detect(info)
	if m.family != "" {
		var err error
		if family, err = prompt.Lookup(m.family); err != nil {
			return nil, usageError{err}
		}
	}
	return prompt.New(info, family, "")
}

// identify tells the weights in a file from others of the same name.
func identify(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s@%x", filepath.Base(path), h.Sum(nil)[:6]), nil
}
