package sqlite

import (
	"context"
	"fmt"

	"anytime/internal/store"
)

// A topic is what the waiters of one run share, until its next commit.
type topic struct {
	waiters int // guarded by Store.mu

	// Set before changed is closed.
	last    int64
	state   store.State
	err     error
	changed chan struct{}
}

// Wait implements store.Store.
func (s *Store) Wait(ctx context.Context, id string, after int64) error {
	if err := s.wait(ctx, id, after); err != nil {
		return fmt.Errorf("wait for run %q: %w", id, err)
	}
	return nil
}

func (s *Store) wait(ctx context.Context, id string, after int64) error {
	for {
		t := s.watch(id) // before the run is read, or a commit between the two would be missed
		last, state, err := s.head(ctx, id)
		if err != nil || last > after || state != store.Running {
			s.unwatch(id, t)
			return s.readError(err)
		}
		select {
		case <-t.changed:
			if t.err != nil || t.last > after || t.state != store.Running {
				return t.err
			}
		case <-ctx.Done():
			s.unwatch(id, t)
			return ctx.Err()
		case <-s.closing:
			s.unwatch(id, t)
			return store.ErrClosed
		}
	}
}

func (s *Store) watch(id string) *topic {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.topics[id]
	if t == nil {
		t = &topic{changed: make(chan struct{})}
		s.topics[id] = t
	}
	t.waiters++
	return t
}

func (s *Store) unwatch(id string, t *topic) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.waiters--; t.waiters == 0 && s.topics[id] == t {
		delete(s.topics, id)
	}
}

// wake tells those who wait for a run what was committed.
func (s *Store) wake(id string, last int64, state store.State, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.topics[id]; t != nil {
		t.last, t.state, t.err = last, state, err
		close(t.changed)
		delete(s.topics, id)
	}
}
