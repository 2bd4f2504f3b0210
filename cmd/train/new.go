package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"strings"

	"anytime/internal/decode/prompt"
	"anytime/internal/gguf"
	"anytime/internal/gguf/scratch"
	"anytime/internal/train/task"
)

var newCommand = command{
	name: "new", about: "Write a model with random weights, to be trained from scratch",
	manual: `
The vocabulary is the 256 bytes, the merges that are the most frequent in the questions and answers of -data (JSON lines as train generate
-sft writes them), and the special tokens of a chat with thoughts; digits are single tokens. The defaults are the project's own
reasoner. The model sees the last question of a chat only.

`,
	setup: func(flags *flag.FlagSet) runner {
		var n newModel
		c := &n.config
		flags.StringVar(&n.out, "out", "", "GGUF `file` to write; needed")
		flags.StringVar(&n.data, "data", "", "`file` of examples to learn merges from; without, all tokens are bytes")
		flags.IntVar(&n.merges, "merges", 250, "`merges` at most, 0 to 100000")
		flags.StringVar(&c.Architecture, "arch", "llama", "`architecture`: llama, qwen2 or qwen3")
		flags.StringVar(&c.Name, "name", "Reasoner", "`name` of the model")
		flags.IntVar(&c.ContextTokens, "ctx", 2048, "`tokens` of the longest sequence")
		flags.IntVar(&c.Layers, "layers", 4, "`layers`")
		flags.IntVar(&c.Width, "width", 128, "`width` of the embeddings")
		flags.IntVar(&c.FeedForward, "ffn", 0, "`width` of the hidden layer; 0: three times that of the embeddings")
		flags.IntVar(&c.Heads, "heads", 4, "`heads` of attention")
		flags.IntVar(&c.KVHeads, "kv-heads", 0, "`heads` with keys and values of their own, which divide the heads; 0: all")
		flags.IntVar(&c.HeadWidth, "head-width", 0, "`width` of a head; 0: the width of the embeddings, divided by the heads")
		flags.BoolVar(&c.Tied, "tied", false, "let the embeddings be the output matrix, too")
		flags.StringVar(&n.typ, "type", "f32", "`type` of the matrices: f32, f16 or q8_0; for training f32")
		flags.Uint64Var(&n.seed, "seed", 1, "`seed` of the weights")
		return n.run
	},
}

type newModel struct {
	config         gguf.Config
	out, data, typ string
	merges         int
	seed           uint64
}

func (n *newModel) run(_ context.Context, args []string, stdout, _ io.Writer) error {
	if err := noArguments(args); err != nil {
		return err
	}
	types := map[string]gguf.Type{"f32": gguf.F32, "f16": gguf.F16, "q8_0": gguf.Q8_0}
	as, ok := types[n.typ]
	switch {
	case n.out == "":
		return usagef("-out is needed: name the GGUF file to write")
	case !ok:
		return usagef("-type is %.32q: it must be f32, f16 or q8_0", n.typ)
	case n.merges < 0 || n.merges > 100_000:
		return usagef("-merges is %d: it must be from 0 to 100000", n.merges)
	}
	c := n.config
	c.FeedForward = cmp.Or(c.FeedForward, 3*c.Width)
	c.KVHeads = cmp.Or(c.KVHeads, c.Heads)
	c.HeadWidth = cmp.Or(c.HeadWidth, c.Width/max(c.Heads, 1))
	c.RopeBase, c.NormEps = 10000, 1e-5
	var merges []scratch.Merge
	if n.data != "" {
		texts, err := n.texts()
		if err != nil {
			return err
		}
		merges = scratch.Learn(texts, n.merges)
	}
	vocabulary := scratch.Tokenizer(merges)
	vocabulary.ChatTemplate = scratch.ChatTemplate
	if err := scratch.WriteFile(n.out, n.seed, c, vocabulary, as); err != nil {
		return err
	}
	weights := uint64(0)
	for _, w := range c.Weights(len(vocabulary.Tokens)) {
		size := uint64(1)
		for _, d := range w.Dims {
			size *= d
		}
		weights += size
	}
	fmt.Fprintf(stdout, "%s: %d weights, %d tokens\n", n.out, weights, len(vocabulary.Tokens))
	return nil
}

// texts are what merges are learned from: the words of the examples. A formula is left as it is, sign by sign.
func (n *newModel) texts() ([]string, error) {
	examples, err := task.ReadExamplesFile(n.data)
	if err != nil {
		return nil, err
	}
	family, err := prompt.Lookup("think")
	if err != nil {
		return nil, err
	}
	var texts []string
	for _, e := range examples {
		summary := e.Summary
		if strings.HasPrefix(summary, `\boxed{`) {
			summary = `\boxed`
		}
		texts = append(texts, "user", "assistant", e.Text, summary)
		for _, part := range family.Cut(prompt.StylePaper, "") {
			texts = append(texts, strings.Split(part.Text, family.Close[0])...)
		}
	}
	return texts, nil
}
