package llamacpp

import (
	"errors"
	"slices"
	"time"

	"anytime/internal/decode"
)

// stream is a sequence with its queue.
type stream struct {
	seq
	base    int     // len(tokens) where its own spans begin
	decoded []int32 // len(tokens) behind each decoded token
	seed    uint64
	queue   []operation
	span    *span
	forks   []*stream // that wait for a position of this one
	after   int       // a fork: the position it waits for
	waits   *stream   // a fork that waits: for this one
	acked   int
	full    bool // a forced text did not fit: nothing more is decoded
	forced  *forced
	over    bool // failed: only Close is left
}

// operation is what waits in a stream's queue: forced tokens, a span, or a fork at the head.
type operation struct {
	ids    []int32
	prompt bool
	span   *span
	fork   *stream
}

type span struct {
	decode.Span
	done    int
	cut     bool
	tail    string // the end of what was decoded, in which Until may begin
	grammar *matcher
}

// forced measures the prefill of forced text.
type forced struct {
	start, end, tokens, cached int
	asked, began, done         time.Time
}

// open puts a stream with a beginning into the schedule.
func (w *worker) open(st *stream) {
	w.streams[st.id] = st
	w.sched.add(&st.seq)
	if st.adapter == 0 {
		return
	}
	a := w.adapters[st.adapter]
	if a == nil {
		st.adapter = 0
		w.fail(st, errors.New("its adapter could not be loaded again"))
		return
	}
	a.users++
}

// fork begins a fork whose position is there, or lets it wait for it.
func (w *worker) fork(st *stream) {
	from := st.waits
	switch {
	case from == nil || from.over:
		w.fail(st, decode.ErrNotReached)
	case from.waits != nil && st.after == decode.Head:
		from.queue = append(from.queue, operation{fork: st})
	case from.waits != nil || st.after > len(from.decoded):
		from.forks = append(from.forks, st)
	case st.after == decode.Head:
		w.begin(st, len(from.tokens))
	case st.after == 0:
		w.begin(st, from.base)
	default:
		w.begin(st, int(from.decoded[st.after-1]))
	}
}

func (w *worker) begin(st *stream, at int) {
	from := st.waits
	st.waits = nil
	st.tokens, st.base, st.adapter = from.tokens[:at:at], at, from.adapter
	if at == len(from.tokens) {
		st.full = from.full
		st.seq.parent = &from.seq
	}
	w.open(st)
	u := w.fresh(st)
	u.Forked, u.Shared = true, at
	w.reached(st)
	w.advance(st)
}

// reached begins the forks whose position is there now.
func (w *worker) reached(st *stream) {
	waiting := st.forks
	st.forks = nil
	for _, f := range waiting {
		w.fork(f)
	}
}

// advance works off the queue up to the next span.
func (w *worker) advance(st *stream) {
	for st.waits == nil && st.span == nil && !st.over && len(st.queue) > 0 {
		op := st.queue[0]
		st.queue = st.queue[1:]
		switch {
		case op.fork != nil:
			w.begin(op.fork, len(st.tokens))
		case op.span != nil:
			w.start(st, op.span)
		default:
			w.force(st, op)
		}
	}
	if st.waits != nil {
		return
	}
	// Forks at the head that were asked for while the stream itself waited to begin.
	for i := 0; i < len(st.queue); {
		if f := st.queue[i].fork; f != nil {
			st.queue = slices.Delete(st.queue, i, i+1)
			w.begin(f, len(st.tokens))
		} else {
			i++
		}
	}
}

// force puts forced tokens at the head.
func (w *worker) force(st *stream, op operation) {
	u := w.fresh(st)
	switch n := len(st.tokens) + len(op.ids); {
	case op.prompt && n == 0:
		w.fail(st, &decode.InputError{Field: "prompt", Reason: "is empty; it must hold at least one token"})
		return
	case op.prompt && n >= w.config.ContextTokens:
		w.fail(st, decode.ErrContextFull)
		return
	case n > w.config.ContextTokens:
		st.full = true
		op.ids = nil
	}
	u.Applied, u.Forced = true, op.ids
	if st.forced == nil {
		st.forced = &forced{start: len(st.tokens), asked: time.Now()}
	}
	st.tokens = append(st.tokens, op.ids...)
	st.forced.tokens += len(op.ids)
	st.forced.end = len(st.tokens)
	if op.prompt {
		st.base = len(st.tokens)
		w.reached(st)
	}
}

func (w *worker) start(st *stream, sp *span) {
	st.span = sp
	if sp.Sampling.Grammar != "" {
		g, err := newMatcher(sp.Sampling.Grammar, w.pieces)
		if err != nil {
			w.fail(st, err)
			return
		}
		sp.grammar = g
	}
	for _, id := range st.tokens[len(st.tokens)-sp.done:] { // decoded before the child was replaced
		text := w.vocab.piece(id)
		sp.ends(text)
		if sp.grammar != nil {
			sp.grammar.accept(text)
		}
	}
	switch {
	case sp.cut:
		w.end(st, decode.EndCut)
	case st.full || len(st.tokens) >= w.config.ContextTokens:
		w.end(st, decode.EndContext)
	}
	st.wake()
}

// wake says whether the stream's next token may be drawn.
func (st *stream) wake() { st.wanted = st.span != nil && len(st.decoded)-st.acked < window }

// end ends the span. The caller advances.
func (w *worker) end(st *stream, reason decode.End) {
	if st.span == nil {
		return
	}
	u := w.news(st)
	if u.End != "" || u.Applied || u.Forked {
		u = w.fresh(st)
	}
	u.End = reason
	st.span = nil
	st.wake()
}

// fail ends a stream with an error.
func (w *worker) fail(st *stream, err error) {
	st.span = nil
	w.retire(st)
	w.fresh(st).Err = toWire(err)
}

// retire takes a stream out of the schedule.
func (w *worker) retire(st *stream) {
	if st.over {
		return
	}
	st.over, st.wanted = true, false
	w.sched.remove(&st.seq)
	if a := w.adapters[st.adapter]; a != nil && st.waits == nil {
		a.users--
		w.freeAdapter(st.adapter)
	}
	if p := st.waits; p != nil {
		p.forks = slices.DeleteFunc(p.forks, func(f *stream) bool { return f == st })
		p.queue = slices.DeleteFunc(p.queue, func(op operation) bool { return op.fork == st })
		st.waits = nil
	}
	for _, op := range st.queue {
		if op.fork != nil {
			st.forks = append(st.forks, op.fork)
		}
	}
	st.queue = nil
	for _, f := range st.forks {
		f.waits = nil
		w.fail(f, decode.ErrNotReached)
	}
	st.forks = nil
}
