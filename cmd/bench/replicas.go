package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"sync"
	"time"

	"anytime/internal/anytime"
	"anytime/internal/server/sse"
)

// replicas measures how many interrupts a second two replicas with one Redis take, of runs of their own and of the other's.
func (b *bench) replicas(ctx context.Context) error {
	const gap = 500 * time.Millisecond
	path, err := exec.LookPath("redis-server")
	if err != nil {
		b.printf("Not measured: redis-server is not there.\n")
		return nil
	}
	runs := 300
	if b.quick {
		runs = 100
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	redis := exec.CommandContext(ctx, path, "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
	ready := func() bool {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port) //nolint:noctx // loopback
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	store := "redis://127.0.0.1:" + port
	return process(ctx, redis, ready, func() error {
		return paced(ctx, gap, func(address string) error {
			return b.inFront(ctx, address, runs, func(one string) error {
				return b.inFront(ctx, address, runs, func(other string) error {
					b.printf("%d thoughts on one replica, in front of a model that thinks a token every %v and answers at once; all are interrupted, 16 at a time, by way of\n"+
						"the replica that runs them, or of another one that shares its Redis. Each interrupt returns the answer.\n\n", runs, gap)
					b.printf("| interrupted by way of | interrupts/s | p50, ms | p99, ms |\n|---|---|---|---|\n")
					var rates [2][]float64
					var took [2][]float64
					for i := range b.runs {
						if i > 0 && b.late() {
							break
						}
						for way, by := range []string{one, other} {
							rate, times, err := interruptAll(ctx, one, by, runs)
							if err != nil {
								return err
							}
							rates[way], took[way] = append(rates[way], rate), append(took[way], times...)
						}
					}
					for way, name := range []string{"its own replica", "another"} {
						b.printf("| %s | %.0f | %.0f | %.0f |\n", name, median(rates[way]), quantile(took[way], 0.5), quantile(took[way], 0.99))
					}
					return nil
				}, "-store", store)
			}, "-store", store)
		})
	})
}

// interruptAll starts runs on one replica and interrupts them by way of another. It returns interrupts a second, and how long each took in ms.
func interruptAll(ctx context.Context, one, by string, runs int) (rate float64, took []float64, err error) {
	ids := make(chan string, runs)
	errs := make([]error, runs)
	var streams sync.WaitGroup
	for i := range runs {
		streams.Go(func() {
			var run anytime.RunData
			thinks := false
			body := map[string]any{"problem": problem(), "stream": true, "answer_tokens": 4}
			errs[i] = stream(ctx, one+"/solve?budget=4000", body, func(e sse.Event) error {
				if e.Type == anytime.EventRun {
					return json.Unmarshal(e.Data, &run)
				}
				if !thinks && said(e) > 0 {
					thinks = true
					ids <- run.ID
				}
				return nil
			})
			if !thinks {
				errs[i] = errors.Join(errs[i], errors.New("a run ended before it thought"))
				ids <- ""
			}
		})
	}
	var all []string
	for range runs { // until all think
		all = append(all, <-ids)
	}
	work := make(chan string)
	var workers sync.WaitGroup
	var mu sync.Mutex
	began := time.Now()
	for range 16 {
		workers.Go(func() {
			for id := range work {
				began := time.Now()
				e := interrupt(ctx, by, id)
				mu.Lock()
				took, err = append(took, ms(time.Since(began))), errors.Join(err, e)
				mu.Unlock()
			}
		})
	}
	for _, id := range all {
		if id != "" {
			work <- id
		}
	}
	close(work)
	workers.Wait()
	rate = float64(len(took)) / time.Since(began).Seconds()
	streams.Wait()
	if err = errors.Join(err, errors.Join(errs...)); err != nil {
		return 0, nil, fmt.Errorf("interrupts: %w", err)
	}
	return rate, took, nil
}
