package main

import (
	"flag"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/hybridgroup/yzma/pkg/llama"
)

const bareBatch = 512

// bare decodes tokens greedily in a plain loop around llama.cpp and prints tokens per second: what the machine can do at most.
func bare(args []string) error {
	flags := flag.NewFlagSet("bare", flag.ContinueOnError)
	model := flags.String("model", "", "GGUF file")
	lib := flags.String("engine-lib", "", "folder of the llama.cpp libraries")
	threads := flags.Int("threads", 1, "threads")
	prompt := flags.String("prompt", "", "prompt, as the server tokenizes it")
	n := flags.Int("tokens", 256, "tokens to decode")
	if err := flags.Parse(args); err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := llama.Load(*lib); err != nil {
		return fmt.Errorf("load llama.cpp: %w", err)
	}
	llama.LogSet(llama.LogSilent())
	llama.Init()
	defer llama.Close()
	m, err := llama.ModelLoadFromFile(*model, llama.ModelDefaultParams())
	if err != nil {
		return fmt.Errorf("load the model: %w", err)
	}
	params := llama.ContextDefaultParams()
	params.NCtx, params.NBatch, params.NThreads, params.NThreadsBatch = 8192, bareBatch, int32(*threads), int32(*threads)
	ctx, err := llama.InitFromModel(m, params)
	if err != nil {
		return fmt.Errorf("open a context: %w", err)
	}
	vocab := llama.ModelGetVocab(m)
	vocabulary := int(llama.VocabNTokens(vocab))
	tokens := llama.Tokenize(vocab, *prompt, true, true)
	if len(tokens) == 0 || len(tokens) > bareBatch {
		return fmt.Errorf("the prompt has %d tokens; it must have 1 to %d", len(tokens), bareBatch)
	}
	batch := llama.BatchInit(bareBatch, 0, 1)
	defer llama.BatchFree(batch) //nolint:errcheck // the process ends
	position := 0
	decode := func(tokens []llama.Token) (llama.Token, error) {
		if err := batch.Clear(); err != nil {
			return 0, err
		}
		for i, t := range tokens {
			if err := batch.Add(t, llama.Pos(position), []llama.SeqId{0}, i == len(tokens)-1); err != nil {
				return 0, err
			}
			position++
		}
		if _, err := llama.Decode(ctx, batch); err != nil {
			return 0, err
		}
		logits, err := llama.GetLogitsIth(ctx, int32(len(tokens)-1), vocabulary)
		if err != nil {
			return 0, err
		}
		return llama.Token(slices.Index(logits, slices.Max(logits))), nil
	}
	next, err := decode(tokens)
	if err != nil {
		return err
	}
	began := time.Now()
	for range *n - 1 {
		if next, err = decode([]llama.Token{next}); err != nil {
			return err
		}
	}
	fmt.Printf("%.3f\n", float64(*n-1)/time.Since(began).Seconds())
	return nil
}
