package llamacpp

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"anytime/internal/decode"

	"github.com/hybridgroup/yzma/pkg/llama"
)

// step decodes one batch and draws its tokens; false if there was nothing to do.
func (w *worker) step() (stepped bool, err error) {
	began := time.Now()
	adapter, batch := w.sched.plan()
	for len(batch) > 0 {
		part, rest := w.sched.split(batch)
		rc, err := w.decode(adapter, part)
		if err != nil {
			return false, err
		}
		if rc == 0 {
			if err := w.draw(part, began); err != nil {
				return false, err
			}
			stepped, batch = true, rest
			continue
		}
		if !w.sched.abandon(batch) {
			w.fail(w.streams[batch[0].seq.id], fmt.Errorf("llama.cpp found no room for it in a cache of %d tokens", w.config.CacheTokens))
		}
		if stepped {
			break
		}
		adapter, batch = w.sched.plan()
	}
	return stepped, nil
}

// draw takes in a batch that was decoded: a token is drawn behind each of its sequences that wants one.
func (w *worker) draw(batch []work, began time.Time) error {
	w.sched.commit(batch)
	now := time.Now()
	index := int32(-1)
	w.rows = w.rows[:0]
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
				return fmt.Errorf("llama.cpp has no logits for position %d of the batch", index)
			}
			w.rows = append(w.rows, row{st: st, logits: logits})
		}
	}
	w.drawRows()
	for i := range w.rows {
		w.sample(&w.rows[i])
	}
	return nil
}

// row is the logits behind a stream's last token, and what is drawn from them where nothing else than the logits counts.
type row struct {
	st     *stream
	logits []float32
	stats  stats
	finite bool
	key    uint64
	plain  bool
	id     int32 // drawn, if plain
}

// drawRows measures and draws rows, each by itself and so at the same time: 64 of them take as long as a step of a small model.
func (w *worker) drawRows() {
	n := min(len(w.rows), runtime.GOMAXPROCS(0))
	for len(w.samplers) < n {
		w.samplers = append(w.samplers, sampler{})
	}
	draw := func(k int) {
		for i := k; i < len(w.rows); i += n {
			r := &w.rows[i]
			sp := r.st.span
			r.stats, r.finite = measure(r.logits)
			r.key = noise(r.st.seed, len(r.st.tokens))
			if r.plain = r.finite && len(sp.Sampling.LogitBias) == 0 && sp.done >= sp.MinTokens && sp.grammar == nil; r.plain {
				r.id = w.samplers[k].drawMeasured(r.logits, r.stats, sp.Sampling, r.key)
			}
		}
	}
	var others sync.WaitGroup
	for k := 1; k < n; k++ {
		others.Go(func() { draw(k) })
	}
	if n > 0 {
		draw(0)
	}
	others.Wait()
}

// decode runs a batch through the model: 0 done, 1 no room in the cache.
func (w *worker) decode(adapter uint64, batch []work) (int32, error) {
	if w.memoryErr != nil {
		return 0, w.memoryErr
	}
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

// logProb is the natural log-probability of a token with that logit.
func (st stats) logProb(logit float32) float32 { return float32(float64(logit) - st.logSum) }

// sample gives a stream its next token.
func (w *worker) sample(r *row) {
	st, logits, stats := r.st, r.logits, r.stats
	sp := st.span
	if !r.finite {
		w.fail(st, errors.New("the model's logits are not finite numbers"))
		return
	}
	p, key, id, adjusted := sp.Sampling, r.key, r.id, logits
	if !r.plain {
		var forbidden []int32
		if sp.done < sp.MinTokens {
			forbidden = w.vocab.eog
		}
		adjusted = w.sampler.adjust(logits, p.LogitBias, forbidden)
		id = w.sampler.draw(adjusted, p, key)
	}
	masked := false
	// To ask the grammar about every token is slow. A draw that it allows needs no more; another is drawn again from those that it does.
	if g := sp.grammar; g != nil && (id < 0 || slices.Contains(w.vocab.eog, id) || !g.allowsToken(w.vocab.piece(id), w.vocab.special[id])) {
		if err := g.mask(adjusted, w.vocab.eog); err != nil {
			w.fail(st, err)
			return
		}
		masked = true
		id = w.sampler.draw(adjusted, p, key)
	}
	switch {
	case id < 0:
		w.end(st, decode.EndGrammar)
	case slices.Contains(w.vocab.eog, id):
		if masked && !w.allowsMore(adjusted) {
			w.end(st, decode.EndGrammar)
			break
		}
		w.end(st, decode.EndEOG)
		t := w.vocab.token(id)
		t.LogProb = stats.logProb(logits[id])
		w.news(st).EOG = &t
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
	t.LogProb = stats.logProb(logits[id])
	if sp.TopLogProbs > 0 {
		for _, c := range top(logits, sp.TopLogProbs) {
			t.Top = append(t.Top, decode.TokenProb{ID: c.id, Text: w.vocab.piece(c.id), LogProb: stats.logProb(c.logit)})
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
	u.Preempted, st.preempted = st.preempted, 0
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

type adapter struct {
	handle llama.AdapterLora
	scale  float32
	users  int
	named  bool
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
