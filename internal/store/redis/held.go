package redis

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"anytime/internal/store"
)

// held is a run that this server executes, or is about to change: all of it.
type held struct {
	store.Run               // as of its last change
	kept      store.Run     // as of its last commit
	events    []store.Event // all, at plain offsets
	fence     int64
	bases     map[int64]int64 // offsets up to which earlier leases had committed, by fence
	made      string          // names the act of creating it; "" it is older than that
	bytes     int64           // about

	changes, committed int64  // counted
	request, reply     int64  // the change that last set them
	sent               int64  // Redis has the events up to this offset
	write              string // what its next commit is: create, append or restore
	indexed            bool

	late    bool          // it is shown as of its last change, committed or not
	shown   bool          // and somebody has seen of that
	lost    bool          // so it goes on without being written
	dropped time.Time     // lost and ended
	err     error         // it is not held any more, and why
	changed chan struct{} // closed at what waiters wait for
}

// What a run and an event cost beside their contents, roughly.
const (
	runBytes   = 1024
	eventBytes = 128
)

// wall is t as every store keeps it.
func wall(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// tell wakes who waits for the run. It wants mu.
func (h *held) tell() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// visible is the run as it may be shown, its offset plain. It wants mu.
func (h *held) visible() store.Run {
	if h.late {
		return h.Run
	}
	return h.kept
}

// shows says whether there is anything to be shown yet. It wants mu.
func (h *held) shows() bool { return h.write != "create" || h.late }

// show returns an offset as clients see it. It wants mu.
func (h *held) show(offset int64) int64 {
	if offset <= h.kept.Last {
		return offset
	}
	h.shown = true
	return provisional(offset, h.fence)
}

// Create implements store.Store. While Redis is away the run is kept here.
func (s *Store) Create(ctx context.Context, r store.Run) error {
	if err := s.create(ctx, r); err != nil {
		return fmt.Errorf("create run %q: %w", r.ID, err)
	}
	return nil
}

func (s *Store) create(ctx context.Context, r store.Run) error {
	if err := s.usable(ctx); err != nil {
		return err
	}
	now := time.Now()
	if r.Created.IsZero() {
		r.Created = now
	}
	r.Created, r.Updated = wall(r.Created), wall(now)
	r.State, r.Last = cmp.Or(r.State, store.Running), 0
	h := &held{
		Run: r, kept: r, fence: 1, made: rand.Text(), write: "create", changes: 1, request: 1, reply: 1,
		bytes: int64(runBytes + len(r.Request) + len(r.Reply)), changed: make(chan struct{}),
	}
	s.mu.Lock()
	switch {
	case s.runs[r.ID] != nil:
		s.mu.Unlock()
		return store.ErrExists
	case s.away && s.heldBytes() > s.opts.Backlog:
		s.mu.Unlock()
		return fmt.Errorf("%w: redis is away, and what waits for it fills the backlog", store.ErrUnavailable)
	}
	s.runs[r.ID] = h
	s.mu.Unlock()
	err := s.await(ctx, h, 1)
	if err != nil && ctx.Err() != nil { // nobody will execute it
		s.mu.Lock()
		s.drop(h, store.ErrNotFound)
		s.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		_ = s.remove(ctx, r.ID, r.Owner) // else it will be taken over: it was asked for
	}
	return err
}

// heldBytes wants mu.
func (s *Store) heldBytes() (n int64) {
	for _, h := range s.runs {
		n += h.bytes
	}
	return n
}

// drop lets a run go. It wants mu.
func (s *Store) drop(h *held, err error) {
	if s.runs[h.ID] == h {
		delete(s.runs, h.ID)
		s.ended = append(s.ended, h.ID)
	}
	h.err = err
	h.tell()
}

// Append implements store.Store.
func (s *Store) Append(ctx context.Context, id string, c store.Change) (int64, error) {
	last, err := s.append(ctx, id, c)
	if err != nil {
		return 0, fmt.Errorf("append to run %q: %w", id, err)
	}
	return last, nil
}

func (s *Store) append(ctx context.Context, id string, c store.Change) (int64, error) {
	for {
		if err := s.usable(ctx); err != nil {
			return 0, err
		}
		s.mu.Lock()
		h := s.runs[id]
		if h == nil {
			s.mu.Unlock()
			if err := s.claim(ctx, id, false); err != nil {
				return 0, err
			}
			continue
		}
		if h.lost && h.State != store.Running { // what is to come is to be kept again
			s.drop(h, store.ErrLeased)
			s.mu.Unlock()
			continue
		}
		last, n := h.apply(c), h.changes
		s.mu.Unlock()
		return last, s.await(ctx, h, n)
	}
}

// apply makes a change and returns the offset of the last event. It wants mu.
func (h *held) apply(c store.Change) int64 {
	h.changes++
	for _, e := range c.Events {
		h.Last++
		e.Offset = h.Last
		h.events = append(h.events, e)
		h.bytes += int64(eventBytes + len(e.Data) + 4*len(e.Tokens))
	}
	if c.Request != nil {
		h.bytes += int64(len(c.Request) - len(h.Request))
		h.Request, h.request = c.Request, h.changes
	}
	if c.Reply != nil {
		h.bytes += int64(len(c.Reply) - len(h.Reply))
		h.Reply, h.reply = c.Reply, h.changes
	}
	h.State, h.Updated = cmp.Or(c.State, h.State), wall(time.Now())
	if h.late {
		h.tell()
	}
	return h.Last
}

// await returns when a change is committed; while Redis is away at once.
func (s *Store) await(ctx context.Context, h *held, change int64) error {
	select {
	case s.kick <- struct{}{}:
	default:
	}
	for {
		s.mu.Lock()
		switch {
		case h.committed >= change || h.lost:
			s.mu.Unlock()
			return nil
		case h.err != nil:
			err := h.err
			s.mu.Unlock()
			return err
		case s.away:
			if !h.late {
				h.late = true
				h.tell()
			}
			s.mu.Unlock()
			return nil
		}
		changed := h.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ctx.Done(): // after the last commit
			s.mu.Lock()
			defer s.mu.Unlock()
			if h.committed >= change {
				return nil
			}
			return store.ErrClosed
		}
	}
}

// page returns events above an offset as they are shown. It wants mu.
func (h *held) page(after int64, limit int) []store.Event {
	after, reset := h.resolve(after)
	var events []store.Event
	if reset && limit > 0 {
		events, limit = append(events, resetTo(after)), limit-1
	}
	last := h.visible().Last
	shown := h.events[min(after, last):last]
	for _, e := range shown[:min(max(limit, 0), len(shown))] {
		e.Offset = h.show(e.Offset)
		events = append(events, e)
	}
	return events
}

// resolve returns the plain offset that a reader is at; it is reset to it where it has seen what was never committed.
func (h *held) resolve(after int64) (plain int64, reset bool) {
	plain, fence := split(after)
	base, ended := h.bases[fence]
	if ended && plain > base {
		return base, true
	}
	return plain, false
}
