package server_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"anytime/api"
	"anytime/internal/anytime"
	"anytime/internal/decode/decodetest"
	"anytime/internal/server"
)

// refusing is a solver that refuses everything, and keeps what it was asked.
type refusing struct {
	server.Solver
	err   error
	asked anytime.Request
}

func (r *refusing) Start(_ context.Context, req anytime.Request) (string, error) {
	r.asked = req
	return "", r.err
}

func TestRefusedForLoad(t *testing.T) {
	solver := &refusing{}
	b := newSite(t, decodetest.Options{}, func(c *server.Config) { c.Solver = solver })
	for _, test := range []struct {
		err      error
		code     string
		retry    string
		shortest int
	}{
		{&anytime.DeadlineError{Deadline: time.Second, Shortest: 2340 * time.Millisecond, Retry: 1500 * time.Millisecond}, "deadline_too_short", "2", 2340},
		{&anytime.DeadlineError{Deadline: time.Second, Retry: time.Second}, "deadline_too_short", "1", 0},
		{&anytime.OverloadError{Retry: 7 * time.Second}, "overloaded", "7", 0},
		{anytime.ErrBusy, "busy", "1", 0},
	} {
		solver.err = test.err
		for _, path := range []string{"/solve", "/v1/chat/completions"} {
			body := `{"problem": "How many?", "budget": "1s"}`
			if path != "/solve" {
				body = `{"model": "default", "messages": [{"role": "user", "content": "How many?"}], "budget": "1s"}`
			}
			resp := b.send("POST", path, body)
			var e api.Error
			err := json.NewDecoder(resp.Body).Decode(&e)
			resp.Body.Close()
			if err != nil || resp.StatusCode != 429 || resp.Header.Get("Retry-After") != test.retry || e.Error.Code == nil || *e.Error.Code != test.code {
				t.Errorf("%s: %v: status %d, Retry-After %q, %+v, %v", path, test.err, resp.StatusCode, resp.Header.Get("Retry-After"), e.Error, err)
			}
			shortest := 0
			if p := e.Error.ShortestDeadlineMs; p != nil {
				shortest = *p
			}
			if shortest != test.shortest {
				t.Errorf("%s: %v: shortest %d ms, want %d", path, test.err, shortest, test.shortest)
			}
		}
	}
}

func TestPriority(t *testing.T) {
	solver := &refusing{err: anytime.ErrBusy}
	b := newSite(t, decodetest.Options{}, func(c *server.Config) {
		c.Solver = solver
		c.Keys = []server.Key{{Name: "alice", Secret: alice, Priority: 8}, {Name: "bob", Secret: bob}}
		c.Loopback = false
	})
	for _, test := range []struct {
		key, asked string
		want       int // 0: refused
	}{
		{alice, "", 8}, {alice, `, "priority": 8`, 8}, {alice, `, "priority": 1`, 1}, {alice, `, "priority": 9`, 0},
		{bob, "", anytime.DefaultPriority}, {bob, `, "priority": 2`, 2}, {bob, `, "priority": 6`, 0},
		{bob, `, "priority": 0`, 0}, {bob, `, "priority": 11`, 0}, {bob, `, "priority": "high"`, 0},
	} {
		b.key = test.key
		for path, body := range map[string]string{
			"/solve":               `{"problem": "How many?"` + test.asked + "}",
			"/v1/chat/completions": `{"model": "default", "messages": [{"role": "user", "content": "How many?"}]` + test.asked + "}",
		} {
			solver.asked = anytime.Request{}
			status, reply := b.call("POST", path, body)
			if test.want > 0 && (status != 429 || solver.asked.Priority != test.want) {
				t.Errorf("%s %s: status %d, priority %d, want %d: %s", path, test.asked, status, solver.asked.Priority, test.want, reply)
			}
			if test.want == 0 && (status != 400 || !strings.Contains(string(reply), "priority")) {
				t.Errorf("%s %s: status %d: %s", path, test.asked, status, reply)
			}
		}
	}
}
