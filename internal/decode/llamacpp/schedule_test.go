package llamacpp

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"anytime/internal/decode"
)

// mirror is a memory that holds tokens, and knows the weights that they were decoded with.
type mirror struct {
	t     *testing.T
	slots [][]int32
	whole bool
}

func (m *mirror) copyPrefix(from, to, n int) {
	if len(m.slots[to]) != 0 {
		m.t.Errorf("slot %d is copied to but not empty", to)
	}
	if m.whole && n != len(m.slots[from]) {
		m.t.Errorf("%d of %d tokens copied of a state that cannot be cut", n, len(m.slots[from]))
	}
	m.slots[to] = slices.Clone(m.slots[from][:n])
}

func (m *mirror) truncate(slot, n int) {
	if m.whole && n != 0 {
		m.t.Errorf("slot %d cut to %d", slot, n)
	}
	m.slots[slot] = m.slots[slot][:n]
}

// model is a scheduler with a mirror and sequences that want to grow.
type model struct {
	*scheduler
	mirror *mirror
	goal   map[*seq]int
	id     uint64
	parts  []int // tokens of the parts of the last batch
}

func newModel(t *testing.T, slots, cells, batch, chunk int, whole bool) *model {
	m := &mirror{t: t, slots: make([][]int32, slots), whole: whole}
	return &model{scheduler: newScheduler(m, slots, cells, batch, chunk, whole), mirror: m, goal: map[*seq]int{}}
}

func (m *model) open(q seq, goal int) *seq {
	m.id++
	q.id, q.wanted = m.id, true
	m.add(&q)
	m.goal[&q] = goal
	return &q
}

// step plans and decodes a batch, and checks it.
func (m *model) step() []work {
	t := m.mirror.t
	t.Helper()
	adapter, batch := m.plan()
	total := 0
	seen := map[*seq]bool{}
	for _, w := range batch {
		total += w.n
		switch {
		case w.seq.adapter != adapter:
			t.Errorf("sequence %d of adapter %d is in a batch of adapter %d", w.seq.id, w.seq.adapter, adapter)
		case seen[w.seq]:
			t.Errorf("sequence %d is in the batch twice", w.seq.id)
		case w.seq.slot < 0 || m.slots[w.seq.slot].owner != w.seq:
			t.Fatalf("sequence %d has no slot", w.seq.id)
		case w.from != len(m.mirror.slots[w.seq.slot]) || w.from+w.n > len(w.seq.tokens) || w.n < 1 || len(w.cells) != w.n:
			t.Errorf("sequence %d: tokens %d to %d of %d, cache %d", w.seq.id, w.from, w.from+w.n, len(w.seq.tokens), len(m.mirror.slots[w.seq.slot]))
		case w.logits != (w.seq.wanted && w.from+w.n == len(w.seq.tokens)):
			t.Errorf("sequence %d: logits %v", w.seq.id, w.logits)
		}
		seen[w.seq] = true
	}
	if total > m.batch {
		t.Errorf("a batch of %d tokens, more than %d", total, m.batch)
	}
	m.parts = nil
	for part, rest := m.split(batch); len(part) > 0; part, rest = m.split(rest) {
		size := 0
		for _, w := range part {
			if at := len(m.mirror.slots[w.seq.slot]); w.from != at || len(w.cells) != w.n || w.logits && w.from+w.n != len(w.seq.tokens) {
				t.Errorf("sequence %d: a part of %d tokens from %d on, behind %d, with %d cells", w.seq.id, w.n, w.from, at, len(w.cells))
			}
			m.mirror.slots[w.seq.slot] = append(m.mirror.slots[w.seq.slot], w.seq.tokens[w.from:w.from+w.n]...)
			size += w.n
		}
		m.commit(part)
		m.parts = append(m.parts, size)
	}
	for _, w := range batch {
		if !w.logits {
			continue
		}
		w.seq.tokens = append(slices.Clip(w.seq.tokens), int32(len(w.seq.tokens)*7+int(w.seq.id)%3))
		w.seq.wanted = len(w.seq.tokens) < m.goal[w.seq]
	}
	m.check()
	return batch
}

func (m *model) check() {
	t := m.mirror.t
	t.Helper()
	refs := make([]uint16, len(m.cells.refs))
	for i, sl := range m.slots {
		for _, c := range sl.cells {
			refs[c]++
		}
		if !slices.Equal(m.mirror.slots[i], m.content(i)[:len(sl.cells)]) {
			t.Fatalf("slot %d holds %v, thought to be %v", i, m.mirror.slots[i], m.content(i)[:len(sl.cells)])
		}
		if sl.owner != nil && (sl.owner.slot != i || sl.adapter != sl.owner.adapter) {
			t.Fatalf("slot %d is not its owner's", i)
		}
	}
	used := 0
	for i := range refs {
		if refs[i] != m.cells.refs[i] {
			t.Fatalf("cell %d has %d references, thought to have %d", i, refs[i], m.cells.refs[i])
		}
		if refs[i] > 0 {
			used++
		}
	}
	if used+len(m.cells.free) != len(refs) {
		t.Fatalf("%d cells used and %d free of %d", used, len(m.cells.free), len(refs))
	}
}

func tokens(n int, fill int32) []int32 { return slices.Repeat([]int32{fill}, n) }

// Random sequences, forks, priorities, parkings and closings: nothing is ever inconsistent, and everybody finishes.
func TestSchedulerFinishesEverything(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			m := newModel(t, 1+r.IntN(6), 120+r.IntN(200), 8+r.IntN(40), 4+r.IntN(8), seed%4 == 3)
			var live []*seq
			for steps := 0; steps < 20000; steps++ {
				if steps < 300 && r.IntN(4) == 0 {
					q := seq{class: decode.Class(r.IntN(3)), deadline: int64(r.IntN(3)), adapter: uint64(r.IntN(3) / 2)}
					if len(live) > 0 && r.IntN(2) == 0 {
						from := live[r.IntN(len(live))]
						at := 1 + r.IntN(len(from.tokens))
						q.tokens, q.adapter, q.fork = append(slices.Clone(from.tokens[:at]), tokens(1+r.IntN(5), 2)...), from.adapter, true
						if at == len(from.tokens) {
							q.parent = from
						}
					} else {
						q.tokens = append(tokens(1+r.IntN(40), 1), tokens(1+r.IntN(20), int32(r.IntN(3)))...)
					}
					if len(q.tokens) < 110 {
						live = append(live, m.open(q, min(120, len(q.tokens)+1+r.IntN(40))))
					}
				}
				if len(live) > 0 && steps < 300 {
					q := live[r.IntN(len(live))]
					switch r.IntN(10) {
					case 0:
						q.wanted = false // parked for a while
					case 1:
						q.wanted = len(q.tokens) < m.goal[q]
					case 2:
						q.class = decode.Class(r.IntN(3))
					case 3:
						m.remove(q)
						live = slices.DeleteFunc(live, func(x *seq) bool { return x == q })
						m.check()
					}
				}
				if steps == 300 {
					for _, q := range live {
						q.wanted = len(q.tokens) < m.goal[q]
					}
				}
				batch := m.step()
				live = slices.DeleteFunc(live, func(q *seq) bool {
					if len(q.tokens) >= m.goal[q] {
						m.remove(q)
						return true
					}
					return false
				})
				if len(live) == 0 && steps > 300 {
					return
				}
				if len(batch) == 0 && steps > 300 {
					t.Fatalf("step %d: %d sequences wait and nothing is decoded", steps, len(live))
				}
			}
			t.Fatalf("%d sequences did not finish", len(live))
		})
	}
}

func ids(batch []work) []string {
	var list []string
	for _, w := range batch {
		list = append(list, fmt.Sprintf("%d:%d", w.seq.id, w.n))
	}
	return list
}

func TestSchedulerOrder(t *testing.T) {
	m := newModel(t, 8, 1000, 32, 8, false)
	m.open(seq{class: decode.ClassThinking, tokens: tokens(2, 1)}, 100)               // 1
	m.open(seq{class: decode.ClassThinking, tokens: tokens(2, 2), deadline: 5}, 100)  // 2
	m.step()                                                                          // both decode now
	m.open(seq{class: decode.ClassThinking, tokens: tokens(40, 3), deadline: 1}, 100) // 3: prefill
	m.open(seq{class: decode.ClassAnswer, tokens: tokens(6, 4)}, 100)                 // 4
	m.open(seq{class: decode.ClassBackground, tokens: tokens(40, 5)}, 100)            // 5
	for i, want := range [][]string{
		{"4:6", "2:1", "1:1", "3:2"}, // an answer's prefill first; others' prefill is held to the chunk while some decode
		{"4:1", "2:1", "1:1", "3:8"},
		{"4:1", "2:1", "1:1", "3:8"},
	} {
		if got := ids(m.step()); !slices.Equal(got, want) {
			t.Errorf("step %d: %v, want %v", i, got, want)
		}
	}
	// Alone, prefill takes whole batches.
	m = newModel(t, 8, 1000, 32, 8, false)
	m.open(seq{tokens: tokens(40, 3)}, 100)
	if got := ids(m.step()); !slices.Equal(got, []string{"1:32"}) {
		t.Errorf("alone: %v", got)
	}
}

func TestSchedulerSharesPrefix(t *testing.T) {
	m := newModel(t, 4, 1000, 64, 8, false)
	a := m.open(seq{tokens: tokens(50, 1)}, 60)
	m.open(seq{tokens: append(tokens(50, 1), 2)}, 60)             // waits for a's cache
	m.open(seq{tokens: append(tokens(50, 1), 2), adapter: 7}, 60) // other weights: shares nothing
	if got := ids(m.step()); !slices.Equal(got, []string{"1:50"}) {
		t.Errorf("first %v", got)
	}
	if got := ids(m.step()); !slices.Equal(got, []string{"3:51"}) {
		t.Errorf("other adapter %v", got)
	}
	if got := ids(m.step()); !slices.Equal(got, []string{"1:1", "2:1"}) {
		t.Errorf("shared %v", got)
	}
	m.remove(a)
	b := m.open(seq{tokens: append(tokens(50, 1), 3, 3)}, 60)
	m.step() // the other adapter's turn
	if m.step(); m.counts.CachedTokens != 100 || b.slot < 0 {
		t.Errorf("%d tokens came from caches, want 100", m.counts.CachedTokens)
	}
}

// Adapters take turns, answers before the rest, and nobody waits for ever.
// Caches of what is closed are kept, but not for ever: the newest whole, of the others those used last.
func TestSchedulerDropsOldCaches(t *testing.T) {
	m := newModel(t, 8, 16*maxKept, maxKept, maxKept, false)
	kept := func() (list []int) {
		for _, sl := range m.slots {
			if sl.owner == nil && len(sl.cells) > 0 {
				list = append(list, int(sl.tokens[0]))
			}
		}
		slices.Sort(list)
		return list
	}
	for i, test := range []struct {
		length int
		want   []int
	}{
		{maxKept / 2, []int{0}},
		{maxKept / 2, []int{0, 1}},
		{maxKept / 2, []int{0, 1, 2}},
		{maxKept / 2, []int{1, 2, 3}},
		{4 * maxKept, []int{2, 3, 4}},
		{10, []int{5}},
	} {
		q := m.open(seq{tokens: tokens(test.length, int32(i))}, test.length)
		for m.cached(q) < test.length {
			m.step()
		}
		m.remove(q)
		m.check()
		if got := kept(); !slices.Equal(got, test.want) {
			t.Errorf("after %d: kept %v, want %v", i, got, test.want)
		}
	}
}

func TestSchedulerAdaptersTakeTurns(t *testing.T) {
	m := newModel(t, 4, 4000, 64, 8, false)
	m.open(seq{class: decode.ClassAnswer, adapter: 1, tokens: tokens(2, 1)}, 1000)
	m.open(seq{class: decode.ClassThinking, adapter: 2, tokens: tokens(2, 1)}, 1000)
	m.open(seq{class: decode.ClassThinking, tokens: tokens(2, 1)}, 1000)
	served := map[uint64]int{}
	for range 200 {
		served[m.step()[0].seq.adapter]++
	}
	if served[1] < 100 || served[2] < 10 || served[0] < 10 {
		t.Errorf("served %v", served)
	}
}

// The one that can best wait loses its cache; a sequence as long as the whole cache still finishes.
func TestSchedulerPreempts(t *testing.T) {
	m := newModel(t, 4, 100, 64, 64, false)
	long := m.open(seq{class: decode.ClassThinking, tokens: tokens(40, 1)}, 100)
	other := m.open(seq{class: decode.ClassThinking, tokens: tokens(40, 2)}, 60)
	idle := m.open(seq{class: decode.ClassAnswer, tokens: tokens(5, 3)}, 6)
	for len(m.step()) > 0 {
		if long.wanted && long.slot < 0 && m.counts.Steps > 1 {
			t.Fatal("the first was preempted")
		}
	}
	if long.wanted || other.wanted || m.counts.Preemptions < 2 || idle.slot >= 0 {
		t.Errorf("preemptions %d, parked one still in slot %d", m.counts.Preemptions, idle.slot)
	}
}

// Batches in which the cache is mostly others' are divided into parts that attention takes token by token, and no others are.
func TestSchedulerSplits(t *testing.T) {
	const sequences, prompt = 70, 40
	for _, tiled := range []bool{false, true} {
		m := newModel(t, sequences, 8192, 512, 64, false)
		m.tiled = tiled
		long := m.open(seq{tokens: tokens(2000, 1)}, 2001)
		for long.wanted { // alone: what is in the cache is its own
			if m.step(); len(m.parts) != 1 {
				t.Fatalf("a batch of the only sequence was split into %v", m.parts)
			}
		}
		m.remove(long)
		m.clear(0)
		var list []*seq
		for i := range sequences {
			list = append(list, m.open(seq{tokens: tokens(prompt, int32(i))}, prompt+4))
		}
		split := 0
		for slices.ContainsFunc(list, func(q *seq) bool { return q.wanted }) {
			m.step()
			if len(m.parts) == 1 {
				continue
			}
			split++
			if n := slices.Max(m.parts); n >= tile || n-slices.Min(m.parts) > len(m.parts) {
				t.Errorf("a batch was split into %v", m.parts)
			}
		}
		if tiled != (split > 0) {
			t.Errorf("tiled %v: %d batches were split", tiled, split)
		}
	}
}
