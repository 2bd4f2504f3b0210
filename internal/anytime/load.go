package anytime

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"anytime/internal/budget"
	"anytime/internal/elastic"
)

// load is the runs that share an engine: whether one more may begin, how long each may think, and in what company it will answer.
type load struct {
	cfg   elastic.Config
	pace  *budget.Pace
	slots int // sequences that the engine decodes at once
	joins int // see decode.Info
	users int // guarded by Solver.mu

	mu        sync.Mutex // guards what follows, and the claims
	claims    []*claim
	thinking  int       // sequences
	answering int       // likewise, of votes
	urgent    int       // of these, those with a deadline
	calm      time.Time // since when there has been none of those
	smoother  elastic.Smoother
	balanced  time.Time
	probed    time.Time // see probe.go
}

// claim is one run's part in a load.
type claim struct {
	elastic.Run
	allowed  int // thinking tokens, like Limit beyond those that the run began with
	used     int
	reserve  time.Duration // before the deadline
	deadline time.Time
	votes    int
	closing  int // tokens that close the thinking for a vote
	prompt   int // tokens that are not prefilled yet
	decoding int // sequences
	answers  bool
}

// balanceEvery is how often what each may think is reckoned anew where no run comes or goes.
const balanceEvery = 100 * time.Millisecond

// DeadlineError refuses a deadline that could not be met even by answering at once.
type DeadlineError struct {
	Deadline time.Duration
	Shortest time.Duration // that could be met at the moment; 0: not known, for the model is not loaded
	Retry    time.Duration // until it may be otherwise
}

func (e *DeadlineError) Error() string {
	if e.Shortest == 0 {
		return fmt.Sprintf("the deadline of %v passed while the model was being loaded; ask again", e.Deadline)
	}
	return fmt.Sprintf("a deadline of %v cannot be met, even by answering at once; the shortest that could be is %v", e.Deadline, e.Shortest)
}

// OverloadError refuses a run beside which thoughts would have to be shortened below their floor.
type OverloadError struct {
	Retry time.Duration // until there may be room
}

func (e *OverloadError) Error() string {
	return "too many runs: with one more all would have to think less than the least that is configured"
}

// Unwrap makes it an ErrBusy.
func (e *OverloadError) Unwrap() error { return ErrBusy }

// load returns that of a model's engine; release it.
func (s *Solver) load(m *Model) *load {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.loads[m.Pace]
	if l == nil {
		info := m.Engine.Info()
		slots := info.MaxSequences
		if slots <= 0 {
			slots = math.MaxInt32
		}
		l = &load{cfg: s.cfg.Elastic, pace: m.Pace, slots: slots, joins: max(1, info.AnswerSteps)}
		s.loads[m.Pace] = l
	}
	l.users++
	return l
}

func (s *Solver) release(l *load) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(s.loads, l.pace)
	}
}

// join adds a claim, whose run's meter says what an answer at once would take. At the door a run is refused that could not be
// served as promised: *DeadlineError, *OverloadError.
func (l *load) join(c *claim, m *budget.Meter, now, arrived time.Time, door bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	m.Expect(l.company(c, m))
	c.reserve = m.Reserve()
	if door && l.pace.Measured() {
		if soonest := now.Add(m.Soonest()); !c.deadline.IsZero() && soonest.After(c.deadline) {
			const unit = 10 * time.Millisecond
			return &DeadlineError{
				Deadline: c.deadline.Sub(arrived), Shortest: (soonest.Sub(arrived) + unit).Truncate(unit), Retry: l.retry(),
			}
		}
		slowdown := l.slowdown(1)
		l.reach(c, now, slowdown)
		if _, fits := l.cfg.Share(slowdown, append(l.runs(), c.Run)); !fits {
			return &OverloadError{Retry: l.retry()}
		}
	}
	l.claims = append(l.claims, c)
	l.balance(now)
	return nil
}

func (l *load) leave(c *claim) {
	l.decode(c, 0)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.claims = slices.DeleteFunc(l.claims, func(x *claim) bool { return x == c })
}

// decode notes how many sequences decode for a claim from now on.
func (l *load) decode(c *claim, sequences int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.urgent
	l.count(c, -c.decoding)
	c.decoding = sequences
	l.count(c, sequences)
	if before > 0 && l.urgent == 0 {
		l.calm = time.Now()
	}
	l.pace.SetLoad(l.shared(float64(l.thinking), float64(l.answering), l.urgent > 0))
}

// count adds sequences of a claim to those that decode. The caller holds mu.
func (l *load) count(c *claim, n int) {
	if !c.answers {
		l.thinking += n
		return
	}
	l.answering += n
	if !c.deadline.IsZero() {
		l.urgent += n
	}
}

// shared is how many sequences a thought, and an answer, shares a step with on average; urgent: answers with a deadline, for which
// the rest makes way.
func (l *load) shared(thinking, answering float64, urgent bool) (thought, answer float64) {
	slots := float64(l.slots)
	thought = min(thinking+answering, slots)
	if answer = thought; urgent {
		answer = min(answering, slots) + min(thinking, slots)/float64(l.joins)
	}
	return thought, answer
}

// undisturbed says whether nothing has had to make way for an answer since a time. What took longer than it would have else is no
// measure of the pace.
func (l *load) undisturbed(since time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.joins == 1 || l.urgent == 0 && !l.calm.After(since)
}

func (l *load) prefilled(c *claim) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.prompt = 0
}

// concludes notes that a run has ended its thinking and answers.
func (l *load) concludes(c *claim) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.answers, c.Fixed, c.Limit = true, true, c.used
}

// exceeded says whether a run that has thought for so many tokens must end for the others' sake.
func (l *load) exceeded(c *claim, used int, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.used = used
	if now.Sub(l.balanced) >= balanceEvery {
		l.balance(now)
	}
	return used >= c.allowed && c.allowed < c.Limit
}

// expect tells a run's meter in what company its answer will be taken.
func (l *load) expect(c *claim, m *budget.Meter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m.Expect(l.company(c, m))
	c.reserve = m.Reserve()
}

// company is what c's answer shares the engine with: its own votes, those that decode now, and the answers of runs with deadlines, which
// are taken as late as can be, as far as they overlap. The caller holds mu, as for all below.
func (l *load) company(c *claim, m *budget.Meter) budget.Company {
	with := budget.Company{Prefill: c.prompt + (c.votes-1)*c.closing}
	near := m.Expected()
	thinking, answering, waiting := 0.0, float64(c.votes), c.votes
	for _, x := range l.claims {
		switch {
		case x == c:
			continue
		case x.deadline.IsZero():
			thinking += float64(x.decoding) // or an answer that makes way as well
			continue
		}
		overlap := max(0, 1-float64(x.deadline.Sub(c.deadline).Abs())/float64(near))
		answering += overlap * float64(x.votes)
		thinking += (1 - overlap) * float64(x.decoding)
		if overlap == 0 {
			continue
		}
		waiting += x.votes
		first := 0
		if !x.answers {
			first = x.votes * x.closing
		}
		if x.deadline.Before(c.deadline) {
			first += x.prompt
		}
		with.Prefill += int(overlap * float64(first))
	}
	with.Rounds = (waiting - 1) / l.slots
	_, with.Answer = l.shared(thinking, answering, true)
	return with
}

// slowdown is how many times as slow as alone a run is, with so many more: sequences slow one another, and wait where there are more
// than the engine decodes at once.
func (l *load) slowdown(more int) float64 {
	n := max(l.thinking+l.answering, len(l.claims)) + more
	return l.pace.Slowdown(float64(min(n, l.slots))) * max(1, float64(n)/float64(l.slots))
}

func (l *load) runs() []elastic.Run {
	runs := make([]elastic.Run, len(l.claims), len(l.claims)+1)
	for i, c := range l.claims {
		runs[i] = c.Run
	}
	return runs
}

// balance reckons anew what each may think.
func (l *load) balance(now time.Time) {
	l.balanced = now
	slowdown := l.smoother.Observe(now, l.slowdown(0))
	for _, c := range l.claims {
		l.reach(c, now, slowdown)
	}
	tokens, _ := l.cfg.Share(slowdown, l.runs())
	for i, c := range l.claims {
		c.allowed = tokens[i]
	}
}

// reach reckons how far a run can come as things are.
func (l *load) reach(c *claim, now time.Time, slowdown float64) {
	if c.Reach = c.Limit; !c.deadline.IsZero() {
		left := max(0, c.deadline.Sub(now)-c.reserve)
		c.Reach = min(c.Limit, c.used+int(float64(left)/(float64(l.pace.Alone())*max(1, slowdown))))
	}
}

// retry is about how long it takes until the next run ends.
func (l *load) retry() time.Duration {
	const most = time.Minute
	soonest := most
	for _, c := range l.claims {
		left := min(l.pace.Thinking(1)*time.Duration(max(0, min(c.allowed, 1<<20)-c.used)), most)
		soonest = min(soonest, left+l.pace.Summary(c.closing, 0))
	}
	if len(l.claims) == 0 {
		return time.Second
	}
	return max(time.Second, soonest)
}

// claim makes the run's part in the load of its engine.
func (r *run) claim() *claim {
	cfg := &r.solver.cfg
	c := &claim{
		Run: elastic.Run{
			Key: r.req.Owner, Weight: float64(r.req.Priority), Limit: max(0, r.meter.Limit()-r.thought.tokens), Curve: r.model.Curve,
			Fixed: r.req.Budget.Tokens >= 0 && r.req.Budget.Deadline == 0 && r.req.Template.Effort == "" && !cfg.ElasticTokens,
		},
		deadline: r.deadline, votes: r.req.Votes, closing: r.cutTokens, prompt: r.model.Pace.Fresh(r.promptTokens + r.thought.tokens),
	}
	if !r.deadline.IsZero() { // it cannot think longer than until then, however fast
		left := max(0, time.Until(r.deadline)-r.meter.Reserve())
		c.Limit = min(c.Limit, int(left/r.model.Pace.Alone())+1)
	}
	return c
}

// join makes the run a part of its engine's load.
func (r *run) join() error {
	r.share, r.load = r.claim(), r.solver.load(r.model)
	return r.load.join(r.share, r.meter, time.Now(), r.req.Arrived, r.door)
}

// refusal is why a run was not admitted, for the metrics; "" it was at fault itself.
func refusal(err error) string {
	var deadline *DeadlineError
	var overload *OverloadError
	switch {
	case errors.As(err, &deadline):
		return "deadline"
	case errors.As(err, &overload):
		return "overload"
	case errors.Is(err, ErrBusy):
		return "runs"
	}
	return ""
}
