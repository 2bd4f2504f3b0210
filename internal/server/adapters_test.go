package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"anytime/api"
	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/catalog"
	"anytime/internal/catalog/adapters"
	"anytime/internal/decode"
	"anytime/internal/decode/decodetest"
	"anytime/internal/server"
)

// keeper is what a handler sees of a manager: it notes what it was asked for.
type keeper struct {
	list  []adapters.Adapter
	err   error
	asked []string
	req   adapters.Request
	body  string
}

func (k *keeper) List() []adapters.Adapter { return k.list }

func (k *keeper) Get(name string) (adapters.Adapter, error) {
	k.asked = append(k.asked, "get "+name)
	return k.list[0], k.err
}

func (k *keeper) Load(_ context.Context, req adapters.Request) (adapters.Adapter, error) {
	k.asked, k.req = append(k.asked, "load "+req.Name), req
	return k.list[0], k.err
}

func (k *keeper) Delete(_ context.Context, name string) error {
	k.asked = append(k.asked, "delete "+name)
	return k.err
}

func (k *keeper) Upload(_ context.Context, sum string, from io.Reader) (int64, error) {
	data, err := io.ReadAll(from)
	k.asked, k.body = append(k.asked, "upload "+sum), string(data)
	return int64(len(data)), errors.Join(k.err, err)
}

var (
	loaded = adapters.Adapter{
		Name: "math", Model: "org/scripted", State: adapters.Loaded, Default: true, File: "math.gguf", SHA256: strings.Repeat("0", 64), Bytes: 7, Loaded: time.Unix(1, 0),
		Curve: &budget.Curve{Points: []budget.CurvePoint{{Budget: 64, Tokens: 60, Accuracy: 0.5, Low: 0.4, High: 0.6}}},
	}
	measuring = adapters.Adapter{Name: "math", Model: "org/scripted", State: adapters.Measuring, Trial: &adapters.Trial{State: adapters.Measuring, Of: 8, Margin: 0.05}}
)

func withAdapters(k *keeper) func(*server.Config) {
	return func(c *server.Config) { c.Adapters = k }
}

func TestAdapters(t *testing.T) {
	k := &keeper{list: []adapters.Adapter{loaded}}
	b := newSite(t, decodetest.Options{}, withAdapters(k))
	list := get[api.AdapterList](b, "GET", "/v1/adapters", "").Adapters
	if len(list) != 1 || list[0].Id != "org/scripted:math" || !list[0].Default || list[0].State != api.AdapterLoaded || *list[0].Bytes != 7 || (*list[0].Curve)[0].Accuracy != 0.5 {
		t.Errorf("%+v", list)
	}
	get[api.Adapter](b, "GET", "/v1/adapters/org%2Fscripted:math", "")
	get[api.Adapter](b, "POST", "/v1/adapters", `{"name": "math", "model": "scripted", "file": "a/b.gguf", "sha256": "00", "default": true,
		"gate": {"problems": [{"id": "a", "problem": "1+2?", "answers": ["3"]}, {"id": "b", "problem": "x", "answers": ["y"]}], "budgets": [0, 64], "margin": 0.1}}`)
	if r := k.req; r.Model != "scripted" || r.File != "a/b.gguf" || r.SHA256 != "00" || !r.Default || fmt.Sprint(r.Gate.Budgets) != "[0 64]" || *r.Gate.Margin != 0.1 {
		t.Errorf("%+v", r)
	}
	if lines := strings.Split(string(k.req.Gate.Problems), "\n"); len(lines) != 3 || !strings.Contains(lines[1], `"id":"b"`) || lines[2] != "" {
		t.Errorf("problems %q", k.req.Gate.Problems)
	}
	get[api.Adapter](b, "POST", "/v1/adapters", `{"name": "bare", "default": true}`)
	if k.req.Gate != nil || k.req.File != "" {
		t.Errorf("%+v", k.req)
	}
	k.list = []adapters.Adapter{measuring}
	resp := b.send("POST", "/v1/adapters", `{"name": "math", "file": "x.gguf", "default": true}`)
	resp.Body.Close()
	if where := resp.Header.Get("Location"); resp.StatusCode != http.StatusAccepted || where != "/v1/adapters/org%2Fscripted:math" {
		t.Errorf("status %d, %q", resp.StatusCode, where)
	}
	if a := get[api.Adapter](b, "GET", resp.Header.Get("Location"), ""); a.Trial == nil || a.Trial.Of != 8 || a.Sha256 != nil {
		t.Errorf("%+v", a)
	}
	// A file may be larger than other bodies, and is no JSON.
	file := strings.Repeat("GGUF", 2<<20)
	status, reply := b.call("PUT", "/v1/adapters/files/00", file, "Content-Type", "application/octet-stream")
	if status != http.StatusCreated || k.body != file || !strings.Contains(string(reply), `"sha256:00"`) {
		t.Errorf("status %d, %d bytes, %s", status, len(k.body), reply)
	}
	if status, _ := b.call("DELETE", "/v1/adapters/math", ""); status != http.StatusNoContent {
		t.Errorf("status %d", status)
	}
	want := "[get org/scripted:math load math load bare load math get org/scripted:math upload 00 delete math]"
	if got := fmt.Sprint(k.asked); got != want {
		t.Errorf("asked %s, want %s", got, want)
	}
}

func TestAdaptersRefused(t *testing.T) {
	k := &keeper{list: []adapters.Adapter{loaded}}
	b := newSite(t, decodetest.Options{}, withAdapters(k))
	for body, words := range map[string]string{
		`{}`:                                         "name: is missing",
		`{"name": "x", "fiel": "y"}`:                 "fiel",
		`{"name": "x", "default": "yes"}`:            "default",
		`{"name": "x", "gate": {"margin": 2}}`:       "gate.margin",
		`{"name": "x", "gate": {"budgets": ["a"]}}`:  "gate.budgets",
		`{"name": "x", "gate": {"problems": []}}`:    "gate.problems",
		`{"name": "x", "gate": {"problems": ["a"]}}`: "gate.problems",
	} {
		if status, reply := b.call("POST", "/v1/adapters", body); status != 400 || !strings.Contains(string(reply), words) {
			t.Errorf("%s: status %d, %s", body, status, reply)
		}
	}
	if len(k.asked) != 0 {
		t.Errorf("asked %q", k.asked)
	}
	k.err = &decode.InputError{Field: "file", Reason: "is missing"} // a manager's, of a name that is loaded and no default to be
	b.refused(400, "invalid_value", "POST", "/v1/adapters", `{"name": "math", "default": false}`, `{"name": "bare", "default": true}`)
	b.refused(400, "invalid_value", "POST", "/v1/adapters", `{"name": "math"}`, "file: is missing")
	for _, row := range []struct {
		err    error
		status int
		code   string
	}{
		{&decode.InputError{Field: "file", Reason: "is wrong"}, 400, "invalid_value"},
		{&adapters.ConflictError{Reason: "busy"}, 409, "adapter_conflict"},
		{&adapters.SizeError{Limit: 5}, 413, "file_too_large"},
		{decode.ErrUnknownAdapter, 404, "adapter_not_found"},
		{anytime.ErrUnknownModel, 404, "model_not_found"},
		{decode.ErrUnavailable, 503, "engine_unavailable"},
		{syscall.ENOSPC, 507, "disk_full"},
		{errors.New("a secret path"), 500, "internal_error"},
	} {
		k.err = fmt.Errorf("what was being done: %w", row.err)
		b.refused(row.status, row.code, "POST", "/v1/adapters", `{"name": "x"}`)
		b.refused(row.status, row.code, "DELETE", "/v1/adapters/x", "")
		b.refused(row.status, row.code, "GET", "/v1/adapters/x", "")
	}
	b = newSite(t, decodetest.Options{})
	if list := get[api.AdapterList](b, "GET", "/v1/adapters", "").Adapters; len(list) != 0 {
		t.Errorf("%+v", list)
	}
	b.refused(404, "adapters_not_managed", "POST", "/v1/adapters", `{"name": "x"}`)
}

// An admin key is wanted for all of it.
func TestAdapterKeys(t *testing.T) {
	k := &keeper{list: []adapters.Adapter{loaded}}
	b := newSite(t, decodetest.Options{}, withKeys, withAdapters(k))
	for _, row := range [][3]string{
		{"GET", "/v1/adapters"}, {"GET", "/v1/adapters/x"}, {"DELETE", "/v1/adapters/x"}, {"POST", "/v1/adapters", `{"name": "x"}`}, {"PUT", "/v1/adapters/files/00", "x"},
	} {
		for key, refused := range map[string]int{"": 401, alice: 403, root: 0} {
			b.key = key
			before := len(k.asked)
			status, reply := b.call(row[0], row[1], row[2])
			if refused > 0 && (status != refused || len(k.asked) != before) || refused == 0 && status/100 != 2 {
				t.Errorf("%s %s with key %q: status %d, %s", row[0], row[1], key, status, reply)
			}
		}
	}
}

// A client that stops sending a file does not hold the server.
func TestUploadStalls(t *testing.T) {
	k := &keeper{}
	b := newSite(t, decodetest.Options{}, withAdapters(k), func(c *server.Config) { c.Timeout = 100 * time.Millisecond })
	body, write := io.Pipe()
	defer write.Close()
	go func() { _, _ = write.Write([]byte("GGUF")) }()
	r, err := http.NewRequestWithContext(t.Context(), "PUT", b.url+"/v1/adapters/files/00", body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := b.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	reply, _ := io.ReadAll(resp.Body)
	b.envelope(resp.StatusCode, reply, 400, "incomplete_body", "in time")
}

// The default adapter and the bare model are listed as what they are.
func TestModelWithDefaultAdapter(t *testing.T) {
	b := newSite(t, decodetest.Options{}, func(c *server.Config) { c.Models = standard{c.Models} })
	list := get[api.ModelList](b, "GET", "/v1/models", "").Data
	var ids []string
	for _, m := range list {
		ids = append(ids, m.Id)
	}
	if fmt.Sprint(ids) != "[scripted scripted:bare scripted:tuned]" || *list[0].DefaultAdapter != "tuned" || list[1].DefaultAdapter != nil || *list[1].Parent != "scripted" {
		t.Errorf("%q: %+v", ids, list)
	}
	for _, id := range ids {
		if m := get[api.Model](b, "GET", "/v1/models/"+id, ""); m.Id != id {
			t.Errorf("%s: %+v", id, m)
		}
	}
	// What the name alone stands for has the adapter's accuracy, and the model's examples.
	for i, want := range []float64{0.75, 0.5, 0.75} {
		if c := list[i].Curve; c == nil || len(*c) != 1 || (*c)[0].Accuracy != want || (*c)[0].Budget != 64 {
			t.Errorf("%s: curve %v, want %v at 64", list[i].Id, c, want)
		}
	}
	if e := list[0].Examples; e == nil || len(*e) != 1 || list[1].Examples != nil {
		t.Errorf("examples: %v, %v", e, list[1].Examples)
	}
}

// standard makes tuned the default adapter of all models.
type standard struct{ of server.Models }

func (s standard) Acquire(ctx context.Context, name string) (*anytime.Model, func(), error) {
	return s.of.Acquire(ctx, name)
}

func (s standard) Models() []server.Model {
	list := s.of.Models()
	for i := range list {
		list[i].Adapter, list[i].Examples = "tuned", []string{"Why?"}
		list[i].Curves = map[string]*budget.Curve{}
		for name, accuracy := range map[string]float64{catalog.Bare: 0.5, "tuned": 0.75} {
			list[i].Curves[name] = &budget.Curve{Points: []budget.CurvePoint{{Budget: 64, Tokens: 60, Accuracy: accuracy, High: 1}}}
		}
	}
	return list
}
