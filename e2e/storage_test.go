package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"anytime/internal/anytime"
	"anytime/internal/gguf/tiny"
)

// small gives a folder on a disk of its own that can be filled, and how to fill it and to make space again: a file system in memory
// where mounting is allowed, else a bound on the size of the files that the server, once started, may write.
func small(t *testing.T) (dir string, fill, free func(*server)) {
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=32m"); err == nil {
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		filler := filepath.Join(dir, "filler")
		fill = func(*server) {
			f, err := os.Create(filler)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for n := 64 << 10; n > 0; n /= 2 {
				for err = nil; err == nil; _, err = f.Write(make([]byte, n)) {
				}
			}
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
		}
		return dir, fill, func(*server) { _ = os.Remove(filler) }
	}
	t.Log("mounting is not allowed here: the disk is full by a bound on the size of files")
	bound := func(s *server, size uint64) {
		if err := unix.Prlimit(s.cmd.Process.Pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: size, Max: unix.RLIM_INFINITY}, nil); err != nil {
			t.Fatal(err)
		}
	}
	return dir, func(s *server) { bound(s, 4096) }, func(s *server) { bound(s, unix.RLIM_INFINITY) }
}

// The disk is full under the store: what runs, thinks on and is answered; what is new is refused; once there is space again the streams
// go on where they were, and all of it is kept.
func TestDiskFull(t *testing.T) {
	rounds := 1
	if os.Getenv("ANYTIME_TEST_ALL") != "" {
		rounds = 5
	}
	dir, fill, free := small(t)
	s := start(t, dir, exact(talker)...)
	var longest time.Duration
	for round := range rounds {
		const runs = 4
		var streams [runs][]event
		replies := make(chan response, runs)
		var wg sync.WaitGroup
		thinks := make(chan bool, 2*runs)
		for i := range runs {
			wg.Go(func() {
				streams[i] = s.events(context.Background(), "POST", "/solve?budget=700", asked("Fill.", 100*round+i), func(e event) bool {
					if e.kind == "thinking" && e.id < 4 {
						thinks <- true
					}
					return false
				})
			})
			wg.Go(func() { replies <- s.do("POST", "/solve?budget=700", asked("Fill.", 100*round+50+i)) })
		}
		<-thinks
		fill(s)
		// The store says so, and nothing new is taken.
		s.until("not ready", func() bool { return s.do("GET", "/readyz", nil).status == http.StatusServiceUnavailable })
		refused := s.do("POST", "/solve?budget=1", problem("x"))
		if refused.status != http.StatusServiceUnavailable || strings.Contains(string(refused.body), dir) {
			t.Errorf("with a full disk: status %d: %s", refused.status, refused.body)
		}
		for range runs { // replies need no store
			var reply anytime.Reply
			if s.into(<-replies, &reply); reply.Answer == nil || reply.Usage.ThinkingTokens != 700 {
				t.Errorf("with a full disk: %+v", reply)
			}
		}
		began := time.Now()
		free(s)
		wg.Wait()
		s.until("ready", func() bool { return s.do("GET", "/readyz", nil).status == http.StatusOK })
		longest = max(longest, time.Since(began))
		for i, events := range streams {
			var reply anytime.Reply
			_ = json.Unmarshal([]byte(events[len(events)-1].data), &reply)
			for n, e := range events {
				if e.id != n+1 {
					t.Fatalf("stream %d: event %d has id %d", i, n+1, e.id)
				}
			}
			if reply.Usage.ThinkingTokens != 700 || text(t, events, "thinking") != reply.Thinking || reply.Answer == nil {
				t.Errorf("stream %d ended with %+v", i, events[len(events)-1])
			}
			var kept anytime.Reply
			if s.into(s.do("GET", "/solve/"+reply.ID+"?thinking=true", nil), &kept); kept.Thinking != reply.Thinking {
				t.Errorf("run %s: kept %q", reply.ID, kept.Thinking)
			}
		}
		if round == 0 {
			t.Logf("a new request meanwhile: %d %s", refused.status, refused.body)
		}
	}
	t.Logf("the disk full %d times under 8 runs: nothing lost; well again at most %v after there was space", rounds, longest.Round(time.Millisecond))
}

// fails starts the server, which must end by itself, and returns what it said.
func fails(t *testing.T, data string, args ...string) string {
	t.Helper()
	args = append([]string{"-addr", "127.0.0.1:0", "-engine-lib", libraries(t), "-data", data, "-threads", "1"}, args...)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, args...).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("exit: %v\n%s", err, out)
	}
	return string(out)
}

// stop ends a server in order.
func stop(s *server) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	if err := <-s.exit; err != nil {
		s.t.Errorf("exit: %v", err)
	}
}

// scribble overwrites a part of a file.
func scribble(t *testing.T, path string, from, to float64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	at := int64(from * float64(info.Size()))
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xa5}, int(to*float64(info.Size()))-int(at)), at); err != nil {
		t.Fatal(err)
	}
}

// A database that is damaged while the server runs, and when it starts.
func TestDatabaseDamaged(t *testing.T) {
	data := t.TempDir()
	path := filepath.Join(data, "runs.db")
	s := start(t, data, exact(talker)...)
	for i := range 10 {
		s.solve("budget=100&every=10", asked("Fill.", i))
	}
	stop(s) // which copies SQLite's log, out of which it would mend the file, into it
	s = start(t, data, exact(talker)...)
	done := make(chan response, 4)
	for i := range cap(done) {
		go func() { done <- s.do("POST", "/solve?budget=500", asked("Survive.", i)) }()
	}
	s.until("thinking", func() bool { return s.metric("anytime_runs_running") == float64(cap(done)) })
	scribble(t, path, 0.05, 1)
	// Whoever waits for a reply gets it.
	for range cap(done) {
		var reply anytime.Reply
		if s.into(<-done, &reply); reply.Answer == nil || reply.Usage.ThinkingTokens != 500 {
			t.Errorf("%+v", reply)
		}
	}
	counts := map[int]int{}
	for i := range 10 {
		for _, r := range []response{s.do("POST", "/solve?budget=1", asked("After.", i)), s.do("GET", "/solve?limit=1000", nil)} {
			if counts[r.status]++; r.status != http.StatusOK && (r.status != http.StatusServiceUnavailable || strings.Contains(string(r.body), data)) {
				t.Errorf("on a database that is damaged: status %d: %s", r.status, r.body)
			}
		}
	}
	ready := s.do("GET", "/readyz", nil)
	t.Logf("on a database that is damaged: statuses %v, ready %d %s", counts, ready.status, ready.body)
	s.kill()

	said := fails(t, data, exact(talker)...)
	if !strings.Contains(said, path) || !strings.Contains(said, "move the file away") {
		t.Errorf("it said %s", said)
	}
	began := time.Now()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Rename(path+suffix, path+suffix+".damaged"); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	s = start(t, data, exact(talker)...)
	if reply := s.solve("budget=5", asked("Again.", 1)); reply.Answer == nil {
		t.Errorf("%+v", reply)
	}
	t.Logf("after moving it away as it said: answering again within %v", time.Since(began).Round(time.Millisecond))
}

// A model's file is damaged: at the start it is refused; under a running server, whose engine then has to be replaced, runs end with the
// best that they have, requests are refused, and once the file is right again all is well without a restart.
func TestModelDamaged(t *testing.T) {
	model := filepath.Join(t.TempDir(), "model.gguf")
	good, err := os.ReadFile(talker)
	if err != nil {
		t.Fatal(err)
	}
	write(t, model, string(good[:len(good)/2]))
	if said := fails(t, t.TempDir(), exact(model)...); !strings.Contains(said, model) {
		t.Errorf("it said %s", said)
	}
	write(t, model, string(good))
	s := start(t, "", exact(model)...)
	replies := make(chan response, 4)
	for i := range cap(replies) {
		go func() { replies <- s.do("POST", "/solve?budget=max&every=50", asked("Survive.", i)) }()
	}
	s.until("on the way", func() bool { // one that has thought nothing yet waits for the engine
		var list struct{ Runs []struct{ ID string } }
		s.into(s.do("GET", "/solve", nil), &list)
		answered := 0
		for _, run := range list.Runs {
			var status struct{ Checkpoints []anytime.Checkpoint }
			if s.into(s.do("GET", "/solve/"+run.ID, nil), &status); len(status.Checkpoints) > 0 {
				answered++
			}
		}
		return answered == cap(replies)
	})
	// A new file under the old name: the one that the engine reads is as it was.
	write(t, model+".new", "GGUF"+strings.Repeat("nonsense", 1000))
	if err := os.Rename(model+".new", model); err != nil {
		t.Fatal(err)
	}
	s.killEngine()
	counts := map[int]int{}
	for range cap(replies) {
		r := <-replies
		counts[r.status]++
		var reply anytime.Reply
		if s.into(r, &reply); reply.Answer == nil || reply.Usage.ThinkingTokens == 0 {
			t.Errorf("%+v", reply)
		}
	}
	var refused response
	s.until("refusing", func() bool {
		refused = s.do("POST", "/solve?budget=1", problem("x"))
		return refused.status == http.StatusServiceUnavailable
	})
	if ready := s.do("GET", "/readyz", nil); ready.status != http.StatusServiceUnavailable || strings.Contains(string(refused.body), model) {
		t.Errorf("ready %d; refused with %s", ready.status, refused.body)
	}
	began := time.Now()
	write(t, model+".new", string(good))
	if err := os.Rename(model+".new", model); err != nil {
		t.Fatal(err)
	}
	s.until("ready", func() bool { return s.do("GET", "/readyz", nil).status == http.StatusOK })
	took := time.Since(began)
	if reply := s.solve("budget=5", asked("Again.", 1)); reply.Answer == nil {
		t.Errorf("%+v", reply)
	}
	t.Logf("runs in flight: statuses %v; refused with %s; well again %v after the file was", counts, refused.body, took.Round(time.Millisecond))
}

// An adapter's file is damaged: at the start it is refused; under a running server whose engine has to be replaced only those who ask
// for it are refused.
func TestAdapterDamaged(t *testing.T) {
	dir := t.TempDir()
	adapter := filepath.Join(dir, "tuned.gguf")
	if err := tiny.WriteAdapter(adapter, 5, "llama"); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(adapter)
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "config.yaml")
	write(t, config, fmt.Sprintf("models:\n  - {id: base, path: %q, adapters: {tuned: %q}}\nkv_type: f32\nflash_attention: \"off\"\n", talker, adapter))
	write(t, adapter, string(good[:len(good)-100]))
	if said := fails(t, t.TempDir(), "-config", config); !strings.Contains(said, `adapter "tuned"`) {
		t.Errorf("it said %s", said)
	}
	write(t, adapter, string(good))
	s := start(t, "", "-config", config)
	tuned := asked("Who are you?", 1)
	tuned["model"] = "base:tuned"
	before := s.solve("budget=40", tuned)
	write(t, adapter+".new", "GGUF"+strings.Repeat("nonsense", 1000))
	if err := os.Rename(adapter+".new", adapter); err != nil {
		t.Fatal(err)
	}
	s.killEngine()
	if reply := s.solve("budget=40", asked("Who are you?", 1)); reply.Answer == nil {
		t.Errorf("the bare model: %+v", reply)
	}
	r := s.do("POST", "/solve?budget=40", tuned)
	if r.status == http.StatusOK {
		var reply anytime.Reply
		if s.into(r, &reply); reply.Thinking != before.Thinking {
			t.Errorf("without its adapter it thought %q, with it %q", reply.Thinking, before.Thinking)
		}
	}
	t.Logf("asked for by a request: %d %.300s", r.status, r.body)
}
