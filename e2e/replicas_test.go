package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/store/redis/redistest"
)

// replicated is a Redis that replicas share: a real one where the longer tests are asked for.
type replicated struct {
	addr       string
	stop, back func()
	real       *redistest.Server // nil: it is none
}

func startRedis(t *testing.T) *replicated {
	t.Helper()
	if all() {
		s := redistest.Start(t)
		return &replicated{s.Addr, s.Kill, s.Restart, s}
	}
	m := miniredis.RunT(t)
	return &replicated{addr: m.Addr(), stop: m.Close, back: func() {
		if err := m.Restart(); err != nil {
			t.Fatal(err)
		}
	}}
}

func all() bool { return os.Getenv("ANYTIME_TEST_ALL") != "" }

// replica starts a server on the shared store; through is where it reaches it, "" directly.
func (r *replicated) replica(t *testing.T, through string, args ...string) *server {
	t.Helper()
	if through == "" {
		through = r.addr
	}
	return start(t, "", append(append(exact(talker), "-store", "redis://"+through), args...)...)
}

// reader follows a run as a client should: from server to server, on behind the last event seen, back where it is told to.
type reader struct {
	t        *testing.T
	name     string
	events   []event
	last     int // as the server gave it
	resets   int
	repeated int // events that came again, or that are missing, without a reset
	missing  int
}

// position is the place of an event in its run: the id of one that may yet change has more above it.
func position(id int) int { return id & (1<<32 - 1) }

func (r *reader) take(e event) {
	if e.kind == "reset" {
		var to struct{ Offset int }
		if err := json.Unmarshal([]byte(e.data), &to); err != nil {
			r.t.Errorf("%s: %v in %s", r.name, err, e.data)
		}
		r.resets++
		r.events, r.last = r.events[:min(to.Offset, len(r.events))], e.id
		return
	}
	switch at, want := position(e.id), len(r.events)+1; {
	case at < want:
		r.repeated++
		return
	case at > want:
		r.missing += at - want
	}
	r.events, r.last = append(r.events, e), e.id
}

// ended says whether the last event is an end.
func (r *reader) ended() bool {
	return len(r.events) > 0 && (r.events[len(r.events)-1].kind == "done" || r.events[len(r.events)-1].kind == "error")
}

// follow reads on at a server until the stream ends or breaks.
func (r *reader) follow(ctx context.Context, s *server, id string) {
	res, err := s.send(ctx, "GET", "/solve/"+id+"/events?thinking=true", nil, "Accept", "text/event-stream", "Last-Event-ID", strconv.Itoa(r.last))
	if err != nil {
		return
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return
	}
	scan(res.Body, func(e event) bool { r.take(e); return r.ended() })
}

// reply is the one that the reader was given, checked against what it has read.
func (r *reader) reply(tokens int) (reply anytime.Reply, ok bool) {
	r.t.Helper()
	if !r.ended() {
		return reply, false
	}
	if err := json.Unmarshal([]byte(r.events[len(r.events)-1].data), &reply); err != nil {
		r.t.Errorf("%s: %v", r.name, err)
	}
	if got := text(r.t, r.events, "thinking"); got != reply.Thinking || reply.Usage.ThinkingTokens != tokens {
		r.t.Errorf("%s: %d tokens, want %d; read\n%q\nand the reply has\n%q", r.name, reply.Usage.ThinkingTokens, tokens, got, reply.Thinking)
	}
	return reply, reply.Answer != nil
}

func (s *server) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// crowd is many runs under way at a replica, each with a reader.
type crowd struct {
	t       *testing.T
	tokens  int
	ids     []string
	readers []*reader
	thinks  chan int
	wg      sync.WaitGroup
}

// startCrowd starts runs at a server; their readers read there first, then, when that breaks off, at the others in turn.
func startCrowd(t *testing.T, n, tokens int, first *server, others ...*server) *crowd {
	c := &crowd{t: t, tokens: tokens, ids: make([]string, n), readers: make([]*reader, n), thinks: make(chan int, n)}
	for i := range n {
		r := &reader{t: t, name: fmt.Sprint("reader ", i)}
		c.readers[i] = r
		c.wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			query := fmt.Sprintf("/solve?budget=%d&stream=true&on_disconnect=continue", tokens)
			res, err := first.send(ctx, "POST", query, asked("Go on.", i), "Accept", "text/event-stream")
			if err != nil {
				t.Errorf("%s: %v", r.name, err)
				c.thinks <- i
				return
			}
			seen := false
			scan(res.Body, func(e event) bool {
				r.take(e)
				if e.kind == "run" {
					var data anytime.RunData
					_ = json.Unmarshal([]byte(e.data), &data)
					c.ids[i] = data.ID
				}
				if e.kind == "thinking" && !seen && len(r.events) > 3 {
					seen = true
					c.thinks <- i
				}
				return r.ended()
			})
			_ = res.Body.Close()
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for n := 0; !r.ended() && ctx.Err() == nil; n++ {
				r.follow(ctx, others[n%len(others)], c.ids[i])
				<-tick.C
			}
		})
	}
	for range n {
		<-c.thinks
	}
	return c
}

// finish waits for the readers and counts.
func (c *crowd) finish(what string) {
	c.t.Helper()
	c.wg.Wait()
	lost, repeated, missing, resets := 0, 0, 0, 0
	for _, r := range c.readers {
		if _, ok := r.reply(c.tokens); !ok {
			lost++
		}
		repeated, missing, resets = repeated+r.repeated, missing+r.missing, resets+r.resets
	}
	c.t.Logf("%s: of %d runs in flight, answers lost: %d; events repeated: %d, missing: %d; resets: %d", what, len(c.readers), lost, repeated, missing, resets)
	if lost+repeated+missing > 0 {
		c.t.Errorf("%s: something was lost or repeated", what)
	}
}

// kept compares what servers have of the runs with what was read.
func (c *crowd) kept(servers ...*server) {
	c.t.Helper()
	for i, id := range c.ids {
		for n, s := range servers {
			var reply anytime.Reply
			s.until("finished there", func() bool {
				var run struct{ State string }
				s.into(s.do("GET", "/solve/"+id, nil), &run)
				return run.State == "finished"
			})
			s.into(s.do("GET", "/solve/"+id+"?thinking=true", nil), &reply)
			if want := text(c.t, c.readers[i].events, "thinking"); reply.Thinking != want {
				c.t.Errorf("run %d: server %d keeps %q, its reader read %q", i, n, reply.Thinking, want)
			}
		}
	}
}

func flight() int {
	if all() {
		return 16
	}
	return 4
}

// Everything works on any replica, also on a run that another one executes.
func TestReplicas(t *testing.T) {
	r := startRedis(t)
	keys := "a:secret-of-a:runs=2,b:secret-of-b"
	t.Setenv("ANYTIME_KEYS", keys)
	one, two := r.replica(t, ""), r.replica(t, "")
	a, b := []string{"Authorization", "Bearer secret-of-a"}, []string{"Authorization", "Bearer secret-of-b"}
	begin := func(s *server, key []string) (id string) {
		t.Helper()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		events := s.events(ctx, "POST", "/solve?budget=max&on_disconnect=continue", asked("Go on.", 1), func(e event) bool { return e.kind == "thinking" }, key...)
		var data anytime.RunData
		if err := json.Unmarshal([]byte(events[0].data), &data); err != nil {
			t.Fatal(err)
		}
		return data.ID
	}
	id := begin(one, a)
	if res := two.do("GET", "/solve/"+id, nil, b...); res.status != http.StatusNotFound {
		t.Errorf("another key's run at another replica: status %d", res.status)
	}
	var checkpoint anytime.Checkpoint
	if two.into(two.do("POST", "/solve/"+id+"/interrupt?continue=true", nil, a...), &checkpoint); checkpoint.Tokens == 0 || checkpoint.Summary == "" {
		t.Errorf("an answer on the way, asked for elsewhere: %+v", checkpoint)
	}
	var status struct {
		State       string
		Explanation *anytime.Explanation
	}
	if two.into(two.do("GET", "/solve/"+id+"?explain=true", nil, a...), &status); status.State != "running" || status.Explanation == nil {
		t.Errorf("its state elsewhere: %+v", status)
	}
	if res := two.do("POST", "/solve/"+id+"/extend?budget=%2B5", nil, a...); res.status != http.StatusConflict {
		t.Errorf("extended elsewhere while it runs: status %d: %s", res.status, res.body)
	}
	other := begin(two, a)
	for n, s := range []*server{one, two} { // its key may have two runs at once, wherever
		if res := s.do("POST", "/solve?budget=1", problem("x"), a...); res.status != http.StatusTooManyRequests {
			t.Errorf("a third run, at replica %d: status %d: %s", n, res.status, res.body)
		}
	}
	if res := one.do("DELETE", "/solve/"+other, nil, a...); res.status != http.StatusNoContent {
		t.Errorf("deleted elsewhere: status %d: %s", res.status, res.body)
	}
	if res := two.do("GET", "/solve/"+other, nil, a...); res.status != http.StatusNotFound {
		t.Errorf("after that: status %d", res.status)
	}
	var reply, more anytime.Reply
	if two.into(two.do("POST", "/solve/"+id+"/interrupt?thinking=true", nil, a...), &reply); reply.Stop.Cause != budget.CauseInterrupt || reply.Answer == nil {
		t.Errorf("interrupted elsewhere: %+v", reply)
	}
	if two.into(two.do("POST", "/solve/"+id+"/extend?budget=%2B50&thinking=true", nil, a...), &more); more.Usage.ThinkingTokens != reply.Usage.ThinkingTokens+50 ||
		!strings.HasPrefix(more.Thinking, reply.Thinking) {
		t.Errorf("extended elsewhere: %+v after %+v", more, reply)
	}
	events := one.events(context.Background(), "GET", "/solve/"+id+"/events", nil, nil, a...)
	for i, e := range events {
		if e.id != i+1 {
			t.Fatalf("event %d has id %d", i+1, e.id)
		}
	}
	if last := events[len(events)-1]; last.kind != "done" || text(t, events, "thinking") != more.Thinking {
		t.Errorf("its events elsewhere end in %+v", last)
	}
}

// A replica is killed in mid-thought: another one takes its runs over, and their readers go on there.
func TestReplicaKilled(t *testing.T) {
	r := startRedis(t)
	one, two := r.replica(t, ""), r.replica(t, "")
	c := startCrowd(t, flight(), 300, one, two)
	one.kill()
	c.finish("a replica killed")
	c.kept(two)
}

// Redis is stopped and started again: runs go on, /readyz says so, and all is caught up.
func TestRedisAway(t *testing.T) {
	r := startRedis(t)
	one, two := r.replica(t, ""), r.replica(t, "")
	c := startCrowd(t, flight(), 400, one, two)
	r.stop()
	one.until("not ready", func() bool { return one.do("GET", "/readyz", nil).status == http.StatusServiceUnavailable })
	// Its own clients get their answers meanwhile, new ones too.
	reply := one.solve("budget=20", asked("New.", 99))
	if reply.Answer == nil || reply.Usage.ThinkingTokens != 20 {
		t.Errorf("while Redis is away: %+v", reply)
	}
	r.back()
	c.finish("Redis stopped and started")
	for _, s := range []*server{one, two} {
		s.until("ready", func() bool { return s.do("GET", "/readyz", nil).status == http.StatusOK })
	}
	c.kept(one, two)
	var kept anytime.Reply
	if two.into(two.do("GET", "/solve/"+reply.ID, nil), &kept); kept.Answer == nil || *kept.Answer != *reply.Answer {
		t.Errorf("caught up: %+v, want %+v", kept, reply)
	}
}

// A replica is cut off from Redis until another one has taken its runs over. Its own clients get their answers; who goes on
// elsewhere behind what was never kept is told so.
func TestReplicaCutOff(t *testing.T) {
	if !all() {
		t.Skip("only in make test-all: it waits for a lease to end")
	}
	r := startRedis(t)
	p := redistest.StartProxy(t, r.addr)
	one, two := r.replica(t, p.Addr), r.replica(t, "")
	const tokens = 1000
	stay := startCrowd(t, 4, tokens, one, two)
	p.Stall()
	two.until("has taken over", func() bool { return strings.Count(two.said(), "run of a dead server taken up") >= 4 })
	// One more reader of each at the replica that is cut off, who moves on in mid-thought.
	moved := &crowd{t: t, tokens: tokens, ids: stay.ids}
	for i, id := range stay.ids {
		m := &reader{t: t, name: fmt.Sprint("moved reader ", i)}
		moved.readers = append(moved.readers, m)
		events := one.events(context.Background(), "GET", "/solve/"+id+"/events?thinking=true", nil, func(e event) bool { return e.id > 1<<32 && position(e.id) > 40 })
		for _, e := range events {
			m.take(e)
		}
		moved.wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			m.follow(ctx, two, id)
		})
	}
	moved.finish("readers who moved on")
	for _, m := range moved.readers {
		if m.resets != 1 {
			t.Errorf("%s was reset %d times, want once", m.name, m.resets)
		}
	}
	p.Heal()
	stay.finish("a replica cut off")
	one.until("ready", func() bool { return one.do("GET", "/readyz", nil).status == http.StatusOK })
	moved.kept(two)
}

// Redis, then a replica, do nothing for longer than a lease lasts.
func TestPaused(t *testing.T) {
	if !all() {
		t.Skip("only in make test-all: a process is stopped for longer than a lease lasts")
	}
	r := startRedis(t)
	one, two := r.replica(t, ""), r.replica(t, "")
	c := startCrowd(t, 8, 500, one, two)
	r.real.Pause()
	one.until("not ready", func() bool { return one.do("GET", "/readyz", nil).status == http.StatusServiceUnavailable })
	<-time.After(8 * time.Second) // what the test is about
	r.real.Resume()
	c.finish("Redis paused")
	c.kept(one, two)

	for running := 0; running == 0; { // on a busy machine all may have ended before it is stopped
		c = startCrowd(t, 8, 1500, one, two)
		one.signal(syscall.SIGSTOP)
		for _, id := range c.ids {
			var run struct{ State string }
			if two.into(two.do("GET", "/solve/"+id, nil), &run); run.State == "running" {
				running++
			}
		}
		two.until("has taken over", func() bool { return strings.Count(two.said(), "run of a dead server taken up") == running })
		one.signal(syscall.SIGCONT)
		c.finish(fmt.Sprintf("a replica paused, %d runs taken over", running))
		c.kept(two)
	}
}
