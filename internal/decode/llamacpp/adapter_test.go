package llamacpp_test

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"anytime/internal/decode"
	"anytime/internal/decode/llamacpp"
	"anytime/internal/gguf/tiny"
)

func adapterFile(t *testing.T, seed uint64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "adapter.gguf")
	if err := tiny.WriteAdapter(path, seed, ""); err != nil {
		t.Fatal(err)
	}
	return path
}

func load(t *testing.T, e *llamacpp.Engine, name, path string) {
	t.Helper()
	if err := e.LoadAdapter(t.Context(), name, path, 1); err != nil {
		t.Fatal(err)
	}
}

func with(t *testing.T, e *llamacpp.Engine, adapter string) decode.Sequence {
	t.Helper()
	s, err := e.Open(t.Context(), decode.Request{Prompt: []decode.Part{decode.Text("What is one and two?")}, Adapter: adapter})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func say(t *testing.T, e *llamacpp.Engine, adapter string) result {
	t.Helper()
	s := with(t, e, adapter)
	defer s.Close()
	span(t, s, 30)
	return finish(t, s)
}

func TestAdapters(t *testing.T) {
	e := open(t)
	bare := say(t, e, "")
	one, two := adapterFile(t, 1), adapterFile(t, 2)
	load(t, e, "a", one)
	load(t, e, "b", two)
	a, b := say(t, e, "a"), say(t, e, "b")
	if a.text() == bare.text() || b.text() == bare.text() || a.text() == b.text() {
		t.Errorf("bare %q, a %q, b %q", bare.text(), a.text(), b.text())
	}
	// Equal prompts share no cache over different weights.
	equal(t, "bare again", say(t, e, ""), bare)
	equal(t, "a again", say(t, e, "a"), a)

	// All at once, and forks keep their parents' weights.
	var list []decode.Sequence
	for range 3 {
		for _, name := range []string{"", "a", "b"} {
			s := with(t, e, name)
			span(t, s, 30)
			f, err := s.Fork(10, decode.ForkOptions{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			span(t, f, 20)
			list = append(list, s, f)
		}
	}
	for i, s := range list {
		want := []result{bare, a, b}[i/2%3]
		if i%2 == 1 {
			want.tokens = want.tokens[10:]
		}
		equal(t, "all at once", finish(t, s), want)
	}

	// A reload under the same name: the old sequence keeps its weights, new ones have the new.
	old := with(t, e, "a")
	span(t, old, 10)
	first := finish(t, old)
	load(t, e, "a", two)
	equal(t, "reloaded", say(t, e, "a"), b)
	span(t, old, 20)
	equal(t, "old weights", result{tokens: append(first.tokens, finish(t, old).tokens...), end: decode.EndLimit}, a)

	// A replaced child has the same, though the files are gone.
	os.Remove(one)
	os.Remove(two)
	span(t, old, 100)
	kill(t, e, syscall.SIGKILL)
	finish(t, old)
	equal(t, "after a crash", say(t, e, "a"), b)

	if names := e.AdapterNames(); !slices.Equal(names, []string{"a", "b"}) {
		t.Errorf("names %q", names)
	}
	if err := e.UnloadAdapter(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Open(t.Context(), decode.Request{Prompt: []decode.Part{decode.Text("x")}, Adapter: "a"}); !errors.Is(err, decode.ErrUnknownAdapter) {
		t.Errorf("unloaded adapter: %v", err)
	}
	if err := e.UnloadAdapter(t.Context(), "a"); !errors.Is(err, decode.ErrUnknownAdapter) {
		t.Errorf("unloaded twice: %v", err)
	}
	equal(t, "bare at the end", say(t, e, ""), bare)
}

// An adapter that loses its name while a sequence decodes with it is freed only afterwards.
func TestAdapterUnloadedInUse(t *testing.T) {
	e := open(t)
	load(t, e, "a", adapterFile(t, 1))
	want := say(t, e, "a")
	s := with(t, e, "a")
	span(t, s, 10)
	first := finish(t, s)
	if err := e.UnloadAdapter(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	span(t, s, 20)
	equal(t, "unloaded in use", result{tokens: append(first.tokens, finish(t, s).tokens...), end: decode.EndLimit}, want)
	s.Close()
	say(t, e, "")
	if e.Stats().Restarts != 0 {
		t.Error("the child died")
	}
}

func TestAdapterRefused(t *testing.T) {
	e := open(t)
	good, junk := adapterFile(t, 1), filepath.Join(t.TempDir(), "junk.gguf")
	if err := os.WriteFile(junk, []byte("GGUF junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "qwen2.gguf")
	if err := tiny.WriteAdapter(other, 1, "qwen2"); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		name, path string
		scale      float32
		want       string
	}{
		"no name":            {"", good, 1, "name"},
		"no file":            {"a", "nowhere.gguf", 1, "nowhere.gguf"},
		"junk":               {"a", junk, 1, "junk.gguf"},
		"a model":            {"a", modelPath, 1, "general.type"},
		"other architecture": {"a", other, 1, "general.architecture"},
		"scale 0":            {"a", good, 0, "scale"},
		"scale NaN":          {"a", good, float32(math.NaN()), "scale"},
	} {
		if err := e.LoadAdapter(t.Context(), test.name, test.path, test.scale); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v does not name %q", name, err, test.want)
		}
	}
	if names := e.AdapterNames(); len(names) != 0 {
		t.Errorf("names %q", names)
	}
	say(t, e, "")
}
