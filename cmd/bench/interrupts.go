package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"anytime/internal/anytime"
	"anytime/internal/decode"
	"anytime/internal/server/sse"
)

const suffix = "...\n\n...\n\n</think>\n\n**Final Answer**\n"

// first waits for a sequence's first token.
func first(ctx context.Context, s decode.Sequence) error {
	for {
		chunk, err := s.Next(ctx)
		if err != nil {
			return err
		}
		if len(chunk.Tokens) > 0 {
			return nil
		}
		if chunk.End != "" {
			return fmt.Errorf("the span ended with %q before its first token", chunk.End)
		}
	}
}

// lastThought is how many tokens of a thought are decoded before it is interrupted. The others come as a part of the prompt: how they
// got into the cache makes no difference.
const lastThought = 16

// interrupts measures the time from an interrupt to the first token of the forced answer, as a client has it.
func (b *bench) interrupts(ctx context.Context) error {
	return b.llama(ctx, func(there string) error {
		return b.served(ctx, func(here string) error {
			b.printf("A thought decodes; its client interrupts it and awaits the first token of the answer behind the paper's closing suffix, all over HTTP and\n" +
				"through the store. Cold: the same text in no cache, as on a server that cannot fork. llama-server: its request is broken off, and it is asked for\n" +
				"text and suffix with its cache of them.\n\n")
			b.printf("| prompt and thinking, tokens | interrupt, ms | cold prefill, ms | cold / interrupt | llama-server, warm, ms | llama-server / interrupt |\n|---|---|---|---|---|---|\n")
			for _, n := range []int{256, 1024, 4096} {
				var colds, interrupted, again, overCold, overAgain []float64
				for i := range b.runs {
					if b.late() && (i > 0 || n > 1024) {
						break
					}
					question := "Tell a long story with these words:" + words(n-50)
					cold, err := coldHere(ctx, here, question)
					if err != nil {
						return err
					}
					forced, err := interruptHere(ctx, here, question)
					if err != nil {
						return err
					}
					asked, err := askAgain(ctx, there, question)
					if err != nil {
						return err
					}
					colds, interrupted, again = append(colds, cold), append(interrupted, forced), append(again, asked)
					overCold, overAgain = append(overCold, cold/forced), append(overAgain, asked/forced)
				}
				if colds == nil {
					b.printf("| %d | not measured, for want of time |\n", n)
					continue
				}
				b.printf("| %d | %.0f | %.0f | %.1f | %.0f | %.2f |\n", n, median(interrupted), median(colds), median(overCold), median(again), median(overAgain))
			}
			return nil
		})
	}, "-c", "8192", "-np", "1")
}

// coldHere returns milliseconds to the first token of an answer to a question that is in no cache.
func coldHere(ctx context.Context, url, question string) (took float64, err error) {
	began := time.Now()
	err = stream(ctx, url+"/solve?budget=0", map[string]any{"problem": question, "temperature": 0, "stream": true, "answer_tokens": 1}, func(e sse.Event) error {
		if e.Type == anytime.EventAnswer {
			took = ms(time.Since(began))
			return errEnough
		}
		return nil
	})
	if err == nil && took == 0 {
		err = errors.New("no answer came")
	}
	return took, err
}

// interruptHere returns milliseconds from the interrupt of a thought to the first token of its answer.
func interruptHere(ctx context.Context, url, question string) (took float64, err error) {
	var run anytime.RunData
	var interrupted time.Time
	done := make(chan error, 1)
	err = stream(ctx, url+"/solve?budget=2000", map[string]any{"problem": question, "temperature": 0, "stream": true, "answer_tokens": 1}, func(e sse.Event) error {
		switch {
		case e.Type == anytime.EventRun:
			return json.Unmarshal(e.Data, &run)
		case interrupted.IsZero() && said(e) >= lastThought:
			interrupted = time.Now()
			go func() { done <- interrupt(ctx, url, run.ID) }()
		case e.Type == anytime.EventAnswer && interrupted.IsZero():
			return errors.New("the thought ended by itself")
		case e.Type == anytime.EventAnswer && took == 0:
			took = ms(time.Since(interrupted))
		}
		return nil
	})
	if !interrupted.IsZero() {
		err = errors.Join(err, <-done)
	}
	if err == nil && took == 0 {
		err = errors.New("no answer came")
	}
	return took, err
}

func interrupt(ctx context.Context, url, id string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/solve/"+id+"/interrupt", nil)
	if err != nil {
		return err
	}
	r, err := client.Do(req)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if data, err := io.ReadAll(r.Body); err != nil || r.StatusCode != http.StatusOK {
		return errors.Join(err, fmt.Errorf("interrupt: status %d: %s", r.StatusCode, data))
	}
	return nil
}

// askAgain breaks off a thought on llama-server, asks for it again with the suffix behind it, and returns the milliseconds to what comes then.
func askAgain(ctx context.Context, address, question string) (took float64, err error) {
	prompt := chat(question)
	tokens := 0
	var thought strings.Builder
	ask := func(prompt string, n int, each func(sse.Event) error) error {
		return stream(ctx, address+"/completion", map[string]any{
			"prompt": prompt, "n_predict": n, "temperature": 0, "ignore_eos": true, "stream": true, "cache_prompt": true, "id_slot": 0,
		}, each)
	}
	err = ask(prompt, 2000, func(e sse.Event) error {
		var piece struct{ Content string }
		if err := json.Unmarshal(e.Data, &piece); err != nil {
			return err
		}
		thought.WriteString(piece.Content)
		if tokens++; tokens >= lastThought {
			return errEnough
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	err = ask(prompt+thought.String()+suffix, 1, func(sse.Event) error {
		took = ms(time.Since(began))
		return errEnough
	})
	return took, err
}
