package ollama_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"anytime/internal/decode"
	"anytime/internal/decode/decodetest"
	"anytime/internal/decode/ollama"
	"anytime/internal/gguf"
	"anytime/internal/gguf/tiny"
)

// A real Ollama, which engine/ollama.sh builds, is asked only by the longer tests; the others replay what it once said.
func needReal(t testing.TB) {
	t.Helper()
	if os.Getenv("ANYTIME_TEST_ALL") == "" {
		t.Skip("only in make test-all: it wants an Ollama")
	}
}

// process is a real server of our own.
type process struct {
	t           testing.TB
	binary, dir string
	address     string
	env         []string
	cmd         *exec.Cmd
	log         lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start starts an Ollama that has one tiny model, "tiny".
func start(t testing.TB, env ...string) *process {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// Without flash attention batches of different shapes give the same tokens.
	env = append(env, "OLLAMA_FLASH_ATTENTION=0", "OLLAMA_NO_CLOUD=1")
	o := &process{t: t, binary: binary(t), dir: t.TempDir(), address: l.Addr().String(), env: env}
	l.Close()
	o.run()
	t.Cleanup(o.kill)
	o.create("tiny", "FROM "+letters(t)+"\n")
	return o
}

// letters writes a tiny model that says letter by letter what it could say in pairs of them: Ollama takes text only, and this
// model's text, read again, is the tokens that it came from.
func letters(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tiny.gguf")
	if err := tiny.WriteFile(path, 1, tiny.Options{}); err != nil {
		t.Fatal(err)
	}
	header, err := gguf.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	never := map[string]float64{}
	for id, text := range header.Tokens() {
		if header.TokenType(id) == gguf.TokenNormal && utf8.RuneCountInString(text) > 1 {
			never[strings.NewReplacer("Ġ", " ", "Ċ", "\n").Replace(text)] = 1e-12
		}
	}
	if err := tiny.WriteFile(path, 1, tiny.Options{Rate: never}); err != nil {
		t.Fatal(err)
	}
	return path
}

// binary finds a built Ollama.
func binary(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if found, _ := filepath.Glob(filepath.Join(dir, "engine", "ollama", "ollama-v*")); len(found) > 0 {
			return found[len(found)-1]
		}
	}
	t.Fatal("no Ollama is built: run engine/ollama.sh")
	return ""
}

func (o *process) run() {
	o.t.Helper()
	c := exec.Command(o.binary, "serve")
	c.Env = append([]string{"HOME=" + o.dir, "PATH=" + os.Getenv("PATH"), "OLLAMA_HOST=" + o.address, "OLLAMA_MODELS=" + o.dir + "/models"}, o.env...)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // its runners are killed with it
	c.Stdout, c.Stderr = &o.log, &o.log
	if err := c.Start(); err != nil {
		o.t.Fatal(err)
	}
	o.cmd = c
	for deadline := time.Now().Add(20 * time.Second); ; {
		conn, err := net.Dial("tcp", o.address)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			o.t.Fatalf("Ollama does not listen: %v\n%s", err, o.log.String())
		}
	}
}

func (o *process) kill() {
	if o.cmd != nil {
		_ = syscall.Kill(-o.cmd.Process.Pid, syscall.SIGKILL)
		_ = o.cmd.Wait()
		o.cmd = nil
	}
}

// create makes a model of a Modelfile.
func (o *process) create(name, modelfile string) {
	o.t.Helper()
	file := filepath.Join(o.dir, "Modelfile")
	if err := os.WriteFile(file, []byte(modelfile), 0o600); err != nil {
		o.t.Fatal(err)
	}
	c := exec.Command(o.binary, "create", name, "-f", file)
	c.Env = []string{"HOME=" + o.dir, "OLLAMA_HOST=" + o.address}
	if out, err := c.CombinedOutput(); err != nil {
		o.t.Fatalf("create %s: %v\n%s", name, err, out)
	}
}

// open opens an engine with a model of the server's.
func (o *process) open(t testing.TB, model string, change ...func(*ollama.Config)) *ollama.Engine {
	t.Helper()
	c := ollama.Config{URL: o.address, Model: model, ContextTokens: 4096, Options: map[string]any{"num_thread": 1}}
	for _, f := range change {
		f(&c)
	}
	e, err := ollama.Open(t.Context(), c)
	if err != nil {
		t.Fatalf("%v\n%s", err, o.log.String())
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func TestRealConformance(t *testing.T) {
	needReal(t)
	ollama.SetFirstToken(t, 4*time.Second)
	for name, parallel := range map[string]int{"one request at a time": 1, "four": 4} {
		t.Run(name, func(t *testing.T) {
			o := start(t, fmt.Sprintf("OLLAMA_NUM_PARALLEL=%d", parallel))
			e := o.open(t, "tiny")
			if n := e.Info().MaxSequences; n != parallel {
				t.Errorf("found out that it decodes %d requests at once, want %d", n, parallel)
			}
			decodetest.Conformance(t, func(*testing.T) decode.Engine { return e })
		})
	}
}

func ask(t testing.TB, e decode.Engine, req decode.Request, span decode.Span) (tokens []decode.Token, end decode.End) {
	t.Helper()
	s, err := e.Open(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Decode(span); err != nil {
		t.Fatal(err)
	}
	tokens, end, err = read(t, s)
	if err != nil {
		t.Fatal(err)
	}
	return tokens, end
}

func read(t testing.TB, s decode.Sequence) (tokens []decode.Token, end decode.End, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	for {
		c, err := s.Next(ctx)
		if err != nil {
			return tokens, "", err
		}
		if tokens = append(tokens, c.Tokens...); c.End != "" {
			return tokens, c.End, nil
		}
	}
}

func prompted(text string) decode.Request {
	return decode.Request{Prompt: []decode.Part{decode.Text(text)}}
}

// Ollama is killed with all its runners in the midst of several thoughts, and started again: all of them end, with the text that they
// would have had.
func TestRealKilled(t *testing.T) {
	needReal(t)
	ollama.SetFirstToken(t, 4*time.Second)
	o := start(t)
	e := o.open(t, "tiny")
	const thoughts, tokens = 4, 600
	want := make([]string, thoughts)
	question := func(i int) decode.Request { return prompted(fmt.Sprintf("Question %d? <think>\n", i)) }
	for i := range want {
		got, _ := ask(t, e, question(i), decode.Span{MaxTokens: tokens})
		want[i] = decodetest.Join(got)
	}
	var wg sync.WaitGroup
	midst := make(chan struct{}, thoughts)
	lost := 0
	for i := range thoughts {
		s, err := e.Open(t.Context(), question(i))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if err := s.Decode(decode.Span{MaxTokens: tokens}); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			c, err := s.Next(context.Background())
			midst <- struct{}{}
			if err != nil {
				t.Errorf("thought %d: %v", i, err)
				return
			}
			rest, end, err := read(t, s)
			got := decodetest.Join(append(c.Tokens, rest...))
			if err != nil || end != decode.EndLimit || len(c.Tokens)+len(rest) != tokens {
				t.Errorf("thought %d: %d tokens, end %q, %v", i, len(c.Tokens)+len(rest), end, err)
				return
			}
			if got != want[i] {
				lost++ // tokens are other ones where a text is read back differently
			}
		})
	}
	for range 3 {
		<-midst
		o.kill()
		o.run()
	}
	wg.Wait()
	if lost > 0 {
		t.Logf("%d of %d thoughts went on in other words", lost, thoughts)
	}
}

// Many cancellations leave an Ollama that speaks: see server.Complete.
func TestRealCancelled(t *testing.T) {
	needReal(t)
	ollama.SetFirstToken(t, 4*time.Second)
	o := start(t)
	var warnings lockedBuffer
	e := o.open(t, "tiny", func(c *ollama.Config) { c.Log = slog.New(slog.NewTextHandler(&warnings, nil)) })
	const times = 100
	for i := range times {
		s, err := e.Open(t.Context(), prompted("Once upon a time"))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Decode(decode.Span{MaxTokens: 2000}); err != nil {
			t.Fatal(err)
		}
		for range i % 5 {
			if _, err := s.Next(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if i%3 > 0 {
			s.Cut()
			if _, end, err := read(t, s); err != nil || end != decode.EndCut {
				t.Fatalf("end %q, %v", end, err)
			}
		}
		s.Close()
	}
	if tokens, end := ask(t, e, prompted("Once"), decode.Span{MaxTokens: 10}); end != decode.EndLimit || len(tokens) != 10 {
		t.Errorf("%d tokens, end %q", len(tokens), end)
	}
	t.Logf("%d streams were cancelled, the model was unloaded %d times", times, strings.Count(warnings.String(), "unloading"))
}

// Finding out, at every opening, how many requests are decoded at once takes no place away for ever.
func TestRealOpened(t *testing.T) {
	needReal(t)
	ollama.SetFirstToken(t, 4*time.Second)
	o := start(t, "OLLAMA_NUM_PARALLEL=1")
	var warnings lockedBuffer
	const times = 100
	for range times {
		e := o.open(t, "tiny", func(c *ollama.Config) {
			c.ContextTokens, c.Log = 256, slog.New(slog.NewTextHandler(&warnings, nil))
		})
		if n := e.Info().MaxSequences; n != 1 {
			t.Errorf("found out that it decodes %d requests at once, want 1", n)
		}
	}
	if n := strings.Count(warnings.String(), "unloading"); n > 0 {
		t.Errorf("of %d openings %d left Ollama mute", times, n)
	}
}

// An adapter becomes a model of Ollama's, changes what is said, survives a restart of ours, and is deleted when it is unloaded.
func TestRealAdapters(t *testing.T) {
	needReal(t)
	o := start(t)
	e := o.open(t, "tiny")
	path := filepath.Join(t.TempDir(), "lora.gguf")
	if err := tiny.WriteAdapter(path, 9, ""); err != nil {
		t.Fatal(err)
	}
	said := func(e *ollama.Engine, adapter string) string {
		req := prompted("One and two are")
		req.Adapter = adapter
		tokens, _ := ask(t, e, req, decode.Span{MaxTokens: 20})
		return decodetest.Join(tokens)
	}
	for name, scale := range map[string]float32{"full": 1, "faint": 1e-4, "twice": 2} {
		if err := e.LoadAdapter(t.Context(), name, path, scale); err != nil {
			t.Fatal(err)
		}
	}
	bare := said(e, "")
	if said(e, "full") == bare || said(e, "twice") == said(e, "full") {
		t.Errorf("the adapter changes nothing: %q, %q", bare, said(e, "full"))
	}
	if got := said(e, "faint"); got != bare {
		t.Errorf("at a ten-thousandth the adapter says %q, without it %q", got, bare)
	}
	again := o.open(t, "tiny")
	if names := again.AdapterNames(); strings.Join(names, " ") != "faint full twice" {
		t.Errorf("a new engine finds the adapters %q", names)
	}
	if said(again, "full") != said(e, "full") {
		t.Error("a new engine finds another adapter")
	}
	if err := ollama.Create(t.Context(), o.address, "mine", "tiny", path, 1, nil); err != nil {
		t.Fatal(err)
	}
	mine := o.open(t, "mine")
	if said(mine, "") != said(e, "full") {
		t.Error("the model that was made of the adapter says something else")
	}
	if err := e.UnloadAdapter(t.Context(), "full"); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Open(t.Context(), decode.Request{Prompt: []decode.Part{decode.Text("a")}, Adapter: "full"}); !errors.Is(err, decode.ErrUnknownAdapter) {
		t.Errorf("unloaded: %v", err)
	}
	e.Close() // waits for the deletion
	if names := o.open(t, "tiny").AdapterNames(); strings.Join(names, " ") != "faint twice" {
		t.Errorf("after unloading: %q", names)
	}
}

func TestRealContextFull(t *testing.T) {
	needReal(t)
	o := start(t)
	e := o.open(t, "tiny", func(c *ollama.Config) { c.ContextTokens = 256 })
	tokens, end := ask(t, e, prompted("One two three"), decode.Span{MaxTokens: 1000})
	if end != decode.EndContext || len(tokens) < 200 || len(tokens) > 256 {
		t.Errorf("%d tokens, end %q; want the context of 256 filled", len(tokens), end)
	}
	s, err := e.Open(t.Context(), prompted(strings.Repeat("x", 1000)))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Decode(decode.Span{MaxTokens: 1}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := read(t, s); !errors.Is(err, decode.ErrContextFull) {
		t.Errorf("a prompt that the server finds too long: %v", err)
	}
}

// What goes wrong when a model is opened says what to do.
func TestRealErrors(t *testing.T) {
	needReal(t)
	o := start(t)
	for name, test := range map[string]struct {
		config ollama.Config
		want   string
	}{
		"missing model":    {ollama.Config{URL: o.address, Model: "llama9"}, "ollama pull llama9"},
		"not running":      {ollama.Config{URL: "127.0.0.1:1", Model: "tiny"}, "ollama serve"},
		"context too long": {ollama.Config{URL: o.address, Model: "tiny", ContextTokens: 1 << 20}, "4096"},
		"odd option":       {ollama.Config{URL: o.address, Model: "tiny", Options: map[string]any{"temperature": 1}}, "num_gpu"},
		"odd address":      {ollama.Config{URL: "ftp://x", Model: "tiny"}, "http://127.0.0.1:11434"},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := ollama.Open(t.Context(), test.config)
			if err == nil {
				e.Close()
				t.Fatal("it was opened")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %q does not say %q", err, test.want)
			}
		})
	}
}
