package trainer

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"

	"anytime/internal/decode"
	"anytime/internal/decode/prompt"
	"anytime/internal/gguf"
	"anytime/internal/train/model"
	"anytime/internal/train/task"
)

// SFTSettings decide, with the model and the examples, what fine-tuning does. Another value is another run.
type SFTSettings struct {
	Model       string   `json:"model"` // whatever tells one set of weights from another
	Data        string   `json:"data"`  // the same for the examples
	Batch       int      `json:"batch"` // examples of a step
	Instruction string   `json:"instruction,omitempty"`
	Training    Training `json:"training"`
}

// SFT is supervised fine-tuning: each step lowers the cross-entropy of a batch's thoughts, summaries and ends, as a mean over its
// tokens.
type SFT struct {
	SFTSettings
	Open     Open
	Engine   decode.Engine // of the same file, to tokenize with
	Renderer *prompt.Renderer
	Examples iter.Seq[task.Example] // always in the same order
	Folder   string
	Every    int               // steps between checkpoints; at least 1
	OnStep   func(SFTProgress) // may be nil
	OnHang   func(error)       // is told when the last checkpoint is gone back to because a step hangs; may be nil
}

// SFTProgress is the line of a step in metrics.jsonl.
type SFTProgress struct {
	Step         int     `json:"step"`
	Loss         float64 `json:"loss"` // mean over trained tokens, before the step
	GradientNorm float64 `json:"gradient_norm"`
	Rate         float64 `json:"rate"`
	Tokens       int     `json:"tokens"`
	Trained      int     `json:"trained"`
	TokensPerS   float64 `json:"tokens_per_s"`
}

// Run trains up to a number of steps in all, from where the run in the folder was stopped, and returns the file that came of it:
// model.gguf in the folder or, where an adapter is trained, adapter.gguf.
func (f SFT) Run(ctx context.Context, steps int) (result string, err error) {
	if f.Batch < 1 || f.Every < 1 || steps < 1 {
		return "", fmt.Errorf("batch is %d, checkpoints come every %d of %d steps: each must be at least 1", f.Batch, f.Every, steps)
	}
	for hung, last := 0, 0; ; {
		result, done, err := f.run(ctx, steps)
		switch {
		case !errors.Is(err, model.ErrHung):
			return result, err
		case done > last:
			hung, last = 0, done
		}
		if hung++; hung == tries {
			return "", fmt.Errorf("%w; it was tried %d times from the last checkpoint: give it more time, or try another backend", err, tries)
		}
		if f.OnHang != nil {
			f.OnHang(err)
		}
	}
}

// run goes on from the last checkpoint. It also returns how many steps are committed.
func (f SFT) run(ctx context.Context, steps int) (result string, done int, err error) {
	run, err := openFolder(f.Folder, f.SFTSettings, f.Every, f.Open)
	if err != nil {
		return "", 0, err
	}
	defer func() { err = errors.Join(err, run.close()) }()
	next, stop := iter.Pull(f.Examples)
	defer stop()
	for range run.done * f.Batch {
		next()
	}
	for step := run.done + 1; step <= steps; step++ {
		examples, err := f.batch(ctx, next)
		if err != nil {
			return "", run.done, err
		}
		s, err := run.model.Step(ctx, examples, model.CrossEntropy{})
		if err != nil {
			return "", run.done, err
		}
		p := SFTProgress{
			Step: step, Loss: s.Loss, GradientNorm: s.GradientNorm, Rate: s.Rate, Tokens: s.Tokens, Trained: s.Trained,
			TokensPerS: float64(s.Tokens) / s.Elapsed.Seconds(),
		}
		if err := run.record(p); err != nil {
			return "", run.done, err
		}
		if step%f.Every == 0 || step == steps {
			if err := run.commit(step); err != nil {
				return "", run.done, err
			}
		}
		if f.OnStep != nil {
			f.OnStep(p)
		}
	}
	if f.Training.Train == model.All {
		result = filepath.Join(f.Folder, "model.gguf")
		return result, run.done, run.model.WriteModel(result, gguf.F32)
	}
	result = filepath.Join(f.Folder, "adapter.gguf")
	return result, run.done, run.model.WriteAdapter(result)
}

// batch makes the examples of a step, whose trained tokens weigh 1 together.
func (f SFT) batch(ctx context.Context, next func() (task.Example, bool)) ([]model.Example, error) {
	var examples []model.Example
	for range f.Batch {
		e, ok := next()
		if !ok {
			return nil, errors.New("there are no more examples: they must go on without end")
		}
		x, err := FromExample(ctx, f.Engine, f.Renderer, e, f.Instruction)
		if err != nil {
			return nil, err
		}
		examples = append(examples, x)
	}
	n := float32(trained(examples))
	for _, x := range examples {
		for i := range x.Weight {
			x.Weight[i] /= n
		}
	}
	return examples, nil
}

// FromExample makes a sequence of an example, exactly as rollouts and the server put one together: prompt, thinking, closing, summary,
// end of text. The prompt has no weight, nor has what closes a thought that was cut; all else has 1. So the header behind a whole thought
// is learned too: in a chat, where none is forced, the model writes it.
func FromExample(ctx context.Context, engine decode.Engine, r *prompt.Renderer, e task.Example, instruction string) (model.Example, error) {
	x, err := fromExample(ctx, engine, r, e, instruction)
	if err != nil {
		return x, fmt.Errorf("example of problem %q: %w", e.ID, err)
	}
	return x, nil
}

func fromExample(ctx context.Context, engine decode.Engine, r *prompt.Renderer, e task.Example, instruction string) (model.Example, error) {
	info, family := engine.Info(), r.Family()
	text := e.Text
	if instruction != "" {
		text += "\n\n" + instruction
	}
	opening, err := r.Render([]prompt.Message{{Role: "user", Content: text}}, prompt.Options{Thinking: true})
	switch {
	case err != nil:
		return model.Example{}, err
	case !opening.Thinking:
		return model.Example{}, errors.New("the model's chat template opens no thought for it")
	case !info.Capabilities.TokenIDs:
		return model.Example{}, errors.New("the engine gives no token ids")
	}
	closing, mark := family.Cut(prompt.StylePaper, ""), ""
	if !e.Cut {
		closing, mark = family.Natural(prompt.StylePaper), family.Close[0]
	}
	var x model.Example
	for i, piece := range []struct {
		parts   []decode.Part
		trained bool
	}{
		{opening.Parts, false},
		{[]decode.Part{{Text: e.Thinking, Literal: true}, decode.Text(mark)}, true},
		{closing, !e.Cut},
		{[]decode.Part{{Text: e.Summary, Literal: true}, decode.Text(info.EOS)}, true},
	} {
		tokens, err := engine.Tokenize(ctx, piece.parts...)
		if err != nil {
			return model.Example{}, fmt.Errorf("tokenize: %w", err)
		}
		if i > 0 && info.AddBOS && len(tokens) > 0 && tokens[0].Text == info.BOS {
			tokens = tokens[1:] // Tokenize saw a prompt
		}
		for _, t := range tokens {
			x.Tree.Trunk = append(x.Tree.Trunk, t.ID)
		}
		weight := float32(0)
		if piece.trained {
			weight = 1
		}
		for range tokens {
			x.Weight = append(x.Weight, weight)
		}
	}
	if need := len(x.Tree.Trunk); info.ContextTokens > 0 && need > info.ContextTokens {
		return model.Example{}, fmt.Errorf("it needs a context of %d tokens: the engine's has %d", need, info.ContextTokens)
	}
	return x, nil
}
