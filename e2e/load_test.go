package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"sync"
	"testing"

	"anytime/internal/anytime"
)

// mix is some of everything that clients do, at once: it is answered, streamed, left in the middle, interrupted, extended, read again,
// refused.
func mix(s *server, n int) {
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() { s.as(userKey, "POST", "/solve?budget=60&every=20", asked("Go on.", 10*n+i)) })
		all.Go(func() {
			ctx, leave := context.WithCancel(context.Background())
			defer leave()
			s.events(ctx, "POST", "/solve?budget=max", asked("Leave.", 10*n+i), func(e event) bool { return e.kind == "thinking" }, "X-API-Key", userKey)
		})
		all.Go(func() {
			var run anytime.RunData
			var once sync.Once
			s.events(context.Background(), "POST", "/solve?budget=300", asked("Stop.", 10*n+i), func(e event) bool {
				if e.kind == "run" {
					_ = json.Unmarshal([]byte(e.data), &run)
				}
				if e.kind == "thinking" {
					once.Do(func() { s.as(userKey, "POST", "/solve/"+run.ID+"/interrupt", nil) })
				}
				return false
			}, "X-API-Key", userKey)
			s.as(userKey, "POST", "/solve/"+run.ID+"/extend?budget=10", nil)
			s.events(context.Background(), "GET", "/solve/"+run.ID+"/events", nil, nil, "X-API-Key", userKey)
		})
		all.Go(func() {
			body := map[string]any{"messages": []any{map[string]any{"role": "user", "content": fmt.Sprint("Chat ", n, i)}}, "budget": 20, "n": 2, "max_tokens": 40}
			s.as(userKey, "POST", "/v1/chat/completions", body)
			s.as(userKey, "POST", "/solve?budget=x", problem("x"))
			s.as("nobody-0123456789", "POST", "/solve", problem("x"))
		})
	}
	all.Wait()
}

// loaded runs a load and returns what the server has more of afterwards than before.
func loaded(t testing.TB, more func() bool) (goroutines, bytes float64, rounds int) {
	s := guarded(t)
	for n := range 3 { // so that pools and caches are there
		mix(s, n)
	}
	http.DefaultClient.CloseIdleConnections()
	before, memory := s.metric("go_goroutines"), s.metric("process_resident_memory_bytes")
	for ; more(); rounds++ {
		mix(s, 3+rounds)
	}
	s.until("idle", func() bool { return s.metric("anytime_runs_running") == 0 })
	s.settled(before)
	return s.metric("go_goroutines") - before, s.metric("process_resident_memory_bytes") - memory, rounds
}

// A load leaves nothing behind.
func TestLoad(t *testing.T) {
	left := 5
	goroutines, bytes, rounds := loaded(t, func() bool { left--; return left >= 0 })
	t.Logf("%d rounds: %+.0f goroutines, %+.1f MiB", rounds, goroutines, bytes/(1<<20))
	if bytes > 64<<20 {
		t.Errorf("the server grew by %.0f bytes", bytes)
	}
}

// BenchmarkLoad goes on for -benchtime (10m is a good one) and says what the server has more of than before.
func BenchmarkLoad(b *testing.B) {
	goroutines, bytes, _ := loaded(b, b.Loop)
	b.ReportMetric(goroutines, "goroutines-left")
	b.ReportMetric(bytes/(1<<20), "MiB-grown")
}

// Every metric of the server's own is in its documentation, and the other way round.
func TestMetricsAreDocumented(t *testing.T) {
	s := guarded(t)
	mix(s, 0)
	for range 6 {
		s.as("few-0123456789", "GET", "/v1/models", nil)
	}
	text, err := os.ReadFile("../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`(?m)anytime_[a-z_]+`)
	documented := map[string]bool{}
	for _, name := range names.FindAllString(string(text), -1) {
		documented[name] = true
	}
	served := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^# HELP (anytime_[a-z_]+)`).FindAllSubmatch(s.as(adminKey, "GET", "/metrics", nil).body, -1) {
		if served[string(m[1])] = true; !documented[string(m[1])] {
			t.Errorf("%s is not documented", m[1])
		}
	}
	for name := range documented {
		if !served[name] && name != "anytime_refusals_total" && name != "anytime_http_slow_clients_total" { // a vector that nobody has used yet is not there
			t.Errorf("%s is documented, and not served", name)
		}
	}
}
