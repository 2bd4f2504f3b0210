// Package e2e builds the real server and drives it over HTTP, with the tiny model that the project writes itself and, where
// ANYTIME_TEST_MODEL names it, with the default model.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"anytime/internal/anytime"
	"anytime/internal/gguf/tiny"
)

// patience bounds every wait: far above what anything needs, so that only a hang meets it.
const patience = 2 * time.Minute

var (
	binary  string // the server
	talker  string // tiny model that hardly ever ends its thinking
	thinker string // tiny model that ends it after some 60 tokens
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "anytime-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "server")
	talker, thinker = filepath.Join(dir, "talker.gguf"), filepath.Join(dir, "thinker.gguf")
	build := exec.Command("go", "build", "-o", binary, "anytime/cmd/server")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the server: %v\n%s", err, out)
		return 1
	}
	for path, rate := range map[string]float64{talker: 1e-9, thinker: 1. / 60} {
		opts := tiny.Options{ContextTokens: 8192, Rate: map[string]float64{tiny.ThinkClose: rate, tiny.EOS: 1e-9}}
		if err := tiny.WriteFile(path, 1, opts); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// libraries finds the folder of the llama.cpp libraries.
func libraries(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("ANYTIME_ENGINE_LIB"); dir != "" {
		return dir
	}
	dir, err := filepath.Abs("../engine/lib")
	if err != nil {
		t.Fatal(err)
	}
	if found, _ := filepath.Glob(filepath.Join(dir, "libllama.*")); len(found) == 0 {
		t.Fatal("the llama.cpp libraries are not there: run `make engine`")
	}
	return dir
}

// server is a running one.
type server struct {
	t    testing.TB
	url  string
	cmd  *exec.Cmd
	exit chan error

	mu  sync.Mutex
	log bytes.Buffer
}

// start runs the server with a fresh data folder, or the given one, and waits until it is ready.
func start(t testing.TB, data string, args ...string) *server {
	t.Helper()
	if data == "" {
		data = t.TempDir()
	}
	s := &server{t: t, exit: make(chan error, 1)}
	args = append([]string{"-addr", "127.0.0.1:0", "-engine-lib", libraries(t), "-data", data, "-threads", "1"}, args...)
	s.cmd = exec.Command(binary, args...)
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.cmd.Stderr = s.cmd.Stdout
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			t.Logf("the server said:\n%s", s.said())
		}
	})
	address := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			s.mu.Lock()
			s.log.WriteString(lines.Text() + "\n")
			s.mu.Unlock()
			if m := regexp.MustCompile(`http://127\.0\.0\.1:\d+`).FindString(lines.Text()); m != "" {
				select {
				case address <- m:
				default:
				}
			}
		}
		s.exit <- s.cmd.Wait()
		close(s.exit)
	}()
	select {
	case s.url = <-address:
	case err := <-s.exit:
		t.Fatalf("the server ended: %v\n%s", err, s.said())
	case <-time.After(patience):
		t.Fatalf("the server gave no address:\n%s", s.said())
	}
	s.until("ready", func() bool { return s.do("GET", "/readyz", nil).status == http.StatusOK })
	return s
}

func (s *server) said() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

func (s *server) kill() {
	_ = s.cmd.Process.Kill() // it may have ended
	for range s.exit {       // until it is closed
	}
}

// until waits for something that can only be asked for again and again.
func (s *server) until(what string, done func() bool) {
	s.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !done(); <-tick.C {
		if time.Now().After(deadline) {
			s.t.Fatalf("not %s after %v", what, patience)
		}
	}
}

// children are the engine processes of the server.
func (s *server) children() []int {
	var pids []int
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", s.cmd.Process.Pid))
	for _, task := range tasks {
		list, _ := os.ReadFile(task)
		for _, field := range strings.Fields(string(list)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// killEngine kills the engine processes, as an abort in llama.cpp would.
func (s *server) killEngine() {
	s.t.Helper()
	pids := s.children()
	if len(pids) == 0 {
		s.t.Fatal("the server has no engine process")
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			s.t.Fatal(err)
		}
	}
}

// response is one that was read whole.
type response struct {
	status int
	header http.Header
	body   []byte
}

func (s *server) do(method, path string, body any, header ...string) response {
	s.t.Helper()
	r, err := s.send(context.Background(), method, path, body, header...)
	if err != nil {
		s.t.Errorf("%s %s: %v", method, path, err)
		return response{}
	}
	defer r.Body.Close()
	data, err := io.ReadAll(r.Body)
	if err != nil {
		s.t.Errorf("%s %s: %v", method, path, err)
		return response{}
	}
	return response{r.StatusCode, r.Header, data}
}

// send sends a body as JSON, a string as it is.
func (s *server) send(ctx context.Context, method, path string, body any, header ...string) (*http.Response, error) {
	var reader io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		reader = strings.NewReader(b)
	default:
		data, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		reader = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, reader)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return http.DefaultClient.Do(req)
}

// into reads a JSON reply of status 200.
func (s *server) into(r response, v any) {
	s.t.Helper()
	if r.status != http.StatusOK {
		s.t.Fatalf("status %d: %s", r.status, r.body)
	}
	if err := json.Unmarshal(r.body, v); err != nil {
		s.t.Fatalf("%v in %s", err, r.body)
	}
}

func (s *server) solve(query string, body map[string]any) anytime.Reply {
	s.t.Helper()
	var reply anytime.Reply
	s.into(s.do("POST", "/solve?"+query, body), &reply)
	return reply
}

// problem is a body for /solve.
func problem(text string) map[string]any { return map[string]any{"problem": text} }

// event is one of a stream.
type event struct {
	id         int
	kind, data string
}

// events reads a stream until it ends, or until stop says so.
func (s *server) events(ctx context.Context, method, path string, body any, stop func(event) bool, header ...string) []event {
	s.t.Helper()
	r, err := s.send(ctx, method, path, body, append([]string{"Accept", "text/event-stream"}, header...)...)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK || !strings.HasPrefix(r.Header.Get("Content-Type"), "text/event-stream") {
		data, _ := io.ReadAll(r.Body)
		s.t.Fatalf("%s %s: status %d, %s: %s", method, path, r.StatusCode, r.Header.Get("Content-Type"), data)
	}
	var list []event
	scan(r.Body, func(e event) bool {
		list = append(list, e)
		return stop != nil && stop(e)
	})
	return list
}

// scan reads events until each says that it is enough, or the stream ends.
func scan(stream io.Reader, each func(event) (enough bool)) {
	var e event
	lines := bufio.NewScanner(stream)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch name {
		case "id":
			e.id, _ = strconv.Atoi(value) // what is none has no place in a run, and that is tested
		case "event":
			e.kind = value
		case "data":
			e.data += value
		case "":
			if lines.Text() == "" && (e.kind != "" || e.data != "") {
				if each(e) {
					return
				}
				e = event{}
			}
		}
	}
}

// text joins the text of one kind of event.
func text(t testing.TB, events []event, kind string) string {
	t.Helper()
	var b strings.Builder
	for _, e := range events {
		if e.kind != kind {
			continue
		}
		var data anytime.TextData
		if err := json.Unmarshal([]byte(e.data), &data); err != nil {
			t.Fatalf("%v in %s", err, e.data)
		}
		if data.Reset {
			b.Reset()
		}
		b.WriteString(data.Text)
	}
	return b.String()
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
