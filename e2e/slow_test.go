package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"anytime/internal/anytime"
)

// metric reads one of the server's metrics that has no labels.
func (s *server) metric(name string) float64 {
	s.t.Helper()
	body := s.as(adminKey, "GET", "/metrics", nil).body
	m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindSubmatch(body)
	if m == nil {
		s.t.Fatalf("no metric %s", name)
	}
	v, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

// settled waits until the server has no more goroutines than before, and a few for connections that are kept.
func (s *server) settled(before float64) {
	s.t.Helper()
	const few = 5
	s.until(fmt.Sprintf("back to %v goroutines", before), func() bool {
		http.DefaultClient.CloseIdleConnections()
		return s.metric("go_goroutines") <= before+few
	})
}

// reset closes a connection as one does that vanishes: without a goodbye.
func reset(c net.Conn) {
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
}

// drip sends a text byte by byte, slowly, until it is sent, or the server has had enough.
func drip(c net.Conn, text string, pause time.Duration) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for i := range text {
		if _, err := io.WriteString(c, text[i:i+1]); err != nil {
			return
		}
		<-tick.C
	}
}

// Clients that send headers or bodies slowly, in half or never. Each is rid of soon, and no one else notices.
func TestSlowSenders(t *testing.T) {
	s := guarded(t)
	each := 4
	if os.Getenv("ANYTIME_TEST_ALL") != "" {
		each = 100
	}
	s.well("the start")
	before := s.metric("go_goroutines")
	const keyless = "POST /solve HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{\"problem\": \""
	whole := post("/solve", `{"problem": "`+strings.Repeat("x", 1000)+`"}`)
	half := whole[:len(whole)-500]
	senders := map[string]struct {
		want []int
		send func(net.Conn)
	}{
		"headers by the byte":     {[]int{closed, 400, 408}, func(c net.Conn) { drip(c, whole, 50*time.Millisecond) }},
		"half of the headers":     {[]int{closed, 408}, func(c net.Conn) { _, _ = io.WriteString(c, whole[:60]) }},
		"nothing at all":          {[]int{closed, 408}, func(net.Conn) {}},
		"a body by the byte":      {[]int{400}, func(c net.Conn) { _, _ = io.WriteString(c, half); drip(c, whole[len(half):], 50*time.Millisecond) }},
		"half a body":             {[]int{400}, func(c net.Conn) { _, _ = io.WriteString(c, half) }},
		"half a body, no key":     {[]int{401}, func(c net.Conn) { _, _ = io.WriteString(c, keyless) }},
		"half a body, wrong path": {[]int{404}, func(c net.Conn) { _, _ = io.WriteString(c, strings.Replace(half, "/solve", "/wrong", 1)) }},
		"half a body to a GET":    {[]int{400}, func(c net.Conn) { _, _ = io.WriteString(c, strings.Replace(half, "POST", "GET", 1)) }},
		"a body that is waited for": {[]int{400}, func(c net.Conn) {
			_, _ = io.WriteString(c, strings.Replace(half[:len(half)-513], "\r\n", "\r\nExpect: 100-continue\r\n", 1))
		}},
		"half a body, then half open": {[]int{400}, func(c net.Conn) { _, _ = io.WriteString(c, half); _ = c.(*net.TCPConn).CloseWrite() }},
		"half a body, then gone":      {[]int{closed}, func(c net.Conn) { _, _ = io.WriteString(c, half); reset(c) }},
		"a chunk without an end": {[]int{400}, func(c net.Conn) {
			_, _ = io.WriteString(c, "POST /solve HTTP/1.1\r\nHost: localhost\r\nX-API-Key: "+userKey+"\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n{\"pro")
		}},
	}
	type outcome struct {
		name   string
		status int
		took   time.Duration
	}
	outcomes := make(chan outcome)
	for name, sender := range senders {
		for range each {
			c := s.dial()
			go sender.send(c)
			go func() {
				began, r := time.Now(), bufio.NewReader(c)
				status := closed
				for {
					resp, err := http.ReadResponse(r, nil)
					if err != nil {
						break
					}
					status = resp.StatusCode // the last one: not that of 100 Continue
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
				_ = c.Close()
				outcomes <- outcome{name, status, time.Since(began)}
			}()
		}
	}
	slowest := time.Duration(0)
	for range 10 {
		began := time.Now()
		s.well("slow senders")
		slowest = max(slowest, time.Since(began))
	}
	var longest time.Duration
	for range each * len(senders) {
		o := <-outcomes
		ok := false
		for _, want := range senders[o.name].want {
			ok = ok || o.status == want
		}
		if !ok {
			t.Errorf("%s: status %d, want one of %d", o.name, o.status, senders[o.name].want)
		}
		longest = max(longest, o.took)
	}
	if longest > 20*clientTimeout {
		t.Errorf("the last of them was rid of after %v", longest)
	}
	s.settled(before)
	if n := s.metric("anytime_http_slow_clients_total"); n < float64(each) {
		t.Errorf("%v of them are counted", n)
	}
	t.Logf("%d slow senders of %d kinds: the last rid of after %v (limit %v); meanwhile a request took at most %v", each*len(senders), len(senders), longest, clientTimeout, slowest)
}

// Clients that ask for much and read a byte a second, or nothing. Their connections end, others' streams do not wait for them.
func TestSlowReaders(t *testing.T) {
	s := guarded(t)
	readers := 20
	if os.Getenv("ANYTIME_TEST_ALL") != "" {
		readers = 500
	}
	var reply anytime.Reply
	s.into(s.as(userKey, "POST", "/solve?budget=1000", problem("Think.")), &reply)
	before, memory := s.metric("go_goroutines"), s.metric("process_resident_memory_bytes")
	events := "/solve/" + reply.ID + "/events?thinking=true"
	stop := make(chan struct{})
	began := time.Now()
	for i := range readers {
		c := s.dial()
		_ = c.(*net.TCPConn).SetReadBuffer(4 << 10)
		request := get(events)
		if i%2 == 0 {
			request = get("/openapi.yaml")
		}
		if _, err := io.WriteString(c, strings.Repeat(request, 500)); err != nil {
			t.Fatal(err)
		}
		go func() {
			defer c.Close()
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for one := make([]byte, 1); ; {
				select {
				case <-tick.C:
					if i%4 < 2 {
						_, _ = c.Read(one) // the other half reads nothing
					}
				case <-stop:
					return
				}
			}
		}()
	}
	quick := time.Now()
	if list := s.events(context.Background(), "GET", events, nil, nil, "X-API-Key", userKey); list[len(list)-1].kind != "done" {
		t.Errorf("a stream beside them ended with %+v", list[len(list)-1])
	}
	took := time.Since(quick)
	grown := s.metric("process_resident_memory_bytes") - memory
	s.settled(before) // though all of them are still there
	if gone := time.Since(began); gone > 20*clientTimeout {
		t.Errorf("they were rid of after %v", gone)
	}
	close(stop)
	t.Logf("%d slow readers: gone after %v (limit %v); a stream beside them took %v; the server grew by %.0f KiB for each", readers, time.Since(began), clientTimeout, took, grown/float64(readers)/1024)
	s.well("slow readers")
}

// Clients that start runs and vanish: the runs end, for no one waits for them.
func TestVanishingClients(t *testing.T) {
	s := guarded(t)
	s.well("the start")
	before := s.metric("go_goroutines")
	rounds := 2
	if os.Getenv("ANYTIME_TEST_ALL") != "" {
		rounds = 20
	}
	for range rounds {
		var clients []net.Conn
		for i := range 16 {
			c := s.dial()
			if _, err := io.WriteString(c, post([]string{"/solve?budget=max&stream=true", "/solve?budget=max"}[i%2], fmt.Sprintf(`{"problem":"Think of %d."}`, i))); err != nil {
				t.Fatal(err)
			}
			clients = append(clients, c)
		}
		s.until("nearly all running", func() bool { return s.metric("anytime_runs_running") >= 12 }) // a few may have ended by themselves
		for _, c := range clients {
			reset(c)
		}
		began := time.Now()
		s.until("idle", func() bool { return s.metric("anytime_runs_running") == 0 })
		t.Logf("16 clients vanished: their runs ended within %v", time.Since(began))
	}
	s.settled(before)
	s.well("vanished clients")
}

// idle opens n readers of a run that does nothing, and returns what each costs the server; then the run goes on, and each reader must
// get all of it.
func idle(t testing.TB, n int) (bytes, goroutines float64) {
	s := guarded(t, "-watchdog", "1h")
	s.well("the start")
	signal := func(sig syscall.Signal) {
		for _, pid := range s.children() {
			_ = syscall.Kill(pid, sig)
		}
	}
	var run anytime.RunData
	for s.metric("anytime_runs_running") == 0 { // it may be over before the engine stands still
		signal(syscall.SIGCONT)
		s.events(context.Background(), "POST", "/solve?budget=200&on_disconnect=continue", problem("Think."), func(e event) bool {
			_ = json.Unmarshal([]byte(e.data), &run)
			signal(syscall.SIGSTOP)
			return true
		}, "X-API-Key", userKey)
	}
	t.Cleanup(func() { signal(syscall.SIGCONT) })
	before := s.metric("go_goroutines")
	memory := s.metric("process_resident_memory_bytes")
	readers := make([]*bufio.Reader, n)
	for i := range readers {
		c := s.dial()
		defer c.Close()
		if _, err := io.WriteString(c, get("/solve/"+run.ID+"/events")); err != nil {
			t.Fatal(err)
		}
		readers[i] = bufio.NewReaderSize(c, 512)
	}
	s.until("all reading", func() bool { return s.metric("anytime_http_open_streams") == float64(n) })
	bytes = (s.metric("process_resident_memory_bytes") - memory) / float64(n)
	goroutines = (s.metric("go_goroutines") - before) / float64(n)
	began := time.Now()
	signal(syscall.SIGCONT)
	var wg sync.WaitGroup
	limit := make(chan struct{}, 4*runtime.NumCPU())
	for _, r := range readers {
		limit <- struct{}{}
		wg.Go(func() {
			defer func() { <-limit }()
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			last := ""
			lines := bufio.NewScanner(resp.Body)
			lines.Buffer(nil, 1<<20)
			for lines.Scan() {
				if kind, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
					last = kind
				}
			}
			if last != "done" {
				t.Errorf("a reader's last event is %q", last)
			}
		})
	}
	wg.Wait()
	t.Logf("%d idle readers: %.1f KiB and %.1f goroutines each; then all of them got the rest of the run within %v", n, bytes/1024, goroutines, time.Since(began))
	return bytes, goroutines
}

func TestIdleReaders(t *testing.T) {
	n := 300
	if os.Getenv("ANYTIME_TEST_ALL") != "" {
		n = 10_000
	}
	if bytes, goroutines := idle(t, n); bytes > 100<<10 || goroutines > 2.5 {
		t.Errorf("an idle reader costs %.0f bytes and %.1f goroutines", bytes, goroutines)
	}
}

// BenchmarkIdleReaders says what each of 10,000 readers costs that wait for a run.
func BenchmarkIdleReaders(b *testing.B) {
	var bytes, goroutines float64
	for b.Loop() {
		bytes, goroutines = idle(b, 10_000)
	}
	b.ReportMetric(bytes, "B/reader")
	b.ReportMetric(goroutines, "goroutines/reader")
}
