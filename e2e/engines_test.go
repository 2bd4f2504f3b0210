package e2e

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/decode/decodetest"
	"anytime/internal/gguf"
	"anytime/internal/gguf/tiny"
)

// upstream is another server, which decodes for ours and can die.
type upstream interface {
	// engine is its mapping in the config file.
	engine() string
	kill()
	revive()
	// busy is how many requests it decodes; -1 it does not tell.
	busy() int
}

// scripted speaks OpenAI's protocol as the simplest servers do: text completions, streamed.
type scripted struct {
	t        testing.TB
	address  string
	pace     time.Duration // of a token
	patience time.Duration // with it; 0 a minute
	faults   []func(http.ResponseWriter, *http.Request)
	active   atomic.Int32
	asked    atomic.Int32
	struck   atomic.Int32
	web      *http.Server
	ended    chan struct{}
}

func newScripted(t testing.TB) *scripted {
	s := &scripted{t: t, address: freeAddress(t), pace: time.Millisecond}
	s.revive()
	t.Cleanup(s.kill)
	return s
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// local is a URL that start does not take for our server's, which is in the same log.
func local(address string) string {
	return "http://" + strings.Replace(address, "127.0.0.1", "localhost", 1)
}

func (s *scripted) engine() string {
	return fmt.Sprintf("{kind: openai, url: '%s', model: scripted, patience: %v}", local(s.address), cmp.Or(s.patience, time.Minute))
}

func (s *scripted) kill() {
	if s.web != nil {
		s.web.Close()
		<-s.ended
		s.web = nil
	}
}

func (s *scripted) revive() {
	l, err := net.Listen("tcp", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"object":"list","data":[{"id":"scripted","object":"model","owned_by":"test"}]}`)
	})
	mux.HandleFunc("POST /v1/completions", s.complete)
	s.web, s.ended = &http.Server{Handler: mux, ReadHeaderTimeout: patience}, make(chan struct{})
	go func(web *http.Server, ended chan struct{}) {
		_ = web.Serve(l) // until it is closed
		close(ended)
	}(s.web, s.ended)
}

func (s *scripted) busy() int { return int(s.active.Load()) }

func (s *scripted) complete(w http.ResponseWriter, r *http.Request) {
	var req struct {
		Prompt    string `json:"prompt"`
		MaxTokens int    `json:"max_tokens"`
	}
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.active.Add(1)
	n := int(s.asked.Add(1))
	defer s.active.Add(-1)
	// Of each three requests two fail: one at once, the other in the middle.
	var fault func(http.ResponseWriter, *http.Request)
	after := 0
	if n%3 != 0 && len(s.faults) > 0 {
		fault = s.faults[int(s.struck.Add(1))%len(s.faults)]
		after = n % 3 * 17 % 34
	}
	w.Header().Set("Content-Type", "text/event-stream")
	tick := time.NewTicker(s.pace)
	defer tick.Stop()
	for i := range req.MaxTokens {
		if fault != nil && i == after {
			fault(w, r)
			return
		}
		token := decodetest.Words(req.Prompt, 0)
		req.Prompt += token
		finish := "null"
		if i == req.MaxTokens-1 {
			finish = `"length"`
		}
		fmt.Fprintf(w, "data: {\"choices\":[{\"index\":0,\"text\":%q,\"finish_reason\":%s}]}\n\n", token, finish)
		_ = http.NewResponseController(w).Flush()
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
	fmt.Fprint(w, "data: [DONE]\n\n")
}

// wrong are what servers and what stands before them do to a stream.
var wrong = map[string]func(http.ResponseWriter, *http.Request){
	"ends without saying so": func(http.ResponseWriter, *http.Request) {},
	"breaks off":             func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	"half an event":          sends(`data: {"choices":[{"index":0,"te`),
	"no JSON":                sends("data: {\"choices\": oops}\n\n"),
	"another type":           sends("data: [1, 2]\n\ndata: {\"choices\": \"none\"}\n\n"),
	"a page":                 sends("<html><body>502 Bad Gateway</body></html>\n\n"),
	"an error":               sends("data: {\"error\":{\"message\":\"CUDA error: out of memory\",\"type\":\"server_error\",\"code\":500}}\n\n"),
	"an endless line":        sends("data: " + strings.Repeat("x", 8<<20)),
	"silence": func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done() // until it is given up
	},
	"by the byte": func(w http.ResponseWriter, _ *http.Request) {
		for _, b := range []byte(": a comment that takes its time\n\n: and another") {
			_, _ = w.Write([]byte{b})
			_ = http.NewResponseController(w).Flush()
		}
	},
}

func sends(text string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, text)
		_ = http.NewResponseController(w).Flush()
	}
}

// process is a real server.
type process struct {
	t    testing.TB
	path string
	args []string
	env  []string
	url  string
	well string // path that answers 200
	yaml string
	cmd  *exec.Cmd
}

func (p *process) engine() string { return p.yaml }

func (p *process) kill() {
	if p.cmd != nil {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		_ = p.cmd.Wait()
		p.cmd = nil
	}
}

func (p *process) revive() {
	p.cmd = exec.Command(p.path, p.args...)
	p.cmd.Env = append(os.Environ(), p.env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // what it starts is killed with it
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		if r, err := http.Get(p.url + p.well); err == nil {
			r.Body.Close()
			if r.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%s does not answer", p.path)
		}
	}
}

func (p *process) busy() int {
	var slots []struct {
		Processing bool `json:"is_processing"`
	}
	r, err := http.Get(p.url + "/slots")
	if err != nil {
		return -1
	}
	defer r.Body.Close()
	if json.NewDecoder(r.Body).Decode(&slots) != nil {
		return -1
	}
	n := 0
	for _, s := range slots {
		if s.Processing {
			n++
		}
	}
	return n
}

// built finds a server that the scripts in engine have built.
func built(t testing.TB, variable, pattern, script string) string {
	t.Helper()
	if path := os.Getenv(variable); path != "" {
		return path
	}
	found, _ := filepath.Glob(filepath.Join("..", "engine", pattern))
	if len(found) == 0 {
		t.Fatalf("it is not there: run engine/%s, or set %s to its path", script, variable)
	}
	path, err := filepath.Abs(found[len(found)-1])
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func newLlamaServer(t testing.TB) *process {
	address := freeAddress(t)
	host, port, _ := net.SplitHostPort(address)
	p := &process{
		t: t, path: built(t, "ANYTIME_LLAMA_SERVER", "llama-server/bin/llama-server", "llama-server/fetch.sh"), url: "http://" + address, well: "/health",
		args: []string{
			"-m", talker, "--host", host, "--port", port, "-t", "1", "-tb", "1", "--no-warmup", "--offline", "--slots",
			"-ctk", "f32", "-ctv", "f32", "-fa", "off", "-c", "16384", "-np", "4",
		},
		yaml: fmt.Sprintf("{kind: openai, url: '%s'}", local(address)),
	}
	p.revive()
	t.Cleanup(p.kill)
	return p
}

func newOllama(t testing.TB) *process {
	address, dir := freeAddress(t), t.TempDir()
	p := &process{
		t: t, path: built(t, "ANYTIME_OLLAMA", "ollama/ollama-v*", "ollama.sh"), url: "http://" + address, well: "/api/version", args: []string{"serve"},
		env:  []string{"HOME=" + dir, "OLLAMA_HOST=" + address, "OLLAMA_MODELS=" + filepath.Join(dir, "models"), "OLLAMA_NUM_PARALLEL=4"},
		yaml: fmt.Sprintf("{kind: ollama, url: '%s', model: talker, sequences: 4, options: {num_thread: 1}}", local(address)),
	}
	p.revive()
	t.Cleanup(p.kill)
	file := filepath.Join(dir, "Modelfile")
	write(t, file, "FROM "+letters(t)+"\n")
	create := exec.Command(p.path, "create", "talker", "-f", file)
	create.Env = append(os.Environ(), p.env...)
	if out, err := create.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return p
}

// letters writes a talker that says letter by letter what others say in pairs of them: Ollama takes text only, and this model's text, read
// again, is the tokens that it came from, as that of models with real vocabularies nearly always is.
func letters(t testing.TB) string {
	t.Helper()
	header, err := gguf.ReadFile(talker)
	if err != nil {
		t.Fatal(err)
	}
	rate := map[string]float64{tiny.ThinkClose: 1e-9, tiny.EOS: 1e-9}
	for id, text := range header.Tokens() {
		if header.TokenType(id) == gguf.TokenNormal && utf8.RuneCountInString(text) > 1 {
			rate[strings.NewReplacer("Ġ", " ", "Ċ", "\n").Replace(text)] = 1e-12
		}
	}
	path := filepath.Join(t.TempDir(), "letters.gguf")
	if err := tiny.WriteFile(path, 1, tiny.Options{ContextTokens: 8192, Rate: rate}); err != nil {
		t.Fatal(err)
	}
	return path
}

// serving starts our server with a model of such engines.
func serving(t testing.TB, more string, engines ...upstream) *server {
	t.Helper()
	config := "models:\n- id: there\n  ctx: 4096\n" + more + "  engine:\n"
	for _, u := range engines {
		config += "  - " + u.engine() + "\n"
	}
	path := filepath.Join(t.TempDir(), "config.yaml")
	write(t, path, config)
	return start(t, "", "-config", path)
}

// think is how the scripted server's model thinks; it tells nothing of it.
const think = "  family: think\n"

func TestScriptedEngine(t *testing.T) {
	u := newScripted(t)
	promises(t, serving(t, think, u), u)
}

// Streams that break, stall or are nonsense are continued where they were: each thought is what it is without that.
func TestBrokenStreams(t *testing.T) {
	const tokens = 120
	sound := newScripted(t)
	s := serving(t, think, sound)
	ask := func(s *server, i int) anytime.Reply {
		return s.solve(fmt.Sprintf("budget=%d&checkpoints=40,80", tokens), asked("Go on.", i))
	}
	want := ask(s, 1)
	for name, fault := range wrong {
		t.Run(name, func(t *testing.T) {
			u := newScripted(t)
			if name == "silence" {
				if !all() {
					t.Skip("only in make test-all: it waits until patience ends")
				}
				u.patience = 4 * time.Second
			}
			broken := serving(t, think, u)
			u.faults = []func(http.ResponseWriter, *http.Request){fault} // from now on
			got := ask(broken, 1)
			if got.Thinking != want.Thinking || got.Summary != want.Summary || len(got.Checkpoints) != 2 || got.Usage.ThinkingTokens != tokens {
				t.Errorf("%+v\nwithout it\n%+v", got, want)
			}
			t.Logf("%d of %d streams", u.struck.Load(), u.asked.Load())
			if u.struck.Load() < 2 {
				t.Error("that tests nothing")
			}
		})
	}
}

func TestLlamaServer(t *testing.T) {
	if !all() {
		t.Skip("only in make test-all: it wants a llama-server")
	}
	u := newLlamaServer(t)
	promises(t, serving(t, "", u), u)
}

func TestOllama(t *testing.T) {
	if !all() {
		t.Skip("only in make test-all: it wants an Ollama")
	}
	u := newOllama(t)
	s := serving(t, "", u)
	promises(t, s, u)
	adapted(t, s)
}

// adapted has Ollama make a model with an adapter, asks for it, replaces it and unloads it.
func adapted(t *testing.T, s *server) {
	t.Helper()
	load := func(seed uint64) {
		path := filepath.Join(t.TempDir(), "a.gguf")
		if err := tiny.WriteAdapter(path, seed, ""); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		sum := fmt.Sprintf("%x", sha256.Sum256(data))
		if r := s.do("PUT", "/v1/adapters/files/"+sum, string(data), "Content-Type", "application/octet-stream"); r.status != http.StatusCreated {
			t.Fatalf("upload: %d %s", r.status, r.body)
		}
		if a := s.adapt(map[string]any{"name": "tuned", "file": "sha256:" + sum}); a.Id != "there:tuned" || a.State != "loaded" {
			t.Errorf("loaded as %+v", a)
		}
	}
	bare := s.thinks("there", 1, 40)
	load(1)
	first := s.thinks("there:tuned", 1, 40)
	load(2)
	second := s.thinks("there:tuned", 1, 40)
	if first == bare || second == first || s.thinks("there", 1, 40) != bare {
		t.Errorf("bare %q\none  %q\ntwo  %q", bare, first, second)
	}
	s.unload("there:tuned")
	body := asked("Gone?", 1)
	body["model"] = "there:tuned"
	if r := s.do("POST", "/solve?budget=4", body); r.status != http.StatusNotFound {
		t.Errorf("an adapter that is gone: %d %s", r.status, r.body)
	}
}

// promises holds a server to what it promises of any engine.
func promises(t *testing.T, s *server, u upstream) {
	t.Helper()
	var list struct {
		Data []struct {
			ID           string
			Engine, Path string
			Capabilities []string
		}
	}
	s.into(s.do("GET", "/v1/models", nil), &list)
	if m := list.Data[0]; m.ID != "there" || !strings.Contains(u.engine(), "kind: "+m.Engine) || m.Capabilities == nil || !strings.Contains(m.Path, "prefixes as ") {
		t.Errorf("listed as %+v", m)
	}
	for _, n := range []int{0, 1, 48} {
		reply := s.solve(fmt.Sprintf("budget=%d", n), asked("What is 1 + 2?", n))
		if reply.Stop.Cause != budget.CauseTokens || reply.Usage.ThinkingTokens != n || reply.Answer == nil {
			t.Errorf("budget %d: %+v", n, reply)
		}
	}
	reply := s.solve("budget=60&checkpoints=20,40&votes=3", asked("Vote.", 1))
	if len(reply.Checkpoints) != 2 || reply.Checkpoints[0].Tokens != 20 || reply.Answer == nil || reply.Usage.ThinkingTokens != 60 {
		t.Errorf("checkpoints and votes: %+v", reply)
	}
	// With something to fall back on, for on a machine that stalls no reserve is enough. One that is quick fills the context by then.
	reply = s.solve("budget=3s&checkpoints=32", asked("Hurry.", 1))
	if reply.Stop.Cause != budget.CauseDeadline && reply.Stop.Cause != budget.CauseContext || reply.Answer == nil {
		t.Errorf("deadline: %+v", reply)
	}
	interrupted(t, s)
	killed(t, s, u)
	freed(t, s, u)
}

// begin starts a long thought and returns its run when it thinks; its events are read until leave is called.
func (s *server) begin(query string, n int) (run string, leave func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	thinks := make(chan string, 1)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		var run anytime.RunData
		s.events(ctx, "POST", "/solve?"+query, asked("Think long.", n), func(e event) bool {
			switch e.kind {
			case "run":
				_ = json.Unmarshal([]byte(e.data), &run)
			case "thinking":
				select {
				case thinks <- run.ID:
				default:
				}
			}
			return false
		})
	}()
	select {
	case run = <-thinks:
	case <-time.After(patience):
		s.t.Fatal("it does not think")
	}
	return run, func() { cancel(); <-gone }
}

// interrupted asks for the answer in mid-thought, and has the thought go on behind it.
func interrupted(t *testing.T, s *server) {
	t.Helper()
	run, leave := s.begin("budget=max", 2)
	defer leave()
	var reply, more anytime.Reply
	s.into(s.do("POST", "/solve/"+run+"/interrupt?thinking=true", nil), &reply)
	if reply.Stop.Cause != budget.CauseInterrupt || reply.Answer == nil || reply.Thinking == "" {
		t.Errorf("interrupted: %+v", reply)
	}
	s.into(s.do("POST", "/solve/"+run+"/extend?budget=%2B40&thinking=true", nil), &more)
	if more.Usage.ThinkingTokens != reply.Usage.ThinkingTokens+40 || !strings.HasPrefix(more.Thinking, reply.Thinking) || more.Answer == nil {
		t.Errorf("extended from %d to %d tokens", reply.Usage.ThinkingTokens, more.Usage.ThinkingTokens)
	}
}

// killed kills the engine in mid-thought: every run answers, with all the thinking that it asked for.
func killed(t *testing.T, s *server, engines ...upstream) {
	t.Helper()
	const runs, tokens = 4, 600
	replies := make([]anytime.Reply, runs)
	var wg sync.WaitGroup
	for i := range replies {
		wg.Go(func() {
			r := s.do("POST", fmt.Sprintf("/solve?budget=%d&checkpoints=200", tokens), asked("Survive.", i))
			if err := json.Unmarshal(r.body, &replies[i]); err != nil || r.status != http.StatusOK {
				t.Errorf("run %d: status %d: %s", i, r.status, r.body)
			}
		})
	}
	_, leave := s.begin("budget=max", 9)
	engines[0].kill()
	if len(engines) == 1 {
		engines[0].revive()
	}
	wg.Wait()
	leave()
	lost := 0
	for i, r := range replies {
		if r.Answer == nil || r.Usage.ThinkingTokens != tokens || len(r.Checkpoints) != 1 {
			lost++
			t.Errorf("run %d: %d tokens, checkpoints %+v, stop %+v", i, r.Usage.ThinkingTokens, r.Checkpoints, r.Stop)
		}
	}
	t.Logf("the engine was killed in the middle of %d thoughts: answers lost: %d", runs, lost)
}

// freed leaves in mid-thought, upon which the engine is to do nothing more.
func freed(t *testing.T, s *server, u upstream) {
	t.Helper()
	_, leave := s.begin("budget=max", 3)
	leave()
	if u.busy() >= 0 {
		s.until("free", func() bool { return u.busy() == 0 })
	}
	if reply := s.solve("budget=8", asked("Go on.", 4)); reply.Answer == nil {
		t.Errorf("after a client left: %+v", reply)
	}
}

// One of two engines is killed and stays away: its thoughts go on at the other.
func TestPool(t *testing.T) {
	a, b := newScripted(t), newScripted(t)
	pooled(t, serving(t, think, a, b), a, b)
	if a.asked.Load() == 0 || b.asked.Load() == 0 {
		t.Errorf("one engine was asked %d times, the other %d", a.asked.Load(), b.asked.Load())
	}
}

func TestPoolOfLlamaServers(t *testing.T) {
	if !all() {
		t.Skip("only in make test-all: it wants a llama-server")
	}
	a, b := newLlamaServer(t), newLlamaServer(t)
	pooled(t, serving(t, "", a, b), a, b)
}

func pooled(t *testing.T, s *server, engines ...upstream) {
	t.Helper()
	killed(t, s, engines...)
	s.until("told that one of two engines is away", func() bool { // which is found out where it has something to do
		s.solve("budget=4", asked("Who is there?", 1))
		var list struct{ Data []struct{ Path string } }
		s.into(s.do("GET", "/v1/models", nil), &list)
		return strings.Contains(list.Data[0].Path, "1 of 2 engines are there")
	})
	engines[0].revive()
	killed(t, s, engines[1], engines[0])
	if r := s.do("GET", "/readyz", nil); r.status != http.StatusOK {
		t.Errorf("one engine is there, and yet it is not ready: %s", r.body)
	}
}

// The embedded engine and another server together.
func TestEmbeddedAndServer(t *testing.T) {
	if !all() {
		t.Skip("only in make test-all: it wants a llama-server")
	}
	u := newLlamaServer(t)
	s := serving(t, fmt.Sprintf("  path: %s\n", talker), u)
	killed(t, s, u, u) // it stays away
	if reply := s.solve("budget=32&votes=2", asked("And now?", 1)); reply.Answer == nil || reply.Usage.ThinkingTokens != 32 {
		t.Errorf("%+v", reply)
	}
}

// Nobody is there: the server says so and what to do.
func TestEngineAway(t *testing.T) {
	for says, model := range map[string]string{
		"cannot be reached: see that the server is running":      "openai:m@http://" + freeAddress(t),
		"start it with `ollama serve`, or name its address":      "ollama:m@http://" + freeAddress(t),
		`the server's URL is missing: ollama:MODEL`:              "openai:m",
		"models: there is none: name one with -model":            "",
		"must be one such as http://127.0.0.1:8000":              "ollama:m@ftp://nowhere",
		`key_env is "NO_SUCH_KEY": it must name a variable of t`: "key",
	} {
		args := []string{"-addr", "127.0.0.1:0", "-data", t.TempDir()}
		switch model {
		case "":
		case "key":
			path := filepath.Join(t.TempDir(), "config.yaml")
			write(t, path, "models:\n- id: x\n  engine: {kind: openai, url: 'http://127.0.0.1:1', key_env: NO_SUCH_KEY}\n")
			args = append(args, "-config", path)
		default:
			args = append(args, "-model", model)
		}
		out, err := exec.Command(binary, args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), says) {
			t.Errorf("%s: %v\n%s\nit should say %s", model, err, out, says)
		}
	}
}
