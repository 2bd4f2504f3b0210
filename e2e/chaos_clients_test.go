package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"time"

	"anytime/internal/anytime"
)

// direct is a client without kept connections, which a server that is restarted would break.
var direct = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// client is one of those who use the server while things happen to it.
type client struct {
	c   *chaos
	rng *rand.Rand
}

// live does one thing after another.
func (k *client) live() {
	for {
		select {
		case <-k.c.enough:
			return
		default:
		}
		do := []func(){
			k.solve, k.solve, k.stream, k.stream, k.stream, k.deadline, k.interrupt, k.interrupt, k.extend, k.chat, k.chat,
			k.vanish, k.half, k.slow, k.wrong, k.forget,
		}
		do[k.rng.IntN(len(do))]()
	}
}

// pause waits before something is tried again.
func (k *client) pause() {
	select {
	case <-time.After(time.Duration(k.rng.IntN(100)) * time.Millisecond):
	case <-k.c.enough:
	}
}

// question is one of a few, so that thoughts about it can be compared.
func (k *client) question() map[string]any {
	n := k.rng.IntN(questions)
	body := question(n)
	if k.c.exact && k.rng.IntN(6) == 0 {
		body["model"] = "model:one"
	}
	return body
}

const questions = 6

func question(n int) map[string]any { return asked("Make 24 of 3, 5 and 9.", n) }

// query is a budget in tokens, with or without answers on the way and votes.
func (k *client) query() string {
	return fmt.Sprintf("budget=%d", []int{0, 1, 20, 60, 150, 300}[k.rng.IntN(6)]) +
		[]string{"", "", "&every=40", "&checkpoints=10,50", "&votes=3", "&early_stop=converge"}[k.rng.IntN(6)]
}

// send sends a request to the server that is there.
func (k *client) send(ctx context.Context, method, path string, body any, header ...string) (*http.Response, error) {
	var reader io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		reader = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, k.c.address.get()+path, reader)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return direct.Do(req)
}

// do sends a request and reads the reply. An error means that the connection was lost, which servers that are killed do to it.
func (k *client) do(method, path string, body any, header ...string) (r response, err error) {
	resp, err := k.send(context.Background(), method, path, body, header...)
	if err != nil {
		return r, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return response{resp.StatusCode, resp.Header, data}, err
}

// again reports whether a request may be tried again: its connection was lost, or the server said so.
func again(r response, err error) bool { return err != nil || r.status == 429 || r.status == 503 }

// fine reports whether a request was done. What may hinder it says when to try again.
func (k *client) fine(what string, r response, err error) bool {
	switch {
	case err != nil:
		k.c.ledger.add("connections lost", 1)
	case r.status == 200:
		return true
	case again(r, nil) && r.header.Get("Retry-After") != "":
		var e struct {
			Error struct{ Code string }
		}
		_ = json.Unmarshal(r.body, &e)
		k.c.ledger.add("refused: "+e.Error.Code, 1)
	default:
		k.c.t.Errorf("%s: status %d: %s", what, r.status, r.body)
	}
	k.pause()
	return false
}

// insist sends a request until it is done, or cannot be.
func (k *client) insist(what, method, path string, done func(response)) {
	for {
		r, err := k.do(method, path, nil)
		if k.fine(what, r, err) {
			done(r)
			return
		}
		if !again(r, err) {
			return
		}
	}
}

// reply notes a reply that came as JSON.
func (k *client) reply(r response) {
	var reply anytime.Reply
	if err := json.Unmarshal(r.body, &reply); err != nil {
		k.c.t.Errorf("%v in %s", err, r.body)
		return
	}
	if reply.ID == "" {
		k.c.t.Errorf("no reply: %s", r.body)
		return
	}
	k.c.ledger.answered(reply)
}

func (k *client) solve() {
	r, err := k.do("POST", "/solve?"+k.query(), k.question())
	if k.fine("solve", r, err) {
		k.reply(r)
	}
}

func (k *client) deadline() {
	query := fmt.Sprintf("budget=%dms", 300+k.rng.IntN(2000))
	if k.rng.IntN(2) == 0 {
		query += "&every=30"
	}
	if k.rng.IntN(2) == 0 {
		k.follow(query, nil)
		return
	}
	r, err := k.do("POST", "/solve?"+query, k.question())
	if k.fine("solve with a deadline", r, err) {
		k.reply(r)
	}
}

// stream reads events, and goes on where it was when its connection is lost, or it has closed it itself.
func (k *client) stream() { k.follow(k.query(), nil) }

// follow starts a run that goes on without its client, and follows it to its end. each sees the events.
func (k *client) follow(query string, each func(run string, e event)) (run string) {
	body := k.question()
	body["on_disconnect"] = "continue"
	f := &followed{}
	k.read(f, each, "POST", "/solve?"+query, body)
	if f.id == "" {
		return "" // nobody knows it, but that it will be answered
	}
	k.resume(f, each)
	return f.id
}

// resume follows a run until it has ended.
func (k *client) resume(f *followed, each func(string, event)) {
	for !f.ended && !f.lost {
		k.read(f, each, "GET", "/solve/"+f.id+"/events?thinking=true", nil, "Last-Event-ID", fmt.Sprint(len(f.events)))
	}
	k.c.ledger.followed(f)
}

// followed is what a client saw of a run's events.
type followed struct {
	id     string
	events []event
	ended  bool
	lost   bool // it cannot be followed
}

func (k *client) read(f *followed, each func(string, event), method, path string, body any, header ...string) {
	resp, err := k.send(context.Background(), method, path, body, append([]string{"Accept", "text/event-stream"}, header...)...)
	if err != nil {
		k.fine("events", response{}, err)
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		data, err := io.ReadAll(resp.Body)
		r := response{resp.StatusCode, resp.Header, data}
		k.fine("events", r, err)
		f.lost = !again(r, err)
		return
	}
	leave := -1 // having read so many
	if k.rng.IntN(3) == 0 {
		leave = k.rng.IntN(12)
	}
	scan(resp.Body, func(e event) bool {
		if e.id == 0 { // an error of the stream itself: the server could not go on reading
			k.c.ledger.add("streams broken off", 1)
			return true
		}
		if f.events = append(f.events, e); e.id != len(f.events) {
			k.c.t.Errorf("run %s: event %d has id %d", f.id, len(f.events), e.id)
		}
		if e.kind == "run" {
			var data anytime.RunData
			_ = json.Unmarshal([]byte(e.data), &data) // of which the check tells
			f.id = data.ID
		}
		f.ended = e.kind == "done" || e.kind == "error"
		if each != nil {
			each(f.id, e)
		}
		leave--
		return leave == 0 || f.ended
	})
}

// interrupt has a run answer now, or on the way.
func (k *client) interrupt() {
	asked := false
	k.follow("budget=max", func(run string, e event) {
		if e.kind != "thinking" || asked {
			return
		}
		asked = true
		if k.rng.IntN(3) == 0 {
			r, err := k.do("POST", "/solve/"+run+"/interrupt?continue=true", nil)
			if r.status != 409 && k.fine("peek", r, err) { // 409: it has ended
				k.c.ledger.add("peeks", 1)
			}
		}
		k.insist("interrupt", "POST", "/solve/"+run+"/interrupt?thinking=true", k.reply)
	})
}

// extend lets a run think on that was answered.
func (k *client) extend() {
	run := k.follow("budget=30", nil)
	if run == "" {
		return
	}
	if k.rng.IntN(2) == 0 {
		r, err := k.do("POST", "/solve/"+run+"/extend?budget=%2B40&thinking=true", nil)
		if k.fine("extend", r, err) {
			k.reply(r)
		}
		return
	}
	resp, err := k.send(context.Background(), "POST", "/solve/"+run+"/extend?budget=%2B40&stream=true", nil)
	if err != nil {
		k.fine("extend", response{}, err)
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		data, err := io.ReadAll(resp.Body)
		k.fine("extend", response{resp.StatusCode, resp.Header, data}, err)
		return
	}
	scan(resp.Body, func(e event) bool { return e.kind == "thinking" && k.rng.IntN(2) == 0 }) // and vanishes
}

// chat is OpenAI's way, streamed or not, with one choice or two.
func (k *client) chat() {
	n := 1 + k.rng.IntN(2)
	stream := k.rng.IntN(2) == 0
	body := map[string]any{
		"messages": []any{map[string]any{"role": "user", "content": question(k.rng.IntN(questions))["problem"]}}, "temperature": 0, "n": n, "stream": stream,
		"thinking_budget": []int{0, 10, 80}[k.rng.IntN(3)], "max_tokens": 100 + k.rng.IntN(100), "logprobs": true,
	}
	if stream {
		body["stream_options"] = map[string]any{"include_usage": true}
	}
	resp, err := k.send(context.Background(), "POST", "/v1/chat/completions", body)
	if err != nil {
		k.fine("chat", response{}, err)
		return
	}
	defer resp.Body.Close()
	if !stream || resp.StatusCode != 200 {
		data, err := io.ReadAll(resp.Body)
		r := response{resp.StatusCode, resp.Header, data}
		var whole chatReply
		if !k.fine("chat", r, err) {
			return
		}
		if err := json.Unmarshal(data, &whole); err != nil {
			k.c.t.Errorf("%v in %s", err, data)
			return
		}
		got := chatted{id: whole.ID, usage: whole.Usage, choices: make([]chatChoice, n)}
		for _, choice := range whole.Choices {
			got.choices[choice.Index].add(choice.Message, choice)
		}
		k.c.ledger.chatted(got)
		return
	}
	got, done := chatted{choices: make([]chatChoice, n)}, false
	scan(resp.Body, func(e event) bool {
		if e.data == "[DONE]" {
			done = true
			return true
		}
		var chunk chatReply
		if err := json.Unmarshal([]byte(e.data), &chunk); err != nil {
			k.c.t.Errorf("%v in %s", err, e.data)
		}
		if chunk.Error != nil {
			got.failed = chunk.Error.Code
		}
		if chunk.ID != "" {
			got.id = chunk.ID
		}
		for _, choice := range chunk.Choices {
			got.choices[choice.Index].add(choice.Delta, choice)
		}
		if chunk.Usage.CompletionTokens > 0 {
			got.usage = chunk.Usage
		}
		return false
	})
	switch {
	case done && got.failed == "":
		k.c.ledger.chatted(got)
	case strings.HasPrefix(got.failed, "run_"):
		k.c.t.Errorf("chat %s: %s", got.id, got.failed)
	default:
		k.c.ledger.add("chats broken off", 1)
	}
}

// chatReply is a chat completion, or a chunk of one.
type chatReply struct {
	ID      string
	Usage   chatUsage
	Choices []chatPart
	Error   *struct{ Code string }
}

type chatPart struct {
	Index          int
	Message, Delta chatText
	FinishReason   string `json:"finish_reason"`
	Logprobs       *struct{ Content []json.RawMessage }
}

type chatText struct {
	Content   string
	Reasoning string `json:"reasoning_content"`
	Reset     bool
}

type chatUsage struct {
	CompletionTokens int `json:"completion_tokens"`
	Details          struct {
		ReasoningTokens int `json:"reasoning_tokens"`
	} `json:"completion_tokens_details"`
}

// chatted is what a client saw of a chat completion.
type chatted struct {
	id      string
	usage   chatUsage
	choices []chatChoice
	failed  string
}

type chatChoice struct {
	content, thinking strings.Builder
	tokens            int // that had a log-probability
	finish            []string
	reset             bool
}

func (c *chatChoice) add(text chatText, part chatPart) {
	if text.Reset {
		c.content.Reset()
		c.tokens = 0
		c.reset = true
		text.Content = strings.TrimPrefix(text.Content, "\n\n")
	}
	c.content.WriteString(text.Content)
	c.thinking.WriteString(text.Reasoning)
	if part.Logprobs != nil {
		c.tokens += len(part.Logprobs.Content)
	}
	if part.FinishReason != "" {
		c.finish = append(c.finish, part.FinishReason)
	}
}

// dial opens a connection by hand.
func (k *client) dial() net.Conn {
	for {
		conn, err := net.Dial("tcp", strings.TrimPrefix(k.c.address.get(), "http://"))
		if err == nil {
			_ = conn.SetDeadline(time.Now().Add(patience))
			return conn
		}
		k.pause()
	}
}

// raw is a request for /solve, as it goes over the line.
func (k *client) raw(query string) string {
	body, _ := json.Marshal(k.question())
	return fmt.Sprintf("POST /solve?%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", query, len(body), body)
}

// vanish starts a run and is gone.
func (k *client) vanish() {
	conn := k.dial()
	policy := []string{"cancel", "answer", "continue"}[k.rng.IntN(3)]
	_, _ = io.WriteString(conn, k.raw("budget=500&on_disconnect="+policy+[]string{"", "&stream=true"}[k.rng.IntN(2)]))
	_ = conn.SetReadDeadline(time.Now().Add(time.Duration(k.rng.IntN(300)) * time.Millisecond))
	_, _ = io.CopyN(io.Discard, conn, int64(k.rng.IntN(2000)))
	reset(conn)
	k.c.ledger.add("clients vanished", 1)
}

// half sends half a request, then nothing, or byte by byte.
func (k *client) half() {
	conn := k.dial()
	defer conn.Close()
	text := k.raw("budget=10")
	n := 1 + k.rng.IntN(len(text)-1)
	_, _ = io.WriteString(conn, text[:n])
	if k.rng.IntN(2) == 0 {
		go drip(conn, text[n:], time.Second)
	}
	data, err := io.ReadAll(conn) // until the server has had enough
	if errors.Is(err, context.DeadlineExceeded) {
		k.c.t.Error("a client that sends half a request is waited for without end")
	}
	if strings.HasPrefix(string(data), "HTTP/1.1 5") && !strings.Contains(string(data), "503 Service Unavailable") {
		k.c.t.Errorf("half a request: %s", data)
	}
	k.c.ledger.add("halves of requests", 1)
}

// slow reads the events of a run by the byte, and then, since that takes too long, the rest.
func (k *client) slow() {
	conn := k.dial()
	body := k.raw("budget=200&on_disconnect=continue&stream=true")
	_, _ = io.WriteString(conn, body)
	_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	var got strings.Builder
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	one := make([]byte, 1)
	for range 500 {
		if n, err := conn.Read(one); n == 0 || err != nil {
			break
		}
		got.Write(one)
		select {
		case <-k.c.enough:
		default:
			<-tick.C
		}
	}
	reset(conn)
	_, rest, _ := strings.Cut(got.String(), `"id":"`)
	if id, _, ok := strings.Cut(rest, `"`); ok {
		k.resume(&followed{id: id}, nil)
		k.c.ledger.add("slow readers", 1)
	}
}

// wrong asks for what cannot be had.
func (k *client) wrong() {
	body := k.question()
	want := 0
	var r response
	var err error
	switch k.rng.IntN(4) {
	case 0:
		want, body["model"] = 503, "lame"
		r, err = k.do("POST", "/solve?budget=5", body)
	case 1:
		want, body["model"] = 404, "nobody"
		r, err = k.do("POST", "/solve?budget=5", body)
	case 2:
		want = 400
		r, err = k.do("POST", "/v1/adapters", map[string]any{"name": "junk", "file": "junk.gguf"})
	case 3:
		want = 400
		r, err = k.do("POST", "/solve?budget=soon", body)
	}
	if err == nil && r.status != want && r.status != 503 && r.status != 409 { // 409: another client is at it
		k.c.t.Errorf("status %d, want %d: %s", r.status, want, r.body)
	}
	k.c.ledger.add("wrong requests", 1)
}

// forget deletes a run under way.
func (k *client) forget() {
	ctx, leave := context.WithCancel(context.Background())
	defer leave()
	body := k.question()
	body["on_disconnect"] = "continue"
	resp, err := k.send(ctx, "POST", "/solve?budget=max&stream=true", body)
	if err != nil {
		k.fine("solve", response{}, err)
		return
	}
	defer resp.Body.Close()
	var run anytime.RunData
	scan(resp.Body, func(e event) bool {
		if e.kind == "run" {
			_ = json.Unmarshal([]byte(e.data), &run)
		}
		return e.kind == "thinking"
	})
	for run.ID != "" {
		r, err := k.do("DELETE", "/solve/"+run.ID, nil)
		if err == nil && (r.status == 204 || r.status == 404) { // 404: it was, and the connection was lost
			k.c.ledger.deleted(run.ID)
			return
		}
		if k.fine("delete", r, err); !again(r, err) {
			return
		}
	}
}
