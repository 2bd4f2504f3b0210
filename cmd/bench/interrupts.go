package main

import (
	"context"
	"math/rand/v2"
	"time"

	"anytime/internal/decode"
)

const suffix = "...\n\n...\n\n</think>\n\n**Final Answer**\n"

// interrupts measures the time from an interrupt to the first token of the forced answer, by a fork of the thinking and by a prefill
// of prompt and thinking in an empty cache.
func (b *bench) interrupts(ctx context.Context) error {
	b.printf("\n## Interrupt to first summary token\n\nThe thinking decodes; it is cut, closed with the paper's suffix, and the answer's first token awaited. Cold: the same text is\nsent anew and nothing of it is cached, as on a server that cannot fork.\n\n")
	b.printf("| thinking tokens | fork, ms | cold prefill, ms | cold / fork |\n|---|---|---|---|\n")
	engine, err := b.engine(ctx)
	if err != nil {
		return err
	}
	defer engine.Close()
	for _, n := range []int{256, 1024, 4096} {
		forked := func() (float64, error) { return b.forked(ctx, engine, thought(engine, n)) }
		cold := func() (float64, error) { return b.cold(ctx, engine, thought(engine, n)) }
		runs := b.runs
		if n > 1024 {
			runs = b.long()
		}
		c, f, ratio, err := pairs(runs, cold, forked)
		if err != nil {
			return err
		}
		b.printf("| %d | %.1f | %.1f | %.1f |\n", n, f, c, ratio)
	}
	return nil
}

// thought is n tokens that no cache has seen.
func thought(engine decode.Engine, n int) decode.Part {
	const special = 64 // the vocabulary begins with control tokens
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = special + rand.Int32N(int32(engine.Info().Vocabulary-2*special))
	}
	return decode.Part{IDs: ids}
}

// forked returns milliseconds from the interrupt of a thought that is being decoded. All but its last tokens were prefilled: how
// they came into the cache makes no difference.
func (b *bench) forked(ctx context.Context, engine decode.Engine, thought decode.Part) (float64, error) {
	const last = 16
	thought.IDs = thought.IDs[last:]
	s, err := engine.Open(ctx, decode.Request{Prompt: []decode.Part{thought}, Priority: decode.Priority{Class: decode.ClassThinking}})
	if err != nil {
		return 0, err
	}
	defer s.Close()
	if err := s.Decode(decode.Span{MaxTokens: 1000, MinTokens: 1000}); err != nil {
		return 0, err
	}
	for n := 0; n < last; {
		chunk, err := s.Next(ctx)
		if err != nil {
			return 0, err
		}
		n += len(chunk.Tokens)
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

// cold returns milliseconds until the first token behind a prompt that is in no cache.
func (b *bench) cold(ctx context.Context, engine decode.Engine, thought decode.Part) (float64, error) {
	began := time.Now()
	s, err := engine.Open(ctx, decode.Request{Prompt: []decode.Part{thought, decode.Text(suffix)}})
	if err != nil {
		return 0, err
	}
	defer s.Close()
	if err := s.Decode(decode.Span{MaxTokens: 1, MinTokens: 1}); err != nil {
		return 0, err
	}
	err = first(ctx, s)
	return ms(time.Since(began)), err
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
