package llamacpp

import (
	"cmp"
	"math"
	"slices"

	"anytime/internal/decode"
)

// seq is a sequence as the scheduler sees it: what its tokens are, and whether they must be decoded now.
type seq struct {
	id       uint64
	adapter  uint64
	class    decode.Class
	deadline int64 // Unix nanoseconds, 0 none
	tokens   []int32
	slot     int  // -1: none, its cache is to be made anew
	wanted   bool // a token is to be drawn behind the last one; otherwise only the cache is made ready
	dropped  bool // lost its slot while parked: its cache is made again when it is wanted, not before
	fork     bool // its cache is not kept when it is closed
	// preempted is how often it has lost its cache to others since its last token.
	preempted int
	// parent is set on a fork that has no slot yet where caches cannot be cut: once the parent goes on, its state is of no use.
	parent *seq
}

// slot is a llama.cpp sequence id and what its cache holds.
type slot struct {
	owner   *seq    // nil: free, or kept for prompts that begin the same
	tokens  []int32 // cached are the first len(cells)
	cells   []int32
	adapter uint64 // identity of the weights that the cache was made with
	used    uint64 // stamp of the last use
}

// work is a stretch of a sequence's tokens for the next batch.
type work struct {
	seq     *seq
	from, n int
	logits  bool // a token is drawn behind the last
	cells   []int32
}

// memory is what the scheduler needs of llama.cpp's KV cache.
type memory interface {
	copyPrefix(from, to, n int)
	truncate(slot, n int) // n = 0 forgets the slot
}

// scheduler decides which tokens are decoded next and which slots hold which caches. It knows nothing of time or of llama.cpp.
type scheduler struct {
	mem       memory
	slots     []slot
	cells     *cells
	batch     int // most tokens of a batch
	chunk     int // most prefill tokens of a batch in which others decode
	whole     bool
	seqs      []*seq // in order of id
	clock     uint64
	tiled     bool              // attention works as split says
	joins     uint64            // while an answer with a deadline decodes, the rest joins every so many-th batch; 0: each
	lastGroup map[uint64]uint64 // adapter: when its group was served last
	counts    counts
}

// margin is how many cells must be left over when a sequence gets a slot, so that it is not thrown out at once.
const margin = 16

// patience is how many steps an adapter's group waits for answers of the others.
const patience = 8

func newScheduler(mem memory, slots, cellCount, batch, chunk int, whole bool) *scheduler {
	return &scheduler{
		mem: mem, slots: make([]slot, slots), cells: newCells(cellCount), batch: batch, chunk: chunk, whole: whole,
		lastGroup: map[uint64]uint64{},
	}
}

func (s *scheduler) add(q *seq) {
	q.slot = -1
	i, _ := slices.BinarySearchFunc(s.seqs, q.id, func(a *seq, id uint64) int { return cmp.Compare(a.id, id) })
	s.seqs = slices.Insert(s.seqs, i, q)
}

// remove forgets a sequence; its cache stays until the slot is needed, unless it was a fork.
func (s *scheduler) remove(q *seq) {
	s.seqs = slices.DeleteFunc(s.seqs, func(x *seq) bool { return x == q })
	q.parent = nil
	for _, x := range s.seqs {
		if x.parent == q {
			x.parent = nil
		}
	}
	if q.slot < 0 {
		return
	}
	if sl := &s.slots[q.slot]; q.fork || len(sl.cells) == 0 {
		s.clear(q.slot)
	} else {
		sl.tokens = q.tokens[:len(sl.cells):len(sl.cells)]
		sl.owner = nil
		s.dropOld(q.slot)
	}
	q.slot = -1
}

// maxKept is how many cells caches may hold that are kept for prompts that begin the same, the newest aside. They are not free:
// attention looks at the mask of every cell in use. 3,000 of them cost SmolLM2-135M 13 % of its speed on a CPU core.
const maxKept = 1024

// dropOld clears kept caches, but for the newest, those used longest ago first, until the others hold no more than maxKept cells.
func (s *scheduler) dropOld(newest int) {
	for {
		oldest, cells := -1, 0
		for i := range s.slots {
			sl := &s.slots[i]
			if i == newest || sl.owner != nil || len(sl.cells) == 0 {
				continue
			}
			cells += len(sl.cells)
			if oldest < 0 || sl.used < s.slots[oldest].used {
				oldest = i
			}
		}
		if cells <= maxKept {
			return
		}
		s.clear(oldest)
		s.counts.Evictions++
	}
}

// clear empties a slot.
func (s *scheduler) clear(i int) {
	sl := &s.slots[i]
	if sl.owner != nil {
		sl.owner.slot = -1
		sl.owner.dropped = !sl.owner.wanted
	}
	if len(sl.cells) > 0 {
		s.cells.release(sl.cells)
		s.mem.truncate(i, 0)
	}
	*sl = slot{}
}

// cached is how many tokens of q are in its cache.
func (s *scheduler) cached(q *seq) int {
	if q.slot < 0 {
		return 0
	}
	return len(s.slots[q.slot].cells)
}

// need is how many tokens of q are to be decoded. Without a span the last one waits: it goes with what comes next.
func (s *scheduler) need(q *seq) int {
	switch {
	case q.wanted:
		return len(q.tokens) - s.cached(q)
	case q.dropped:
		return 0
	}
	return len(q.tokens) - 1 - s.cached(q)
}

// rank orders sequences by class, then deadline; compare adds age.
func rank(a, b *seq) int {
	due := func(q *seq) int64 {
		if q.deadline == 0 {
			return math.MaxInt64
		}
		return q.deadline
	}
	return cmp.Or(cmp.Compare(a.class, b.class), cmp.Compare(due(a), due(b)))
}

func compare(a, b *seq) int { return cmp.Or(rank(a, b), cmp.Compare(a.id, b.id)) }

// tier orders the kinds of work: answers, then steps of what is decoding, then prefill, then prefill that nobody waits for yet.
func (s *scheduler) tier(q *seq) int {
	switch {
	case !q.wanted:
		return 3
	case q.class == decode.ClassAnswer:
		return 0
	case s.need(q) == 1:
		return 1
	}
	return 2
}

// plan chooses the next batch, all of it for one adapter, and gives its sequences slots and cells. It is nil only if there is
// nothing to do. commit or abandon must follow.
func (s *scheduler) plan() (adapter uint64, batch []work) {
	held := map[*seq]bool{}
	for _, q := range s.seqs {
		if s.whole && q.parent != nil {
			held[q.parent] = true
		}
	}
	adapter, batch = s.planWithout(held)
	if len(batch) == 0 && len(held) > 0 {
		return s.planWithout(nil)
	}
	return adapter, batch
}

// planWithout is plan, in which held sequences stay where they are.
func (s *scheduler) planWithout(held map[*seq]bool) (adapter uint64, batch []work) {
	groups := map[uint64][]*seq{}
	var order []uint64
	for _, q := range s.seqs {
		if held[q] && q.slot >= 0 {
			continue
		}
		if q.wanted && q.slot >= 0 && s.need(q) == 0 {
			s.rewind(q)
		}
		if s.need(q) > 0 {
			if groups[q.adapter] == nil {
				order = append(order, q.adapter)
			}
			groups[q.adapter] = append(groups[q.adapter], q)
		}
	}
	s.clock++
	late := func(id uint64) bool { return s.clock-s.lastGroup[id] > patience }
	urgency := map[uint64]int{}
	for _, id := range order {
		if _, seen := s.lastGroup[id]; !seen {
			s.lastGroup[id] = s.clock - 1
		}
		urgency[id] = 2
		if late(id) {
			urgency[id] = 0
		} else if slices.ContainsFunc(groups[id], func(q *seq) bool { return s.tier(q) == 0 }) {
			urgency[id] = 1
		}
	}
	slices.SortStableFunc(order, func(a, b uint64) int {
		return cmp.Or(cmp.Compare(urgency[a], urgency[b]), cmp.Compare(s.lastGroup[a], s.lastGroup[b]))
	})
	for _, id := range order {
		if batch := s.fill(groups[id]); len(batch) > 0 {
			s.lastGroup[id] = s.clock
			return id, batch
		}
	}
	return 0, nil
}

// rewind takes the last token out of q's cache, to be decoded again: what was to be drawn behind it was not kept, as the end of
// generation, and now something else is wanted there.
func (s *scheduler) rewind(q *seq) {
	if s.whole {
		s.clear(q.slot)
		return
	}
	sl := &s.slots[q.slot]
	n := len(sl.cells) - 1
	s.cells.release(sl.cells[n:])
	sl.cells = sl.cells[:n]
	s.mem.truncate(q.slot, n)
}

// fill makes a batch for sequences of one adapter. On a CPU a step takes the longer the more there is in it, so most steps are left
// to answers with a deadline where there are any.
func (s *scheduler) fill(list []*seq) []work {
	if s.joins > 0 && s.clock%s.joins != 0 {
		var urgent []*seq
		for _, q := range list {
			if q.wanted && q.class == decode.ClassAnswer && q.deadline != 0 {
				urgent = append(urgent, q)
			}
		}
		if batch := s.fillAll(urgent); len(batch) > 0 {
			return batch
		}
	}
	return s.fillAll(list)
}

func (s *scheduler) fillAll(list []*seq) []work {
	tiers := map[*seq]int{}
	room, prefill := s.batch, s.batch
	for _, q := range list {
		tiers[q] = s.tier(q)
		if q.wanted && s.need(q) == 1 {
			prefill = s.chunk
		}
	}
	slices.SortFunc(list, func(a, b *seq) int { return cmp.Or(cmp.Compare(tiers[a], tiers[b]), compare(a, b)) })
	var batch []work
	blocked := false
	for _, q := range list {
		if room == 0 {
			break
		}
		if q.slot < 0 {
			// Whoever is refused a slot is not overtaken, or a long prompt would wait for ever.
			if blocked || s.awaitsPrefix(q) {
				continue
			}
			if !s.admit(q, &batch) {
				blocked = true
				continue
			}
		}
		need := s.need(q)
		single := q.wanted && need == 1
		n := min(need, room)
		if !single {
			n = min(n, prefill)
		}
		if n = s.reserve(q, n, &batch); n <= 0 {
			continue
		}
		if !single {
			prefill -= n
		}
		room -= n
		s.slots[q.slot].used = s.clock
		batch = append(batch, work{seq: q, from: s.cached(q), n: n, logits: q.wanted && n == need, cells: s.cells.take(n)})
	}
	return batch
}

// donor finds the slot whose cache holds the longest beginning of q's tokens, made with the same weights. The last token of q is
// left out: it must be decoded to draw what follows. A recurrent state cannot be cut, so there the donor's whole state counts.
func (s *scheduler) donor(q *seq) (from, n int) {
	from = -1
	for i := range s.slots {
		sl := &s.slots[i]
		if sl.adapter != q.adapter || len(sl.cells) == 0 {
			continue
		}
		k := commonPrefix(s.content(i)[:len(sl.cells)], q.tokens[:len(q.tokens)-1])
		if s.whole && k < len(sl.cells) {
			continue
		}
		if k > n {
			from, n = i, k
		}
	}
	return from, n
}

func (s *scheduler) content(i int) []int32 {
	if o := s.slots[i].owner; o != nil {
		return o.tokens
	}
	return s.slots[i].tokens
}

func commonPrefix(a, b []int32) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// awaitsPrefix says that a sequence of no lower rank is just making the cache that q can share: waiting is cheaper.
func (s *scheduler) awaitsPrefix(q *seq) bool {
	if s.whole {
		return false
	}
	_, have := s.donor(q)
	for i := range s.slots {
		o := s.slots[i].owner
		if o == nil || o.adapter != q.adapter || compare(o, q) > 0 || s.need(o) < 2 {
			continue
		}
		shared := commonPrefix(o.tokens, q.tokens[:len(q.tokens)-1])
		if shared > have+32 && shared > len(s.slots[i].cells) {
			return true
		}
	}
	return false
}

// admit gives q a slot that begins with what another's cache has of it. It evicts kept caches, and takes the slot of a parked
// sequence or of one that can wait, by class and deadline; among equals the first keeps its slot.
func (s *scheduler) admit(q *seq, batch *[]work) bool {
	yields := func(o *seq) bool { return o == nil || s.need(o) <= 0 || q.wanted && rank(o, q) > 0 }
	if !q.wanted { // nobody waits for it: it takes nothing from a live sequence
		yields = func(o *seq) bool { return o == nil }
	}
	from, k := s.donor(q)
	if missing := len(q.tokens) - k + margin; missing > len(s.cells.free) {
		held := make([]bool, len(s.cells.refs))
		kept := 0
		hold := func(list []int32) {
			for _, c := range list {
				if !held[c] {
					held[c] = true
					kept++
				}
			}
		}
		for i := range s.slots {
			if !yields(s.slots[i].owner) {
				hold(s.slots[i].cells)
			}
		}
		if from >= 0 {
			hold(s.slots[from].cells[:k])
		}
		for _, w := range *batch {
			hold(w.cells)
		}
		// A sequence as long as the cache has no margin to leave.
		if room := len(s.cells.refs) - kept; missing > room && (kept > k || len(q.tokens)-k > room) {
			return false
		}
	}
	to := s.pickSlot(q, from, yields)
	if to < 0 {
		return false
	}
	if to == from {
		if more := s.slots[to].cells[k:]; len(more) > 0 {
			s.cells.release(more)
			s.slots[to].cells = s.slots[to].cells[:k]
			s.mem.truncate(to, k)
		}
	} else {
		if o := s.slots[to].owner; o != nil {
			s.unplan(o, batch)
			o.preempted++
			s.counts.Preemptions++
		} else if len(s.slots[to].cells) > 0 {
			s.counts.Evictions++
		}
		s.clear(to)
		if k > 0 {
			s.slots[to].cells = s.cells.share(s.slots[from].cells[:k])
			s.mem.copyPrefix(from, to, k)
			s.slots[from].used = s.clock
		}
	}
	s.counts.CachedTokens += uint64(k)
	sl := &s.slots[to]
	sl.owner, sl.tokens, sl.adapter, sl.used = q, nil, q.adapter, s.clock
	q.slot, q.dropped, q.parent = to, false, nil
	return true
}

// pickSlot chooses a free slot, else the kept cache used longest ago, else the parked or lowest sequence; -1 if none yields.
func (s *scheduler) pickSlot(q *seq, donor int, yields func(*seq) bool) int {
	best, bestKind := -1, 0
	for i := range s.slots {
		sl := &s.slots[i]
		kind := 0
		switch {
		case sl.owner == nil && len(sl.cells) == 0:
			kind = 4
		case sl.owner == nil && i != donor:
			kind = 3
		case sl.owner == nil:
			kind = 2 // the donor itself: what it holds more than q is lost
		case yields(sl.owner) && i != donor:
			kind = 1
		default:
			continue
		}
		better := kind > bestKind
		if kind == bestKind {
			switch kind {
			case 3:
				better = sl.used < s.slots[best].used
			case 1:
				better = s.waitsBetter(sl.owner, s.slots[best].owner)
			}
		}
		if better {
			best, bestKind = i, kind
		}
	}
	return best
}

// waitsBetter says that a is the better one of two to lose its cache: the parked one, else the later by class, deadline and age.
func (s *scheduler) waitsBetter(a, b *seq) bool {
	if pa, pb := s.need(a) <= 0, s.need(b) <= 0; pa != pb {
		return pa
	}
	return compare(a, b) > 0
}

// reserve frees cells for n more tokens of q and returns for how many there are.
func (s *scheduler) reserve(q *seq, n int, batch *[]work) int {
	for len(s.cells.free) < n && s.reclaim(q, batch) {
	}
	return min(n, len(s.cells.free))
}

// reclaim frees what can best be spared for q: the kept cache used longest ago, then the cache of a parked sequence, then of
// one that ranks below q. For q = nil every sequence ranks below.
func (s *scheduler) reclaim(q *seq, batch *[]work) bool {
	best := -1
	for i := range s.slots {
		sl := &s.slots[i]
		if sl.owner == nil && len(sl.cells) > 0 && (best < 0 || sl.used < s.slots[best].used) {
			best = i
		}
	}
	if best >= 0 {
		s.clear(best)
		s.counts.Evictions++
		return true
	}
	if q != nil && !q.wanted {
		return false
	}
	for i := range s.slots {
		o := s.slots[i].owner
		if o == nil || o == q || len(s.slots[i].cells) == 0 || q != nil && s.need(o) > 0 && compare(o, q) < 0 {
			continue
		}
		if best < 0 || s.waitsBetter(o, s.slots[best].owner) {
			best = i
		}
	}
	if best < 0 {
		return false
	}
	s.unplan(s.slots[best].owner, batch)
	s.slots[best].owner.preempted++
	s.clear(best)
	s.counts.Preemptions++
	return true
}

// unplan takes a sequence out of the batch.
func (s *scheduler) unplan(q *seq, batch *[]work) {
	*batch = slices.DeleteFunc(*batch, func(w work) bool {
		if w.seq == q {
			s.cells.release(w.cells)
		}
		return w.seq == q
	})
}

// llama.cpp's flash attention on a CPU takes tile tokens of a batch together, where there are as many (its GGML_FA_TILE_Q). That is faster for
// tokens that see the same cells, but it multiplies with every cell that one of them sees, while a token by itself skips the others'.
const tile = 64

// minOthers is from how many cells of other sequences on that counts.
const minOthers = 1024

// split divides a batch in which most of the cache belongs to others than a token's own sequence: each part, of about the same size, stays
// below a tile. 64 sequences of 100 tokens decode twice as fast so. rest is to be split again.
func (s *scheduler) split(batch []work) (part, rest []work) {
	tokens, own := 0, 0
	for _, w := range batch {
		tokens += w.n
		own += w.n * (w.from + w.n)
	}
	others := (len(s.cells.refs)-len(s.cells.free))*tokens - own
	if !s.tiled || tokens < tile || others < max(own, minOthers*tokens) {
		return batch, nil
	}
	parts := (tokens + tile - 2) / (tile - 1)
	left := (tokens + parts - 1) / parts
	for i, w := range batch {
		if w.n < left {
			left -= w.n
			continue
		}
		part, rest = slices.Clone(batch[:i+1]), slices.Clone(batch[i+1:])
		if w.n > left {
			tail := w
			tail.from, tail.n, tail.cells = w.from+left, w.n-left, w.cells[left:]
			rest = slices.Insert(rest, 0, tail)
			part[i].n, part[i].logits, part[i].cells = left, false, w.cells[:left:left]
		}
		break
	}
	return part, rest
}

// commit notes that a batch was decoded.
func (s *scheduler) commit(batch []work) {
	s.counts.Steps++
	for _, w := range batch {
		sl := &s.slots[w.seq.slot]
		sl.cells = append(sl.cells, w.cells...)
		s.counts.BatchTokens += uint64(w.n)
		if !w.logits || w.n > 1 {
			s.counts.PrefillTokens += uint64(w.n)
		}
	}
}

// abandon notes that a batch was not decoded for want of cells, which llama.cpp knows better; something is freed. It returns
// false if there was nothing to free but the batch's only sequence.
func (s *scheduler) abandon(batch []work) bool {
	for _, w := range batch {
		s.cells.release(w.cells)
	}
	live := 0
	for i := range s.slots {
		if len(s.slots[i].cells) > 0 {
			live++
		}
	}
	return live > 1 && s.reclaim(nil, &[]work{})
}
