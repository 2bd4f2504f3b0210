package server_test

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"anytime/api"
	"anytime/internal/anytime"
	"anytime/internal/decode/decodetest"
	"anytime/internal/server"
)

const solveBody = `{"problem": "How many?"}`

// limited gives alice limits; bob has none.
func limited(limits server.Limits) func(*server.Config) {
	return func(c *server.Config) {
		c.Keys = []server.Key{{Name: "alice", Secret: alice, Limits: limits}, {Name: "bob", Secret: bob}}
		c.Loopback = false
	}
}

// refusedFor checks for a 429 with its Retry-After, in whole seconds.
func (b *site) refusedFor(code, method, path, body string) (wait int) {
	b.t.Helper()
	resp := b.send(method, path, body)
	defer resp.Body.Close()
	wait, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if resp.StatusCode != http.StatusTooManyRequests || err != nil || wait < 1 {
		b.t.Errorf("%s %s: status %d, Retry-After %q; want 429 (%s)", method, path, resp.StatusCode, resp.Header.Get("Retry-After"), code)
	}
	return wait
}

func TestRequestLimit(t *testing.T) {
	b := newSite(t, decodetest.Options{}, limited(server.Limits{Requests: server.Rate{N: 3, Per: time.Hour}}))
	b.key = alice
	for i, path := range []string{"/v1/models", "/solve", "/solve/run_none"} {
		resp := b.send("GET", path, "")
		_ = resp.Body.Close()
		h := resp.Header
		if resp.StatusCode == 429 || h.Get("x-ratelimit-limit-requests") != "3" || h.Get("x-ratelimit-remaining-requests") != strconv.Itoa(2-i) {
			t.Errorf("request %d: status %d, %v", i, resp.StatusCode, h)
		}
		reset, err := time.ParseDuration(h.Get("x-ratelimit-reset-requests"))
		if want := time.Duration(i+1) * 20 * time.Minute; err != nil || reset > want || reset < want-time.Minute {
			t.Errorf("request %d: whole again in %v, want %v; %v", i, reset, want, err)
		}
	}
	if wait := b.refusedFor("request_limit", "POST", "/solve?budget=1", solveBody); wait < 19*60 || wait > 20*60 {
		t.Errorf("Retry-After %d", wait)
	}
	b.refused(429, "request_limit", "GET", "/v1/models", "", "3 requests", "1h0m0s", "try again in")
	b.refused(404, "run_not_found", "POST", "/solve/run_none/interrupt", "") // what ends runs is never refused
	b.refused(404, "run_not_found", "DELETE", "/solve/run_none", "")
	get[map[string]any](b, "GET", "/healthz", "")
	b.key = bob
	for range 5 {
		get[map[string]any](b, "GET", "/v1/models", "")
	}
}

func TestRunLimit(t *testing.T) {
	b := newSite(t, decodetest.Options{}, limited(server.Limits{Runs: 2}))
	b.key = alice
	first, stop := b.running("budget=max")
	defer stop()
	_, stopSecond := b.running("budget=max")
	b.refusedFor("run_limit", "POST", "/solve?budget=1", solveBody)
	b.refused(429, "run_limit", "POST", "/v1/chat/completions", chat(`"budget": 1`), "2 runs at once")
	b.key = bob
	get[anytime.Reply](b, "POST", "/solve?budget=1", solveBody)
	b.key = alice
	// A run that is interrupted, and one whose client leaves, give back their places before anyone can know that they ended.
	get[anytime.Reply](b, "POST", "/solve/"+first+"/interrupt", "")
	get[anytime.Reply](b, "POST", "/solve/"+first+"/extend?budget=3", "")
	get[anytime.Reply](b, "POST", "/solve?budget=1", solveBody)
	b.refusedFor("run_limit", "POST", "/v1/chat/completions", chat(`"budget": 1, "n": 2`))
	stopSecond()
	for {
		if status, _ := b.call("POST", "/v1/chat/completions", chat(`"budget": 1, "n": 2`)); status == http.StatusOK {
			break
		}
	}
	b.refused(404, "model_not_found", "POST", "/solve", `{"problem": "x", "model": "none"}`) // what does not start holds nothing
	get[anytime.Reply](b, "POST", "/v1/chat/completions", chat(`"budget": 1, "n": 2`))
}

func TestThinkingLimit(t *testing.T) {
	b := newSite(t, decodetest.Options{}, limited(server.Limits{Thinking: server.Rate{N: 100, Per: time.Hour}}))
	b.key = alice
	for used := 0; used < 300; { // 150 tokens, from an allowance of 100: one run goes beyond, and the next must wait
		resp := b.send("POST", "/solve?budget=150", solveBody)
		_ = resp.Body.Close()
		if used += 150; used == 300 {
			wait, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
			if want := 51 * 36; resp.StatusCode != 429 || wait > want || wait < want-10 { // 51 tokens at 100 in an hour
				t.Errorf("status %d, Retry-After %d, want %d", resp.StatusCode, wait, want)
			}
		} else if resp.StatusCode != 200 || resp.Header.Get("x-ratelimit-limit-tokens") != "100" || resp.Header.Get("x-ratelimit-remaining-tokens") != "99" {
			t.Errorf("status %d, %v", resp.StatusCode, resp.Header)
		}
	}
	b.refused(429, "thinking_limit", "POST", "/v1/chat/completions", chat(`"budget": 1`), "100 thinking tokens in 1h0m0s")
}

// A client that leaves pays for what was thought.
func TestThinkingOfThoseWhoLeave(t *testing.T) {
	const allowed, thought = 1000, 50
	b := newSite(t, decodetest.Options{}, limited(server.Limits{Thinking: server.Rate{N: allowed, Per: 24 * time.Hour}}))
	b.key = alice
	id, stop := b.running("budget=max")
	for get[api.RunStatus](b, "GET", "/solve/"+id, "").ThinkingTokens == nil || *get[api.RunStatus](b, "GET", "/solve/"+id, "").ThinkingTokens < thought {
	}
	stop()
	for n := 2; ; n++ { // each of these takes one
		resp := b.send("POST", "/solve?budget=0", solveBody)
		_ = resp.Body.Close()
		left, err := strconv.Atoi(resp.Header.Get("x-ratelimit-remaining-tokens"))
		if err != nil || n == allowed/2 {
			t.Fatalf("status %d, %q left after %d requests and %d tokens of thinking", resp.StatusCode, resp.Header.Get("x-ratelimit-remaining-tokens"), n, thought)
		}
		if left <= allowed-n-thought+1 {
			break
		}
	}
}

// lost is a Quota that cannot be reached.
type lost struct{ server.Quota }

var errLost = errors.New("nobody there")

func (lost) Take(context.Context, string, server.Rate, int) (server.Allowance, error) {
	return server.Allowance{}, errLost
}
func (lost) Charge(context.Context, string, server.Rate, int) error        { return errLost }
func (lost) Hold(context.Context, string, int) (release func(), err error) { return nil, errLost }

func TestQuotaAway(t *testing.T) {
	all := server.Rate{N: 1, Per: time.Hour}
	b := newSite(t, decodetest.Options{}, limited(server.Limits{Runs: 1, Requests: all, Thinking: all}), func(c *server.Config) { c.Quota = lost{} })
	b.key = alice
	for range 3 {
		get[anytime.Reply](b, "POST", "/solve?budget=5", solveBody)
	}
	if log := b.log.String(); !strings.Contains(log, "cannot be counted") || !strings.Contains(log, errLost.Error()) {
		t.Errorf("log %s", log)
	}
}

// TestCounts holds the counting of this process to Quota's contract, on a clock of its own.
func TestCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, q := context.Background(), server.NewCounts()
		minute := server.Rate{N: 60, Per: time.Minute}
		take := func(n int, taken bool, left int, wait time.Duration) {
			t.Helper()
			a, err := q.Take(ctx, "a", minute, n)
			if err != nil || a.Taken != taken || a.Left != left || a.Wait.Round(time.Millisecond) != wait {
				t.Errorf("take %d: %+v, %v; want %v, %d left, wait %v", n, a, err, taken, left, wait)
			}
		}
		take(60, true, 0, 0)
		take(1, false, 0, time.Second)
		time.Sleep(10 * time.Second)
		take(4, true, 6, 0)
		if err := q.Charge(ctx, "a", minute, 150); err != nil {
			t.Fatal(err)
		}
		take(1, false, 0, 145*time.Second)
		time.Sleep(145 * time.Second)
		take(1, true, 0, 0)
		time.Sleep(time.Hour)
		take(61, false, 60, time.Second) // more than there ever are
		take(60, true, 0, 0)
		var releases []func()
		for i := range 4 {
			release, err := q.Hold(ctx, "a", 3)
			if err != nil || (release == nil) != (i == 3) {
				t.Errorf("hold %d: %v, %v", i, release != nil, err)
			}
			releases = append(releases, release)
		}
		releases[1]()
		if release, _ := q.Hold(ctx, "b", 3); release == nil {
			t.Error("another name's places are taken")
		}
		if release, _ := q.Hold(ctx, "a", 3); release == nil {
			t.Error("a place was not given back")
		}
	})
}
