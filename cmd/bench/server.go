package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"anytime/internal/anytime"
	"anytime/internal/server/sse"
)

// served starts the server, with further flags, and hands its address to use.
func (b *bench) served(ctx context.Context, use func(url string) error, flags ...string) error {
	data, err := os.MkdirTemp("", "anytime-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(data)
	args := []string{"-addr", "127.0.0.1:0", "-engine-lib", b.lib, "-data", data, "-threads", strconv.Itoa(b.threads), "-ctx", "8192"}
	if b.model != "" {
		args = append(args, "-model", b.model)
	}
	cmd := exec.CommandContext(ctx, b.server, append(args, flags...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", b.server, err)
	}
	b.pid = cmd.Process.Pid
	defer func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	}()
	url := make(chan string, 1)
	go func() {
		defer close(url)
		lines := bufio.NewScanner(out)
		for found := false; lines.Scan(); {
			if m := regexp.MustCompile(`http://127\.0\.0\.1:\d+`).FindString(lines.Text()); m != "" && !found {
				found = true
				url <- m
			}
		}
	}()
	address, ok := <-url
	if !ok {
		return fmt.Errorf("%s ended without an address", b.server)
	}
	for {
		r, err := http.Get(address + "/readyz") //nolint:noctx // loopback
		if err == nil {
			r.Body.Close()
			if r.StatusCode == http.StatusOK {
				break
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return use(address)
}

// solve asks and returns the reply and the thinking's tokens per second from first to last, as the client sees its stream.
func solve(ctx context.Context, url, query, problem string) (reply anytime.Reply, perSecond float64, err error) {
	var began, last time.Time
	base, tokens := 0, 0
	body := map[string]any{"problem": problem, "temperature": 0, "answer_tokens": 16, "stream": true}
	err = stream(ctx, url+"/solve?"+query, body, func(e sse.Event) error {
		if n := said(e); n > 0 {
			last, tokens = time.Now(), n
			if began.IsZero() {
				began, base = last, n
			}
		}
		if e.Type == anytime.EventDone {
			return json.Unmarshal(e.Data, &reply)
		}
		return nil
	})
	return reply, float64(tokens-base) / last.Sub(began).Seconds(), err
}

// throughput compares a thought streamed by the server with the bare loop.
func (b *bench) throughput(ctx context.Context) error {
	const tokens = 384
	return b.served(ctx, func(url string) error {
		server := func() (float64, error) {
			_, perSecond, err := solve(ctx, url, fmt.Sprintf("budget=%d", tokens), problem())
			return perSecond, err
		}
		loop := func() (float64, error) {
			out, err := output(ctx, "bare", "-model", b.model, "-engine-lib", b.lib, "-threads", strconv.Itoa(b.threads),
				"-tokens", strconv.Itoa(tokens), "-prompt", "<|im_start|>user\n"+problem()+"<|im_end|>\n<|im_start|>assistant\n<think>\n")
			if err != nil {
				return 0, err
			}
			return strconv.ParseFloat(strings.TrimSpace(out), 64)
		}
		p, err := b.pairs(server, loop)
		if err != nil {
			return err
		}
		b.printf("One thought of %d tokens, streamed over HTTP from a server that keeps it in SQLite, against a plain loop around llama.cpp in a\nprocess of its own.\n\n", tokens)
		b.printf("| server, tokens/s | bare loop, tokens/s | server / loop |\n|---|---|---|\n| %.1f | %.1f | %.3f |\n", p.a, p.b, p.ratio)
		return nil
	})
}

// checkpoints measures what answers on the way cost the thinking.
func (b *bench) checkpoints(ctx context.Context) error {
	const tokens = 512
	b.printf("A thought of %d tokens; each checkpoint is an answer of at most 16 tokens, decoded in the batches of the thinking.\n\n", tokens)
	b.printf("| checkpoints | thinking with, tokens/s | without, tokens/s | with / without | each costs, ms of thinking | each took, ms |\n|---|---|---|---|---|---|\n")
	return b.served(ctx, func(url string) error {
		for _, every := range []int{256, 128, 64} {
			var took []float64
			count := tokens/every - 1
			with := func() (float64, error) {
				reply, perSecond, err := solve(ctx, url, fmt.Sprintf("budget=%d&every=%d", tokens, every), problem())
				if err == nil && len(reply.Checkpoints) < count {
					err = fmt.Errorf("the thought ended after %d of %d tokens", reply.Usage.ThinkingTokens, tokens)
				}
				for _, c := range reply.Checkpoints {
					took = append(took, c.CostMS)
				}
				return perSecond, err
			}
			without := func() (float64, error) {
				_, perSecond, err := solve(ctx, url, fmt.Sprintf("budget=%d", tokens), problem())
				return perSecond, err
			}
			p, err := b.pairs(with, without)
			if err != nil {
				return err
			}
			cost := 1000 * (tokens/p.a - tokens/p.b) / float64(count)
			b.printf("| %d | %.1f | %.1f | %.2f | %.0f | %.0f |\n", count, p.a, p.b, p.ratio, cost, median(took))
		}
		return nil
	})
}
