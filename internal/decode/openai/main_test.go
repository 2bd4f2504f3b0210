package openai_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"anytime/internal/decode"
	"anytime/internal/decode/decodetest"
	"anytime/internal/decode/openai"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// connect opens an engine and closes it with the test.
func connect(t testing.TB, c openai.Config) decode.Engine {
	t.Helper()
	e, err := openai.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func describe(e decode.Engine) string { return e.(interface{ Describe() string }).Describe() }

func begin(t testing.TB, e decode.Engine, parts ...decode.Part) decode.Sequence {
	t.Helper()
	s, err := e.Open(t.Context(), decode.Request{Prompt: parts, Seed: 7})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func span(t testing.TB, s decode.Sequence, sp decode.Span) ([]decode.Token, decode.End) {
	t.Helper()
	if err := s.Decode(sp); err != nil {
		t.Fatal(err)
	}
	tokens, end, err := finish(s)
	if err != nil {
		t.Fatal(err)
	}
	return tokens, end
}

// finish reads a span to its end.
func finish(s decode.Sequence) (tokens []decode.Token, end decode.End, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for end == "" {
		c, err := s.Next(ctx)
		if err != nil {
			return tokens, "", err
		}
		tokens = append(tokens, c.Tokens...)
		end = c.End
	}
	return tokens, end, nil
}

// root is the repository's.
func root(t testing.TB) string {
	t.Helper()
	dir, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// all says whether the longer tests run, those that need a real llama-server.
func all() bool { return os.Getenv("ANYTIME_TEST_ALL") != "" }

// process is a server under test.
type process struct {
	url  string
	well string // path that answers 200 once the server is well
	path string
	args []string
	env  []string
	cmd  *exec.Cmd
	log  bytes.Buffer
	done chan error
}

// freeAddress returns a loopback address that nobody listens on.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// llamaServer starts the llama-server that engine/llama-server/fetch.sh provides, with arithmetic under which batches of different
// shapes give the same tokens.
func llamaServer(t testing.TB, model string, args ...string) *process {
	t.Helper()
	path := os.Getenv("ANYTIME_LLAMA_SERVER")
	if path == "" {
		path = filepath.Join(root(t), "engine", "llama-server", "bin", "llama-server")
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatal("llama-server is not there: run engine/llama-server/fetch.sh, or set ANYTIME_LLAMA_SERVER to its path")
	}
	address := freeAddress(t)
	host, port, _ := net.SplitHostPort(address)
	p := &process{url: "http://" + address, well: "/health", path: path, args: append([]string{
		"-m", model, "--host", host, "--port", port, "-t", "1", "-tb", "1", "--no-warmup", "--offline",
	}, args...)}
	p.start(t)
	t.Cleanup(p.kill)
	return p
}

func (p *process) start(t testing.TB) {
	t.Helper()
	p.cmd = exec.Command(p.path, p.args...)
	p.cmd.Env = append(os.Environ(), p.env...)
	p.log.Reset()
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.done = make(chan error, 1)
	go func() { p.done <- p.cmd.Wait() }()
	p.await(t)
}

// await waits until the server is well.
func (p *process) await(t testing.TB) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(time.Minute)
	for {
		resp, err := client.Get(p.url + p.well)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-tick.C:
		case err := <-p.done:
			p.done <- err
			t.Fatalf("the server ended: %v\n%s", err, p.log.String())
		case <-timeout:
			p.kill()
			t.Fatalf("the server does not answer\n%s", p.log.String())
		}
	}
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	err := <-p.done
	p.done <- err
}

var exact = []string{"-ctk", "f32", "-ctv", "f32", "-fa", "off", "-c", "8192", "-np", "4"}

func join(tokens []decode.Token) string { return decodetest.Join(tokens) }

func ids(tokens []decode.Token) string {
	var b strings.Builder
	for _, t := range tokens {
		fmt.Fprint(&b, t.ID, " ")
	}
	return b.String()
}
