package store_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"anytime/internal/store"
	"anytime/internal/store/memory"
)

// What Follow yields of a run that goes on is tested with each store; here is how it ends.
func TestFollow(t *testing.T) {
	const many = 600 // more than two pages
	for _, c := range []struct {
		name   string
		after  int64
		later  func(ctx context.Context, s store.Store) error // a minute after Follow began
		cancel bool
		want   int64 // events
		err    error
	}{
		{"finished", 0, finish(0), false, many, nil},
		{"finished with events", 0, finish(300), false, many + 300, nil},
		{"from within", 500, finish(1), false, many - 500 + 1, nil},
		{"from the end", many, finish(0), false, 0, nil},
		{"from beyond the end", many + 2, finish(3), false, 1, nil},
		{"deleted", 0, func(ctx context.Context, s store.Store) error { return s.Delete(ctx, "r") }, false, many, store.ErrNotFound},
		{"closed", 0, func(_ context.Context, s store.Store) error { return s.Close() }, false, many, store.ErrClosed},
		{"left", 0, nil, true, many, context.Canceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStore(t, many)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				ended := make(chan struct{})
				var got int64
				var err error
				go func() {
					defer close(ended)
					for e, e2 := range store.Follow(ctx, s, "r", c.after) {
						if err != nil {
							t.Errorf("event %d after the error %v", e.Offset, err)
						}
						if err = e2; err != nil {
							continue
						}
						if got++; e.Offset != c.after+got {
							t.Errorf("event %d, want %d", e.Offset, c.after+got)
						}
					}
				}()
				time.Sleep(time.Minute)
				select {
				case <-ended:
					t.Fatal("ended while the run is running")
				default:
				}
				if c.later != nil {
					if err := c.later(t.Context(), s); err != nil {
						t.Fatal(err)
					}
				}
				if c.cancel {
					cancel()
				}
				<-ended
				if got != c.want || !errors.Is(err, c.err) {
					t.Errorf("%d events and %v, want %d and %v", got, err, c.want, c.err)
				}
			})
		})
	}
}

func TestFollowUnknown(t *testing.T) {
	for e, err := range store.Follow(t.Context(), newStore(t, 1), "unknown", 0) {
		if !errors.Is(err, store.ErrNotFound) {
			t.Errorf("event %v, error %v; want ErrNotFound", e, err)
		}
	}
}

// A reader that stops is not called again.
func TestFollowBreak(t *testing.T) {
	for e, err := range store.Follow(t.Context(), newStore(t, 5), "r", 1) {
		if err != nil || e.Offset > 3 {
			t.Fatalf("event %d, error %v", e.Offset, err)
		}
		if e.Offset == 3 {
			break
		}
	}
}

func newStore(t *testing.T, events int) store.Store {
	s := memory.New(memory.Options{})
	t.Cleanup(func() { s.Close() })
	err := s.Create(t.Context(), store.Run{ID: "r"})
	if err == nil {
		_, err = s.Append(t.Context(), "r", store.Change{Events: make([]store.Event, events)})
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func finish(events int) func(context.Context, store.Store) error {
	return func(ctx context.Context, s store.Store) error {
		_, err := s.Append(ctx, "r", store.Change{Events: make([]store.Event, events), State: store.Finished})
		return err
	}
}
