package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"anytime/api"
	"anytime/internal/gguf/tiny"
)

// adapters is a server that takes them.
type adapters struct {
	key     string // that it wants
	refusal *api.ErrorBody
	status  int
	trial   []api.AdapterTrial // how it goes, one for each time it is asked
	asked   int

	file []byte
	body string
}

func (s *adapters) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	reply := func(status int, v any) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	refuse := func(status int, code, message string) {
		reply(status, api.Error{Error: api.ErrorBody{Code: &code, Message: message}})
	}
	data, _ := io.ReadAll(r.Body)
	adapter := api.Adapter{Id: "org/base:math", Name: "math", Model: "org/base", Default: len(s.trial) > 0}
	if s.asked < len(s.trial) {
		adapter.Trial = &s.trial[s.asked]
		adapter.Default = adapter.Trial.State == api.TrialPassed
	}
	switch {
	case s.key != "" && r.Header.Get("Authorization") == "":
		refuse(401, "missing_api_key", "an API key is wanted")
	case s.key != "" && r.Header.Get("Authorization") != "Bearer "+s.key:
		refuse(403, "admin_key_required", "this wants an admin key")
	case r.Method == "PUT":
		s.file = data
		sum := strings.TrimPrefix(r.URL.Path, "/v1/adapters/files/")
		if sum != fmt.Sprintf("%x", sha256.Sum256(data)) || r.ContentLength != int64(len(data)) {
			refuse(400, "invalid_value", "another file")
			return
		}
		reply(201, api.AdapterFile{File: "sha256:" + sum, Bytes: int64(len(data))})
	case r.Method == "POST" && s.refusal != nil:
		reply(s.status, api.Error{Error: *s.refusal})
	case r.Method == "POST":
		s.body = string(data)
		s.asked++
		reply(map[bool]int{true: 202, false: 200}[adapter.Trial != nil], adapter)
	case r.URL.EscapedPath() == "/v1/adapters/org%2Fbase:math" && s.asked < len(s.trial):
		s.asked++
		reply(200, adapter)
	default:
		refuse(404, "adapter_not_found", "no such adapter")
	}
}

func adapterFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "math.gguf")
	if err := tiny.WriteAdapter(path, 1, ""); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPush(t *testing.T) {
	file := adapterFile(t)
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	points := func(a ...float64) *[]api.CurvePoint {
		var list []api.CurvePoint
		for i, a := range a {
			list = append(list, api.CurvePoint{Budget: 64 << i, Accuracy: a, Low: a, High: a})
		}
		return &list
	}
	why := "it is worse"
	measuring := api.AdapterTrial{State: api.TrialMeasuring, Of: 8}
	passed := api.AdapterTrial{State: api.TrialPassed, Of: 8, Done: 8, Base: points(0.25, 0.5), Adapter: points(0.375, 0.625)}
	refused := api.AdapterTrial{State: api.TrialRefused, Of: 8, Done: 8, Base: points(0.5), Adapter: points(0.25), Reason: &why}
	broken := api.AdapterTrial{State: api.TrialFailed, Of: 8, Reason: &why}
	gate := write(t, `{"id": "a", "problem": "1+2?", "answers": ["3"]}`+"\n"+`{"id": "b", "problem": "make 5", "numbers": [2, 3], "target": 5}`)
	for name, row := range map[string]struct {
		server *adapters
		args   []string
		key    string
		body   []string // has these
		out    []string // prints these
		fails  string
	}{
		"plain":     {&adapters{}, nil, "", []string{`"name":"math"`, `"default":false`, `"file":"sha256:`}, []string{"serves it as org/base:math\n"}, ""},
		"named":     {&adapters{}, []string{"-name", "x", "-model", "org/base"}, "", []string{`"name":"x"`, `"model":"org/base"`}, nil, ""},
		"with keys": {&adapters{key: "secret"}, nil, "secret", nil, nil, ""},
		"gate": {
			&adapters{trial: []api.AdapterTrial{passed}}, []string{"-default", "-gate", gate, "-gate-budgets", "64,128", "-gate-margin", "0"}, "",
			[]string{`"default":true`, `"budgets":[64,128]`, `"margin":0`, `"answers":["3"]`, `"numbers":[2,3]`}, []string{"and as org/base"}, "",
		},
		"waits":              {&adapters{trial: []api.AdapterTrial{measuring, passed}}, []string{"-default"}, "", nil, []string{"0.2500", "0.3750", "+0.1250", "128", "and as org/base"}, ""},
		"refused":            {&adapters{trial: []api.AdapterTrial{refused}}, []string{"-default"}, "", nil, []string{"0.5000", "-0.2500"}, "org/base:math was refused, and nothing has changed: it is worse"},
		"not measured":       {&adapters{trial: []api.AdapterTrial{broken}}, []string{"-default"}, "", nil, nil, "nothing has changed: it is worse"},
		"forgotten":          {&adapters{trial: []api.AdapterTrial{measuring}}, []string{"-default"}, "", nil, nil, "no longer knows of it"},
		"no key":             {&adapters{key: "secret"}, nil, "", nil, nil, "an API key is wanted; put an admin key into the environment's ANYTIME_API_KEY"},
		"another's key":      {&adapters{key: "secret"}, nil, "other", nil, nil, "this wants an admin key; the key came from ANYTIME_API_KEY"},
		"another model's":    {&adapters{status: 400, refusal: &api.ErrorBody{Message: "architecture is qwen2"}}, nil, "", nil, nil, `load it as "math": architecture is qwen2`},
		"no Anytime server":  {&adapters{status: 404, refusal: &api.ErrorBody{}}, nil, "", nil, nil, "404 Not Found: it is no Anytime server"},
		"an internal server": {&adapters{status: 502, refusal: &api.ErrorBody{}}, nil, "", nil, nil, "502 Bad Gateway"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(keyVariable, row.key)
			web := httptest.NewServer(row.server)
			defer web.Close()
			out, _, err := train(t, append([]string{"push", "-server", web.URL, "-adapter", file}, row.args...)...)
			if row.fails != "" {
				failed(t, err, false, row.fails)
			} else if err != nil {
				t.Fatal(err)
			}
			if row.fails == "" && string(row.server.file) != string(content) {
				t.Error("another file came")
			}
			for _, want := range row.body {
				if !strings.Contains(row.server.body, want) {
					t.Errorf("asked %s; it lacks %s", row.server.body, want)
				}
			}
			for _, want := range row.out {
				if !strings.Contains(out, want) {
					t.Errorf("printed %s; it lacks %q", out, want)
				}
			}
		})
	}
}

func TestPushUsage(t *testing.T) {
	file := adapterFile(t)
	model := filepath.Join(t.TempDir(), "model.gguf")
	if err := tiny.WriteFile(model, 1, tiny.Options{}); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		args  []string
		usage bool
		says  string
	}{
		{nil, true, "-adapter is needed"},
		{[]string{"-adapter", file, "x"}, true, `"x" is no flag`},
		{[]string{"-adapter", file, "-gate", "x"}, true, "give -default"},
		{[]string{"-adapter", file, "-gate-margin", "0"}, true, "give -default"},
		{[]string{"-adapter", file, "-default", "-gate-margin", "2"}, true, "-gate-margin is 2"},
		{[]string{"-adapter", file, "-default", "-gate-budgets", "x"}, true, "not a number of tokens"},
		{[]string{"-adapter", file, "-default", "-gate", "nowhere.jsonl"}, false, "nowhere.jsonl"},
		{[]string{"-adapter", file, "-server", "ftp://x"}, true, `-server is "ftp://x"`},
		{[]string{"-adapter", "nowhere.gguf"}, false, "nowhere.gguf"},
		{[]string{"-adapter", model}, false, `is not an adapter: its general.type is "model"`},
		{[]string{"-adapter", file, "-server", "127.0.0.1:1"}, false, "no server answers at http://127.0.0.1:1"},
	} {
		_, _, err := train(t, append([]string{"push"}, row.args...)...)
		failed(t, err, row.usage, row.says)
	}
}
