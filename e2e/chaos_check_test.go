package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"anytime/internal/anytime"
	"anytime/internal/budget"
)

// ledger is what clients saw, to be compared with what is kept.
type ledger struct {
	mu      sync.Mutex
	counts  map[string]int
	replies []anytime.Reply
	streams []*followed
	chats   []chatted
	gone    map[string]bool // runs that were deleted
}

func (l *ledger) add(what string, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.counts == nil {
		l.counts, l.gone = map[string]int{}, map[string]bool{}
	}
	l.counts[what] += n
}

func (l *ledger) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts[what]
}

func (l *ledger) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []string
	for _, what := range slices.Sorted(maps.Keys(l.counts)) {
		list = append(list, fmt.Sprintf("%d %s", l.counts[what], what))
	}
	return strings.Join(list, ", ")
}

func (l *ledger) answered(r anytime.Reply) {
	l.add("answers", 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.replies = append(l.replies, r)
}

func (l *ledger) followed(f *followed) {
	l.add("answers", 1)
	l.add("events streamed", len(f.events))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.streams = append(l.streams, f)
}

func (l *ledger) chatted(c chatted) {
	l.add("answers", len(c.choices))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.chats = append(l.chats, c)
}

func (l *ledger) deleted(id string) {
	l.add("runs deleted", 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone[id] = true
}

// kept is what the server has of a run at last.
type kept struct {
	anytime.Reply
	State   string
	Problem string
	Last    int64 `json:"last_event"`
	Error   *anytime.ErrorData
	events  []event
	replies []anytime.Reply // of its done events
	resumed bool            // by another server
}

// undisturbed asks every question while all is well: thoughts in trouble must be the same.
func (c *chaos) undisturbed() {
	for n := range questions {
		body := question(n)
		c.ledger.answered(c.s.solve("budget=300", body))
		if c.exact {
			body["model"] = "model:one"
			c.ledger.answered(c.s.solve("budget=300", body))
		}
	}
}

// check compares what clients saw with what is kept, and that with itself.
func (c *chaos) check() {
	l := &c.ledger
	runs := map[string]*kept{}
	for id := range c.all() {
		runs[id] = c.checkRun(id)
	}
	l.add("runs", len(runs))
	find := func(what, id string) *kept {
		if runs[id] == nil {
			c.t.Errorf("%s: run %q is not kept", what, id)
		}
		return runs[id]
	}
	for _, r := range l.replies {
		run := find("a reply", r.ID)
		if run == nil || slices.ContainsFunc(run.replies, func(k anytime.Reply) bool { return same(k, r) }) {
			continue
		}
		// At its deadline, or when the store has been away for long, a reply is given before it is kept; a server that is killed
		// then leaves the run to the next one, which answers once more.
		if run.resumed && (r.Timings.DeadlineLeftMS != 0 || c.struck["disk full"] > 0) {
			l.add("replies that a dead server had not kept", 1)
		} else {
			c.t.Errorf("run %s: a client got %s\nkept is %s", r.ID, text1(r), text1(run.replies))
		}
	}
	for _, f := range l.streams {
		run := find("a stream", f.id)
		if run == nil {
			continue
		}
		for i, e := range f.events {
			if i >= len(run.events) || run.events[i] != e {
				c.t.Errorf("run %s: event %d was streamed as %+v, and is kept otherwise", f.id, i+1, e)
				break
			}
		}
	}
	for _, chat := range l.chats {
		ids := strings.Split(strings.TrimPrefix(chat.id, "chatcmpl-"), ".")
		if len(ids) != len(chat.choices) {
			c.t.Errorf("%s has %d choices", chat.id, len(chat.choices))
			continue
		}
		usage := chatUsage{}
		for i, id := range ids {
			run, choice := find("a chat", id), &chat.choices[i]
			if run == nil {
				continue
			}
			usage.CompletionTokens += run.Usage.ThinkingTokens + run.Usage.SummaryTokens
			usage.Details.ReasoningTokens += run.Usage.ThinkingTokens
			if strings.TrimSpace(choice.content.String()) != strings.TrimSpace(run.Summary) || choice.thinking.String() != run.Thinking || len(choice.finish) != 1 {
				c.t.Errorf("%s, choice %d: %q, thought %q, finished %q\nkept: %q, thought %q", chat.id, i, choice.content.String(), choice.thinking.String(), choice.finish, run.Summary, run.Thinking)
			}
			if choice.tokens != run.Usage.SummaryTokens && (run.Stop.Answer == "stop" || run.Stop.Answer == "length") {
				c.t.Errorf("%s, choice %d: %d tokens had a log-probability of %d", chat.id, i, choice.tokens, run.Usage.SummaryTokens)
			}
		}
		if usage != chat.usage {
			c.t.Errorf("%s: usage %+v, kept %+v", chat.id, chat.usage, usage)
		}
	}
	for id := range l.gone {
		if runs[id] != nil {
			c.t.Errorf("run %s was deleted, and is there", id)
		}
	}
	if c.exact {
		c.compare(slices.Collect(maps.Values(runs)))
	}
}

// all are the ids of all runs that are kept.
func (c *chaos) all() map[string]bool {
	const limit = 1000
	ids := map[string]bool{}
	for before := ""; ; {
		var page struct {
			Runs []struct {
				ID      string
				Created time.Time
			}
		}
		c.s.into(c.s.do("GET", fmt.Sprint("/solve?limit=", limit, before), nil), &page)
		for _, r := range page.Runs {
			ids[r.ID] = true
		}
		if len(page.Runs) < limit {
			return ids
		}
		before = "&before=" + page.Runs[limit-1].Created.Format(time.RFC3339Nano)
	}
}

// checkRun reads a run with its events, which must tell the same.
func (c *chaos) checkRun(id string) *kept {
	var k kept
	c.s.into(c.s.do("GET", "/solve/"+id+"?thinking=true", nil), &k)
	k.events = c.s.events(context.Background(), "GET", "/solve/"+id+"/events?thinking=true", nil, nil)
	wrong := func(format string, args ...any) {
		c.t.Errorf("run %s (%s, %s): %s", id, k.State, k.Stop.Cause, fmt.Sprintf(format, args...))
	}
	var told struct{ Explanation anytime.Explanation }
	if r := c.s.do("GET", "/solve/"+id+"?explain=true", nil); r.status != 200 || json.Unmarshal(r.body, &told) != nil {
		wrong("not explained: %s", r.body)
	}
	k.resumed = told.Explanation.Setbacks.Resumed
	if int(k.Last) != len(k.events) || len(k.events) == 0 {
		wrong("%d events, the last of which is %d", len(k.events), k.Last)
		return &k
	}
	var thinking, answer strings.Builder
	tokens, said := 0, 0 // of thinking and answer
	checkpoints := []anytime.Checkpoint{}
	last := ""
	for i, e := range k.events {
		var data struct {
			anytime.TextData
			anytime.Reply // which has tokens of its own kind: none at this level
		}
		if e.id != i+1 {
			wrong("event %d has id %d", i+1, e.id)
		}
		if (last == "" || last == "done" || last == "error") != (e.kind == "run") {
			wrong("event %d is of type %s behind %q", e.id, e.kind, last)
		}
		last = e.kind
		switch e.kind {
		case "run":
			answer.Reset()
		case "thinking", "answer":
			if err := json.Unmarshal([]byte(e.data), &data.TextData); err != nil {
				wrong("event %d: %v", e.id, err)
			}
			if e.kind == "thinking" {
				if thinking.WriteString(data.Text); data.TextData.Tokens < tokens {
					wrong("event %d counts %d thinking tokens, and the one before %d", e.id, data.TextData.Tokens, tokens)
				}
				tokens = data.TextData.Tokens
				continue
			}
			if data.Reset {
				answer.Reset()
			}
			answer.WriteString(data.Text)
			said = data.TextData.Tokens
		case "checkpoint":
			var c anytime.Checkpoint
			if err := json.Unmarshal([]byte(e.data), &c); err != nil {
				wrong("event %d: %v", e.id, err)
			}
			checkpoints = append(checkpoints, c)
		case "done":
			var r anytime.Reply
			if err := json.Unmarshal([]byte(e.data), &r); err != nil {
				wrong("event %d: %v", e.id, err)
			}
			if r.Thinking != thinking.String() || r.Usage.ThinkingTokens != tokens {
				wrong("its %d thinking tokens are %q, and its events' %d %q", r.Usage.ThinkingTokens, r.Thinking, tokens, thinking.String())
			}
			if strings.TrimSpace(r.Summary) != strings.TrimSpace(answer.String()) {
				wrong("its answer %q is %q in its events", r.Summary, answer.String())
			}
			if how := r.Stop.Answer; (how == "stop" || how == "length") && r.Usage.SummaryTokens < said {
				wrong("its answer of %d tokens has %d in its events", r.Usage.SummaryTokens, said)
			}
			if !slices.EqualFunc(r.Checkpoints, checkpoints, func(a, b anytime.Checkpoint) bool { return a.Tokens == b.Tokens && a.Summary == b.Summary }) {
				wrong("its checkpoints are %+v, and its events' %+v", r.Checkpoints, checkpoints)
			}
			if r.Answer == nil && r.Stop.Cause != budget.CauseDeadline {
				wrong("it has no answer: %+v", r.Stop)
			}
			if r.Answer != nil {
				checkpoints = append(checkpoints, anytime.Checkpoint{Tokens: tokens, Answer: *r.Answer, Summary: r.Summary})
			}
			k.replies = append(k.replies, r)
		case "error":
			var failure anytime.ErrorData
			_ = json.Unmarshal([]byte(e.data), &failure)
			if failure.Code != "cancelled" && (failure.Code != "engine" || !c.gaveUp) {
				wrong("it failed: %+v", failure)
			}
			c.ledger.add("runs failed: "+failure.Code, 1)
		}
	}
	switch {
	case k.State == "finished" && last == "done":
		if r := k.replies[len(k.replies)-1]; !same(r, k.Reply) {
			wrong("kept is %s, and its last event says %s", text1(k.Reply), text1(r))
		}
	case k.State == "failed" && last == "error":
	default:
		wrong("its last event is of type %s", last)
	}
	return &k
}

// compare holds thoughts about the same question against one another: of two, one is the beginning of the other; those of as many tokens
// are the same, and so are their answers.
func (c *chaos) compare(runs []*kept) {
	slices.SortFunc(runs, func(a, b *kept) int { return cmp.Compare(len(b.Thinking), len(a.Thinking)) })
	longest := map[string]*kept{}
	alike := map[string]*kept{}
	for _, k := range runs {
		if k.State != "finished" {
			continue
		}
		key := k.Model + " " + k.Problem
		if longest[key] == nil {
			longest[key] = k
		}
		if l := longest[key]; !strings.HasPrefix(l.Thinking, k.Thinking) {
			c.t.Errorf("run %s thought %q\nand run %s %q", k.ID, k.Thinking, l.ID, l.Thinking)
		}
		key = fmt.Sprint(key, k.Usage.ThinkingTokens)
		if alike[key] == nil {
			alike[key] = k
		}
		if a := alike[key]; a.Thinking != k.Thinking {
			c.t.Errorf("%d tokens of run %s are %q\nand of run %s %q", k.Usage.ThinkingTokens, k.ID, k.Thinking, a.ID, a.Thinking)
		}
	}
}

// same compares replies, the thinking aside where one has none.
func same(a, b anytime.Reply) bool {
	if a.Thinking == "" || b.Thinking == "" {
		a.Thinking, b.Thinking = "", ""
	}
	return bytes.Equal(text1(a), text1(b))
}

func text1(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only our own types, which always marshal
	}
	return b
}
