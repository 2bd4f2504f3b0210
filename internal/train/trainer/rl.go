package trainer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"anytime/internal/budget"
	"anytime/internal/decode"
	"anytime/internal/decode/prompt"
	"anytime/internal/train/advantage"
	"anytime/internal/train/model"
	"anytime/internal/train/rollout"
	"anytime/internal/train/task"
)

// RLSettings decide, with the model and the problems, what a run does. Another value is another run.
type RLSettings struct {
	Rollout  rollout.Settings   `json:"rollout"` // the seed of the run; Adapter is set by each round
	Data     string             `json:"data"`    // whatever tells one set of problems from another
	Prior    budget.Prior       `json:"prior"`
	Thinking advantage.Thinking `json:"thinking_baseline"`
	Summary  advantage.Summary  `json:"summary_baseline"`
	// AnswersOnly: what is said after a cut is trained, the thinking is not.
	AnswersOnly bool    `json:"answers_only,omitempty"`
	Batch       int     `json:"batch"`      // problems of a round
	Mini        int     `json:"mini_batch"` // problems of a step
	Clip        float64 `json:"clip"`       // how far a token's ratio may be from 1 for its gain to count
	// Correction is the largest importance weight by which tokens are corrected for the difference between the engine's and the
	// trainer's log-probabilities; 0: they are not.
	Correction float64  `json:"correction"`
	KL         float64  `json:"kl"`      // weight of a penalty on leaving the model without its adapter
	Entropy    float64  `json:"entropy"` // weight of a bonus
	Training   Training `json:"training"`
}

// Engine samples, and takes the adapter back.
type Engine interface {
	decode.Engine
	decode.Adapters
}

// RLConfig is what a run works with.
type RLConfig struct {
	RLSettings
	Open     Open   // for an adapter
	Engine   Engine // of the same file
	Renderer *prompt.Renderer
	Problems []task.Problem
	Folder   string
	Keep     int // rounds whose rollouts and adapters stay in the folder; 0: all
	// These may be nil.
	OnTrace func(rollout.Trace)                  // is called with each new trace
	OnStep  func(step, steps int, s model.Stats) // with each step of a round, from 1
	OnHang  func(error)                          // is told when the last checkpoint is gone back to because a step hangs
}

// RL is a run of rounds. Its methods are called by one goroutine.
type RL struct {
	RLConfig
	method advantage.Method
	run    *folder
	stale  bool // the weights in memory may not be those of the last round
}

// Round is the line of a round in metrics.jsonl.
type Round struct {
	Round    int                `json:"round"`
	Accuracy []rollout.Accuracy `json:"accuracy"` // mean reward at each budget. [S]
	Reward   float64            `json:"reward"`   // mean over the prior
	Thinking float64            `json:"thinking"` // mean tokens
	// Of the advantages of trained tokens.
	AdvantageMean     float64  `json:"advantage_mean"`
	AdvantageVariance float64  `json:"advantage_variance"`
	Mismatch          Mismatch `json:"mismatch"`
	// Of the steps; means but for their number.
	Steps        int     `json:"steps"`
	NotFinite    int     `json:"not_finite"` // mini-batches whose gradient was not finite, which changed nothing
	Loss         float64 `json:"loss"`
	GradientNorm float64 `json:"gradient_norm"`
	Clipped      float64 `json:"clipped"`                // share of the trained tokens
	KL           float64 `json:"kl"`                     // from the policy that sampled
	Reference    float64 `json:"kl_reference,omitempty"` // from the reference, before the steps; where it is penalised
	Entropy      float64 `json:"entropy,omitempty"`      // where it is rewarded
	Rate         float64 `json:"rate"`                   // of the last step

	Sampled        int     `json:"sampled"` // tokens, those recorded by an earlier process included
	SampledPerS    float64 `json:"sampled_per_s"`
	Trained        int     `json:"trained"` // tokens with a weight
	TokensPerS     float64 `json:"tokens_per_s"`
	RolloutSeconds float64 `json:"rollout_seconds"`
	TrainSeconds   float64 `json:"train_seconds"`
}

// OpenRL opens the run in a folder, or begins it, and has the engine load the adapter of its last round.
func OpenRL(ctx context.Context, c RLConfig) (*RL, error) {
	method, err := advantage.New(c.Prior, c.Rollout.Budgets, c.Thinking, c.Summary)
	if err != nil {
		return nil, err
	}
	switch {
	case c.Mini < 1 || c.Batch < c.Mini:
		return nil, fmt.Errorf("a mini-batch has %d problems and a batch %d: it must be at least 1, and no more than a batch", c.Mini, c.Batch)
	case len(c.Problems) < c.Batch:
		return nil, fmt.Errorf("there are %d problems: a batch has %d", len(c.Problems), c.Batch)
	case !(c.Clip > 0 && c.Clip < 1):
		return nil, fmt.Errorf("clip is %v: it must be between 0 and 1", c.Clip)
	case c.Correction != 0 && !(c.Correction >= 1 && c.Correction <= 100):
		return nil, fmt.Errorf("correction is %v: it must be 0, or the largest importance weight, from 1 to 100", c.Correction)
	case !(c.KL >= 0 && c.KL <= 10) || !(c.Entropy >= 0 && c.Entropy <= 10):
		return nil, fmt.Errorf("KL is %v and entropy %v: their weights must be from 0 to 10", c.KL, c.Entropy)
	case c.Rollout.Sampling.Temperature != 1 || c.Rollout.Sampling.TopP != 0 && c.Rollout.Sampling.TopP != 1 || c.Rollout.Sampling.TopK != 0 || c.Rollout.Sampling.MinP != 0:
		return nil, errors.New("the sampling is not the policy's own: it must be at temperature 1 without restrictions")
	}
	r := &RL{RLConfig: c, method: method}
	if err := r.open(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

// open takes up the run where its folder has it.
func (r *RL) open(ctx context.Context) error {
	run, err := openFolder(r.Folder, r.RLSettings, 1, r.Open)
	if err != nil {
		return err
	}
	r.run = run
	if err := r.publish(ctx, r.Done()); err != nil {
		return errors.Join(err, r.run.close())
	}
	r.stale = false
	return nil
}

// Done is the number of rounds done.
func (r *RL) Done() int { return r.run.done }

// Close closes the run, which can be opened again, and its model. The engine stays open.
func (r *RL) Close() error { return r.run.close() }

// Adapter is the file of a round's adapter; of round 0, the one to begin with.
func (r *RL) Adapter(round int) string {
	return filepath.Join(r.Folder, fmt.Sprintf("%s%06d.gguf", adapters, round))
}

func (r *RL) rollouts(round int) string {
	return filepath.Join(r.Folder, fmt.Sprintf("%s%06d.jsonl", rollouts, round))
}

// adapterName is that by which the engine knows a round's adapter.
func adapterName(round int) string { return fmt.Sprintf("round-%d", round) }

// publish writes the adapter behind a round and has the engine load it.
func (r *RL) publish(ctx context.Context, round int) error {
	if err := r.run.model.WriteAdapter(r.Adapter(round)); err != nil {
		return err
	}
	return r.Engine.LoadAdapter(ctx, adapterName(round), r.Adapter(round), 1)
}

// Next does the next round. One that failed can be tried again: it goes on with the rollouts that were recorded.
func (r *RL) Next(ctx context.Context) (m Round, err error) {
	for try := 1; ; try++ {
		m, err = r.round(ctx)
		switch {
		case err == nil:
			return m, nil
		case !errors.Is(err, model.ErrHung):
			return m, fmt.Errorf("round %d: %w", m.Round, err)
		case try == tries:
			return m, fmt.Errorf("round %d: %w; it was tried %d times from the last checkpoint: give it more time, or try another backend", m.Round, err, tries)
		}
		if r.OnHang != nil {
			r.OnHang(err)
		}
	}
}

func (r *RL) round(ctx context.Context) (Round, error) {
	m := Round{Round: r.Done() + 1}
	if r.stale {
		if err := errors.Join(r.run.close(), r.open(ctx)); err != nil {
			return m, err
		}
		m.Round = r.Done() + 1
	}
	groups, err := r.sample(ctx, &m)
	if err != nil {
		return m, err
	}
	r.stale = true
	if err := r.learn(ctx, groups, &m); err != nil {
		return m, err
	}
	r.stale = false
	return m, nil
}

// sample has the engine sample the traces of a round. [B, G]
func (r *RL) sample(ctx context.Context, m *Round) (_ [][]rollout.Trace, err error) {
	began := time.Now()
	s := r.Rollout
	s.Seed = s.Seed<<24 + uint64(m.Round) // a problem that comes again gets other traces
	s.Adapter = adapterName(r.Done())
	record, err := rollout.OpenFile(r.rollouts(m.Round), s)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, record.Close()) }()
	tokens := 0
	groups, err := rollout.Run(ctx, rollout.Config{
		Settings: s, Engine: r.Engine, Renderer: r.Renderer, Record: record,
		OnTrace: func(t rollout.Trace) {
			tokens += t.Thinking.Tokens + t.SummaryTokens()
			if r.OnTrace != nil {
				r.OnTrace(t)
			}
		},
	}, r.problems(m.Round))
	if err != nil {
		return nil, err
	}
	m.RolloutSeconds = time.Since(began).Seconds()
	m.SampledPerS = float64(tokens) / m.RolloutSeconds
	m.Accuracy = rollout.Curve(s, groups)
	for i, a := range m.Accuracy {
		m.Reward += a.Mean * r.method.Probabilities[i]
	}
	for _, group := range groups {
		for _, t := range group {
			m.Sampled += t.Thinking.Tokens + t.SummaryTokens()
			m.Thinking += float64(t.Thinking.Tokens) / float64(len(groups)*len(group))
		}
	}
	return groups, nil
}

// problems are those of a round. Each comes once before any comes again, but for a rest smaller than a batch.
func (r *RL) problems(round int) []task.Problem {
	each := len(r.Problems) / r.Batch
	epoch, at := (round-1)/each, (round-1)%each*r.Batch
	list := slices.Clone(r.Problems)
	rng := rand.New(rand.NewPCG(r.Rollout.Seed, uint64(epoch)))
	rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list[at : at+r.Batch]
}

// learn takes the steps of a round, hands the adapter to the engine and commits the round.
func (r *RL) learn(ctx context.Context, groups [][]rollout.Trace, m *Round) error {
	began := time.Now()
	var all []model.Example
	for _, group := range groups {
		examples, err := FromTraces(r.method, r.Rollout, r.AnswersOnly, group)
		if err != nil {
			return err
		}
		all = append(all, examples...)
	}
	batches := slices.Collect(slices.Chunk(all, r.Mini*r.Rollout.Traces))
	for _, batch := range batches {
		for _, e := range batch { // the mean over the mini-batch
			for i := range e.Weight {
				e.Weight[i] /= float32(len(batch))
			}
		}
	}
	m.AdvantageMean, m.AdvantageVariance = spread(all)
	var trees []model.Tree
	for _, e := range all {
		trees = append(trees, e.Tree)
	}
	logProbs, err := r.run.model.LogProbs(ctx, trees)
	if err != nil {
		return err
	}
	m.Mismatch = correct(all, logProbs, r.Correction)
	if r.KL > 0 {
		reference, err := r.run.model.BaseLogProbs(ctx, trees)
		if err != nil {
			return err
		}
		m.Reference = refer(all, logProbs, reference)
	}
	if err := r.steps(ctx, batches, m); err != nil {
		return err
	}
	m.TrainSeconds = time.Since(began).Seconds()
	m.TokensPerS = float64(m.Trained) / m.TrainSeconds

	if err := r.publish(ctx, m.Round); err != nil {
		return err
	}
	if err := r.run.record(m); err != nil {
		return err
	}
	if err := r.run.commit(m.Round); err != nil {
		return err
	}
	if old := m.Round - r.Keep; r.Keep > 0 && old > 0 {
		for _, path := range []string{r.Adapter(old), r.rollouts(old)} {
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("remove what is not kept: %w", err)
			}
		}
	}
	return r.Engine.UnloadAdapter(ctx, adapterName(m.Round-1))
}

func (r *RL) steps(ctx context.Context, batches [][]model.Example, m *Round) error {
	for i, batch := range batches {
		if trained(batch) == 0 { // the model said nothing
			continue
		}
		s, err := r.run.model.Step(ctx, batch, model.Policy{Low: r.Clip, High: r.Clip, KL: r.KL, Entropy: r.Entropy})
		if errors.Is(err, model.ErrNotFinite) {
			m.NotFinite++
			continue
		}
		if err != nil {
			return err
		}
		m.Steps++
		m.Trained += s.Trained
		m.Loss += s.Loss
		m.GradientNorm += s.GradientNorm
		m.Clipped += s.Clipped * float64(s.Trained)
		m.KL += s.KL * float64(s.Trained)
		m.Entropy += s.Entropy * float64(s.Trained)
		m.Rate = s.Rate
		if r.OnStep != nil {
			r.OnStep(i+1, len(batches), s)
		}
	}
	if n := float64(m.Steps); n > 0 {
		m.Loss, m.GradientNorm = m.Loss/n, m.GradientNorm/n
		tokens := float64(m.Trained)
		m.Clipped, m.KL, m.Entropy = m.Clipped/tokens, m.KL/tokens, m.Entropy/tokens
	}
	return nil
}
