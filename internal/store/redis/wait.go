package redis

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"anytime/internal/store"
)

// topic is what the waiters share for a run that is not held here. Its channel stays subscribed to for a while after the last one.
type topic struct {
	waiters int
	idle    bool // it had no waiter when the keeper last came by
	changed chan struct{}
}

// glance is after how long a waiter looks again, should a message have been lost.
const glance = 5 * time.Second

// Wait implements store.Store. While Redis is away it waits on.
func (s *Store) Wait(ctx context.Context, id string, after int64) error {
	if err := s.wait(ctx, id, after); err != nil {
		return fmt.Errorf("wait for run %q: %w", id, err)
	}
	return nil
}

func (s *Store) wait(ctx context.Context, id string, after int64) error {
	for {
		if err := s.usable(ctx); err != nil {
			return err
		}
		s.mu.Lock()
		if h := s.runs[id]; h != nil && h.shows() {
			plain, reset := h.resolve(after)
			run, changed := h.visible(), h.changed
			s.mu.Unlock()
			if reset || run.Last > plain || run.State != store.Running {
				return nil
			}
			if err := s.pause(ctx, changed, glance); err != nil {
				return err
			}
			continue
		}
		s.mu.Unlock()
		if done, err := s.watch(ctx, id, after); done || err != nil {
			return err
		}
	}
}

// watch waits for a change of a run that is not held here; done: it is what is waited for.
func (s *Store) watch(ctx context.Context, id string, after int64) (done bool, err error) {
	s.mu.Lock()
	t := s.topics[id]
	fresh := t == nil
	if fresh {
		t = &topic{changed: make(chan struct{})}
		s.topics[id] = t
	}
	t.waiters++
	t.idle = false
	changed := t.changed
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		t.waiters--
	}()
	if fresh {
		// That it is subscribed to comes as a message, which wakes the waiters: they look again.
		if err := s.pubsub.Subscribe(ctx, s.channel(id)); err != nil && ctx.Err() == nil {
			s.log.Debug("redis does not take a subscription; it is tried again", "run", id, "error", err)
		}
	}
	h, err := s.head(ctx, id, after)
	switch {
	case errors.Is(err, store.ErrUnavailable):
		return false, s.pause(ctx, nil, retry)
	case err != nil || h.reached():
		return err == nil, err
	}
	return false, s.pause(ctx, changed, glance)
}

func (s *Store) pause(ctx context.Context, changed <-chan struct{}, longest time.Duration) error {
	timer := time.NewTimer(longest)
	defer timer.Stop()
	select {
	case <-changed:
		return nil
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closing:
		return store.ErrClosed
	}
}

// listen takes in what the shared connection brings.
func (s *Store) listen(messages <-chan any) {
	for {
		select {
		case m := <-messages:
			switch m := m.(type) {
			case *redis.Subscription:
				s.wake(m.Channel)
			case *redis.Message:
				if m.Channel == s.commandsOf(s.session) {
					s.deliver(m.Payload)
				} else {
					s.wake(m.Channel)
				}
			}
		case <-s.ctx.Done():
			return
		}
	}
}

// wake has the waiters for a run look again.
func (s *Store) wake(channel string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	low, high := len(s.prefix)+len(":{"), len(channel)-len("}")
	if low > high {
		return
	}
	if t := s.topics[channel[low:high]]; t != nil {
		close(t.changed)
		t.changed = make(chan struct{})
	}
}

// forget unsubscribes from runs that nobody has waited for since it was last called.
func (s *Store) forget(ctx context.Context) error {
	var channels []string
	s.mu.Lock()
	for id, t := range s.topics {
		if t.waiters == 0 && t.idle {
			delete(s.topics, id)
			channels = append(channels, s.channel(id))
		}
		t.idle = t.waiters == 0
	}
	s.mu.Unlock()
	if channels == nil {
		return nil
	}
	return s.pubsub.Unsubscribe(ctx, channels...)
}
