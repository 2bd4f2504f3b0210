package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"anytime/internal/anytime"
	"anytime/internal/decode"
	"anytime/internal/decode/endpoint"
)

// remote measures what the server costs in front of a llama-server, and what it saves there.
func (b *bench) remote(ctx context.Context) error {
	path := cmp.Or(os.Getenv("ANYTIME_LLAMA_SERVER"), filepath.Join("engine", "llama-server", "bin", "llama-server"))
	if _, err := os.Stat(path); err != nil {
		b.printf("\n## In front of llama-server\n\nNot measured: llama-server is not there; run engine/llama-server/fetch.sh, or set ANYTIME_LLAMA_SERVER.\n")
		return nil
	}
	address, stop, err := b.llamaServer(ctx, path)
	if err != nil {
		return err
	}
	defer stop()
	b.printf("\n## In front of llama-server\n\nThe same model in llama-server, asked through the server (SQLite, HTTP on both sides) and directly.\n\n")
	for _, part := range []func(context.Context, string) error{b.front, b.added, b.forcedThere} {
		if err := part(ctx, address); err != nil {
			return err
		}
	}
	return nil
}

// llamaServer starts a llama-server and returns its address.
func (b *bench) llamaServer(ctx context.Context, path string) (address string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // loopback
	if err != nil {
		return "", nil, err
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	cmd := exec.CommandContext(ctx, path, "-m", b.model, "--host", "127.0.0.1", "--port", port, "-t", strconv.Itoa(b.threads), "-c", "8192", "-np", "2", "--offline")
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	address = "http://localhost:" + port // by a name: the server's own address is the one with a number
	for {
		if r, err := http.Get(address + "/health"); err == nil { //nolint:noctx // loopback
			r.Body.Close()
			if r.StatusCode == http.StatusOK {
				return address, stop, nil
			}
		}
		select {
		case <-ctx.Done():
			stop()
			return "", nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// before starts the server in front of an address.
func (b *bench) before(ctx context.Context, address string, use func(url string) error) error {
	front := *b
	front.model = "openai:bench@" + address
	return front.served(ctx, use)
}

// front compares the speed of a thought through the server with llama-server's own.
func (b *bench) front(ctx context.Context, address string) error {
	const tokens = 256
	return b.before(ctx, address, func(url string) error {
		server := func() (float64, error) {
			_, perSecond, err := solve(ctx, url, fmt.Sprintf("budget=%d", tokens), problem())
			return perSecond, err
		}
		direct := func() (float64, error) {
			prompt := "<|im_start|>user\n" + problem() + "<|im_end|>\n<|im_start|>assistant\n"
			return completion(ctx, address, map[string]any{"prompt": prompt, "max_tokens": tokens, "temperature": 0})
		}
		s, d, ratio, err := pairs(b.runs, server, direct)
		if err != nil {
			return err
		}
		b.printf("| through the server, tokens/s | directly, tokens/s | server / direct |\n|---|---|---|\n| %.1f | %.1f | %.3f |\n", s, d, ratio)
		return nil
	})
}

// completion streams one from llama-server and returns its tokens per second from first to last.
func completion(ctx context.Context, address string, body map[string]any) (float64, error) {
	body["stream"] = true
	began, last, events := time.Time{}, time.Time{}, 0
	err := stream(ctx, address+"/v1/completions", body, func(data string) {
		if data == "[DONE]" {
			return
		}
		if last = time.Now(); events == 0 {
			began = last
		}
		events++
	})
	if err == nil && events < 2 {
		err = errors.New("llama-server said too little")
	}
	return float64(events-1) / last.Sub(began).Seconds(), err
}

// stream posts a body and calls each with the data of the events that come.
func stream(ctx context.Context, url string, body any, each func(data string)) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		data, _ := io.ReadAll(r.Body)
		return fmt.Errorf("%s: status %d: %s", url, r.StatusCode, data)
	}
	lines := bufio.NewScanner(r.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			each(data)
		}
	}
	return lines.Err()
}

// tap passes requests on, and notes when each event of the first completion since reset came from upstream.
type tap struct {
	mu    sync.Mutex
	asked time.Time // of that completion
	came  []time.Time
}

func (p *tap) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked, p.came = time.Time{}, nil
}

func (p *tap) times() (asked time.Time, came []time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked, slices.Clone(p.came)
}

// handler is a proxy before an address.
func (p *tap) handler(to *url.URL) http.Handler {
	proxy := httputil.NewSingleHostReverseProxy(to)
	proxy.FlushInterval = -1
	proxy.ModifyResponse = func(r *http.Response) error {
		first, _ := r.Request.Context().Value(p).(bool)
		if first {
			r.Body = &tapped{r.Body, p}
		}
		return nil
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/completions") {
			p.mu.Lock()
			if p.asked.IsZero() {
				p.asked = time.Now()
				r = r.WithContext(context.WithValue(r.Context(), p, true))
			}
			p.mu.Unlock()
		}
		proxy.ServeHTTP(w, r)
	})
}

type tapped struct {
	io.ReadCloser
	tap *tap
}

// Read implements io.Reader. llama-server sends an event for each token, in a chunk of its own.
func (t *tapped) Read(b []byte) (int, error) {
	n, err := t.ReadCloser.Read(b)
	if events := bytes.Count(b[:n], []byte("data: {")); events > 0 {
		t.tap.mu.Lock()
		defer t.tap.mu.Unlock()
		for range events {
			t.tap.came = append(t.tap.came, time.Now())
		}
	}
	return n, err
}

// added measures how much later a client has a token than the server was sent it, and how much longer the first one takes.
func (b *bench) added(ctx context.Context, address string) error {
	const tokens, requests = 96, 12
	to, err := url.Parse(address)
	if err != nil {
		return err
	}
	p := &tap{}
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // loopback
	if err != nil {
		return err
	}
	web := &http.Server{Handler: p.handler(to), ReadHeaderTimeout: time.Minute}
	served := make(chan struct{})
	go func() {
		_ = web.Serve(l) // until it is closed
		close(served)
	}()
	defer func() {
		web.Close()
		<-served
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return b.before(ctx, "http://localhost:"+port, func(url string) error {
		var firsts, others []float64
		for range requests * b.runs / 5 {
			p.reset()
			var seen []time.Time // when the client had each token
			posted := time.Now()
			body := map[string]any{"problem": problem(), "temperature": 0, "answer_tokens": 2, "stream": true}
			err := stream(ctx, fmt.Sprintf("%s/solve?budget=%d", url, tokens), body, func(data string) {
				var text anytime.TextData
				if json.Unmarshal([]byte(data), &text) == nil {
					for len(seen) < min(text.Tokens, tokens) {
						seen = append(seen, time.Now())
					}
				}
			})
			if err != nil {
				return err
			}
			asked, came := p.times()
			for i := range min(len(seen), len(came)) {
				late := ms(seen[i].Sub(came[i]))
				if i == 0 {
					firsts = append(firsts, ms(asked.Sub(posted))+late)
				} else {
					others = append(others, late)
				}
			}
		}
		if len(firsts) == 0 || len(others) == 0 {
			return errors.New("nothing came through")
		}
		b.printf("\n| added by the server, ms | p50 | p99 |\n|---|---|---|\n| to the first token | %.1f | %.1f |\n| to each token | %.1f | %.1f |\n",
			quantile(firsts, 0.5), quantile(firsts, 0.99), quantile(others, 0.5), quantile(others, 0.99))
		b.printf("\nEvents are committed to the store, in groups every 20 ms at most, before they are sent.\n")
		return nil
	})
}

func quantile(values []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(values))
	return s[min(len(s)-1, int(math.Ceil(q*float64(len(s))))-1)]
}

// forcedThere compares a forced answer with what a client does without one: it stops, and sends question and thought again as a chat.
func (b *bench) forcedThere(ctx context.Context, address string) error {
	engine, err := endpoint.Config{Kind: endpoint.OpenAI, URL: address}.Open(ctx)
	if err != nil {
		return err
	}
	defer engine.Close()
	b.printf("\nTime to the first token of an answer after an interrupt of a thought on llama-server: forced behind the thought, against stopping and sending question\nand thought again as a chat's message.\n\n")
	b.printf("| thinking, tokens | forced, ms | sent again, ms | sent again / forced |\n|---|---|---|---|\n")
	for _, n := range []int{256, 1024} {
		var text string
		forced := func() (float64, error) {
			var took float64
			var err error
			text, took, err = b.forcedOnce(ctx, engine, n)
			return took, err
		}
		again := func() (float64, error) {
			began, first := time.Now(), 0.0
			err := stream(ctx, address+"/v1/chat/completions", map[string]any{
				"messages": []map[string]any{{"role": "user", "content": problem() + "\n\nYour thoughts so far:\n" + text + "\n\nNow give the final answer."}}, "max_tokens": 2, "stream": true, "temperature": 0,
			}, func(data string) {
				if first == 0 && strings.Contains(data, `"content":"`) {
					first = ms(time.Since(began))
				}
			})
			return first, err
		}
		// A pair is the forced answer and then the other, of the same thought.
		var ratios, fs, as []float64
		for range b.runs {
			f, err := forced()
			if err != nil {
				return err
			}
			a, err := again()
			if err != nil {
				return err
			}
			fs, as, ratios = append(fs, f), append(as, a), append(ratios, a/f)
		}
		b.printf("| %d | %.0f | %.0f | %.1f |\n", n, median(fs), median(as), median(ratios))
	}
	return nil
}

// forcedOnce thinks, interrupts and forces an answer. It returns the thought and the milliseconds to the answer's first token.
func (b *bench) forcedOnce(ctx context.Context, engine decode.Engine, n int) (text string, took float64, err error) {
	const last = 16 // are decoded, the others prefilled: how they came into the cache makes no difference
	whole := thought(engine, n)
	whole.IDs = whole.IDs[last:]
	question := decode.Text(problem() + "\n")
	s, err := engine.Open(ctx, decode.Request{Prompt: []decode.Part{question, whole}, Priority: decode.Priority{Class: decode.ClassThinking}})
	if err != nil {
		return "", 0, err
	}
	defer s.Close()
	if err := s.Decode(decode.Span{MaxTokens: 1000, MinTokens: 1000}); err != nil {
		return "", 0, err
	}
	for n := 0; n < last; {
		chunk, err := s.Next(ctx)
		if err != nil {
			return "", 0, err
		}
		n += len(chunk.Tokens)
	}
	began := time.Now()
	s.Cut()
	fork, err := s.Fork(decode.Head, decode.ForkOptions{})
	if err != nil {
		return "", 0, err
	}
	defer fork.Close()
	if err := fork.Append(decode.Text(suffix)); err != nil {
		return "", 0, err
	}
	if err := fork.Decode(decode.Span{MaxTokens: 1, MinTokens: 1}); err != nil {
		return "", 0, err
	}
	err = first(ctx, fork)
	took = ms(time.Since(began))
	tokens, tokenizing := engine.Tokenize(ctx, whole)
	for _, t := range tokens {
		text += t.Text
	}
	return strings.ToValidUTF8(text, "?"), took, errors.Join(err, tokenizing)
}
