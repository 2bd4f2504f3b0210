package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"anytime/internal/anytime"
)

// The engine is killed again and again under 16 runs. All of them answer, and think what they think undisturbed.
func TestKilledUnderSixteen(t *testing.T) {
	const runs = 16
	kills := 3
	if os.Getenv("ANYTIME_TEST_ALL") != "" {
		kills = 50
	}
	s := start(t, "", append(exact(talker), "-elastic", "off")...)
	var want [runs]anytime.Reply
	var first sync.WaitGroup
	for i := range want {
		first.Go(func() { want[i] = s.solve("budget=600&every=200", asked("Survive.", i)) })
	}
	first.Wait()
	enough := make(chan struct{})
	var begun, answers, under atomic.Int64 // under: answers of runs that lived through a kill
	var load sync.WaitGroup
	for i := range runs {
		load.Go(func() {
			for {
				select {
				case <-enough:
					return
				default:
				}
				begun.Add(1)
				r := s.do("POST", "/solve?budget=600&every=200", asked("Survive.", i))
				var got anytime.Reply
				if err := json.Unmarshal(r.body, &got); err != nil || r.status != 200 {
					t.Errorf("run %d: status %d: %s", i, r.status, r.body)
					return
				}
				if got.Thinking != want[i].Thinking || got.Summary != want[i].Summary || len(got.Checkpoints) != len(want[i].Checkpoints) {
					t.Errorf("run %d: %d tokens %q, %q\nwant %q, %q", i, got.Usage.ThinkingTokens, got.Thinking, got.Summary, want[i].Thinking, want[i].Summary)
				}
				answers.Add(1)
				var told struct{ Explanation anytime.Explanation }
				s.into(s.do("GET", "/solve/"+got.ID+"?explain=true", nil), &told)
				if told.Explanation.Setbacks.Restarts > 0 {
					under.Add(1)
				}
			}
		})
	}
	var longest time.Duration
	for range kills {
		s.until("16 running", func() bool { return s.metric("anytime_runs_running") == runs })
		before := s.children()
		began := time.Now()
		s.killEngine()
		s.until("replaced", func() bool {
			now := s.children()
			return len(now) > 0 && now[0] != before[0] && s.do("GET", "/readyz", nil).status == 200
		})
		longest = max(longest, time.Since(began))
	}
	close(enough)
	load.Wait()
	if n := s.metric("anytime_engine_restarts_total"); int(n) != kills || begun.Load() != answers.Load() || under.Load() < runs {
		t.Errorf("%v restarts; %d of %d runs answered, %d of them that lived through one", n, answers.Load(), begun.Load(), under.Load())
	}
	t.Logf("the engine killed %d times under %d runs: %d of %d runs answered, %d of which lived through a kill; ready again after at most %v",
		kills, runs, answers.Load(), begun.Load(), under.Load(), longest.Round(time.Millisecond))
}

// held is what the server and its engine hold.
type held struct {
	goroutines, server, engine, files float64 // memory in MiB
}

func (s *server) held() (h held) {
	h.goroutines, h.files = s.metric("go_goroutines"), s.metric("process_open_fds")
	h.server = s.metric("process_resident_memory_bytes") / (1 << 20)
	for _, pid := range s.children() {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		var kib float64
		if _, rest, ok := strings.Cut(string(text), "VmRSS:"); ok {
			_, _ = fmt.Sscan(rest, &kib) // 0 where the process has just ended
		}
		h.engine += kib / 1024
	}
	return h
}

func (h held) String() string {
	return fmt.Sprintf("%.0f goroutines, %.1f MiB, %.0f open files, engine %.1f MiB", h.goroutines, h.server, h.files, h.engine)
}

// A load of ANYTIME_LOAD_MINUTES (ten are good) on ANYTIME_LOAD_MODEL (the project's reasoner) leaves nothing behind.
func TestLongLoad(t *testing.T) {
	minutes := setting(t, "ANYTIME_LOAD_MINUTES", 0)
	if minutes == 0 {
		t.Skip("ANYTIME_LOAD_MINUTES says for how long; TestLoad is the short one")
	}
	model := os.Getenv("ANYTIME_LOAD_MODEL")
	if model == "" {
		model = "../models/reasoner/reasoner.gguf"
	}
	keys := filepath.Join(t.TempDir(), "keys")
	write(t, keys, fmt.Sprintf("user:%s\nadmin:%s:admin\n", userKey, adminKey))
	s := start(t, "", "-model", model, "-keys-file", keys)
	rounds := 0
	for ; rounds < 10; rounds++ { // so that pools and caches are there
		mix(s, rounds)
	}
	http.DefaultClient.CloseIdleConnections()
	before := s.held()
	t.Logf("before: %v", before)
	most := before
	end := time.Now().Add(time.Duration(minutes * float64(time.Minute)))
	for next := time.Now().Add(time.Minute); time.Now().Before(end); rounds++ {
		mix(s, rounds)
		now := s.held()
		most = held{max(most.goroutines, now.goroutines), max(most.server, now.server), max(most.engine, now.engine), max(most.files, now.files)}
		if time.Now().After(next) {
			next = next.Add(time.Minute)
			t.Logf("after %d rounds: %v", rounds, now)
		}
	}
	s.until("idle", func() bool { return s.metric("anytime_runs_running") == 0 })
	s.settled(before.goroutines)
	after := s.held()
	t.Logf("%.1f minutes, %d rounds of 16 clients: before %v; at most %v; after %v", minutes, rounds, before, most, after)
	if after.server > before.server+64 || after.engine > before.engine+64 || after.files > before.files+5 {
		t.Errorf("it holds %v, and held %v", after, before)
	}
}
