package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"anytime/internal/anytime"
	"anytime/internal/server/sse"
)

// inFront starts the server in front of a paced model, for so many runs.
func (b *bench) inFront(ctx context.Context, address string, runs int, use func(url string) error, flags ...string) error {
	dir, err := os.MkdirTemp("", "anytime-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	config := filepath.Join(dir, "config.yaml")
	text := fmt.Sprintf("models:\n  - id: bench\n    family: think\n    engine: {kind: openai, url: %q, sequences: %d}\n", address, 2*runs)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	front := *b
	front.model = ""
	return front.served(ctx, use, append([]string{"-config", config, "-max-runs", strconv.Itoa(2 * runs), "-elastic", "off"}, flags...)...)
}

// readers measures a replica with very many streams, each in front of a model of its own pace, so that only the server is at work.
func (b *bench) readers(ctx context.Context) error {
	const gap = 500 * time.Millisecond
	tokens := 60
	if b.quick {
		tokens = 24
	}
	return paced(ctx, gap, func(address string) error {
		b.printf("Thoughts of %d tokens, one every %v each, of a model behind HTTP that does nothing else, through the server and its SQLite. How late a token\n"+
			"is: from when the model sent it until the client had it; the clients and the model share the machine with the server.\n\n", tokens, gap)
		b.printf("| streams | tokens/s | a token is late, ms: p50 | p99 | first token, ms: p50 | p99 | CPU of the server for a token, µs | memory before, MiB | at the most | after |\n|---|---|---|---|---|---|---|---|---|---|\n")
		for _, n := range []int{100, 1000} {
			err := b.inFront(ctx, address, n, func(url string) error { return b.read(ctx, url, n, tokens) })
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func (b *bench) read(ctx context.Context, url string, n, tokens int) error {
	before, err := used(ctx, url)
	if err != nil {
		return err
	}
	most := before.memory
	stop, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		for {
			select {
			case <-stop:
				return
			case <-time.After(500 * time.Millisecond):
				if now, err := used(ctx, url); err == nil {
					most = max(most, now.memory)
				}
			}
		}
	}()
	var mu sync.Mutex
	var late, firsts []float64
	errs := make([]error, n)
	var wg sync.WaitGroup
	began := time.Now()
	for i := range n {
		wg.Go(func() {
			var mine []float64
			came, asked := 0, time.Now()
			first := 0.0
			body := map[string]any{"problem": problem(), "stream": true, "answer_tokens": 1}
			errs[i] = stream(ctx, fmt.Sprintf("%s/solve?budget=%d", url, tokens), body, func(e sse.Event) error {
				var text anytime.TextData
				if e.Type != anytime.EventThinking {
					return nil
				}
				if err := json.Unmarshal(e.Data, &text); err != nil {
					return err
				}
				if came == 0 {
					first = ms(time.Since(asked))
				}
				mine = append(mine, lateness(text.Text)...)
				came = text.Tokens
				return nil
			})
			if errs[i] == nil && came < tokens {
				errs[i] = fmt.Errorf("a thought ended after %d of %d tokens", came, tokens)
			}
			mu.Lock()
			defer mu.Unlock()
			late, firsts = append(late, mine...), append(firsts, first)
		})
	}
	wg.Wait()
	took := time.Since(began)
	close(stop)
	<-watched
	if err := errors.Join(errs...); err != nil {
		return err
	}
	after, err := used(ctx, url)
	if err != nil {
		return err
	}
	b.printf("| %d | %.0f | %.1f | %.1f | %.0f | %.0f | %.0f | %.0f | %.0f | %.0f |\n", n, float64(n*tokens)/took.Seconds(),
		quantile(late, 0.5), quantile(late, 0.99), quantile(firsts, 0.5), quantile(firsts, 0.99),
		float64((after.cpu-before.cpu).Microseconds())/float64(n*tokens), before.memory, max(most, after.memory), after.memory)
	return nil
}

// usage is a server's memory in MiB and the CPU time it has taken.
type usage struct {
	memory float64
	cpu    time.Duration
}

func used(ctx context.Context, url string) (u usage, err error) {
	m, err := metrics(ctx, url)
	return usage{memory: m["process_resident_memory_bytes"] / (1 << 20), cpu: time.Duration(m["process_cpu_seconds_total"] * float64(time.Second))}, err
}

// metrics asks the server's; those with labels are left out.
func metrics(ctx context.Context, url string) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	r, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	m := map[string]float64{}
	for lines := bufio.NewScanner(r.Body); lines.Scan(); {
		name, text, _ := strings.Cut(lines.Text(), " ")
		if value, err := strconv.ParseFloat(text, 64); err == nil {
			m[name] = value
		}
	}
	if m["process_resident_memory_bytes"] == 0 {
		return nil, errors.New("the server's metrics do not tell its memory")
	}
	return m, nil
}
