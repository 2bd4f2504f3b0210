package anytime

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"time"

	"anytime/internal/decode"
	"anytime/internal/store"
)

// recorder commits a run's events in order. Nobody waits for it but finish: while one commit is under way, text coalesces into the
// next. If the store cannot commit, it tries again until it can or the recorder is abandoned; nothing is dropped.
type recorder struct {
	store store.Store
	id    string
	log   *slog.Logger

	mu      sync.Mutex
	pending []pendingEvent
	change  store.Change // what the commit of all that is pending sets besides
	closing bool
	wake    chan struct{}
	done    chan struct{}
	kept    bool // all of it is; set before done is closed
}

// pendingEvent is an event that may still grow.
type pendingEvent struct {
	kind   string
	text   TextData // of thinking and answer events
	tokens []int32
	data   json.RawMessage // of the others
}

// newRecorder returns a recorder; its run must be started.
func newRecorder(s store.Store, id string, log *slog.Logger) *recorder {
	return &recorder{store: s, id: id, log: log, wake: make(chan struct{}, 1), done: make(chan struct{})}
}

// text records text of the thinking or of an answer. Tokens whose ids are exact are kept for going on after a restart.
func (r *recorder) text(kind string, data TextData, tokens []decode.Token) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ids []int32
	for _, t := range tokens {
		if t.ID < 0 {
			// A piece of a token has no id: only text of its own event can bring it back.
			ids = nil
			break
		}
		ids = append(ids, t.ID)
	}
	if n := len(r.pending); n > 0 && !data.Reset {
		// Events grow only by their like: with ids or without, for an event is brought back from the one or from the other.
		if last := &r.pending[n-1]; last.kind == kind && (len(last.tokens) > 0) == (len(ids) > 0) {
			last.text.Text += data.Text
			last.text.Tokens = data.Tokens
			last.text.LogProbs = append(last.text.LogProbs, data.LogProbs...)
			last.tokens = append(last.tokens, ids...)
			r.signal()
			return
		}
	}
	r.pending = append(r.pending, pendingEvent{kind: kind, text: data, tokens: ids})
	r.signal()
}

// event records any other event.
func (r *recorder) event(kind string, data any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pending = append(r.pending, pendingEvent{kind: kind, data: mustJSON(data)})
	r.signal()
}

// finish records the last event with the run's new state, and waits until everything is committed, or for ctx. It reports whether it
// never will be by this recorder.
func (r *recorder) finish(ctx context.Context, kind string, data any, change store.Change) (lost bool) {
	r.mu.Lock()
	r.pending = append(r.pending, pendingEvent{kind: kind, data: mustJSON(data)})
	r.change = change
	r.closing = true
	r.mu.Unlock()
	r.signal()
	select {
	case <-r.done:
		return !r.kept
	case <-ctx.Done(): // commit goes on, and says what hinders it
		return false
	}
}

// leave ends the recorder with what there is; another process goes on.
func (r *recorder) leave() {
	r.mu.Lock()
	r.closing = true
	r.mu.Unlock()
	r.signal()
}

func (r *recorder) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run commits until finish, or ctx ends it. It returns an error if the run is gone, or another server's.
func (r *recorder) run(ctx context.Context) error {
	defer close(r.done)
	for {
		r.mu.Lock()
		pending, change, last := r.pending, r.change, r.closing
		r.pending = nil
		r.mu.Unlock()
		if len(pending) == 0 && !last {
			select {
			case <-r.wake:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		for _, p := range pending {
			data := p.data
			if data == nil {
				data = mustJSON(p.text)
			}
			change.Events = append(change.Events, store.Event{Type: p.kind, Data: data, Tokens: p.tokens})
		}
		kept, err := r.commit(ctx, change)
		if last || !kept {
			r.kept = kept
			return err
		}
	}
}

// commit tries until it succeeds, ctx ends, or it cannot any more, which is an error.
func (r *recorder) commit(ctx context.Context, change store.Change) (kept bool, err error) {
	const slowest = 5 * time.Second
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, slowest) {
		_, err := r.store.Append(ctx, r.id, change)
		if err == nil || ctx.Err() != nil {
			return err == nil, nil
		}
		if isGone(err) {
			return false, err
		}
		r.log.Error("store does not commit, trying again", "error", err, "wait", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return false, nil
		}
	}
}
