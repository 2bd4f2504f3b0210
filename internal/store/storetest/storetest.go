// Package storetest holds an implementation of store.Store to its contract.
package storetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"anytime/internal/store"
)

// patience is how long a test waits for what must happen, and a moment how long for what must not.
const (
	patience = 30 * time.Second
	moment   = 50 * time.Millisecond
)

// Test tests one store after another; open returns a new, empty one, which Test closes.
func Test(t *testing.T, open func(t *testing.T) store.Store) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, ctx context.Context, s store.Store)
	}{
		{"create", testCreate},
		{"append", testAppend},
		{"events", testEvents},
		{"unknown run", testUnknown},
		{"order", testOrder},
		{"wait", testWait},
		{"wait returns early", testWaitNot},
		{"wait ends", testWaitEnds},
		{"ping-pong", testPingPong},
		{"many waiters", testManyWaiters},
		{"follow", testFollow},
		{"list", testList},
		{"delete", testDelete},
		{"ended context", testContext},
		{"close", testClose},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t)
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			c.test(t, ctx, s)
		})
	}
}

// TestReopen tests that a store's runs outlive it; each call of open opens the same store anew, after the last one was closed.
func TestReopen(t *testing.T, open func(t *testing.T) store.Store) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	first := open(t)
	create(t, ctx, first, "finished", "running", "failed", "deleted")
	appendTo(t, ctx, first, "finished", store.Change{Events: []store.Event{event("thinking", 1, 2)}})
	appendTo(t, ctx, first, "finished", store.Change{Events: []store.Event{event("done")}, State: store.Finished, Reply: raw(`{"answer":"4"}`)})
	appendTo(t, ctx, first, "running", store.Change{Events: []store.Event{event("thinking", 3), event("thinking", 4)}})
	appendTo(t, ctx, first, "failed", store.Change{Events: []store.Event{event("error")}, State: store.Failed})
	if err := first.Delete(ctx, "deleted"); err != nil {
		t.Fatal(err)
	}
	before := contents(t, ctx, first)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}

	second := open(t)
	defer second.Close()
	if after := contents(t, ctx, second); after != before {
		t.Errorf("after reopening the store has\n%s\nwant\n%s", after, before)
	}
	unfinished, err := second.List(ctx, store.Filter{State: store.Running})
	if err != nil || len(unfinished) != 1 || unfinished[0].ID != "running" {
		t.Errorf("List of running runs = %v, %v; want the one of id running", unfinished, err)
	}
	if last := appendTo(t, ctx, second, "running", store.Change{Events: []store.Event{event("done")}, State: store.Finished}); last != 3 {
		t.Errorf("the first event after reopening has offset %d, want 3", last)
	}
}

func testCreate(t *testing.T, ctx context.Context, s store.Store) {
	created := time.Date(2026, 2, 3, 4, 5, 6, 789_123_456, time.FixedZone("", 3600))
	for _, c := range []struct {
		name string
		give store.Run
		want store.Run // without Updated
	}{
		{"all", store.Run{ID: "a", Owner: "o", Model: "m", State: store.Failed, Created: created, Last: 7,
			Request: raw(`{"problem": "ü"}`), Reply: raw(`{}`)},
			store.Run{ID: "a", Owner: "o", Model: "m", State: store.Failed, Created: created, Request: raw(`{"problem": "ü"}`), Reply: raw(`{}`)}},
		{"little", store.Run{ID: "id '\" % ?/ü", Created: created}, store.Run{ID: "id '\" % ?/ü", State: store.Running, Created: created}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := s.Create(ctx, c.give); err != nil {
				t.Fatal(err)
			}
			got, err := s.Get(ctx, c.give.ID)
			if err != nil {
				t.Fatal(err)
			}
			if time.Since(got.Updated).Abs() > patience {
				t.Errorf("Updated = %v, want about now", got.Updated)
			}
			got.Updated = time.Time{}
			c.want.Created = created.UTC().Truncate(time.Microsecond)
			if show(got) != show(c.want) {
				t.Errorf("Get = %s, want %s", show(got), show(c.want))
			}
			if err := s.Create(ctx, store.Run{ID: c.give.ID, Model: "other"}); !errors.Is(err, store.ErrExists) {
				t.Errorf("a second Create: %v, want ErrExists", err)
			}
			if again, err := s.Get(ctx, c.give.ID); err != nil || again.Model != c.want.Model {
				t.Errorf("after a second Create, Get = %s, %v", show(again), err)
			}
		})
	}
	create(t, ctx, s, "now")
	got, err := s.Get(ctx, "now")
	if err != nil || time.Since(got.Created).Abs() > patience {
		t.Errorf("Created = %v, %v; want about now", got.Created, err)
	}
	if err := s.Ready(ctx); err != nil {
		t.Errorf("Ready: %v", err)
	}
}

func testAppend(t *testing.T, ctx context.Context, s store.Store) {
	if err := s.Create(ctx, store.Run{ID: "r", Request: raw(`1`)}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name           string
		change         store.Change
		last           int64
		state          store.State
		request, reply string
	}{
		{"one event", store.Change{Events: []store.Event{event("run")}}, 1, store.Running, "1", ""},
		{"offsets are the store's", store.Change{Events: []store.Event{{Offset: 9, Type: "thinking"}, {Offset: 9, Type: "thinking"}}}, 3, store.Running, "1", ""},
		{"nothing", store.Change{}, 3, store.Running, "1", ""},
		{"reply alone", store.Change{Reply: raw(`2`)}, 3, store.Running, "1", "2"},
		{"state alone", store.Change{State: store.Failed}, 3, store.Failed, "1", "2"},
		{"all", store.Change{Events: []store.Event{event("run")}, State: store.Running, Request: raw(`3`), Reply: raw(`4`)}, 4, store.Running, "3", "4"},
		{"finish", store.Change{Events: []store.Event{event("done")}, State: store.Finished}, 5, store.Finished, "3", "4"},
		{"a finished run", store.Change{Events: []store.Event{event("run")}}, 6, store.Finished, "3", "4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before, _ := s.Get(ctx, "r")
			if last := appendTo(t, ctx, s, "r", c.change); last != c.last {
				t.Errorf("Append = %d, want %d", last, c.last)
			}
			r, err := s.Get(ctx, "r")
			if err != nil {
				t.Fatal(err)
			}
			if r.Last != c.last || r.State != c.state || string(r.Request) != c.request || string(r.Reply) != c.reply {
				t.Errorf("Get = %s", show(r))
			}
			if c.reply == "" && r.Reply != nil {
				t.Error("Reply is empty, want nil")
			}
			if r.Updated.Before(before.Updated) || r.Updated.Before(r.Created) {
				t.Errorf("Updated went back from %v to %v", before.Updated, r.Updated)
			}
		})
	}
}

func testEvents(t *testing.T, ctx context.Context, s store.Store) {
	create(t, ctx, s, "empty", "other", "r")
	want := []store.Event{
		{Type: "run", Data: raw(`{"id": "r"}`)},
		{Type: "thinking", Data: raw(`"ü\u0000  <b>"`), Tokens: []int32{0, 1, 127, 128, 151_667, math.MaxInt32, -1, math.MinInt32}},
		{Type: "thinking", Data: raw(`"` + strings.Repeat("x", 1<<20) + `"`), Tokens: make([]int32, 10_000)},
		{Type: "checkpoint"},
		{Type: "done", Data: raw(`null`)},
	}
	appendTo(t, ctx, s, "other", store.Change{Events: []store.Event{event("run"), event("run")}})
	appendTo(t, ctx, s, "r", store.Change{Events: want[:3]})
	appendTo(t, ctx, s, "r", store.Change{Events: want[3:]})
	for i := range want {
		want[i].Offset = int64(i + 1)
	}
	for _, c := range []struct {
		id     string
		after  int64
		limit  int
		lo, hi int // of want
	}{
		{"r", 0, 100, 0, 5},
		{"r", 0, 5, 0, 5},
		{"r", 0, 2, 0, 2},
		{"r", 2, 2, 2, 4},
		{"r", 4, math.MaxInt, 4, 5},
		{"r", 5, 10, 0, 0},
		{"r", math.MaxInt64, 10, 0, 0},
		{"r", -3, 1, 0, 1},
		{"r", 0, 0, 0, 0},
		{"empty", 0, 10, 0, 0},
	} {
		t.Run(fmt.Sprintf("%s after %d limit %d", c.id, c.after, c.limit), func(t *testing.T) {
			got, err := s.Events(ctx, c.id, c.after, c.limit)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.EqualFunc(got, want[c.lo:c.hi], sameEvent) {
				t.Errorf("got events %v, want %d to %d", offsets(got), c.lo+1, c.hi)
			}
		})
	}
}

func testUnknown(t *testing.T, ctx context.Context, s store.Store) {
	create(t, ctx, s, "known")
	for name, err := range calls(ctx, s, "unknown") {
		switch name {
		case "Create", "List", "Ready":
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		default:
			if !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%s: %v, want ErrNotFound", name, err)
			}
		}
	}
}

// testOrder has many runs appended to at once, some of them by several goroutines.
func testOrder(t *testing.T, ctx context.Context, s store.Store) {
	const runs, writers, appends = 8, 3, 12
	var wg sync.WaitGroup
	for i := range runs {
		id := fmt.Sprint("run", i)
		create(t, ctx, s, id)
		for w := range writers {
			wg.Go(func() {
				for n := range appends {
					change := store.Change{Events: []store.Event{event(fmt.Sprint(w), int32(n), 0), event(fmt.Sprint(w), int32(n), 1)}}
					last, err := s.Append(ctx, id, change)
					if err != nil {
						t.Error(err)
						return
					}
					pair, err := s.Events(ctx, id, last-2, 2)
					if err != nil || len(pair) != 2 || pair[0].Type != pair[1].Type || pair[0].Tokens[0] != int32(n) || pair[1].Tokens[1] != 1 {
						t.Errorf("Append returned %d, where there are %v, %v", last, pair, err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	for i := range runs {
		events, err := s.Events(ctx, fmt.Sprint("run", i), 0, math.MaxInt32)
		if err != nil || len(events) != 2*writers*appends {
			t.Fatalf("%d events, %v; want %d", len(events), err, 2*writers*appends)
		}
		next := make(map[string]int32)
		for n, e := range events {
			if e.Offset != int64(n+1) {
				t.Fatalf("offsets %v have gaps", offsets(events))
			}
			if got, want := 2*e.Tokens[0]+e.Tokens[1], next[e.Type]; got != want {
				t.Fatalf("writer %s: event %d where %d was to come", e.Type, got, want)
			}
			next[e.Type]++
		}
	}
}

func testList(t *testing.T, ctx context.Context, s store.Store) {
	base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(n int) time.Time { return base.Add(time.Duration(n) * time.Microsecond) }
	none, err := s.List(ctx, store.Filter{})
	if err != nil || len(none) != 0 {
		t.Fatalf("List of an empty store = %v, %v", none, err)
	}
	var wg sync.WaitGroup
	for n := range 120 { // in an order that is not theirs
		wg.Go(func() {
			r := store.Run{ID: fmt.Sprint(n), Owner: []string{"", "a", "b"}[n%3], Created: at(n)}
			if n%2 == 0 {
				r.State, r.Reply = store.Finished, raw(`{"n":1}`)
			}
			if err := s.Create(ctx, r); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	appendTo(t, ctx, s, "3", store.Change{Events: []store.Event{event("run")}, State: store.Failed})
	nobody, a, c := "", "a", "c"
	for _, test := range []struct {
		name   string
		filter store.Filter
		want   []int
	}{
		{"newest", store.Filter{Limit: 3}, []int{119, 118, 117}},
		{"without an owner", store.Filter{Owner: &nobody, Limit: 2}, []int{117, 114}},
		{"of an owner", store.Filter{Owner: &a, Limit: 2}, []int{118, 115}},
		{"of nobody known", store.Filter{Owner: &c}, nil},
		{"finished", store.Filter{State: store.Finished, Limit: 2}, []int{118, 116}},
		{"failed", store.Filter{State: store.Failed}, []int{3}},
		{"before", store.Filter{Before: at(3)}, []int{2, 1, 0}},
		{"before all", store.Filter{Before: at(0)}, nil},
		{"all together", store.Filter{Owner: &a, State: store.Running, Before: at(14), Limit: 2}, []int{13, 7}},
	} {
		t.Run(test.name, func(t *testing.T) {
			runs, err := s.List(ctx, test.filter)
			if err != nil {
				t.Fatal(err)
			}
			var got []int
			for _, r := range runs {
				full, err := s.Get(ctx, r.ID)
				if err != nil || show(full) != show(r) {
					t.Errorf("List has %s, Get %s, %v", show(r), show(full), err)
				}
				got = append(got, int(r.Created.Sub(base)/time.Microsecond))
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
	for _, limit := range []int{0, -1} {
		if runs, err := s.List(ctx, store.Filter{Limit: limit}); err != nil || len(runs) != 100 {
			t.Errorf("List with a limit of %d has %d runs, %v; want 100", limit, len(runs), err)
		}
	}
}

func testDelete(t *testing.T, ctx context.Context, s store.Store) {
	create(t, ctx, s, "r", "other")
	for _, id := range []string{"r", "other"} {
		appendTo(t, ctx, s, id, store.Change{Events: []store.Event{event("run"), event("thinking")}, Reply: raw(`1`)})
	}
	if err := s.Delete(ctx, "r"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, "r"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get of a deleted run: %v", err)
	}
	if err := s.Delete(ctx, "r"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a second Delete: %v", err)
	}
	if other, err := s.Events(ctx, "other", 0, 9); err != nil || len(other) != 2 {
		t.Errorf("another run's events = %v, %v", other, err)
	}
	create(t, ctx, s, "r") // again
	if events, err := s.Events(ctx, "r", 0, 9); err != nil || len(events) != 0 {
		t.Errorf("created again, it has events %v, %v", offsets(events), err)
	}
	if last := appendTo(t, ctx, s, "r", store.Change{Events: []store.Event{event("run")}}); last != 1 {
		t.Errorf("created again, its first event has offset %d", last)
	}
	if r, err := s.Get(ctx, "r"); err != nil || r.Reply != nil {
		t.Errorf("created again, it is %s, %v", show(r), err)
	}
}

func testContext(t *testing.T, ctx context.Context, s store.Store) {
	create(t, ctx, s, "r")
	ended, cancel := context.WithCancel(ctx)
	cancel()
	for name, err := range calls(ended, s, "r") {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", name, err)
		}
	}
	if r, err := s.Get(ctx, "r"); err != nil || r.Last != 0 {
		t.Errorf("the run is %s, %v; want it untouched", show(r), err)
	}
}

func testClose(t *testing.T, ctx context.Context, s store.Store) {
	create(t, ctx, s, "r")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for name, err := range calls(ctx, s, "r") {
		if !errors.Is(err, store.ErrClosed) {
			t.Errorf("%s: %v, want ErrClosed", name, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
}

// calls calls each method with a run's id (Create with a new one).
func calls(ctx context.Context, s store.Store, id string) map[string]error {
	errs := make(map[string]error)
	_, errs["Append"] = s.Append(ctx, id, store.Change{Events: []store.Event{event("run")}})
	_, errs["Get"] = s.Get(ctx, id)
	_, errs["Events"] = s.Events(ctx, id, 0, 1)
	_, errs["List"] = s.List(ctx, store.Filter{})
	errs["Create"] = s.Create(ctx, store.Run{ID: "new"})
	errs["Wait"] = s.Wait(ctx, id, 0)
	errs["Delete"] = s.Delete(ctx, id)
	errs["Ready"] = s.Ready(ctx)
	return errs
}

func create(t *testing.T, ctx context.Context, s store.Store, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if err := s.Create(ctx, store.Run{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
}

func appendTo(t *testing.T, ctx context.Context, s store.Store, id string, c store.Change) int64 {
	t.Helper()
	last, err := s.Append(ctx, id, c)
	if err != nil {
		t.Fatal(err)
	}
	return last
}

// contents is all that a store holds.
func contents(t *testing.T, ctx context.Context, s store.Store) string {
	t.Helper()
	runs, err := s.List(ctx, store.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, r := range runs {
		events, err := s.Events(ctx, r.ID, 0, math.MaxInt32)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&b, show(r), events)
	}
	return b.String()
}

func event(kind string, tokens ...int32) store.Event {
	return store.Event{Type: kind, Data: raw(`{"text":"a few words of thought"}`), Tokens: tokens}
}

func raw(s string) json.RawMessage { return json.RawMessage(s) }

func show(r store.Run) string {
	return fmt.Sprintf("{%q %q %q %s %s %s %s %s %d}", r.ID, r.Owner, r.Model, r.State,
		r.Created.Format(time.RFC3339Nano), r.Updated.Format(time.RFC3339Nano), r.Request, r.Reply, r.Last)
}

func sameEvent(a, b store.Event) bool {
	return a.Offset == b.Offset && a.Type == b.Type && bytes.Equal(a.Data, b.Data) && slices.Equal(a.Tokens, b.Tokens)
}

func offsets(events []store.Event) (o []int64) {
	for _, e := range events {
		o = append(o, e.Offset)
	}
	return o
}
