// Package rollout samples what training learns from (BRPO; Anytime Reasoning, arXiv 2505.13438): for each problem some traces of
// thinking, and at each budget of each trace some summaries, rewarded.
//
// It decodes as the server does. A trace is one sequence that thinks to the largest budget; forks at the budgets, asked for before it
// begins, are closed with the paper's suffixes and summarise in the same batches while the thinking goes on. Thinking that
// ended by itself at or before a budget has merged that budget and all later ones: all their summaries are taken at its end. A trace
// is recorded when it is whole, so what a crash costs is the traces under way.
//
// What is drawn depends on the seed, the problem, the trace and the summary's place only, not on what else runs at the same time (up to
// the rounding of the engine's batches).
package rollout

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"anytime/internal/decode"
	"anytime/internal/decode/prompt"
	"anytime/internal/train/reward"
	"anytime/internal/train/task"
)

// Settings decide, with the model's weights, what is sampled.
type Settings struct {
	Model         string          `json:"model"`             // whatever tells one set of weights from another
	Adapter       string          `json:"adapter,omitempty"` // the engine's name of a loaded adapter; "" the bare model
	Seed          uint64          `json:"seed"`
	Budgets       []int           `json:"budgets"`        // of thinking tokens, ascending from 0 or more. [S]
	Traces        int             `json:"traces"`         // of each problem: G
	Summaries     int             `json:"summaries"`      // at each budget of each trace: A
	SummaryTokens int             `json:"summary_tokens"` // longest summary
	Sampling      decode.Sampling `json:"sampling"`       // log-probabilities are the policy's only at temperature 1 without restrictions
	Instruction   string          `json:"instruction,omitempty"`
}

// Validate checks the settings' ranges.
func (s Settings) Validate() error {
	if len(s.Budgets) == 0 {
		return errors.New("budgets: there are none; give numbers of thinking tokens, such as 64,128,256")
	}
	for i, b := range s.Budgets {
		if b < 0 || b > 1<<24 || i > 0 && b <= s.Budgets[i-1] {
			return fmt.Errorf("budgets are %v: they must be ascending numbers of tokens, from 0", s.Budgets)
		}
	}
	for _, v := range []struct {
		name    string
		n, most int
	}{{"traces", s.Traces, 1 << 10}, {"summaries", s.Summaries, 1 << 8}, {"summary_tokens", s.SummaryTokens, 1 << 16}} {
		if v.n < 1 || v.n > v.most {
			return fmt.Errorf("%s is %d: it must be from 1 to %d", v.name, v.n, v.most)
		}
	}
	return nil
}

// Config is what a sampler works with.
type Config struct {
	Settings
	Engine   decode.Engine
	Renderer *prompt.Renderer // of the engine's model
	// Concurrency is how many traces are under way at once; by default as many as the engine can decode beside one summary each.
	Concurrency int
	Record      *File // keeps whole traces, and knows those of earlier runs; nil: nothing is kept
	// OnTrace, which may be nil, is called with each new trace, not concurrently.
	OnTrace func(Trace)
}

// Run samples the traces of the problems, whose ids must differ. [B, G] Traces that the record has are not sampled again. At the first
// error no more traces are begun, and those under way are given up.
func Run(ctx context.Context, c Config, problems []task.Problem) ([][]Trace, error) {
	s, err := newSampler(ctx, c, problems)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	traces := make([][]Trace, len(problems))
	places := make(chan struct{}, s.Concurrency)
	var mu sync.Mutex // orders what is recorded and reported
	var wg sync.WaitGroup
	for b, p := range problems {
		traces[b] = make([]Trace, s.Traces)
		for g := range traces[b] {
			if t, ok := s.Record.find(p.ID, g); ok {
				if !slices.Equal(t.Prompt, s.prompts[b].ids()) {
					cancel(fmt.Errorf("rollout %d of problem %q is recorded with another prompt: record these problems in a new file", g, p.ID))
				}
				s.grade(p, t) // the right answers may have been corrected since
				traces[b][g] = t
				continue
			}
			select {
			case places <- struct{}{}:
			case <-ctx.Done():
			}
			if ctx.Err() != nil {
				break
			}
			wg.Go(func() {
				defer func() { <-places }()
				t, err := s.trace(ctx, p, s.prompts[b], g)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					err = s.Record.append(t)
				}
				if err != nil {
					cancel(fmt.Errorf("rollout %d of problem %q: %w", g, p.ID, err))
					return
				}
				traces[b][g] = t
				if s.OnTrace != nil {
					s.OnTrace(t)
				}
			})
		}
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return traces, nil
}

const maxOpen = 2048 // sequences, most of which wait to be forked

// sampler is a Config with what is the same for all traces.
type sampler struct {
	Config
	family   prompt.Family
	prompts  []forced // of each problem
	cut, own forced   // close a thought that was cut, or follow one that ended by itself
}

// forced is text that the model did not choose.
type forced struct {
	parts  []decode.Part
	text   string
	tokens []decode.Token // none where the engine has no ids
}

func (f forced) ids() []int32 {
	var ids []int32
	for _, t := range f.tokens {
		ids = append(ids, t.ID)
	}
	return ids
}

func newSampler(ctx context.Context, c Config, problems []task.Problem) (*sampler, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	info := c.Engine.Info()
	if c.Concurrency < 1 {
		c.Concurrency = info.MaxSequences / 2
	}
	c.Concurrency = max(1, min(c.Concurrency, maxOpen/(1+len(c.Budgets)*c.Summaries)))
	s := &sampler{Config: c, family: c.Renderer.Family()}
	var err error
	if s.cut, err = s.closing(ctx, s.family.Cut(prompt.StylePaper, "")); err != nil {
		return nil, err
	}
	if s.own, err = s.closing(ctx, s.family.Natural(prompt.StylePaper)); err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, p := range problems {
		if err := p.Validate(); err != nil {
			return nil, fmt.Errorf("problem %q: %w", p.ID, err)
		}
		if known[p.ID] {
			return nil, fmt.Errorf("problem %q comes twice", p.ID)
		}
		known[p.ID] = true
		f, err := s.prompt(ctx, p)
		if err != nil {
			return nil, fmt.Errorf("problem %q: %w", p.ID, err)
		}
		thinking, closing := s.Budgets[len(s.Budgets)-1], max(len(s.cut.tokens), len(s.own.tokens))
		if need := len(f.tokens) + thinking + closing + s.SummaryTokens; info.ContextTokens > 0 && need > info.ContextTokens {
			return nil, fmt.Errorf("problem %q needs a context of %d tokens (prompt %d, thinking %d, closing %d, summary %d): the engine's has %d",
				p.ID, need, len(f.tokens), thinking, closing, s.SummaryTokens, info.ContextTokens)
		}
		s.prompts = append(s.prompts, f)
	}
	return s, nil
}

func (s *sampler) prompt(ctx context.Context, p task.Problem) (forced, error) {
	text := p.Text
	if s.Instruction != "" {
		text += "\n\n" + s.Instruction
	}
	made, err := s.Renderer.Render([]prompt.Message{{Role: "user", Content: text}}, prompt.Options{Thinking: true})
	switch {
	case err != nil:
		return forced{}, err
	case !made.Thinking:
		return forced{}, errors.New("the model's chat template opens no thought for it")
	}
	return s.forced(ctx, made.Parts)
}

// closing looks up the tokens of what closes a thought, which is then appended by these.
func (s *sampler) closing(ctx context.Context, parts []decode.Part) (forced, error) {
	f, err := s.forced(ctx, parts)
	if info := s.Engine.Info(); info.AddBOS && len(f.tokens) > 0 && f.tokens[0].Text == info.BOS {
		f.tokens = f.tokens[1:] // Tokenize saw a prompt
	}
	if ids := f.ids(); len(ids) > 0 {
		f.parts = []decode.Part{{IDs: ids}}
	}
	return f, err
}

func (s *sampler) forced(ctx context.Context, parts []decode.Part) (forced, error) {
	f := forced{parts: parts}
	for _, p := range parts {
		f.text += p.Text
	}
	if !s.Engine.Info().Capabilities.TokenIDs || len(parts) == 0 {
		return f, nil
	}
	var err error
	if f.tokens, err = s.Engine.Tokenize(ctx, parts...); err != nil {
		return f, fmt.Errorf("tokenize: %w", err)
	}
	return f, nil
}

// seed is that of one sequence: of trace g's thinking, or of the a-th summary at its budget s.
func (s *sampler) seed(problem string, place ...int) uint64 {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %q %v", s.Seed, problem, place))
	return binary.LittleEndian.Uint64(sum[:])
}

// trace samples trace g of a problem.
func (s *sampler) trace(ctx context.Context, p task.Problem, opening forced, g int) (Trace, error) {
	ctx, cancel := context.WithCancel(ctx)
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()
	seq, err := s.Engine.Open(ctx, decode.Request{
		Prompt: opening.parts, Adapter: s.Adapter, Seed: s.seed(p.ID, g), Priority: decode.Priority{Class: decode.ClassThinking},
	})
	if err != nil {
		return Trace{}, err
	}
	defer seq.Close()
	fork := func(budget, a, after int, closing forced) *branch {
		b := &branch{ready: make(chan struct{})}
		if b.seq, b.err = seq.Fork(after, decode.ForkOptions{Seed: s.seed(p.ID, g, budget, a)}); b.err != nil {
			close(b.ready)
			return b
		}
		readers.Go(func() {
			defer close(b.ready)
			defer b.seq.Close()
			b.Span, b.err = s.summary(ctx, b.seq, closing)
		})
		return b
	}
	branches := make([][]*branch, len(s.Budgets))
	for i, budget := range s.Budgets {
		for a := range s.Summaries {
			branches[i] = append(branches[i], fork(i, a, budget, s.cut))
		}
	}
	t := Trace{Problem: p.ID, Index: g, Prompt: opening.ids()}
	if t.Thinking, err = s.think(ctx, seq); err != nil {
		return Trace{}, err
	}

	// The budgets from here on lie behind the thinking's own end.
	end, merged := t.Thinking.Tokens, len(s.Budgets)
	natural := t.Thinking.End == decode.EndUntil
	if natural || t.Thinking.End == decode.EndEOG {
		merged = slices.IndexFunc(s.Budgets, func(b int) bool { return b > end || natural && b == end })
	}
	if merged < 0 {
		merged = len(s.Budgets)
	}
	closing := s.cut
	if natural {
		closing = s.own
	}
	for i := merged; i < len(s.Budgets); i++ {
		for a, b := range branches[i] {
			if b.seq != nil {
				_ = b.seq.Close()
			}
			branches[i][a] = fork(i, a, decode.Head, closing)
		}
	}
	for i := range branches {
		if i <= merged {
			point := Point{Budget: i, After: end, Closing: s.cut.ids()}
			if i == merged {
				point.Closing, point.EOS = closing.ids(), !natural
			} else {
				point.After = s.Budgets[i]
			}
			t.Points = append(t.Points, point)
		}
		point := &t.Points[len(t.Points)-1]
		for _, b := range branches[i] {
			<-b.ready
			if b.err != nil {
				return Trace{}, b.err
			}
			point.Summaries = append(point.Summaries, Summary{Span: b.Span})
		}
	}
	s.grade(p, t)
	return t, nil
}

// grade rewards the summaries of a trace.
func (s *sampler) grade(p task.Problem, t Trace) {
	for _, point := range t.Points {
		// A thought has a closing mark at its own end or nowhere, so that what was cut of it does not matter to the reward.
		r := reward.Response{EOS: point.EOS, Closing: s.cut.text}
		if t.Thinking.End == decode.EndUntil && point.After == t.Thinking.Tokens {
			r.Thinking, r.Closing = t.Thinking.Text, s.own.text
		}
		for i := range point.Summaries {
			r.Summary = point.Summaries[i].Text
			point.Summaries[i].Reward = reward.Of(p, s.family, r)
		}
	}
}

// branch is a fork whose summary is being read.
type branch struct {
	seq   decode.Sequence // nil if there is none
	ready chan struct{}   // closed when what follows is set
	Span
	err error
}

// think decodes the thinking. Nothing is forced on the model in it: where it ends its text, that is what is learned from.
func (s *sampler) think(ctx context.Context, seq decode.Sequence) (Span, error) {
	longest := s.Budgets[len(s.Budgets)-1]
	if longest == 0 {
		return Span{End: decode.EndLimit}, nil
	}
	if err := seq.Decode(decode.Span{MaxTokens: longest, Until: s.family.Close, Sampling: s.Sampling}); err != nil {
		return Span{}, err
	}
	span, err := s.read(ctx, seq)
	if err == nil && span.End != decode.EndLimit && span.End != decode.EndUntil && span.End != decode.EndEOG {
		err = fmt.Errorf("thinking ended after %d tokens with %q; a larger context is needed", span.Tokens, span.End)
	}
	return span, err
}

// summary closes a fork and decodes its summary. A second closing mark ends it: nothing can make it right again.
func (s *sampler) summary(ctx context.Context, fork decode.Sequence, closing forced) (Span, error) {
	if len(closing.parts) > 0 {
		if err := fork.Append(closing.parts...); err != nil {
			return Span{}, err
		}
	}
	err := fork.Decode(decode.Span{MaxTokens: s.SummaryTokens, Until: slices.Concat(s.family.Stops, s.family.Close), Sampling: s.Sampling})
	if err != nil {
		return Span{}, err
	}
	return s.read(ctx, fork)
}

// read takes a span to its end.
func (s *sampler) read(ctx context.Context, seq decode.Sequence) (Span, error) {
	can := s.Engine.Info().Capabilities
	var span Span
	var text strings.Builder
	for span.End == "" {
		chunk, err := seq.Next(ctx)
		if err != nil {
			return span, err
		}
		for _, t := range chunk.Tokens {
			if can.TokenIDs {
				span.IDs = append(span.IDs, t.ID)
			}
			if can.LogProbs {
				span.LogProbs = append(span.LogProbs, t.LogProb)
			}
			text.WriteString(t.Text)
		}
		span.Tokens += len(chunk.Tokens)
		span.End = chunk.End
		if chunk.EOG != nil {
			span.EOG = &EOG{chunk.EOG.ID, chunk.EOG.LogProb}
		}
	}
	span.Text = text.String()
	return span, nil
}
