package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/cpu"

	"anytime/internal/decode"
	"anytime/internal/decode/llamacpp"
	"anytime/internal/gguf/tiny"
	trainmodel "anytime/internal/train/model"
)

var doctorCommand = command{
	name: "doctor", about: "Say what this machine can do",
	manual: `
It looks at the processor, the memory, how this program was built, the llama.cpp libraries, GPUs, a plugin for XLA and the room in the
folder of the runs, and lets the engine decode and each backend train a tiny model for a moment. A line begins with ok, with -- where
something is missing that one can do without, or with NO where it must be put right before anything can be trained; then the exit code is 1.

`,
	setup: func(flags *flag.FlagSet) runner {
		var d doctor
		flags.StringVar(&d.model.engine.LibDir, "engine-lib", "engine/lib", "`folder` of the llama.cpp libraries")
		flags.StringVar(&d.plugin, "xla", "", "`file` of a plugin for XLA, with its options; by default a *pjrt*plugin*.so in bin, if there is one")
		flags.StringVar(&d.runs, "out", ".", "`folder` that runs are kept in")
		return func(ctx context.Context, args []string, stdout, _ io.Writer) error {
			if err := noArguments(args); err != nil {
				return err
			}
			d.w = stdout
			return d.examine(ctx)
		}
	},
}

type doctor struct {
	model        modelFlags
	plugin, runs string
	w            io.Writer
	failed       bool
}

func (d *doctor) say(state, about, format string, a ...any) {
	fmt.Fprintf(d.w, "%-3s %-10s %s\n", state, about, fmt.Sprintf(format, a...))
	d.failed = d.failed || state == "NO"
}

func (d *doctor) examine(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "train-doctor")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	d.model.model = filepath.Join(dir, "tiny.gguf")
	if err := tiny.WriteFile(d.model.model, 1, tiny.Options{}); err != nil {
		return err
	}
	d.processor()
	d.memory()
	d.room()
	d.gpus()
	d.engine(ctx)
	d.trains(ctx, "go")
	d.xla(ctx)
	if d.failed {
		return errors.New("something must be put right before anything can be trained; the lines with NO say what")
	}
	return nil
}

// processor tells of the CPU, and whether this program uses its vectors.
func (d *doctor) processor() {
	var has []string
	for _, f := range []struct {
		name string
		have bool
	}{
		{"AVX2", cpu.X86.HasAVX2}, {"FMA", cpu.X86.HasFMA}, {"AVX-512", cpu.X86.HasAVX512F}, {"BF16", cpu.X86.HasAVX512BF16},
		{"AMX", cpu.X86.HasAMXTile}, {"NEON", cpu.ARM64.HasASIMD}, {"SVE", cpu.ARM64.HasSVE},
	} {
		if f.have {
			has = append(has, f.name)
		}
	}
	d.say("ok", "processor", "%s/%s, %d cores, %s", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), cmp.Or(strings.Join(has, ", "), "no vectors that are known"))
	switch {
	case setting("GOEXPERIMENT", "simd"):
		d.say("ok", "build", "%s, with GOEXPERIMENT=simd: the Go backend uses the vectors", runtime.Version())
	case runtime.GOARCH == "amd64":
		d.say("--", "build", "%s, without GOEXPERIMENT=simd: the Go backend is several times slower than it could be; `make train` builds with it", runtime.Version())
	default:
		d.say("--", "build", "%s: the Go backend has no vectors on %s", runtime.Version(), runtime.GOARCH)
	}
}

// setting says whether this program was built with a value in one of the lists of the go command.
func setting(key, value string) bool {
	info, _ := debug.ReadBuildInfo()
	for _, s := range info.Settings {
		if s.Key == key && strings.Contains(","+s.Value+",", ","+value+",") {
			return true
		}
	}
	return false
}

func (d *doctor) memory() {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		d.say("--", "memory", "not known on %s", runtime.GOOS)
		return
	}
	gigabytes := map[string]float64{}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 {
			n, _ := strconv.ParseFloat(f[1], 64)
			gigabytes[strings.TrimSuffix(f[0], ":")] = n / (1 << 20)
		}
	}
	limit := ""
	for _, path := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		text, _ := os.ReadFile(path)
		if n, err := strconv.ParseFloat(strings.TrimSpace(string(text)), 64); err == nil && n/(1<<30) < gigabytes["MemTotal"] {
			limit = fmt.Sprintf("; this container may use %.1f GB", n/(1<<30))
			break
		}
	}
	d.say("ok", "memory", "%.1f GB, of which %.1f GB are available%s", gigabytes["MemTotal"], gigabytes["MemAvailable"], limit)
}

func (d *doctor) room() {
	free, err := freeBytes(d.runs)
	switch gigabytes := float64(free) / (1 << 30); {
	case err != nil:
		d.say("NO", "disk", "the folder of the runs: %v", err)
	case gigabytes < 1:
		d.say("NO", "disk", "%.2f GB free in %s: a run writes its weights after every unit of work, so there must be room for a few times the model", gigabytes, d.runs)
	default:
		d.say("ok", "disk", "%.1f GB free in %s", gigabytes, d.runs)
	}
}

func (d *doctor) gpus() {
	found, _ := filepath.Glob("/proc/driver/nvidia/gpus/*/information")
	for _, path := range found {
		data, _ := os.ReadFile(path)
		for line := range strings.Lines(string(data)) {
			if name, ok := strings.CutPrefix(line, "Model:"); ok {
				d.say("ok", "GPU", "%s", strings.TrimSpace(name))
			}
		}
	}
	if nodes, _ := filepath.Glob("/dev/nvidia[0-9]*"); len(found) == 0 && len(nodes) > 0 {
		d.say("ok", "GPU", "%d of NVIDIA", len(nodes))
	} else if len(found) == 0 {
		d.say("--", "GPU", "none of NVIDIA is found")
	}
}

// engine has the engine decode.
func (d *doctor) engine(ctx context.Context) {
	kind := "CPU"
	for _, k := range []string{"cuda", "vulkan", "metal"} {
		if found, _ := filepath.Glob(filepath.Join(d.model.engine.LibDir, "libggml-"+k+".*")); len(found) > 0 {
			kind = k
		}
	}
	variants, _ := filepath.Glob(filepath.Join(d.model.engine.LibDir, "libggml-cpu-*"))
	d.model.engine.Threads, d.model.engine.Sequences, d.model.engine.GPULayers = 1, 4, 0
	if kind != "CPU" {
		d.model.engine.GPULayers = -1
	}
	loaded, err := d.model.open(ctx, io.Discard)
	if err != nil {
		d.say("NO", "engine", "%v", err)
		return
	}
	defer loaded.engine.Close()
	speed, err := decodes(ctx, loaded.engine, 2*time.Second)
	if err != nil {
		d.say("NO", "engine", "it does not decode: %v", err)
		return
	}
	d.say("ok", "engine", "llama.cpp for %s in %s (%d variants for CPUs, of which it takes the best); a tiny model decodes %.0f tokens/s on one thread, %d layers of it on a GPU",
		kind, d.model.engine.LibDir, len(variants), speed, loaded.engine.(*llamacpp.Engine).GPULayers())
}

// decodes draws tokens for a time and returns how many come in a second.
func decodes(ctx context.Context, e decode.Engine, most time.Duration) (float64, error) {
	seq, err := e.Open(ctx, decode.Request{Prompt: []decode.Part{decode.Text("a")}})
	if err != nil {
		return 0, err
	}
	defer seq.Close()
	if err := seq.Decode(decode.Span{MaxTokens: 1024, MinTokens: 1024, Sampling: decode.Sampling{Temperature: 1}}); err != nil {
		return 0, err
	}
	n, began := 0, time.Now()
	for {
		chunk, err := seq.Next(ctx)
		n += len(chunk.Tokens)
		if took := time.Since(began); err != nil || chunk.End != "" || took > most {
			return float64(n) / took.Seconds(), err
		}
	}
}

// trains takes steps on a backend.
func (d *doctor) trains(ctx context.Context, backend string) {
	missing := "NO"
	if backend != "go" {
		missing = "--"
	}
	m, err := trainmodel.Open(d.model.model, trainmodel.Config{Backend: backend, Train: trainmodel.All, PassTimeout: 2 * time.Minute})
	if err != nil {
		d.say(missing, "trainer", "%v", err)
		return
	}
	defer m.Close()
	example := trainmodel.Example{Tree: trainmodel.Tree{Trunk: make([]int32, 512)}, Weight: make([]float32, 512)}
	for i := range example.Weight {
		example.Weight[i] = 1. / 512
		example.Tree.Trunk[i] = int32(i % m.Vocabulary())
	}
	example.Weight[0] = 0
	var s trainmodel.Stats
	for range 3 { // the first compiles
		if s, err = m.Step(ctx, []trainmodel.Example{example}, trainmodel.CrossEntropy{}); err != nil {
			d.say(missing, "trainer", "%s does not train: %v", backend, err)
			return
		}
	}
	weights, _ := m.Parameters()
	d.say("ok", "trainer", "%s: a model of %d thousand weights trains %.0f tokens/s", backend, weights/1000, float64(s.Tokens)/s.Elapsed.Seconds())
}

// xla looks for a plugin and trains with it.
func (d *doctor) xla(ctx context.Context) {
	if d.plugin == "" {
		found, _ := filepath.Glob(filepath.Join("bin", "*pjrt*plugin*.so"))
		if len(found) == 0 {
			d.say("--", "XLA", "no plugin is named by -xla, and bin has none; docs/training.md says where plugins for CPUs and CUDA come from")
			return
		}
		d.plugin = found[0]
	}
	d.trains(ctx, "xla:"+d.plugin)
}
