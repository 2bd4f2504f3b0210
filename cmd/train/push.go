package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"anytime/api"
	"anytime/internal/decode/endpoint"
	"anytime/internal/decode/ollama"
	"anytime/internal/gguf"
	"anytime/internal/train/task"
)

// keyVariable holds the server's API key: command lines can be read by everyone on the machine.
const keyVariable = "ANYTIME_API_KEY"

var pushCommand = command{
	name: "push", about: "Load an adapter into a running server, or make a model of Ollama's with it",
	manual: `
The file is sent to the server, which checks it against its model and loads it beside what runs. Requests then name it MODEL:NAME; with
-default MODEL alone stands for it, and MODEL:bare for the model without an adapter. Runs under way keep the adapter that they began with.

Where the server has problems to measure on, or -gate brings some, an adapter that is to become the default is measured first: the
command waits and prints both curves. An adapter whose accuracy falls at any budget below the bare model's by more than the margin is refused:
the server unloads it again, nothing has changed, and the command exits with 1.

With -server ollama, or ollama@URL, a model called -name is made in Ollama of the adapter and of -model, which Ollama has; then any client
of Ollama's can ask for it.

The server's API key, an admin one, is taken from the environment's ` + keyVariable + `.

`,
	setup: func(flags *flag.FlagSet) runner {
		var p push
		flags.StringVar(&p.server, "server", "http://127.0.0.1:8080", "`URL` of the server; ollama or ollama@URL for an Ollama")
		flags.StringVar(&p.file, "adapter", "", "GGUF `file` of the adapter; needed")
		flags.StringVar(&p.request.Name, "name", "", "`name` by which requests ask for it (default the file's, without .gguf)")
		flags.StringVar(&p.model, "model", "", "`id` of its model on the server (default the server's default model)")
		flags.BoolVar(&p.standard, "default", false, "make it the default of its model")
		flags.StringVar(&p.problems, "gate", "", "`file` of problems to measure on (default the server's)")
		flags.StringVar(&p.budgets, "gate-budgets", "", "`list` of ascending numbers of thinking tokens to measure at (default the server's)")
		flags.Float64Var(&p.margin, "gate-margin", 0, "`share` by which the accuracy may fall, 0 to 1 (default the server's)")
		return func(ctx context.Context, args []string, stdout, stderr io.Writer) error {
			if err := noArguments(args); err != nil {
				return err
			}
			p.hasMargin = given(flags)["gate-margin"]
			return p.run(ctx, stdout, stderr)
		}
	},
}

type push struct {
	server, file, model, problems, budgets string
	standard, hasMargin                    bool
	margin                                 float64
	request                                api.AdapterRequest
}

func (p *push) run(ctx context.Context, stdout, stderr io.Writer) error {
	if err := p.prepare(); err != nil {
		return err
	}
	if address, ok := p.ollama(); ok {
		return p.create(ctx, address, stdout, stderr)
	}
	to, err := newServerClient(p.server)
	if err != nil {
		return err
	}
	adapter, err := to.load(ctx, p.file, p.request, stderr)
	if err != nil {
		return err
	}
	if t := adapter.Trial; t != nil {
		if err := printTrial(stdout, t); err != nil {
			return err
		}
		if t.State != api.TrialPassed {
			return fmt.Errorf("%s was refused, and nothing has changed: %s", adapter.Id, pointed(t.Reason))
		}
	}
	names := adapter.Id
	if adapter.Default {
		names += ", and as " + adapter.Model
	}
	fmt.Fprintf(stdout, "%s serves it as %s\n", p.server, names)
	return nil
}

// ollama returns the address of the Ollama to push to, "" its default, if it is one.
func (p *push) ollama() (address string, ok bool) {
	kind, address, _ := strings.Cut(p.server, "@")
	return address, kind == string(endpoint.Ollama)
}

// create makes a model in Ollama.
func (p *push) create(ctx context.Context, address string, stdout, stderr io.Writer) error {
	switch {
	case p.model == "":
		return usagef("-model is needed: name the model in Ollama that the adapter is for, as `ollama list` does")
	case p.standard:
		return usagef("-default and -gate are for Anytime servers: Ollama has no default")
	}
	said := ""
	err := ollama.Create(ctx, address, p.request.Name, p.model, p.file, 1, func(s ollama.Progress) {
		if s.Status != said {
			said = s.Status
			fmt.Fprintln(stderr, said)
		}
	})
	if err != nil {
		return fmt.Errorf("make %q in Ollama: %w", p.request.Name, err)
	}
	fmt.Fprintf(stdout, "Ollama serves it as %s; serve it with -model ollama:%s\n", p.request.Name, p.request.Name)
	return nil
}

// prepare checks the flags and makes the request of them.
func (p *push) prepare() error {
	gated := p.problems != "" || p.budgets != "" || p.hasMargin
	switch {
	case p.file == "":
		return usagef("-adapter is needed: name the GGUF file of an adapter")
	case gated && !p.standard:
		return usagef("-gate, -gate-budgets and -gate-margin are for an adapter that becomes the default: give -default, too")
	case p.hasMargin && !(p.margin >= 0 && p.margin <= 1):
		return usagef("-gate-margin is %v: it must be from 0 to 1", p.margin)
	}
	header, err := gguf.ReadFile(p.file)
	if err != nil {
		return err
	}
	if kind, _ := header.String("general.type"); kind != "adapter" {
		return fmt.Errorf("%s is not an adapter: its general.type is %q", p.file, kind)
	}
	if p.request.Name == "" {
		p.request.Name = strings.TrimSuffix(filepath.Base(p.file), ".gguf")
	}
	p.request.Default = &p.standard
	if p.model != "" {
		p.request.Model = &p.model
	}
	if !gated {
		return nil
	}
	gate := api.AdapterGate{}
	if p.budgets != "" {
		budgets, err := parseBudgets(p.budgets)
		if err != nil {
			return err
		}
		gate.Budgets = &budgets
	}
	if p.hasMargin {
		gate.Margin = &p.margin
	}
	if p.problems != "" {
		problems, err := task.ReadFile(p.problems)
		if err != nil {
			return err
		}
		data, err := json.Marshal(problems)
		if err == nil {
			err = json.Unmarshal(data, &gate.Problems)
		}
		if err != nil {
			return err
		}
	}
	p.request.Gate = &gate
	return nil
}

// serverClient speaks to an Anytime server.
type serverClient struct {
	url, key string
	http     *http.Client
}

func newServerClient(address string) (*serverClient, error) {
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, usagef("-server is %q: it must be a URL such as http://127.0.0.1:8080", address)
	}
	return &serverClient{
		url: strings.TrimSuffix(address, "/"), key: os.Getenv(keyVariable),
		http: &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, // the key is for this server
	}, nil
}

// load sends a file, has it loaded, and waits until it is measured if it is.
func (s *serverClient) load(ctx context.Context, file string, req api.AdapterRequest, stderr io.Writer) (a api.Adapter, err error) {
	f, err := os.Open(file)
	if err != nil {
		return a, err
	}
	defer f.Close()
	h := sha256.New()
	size, err := io.Copy(h, f)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return a, err
	}
	var uploaded api.AdapterFile
	if err := s.do(ctx, http.MethodPut, fmt.Sprintf("/v1/adapters/files/%x", h.Sum(nil)), "application/octet-stream", f, size, &uploaded); err != nil {
		return a, fmt.Errorf("send %s: %w", file, err)
	}
	req.File = &uploaded.File
	body, err := json.Marshal(req)
	if err != nil {
		return a, err
	}
	if err := s.do(ctx, http.MethodPost, "/v1/adapters", "application/json", bytes.NewReader(body), int64(len(body)), &a); err != nil {
		return a, fmt.Errorf("load it as %q: %w", req.Name, err)
	}
	path := "/v1/adapters/" + url.PathEscape(a.Id)
	var bar *progress
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for a.Trial != nil && a.Trial.State == api.TrialMeasuring {
		if bar == nil {
			bar = newProgress(stderr, "measuring", a.Trial.Of)
		}
		bar.set(a.Trial.Done, "thoughts")
		select {
		case <-tick.C:
		case <-ctx.Done():
			return a, fmt.Errorf("%w; the server goes on measuring, and DELETE %s ends that", ctx.Err(), path)
		}
		next := api.Adapter{}
		var refused *serverError
		switch err := s.do(ctx, http.MethodGet, path, "", http.NoBody, 0, &next); {
		case errors.As(err, &refused) && refused.status == http.StatusTooManyRequests: // the key's own limit: later
		case errors.As(err, &refused) && refused.status == http.StatusNotFound:
			return a, errors.New("the server no longer knows of it: it was restarted, or the adapter deleted, and nothing has changed")
		case err != nil && ctx.Err() == nil:
			return a, fmt.Errorf("while the server measured it: %w", err)
		case err == nil:
			a = next
		}
	}
	return a, nil
}

// serverError is a refusal.
type serverError struct {
	status int
	text   string
}

func (e *serverError) Error() string { return e.text }

// do sends a request and reads the JSON reply.
func (s *serverClient) do(ctx context.Context, method, path, contentType string, body io.Reader, size int64, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, body)
	if err != nil {
		return err
	}
	req.ContentLength = size
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if s.key != "" {
		req.Header.Set("Authorization", "Bearer "+s.key)
	}
	res, err := s.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("no server answers at %s (-server names it): %w", s.url, err)
	}
	defer res.Body.Close()
	const most = 16 << 20 // bytes
	data, err := io.ReadAll(io.LimitReader(res.Body, most))
	if err != nil {
		return fmt.Errorf("read the reply of %s: %w", s.url, err)
	}
	if res.StatusCode/100 == 2 {
		if err := json.Unmarshal(data, into); err != nil {
			return fmt.Errorf("%s is no Anytime server: its reply is not as it should be: %w", s.url, err)
		}
		return nil
	}
	var e api.Error
	text := res.Status
	if json.Unmarshal(data, &e) == nil && e.Error.Message != "" {
		text = e.Error.Message
	} else if res.StatusCode == http.StatusNotFound {
		text += ": it is no Anytime server, or one that cannot load adapters"
	}
	switch {
	case res.StatusCode == http.StatusUnauthorized && s.key == "":
		text += "; put an admin key into the environment's " + keyVariable
	case res.StatusCode == http.StatusUnauthorized, res.StatusCode == http.StatusForbidden && pointed(e.Error.Code) == "admin_key_required":
		text += "; the key came from " + keyVariable
	}
	return &serverError{res.StatusCode, text}
}

// printTrial prints both curves.
func printTrial(w io.Writer, t *api.AdapterTrial) error {
	if t.Base == nil || t.Adapter == nil {
		return nil
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(table, "budget\tbare model\t95 % interval\tadapter\t95 % interval\tdifference\t\n")
	for i, b := range *t.Base {
		a := (*t.Adapter)[i]
		fmt.Fprintf(table, "%d\t%.4f\t%.4f to %.4f\t%.4f\t%.4f to %.4f\t%+.4f\t\n", b.Budget, b.Accuracy, b.Low, b.High, a.Accuracy, a.Low, a.High, a.Accuracy-b.Accuracy)
	}
	return table.Flush()
}

// pointed is what a pointer points to, or "".
func pointed(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
