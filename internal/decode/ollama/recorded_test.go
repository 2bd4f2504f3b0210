package ollama_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"anytime/internal/decode"
	"anytime/internal/decode/decodetest"
	"anytime/internal/decode/ollama"
	"anytime/internal/decode/prompt"
	"anytime/internal/gguf/tiny"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var recording = flag.Bool("record", false, "write testdata/exchanges.jsonl anew, with a real Ollama")

// exchange is one request and what Ollama answered.
type exchange struct {
	Method   string `json:"method"`
	Path     string `json:"path"`
	Request  string `json:"request,omitempty"`
	Status   int    `json:"status"`
	Response string `json:"response"`
}

const exchangesFile = "testdata/exchanges.jsonl"

// recorder passes requests on to a real server and writes down what passes.
func recorder(t *testing.T, o *process) http.Handler {
	t.Helper()
	f, err := os.Create(exchangesFile)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	u, err := url.Parse("http://" + o.address)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(u)
	var mu sync.Mutex
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked := readRequest(t, r)
		rec := httptest.NewRecorder()
		r.Host = u.Host
		proxy.ServeHTTP(rec, r)
		said := strings.ReplaceAll(rec.Body.String(), o.dir, "/ollama")
		mu.Lock()
		defer mu.Unlock()
		if err := json.NewEncoder(f).Encode(exchange{r.Method, r.URL.Path, asked, rec.Code, said}); err != nil {
			t.Error(err)
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes())
	})
}

// readRequest returns a request's body and puts it back; blobs are told apart by their path.
func readRequest(t *testing.T, r *http.Request) string {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Error(err)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if strings.Contains(r.URL.Path, "/blobs/") {
		return ""
	}
	return string(body)
}

func exchanges(t testing.TB) []exchange {
	t.Helper()
	data, err := os.ReadFile(exchangesFile)
	if err != nil {
		t.Fatal(err)
	}
	var list []exchange
	for d := json.NewDecoder(bytes.NewReader(data)); d.More(); {
		var x exchange
		if err := d.Decode(&x); err != nil {
			t.Fatal(err)
		}
		list = append(list, x)
	}
	return list
}

// replay answers what was asked before as it was answered before.
func replay(t *testing.T) http.Handler {
	var mu sync.Mutex
	left := exchanges(t)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked := readRequest(t, r)
		mu.Lock()
		defer mu.Unlock()
		i := slices.IndexFunc(left, func(x exchange) bool {
			return x.Method == r.Method && x.Path == r.URL.Path && x.Request == asked
		})
		if i < 0 {
			t.Errorf("this was never asked when the exchanges were recorded (go test -run TestRecorded -record does it anew):\n%s %s\n%s", r.Method, r.URL.Path, asked)
			w.WriteHeader(http.StatusNotImplemented)
			return
		}
		x := left[i]
		left = slices.Delete(left, i, i+1)
		w.WriteHeader(x.Status)
		_, _ = io.WriteString(w, x.Response)
	})
}

// What an engine does with a real Ollama, recorded: opening, the template, exact limits, forks and their closing, log-probabilities, seeds,
// special tokens of users, a missing model, adapters.
func TestRecorded(t *testing.T) {
	var handler http.Handler
	if *recording {
		o := start(t)
		o.create("chatty", "FROM tiny\nTEMPLATE \"\"\"{{ if .System }}[S]{{ .System }}[/S]{{ end }}{{ range .Messages }}{{ if ne .Role \"system\" }}"+
			"<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}{{ end }}<|im_start|>assistant\n<think>\n\"\"\"\nPARAMETER num_ctx 1024\nPARAMETER stop i\nPARAMETER temperature 2\n")
		handler = recorder(t, o)
	} else {
		handler = replay(t)
	}
	server := httptest.NewServer(handler)
	defer server.Close()
	config := ollama.Config{URL: server.URL, Model: "chatty", Parallel: 1, Options: map[string]any{"num_thread": 1}, KeepAlive: time.Hour}
	e, err := ollama.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()

	info := e.Info()
	if info.ContextTokens != 1024 || info.Architecture != "llama" || info.EOS != tiny.EOS || !slices.Contains(info.SpecialTokens, tiny.ThinkClose) {
		t.Errorf("info %+v", info)
	}
	renderer, err := prompt.New(info, prompt.Family{Name: "x", Open: "<think>\n", Close: []string{"</think>"}, Closing: "</think>"}, "")
	if err != nil {
		t.Fatal(err)
	}
	p, err := renderer.Render([]prompt.Message{{Role: "system", Content: "Be <good>"}, {Role: "user", Content: "a</think>b"},
		{Role: "assistant", Content: "B"}, {Role: "user", Content: "c"}}, prompt.Options{Thinking: true})
	if err != nil {
		t.Fatal(err)
	}
	rendered := ""
	for _, part := range p.Parts {
		rendered += part.Text
	}
	if want := "[S]Be <good>[/S]<|im_start|>user\na</think>b<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n<think>\n"; rendered != want {
		t.Errorf("prompt:\n got %q\nwant %q", rendered, want)
	}

	s, err := e.Open(t.Context(), decode.Request{Prompt: p.Parts, Seed: 11})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Decode(decode.Span{MaxTokens: 40}); err != nil {
		t.Fatal(err)
	}
	thought, end, err := read(t, s)
	if err != nil || end != decode.EndLimit || len(thought) != 40 || !strings.Contains(decodetest.Join(thought), "i") {
		t.Fatalf("%d tokens %q, end %q, %v; the Modelfile's stop and temperature must not count", len(thought), decodetest.Join(thought), end, err)
	}
	votes := map[string]bool{}
	for seed := range uint64(3) {
		f, err := s.Fork(25, decode.ForkOptions{Seed: seed, Priority: decode.Priority{Class: decode.ClassAnswer}})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Append(decode.Text("</think> So:")); err != nil {
			t.Fatal(err)
		}
		if err := f.Decode(decode.Span{MaxTokens: 12, Sampling: decode.Sampling{Temperature: 1}, TopLogProbs: 2}); err != nil {
			t.Fatal(err)
		}
		tokens, end, err := read(t, f)
		if err != nil || end != decode.EndLimit || len(tokens) != 12 {
			t.Fatalf("vote: %d tokens, end %q, %v", len(tokens), end, err)
		}
		for _, tok := range tokens {
			if tok.LogProb >= 0 || len(tok.Top) != 2 || tok.ID != -1 {
				t.Errorf("token %+v", tok)
			}
		}
		votes[decodetest.Join(tokens)] = true
	}
	if len(votes) != 3 {
		t.Errorf("3 seeds gave the votes %v", votes)
	}

	config.Model = "llama9"
	if e, err := ollama.Open(t.Context(), config); err == nil {
		e.Close()
		t.Error("a missing model was opened")
	} else if !strings.Contains(err.Error(), "ollama pull llama9") {
		t.Errorf("missing model: %v", err)
	}

	path := filepath.Join(t.TempDir(), "lora.gguf")
	if err := tiny.WriteAdapter(path, 9, ""); err != nil {
		t.Fatal(err)
	}
	if err := e.LoadAdapter(t.Context(), "math", path, 0.5); err != nil {
		t.Fatal(err)
	}
	if names := e.AdapterNames(); !slices.Equal(names, []string{"math"}) {
		t.Errorf("adapters %q", names)
	}
	req := prompted("One and two")
	bare, _ := ask(t, e, req, decode.Span{MaxTokens: 12})
	req.Adapter = "math"
	if adapted, _ := ask(t, e, req, decode.Span{MaxTokens: 12}); decodetest.Join(adapted) == decodetest.Join(bare) {
		t.Errorf("with and without the adapter: %q", decodetest.Join(bare))
	}
	if err := e.UnloadAdapter(t.Context(), "math"); err != nil {
		t.Fatal(err)
	}
	if err := e.UnloadAdapter(t.Context(), "math"); !errors.Is(err, decode.ErrUnknownAdapter) {
		t.Errorf("unloaded twice: %v", err)
	}
}

func TestBadAdapters(t *testing.T) {
	server := httptest.NewServer(replay(t))
	defer server.Close()
	e := openAt(t, server.URL, 1)
	defer e.Close()
	dir := t.TempDir()
	good, other, junk, model := filepath.Join(dir, "good"), filepath.Join(dir, "other"), filepath.Join(dir, "junk"), filepath.Join(dir, "model")
	for _, err := range []error{
		tiny.WriteAdapter(good, 1, ""), tiny.WriteAdapter(other, 1, "qwen2"), os.WriteFile(junk, []byte("GGUF, or not"), 0o600),
		tiny.WriteFile(model, 1, tiny.Options{}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for what, test := range map[string]struct {
		name, path string
		scale      float32
		field      string
	}{
		"no name":            {"", good, 1, "adapter"},
		"odd name":           {"a/b", good, 1, "adapter"},
		"junk":               {"a", junk, 1, "adapter"},
		"a model":            {"a", model, 1, "adapter"},
		"other architecture": {"a", other, 1, "adapter"},
		"scale 0":            {"a", good, 0, "scale"},
		"scale 1000":         {"a", good, 1000, "scale"},
	} {
		var input *decode.InputError
		if err := e.LoadAdapter(t.Context(), test.name, test.path, test.scale); !errors.As(err, &input) || input.Field != test.field {
			t.Errorf("%s: error %v, want an InputError of %s", what, err, test.field)
		}
	}
	if err := e.LoadAdapter(t.Context(), "a", filepath.Join(dir, "nowhere"), 1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// Streams that break, in every way that was thought of: the text is whole in the end, or the error says what is wrong.
func TestBrokenStreams(t *testing.T) {
	var first exchange // the recorded thought of 40 tokens
	for _, x := range exchanges(t) {
		if x.Path == "/api/generate" {
			first = x
			break
		}
	}
	lines := strings.SplitAfter(strings.TrimSpace(first.Response), "\n")
	type message struct {
		Response string `json:"response"`
	}
	var texts []string
	for _, l := range lines {
		var m message
		if err := json.Unmarshal([]byte(l), &m); err != nil {
			t.Fatal(err)
		}
		texts = append(texts, m.Response)
	}
	whole := strings.Join(texts, "")
	const question = "One and two"

	for name, test := range map[string]struct {
		fault func(w http.ResponseWriter, rest []string) // the first three answers
		want  string                                     // of the error, if it cannot be mended
	}{
		"cut between messages": {func(w http.ResponseWriter, rest []string) { write(w, rest[:7]...) }, ""},
		"cut in a message":     {func(w http.ResponseWriter, rest []string) { write(w, rest[0], rest[1], rest[2][:20]) }, ""},
		"connection reset": {func(w http.ResponseWriter, rest []string) {
			write(w, rest[:5]...)
			panic(http.ErrAbortHandler)
		}, ""},
		"not JSON":    {func(w http.ResponseWriter, rest []string) { write(w, rest[0], "<html>oops</html>\n") }, ""},
		"a huge line": {func(w http.ResponseWriter, rest []string) { write(w, rest[0], strings.Repeat("x", 2<<20)) }, ""},
		"an error message": {func(w http.ResponseWriter, rest []string) {
			write(w, rest[0], `{"error":"an error was encountered while running the model"}`)
		}, ""},
		"nothing": {func(http.ResponseWriter, []string) {}, ""},
		"odd end": {func(w http.ResponseWriter, rest []string) { write(w, rest[0], `{"done":true,"done_reason":"unload"}`) }, ""},
		"no memory": {func(w http.ResponseWriter, _ []string) {
			w.WriteHeader(http.StatusInternalServerError)
			write(w, `{"error":"model requires more system memory (9.0 GiB) than is available (3.1 GiB)"}`)
		}, ""},
		"queue full": {func(w http.ResponseWriter, _ []string) {
			w.WriteHeader(http.StatusServiceUnavailable)
			write(w, `{"error":"server busy, please try again.  maximum pending requests exceeded"}`)
		}, ""},
		"model gone": {func(w http.ResponseWriter, _ []string) {
			w.WriteHeader(http.StatusNotFound)
			write(w, `{"error":"model 'chatty' not found"}`)
		}, "ollama pull chatty"},
		"refused": {func(w http.ResponseWriter, _ []string) { w.WriteHeader(http.StatusForbidden) }, "refuses"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			recorded := replay(t)
			failures := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/api/generate" {
					recorded.ServeHTTP(w, r)
					return
				}
				var req struct {
					Prompt  string `json:"prompt"`
					Options struct {
						NumPredict int `json:"num_predict"`
					} `json:"options"`
				}
				if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
					t.Error(err)
				}
				said := strings.TrimPrefix(req.Prompt, question)
				i := 0
				for at := ""; at != said; i++ {
					if at += texts[i]; len(at) > len(said) || i > len(texts) {
						t.Errorf("asked to continue %q", req.Prompt)
						return
					}
				}
				if rest := len(lines) - 1 - i; req.Options.NumPredict != rest {
					t.Errorf("asked for %d tokens where %d are left", req.Options.NumPredict, rest)
				}
				if failures++; failures <= 3 {
					test.fault(w, lines[i:])
					return
				}
				write(w, lines[i:len(lines)-1]...)
				write(w, `{"done":true,"done_reason":"length"}`)
			}))
			defer server.Close()
			e := openAt(t, server.URL, 1)
			defer e.Close()
			s, err := e.Open(t.Context(), decode.Request{Prompt: []decode.Part{decode.Text(question)}})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if err := s.Decode(decode.Span{MaxTokens: len(lines) - 1}); err != nil {
				t.Fatal(err)
			}
			tokens, end, err := read(t, s)
			switch {
			case test.want != "":
				if !errors.Is(err, decode.ErrUnavailable) || !strings.Contains(err.Error(), test.want) {
					t.Errorf("error %v, want one that says %q", err, test.want)
				}
			case err != nil || end != decode.EndLimit || decodetest.Join(tokens) != whole:
				t.Errorf("end %q, %v:\n got %q\nwant %q", end, err, decodetest.Join(tokens), whole)
			}
		})
	}
}

// An Ollama that has lost its places says nothing until the model is unloaded. That is found out at the opening, when it is asked whether
// it is ready, even by one who does not wait for so long, and when it is to speak.
func TestMute(t *testing.T) {
	ollama.SetFirstToken(t, 100*time.Millisecond)
	for name, wake := range map[string]func(t *testing.T, address string) *ollama.Engine{
		"opened": func(t *testing.T, address string) *ollama.Engine { return openAt(t, address, 0) },
		"asked whether it is ready": func(t *testing.T, address string) *ollama.Engine {
			e := openAt(t, address, 1)
			for {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
				err := e.Ready(ctx)
				cancel()
				if err == nil {
					return e
				} else if !errors.Is(err, decode.ErrUnavailable) {
					t.Fatal(err)
				}
			}
		},
		"spoken to": func(t *testing.T, address string) *ollama.Engine { return openAt(t, address, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			recorded := replay(t)
			var unloads atomic.Int32
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				var req struct {
					Prompt  string
					Options struct {
						Predict int `json:"num_predict"`
					}
					KeepAlive json.RawMessage `json:"keep_alive"`
				}
				if r.URL.Path != "/api/generate" {
					recorded.ServeHTTP(w, r)
					return
				} else if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
					t.Error(err)
				}
				switch {
				case req.Prompt == "" && string(req.KeepAlive) == `"0s"`:
					unloads.Add(1)
				case req.Prompt == "":
				case unloads.Load() == 0:
					<-r.Context().Done()
					return
				default:
					for range req.Options.Predict {
						write(w, `{"response":"a","created_at":"`+time.Now().Format(time.RFC3339Nano)+`"}`+"\n")
					}
				}
				write(w, `{"done":true,"done_reason":"length"}`)
			}))
			defer server.Close()
			e := wake(t, server.URL)
			defer e.Close()
			if tokens, end := ask(t, e, prompted("One"), decode.Span{MaxTokens: 5}); len(tokens) != 5 || end != decode.EndLimit {
				t.Errorf("%d tokens, end %q", len(tokens), end)
			}
			if n := unloads.Load(); n != 1 {
				t.Errorf("the model was unloaded %d times, want once", n)
			}
		})
	}
}

// openAt opens the recorded model.
func openAt(t *testing.T, address string, parallel int) *ollama.Engine {
	t.Helper()
	e, err := ollama.Open(t.Context(), ollama.Config{URL: address, Model: "chatty", Parallel: parallel, Options: map[string]any{"num_thread": 1}, KeepAlive: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func write(w http.ResponseWriter, lines ...string) {
	for _, l := range lines {
		_, _ = io.WriteString(w, l)
		_ = http.NewResponseController(w).Flush()
	}
}

// What goes wrong at the opening says what to do; a missing model is pulled when that is wished.
func TestOpen(t *testing.T) {
	type answer struct {
		status int
		body   string
	}
	missing := answer{http.StatusNotFound, `{"error":"model 'chatty' not found"}`}
	for name, test := range map[string]struct {
		config  ollama.Config
		answers map[string][]answer // in the order in which they are given, then what was recorded
		want    string              // of the error; "" none
	}{
		"missing":           {ollama.Config{}, map[string][]answer{"/api/show": {missing}}, "ollama pull chatty"},
		"pulled":            {ollama.Config{Pull: true}, map[string][]answer{"/api/show": {missing}, "/api/pull": {{200, "{\"status\":\"pulling\",\"total\":8,\"completed\":3}\n{\"status\":\"success\"}\n"}}}, ""},
		"not to be pulled":  {ollama.Config{Pull: true}, map[string][]answer{"/api/show": {missing}, "/api/pull": {{200, `{"error":"pull model manifest: file does not exist"}`}}}, "file does not exist"},
		"no memory":         {ollama.Config{}, map[string][]answer{"/api/chat": {{500, `{"error":"model requires more system memory (9 GiB) than is available (3 GiB)"}`}}}, "ollama ps"},
		"too long":          {ollama.Config{ContextTokens: 1 << 20}, nil, "4096"},
		"another server":    {ollama.Config{}, map[string][]answer{"/api/show": {{200, "<html>"}}}, "chatty"},
		"for embeddings":    {ollama.Config{}, map[string][]answer{"/api/show": {{200, `{"capabilities":["embedding"]}`}}}, "embedding"},
		"no template shown": {ollama.Config{}, map[string][]answer{"/api/chat": {{200, `{"message":{"content":"Hi"},"done":true}`}}}, ""},
		"not running":       {ollama.Config{URL: "127.0.0.1:1"}, nil, "ollama serve"},
		"odd address":       {ollama.Config{URL: "ftp://x"}, nil, "http://127.0.0.1:11434"},
		"odd option":        {ollama.Config{Options: map[string]any{"temperature": 1}}, nil, "num_gpu"},
	} {
		t.Run(name, func(t *testing.T) {
			recorded := replay(t)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if list := test.answers[r.URL.Path]; len(list) > 0 {
					test.answers[r.URL.Path] = list[1:]
					w.WriteHeader(list[0].status)
					write(w, list[0].body)
					return
				}
				recorded.ServeHTTP(w, r)
			}))
			defer server.Close()
			c := test.config
			c.Model, c.Parallel, c.KeepAlive = "chatty", 1, time.Hour
			if c.URL == "" {
				c.URL = server.URL
			}
			if c.Options == nil {
				c.Options = map[string]any{"num_thread": 1}
			}
			progress := 0
			c.Progress = func(ollama.Progress) { progress++ }
			e, err := ollama.Open(t.Context(), c)
			switch {
			case err == nil:
				e.Close()
				if test.want != "" {
					t.Errorf("it was opened")
				} else if c.Pull && progress != 2 {
					t.Errorf("%d reports of progress", progress)
				}
			case test.want == "" || !strings.Contains(err.Error(), test.want):
				t.Errorf("error %q, want one that says %q", err, test.want)
			}
		})
	}
}
