package anytime_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/decode"
	"anytime/internal/decode/decodetest"
	"anytime/internal/store"
)

// next is the process that comes after another one.
func (b *bench) next() *anytime.Solver {
	b.t.Helper()
	s := anytime.New(b.cfg)
	b.t.Cleanup(func() { s.Close() })
	if err := s.Recover(context.Background()); err != nil {
		b.t.Fatal(err)
	}
	return s
}

// Runs of before a restart are taken up however many came before them.
func TestRecoverBeyondMaxRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, decodetest.Options{}, func(c *anytime.Config) { c.MaxRuns = 2 })
		ids := []string{b.start(ask("100")), b.start(ask("100"))}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		second := anytime.New(b.cfg)
		defer second.Close()
		early, err := second.Start(context.Background(), ask("100"))
		if err != nil {
			t.Fatal(err)
		}
		if err := second.Recover(context.Background()); err != nil {
			t.Fatal(err)
		}
		if _, err := second.Start(context.Background(), ask("100")); !errors.Is(err, anytime.ErrBusy) {
			t.Errorf("beyond the bound: %v", err)
		}
		for _, id := range append(ids, early) {
			reply, err := second.Wait(context.Background(), id)
			if err != nil {
				t.Fatal(err)
			}
			check(t, reply, budget.CauseTokens, 100, "100")
			if events := b.events(id); events[0].Type != anytime.EventRun {
				t.Errorf("the first event is of type %s", events[0].Type)
			}
		}
	})
}

// stuck is a store that does not commit ends of runs while it is set.
type stuck struct {
	store.Store
	set atomic.Bool
}

func (s *stuck) Append(ctx context.Context, id string, c store.Change) (int64, error) {
	if c.State == store.Finished && s.set.Load() {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return s.Store.Append(ctx, id, c)
}

// Who waits for a run that Close leaves unfinished, or whose end it keeps from being committed, is told nothing until it has been: the
// next process answers.
func TestCloseWhileWaiting(t *testing.T) {
	for name, after := range map[string]time.Duration{"thinking": 20 * step, "ending": 120 * step} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				kept := &stuck{}
				b := newBench(t, decodetest.Options{}, func(c *anytime.Config) { kept.Store, c.Store = c.Store, kept })
				kept.set.Store(true)
				id := b.start(ask("100"))
				type waited struct {
					reply anytime.Reply
					err   error
				}
				told := make(chan waited, 1)
				go func() {
					reply, err := b.Wait(context.Background(), id)
					told <- waited{reply, err}
				}()
				time.Sleep(after)
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				select {
				case w := <-told:
					t.Fatalf("told %+v, %v", w.reply, w.err)
				default:
				}
				kept.set.Store(false)
				b.next()
				w := <-told
				if w.err != nil {
					t.Fatal(w.err)
				}
				check(t, w.reply, budget.CauseTokens, 100, "100")
			})
		})
	}
}

// A server that dies right after it was asked to extend a run leaves an extension.
func TestExtensionTakenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, decodetest.Options{})
		req := ask("100")
		req.Checkpoints.At = []int{50}
		id := b.start(req)
		b.wait(id)
		more, err := budget.ParseExtension("+100")
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Extend(context.Background(), id, anytime.Extension{Budget: more}); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		reply, err := b.next().Wait(context.Background(), id)
		if err != nil {
			t.Fatal(err)
		}
		check(t, reply, budget.CauseTokens, 200, "200")
		var at []int
		for _, c := range reply.Checkpoints {
			at = append(at, c.Tokens)
		}
		if len(at) != 2 || at[0] != 50 || at[1] != 100 {
			t.Errorf("checkpoints at %d", at)
		}
		kinds := map[string]int{}
		for _, e := range b.events(id) {
			kinds[e.Type]++
		}
		if kinds[anytime.EventRun] != 2 || kinds[anytime.EventDone] != 2 {
			t.Errorf("events %v", kinds)
		}
	})
}

// An engine that fails in the middle of an answer does not have it said twice; one that does not come back is the run's cause.
func TestEngineFailsInMidAnswer(t *testing.T) {
	for name, row := range map[string]struct {
		failures int
		cause    budget.Cause
	}{"once": {1, budget.CauseTokens}, "for good, in mid-thought": {1000, budget.CauseEngine}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				left := row.failures
				b := newBench(t, decodetest.Options{OnToken: func(prefix string) error {
					at := "boxed{"
					if row.cause == budget.CauseEngine {
						at = " step:200" // of the thought
					}
					if left > 0 && strings.Contains(prefix, at) {
						left--
						return errors.New("out of order")
					}
					return nil
				}})
				id := b.start(ask("300"))
				reply := b.wait(id)
				if reply.Stop.Cause != row.cause || reply.Answer == nil {
					t.Errorf("stop %+v, answer %v", reply.Stop, reply.Answer)
				}
				if got := texts(t, b.events(id), anytime.EventAnswer); got != reply.Summary {
					t.Errorf("answer events %q, summary %q", got, reply.Summary)
				}
			})
		})
	}
}

// A run whose engine is away before there is anything to answer with waits for it; what ends it ends the waiting.
func TestEngineAway(t *testing.T) {
	const away = time.Minute
	for name, row := range map[string]struct {
		budget   string
		meddle   func(b *bench, id string) error // in the meantime
		restarts bool                            // another process goes on
		cause    budget.Cause
		code     string // of the failure
	}{
		"thinking":    {budget: "100", cause: budget.CauseTokens},
		"answering":   {budget: "0", cause: budget.CauseTokens},
		"deadline":    {budget: "10s", cause: budget.CauseDeadline},
		"interrupted": {budget: "100", meddle: func(b *bench, id string) error { return b.Interrupt(context.Background(), id) }, code: "engine"},
		"deleted":     {budget: "100", meddle: func(b *bench, id string) error { return b.Cancel(context.Background(), id) }, code: "cancelled"},
		"shut down":   {budget: "100", meddle: func(b *bench, _ string) error { return b.Drain(context.Background()) }, restarts: true, cause: budget.CauseTokens},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				var opened atomic.Bool
				fail := func() error {
					if time.Since(began) < away {
						return decode.ErrUnavailable
					}
					return nil
				}
				b := newBench(t, decodetest.Options{
					OnToken: func(string) error { return fail() },
					OnOpen: func(decode.Request) error {
						if !opened.Swap(true) {
							return nil
						}
						return fail()
					},
				})
				id := b.start(ask(row.budget))
				time.Sleep(3 * time.Second)
				if row.meddle != nil {
					if err := row.meddle(b, id); err != nil {
						t.Fatal(err)
					}
				}
				s := b.Solver
				if row.restarts {
					if err := b.Close(); err != nil {
						t.Fatal(err)
					}
					time.Sleep(away)
					s = b.next()
				}
				reply, err := s.Wait(context.Background(), id)
				var failure *anytime.RunError
				if errors.As(err, &failure) && failure.Code == row.code {
					return
				}
				if err != nil || reply.Stop.Cause != row.cause || (reply.Answer == nil) != (row.cause == budget.CauseDeadline) {
					t.Errorf("error %v, stop %+v, answer %v", err, reply.Stop, reply.Answer)
				}
			})
		})
	}
}

// A request that is given up at the door while the server drains does not hold it up.
func TestDrainAtTheDoor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, decodetest.Options{}, func(c *anytime.Config) {
			slow := c.Models.(models)
			slow.wait = time.Hour
			c.Models = slow
		})
		ctx, leave := context.WithCancel(context.Background())
		go func() {
			if _, err := b.Start(ctx, ask("100")); !errors.Is(err, context.Canceled) {
				t.Errorf("Start: %v", err)
			}
		}()
		synctest.Wait()
		time.AfterFunc(time.Second, leave)
		began := time.Now()
		if err := b.Drain(context.Background()); err != nil || time.Since(began) > time.Minute {
			t.Errorf("drained with %v after %v", err, time.Since(began))
		}
	})
}

// tardy is a store whose changes are made in any case, but whose caller may give up before.
type tardy struct {
	store.Store
	wait time.Duration
}

func (t tardy) late(ctx context.Context, do func() error) error {
	done := make(chan error, 1)
	go func() {
		time.Sleep(t.wait)
		done <- do()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t tardy) Create(ctx context.Context, r store.Run) error {
	return t.late(ctx, func() error { return t.Store.Create(context.Background(), r) })
}

func (t tardy) Append(ctx context.Context, id string, c store.Change) (last int64, err error) {
	err = t.late(ctx, func() (err error) {
		last, err = t.Store.Append(context.Background(), id, c)
		return err
	})
	return last, err
}

// A client that leaves while its run is being written leaves no run behind that nobody executes.
func TestClientLeavesAtTheDoor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, decodetest.Options{}, func(c *anytime.Config) { c.Store = tardy{c.Store, 10 * step} })
		leave := func() context.Context {
			ctx, cancel := context.WithTimeout(context.Background(), 5*step)
			t.Cleanup(cancel)
			return ctx
		}
		_, _ = b.Start(leave(), ask("10"))
		id := b.start(ask("10"))
		b.wait(id)
		_ = b.Extend(leave(), id, anytime.Extension{Budget: budget.Budget{Tokens: 10}})
		time.Sleep(time.Hour)
		left, err := b.store.List(context.Background(), store.Filter{State: store.Running})
		if err != nil || len(left) != 0 {
			t.Errorf("error %v, and %d runs are left that nobody executes", err, len(left))
		}
	})
}
