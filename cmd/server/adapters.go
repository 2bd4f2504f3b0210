package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/catalog"
	"anytime/internal/catalog/adapters"
	"anytime/internal/decode"
	"anytime/internal/eval"
	"anytime/internal/train/rollout"
	"anytime/internal/train/task"
)

func (c *Config) adapterFolder() string {
	return cmp.Or(home(c.Adapters), filepath.Join(home(c.Data), "adapters"))
}

// addAdapters gives a model those of the configuration and those that were loaded before. check and hash are adapters.Model's.
func addAdapters(c *catalog.ModelConfig, m ModelConfig, check func(file string) error, hash func() (string, error),
	folder *adapters.Folder, log *slog.Logger) (adapters.Model, error) {
	model := adapters.Model{ID: c.ID, Check: check, Hash: hash}
	var standard string
	c.Adapters, standard, model.Failed = folder.Restore(c.ID, model.Check)
	for _, name := range slices.Sorted(maps.Keys(m.Adapters)) {
		file := home(m.Adapters[name])
		fixed := adapters.Fixed{Name: name, File: m.Adapters[name], Curve: curveBeside(file, log)}
		err := model.Check(file)
		if err == nil {
			fixed.SHA256, fixed.Bytes, err = hashFiles(file)
		}
		if err != nil {
			return model, fmt.Errorf("model %q: adapter %q: %w", m.Path, name, err)
		}
		c.Adapters[name] = catalog.AdapterConfig{File: file, Curve: fixed.Curve}
		delete(model.Failed, name)
		model.Fixed = append(model.Fixed, fixed)
	}
	if _, ok := c.Adapters[standard]; ok {
		c.Adapter = standard
	}
	return model, nil
}

// curveBeside returns the curve that is kept beside weights, if there is one.
func curveBeside(weights string, log *slog.Logger) *budget.Curve {
	f, err := os.Open(budget.CurveFile(weights))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		defer f.Close()
		var c budget.Curve
		if c, err = budget.ReadCurve(f); err == nil {
			return &c
		}
	}
	log.Warn("curve is not used", "file", budget.CurveFile(weights), "error", err)
	return nil
}

// hashModel tells a model's weights from others, those of all its files if it has several.
func hashModel(path string) (string, error) {
	files := []string{path}
	if stem, split := strings.CutSuffix(path, extensionRE.FindString(path)); split && strings.HasPrefix(path[len(stem):], "-00001-of-") {
		var err error
		if files, err = filepath.Glob(escapeGlob.Replace(stem) + "-?????-of-?????.gguf"); err != nil {
			return "", err
		}
	}
	sum, _, err := hashFiles(files...)
	return sum, err
}

var escapeGlob = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`)

func hashFiles(paths ...string) (sum string, size int64, err error) {
	h := sha256.New()
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return "", 0, err
		}
		n, err := io.Copy(h, f)
		f.Close()
		if err != nil {
			return "", 0, err
		}
		size += n
	}
	return hex.EncodeToString(h.Sum(nil)), size, nil
}

// gate measures as requests that say nothing are answered, but for what of the settings depends on time.
type gate struct {
	problems []task.Problem // of the configuration
	budgets  []int
	sampling decode.Sampling
	answer   int // tokens
}

func newGate(cfg *Config) (*gate, error) {
	g := &gate{sampling: cfg.sampling(), answer: cfg.AnswerTokens}
	var err error
	if g.budgets, err = parseBudgets(cfg.GateBudgets); err != nil {
		return nil, &ConfigError{"gate_budgets", cfg.GateBudgets, err.Error()}
	}
	if cfg.GateProblems != "" {
		if g.problems, err = task.ReadFile(home(cfg.GateProblems)); err != nil {
			return nil, &ConfigError{"gate_problems", cfg.GateProblems, "must be a file of problems: " + err.Error()}
		}
	}
	return g, nil
}

// parseBudgets reads numbers of tokens.
func parseBudgets(text string) ([]int, error) {
	var list []int
	for field := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(field))
		if err != nil || n < 0 || n > maxTokens || len(list) > 0 && n <= list[len(list)-1] {
			return nil, fmt.Errorf("must be ascending numbers of thinking tokens, from 0 to %d, such as 64,128,256", maxTokens)
		}
		list = append(list, n)
	}
	return list, nil
}

// Evaluation implements adapters.Gate.
func (g *gate) Evaluation(lines []byte, budgets []int) (*adapters.Evaluation, error) {
	problems := g.problems
	if lines != nil {
		var err error
		if problems, err = task.Read(bytes.NewReader(lines), "gate.problems"); err != nil {
			return nil, &decode.InputError{Field: "gate.problems", Reason: err.Error()}
		}
	}
	if len(problems) == 0 {
		return nil, nil
	}
	if budgets == nil {
		budgets = g.budgets
	}
	settings := rollout.Settings{Seed: 1, Budgets: budgets, Traces: 1, Summaries: 1, SummaryTokens: g.answer, Sampling: g.sampling}
	if err := settings.Validate(); err != nil {
		return nil, &decode.InputError{Field: "gate.budgets", Reason: err.Error()}
	}
	asked, err := json.Marshal(map[string]any{"problems": problems, "settings": settings})
	if err != nil {
		return nil, err
	}
	key := sha256.Sum256(asked)
	return &adapters.Evaluation{
		Key: hex.EncodeToString(key[:8]), Thoughts: len(problems) * settings.Traces,
		Run: func(ctx context.Context, m *anytime.Model, onThought func()) (budget.Curve, error) {
			s := settings
			s.Model, s.Adapter = m.ID, m.Adapter
			report, err := eval.Run(ctx, eval.Config{Problems: problems, Data: "gate", Config: rollout.Config{
				Settings: s, Engine: background{m.Engine}, Renderer: m.Renderer, Concurrency: max(1, m.Engine.Info().MaxSequences/8),
				OnTrace: func(rollout.Trace) { onThought() },
			}})
			if err != nil {
				return budget.Curve{}, err
			}
			return report.Curve(), nil
		},
	}, nil
}

// background is an engine that serves everybody else first.
type background struct{ decode.Engine }

var behind = decode.Priority{Class: decode.ClassBackground}

// Open implements decode.Engine.
func (b background) Open(ctx context.Context, req decode.Request) (decode.Sequence, error) {
	req.Priority = behind
	seq, err := b.Engine.Open(ctx, req)
	if err != nil {
		return nil, err
	}
	return backgroundSequence{seq}, nil
}

type backgroundSequence struct{ decode.Sequence }

// Fork implements decode.Sequence.
func (s backgroundSequence) Fork(after int, opts decode.ForkOptions) (decode.Sequence, error) {
	opts.Priority = behind
	fork, err := s.Sequence.Fork(after, opts)
	if err != nil {
		return nil, err
	}
	return backgroundSequence{fork}, nil
}

// SetPriority implements decode.Sequence.
func (backgroundSequence) SetPriority(decode.Priority) {}
