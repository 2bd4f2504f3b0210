package sqlite_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"anytime/internal/store"
	"anytime/internal/store/sqlite"
)

// BenchmarkAppend is one op an append; latencies are as its caller sees them. With one run it is a lone writer, whose every append
// but the first waits for the pace of the transactions.
func BenchmarkAppend(b *testing.B) {
	for _, runs := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprintf("runs=%d", runs), func(b *testing.B) {
			ctx := context.Background()
			s := open(b, newPath(b), sqlite.Options{})
			defer s.Close()
			createRuns(b, s, runs)
			work := make(chan int)
			var mu sync.Mutex
			var latencies []time.Duration
			var wg sync.WaitGroup
			for i := range runs {
				wg.Go(func() {
					for n := range work {
						start := time.Now()
						if _, err := s.Append(ctx, fmt.Sprint(i), thought(n)); err != nil {
							b.Error(err)
						}
						mu.Lock()
						latencies = append(latencies, time.Since(start))
						mu.Unlock()
					}
				})
			}
			before := s.Commits()
			for b.Loop() {
				work <- 1
			}
			close(work)
			wg.Wait()
			slices.Sort(latencies)
			b.ReportMetric(float64(len(latencies))/b.Elapsed().Seconds(), "appends/s")
			b.ReportMetric(float64(len(latencies))/float64(s.Commits()-before), "appends/commit")
			b.ReportMetric(float64(latencies[len(latencies)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(latencies[len(latencies)*99/100].Microseconds())/1000, "p99-ms")
		})
	}
}

// BenchmarkIdle is an append to a store that has been idle.
func BenchmarkIdle(b *testing.B) {
	s := open(b, newPath(b), sqlite.Options{})
	defer s.Close()
	createRuns(b, s, 1)
	var took time.Duration
	n := 0
	for b.Loop() {
		<-time.After(25 * time.Millisecond)
		start := time.Now()
		if _, err := s.Append(b.Context(), "0", thought(n)); err != nil {
			b.Fatal(err)
		}
		took += time.Since(start)
		n++
	}
	b.ReportMetric(float64(took.Microseconds())/float64(n)/1000, "ms/append")
}

// BenchmarkFollow is one op an event that every one of the readers of 100 runs got.
func BenchmarkFollow(b *testing.B) {
	const runs = 100
	ctx := context.Background()
	s := open(b, newPath(b), sqlite.Options{})
	defer s.Close()
	createRuns(b, s, runs)
	var readers sync.WaitGroup
	var got atomic.Int64
	for i := range runs {
		readers.Go(func() {
			for _, err := range store.Follow(ctx, s, fmt.Sprint(i), 0) {
				if err != nil {
					b.Error(err)
				}
				got.Add(1)
			}
		})
	}
	for b.Loop() {
		var wg sync.WaitGroup
		for i := range runs {
			wg.Go(func() {
				if _, err := s.Append(ctx, fmt.Sprint(i), thought(0)); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
	}
	for i := range runs {
		if _, err := s.Append(ctx, fmt.Sprint(i), store.Change{State: store.Finished}); err != nil {
			b.Fatal(err)
		}
		if i == 0 {
			b.StopTimer()
		}
	}
	readers.Wait()
	b.ReportMetric(float64(got.Load())/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkWaiters has 10,000 waiters on 100 runs, and says how many bytes of memory each takes, its goroutine included.
func BenchmarkWaiters(b *testing.B) {
	const waiters = 10_000
	s := open(b, newPath(b), sqlite.Options{})
	defer s.Close()
	createRuns(b, s, 100)
	for b.Loop() {
		ctx, cancel := context.WithCancel(context.Background())
		before := memory()
		var wg sync.WaitGroup
		for i := range waiters {
			wg.Go(func() {
				if err := s.Wait(ctx, fmt.Sprint(i%100), 0); !errors.Is(err, context.Canceled) {
					b.Error(err)
				}
			})
		}
		for s.Waiters() < waiters {
			runtime.Gosched()
		}
		b.ReportMetric(float64(memory()-before)/waiters, "B/waiter")
		cancel()
		wg.Wait()
	}
}

func memory() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

func createRuns(b *testing.B, s *sqlite.Store, n int) {
	b.Helper()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := s.Create(context.Background(), store.Run{ID: fmt.Sprint(i)}); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
}
