package anytime

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"anytime/internal/budget"
	"anytime/internal/decode"
	"anytime/internal/decode/prompt"
	"anytime/internal/summarize"
)

// answered is the answer with which a run ends.
type answered struct {
	answer     *string
	summary    string
	confidence float64
	how        string // Stop.Answer
}

// concluded is what the forks at the end of the thinking gave.
type concluded struct {
	votes []summarize.Summary // those that were completed, or, when late, begun
	whole int                 // how many of them are complete
	first time.Time           // of the first answer token
	again []summarize.Summary // those before, that were closed again more firmly
	err   error
}

// closing is the forced text between thinking and answer. natural: the model has closed its thinking itself.
func (r *run) closing(natural, firm bool) []decode.Part {
	switch {
	case !r.prompt.Thinking:
		return nil
	case firm:
		return r.family.Firm()
	case natural:
		return r.family.Natural(r.req.Style)
	}
	return r.family.Cut(r.req.Style, r.req.BudgetMessage)
}

func (r *run) plan(natural bool, maxTokens int) summarize.Plan {
	p := summarize.Plan{
		Close: r.closing(natural, false),
		Span:  decode.Span{MaxTokens: maxTokens, MinTokens: 1, Sampling: r.req.Sampling, TopLogProbs: r.req.TopLogProbs},
		Stop:  slices.Concat(r.req.Stop, r.family.Stops),
	}
	if r.prompt.Thinking {
		p.Reasoning = r.family.Reasoning()
		p.Announced = r.req.Style == prompt.StylePaper && !r.req.Structured
	}
	p.Whole = r.req.Structured
	if r.req.GrammarOptional && !r.model.Engine.Info().Capabilities.Grammar {
		p.Span.Sampling.Grammar = ""
	}
	return p
}

// answerTokens is the cap of the final answer.
func (r *run) answerTokens() int {
	n := r.req.AnswerTokens
	if r.req.MaxTokens > 0 {
		n = max(1, r.req.MaxTokens-r.thought.tokens)
	}
	if size := r.model.Engine.Info().ContextTokens; size > 0 {
		n = min(n, size-r.promptTokens-r.meter.Used()-r.closeTokens)
	}
	return max(1, n)
}

// observe teaches the pace what a summary cost.
func (r *run) observe(s summarize.Summary) {
	if s.Tokens == 0 {
		return
	}
	r.model.Pace.ObserveOverhead(s.Prefill.Tokens-s.Prefill.Cached, s.First)
	r.model.Pace.ObserveSummary(s.Tokens-1, s.Took-s.First)
	r.model.Length.Observe(s.Tokens)
}

// answer takes the final answer at the head of the thinking. Errors: errLate with what there is, errCancelled, the engine's.
func (r *run) answer() (answered, error) {
	natural := r.closed
	r.tasks.conclude()
	r.load.concludes(r.share)
	said := r.resumed || len(r.earlier) > 0 // there may be text of an answer already
	final := r.standing(said)
	if final == nil {
		r.load.decode(r.share, r.req.Votes)
	}
	defer r.load.decode(r.share, 0)
	late := r.lateTimer()
	defer late.Stop()
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	results := make(chan concluded, 1)
	begin := func() {
		seq, position, natural, said := r.seq, r.meter.Used()-r.base, natural, said
		r.workers.Go(func() { results <- r.conclude(ctx, seq, position, natural, said) })
	}
	if final == nil {
		begin()
	}
	for failures := 0; final == nil || len(r.tasks.pending) > 0; {
		select {
		case <-r.ctx.Done():
			return answered{}, context.Cause(r.ctx)
		case <-late.C:
			if final != nil {
				return *final, nil // checkpoints still under way are not worth a deadline
			}
			cancel()
			r.reserved(false)
			return r.settle(<-results), errLate
		case c := <-r.commands:
			switch {
			case c.explain != nil:
				c.explain <- r.explanation()
			case c.peek != nil:
				r.tasks.take(r.meter.Used(), c.peek)
			}
		case t := <-r.tasks.results:
			r.tasks.settle(t)
		case c := <-results:
			if c.err != nil && failures < maxReopen && r.ctx.Err() == nil {
				failures++
				r.account.setbacks.Reopened++
				r.log.Warn("engine failed in mid-answer, answering again", "error", c.err)
				r.tasks.stop()
				_ = r.seq.Close()
				if err := r.reopen(late.C); err != nil {
					return answered{}, err
				}
				r.meter.Count(r.thought.tokens - r.meter.Used())
				natural, said = false, true // the model's own closing mark is not in the thought
				begin()
				continue
			}
			if c.err != nil {
				return answered{}, c.err
			}
			r.reserved(true)
			a := r.settle(c)
			if a.answer == nil {
				a = r.fallback(a)
			}
			final = &a
		}
	}
	return *final, nil
}

// standing is the answer that was taken on the way where that is the run's: the one on which the thinking settled, or, where an
// extension thought nothing, the one before it. nil: there is none.
func (r *run) standing(said bool) *answered {
	var c *Checkpoint
	if r.cause == budget.CauseConverged || r.cause == budget.CauseConfident { // and not the model's own end, which came before the cut
		c = r.tasks.settled
	}
	if n := len(r.earlier); r.start > 0 && r.thought.tokens == r.start && n > 0 && r.earlier[n-1].Tokens == r.start {
		c = &r.earlier[n-1]
	}
	if c == nil || c.Answer == "" || r.req.Votes > 1 || r.req.LogProbs {
		return nil
	}
	r.recorder.text(EventAnswer, TextData{Text: c.Summary, Reset: said}, nil)
	r.timings.FirstAnswerMS, r.timings.AnswerLatencyMS = r.timings.CutMS, 0
	return &answered{&c.Answer, c.Summary, c.Confidence, "checkpoint"}
}

// reserved teaches the pace whether the time that was kept for an answer sufficed.
func (r *run) reserved(sufficed bool) {
	if r.cause == budget.CauseDeadline {
		r.model.Pace.ObserveReserve(sufficed)
	}
}

// conclude forks the votes, and once more with a firmer closing if reasoning leaked into the answer or there is none. reset: the answer
// replaces what was said of one before.
func (r *run) conclude(ctx context.Context, seq decode.Sequence, position int, natural, reset bool) concluded {
	out := concluded{}
	plan := r.plan(natural, r.answerTokens())
	for firm := range 2 {
		if firm == 1 {
			out.again = out.votes
			plan.Close, plan.Announced = r.closing(natural, true), !r.req.Structured
		}
		votes, whole, err := r.votes(ctx, seq, position, plan, uint64(firm), func(s summarize.Delta, tokens int) {
			if out.first.IsZero() {
				out.first = time.Now()
			}
			r.recorder.text(EventAnswer, TextData{Text: s.Text, Tokens: tokens, Reset: reset, LogProbs: r.logProbs(s.Tokens)}, nil)
			reset = false
		})
		out.votes, out.whole, out.err = votes, whole, err
		if err != nil || ctx.Err() != nil || !r.leaked(votes[:whole]) {
			break
		}
		r.solver.cfg.Metrics.escaped()
		reset = true
	}
	return out
}

// leaked reports whether no vote is free of reasoning and holds an answer.
func (r *run) leaked(votes []summarize.Summary) bool {
	for _, v := range votes {
		if !v.Escaped && strings.TrimSpace(v.Text) != "" {
			return false
		}
	}
	return true
}

// votes takes all votes at once; a single one is streamed. When ctx ends, those that were begun come after those that are complete.
func (r *run) votes(ctx context.Context, seq decode.Sequence, position int, plan summarize.Plan, attempt uint64,
	onText func(summarize.Delta, int),
) (votes []summarize.Summary, whole int, err error) {
	n := r.req.Votes
	if n > 1 {
		plan.Span.Sampling.Temperature = *r.req.VoteTemperature
	}
	type vote struct {
		summary summarize.Summary
		err     error
	}
	taken := make([]vote, n)
	var wg sync.WaitGroup
	for i := range n {
		fork, err := seq.Fork(position, decode.ForkOptions{
			Seed: r.seed(1 + attempt*maxVotes + uint64(i)), Priority: r.priority(decode.ClassAnswer),
		})
		if err != nil {
			taken[i].err = err
			continue
		}
		var stream func(summarize.Delta)
		if n == 1 {
			tokens := 0
			stream = func(d summarize.Delta) {
				tokens += len(d.Tokens)
				onText(d, tokens)
			}
		}
		wg.Go(func() {
			defer fork.Close()
			taken[i].summary, taken[i].err = summarize.Take(ctx, fork, plan, stream)
		})
	}
	wg.Wait()
	var begun []summarize.Summary
	for _, v := range taken {
		switch {
		case v.err == nil:
			votes = append(votes, v.summary)
		case ctx.Err() != nil:
			begun = append(begun, v.summary)
		default:
			err = errors.Join(err, v.err)
		}
	}
	whole = len(votes)
	if whole > 0 || ctx.Err() != nil {
		err = nil // what there is can vote
	}
	if n > 1 && whole > 0 {
		if winner, _ := summarize.Majority(votes, equal); winner >= 0 {
			onText(summarize.Delta{Text: votes[winner].Text}, votes[winner].Tokens)
		}
	}
	return append(votes, begun...), whole, err
}

func (r *run) logProbs(tokens []decode.Token) []TokenLogProb {
	if !r.req.LogProbs {
		return nil
	}
	out := make([]TokenLogProb, len(tokens))
	for i, t := range tokens {
		out[i] = TokenLogProb{Token: t.Text, LogProb: t.LogProb}
		for _, c := range t.Top {
			out[i].Top = append(out[i].Top, TokenLogProb{Token: c.Text, LogProb: c.LogProb})
		}
	}
	return out
}

// spend counts tokens of answers; those of the answer that is returned are told apart from them at the end.
func (r *run) spend(tokens int) {
	r.usage.CheckpointTokens += tokens
	r.solver.cfg.Metrics.answered(tokens)
}

// settle turns votes into the answer; it is nil where there is none that could be relied on.
func (r *run) settle(c concluded) answered {
	if !c.first.IsZero() {
		r.timings.FirstAnswerMS = ms(c.first.Sub(r.req.Arrived))
		r.timings.AnswerLatencyMS = math.Round(1000*(r.timings.FirstAnswerMS-r.timings.CutMS)) / 1000
	}
	for _, v := range c.again {
		r.spend(v.Tokens)
		r.account.answer(r.meter.Used(), v)
	}
	for _, v := range c.votes {
		r.spend(v.Tokens)
		r.observe(v)
		r.account.answer(r.meter.Used(), v)
	}
	r.account.forks += len(c.again) + len(c.votes)
	if len(c.again) > 0 {
		r.account.reclosed++
	}
	winner, confidence := summarize.Majority(c.votes[:c.whole], equal)
	if winner >= 0 {
		confidence *= float64(c.whole) / float64(r.req.Votes) // votes that are missing agree with nobody
		v := c.votes[winner]
		r.usage.CheckpointTokens -= v.Tokens
		r.usage.SummaryTokens = v.Tokens
		how := "stop"
		if v.Ended == decode.EndLimit || v.Ended == decode.EndContext {
			how = "length"
		}
		return answered{&v.Answer, v.Text, confidence, how}
	}
	for _, v := range c.votes[c.whole:] { // cut at the deadline
		if strings.TrimSpace(v.Text) == "" {
			continue
		}
		r.usage.CheckpointTokens -= v.Tokens
		r.usage.SummaryTokens = v.Tokens
		a := answered{nil, v.Text, v.Confidence, "deadline"}
		if v.Marked {
			a.answer = &v.Answer
		}
		return a
	}
	return answered{how: "deadline"}
}

// fallback is the best there is where the end of the thinking gave no answer: the newest checkpoint's, else, unless the deadline
// forbids to call it one, what the thinking last said.
func (r *run) fallback(a answered) answered {
	if a.answer != nil {
		return a
	}
	if c, ok := r.tasks.newest(); ok {
		a = answered{&c.Answer, c.Summary, c.Confidence, "checkpoint"}
	} else if last := lastLine(r.thought.text); last != "" && r.cause != budget.CauseDeadline && !r.req.Structured {
		a = answered{&last, last, 0, "thinking"}
	} else {
		return a
	}
	r.recorder.text(EventAnswer, TextData{Text: a.summary, Reset: true}, nil)
	return a
}

// lastLine returns the answer in a thought's last line that holds one.
func lastLine(thought string) string {
	const longest = 200
	thought = strings.TrimSpace(thought)
	line := strings.TrimSpace(thought[strings.LastIndexByte(thought, '\n')+1:])
	answer := summarize.Extract(line, false).Answer
	if len(answer) > longest {
		answer = strings.ToValidUTF8(answer[len(answer)-longest:], "")
	}
	return answer
}
