package openai_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"anytime/internal/decode"
	"anytime/internal/decode/openai"
	"anytime/internal/gguf/tiny"
)

// thoughts starts n thoughts of the given length.
func thoughts(t *testing.T, e decode.Engine, n, length int) []decode.Sequence {
	t.Helper()
	list := make([]decode.Sequence, n)
	for i := range list {
		list[i] = begin(t, e, decode.Text(fmt.Sprintf("Question %d. <think>\n", i)))
		if err := list[i].Decode(decode.Span{MaxTokens: length, MinTokens: length}); err != nil {
			t.Fatal(err)
		}
	}
	return list
}

// readAll reads thoughts to their ends at once.
func readAll(t *testing.T, list []decode.Sequence) [][]decode.Token {
	t.Helper()
	read := make([][]decode.Token, len(list))
	var wg sync.WaitGroup
	for i, s := range list {
		wg.Go(func() {
			var end decode.End
			var err error
			if read[i], end, err = finish(s); err != nil || end != decode.EndLimit {
				t.Errorf("thought %d: end %q, %v after %d tokens", i, end, err, len(read[i]))
			}
		})
	}
	wg.Wait()
	return read
}

func compare(t *testing.T, got, want [][]decode.Token) {
	t.Helper()
	for i := range want {
		if ids(got[i]) != ids(want[i]) {
			t.Errorf("thought %d:\n got %d tokens %q\nwant %d tokens %q", i, len(got[i]), join(got[i]), len(want[i]), join(want[i]))
		}
	}
}

func longTiny(t *testing.T) string {
	return tinyModel(t, tiny.Options{Rate: map[string]float64{tiny.EOS: 0.0001}})
}

// llama-server is killed -9 in mid-thought, several times, and started again: no token is lost, none comes twice.
func TestLlamaServerKilled(t *testing.T) {
	if !all() {
		t.Skip("only in make test-all: it wants a llama-server")
	}
	const sequences, length, kills = 4, 1200, 3
	p := llamaServer(t, longTiny(t), exact...)
	var failures counter
	e := connect(t, openai.Config{URL: p.url, Log: slog.New(&failures)})
	want := readAll(t, thoughts(t, e, sequences, length))
	list := thoughts(t, e, sequences, length)
	got := make([][]decode.Token, sequences)
	var wg sync.WaitGroup
	reached := make(chan int, sequences*kills)
	for i, s := range list {
		wg.Go(func() {
			next := 1
			for {
				c, err := s.Next(t.Context())
				if err != nil {
					t.Errorf("thought %d: %v", i, err)
					return
				}
				got[i] = append(got[i], c.Tokens...)
				if next <= kills && len(got[i]) >= next*length/(kills+1) {
					next++
					reached <- i
				}
				if c.End != "" {
					return
				}
			}
		})
	}
	for range kills {
		<-reached
		p.kill()
		p.start(t)
	}
	wg.Wait()
	compare(t, got, want)
	if n := failures.Load(); n < kills {
		t.Errorf("%d completions failed by %d kills, which tests little", n, kills)
	}
}

// counter counts warnings: completions that failed and were taken up again.
type counter struct{ atomic.Int64 }

func (c *counter) Enabled(context.Context, slog.Level) bool { return true }
func (c *counter) WithAttrs([]slog.Attr) slog.Handler       { return c }
func (c *counter) WithGroup(string) slog.Handler            { return c }

func (c *counter) Handle(_ context.Context, r slog.Record) error {
	if r.Level == slog.LevelWarn {
		c.Add(1)
	}
	return nil
}

// cutter is a proxy that breaks connections after so many bytes of what the server sends, drawn for each.
type cutter struct {
	net.Listener
	target string
	bytes  func() int64
	mu     sync.Mutex
	cuts   int
	wg     sync.WaitGroup
}

func cutting(t *testing.T, target string, bytes func() int64) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{Listener: l, target: target, bytes: bytes}
	c.wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			c.wg.Go(func() { c.pass(client) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		c.wg.Wait()
	})
	return c
}

func (c *cutter) pass(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", c.target)
	if err != nil {
		return
	}
	defer server.Close()
	c.mu.Lock()
	n := c.bytes()
	c.mu.Unlock()
	c.wg.Go(func() {
		_, _ = io.Copy(server, client)
		server.Close()
	})
	if sent, _ := io.CopyN(client, server, n); sent == n {
		c.mu.Lock()
		c.cuts++
		c.mu.Unlock()
	}
}

// Streams are cut at any byte by a proxy.
func TestLlamaServerCut(t *testing.T) {
	if !all() {
		t.Skip("only in make test-all: it wants a llama-server")
	}
	const sequences, length = 3, 300
	p := llamaServer(t, longTiny(t), exact...)
	want := readAll(t, thoughts(t, connect(t, openai.Config{URL: p.url}), sequences, length))
	rng := rand.New(rand.NewPCG(1, 2))
	draws := 0
	c := cutting(t, p.url[len("http://"):], func() int64 {
		if draws++; draws <= 2 {
			return 1 << 40 // Open is asked once only
		}
		return 200 + rng.Int64N(60_000)
	})
	e := connect(t, openai.Config{URL: "http://" + c.Addr().String()})
	compare(t, readAll(t, thoughts(t, e, sequences, length)), want)
	c.mu.Lock()
	defer c.mu.Unlock()
	t.Logf("%d connections were cut", c.cuts)
	if c.cuts < 5 {
		t.Errorf("%d connections were cut, which tests little", c.cuts)
	}
}

// A reader that does not read holds up nobody else, and gets everything when it does; what nobody wants any more is not decoded on.
func TestLlamaServerSlowReader(t *testing.T) {
	if !all() {
		t.Skip("only in make test-all: it wants a llama-server")
	}
	p := llamaServer(t, longTiny(t), exact...)
	e := connect(t, openai.Config{URL: p.url, Sequences: 2})
	want := readAll(t, thoughts(t, e, 1, 1800))[0]
	slow := thoughts(t, e, 1, 1800)[0]
	if _, err := slow.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 3 { // while nobody reads the first
		readAll(t, thoughts(t, e, 2, 200))
	}
	// What the first Next returned is missing, and nothing else.
	rest, end, err := finish(slow)
	if err != nil || end != decode.EndLimit || len(rest) == 0 || ids(rest) != ids(want[len(want)-len(rest):]) {
		t.Errorf("%d tokens, end %q, %v", len(rest), end, err)
	}
}

// Cutting a span and closing a sequence cancel the request upstream: the slot is free at once, though thousands of tokens were asked for.
func TestLlamaServerCancels(t *testing.T) {
	if !all() {
		t.Skip("only in make test-all: it wants a llama-server")
	}
	p := llamaServer(t, longTiny(t), "-ctk", "f32", "-ctv", "f32", "-fa", "off", "-c", "4096", "-np", "1")
	e := connect(t, openai.Config{URL: p.url})
	for i := range 4 {
		s := thoughts(t, e, 1, 4000)[0]
		if _, err := s.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			s.Cut()
		} else {
			s.Close()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		other := begin(t, e, decode.Text("Hello"))
		if err := other.Decode(decode.Span{MaxTokens: 1}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := other.Next(ctx); err != nil {
			t.Errorf("the only slot is not free: %v", err)
		}
		t.Logf("free after %v", time.Since(began).Round(time.Millisecond))
		cancel()
		other.Close()
		s.Close()
	}
}
