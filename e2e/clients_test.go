package e2e

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
)

// programs are the clients' and what each checks, as docs/clients.md lists them.
var programs = []struct {
	file   string
	checks []string
}{
	{"node/openai.mjs", []string{"models", "chat within a budget", "effort", "streaming", "cancelling", "errors", "structured output", "tools", "tools, run by the client",
		"responses", "responses: structured output and tools"}},
	{"node/ai.mjs", []string{"chat within a budget", "effort", "streaming", "cancelling", "structured output", "tools"}},
	{"python/openai_client.py", []string{"models", "chat within a budget", "effort", "a deadline", "streaming", "cancelling", "errors", "structured output", "tools",
		"tools, streamed", "responses", "responses in the background", "responses: structured output and tools"}},
	{"python/langchain_client.py", []string{"chat within a budget", "effort", "streaming", "cancelling", "structured output", "tools", "responses"}},
}

// fetchClients gets the clients' packages, once.
func fetchClients(t *testing.T) (dir string) {
	t.Helper()
	dir, err := filepath.Abs("clients")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(filepath.Join(dir, "fetch.sh")).CombinedOutput(); err != nil {
		t.Fatalf("fetch the clients: %v\n%s", err, out)
	}
	return dir
}

// program is a command of the clients' languages, against a server.
func program(dir, file string, s *server) *exec.Cmd {
	language, name := filepath.Split(file)
	command := exec.Command("node", name)
	if strings.HasPrefix(language, "python/") {
		command = exec.Command("python3", "-B", name)
	}
	command.Dir = filepath.Join(dir, language)
	command.Env = append(os.Environ(), "BASE_URL="+s.url, "PYTHONPATH="+filepath.Join(dir, "python", "packages"), "NO_PROXY=127.0.0.1",
		"LANGSMITH_TRACING=false", "AI_SDK_LOG_WARNINGS=false")
	return command
}

// The official clients, unchanged, do what they do with the servers that they were made for.
func TestClients(t *testing.T) {
	if os.Getenv("ANYTIME_TEST_ALL") == "" {
		return // with `make test-all`
	}
	dir := fetchClients(t)
	s := start(t, "", append(exact(talker), "-max-thinking", "400")...)
	for _, p := range programs {
		t.Run(p.file, func(t *testing.T) {
			began := time.Now()
			out, err := program(dir, p.file, s).CombinedOutput()
			var done []string
			for line := range strings.Lines(string(out)) {
				if name, ok := strings.CutPrefix(strings.TrimSpace(line), "ok "); ok {
					done = append(done, name)
				}
			}
			if err != nil || !slices.Equal(done, p.checks) {
				t.Errorf("%v\n%s", err, out)
			}
			t.Logf("%d checks in %v", len(done), time.Since(began).Round(time.Millisecond))
		})
	}
	// Nothing goes on for those who left.
	s.until("idle", func() bool {
		return bytes.Contains(s.do("GET", "/metrics", nil).body, []byte("\nanytime_runs_running 0\n"))
	})
}

// The table in the documentation is what is tried.
func TestClientsDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/clients.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		i := bytes.Index(page, []byte("e2e/clients/"+p.file))
		if i < 0 {
			t.Errorf("docs/clients.md does not name %s", p.file)
			continue
		}
		row, _, _ := bytes.Cut(page[i:], []byte("\n"))
		for _, check := range p.checks {
			if !bytes.Contains(row, []byte(check)) {
				t.Errorf("docs/clients.md does not say that %s checks %q", p.file, check)
			}
		}
	}
}

// Whatever keeps to the contract, and much that does not, gets a reply that keeps to it, and none that blames the server.
func TestContract(t *testing.T) {
	if os.Getenv("ANYTIME_TEST_ALL") == "" {
		return
	}
	dir := fetchClients(t)
	s := start(t, "", append(exact(thinker), "-max-thinking", "64", "-ctx", "512")...)
	document := filepath.Join(t.TempDir(), "openapi.json")
	write(t, document, nullable(t, "../api/openapi.yaml"))
	command := program(dir, "python/packages/bin/schemathesis", s)
	command.Args = append(command.Args, "run", document, "--url", s.url, "--max-examples", "8", "--seed", "1", "--no-shrink", "--continue-on-failure",
		"--phases", "coverage,fuzzing", "--workers", "1", "--request-timeout", "60", "--warnings", "off", "--suppress-health-check", "all",
		// What the schema allows may still be a conflict, or name a model that is not there.
		"--exclude-checks", "positive_data_acceptance")
	if out, err := command.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, tail(out))
	} else {
		t.Logf("%s", tail(out))
	}
	if r := s.do("GET", "/readyz", nil); r.status != http.StatusOK {
		t.Errorf("readyz afterwards: %d %s", r.status, r.body)
	}
}

// nullable is the contract with what it says in words, that a member of a body which is null counts as absent, said in its schemas.
func nullable(t *testing.T, path string) string {
	t.Helper()
	document, err := openapi3.NewLoader().LoadFromFile(path)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[*openapi3.Schema]bool{}
	var visit func(*openapi3.Schema)
	visit = func(s *openapi3.Schema) {
		if seen[s] {
			return
		}
		seen[s] = true
		for name, p := range s.Properties {
			p.Value.Nullable = p.Value.Nullable || !slices.Contains(s.Required, name)
			visit(p.Value)
		}
		for _, alternative := range s.AnyOf {
			visit(alternative.Value)
		}
		if s.Items != nil {
			visit(s.Items.Value)
		}
		if others := s.AdditionalProperties.Schema; others != nil {
			others.Value.Nullable = true
			visit(others.Value)
		}
	}
	for _, item := range document.Paths.Map() {
		for _, operation := range item.Operations() {
			if operation.RequestBody != nil {
				if media := operation.RequestBody.Value.Content.Get("application/json"); media != nil {
					visit(media.Schema.Value)
				}
			}
		}
	}
	text, err := document.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func tail(out []byte) []byte { return out[max(0, len(out)-12000):] }
