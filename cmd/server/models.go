package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"

	"anytime/internal/catalog"
	"anytime/internal/decode"
	"anytime/internal/decode/llamacpp"
	"anytime/internal/gguf"
	"anytime/internal/hub"
)

// findModels fetches the models that are not here yet, with a progress bar on progress, and looks into each file, so that what is
// wrong with one shows now and not when it is first asked for.
func findModels(ctx context.Context, cfg *Config, progress io.Writer, log *slog.Logger, open *engines) ([]catalog.ModelConfig, error) {
	lib := home(cfg.EngineLib)
	if found, _ := filepath.Glob(filepath.Join(lib, "libllama.*")); len(found) == 0 {
		return nil, &ConfigError{"engine_lib", lib, "must be the folder of the llama.cpp libraries, and has no libllama: `make engine` fetches them into engine/lib"}
	}
	h, err := hub.New(hub.Config{Dir: filepath.Join(home(cfg.Data), "models"), BaseURL: cfg.HubURL, Token: cfg.HubToken, Progress: hub.Reporter(progress)})
	if err != nil {
		return nil, err
	}
	var files []string
	for _, m := range cfg.Models {
		path, err := h.Fetch(ctx, home(m.Path))
		if err != nil {
			return nil, err
		}
		files = append(files, path)
	}
	var list []catalog.ModelConfig
	names := modelIDs(files)
	for i, m := range cfg.Models {
		m.ID = cmp.Or(m.ID, names[i])
		c, err := modelConfig(cfg, m, files[i], log, open)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}

// modelConfig is a model whose file is here.
func modelConfig(cfg *Config, m ModelConfig, path string, log *slog.Logger, open *engines) (catalog.ModelConfig, error) {
	header, err := gguf.Check(path)
	if err != nil {
		return catalog.ModelConfig{}, fmt.Errorf("model %q: %w", m.Path, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return catalog.ModelConfig{}, fmt.Errorf("model %q: %w", m.Path, err)
	}
	engine := llamacpp.Config{
		ModelPath: path, LibDir: home(cfg.EngineLib), ContextTokens: cfg.Context, CacheTokens: cfg.CacheTokens, Sequences: cfg.Sequences,
		BatchTokens: cfg.BatchTokens, Threads: cfg.Threads, GPULayers: cfg.GPULayers, KVType: cfg.KVType,
		FlashAttention: cfg.FlashAttention, Watchdog: cfg.Watchdog, Log: log.With("model", m.ID), OnRestart: func(error) { open.restarts.Inc() },
	}
	if m.Context > 0 {
		engine.ContextTokens = m.Context
	}
	if trained := header.ContextTokens(); trained > 0 {
		engine.ContextTokens = min(engine.ContextTokens, trained)
	}
	if engine.CacheTokens == 0 {
		engine.CacheTokens = min(4*engine.ContextTokens, 32768)
	}
	engine.CacheTokens = max(engine.CacheTokens, engine.ContextTokens)
	if m.GPULayers != nil {
		engine.GPULayers = *m.GPULayers
	}
	if m.KVType != "" {
		engine.KVType = m.KVType
	}
	c := catalog.ModelConfig{
		ID: m.ID, ContextTokens: engine.ContextTokens, Created: info.ModTime(), Family: m.Family.Family, MaxThinking: cfg.MaxThinking,
		Adapters: map[string]string{},
		Bytes:    int64(header.TensorBytes() + uint64(engine.CacheTokens)*header.KVBytesPerToken(cacheTypes[engine.KVType])),
		Open: func(ctx context.Context) (decode.Engine, error) {
			e, err := llamacpp.Open(ctx, engine)
			if err != nil {
				return nil, err // not a nil *Engine in an interface
			}
			return open.track(m.ID, e), nil
		},
	}
	if m.MaxThinking > 0 {
		c.MaxThinking = m.MaxThinking
	}
	if m.Template != "" {
		text, err := os.ReadFile(home(m.Template))
		if err != nil {
			return c, fmt.Errorf("model %q: template: %w", m.Path, err)
		}
		c.Template = string(text)
	}
	for name, file := range m.Adapters {
		c.Adapters[name] = home(file)
		if _, err := gguf.CheckAdapter(c.Adapters[name], header); err != nil {
			return c, fmt.Errorf("model %q: adapter %q: %w", m.Path, name, err)
		}
	}
	return c, nil
}

var cacheTypes = map[string]gguf.Type{"f16": gguf.F16, "q8_0": gguf.Q8_0, "f32": gguf.F32}

var (
	extensionRE    = regexp.MustCompile(`(?i)(-\d{5}-of-\d{5})?\.gguf$`)
	quantizationRE = regexp.MustCompile(`(?i)[-._](I?Q\d\w*|TQ\d\w*|BF16|F16|F32|FP16|MXFP4\w*)$`)
	oddRE          = regexp.MustCompile(`^[^A-Za-z0-9]+|[^A-Za-z0-9._-]+`)
)

// modelIDs names models after their files: without .gguf and, where that leaves them different, without quantization.
func modelIDs(files []string) []string {
	ids := make([]string, len(files))
	short := map[string]int{}
	for i, file := range files {
		ids[i] = oddRE.ReplaceAllString(extensionRE.ReplaceAllString(filepath.Base(file), ""), "")
		short[quantizationRE.ReplaceAllString(ids[i], "")]++
	}
	for i, id := range ids {
		if s := quantizationRE.ReplaceAllString(id, ""); short[s] == 1 && s != "" {
			ids[i] = s
		}
	}
	return ids
}
