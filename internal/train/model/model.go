// Package model trains language models: token ids in, log-probabilities and gradients out. It is the only package that knows GoMLX.
//
// A Model is a GGUF file's weights in float32 and, if asked for, a LoRA adapter. It computes what llama.cpp computes for the same file
// (architectures llama, qwen2 and qwen3), so that the log-probabilities of the engine that sampled a text and of the trainer that
// learns from it agree. Either the adapter or all of the weights can be trained, with AdamW.
//
// A sequence may branch: a Tree is a trunk, the thinking, and the summaries that were forced from it at some points. All of it is one
// row of a batch, with a mask by which each branch sees its own tokens and the trunk up to where it left it. So the trunk is computed
// once, however many summaries hang on it. Attention goes over the row in stretches, each with the keys that it can see: the trunk's
// stretches with what is before them, blocks of branches with the trunk and themselves.
//
// A graph is compiled for each shape of a batch. To keep shapes few, trunks are padded to one of four lengths for each power of two, branches
// fill at most four blocks of one of two widths for each, and rows go in groups of a power of two; the gradients of the groups add up.
// Rows of a batch are independent: in which group they go changes nothing but rounding.
package model

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/gomlx/compute"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"

	"anytime/internal/gguf"
)

// Train says which weights are trained.
type Train string

// What can be trained.
const (
	Nothing Train = ""
	Adapter Train = "lora"
	All     Train = "all"
)

// Config says how a model is opened. The zero value opens it for log-probabilities only.
type Config struct {
	// Backend computes. "" and "go" are pure Go; "xla:PLUGIN.so" a PJRT plugin, in programs built with the tag xla.
	Backend string
	Train   Train
	// Adapter is a LoRA adapter (GGUF) to begin with; "" begins with a new one where Train is Adapter, else with none.
	Adapter string
	LoRA    LoRA // shape of a new adapter, and dropout

	Optimizer Optimizer

	BatchTokens int // padded tokens in one pass at most, unless a single row has more; 2048 by default
	LogitTokens int // tokens whose logits are in memory at a time; by default as many as make 16M logits
	// Recompute keeps only the input of each layer, and the inputs of the logits, for the gradient and computes the rest again: a
	// third more work for a fraction of the memory.
	Recompute bool
	Seed      uint64 // of a new adapter and of dropout
	// PassTimeout is the longest that a pass may take, with the compilation of its graph; 10 minutes by default. Beyond it the
	// backend is taken to hang and the model is lost: ErrHung.
	PassTimeout time.Duration
}

// ErrHung is returned when a pass takes longer than Config.PassTimeout, and from then on: the model cannot be used any more, since the
// pass may still be running. Open it again and restore the last checkpoint.
var ErrHung = errors.New("the backend hangs")

// Model is a model in memory. Its methods may be called from several goroutines; they take turns.
type Model struct {
	config  Config
	path    string
	header  *gguf.Header
	network network
	alpha   float32 // of the adapter
	backend compute.Backend

	mu     sync.Mutex
	lost   error // why nothing can be computed any more
	params []*param
	steps  int // taken by the optimizer
	base   string
	logits *graph.Exec // of LogProbs
	passes map[Loss]*graph.Exec
	update *graph.Exec
}

// param is a tensor of weights.
type param struct {
	name    string
	dims    []int // row by row, as GoMLX has them: a matrix is [out, in]
	trained bool
	value   *tensors.Tensor
	// The optimizer's moments; nil until the first step.
	first, second *tensors.Tensor
}

func (p *param) size() int {
	n := 1
	for _, d := range p.dims {
		n *= d
	}
	return n
}

// Open loads a model.
func Open(path string, c Config) (*Model, error) {
	m, err := open(path, c)
	if err != nil {
		return nil, fmt.Errorf("open model %s: %w", path, err)
	}
	return m, nil
}

func open(path string, c Config) (_ *Model, err error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	m := &Model{config: c, path: path, passes: map[Loss]*graph.Exec{}}
	if m.header, err = gguf.Check(path); err != nil {
		return nil, err
	}
	if m.network, err = readNetwork(m.header); err != nil {
		return nil, err
	}
	if m.backend, err = openBackend(c.Backend); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	if err := m.loadWeights(); err != nil {
		return nil, err
	}
	switch {
	case c.Adapter != "":
		err = m.loadAdapter(c.Adapter)
	case c.Train == Adapter:
		err = m.newAdapter()
	}
	if err != nil {
		return nil, err
	}
	m.logits, err = graph.NewExec(m.backend, m.logProbGraph)
	if err != nil {
		return nil, err
	}
	m.logits.SetMaxCache(-1)
	return m, nil
}

func (c *Config) complete() error {
	switch c.Train {
	case Nothing, Adapter, All:
	default:
		return fmt.Errorf("train is %.32q: it must be %q or %q, or empty to train nothing", c.Train, Adapter, All)
	}
	if c.Train == All && c.Adapter != "" {
		return errors.New("an adapter cannot be applied where all the weights are trained: merge it into the model first")
	}
	if c.BatchTokens == 0 {
		c.BatchTokens = 2048
	}
	if c.PassTimeout == 0 {
		c.PassTimeout = 10 * time.Minute
	}
	if c.BatchTokens < 1 || c.LogitTokens < 0 || c.PassTimeout < 0 {
		return fmt.Errorf("batch tokens %d, logit tokens %d, pass timeout %v: none may be negative", c.BatchTokens, c.LogitTokens, c.PassTimeout)
	}
	if err := c.LoRA.complete(); err != nil {
		return err
	}
	return c.Optimizer.complete()
}

// Close frees the model's memory. After ErrHung it leaves it: the pass that hangs may still use it.
func (m *Model) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if errors.Is(m.lost, ErrHung) {
		return
	}
	m.lost = errors.New("the model is closed")
	execs := []*graph.Exec{m.logits, m.update}
	for _, e := range m.passes {
		execs = append(execs, e)
	}
	for _, e := range execs {
		if e != nil {
			e.Finalize()
		}
	}
	for _, p := range m.params {
		free(p.value, p.first, p.second)
	}
	m.params = nil
	m.backend.Finalize()
}

// Vocabulary is the number of tokens.
func (m *Model) Vocabulary() int { return m.network.vocabulary }

// Parameters returns how many weights the model and its adapter have, and how many of them are trained.
func (m *Model) Parameters() (all, trained int) {
	for _, p := range m.params {
		all += p.size()
		if p.trained {
			trained += p.size()
		}
	}
	return all, trained
}

// LogProbs returns the natural log-probability of every token of each tree, given the tokens before it on its path, in the order of
// Tree.Tokens. A trunk's first token has none: 0.
func (m *Model) LogProbs(ctx context.Context, trees []Tree) ([][]float32, error) {
	return m.logProbs(ctx, trees, 1)
}

// BaseLogProbs is LogProbs of the model without its adapter.
func (m *Model) BaseLogProbs(ctx context.Context, trees []Tree) ([][]float32, error) {
	return m.logProbs(ctx, trees, 0)
}

func (m *Model) logProbs(ctx context.Context, trees []Tree, adapter float32) ([][]float32, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	groups, err := m.pack(trees)
	if err != nil {
		return nil, fmt.Errorf("log-probs: %w", err)
	}
	all := make([][]float32, len(trees))
	for _, g := range groups {
		inputs := append(m.weights(), m.structure(g)...)
		out, err := m.pass(ctx, m.logits, append(inputs, adapter))
		if err != nil {
			return nil, fmt.Errorf("log-probs: %w", err)
		}
		flat, err := take(out[0])
		if err != nil {
			return nil, fmt.Errorf("log-probs: %w", err)
		}
		for row, i := range g.trees {
			all[i] = g.gather(row, flat)
		}
	}
	return all, nil
}

// weights lists the values of all parameters as inputs of a graph.
func (m *Model) weights() []any {
	inputs := make([]any, len(m.params))
	for i, p := range m.params {
		inputs[i] = p.value
	}
	return inputs
}

// free gives tensors' memory back; some may be nil.
func free(all ...*tensors.Tensor) {
	for _, t := range all {
		if t != nil {
			_ = t.FinalizeAll() // fails only if it was freed already
		}
	}
}

// take copies a tensor's values and frees it.
func take(t *tensors.Tensor) ([]float32, error) {
	values, err := tensors.CopyFlatData[float32](t)
	free(t)
	return values, err
}

// pass runs a graph under watch. The context is only looked at between passes, since a pass cannot be broken off.
func (m *Model) pass(ctx context.Context, e *graph.Exec, inputs []any) ([]*tensors.Tensor, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if m.lost != nil {
		return nil, m.lost
	}
	type result struct {
		out []*tensors.Tensor
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := e.Call(inputs...)
		done <- result{out, err}
	}()
	late := time.NewTimer(m.config.PassTimeout)
	defer late.Stop()
	select {
	case r := <-done:
		return r.out, r.err
	case <-late.C:
		m.lost = fmt.Errorf("%w: a pass took more than %v", ErrHung, m.config.PassTimeout)
		return nil, m.lost
	}
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }
