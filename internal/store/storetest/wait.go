package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"anytime/internal/store"
)

func testWait(t *testing.T, ctx context.Context, s store.Store) {
	create(t, ctx, s, "r")
	appendTo(t, ctx, s, "r", store.Change{Events: []store.Event{event("run"), event("thinking")}})
	for _, after := range []int64{-1, 0, 1} {
		if err := s.Wait(ctx, "r", after); err != nil {
			t.Errorf("Wait after %d of 2: %v", after, err)
		}
	}
	for _, c := range []struct {
		name   string
		after  int64
		change store.Change
	}{
		{"an event", 2, store.Change{Events: []store.Event{event("thinking")}}},
		{"several events", 3, store.Change{Events: []store.Event{event("thinking"), event("thinking")}}},
		{"the state alone", 5, store.Change{State: store.Failed}},
		{"an event and the state", 5, store.Change{Events: []store.Event{event("done")}, State: store.Finished}},
	} {
		t.Run(c.name, func(t *testing.T) {
			appendTo(t, ctx, s, "r", store.Change{State: store.Running})
			woken := make(chan error, 1)
			go func() {
				err := s.Wait(ctx, "r", c.after)
				if err == nil { // what it waited for can be read
					var r store.Run
					if r, err = s.Get(ctx, "r"); err == nil && r.Last <= c.after && r.State == store.Running {
						err = fmt.Errorf("woken to %s", show(r))
					}
				}
				woken <- err
			}()
			settle()
			appendTo(t, ctx, s, "r", c.change)
			if err := <-woken; err != nil {
				t.Error(err)
			}
		})
	}
	for _, after := range []int64{0, 6, 100} { // it is finished
		if err := s.Wait(ctx, "r", after); err != nil {
			t.Errorf("Wait after %d of a finished run: %v", after, err)
		}
	}
}

// settle gives waiters time to begin, for a wake is what is tested. Were it too short, they would find what they wait for there.
func settle() { <-time.After(moment) }

// testWaitNot has things happen that are not waited for.
func testWaitNot(t *testing.T, ctx context.Context, s store.Store) {
	create(t, ctx, s, "r", "other")
	appendTo(t, ctx, s, "r", store.Change{Events: []store.Event{event("run")}})
	short, cancel := context.WithTimeout(ctx, moment)
	defer cancel()
	var wg sync.WaitGroup
	for _, after := range []int64{2, 100} {
		wg.Go(func() {
			if err := s.Wait(short, "r", after); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Wait after %d: %v, want context.DeadlineExceeded", after, err)
			}
		})
	}
	appendTo(t, ctx, s, "r", store.Change{Events: []store.Event{event("thinking")}, Reply: raw(`1`)})
	appendTo(t, ctx, s, "r", store.Change{Request: raw(`1`)})
	appendTo(t, ctx, s, "other", store.Change{Events: []store.Event{event("run"), event("run"), event("run")}, State: store.Finished})
	wg.Wait()
}

func testWaitEnds(t *testing.T, ctx context.Context, s store.Store) {
	create(t, ctx, s, "deleted", "left", "closed")
	leave, cancel := context.WithCancel(ctx)
	deleted, left, closed := make(chan error), make(chan error), make(chan error)
	go func() { deleted <- s.Wait(ctx, "deleted", 0) }()
	go func() { left <- s.Wait(leave, "left", 0) }()
	go func() { closed <- s.Wait(ctx, "closed", 0) }()
	settle()
	if err := s.Delete(ctx, "deleted"); err != nil {
		t.Fatal(err)
	}
	if err := <-deleted; !errors.Is(err, store.ErrNotFound) {
		t.Errorf("when the run is deleted: %v, want ErrNotFound", err)
	}
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("when its context ends: %v, want context.Canceled", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-closed; !errors.Is(err, store.ErrClosed) {
		t.Errorf("when the store is closed: %v, want ErrClosed", err)
	}
}

// testPingPong has pairs answer one another's events: a wake that is lost stops them.
func testPingPong(t *testing.T, ctx context.Context, s store.Store) {
	const pairs, rounds = 8, 20
	var wg sync.WaitGroup
	for i := range pairs {
		id := fmt.Sprint("run", i)
		create(t, ctx, s, id)
		for side := range int64(2) {
			wg.Go(func() {
				for n := side; n < 2*rounds; n += 2 {
					if n > 0 {
						if err := s.Wait(ctx, id, n-1); err != nil {
							t.Error(err)
							return
						}
					}
					last, err := s.Append(ctx, id, store.Change{Events: []store.Event{event("thinking")}})
					if err != nil || last != n+1 {
						t.Errorf("Append = %d, %v; want %d", last, err, n+1)
						return
					}
				}
			})
		}
	}
	wg.Wait()
}

func testManyWaiters(t *testing.T, ctx context.Context, s store.Store) {
	const waiters = 1000
	create(t, ctx, s, "r", "other")
	leave, cancel := context.WithCancel(ctx)
	defer cancel()
	var woken, others sync.WaitGroup
	for range waiters {
		woken.Go(func() {
			if err := s.Wait(ctx, "r", 0); err != nil {
				t.Error(err)
			}
		})
		others.Go(func() {
			if err := s.Wait(leave, "other", 0); !errors.Is(err, context.Canceled) {
				t.Errorf("a waiter of another run: %v, want context.Canceled", err)
			}
		})
	}
	settle()
	appendTo(t, ctx, s, "r", store.Change{Events: []store.Event{event("run")}})
	woken.Wait()
	cancel()
	others.Wait()
}

// testFollow has readers join at different times and offsets.
func testFollow(t *testing.T, ctx context.Context, s store.Store) {
	const events = 40
	create(t, ctx, s, "r")
	var readers sync.WaitGroup
	read := func(after int64) {
		readers.Go(func() {
			next := after + 1
			for e, err := range store.Follow(ctx, s, "r", after) {
				if err != nil || e.Offset != next {
					t.Errorf("follow after %d: event %d, %v; want %d", after, e.Offset, err, next)
					return
				}
				next++
			}
			if next != events+1 {
				t.Errorf("follow after %d ended before event %d, want %d", after, next, events+1)
			}
		})
	}
	for n := range events {
		if n%10 == 0 {
			read(0)
			read(int64(n))
		}
		change := store.Change{Events: []store.Event{event("thinking")}}
		if n == events-1 {
			change.State = store.Finished
		}
		appendTo(t, ctx, s, "r", change)
	}
	read(0)
	read(events)
	readers.Wait()
}
