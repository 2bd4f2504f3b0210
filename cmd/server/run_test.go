package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/decode/llamacpp"
	"anytime/internal/gguf/tiny"
)

// patience bounds every wait: far above what anything needs, so that only a hang meets it.
const patience = 2 * time.Minute

var talker string // a tiny model that neither ends its thinking nor its answers

// The test binary is the engine process, too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "engine" {
		fmt.Fprintln(os.Stderr, llamacpp.Serve())
		os.Exit(1)
	}
	dir, err := os.MkdirTemp("", "server-test-")
	if err != nil {
		panic(err)
	}
	talker = filepath.Join(dir, "talker-F32.gguf")
	if err := tiny.WriteFile(talker, 1, tiny.Options{Rate: map[string]float64{tiny.ThinkClose: 1e-9, tiny.EOS: 1e-9}}); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(dir)
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// running is a server in this process.
type running struct {
	url         string
	stop, hurry context.CancelFunc
	done        chan error
}

// startServer returns once the server has said that it is ready.
func startServer(t *testing.T, args ...string) *running {
	t.Helper()
	lib := os.Getenv("ANYTIME_ENGINE_LIB")
	if lib == "" {
		lib = "../../engine/lib"
	}
	args = append([]string{"-addr", "127.0.0.1:0", "-data", t.TempDir(), "-engine-lib", lib, "-threads", "1", "-log-level", "error"}, args...)
	s := &running{done: make(chan error, 1)}
	ctx, stop := context.WithCancel(context.Background())
	hurry, cut := context.WithCancel(context.Background())
	s.stop, s.hurry = stop, cut
	out, in := io.Pipe()
	go func() {
		err := command(ctx, hurry, args, environment(), nil, in, os.Stderr)
		in.CloseWithError(fmt.Errorf("the server ended: %w", err))
		s.done <- err
	}()
	t.Cleanup(func() {
		s.stop()
		s.hurry()
		go func() { _, _ = io.Copy(io.Discard, out) }() // until in is closed
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if s.url = regexp.MustCompile(`http://[0-9.]+:\d+`).FindString(lines.Text()); s.url != "" {
			return s
		}
	}
	t.Fatal(lines.Err())
	return nil
}

// wait returns what the server ended with.
func (s *running) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-s.done:
		return err
	case <-time.After(patience):
		t.Fatal("the server did not end")
		return nil
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// stream asks for long thinking; begun is closed when it thinks, and result gets the reply, or its error.
func (s *running) stream(t *testing.T, answerTokens int) (begun chan struct{}, result chan anytime.Reply) {
	t.Helper()
	begun, result = make(chan struct{}), make(chan anytime.Reply, 1)
	body := fmt.Sprintf(`{"problem": "Count.", "budget": "3500", "answer_tokens": %d, "stream": true}`, answerTokens)
	thinks := sync.OnceFunc(func() { close(begun) })
	go func() {
		defer close(result)
		defer thinks() // whatever went wrong
		res, err := http.Post(s.url+"/solve", "application/json", strings.NewReader(body))
		if err != nil {
			t.Error(err)
			return
		}
		defer res.Body.Close()
		kind := ""
		lines := bufio.NewScanner(res.Body)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if k, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
				if kind = k; k == "thinking" {
					thinks()
				}
			}
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok && kind == "done" {
				var reply anytime.Reply
				if json.Unmarshal([]byte(data), &reply) == nil {
					result <- reply
				}
			}
		}
	}()
	return begun, result
}

// A server that is told to stop lets the run in flight answer, delivers its stream, and ends well.
func TestServeAndStop(t *testing.T) {
	s := startServer(t, "-model", talker)
	addr := strings.TrimPrefix(s.url, "http://")
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		if status, body := get(t, s.url+path); status != http.StatusOK {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if _, body := get(t, s.url+"/v1/models"); !strings.Contains(body, `"id":"talker"`) {
		t.Errorf("models: %s", body)
	}
	if _, body := get(t, s.url+"/metrics"); !strings.Contains(body, "anytime_engine_restarts_total 0") || !strings.Contains(body, "anytime_runs_running") {
		t.Error("metrics are not there")
	}
	if err := command(t.Context(), t.Context(), []string{"health", "-addr", addr}, environment(), nil, io.Discard, io.Discard); err != nil {
		t.Errorf("health: %v", err)
	}
	err := command(t.Context(), t.Context(), []string{"serve", "-addr", addr, "-model", talker, "-data", t.TempDir()}, environment(), nil, io.Discard, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "listen: ") {
		t.Errorf("on a taken port: %v", err)
	}
	begun, result := s.stream(t, 8)
	<-begun
	s.stop()
	if err := s.wait(t); err != nil {
		t.Error(err)
	}
	reply, ok := <-result
	if !ok || reply.Stop.Cause != budget.CauseDrain || reply.Answer == nil || reply.Usage.ThinkingTokens == 0 {
		t.Errorf("the run in flight got %+v", reply)
	}
	http.DefaultClient.CloseIdleConnections()
	if err := command(t.Context(), t.Context(), []string{"health", "-addr", addr}, environment(), nil, io.Discard, io.Discard); err == nil {
		t.Error("health of a server that has ended is well")
	}
}

// A second signal does not wait for answers; the next start takes the runs up.
func TestSecondSignalCutsTheWait(t *testing.T) {
	data := t.TempDir()
	s := startServer(t, "-model", talker, "-data", data)
	begun, result := s.stream(t, 3000)
	<-begun
	s.stop()
	s.hurry()
	if err := s.wait(t); err == nil || !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if reply, ok := <-result; ok {
		t.Errorf("the run ended: %+v", reply)
	}
	http.DefaultClient.CloseIdleConnections()
	s = startServer(t, "-model", talker, "-data", data)
	if _, body := get(t, s.url+"/solve"); !strings.Contains(body, `"running"`) && !strings.Contains(body, `"finished"`) {
		t.Errorf("the run is lost: %s", body)
	}
	s.stop()
	s.hurry()
	_ = s.wait(t) // it may be in the middle of its 3000 tokens again
}

func TestStartErrors(t *testing.T) {
	fakes := t.TempDir()
	if err := os.WriteFile(filepath.Join(fakes, "libllama.so"), []byte("not a library"), 0o600); err != nil {
		t.Fatal(err)
	}
	damaged := filepath.Join(fakes, "damaged.gguf")
	if err := os.WriteFile(damaged, []byte("GGUF and then nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		args  []string
		says  string
		usage bool
	}{
		"wrong settings": {[]string{"-model", talker, "-addr", "0.0.0.0:0"}, "addr is", true},
		"unknown flag":   {[]string{"-modell", talker}, "-modell", true},
		"no libraries":   {[]string{"-model", talker, "-engine-lib", t.TempDir()}, "engine_lib is", false},
		"no model":       {[]string{"-model", "/nowhere/at.gguf", "-engine-lib", fakes}, "no such file", false},
		"no GGUF":        {[]string{"-model", damaged, "-engine-lib", fakes}, "damaged.gguf", false},
		"no such quant":  {[]string{"-model", "hf.co/x", "-engine-lib", fakes}, "want hf.co/owner/repo", false},
		"not enough":     {[]string{"-model", talker, "-engine-lib", fakes, "-memory", "1KiB"}, `model "talker" takes about`, false},
		"no engine":      {[]string{"-model", talker, "-engine-lib", fakes}, `load model "talker": open engine: `, false},
		"no store":       {[]string{"-model", talker, "-engine-lib", fakes, "-store", "sqlite:" + damaged}, "open store", false},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"-addr", "127.0.0.1:0", "-data", t.TempDir(), "-log-level", "error"}, row.args...)
			err := command(t.Context(), t.Context(), args, environment(), nil, io.Discard, io.Discard)
			if err == nil || !strings.Contains(err.Error(), row.says) || errors.As(err, new(usageError)) != row.usage {
				t.Errorf("%v\nit should say %s", err, row.says)
			}
		})
	}
}

// A signal while a model is being fetched is no error.
func TestStopWhileFetching(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan struct{})
	go func() { // a hub that does not answer
		defer close(asked)
		if c, err := l.Accept(); err == nil {
			_, err := http.ReadRequest(bufio.NewReader(c))
			if err != nil {
				t.Error(err)
			}
			stop()
			_, _ = io.Copy(io.Discard, c) // until it is given up
			c.Close()
		}
	}()
	lib := t.TempDir()
	if err := os.WriteFile(filepath.Join(lib, "libllama.so"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-addr", "127.0.0.1:0", "-data", t.TempDir(), "-engine-lib", lib, "-model", "hf.co/a/b", "-hub-url", "http://" + l.Addr().String(), "-log-level", "error"}
	if err := command(ctx, t.Context(), args, environment(), nil, io.Discard, io.Discard); err != nil {
		t.Error(err)
	}
	<-asked
}

func TestModelIDs(t *testing.T) {
	for _, row := range []struct{ files, ids []string }{
		{[]string{"/x/SmolLM2-135M-Instruct.Q4_1.gguf"}, []string{"SmolLM2-135M-Instruct"}},
		{[]string{"DeepSeek-R1-Distill-Qwen-1.5B-Q4_K_M.gguf", "qwen3-1.7b.GGUF"}, []string{"DeepSeek-R1-Distill-Qwen-1.5B", "qwen3-1.7b"}},
		{[]string{"m-Q4_0.gguf", "m-Q8_0.gguf", "m2-F16.gguf"}, []string{"m-Q4_0", "m-Q8_0", "m2"}},
		{[]string{"big-IQ2_XXS-00001-of-00003.gguf"}, []string{"big"}},
		{[]string{"gpt-oss-20b-mxfp4.gguf"}, []string{"gpt-oss-20b"}},
		{[]string{"my model:x.gguf", ".hidden.gguf"}, []string{"mymodelx", "hidden"}},
		{[]string{"Q4_0.gguf"}, []string{"Q4_0"}},
	} {
		if got := modelIDs(row.files); !slices.Equal(got, row.ids) {
			t.Errorf("%q: %q, want %q", row.files, got, row.ids)
		}
	}
}

func TestReachable(t *testing.T) {
	for addr, want := range map[string]string{
		"127.0.0.1:80": "127.0.0.1:80", ":80": "127.0.0.1:80", "0.0.0.0:80": "127.0.0.1:80", "[::]:80": "127.0.0.1:80", "[::1]:80": "[::1]:80", "lab:80": "lab:80",
	} {
		if got := reachable(addr); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}

func TestVersion(t *testing.T) {
	var out strings.Builder
	if err := command(t.Context(), t.Context(), []string{"version"}, environment(), nil, &out, io.Discard); err != nil || !strings.HasPrefix(out.String(), "anytime ") {
		t.Errorf("%q, %v", out.String(), err)
	}
}
