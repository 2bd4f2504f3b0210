package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"anytime/api"
	"anytime/internal/anytime"
	"anytime/internal/decode/decodetest"
	"anytime/internal/server"
	"anytime/internal/server/sse"
)

// TestExplain reads why a run is as it is: under way, ended, extended and failed. The transport holds all of it to the contract.
func TestExplain(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	id, stop := b.running("budget=max&every=20&on_disconnect=continue")
	explain := func() api.Explanation {
		t.Helper()
		status := get[api.RunStatus](b, "GET", "/solve/"+id+"?explain=true", "")
		if status.Explanation == nil {
			t.Fatal("no explanation")
		}
		return *status.Explanation
	}
	if e := explain(); e.Cut != nil || e.Limit != maxThinking {
		t.Errorf("under way: %+v", e)
	}
	get[anytime.Reply](b, "POST", "/solve/"+id+"/interrupt", "")
	if e := explain(); e.Cut == nil || e.Cut.Cause != "interrupt" || e.Cut.Why == "" || len(*e.Answers) != 1 || e.Forks == 0 {
		t.Errorf("ended: %+v", e)
	}
	stop()
	get[anytime.Reply](b, "POST", "/solve/"+id+"/extend?budget=7", "")
	if e := explain(); e.Cut == nil || e.Cut.Cause != "tokens" {
		t.Errorf("extended: %+v", e)
	}
	if status := get[api.RunStatus](b, "GET", "/solve/"+id, ""); status.Explanation != nil {
		t.Error("explained unasked")
	}
	id, stop = b.running("budget=max")
	stop()
	for get[api.RunStatus](b, "GET", "/solve/"+id, "").State != "failed" {
	}
	explain()
}

// TestStalledReader streams a run to a client that stops reading: it is cut off, and its run ended, as if it had left. Others are
// not held up.
func TestStalledReader(t *testing.T) {
	large := strings.Repeat("x", 32<<10)
	b := newSite(t, decodetest.Options{Model: decodetest.Script(strings.Split(strings.Repeat(" "+large+"\x00 step\x00", 1000), "\x00"), "<think>\n", "</think>", counting)},
		func(c *server.Config) { c.Timeout = 200 * time.Millisecond })
	conn, err := net.Dial("tcp", strings.TrimPrefix(b.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "POST /solve?budget=max&stream=true HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(solveBody), solveBody); err != nil {
		t.Fatal(err)
	}
	var run api.RunSummary
	for run.State != "failed" {
		if list := get[api.RunList](b, "GET", "/solve", ""); len(list.Runs) > 0 {
			run = list.Runs[0]
		}
		if run.State == "finished" {
			t.Fatal("the run went on to its end")
		}
	}
	status := get[api.RunStatus](b, "GET", "/solve/"+run.Id, "")
	if status.Error == nil || status.Error.Code != "cancelled" {
		t.Errorf("%+v", status)
	}
	for {
		if _, text := b.call("GET", "/metrics", ""); strings.Contains(string(text), "anytime_http_open_streams 0\n") {
			break
		}
	}
}

// TestDeadReader asks for much and reads nothing, and lets a connection be used again long after the timeout of its last reply.
func TestDeadReader(t *testing.T) {
	b := newSite(t, decodetest.Options{}, func(c *server.Config) { c.Timeout = 100 * time.Millisecond })
	conn, err := net.Dial("tcp", strings.TrimPrefix(b.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	const many = 2000
	go func() {
		_, _ = io.WriteString(conn, strings.Repeat("GET /openapi.yaml HTTP/1.1\r\nHost: localhost\r\n\r\n", many))
	}()
	count := func() int {
		_, text := b.call("GET", "/metrics", "")
		n := 0
		for line := range strings.SplitSeq(string(text), "\n") {
			_, _ = fmt.Sscanf(line, `anytime_http_requests_total{code="200",method="GET",route="/openapi.yaml"} %d`, &n)
		}
		return n
	}
	last, since := count(), time.Now()
	for time.Since(since) < 10*b.cfg.Timeout { // until no more of them are answered
		if n := count(); n != last {
			last, since = n, time.Now()
		}
	}
	if last >= many {
		t.Errorf("all of %d requests were answered", last)
	}
	for range 2 {
		resp, err := b.client.Do(b.request(context.Background(), "GET", "/solve/run_none/events", ""))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("status %d", resp.StatusCode)
		}
		<-time.After(3 * b.cfg.Timeout)
	}
}

// TestLeaveAfterTheEnd leaves a stream with its last event in hand, and has the run think on: that is not the run that was left.
func TestLeaveAfterTheEnd(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	for range 20 {
		ctx, leave := context.WithCancel(context.Background())
		resp, err := b.client.Do(b.request(ctx, "POST", "/solve?stream=true&budget=3", solveBody))
		if err != nil {
			t.Fatal(err)
		}
		var run anytime.Reply
		for e, err := range sse.Read(resp.Body) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Type == anytime.EventDone {
				if err := json.Unmarshal(e.Data, &run); err != nil {
					t.Fatal(err)
				}
				break
			}
		}
		leave()
		_ = resp.Body.Close()
		get[anytime.Reply](b, "POST", "/solve/"+run.ID+"/extend?budget=40", "")
	}
}
