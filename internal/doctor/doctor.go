// Package doctor examines the machine that Anytime's commands run on, for `server doctor` and `train doctor`: what it has, what is
// missing, and what will be slow for it. Each finding is a line. Nothing is changed but for a file that is written and removed.
package doctor

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/cpu"

	"anytime/internal/decode"
)

// State is what a finding means.
type State string

// The states.
const (
	Fine  State = "ok"
	Short State = "--" // something is missing that one can do without, or will be slow
	Wrong State = "NO" // it must be put right
)

// Report writes findings.
type Report struct {
	W      io.Writer
	Failed bool // something is wrong
}

// Say writes a finding.
func (r *Report) Say(s State, about, format string, a ...any) {
	fmt.Fprintf(r.W, "%-3s %-10s %s\n", s, about, fmt.Sprintf(format, a...))
	r.Failed = r.Failed || s == Wrong
}

// Processor tells of the CPU.
func (r *Report) Processor() {
	var has []string
	for _, f := range []struct {
		name string
		have bool
	}{
		{"AVX", cpu.X86.HasAVX}, {"AVX2", cpu.X86.HasAVX2}, {"FMA", cpu.X86.HasFMA}, {"AVX-512", cpu.X86.HasAVX512F},
		{"VNNI", cpu.X86.HasAVX512VNNI || cpu.X86.HasAVXVNNI}, {"BF16", cpu.X86.HasAVX512BF16}, {"AMX", cpu.X86.HasAMXTile},
		{"NEON", cpu.ARM64.HasASIMD}, {"dot product", cpu.ARM64.HasASIMDDP}, {"SVE", cpu.ARM64.HasSVE},
	} {
		if f.have {
			has = append(has, f.name)
		}
	}
	cores := fmt.Sprintf("%d cores", runtime.NumCPU())
	if n := runtime.GOMAXPROCS(0); n < runtime.NumCPU() {
		cores += fmt.Sprintf(", of which %d may be used", n)
	}
	r.Say(Fine, "processor", "%s/%s, %s, %s", runtime.GOOS, runtime.GOARCH, cores, cmp.Or(strings.Join(has, ", "), "no vectors that are known"))
	if runtime.GOARCH == "amd64" && !cpu.X86.HasAVX2 {
		r.Say(Short, "processor", "it has no AVX2: everything will be several times slower than on machines since 2013")
	}
}

// Memory tells of the memory, and returns what can be had now in bytes; 0 unknown.
func (r *Report) Memory() int64 {
	total, left := Memory(), available()
	switch {
	case total == 0:
		r.Say(Short, "memory", "not known on %s", runtime.GOOS)
	case left == 0:
		r.Say(Fine, "memory", "%s", GiB(total))
	default:
		r.Say(Fine, "memory", "%s, of which %s are available", GiB(total), GiB(left))
	}
	return left
}

// GiB writes a number of bytes for people.
func GiB(bytes int64) string {
	if bytes < 1<<30/10 {
		return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(bytes)/(1<<30))
}

// Folder tells whether files can be written to a folder, which need not be there yet, and whether there is room for at least so many
// bytes, which are for what.
func (r *Report) Folder(path string, least int64, what string) {
	at := path
	for { // where it would be made
		info, err := os.Stat(at)
		if err == nil && !info.IsDir() {
			r.Say(Wrong, "disk", "%s is no folder", at)
			return
		}
		if parent := filepath.Dir(at); err != nil && parent != at {
			at = parent
			continue
		}
		break
	}
	file, err := os.CreateTemp(at, ".doctor-")
	if err == nil {
		file.Close()
		err = os.Remove(file.Name())
	}
	if err != nil {
		r.Say(Wrong, "disk", "files cannot be written to %s: %v", path, err)
		return
	}
	free, err := freeBytes(at)
	switch {
	case err != nil:
		r.Say(Short, "disk", "%s: %v", path, err)
	case free < uint64(least):
		r.Say(Wrong, "disk", "%s free in %s: %s", GiB(int64(free)), path, what)
	default:
		r.Say(Fine, "disk", "%s free in %s", GiB(int64(free)), path)
	}
}

// GPUs tells of those of NVIDIA, and how many there are.
func (r *Report) GPUs() int {
	found, _ := filepath.Glob("/proc/driver/nvidia/gpus/*/information")
	for _, path := range found {
		data, _ := os.ReadFile(path)
		for line := range strings.Lines(string(data)) {
			if name, ok := strings.CutPrefix(line, "Model:"); ok {
				r.Say(Fine, "GPU", "%s", strings.TrimSpace(name))
			}
		}
	}
	nodes, _ := filepath.Glob("/dev/nvidia[0-9]*")
	switch {
	case len(found) > 0:
	case len(nodes) > 0:
		r.Say(Fine, "GPU", "%d of NVIDIA", len(nodes))
	default:
		r.Say(Short, "GPU", "none of NVIDIA is found")
	}
	return max(len(found), len(nodes))
}

// Libraries are those of llama.cpp in a folder.
type Libraries struct {
	Kind     string // CPU, cuda, vulkan or metal; "" there are none
	Version  string // such as v0.5.0; "" not told
	Variants int    // for CPUs, of which llama.cpp takes the best
}

var versionRE = regexp.MustCompile(`v\d+\.\d+\.\d+`)

// FindLibraries looks into a folder.
func FindLibraries(dir string) Libraries {
	var l Libraries
	files, _ := filepath.Glob(filepath.Join(dir, "lib*llama.*"))
	if len(files) == 0 {
		return l
	}
	l.Kind = "CPU"
	for _, file := range files {
		l.Version = cmp.Or(l.Version, versionRE.FindString(filepath.Base(file)))
	}
	for _, kind := range []string{"cuda", "vulkan", "metal"} {
		if found, _ := filepath.Glob(filepath.Join(dir, "libggml-"+kind+".*")); len(found) > 0 {
			l.Kind = kind
		}
	}
	variants, _ := filepath.Glob(filepath.Join(dir, "libggml-cpu-*"))
	l.Variants = len(variants)
	return l
}

func (l Libraries) String() string {
	text := "llama.cpp for " + l.Kind
	if l.Version != "" {
		text += ", " + l.Version
	}
	return text
}

var variantRE = regexp.MustCompile(`libggml-cpu-(\w+)\.so`)

// Variant is the one that an engine process of this program has loaded; "" not known.
func Variant() string {
	var found []string
	children, _ := filepath.Glob("/proc/self/task/*/children")
	for _, path := range children {
		pids, _ := os.ReadFile(path)
		for pid := range bytes.FieldsSeq(pids) {
			maps, _ := os.ReadFile("/proc/" + string(pid) + "/maps")
			for _, m := range variantRE.FindAllSubmatch(maps, -1) {
				found = append(found, string(m[1]))
			}
		}
	}
	slices.Sort(found)
	return strings.Join(slices.Compact(found), ", ")
}

// Speed has an engine decode for a time and returns how many tokens come in a second.
func Speed(ctx context.Context, e decode.Engine, most time.Duration) (float64, error) {
	seq, err := e.Open(ctx, decode.Request{Prompt: []decode.Part{decode.Text("a")}})
	if err != nil {
		return 0, err
	}
	defer seq.Close()
	tokens := min(1024, max(e.Info().ContextTokens/2, 1))
	if err := seq.Decode(decode.Span{MaxTokens: tokens, MinTokens: tokens, Sampling: decode.Sampling{Temperature: 1}}); err != nil {
		return 0, err
	}
	chunk, err := seq.Next(ctx) // the prefill, and what is made at the first step
	began, n := time.Now(), 0
	for err == nil && chunk.End == "" && time.Since(began) < most {
		chunk, err = seq.Next(ctx)
		n += len(chunk.Tokens)
	}
	return float64(n) / time.Since(began).Seconds(), err
}
