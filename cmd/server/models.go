package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"unicode/utf8"

	"anytime/internal/catalog"
	"anytime/internal/catalog/adapters"
	"anytime/internal/decode"
	"anytime/internal/decode/llamacpp"
	"anytime/internal/gguf"
	"anytime/internal/hub"
)

// findModels fetches the models that are not here yet, with a progress bar on progress, and looks into each file, so that what is
// wrong with one shows now and not when it is first asked for.
func findModels(ctx context.Context, cfg *Config, progress io.Writer, log *slog.Logger, open *engines,
	folder *adapters.Folder) (list []catalog.ModelConfig, hosts []adapters.Model, err error) {
	h, err := hub.New(hub.Config{Dir: filepath.Join(home(cfg.Data), "models"), BaseURL: cfg.HubURL, Token: cfg.HubToken, Progress: hub.Reporter(progress)})
	if err != nil {
		return nil, nil, err
	}
	var files []string // of those that have one
	for _, m := range cfg.Models {
		if !m.embedded() {
			continue
		}
		lib := home(cfg.EngineLib)
		if found, _ := filepath.Glob(filepath.Join(lib, "libllama.*")); len(found) == 0 {
			return nil, nil, &ConfigError{"engine_lib", lib, "must be the folder of the llama.cpp libraries, and has no libllama: `make engine` fetches them into engine/lib"}
		}
		path, err := h.Fetch(ctx, home(m.Path))
		if err != nil {
			return nil, nil, err
		}
		files = append(files, path)
	}
	names := modelIDs(files)
	for _, m := range cfg.Models {
		var c catalog.ModelConfig
		var host adapters.Model
		at, err := m.endpoints(cfg)
		if err != nil {
			return nil, nil, err
		}
		if m.embedded() {
			m.ID = cmp.Or(m.ID, names[0])
			c, host, err = embeddedModel(cfg, m, files[0], log, open, folder)
			names, files = names[1:], files[1:]
		} else {
			c.ID = cmp.Or(m.ID, at[0].ID())
		}
		if err != nil {
			return nil, nil, err
		}
		c.Family, c.MaxThinking = m.Family.Family, cmp.Or(m.MaxThinking, cfg.MaxThinking)
		if m.Template != "" {
			text, err := os.ReadFile(home(m.Template))
			if err != nil {
				return nil, nil, fmt.Errorf("model %q: template: %w", c.ID, err)
			}
			c.Template = string(text)
		}
		if len(at) > 0 {
			if len(at) == 1 && !m.embedded() {
				host, err = remoteAdapters(&c, m, at[0], folder, log)
			}
			remoteModel(&c, at, progress, log)
		}
		if err != nil {
			return nil, nil, err
		}
		list = append(list, c)
		if len(at) == 0 || len(at) == 1 && !m.embedded() { // a pool loads none
			hosts = append(hosts, host)
		}
	}
	return list, hosts, nil
}

// embeddedModel is a model whose file is here, and what adapters are loaded for.
func embeddedModel(cfg *Config, m ModelConfig, path string, log *slog.Logger, open *engines,
	folder *adapters.Folder) (c catalog.ModelConfig, host adapters.Model, err error) {
	header, err := gguf.Check(path)
	if err != nil {
		return c, host, fmt.Errorf("model %q: %w", m.Path, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return c, host, fmt.Errorf("model %q: %w", m.Path, err)
	}
	engine := llamacpp.Config{
		ModelPath: path, LibDir: home(cfg.EngineLib), ContextTokens: cmp.Or(m.Context, cfg.Context), CacheTokens: cfg.CacheTokens, Sequences: cfg.Sequences,
		BatchTokens: cfg.BatchTokens, Threads: cfg.Threads, GPULayers: cfg.GPULayers, KVType: cmp.Or(m.KVType, cfg.KVType),
		FlashAttention: cfg.FlashAttention, Watchdog: cfg.Watchdog, Log: log.With("model", m.ID), OnRestart: func(error) { open.restarts.Inc() },
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
	c = catalog.ModelConfig{
		ID: m.ID, Engine: "llama.cpp", ContextTokens: engine.ContextTokens, Created: info.ModTime(), Curve: curveBeside(path, log), Examples: examplesBeside(path, log),
		Bytes: int64(header.TensorBytes() + uint64(engine.CacheTokens)*header.KVBytesPerToken(cacheTypes[engine.KVType])),
		Open: func(ctx context.Context) (decode.Engine, error) {
			e, err := llamacpp.Open(ctx, engine)
			if err != nil {
				return nil, err // not a nil *Engine in an interface
			}
			return open.track(m.ID, e), nil
		},
	}
	check := func(file string) error {
		_, err := gguf.CheckAdapter(file, header)
		return err
	}
	host, err = addAdapters(&c, m, check, sync.OnceValues(func() (string, error) { return hashModel(path) }), folder, log)
	return c, host, err
}

const (
	maxExamples     = 8
	maxExampleBytes = 500
)

// examplesBeside returns the questions of NAME.examples.txt beside NAME.gguf, one a line.
func examplesBeside(weights string, log *slog.Logger) []string {
	file := strings.TrimSuffix(weights, ".gguf") + ".examples.txt"
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var list []string
	if err == nil {
		defer f.Close()
		lines := bufio.NewScanner(f)
		for lines.Scan() && len(list) < maxExamples {
			if text := strings.TrimSpace(lines.Text()); text != "" && len(text) <= maxExampleBytes && utf8.ValidString(text) {
				list = append(list, text)
			}
		}
		err = lines.Err()
	}
	if err != nil {
		log.Warn("examples are not used", "file", file, "error", err)
		return nil
	}
	return list
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
