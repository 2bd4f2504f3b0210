// Package memory keeps runs in the process, for tests and for servers that need not remember.
//
// Commits are at once. A bounded store forgets the runs that ended first; never one that is running, or that ended within the last
// minute, so that its readers get to its end.
package memory

import (
	"cmp"
	"container/list"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"anytime/internal/store"
)

// Options bound a store. Zero is no bound; runs that may not be forgotten count, but are kept even beyond it.
type Options struct {
	MaxRuns  int
	MaxBytes int64 // of requests, replies and events, about
}

// Store is a store.Store in memory.
type Store struct {
	opts   Options
	closed chan struct{}

	mu    sync.RWMutex // guards what follows, and the runs
	runs  map[string]*run
	ended *list.List // of *run that are not running, longest ended first
	bytes int64
}

var _ store.Store = (*Store)(nil)

type run struct {
	store.Run
	events  []store.Event
	changed chan struct{} // closed at the next commit; waiters share it
	deleted bool
	bytes   int64
	ended   *list.Element // nil while it is running
	endedAt time.Time     // on the clock that nobody sets
}

// grace is how long an ended run is kept whatever the bounds.
const grace = time.Minute

// What a run and an event cost beside their contents, roughly.
const (
	runBytes   = 512
	eventBytes = 128
)

// New returns an empty store.
func New(opts Options) *Store {
	return &Store{opts: opts, closed: make(chan struct{}), runs: make(map[string]*run), ended: list.New()}
}

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, r store.Run) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return err
	}
	if s.runs[r.ID] != nil {
		return fmt.Errorf("create run %q: %w", r.ID, store.ErrExists)
	}
	now := time.Now()
	if r.Created.IsZero() {
		r.Created = now
	}
	r.Created, r.Updated = wall(r.Created), wall(now)
	r.State, r.Last = cmp.Or(r.State, store.Running), 0
	kept := &run{Run: r, changed: make(chan struct{})}
	s.runs[r.ID] = kept
	s.grow(kept, int64(runBytes+len(r.ID)+len(r.Owner)+len(r.Model)+len(r.Request)+len(r.Reply)))
	s.settle(kept)
	return nil
}

// Append implements store.Store.
func (s *Store) Append(ctx context.Context, id string, c store.Change) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.find(ctx, id)
	if err != nil {
		return 0, fmt.Errorf("append to run %q: %w", id, err)
	}
	size := 0
	for _, e := range c.Events {
		r.Last++
		e.Offset = r.Last
		r.events = append(r.events, e)
		size += eventBytes + len(e.Data) + 4*len(e.Tokens)
	}
	if c.Request != nil {
		size += len(c.Request) - len(r.Request)
		r.Request = c.Request
	}
	if c.Reply != nil {
		size += len(c.Reply) - len(r.Reply)
		r.Reply = c.Reply
	}
	r.State, r.Updated = cmp.Or(c.State, r.State), wall(time.Now())
	last := r.Last
	s.grow(r, int64(size))
	s.settle(r)
	return last, nil
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, id string) (store.Run, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r, err := s.find(ctx, id)
	if err != nil {
		return store.Run{}, fmt.Errorf("get run %q: %w", id, err)
	}
	return r.Run, nil
}

// Events implements store.Store.
func (s *Store) Events(ctx context.Context, id string, after int64, limit int) ([]store.Event, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r, err := s.find(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("events of run %q: %w", id, err)
	}
	events := r.events[min(max(after, 0), r.Last):]
	return slices.Clone(events[:min(max(limit, 0), len(events))]), nil
}

// Wait implements store.Store.
func (s *Store) Wait(ctx context.Context, id string, after int64) error {
	s.mu.RLock()
	r, err := s.find(ctx, id)
	for err == nil && r.Last <= after && r.State == store.Running {
		changed := r.changed
		s.mu.RUnlock()
		select {
		case <-changed:
		case <-ctx.Done():
		case <-s.closed:
		}
		s.mu.RLock()
		if err = s.usable(ctx); err == nil && r.deleted {
			err = store.ErrNotFound
		}
	}
	s.mu.RUnlock()
	if err != nil {
		return fmt.Errorf("wait for run %q: %w", id, err)
	}
	return nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, f store.Filter) ([]store.Run, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	var runs []store.Run
	for _, r := range s.runs {
		if (f.Owner == nil || *f.Owner == r.Owner) && (f.State == "" || f.State == r.State) &&
			(f.Before.IsZero() || r.Created.Before(f.Before)) {
			runs = append(runs, r.Run)
		}
	}
	slices.SortFunc(runs, func(a, b store.Run) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(b.ID, a.ID))
	})
	return runs[:min(len(runs), cmp.Or(max(f.Limit, 0), 100))], nil
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.find(ctx, id)
	if err != nil {
		return fmt.Errorf("delete run %q: %w", id, err)
	}
	s.remove(r)
	return nil
}

// Ready implements store.Store.
func (s *Store) Ready(ctx context.Context) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.usable(ctx)
}

// Close implements store.Store. Waiters get store.ErrClosed.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.closed:
	default:
		close(s.closed)
	}
	return nil
}

// usable wants mu.
func (s *Store) usable(ctx context.Context) error {
	select {
	case <-s.closed:
		return store.ErrClosed
	default:
		return ctx.Err()
	}
}

// find wants mu.
func (s *Store) find(ctx context.Context, id string) (*run, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	r := s.runs[id]
	if r == nil {
		return nil, store.ErrNotFound
	}
	return r, nil
}

func (s *Store) grow(r *run, size int64) {
	r.bytes += size
	s.bytes += size
}

// settle ends a commit to r: it puts r in its place among those that ended, wakes who waits for it and keeps the bounds.
func (s *Store) settle(r *run) {
	if r.ended != nil {
		s.ended.Remove(r.ended)
		r.ended = nil
	}
	if r.State != store.Running {
		r.ended, r.endedAt = s.ended.PushBack(r), time.Now()
	}
	close(r.changed)
	r.changed = make(chan struct{})
	for s.opts.MaxRuns > 0 && len(s.runs) > s.opts.MaxRuns || s.opts.MaxBytes > 0 && s.bytes > s.opts.MaxBytes {
		first := s.ended.Front()
		if first == nil || time.Since(first.Value.(*run).endedAt) < grace {
			break
		}
		s.remove(first.Value.(*run))
	}
}

func (s *Store) remove(r *run) {
	delete(s.runs, r.ID)
	s.bytes -= r.bytes
	if r.ended != nil {
		s.ended.Remove(r.ended)
	}
	r.deleted = true
	close(r.changed)
}

// wall is t as every store keeps it.
func wall(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }
