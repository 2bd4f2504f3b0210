package anytime

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"anytime/internal/budget"
	"anytime/internal/decode"
	"anytime/internal/decode/prompt"
	"anytime/internal/elastic"
	"anytime/internal/store"
)

// Config is what a Solver needs.
type Config struct {
	Models  Models
	Store   store.Store
	Metrics *Metrics
	Tracer  trace.Tracer // nil: runs are not traced
	Logger  *slog.Logger
	// MaxRuns is how many runs may be under way at once; more are refused with ErrBusy. 0: 256.
	MaxRuns int
	// AnswerTokens is the cap of an answer where the request names none. 0: 128.
	AnswerTokens int
	// Elastic bounds what load may do to thinking. Its zero value leaves all thoughts as long as was asked for.
	Elastic elastic.Config
	// ElasticTokens shortens also thoughts whose length was asked for in tokens, which else is kept to the token; max, deadlines and
	// efforts leave room in any case.
	ElasticTokens bool
}

// Solver runs thoughts.
type Solver struct {
	cfg    Config
	shared store.Shared    // the store, where several servers share it; else nil
	ctx    context.Context // ends the runs' goroutines for good
	stop   context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	live     map[string]*run
	newest   time.Time              // of the runs created here
	loads    map[*budget.Pace]*load // by engine
	draining bool
}

// New returns a Solver. Close it after Drain.
func New(cfg Config) *Solver {
	if cfg.MaxRuns == 0 {
		cfg.MaxRuns = 256
	}
	if cfg.AnswerTokens == 0 {
		cfg.AnswerTokens = 128
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &Solver{cfg: cfg, ctx: ctx, stop: stop, live: map[string]*run{}, loads: map[*budget.Pace]*load{}}
	if shared, ok := cfg.Store.(store.Shared); ok {
		s.shared = shared
		shared.Obey(s.obey)
	}
	return s
}

// record is what the store keeps of a request.
type record struct {
	Request Request `json:"request"`
	// Cause is set once the thinking has ended.
	Cause budget.Cause `json:"cause,omitempty"`
	// Closed is set when the thinking ended by itself: an extension must open it again.
	Closed bool `json:"closed,omitempty"`
	// Checkpoints and Usage of the stretches of thinking before an extension.
	Checkpoints []Checkpoint `json:"checkpoints,omitempty"`
	Answered    int          `json:"answered,omitempty"` // tokens of all answers so far
	Start       int          `json:"start,omitempty"`    // thinking tokens before an extension
	Explanation *Explanation `json:"explanation,omitempty"`
	// Taken is how often in a row it was taken up without coming on, the first time when it had so many tokens.
	Taken   int `json:"taken,omitempty"`
	TakenAt int `json:"taken_at,omitempty"`

	events []Checkpoint // those found among the events, for a run that was not finished
}

// Start admits a request and lets it run. Errors: *RequestError, *decode.InputError, decode.ErrContextFull, ErrUnknownModel,
// decode.ErrUnknownAdapter, decode.ErrUnavailable, ErrBusy and *OverloadError, *DeadlineError, ErrDraining, the store's.
func (s *Solver) Start(ctx context.Context, req Request) (id string, err error) {
	defer func() { s.cfg.Metrics.refused(refusal(err)) }()
	if req.Arrived.IsZero() {
		req.Arrived = time.Now()
	}
	if err := validate(&req, s.cfg.AnswerTokens); err != nil {
		return "", err
	}
	r, err := s.admit(newID(), req, s.cfg.MaxRuns)
	if err != nil {
		return "", err
	}
	r.door = true
	if err := r.prepare(ctx, thought{}); err != nil {
		s.reprobe(r, err)
		s.dismiss(r)
		return "", err
	}
	// A client that leaves now must not leave a run behind that is kept and that nobody executes: whether it is kept must be known.
	err = s.cfg.Store.Create(context.WithoutCancel(ctx), store.Run{
		ID: r.id, Owner: req.Owner, Model: r.modelID, State: store.Running, Created: s.created(req.Arrived),
		Request: mustJSON(record{Request: req}),
	})
	if err != nil {
		s.dismiss(r)
		return "", fmt.Errorf("keep the run: %w", err)
	}
	s.launch(r)
	return r.id, nil
}

// created makes the times of runs distinct, in the microseconds that stores keep: lists are paged by them.
func (s *Solver) created(at time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if next := s.newest.Add(time.Microsecond); at.Before(next) {
		at = next
	}
	s.newest = at
	return at
}

// Extension is how a run that has ended thinks on.
type Extension struct {
	Budget  budget.Budget // on top of what was spent
	Arrived time.Time     // a deadline counts from here; zero: now
	Ended   func(thinkingTokens int)
}

// Extend lets a run that has ended think on from where it was cut. Errors: those of Start, store.ErrNotFound, ErrRunning.
func (s *Solver) Extend(ctx context.Context, id string, more Extension) (err error) {
	defer func() { s.cfg.Metrics.refused(refusal(err)) }()
	kept, err := s.cfg.Store.Get(ctx, id)
	if err != nil {
		return err
	}
	if kept.State == store.Running {
		return ErrRunning
	}
	s.gone(ctx, id)
	rec, t, err := s.recall(ctx, kept)
	if err != nil {
		return err
	}
	if rec.Request.Raw != "" || !rec.Request.Template.Thinking {
		return &RequestError{"budget", "this run did not think, so there is no thinking to go on with"}
	}
	req := rec.Request
	req.Arrived, req.Ended = more.Arrived, more.Ended
	if req.Arrived.IsZero() {
		req.Arrived = time.Now()
	}
	req.MaxTokens = 0
	req.Budget = more.Budget
	if more.Budget.Tokens >= 0 {
		req.Budget.Tokens = min(more.Budget.Tokens+t.tokens, budget.MaxTokens)
	}
	rec.Request = req
	r, err := s.admit(id, req, s.cfg.MaxRuns)
	if err != nil {
		return err
	}
	if rec.Closed {
		t.reopen = true
	}
	rec.Cause, rec.Closed, t.ended = "", false, false
	rec.Start, r.start = t.tokens, t.tokens
	r.earlier, r.usage.CheckpointTokens = rec.Checkpoints, rec.Answered
	r.door = true
	if err := r.prepare(ctx, t); err != nil {
		s.dismiss(r)
		return err
	}
	// With its first event: a server that dies now must leave an extension, not the first run once more.
	begun := store.Change{State: store.Running, Request: mustJSON(rec), Events: []store.Event{{Type: EventRun, Data: mustJSON(r.opening())}}}
	r.begun = true
	if _, err := s.cfg.Store.Append(context.WithoutCancel(ctx), id, begun); err != nil { // as in Start
		s.dismiss(r)
		if errors.Is(err, store.ErrLeased) { // another server was quicker to extend it
			return ErrRunning
		}
		return fmt.Errorf("keep the run: %w", err)
	}
	s.launch(r)
	return nil
}

// gone waits until a run is gone whose end was told already: who heard of it may be quick.
func (s *Solver) gone(ctx context.Context, id string) {
	s.mu.Lock()
	r := s.live[id]
	s.mu.Unlock()
	if r == nil || !r.told.Load() {
		return
	}
	select {
	case <-r.finished:
	case <-ctx.Done():
	}
}

// Recover takes up the runs that an earlier process left unfinished: they think on from the tokens that were committed, or answer
// if their time is up. Runs that cannot be taken up are failed, with the reason in their events. In a store that servers share, these
// are the runs of all servers that are dead by now; TakeOver sees to the others.
func (s *Solver) Recover(ctx context.Context) error {
	if s.shared != nil {
		for {
			if taken, err := s.takeOver(ctx); err != nil || taken == 0 {
				return err
			}
		}
	}
	for {
		left, err := s.cfg.Store.List(ctx, store.Filter{State: store.Running, Limit: 1000})
		if err != nil {
			return fmt.Errorf("find unfinished runs: %w", err)
		}
		taken := 0
		for _, kept := range left {
			s.mu.Lock()
			_, running := s.live[kept.ID]
			s.mu.Unlock()
			if running {
				continue
			}
			taken++
			if err := s.takeUp(ctx, kept); ctx.Err() != nil {
				return ctx.Err() // it stays unfinished, for the next process
			} else if err != nil {
				if err := s.giveUp(ctx, kept.ID, err); err != nil {
					return err
				}
			}
		}
		if taken == 0 {
			return nil
		}
	}
}

// giveUp fails a run that cannot be taken up.
func (s *Solver) giveUp(ctx context.Context, id string, why error) error {
	s.cfg.Logger.Error("unfinished run cannot be taken up", "run", id, "error", why)
	failure := ErrorData{Code: "restart", Message: "the server was restarted and could not take the run up: " + why.Error()}
	change := store.Change{State: store.Failed, Events: []store.Event{{Type: EventError, Data: mustJSON(failure)}}}
	if _, err := s.cfg.Store.Append(ctx, id, change); err != nil {
		return fmt.Errorf("fail run %s: %w", id, err)
	}
	return nil
}

// A run that is the death of its servers is taken up no more after so many deaths, between which it thought fewer tokens than these.
const (
	mostTaken = 5
	comesOn   = 100
)

func (s *Solver) takeUp(ctx context.Context, kept store.Run) error {
	rec, t, err := s.recall(ctx, kept)
	if err != nil {
		return err
	}
	if rec.Taken == 0 || t.tokens >= rec.TakenAt+comesOn {
		rec.Taken, rec.TakenAt = 0, t.tokens
	}
	if rec.Taken == mostTaken {
		return fmt.Errorf("it was taken up %d times, and each time its server ended before it came on", mostTaken)
	}
	rec.Taken++
	asked := rec.Request.Model
	rec.Request.Model = cmp.Or(kept.Model, asked) // what the name stood for when it began
	record := mustJSON(rec)
	if now := time.Now(); rec.Request.Arrived.After(now) { // the clock was set back
		rec.Request.Arrived = now
	}
	if d := rec.Request.Budget.Deadline; d > 0 && time.Since(rec.Request.Arrived) > d {
		// It passed while no server was there. An answer that is late is better than none.
		rec.Request.Budget.Deadline = 0
		rec.Cause = cmp.Or(rec.Cause, budget.CauseDeadline)
		t.ended = true
	}
	most := math.MaxInt // it was admitted, and those that came meanwhile must not keep it out
	if s.shared != nil {
		most = s.cfg.MaxRuns // another server may have room
	}
	r, err := s.admit(kept.ID, rec.Request, most)
	if err != nil {
		return err
	}
	r.earlier, r.usage.CheckpointTokens = slices.Concat(rec.Checkpoints, rec.events), rec.Answered
	r.cause, r.start = rec.Cause, rec.Start
	r.resumed, r.begun = true, kept.Last > 0
	err = r.prepare(ctx, t)
	if s.shared == nil && errors.Is(err, decode.ErrUnknownAdapter) { // no other server has it either
		r.req.Model = asked
		err = r.prepare(ctx, t)
	}
	if err != nil {
		s.dismiss(r)
		return err
	}
	if _, err := s.cfg.Store.Append(ctx, r.id, store.Change{Request: record}); err != nil {
		r.log.Warn("it is not kept that the run was taken up", "error", err)
	}
	s.launch(r)
	return nil
}

// admit makes room for a run among at most so many; dismiss or the run's end gives it back.
func (s *Solver) admit(id string, req Request, most int) (*run, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.draining:
		return nil, ErrDraining
	case len(s.live) >= most:
		return nil, ErrBusy
	case s.live[id] != nil:
		return nil, ErrRunning
	}
	r := &run{
		solver: s, id: id, req: req, log: s.cfg.Logger.With("run", id),
		commands: make(chan command), finished: make(chan struct{}),
	}
	r.ctx, r.cancel = context.WithCancelCause(s.ctx)
	s.live[id] = r
	return r, nil
}

// dismiss ends a run that was admitted and not launched.
func (s *Solver) dismiss(r *run) {
	r.close()
	s.mu.Lock()
	delete(s.live, r.id)
	s.mu.Unlock()
	r.taken = true
	close(r.finished) // Drain may wait for it, and, for an extension, others
}

func (s *Solver) launch(r *run) {
	s.cfg.Metrics.started()
	r.recorder = newRecorder(s.cfg.Store, r.id, r.log)
	s.wg.Go(func() {
		if err := r.recorder.run(s.ctx); err != nil {
			r.cancel(errTaken) // nobody would see what it thinks
		}
	})
	s.wg.Go(func() {
		r.main()
		r.tellEnded()
		s.mu.Lock()
		delete(s.live, r.id)
		s.mu.Unlock()
		close(r.finished)
	})
}

func (s *Solver) find(id string) *run {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live[id]
}

// RunError is why a run failed.
type RunError struct{ ErrorData }

func (e *RunError) Error() string { return e.Message }

// Wait returns a run's reply once it has ended; a *RunError if it failed.
func (s *Solver) Wait(ctx context.Context, id string) (Reply, error) {
	if r := s.find(id); r != nil {
		select {
		case <-r.finished:
			if r.failure != nil {
				return Reply{}, &RunError{*r.failure}
			}
			if !r.taken {
				return r.reply, nil
			}
		case <-ctx.Done():
			return Reply{}, ctx.Err()
		}
	}
	for {
		kept, err := s.cfg.Store.Get(ctx, id)
		if err != nil {
			return Reply{}, err
		}
		switch kept.State {
		case store.Finished:
			var reply Reply
			if err := json.Unmarshal(kept.Reply, &reply); err != nil {
				return Reply{}, fmt.Errorf("read the reply of run %s: %w", id, err)
			}
			return reply, nil
		case store.Failed:
			return Reply{}, s.failureOf(ctx, kept)
		}
		if err := s.cfg.Store.Wait(ctx, id, kept.Last); err != nil {
			return Reply{}, err
		}
	}
}

func (s *Solver) failureOf(ctx context.Context, kept store.Run) error {
	events, err := s.cfg.Store.Events(ctx, kept.ID, kept.Last-1, 1)
	if err != nil {
		return err
	}
	failure := ErrorData{Code: "internal", Message: "the run failed"}
	if len(events) == 1 && events[0].Type == EventError {
		if err := json.Unmarshal(events[0].Data, &failure); err != nil {
			return fmt.Errorf("read the error of run %s: %w", kept.ID, err)
		}
	}
	return &RunError{failure}
}

// Interrupt makes a run answer now. ErrNotRunning: it has ended already.
func (s *Solver) Interrupt(ctx context.Context, id string) error {
	if s.elsewhere(id) {
		_, err := s.ask(ctx, id, doInterrupt)
		return err
	}
	return s.command(ctx, id, command{cut: budget.CauseInterrupt})
}

// Peek returns an answer from the thinking so far while the thinking goes on.
func (s *Solver) Peek(ctx context.Context, id string) (Checkpoint, error) {
	if s.elsewhere(id) {
		o, err := s.ask(ctx, id, doPeek)
		if err != nil || o.Checkpoint == nil {
			return Checkpoint{}, err
		}
		return *o.Checkpoint, nil
	}
	return s.peek(ctx, id)
}

func (s *Solver) peek(ctx context.Context, id string) (Checkpoint, error) {
	result := make(chan peeked, 1)
	if err := s.command(ctx, id, command{peek: result}); err != nil {
		return Checkpoint{}, err
	}
	select {
	case p := <-result:
		return p.checkpoint, p.err
	case <-ctx.Done():
		return Checkpoint{}, ctx.Err()
	}
}

// Leave tells a run that its client is gone.
func (s *Solver) Leave(id string) {
	r := s.find(id)
	if r == nil {
		return
	}
	switch r.req.OnDisconnect {
	case Continue:
	case Answer:
		select {
		case r.commands <- command{cut: budget.CauseInterrupt}:
		case <-r.finished:
		}
	default:
		r.cancel(errCancelled)
	}
}

// Cancel stops a run that is to be deleted, without an answer, and waits until it has ended.
func (s *Solver) Cancel(ctx context.Context, id string) error {
	if s.elsewhere(id) {
		_, err := s.ask(ctx, id, doCancel)
		return err
	}
	return s.cancel(ctx, id)
}

func (s *Solver) cancel(ctx context.Context, id string) error {
	r := s.find(id)
	if r == nil {
		if _, err := s.cfg.Store.Get(ctx, id); err != nil {
			return err
		}
		return ErrNotRunning
	}
	r.cancel(errDeleted)
	select {
	case <-r.finished:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Solver) command(ctx context.Context, id string, c command) error {
	r := s.find(id)
	if r == nil {
		if _, err := s.cfg.Store.Get(ctx, id); err != nil {
			return err
		}
		return ErrNotRunning
	}
	select {
	case r.commands <- c:
		return nil
	case <-r.finished:
		return ErrNotRunning
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Drain admits nothing more, makes every run answer, and returns when all have ended, or with ctx's error.
func (s *Solver) Drain(ctx context.Context) error {
	s.mu.Lock()
	s.draining = true
	live := make([]*run, 0, len(s.live))
	for _, r := range s.live {
		live = append(live, r)
	}
	s.mu.Unlock()
	for _, r := range live {
		s.wg.Go(func() {
			select {
			case r.commands <- command{cut: budget.CauseDrain}:
			case <-r.finished:
			case <-s.ctx.Done():
			}
		})
	}
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close stops what Drain has left; those runs are taken up by the next process's Recover.
func (s *Solver) Close() error {
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
	s.stop()
	s.wg.Wait()
	return nil
}

// Live is how many runs are under way.
func (s *Solver) Live() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.live)
}

// newID returns 128 random bits.
func newID() string {
	var b [16]byte
	rand.Read(b[:]) //nolint:errcheck // crypto/rand.Read never fails
	return "run_" + base64.RawURLEncoding.EncodeToString(b[:])
}

func isGone(err error) bool {
	return errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrClosed) || errors.Is(err, store.ErrLeased)
}

// voteTemperature makes votes differ where the request is greedy.
const voteTemperature = 0.6

// bounds of a request, beyond those of its parts.
const (
	maxVotes        = 16
	maxAnswerTokens = 1 << 16
	maxStops        = 16
	maxStopBytes    = 256
)

func validate(req *Request, answerTokens int) error {
	between := func(field string, n, low, high int) error {
		if n < low || n > high {
			return &RequestError{field, fmt.Sprintf("is %d; it must be %d to %d", n, low, high)}
		}
		return nil
	}
	if req.AnswerTokens == 0 {
		req.AnswerTokens = answerTokens
	}
	if req.Votes == 0 {
		req.Votes = 1
	}
	if req.VoteTemperature == nil {
		t := req.Sampling.Temperature
		if t == 0 {
			t = voteTemperature
		}
		req.VoteTemperature = &t
	}
	if req.Priority == 0 {
		req.Priority = DefaultPriority
	}
	if req.OnDisconnect == "" {
		req.OnDisconnect = Cancel
	}
	if req.Style == "" {
		req.Style = prompt.StylePaper
	}
	if (len(req.Messages) == 0) == (req.Raw == "") {
		return &RequestError{"messages", "give either messages (at least one) or a raw prompt"}
	}
	switch req.OnDisconnect {
	case Cancel, Answer, Continue:
	default:
		return &RequestError{"on_disconnect", fmt.Sprintf("is %q; it must be cancel, answer or continue", req.OnDisconnect)}
	}
	for _, stop := range req.Stop {
		if stop == "" || len(stop) > maxStopBytes {
			return &RequestError{"stop", fmt.Sprintf("has a string of %d bytes; each must have 1 to %d", len(stop), maxStopBytes)}
		}
	}
	return errors.Join(
		between("votes", req.Votes, 1, maxVotes),
		between("priority", req.Priority, 1, MaxPriority),
		between("answer_tokens", req.AnswerTokens, 1, maxAnswerTokens),
		between("max_tokens", req.MaxTokens, 0, budget.MaxTokens),
		between("stop", len(req.Stop), 0, maxStops),
		between("top_logprobs", req.TopLogProbs, 0, 20),
		sampling(req.Sampling),
		sampling(decode.Sampling{Temperature: *req.VoteTemperature}),
	)
}

func sampling(s decode.Sampling) error {
	in := func(field string, v, low, high float32) error {
		if !(v >= low && v <= high) { // NaN is in no range
			return &RequestError{field, fmt.Sprintf("is %v; it must be %v to %v", v, low, high)}
		}
		return nil
	}
	if s.TopK < 0 {
		return &RequestError{"top_k", fmt.Sprintf("is %d; it must be 0 (off) or more", s.TopK)}
	}
	return errors.Join(
		in("temperature", s.Temperature, 0, 5),
		in("top_p", s.TopP, 0, 1),
		in("min_p", s.MinP, 0, 1),
	)
}
