package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"anytime/internal/anytime"
	"anytime/internal/decode"
	"anytime/internal/decode/decodetest"
	"anytime/internal/decode/prompt"
)

func TestHashModel(t *testing.T) {
	dir := t.TempDir()
	hash := func(path string) string {
		t.Helper()
		sum, err := hashModel(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	files := map[string]string{
		"a.gguf": "1", "b.gguf": "1", "c.gguf": "2", "s[x]-00001-of-00002.gguf": "1", "s[x]-00002-of-00002.gguf": "2", "s-00001-of-00002.gguf": "1", "s-00002-of-00002.gguf": "3",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	split := hash("s[x]-00001-of-00002.gguf")
	if hash("a.gguf") != hash("b.gguf") || hash("a.gguf") == hash("c.gguf") || split == hash("a.gguf") || split == hash("s-00001-of-00002.gguf") {
		t.Error("hashes tell weights apart badly")
	}
	if _, err := hashModel(filepath.Join(dir, "none.gguf")); err == nil {
		t.Error("a missing file has a hash")
	}
}

const problems = `{"id": "a", "problem": "What is 1 + 2?", "answers": ["3"]}` + "\n" + `{"id": "b", "problem": "What is 2 + 2?", "answers": ["5"]}` + "\n"

func TestGateSettings(t *testing.T) {
	cfg := defaults()
	cfg.GateBudgets = "8, 16"
	g, err := newGate(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	if e, err := g.Evaluation(nil, nil); e != nil || err != nil {
		t.Errorf("without problems: %+v, %v", e, err)
	}
	cfg.GateProblems = writeFile(t, problems)
	if g, err = newGate(&cfg); err != nil {
		t.Fatal(err)
	}
	keys := map[string]bool{}
	for _, row := range []struct {
		lines   string
		budgets []int
	}{{"", nil}, {problems, []int{8, 16}}, {"", []int{8, 16, 32}}, {problems[:strings.Index(problems, "\n")], nil}} {
		var lines []byte
		if row.lines != "" {
			lines = []byte(row.lines)
		}
		e, err := g.Evaluation(lines, row.budgets)
		if err != nil {
			t.Fatal(err)
		}
		keys[e.Key] = true
	}
	if len(keys) != 3 {
		t.Errorf("%d keys of three different evaluations", len(keys))
	}
	var input *decode.InputError
	if _, err := g.Evaluation([]byte(`{"id": "a"}`), nil); !errors.As(err, &input) || input.Field != "gate.problems" || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("a wrong problem: %v", err)
	}
	for _, budgets := range [][]int{{}, {16, 8}, {-1}} {
		if _, err := g.Evaluation(nil, budgets); !errors.As(err, &input) || input.Field != "gate.budgets" {
			t.Errorf("%v: %v", budgets, err)
		}
	}
	cfg.GateProblems = writeFile(t, "nonsense")
	if _, err := newGate(&cfg); err == nil || !strings.Contains(err.Error(), "gate_problems") {
		t.Errorf("a file of nonsense: %v", err)
	}
}

// priorities is an engine that notes with what its sequences are opened.
type priorities struct {
	*decodetest.Engine
	mu   sync.Mutex
	seen []decode.Class
}

func (p *priorities) note(c decode.Class) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = append(p.seen, c)
}

func (p *priorities) Open(ctx context.Context, req decode.Request) (decode.Sequence, error) {
	p.note(req.Priority.Class)
	s, err := p.Engine.Open(ctx, req)
	return prioritySequence{s, p}, err
}

type prioritySequence struct {
	decode.Sequence
	of *priorities
}

func (s prioritySequence) Fork(after int, opts decode.ForkOptions) (decode.Sequence, error) {
	s.of.note(opts.Priority.Class)
	f, err := s.Sequence.Fork(after, opts)
	return prioritySequence{f, s.of}, err
}

// What is measured is right where the model is, and everybody else goes before it.
func TestGateMeasures(t *testing.T) {
	script := decodetest.Script([]string{" one", " and", " two", " make", " three", "."}, "<think>\n", "</think>", func(thought string) []string {
		if strings.Contains(thought, "three") {
			return []string{"\n\n", "It is", ` \boxed{`, "3", "}"}
		}
		return []string{"\n\n", "It is", ` \boxed{`, "7", "}"}
	})
	engine := &priorities{Engine: decodetest.New(decodetest.Options{Model: script})}
	defer engine.Close()
	renderer, err := prompt.New(engine.Info(), prompt.Detect(engine.Info()), "")
	if err != nil {
		t.Fatal(err)
	}
	cfg := defaults()
	g, err := newGate(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	e, err := g.Evaluation([]byte(problems), []int{2, 10})
	if err != nil {
		t.Fatal(err)
	}
	thoughts := 0
	curve, err := e.Run(t.Context(), &anytime.Model{ID: "m", Engine: engine, Renderer: renderer}, func() { thoughts++ })
	if err != nil {
		t.Fatal(err)
	}
	if len(curve.Points) != 2 || curve.Points[0].Accuracy != 0 || curve.Points[1].Accuracy != 0.5 || curve.Points[1].Budget != 10 || thoughts != e.Thoughts || thoughts != 2 {
		t.Errorf("%+v after %d thoughts of %d", curve, thoughts, e.Thoughts)
	}
	if len(engine.seen) < 6 || slices.ContainsFunc(engine.seen, func(c decode.Class) bool { return c != decode.ClassBackground }) {
		t.Errorf("classes %v", engine.seen)
	}
	if n := engine.Sequences(); n != 0 {
		t.Errorf("%d sequences are left", n)
	}
}
