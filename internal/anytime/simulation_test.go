package anytime_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/decode/prompt"
	"anytime/internal/elastic"
	"anytime/internal/store/memory"
)

// The simulation runs the real solver, meters, paces and controller on a simulated engine, in a bubble of synctest, where minutes take
// a second. TestPlots draws it for docs/elastic.md.

// arrival is a request of a simulation.
type arrival struct {
	at       time.Duration
	key      string
	kind     int           // of question: which curve
	deadline time.Duration // 0 none, but patience
	prompt   int           // words
}

// world is what a simulation draws at random.
type world struct {
	seed     uint64
	calm     bool // the engine has no noise
	cost     cost
	curves   []*budget.Curve
	arrivals []arrival
}

// draw makes a world whose load is so many times what the engine can do if thoughts are as long as their deadlines allow on an idle
// engine, or, where they have none, 300 tokens. bursty: arrivals come in bursts of up to 8.
func draw(seed uint64, n int, load float64, bursty bool) world {
	rng := rand.New(rand.NewPCG(seed, 2))
	between := func(low, high float64) float64 { return low + (high-low)*rng.Float64() }
	ms := float64(time.Millisecond)
	w := world{seed: seed}
	w.cost = cost{time.Duration(between(2, 12) * ms), time.Duration(between(2, 6) * ms), time.Duration(between(0.1, 0.5) * ms)}
	for range 4 { // from easy to hard: how accurate without thought, how far it rises, how soon
		start, rise, knee := between(0, 0.4), between(0.3, 0.6), math.Exp(between(math.Log(15), math.Log(300)))
		w.curves = append(w.curves, saturating(start, start+rise, knee))
	}
	alone := w.cost.step + w.cost.sequence
	mean := 0.0 // engine time of a request
	for range n {
		floor := 60*float64(w.cost.prefill) + 25*float64(alone)
		d := floor * math.Exp(between(math.Log(1.5), math.Log(20)))
		w.arrivals = append(w.arrivals, arrival{
			key: []string{"a", "b", "c"}[rng.IntN(3)], kind: rng.IntN(4), deadline: time.Duration(d), prompt: 20 + rng.IntN(60),
		})
		tokens := d / float64(alone)
		if rng.Float64() < 0.4 { // asks for as much as it may have, and waits
			w.arrivals[len(w.arrivals)-1].deadline = 0
			tokens = 300
		}
		mean += tokens * float64(w.cost.sequence) / float64(n)
	}
	at := 0.0
	for i := range w.arrivals {
		if !bursty || i%8 == 0 {
			gap := rng.ExpFloat64() * mean / load
			if bursty {
				gap *= 8
			}
			at += gap
		}
		w.arrivals[i].at = time.Duration(at)
	}
	return w
}

// saturating is a curve that rises from start to end, most of the way in the first knee tokens.
func saturating(start, end, knee float64) *budget.Curve {
	c := &budget.Curve{Model: "m"}
	for _, b := range []int{0, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048} {
		a := start + (end-start)*(1-math.Exp(-float64(b)/knee))
		c.Points = append(c.Points, budget.CurvePoint{Budget: b, Tokens: float64(b), Accuracy: a, Low: a, High: a})
		if c.Default == 0 && a > start+0.95*(end-start) {
			c.Default = b
		}
	}
	return c
}

// policy is what serves a world.
type policy struct {
	name    string
	elastic elastic.Config
	all     bool // token budgets are elastic as well
	curves  bool // are known
	runs    int  // at once; 0 the default
	cap     int  // thinking tokens that max stands for; 0 simCap
	fifo    bool // no deadlines: a fixed budget of what would fit an idle engine, first come first served
}

const (
	simSlots = 32
	simJoins = 4
	simCap   = 2000 // thinking tokens
	patience = time.Minute
)

var simElastic = elastic.Config{Slowdown: 1.5, Floor: 16}

var policies = []policy{
	{name: "elastic, by gain", elastic: simElastic, curves: true},
	{name: "elastic, in proportion", elastic: simElastic},
	{name: "deadlines alone"},
	{name: "refusing", runs: 4, cap: 300},
	{name: "FIFO", runs: 4096, cap: 300, fifo: true},
}

// ended is what became of a request.
type ended struct {
	refused    bool
	thought    int
	answered   bool // not a checkpoint, and not nothing
	cause      budget.Cause
	took, late time.Duration
	accuracy   float64 // expected; 0 where it was not in time
}

// simulation is a solver over a simulated engine.
type simulation struct {
	*anytime.Solver
	cfg    anytime.Config
	engine *simEngine
}

// variants are models that differ in their curves and share an engine.
type variants struct {
	all map[string]*anytime.Model
}

func (v *variants) Acquire(_ context.Context, name string) (*anytime.Model, func(), error) {
	return v.all[name], func() {}, nil
}

// simulate runs a test over a policy's solver, whose pace was measured before, as the catalog does it.
func simulate(t *testing.T, w world, p policy, run func(*simulation)) {
	synctest.Test(t, func(t *testing.T) {
		slots := simSlots
		if p.fifo {
			slots = 8
		}
		e := newSimEngine(w, slots, p.fifo)
		renderer, err := prompt.New(e.Info(), prompt.Detect(e.Info()), "")
		if err != nil {
			t.Fatal(err)
		}
		pace, length := budget.NewPace(budget.Snapshot{}), new(budget.Length)
		v := &variants{map[string]*anytime.Model{}}
		for i, c := range w.curves {
			name := fmt.Sprint("m", i)
			m := &anytime.Model{ID: name, Engine: e, Renderer: renderer, Pace: pace, Length: length, MaxThinking: cmp.Or(p.cap, simCap)}
			if p.curves {
				m.Curve = c
			}
			v.all[name] = m
		}
		kept := memory.New(memory.Options{})
		s := &simulation{engine: e, cfg: anytime.Config{
			Models: v, Store: kept, Metrics: anytime.NewMetrics(prometheus.NewRegistry()), Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
			MaxRuns: p.runs, AnswerTokens: 32, Elastic: p.elastic, ElasticTokens: p.all,
		}}
		s.Solver = anytime.New(s.cfg)
		for range 3 {
			id, err := s.Start(t.Context(), s.ask(arrival{prompt: 80}, budget.Budget{Tokens: 80}))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Wait(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		run(s)
		if err := errors.Join(s.Close(), e.Close(), kept.Close()); err != nil {
			t.Error(err)
		}
	})
}

func (s *simulation) ask(a arrival, b budget.Budget) anytime.Request {
	return anytime.Request{
		Model: fmt.Sprint("m", a.kind), Owner: a.key, Budget: b, Template: prompt.Options{Thinking: true}, OnDisconnect: anytime.Continue,
		Messages: []prompt.Message{{Role: "user", Content: strings.Repeat("why ", a.prompt)}},
	}
}

// serve lets a request come at its time, and tells what became of it.
func (s *simulation) serve(w world, p policy, a arrival) (r ended) {
	time.Sleep(a.at)
	b := budget.Budget{Tokens: budget.Unlimited, Deadline: a.deadline}
	if p.fifo {
		alone := w.cost.step + w.cost.sequence
		left := a.deadline - time.Duration(a.prompt)*w.cost.prefill - 25*alone
		b = budget.Budget{Tokens: max(0, int(left/alone))}
		if a.deadline == 0 {
			b.Tokens = budget.Unlimited
		}
	}
	began := time.Now()
	id, err := s.Start(context.Background(), s.ask(a, b))
	if err != nil {
		if !errors.Is(err, anytime.ErrBusy) && !errors.As(err, new(*anytime.DeadlineError)) {
			panic(err)
		}
		return ended{refused: true}
	}
	reply, err := s.Wait(context.Background(), id)
	if err != nil {
		panic(err)
	}
	r = ended{thought: reply.Usage.ThinkingTokens, cause: reply.Stop.Cause, took: time.Since(began)}
	r.answered = reply.Answer != nil && reply.Stop.Answer != "checkpoint"
	r.late = r.took - patience
	if a.deadline > 0 {
		r.late = r.took - a.deadline
	}
	tokens := r.thought
	if reply.Stop.Answer == "checkpoint" {
		tokens = reply.Checkpoints[len(reply.Checkpoints)-1].Tokens
	}
	if reply.Answer != nil && r.late <= 50*time.Millisecond {
		r.accuracy = w.curves[a.kind].At(float64(tokens))
	}
	return r
}

// play serves all of a world's requests.
func play(t *testing.T, w world, p policy) []ended {
	results := make([]ended, len(w.arrivals))
	simulate(t, w, p, func(s *simulation) {
		var wg sync.WaitGroup
		for i, a := range w.arrivals {
			wg.Go(func() { results[i] = s.serve(w, p, a) })
		}
		wg.Wait()
	})
	return results
}

// score sums up what became of requests.
type score struct {
	accuracy float64 // expected, of all requests; refused and late ones are wrong
	inTime   float64 // share of all requests that were answered, and in time
	whole    float64 // share of the admitted that had an answer of their own, no checkpoint's, in time
	kept     float64 // share of the admitted that were over by the deadline + 50 ms
	refused  float64
}

func rate(results []ended) (s score) {
	n, admitted := float64(len(results)), 0.0
	for _, r := range results {
		if r.refused {
			s.refused += 1 / n
			continue
		}
		admitted++
		s.accuracy += r.accuracy / n
		if r.late <= 50*time.Millisecond {
			s.kept++
			if r.answered {
				s.whole++
				s.inTime += 1 / n
			}
		}
	}
	s.whole /= max(1, admitted)
	s.kept /= max(1, admitted)
	return s
}

// bound is an accuracy that no schedule can exceed: a relaxation in which thinking can be divided at will, steps are always full, and
// what comes is known beforehand. It is the Lagrangian dual: whatever the prices of the engine's time, moment by moment, what all requests
// together gain beyond what they would pay for at most, and the prices, are a bound. The prices are found by subgradient descent, in
// which a request takes its time evenly from where it is cheapest.
func bound(w world) float64 {
	const bin, answer = 0.25, 4 + 3 // seconds, tokens at least
	bins := int((w.arrivals[len(w.arrivals)-1].at+patience).Seconds()/bin) + 1
	token := w.cost.sequence.Seconds() + w.cost.step.Seconds()/simSlots // of the engine's time
	alone := (w.cost.step + w.cost.sequence).Seconds()
	price, use := make([]float64, bins), make([]float64, bins)
	best := math.Inf(1)
	const iterations = 300
	for k := range iterations {
		clear(use)
		value := 0.0
		for _, p := range price {
			value += p * bin
		}
		for _, a := range w.arrivals {
			left := cmp.Or(a.deadline, patience) + 50*time.Millisecond
			from, to := int(a.at.Seconds()/bin), min(bins-1, int((a.at+left).Seconds()/bin))
			lowest := slices.Min(price[from : to+1])
			fixed := float64(a.prompt)*w.cost.prefill.Seconds() + answer*token
			most := min(simCap, max(0, left.Seconds()/alone-answer)) // no faster than alone
			gain, seconds := 0.0, 0.0
			for _, p := range w.curves[a.kind].Points { // concave: the best is at a point or at the most
				b := min(float64(p.Budget), most)
				if g := w.curves[a.kind].At(b) - lowest*(fixed+b*token); g > gain {
					gain, seconds = g, fixed+b*token
				}
			}
			value += gain
			var cheap []int
			for t := from; t <= to; t++ {
				if price[t] <= lowest+0.01 {
					cheap = append(cheap, t)
				}
			}
			for _, t := range cheap {
				use[t] += seconds / float64(len(cheap))
			}
		}
		best = min(best, value)
		for t := range price {
			price[t] = max(0, price[t]+0.3/math.Sqrt(float64(k+1))*(use[t]-bin))
		}
	}
	return best / float64(len(w.arrivals))
}

// compare plays worlds under every policy, and returns the means of the scores by policy and of the bound.
func compare(t *testing.T, worlds uint64, requests int, load float64) (scores []score, best float64) {
	scores = make([]score, len(policies))
	for seed := range worlds {
		w := draw(seed+100, requests, load, seed%2 == 1)
		best += bound(w) / float64(worlds)
		for i, p := range policies {
			s, sum := rate(play(t, w, p)), &scores[i]
			sum.accuracy += s.accuracy / float64(worlds)
			sum.inTime += s.inTime / float64(worlds)
			sum.whole += s.whole / float64(worlds)
			sum.kept += s.kept / float64(worlds)
			sum.refused += s.refused / float64(worlds)
		}
	}
	return scores, best
}

// Over worlds drawn at random elastic budgets are ahead of deadlines alone, of refusing and of FIFO, by far, and with known curves of
// cutting in proportion, in expected accuracy and in answers on time; who is admitted has a whole answer in time.
func TestSimulatedLoad(t *testing.T) {
	scores, best := compare(t, 2, 120, 2)
	for i, s := range scores {
		t.Logf("%-24s accuracy %.3f (%2.0f %% of the bound), in time %.3f, kept %.3f, refused %.3f", policies[i].name, s.accuracy, 100*s.accuracy/best, s.inTime, s.kept, s.refused)
		if s.accuracy > best {
			t.Errorf("%s is better than can be", policies[i].name)
		}
	}
	gain, proportion := scores[0], scores[1]
	if gain.kept < 0.98 || gain.whole < 0.96 {
		t.Errorf("%.3f of the admitted were over in time, %.3f with a whole answer", gain.kept, gain.whole)
	}
	if gain.accuracy < 0.5*best || gain.accuracy < proportion.accuracy-0.02 || gain.inTime < proportion.inTime+0.02 {
		t.Errorf("by gain %+v, in proportion %+v", gain, proportion)
	}
	for i, s := range scores[2:] {
		if proportion.accuracy < s.accuracy+0.05 || proportion.inTime < s.inTime+0.1 {
			t.Errorf("in proportion %+v, %s %+v", proportion, policies[2+i].name, s)
		}
	}
}

// jain is Jain's index of fairness: 1 where all have the same, 1/n where one has all.
func jain(x []float64) float64 {
	sum, squares := 0.0, 0.0
	for _, v := range x {
		sum += v
		squares += v * v
	}
	return sum * sum / (float64(len(x)) * squares)
}

// flood is a world in which the engine, of 10 ms a step alone and 4 ms more for each further sequence, gets so many requests a second, all
// for as much thinking as there may be, evenly or at random.
func flood(seed uint64, n int, each float64, random bool, key func(i int) string) world {
	rng := rand.New(rand.NewPCG(seed, 3))
	w := world{seed: seed, cost: cost{6 * time.Millisecond, 4 * time.Millisecond, 200 * time.Microsecond}, curves: []*budget.Curve{saturating(0.2, 0.7, 100)}}
	at := 0.0
	for i := range n {
		gap := 1.0
		if random {
			gap = rng.ExpFloat64()
		}
		at += gap / each
		w.arrivals = append(w.arrivals, arrival{at: time.Duration(at * float64(time.Second)), key: key(i), prompt: 40})
	}
	return w
}

// Three keys want more than there is, one of them eight times as much as each of the others. In proportion to what they ask it would have
// 0.8 of the thinking; each has about a third.
func TestSimulatedFairness(t *testing.T) {
	thinking := map[string]float64{}
	for seed := range uint64(4) {
		w := flood(seed, 100, 2.5, true, func(i int) string { return string("aaaaaaaabc"[i%10]) })
		for i, r := range play(t, w, policies[1]) {
			if len(w.arrivals)/4 < i { // once the queue has formed
				thinking[w.arrivals[i].key] += float64(r.thought)
			}
		}
	}
	index := jain([]float64{thinking["a"], thinking["b"], thinking["c"]})
	t.Logf("thinking %v, Jain's index %.3f", thinking, index)
	if index < 0.8 {
		t.Errorf("Jain's index %.3f of %v; without shares it is 0.5", index, thinking)
	}
}

// Under a steady overload budgets settle: they neither drift nor swing.
func TestSimulatedStability(t *testing.T) {
	w := flood(2, 140, 2, false, func(int) string { return "a" })
	var thought []float64
	for i, r := range play(t, w, policies[0]) {
		if i >= 50 && i < 125 { // settled, and not the last
			thought = append(thought, float64(r.thought))
		}
	}
	mean, deviation := moments(thought)
	first, _ := moments(thought[:len(thought)/2])
	second, _ := moments(thought[len(thought)/2:])
	t.Logf("thoughts of %.0f ± %.0f tokens, at first %.0f, then %.0f", mean, deviation, first, second)
	if deviation > 0.3*mean || math.Abs(first-second) > 0.3*mean {
		t.Errorf("thoughts of %.0f ± %.0f tokens, at first %.0f, then %.0f", mean, deviation, first, second)
	}
}

func moments(x []float64) (mean, deviation float64) {
	for _, v := range x {
		mean += v / float64(len(x))
	}
	for _, v := range x {
		deviation += (v - mean) * (v - mean) / float64(len(x))
	}
	return mean, math.Sqrt(deviation)
}
