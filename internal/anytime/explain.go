package anytime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"anytime/internal/budget"
	"anytime/internal/decode"
	"anytime/internal/summarize"
)

// Explanation is where a run's time went, and why it was cut where it was. Of an extended run it is that of the last stretch. Times are
// milliseconds.
type Explanation struct {
	OpenedMS float64 `json:"opened_ms"` // from the request's arrival: admission, loading the model, rendering
	// Prefills are of the prompt, and of prompt and thinking again for each time that the thought was opened again.
	Prefills []PrefillCost `json:"prefills"`
	Pace     ThinkingPace  `json:"pace"`
	// Reserve is what is, or was, kept for the answer before the deadline; 0 without one.
	ReserveMS   float64    `json:"reserve_ms"`
	Limit       int        `json:"limit"`         // thinking tokens allowed
	Cut         *CutReason `json:"cut,omitempty"` // nil while it thinks
	Checkpoints []ForkCost `json:"checkpoints"`
	Answers     []ForkCost `json:"answers"` // the votes of the final answer, those thrown away too
	Forks       int        `json:"forks"`   // that were asked for
	ClosedAgain int        `json:"closed_again"`
	Setbacks    Setbacks   `json:"setbacks"`
}

// PrefillCost is what a prompt cost.
type PrefillCost struct {
	Tokens  int     `json:"tokens"`
	Cached  int     `json:"cached"` // of these, taken from a cache
	QueueMS float64 `json:"queue_ms"`
	MS      float64 `json:"ms"`
}

// ThinkingPace is how fast the thinking was, once it had begun.
type ThinkingPace struct {
	Tokens          int     `json:"tokens"`
	TokensPerSecond float64 `json:"tokens_per_second"` // 0: not known yet
	PerTokenMS      float64 `json:"per_token_ms"`
	DeviationMS     float64 `json:"deviation_ms"` // standard deviation of the time for a token
}

// CutReason is why the thinking ended.
type CutReason struct {
	Cause  budget.Cause `json:"cause"`
	AtMS   float64      `json:"at_ms"`
	Tokens int          `json:"tokens"`
	Why    string       `json:"why"`
}

// ForkCost is what an answer cost.
type ForkCost struct {
	Tokens        int     `json:"tokens"`         // of thinking that it was taken from
	ClosingTokens int     `json:"closing_tokens"` // forced, to close the thinking
	AnswerTokens  int     `json:"answer_tokens"`
	QueueMS       float64 `json:"queue_ms"`
	MS            float64 `json:"ms"` // from then to the whole answer
	// Slowed is how much longer a token of the thinking took meanwhile, as a share; nil where that cannot be said.
	Slowed *float64 `json:"slowed,omitempty"`
}

// Setbacks are what a run suffered without showing it.
type Setbacks struct {
	Preempted int  `json:"preempted"` // the thought's cache was needed by others, and made again
	Restarts  int  `json:"restarts"`  // the engine was replaced under the thought
	Reopened  int  `json:"reopened"`  // the engine gave the thought up, and it was opened again from its tokens
	Resumed   bool `json:"resumed"`   // the server was restarted
}

// spell sums up stretches of thinking.
type spell struct {
	tokens  int
	took    time.Duration
	squares float64 // of the seconds for a token, each token counted
}

func (s *spell) add(tokens int, took time.Duration) {
	if tokens > 0 {
		s.tokens += tokens
		s.took += took
		s.squares += took.Seconds() * took.Seconds() / float64(tokens)
	}
}

// each is the mean time for a token in seconds; 0 unknown.
func (s *spell) each() float64 {
	if s.tokens == 0 {
		return 0
	}
	return s.took.Seconds() / float64(s.tokens)
}

func (s *spell) pace() ThinkingPace {
	p := ThinkingPace{Tokens: s.tokens}
	if mean := s.each(); mean > 0 {
		p.TokensPerSecond = rounded(1 / mean)
		p.PerTokenMS = rounded(1000 * mean)
		p.DeviationMS = rounded(1000 * math.Sqrt(max(0, s.squares/float64(s.tokens)-mean*mean)))
	}
	return p
}

func rounded(x float64) float64 { return math.Round(1000*x) / 1000 }

// account is what a run keeps for its explanation. It is its goroutine's.
type account struct {
	prefills    []PrefillCost
	thinking    spell
	alone       spell // without an answer being decoded beside it
	cut         *CutReason
	reserve     time.Duration // when it was cut
	checkpoints []ForkCost
	answers     []ForkCost
	forks       int
	reclosed    int
	setbacks    Setbacks
}

// thought counts tokens of the thinking, and how long they took.
func (a *account) thought(tokens int, took time.Duration, beside []*task, used int) {
	a.thinking.add(tokens, took)
	alone := true
	for _, t := range beside {
		if t.at < used && !t.done {
			t.beside.add(tokens, took)
			alone = false
		}
	}
	if alone {
		a.alone.add(tokens, took)
	}
}

// cost is what a fork cost. beside is the thinking meanwhile.
func (a *account) cost(at int, s summarize.Summary, beside spell) ForkCost {
	c := ForkCost{
		Tokens: at, ClosingTokens: s.Prefill.Tokens, AnswerTokens: s.Tokens, QueueMS: ms(s.Prefill.Queued), MS: ms(s.Took),
	}
	if alone := a.alone.each(); alone > 0 && beside.tokens > 0 {
		slowed := rounded(beside.each()/alone - 1)
		c.Slowed = &slowed
	}
	return c
}

func (a *account) answer(at int, s summarize.Summary) {
	a.answers = append(a.answers, a.cost(at, s, spell{}))
}

func (a *account) setback(c decode.Chunk) {
	a.setbacks.Preempted += c.Preempted
	a.setbacks.Restarts += c.Restarted
}

// explanation is the run's, as far as it has come.
func (r *run) explanation() *Explanation {
	a := &r.account
	e := &Explanation{
		OpenedMS: r.timings.OpenedMS, Prefills: a.prefills, Pace: a.thinking.pace(), Cut: a.cut, Checkpoints: a.checkpoints, Answers: a.answers,
		Forks: a.forks, ClosedAgain: a.reclosed, Setbacks: a.setbacks,
	}
	e.Setbacks.Resumed = r.resumed
	if r.meter != nil {
		e.Limit = r.meter.Limit()
	}
	if e.ReserveMS = ms(a.reserve); a.cut == nil {
		e.ReserveMS = ms(r.answerReserve())
	}
	return e
}

// answerReserve is what would be kept for the answer now; 0 without a deadline.
func (r *run) answerReserve() time.Duration {
	if r.deadline.IsZero() || r.meter == nil {
		return 0
	}
	return r.meter.Reserve()
}

// stopped notes that, and why, the thinking has ended.
func (r *run) stopped() {
	if r.account.cut == nil {
		r.account.reserve = r.answerReserve()
		r.account.cut = &CutReason{Cause: r.cause, AtMS: r.timings.CutMS, Tokens: r.thought.tokens, Why: r.why()}
	}
}

// why says in words why the thinking ended.
func (r *run) why() string {
	switch r.cause {
	case budget.CauseNatural:
		return "the model ended its thinking"
	case budget.CauseTokens:
		return fmt.Sprintf("all %d thinking tokens that were allowed are used", r.meter.Limit())
	case budget.CauseContext:
		return fmt.Sprintf("the context of %d tokens has room for no more thinking beside the prompt and the answer", r.model.Engine.Info().ContextTokens)
	case budget.CauseDeadline:
		if r.late || r.meter == nil {
			return "the deadline was there before the model"
		}
		return fmt.Sprintf("at this pace an answer takes up to %v, and the deadline was no further", r.account.reserve.Round(time.Millisecond))
	case budget.CauseInterrupt:
		return "it was interrupted, or its client left"
	case budget.CauseConverged:
		return "the answers on the way had become the same"
	case budget.CauseConfident:
		return "an answer on the way was sure enough"
	case budget.CauseLoop:
		return "the thinking repeated itself"
	case budget.CauseEOSInThinking:
		return "the model ended its text inside its thinking"
	case budget.CauseDrain:
		return "the server was stopping"
	case budget.CauseOverload:
		return "there was more to think than the engine could, and thoughts were shortened"
	}
	return ""
}

// Explain returns why a run is, or was, as it is.
func (s *Solver) Explain(ctx context.Context, id string) (*Explanation, error) {
	if s.elsewhere(id) {
		o, err := s.ask(ctx, id, doExplain)
		if !errors.Is(err, ErrNotRunning) {
			return o.Explanation, err
		}
	}
	return s.explain(ctx, id)
}

func (s *Solver) explain(ctx context.Context, id string) (*Explanation, error) {
	result := make(chan *Explanation, 1)
	switch err := s.command(ctx, id, command{explain: result}); {
	case err == nil:
		select {
		case e := <-result:
			return e, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	case !errors.Is(err, ErrNotRunning):
		return nil, err
	}
	kept, err := s.cfg.Store.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	var rec record
	if err := json.Unmarshal(kept.Request, &rec); err != nil {
		return nil, fmt.Errorf("read the request of run %s: %w", id, err)
	}
	if rec.Explanation == nil {
		return nil, fmt.Errorf("%w, and left no explanation", ErrNotRunning)
	}
	return rec.Explanation, nil
}
