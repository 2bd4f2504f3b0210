package llamacpp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"time"

	"anytime/internal/decode"
)

const (
	firstPause = 50 * time.Millisecond
	lastPause  = 30 * time.Second
)

// supervise keeps a child running until life ends. The first child's fate goes to first; if it does not load the model there is
// no second.
func (e *Engine) supervise(life context.Context, first chan<- error) {
	defer close(e.done)
	// The kernel ends the child with the thread that started it; this one lives as long as it is needed.
	runtime.LockOSThread()
	failed := 0
	for {
		loaded, err := e.run(life, func() {
			if first != nil {
				first <- nil
				first = nil
			}
		})
		switch {
		case first != nil:
			first <- err
			return
		case life.Err() != nil:
			return
		case loaded:
			failed = 0
			e.config.Log.Error("engine process died, starting another", "error", err)
			if e.config.OnRestart != nil {
				e.config.OnRestart(err)
			}
		default:
			failed++
			e.config.Log.Error("engine process did not start", "tries", failed, "error", err)
			if failed >= maxFailed {
				e.giveUp(err)
			}
		}
		if !pause(life, min(firstPause<<min(failed, 10), lastPause)) {
			return
		}
	}
}

// run starts a child and works off its events until it is dead. loaded tells whether it got so far as to load the model.
func (e *Engine) run(life context.Context, up func()) (loaded bool, err error) {
	e.mu.Lock()
	e.frame, e.slowest = time.Now(), 0
	e.mu.Unlock()
	p, err := startProcess(e.config.Command, e.child, e.config.Log)
	if err != nil {
		return false, err
	}
	watched := make(chan error, 1)
	ctx, stop := context.WithCancel(life)
	go func() { watched <- e.watch(ctx, p) }()
	var fatal error
	for {
		var ev event
		if err = p.events.Decode(&ev); err != nil {
			break
		}
		if ev.Fatal != "" {
			fatal = errors.New(ev.Fatal)
			continue
		}
		if e.handle(p, ev) {
			loaded = true
			up()
		}
	}
	stop()
	hung := <-watched
	exit := p.wait()
	if hung == nil && fatal == nil && wasKilled(exit) {
		e.lost(killed)
	} else {
		e.lost(crashed)
	}
	switch {
	case hung != nil:
		return loaded, hung
	case fatal != nil:
		return loaded, fatal
	}
	return loaded, fmt.Errorf("engine process ended: %w", exit)
}

// watch kills a child that is silent for too long or no longer wanted. Asked nothing, a child has nothing to say, so it is asked.
func (e *Engine) watch(ctx context.Context, p *process) error {
	for pause(ctx, e.config.Watchdog/4) {
		e.mu.Lock()
		silent, limit := time.Since(e.frame), max(e.config.Watchdog, 4*e.slowest)
		up := e.proc == p
		e.mu.Unlock()
		if silent > limit {
			p.kill()
			return fmt.Errorf("engine process was silent for %v", silent.Round(time.Millisecond))
		}
		if up && silent >= e.config.Watchdog/4 {
			p.send(command{Kind: cmdPing})
		}
	}
	p.kill()
	return nil
}

// handle takes in an event; true if the child is up with it.
func (e *Engine) handle(p *process, ev event) (up bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !ev.Beside {
		e.frame = time.Now()
	}
	e.slowest = max(e.slowest, ev.Took)
	if ev.Hello != nil {
		e.hello, e.proc, e.broken = *ev.Hello, p, nil
		e.restore()
		return true
	}
	for _, r := range ev.Replies {
		if q := e.calls[r.Call]; q != nil {
			delete(e.calls, r.Call)
			q.answer <- r
		} else if r.Err != nil {
			e.config.Log.Error("adapter was not loaded again", "error", r.Err.error())
		}
	}
	trial := false
	for _, u := range ev.Updates {
		if s := e.seqs[u.Seq]; s != nil {
			trial = trial || s.suspect()
			s.apply(u)
		}
	}
	if trial {
		e.resume()
	}
	if ev.Counts.Steps > 0 {
		e.stats = e.before.plus(ev.Counts)
	}
	return false
}

// plus adds the counters of a child to those of the children before it.
func (s Stats) plus(c counts) Stats {
	return Stats{
		Steps: s.Steps + c.Steps, BatchTokens: s.BatchTokens + c.BatchTokens, PrefillTokens: s.PrefillTokens + c.PrefillTokens,
		CachedTokens: s.CachedTokens + c.CachedTokens, Preemptions: s.Preemptions + c.Preemptions,
		Evictions: s.Evictions + c.Evictions, Restarts: s.Restarts,
		Running: c.Running, Waiting: c.Waiting, CacheTokens: c.CellsUsed,
	}
}

// send passes a command to the child. Without one it is lost: restore tells the next child all that counts. The caller holds mu.
func (e *Engine) send(c command) {
	if e.proc != nil {
		e.proc.send(c)
	}
}

// restore gives a new child everything: adapters, sequences, open questions. The caller holds mu.
func (e *Engine) restore() {
	for _, id := range slices.Sorted(maps.Keys(e.adapters)) {
		a := e.adapters[id]
		e.send(command{Kind: cmdAdapter, Adapter: id, Path: a.path, Scale: a.scale})
	}
	e.resume()
	for id, a := range e.adapters {
		if !a.named {
			e.send(command{Kind: cmdUnload, Adapter: id})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(e.calls)) {
		e.send(e.calls[id].command)
	}
}

// resume gives the child the sequences that it does not know. One at which two children have died in a row comes alone, and the
// next of them when it has stepped forward: so one that ends the process takes no other with it. The caller holds mu.
func (e *Engine) resume() {
	var suspect *sequence
	for _, id := range slices.Sorted(maps.Keys(e.seqs)) { // a fork's parent comes before it
		s := e.seqs[id]
		switch p := s.parent; {
		case s.suspect() && s.err == nil && !s.closed:
			if suspect == nil {
				suspect = s
			}
		case !s.live && (p == nil || p.live || p.closed || p.err != nil):
			s.restore()
		}
	}
	if suspect != nil && !suspect.live {
		suspect.restore()
	}
}

// wasKilled says whether a child's end was a SIGKILL, which llama.cpp does not send itself.
func wasKilled(exit error) bool {
	ended, ok := errors.AsType[*exec.ExitError](exit)
	if !ok {
		return false
	}
	status, ok := ended.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// suspect says whether one more crash would be the last that the sequence lives through.
func (s *sequence) suspect() bool { return s.blame >= maxBlame-crashed }

// lost notes that the child is dead.
func (e *Engine) lost(b blame) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.proc == nil {
		return
	}
	e.proc = nil
	e.stats.Restarts++
	e.stats.Running, e.stats.Waiting, e.stats.CacheTokens = 0, 0, 0
	e.before = e.stats
	for id, s := range e.seqs {
		if s.closed {
			delete(e.seqs, id)
			continue
		}
		decoding := s.live && s.parent == nil && len(s.queue) > 0 && len(s.decoded)-s.delivered < window
		s.live = false
		s.restarted++
		if !decoding {
			continue
		}
		if s.blame += b; s.blame >= maxBlame {
			s.begin(fmt.Errorf("%w: it died again and again at this sequence", decode.ErrUnavailable))
		}
	}
}

// giveUp fails all who wait, after the child did not start again and again. It is still tried.
func (e *Engine) giveUp(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.broken = err
	for _, s := range e.seqs {
		s.begin(e.usable())
	}
	e.hangUp()
}
