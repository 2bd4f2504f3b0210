package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/decode"
	"anytime/internal/decode/decodetest"
	"anytime/internal/decode/prompt"
	"anytime/internal/server"
	"anytime/internal/server/sse"
	"anytime/internal/store"
	"anytime/internal/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	thoughtLength = 400  // tokens that the scripted model thinks when it is let
	maxThinking   = 1600 // the model's cap
)

// models is one model that is always loaded.
type models struct{ model *anytime.Model }

func (m models) Acquire(_ context.Context, name string) (*anytime.Model, func(), error) {
	if name != "" && name != "default" && name != m.model.ID {
		return nil, nil, fmt.Errorf("%w: %q", anytime.ErrUnknownModel, name)
	}
	return m.model, func() {}, nil
}

func (m models) Models() []server.Model {
	return []server.Model{{ID: m.model.ID, Default: true, Loaded: true, ContextTokens: 1 << 16, MaxThinking: maxThinking, Adapters: []string{"tuned"}}}
}

// site is a server over a real solver with a scripted engine, on a loopback port.
type site struct {
	t      *testing.T
	url    string
	server *server.Server
	solver *anytime.Solver
	engine *decodetest.Engine
	store  store.Store
	cfg    server.Config
	client *http.Client
	log    *logBuffer
	key    string // sent with every request, where it is set
}

// logBuffer collects log lines.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// counting thinks " step" after " step" and answers with the number of steps that it sees.
func counting(thought string) []string {
	return []string{"\n\n", "It is", " \\boxed{", fmt.Sprint(strings.Count(thought, " step")), "}"}
}

func steps() []string {
	s := make([]string, thoughtLength)
	for i := range s {
		s[i] = " step"
		if i%3 == 2 {
			s[i] = fmt.Sprintf(" step:%d", i) // no loop
		}
	}
	return s
}

func newSite(t testing.TB, opts decodetest.Options, change ...func(*server.Config)) *site {
	t.Helper()
	if opts.Model == nil {
		opts.Model = decodetest.Script(steps(), "<think>\n", "</think>", counting)
	}
	if opts.Step == 0 {
		opts.Step = time.Millisecond
	}
	b := &site{engine: decodetest.New(opts), store: memory.New(memory.Options{}), log: &logBuffer{}}
	b.t, _ = t.(*testing.T)
	renderer, err := prompt.New(b.engine.Info(), prompt.Detect(b.engine.Info()), "")
	if err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.NewTextHandler(b.log, nil))
	all := models{&anytime.Model{
		ID: "scripted", Engine: b.engine, Renderer: renderer, Pace: budget.NewPace(budget.Snapshot{}), Length: &budget.Length{}, MaxThinking: maxThinking,
	}}
	registry := prometheus.NewRegistry()
	b.solver = anytime.New(anytime.Config{Models: all, Store: b.store, Metrics: anytime.NewMetrics(registry), Logger: logger, MaxRuns: 8})
	b.cfg = server.Config{
		Solver: b.solver, Models: all, Store: b.store, Ready: b.engine.Ready, Metrics: registry, Logger: logger, Loopback: true,
		Sampling: decode.Sampling{Temperature: 0.6},
	}
	for _, c := range change {
		c(&b.cfg)
	}
	if b.server, err = server.New(b.cfg); err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(b.server)
	b.url = web.URL
	router, err := legacy.NewRouter(b.server.Document())
	if err != nil {
		t.Fatal(err)
	}
	b.client = &http.Client{Transport: &contractual{t: t, router: router}}
	t.Cleanup(func() {
		b.client.CloseIdleConnections()
		web.Close()
		if err := b.solver.Close(); err != nil {
			t.Error(err)
		}
		if n := b.engine.Sequences(); n != 0 {
			t.Errorf("%d sequences are still open", n)
		}
		_ = b.engine.Close()
		_ = b.store.Close()
	})
	return b
}

// contractual is a transport that holds every JSON reply to the contract, and to have no field beyond it.
type contractual struct {
	http.Transport
	t      testing.TB
	router routers.Router
}

func (c *contractual) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.Transport.RoundTrip(r)
	if err != nil || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		return resp, err
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp, err
	}
	_ = resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(body))
	route, _, err := c.router.FindRoute(r)
	if err != nil {
		return resp, nil // an unknown path has no contract
	}
	responses := route.Operation.Responses
	response := responses.Status(resp.StatusCode)
	if response == nil {
		response = responses.Default()
	}
	media := response.Value.Content.Get("application/json")
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		c.t.Errorf("%s %s: %v", r.Method, r.URL, err)
		return resp, nil
	}
	if media == nil {
		c.t.Errorf("%s %s: status %d has JSON, the contract none", r.Method, r.URL, resp.StatusCode)
	} else if err := keeps(media.Schema.Value, v, "reply"); err != nil {
		c.t.Errorf("%s %s: %v\n%s", r.Method, r.URL, err, body)
	}
	return resp, nil
}

// keeps checks a value against a schema, and that the schema knows all of its fields.
func keeps(schema *openapi3.Schema, v any, at string) error {
	if err := schema.VisitJSON(v); err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	if len(schema.AnyOf) > 0 {
		var err error
		for _, alternative := range schema.AnyOf {
			if err = keeps(alternative.Value, v, at); err == nil {
				break
			}
		}
		return err
	}
	if len(schema.AllOf) == 1 && v != nil { // as a nullable reference is written
		return keeps(schema.AllOf[0].Value, v, at)
	}
	if free := schema.AdditionalProperties.Has; schema.Type == nil || free != nil && *free {
		return nil
	}
	switch v := v.(type) {
	case []any:
		for i, e := range v {
			if err := keeps(schema.Items.Value, e, fmt.Sprintf("%s[%d]", at, i)); err != nil {
				return err
			}
		}
	case map[string]any:
		for name, e := range v {
			p := schema.Properties[name]
			if p == nil && schema.AdditionalProperties.Schema == nil {
				return fmt.Errorf("%s.%s is not in the contract", at, name)
			}
			if p == nil {
				p = schema.AdditionalProperties.Schema
			}
			if err := keeps(p.Value, e, at+"."+name); err != nil {
				return err
			}
		}
	}
	return nil
}

// send sends a request; header are pairs. A body makes it JSON unless header says otherwise.
func (b *site) send(method, path, body string, header ...string) *http.Response {
	b.t.Helper()
	resp, err := b.client.Do(b.request(context.Background(), method, path, body, header...))
	if err != nil {
		b.t.Fatal(err)
	}
	return resp
}

func (b *site) request(ctx context.Context, method, path, body string, header ...string) *http.Request {
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(ctx, method, b.url+path, reader)
	if err != nil {
		panic(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if b.key != "" {
		r.Header.Set("Authorization", "Bearer "+b.key)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
		}
		r.Header.Set(header[i], header[i+1])
	}
	return r
}

// call sends a request and reads the reply.
func (b *site) call(method, path, body string, header ...string) (status int, reply []byte) {
	b.t.Helper()
	resp := b.send(method, path, body, header...)
	defer resp.Body.Close()
	reply, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp.StatusCode, reply
}

// get reads a reply that must be a 200 into v.
func get[T any](b *site, method, path, body string, header ...string) (v T) {
	b.t.Helper()
	status, reply := b.call(method, path, body, header...)
	if status != http.StatusOK {
		b.t.Fatalf("%s %s %s: status %d, %s", method, path, body, status, reply)
	}
	if err := json.Unmarshal(reply, &v); err != nil {
		b.t.Fatal(err)
	}
	return v
}

// refused checks for an error, in the envelope, whose message has all the words.
func (b *site) refused(status int, code, method, path, body string, words ...string) {
	b.t.Helper()
	got, reply := b.call(method, path, body)
	b.envelope(got, reply, status, code, words...)
}

func (b *site) envelope(got int, reply []byte, status int, code string, words ...string) {
	b.t.Helper()
	var e struct {
		Error struct {
			Message, Type string
			Code          string
			RequestID     string `json:"request_id"`
		}
	}
	if err := json.Unmarshal(reply, &e); err != nil {
		b.t.Fatalf("status %d, %v: %s", got, err, reply)
	}
	if got != status || e.Error.Code != code || e.Error.Type == "" || e.Error.RequestID == "" {
		b.t.Errorf("status %d, code %q; want %d, %q: %s", got, e.Error.Code, status, code, reply)
	}
	for _, w := range words {
		if !strings.Contains(e.Error.Message, w) {
			b.t.Errorf("message %q lacks %q", e.Error.Message, w)
		}
	}
}

// events sends a request and reads the stream that answers it.
func (b *site) events(method, path, body string, header ...string) []sse.Event {
	b.t.Helper()
	resp := b.send(method, path, body, header...)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		reply, _ := io.ReadAll(resp.Body)
		b.t.Fatalf("%s %s: status %d, %s: %s", method, path, resp.StatusCode, resp.Header.Get("Content-Type"), reply)
	}
	var all []sse.Event
	for e, err := range sse.Read(resp.Body) {
		if err != nil {
			b.t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

// running starts a run that thinks until it is told otherwise, and returns its id once it thinks.
func (b *site) running(query string) (id string, stop func()) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	resp, err := b.client.Do(b.request(ctx, "POST", "/solve?stream=true&"+query, `{"problem": "How many?"}`)) //nolint:bodyclose // stop closes it
	if err != nil {
		b.t.Fatal(err)
	}
	for e, err := range sse.Read(resp.Body) {
		if err != nil {
			b.t.Fatal(err)
		}
		if e.Type == anytime.EventRun {
			var run anytime.RunData
			if err := json.Unmarshal(e.Data, &run); err != nil {
				b.t.Fatal(err)
			}
			id = run.ID
		}
		if e.Type == anytime.EventThinking {
			break
		}
	}
	return id, func() { cancel(); _ = resp.Body.Close() }
}
