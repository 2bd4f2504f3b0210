package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"anytime/internal/server/sse"
)

// load is what n streams at once got: tokens/s of all together, and the median time to the first token in ms.
type load struct{ perSecond, first float64 }

// streams compares the server with llama-server at rising numbers of streams.
func (b *bench) streams(ctx context.Context) error {
	const most = 64
	tokens := map[int]int{1: 192, 4: 128, 16: 96, most: 64}
	shared := strconv.Itoa(32768) // KV cells on either side
	return b.llama(ctx, func(there string) error {
		return b.served(ctx, func(here string) error {
			b.printf("Thoughts streamed over HTTP, all asked for at once, each with a prompt of its own, greedy. The server, with SQLite, against llama-server's\n"+
				"`/completion`; each with %d slots and %s KV cells. Tokens/s are those of all streams together, from the first request to the last token.\n\n", most, shared)
			b.printf("| streams, of tokens | tokens/s | llama-server | ratio | first token, ms | llama-server | ratio |\n|---|---|---|---|---|---|---|\n")
			for _, n := range []int{1, 4, 16, most} {
				count := tokens[n]
				if b.quick {
					count /= 2
				}
				var firstHere, firstThere []float64
				side := func(firsts *[]float64, one func(context.Context, int) (brought, error)) func() (float64, error) {
					return func() (float64, error) {
						l, err := together(ctx, n, count, one)
						*firsts = append(*firsts, l.first)
						return l.perSecond, err
					}
				}
				p, err := b.pairs(
					side(&firstHere, func(ctx context.Context, n int) (brought, error) { return thinkHere(ctx, here, n) }),
					side(&firstThere, func(ctx context.Context, n int) (brought, error) { return thinkThere(ctx, there, n) }))
				if err != nil {
					return err
				}
				ratios := make([]float64, len(firstHere))
				for i := range ratios {
					ratios[i] = firstThere[i] / firstHere[i]
				}
				b.printf("| %d × %d | %.1f | %.1f | %.2f | %.0f | %.0f | %.2f |\n", n, count, p.a, p.b, p.ratio, median(firstHere), median(firstThere), median(ratios))
			}
			b.printf("\nA ratio above 1 is in the server's favour.\n")
			return nil
		}, "-ctx", "512", "-cache-tokens", shared, "-sequences", strconv.Itoa(most))
	}, "-c", shared, "-np", strconv.Itoa(most))
}

// brought is what came of a stream: when its first and its last token came, and how many did.
type brought struct {
	first, last time.Time
	tokens      int
}

// together runs n streams at once.
func together(ctx context.Context, n, tokens int, one func(ctx context.Context, tokens int) (brought, error)) (load, error) {
	began, end, all := time.Now(), time.Now(), 0
	firsts, got, errs := make([]float64, n), make([]brought, n), make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			got[i], errs[i] = one(ctx, tokens)
			firsts[i] = ms(got[i].first.Sub(began))
		})
	}
	wg.Wait()
	for _, b := range got {
		if all += b.tokens; b.last.After(end) {
			end = b.last
		}
	}
	return load{float64(all) / end.Sub(began).Seconds(), median(firsts)}, errors.Join(errs...)
}

// thinkHere streams so many tokens of a thought from the server and leaves; a few thoughts end sooner by themselves.
func thinkHere(ctx context.Context, url string, tokens int) (b brought, err error) {
	body := map[string]any{"problem": problem(), "temperature": 0, "stream": true, "answer_tokens": 1}
	err = stream(ctx, fmt.Sprintf("%s/solve?budget=%d", url, tokens+64), body, func(e sse.Event) error {
		n := said(e)
		if n == 0 {
			return nil
		}
		b.came(n)
		if n >= tokens {
			return errEnough
		}
		return nil
	})
	if err == nil && b.tokens < tokens/2 {
		err = fmt.Errorf("the thought ended after %d of %d tokens", b.tokens, tokens)
	}
	return b, err
}

// thinkThere is the same of llama-server.
func thinkThere(ctx context.Context, address string, tokens int) (b brought, err error) {
	body := map[string]any{"prompt": chat(problem()), "n_predict": tokens, "temperature": 0, "ignore_eos": true, "stream": true}
	err = stream(ctx, address+"/completion", body, func(sse.Event) error {
		b.came(b.tokens + 1)
		return nil
	})
	if err == nil && b.tokens < tokens {
		err = fmt.Errorf("llama-server said %d of %d tokens", b.tokens, tokens)
	}
	return b, err
}

// came notes that there are now so many tokens.
func (b *brought) came(tokens int) {
	if b.last = time.Now(); b.tokens == 0 {
		b.first = b.last
	}
	b.tokens = tokens
}

// chat is a question as the model's template renders it, with the thinking begun.
func chat(question string) string {
	return "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n" + question + "<|im_end|>\n<|im_start|>assistant\n<think>\n"
}
