package e2e

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"anytime/internal/gguf/tiny"
)

// chaos is a server that is ill-treated beside a load.
type chaos struct {
	t       *testing.T
	rng     *rand.Rand // of the faults
	model   string
	exact   bool // the same prompt gives the same thought
	data    string
	lame    string // a second model, whose file is nonsense when it is asked for
	s       *server
	address address
	ledger  ledger
	enough  chan struct{}  // closed when the clients are to finish
	struck  map[string]int // how often, by fault
	gaveUp  bool           // an engine was said to be broken: answers may have been cut short, or failed
}

// address is where the server is now.
type address struct {
	mu      sync.Mutex
	url     string // "": nowhere
	changed chan struct{}
}

func (a *address) set(url string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.url = url
	close(a.changed)
	a.changed = make(chan struct{})
}

// get waits until there is a server.
func (a *address) get() string {
	for {
		a.mu.Lock()
		url, changed := a.url, a.changed
		a.mu.Unlock()
		if url != "" {
			return url
		}
		<-changed
	}
}

// a fault is done to the server, and over when all is well again.
type fault struct {
	name   string
	strike func(*chaos)
}

var faults = []fault{
	{"engine killed", func(c *chaos) { c.replaced(c.s.killEngine) }},
	{"engine killed, and the next one at once", func(c *chaos) {
		c.replaced(c.s.killEngine)
		for range c.rng.IntN(3) + 1 {
			before := c.s.children()
			c.s.killEngine()
			c.s.until("another engine", func() bool {
				return slices.ContainsFunc(c.s.children(), func(pid int) bool { return !slices.Contains(before, pid) })
			})
		}
		c.ready()
	}},
	{"engine out of memory", func(c *chaos) { c.replaced(c.starve) }},
	{"engine stopped for a moment", func(c *chaos) {
		c.signal(syscall.SIGSTOP)
		c.answers(0)
		c.signal(syscall.SIGCONT)
		c.ready()
	}},
	{"server killed", func(c *chaos) {
		c.address.set("")
		c.s.kill()
		c.start()
	}},
	{"server ended by SIGTERM", func(c *chaos) {
		c.address.set("")
		stop(c.s)
		c.start()
	}},
	{"server ended by two signals", func(c *chaos) {
		c.address.set("")
		for range 2 {
			_ = c.s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
			c.s.until("stopping", func() bool { return strings.Contains(c.s.said(), "stopping: runs in flight answer now") })
		}
		for range c.s.exit { // with 1, for it leaves runs to the next
		}
		c.start()
	}},
	{"disk full", func(c *chaos) {
		c.full(4096)
		c.s.until("not ready", func() bool { return c.s.do("GET", "/readyz", nil).status == 503 })
		if c.rng.IntN(2) == 0 {
			c.s.killEngine()
		}
		c.full(unix.RLIM_INFINITY)
		c.ready()
	}},
	{"model's file damaged, engine killed", func(c *chaos) {
		good, err := os.ReadFile(c.model)
		if err != nil {
			c.t.Fatal(err)
		}
		c.swap(c.model, []byte("GGUF"+strings.Repeat("nonsense", 1000)))
		failed := strings.Count(c.s.said(), "engine process did not start")
		c.s.killEngine()
		c.s.until("failing", func() bool { return strings.Count(c.s.said(), "engine process did not start") > failed })
		c.swap(c.model, good)
		c.ready()
	}},
	// The watchdog finds these out, which takes its time.
	{"engine stopped", func(c *chaos) { c.replaced(func() { c.signal(syscall.SIGSTOP) }) }},
	{"engine looping", func(c *chaos) { c.replaced(c.loop) }},
}

// start starts the next server on the same data.
func (c *chaos) start() {
	good, err := os.ReadFile(talker)
	if err != nil {
		c.t.Fatal(err)
	}
	if c.s != nil && strings.Contains(c.s.said(), "tries=5") {
		c.gaveUp = true
	}
	c.swap(c.lame, good)
	c.s = start(c.t, c.data, append(exact(c.model), "-model", c.lame, "-watchdog", "10s", "-client-timeout", "3s", "-max-runs", "64")...)
	c.swap(c.lame, []byte("GGUF"+strings.Repeat("nonsense", 1000)))
	c.address.set(c.s.url)
}

// swap puts a file in the place of another, which those who have it open keep.
func (c *chaos) swap(path string, content []byte) {
	write(c.t, path+".new", string(content))
	if err := os.Rename(path+".new", path); err != nil {
		c.t.Fatal(err)
	}
}

func (c *chaos) ready() {
	c.s.until("ready", func() bool { return c.s.do("GET", "/readyz", nil).status == 200 })
}

// replaced does something to the engine, for which it must be replaced.
func (c *chaos) replaced(do func()) {
	before := c.s.children()
	do()
	c.s.until("replaced", func() bool {
		now := c.s.children()
		return len(now) > 0 && !slices.ContainsFunc(now, func(pid int) bool { return slices.Contains(before, pid) })
	})
	c.ready()
}

func (c *chaos) signal(sig syscall.Signal) {
	for _, pid := range c.s.children() {
		_ = syscall.Kill(pid, sig) // it may have ended
	}
}

// full bounds the files that the server may write, so that its disk is as good as full.
func (c *chaos) full(size uint64) {
	if err := unix.Prlimit(c.s.cmd.Process.Pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: size, Max: unix.RLIM_INFINITY}, nil); err != nil {
		c.t.Fatal(err)
	}
}

// starve takes from the engine what memory it does not have yet, and makes it want some.
func (c *chaos) starve() {
	pids := c.s.children()
	for _, pid := range pids {
		for _, what := range []int{unix.RLIMIT_AS, unix.RLIMIT_DATA} {
			if err := unix.Prlimit(pid, what, &unix.Rlimit{Cur: 1 << 20, Max: unix.RLIM_INFINITY}, nil); err != nil {
				c.t.Fatal(err)
			}
		}
	}
	for n := 0; slices.Equal(c.s.children(), pids); n++ {
		r := c.s.do("POST", "/solve?budget=5", asked(strings.Repeat("Remember this, too. ", 3000), n))
		if r.status != 400 { // for it is too long, which only the engine can tell
			c.t.Errorf("a long prompt, and the engine out of memory: status %d: %s", r.status, r.body)
		}
	}
}

// loop makes the thread of the engine that decodes loop for ever: what it would do next becomes a jump to itself.
func (c *chaos) loop() {
	runtime.LockOSThread() // ptrace knows threads
	defer runtime.UnlockOSThread()
	for _, pid := range c.s.children() {
		thread := busiest(pid)
		if err := syscall.PtraceAttach(thread); err != nil {
			c.t.Logf("the engine is stopped instead, for it cannot be traced here: %v", err)
			c.signal(syscall.SIGSTOP)
			return
		}
		var regs syscall.PtraceRegs
		_, err := syscall.Wait4(thread, nil, syscall.WALL, nil)
		if err == nil {
			err = syscall.PtraceGetRegs(thread, &regs)
		}
		if err == nil {
			jump := map[string][]byte{"amd64": {0xeb, 0xfe}, "arm64": {0, 0, 0, 0x14}}[runtime.GOARCH]
			_, err = syscall.PtracePokeText(thread, uintptr(regs.PC()), jump)
		}
		if err := syscall.PtraceDetach(thread); err != nil {
			c.t.Error(err)
		}
		if err != nil {
			c.t.Error(err)
		}
	}
}

// busiest is the thread of a process that has used most time.
func busiest(pid int) int {
	thread, most := pid, -1
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, path := range tasks {
		text, _ := os.ReadFile(path)
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		if len(fields) < 13 {
			continue
		}
		user, _ := strconv.Atoi(fields[11])
		if id, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil && user > most {
			thread, most = id, user
		}
	}
	return thread
}

// answers waits until clients got so many answers more, or for a moment if none can come.
func (c *chaos) answers(n int) {
	want := c.ledger.count("answers") + n
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Duration(1+n)*300*time.Millisecond)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for n == 0 || c.ledger.count("answers") < want {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// setting reads a number from the environment.
func setting(t *testing.T, name string, otherwise float64) float64 {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || v < 0 {
		t.Fatalf("%s is %q; it must be a number", name, text)
	}
	return v
}

// TestChaos does all sorts of things to a server beside a load of all sorts of clients, in an order that a seed decides. Whatever
// happens, each run that was accepted ends with one answer, and what clients saw of it is what is kept. In make test each fault comes
// once; make chaos goes on for minutes.
func TestChaos(t *testing.T) {
	minutes := setting(t, "ANYTIME_CHAOS_MINUTES", 0)
	otherwise := 1. // each time the same, for the short one must not surprise anybody
	if minutes > 0 {
		otherwise = float64(time.Now().UnixNano() % 1e6)
	}
	seed := uint64(setting(t, "ANYTIME_CHAOS_SEED", otherwise))
	t.Logf("seed %d", seed)
	c := &chaos{
		t: t, rng: rand.New(rand.NewPCG(seed, 0)), data: t.TempDir(), enough: make(chan struct{}),
		address: address{changed: make(chan struct{})}, exact: true, struck: map[string]int{},
	}
	dir := t.TempDir()
	source := talker
	if model := os.Getenv("ANYTIME_CHAOS_MODEL"); model != "" {
		source, c.exact = model, false
	}
	content, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	c.model, c.lame = filepath.Join(dir, "model.gguf"), filepath.Join(dir, "lame.gguf")
	c.swap(c.model, content)
	if err := os.MkdirAll(filepath.Join(c.data, "adapters"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(c.data, "adapters", "junk.gguf"), "GGUF and nothing else")
	c.start()
	if c.exact {
		if err := tiny.WriteAdapter(filepath.Join(c.data, "adapters", "one.gguf"), 1, ""); err != nil {
			t.Fatal(err)
		}
		c.s.adapt(map[string]any{"name": "one", "file": "one.gguf"})
	}
	c.undisturbed()

	clients := 8
	if minutes > 0 {
		clients = 16
	}
	var load sync.WaitGroup
	for i := range clients {
		load.Go(func() { (&client{c: c, rng: rand.New(rand.NewPCG(seed, uint64(1+i)))}).live() })
	}
	longest := map[string]time.Duration{}
	strike := func(f fault) {
		began := time.Now()
		f.strike(c)
		c.struck[f.name]++
		longest[f.name] = max(longest[f.name], time.Since(began))
		t.Logf("%s: well again after %v, %d answers", f.name, time.Since(began).Round(time.Millisecond), c.ledger.count("answers"))
	}
	if minutes == 0 {
		stopped := len(faults) - 2 // to the watchdog it is as if it looped
		for _, i := range c.rng.Perm(len(faults)) {
			if i != stopped {
				c.answers(2)
				strike(faults[i])
			}
		}
	}
	for end := time.Now().Add(time.Duration(minutes * float64(time.Minute))); time.Now().Before(end); {
		c.answers(c.rng.IntN(8))
		strike(faults[c.rng.IntN(len(faults))])
	}
	c.answers(4)
	close(c.enough)
	load.Wait()
	c.s.until("idle", func() bool { return c.s.metric("anytime_runs_running") == 0 })
	c.gaveUp = c.gaveUp || strings.Contains(c.s.said(), "tries=5")
	c.check()
	for _, name := range slices.Sorted(maps.Keys(c.struck)) {
		t.Logf("%3d × %s: well again after at most %v", c.struck[name], name, longest[name].Round(time.Millisecond))
	}
	t.Logf("seed %d: %v", seed, &c.ledger)
}
