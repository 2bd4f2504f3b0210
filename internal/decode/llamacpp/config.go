package llamacpp

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"anytime/internal/gguf"
)

// Config is what an engine runs with. Zero values mean the defaults that are named; ModelPath and LibDir have none.
type Config struct {
	ModelPath string // GGUF file, the first of its parts if it is split
	Model     string // id by which requests name it; default the file's name without .gguf
	LibDir    string // folder of libllama.so, libggml.so and their backends
	// Command starts the child process, whose main must call Serve. Default: this program with the argument "engine".
	Command []string

	ContextTokens int    // longest sequence; default the model's own, at most 8192
	CacheTokens   int    // KV cells that all sequences share; default 4 × ContextTokens, at most 32768, at least ContextTokens
	Sequences     int    // sequences that decode at once, forks and kept caches included; more wait. Default 32, at most 256
	BatchTokens   int    // most tokens in a decode step; default 512
	Threads       int    // default all cores but one
	GPULayers     int    // layers on the GPU; 0 none, AllLayers as many as fit
	KVType        string // f16 (default), q8_0, f32
	// FlashAttention is auto (default), on or off; q8_0 needs it. Off with f32 makes a fork equal a decoding from scratch
	// token for token, for F32 weights.
	FlashAttention string
	// Watchdog is how long the child may be silent before it is replaced; a child that has taken long for a step gets four times
	// that. Default one minute.
	Watchdog time.Duration

	Log       *slog.Logger    // default slog.Default()
	OnRestart func(err error) // called, not concurrently, when a child that had loaded the model is replaced
}

// AllLayers as Config.GPULayers offloads as many layers as fit the GPU's memory.
const AllLayers = -1

const (
	maxSequences   = 256 // llama.cpp's LLAMA_MAX_SEQ
	maxCacheTokens = 1 << 24
)

// kvTypes maps Config.KVType to the type of a cached value.
var kvTypes = map[string]gguf.Type{"f16": gguf.F16, "q8_0": gguf.Q8_0, "f32": gguf.F32}

// withDefaults fills in defaults and checks the values against one another and the model.
func (c Config) withDefaults(h *gguf.Header) (Config, error) {
	trained := h.ContextTokens()
	if c.Model == "" {
		base := filepath.Base(c.ModelPath)
		c.Model = base[:len(base)-len(filepath.Ext(base))]
	}
	if len(c.Command) == 0 {
		self, err := os.Executable()
		if err != nil {
			return c, fmt.Errorf("find this program to start the engine: %w", err)
		}
		c.Command = []string{self, "engine"}
	}
	setDefault(&c.ContextTokens, min(trained, 8192))
	setDefault(&c.CacheTokens, max(c.ContextTokens, min(4*c.ContextTokens, 32768)))
	setDefault(&c.Sequences, 32)
	setDefault(&c.BatchTokens, 512)
	// All but one: a step waits for its slowest thread, so one that must share its core with the server stalls all.
	setDefault(&c.Threads, max(1, runtime.NumCPU()-1))
	setDefault(&c.KVType, "f16")
	setDefault(&c.FlashAttention, "auto")
	setDefault(&c.Watchdog, time.Minute)
	setDefault(&c.Log, slog.Default())
	switch {
	case c.LibDir == "":
		return c, c.bad("LibDir", c.LibDir, "must name the folder of the llama.cpp libraries")
	case c.ContextTokens < 8 || trained > 0 && c.ContextTokens > trained:
		return c, c.bad("ContextTokens", c.ContextTokens, fmt.Sprintf("must be from 8 to %d, for which the model was trained", trained))
	case c.CacheTokens < c.ContextTokens || c.CacheTokens > maxCacheTokens:
		return c, c.bad("CacheTokens", c.CacheTokens, fmt.Sprintf("must be from ContextTokens, %d, to %d", c.ContextTokens, maxCacheTokens))
	case c.Sequences < 1 || c.Sequences > maxSequences:
		return c, c.bad("Sequences", c.Sequences, fmt.Sprintf("must be from 1 to %d", maxSequences))
	case c.BatchTokens < c.Sequences || c.BatchTokens > 1<<16:
		return c, c.bad("BatchTokens", c.BatchTokens, fmt.Sprintf("must be from Sequences, %d, to %d", c.Sequences, 1<<16))
	case c.Threads < 1 || c.Threads > 1024:
		return c, c.bad("Threads", c.Threads, "must be from 1 to 1024")
	case c.GPULayers < AllLayers:
		return c, c.bad("GPULayers", c.GPULayers, "must be -1 for all that fit, or a number of layers")
	case kvTypes[c.KVType] == 0 && c.KVType != "f32":
		return c, c.bad("KVType", c.KVType, "must be f16, q8_0 or f32")
	case c.FlashAttention != "auto" && c.FlashAttention != "on" && c.FlashAttention != "off":
		return c, c.bad("FlashAttention", c.FlashAttention, "must be auto, on or off")
	case c.KVType == "q8_0" && c.FlashAttention == "off":
		return c, c.bad("FlashAttention", c.FlashAttention, "must be auto or on for a KVType of q8_0")
	case c.Watchdog < 100*time.Millisecond:
		return c, c.bad("Watchdog", c.Watchdog, "must be at least 100ms")
	}
	return c, nil
}

func (c Config) bad(field string, value any, reason string) error {
	return fmt.Errorf("engine config: %s is %v: it %s", field, value, reason)
}

func setDefault[T comparable](p *T, value T) {
	var zero T
	if *p == zero {
		*p = value
	}
}

// wholeState is set by tests to run any model as if its cache could not be cut.
var wholeState bool

// childConfig is what the child is told.
type childConfig struct {
	ModelPath, LibDir                                           string
	ContextTokens, CacheTokens, Sequences, BatchTokens, Threads int
	GPULayers                                                   int
	KVType, FlashAttention                                      string
	ModelBytes, KVBytesPerToken                                 uint64
	Layers                                                      int
	WholeState                                                  bool
}

func (c Config) forChild(h *gguf.Header) childConfig {
	layers, _ := h.Uint(h.Architecture() + ".block_count")
	return childConfig{
		ModelPath: c.ModelPath, LibDir: c.LibDir, ContextTokens: c.ContextTokens, CacheTokens: c.CacheTokens,
		Sequences: c.Sequences, BatchTokens: c.BatchTokens, Threads: c.Threads, GPULayers: c.GPULayers,
		KVType: c.KVType, FlashAttention: c.FlashAttention, ModelBytes: h.TensorBytes(),
		KVBytesPerToken: h.KVBytesPerToken(kvTypes[c.KVType]), Layers: int(layers), WholeState: wholeState,
	}
}
