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
	return errors.Join(err, out.send(event{Fatal: err.Error()}))
}

// serve returns only with an error.
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
	w.sched.joins = uint64(answerSteps(l.gpuLayers))
	w.sched.tiled = l.gpuLayers == 0 && !l.whole && c.FlashAttention != "off" && c.KVType != "q8_0"
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
	rows     []row     // of the step under way
	samplers []sampler // one for each goroutine that draws
	pieces   *pieces
	frame    event // what happened since the last frame
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
				p.ids = w.vocab.prompt(p.Parts)
			} else {
				p.ids = w.vocab.tokenize(p.Parts)
			}
		}
		if p.Kind == cmdTokenize {
			r := reply{Call: p.Call, Err: toWire(p.err)}
			for _, id := range p.ids {
				r.Tokens = append(r.Tokens, w.vocab.token(id))
			}
			if err := w.out.send(event{Replies: []reply{r}, Beside: true}); err != nil {
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
