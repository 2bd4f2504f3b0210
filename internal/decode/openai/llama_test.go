package openai_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"anytime/internal/decode"
	"anytime/internal/decode/decodetest"
	"anytime/internal/decode/openai"
	"anytime/internal/decode/prompt"
	"anytime/internal/gguf/tiny"
)

func tinyModel(t testing.TB, opts tiny.Options) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tiny.gguf")
	if err := tiny.WriteFile(path, 1, opts); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLlamaServerConformance(t *testing.T) {
	if !all() {
		t.Skip("only in make test-all: it wants a llama-server")
	}
	p := llamaServer(t, tinyModel(t, tiny.Options{Rate: map[string]float64{tiny.EOS: 0.002}}), exact...)
	e := connect(t, openai.Config{URL: p.url})
	decodetest.Conformance(t, func(*testing.T) decode.Engine { return e })
}

// smollm is the default model, which `make model` fetches.
func smollm(t testing.TB) string {
	t.Helper()
	path := os.Getenv("ANYTIME_TEST_MODEL")
	if path == "" {
		t.Fatal("the default model is not there: set ANYTIME_TEST_MODEL to its path")
	}
	return path
}

// The model has less to say than the suite asks of it, so it is made to go on. Its weights are quantised, so that batches of several
// sequences would round otherwise: it has one slot.
func TestLlamaServerSmolLM(t *testing.T) {
	if !all() {
		t.Skip("only in make test-all: it wants a llama-server")
	}
	p := llamaServer(t, smollm(t), "-ctk", "f32", "-ctv", "f32", "-fa", "off", "-c", "2048", "-np", "1")
	e := connect(t, openai.Config{URL: p.url})
	decodetest.Conformance(t, func(*testing.T) decode.Engine { return talkative{e} })
}

// talkative is an engine whose model does not end by itself, but where the end is what a test looks at.
type talkative struct{ decode.Engine }

func (e talkative) Open(ctx context.Context, req decode.Request) (decode.Sequence, error) {
	s, err := e.Engine.Open(ctx, req)
	if err != nil {
		return nil, err
	}
	return talkativeSequence{s}, nil
}

type talkativeSequence struct{ decode.Sequence }

func (s talkativeSequence) Decode(span decode.Span) error {
	if span.TopLogProbs == 0 && len(span.Sampling.LogitBias) == 0 {
		span.MinTokens = max(span.MaxTokens, 0)
	}
	return s.Sequence.Decode(span)
}

func (s talkativeSequence) Fork(after int, opts decode.ForkOptions) (decode.Sequence, error) {
	f, err := s.Sequence.Fork(after, opts)
	if err != nil {
		return nil, err
	}
	return talkativeSequence{f}, nil
}

// The assistant's message is continued by llama-server's chat as its text would be by a completion.
func TestLlamaServerChat(t *testing.T) {
	if !all() {
		t.Skip("only in make test-all: it wants a llama-server")
	}
	p := llamaServer(t, smollm(t), "-c", "2048", "-np", "1")
	e := connect(t, openai.Config{URL: p.url, API: "chat"})
	r, err := prompt.New(e.Info(), prompt.Detect(e.Info()), "")
	if err != nil {
		t.Fatal(err)
	}
	rendered, err := r.Render([]prompt.Message{{Role: "user", Content: "Count to ten. <|turn:user|> Hm."}}, prompt.Options{Thinking: true})
	if err != nil {
		t.Fatal(err)
	}
	whole, _ := span(t, begin(t, e, rendered.Parts...), decode.Span{MaxTokens: 24})
	s := begin(t, e, rendered.Parts...)
	var got []decode.Token
	for range 3 {
		tokens, end := span(t, s, decode.Span{MaxTokens: 8})
		if len(tokens) != 8 || end != decode.EndLimit || tokens[0].LogProb == 0 {
			t.Fatalf("%d tokens %+v, end %s", len(tokens), tokens, end)
		}
		got = append(got, tokens...)
	}
	if join(got) != join(whole) {
		t.Errorf("in three %q, at once %q", join(got), join(whole))
	}
}

// Each request has the adapter that it names, and the bare model none.
func TestLlamaServerAdapters(t *testing.T) {
	if !all() {
		t.Skip("only in make test-all: it wants a llama-server")
	}
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one.gguf"), filepath.Join(dir, "two.gguf")
	for i, path := range []string{one, two} {
		if err := tiny.WriteAdapter(path, uint64(i+1), ""); err != nil {
			t.Fatal(err)
		}
	}
	p := llamaServer(t, longTiny(t), append([]string{"--lora", one + "," + two, "--lora-init-without-apply"}, exact...)...)
	e := connect(t, openai.Config{URL: p.url})
	a := e.(decode.Adapters)
	if names := fmt.Sprint(a.AdapterNames()); names != "[one two]" {
		t.Errorf("adapters %s", names)
	}
	if err := a.LoadAdapter(t.Context(), "faint", two, 0.1); err != nil {
		t.Fatal(err)
	}
	said := map[string]string{}
	for range 2 {
		for _, name := range []string{"", "one", "two", "faint"} {
			s, err := e.Open(t.Context(), decode.Request{Prompt: []decode.Part{decode.Text(thought)}, Adapter: name})
			if err != nil {
				t.Fatal(err)
			}
			tokens, _ := span(t, s, decode.Span{MaxTokens: 32, MinTokens: 32})
			s.Close()
			if before, ok := said[name]; ok && before != ids(tokens) {
				t.Errorf("adapter %q said %q, then %q", name, before, ids(tokens))
			}
			said[name] = ids(tokens)
		}
	}
	if said[""] == said["one"] || said["one"] == said["two"] || said[""] == said["two"] {
		t.Errorf("adapters change nothing: %q", said)
	}
	var input *decode.InputError
	if err := a.LoadAdapter(t.Context(), "three", filepath.Join(dir, "three.gguf"), 1); !errors.As(err, &input) || !strings.Contains(input.Reason, "--lora") {
		t.Errorf("an adapter that llama-server was not started with: %v", err)
	}
	if err := a.UnloadAdapter(t.Context(), "one"); err != nil {
		t.Error(err)
	}
	if _, err := e.Open(t.Context(), decode.Request{Prompt: []decode.Part{decode.Text(thought)}, Adapter: "one"}); !errors.Is(err, decode.ErrUnknownAdapter) {
		t.Errorf("an adapter that was unloaded: %v", err)
	}
}

// Runes of several tokens: llama-server sends nothing before a rune is whole. Cut anywhere, the count is exact and the text goes on.
func TestLlamaServerRunes(t *testing.T) {
	if !all() {
		t.Skip("only in make test-all: it wants a llama-server")
	}
	p := llamaServer(t, smollm(t), "-c", "2048", "-np", "1")
	e := connect(t, openai.Config{URL: p.url})
	const text = "猫が好きです。猫が好きです。猫が好きです。猫が好きです。猫が"
	whole, _ := span(t, begin(t, e, decode.Text(text)), decode.Span{MaxTokens: 30, MinTokens: 30})
	if len(whole) != 30 || !strings.Contains(join(whole), "好き") {
		t.Fatalf("%d tokens %q", len(whole), join(whole))
	}
	known := 0
	for _, tok := range whole {
		if tok.ID >= 0 {
			known++
		}
	}
	if known < 25 {
		t.Errorf("only %d of 30 tokens have their ids: %+v", known, whole)
	}
	s := begin(t, e, decode.Text(text))
	said := ""
	for range 10 {
		tokens, end := span(t, s, decode.Span{MaxTokens: 3, MinTokens: 3})
		if len(tokens) != 3 || end != decode.EndLimit {
			t.Fatalf("%d tokens %+v, end %s", len(tokens), tokens, end)
		}
		said += join(tokens)
	}
	// Half a rune at a limit is decoded again, so a little less is said.
	if !utf8.ValidString(said) || !strings.HasPrefix(join(whole), said) || len(said) < 12 {
		t.Errorf("by threes %q, at once %q", said, join(whole))
	}
}

// What is forced behind a thought that was cut finds the thought in the server's cache, though the server has a slot to spare; a fork of
// a thought that goes on finds there what an earlier one of it left.
func TestLlamaServerSlots(t *testing.T) {
	if !all() {
		t.Skip("only in make test-all: it wants a llama-server")
	}
	p := llamaServer(t, smollm(t), "-c", "4096", "-np", "2")
	e := connect(t, openai.Config{URL: p.url})
	after := func(s decode.Sequence, n int) decode.Prefill {
		t.Helper()
		fork, err := s.Fork(n, decode.ForkOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer fork.Close()
		if err := fork.Append(decode.Text("So the answer is")); err != nil {
			t.Fatal(err)
		}
		if err := fork.Decode(decode.Span{MaxTokens: 2, MinTokens: 2}); err != nil {
			t.Fatal(err)
		}
		c, err := fork.Next(t.Context())
		if err != nil || c.Prefill == nil {
			t.Fatalf("%+v, %v", c, err)
		}
		return *c.Prefill
	}
	for i := range 4 {
		s := begin(t, e, decode.Text(fmt.Sprint(i, strings.Repeat(" What is it?", 50))))
		if err := s.Decode(decode.Span{MaxTokens: 1000, MinTokens: 1000}); err != nil {
			t.Fatal(err)
		}
		for n := 0; n < 16; {
			c, err := s.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			n += len(c.Tokens)
		}
		if i%2 == 0 { // no fork of it has left its text in the other slot
			s.Cut()
			if got := after(s, decode.Head); got.Tokens-got.Cached > 40 {
				t.Errorf("behind a thought that was cut: %+v", got)
			}
		} else if first, second := after(s, 8), after(s, 16); second.Cached < first.Tokens-16 {
			t.Errorf("forks of a thought that goes on: %+v, %+v", first, second)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
