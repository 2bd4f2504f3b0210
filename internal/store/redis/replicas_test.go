package redis_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	goredis "github.com/redis/go-redis/v9"

	"anytime/internal/store"
	"anytime/internal/store/redis"
	"anytime/internal/store/redis/redistest"
)

// short is a lease that tests can wait for.
const short = 600 * time.Millisecond

func event(kind, text string) store.Event {
	return store.Event{Type: kind, Data: fmt.Appendf(nil, `{"text":%q}`, text), Tokens: []int32{int32(len(text))}}
}

func events(kind string, texts ...string) store.Change {
	var c store.Change
	for _, text := range texts {
		c.Events = append(c.Events, event(kind, text))
	}
	return c
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func create(t *testing.T, s store.Store, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if err := s.Create(within(t), store.Run{ID: id, Owner: "o", Request: json.RawMessage(`{}`)}); err != nil {
			t.Fatal(err)
		}
	}
}

func appendTo(t *testing.T, s store.Store, id string, c store.Change) int64 {
	t.Helper()
	last, err := s.Append(within(t), id, c)
	if err != nil {
		t.Fatal(err)
	}
	return last
}

// texts reads what a store shows of a run above an offset.
func texts(t *testing.T, s store.Store, id string, after int64) (all []string, last int64) {
	t.Helper()
	list, err := s.Events(within(t), id, after, 1000)
	if err != nil {
		t.Fatal(err)
	}
	last = after
	for _, e := range list {
		text := e.Type
		if e.Type != store.Reset {
			var data struct{ Text string }
			if err := json.Unmarshal(e.Data, &data); err != nil {
				t.Fatal(err)
			}
			text = data.Text
		}
		all, last = append(all, text), e.Offset
	}
	return all, last
}

func wantTexts(t *testing.T, s store.Store, id string, after int64, want string) (last int64) {
	t.Helper()
	got, last := texts(t, s, id, after)
	if strings.Join(got, " ") != want {
		t.Errorf("behind %d there are %q, want %q", after, strings.Join(got, " "), want)
	}
	return last
}

// takeOver waits until a store has taken runs over.
func takeOver(t *testing.T, s *redis.Store, most int, want ...string) {
	t.Helper()
	var got []string
	eventually(t, fmt.Sprintf("taken over: %v", want), func() bool {
		runs, err := s.TakeOver(within(t), most)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range runs {
			got = append(got, r.ID)
		}
		return len(got) >= len(want)
	})
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("taken over: %v, want %v", got, want)
	}
}

func TestFollowElsewhere(t *testing.T) {
	each(t, func(t *testing.T, url string) {
		a, b := open(t, url, redis.Options{}), open(t, url, redis.Options{})
		const runs, readers, length = 8, 5, 30
		var wg sync.WaitGroup
		for i := range runs {
			id := fmt.Sprint("run", i)
			create(t, a, id)
			for range readers {
				wg.Go(func() {
					next := int64(1)
					for e, err := range store.Follow(within(t), b, id, 0) {
						if err != nil || e.Offset != next {
							t.Errorf("event %d of %s, %v; want %d", e.Offset, id, err, next)
							return
						}
						next++
					}
					if next != length+1 {
						t.Errorf("%s ended before event %d, want %d", id, next, length+1)
					}
				})
			}
			wg.Go(func() {
				for n := range length {
					c := events("thinking", "some")
					if n == length-1 {
						c.State = store.Finished
					}
					if _, err := a.Append(within(t), id, c); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestLease(t *testing.T) {
	each(t, func(t *testing.T, url string) {
		a, b := open(t, url, redis.Options{}), open(t, url, redis.Options{})
		ctx := within(t)
		create(t, a, "r")
		appendTo(t, a, "r", events("thinking", "one"))
		if _, err := b.Append(ctx, "r", events("thinking", "two")); !errors.Is(err, store.ErrLeased) {
			t.Errorf("Append by another: %v, want ErrLeased", err)
		}
		if runs, err := b.TakeOver(ctx, 10); err != nil || len(runs) != 0 {
			t.Errorf("TakeOver = %v, %v; want none: its server lives", runs, err)
		}
		if err := b.Create(ctx, store.Run{ID: "r"}); !errors.Is(err, store.ErrExists) {
			t.Errorf("Create by another: %v, want ErrExists", err)
		}
		appendTo(t, a, "r", store.Change{State: store.Finished})
		// Once it has ended it may be extended anywhere, but only once.
		var wg sync.WaitGroup
		var mu sync.Mutex
		results := map[bool]int{}
		for _, s := range []*redis.Store{a, b} {
			wg.Go(func() {
				_, err := s.Append(ctx, "r", store.Change{State: store.Running})
				if err != nil && !errors.Is(err, store.ErrLeased) {
					t.Errorf("Append: %v, want ErrLeased", err)
				}
				mu.Lock()
				defer mu.Unlock()
				results[err == nil]++
			})
		}
		wg.Wait()
		if results[true] != 1 {
			t.Errorf("%d servers extended it, want 1", results[true])
		}
		wantTexts(t, b, "r", 0, "one")
	})
}

func TestTakeOver(t *testing.T) {
	each(t, func(t *testing.T, url string) {
		p := redistest.StartProxy(t, strings.TrimPrefix(url, "redis://"))
		a, b := open(t, "redis://"+p.Addr, redis.Options{Lease: short}), open(t, url, redis.Options{Lease: short})
		c := open(t, url, redis.Options{})
		create(t, a, "r1", "r2", "ended")
		for _, id := range []string{"r1", "r2", "ended"} {
			appendTo(t, a, id, events("thinking", "one", "two"))
		}
		appendTo(t, a, "ended", store.Change{State: store.Finished})
		p.Stall()
		takeOver(t, b, 10, "r1", "r2")
		appendTo(t, b, "r1", events("thinking", "three"))
		wantTexts(t, c, "r1", 0, "one two three")
		if err := b.Release(within(t), "r1"); err != nil {
			t.Fatal(err)
		}
		takeOver(t, c, 10, "r1")
		appendTo(t, c, "r1", events("thinking", "four"))
		wantTexts(t, b, "r1", 0, "one two three four")
		p.Heal()
		for _, s := range []*redis.Store{a, b} {
			if _, err := s.Append(within(t), "r1", events("thinking", "x")); !errors.Is(err, store.ErrLeased) {
				t.Errorf("Append by a server that has lost the lease: %v, want ErrLeased", err)
			}
		}
		wantTexts(t, a, "r1", 0, "one two three four") // a reader there goes on
		if err := b.Close(); err != nil {              // what it has not finished is for others at once
			t.Fatal(err)
		}
		takeOver(t, c, 10, "r2")
	})
}

// TestBuried has servers take one for dead that was only away, and bury it, just before it takes a run on and dies.
func TestBuried(t *testing.T) {
	each(t, func(t *testing.T, url string) {
		raw := goredis.NewClient(&goredis.Options{Addr: strings.TrimPrefix(url, "redis://")})
		defer raw.Close()
		p := redistest.StartProxy(t, strings.TrimPrefix(url, "redis://"))
		a, b := open(t, "redis://"+p.Addr+"?prefix=buried", redis.Options{Lease: 4 * short}), open(t, url+"?prefix=buried", redis.Options{Lease: 4 * short})
		if n, err := raw.Del(within(t), "buried:{sessions}").Result(); err != nil || n != 1 {
			t.Fatalf("the sessions are not there: %v", err)
		}
		create(t, a, "r")
		p.Stall()
		takeOver(t, b, 10, "r")
	})
}

func TestAsk(t *testing.T) {
	each(t, func(t *testing.T, url string) {
		a, b := open(t, url, redis.Options{}), open(t, url, redis.Options{})
		ctx := within(t)
		calls := 0
		a.Obey(func(_ context.Context, id string, command []byte) []byte {
			calls++
			return []byte(id + ": " + string(command))
		})
		create(t, a, "r", "ended")
		appendTo(t, a, "ended", store.Change{State: store.Finished})
		if reply, err := b.Ask(ctx, "r", []byte("stop")); err != nil || string(reply) != "r: stop" || calls != 1 {
			t.Errorf("Ask = %q, %v after %d calls", reply, err, calls)
		}
		if _, err := b.Ask(ctx, "ended", nil); !errors.Is(err, store.ErrIdle) {
			t.Errorf("Ask of an ended run: %v, want ErrIdle", err)
		}
		if _, err := b.Ask(ctx, "unknown", nil); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Ask of an unknown run: %v, want ErrNotFound", err)
		}
		create(t, b, "mute") // whose server obeys nobody
		soon, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		if _, err := a.Ask(soon, "mute", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Ask of a server that does not answer: %v, want context.DeadlineExceeded", err)
		}
	})
}

func TestAway(t *testing.T) {
	m := miniredis.RunT(t)
	url := "redis://" + m.Addr()
	a, b := open(t, url, redis.Options{}), open(t, url, redis.Options{})
	create(t, a, "r")
	appendTo(t, a, "r", events("thinking", "one", "two"))
	m.Close()
	if last := appendTo(t, a, "r", events("thinking", "three")); last != 3 {
		t.Errorf("Append while Redis is away = %d, want 3", last)
	}
	appendTo(t, a, "r", events("thinking", "four"))
	if err := a.Ready(within(t)); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Ready: %v, want ErrUnavailable", err)
	}
	shown := wantTexts(t, a, "r", 2, "three four")
	if shown <= 4 {
		t.Errorf("the event that is not committed has offset %d", shown)
	}
	wantTexts(t, a, "r", shown, "")
	create(t, a, "new") // goes on as well
	appendTo(t, a, "new", events("thinking", "alone"))
	if err := m.Restart(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all is committed", func() bool { return a.Ready(within(t)) == nil })
	appendTo(t, a, "r", store.Change{State: store.Finished, Events: []store.Event{event("done", "five")}})
	for _, s := range []store.Store{a, b} {
		wantTexts(t, s, "r", 0, "one two three four five")
		if last := wantTexts(t, s, "r", shown, "five"); last != 5 { // the provisional offset has come true
			t.Errorf("the last event has offset %d, want 5", last)
		}
		wantTexts(t, s, "new", 0, "alone")
	}
}

// TestLost has a server lose its lease while Redis is away to it, and readers who have seen what will never be committed.
func TestLost(t *testing.T) {
	each(t, func(t *testing.T, url string) {
		p := redistest.StartProxy(t, strings.TrimPrefix(url, "redis://"))
		a, b := open(t, "redis://"+p.Addr, redis.Options{Lease: short}), open(t, url, redis.Options{Lease: short})
		create(t, a, "seen", "unseen")
		for _, id := range []string{"seen", "unseen"} {
			appendTo(t, a, id, events("thinking", "one", "two"))
		}
		p.Stall()
		for _, id := range []string{"seen", "unseen"} {
			appendTo(t, a, id, events("thinking", "three", "four"))
		}
		shown := wantTexts(t, a, "seen", 0, "one two three four")
		takeOver(t, b, 10, "seen", "unseen")
		for _, id := range []string{"seen", "unseen"} {
			appendTo(t, b, id, events("thinking", "3", "4", "5"))
		}
		// At the other server, now, and even though it has more events by now than were seen.
		if last := wantTexts(t, b, "seen", shown, "reset 3 4 5"); last != 5 {
			t.Errorf("the last offset is %d, want 5", last)
		}
		if err := b.Wait(within(t), "seen", shown); err != nil {
			t.Errorf("Wait of a reader who must be told: %v", err)
		}
		p.Heal()
		// What was seen goes on here for who saw it, and is not written.
		eventually(t, "the loss is noticed", func() bool {
			_, err := a.Append(within(t), "unseen", events("thinking", "x"))
			return errors.Is(err, store.ErrLeased)
		})
		appendTo(t, a, "seen", store.Change{Events: []store.Event{event("done", "five")}, State: store.Finished})
		wantTexts(t, a, "seen", shown, "five")
		appendTo(t, b, "seen", store.Change{State: store.Finished})
		wantTexts(t, b, "seen", 0, "one two 3 4 5")
		wantTexts(t, a, "unseen", 0, "one two 3 4 5")
	})
}

// TestForgotten has Redis lose what it had acknowledged.
func TestForgotten(t *testing.T) {
	each(t, func(t *testing.T, url string) {
		a, b := open(t, url, redis.Options{Lease: short}), open(t, url, redis.Options{Lease: short})
		create(t, a, "busy", "quiet", "deleted")
		for _, id := range []string{"busy", "quiet", "deleted"} {
			appendTo(t, a, id, events("thinking", "one", "two"))
		}
		if err := b.Delete(within(t), "deleted"); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Append(within(t), "deleted", events("thinking", "three")); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Append to a run that another server deleted: %v, want ErrNotFound", err)
		}
		client := goredis.NewClient(&goredis.Options{Addr: strings.TrimPrefix(url, "redis://")})
		defer client.Close()
		if err := client.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		appendTo(t, a, "busy", events("thinking", "three"))
		wantTexts(t, b, "busy", 0, "one two three")
		eventually(t, "the quiet one is written again", func() bool {
			_, err := b.Get(within(t), "quiet")
			return err == nil
		})
		wantTexts(t, b, "quiet", 0, "one two")
		if runs, err := b.List(within(t), store.Filter{}); err != nil || len(runs) != 2 {
			t.Errorf("List = %v, %v; want both", runs, err)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		takeOver(t, b, 10, "busy", "quiet")
	})
}

func TestExpiry(t *testing.T) {
	m := miniredis.RunT(t)
	s := open(t, "redis://"+m.Addr(), redis.Options{MaxAge: time.Hour})
	create(t, s, "running", "ended", "extended")
	for _, id := range []string{"ended", "extended"} {
		appendTo(t, s, id, store.Change{Events: []store.Event{event("done", "x")}, State: store.Finished})
	}
	appendTo(t, s, "running", events("thinking", "x"))
	appendTo(t, s, "extended", store.Change{State: store.Running})
	m.FastForward(59 * time.Minute)
	wantTexts(t, s, "ended", 0, "x")
	m.FastForward(2 * time.Minute)
	if _, err := s.Get(within(t), "ended"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get of an ended run after its time: %v, want ErrNotFound", err)
	}
	for _, id := range []string{"running", "extended"} {
		appendTo(t, s, id, store.Change{State: store.Finished})
		wantTexts(t, s, id, 0, "x")
	}
}

func TestQuota(t *testing.T) {
	each(t, func(t *testing.T, url string) {
		a, b := open(t, url, redis.Options{Lease: short}), open(t, url, redis.Options{Lease: short})
		ctx := within(t)
		allowed := redis.Allowed{N: 3, Per: time.Hour}
		for i, want := range []bool{true, true, true, false} {
			taken, full, err := []*redis.Store{a, b}[i%2].Take(ctx, "k", allowed, 1, false)
			if err != nil || taken != want {
				t.Errorf("Take %d = %v, %v; want %v", i, taken, err, want)
			}
			if about := time.Duration(min(i+1, 3)) * 20 * time.Minute; (full - about).Abs() > time.Minute {
				t.Errorf("Take %d: full in %v, want about %v", i, full, about)
			}
		}
		if taken, full, err := b.Take(ctx, "k", allowed, 6, true); err != nil || !taken || full < 170*time.Minute {
			t.Errorf("Take with debt = %v, %v, %v", taken, full, err)
		}
		if taken, _, err := a.Take(ctx, "other", allowed, 3, false); err != nil || !taken {
			t.Errorf("Take from another allowance = %v, %v", taken, err)
		}

		one, err := a.Hold(ctx, "k", 2)
		if err != nil || one == nil {
			t.Fatalf("Hold: %v", err)
		}
		if two, err := b.Hold(ctx, "k", 2); err != nil || two == nil {
			t.Fatalf("Hold: %v", err)
		}
		if three, err := a.Hold(ctx, "k", 2); err != nil || three != nil {
			t.Errorf("a third of two places is held, %v", err)
		}
		one()
		if again, err := b.Hold(ctx, "k", 2); err != nil || again == nil {
			t.Errorf("the place that was given back is not free, %v", err)
		}
		if err := b.Close(); err != nil { // as if it died: it gives nothing back
			t.Fatal(err)
		}
		eventually(t, "the dead server's places are free", func() bool {
			free, err := a.Hold(ctx, "k", 2)
			if err != nil {
				t.Fatal(err)
			}
			return free != nil
		})
	})
}
