package pool_test

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"anytime/internal/decode"
	"anytime/internal/decode/decodetest"
	"anytime/internal/decode/endpoint"
	"anytime/internal/decode/pool"
	"anytime/internal/gguf/tiny"
)

// llamaServer is a real one.
type llamaServer struct {
	t       testing.TB
	address string
	model   string
	cmd     *exec.Cmd
}

func (l *llamaServer) start() {
	path := os.Getenv("ANYTIME_LLAMA_SERVER")
	if path == "" {
		path = filepath.Join("..", "..", "..", "engine", "llama-server", "bin", "llama-server")
	}
	host, port, _ := net.SplitHostPort(l.address)
	// Arithmetic under which batches of different shapes give the same tokens.
	l.cmd = exec.Command(path, "-m", l.model, "--host", host, "--port", port, "-t", "1", "-tb", "1", "--no-warmup", "--offline",
		"-ctk", "f32", "-ctv", "f32", "-fa", "off", "-c", "8192", "-np", "4")
	if err := l.cmd.Start(); err != nil {
		l.t.Fatalf("%v: run engine/llama-server/fetch.sh, or set ANYTIME_LLAMA_SERVER to its path", err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-tick.C {
		if r, err := client.Get("http://" + l.address + "/health"); err == nil {
			r.Body.Close()
			if r.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(deadline) {
			l.t.Fatal("llama-server does not answer")
		}
	}
}

func (l *llamaServer) kill() {
	if l.cmd != nil {
		_ = l.cmd.Process.Kill()
		_ = l.cmd.Wait()
		l.cmd = nil
	}
}

// llamaServers opens a pool of real servers with the same tiny model.
func llamaServers(t testing.TB, n int) (*pool.Engine, []*llamaServer) {
	t.Helper()
	model := filepath.Join(t.TempDir(), "tiny.gguf")
	if err := tiny.WriteFile(model, 1, tiny.Options{Rate: map[string]float64{tiny.EOS: 0.002}}); err != nil {
		t.Fatal(err)
	}
	var list []*llamaServer
	c := pool.Config{Model: "tiny"}
	for range n {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l := &llamaServer{t: t, address: listener.Addr().String(), model: model}
		listener.Close()
		l.start()
		t.Cleanup(l.kill)
		list = append(list, l)
		at := endpoint.Config{Kind: endpoint.OpenAI, URL: "http://" + l.address, Patience: 15 * time.Second}
		c.Members = append(c.Members, pool.Member{Name: at.String(), Open: at.Open, Reach: at.Reach})
	}
	e, err := pool.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e, list
}

func TestLlamaServersConformance(t *testing.T) {
	if os.Getenv("ANYTIME_TEST_ALL") == "" {
		t.Skip("only in make test-all: it wants a llama-server")
	}
	e, _ := llamaServers(t, 2)
	if !e.Info().Capabilities.TokenIDs {
		t.Error("the vocabularies are the same, and yet it has no token ids")
	}
	decodetest.Conformance(t, func(*testing.T) decode.Engine { return e })
}

// Each server is killed in mid-thought, in turn; the thoughts are what they would have been.
func TestLlamaServersKilled(t *testing.T) {
	if os.Getenv("ANYTIME_TEST_ALL") == "" {
		t.Skip("only in make test-all: it wants a llama-server")
	}
	e, servers := llamaServers(t, 2)
	const length = 400
	prompt := []decode.Part{decode.Text("Think long. <think>\n")}
	thought := func(started func()) []decode.Token {
		s, err := e.Open(context.Background(), decode.Request{Prompt: prompt, Seed: 3})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if err := s.Decode(decode.Span{MaxTokens: length, MinTokens: length}); err != nil {
			t.Fatal(err)
		}
		c, err := s.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		started()
		return append(c.Tokens, all(t, s)...)
	}
	want := thought(func() {})
	for _, victim := range []int{0, 1, 0} {
		got := thought(servers[victim].kill)
		if len(got) != length || decodetest.Join(got) != decodetest.Join(want) {
			t.Errorf("%d tokens %q\nwant %d %q", len(got), decodetest.Join(got), length, decodetest.Join(want))
		}
		servers[victim].start()
		for ctx := t.Context(); e.Ready(ctx) != nil; {
		}
	}
}
