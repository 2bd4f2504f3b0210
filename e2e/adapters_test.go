package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"anytime/api"
	"anytime/internal/anytime"
	"anytime/internal/gguf/tiny"
)

// adapterFiles writes the adapters one and two to the folder of a data folder.
func adapterFiles(t *testing.T, data string) {
	t.Helper()
	dir := filepath.Join(data, "adapters")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"one", "two"} {
		if err := tiny.WriteAdapter(filepath.Join(dir, name+".gguf"), uint64(i+1), ""); err != nil {
			t.Fatal(err)
		}
	}
}

// adapt makes a change that is done at once.
func (s *server) adapt(body map[string]any) (a api.Adapter) {
	s.t.Helper()
	s.into(s.do("POST", "/v1/adapters", body), &a)
	return a
}

func (s *server) unload(name string) {
	s.t.Helper()
	if r := s.do("DELETE", "/v1/adapters/"+name, nil); r.status != http.StatusNoContent {
		s.t.Fatalf("delete %s: status %d, %s", name, r.status, r.body)
	}
}

// thinks returns the thought of a model about the n-th question.
func (s *server) thinks(model string, n, budget int) string {
	s.t.Helper()
	body := asked("What is it?", n)
	body["model"] = model
	return s.solve(fmt.Sprintf("budget=%d", budget), body).Thinking
}

// A stream of runs goes on while adapters are loaded, made the default, replaced and unloaded. None fails, and each is the thought of
// one adapter from its beginning to its end: one that its name stood for while it was asked.
func TestHotSwap(t *testing.T) {
	const questions, short = 3, 30
	data := t.TempDir()
	adapterFiles(t, data)
	s := start(t, data, exact(talker)...)
	// What each adapter thinks, alone.
	thoughts := map[string][]string{} // by file, "" the bare model
	alone := map[string]string{"": "talker:bare", "one": "talker:one", "two": "talker:two"}
	for file, name := range alone {
		if file != "" {
			s.adapt(map[string]any{"name": file, "file": file + ".gguf"})
		}
		for n := range questions {
			thoughts[file] = append(thoughts[file], s.thinks(name, n, short))
		}
	}
	if thoughts[""][0] == thoughts["one"][0] || thoughts["one"][0] == thoughts["two"][0] || thoughts[""][0] == thoughts["two"][0] {
		t.Fatalf("the adapters change nothing: %q", thoughts)
	}

	// What names stand for: files, "" the bare model, "-" none; several while a change is under way, and all that a name stood for since
	// someone began to look.
	var mu sync.Mutex
	names := map[string][]string{"talker": {""}, "talker:bare": {""}, "talker:x": {"-"}}
	watched := map[*[]string]string{}
	change := func(what func(), to map[string]string) {
		set := func(add bool) {
			mu.Lock()
			defer mu.Unlock()
			for name, file := range to {
				if names[name] = append(names[name], file); !add {
					names[name] = []string{file}
				}
				for seen, of := range watched {
					if of == name {
						*seen = append(*seen, file)
					}
				}
			}
		}
		set(true)
		what()
		set(false)
	}

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var runs, refused int
	var workers sync.WaitGroup
	for w := range 3 {
		workers.Go(func() {
			for i := w; ctx.Err() == nil; i++ {
				name := []string{"talker", "talker:x", "talker:bare"}[i%3]
				mu.Lock()
				seen := slices.Clone(names[name])
				watched[&seen] = name
				mu.Unlock()
				body := asked("What is it?", i%questions)
				body["model"] = name
				r := s.do("POST", fmt.Sprintf("/solve?budget=%d", short), body)
				var reply anytime.Reply
				_ = json.Unmarshal(r.body, &reply) // checked by what is in it
				mu.Lock()
				delete(watched, &seen)
				fits := slices.ContainsFunc(seen, func(file string) bool {
					if file == "-" {
						return r.status == http.StatusNotFound
					}
					return r.status == http.StatusOK && reply.Thinking == thoughts[file][i%questions]
				})
				if !fits {
					t.Errorf("%s, which stood for %q: status %d, %s: %q", name, seen, r.status, reply.Model, r.body)
				}
				if runs++; r.status != http.StatusOK {
					refused++
				}
				mu.Unlock()
			}
		})
	}
	some := func() { // let some runs come and go
		mu.Lock()
		before := runs
		mu.Unlock()
		s.until("more runs", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return runs >= before+6
		})
	}
	// thinking starts a thought that goes on while things change.
	thinking := func(model string, question int) (id string) {
		body := asked("What is it?", question)
		body["model"], body["on_disconnect"] = model, "continue"
		s.events(context.Background(), "POST", "/solve?budget=max", body, func(e event) bool {
			var run anytime.RunData
			if e.kind == "run" && json.Unmarshal([]byte(e.data), &run) == nil {
				id = run.ID
			}
			return e.kind == "thinking"
		})
		return id
	}

	some()
	change(func() { s.adapt(map[string]any{"name": "x", "file": "one.gguf"}) }, map[string]string{"talker:x": "one"})
	onOne := thinking("talker:x", questions)
	some()
	change(func() { s.adapt(map[string]any{"name": "x", "file": "two.gguf"}) }, map[string]string{"talker:x": "two"}) // the same name, other weights
	onBare, onBareToo, onTwo := thinking("talker", questions), thinking("talker", questions+1), thinking("talker:x", questions)
	some()
	change(func() { s.adapt(map[string]any{"name": "x", "default": true}) }, map[string]string{"talker": "two"})
	onDefault := thinking("talker", questions)
	some()
	change(func() { s.adapt(map[string]any{"name": "x", "file": "one.gguf"}) }, map[string]string{"talker": "one", "talker:x": "one"})
	some()
	change(func() { s.unload("x") }, map[string]string{"talker": "", "talker:x": "-"})
	some()
	stop()
	workers.Wait()
	replies := map[string]anytime.Reply{}
	// Thoughts that are not what they are alone. One may be, for in thousands of tokens there is a tie that rounding decides; each kind of change
	// reaches two.
	var others []string
	for id, file := range map[string]string{onOne: "one", onBare: "", onBareToo: "", onTwo: "two", onDefault: "two"} {
		question := questions
		if id == onBareToo {
			question++
		}
		var reply anytime.Reply
		s.into(s.do("POST", "/solve/"+id+"/interrupt?thinking=true", nil), &reply)
		replies[id] = reply
		if want := s.thinks(alone[file], question, reply.Usage.ThinkingTokens); reply.Thinking != want {
			others = append(others, fmt.Sprintf("%d tokens on %s (%q): %q\nwant %q", reply.Usage.ThinkingTokens, reply.Model, file, reply.Thinking, want))
		}
	}
	if len(others) > 1 {
		t.Errorf("%d thoughts did not keep their adapters: %s", len(others), strings.Join(others, "\n"))
	}
	if runs < 30 || refused == 0 || refused > runs/2 {
		t.Errorf("%d runs, of which %d found no adapter", runs, refused)
	}
	t.Logf("%d runs beside 5 changes, %d of them while the adapter was not there; a thought of %d tokens", runs, refused, replies[onOne].Usage.ThinkingTokens)
	if n := len(s.children()); n != 1 || strings.Contains(s.said(), "engine process died") {
		t.Errorf("%d engine processes", n)
	}
}

// What is loaded, and the default, outlive an engine's crash and the server's, and a thought that an adapter began goes on with it.
func TestAdaptersSurvive(t *testing.T) {
	data := t.TempDir()
	adapterFiles(t, data)
	s := start(t, data, exact(talker)...)
	s.adapt(map[string]any{"name": "x", "file": "one.gguf"})
	s.adapt(map[string]any{"name": "y", "file": "two.gguf", "default": true})
	want := map[string]string{}
	names := []string{"talker", "talker:x", "talker:y", "talker:bare"}
	for _, name := range names {
		want[name] = s.thinks(name, 1, 60)
	}
	if want["talker"] != want["talker:y"] || want["talker:x"] == want["talker:y"] || want["talker:bare"] == want["talker:x"] {
		t.Fatalf("%q", want)
	}
	longest := s.thinks("talker:x", 2, 1000)
	same := func(when string) {
		t.Helper()
		for _, name := range names {
			if got := s.thinks(name, 1, 60); got != want[name] {
				t.Errorf("%s: %s thinks %q, before %q", when, name, got, want[name])
			}
		}
	}
	// The name is replaced and the engine dies while a thought is under way: both go on.
	var once sync.Once
	body := asked("What is it?", 2)
	body["model"] = "talker:x"
	events := s.events(context.Background(), "POST", "/solve?thinking=true&budget=1000", body, func(e event) bool {
		if e.kind == "thinking" {
			once.Do(func() {
				s.adapt(map[string]any{"name": "x", "file": "two.gguf"})
				s.killEngine()
			})
		}
		return false
	})
	if got := text(t, events, "thinking"); got != longest {
		t.Errorf("the thought went on as %q\nit was %q", got, longest)
	}
	s.adapt(map[string]any{"name": "x", "file": "one.gguf"})
	same("after the engine's crash")

	s.kill()
	for _, name := range []string{"one", "two"} { // what is loaded does not depend on them
		if err := os.Remove(filepath.Join(data, "adapters", name+".gguf")); err != nil {
			t.Fatal(err)
		}
	}
	s = start(t, data, exact(talker)...)
	same("after the server's crash")
	var list api.AdapterList
	s.into(s.do("GET", "/v1/adapters", nil), &list)
	if len(list.Adapters) != 2 || list.Adapters[0].Default || !list.Adapters[1].Default || list.Adapters[1].State != api.AdapterLoaded || *list.Adapters[1].File != "two.gguf" {
		t.Errorf("%+v", list)
	}
	s.adapt(map[string]any{"name": "bare", "default": true})
	s.unload("talker:x")
	s.kill()
	s = start(t, data, exact(talker)...)
	if s.thinks("talker", 1, 60) != want["talker:bare"] || s.thinks("talker:y", 1, 60) != want["talker:y"] {
		t.Error("the default that was undone is there again")
	}
	if r := s.do("POST", "/solve", map[string]any{"problem": "x", "model": "talker:x"}); r.status != http.StatusNotFound {
		t.Errorf("the adapter that was unloaded: status %d", r.status)
	}
}

// The gate measures on the server's own engine: what the bare model answers is taken for right, so the adapter is worse, and the other way
// round.
func TestAdapterGate(t *testing.T) {
	data := t.TempDir()
	adapterFiles(t, data)
	greedy := append(exact(talker), "-temperature", "0", "-answer-tokens", "16")
	s := start(t, data, greedy...)
	s.adapt(map[string]any{"name": "one", "file": "one.gguf"})
	// problems are those of which a model has the answers.
	problems := func(model string) (list []map[string]any) {
		for n := range 6 {
			text := fmt.Sprintf("%d. What is it?", n)
			reply := s.solve("budget=24", map[string]any{"problem": text, "model": model, "temperature": 0, "top_p": 0.95})
			list = append(list, map[string]any{"id": fmt.Sprint(n), "problem": text, "task": "exact", "answers": []string{*reply.Answer}})
		}
		return list
	}
	ofBare, ofOne := problems("talker"), problems("talker:one")
	measured := func(body map[string]any) api.Adapter {
		t.Helper()
		r := s.do("POST", "/v1/adapters", body)
		if r.status != http.StatusAccepted {
			t.Fatalf("status %d: %s", r.status, r.body)
		}
		where := r.header.Get("Location")
		var a api.Adapter
		s.until("measured", func() bool {
			a = api.Adapter{}
			s.into(s.do("GET", where, nil), &a)
			return a.Trial.State != api.TrialMeasuring
		})
		return a
	}
	gate := func(problems []map[string]any) map[string]any {
		return map[string]any{"problems": problems, "budgets": []int{8, 24}}
	}
	bare := s.thinks("talker", 1, 60)
	a := measured(map[string]any{"name": "worse", "file": "one.gguf", "default": true, "gate": gate(ofBare)})
	if a.State != api.AdapterRefused || a.Trial.State != api.TrialRefused || (*a.Trial.Base)[1].Accuracy < 0.99 || (*a.Trial.Adapter)[1].Accuracy > 0.5 || !strings.Contains(*a.Trial.Reason, "with 24 thinking tokens") {
		t.Errorf("%+v, %+v", a, a.Trial)
	}
	if s.thinks("talker", 1, 60) != bare {
		t.Error("the refused adapter is the default")
	}
	if r := s.do("POST", "/solve", map[string]any{"problem": "x", "model": "talker:worse"}); r.status != http.StatusNotFound {
		t.Errorf("the refused adapter: status %d", r.status)
	}
	a = measured(map[string]any{"name": "one", "default": true, "gate": gate(ofOne)})
	if a.State != api.AdapterLoaded || !a.Default || a.Trial.State != api.TrialPassed || (*a.Trial.Base)[1].Accuracy > 0.5 || (*a.Trial.Adapter)[1].Accuracy < 0.99 || a.Curve == nil {
		t.Errorf("%+v, %+v", a, a.Trial)
	}
	one := s.thinks("talker:one", 1, 60)
	if s.thinks("talker", 1, 60) != one || one == bare {
		t.Error("the adapter that passed is not the default")
	}
	// The server's own problems; users do not wait for the measuring.
	s.kill()
	file := filepath.Join(t.TempDir(), "gate.jsonl")
	var lines strings.Builder
	for _, p := range ofOne {
		line, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&lines, "%s\n", line)
	}
	write(t, file, lines.String())
	s = start(t, data, append(greedy, "-gate-problems", file, "-gate-budgets", "8,24", "-gate-margin", "0.5")...)
	a = measured(map[string]any{"name": "two", "file": "two.gguf", "default": true, "gate": map[string]any{"margin": 1}})
	if a.Trial.State != api.TrialPassed || !a.Default || a.Trial.Margin != 1 {
		t.Errorf("%+v, %+v", a, a.Trial)
	}
	if s.thinks("talker", 1, 60) == one {
		t.Error("the first default is still there")
	}
}

// Adapters are an admin's, come from their folder only, and are checked before the engine sees them.
func TestAdapterSecurity(t *testing.T) {
	data := t.TempDir()
	adapterFiles(t, data)
	dir := filepath.Join(data, "adapters")
	keys := filepath.Join(t.TempDir(), "keys")
	write(t, keys, "root:root-secret:admin\nalice:alice-secret\n")
	if err := os.Symlink(talker, filepath.Join(dir, "link.gguf")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "junk.gguf"), "GGUF and nothing else")
	s := start(t, data, "-model", talker, "-keys-file", keys, "-max-adapter", "64KiB")
	load := map[string]any{"name": "x", "file": "one.gguf"}
	for header, want := range map[string]int{"": 401, "Bearer alice-secret": 403, "Bearer root-secret": 200} {
		if r := s.do("POST", "/v1/adapters", load, "Authorization", header); r.status != want {
			t.Errorf("key %q: status %d, %s", header, r.status, r.body)
		}
	}
	root := []string{"Authorization", "Bearer root-secret"}
	for file, want := range map[string]string{
		"../../etc/passwd": "adapter folder", talker: "adapter folder", "link.gguf": "cannot be opened within", "junk.gguf": "junk.gguf", "none.gguf": "not there",
	} {
		r := s.do("POST", "/v1/adapters", map[string]any{"name": "y", "file": file}, root...)
		if r.status != http.StatusBadRequest || !strings.Contains(string(r.body), want) {
			t.Errorf("%s: status %d, %s", file, r.status, r.body)
		}
	}
	// An upload; one that is too large is cut off.
	file, err := os.ReadFile(filepath.Join(dir, "two.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	upload := func(body []byte) (int, string) {
		sum := fmt.Sprintf("%x", sha256.Sum256(body))
		res, err := s.send(context.Background(), "PUT", "/v1/adapters/files/"+sum, string(body), append([]string{"Content-Type", "application/octet-stream"}, root...)...)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		reply, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(reply)
	}
	if status, reply := upload(make([]byte, 65<<10)); status != http.StatusRequestEntityTooLarge {
		t.Errorf("too large: status %d, %s", status, reply)
	}
	if status, reply := upload(file); status != http.StatusCreated {
		t.Errorf("status %d, %s", status, reply)
	}
	sum := fmt.Sprintf("%x", sha256.Sum256(file))
	if r := s.do("POST", "/v1/adapters", map[string]any{"name": "up", "file": "sha256:" + sum}, root...); r.status != http.StatusOK || !strings.Contains(string(r.body), sum) {
		t.Errorf("status %d, %s", r.status, r.body)
	}
	began := time.Now()
	body := problem("x")
	body["model"] = "talker:up"
	if r := s.do("POST", "/solve?budget=5", body, root...); r.status != http.StatusOK || !strings.Contains(string(r.body), `"model":"talker:up"`) {
		t.Errorf("after %v: status %d, %s", time.Since(began), r.status, r.body)
	}
}
