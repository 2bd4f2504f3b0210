package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"anytime/internal/anytime"
	"anytime/internal/budget"
)

// balancer is what stands before servers that are restarted one after another: it passes requests to the one that is up, and holds those
// that come while none is, as load balancers do that try again where a connection is refused or a server says that it is stopping.
type balancer struct {
	base http.Transport // without kept connections, which a server may close while a request is on its way

	mu      sync.Mutex
	backend *url.URL      // nil: none is up
	changed chan struct{} // closed when it changes
	retries int
}

func (b *balancer) set(backend string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.backend = nil
	if backend != "" {
		b.backend, _ = url.Parse(backend)
	}
	close(b.changed)
	b.changed = make(chan struct{})
}

// stopped notes that a server takes no more, unless another has taken its place.
func (b *balancer) stopped(backend *url.URL) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.retries++
	if b.backend == backend {
		b.backend = nil
	}
}

func (b *balancer) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	for {
		b.mu.Lock()
		backend, changed := b.backend, b.changed
		b.mu.Unlock()
		if backend == nil {
			select {
			case <-changed:
				continue
			case <-r.Context().Done():
				return nil, r.Context().Err()
			}
		}
		again := r.Clone(r.Context())
		again.URL.Host, again.Host, again.Body = backend.Host, backend.Host, io.NopCloser(bytes.NewReader(body))
		resp, err := b.base.RoundTrip(again)
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
		case err == nil && resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != "":
			_ = resp.Body.Close()
		default:
			return resp, err
		}
		b.stopped(backend)
	}
}

// answered is what a client has of a run.
type answered struct {
	id     string
	events []event
	reply  anytime.Reply
}

// ask asks through the balancer, streamed or not, and returns what it got, or why not.
func ask(address string, body map[string]any, query string, stream bool) (a answered, err error) {
	data, _ := json.Marshal(body)
	req, err := http.NewRequest("POST", address+"/solve?"+query, bytes.NewReader(data))
	if err != nil {
		return a, err
	}
	req.Header.Set("Content-Type", "application/json")
	if stream {
		req.Header.Set("Accept", "text/event-stream")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		return a, fmt.Errorf("status %d: %s", resp.StatusCode, text)
	}
	if !stream {
		err := json.NewDecoder(resp.Body).Decode(&a.reply)
		a.id = a.reply.ID
		return a, err
	}
	var e event
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch name {
		case "id":
			_, err = fmt.Sscan(value, &e.id)
		case "event":
			e.kind = value
		case "data":
			e.data = value
		case "":
			if e.kind != "" {
				a.events = append(a.events, e)
			}
			e = event{}
		}
		if err != nil {
			return a, err
		}
	}
	if err := lines.Err(); err != nil {
		return a, err
	}
	for i, e := range a.events {
		if e.id != i+1 {
			return a, fmt.Errorf("event %d has id %d", i+1, e.id)
		}
	}
	if n := len(a.events); n == 0 || a.events[n-1].kind != "done" {
		return a, fmt.Errorf("the stream ended after %d events without its end", n)
	}
	err = json.Unmarshal([]byte(a.events[len(a.events)-1].data), &a.reply)
	a.id = a.reply.ID
	return a, err
}

// Servers are restarted one after another, on the same data, under load and behind a balancer: no request, answer or event is lost.
func TestRollingRestart(t *testing.T) {
	rounds, clients := 2, 8
	if os.Getenv("ANYTIME_TEST_ALL") != "" {
		rounds, clients = 20, 24
	}
	data := t.TempDir()
	s := start(t, data, exact(talker)...)
	b := &balancer{changed: make(chan struct{}), base: http.Transport{DisableKeepAlives: true}}
	b.set(s.url)
	proxy := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme = "http" }, Transport: b})
	defer proxy.Close()

	enough := make(chan struct{})
	var load sync.WaitGroup
	var mu sync.Mutex
	var all []answered
	for i := range clients {
		load.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-enough:
					return
				default:
				}
				query := []string{"budget=60", "budget=60&every=25", "budget=600"}[(i+n)%3]
				a, err := ask(proxy.URL, asked("Go on.", 1000*i+n), query, i%2 == 0)
				if err != nil {
					t.Errorf("client %d, request %d: %v", i, n, err)
					return
				}
				mu.Lock()
				all = append(all, a)
				mu.Unlock()
			}
		})
	}
	answers := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(all)
	}
	var away time.Duration
	for range rounds {
		had := answers()
		s.until("under load", func() bool {
			return answers() >= had+clients/2 && s.metric("anytime_runs_running") >= float64(clients)/2
		})
		began := time.Now()
		stop(s)
		s = start(t, data, exact(talker)...)
		away = max(away, time.Since(began))
		b.set(s.url)
	}
	had := answers()
	s.until("under load again", func() bool { return answers() >= had+clients })
	close(enough)
	load.Wait()

	drained, streamed := 0, 0
	for _, a := range all {
		if a.reply.Stop.Cause == budget.CauseDrain {
			drained++
		}
		if a.reply.Answer == nil {
			t.Errorf("run %s has no answer: %+v", a.id, a.reply.Stop)
		}
		var kept anytime.Reply // what the last server has of it
		s.into(s.do("GET", "/solve/"+a.id+"?thinking=true", nil), &kept)
		if kept.Summary != a.reply.Summary || kept.Usage != a.reply.Usage {
			t.Errorf("run %s was answered %q and is kept as %q", a.id, a.reply.Summary, kept.Summary)
		}
		if a.events == nil {
			continue
		}
		streamed += len(a.events)
		if got := text(t, a.events, "thinking"); got != kept.Thinking {
			t.Errorf("run %s: streamed thinking %q, kept %q", a.id, got, kept.Thinking)
		}
	}
	if drained == 0 {
		t.Error("no run was in flight when a server was stopped")
	}
	t.Logf("%d restarts under %d clients: %d answers, %d of them forced by a restart, %d events, none lost; the balancer tried again %d times; from signal to the next server ready at most %v",
		rounds, clients, len(all), drained, streamed, b.retries, away.Round(time.Millisecond))
}

// A second signal does not wait for answers; the next server takes the runs up.
func TestSecondSignal(t *testing.T) {
	data := t.TempDir()
	s := start(t, data, exact(talker)...)
	body := asked("Answer at length.", 1)
	body["answer_tokens"], body["votes"], body["on_disconnect"] = 3000, 8, "continue"
	var run anytime.RunData
	s.events(t.Context(), "POST", "/solve?budget=max", body, func(e event) bool {
		_ = json.Unmarshal([]byte(e.data), &run)
		return true
	})
	for range 2 {
		if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(s.said(), "runs in flight answer now") {
			continue
		}
		s.until("stopping", func() bool { return strings.Contains(s.said(), "runs in flight answer now") })
	}
	began := time.Now()
	var exit *exec.ExitError
	if err := <-s.exit; !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("exit: %v", err)
	}
	took := time.Since(began)
	if !strings.Contains(s.said(), "1 runs did not answer in time") {
		t.Error("it does not say what it left")
	}
	s = start(t, data, exact(talker)...)
	var status struct{ State string }
	if s.into(s.do("GET", "/solve/"+run.ID, nil), &status); status.State != "running" {
		t.Errorf("the run is %s", status.State)
	}
	var reply anytime.Reply
	s.into(s.do("POST", "/solve/"+run.ID+"/interrupt", nil), &reply)
	if reply.Answer == nil {
		t.Errorf("%+v", reply)
	}
	t.Logf("the second signal ended the server within %v", took.Round(time.Millisecond))
}
