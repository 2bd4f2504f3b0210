package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"anytime/internal/anytime"
	"anytime/internal/server/sse"
)

const crowd = 16

// crowded keeps so many runs under way while during runs, and returns how many there were and how many of them were answered.
func crowded(ctx context.Context, url string, during func(answered *atomic.Int64) error) (asked, answered int64, err error) {
	enough := make(chan struct{})
	errs := make([]error, crowd)
	var begun, replied atomic.Int64
	var load sync.WaitGroup
	for i := range crowd {
		load.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-enough:
					return
				default:
				}
				begun.Add(1)
				var reply anytime.Reply
				body := map[string]any{"problem": problem(), "budget": 32 + 16*(n%3), "answer_tokens": 8, "stream": false}
				if errs[i] = postJSON(ctx, url+"/solve", body, &reply); errs[i] != nil {
					return
				}
				if reply.Answer != nil {
					replied.Add(1)
				}
			}
		})
	}
	err = during(&replied)
	close(enough)
	load.Wait()
	return begun.Load(), replied.Load(), errors.Join(append(errs, err)...)
}

// until asks every few milliseconds until it is so.
func until(ctx context.Context, is func() (bool, error)) error {
	for {
		if ok, err := is(); ok || err != nil {
			return err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// kills kills the engine under many runs, again and again, and counts the answers.
func (b *bench) kills(ctx context.Context) error {
	times := 50
	if b.quick {
		times = 5
	}
	return b.served(ctx, func(url string) error {
		var away []float64
		asked, answered, err := crowded(ctx, url, func(answered *atomic.Int64) error {
			for range times {
				had := answered.Load()
				err := until(ctx, func() (bool, error) {
					m, err := metrics(ctx, url)
					return m["anytime_runs_running"] == crowd && answered.Load() >= had+crowd/4, err
				})
				if err != nil {
					return err
				}
				engine := children(b.pid)
				if len(engine) == 0 {
					return errors.New("the server has no engine")
				}
				began := time.Now()
				if err := syscall.Kill(engine[0], syscall.SIGKILL); err != nil {
					return err
				}
				err = until(ctx, func() (bool, error) {
					now := children(b.pid)
					return len(now) > 0 && now[0] != engine[0] && well(url+"/readyz")(), nil
				})
				if err != nil {
					return err
				}
				away = append(away, time.Since(began).Seconds())
			}
			return nil
		})
		if err != nil {
			return err
		}
		b.printf("`kill -9` of the engine's process while %d runs think; each goes on from the tokens that it had.\n\n", crowd)
		b.printf("| killed, times | runs | answered | the engine is ready again after, s: p50 | at most |\n|---|---|---|---|---|\n")
		b.printf("| %d | %d | %d | %.2f | %.2f |\n", times, asked, answered, median(away), slices.Max(away))
		return nil
	}, "-elastic", "off")
}

// children are the processes that a process has started.
func children(pid int) (pids []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, _ := os.ReadFile(list) // "" if the thread has just ended
		for word := range strings.FieldsSeq(string(text)) {
			if n, err := strconv.Atoi(word); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}

// idle measures what readers cost that wait for a run in which nothing happens.
func (b *bench) idle(ctx context.Context) error {
	readers := 10_000
	if b.quick {
		readers = 1000
	}
	return paced(ctx, time.Hour, func(address string) error {
		return b.inFront(ctx, address, 1, func(url string) error {
			var run anytime.RunData
			err := stream(ctx, url+"/solve?budget=100&on_disconnect=continue", map[string]any{"problem": problem(), "stream": true}, func(e sse.Event) error {
				return errors.Join(json.Unmarshal(e.Data, &run), errEnough)
			})
			if err != nil {
				return err
			}
			client.CloseIdleConnections()
			before, err := metrics(ctx, url)
			if err != nil {
				return err
			}
			conns := make([]net.Conn, readers)
			defer func() {
				for _, c := range conns {
					if c != nil {
						c.Close()
					}
				}
			}()
			host := strings.TrimPrefix(url, "http://")
			for i := range conns {
				c, err := new(net.Dialer).DialContext(ctx, "tcp", host)
				if err != nil {
					return err
				}
				conns[i] = c
				if _, err := fmt.Fprintf(c, "GET /solve/%s/events HTTP/1.1\r\nHost: %s\r\nAccept: text/event-stream\r\n\r\n", run.ID, host); err != nil {
					return err
				}
			}
			for _, c := range conns { // what there is so far has come: the reader waits
				if _, err := c.Read(make([]byte, 1)); err != nil {
					return err
				}
			}
			with, err := metrics(ctx, url)
			if err != nil {
				return err
			}
			for i, c := range conns {
				c.Close()
				conns[i] = nil
			}
			var after map[string]float64
			err = until(ctx, func() (bool, error) {
				after, err = metrics(ctx, url)
				return after["go_goroutines"] < before["go_goroutines"]+8, err
			})
			if err != nil {
				return err
			}
			const rss, goroutines = "process_resident_memory_bytes", "go_goroutines"
			b.printf("Readers of one run's events over HTTP, while its model says nothing.\n\n")
			b.printf("| readers | memory before, MiB | with them | a reader, KiB | goroutines before | with them | after |\n|---|---|---|---|---|---|---|\n")
			b.printf("| %d | %.0f | %.0f | %.1f | %.0f | %.0f | %.0f |\n", readers, before[rss]/(1<<20), with[rss]/(1<<20), (with[rss]-before[rss])/1024/float64(readers),
				before[goroutines], with[goroutines], after[goroutines])
			return nil
		})
	})
}

// load measures what a load leaves behind.
func (b *bench) load(ctx context.Context) error {
	lasts := 10 * time.Minute
	if b.quick {
		lasts = 30 * time.Second
	}
	return b.served(ctx, func(url string) error {
		last := func(d time.Duration) func(*atomic.Int64) error {
			return func(*atomic.Int64) error {
				select {
				case <-time.After(d):
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		rest := func() (map[string]float64, error) {
			client.CloseIdleConnections()
			_ = last(2 * time.Second)(nil)
			return metrics(ctx, url)
		}
		if _, _, err := crowded(ctx, url, last(10*time.Second)); err != nil { // so that pools and caches are there
			return err
		}
		before, err := rest()
		if err != nil {
			return err
		}
		asked, answered, err := crowded(ctx, url, last(lasts))
		if err != nil {
			return err
		}
		after, err := rest()
		if err != nil {
			return err
		}
		const rss, goroutines = "process_resident_memory_bytes", "go_goroutines"
		b.printf("%d runs at once for %v.\n\n", crowd, lasts)
		b.printf("| runs | answered | goroutines before | after | memory before, MiB | after |\n|---|---|---|---|---|---|\n")
		b.printf("| %d | %d | %.0f | %.0f | %.0f | %.0f |\n", asked, answered, before[goroutines], after[goroutines], before[rss]/(1<<20), after[rss]/(1<<20))
		return nil
	})
}
