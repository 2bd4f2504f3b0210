package llamacpp

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"anytime/internal/decode"

	"github.com/hybridgroup/yzma/pkg/llama"
)

// window is how many decoded tokens a sequence may be ahead of its reader.
const window = 256

// Serve is the main of the child process: it loads the model and decodes until the parent closes the command pipe. It returns
// only when it failed, after telling the parent why.
func Serve() error {
	// The parent drains its runs when a terminal's Ctrl-C reaches the whole group; until then it needs its engine.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM)
	// llama.cpp's thread pools belong to the thread that calls it.
	runtime.LockOSThread()
	commands, events := os.NewFile(3, "commands"), os.NewFile(4, "events")
	if commands == nil || events == nil {
		return errors.New("the engine process is started by the server, not by hand")
	}
	out := newEncoder[event](events)
	err := serve(gob.NewDecoder(commands), out)
	if err != nil {
		err = errors.Join(err, out.send(event{Fatal: err.Error()}))
	}
	return err
}

func serve(in *gob.Decoder, out *encoder[event]) error {
	var c childConfig
	if err := in.Decode(&c); err != nil {
		return fmt.Errorf("read the engine's config: %w", err)
	}
	if err := loadLibraries(c.LibDir); err != nil {
		return err
	}
	var told float32
	l, err := load(c, func(p float32) {
		if p >= told+0.01 {
			told = p
			_ = out.send(event{Progress: p})
		}
	})
	if err != nil {
		return err
	}
	w := &worker{
		loaded: l, config: c, out: out, in: make(chan prepared, 256),
		streams: map[uint64]*stream{}, adapters: map[uint64]*adapter{}, pieces: &pieces{vocab: l.vocab},
	}
	cellCount, chunk := c.CacheTokens, max(32, c.BatchTokens/8)
	if l.recurrent {
		cellCount = c.Sequences * (c.ContextTokens + margin)
	}
	w.sched = newScheduler(l, c.Sequences, cellCount, c.BatchTokens, chunk, l.whole)
	h := hello{Vocabulary: l.vocab.size, AddBOS: l.vocab.addBOS, MaxPiece: l.vocab.maxPiece, GPULayers: l.gpuLayers}
	for id, text := range map[llama.Token]*string{llama.VocabBOS(l.vocab.handle): &h.BOS, llama.VocabEOS(l.vocab.handle): &h.EOS} {
		if id >= 0 && int(id) < l.vocab.size {
			*text = l.vocab.piece(int32(id))
		}
	}
	if err := out.send(event{Hello: &h}); err != nil {
		return err
	}
	go w.read(in)
	return w.loop()
}

// prepared is a command whose text has been tokenized.
type prepared struct {
	command
	ids []int32
	err error
}

// worker owns the llama.cpp context. All its fields belong to the goroutine of loop, but for vocab, config, out and in.
type worker struct {
	*loaded
	config   childConfig
	out      *encoder[event]
	in       chan prepared
	sched    *scheduler
	streams  map[uint64]*stream
	adapters map[uint64]*adapter
	applied  uint64 // the adapter that is set in the context
	sampler  sampler
	pieces   *pieces
	frame    event // what happened since the last frame
}

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

type adapter struct {
	handle llama.AdapterLora
	scale  float32
	users  int
	named  bool
}

// read takes commands off the pipe and tokenizes, beside the loop. When the parent closes the pipe the process ends, even while
// llama.cpp is busy.
func (w *worker) read(in *gob.Decoder) {
	for {
		var p prepared
		if err := in.Decode(&p.command); err != nil {
			if !errors.Is(err, io.EOF) {
				fmt.Fprintln(os.Stderr, "engine: read command:", err)
				os.Exit(1)
			}
			os.Exit(0)
		}
		switch p.Kind {
		case cmdAppend, cmdTokenize:
			if p.err = checkParts(p.Parts, w.vocab.size, w.config.ContextTokens, w.vocab.maxPiece); p.err != nil {
				break
			}
			if p.Prompt {
				p.ids, p.err = w.vocab.prompt(p.Parts)
			} else {
				p.ids, p.err = w.vocab.tokenize(p.Parts)
			}
		}
		if p.Kind == cmdTokenize {
			r := reply{Call: p.Call, Err: toWire(p.err)}
			for _, id := range p.ids {
				r.Tokens = append(r.Tokens, w.vocab.token(id))
			}
			if err := w.out.send(event{Replies: []reply{r}}); err != nil {
				os.Exit(0)
			}
			continue
		}
		w.in <- p
	}
}

// loop is the owner: commands, then one batch, then one frame with all that came of them.
func (w *worker) loop() error {
	for busy := false; ; {
		if !busy {
			w.handle(<-w.in)
		}
		for more := true; more; {
			select {
			case p := <-w.in:
				w.handle(p)
			default:
				more = false
			}
		}
		began := time.Now()
		var err error
		if busy, err = w.step(); err != nil {
			return err
		}
		if busy || len(w.frame.Updates) > 0 || len(w.frame.Replies) > 0 {
			w.frame.Counts, w.frame.Took = w.counts(), time.Since(began)
			if err := w.out.send(w.frame); err != nil {
				return err
			}
			w.frame = event{}
		}
	}
}

func (w *worker) counts() counts {
	c := w.sched.counts
	c.CellsUsed = len(w.sched.cells.refs) - len(w.sched.cells.free)
	for _, q := range w.sched.seqs {
		if q.wanted && q.slot >= 0 {
			c.Running++
		} else if q.wanted {
			c.Waiting++
		}
	}
	return c
}

// news returns the update of a stream to write to.
func (w *worker) news(st *stream) *update {
	if n := len(w.frame.Updates); n == 0 || w.frame.Updates[n-1].Seq != st.id {
		w.frame.Updates = append(w.frame.Updates, update{Seq: st.id})
	}
	return &w.frame.Updates[len(w.frame.Updates)-1]
}

// fresh returns an update that nothing was written to, so that the order of what happened is kept.
func (w *worker) fresh(st *stream) *update {
	w.frame.Updates = append(w.frame.Updates, update{Seq: st.id})
	return &w.frame.Updates[len(w.frame.Updates)-1]
}

func (w *worker) handle(p prepared) {
	st := w.streams[p.Seq]
	switch p.Kind {
	case cmdOpen:
		st = &stream{base: p.Base, decoded: p.Decoded, seed: p.Seed, acked: p.Count}
		st.seq = seq{id: p.Seq, adapter: p.Adapter, class: p.Class, deadline: p.Deadline, tokens: p.Tokens}
		w.open(st)
		return
	case cmdPing:
		w.frame.Replies = append(w.frame.Replies, reply{Call: p.Call})
		return
	case cmdAdapter:
		w.frame.Replies = append(w.frame.Replies, reply{Call: p.Call, Err: toWire(w.loadAdapter(p.command))})
		return
	case cmdUnload:
		if a := w.adapters[p.Adapter]; a != nil {
			a.named = false
			w.freeAdapter(p.Adapter)
		}
		return
	case cmdFork:
		st = &stream{seed: p.Seed, after: p.After, waits: w.streams[p.From]}
		st.seq = seq{id: p.Seq, class: p.Class, deadline: p.Deadline, fork: true, slot: -1}
		w.streams[p.Seq] = st
		w.fork(st)
		return
	}
	if st == nil {
		return
	}
	switch p.Kind {
	case cmdPriority:
		st.class, st.deadline = p.Class, p.Deadline
	case cmdAck:
		st.acked = p.Count
		st.wake()
	case cmdClose:
		w.end(st, decode.EndCut)
		w.retire(st)
		w.fresh(st).Closed = true
		delete(w.streams, st.id)
	}
	if st.over {
		return
	}
	switch p.Kind {
	case cmdAppend:
		if p.err != nil {
			w.fail(st, p.err)
			return
		}
		st.queue = append(st.queue, operation{ids: p.ids, prompt: p.Prompt})
		w.advance(st)
	case cmdSpan:
		st.queue = append(st.queue, operation{span: &span{Span: *p.Span, done: p.Done}})
		w.advance(st)
	case cmdCut:
		if st.span != nil {
			w.end(st, decode.EndCut)
			w.advance(st)
		} else if i := slices.IndexFunc(st.queue, func(op operation) bool { return op.span != nil }); i >= 0 {
			st.queue[i].span.cut = true
		}
	}
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

// step decodes one batch and draws its tokens; false if there was nothing to do.
func (w *worker) step() (bool, error) {
	began := time.Now()
	adapter, batch := w.sched.plan()
	for {
		if len(batch) == 0 {
			return false, nil
		}
		rc, err := w.decode(adapter, batch)
		if err != nil {
			return false, err
		}
		if rc == 0 {
			break
		}
		if !w.sched.abandon(batch) {
			w.fail(w.streams[batch[0].seq.id], fmt.Errorf("llama.cpp found no room for it in a cache of %d tokens", w.config.CacheTokens))
		}
		adapter, batch = w.sched.plan()
	}
	w.sched.commit(batch)
	now := time.Now()
	index := int32(-1)
	for _, work := range batch {
		index += int32(work.n)
		st := w.streams[work.seq.id]
		if f := st.forced; f != nil && f.done.IsZero() && work.from+work.n > f.start {
			if f.began.IsZero() {
				f.began = began
				f.cached = max(0, min(work.from, f.end)-f.start)
			}
			if work.from+work.n >= f.end {
				f.done = now
			}
		}
		if work.logits {
			logits, err := llama.GetLogitsIth(w.context, index, w.vocab.size)
			if err != nil || logits == nil {
				return false, fmt.Errorf("llama.cpp has no logits for position %d of the batch", index)
			}
			w.sample(st, logits)
		}
	}
	return true, nil
}

// decode runs a batch through the model: 0 done, 1 no room in the cache.
func (w *worker) decode(adapter uint64, batch []work) (int32, error) {
	if err := w.setAdapter(adapter); err != nil {
		return 0, err
	}
	if err := w.batch.Clear(); err != nil {
		return 0, err
	}
	for _, work := range batch {
		slot := []llama.SeqId{llama.SeqId(work.seq.slot)}
		for i := range work.n {
			at := work.from + i
			if err := w.batch.Add(llama.Token(work.seq.tokens[at]), llama.Pos(at), slot, work.logits && i == work.n-1); err != nil {
				return 0, err
			}
		}
	}
	rc, err := llama.Decode(w.context, w.batch)
	if err != nil || rc != 0 && rc != 1 {
		return rc, fmt.Errorf("llama.cpp failed to decode a batch of %d tokens: code %d", w.batch.NTokens, rc)
	}
	return rc, err
}

// sample draws a stream's next token.
func (w *worker) sample(st *stream, logits []float32) {
	sp := st.span
	stats, ok := measure(logits)
	if !ok {
		w.fail(st, errors.New("the model's logits are not finite numbers"))
		return
	}
	p := sp.Sampling
	var forbidden []int32
	if sp.done < sp.MinTokens {
		forbidden = w.vocab.eog
	}
	adjusted := logits
	if len(p.LogitBias) > 0 || len(forbidden) > 0 || sp.grammar != nil {
		adjusted = w.sampler.adjust(logits, p.LogitBias, forbidden)
	}
	masked := false
	if g := sp.grammar; g != nil {
		// To ask the grammar about every token is slow; a greedy choice that it allows needs no more.
		best := w.sampler.draw(adjusted, decode.Sampling{}, 0)
		if p.Temperature > 0 || best < 0 || w.vocab.special[best] || slices.Contains(w.vocab.eog, best) || !g.allows(w.vocab.piece(best)) {
			if err := g.mask(adjusted, w.vocab.eog); err != nil {
				w.fail(st, err)
				return
			}
			masked = true
		}
	}
	id := w.sampler.draw(adjusted, p, uniform(st.seed, len(st.tokens)))
	switch {
	case id < 0:
		w.end(st, decode.EndGrammar)
	case slices.Contains(w.vocab.eog, id):
		reason := decode.EndEOG
		if masked && !w.allowsMore(adjusted) {
			reason = decode.EndGrammar
		}
		w.end(st, reason)
	default:
		w.accept(st, id, logits, stats)
	}
	w.advance(st)
}

// allowsMore says whether anything but the end of generation is allowed.
func (w *worker) allowsMore(adjusted []float32) bool {
	for _, id := range w.vocab.eog {
		adjusted[id] = negInf
	}
	return w.sampler.draw(adjusted, decode.Sampling{}, 0) >= 0
}

// ends notes what was decoded and says whether the span's text ends here.
func (sp *span) ends(text string) bool {
	if len(sp.Until) == 0 {
		return false
	}
	sp.tail += text
	longest := 0
	for _, u := range sp.Until {
		if strings.Contains(sp.tail, u) {
			return true
		}
		longest = max(longest, len(u))
	}
	sp.tail = sp.tail[max(0, len(sp.tail)-longest+1):]
	return false
}

// accept adds a drawn token, and ends the span where it must end.
func (w *worker) accept(st *stream, id int32, logits []float32, stats stats) {
	sp := st.span
	t := w.vocab.token(id)
	logProb := func(l float32) float32 { return float32(float64(l) - stats.logSum) }
	t.LogProb = logProb(logits[id])
	if sp.TopLogProbs > 0 {
		for _, c := range top(logits, sp.TopLogProbs) {
			t.Top = append(t.Top, decode.TokenProb{ID: c.id, Text: w.vocab.piece(c.id), LogProb: logProb(c.logit)})
		}
	}
	if sp.grammar != nil {
		sp.grammar.accept(t.Text)
	}
	st.tokens = append(st.tokens, id)
	st.decoded = append(st.decoded, int32(len(st.tokens)))
	sp.done++
	u := w.fresh(st)
	u.Tokens = []decode.Token{t}
	if f := st.forced; f != nil && !f.done.IsZero() {
		u.Prefill = &decode.Prefill{Tokens: f.tokens, Cached: f.cached, Queued: f.began.Sub(f.asked), Took: f.done.Sub(f.began)}
		st.forced = nil
	}
	switch {
	case sp.ends(t.Text):
		w.end(st, decode.EndUntil)
	case sp.done >= sp.MaxTokens:
		w.end(st, decode.EndLimit)
	case len(st.tokens) >= w.config.ContextTokens:
		w.end(st, decode.EndContext)
	}
	st.wake()
	w.reached(st)
}

// setAdapter makes the next batch use an adapter's weights, or the bare model's.
func (w *worker) setAdapter(id uint64) error {
	if id == w.applied {
		return nil
	}
	var handle llama.AdapterLora
	var scale float32
	if a := w.adapters[id]; a != nil {
		handle, scale = a.handle, a.scale
	} else {
		handle = w.adapters[w.applied].handle // scale 0 removes it; llama.cpp takes no empty list
	}
	if rc := llama.SetAdaptersLora(w.context, []llama.AdapterLora{handle}, []float32{scale}); rc != 0 {
		return fmt.Errorf("llama.cpp refused to set an adapter: code %d", rc)
	}
	w.applied = id
	return nil
}

func (w *worker) loadAdapter(c command) error {
	handle, err := llama.AdapterLoraInit(w.model, c.Path)
	if err != nil {
		return err
	}
	if handle == 0 {
		return &decode.InputError{Field: "adapter", Reason: "llama.cpp could not load it; it must be a LoRA adapter in GGUF form for this model"}
	}
	w.adapters[c.Adapter] = &adapter{handle: handle, scale: c.Scale, named: true}
	return nil
}

// freeAdapter frees an adapter that has lost its name and its users, with the caches made with it.
func (w *worker) freeAdapter(id uint64) {
	a := w.adapters[id]
	if a.named || a.users > 0 {
		return
	}
	for i := range w.sched.slots {
		if s := &w.sched.slots[i]; s.owner == nil && s.adapter == id {
			w.sched.clear(i)
		}
	}
	if w.applied == id {
		if err := w.setAdapter(0); err != nil {
			return // still set: freeing it would end the process
		}
	}
	if err := llama.AdapterLoraFree(a.handle); err == nil {
		delete(w.adapters, id)
	}
}
