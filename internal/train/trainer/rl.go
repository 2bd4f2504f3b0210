package trainer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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
	Batch    int                `json:"batch"`      // problems of a round
	Mini     int                `json:"mini_batch"` // problems of a step
	Clip     float64            `json:"clip"`       // how far a token's ratio may be from 1 for its gain to count
	Entropy  float64            `json:"entropy"`    // weight of a bonus
	Training Training           `json:"training"`
}

// Engine samples, and takes the adapter back.
type Engine interface {
	decode.Engine
	decode.Adapters
}

// RLConfig is what a run works with.
type RLConfig struct {
	RLSettings
	Model    *model.Model // opened to train an adapter
	Engine   Engine       // of the same file
	Renderer *prompt.Renderer
	Problems []task.Problem
	Folder   string
	OnTrace  func(rollout.Trace) // may be nil
}

// RL is a run of rounds. Its methods are called by one goroutine.
type RL struct {
	RLConfig
	method advantage.Method
	run    *folder
	lost   error // why the weights in memory are not those of the last round
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
	Clipped      float64 `json:"clipped"` // share of the trained tokens
	KL           float64 `json:"kl"`      // from the policy that sampled
	Rate         float64 `json:"rate"`    // of the last step

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
	case !(c.Clip > 0 && c.Clip < 1) || !(c.Entropy >= 0 && c.Entropy <= 10):
		return nil, fmt.Errorf("clip is %v and entropy %v: they must be between 0 and 1, and from 0 to 10", c.Clip, c.Entropy)
	case c.Rollout.Sampling.Temperature != 1 || c.Rollout.Sampling.TopP != 0 && c.Rollout.Sampling.TopP != 1 || c.Rollout.Sampling.TopK != 0 || c.Rollout.Sampling.MinP != 0:
		return nil, errors.New("the sampling is not the policy's own: it must be at temperature 1 without restrictions")
	}
	r := &RL{RLConfig: c, method: method}
	if r.run, err = openFolder(c.Folder, c.RLSettings, c.Model); err != nil {
		return nil, err
	}
	if err := r.publish(ctx, r.Done()); err != nil {
		return nil, errors.Join(err, r.run.close())
	}
	return r, nil
}

// Done is the number of rounds done.
func (r *RL) Done() int { return r.run.done }

// Close closes the run, which can be opened again. Model and engine stay open.
func (r *RL) Close() error { return r.run.close() }

// Adapter is the file of a round's adapter; of round 0, the one to begin with.
func (r *RL) Adapter(round int) string {
	return filepath.Join(r.Folder, fmt.Sprintf("adapter-%06d.gguf", round))
}

// adapterName is that by which the engine knows a round's adapter.
func adapterName(round int) string { return fmt.Sprintf("round-%d", round) }

// publish writes the adapter behind a round and has the engine load it.
func (r *RL) publish(ctx context.Context, round int) error {
	if err := r.Model.WriteAdapter(r.Adapter(round)); err != nil {
		return err
	}
	return r.Engine.LoadAdapter(ctx, adapterName(round), r.Adapter(round), 1)
}

// Next does the next round. A round that fails while it samples can be tried again, and goes on with what was recorded; once it has
// trained, the run must be opened anew.
func (r *RL) Next(ctx context.Context) (Round, error) {
	if r.lost != nil {
		return Round{}, fmt.Errorf("the run must be opened anew: %w", r.lost)
	}
	m := Round{Round: r.Done() + 1}
	groups, err := r.sample(ctx, &m)
	if err != nil {
		return m, fmt.Errorf("round %d: %w", m.Round, err)
	}
	if err := r.learn(ctx, groups, &m); err != nil {
		r.lost = err
		return m, fmt.Errorf("round %d: %w", m.Round, err)
	}
	return m, nil
}

// sample has the engine sample the traces of a round. [B, G]
func (r *RL) sample(ctx context.Context, m *Round) (_ [][]rollout.Trace, err error) {
	began := time.Now()
	s := r.Rollout
	s.Seed = s.Seed<<24 + uint64(m.Round) // a problem that comes again gets other traces
	s.Adapter = adapterName(r.Done())
	record, err := rollout.OpenFile(filepath.Join(r.Folder, fmt.Sprintf("rollouts-%06d.jsonl", m.Round)), s)
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
	var batches [][]model.Example
	for chunk := range slices.Chunk(groups, r.Mini) {
		var batch []model.Example
		for _, group := range chunk {
			examples, err := FromTraces(r.method, r.Rollout, group)
			if err != nil {
				return err
			}
			batch = append(batch, examples...)
		}
		for _, e := range batch { // the mean over the mini-batch
			for i := range e.Weight {
				e.Weight[i] /= float32(len(batch))
			}
		}
		batches = append(batches, batch)
	}
	all := slices.Concat(batches...)
	m.AdvantageMean, m.AdvantageVariance = spread(all)
	var trees []model.Tree
	for _, e := range all {
		trees = append(trees, e.Tree)
	}
	logProbs, err := r.Model.LogProbs(ctx, trees)
	if err != nil {
		return err
	}
	m.Mismatch = mismatch(all, logProbs)
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
	return r.Engine.UnloadAdapter(ctx, adapterName(m.Round-1))
}

func (r *RL) steps(ctx context.Context, batches [][]model.Example, m *Round) error {
	for _, batch := range batches {
		if trained(batch) == 0 { // the model said nothing
			continue
		}
		s, err := r.Model.Step(ctx, batch, model.Policy{Low: r.Clip, High: r.Clip, Entropy: r.Entropy})
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
		m.Rate = s.Rate
	}
	if n := float64(m.Steps); n > 0 {
		m.Loss, m.GradientNorm = m.Loss/n, m.GradientNorm/n
		m.Clipped, m.KL = m.Clipped/float64(m.Trained), m.KL/float64(m.Trained)
	}
	return nil
}
