package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"anytime/api"
	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/decode"
	"anytime/internal/decode/decodetest"
	"anytime/internal/server"
	"anytime/internal/store"
)

// TestContract holds the document to OpenAPI, the routes to the document, and its examples to its schemas.
func TestContract(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	doc := b.server.Document()
	if err := doc.Validate(context.Background(), openapi3.EnableExamplesValidation()); err != nil {
		t.Fatal(err)
	}
	var operations []string
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			operations = append(operations, method+" "+path)
			if op.Summary == "" || op.OperationID == "" || len(op.Tags) != 1 || op.Responses.Default() == nil {
				t.Errorf("%s %s lacks a summary, an id, a tag or its errors", method, path)
			}
			for _, p := range op.Parameters {
				if p.Value.Description == "" {
					t.Errorf("%s %s: parameter %s is not described", method, path, p.Value.Name)
				}
			}
		}
	}
	routes := b.server.Routes()
	slices.Sort(operations)
	slices.Sort(routes)
	if !slices.Equal(operations, routes) {
		t.Errorf("operations %v\nroutes %v", operations, routes)
	}
	resp, document := b.call("GET", "/openapi.yaml", "")
	if resp != 200 || string(document) != string(api.Document) {
		t.Errorf("/openapi.yaml: status %d", resp)
	}
}

// TestDocsPage holds the page to be whole and to stand alone.
func TestDocsPage(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	_, page := b.call("GET", "/docs", "")
	doc := b.server.Document()
	for path, item := range doc.Paths.Map() {
		for _, op := range item.Operations() {
			if !strings.Contains(string(page), `id="`+op.OperationID+`"`) || !strings.Contains(string(page), "<code>"+path+"</code>") {
				t.Errorf("%s is not there", path)
			}
		}
	}
	for name, schema := range doc.Components.Schemas {
		if !strings.Contains(string(page), `id="schema-`+name+`"`) {
			t.Errorf("schema %s is not there", name)
		}
		for field := range schema.Value.Properties {
			if !strings.Contains(string(page), "<code>"+field+"</code>") {
				t.Errorf("field %s.%s is not there", name, field)
			}
		}
	}
	if outside := regexp.MustCompile(`(src|href)="(https?:)?//|<script|url\(|@import`).Find(page); outside != nil {
		t.Errorf("the page needs %s", outside)
	}
	for _, link := range regexp.MustCompile(`href="#([^"]+)"`).FindAllStringSubmatch(string(page), -1) {
		if !strings.Contains(string(page), `id="`+link[1]+`"`) {
			t.Errorf("link to #%s leads nowhere", link[1])
		}
	}
}

func TestErrorTable(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("what was being done: %w", err) }
	failed := func(code string) error {
		return &anytime.RunError{ErrorData: anytime.ErrorData{Code: code, Message: "m"}}
	}
	_, syntax := budget.Parse("soon")
	for _, test := range []struct {
		err               error
		status            int
		kind, code, param string
		retry             bool
	}{
		{&decode.InputError{Field: "grammar", Reason: "x"}, 400, "invalid_request_error", "invalid_value", "grammar", false},
		{&anytime.RequestError{Field: "votes", Reason: "x"}, 400, "invalid_request_error", "invalid_value", "votes", false},
		{syntax, 400, "invalid_request_error", "invalid_value", "budget", false},
		{decode.ErrContextFull, 400, "invalid_request_error", "context_length_exceeded", "messages", false},
		{anytime.ErrUnknownModel, 404, "not_found_error", "model_not_found", "model", false},
		{decode.ErrUnknownAdapter, 404, "not_found_error", "model_not_found", "model", false},
		{store.ErrNotFound, 404, "not_found_error", "run_not_found", "id", false},
		{anytime.ErrNotRunning, 409, "conflict_error", "run_not_running", "id", false},
		{anytime.ErrRunning, 409, "conflict_error", "run_running", "id", false},
		{&http.MaxBytesError{Limit: 5}, 413, "invalid_request_error", "body_too_large", "", false},
		{anytime.ErrBusy, 429, "rate_limit_error", "busy", "", true},
		{anytime.ErrDraining, 503, "unavailable_error", "shutting_down", "", true},
		{decode.ErrUnavailable, 503, "unavailable_error", "engine_unavailable", "", true},
		{store.ErrClosed, 503, "unavailable_error", "store_closed", "", true},
		{store.ErrUnavailable, 503, "unavailable_error", "store_unavailable", "", true},
		{store.ErrFull, 503, "unavailable_error", "store_full", "", true},
		{failed("cancelled"), 409, "conflict_error", "run_cancelled", "", false},
		{failed("engine"), 503, "unavailable_error", "run_engine", "", true},
		{failed("internal"), 500, "server_error", "run_internal", "", false},
		{context.Canceled, 499, "invalid_request_error", "client_closed_request", "", false},
		{errors.New("disk on fire"), 500, "server_error", "internal_error", "", false},
	} {
		for _, err := range []error{test.err, wrap(test.err)} {
			status, kind, code, param, retry := server.PublicError(err)
			if status != test.status || kind != test.kind || code != test.code || param != test.param || retry != test.retry {
				t.Errorf("%v: %d %s %s %q %v", err, status, kind, code, param, retry)
			}
		}
	}
	both := errors.Join(&anytime.RequestError{Field: "votes", Reason: "x"}, &anytime.RequestError{Field: "stop", Reason: "y"})
	if status, _, _, param, _ := server.PublicError(both); status != 400 || param != "votes" {
		t.Errorf("joined: %d %s", status, param)
	}
}

// TestHead asks for replies without their bodies.
func TestHead(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	id := get[anytime.Reply](b, "POST", "/solve?budget=1", `{"problem": "How many?"}`).ID
	for path, status := range map[string]int{
		"/healthz": 200, "/readyz": 200, "/health": 200, "/v1/models": 200, "/v1/models/scripted": 200, "/metrics": 200, "/docs": 200, "/openapi.yaml": 200,
		"/solve": 200, "/solve/" + id: 200, "/solve/nobody": 404, "/v1/models?x=y": 400, "/solve/" + id + "/events": 405, "/tokenize": 405,
	} {
		resp := b.send("HEAD", path, "")
		n, err := io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != status || n != 0 || err != nil || resp.Header.Get("Content-Type") == "" {
			t.Errorf("HEAD %s: status %d, %d bytes, %v, %v", path, resp.StatusCode, n, err, resp.Header)
		}
	}
	resp := b.send("PUT", "/solve", `{}`)
	_ = resp.Body.Close()
	if allow := resp.Header.Values("Allow"); !slices.Equal(allow, []string{"GET", "HEAD", "POST"}) {
		t.Errorf("Allow: %v", allow)
	}
}

func TestReady(t *testing.T) {
	var broken error
	b := newSite(t, decodetest.Options{}, func(c *server.Config) { c.Ready = func(context.Context) error { return broken } })
	if h := get[api.Health](b, "GET", "/readyz", ""); h.Status != api.Ok || (*h.Checks)["engine"] != "ok" || (*h.Checks)["store"] != "ok" {
		t.Errorf("%+v", h)
	}
	broken = decode.ErrUnavailable
	if status, _ := b.call("GET", "/health", ""); status != 503 {
		t.Errorf("/health: status %d", status)
	}
	status, reply := b.call("GET", "/readyz", "")
	if status != 503 || !strings.Contains(string(reply), decode.ErrUnavailable.Error()) || !strings.Contains(string(reply), `"store":"ok"`) {
		t.Errorf("status %d, %s", status, reply)
	}
	broken = nil
	if err := b.store.Close(); err != nil {
		t.Fatal(err)
	}
	if status, reply := b.call("GET", "/readyz", ""); status != 503 || !strings.Contains(string(reply), `"engine":"ok"`) {
		t.Errorf("status %d, %s", status, reply)
	}
	if h := get[api.Health](b, "GET", "/readyz?exclude=store", ""); h.Status != api.Ok || (*h.Checks)["store"] == "ok" {
		t.Errorf("without the store: %+v", h)
	}
	for query, want := range map[string]int{"exclude=engine": 503, "exclude=disk": 400} {
		if status, reply := b.call("GET", "/readyz?"+query, ""); status != want {
			t.Errorf("%s: status %d, %s", query, status, reply)
		}
	}
	get[api.Health](b, "GET", "/healthz", "")
}

func TestMetrics(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	id := get[anytime.Reply](b, "POST", "/solve?budget=1", `{"problem": "How many?"}`).ID
	b.call("GET", "/solve/"+id, "")
	b.call("GET", "/solve/nobody", "")
	b.call("GET", "/"+strings.Repeat("made/up/", 5), "")
	b.call("PATCH", "/solve", "")
	_, stop := b.running("")
	defer stop()
	_, text := b.call("GET", "/metrics", "")
	for _, line := range []string{
		`anytime_http_requests_total{code="200",method="POST",route="/solve"} 1`,
		`anytime_http_requests_total{code="200",method="GET",route="/solve/{id}"} 1`,
		`anytime_http_requests_total{code="404",method="GET",route="/solve/{id}"} 1`,
		`anytime_http_requests_total{code="404",method="none",route="none"} 1`,
		`anytime_http_requests_total{code="405",method="none",route="none"} 1`,
		`anytime_http_request_duration_seconds_count{method="POST",route="/solve"} 1`,
		`anytime_http_open_streams 1`,
		`anytime_runs_running 1`,
	} {
		if !strings.Contains(string(text), line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
	if strings.Contains(string(text), "made") || strings.Contains(string(text), id) {
		t.Error("what clients made up is a label")
	}
}
