package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"anytime/internal/decode/llamacpp"
	"anytime/internal/doctor"
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
		var d examination
		flags.StringVar(&d.model.engine.LibDir, "engine-lib", "engine/lib", "`folder` of the llama.cpp libraries")
		flags.StringVar(&d.plugin, "xla", "", "`file` of a plugin for XLA, with its options; by default a *pjrt*plugin*.so in bin, if there is one")
		flags.StringVar(&d.runs, "out", ".", "`folder` that runs are kept in")
		return func(ctx context.Context, args []string, stdout, _ io.Writer) error {
			if err := noArguments(args); err != nil {
				return err
			}
			d.W = stdout
			return d.examine(ctx)
		}
	},
}

type examination struct {
	doctor.Report
	model        modelFlags
	plugin, runs string
}

func (d *examination) examine(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "train-doctor")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	d.model.model = filepath.Join(dir, "tiny.gguf")
	if err := tiny.WriteFile(d.model.model, 1, tiny.Options{}); err != nil {
		return err
	}
	d.Processor()
	d.build()
	d.Memory()
	d.Folder(d.runs, 1<<30, "a run writes its weights after every unit of work, so there must be room for a few times the model")
	d.GPUs()
	d.engine(ctx)
	d.trains(ctx, "go")
	d.xla(ctx)
	if d.Failed {
		return errors.New("something must be put right before anything can be trained; the lines with NO say what")
	}
	return nil
}

// build tells whether this program uses the processor's vectors.
func (d *examination) build() {
	switch {
	case setting("GOEXPERIMENT", "simd"):
		d.Say(doctor.Fine, "build", "%s, with GOEXPERIMENT=simd: the Go backend uses the vectors", runtime.Version())
	case runtime.GOARCH == "amd64":
		d.Say(doctor.Short, "build", "%s, without GOEXPERIMENT=simd: the Go backend is several times slower than it could be; `make train` builds with it", runtime.Version())
	default:
		d.Say(doctor.Short, "build", "%s: the Go backend has no vectors on %s", runtime.Version(), runtime.GOARCH)
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

// engine has the engine decode.
func (d *examination) engine(ctx context.Context) {
	libraries := doctor.FindLibraries(d.model.engine.LibDir)
	d.model.engine.Threads, d.model.engine.Sequences, d.model.engine.GPULayers = 1, 4, 0
	if libraries.Kind != "CPU" {
		d.model.engine.GPULayers = llamacpp.AllLayers
	}
	loaded, err := d.model.open(ctx, io.Discard)
	if err != nil {
		d.Say(doctor.Wrong, "engine", "%v", err)
		return
	}
	defer loaded.engine.Close()
	speed, err := doctor.Speed(ctx, loaded.engine, 2*time.Second)
	if err != nil {
		d.Say(doctor.Wrong, "engine", "it does not decode: %v", err)
		return
	}
	d.Say(doctor.Fine, "engine", "%v, in %s (%d variants for CPUs, of which it takes the best: %s); a tiny model decodes %.0f tokens/s on one thread, %d layers of it on a GPU",
		libraries, d.model.engine.LibDir, libraries.Variants, cmp.Or(doctor.Variant(), "not known"), speed, loaded.engine.(*llamacpp.Engine).GPULayers())
}

// trains takes steps on a backend.
func (d *examination) trains(ctx context.Context, backend string) {
	missing := doctor.Wrong
	if backend != "go" {
		missing = doctor.Short
	}
	m, err := trainmodel.Open(d.model.model, trainmodel.Config{Backend: backend, Train: trainmodel.All, PassTimeout: 2 * time.Minute})
	if err != nil {
		d.Say(missing, "trainer", "%v", err)
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
			d.Say(missing, "trainer", "%s does not train: %v", backend, err)
			return
		}
	}
	weights, _ := m.Parameters()
	d.Say(doctor.Fine, "trainer", "%s: a model of %d thousand weights trains %.0f tokens/s", backend, weights/1000, float64(s.Tokens)/s.Elapsed.Seconds())
}

// xla looks for a plugin and trains with it.
func (d *examination) xla(ctx context.Context) {
	if d.plugin == "" {
		found, _ := filepath.Glob(filepath.Join("bin", "*pjrt*plugin*.so"))
		if len(found) == 0 {
			d.Say(doctor.Short, "XLA", "no plugin is named by -xla, and bin has none; docs/training.md says where plugins for CPUs and CUDA come from")
			return
		}
		d.plugin = found[0]
	}
	d.trains(ctx, "xla:"+d.plugin)
}
