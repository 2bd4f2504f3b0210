package anytime_test

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"anytime/internal/decode"
)

// cost is what a step of a simulated engine takes: fixed, for each sequence that gets a token, and for each token of prefill.
type cost struct{ step, sequence, prefill time.Duration }

// simEngine is a model of a batching engine: as the embedded one it decodes a token of every sequence in each step, up to so many
// sequences, chosen by class and deadline, and prefills in chunks beside them; steps take as long as what is in them. Its thoughts never
// end by themselves, and its answers have random lengths.
type simEngine struct {
	cost  cost
	slots int
	fifo  bool // sequences are chosen by age alone
	calm  bool // steps take exactly what they cost
	steps int
	rng   *rand.Rand

	ctx  context.Context
	stop context.CancelFunc
	wake chan struct{}
	done chan struct{}

	mu   sync.Mutex
	seqs []*simSeq
	ids  int
	busy time.Duration
}

var _ decode.Engine = (*simEngine)(nil)

func newSimEngine(w world, slots int, fifo bool) *simEngine {
	e := &simEngine{cost: w.cost, calm: w.calm, slots: slots, fifo: fifo, rng: rand.New(rand.NewPCG(w.seed, 1)), wake: make(chan struct{}, 1), done: make(chan struct{})}
	e.ctx, e.stop = context.WithCancel(context.Background())
	go e.run()
	return e
}

func (e *simEngine) Info() decode.Info {
	return decode.Info{
		Model: "simulated", ContextTokens: 1 << 20, MaxSequences: e.slots, AnswerSteps: simJoins, SpecialTokens: []string{"<think>", "</think>"},
		Capabilities: decode.Capabilities{TokenIDs: true, Forks: true, Adapters: true, Seed: true},
	}
}

// setCost changes the cost of what comes, and returns what it was.
func (e *simEngine) setCost(c cost) (before cost) {
	e.mu.Lock()
	defer e.mu.Unlock()
	before, e.cost = e.cost, c
	return before
}

func (e *simEngine) Ready(context.Context) error { return nil }
func (e *simEngine) Check(decode.Span) error     { return nil }

func (e *simEngine) Close() error {
	e.stop()
	<-e.done
	return nil
}

func (e *simEngine) Tokenize(_ context.Context, parts ...decode.Part) ([]decode.Token, error) {
	return make([]decode.Token, words(parts)), nil
}

func words(parts []decode.Part) (n int) {
	for _, p := range parts {
		n += len(strings.Fields(p.Text)) + len(p.IDs)
	}
	return n
}

// simSeq is a sequence; its engine's mutex guards it.
type simSeq struct {
	engine   *simEngine
	id       int // forks keep their parent's, and so its place in a queue
	fork     bool
	priority decode.Priority
	parent   *simSeq // of a fork that waits
	after    int
	prefill  int // tokens to go
	asked    time.Time
	began    time.Time
	forced   *decode.Prefill
	span     *decode.Span
	done     int // tokens of the span
	decoded  int
	answer   []string
	chunks   []decode.Chunk
	news     chan struct{}
	err      error
}

func (e *simEngine) Open(_ context.Context, r decode.Request) (decode.Sequence, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ids++
	s := &simSeq{engine: e, id: e.ids, priority: r.Priority, news: make(chan struct{}, 1)}
	e.seqs = append(e.seqs, s)
	s.force(words(r.Prompt))
	return s, nil
}

func (s *simSeq) force(n int) {
	s.prefill += n
	if s.asked.IsZero() {
		s.asked, s.forced = time.Now(), &decode.Prefill{}
	}
	s.forced.Tokens += n
	signal(s.engine.wake)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (s *simSeq) Append(parts ...decode.Part) error {
	s.engine.mu.Lock()
	defer s.engine.mu.Unlock()
	s.force(words(parts))
	return s.err
}

func (s *simSeq) Decode(span decode.Span) error {
	s.engine.mu.Lock()
	defer s.engine.mu.Unlock()
	s.span, s.done = &span, 0
	signal(s.engine.wake)
	return s.err
}

func (s *simSeq) Fork(after int, o decode.ForkOptions) (decode.Sequence, error) {
	e := s.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	f := &simSeq{engine: e, id: s.id, fork: true, priority: o.Priority, parent: s, after: after, news: make(chan struct{}, 1)}
	for range 4 + e.rng.IntN(12) {
		f.answer = append(f.answer, " so")
	}
	f.answer = append(f.answer, " \\boxed{", "1", "}")
	e.seqs = append(e.seqs, f)
	signal(e.wake)
	return f, s.err
}

func (s *simSeq) Cut() {
	s.engine.mu.Lock()
	defer s.engine.mu.Unlock()
	if s.span != nil {
		s.end(decode.Chunk{End: decode.EndCut})
	}
}

func (s *simSeq) SetPriority(p decode.Priority) {
	s.engine.mu.Lock()
	defer s.engine.mu.Unlock()
	s.priority = p
}

func (s *simSeq) Close() error {
	e := s.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	if s.err == nil {
		s.err = decode.ErrClosed
		e.seqs = slices.DeleteFunc(e.seqs, func(x *simSeq) bool { return x == s })
		for _, f := range e.seqs {
			if f.parent == s && f.after > s.decoded {
				f.parent, f.err = nil, decode.ErrNotReached
				signal(f.news)
			}
		}
	}
	signal(s.news)
	return nil
}

func (s *simSeq) Next(ctx context.Context) (decode.Chunk, error) {
	for {
		s.engine.mu.Lock()
		if len(s.chunks) > 0 {
			c := s.chunks[0]
			s.chunks = s.chunks[1:]
			s.engine.mu.Unlock()
			return c, nil
		}
		err := s.err
		s.engine.mu.Unlock()
		if err != nil {
			return decode.Chunk{}, err
		}
		select {
		case <-s.news:
		case <-ctx.Done():
			return decode.Chunk{}, ctx.Err()
		}
	}
}

// end delivers the last chunk of a span.
func (s *simSeq) end(c decode.Chunk) {
	s.span = nil
	s.deliver(c)
}

func (s *simSeq) deliver(c decode.Chunk) {
	if n := len(s.chunks); n > 0 && s.chunks[n-1].End == "" && c.Prefill == nil {
		s.chunks[n-1].Tokens = append(s.chunks[n-1].Tokens, c.Tokens...)
		s.chunks[n-1].End = c.End
	} else {
		s.chunks = append(s.chunks, c)
	}
	signal(s.news)
}

// begin starts the forks whose position is there. One of a parent that is not prefilled yet has to do that itself.
func (e *simEngine) begin() {
	for _, f := range e.seqs {
		if p := f.parent; p != nil && f.after <= p.decoded {
			f.parent = nil
			f.prefill += p.prefill
		}
	}
}

// run is the engine's loop.
func (e *simEngine) run() {
	defer close(e.done)
	for {
		e.mu.Lock()
		e.begin()
		batch, prefill, took := e.plan()
		e.mu.Unlock()
		var ready <-chan time.Time
		wake := e.wake
		if len(batch) > 0 {
			ready, wake = time.After(took), nil
		}
		select {
		case <-ready:
		case <-wake:
		case <-e.ctx.Done():
			return
		}
		e.mu.Lock()
		e.busy += took
		for _, s := range batch {
			e.step(s, prefill[s])
		}
		e.mu.Unlock()
	}
}

// plan chooses what goes into the next step.
func (e *simEngine) plan() (batch []*simSeq, prefill map[*simSeq]int, took time.Duration) {
	const whole, chunk = 512, 64
	prefill = map[*simSeq]int{}
	var wait []*simSeq
	for _, s := range e.seqs {
		if s.parent == nil && s.err == nil && s.span != nil {
			wait = append(wait, s)
		}
	}
	due := func(s *simSeq) int64 {
		if s.priority.Deadline.IsZero() {
			return math.MaxInt64
		}
		return s.priority.Deadline.UnixNano()
	}
	slices.SortStableFunc(wait, func(a, b *simSeq) int {
		if e.fifo {
			return cmp.Compare(a.id, b.id)
		}
		return cmp.Or(cmp.Compare(a.priority.Class, b.priority.Class), cmp.Compare(due(a), due(b)), cmp.Compare(a.id, b.id))
	})
	wait = wait[:min(len(wait), e.slots)]
	urgent := func(s *simSeq) bool { return s.priority.Class == decode.ClassAnswer && !s.priority.Deadline.IsZero() }
	if e.steps++; !e.fifo && e.steps%simJoins != 0 && slices.ContainsFunc(wait, urgent) {
		wait = slices.DeleteFunc(wait, func(s *simSeq) bool { return !urgent(s) })
	}
	room := whole
	if slices.ContainsFunc(wait, func(s *simSeq) bool { return s.prefill == 0 }) {
		room = chunk
	}
	took = e.cost.step
	for _, s := range wait {
		if s.prefill > 0 {
			n := min(s.prefill, room)
			if n == 0 {
				continue
			}
			room -= n
			prefill[s] = n
			took += time.Duration(n) * e.cost.prefill
			if s.began.IsZero() {
				s.began = time.Now()
			}
		}
		if prefill[s] == s.prefill {
			took += e.cost.sequence
		}
		batch = append(batch, s)
	}
	noise := 1.0
	if !e.calm { // 10 % from step to step, and now and then a stall
		noise = math.Exp(0.1 * e.rng.NormFloat64())
		if e.rng.IntN(500) == 0 {
			noise += 10
		}
	}
	return batch, prefill, time.Duration(float64(took) * noise)
}

// step gives a sequence what the step brought it.
func (e *simEngine) step(s *simSeq, prefilled int) {
	if s.err != nil {
		return
	}
	if s.prefill -= prefilled; s.prefill > 0 || s.span == nil {
		return
	}
	c := decode.Chunk{Tokens: []decode.Token{{ID: int32(s.decoded), Text: fmt.Sprintf(" %d", s.decoded), LogProb: -0.1}}}
	if f := s.forced; f != nil {
		f.Queued, f.Took = s.began.Sub(s.asked), time.Since(s.began)
		c.Prefill, s.forced, s.asked, s.began = f, nil, time.Time{}, time.Time{}
	}
	if s.fork {
		if s.done == len(s.answer) {
			c.Tokens = nil
			c.End = decode.EndEOG
			s.end(c)
			return
		}
		c.Tokens[0].Text = s.answer[s.done]
	}
	s.decoded++
	if s.done++; s.done == s.span.MaxTokens {
		c.End = decode.EndLimit
		s.end(c)
		return
	}
	s.deliver(c)
}
