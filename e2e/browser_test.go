package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"anytime/internal/decode/decodetest"
)

// views are what the page is tried for in a browser, by program, as docs/page.md lists them.
var views = []struct {
	program string
	checks  []string
}{
	{"page.mjs", []string{"examples suit the model", "ask and watch", "answer now", "answer, but think on; stop", "think more", "one thought at several budgets",
		"a budget in seconds", "formulas and Markdown", "reload in mid-thought", "lost connection", "offline", "events that are void", "two tabs on one run", "past runs",
		"models and their curves", "load", "a training run", "the server is gone", "a key is needed", "no key", "too many requests", "an unknown run", "keyboard only",
		"what a screen reader hears", "dark and light"}},
	{"looks.mjs", []string{"the puzzle", "axe, light", "axe, dark", "phone, 320 pixels", "phone, 390 pixels", "pictures", "pictures in the dark", "pictures of a phone"}},
	{"figures.mjs", []string{"weight", "the first token", "a long thought"}},
}

// stage is an engine whose thoughts and answers are written here: it plays the part that the question names.
type stage struct {
	t       *testing.T
	hostile []string
}

var caseRE = regexp.MustCompile(`case-(\d+)\.`)

// part is the model that plays what a prompt asks for, and how long it takes for a token.
func (s *stage) part(prompt string) (model decodetest.Model, pace time.Duration) {
	say := func(thinking []string, answer string) decodetest.Model {
		return decodetest.Script(thinking, "<think>\n", "</think>", func(string) []string { return strings.SplitAfter(answer, " ") })
	}
	answer := func(prefix string, seed uint64) string {
		thought, _, closed := strings.Cut(prefix, "</think>")
		if !closed {
			if len(prefix)-strings.LastIndexByte(prefix, '\n') > 300 {
				return ".\n"
			}
			return decodetest.Words(prefix, seed)
		}
		words := strings.Count(thought, " ") / 200 * 200
		return say(nil, fmt.Sprintf(`\boxed{%d}`, words))(prefix, seed)
	}
	switch {
	case caseRE.MatchString(prompt):
		i, err := strconv.Atoi(caseRE.FindStringSubmatch(prompt)[1])
		if err != nil || i >= len(s.hostile) {
			s.t.Errorf("%q: %v", prompt, err)
			return decodetest.Words, 0
		}
		text := s.hostile[i]
		return say([]string{"Hm.", " ", text, " "}, text+` \boxed{`+text+`}`), 0
	case strings.Contains(prompt, "With a formula."):
		return say([]string{"A", " sum."}, `The **first** ten odd numbers: $\sum_{k=1}^{10} (2k-1) = 10^2$, which is \boxed{\frac{200}{2}}`), 0
	case strings.Contains(prompt, "With stars."):
		return say([]string{"A", " product."}, `\boxed{2*3*4}`), 0
	case strings.Contains(prompt, "Take your time."):
		return answer, 4 * time.Millisecond
	case strings.Contains(prompt, "At length."):
		return answer, time.Millisecond
	}
	return answer, 0
}

func (s *stage) complete(w http.ResponseWriter, r *http.Request) {
	var req struct {
		Prompt    string `json:"prompt"`
		MaxTokens int    `json:"max_tokens"`
	}
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	model, pace := s.part(req.Prompt)
	finish := "length"
	for range req.MaxTokens {
		token := model(req.Prompt, 0)
		if token == "" {
			finish = "stop"
			break
		}
		req.Prompt += token
		text, err := json.Marshal(token)
		if err != nil {
			s.t.Error(err)
			return
		}
		fmt.Fprintf(w, "data: {\"choices\":[{\"index\":0,\"text\":%s,\"finish_reason\":null}]}\n\n", text)
		_ = http.NewResponseController(w).Flush()
		select {
		case <-time.After(pace):
		case <-r.Context().Done():
			return
		}
	}
	fmt.Fprintf(w, "data: {\"choices\":[{\"index\":0,\"text\":\"\",\"finish_reason\":%q}]}\n\ndata: [DONE]\n\n", finish)
}

// browser runs a program of e2e/browser against a server with the project's own model and a stage, and one with keys, and returns the
// checks that it did.
type browser struct {
	t   *testing.T
	dir string
	env []string
}

// newBrowser gets ready. Without a Chromium it skips the test, or fails it on CI.
func newBrowser(t *testing.T) *browser {
	t.Helper()
	if os.Getenv("ANYTIME_TEST_ALL") == "" {
		t.Skip("with `make test-all`")
	}
	var chromium string
	for _, name := range []string{os.Getenv("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			chromium = path
			break
		}
	}
	if chromium == "" {
		message := "NOT TESTED: the page, for there is no Chromium (Debian: sudo apt-get install chromium; or name one in CHROMIUM)"
		if os.Getenv("CI") != "" {
			t.Fatal(message)
		}
		t.Skip(message)
	}
	dir, err := filepath.Abs("browser")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(filepath.Join(dir, "fetch.sh")).CombinedOutput(); err != nil {
		t.Fatalf("fetch what drives the browser: %v\n%s", err, out)
	}
	list, err := os.ReadFile(filepath.Join(dir, "hostile.json"))
	if err != nil {
		t.Fatal(err)
	}
	actor := &stage{t: t}
	if err := json.Unmarshal(list, &actor.hostile); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"object":"list","data":[{"id":"stage","object":"model","owned_by":"test"}]}`)
	})
	mux.HandleFunc("POST /v1/completions", actor.complete)
	played := httptest.NewServer(mux)
	t.Cleanup(played.Close)
	reasoner, err := filepath.Abs("../models/reasoner")
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "config.yaml")
	write(t, config, fmt.Sprintf("models:\n- path: %[1]s/reasoner.gguf\n  max_thinking: 512\n  adapters: {brpo: %[1]s/reasoner-brpo.gguf}\n"+
		"- id: stage\n  ctx: 131072\n  max_thinking: 100000\n  family: think\n  engine: {kind: openai, url: '%[2]s', model: stage}\n",
		reasoner, local(strings.TrimPrefix(played.URL, "http://"))))
	shots := t.TempDir()
	if os.Getenv("ANYTIME_SCREENSHOTS") != "" {
		if shots, err = filepath.Abs("../docs/img"); err != nil {
			t.Fatal(err)
		}
	}
	return &browser{t, dir, append(os.Environ(), "BASE_URL="+start(t, "", "-config", config).url, "KEYS_URL="+guarded(t).url, "CHROMIUM="+chromium, "SHOTS="+shots)}
}

func (b *browser) run(program string, want []string) {
	b.t.Helper()
	command := exec.Command("node", program)
	command.Dir, command.Env = b.dir, b.env
	began := time.Now()
	out, err := command.CombinedOutput()
	var done []string
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "ok "); ok {
			done = append(done, name)
		}
		if figure, ok := strings.CutPrefix(line, "figure "); ok {
			b.t.Log(figure)
		}
	}
	if err != nil || !slices.Equal(done, want) {
		b.t.Errorf("%v\n%s", err, out)
	}
	b.t.Logf("%s: %d checks in %v", program, len(done), time.Since(began).Round(time.Millisecond))
}

func TestPage(t *testing.T) {
	b := newBrowser(t)
	for _, v := range views {
		b.run(v.program, v.checks)
	}
}

// What the documentation lists is what is tried.
func TestPageDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/page.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range slices.Concat(views, attempts) {
		i := bytes.Index(page, []byte("e2e/browser/"+v.program))
		if i < 0 {
			t.Errorf("docs/page.md does not name %s", v.program)
			continue
		}
		row, _, _ := bytes.Cut(page[i:], []byte("\n"))
		for _, check := range v.checks {
			if !bytes.Contains(row, []byte(check)) {
				t.Errorf("docs/page.md does not say that %s checks %q", v.program, check)
			}
		}
	}
}
