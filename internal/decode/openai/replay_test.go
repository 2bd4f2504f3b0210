package openai_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"anytime/internal/decode"
	"anytime/internal/decode/openai"
	"anytime/internal/gguf/tiny"
)

// exchange is a request with what the server answered, as it is kept in testdata.
type exchange struct {
	Method   string
	Path     string
	Request  json.RawMessage `json:",omitempty"`
	Status   int
	Type     string // Content-Type
	Response string
}

// recording answers as a real llama-server did. With ANYTIME_RECORD set it is one, and what it answers is written to testdata.
func recording(t *testing.T, name string, args ...string) http.Handler {
	t.Helper()
	path := filepath.Join("testdata", name+".json")
	if os.Getenv("ANYTIME_RECORD") != "" {
		return record(t, path, args...)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var list []exchange
	if err := json.Unmarshal(data, &list); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		for i, e := range list {
			if e.Method == r.Method && e.Path == r.URL.Path && equalJSON(e.Request, body) {
				if len(list) > 1 && e.Method == http.MethodPost && strings.Contains(e.Path, "completions") {
					list = append(list[:i:i], list[i+1:]...) // the next of the same kind is another answer
				}
				w.Header().Set("Content-Type", e.Type)
				w.WriteHeader(e.Status)
				_, _ = io.WriteString(w, e.Response)
				return
			}
		}
		t.Errorf("the server was not asked this when %s was recorded: %s %s %.400s", path, r.Method, r.URL.Path, body)
		http.Error(w, `{"error": {"message": "not recorded", "code": 400}}`, http.StatusBadRequest)
	})
}

func equalJSON(a, b []byte) bool {
	var x, y bytes.Buffer
	if len(a) == 0 || len(b) == 0 {
		return len(a) == len(b)
	}
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}

func record(t *testing.T, path string, args ...string) http.Handler {
	model := tinyModel(t, tiny.Options{Rate: map[string]float64{tiny.EOS: 0.002}})
	p := llamaServer(t, model, append(append([]string{"--alias", "tiny"}, args...), exact...)...)
	target, err := url.Parse(p.url)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var list []exchange
	t.Cleanup(func() {
		data, err := json.MarshalIndent(list, "", " ")
		if err == nil {
			data = bytes.ReplaceAll(data, []byte(filepath.Dir(model)), []byte("models"))
			err = os.WriteFile(path, append(data, '\n'), 0o644)
		}
		if err != nil {
			t.Error(err)
		}
	})
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.FlushInterval = -1
	proxy.Transport = &http.Transport{DisableKeepAlives: true}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		r.ContentLength = int64(len(body))
		both := &tee{ResponseWriter: w, status: http.StatusOK}
		defer func() {
			mu.Lock()
			defer mu.Unlock()
			list = append(list, exchange{r.Method, r.URL.Path, body, both.status, both.Header().Get("Content-Type"), both.body.String()})
			if p := recover(); p != nil && p != http.ErrAbortHandler { //nolint:errorlint // a panic is no error chain
				panic(p)
			}
		}()
		proxy.ServeHTTP(both, r)
	})
}

// tee keeps what is written.
type tee struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (w *tee) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *tee) Write(p []byte) (int, error) {
	w.body.Write(p)
	return w.ResponseWriter.Write(p)
}

func (w *tee) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// serve serves a handler until the test ends.
func serve(t testing.TB, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s.URL
}

// meddler passes a stream of completions through after doing something to it.
type meddler struct {
	http.Handler
	t *testing.T
	// meddle gets the n-th stream, counted from 0, and returns what of it is sent, and whether the connection then breaks.
	meddle func(n int, stream string) (sent string, breaks bool)
	n      int
}

func (m *meddler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := httptest.NewRecorder()
	m.Handler.ServeHTTP(answer, r)
	stream := answer.Body.String()
	breaks := false
	if strings.HasPrefix(answer.Header().Get("Content-Type"), "text/event-stream") {
		stream, breaks = m.meddle(m.n, stream)
		m.n++
	}
	w.Header().Set("Content-Type", answer.Header().Get("Content-Type"))
	w.WriteHeader(answer.Code)
	_, _ = io.WriteString(w, stream)
	if breaks {
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

const thought = "What is one and two? <think>\n"

// Spans, forced text, forks, log-probabilities and the model's own end, against what a real llama-server answered.
func TestRecorded(t *testing.T) {
	url := serve(t, recording(t, "llama-server"))
	e := connect(t, openai.Config{URL: url, Name: "tiny"})
	info := e.Info()
	can := decode.Capabilities{TokenIDs: true, LogProbs: true, LogitBias: true, Seed: true}
	if info.Capabilities != can || info.ContextTokens != 2048 || info.Vocabulary != 354 || info.MaxSequences != 4 || info.EOS != tiny.EOS || !strings.Contains(info.ChatTemplate, "<|im_start|>") {
		t.Errorf("info %+v", info)
	}
	if d := describe(e); !strings.Contains(d, "llama-server") || !strings.Contains(d, "token ids") || !strings.Contains(d, "tokenize, apply-template") {
		t.Errorf("described as %q", d)
	}
	s := begin(t, e, decode.Text(thought))
	first, end := span(t, s, decode.Span{MaxTokens: 12})
	if len(first) != 12 || end != decode.EndLimit || first[0].ID < 0 || first[0].LogProb >= 0 {
		t.Fatalf("%d tokens %+v, end %s", len(first), first, end)
	}
	second, _ := span(t, s, decode.Span{MaxTokens: 8})
	whole, _ := span(t, begin(t, e, decode.Text(thought)), decode.Span{MaxTokens: 20})
	if ids(append(first, second...)) != ids(whole) {
		t.Errorf("12 and 8 tokens %q%q, 20 at once %q", join(first), join(second), join(whole))
	}
	f, err := s.Fork(5, decode.ForkOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Append(decode.Text("\n</think> answer:")); err != nil {
		t.Fatal(err)
	}
	answer, _ := span(t, f, decode.Span{MaxTokens: 4, TopLogProbs: 3})
	if len(answer) != 4 || len(answer[0].Top) != 3 || answer[0].Top[0].ID != answer[0].ID {
		t.Errorf("answer %+v", answer)
	}
	// The end comes at once, and must not before the third token.
	s = begin(t, e, decode.Text("Good night."))
	bias := decode.Sampling{LogitBias: map[int32]float32{eos(t, e): 1000}}
	if tokens, end := span(t, s, decode.Span{MaxTokens: 8, Sampling: bias}); len(tokens) != 0 || end != decode.EndEOG {
		t.Errorf("%d tokens, end %s", len(tokens), end)
	}
	if tokens, end := span(t, s, decode.Span{MaxTokens: 8, MinTokens: 3, Sampling: bias}); len(tokens) != 3 || end != decode.EndEOG {
		t.Errorf("%d tokens, end %s; want 3 before the end", len(tokens), end)
	}
	short := connect(t, openai.Config{URL: url, Name: "tiny", ContextTokens: 24})
	s = begin(t, short, decode.Text(thought))
	if tokens, end := span(t, s, decode.Span{MaxTokens: 16}); len(tokens) == 0 || len(tokens) == 16 || end != decode.EndContext {
		t.Errorf("%d tokens, end %s; want the context to be full", len(tokens), end)
	}
	s = begin(t, short, decode.Text("abcdefghijklmnopqrstuvwxyz"))
	if err := s.Decode(decode.Span{MaxTokens: 1}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := finish(s); !errors.Is(err, decode.ErrContextFull) {
		t.Errorf("a prompt that is too long: %v", err)
	}
}

func eos(t *testing.T, e decode.Engine) int32 {
	t.Helper()
	tokens, err := e.Tokenize(t.Context(), decode.Text(e.Info().EOS))
	if err != nil || len(tokens) != 1 {
		t.Fatalf("EOS is %+v, %v", tokens, err)
	}
	return tokens[0].ID
}

// A stream that is cut anywhere, is no JSON, stops without a reason or with an error is taken up behind the last token that came.
func TestRecordedFaults(t *testing.T) {
	lines := func(stream string, n int) string {
		return strings.Join(strings.SplitAfter(stream, "\n\n")[:n], "")
	}
	// Of the streams, two are of Open.
	faults := map[int]func(string) (string, bool){
		2: func(s string) (string, bool) { return lines(s, 5), true },
		3: func(s string) (string, bool) { return lines(s, 3) + `data: {"choices": [{"te`, true },
		4: func(s string) (string, bool) { return lines(s, 2) + "data: nonsense\n\n" + lines(s, 4), false },
		5: func(s string) (string, bool) { return lines(s, 1) + "data: [DONE]\n\n", false },
		6: func(s string) (string, bool) { return lines(s, 2), false },
		7: func(s string) (string, bool) {
			return lines(s, 1) + `data: {"error": {"code": 500, "message": "slot failed", "type": "server_error"}}` + "\n\n", false
		},
		8: func(string) (string, bool) { return "", true },
		9: func(s string) (string, bool) { return ": ping\n\n" + s, false },
	}
	m := &meddler{Handler: recording(t, "llama-server-faults"), t: t, meddle: func(n int, stream string) (string, bool) {
		if f := faults[n]; f != nil {
			return f(stream)
		}
		return stream, false
	}}
	e := connect(t, openai.Config{URL: serve(t, m), Name: "tiny"})
	got, end := span(t, begin(t, e, decode.Text(thought)), decode.Span{MaxTokens: 24})
	if m.n != 10 {
		t.Errorf("%d streams; want 2 of Open and 8", m.n)
	}
	want, _ := span(t, begin(t, e, decode.Text(thought)), decode.Span{MaxTokens: 24})
	if ids(got) != ids(want) || end != decode.EndLimit {
		t.Errorf("\n got %q, end %s\nwant %q", join(got), end, join(want))
	}
}
