package main

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"
)

// doctors runs server doctor on a free port, with a data folder of its own.
func doctors(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	lib := cmp.Or(os.Getenv("ANYTIME_ENGINE_LIB"), "../../engine/lib")
	args = append([]string{"doctor", "-addr", "127.0.0.1:0", "-data", filepath.Join(t.TempDir(), "not", "yet"), "-engine-lib", lib, "-threads", "1"}, args...)
	err := command(t.Context(), t.Context(), args, environment(), nil, &out, io.Discard)
	return out.String(), err
}

func TestDoctor(t *testing.T) {
	kept := miniredis.RunT(t)
	out, err := doctors(t, "-model", talker, "-model", "../../models/reasoner/reasoner.gguf", "-store", "redis://"+kept.Addr())
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	for _, want := range []string{
		"ok  settings ", "ok  processor ", "memory ", "GPU ", "ok  port       127.0.0.1:0 is free", "ok  disk ", "ok  store      Redis at redis://", "libraries  llama.cpp for ",
		"ok  model      talker: llama, ", "ok  memory     talker takes about ", "template   talker has ", "ok  engine     talker decodes ",
		"ok  template   reasoner has its own chat template; it thinks as ", "until </think>", "ok  engine     reasoner decodes ", "variant ",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
}

// Whatever the server could not run with is found, each without hiding the rest.
func TestDoctorFinds(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file := writeFile(t, "no model")
	lora := writeFile(t, "models: [{path: "+talker+", adapters: {x: "+file+"}}]")
	template := writeFile(t, "models: [{path: "+talker+", template: "+writeFile(t, "{% for %}")+"}]")
	nobody := httptest.NewServer(http.NotFoundHandler())
	nobody.Close()
	for name, row := range map[string]struct {
		args []string
		want []string
	}{
		"settings":      {[]string{"-model", talker, "-batch", "many"}, []string{"NO  settings   -batch is \"many\"", "ok  processor", "ok  model      talker"}},
		"more settings": {[]string{"-model", talker, "-kv-type", "q9", "-batch", "0", "-gate-problems", "nowhere"}, []string{"NO  settings   kv_type is \"q9\"", "NO  settings   batch is 0"}},
		"no models":     {nil, []string{"NO  settings   models: there is none"}},
		"port":          {[]string{"-model", talker, "-addr", taken.Addr().String()}, []string{"NO  port ", "another -addr"}},
		"data":          {[]string{"-model", talker, "-data", filepath.Join(file, "data")}, []string{"NO  disk ", "is no folder"}},
		"store":         {[]string{"-model", talker, "-store", "sqlite:" + filepath.Join(file, "runs.db")}, []string{"NO  disk ", "is no folder"}},
		"libraries":     {[]string{"-model", talker, "-engine-lib", "nowhere"}, []string{"NO  libraries  nowhere has no libllama", "NO  engine     talker: "}},
		"no file":       {[]string{"-model", "nowhere.gguf", "-model", talker}, []string{"NO  model      model \"nowhere.gguf\": no such file", "ok  engine     talker decodes"}},
		"no GGUF":       {[]string{"-model", file}, []string{"NO  model      " + file}},
		"adapter":       {[]string{"-config", lora}, []string{`NO  model      model `, `adapter "x"`}},
		"template":      {[]string{"-config", template}, []string{"NO  template   talker: "}},
		"memory":        {[]string{"-model", talker, "-memory", "4KiB"}, []string{"NO  memory     talker takes about ", "more -memory"}},
		"Redis":         {[]string{"-model", talker, "-store", "redis://" + nobody.Listener.Addr().String()}, []string{"NO  store      open store at redis://"}},
		"Ollama":        {[]string{"-model", "ollama:x@" + nobody.URL}, []string{"NO  engine     ollama:x@", "ollama serve"}},
	} {
		out, err := doctors(t, row.args...)
		if err == nil || !strings.Contains(err.Error(), "could not run") {
			t.Errorf("%s: %v", name, err)
		}
		for _, want := range row.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: it does not say %q:\n%s", name, want, out)
			}
		}
	}
}

// Nothing is fetched, and what is merely not here yet is no failure.
func TestDoctorFetchesNothing(t *testing.T) {
	hub := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("the hub was asked for %s", r.URL) }))
	defer hub.Close()
	data := filepath.Join(t.TempDir(), "data")
	out, err := doctors(t, "-model", "hf.co/owner/repo:Q4_K_M", "-hub-url", hub.URL, "-store", "memory", "-data", data)
	if err != nil || !strings.Contains(out, "--  model      hf.co/owner/repo:Q4_K_M is not here yet") || !strings.Contains(out, "--  store ") {
		t.Errorf("%v:\n%s", err, out)
	}
	if _, err := os.Stat(data); !os.IsNotExist(err) {
		t.Errorf("the data folder was made: %v", err)
	}
	r := startServer(t, "-model", talker)
	if out, err = doctors(t, "-model", talker, "-addr", strings.TrimPrefix(r.url, "http://")); err == nil || !strings.Contains(out, "an Anytime server is at ") {
		t.Errorf("%v:\n%s", err, out)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := command(gone, gone, []string{"doctor", "-model", talker}, environment(), nil, io.Discard, io.Discard); err == nil {
		t.Error("one that was stopped says that all is well")
	}
}
