package e2e

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"anytime/internal/anytime"
)

const (
	userKey, otherKey, adminKey = "user-0123456789", "other-0123456789", "admin-0123456789"
	closed                      = 0 // instead of a status: the server closed the connection without a reply
	clientTimeout               = time.Second
)

// guarded starts a server with keys and little patience.
func guarded(t testing.TB, args ...string) *server {
	keys := filepath.Join(t.TempDir(), "keys")
	write(t, keys, fmt.Sprintf("user:%s\nother:%s\nadmin:%s:admin\nfew:few-0123456789:requests=5/1h\none:one-0123456789:runs=1\nthought:thought-0123456789:thinking=10/1h\n",
		userKey, otherKey, adminKey))
	return start(t, "", append(append(exact(talker), "-keys-file", keys, "-client-timeout", clientTimeout.String()), args...)...)
}

// as sends a request with a key.
func (s *server) as(key, method, path string, body any, header ...string) response {
	return s.do(method, path, body, append([]string{"X-API-Key", key}, header...)...)
}

// well checks that a normal request is answered.
func (s *server) well(after string) {
	s.t.Helper()
	var reply anytime.Reply
	if s.into(s.as(userKey, "POST", "/solve?budget=4", problem("Still here?")), &reply); reply.Answer == nil {
		s.t.Errorf("after %s: %+v", after, reply)
	}
}

func (s *server) dial() net.Conn {
	s.t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		s.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}

// statuses reads replies until the server closes the connection or n have come.
func statuses(c net.Conn, n int) (list []int) {
	defer c.Close()
	r := bufio.NewReader(c)
	for len(list) < n {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			break
		}
		_, err = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			break
		}
		list = append(list, resp.StatusCode)
	}
	if len(list) == 0 {
		list = []int{closed}
	}
	return list
}

// raw sends bytes as they are and returns the status of the first reply.
func (s *server) raw(text string) int {
	c := s.dial()
	go func() { _, _ = io.WriteString(c, text) }() // the server may answer, and close, before it has read all
	return statuses(c, 1)[0]
}

// post is a whole request with a key, to be varied.
func post(path, body string, header ...string) string {
	return "POST " + path + " HTTP/1.1\r\nHost: localhost\r\nX-API-Key: " + userKey + "\r\nContent-Type: application/json\r\n" +
		fmt.Sprintf("Content-Length: %d\r\n", len(body)) + strings.Join(header, "\r\n") + strings.Repeat("\r\n", 1+min(1, len(header))) + body
}

func get(path string, header ...string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\nX-API-Key: " + userKey + "\r\n" + strings.Join(header, "\r\n") + strings.Repeat("\r\n", 1+min(1, len(header)))
}

// an attack is a number of tries, each of which must end in one of some statuses.
type attack struct {
	name  string
	want  []int
	tries []func(*server) int
}

func raws(texts ...string) (tries []func(*server) int) {
	for _, text := range texts {
		tries = append(tries, func(s *server) int { return s.raw(text) })
	}
	return tries
}

// bodies are bodies of /solve.
func bodies(texts ...string) (tries []func(*server) int) {
	for _, text := range texts {
		tries = append(tries, func(s *server) int { return s.as(userKey, "POST", "/solve?budget=1", text).status })
	}
	return tries
}

// paths are requests for paths with a key, by all methods that exist.
func paths(list ...string) (tries []func(*server) int) {
	for _, path := range list {
		for _, method := range []string{"GET", "POST", "DELETE"} {
			tries = append(tries, func(s *server) int {
				return s.raw(method + " " + path + " HTTP/1.1\r\nHost: localhost\r\nX-API-Key: " + userKey + "\r\n\r\n")
			})
		}
	}
	return tries
}

func deep(n int, open, inside, end string) string {
	return `{"problem": ` + strings.Repeat(open, n) + inside + strings.Repeat(end, n) + `}`
}

func zipped(n int) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write(bytes.Repeat([]byte(" "), n))
	_ = w.Close()
	return b.String()
}

func attacks() []attack {
	long := strings.Repeat("x", 1<<20)
	model := func(names ...string) (tries []func(*server) int) {
		for _, name := range names {
			body, _ := json.Marshal(map[string]string{"problem": "x", "model": name})
			tries = append(tries, func(s *server) int { return s.as(userKey, "POST", "/solve", string(body)).status },
				func(s *server) int { return s.raw(get("/v1/models/" + url.PathEscape(name))) },
				func(s *server) int { return s.raw(get("/v1/models/" + url.QueryEscape(name))) })
		}
		return tries
	}
	const solve = `{"problem":"x"}`
	return []attack{
		{"huge headers", []int{431}, raws(get("/solve", "X-Long: "+long), get("/solve", "Cookie: "+strings.Repeat(long, 4)),
			get("/solve", slices.Repeat([]string{"X-Many: 1"}, 20000)...), get("/solve?budget="+long), "GET /"+long+" HTTP/1.1\r\n\r\n")},
		{"long queries", []int{400}, raws(post("/solve?budget="+strings.Repeat("1", 60000), solve), post("/solve?"+strings.Repeat("budget=1&", 6000), solve),
			post("/solve?checkpoints="+strings.Repeat("1,", 20000), solve), get("/solve?limit="+strings.Repeat("9", 50000)), post("/solve?"+strings.Repeat("a&", 20000), solve))},
		{"huge bodies", []int{413, closed}, raws(post("/solve", strings.Repeat(" ", 5<<20)),
			"POST /solve HTTP/1.1\r\nHost: localhost\r\nX-API-Key: "+userKey+"\r\nContent-Type: application/json\r\nContent-Length: 1099511627776\r\n\r\n"+strings.Repeat(" ", 5<<20),
			"POST /solve HTTP/1.1\r\nHost: localhost\r\nX-API-Key: "+userKey+"\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"+strings.Repeat("100000\r\n"+long+"\r\n", 6))},
		{"deep JSON", []int{400}, bodies(deep(40, "[", "1", "]"), deep(40, `{"a":`, "1", "}"), deep(1<<20, "[", "", "]"), deep(500000, `{"a":`, "1", "}"),
			strings.Repeat("[", 2<<20), `{"messages":`+strings.Repeat(`[{"role":"user","content":`, 1000))},
		{"bad JSON", []int{400}, bodies("", "{", `{"problem":"x"} {}`, `{"problem":"x","problem":"y"}`, `{"problem":"x","votes":1e400}`, `{"problem":"x","votes":NaN}`,
			`{"problem":"x","seed":`+strings.Repeat("9", 400)+`}`, `{"problem":"x",}`, `{problem:"x"}`, "null", "[]", `"x"`, "\xef\xbb\xbf"+solve,
			`{`+strings.Repeat(`"a":1,`, 10)+`"problem":"x"}`, manyKeys(100000), `{"problem":"`+long+`"}`, `{"problem":"x","stop":[`+strings.Repeat(`"a",`, 1000)+`"a"]}`,
			`{"problem":"x","logit_bias":{`+strings.Repeat(`"1":1,`, 5)+`"2":1}}`, `{"problem":"x","grammar":"`+strings.Repeat("(", 30000)+`"}`, zipped(1<<30))},
		{"invalid UTF-8", []int{400, 404}, append(bodies("{\"problem\":\"a\xffb\"}", "{\"pro\xc3blem\":\"x\"}", "{\"problem\":\"\xed\xa0\x80\"}", "{\"problem\":\"\xf8\x88\x80\x80\x80\"}"),
			raws(post("/solve?budget=%ff%fe", solve), post("/solve?model=%c3%28", solve), get("/solve/%ff%fe"), get("/v1/models/%ff"))...)},
		{"traversal in models and adapters", []int{400, 404}, model("../../../../etc/passwd", "/etc/passwd", "..\\..\\windows", "talker:../../etc/passwd", "talker:/etc/passwd",
			"file:///etc/passwd", "talker/../talker", "talker\x00.gguf", "\r\nX-Injected: yes", "%2e%2e%2f", strings.Repeat("../", 200), "http://127.0.0.1/x.gguf", "hf.co/a/b")},
		{"traversal in paths", []int{400, 404, 405, 301}, paths("/solve/../metrics", "/solve/..%2fmetrics", "/solve/%2e%2e/%2e%2e/etc/passwd", "//metrics", "/./metrics", "/metrics/../metrics",
			"/docs/../../../etc/passwd", "/openapi.yaml/..", "/solve/%00", "/solve//events", "/%2fmetrics", "/solve;/metrics")},
		{"metrics without an admin key", []int{401, 403}, append(raws(get("/metrics"), get("/metrics?x"), "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"),
			func(s *server) int { return s.as("admin-012345678", "GET", "/metrics", nil).status }, func(s *server) int { return s.as(adminKey+"\x80", "GET", "/metrics", nil).status })},
		{"malformed ids", []int{400, 404, 405}, paths("/solve/x", "/solve/run_", "/solve/run_'%20OR%201=1--", "/solve/"+strings.Repeat("a", 10000), "/solve/%f0%9f%92%a5", "/solve/-1",
			"/solve/run_%00/events", "/solve/run_x/events?after=-1", "/solve/run_x/events?after=99999999999999999999", "/solve/run_x/extend?budget=1", "/solve/run_x/interrupt")},
		{"two lengths", []int{400, 501, closed}, raws(
			"POST /solve HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
			"POST /solve HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", "POST /solve HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0x5\r\n\r\nabcde",
			"POST /solve HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", "POST /solve HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
			post("/solve", solve, "Transfer-Encoding: chunked"), "POST /solve HTTP/1.1\r\nHost: localhost\r\nX-API-Key: "+userKey+"\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")},
		{"injected headers", []int{200, 400, 401, 404}, raws(get("/v1/models", "X-Request-Id: a\rX-Injected: yes"), get("/v1/models", "X-Request-Id: a%0d%0aX-Injected: yes"), get("/v1/models", "X-Re quest: a"),
			get("/v1/models", " folded: a"), get("/v1/models", "X-Request-Id: \x00"), get("/v1/models/a%0d%0aX-Injected:%20yes"), get("/v1/models", "Host: other"), get("/v1/models", "X-Request-Id: a\nX-Injected: yes"))},
		{"no HTTP", []int{200, 400, 404, 405, 501, 505, closed}, raws("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "\x00\x00\x00\x00\r\n\r\n", "GET\r\n\r\n", "GET /solve\r\n\r\n", "GET /solve HTTP/9.9\r\nHost: x\r\n\r\n",
			"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "CONNECT localhost:1 HTTP/1.1\r\nHost: x\r\n\r\n", "TRACE / HTTP/1.1\r\nHost: x\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
			"GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "FOO /solve HTTP/1.1\r\nHost: x\r\n\r\n", "{\"problem\":\"x\"}\r\n\r\n", "EHLO me\r\n\r\n", "\r\n\r\n\r\n\r\nGET\r\n\r\n")},
		{"upgrades and ranges", []int{200, 401, 404}, raws(get("/v1/models", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: eA==", "Sec-WebSocket-Version: 13"),
			get("/openapi.yaml", "Range: bytes=0-0,"+strings.Repeat("0-,", 1000)), get("/v1/models", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
			get("/v1/models", "Accept: "+strings.Repeat("text/event-stream;q=0.1,", 2000)), get("/v1/models", "Authorization: Bearer "+strings.Repeat("x", 50000)))},
		{"too much of something", []int{400}, bodies(`{"problem":"x","votes":1000000000}`, `{"problem":"x","answer_tokens":1000000000}`, `{"problem":"x","checkpoints":[`+strings.Repeat("1,", 100)+`2]}`,
			`{"problem":"x","reasoning_budget_message":"`+strings.Repeat("x", 5000)+`"}`, `{"problem":"x","every":0}`, `{"problem":"x","top_k":-5}`, `{"problem":"x","temperature":1e30}`,
			`{"problem":"x","budget":-7}`, `{"problem":"x","budget":"99999999999999999999s"}`, `{"problem":"a\u0000b"}`, `{"messages":[`+strings.Repeat(`{"role":"user","content":""},`, 5000)+`{"role":"user"}]}`)},
	}
}

func manyKeys(n int) string {
	var b strings.Builder
	b.WriteString(`{"problem":"x"`)
	for i := range n {
		fmt.Fprintf(&b, `,"k%d":1`, i)
	}
	return b.String() + "}"
}

// TestAbuse tries what people with bad intentions, or broken clients, send. Nothing is the server's fault, nothing takes it down, and
// nothing of it is believed.
func TestAbuse(t *testing.T) {
	s := guarded(t)
	rounds := 1
	if os.Getenv("ANYTIME_TEST_ALL") != "" {
		rounds = 20
	}
	total := 0
	for _, a := range attacks() {
		counts := map[int]int{}
		for range rounds {
			for i, try := range a.tries {
				status := try(s)
				counts[status]++
				if total++; !slices.Contains(a.want, status) || status >= 500 && status != 501 && status != 505 {
					t.Errorf("%s, try %d: status %d, want one of %d", a.name, i+1, status, a.want)
				}
			}
		}
		s.well(a.name)
		t.Logf("%s: %d tries, by status (0: closed) %v", a.name, rounds*len(a.tries), counts)
	}
	t.Logf("%d tries", total)
	if strings.Contains(s.said(), "panic") || len(s.children()) != 1 {
		t.Error("something broke")
	}
	if body := s.as(adminKey, "GET", "/metrics", nil).body; !strings.Contains(string(body), "anytime_engine_restarts_total 0") {
		t.Error("the engine was restarted")
	}
}

// Twenty requests in one packet get twenty replies, in order; what follows a bad one is not read.
func TestPipelining(t *testing.T) {
	s := guarded(t)
	c := s.dial()
	var all strings.Builder
	var want []int
	for i := range 20 {
		if i%2 == 0 {
			all.WriteString(get("/v1/models"))
			want = append(want, 200)
		} else {
			all.WriteString(post("/solve?budget=x", `{"problem":"x"}`))
			want = append(want, 400)
		}
	}
	if _, err := io.WriteString(c, all.String()); err != nil {
		t.Fatal(err)
	}
	if got := statuses(c, 20); !slices.Equal(got, want) {
		t.Errorf("statuses %d", got)
	}
	c = s.dial()
	_, _ = io.WriteString(c, get("/v1/models")+"NONSENSE\r\n\r\n"+get("/v1/models"))
	if got := statuses(c, 3); !slices.Equal(got, []int{200, 400}) {
		t.Errorf("around nonsense: statuses %d", got)
	}
	s.well("pipelining")
}

// A header that a request smuggles in does not come out.
func TestHeaderInjection(t *testing.T) {
	s := guarded(t)
	for _, request := range []string{
		get("/v1/models/a%0d%0aX-Injected:%20yes"), get("/solve/a%0aX-Injected:yes"), get("/v1/models", "X-Request-Id: a%0aX-Injected: yes"),
		get("/v1/models", "Origin: http://localhost%0d%0aX-Injected: yes"), post("/solve?model=a%0d%0aX-Injected:yes", `{"problem":"x"}`),
	} {
		c := s.dial()
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("%q: %v", request, err)
		}
		defer resp.Body.Close()
		if resp.Header.Get("X-Injected") != "" || resp.StatusCode >= 500 {
			t.Errorf("%q: status %d, %v", request, resp.StatusCode, resp.Header)
		}
		_ = c.Close()
	}
}

// A run is its own key's. To others it is as if it did not exist, whatever they try.
func TestForeignRuns(t *testing.T) {
	s := guarded(t)
	ctx, leave := context.WithCancel(context.Background())
	defer leave()
	var run anytime.RunData
	s.events(ctx, "POST", "/solve?budget=max&on_disconnect=continue", problem("Think."), func(e event) bool {
		_ = json.Unmarshal([]byte(e.data), &run)
		return true
	}, "X-API-Key", userKey)
	tried := 0
	for _, key := range []string{otherKey, adminKey} {
		for method, list := range map[string][]string{
			"GET":    {"", "?thinking=true", "?explain=true", "/events", "/events?after=0"},
			"POST":   {"/interrupt", "/interrupt?continue=true", "/extend?budget=1"},
			"DELETE": {""},
		} {
			for _, path := range list {
				own, foreign := s.as(key, method, "/solve/run_none"+path, nil), s.as(key, method, "/solve/"+run.ID+path, nil)
				if tried++; foreign.status != 404 || strings.ReplaceAll(string(foreign.body), foreign.header.Get("X-Request-Id"), "") !=
					strings.ReplaceAll(string(own.body), own.header.Get("X-Request-Id"), "") {
					t.Errorf("%s %s: status %d, %s; of no run %s", method, path, foreign.status, foreign.body, own.body)
				}
			}
		}
		control := s.as(key, "POST", "/v1/chat/completions/control", map[string]string{"id": "chatcmpl-" + run.ID, "action": "reasoning_end"})
		if list := s.as(key, "GET", "/solve", nil); control.status != 404 || strings.Contains(string(list.body), run.ID) {
			t.Errorf("control: %d; list %s", control.status, list.body)
		}
	}
	t.Logf("%d tries", tried+2)
	var status struct{ State string }
	if s.into(s.as(userKey, "GET", "/solve/"+run.ID, nil), &status); status.State != "running" {
		t.Errorf("state %q", status.State)
	}
	if r := s.as(userKey, "DELETE", "/solve/"+run.ID, nil); r.status != http.StatusNoContent {
		t.Errorf("delete: %d", r.status)
	}
}

// Each limit of a key is kept, by that key alone.
func TestKeyLimits(t *testing.T) {
	s := guarded(t)
	refused := func(r response, code string) {
		t.Helper()
		if r.status != 429 || r.header.Get("Retry-After") == "" || !strings.Contains(string(r.body), code) {
			t.Errorf("status %d, Retry-After %q, %s; want 429 %s", r.status, r.header.Get("Retry-After"), r.body, code)
		}
	}
	const few, one, thought = "few-0123456789", "one-0123456789", "thought-0123456789"
	for i := range 30 {
		r := s.as(few, "GET", "/v1/models", nil)
		if i < 5 && (r.status != 200 || r.header.Get("X-Ratelimit-Remaining-Requests") != fmt.Sprint(4-i)) {
			t.Errorf("request %d: status %d, %v", i+1, r.status, r.header)
		} else if i >= 5 {
			refused(r, "request_limit")
		}
	}
	ctx, leave := context.WithCancel(context.Background())
	defer leave()
	s.events(ctx, "POST", "/solve?budget=max", problem("Think."), func(event) bool { return true }, "X-API-Key", one)
	// The stream is closed by now, which ends the run soon.
	s.until("free again", func() bool { return s.as(one, "POST", "/solve?budget=1", problem("x")).status == 200 })
	busy, err := s.send(ctx, "POST", "/solve?budget=max&stream=true", problem("Think."), "X-API-Key", one)
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Body.Close()
	for range 10 {
		refused(s.as(one, "POST", "/solve?budget=1", problem("x")), "run_limit")
	}
	if r := s.as(thought, "POST", "/solve?budget=50", problem("x")); r.status != 200 {
		t.Errorf("thinking within the allowance: %d", r.status)
	}
	refused(s.as(thought, "POST", "/solve?budget=1", problem("x")), "thinking_limit")
	s.well("limits")
}
