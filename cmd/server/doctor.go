package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"anytime/internal/catalog"
	"anytime/internal/catalog/adapters"
	"anytime/internal/decode"
	"anytime/internal/decode/endpoint"
	"anytime/internal/decode/prompt"
	"anytime/internal/doctor"
	"anytime/internal/gguf"
	"anytime/internal/hub"
	"anytime/internal/store/redis"
)

const doctorManual = `server doctor [flags]

Look at all that a server with these settings (flags, environment, file: those of server) stands on: processor, memory, GPU, llama.cpp's
libraries, the port, the data folder, Redis, and each model: its file, size, template, thinking, adapters, and how fast it decodes, or
the server that has it. A line begins with ok, with -- where something is missing that one can do without, or will be slow, or
with NO where the server could not run; then the exit status is 1. Nothing is fetched.
`

// What is asked of the machine at least, and when it is called slow.
const (
	leastRoom   = 100 << 20 // bytes, for the store
	slow        = 10        // tokens a second
	largeFloats = 300e6     // parameters of a model that is slow where it is not quantised
	askPatience = 15 * time.Second
)

// examination is what server doctor does.
type examination struct {
	doctor.Report
	cfg       *Config
	gpus      int
	available int64 // bytes of memory; 0 unknown
}

// examine says what a server would run on. Its error says that one could not.
func examine(ctx context.Context, args []string, env func(string) (string, bool), stdout io.Writer) error {
	cfg, err := load(args, env)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, doctorManual)
		return nil
	}
	e := examination{Report: doctor.Report{W: stdout}, cfg: &cfg}
	e.settings(err)
	e.Processor()
	e.available = e.Memory()
	e.gpus = e.GPUs()
	e.port(ctx)
	e.Folder(home(cfg.Data), leastRoom, "the store grows by some kilobytes with each run")
	e.store(ctx)
	e.libraries()
	e.models(ctx)
	if err := ctx.Err(); err != nil {
		return err
	}
	if e.Failed {
		return errors.New("the server could not run; the lines with NO say why")
	}
	return nil
}

// settings tells what is wrong with them, given what went wrong when they were read.
func (e *examination) settings(err error) {
	if err == nil {
		err = e.cfg.Validate()
	}
	if err == nil {
		_, err = newGate(e.cfg)
	}
	if err == nil {
		e.Say(doctor.Fine, "settings", "are valid")
		return
	}
	for line := range strings.Lines(err.Error()) {
		e.Say(doctor.Wrong, "settings", "%s", strings.TrimSpace(line))
	}
}

func (e *examination) port(ctx context.Context) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", e.cfg.Addr)
	switch {
	case err == nil:
		listener.Close()
		e.Say(doctor.Fine, "port", "%s is free", e.cfg.Addr)
	case client{url: "http://" + reachable(e.cfg.Addr)}.isAnytime(ctx):
		e.Say(doctor.Wrong, "port", "an Anytime server is at %s already: stop it, or give another -addr", e.cfg.Addr)
	default:
		e.Say(doctor.Wrong, "port", "%v: give another -addr", err)
	}
}

func (e *examination) store(ctx context.Context) {
	if strings.HasPrefix(e.cfg.Store, "redis") {
		at, err := redis.ParseAddress(e.cfg.Store, e.cfg.RedisPassword)
		if err != nil {
			return // the settings say so
		}
		ctx, cancel := context.WithTimeout(ctx, askPatience)
		defer cancel()
		kept, err := redis.Open(ctx, at, redis.Options{})
		if err == nil {
			err = kept.Close()
		}
		if err != nil {
			e.Say(doctor.Wrong, "store", "%v", err)
			return
		}
		e.Say(doctor.Fine, "store", "Redis at %v answers", at)
		return
	}
	switch path, err := e.cfg.storePath(); {
	case err != nil: // the settings say so
	case path == "":
		e.Say(doctor.Short, "store", "runs are kept in memory: a restart forgets them")
	case filepath.Dir(path) != filepath.Clean(home(e.cfg.Data)):
		e.Folder(filepath.Dir(path), leastRoom, "the store grows by some kilobytes with each run")
	}
}

// libraries tells of llama.cpp's, where a model wants them.
func (e *examination) libraries() {
	wanted := false
	for _, m := range e.cfg.Models {
		wanted = wanted || m.embedded()
	}
	dir := home(e.cfg.EngineLib)
	switch l := doctor.FindLibraries(dir); {
	case !wanted:
	case l.Kind == "":
		e.Say(doctor.Wrong, "libraries", "%s has no libllama: `make engine` fetches llama.cpp's libraries into engine/lib", dir)
	case l.Kind == "CPU" && e.gpus > 0:
		e.Say(doctor.Short, "libraries", "%v, in %s: there is a GPU, and with `ENGINE=cuda make engine` it is used", l, dir)
	default:
		e.Say(doctor.Fine, "libraries", "%v, in %s, with %d variants for CPUs", l, dir, l.Variants)
	}
}

// models looks at each by itself, so that one that is wrong hides nothing of the others.
func (e *examination) models(ctx context.Context) {
	log := slog.New(slog.DiscardHandler)
	h, err := hub.New(hub.Config{Dir: filepath.Join(home(e.cfg.Data), "models"), BaseURL: e.cfg.HubURL, Token: e.cfg.HubToken})
	if err != nil {
		e.Say(doctor.Wrong, "models", "%v", err)
		return
	}
	folder, err := adapters.OpenFolder(e.cfg.adapterFolder(), int64(e.cfg.MaxAdapter))
	if err != nil {
		e.Say(doctor.Wrong, "adapters", "%v", err)
		return
	}
	for _, m := range e.cfg.Models {
		if ctx.Err() != nil {
			return
		}
		if m.embedded() {
			e.embedded(ctx, m, h, folder, log)
		}
		at, err := m.endpoints(e.cfg)
		if err != nil {
			continue // the settings say so
		}
		for _, one := range at {
			e.remote(ctx, m, one, log)
		}
	}
}

func (e *examination) embedded(ctx context.Context, m ModelConfig, h *hub.Hub, folder *adapters.Folder, log *slog.Logger) {
	// What is here already is found without asking anybody, which this context does not allow.
	offline, cancel := context.WithCancel(ctx)
	cancel()
	path, err := h.Fetch(offline, home(m.Path))
	switch {
	case errors.Is(err, context.Canceled):
		e.Say(doctor.Short, "model", "%s is not here yet: the server fetches it when it starts, and only then can it be looked at", m.Path)
		return
	case err != nil:
		e.Say(doctor.Wrong, "model", "%v", err)
		return
	}
	header, err := gguf.Check(path)
	if err != nil {
		e.Say(doctor.Wrong, "model", "%s: %v", m.Path, err)
		return
	}
	m.ID = cmp.Or(m.ID, modelIDs([]string{path})[0])
	e.Say(doctor.Fine, "model", "%s: %s, %.1f million weights, mostly %v, for at most %d tokens", m.ID, header.Architecture(), float64(header.Parameters())/1e6, header.WeightType(), header.ContextTokens())
	c, _, err := embeddedModel(e.cfg, m, path, log, newEngines(), folder)
	if err != nil {
		e.Say(doctor.Wrong, "model", "%v", err)
		return
	}
	if n := len(c.Adapters); n > 0 {
		e.Say(doctor.Fine, "adapters", "%s has %d, which fit it", m.ID, n)
	}
	if !e.fits(c) {
		return
	}
	engine, err := c.Open(ctx)
	if err != nil {
		e.Say(doctor.Wrong, "engine", "%s: %v", m.ID, err)
		return
	}
	defer engine.Close()
	e.thinking(m, engine.Info())
	speed, err := doctor.Speed(ctx, engine, 2*time.Second)
	if err != nil {
		e.Say(doctor.Wrong, "engine", "%s does not decode: %v", m.ID, err)
		return
	}
	e.speed(m, header, engine.(*tracked).GPULayers(), speed)
}

// fits tells what a model takes of the memory, and returns whether it may be tried.
func (e *examination) fits(c catalog.ModelConfig) bool {
	bound := cmp.Or(int64(e.cfg.Memory), doctor.Memory()/5*4)
	takes := fmt.Sprintf("%s takes about %s with its cache", c.ID, doctor.GiB(c.Bytes))
	switch {
	case bound > 0 && c.Bytes > bound:
		e.Say(doctor.Wrong, "memory", "%s, and models may take %s together: give a shorter -ctx or -cache-tokens, a file of fewer bits, or more -memory", takes, doctor.GiB(bound))
		return false
	case e.available > 0 && c.Bytes > e.available:
		e.Say(doctor.Short, "memory", "%s, and %s are available now: it would be read from the disk again and again", takes, doctor.GiB(e.available))
		return false
	}
	e.Say(doctor.Fine, "memory", "%s", takes)
	return true
}

// thinking tells how a model is asked and how it thinks.
func (e *examination) thinking(m ModelConfig, info decode.Info) {
	family := prompt.Detect(info)
	if m.Family.Family != nil {
		family = *m.Family.Family
	}
	text, source := "", "its own chat template"
	if m.Template != "" {
		data, err := os.ReadFile(home(m.Template))
		if err != nil {
			e.Say(doctor.Wrong, "template", "%s: %v", m.ID, err)
			return
		}
		text, source = string(data), m.Template
	}
	if text == "" && info.ChatTemplate == "" {
		source = "no chat template: a simple one is used"
	}
	renderer, err := prompt.New(info, family, text)
	if err == nil {
		_, err = renderer.Render([]prompt.Message{{Role: "user", Content: "What is 17 * 24?"}}, prompt.Options{Thinking: true})
	}
	switch {
	case err != nil:
		e.Say(doctor.Wrong, "template", "%s: %v", m.ID, err)
	case family.Name == "plain":
		e.Say(doctor.Short, "template", "%s has %s; it is no reasoning model that is known, so its thinking is asked for by opening %s. If it is one, give its family in the file", m.ID, source, strings.TrimSpace(family.Open))
	default:
		e.Say(doctor.Fine, "template", "%s has %s; it thinks as %s does, until %s", m.ID, source, family.Name, strings.Join(family.Close, " or "))
	}
}

// speed tells how fast a model decodes and, where that is slow, why.
func (e *examination) speed(m ModelConfig, header *gguf.Header, onGPU int, speed float64) {
	where := "on the CPU"
	if v := doctor.Variant(); v != "" {
		where += ", variant " + v
	}
	if onGPU > 0 {
		where = fmt.Sprintf("with %d layers on the GPU", onGPU)
	}
	threads := cmp.Or(e.cfg.Threads, max(1, runtime.NumCPU()-1))
	e.Say(doctor.Fine, "engine", "%s decodes %.0f tokens/s alone, %s, %d threads: a thought of 1000 tokens takes %.1f s", m.ID, speed, where, threads, 1000/speed)
	if speed < slow {
		e.Say(doctor.Short, "slow", "%s decodes less than %d tokens/s: a model of fewer weights or bits, or a GPU, will be faster", m.ID, slow)
	}
	if layers, ok := header.Uint(header.Architecture() + ".block_count"); ok && onGPU > 0 && uint64(onGPU) < layers {
		e.Say(doctor.Short, "slow", "%d of %s's %d layers are on the CPU, which holds all up: give a shorter -ctx or a file of fewer bits, or take layers of other programs off the GPU", layers-uint64(onGPU), m.ID, layers)
	}
	if t := header.WeightType().String(); onGPU == 0 && (t == "F32" || t == "F16" || t == "BF16") && header.Parameters() > largeFloats {
		e.Say(doctor.Short, "slow", "%s is not quantised (%s), and a CPU waits for memory: a Q4_K_M of it decodes several times faster", m.ID, t)
	}
	if usable := runtime.GOMAXPROCS(0); onGPU == 0 && threads > usable {
		e.Say(doctor.Short, "slow", "%d threads share %d cores, and each step waits for the slowest: give -threads %d", threads, usable, max(1, usable-1))
	}
	if onGPU == 0 && e.gpus > 0 {
		e.Say(doctor.Short, "slow", "%s is on the CPU though there is a GPU: see the libraries above, and -gpu-layers", m.ID)
	}
}

func (e *examination) remote(ctx context.Context, m ModelConfig, at endpoint.Config, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	at.Log, at.Pull, at.Patience = log, false, askPatience
	engine, err := at.Open(ctx)
	if err != nil {
		e.Say(doctor.Wrong, "engine", "%v: %v", at, err)
		return
	}
	defer engine.Close()
	info := engine.Info()
	m.ID = cmp.Or(m.ID, at.ID(), info.Model)
	exact := "tokens are counted exactly"
	if !info.Capabilities.TokenIDs {
		exact = "tokens are counted approximately, for it takes and gives text only"
	}
	e.Say(doctor.Fine, "engine", "%v answers; %d sequences at once; %s", at, info.MaxSequences, exact)
	e.thinking(m, info)
}
