package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"anytime/api"
	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/decode/decodetest"
	"anytime/internal/server"
	"anytime/internal/server/sse"
	"anytime/internal/store"
)

// slow is an engine on which a thought lasts for seconds, so that something can be done to it.
var slow = decodetest.Options{Step: 20 * time.Millisecond}

func TestSolve(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	for _, test := range []struct {
		query, body string
		cause       budget.Cause
		thinking    int
	}{
		{"?budget=32", `{"problem": "How many?"}`, budget.CauseTokens, 32},
		{"", `{"problem": "How many?", "budget": "32"}`, budget.CauseTokens, 32},
		{"", `{"problem": "How many?", "budget": 32}`, budget.CauseTokens, 32},
		{"?budget=32", `{"problem": "How many?", "budget": 32}`, budget.CauseTokens, 32},
		{"?budget=0", `{"problem": "How many?"}`, budget.CauseTokens, 0},
		{"?budget=32,1m", `{"problem": "How many?"}`, budget.CauseTokens, 32},
		{"?budget=max", `{"problem": "How many?"}`, budget.CauseNatural, thoughtLength},
		{"", `{"messages": [{"role": "system", "content": "Count."}, {"role": "user", "content": [{"type": "text", "text": "How "}, {"type": "text", "text": "many?"}]}], "budget": 8}`, budget.CauseTokens, 8},
		{"", `{"problem": "How many?", "budget": 8, "model": null, "seed": -3, "temperature": 0, "top_k": -1, "stop": "nothing", "votes": 2}`, budget.CauseTokens, 8},
		{"", `{"problem": "How many?", "budget": 8.0}`, budget.CauseTokens, 8},
	} {
		reply := get[anytime.Reply](b, "POST", "/solve"+test.query, test.body)
		if reply.Stop.Cause != test.cause || reply.Usage.ThinkingTokens != test.thinking || reply.Answer == nil || *reply.Answer != fmt.Sprint(test.thinking) {
			t.Errorf("%s %s: %+v", test.query, test.body, reply)
		}
		if reply.Thinking != "" {
			t.Errorf("%s %s: the thinking was not asked for", test.query, test.body)
		}
	}
	if reply := get[anytime.Reply](b, "POST", "/solve?budget=8&thinking=true", `{"problem": "How many?"}`); strings.Count(reply.Thinking, "step") != 8 {
		t.Errorf("thinking %q", reply.Thinking)
	}
}

func TestDeadline(t *testing.T) {
	b := newSite(t, slow)
	reply := get[anytime.Reply](b, "POST", "/solve?budget=2s", `{"problem": "How many?"}`)
	if reply.Stop.Cause != budget.CauseDeadline || reply.Answer == nil {
		t.Errorf("%+v", reply)
	}
	chatted := get[api.ChatCompletion](b, "POST", "/v1/chat/completions", chat(`"budget": "2s"`))
	if chatted.Budget.Cause != api.Deadline || *chatted.Choices[0].Message.Content == "" {
		t.Errorf("chat: %+v", chatted.Budget)
	}
}

func TestSolveRefuses(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	const ok = `{"problem": "How many?"}`
	for _, test := range []struct {
		query, body, code string
		words             []string
	}{
		{"?budget=soon", ok, "invalid_value", []string{`"soon"`, "750ms", "max"}},
		{"?budget=-5", ok, "invalid_value", []string{"negative"}},
		{"?bugdet=5", ok, "unknown_parameter", []string{"bugdet", "budget, checkpoints"}},
		{"?budget=5&budget=6", ok, "invalid_value", []string{"budget", "2 times"}},
		{"?budget=5", `{"problem": "x", "budget": "6"}`, "conflict", []string{`"5"`, `"6"`}},
		{"?stream=maybe", ok, "invalid_value", []string{"stream", "boolean"}},
		{"?every=0", ok, "invalid_value", []string{"every", "at least 8"}},
		{"?every=2", ok, "invalid_value", []string{"every", "at least 8"}},
		{"", `{"problem": "x", "every": 7}`, "invalid_value", []string{"every", "at least 8"}},
		{"?checkpoints=5,3", ok, "invalid_value", []string{"ascending"}},
		{"?early_stop=never", ok, "invalid_value", []string{"converge"}},
		{"?on_disconnect=cry", ok, "invalid_value", []string{"on_disconnect", "continue"}},
		{"?votes=1000", ok, "invalid_value", []string{"votes", "16"}},
		{"?%zz", ok, "invalid_value", []string{"query"}},
		{"", ``, "invalid_value", []string{"missing"}},
		{"", `{"problem": `, "invalid_value", []string{"too early"}},
		{"", `{"problem": "x"} {}`, "invalid_value", []string{"follows"}},
		{"", `{"problem": "x", "problem": "y"}`, "invalid_value", []string{"twice"}},
		{"", `{"problem": "x", "temperature": 1e400}`, "invalid_value", []string{"1e400", "too large"}},
		{"", `{"problem": "` + "\xff" + `"}`, "invalid_value", []string{"UTF-8"}},
		{"", strings.Repeat("[", 100), "invalid_value", []string{"32 levels"}},
		{"", `{"problem": "x", "stop": [` + strings.Repeat("1,", 1<<16) + `1]}`, "invalid_value", []string{"65536 values"}},
		{"", `"What is 1+1?"`, "invalid_value", []string{"object"}},
		{"", `{}`, "invalid_value", []string{"problem or messages"}},
		{"", `{"problem": "x", "messages": [{"role": "user", "content": "y"}]}`, "invalid_value", []string{"problem or messages"}},
		{"", `{"problem": ""}`, "invalid_value", []string{"problem"}},
		{"", `{"problem": 5}`, "invalid_value", []string{"problem", "string"}},
		{"", `{"problem": "x", "bugdet": 5}`, "unknown_parameter", []string{"bugdet", "budget"}},
		{"", `{"problem": "x", "budget": true}`, "invalid_value", []string{"budget", "string or integer"}},
		{"", `{"problem": "x", "budget": 1.5}`, "invalid_value", []string{"budget", "integer"}},
		{"", `{"problem": "x", "temperature": 9}`, "invalid_value", []string{"temperature", "2"}},
		{"", `{"problem": "x", "seed": 99999999999999999999}`, "invalid_value", []string{"seed"}},
		{"", `{"problem": "x", "stop": [""]}`, "invalid_value", []string{"stop[0]", "1"}},
		{"", `{"problem": "x", "logit_bias": {"a": 1}}`, "invalid_value", []string{"logit_bias", `"a"`}},
		{"", `{"problem": "x", "grammar": "` + strings.Repeat("g", 70000) + `"}`, "invalid_value", []string{"grammar", "65536"}},
		{"", `{"messages": [{"role": "king", "content": "x"}]}`, "invalid_value", []string{"messages[0].role", "assistant"}},
		{"", `{"messages": [{"role": "user"}]}`, "invalid_value", []string{"messages[0].content"}},
		{"", `{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}`, "invalid_value", []string{"messages[0].content[0].type", "text only"}},
	} {
		b.refused(400, test.code, "POST", "/solve"+test.query, test.body, test.words...)
	}
	b.refused(404, "model_not_found", "POST", "/solve?model=other", ok, "no such model")
	b.refused(404, "not_found", "GET", "/nowhere", "", "/docs")
	b.refused(405, "method_not_allowed", "PUT", "/solve", ok, "PUT")
}

func TestSolveStream(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	const body = `{"problem": "How many?"}`
	for _, test := range []struct {
		path   string
		header []string
	}{
		{"/solve?budget=64&every=16&stream=true", nil},
		{"/solve?budget=64&every=16", []string{"Accept", "text/event-stream"}},
	} {
		events := b.events("POST", test.path, body, test.header...)
		var kinds []string
		thinking := ""
		for i, e := range events {
			if e.ID != fmt.Sprint(i+1) {
				t.Errorf("event %d has id %q", i+1, e.ID)
			}
			if len(kinds) == 0 || kinds[len(kinds)-1] != e.Type {
				kinds = append(kinds, e.Type)
			}
			if e.Type == anytime.EventThinking {
				var text anytime.TextData
				if err := json.Unmarshal(e.Data, &text); err != nil {
					t.Fatal(err)
				}
				thinking += text.Text
			}
		}
		if kinds[0] != anytime.EventRun || kinds[len(kinds)-1] != anytime.EventDone || !slices.Contains(kinds, anytime.EventAnswer) || !slices.Contains(kinds, anytime.EventCheckpoint) {
			t.Errorf("events %v", kinds)
		}
		if n := strings.Count(thinking, " step"); n != 64 {
			t.Errorf("%d thinking tokens were streamed", n)
		}
		if last := events[len(events)-1]; strings.Contains(string(last.Data), `"thinking":"`) {
			t.Errorf("the thinking was not asked for: %s", last.Data)
		}
	}
}

// TestEventsResume reads a run from behind every one of its events.
func TestEventsResume(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	all := b.events("POST", "/solve?budget=40&every=16&stream=true", `{"problem": "How many?"}`)
	id := runID(t, all)
	for after := range all {
		for _, events := range [][]sse.Event{
			b.events("GET", fmt.Sprintf("/solve/%s/events?after=%d", id, after), ""),
			b.events("GET", fmt.Sprintf("/solve/%s/events", id), "", "Last-Event-ID", fmt.Sprint(after)),
		} {
			if !reflect.DeepEqual(events, all[after:]) {
				t.Errorf("behind %d: %v, want %v", after, events, all[after:])
			}
		}
	}
	if rest := b.events("GET", fmt.Sprintf("/solve/%s/events?after=%d", id, len(all)), ""); len(rest) != 0 {
		t.Errorf("behind the last: %v", rest)
	}
	for _, last := range []int{len(all), len(all) + 5} { // an EventSource that asks again
		if status, reply := b.call("GET", "/solve/"+id+"/events", "", "Last-Event-ID", fmt.Sprint(last)); status != http.StatusNoContent || len(reply) > 0 {
			t.Errorf("behind %d of %d: status %d, %s", last, len(all), status, reply)
		}
	}
	b.refused(400, "invalid_value", "GET", "/solve/"+id+"/events?after=x", "", "after", "integer")
	b.refused(404, "run_not_found", "GET", "/solve/nobody/events", "")
}

// TestWantsStream holds a parameter to win over Accept.
func TestWantsStream(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	const events, plain = "text/event-stream", "application/json"
	for _, test := range []struct{ query, body, accept, want string }{
		{"", "", events, events},
		{"", "", "text/html, text/event-stream;q=0.5", events},
		{"", "", "text/event-stream;q=0", plain},
		{"", "", "*/*", plain},
		{"&stream=false", "", events, plain},
		{"", `, "stream": false`, events, plain},
		{"&stream=true", "", plain, events},
		{"", `, "stream": true`, plain, events},
	} {
		resp := b.send("POST", "/solve?budget=1"+test.query, `{"problem": "How many?"`+test.body+`}`, "Accept", test.accept)
		_ = resp.Body.Close()
		if got := resp.Header.Get("Content-Type"); got != test.want {
			t.Errorf("%+v: %s", test, got)
		}
	}
	id := get[anytime.Reply](b, "POST", "/solve?budget=1", `{"problem": "How many?"}`).ID
	get[anytime.Reply](b, "POST", "/solve/"+id+"/extend?budget=1&stream=false", "", "Accept", events)
}

// TestThinkingLeftOut streams without the thinking, and resumes.
func TestThinkingLeftOut(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	all := b.events("POST", "/solve?budget=40&every=16&stream=true&thinking=false", `{"problem": "How many?"}`)
	id := runID(t, all)
	whole := b.events("GET", "/solve/"+id+"/events", "")
	want := slices.DeleteFunc(slices.Clone(whole), func(e sse.Event) bool { return e.Type == anytime.EventThinking })
	if len(want) == len(whole) || !reflect.DeepEqual(all, want) {
		t.Errorf("%v, want %v", all, want)
	}
	for i, e := range all[:len(all)-1] {
		if rest := b.events("GET", "/solve/"+id+"/events?thinking=false", "", "Last-Event-ID", e.ID); !reflect.DeepEqual(rest, all[i+1:]) {
			t.Errorf("behind %s: %v", e.ID, rest)
		}
	}
}

// TestThinkingLeftOutPings keeps a stream open from which all that happens is left out.
func TestThinkingLeftOutPings(t *testing.T) {
	b := newSite(t, decodetest.Options{}, func(c *server.Config) { c.Ping = 20 * time.Millisecond })
	_, stream := b.call("POST", "/solve?stream=true&thinking=false", `{"problem": "How many?"}`)
	if !strings.Contains(string(stream), ": ping\n\n") || strings.Contains(string(stream), "event: thinking") {
		t.Errorf("%s", stream)
	}
}

// TestSolveBudgetHeader holds the Budget header to count as it does in /v1.
func TestSolveBudgetHeader(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	const body = `{"problem": "How many?"}`
	for _, test := range []struct {
		query, body, header string
		thinking            int
	}{
		{"", body, "8", 8},
		{"?budget=8", body, "8", 8},
		{"?budget=8", body, "1m", 8},
		{"", `{"problem": "How many?", "budget": -1}`, "-1", thoughtLength},
		{"?budget=-1", body, "", thoughtLength},
		{"", `{"problem": "How many?", "budget": "-1"}`, "", thoughtLength},
		{"?budget=max,1m", body, "", thoughtLength},
	} {
		reply := get[anytime.Reply](b, "POST", "/solve"+test.query, test.body, "Budget", test.header)
		if reply.Usage.ThinkingTokens != test.thinking {
			t.Errorf("%+v: %d thinking tokens", test, reply.Usage.ThinkingTokens)
		}
	}
	status, reply := b.call("POST", "/solve?budget=8", body, "Budget", "9")
	b.envelope(status, reply, 400, "conflict", "budget (8)", "the Budget header (9)")
	status, reply = b.call("POST", "/solve", body, "Budget", "soon")
	b.envelope(status, reply, 400, "invalid_value", `"soon"`)
}

// TestProblemErrors holds errors to name the field that was sent.
func TestProblemErrors(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	for _, test := range []struct{ body, code, param string }{
		{`{"problem": "a\u0000b"}`, "invalid_value", "problem"},
		{`{"messages": [{"role": "user", "content": "a\u0000b"}]}`, "invalid_value", "messages[0].content"},
		{`{"problem": "` + strings.Repeat("a ", 1<<17) + `"}`, "context_length_exceeded", "problem"},
		{`{"messages": [{"role": "user", "content": "` + strings.Repeat("a ", 1<<17) + `"}]}`, "context_length_exceeded", "messages"},
		{`{"problem": "x", "model": "other"}`, "model_not_found", "model"},
		{`{"problem": "x", "every": 1}`, "invalid_value", "every"},
	} {
		var e api.Error
		_, reply := b.call("POST", "/solve", test.body)
		if err := json.Unmarshal(reply, &e); err != nil || *e.Error.Code != test.code || *e.Error.Param != test.param || test.param == "problem" && strings.Contains(e.Error.Message, "messages") {
			t.Errorf("%.80s: %s", test.body, reply)
		}
	}
}

func runID(t *testing.T, events []sse.Event) string {
	t.Helper()
	var run anytime.RunData
	if err := json.Unmarshal(events[0].Data, &run); err != nil {
		t.Fatal(err)
	}
	return run.ID
}

func TestInterruptAndExtend(t *testing.T) {
	b := newSite(t, slow)
	id, stop := b.running("budget=max")
	defer stop()

	status := get[api.RunStatus](b, "GET", "/solve/"+id, "")
	if status.State != api.Running || status.Thinking != nil || status.LastEvent == 0 {
		t.Errorf("while it runs: %+v", status)
	}
	if status := get[api.RunStatus](b, "GET", "/solve/"+id+"?thinking=true", ""); status.Thinking == nil || !strings.Contains(*status.Thinking, "step") {
		t.Errorf("while it runs: %+v", status)
	}
	b.refused(409, "run_running", "POST", "/solve/"+id+"/extend?budget=5", "")

	peek := get[anytime.Checkpoint](b, "POST", "/solve/"+id+"/interrupt?continue=true", "")
	if peek.Answer != fmt.Sprint(peek.Tokens) || peek.Tokens == 0 {
		t.Errorf("peek: %+v", peek)
	}
	if status := get[api.RunStatus](b, "GET", "/solve/"+id, ""); status.State != api.Running || status.Answer == nil || *status.Answer != peek.Answer {
		t.Errorf("after the peek: %+v", status)
	}

	cut := get[anytime.Reply](b, "POST", "/solve/"+id+"/interrupt", "")
	if cut.Stop.Cause != budget.CauseInterrupt || *cut.Answer != fmt.Sprint(cut.Usage.ThinkingTokens) || cut.Usage.ThinkingTokens < peek.Tokens {
		t.Errorf("interrupted: %+v", cut)
	}
	if again := get[anytime.Reply](b, "POST", "/solve/"+id+"/interrupt", "{}"); !reflect.DeepEqual(again, cut) {
		t.Errorf("interrupted when it had ended: %+v", again)
	}
	b.refused(409, "run_not_running", "POST", "/solve/"+id+"/interrupt?continue=true", "")
	b.refused(400, "invalid_value", "POST", "/solve/"+id+"/interrupt", `{"continue": true}`, "no body", "query")

	last := get[api.RunStatus](b, "GET", "/solve/"+id, "").LastEvent
	longer := get[anytime.Reply](b, "POST", "/solve/"+id+"/extend?budget=%2B5", "")
	if n := cut.Usage.ThinkingTokens + 5; longer.Usage.ThinkingTokens != n || *longer.Answer != fmt.Sprint(n) || longer.Checkpoints[len(longer.Checkpoints)-1].Answer != *cut.Answer {
		t.Errorf("extended: %+v", longer)
	}
	events := b.events("POST", "/solve/"+id+"/extend?budget=+3&stream=true", "")
	if events[0].Type != anytime.EventRun || events[len(events)-1].Type != anytime.EventDone || events[0].ID <= fmt.Sprint(last) {
		t.Errorf("extension's events: %v", events)
	}
	b.refused(400, "invalid_value", "POST", "/solve/"+id+"/extend?budget=0", "", "adds nothing")
	b.refused(400, "invalid_value", "POST", "/solve/"+id+"/extend?budget=", "", "empty")
	b.refused(400, "invalid_value", "POST", "/solve/"+id+"/extend", "", "budget", "missing")

	status = get[api.RunStatus](b, "GET", "/solve/"+id+"?thinking=true", "")
	if status.State != api.Finished || status.ThinkingTokens == nil || *status.ThinkingTokens != cut.Usage.ThinkingTokens+8 || strings.Count(*status.Thinking, " step") != *status.ThinkingTokens {
		t.Errorf("in the end: %+v", status)
	}
}

func TestListAndDelete(t *testing.T) {
	b := newSite(t, slow)
	done := get[anytime.Reply](b, "POST", "/solve?budget=2", `{"problem": "How many?"}`).ID
	running, stop := b.running("budget=max")
	defer stop()
	ids := func(query string) (ids []string) {
		for _, r := range get[api.RunList](b, "GET", "/solve"+query, "").Runs {
			ids = append(ids, r.Id)
		}
		return ids
	}
	if got := ids(""); !slices.Equal(got, []string{running, done}) {
		t.Errorf("all: %v", got)
	}
	long := get[anytime.Reply](b, "POST", "/solve?budget=2", fmt.Sprintf(`{"problem": "%s"}`, strings.Repeat("é", 300))).ID
	runs := get[api.RunList](b, "GET", "/solve", "").Runs
	if len(runs) != 3 || runs[0].Problem != strings.Repeat("é", 200)+"…" || runs[2].Problem != "How many?" || runs[2].Answer == nil {
		t.Errorf("what was asked and answered: %+v", runs)
	}
	if status, reply := b.call("DELETE", "/solve/"+long, ""); status != http.StatusNoContent {
		t.Errorf("delete: status %d, %s", status, reply)
	}
	if got := ids("?state=running"); !slices.Equal(got, []string{running}) {
		t.Errorf("running: %v", got)
	}
	if got := ids("?limit=1"); !slices.Equal(got, []string{running}) {
		t.Errorf("one: %v", got)
	}
	if got := ids("?before=2020-01-01T00:00:00Z"); got != nil {
		t.Errorf("before: %v", got)
	}
	b.refused(400, "invalid_value", "GET", "/solve?before=yesterday", "", "before")
	b.refused(400, "invalid_value", "GET", "/solve?state=lost", "", "finished")
	for _, id := range []string{done, running} {
		if status, reply := b.call("DELETE", "/solve/"+id, ""); status != http.StatusNoContent || len(reply) > 0 {
			t.Errorf("delete: status %d, %s", status, reply)
		}
		b.refused(404, "run_not_found", "GET", "/solve/"+id, "")
		b.refused(404, "run_not_found", "DELETE", "/solve/"+id, "")
	}
	if n := b.solver.Live(); n != 0 {
		t.Errorf("%d runs are under way", n)
	}
}

// TestClientLeaves goes away from a stream and from a reply: the run does what it was told to.
func TestClientLeaves(t *testing.T) {
	for _, test := range []struct {
		on    string
		state store.State
	}{{"cancel", store.Failed}, {"answer", store.Finished}} {
		b := newSite(t, slow)
		id, leave := b.running("on_disconnect=" + test.on)
		leave()
		run := ended(t, b, id)
		if run.State != test.state {
			t.Errorf("stream, %s: %s", test.on, run.State)
		}

		ctx, cancel := context.WithCancel(context.Background())
		gone := make(chan error, 1)
		go func() {
			resp, err := b.client.Do(b.request(ctx, "POST", "/solve?on_disconnect="+test.on, `{"problem": "How many?"}`))
			if err == nil {
				_ = resp.Body.Close()
			}
			gone <- err
		}()
		id = started(t, b)
		cancel()
		if err := <-gone; err == nil {
			t.Error("the request was answered")
		}
		if run := ended(t, b, id); run.State != test.state {
			t.Errorf("reply, %s: %s", test.on, run.State)
		}
	}
	b := newSite(t, slow)
	id, leave := b.running("on_disconnect=continue")
	leave()
	reader, stop := context.WithCancel(context.Background())
	resp, err := b.client.Do(b.request(reader, "GET", "/solve/"+id+"/events", ""))
	if err != nil {
		t.Fatal(err)
	}
	stop() // who reads along may leave
	_ = resp.Body.Close()
	if cut := get[anytime.Reply](b, "POST", "/solve/"+id+"/interrupt", ""); cut.Stop.Cause != budget.CauseInterrupt {
		t.Errorf("continue: %+v", cut.Stop)
	}
}

// ended waits for a run's end.
func ended(t *testing.T, b *site, id string) store.Run {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, err := range store.Follow(ctx, b.store, id, 0) {
		if err != nil {
			t.Fatal(err)
		}
	}
	run, err := b.store.Get(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	return run
}

// started waits until a run is under way, and returns its id.
func started(t *testing.T, b *site) string {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		runs, err := b.store.List(context.Background(), store.Filter{State: store.Running})
		if err != nil {
			t.Fatal(err)
		}
		if len(runs) == 1 {
			return runs[0].ID
		}
	}
	t.Fatal("no run was started")
	return ""
}

func TestFailedRun(t *testing.T) {
	b := newSite(t, slow)
	id, stop := b.running("")
	defer stop()
	if err := b.solver.Cancel(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	if status := get[api.RunStatus](b, "GET", "/solve/"+id, ""); status.State != api.Failed || status.Error == nil || status.Error.Code != "cancelled" {
		t.Errorf("%+v", status)
	}
	b.refused(409, "run_cancelled", "POST", "/solve/"+id+"/interrupt", "")
	events := b.events("GET", "/solve/"+id+"/events", "")
	if last := events[len(events)-1]; last.Type != anytime.EventError || !strings.Contains(string(last.Data), `"cancelled"`) {
		t.Errorf("last event %v", last)
	}
}

// TestPings keeps a silent stream open.
func TestPings(t *testing.T) {
	stall := make(chan struct{})
	b := newSite(t, decodetest.Options{OnToken: func(string) error { <-stall; return nil }}, func(c *server.Config) { c.Ping = time.Millisecond })
	resp := b.send("POST", "/solve?stream=true&budget=2", `{"problem": "How many?"}`)
	defer resp.Body.Close()
	var got strings.Builder
	for buf := make([]byte, 64); !strings.Contains(got.String(), ": ping\n\n"); {
		n, err := resp.Body.Read(buf)
		got.Write(buf[:n])
		if err != nil {
			t.Fatal(err)
		}
	}
	close(stall)
	for _, err := range sse.Read(resp.Body) {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestBusy(t *testing.T) {
	b := newSite(t, slow)
	for range 8 {
		_, stop := b.running("")
		defer stop()
	}
	resp := b.send("POST", "/solve", `{"problem": "How many?"}`)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" {
		t.Errorf("status %d, Retry-After %q", resp.StatusCode, resp.Header.Get("Retry-After"))
	}
}
