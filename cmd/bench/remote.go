package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"anytime/internal/decode"
	"anytime/internal/decode/endpoint"
	"anytime/internal/server/sse"
)

// elsewhere is another server that holds the model, asked through the server and directly.
type elsewhere struct {
	engine endpoint.Config
	// direct asks it for so many tokens behind a prompt and returns tokens/s from the first to the last.
	direct func(ctx context.Context, prompt string, tokens int) (perSecond float64, err error)
	// chat asks it for an answer to a message and returns the milliseconds to its first token.
	chat func(ctx context.Context, message string) (took float64, err error)
}

// remote measures what the server costs in front of a llama-server, and what it saves there.
func (b *bench) remote(ctx context.Context) error {
	return b.llama(ctx, func(address string) error {
		there := elsewhere{
			engine: endpoint.Config{Kind: endpoint.OpenAI, Model: "bench", URL: address},
			direct: func(ctx context.Context, prompt string, tokens int) (float64, error) {
				var p pace
				body := map[string]any{"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": true}
				err := stream(ctx, address+"/v1/completions", body, func(e sse.Event) error {
					if string(e.Data) != "[DONE]" {
						p.tick()
					}
					return nil
				})
				return p.perSecond(), err
			},
			chat: func(ctx context.Context, message string) (took float64, err error) {
				began := time.Now()
				body := map[string]any{"messages": []map[string]any{{"role": "user", "content": message}}, "max_tokens": 2, "stream": true, "temperature": 0}
				err = stream(ctx, address+"/v1/chat/completions", body, func(e sse.Event) error {
					if !bytes.Contains(e.Data, []byte(`"content":"`)) {
						return nil
					}
					took = ms(time.Since(began))
					return errEnough
				})
				return took, err
			},
		}
		b.printf("The same model in llama-server, asked through the server (SQLite, HTTP on both sides) and directly.\n\n")
		if err := b.front(ctx, there); err != nil {
			return err
		}
		if err := b.added(ctx, address); err != nil {
			return err
		}
		return b.forcedThere(ctx, there)
	}, "-c", "8192", "-np", "2")
}

// ollama measures the same in front of Ollama.
func (b *bench) ollama(ctx context.Context) error {
	found, err := filepath.Glob("engine/ollama/ollama-v*")
	if err != nil || len(found) == 0 {
		b.printf("Not measured: Ollama is not there; run engine/ollama.sh.\n")
		return err
	}
	home, err := os.MkdirTemp("", "anytime-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(home)
	model, err := filepath.Abs(b.model)
	if err != nil {
		return err
	}
	modelfile := filepath.Join(home, "Modelfile")
	if err := os.WriteFile(modelfile, fmt.Appendf(nil, "FROM %s\nPARAMETER num_ctx 8192\nPARAMETER num_thread %d\n", model, b.threads), 0o600); err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	command := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, found[len(found)-1], args...)
		cmd.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "OLLAMA_HOST=127.0.0.1:" + port, "OLLAMA_NO_CLOUD=1"}
		return cmd
	}
	address := "http://localhost:" + port
	return process(ctx, command("serve"), well(address+"/api/version"), func() error {
		if out, err := command("create", "bench", "-f", modelfile).CombinedOutput(); err != nil {
			return fmt.Errorf("ollama create: %w: %s", err, out)
		}
		options := map[string]any{"num_ctx": 8192, "temperature": 0, "repeat_penalty": 1}
		ask := func(ctx context.Context, path string, body map[string]any, tokens int, each func() error) error {
			body["model"], body["options"] = "bench", maps.Clone(options)
			body["options"].(map[string]any)["num_predict"] = tokens
			err := post(ctx, address+path, body, func(r io.Reader) error {
				for lines := bufio.NewScanner(r); lines.Scan(); { // a line for each token, and one more
					if bytes.Contains(lines.Bytes(), []byte(`"done":true`)) {
						return nil
					}
					if err := each(); err != nil {
						return err
					}
				}
				return errors.New("ollama broke off")
			})
			if errors.Is(err, errEnough) {
				return nil
			}
			return err
		}
		there := elsewhere{
			engine: endpoint.Config{Kind: endpoint.Ollama, Model: "bench", URL: address, ContextTokens: 8192},
			direct: func(ctx context.Context, prompt string, tokens int) (float64, error) {
				var p pace
				err := ask(ctx, "/api/generate", map[string]any{"prompt": prompt, "raw": true}, tokens, func() error { p.tick(); return nil })
				return p.perSecond(), err
			},
			chat: func(ctx context.Context, message string) (took float64, err error) {
				began := time.Now()
				body := map[string]any{"messages": []map[string]any{{"role": "user", "content": message}}}
				err = ask(ctx, "/api/chat", body, 2, func() error {
					took = ms(time.Since(began))
					return errEnough
				})
				return took, err
			},
		}
		b.printf("The same model in Ollama (%s), asked through the server and directly.\n\n", filepath.Base(found[len(found)-1]))
		if err := b.front(ctx, there); err != nil {
			return err
		}
		return b.forcedThere(ctx, there)
	})
}

// pace is how fast tokens come.
type pace struct {
	first, last time.Time
	n           int
}

func (p *pace) tick() {
	p.last = time.Now()
	if p.n == 0 {
		p.first = p.last
	}
	p.n++
}

func (p *pace) perSecond() float64 { return float64(p.n-1) / p.last.Sub(p.first).Seconds() }

// before starts the server in front of another.
func (b *bench) before(ctx context.Context, engine endpoint.Config, use func(url string) error) error {
	front := *b
	front.model = engine.String()
	return front.served(ctx, use)
}

// front compares the speed of a thought through the server with the other's own.
func (b *bench) front(ctx context.Context, there elsewhere) error {
	const tokens = 256
	return b.before(ctx, there.engine, func(url string) error {
		p, err := b.pairs(func() (float64, error) {
			_, perSecond, err := solve(ctx, url, fmt.Sprintf("budget=%d", tokens), problem())
			return perSecond, err
		}, func() (float64, error) { return there.direct(ctx, chat(problem()), tokens) })
		if err != nil {
			return err
		}
		b.printf("| through the server, tokens/s | directly, tokens/s | server / direct |\n|---|---|---|\n| %.1f | %.1f | %.3f |\n", p.a, p.b, p.ratio)
		return nil
	})
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
	return b.before(ctx, endpoint.Config{Kind: endpoint.OpenAI, Model: "bench", URL: "http://localhost:" + port}, func(url string) error {
		var firsts, others []float64
		for i := range max(3, requests*b.runs/5) {
			if i > 0 && b.late() {
				break
			}
			p.reset()
			var seen []time.Time // when the client had each token
			posted := time.Now()
			body := map[string]any{"problem": problem(), "temperature": 0, "answer_tokens": 2, "stream": true}
			err := stream(ctx, fmt.Sprintf("%s/solve?budget=%d", url, tokens), body, func(e sse.Event) error {
				for len(seen) < said(e) {
					seen = append(seen, time.Now())
				}
				return nil
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
		b.printf("\nEvents are committed to the store, in groups, before they are sent.\n")
		return nil
	})
}

func quantile(values []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(values))
	return s[min(len(s)-1, int(math.Ceil(q*float64(len(s))))-1)]
}

// forcedThere compares a forced answer with what a client does without one: it stops, and sends question and thought again as a chat.
func (b *bench) forcedThere(ctx context.Context, there elsewhere) error {
	engine, err := there.engine.Open(ctx)
	if err != nil {
		return err
	}
	defer engine.Close()
	b.printf("\nTime to the first token of an answer after an interrupt: forced behind the thought, against stopping and sending question and thought again as\na chat's message.\n\n")
	b.printf("| thinking, tokens | sent again, ms | forced, ms | sent again / forced |\n|---|---|---|---|\n")
	for _, n := range []int{256, 1024} {
		var forced, again, ratios []float64
		for i := range b.runs {
			if i > 0 && b.late() {
				break
			}
			question, thought := problem(), words(n-lastThought)
			took, err := forcedOnce(ctx, engine, chat(question)+thought)
			if err != nil {
				return err
			}
			chatted, err := there.chat(ctx, question+"\n\nYour thoughts so far:\n"+thought+"\n\nNow give the final answer.")
			if err != nil {
				return err
			}
			forced, again, ratios = append(forced, took), append(again, chatted), append(ratios, chatted/took)
		}
		b.printf("| %d | %.0f | %.0f | %.1f |\n", n, median(again), median(forced), median(ratios))
	}
	return nil
}

// forcedOnce thinks on behind a text, interrupts and forces an answer. It returns the milliseconds to the answer's first token.
func forcedOnce(ctx context.Context, engine decode.Engine, text string) (took float64, err error) {
	s, err := engine.Open(ctx, decode.Request{Prompt: []decode.Part{decode.Text(text)}, Priority: decode.Priority{Class: decode.ClassThinking}})
	if err != nil {
		return 0, err
	}
	defer s.Close()
	if err := s.Decode(decode.Span{MaxTokens: 1000}); err != nil {
		return 0, err
	}
	for n := 0; n < lastThought; {
		chunk, err := s.Next(ctx)
		if err != nil {
			return 0, err
		}
		if n += len(chunk.Tokens); chunk.End != "" {
			return 0, fmt.Errorf("the thought ended by itself after %d tokens", n)
		}
	}
	began := time.Now()
	s.Cut()
	fork, err := s.Fork(decode.Head, decode.ForkOptions{})
	if err != nil {
		return 0, err
	}
	defer fork.Close()
	if err := fork.Append(decode.Text(suffix)); err != nil {
		return 0, err
	}
	if err := fork.Decode(decode.Span{MaxTokens: 1, MinTokens: 1}); err != nil {
		return 0, err
	}
	err = first(ctx, fork)
	return ms(time.Since(began)), err
}
