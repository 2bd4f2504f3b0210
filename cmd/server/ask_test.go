package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
)

// watched is an output that tells when a text has been written.
type watched struct {
	mu   sync.Mutex
	text bytes.Buffer
	want string
	seen chan struct{}
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text.Write(p)
	if w.seen != nil && strings.Contains(w.text.String(), w.want) {
		close(w.seen)
		w.seen = nil
	}
	return len(p), nil
}

func TestAsk(t *testing.T) {
	r := startServer(t, "-model", talker)
	for name, test := range map[string]struct {
		args  []string
		stdin string
		want  []string
	}{
		"budget behind":      {[]string{"What is 1 + 2?", "-budget", "12"}, "", []string{"12 thinking tokens, tokens"}},
		"answers on the way": {[]string{"-every", "8", "-budget", "24", "What", "is 1 + 2?"}, "", []string{"8 tokens:", "16 tokens:", "24 thinking tokens"}},
		"from stdin":         {[]string{"-budget", "0", "-"}, "What is 1 + 2?", []string{"0 thinking tokens"}},
		"quiet":              {[]string{"-quiet", "-budget", "4", "What is 1 + 2?"}, "", nil},
	} {
		var out bytes.Buffer
		err := command(t.Context(), t.Context(), append([]string{"ask", "-server", r.url}, test.args...), environment(), strings.NewReader(test.stdin), &out, io.Discard)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, want := range test.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: %q is missing in %q", name, want, out.String())
			}
		}
		if strings.Contains(out.String(), "\x1b") {
			t.Errorf("%s: colours, though it is no terminal: %q", name, out.String())
		}
		if name == "quiet" && strings.Contains(out.String(), "thinking tokens") {
			t.Errorf("quiet: %q", out.String())
		}
	}
}

// Once Ctrl-C: the answer now. Twice: stop.
func TestAskInterrupted(t *testing.T) {
	r := startServer(t, "-model", talker, "-max-thinking", "4000")
	now, interrupt := context.WithCancel(t.Context())
	seen := make(chan struct{})
	out := &watched{want: "8 tokens:", seen: seen}
	done := make(chan error, 1)
	go func() {
		done <- command(now, t.Context(), []string{"ask", "-server", r.url, "-every", "8", "-budget", "max", "What is 1 + 2?"}, environment(), nil, out, io.Discard)
	}()
	<-seen
	interrupt()
	if err := <-done; err != nil || !strings.Contains(out.text.String(), "interrupt") {
		t.Errorf("%v in %q", err, out.text.String())
	}

	stop, cut := context.WithCancel(t.Context())
	seen = make(chan struct{})
	out = &watched{want: "8 tokens:", seen: seen}
	go func() {
		done <- command(stop, stop, []string{"ask", "-server", r.url, "-every", "8", "-budget", "max", "What is 1 + 2?"}, environment(), nil, out, io.Discard)
	}()
	<-seen
	cut()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "stopped") {
		t.Errorf("%v in %q", err, out.text.String())
	}
}

// Without a server one is started, for this question.
func TestAskStartsServer(t *testing.T) {
	var out bytes.Buffer
	env := environment("ANYTIME_ENGINE_LIB="+cmp.Or(os.Getenv("ANYTIME_ENGINE_LIB"), "../../engine/lib"), "ANYTIME_THREADS=1", "ANYTIME_DATA="+t.TempDir())
	err := serveAndAsk(t, env, &out)
	if err != nil || !strings.Contains(out.String(), "6 thinking tokens") {
		t.Errorf("%v in %q", err, out.String())
	}
}

func serveAndAsk(t *testing.T, env func(string) (string, bool), out io.Writer) error {
	own, end, err := serveOnce(t.Context(), talker, env, io.Discard)
	if err != nil {
		return err
	}
	defer end()
	a, err := parseAsk([]string{"-budget", "6", "What is 1 + 2?"})
	return errors.Join(err, client{url: own}.ask(t.Context(), t.Context(), a, newConsole(out, false)))
}

func TestAskRefused(t *testing.T) {
	r := startServer(t, "-model", talker)
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"no question":   {nil, "no question"},
		"unknown flag":  {[]string{"-bduget", "3", "x"}, "bduget"},
		"bad budget":    {[]string{"-server", r.url, "-budget", "soon", "x"}, "budget"},
		"no server":     {[]string{"-server", "http://127.0.0.1:1", "x"}, "refused"},
		"no such model": {[]string{"-server", r.url, "-model", "nope", "x"}, "nope"},
		"bad URL":       {[]string{"-server", "::", "x"}, "-server"},
	} {
		err := command(t.Context(), t.Context(), append([]string{"ask"}, test.args...), environment(), nil, io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, test.want)
		}
	}
	if _, _, err := serveOnce(t.Context(), "", environment(), io.Discard); err == nil || !strings.Contains(err.Error(), "-model") {
		t.Errorf("without a model: %v", err)
	}
}
