package memory_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"anytime/internal/store"
	"anytime/internal/store/memory"
	"anytime/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestStore(t *testing.T) {
	storetest.Test(t, func(*testing.T) store.Store { return memory.New(memory.Options{}) })
}

func TestBounds(t *testing.T) {
	big := json.RawMessage(`"` + strings.Repeat("x", 10_000) + `"`)
	for _, c := range []struct {
		name string
		opts memory.Options
		kept string // of runs 0 to 9, of which 2 and 7 are running; 0 ended last, but for 9
	}{
		{"none", memory.Options{}, "0123456789"},
		{"wide", memory.Options{MaxRuns: 10, MaxBytes: 1 << 20}, "0123456789"},
		{"runs", memory.Options{MaxRuns: 5}, "02789"},
		{"bytes", memory.Options{MaxBytes: 45_000}, "026789"},
		{"only what may not be forgotten", memory.Options{MaxRuns: 1}, "279"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				s := memory.New(c.opts)
				defer s.Close()
				for n := range 10 {
					if err := s.Create(ctx, store.Run{ID: fmt.Sprint(n)}); err != nil {
						t.Fatal(err)
					}
				}
				end := func(n int) {
					time.Sleep(2 * time.Minute)
					if _, err := s.Append(ctx, fmt.Sprint(n), store.Change{Events: []store.Event{{Data: big}}, State: store.Finished}); err != nil {
						t.Fatal(err)
					}
				}
				for _, n := range []int{1, 3, 4, 5, 6, 8, 0, 9} {
					end(n)
				}
				if kept := kept(t, s); kept != c.kept {
					t.Errorf("kept %s, want %s", kept, c.kept)
				}
			})
		})
	}
}

// A run's readers get to its end, even if it was over the bound all along.
func TestGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		s := memory.New(memory.Options{MaxBytes: 1})
		defer s.Close()
		for _, id := range []string{"0", "1"} {
			if err := s.Create(ctx, store.Run{ID: id, State: store.Finished}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(59 * time.Second)
		if err := s.Create(ctx, store.Run{ID: "2"}); err != nil {
			t.Fatal(err)
		}
		if kept := kept(t, s); kept != "012" {
			t.Errorf("kept %s within a minute, want 012", kept)
		}
		time.Sleep(time.Second)
		if _, err := s.Append(ctx, "2", store.Change{}); err != nil {
			t.Fatal(err)
		}
		if kept := kept(t, s); kept != "2" {
			t.Errorf("kept %s after a minute, want 2", kept)
		}
	})
}

func kept(t *testing.T, s store.Store) (ids string) {
	t.Helper()
	for n := range 10 {
		switch _, err := s.Get(context.Background(), fmt.Sprint(n)); {
		case err == nil:
			ids += fmt.Sprint(n)
		case !errors.Is(err, store.ErrNotFound):
			t.Fatal(err)
		}
	}
	return ids
}
