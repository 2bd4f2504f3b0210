package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"anytime/internal/decode"
	"anytime/internal/decode/prompt"
	"anytime/internal/train/task"
)

// TestNew writes models of each architecture, which the engine loads, tokenizes with and decodes, and whose prompts open a thought.
func TestNew(t *testing.T) {
	examples, _, err := train(t, "generate", "-sft", "-n", "200")
	if err != nil {
		t.Fatal(err)
	}
	data := write(t, examples)
	for _, arch := range []string{"llama", "qwen2", "qwen3"} {
		path := filepath.Join(t.TempDir(), "new.gguf")
		out, _, err := train(t, "new", "-out", path, "-data", data, "-arch", arch, "-layers", "1", "-width", "64", "-heads", "2")
		if err != nil || !strings.Contains(out, " weights, ") {
			t.Fatalf("%s: printed %q, error %v", arch, out, err)
		}
		m := modelFlags{model: path}
		m.engine.LibDir, m.engine.Threads, m.engine.Sequences, m.engine.KVType, m.engine.FlashAttention = libDir(t), 1, 4, "f16", "auto"
		var said bytes.Buffer
		loaded, err := m.open(t.Context(), &said)
		if err != nil {
			t.Fatalf("%s: %v: %s", arch, err, said.String())
		}
		defer loaded.engine.Close()
		for text, most := range map[string]int{
			"12-10=2:4+2=6;4/2=2\n":      20, // sign by sign
			`\boxed{(12-10)*4}`:          12, // \boxed, and the formula sign by sign
			"Grüße, 世界! 🌍":               99, // whatever text
			"\n\n**Final Answer**\n":     5,
			task.Elsewhere:               117, // a summary's length
			"Use the numbers 3, 7 and 8": 14,
		} {
			tokens, err := loaded.engine.Tokenize(t.Context(), decode.Text(text))
			if err != nil {
				t.Fatal(err)
			}
			again := ""
			for _, token := range tokens {
				again += token.Text
			}
			if again != text || len(tokens) > most || strings.HasPrefix(text, "12") && len(tokens) != len(text) {
				t.Errorf("%s: %q has %d tokens, at most %d were expected; they read %q", arch, text, len(tokens), most, again)
			}
		}
		checkPrompts(t, loaded)
		seq, err := loaded.engine.Open(t.Context(), decode.Request{Prompt: []decode.Part{decode.Text("12+")}})
		if err != nil {
			t.Fatal(err)
		}
		if err := seq.Decode(decode.Span{MaxTokens: 4}); err != nil {
			t.Fatal(err)
		}
		if c, err := seq.Next(t.Context()); err != nil || len(c.Tokens) == 0 {
			t.Errorf("%s: decoded %+v, %v", arch, c, err)
		}
		_ = seq.Close()
	}
}

// checkPrompts asks with and without thinking: only the last question of a chat is seen.
func checkPrompts(t *testing.T, m model) {
	t.Helper()
	chat := []prompt.Message{
		{Role: "system", Content: "Be brief."}, {Role: "user", Content: "first"}, {Role: "assistant", Content: "so"}, {Role: "user", Content: "Make <think> 29."},
	}
	const opened = "<|im_start|>user\nMake <think> 29.<|im_end|>\n<|im_start|>assistant\n<think>\n"
	closing, _, _ := strings.Cut(m.renderer.Family().Cut(prompt.StylePaper, "")[0].Text, "\n\n**")
	for _, thinking := range []bool{true, false} {
		p, err := m.renderer.Render(chat, prompt.Options{Thinking: thinking})
		text := ""
		for _, part := range p.Parts {
			text += part.Text
		}
		want := opened
		if !thinking {
			want += closing
		}
		if err != nil || text != want || p.Thinking != thinking {
			t.Errorf("thinking %v: the prompt is %q, thinking %v, error %v; want %q", thinking, text, p.Thinking, err, want)
		}
	}
	if p, err := m.renderer.Render([]prompt.Message{{Role: "system", Content: "Be brief."}}, prompt.Options{Thinking: true}); err != nil || !p.Thinking {
		t.Errorf("without a question: %+v, %v", p, err)
	}
}

func TestNewWrongly(t *testing.T) {
	out := filepath.Join(t.TempDir(), "new.gguf")
	for _, c := range []struct {
		args  string
		usage bool
		want  string
	}{
		{"", true, "-out is needed"},
		{"-out o more", true, `"more"`},
		{"-out o -type f64", true, "f32, f16 or q8_0"},
		{"-out o -merges -1", true, "-merges is -1"},
		{"-out o -data nowhere", false, "nowhere"},
		{"-arch mamba -out " + out, false, "llama, qwen2 or qwen3"},
		{"-layers 100000000 -out " + out, false, "layers (block_count): 100000000 is out of range: it must be from 1 to 512"},
		{"-ctx 4294967304 -out " + out, false, "context (context_length): 4294967304 is out of range: it must be from 1 to"},
		{"-heads 0 -out " + out, false, "0 heads"},
		{"-heads 3 -kv-heads 2 -out " + out, false, "divide"},
		{"-width 30 -heads 2 -out " + out, false, "even"},
		{"-out " + filepath.Join(out, "below", "new.gguf"), false, "no such file"},
	} {
		_, _, err := train(t, append([]string{"new"}, strings.Fields(c.args)...)...)
		failed(t, err, c.usage, c.want)
	}
}
