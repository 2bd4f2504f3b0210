package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// votes measures what four votes on one thought take, against four whole requests.
func (b *bench) votes(ctx context.Context) error {
	const votes, answer = 4, 32
	tokens := 512
	if b.quick {
		tokens = 256
	}
	return b.served(ctx, func(url string) error {
		b.printf("A thought of %d tokens and %d answers of at most %d, against as many requests, each with a thought of its own.\n\n", tokens, votes, answer)
		b.printf("| four whole requests | they take, s | four votes on one thought, s | ratio |\n|---|---|---|---|\n")
		ask := func(ctx context.Context, text string, votes int) error {
			var reply struct {
				Usage struct {
					Thinking int `json:"thinking_tokens"`
				} `json:"usage"`
			}
			body := map[string]any{"problem": text, "temperature": 0, "votes": votes, "answer_tokens": answer, "budget": tokens}
			if err := postJSON(ctx, url+"/solve", body, &reply); err != nil {
				return err
			}
			if reply.Usage.Thinking < tokens {
				return fmt.Errorf("the thought ended after %d of %d tokens", reply.Usage.Thinking, tokens)
			}
			return nil
		}
		took := func(f func() error) func() (float64, error) {
			return func() (float64, error) {
				began := time.Now()
				err := f()
				return time.Since(began).Seconds(), err
			}
		}
		for _, way := range []struct {
			name   string
			atOnce int
		}{{"one after another", 1}, {"at once", votes}} {
			p, err := b.pairs(took(func() error {
				errs := make([]error, way.atOnce)
				var wg sync.WaitGroup
				for i := range errs {
					wg.Go(func() {
						for range votes / way.atOnce {
							errs[i] = errors.Join(errs[i], ask(ctx, problem(), 1))
						}
					})
				}
				wg.Wait()
				return errors.Join(errs...)
			}), took(func() error { return ask(ctx, problem(), votes) }))
			if err != nil {
				return err
			}
			b.printf("| %s | %.1f | %.1f | %.2f |\n", way.name, p.a, p.b, p.ratio)
		}
		return nil
	})
}
