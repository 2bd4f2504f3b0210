package sqlite_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"anytime/internal/store"
	"anytime/internal/store/sqlite"
)

func TestPruneByAge(t *testing.T) {
	path := newPath(t)
	synctest.Test(t, func(t *testing.T) {
		s := open(t, path, sqlite.Options{MaxAge: 24 * time.Hour})
		defer s.Close()
		for n := range 40 {
			state := store.Finished
			if n%10 == 0 {
				state = store.Running
			}
			addRun(t, s, n, state)
			time.Sleep(time.Hour)
			synctest.Wait()
		}
		// 0 to 39 ended 40 to 1 hours ago.
		want := 0
		for n := range 40 {
			if n%10 == 0 || n >= 16 {
				want++
			}
			_, err := s.Get(t.Context(), fmt.Sprint(n))
			if kept := err == nil; n != 16 && kept != (n%10 == 0 || n > 16) {
				t.Errorf("run %d, %d hours old: %v", n, 40-n, err)
			}
		}
		if runs, err := s.List(t.Context(), store.Filter{}); err != nil || len(runs) < want-1 || len(runs) > want {
			t.Errorf("%d runs are kept, %v; want %d", len(runs), err, want)
		}
	})
}

// A run that ended too long ago for its store's bounds is not kept over a restart either.
func TestPruneAtOpen(t *testing.T) {
	path := newPath(t)
	synctest.Test(t, func(t *testing.T) {
		s := open(t, path, sqlite.Options{})
		addRun(t, s, 0, store.Failed)
		addRun(t, s, 1, store.Running)
		time.Sleep(2 * time.Hour)
		s.Close()
		s = open(t, path, sqlite.Options{MaxAge: time.Hour})
		defer s.Close()
		time.Sleep(time.Second)
		synctest.Wait()
		if runs, err := s.List(t.Context(), store.Filter{}); err != nil || len(runs) != 1 || runs[0].ID != "1" {
			t.Errorf("List = %v, %v; want run 1", runs, err)
		}
	})
}

func TestPruneBySize(t *testing.T) {
	const bound = 4 << 20
	path := newPath(t)
	synctest.Test(t, func(t *testing.T) {
		s := open(t, path, sqlite.Options{MaxBytes: bound})
		defer s.Close()
		addRun(t, s, 0, store.Running)
		for n := 1; n < 100; n++ { // 10 MB, of which 6 MB in the last minute
			addRun(t, s, n, store.Finished)
			if n <= 40 {
				time.Sleep(time.Minute)
			}
		}
		if _, err := s.Get(t.Context(), "41"); err != nil {
			t.Errorf("a run that ended just now: %v", err)
		}
		if size := fileSize(t, path); size <= bound {
			t.Errorf("the file has %d bytes, of which more than %d may not be pruned yet", size, bound)
		}
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if size := fileSize(t, path); size > bound || size < bound/2 {
			t.Errorf("the file has %d bytes, want at most %d and not much less", size, bound)
		}
		var kept []int
		for n := range 100 {
			if _, err := s.Get(t.Context(), fmt.Sprint(n)); err == nil {
				kept = append(kept, n)
			}
		}
		if len(kept) < 2 || kept[0] != 0 || kept[1] != 100-len(kept)+1 {
			t.Errorf("kept runs %v, want 0, which is running, and the newest", kept)
		}
	})
}

// What was deleted makes the file smaller, whatever its bounds.
func TestShrinks(t *testing.T) {
	path := newPath(t)
	synctest.Test(t, func(t *testing.T) {
		s := open(t, path, sqlite.Options{})
		defer s.Close()
		for n := range 50 {
			addRun(t, s, n, store.Running)
		}
		for n := range 50 {
			if err := s.Delete(t.Context(), fmt.Sprint(n)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if size := fileSize(t, path); size > 200_000 {
			t.Errorf("without runs the file has %d bytes", size)
		}
	})
}

// addRun adds a run of about 100 kB.
func addRun(t *testing.T, s *sqlite.Store, n int, state store.State) {
	t.Helper()
	if err := s.Create(t.Context(), store.Run{ID: fmt.Sprint(n)}); err != nil {
		t.Fatal(err)
	}
	change := store.Change{State: state}
	for range 25 {
		data := make([]byte, 4000)
		for i := range data {
			data[i] = 'a' + byte(rand.IntN(26))
		}
		change.Events = append(change.Events, store.Event{Type: "thinking", Data: data})
	}
	if _, err := s.Append(t.Context(), fmt.Sprint(n), change); err != nil {
		t.Fatal(err)
	}
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// A clock that is set forward, or back, makes nothing older than it is. The start of the store's clock is what time.Now returned
// before someone set the machine's: the same moment of the monotonic clock under another time of day (a time.Time holds its seconds above
// 30 bits of nanoseconds in its first word).
func TestClockIsSet(t *testing.T) {
	for _, jump := range []time.Duration{-365 * 24 * time.Hour, 365 * 24 * time.Hour} {
		start := time.Now()
		*(*uint64)(unsafe.Pointer(&start)) -= uint64(int64(jump/time.Second)) << 30
		if !start.Round(0).Before(time.Now().Round(0).Add(time.Minute-jump)) || start.Round(0).Before(time.Now().Round(0).Add(-time.Minute-jump)) {
			t.Fatalf("the machine's clock was at %v", start)
		}
		if now := sqlite.Steady(start)(); now.Round(0).Sub(start.Round(0)) > time.Minute {
			t.Errorf("set by %v, the store's clock jumped from %v to %v", jump, start, now)
		}
	}
}
