package server_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"anytime/api"
	"anytime/internal/anytime"
	"anytime/internal/decode/decodetest"
	"anytime/internal/server"
)

const (
	alice = "alice-0123456789"
	bob   = "bob-0123456789"
	root  = "root-0123456789"
)

func withKeys(c *server.Config) {
	c.Loopback = false
	c.Keys = []server.Key{{Name: "alice", Secret: alice}, {Name: "bob", Secret: bob}, {Name: "root", Secret: root, Admin: true}}
}

func TestNewRefuses(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	for name, change := range map[string]func(*server.Config){
		"no keys beyond loopback": func(c *server.Config) { c.Loopback = false },
		"a short key":             func(c *server.Config) { c.Keys = []server.Key{{Name: "x", Secret: "short"}} },
		"a share over 1":          func(c *server.Config) { c.Efforts = map[string]float64{"low": 1.5} },
	} {
		cfg := b.cfg
		cfg.Metrics = nil
		change(&cfg)
		if _, err := server.New(cfg); err == nil {
			t.Errorf("%s: New did not refuse", name)
		}
	}
}

func TestKeys(t *testing.T) {
	b := newSite(t, decodetest.Options{}, withKeys)
	const body = `{"problem": "How many?"}`
	for _, test := range []struct {
		header []string
		status int
	}{
		{nil, 401},
		{[]string{"Authorization", "Bearer "}, 401},
		{[]string{"Authorization", "Bearer nobody-0123456789"}, 401},
		{[]string{"Authorization", "Bearer " + alice + "x"}, 401},
		{[]string{"Authorization", "Basic " + alice}, 401},
		{[]string{"X-API-Key", "nobody"}, 401},
		{[]string{"Authorization", "Bearer " + alice}, 200},
		{[]string{"Authorization", "bearer " + bob}, 200},
		{[]string{"X-API-Key", root}, 200},
	} {
		status, reply := b.call("POST", "/solve?budget=1", body, test.header...)
		if status != test.status || status == 401 && !strings.Contains(string(reply), "authentication_error") {
			t.Errorf("%v: status %d, want %d: %s", test.header, status, test.status, reply)
		}
	}
	for _, path := range []string{"/solve", "/v1/models", "/solve/x", "/solve/x/events", "/metrics"} {
		if status, _ := b.call("GET", path, ""); status != 401 {
			t.Errorf("%s without a key: status %d", path, status)
		}
	}
	for _, path := range []string{"/healthz", "/readyz", "/health", "/docs", "/openapi.yaml"} {
		if status, _ := b.call("GET", path, ""); status != 200 {
			t.Errorf("%s without a key: status %d", path, status)
		}
	}
	for key, want := range map[string]int{alice: 403, root: 200} {
		if status, reply := b.call("GET", "/metrics", "", "X-API-Key", key); status != want {
			t.Errorf("/metrics with %s: status %d, %.100s", key, status, reply)
		}
	}
	if strings.Contains(b.log.String(), alice) {
		t.Error("the log shows a key")
	}
}

// TestOwners shows that a run exists for its own key only, not even for an admin's.
func TestOwners(t *testing.T) {
	b := newSite(t, decodetest.Options{}, withKeys)
	b.key = alice
	id := get[anytime.Reply](b, "POST", "/solve?budget=1", `{"problem": "How many?"}`).ID
	chatID := get[api.ChatCompletion](b, "POST", "/v1/chat/completions", chat(`"budget": 1`)).Id
	for _, other := range []string{bob, root} {
		b.key = other
		for method, paths := range map[string][]string{
			"GET":    {"/solve/" + id, "/solve/" + id + "/events"},
			"POST":   {"/solve/" + id + "/interrupt", "/solve/" + id + "/interrupt?continue=true", "/solve/" + id + "/extend?budget=5"},
			"DELETE": {"/solve/" + id},
		} {
			for _, path := range paths {
				b.refused(404, "run_not_found", method, path, "", "no such run")
			}
		}
		b.refused(404, "run_not_found", "POST", "/v1/chat/completions/control", `{"id": "`+chatID+`", "action": "reasoning_end"}`)
		if list := get[api.RunList](b, "GET", "/solve", ""); len(list.Runs) != 0 {
			t.Errorf("others' runs: %+v", list)
		}
	}
	b.key = alice
	if list := get[api.RunList](b, "GET", "/solve", ""); len(list.Runs) != 2 {
		t.Errorf("own runs: %+v", list)
	}
}

// TestRebinding tries what web pages can send to a server without keys.
func TestRebinding(t *testing.T) {
	b := newSite(t, decodetest.Options{}, func(c *server.Config) {
		c.AllowedHosts = []string{"lab.example"}
		c.AllowedOrigins = []string{"https://page.example"}
	})
	own := strings.TrimPrefix(b.url, "http://")
	port := own[strings.LastIndexByte(own, ':'):]
	for _, test := range []struct {
		header []string
		status int
	}{
		{[]string{"Host", "evil.example"}, 403},
		{[]string{"Host", "evil.example" + port}, 403},
		{[]string{"Host", "localhost.evil.example"}, 403},
		{[]string{"Host", "192.168.0.7"}, 403},
		{[]string{"Host", "127.0.0.1.nip.io"}, 403},
		{[]string{"Origin", "http://evil.example"}, 403},
		{[]string{"Origin", "null"}, 403},
		{[]string{"Origin", "http://localhost:1"}, 403},
		{[]string{"Origin", "https://page.example.evil.example"}, 403},
		{[]string{"Host", "localhost" + port}, 200},
		{[]string{"Host", "LOCALHOST."}, 200},
		{[]string{"Host", "127.0.0.9"}, 200},
		{[]string{"Host", "[::1]" + port}, 200},
		{[]string{"Host", "lab.example"}, 200},
		{[]string{"Origin", b.url}, 200},
		{[]string{"Origin", "https://page.example"}, 200},
		{[]string{"Host", "lab.example", "Origin", "https://lab.example"}, 200},
	} {
		status, reply := b.call("POST", "/solve?budget=1", `{"problem": "How many?"}`, test.header...)
		if status != test.status {
			t.Errorf("%v: status %d, want %d: %s", test.header, status, test.status, reply)
		}
	}
	for _, contentType := range []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "json"} {
		status, reply := b.call("POST", "/solve", `{"problem": "How many?"}`, "Content-Type", contentType)
		b.envelope(status, reply, http.StatusUnsupportedMediaType, "not_json", "application/json")
	}
	if status, _ := b.call("POST", "/solve?budget=1", `{"problem": "How many?"}`, "Content-Type", "application/json; charset=utf-8"); status != 200 {
		t.Errorf("application/json with a parameter: status %d", status)
	}
	resp := b.send("OPTIONS", "/solve", "", "Origin", b.url, "Access-Control-Request-Method", "POST")
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed || resp.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("preflight: status %d, %v", resp.StatusCode, resp.Header)
	}
}

// TestSharing sends what a browser does for a page of an allowed origin, and of others.
func TestSharing(t *testing.T) {
	const page = "https://lab.example"
	b := newSite(t, decodetest.Options{}, withKeys, func(c *server.Config) { c.AllowedOrigins = []string{page} })
	ask := func(path, method, origin string) (status int, header http.Header) {
		resp := b.send("OPTIONS", path, "", "Origin", origin, "Access-Control-Request-Method", method, "Access-Control-Request-Headers", "authorization,content-type")
		_ = resp.Body.Close()
		return resp.StatusCode, resp.Header
	}
	for path, methods := range map[string]string{"/v1/chat/completions": "POST", "/solve": "GET, HEAD, POST", "/solve/x/events": "GET", "/v1/models/org%2Fmodel": "GET, HEAD"} {
		status, h := ask(path, "POST", page)
		if status != http.StatusNoContent || h.Get("Access-Control-Allow-Origin") != page || h.Get("Vary") != "Origin" ||
			h.Get("Access-Control-Allow-Methods") != methods || h.Get("Access-Control-Max-Age") == "" {
			t.Errorf("%s: status %d, %v", path, status, h)
		}
		for _, name := range []string{"Authorization", "Content-Type", "Last-Event-ID", "Budget", "X-API-Key"} {
			if !strings.Contains(h.Get("Access-Control-Allow-Headers"), name) {
				t.Errorf("%s: %s may not be sent", path, name)
			}
		}
	}
	for origin, want := range map[string]int{"https://evil.example": 403, "https://lab.example.evil.example": 403, b.url: 405} {
		if status, h := ask("/solve", "POST", origin); status != want || h.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: status %d, %v", origin, status, h)
		}
	}

	const body = `{"problem": "How many?"}`
	for _, test := range []struct {
		method, path, body, key string
		status                  int
	}{
		{"GET", "/v1/models", "", alice, 200},
		{"GET", "/v1/models", "", "", 401},
		{"GET", "/nowhere", "", alice, 404},
		{"POST", "/solve?budget=soon", body, alice, 400},
		{"POST", "/solve?budget=1&stream=true", body, alice, 200},
	} {
		for origin, shared := range map[string]bool{page: true, b.url: false, "": false} {
			header := []string{"X-API-Key", test.key}
			if origin != "" {
				header = append(header, "Origin", origin)
			}
			resp := b.send(test.method, test.path, test.body, header...)
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			h := resp.Header
			if resp.StatusCode != test.status || (h.Get("Access-Control-Allow-Origin") == page) != shared || h.Get("Vary") != "Origin" ||
				strings.Contains(h.Get("Access-Control-Expose-Headers"), "Retry-After") != shared || (h.Get("Cross-Origin-Resource-Policy") == "cross-origin") != shared {
				t.Errorf("%s %s from %q: status %d, %v", test.method, test.path, origin, resp.StatusCode, h)
			}
		}
	}
}

func TestBodyLimit(t *testing.T) {
	b := newSite(t, decodetest.Options{}, func(c *server.Config) { c.MaxBody = 1000 })
	b.refused(413, "body_too_large", "POST", "/solve", `{"problem": "`+strings.Repeat("x", 1000)+`"}`, "1000 bytes")
	get[anytime.Reply](b, "POST", "/solve?budget=1", `{"problem": "`+strings.Repeat("x", 900)+`"}`)
}

// TestHalfABody sends the beginning of a body and no more.
func TestHalfABody(t *testing.T) {
	b := newSite(t, decodetest.Options{}, func(c *server.Config) { c.Timeout = 50 * time.Millisecond })
	half, _ := io.Pipe()
	r := b.request(context.Background(), "POST", "/solve", "x")
	r.Body = io.NopCloser(io.MultiReader(strings.NewReader(`{"problem": `), half))
	r.ContentLength = 100
	resp, err := b.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	reply, _ := io.ReadAll(resp.Body)
	b.envelope(resp.StatusCode, reply, http.StatusBadRequest, "incomplete_body")
	_ = half.Close()
}

func TestHeaders(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	for _, path := range []string{"/docs", "/healthz", "/solve", "/nowhere"} {
		resp := b.send("GET", path, "")
		_ = resp.Body.Close()
		if resp.Header.Get("X-Content-Type-Options") != "nosniff" || !strings.Contains(resp.Header.Get("Content-Security-Policy"), "default-src 'none'") || resp.Header.Get("X-Frame-Options") != "DENY" {
			t.Errorf("%s: %v", path, resp.Header)
		}
	}
	for sent, kept := range map[string]bool{"my-id_1.2": true, "two words": false, strings.Repeat("x", 65): false, "<script>": false} {
		resp := b.send("GET", "/nowhere", "", "X-Request-Id", sent)
		reply, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		id := resp.Header.Get("X-Request-Id")
		if (id == sent) != kept || id == "" || !strings.Contains(string(reply), `"request_id":"`+id+`"`) {
			t.Errorf("request id %q: header %q, %s", sent, id, reply)
		}
		if !strings.Contains(b.log.String(), "request="+id) {
			t.Errorf("request id %q is not in the log", id)
		}
	}
}

// panicking is a Solver that panics.
type panicking struct{ server.Solver }

func TestPanic(t *testing.T) {
	b := newSite(t, decodetest.Options{}, func(c *server.Config) { c.Solver = panicking{} })
	b.refused(500, "internal_error", "POST", "/solve", `{"problem": "How many?"}`, "log")
	if log := b.log.String(); !strings.Contains(log, "panic") || !strings.Contains(log, "server.go") && !strings.Contains(log, "solve.go") {
		t.Errorf("log %s", log)
	}
	get[api.Health](b, "GET", "/healthz", "")
}

// TestEmptyHost sends no Host at all.
func TestEmptyHost(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	r := httptest.NewRequest("GET", "/healthz", nil)
	r.Host = ""
	w := httptest.NewRecorder()
	b.server.ServeHTTP(w, r)
	if w.Code != http.StatusForbidden {
		t.Errorf("status %d", w.Code)
	}
}
