package sqlite_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"anytime/internal/store"
	"anytime/internal/store/sqlite"
	"anytime/internal/store/storetest"
)

// TestMain is also the process that the crash tests kill.
func TestMain(m *testing.M) {
	if child, ok := children[os.Getenv("SQLITE_TEST_CHILD")]; ok {
		if err := child(os.Getenv("SQLITE_TEST_PATH")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func TestStore(t *testing.T) {
	storetest.Test(t, func(t *testing.T) store.Store { return open(t, newPath(t), sqlite.Options{}) })
}

// A list of a thousand runs need not hold their requests and replies in memory.
func TestHeads(t *testing.T) {
	s := open(t, newPath(t), sqlite.Options{})
	defer s.Close()
	if err := s.Create(t.Context(), store.Run{ID: "r", Model: "m", Request: []byte(`{}`), Reply: []byte(`{}`)}); err != nil {
		t.Fatal(err)
	}
	whole, err := s.List(t.Context(), store.Filter{})
	heads, errHeads := s.List(t.Context(), store.Filter{Heads: true})
	if err != nil || errHeads != nil || len(whole) != 1 || len(heads) != 1 {
		t.Fatalf("%v, %v; %v, %v", whole, err, heads, errHeads)
	}
	if heads[0].Request != nil || heads[0].Reply != nil || string(whole[0].Request) != "{}" {
		t.Errorf("%+v, %+v", heads[0], whole[0])
	}
	if whole[0].Request, whole[0].Reply = nil, nil; !reflect.DeepEqual(whole, heads) {
		t.Errorf("%+v, want %+v", heads, whole)
	}
}

func TestReopen(t *testing.T) {
	path := newPath(t)
	storetest.TestReopen(t, func(t *testing.T) store.Store { return open(t, path, sqlite.Options{}) })
}

// Many runs share a transaction; a lone one does not wait for others.
func TestGroupCommit(t *testing.T) {
	const runs, appends = 100, 10
	s := open(t, newPath(t), sqlite.Options{})
	defer s.Close()
	each(t, runs, func(id string) error { return s.Create(t.Context(), store.Run{ID: id}) })
	before := s.Commits()
	each(t, runs, func(id string) error {
		for n := range appends {
			if last, err := s.Append(t.Context(), id, thought(n)); err != nil || last != int64(n+1) {
				return fmt.Errorf("append %d of run %s returned %d, %w", n, id, last, err)
			}
		}
		return nil
	})
	if commits := s.Commits() - before; commits < appends || commits > runs*appends/4 {
		t.Errorf("%d appends took %d transactions, want %d to %d", runs*appends, commits, appends, runs*appends/4)
	} else {
		t.Logf("%d appends took %d transactions", runs*appends, commits)
	}
}

// Transactions take an eighth of the time, but start 2 to 20 ms apart; the first after a pause is at once.
func TestPace(t *testing.T) {
	path := newPath(t)
	synctest.Test(t, func(t *testing.T) {
		s := open(t, path, sqlite.Options{})
		defer s.Close()
		if err := s.Create(t.Context(), store.Run{ID: "r"}); err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct{ took, pause, wait time.Duration }{ // ms
			{0, 0, 2}, {0, 1, 1}, {0, 2, 0}, {1, 0, 7}, {1, 5, 2}, {2, 0, 14}, {5, 0, 15}, {5, 1000, 0}, {50, 0, 0},
		} {
			time.Sleep(time.Second)
			if err := s.Slow(test.took * time.Millisecond); err != nil {
				t.Fatal(err)
			}
			time.Sleep(test.pause * time.Millisecond)
			start := time.Now()
			if _, err := s.Append(t.Context(), "r", thought(0)); err != nil {
				t.Fatal(err)
			}
			if got := time.Since(start); got != test.wait*time.Millisecond {
				t.Errorf("%v ms after a transaction of %v, an append took %v, want %v", int(test.pause), int(test.took), got, int(test.wait))
			}
		}
	})
}

// A change that cannot be kept takes no others of its transaction with it.
func TestOneFails(t *testing.T) {
	s := open(t, newPath(t), sqlite.Options{})
	defer s.Close()
	each(t, 20, func(id string) error { return s.Create(t.Context(), store.Run{ID: id}) })
	err := s.Exec(`CREATE TRIGGER refuse BEFORE INSERT ON events WHEN NEW.type = 'bad' BEGIN SELECT raise(ABORT, 'refused'); END`)
	if err != nil {
		t.Fatal(err)
	}
	each(t, 20, func(id string) error {
		change := thought(0)
		if id == "7" {
			change.Events = append(change.Events, store.Event{Type: "bad"})
		}
		_, err := s.Append(t.Context(), id, change)
		if id == "7" {
			if err == nil || !strings.Contains(err.Error(), "refused") {
				return fmt.Errorf("a bad event was kept (%w)", err)
			}
			err = nil
		}
		return err
	})
	for i := range 20 { // whatever was acknowledged is there
		want := int64(1)
		if i == 7 {
			want = 0
		}
		if r, err := s.Get(t.Context(), fmt.Sprint(i)); err != nil || r.Last != want {
			t.Errorf("run %d has last event %d, %v; want %d", i, r.Last, err, want)
		}
	}
}

func TestWaitersLeaveNothing(t *testing.T) {
	s := open(t, newPath(t), sqlite.Options{})
	defer s.Close()
	const waiters = 200
	for _, id := range []string{"woken", "left", "deleted"} {
		if err := s.Create(t.Context(), store.Run{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range waiters {
		for _, id := range []string{"woken", "left", "deleted", "unknown"} {
			wg.Go(func() { _ = s.Wait(ctx, id, 0) })
		}
	}
	if _, err := s.Append(t.Context(), "woken", thought(0)); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), "deleted"); err != nil {
		t.Fatal(err)
	}
	cancel()
	wg.Wait()
	if n := s.Topics(); n != 0 {
		t.Errorf("%d runs are still waited for", n)
	}
}

func open(t testing.TB, path string, opts sqlite.Options) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(path, opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// newPath has in it what a file name may have.
func newPath(t testing.TB) string {
	return filepath.Join(t.TempDir(), "data & more", "100%41 ?#ü.db")
}

// each calls do for the ids 0 to n-1 at once.
func each(t *testing.T, n int, do func(id string) error) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := do(fmt.Sprint(i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// thought is a chunk of thinking whose tokens say which.
func thought(n int) store.Change {
	return store.Change{Events: []store.Event{{
		Type:   "thinking",
		Data:   []byte(fmt.Sprintf(`{"text":"then %d times 3 makes %d, so the fifth is less than that"}`, n, 3*n)),
		Tokens: []int32{int32(n), 151_667, 42, 7_000},
	}}}
}
