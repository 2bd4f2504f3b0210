package main

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
	"regexp"
	"strconv"
	"strings"
	"time"

	"anytime/internal/anytime"
)

// served starts the server, with further flags, and hands its address to use.
func (b *bench) served(ctx context.Context, use func(url string) error, flags ...string) error {
	data, err := os.MkdirTemp("", "anytime-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(data)
	cmd := exec.CommandContext(ctx, b.server, append([]string{"-addr", "127.0.0.1:0", "-model", b.model, "-engine-lib", b.lib, "-data", data,
		"-threads", strconv.Itoa(b.threads), "-ctx", "8192"}, flags...)...)
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

// problem is new each time, so that no thought of it is cached.
func problem() string {
	return fmt.Sprintf("Tell a long story with the number %d in it.", time.Now().UnixNano())
}

// solve asks and returns the reply and the thinking's tokens per second from first to last, as the client sees its stream.
func solve(ctx context.Context, url, query, problem string) (reply anytime.Reply, perSecond float64, err error) {
	body, err := json.Marshal(map[string]any{"problem": problem, "temperature": 0, "answer_tokens": 16})
	if err != nil {
		return reply, 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/solve?"+query, bytes.NewReader(body))
	if err != nil {
		return reply, 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "text/event-stream")
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		return reply, 0, err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		data, _ := io.ReadAll(r.Body)
		return reply, 0, fmt.Errorf("status %d: %s", r.StatusCode, data)
	}
	lines := bufio.NewScanner(r.Body)
	lines.Buffer(nil, 1<<20)
	var began, last time.Time
	var kind string
	var base, tokens int
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch {
		case name == "event":
			kind = value
		case name == "data" && kind == anytime.EventThinking:
			var data anytime.TextData
			if err := json.Unmarshal([]byte(value), &data); err != nil {
				return reply, 0, err
			}
			last, tokens = time.Now(), data.Tokens
			if began.IsZero() {
				began, base = last, data.Tokens
			}
		case name == "data" && kind == anytime.EventDone:
			if err := json.Unmarshal([]byte(value), &reply); err != nil {
				return reply, 0, err
			}
		}
	}
	return reply, float64(tokens-base) / last.Sub(began).Seconds(), lines.Err()
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
		s, l, ratio, err := pairs(b.runs, server, loop)
		if err != nil {
			return err
		}
		b.printf("\n## Server against the bare engine loop\n\nOne thought of %d tokens, streamed over HTTP from a server that keeps it in SQLite, against a plain loop around llama.cpp in a\nprocess of its own.\n\n", tokens)
		b.printf("| server, tokens/s | bare loop, tokens/s | server / loop |\n|---|---|---|\n| %.1f | %.1f | %.3f |\n", s, l, ratio)
		return nil
	})
}

// checkpoints measures what answers on the way cost the thinking.
func (b *bench) checkpoints(ctx context.Context) error {
	const tokens = 512
	b.printf("\n## Thinking with and without checkpoints\n\nA thought of %d tokens; each checkpoint is an answer of at most 16 tokens, decoded in the batches of the thinking.\n\n", tokens)
	b.printf("| checkpoints | thinking with, tokens/s | without, tokens/s | with / without | each costs, ms of thinking | each took, ms |\n|---|---|---|---|---|---|\n")
	return b.served(ctx, func(url string) error {
		for _, every := range []int{256, 128, 64} {
			var took []float64
			count := tokens/every - 1
			with := func() (float64, error) {
				reply, perSecond, err := solve(ctx, url, fmt.Sprintf("budget=%d&every=%d", tokens, every), problem())
				for _, c := range reply.Checkpoints {
					took = append(took, c.CostMS)
				}
				return perSecond, err
			}
			without := func() (float64, error) {
				_, perSecond, err := solve(ctx, url, fmt.Sprintf("budget=%d", tokens), problem())
				return perSecond, err
			}
			w, wo, ratio, err := pairs(b.runs, with, without)
			if err != nil {
				return err
			}
			cost := 1000 * (tokens/w - tokens/wo) / float64(count)
			b.printf("| %d | %.1f | %.1f | %.2f | %.0f | %.0f |\n", count, w, wo, ratio, cost, median(took))
		}
		return nil
	})
}
