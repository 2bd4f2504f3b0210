package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"anytime/api"
	"anytime/internal/server/sse"
)

const (
	askUsage = `server ask QUESTION [flags]

Ask a running server, or one that is started for this question, and watch it think. Ctrl-C means: answer now. A second one: stop.

`
	askNotes = `
The question - is read from standard input. A server with keys wants one in ANYTIME_API_KEY. For one that is started the
configuration file and the environment count as for server itself. Text that does not go to a terminal has no colours, and NO_COLOR
takes them away.
`
)

// asking is what server ask was told.
type asking struct {
	question, budget, model, server string
	every, votes                    int
	quiet                           bool
}

// flags are what tells a.
func (a *asking) flags() *flag.FlagSet {
	set := flag.NewFlagSet("ask", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.StringVar(&a.budget, "budget", "", "how long to think: 512 tokens, 2s, \"512,2s\", 0 to answer at once, max")
	set.IntVar(&a.every, "every", 0, "take an answer every so many thinking tokens")
	set.StringVar(&a.model, "model", "", "id of a model of the running server; for one that is started, the file, URL or hf.co/OWNER/REPO to serve")
	set.BoolVar(&a.quiet, "quiet", false, "print the answer only")
	set.StringVar(&a.server, "server", "", "address of the running server; without it "+usualServer+" is tried, and where none is there one is started")
	set.IntVar(&a.votes, "votes", 0, "sample so many answers at the end; the majority counts")
	return set
}

// usualServer is where a server is that was told nothing.
const usualServer = "http://127.0.0.1:8080"

func parseAsk(args []string) (asking, error) {
	var a asking
	set := a.flags()
	var words []string
	for len(args) > 0 { // flags may follow the question
		if err := set.Parse(args); err != nil {
			return a, err
		}
		if args = set.Args(); len(args) > 0 {
			words, args = append(words, args[0]), args[1:]
		}
	}
	a.question = strings.Join(words, " ")
	if strings.TrimSpace(a.question) == "" {
		return a, errors.New(`no question is given: server ask "What is 17 * 24?"`)
	}
	return a, nil
}

// ask asks a server and prints what comes. The end of now forces the answer, that of stop gives the run up.
func ask(now, stop context.Context, args []string, env func(string) (string, bool), stdin io.Reader, stdout, stderr io.Writer) error {
	a, err := parseAsk(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, askUsage)
		a.flags().VisitAll(func(f *flag.Flag) {
			fmt.Fprintf(stdout, "  -%s\n", f.Name)
			wrap(stdout, f.Usage)
		})
		fmt.Fprint(stdout, askNotes)
		return nil
	case err != nil:
		return usageError{fmt.Errorf("%w; server ask -h says more", err)}
	}
	if a.question == "-" {
		text, err := io.ReadAll(io.LimitReader(stdin, 4<<20))
		if err != nil {
			return fmt.Errorf("read the question: %w", err)
		}
		a.question = string(text)
	}
	key, _ := env("ANYTIME_API_KEY")
	c := client{url: strings.TrimSuffix(cmp.Or(a.server, usualServer), "/"), key: key}
	if a.server == "" && !c.isAnytime(stop) {
		own, end, err := serveOnce(stop, a.model, env, stderr)
		if err != nil {
			return err
		}
		defer end()
		c, a.model = client{url: own}, ""
	}
	return c.ask(now, stop, a, newConsole(stdout, a.quiet))
}

// client calls a server.
type client struct{ url, key string }

// isAnytime says whether an Anytime server is there: others may have taken the port.
func (c client) isAnytime(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	reply, err := c.call(ctx, http.MethodGet, "/openapi.yaml", nil)
	if err != nil {
		return false
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(io.LimitReader(reply.Body, 4<<10))
	return err == nil && bytes.Contains(text, []byte("title: Anytime"))
}

// call returns a reply of status 200, or what the server said instead.
func (c client) call(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var payload io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		payload = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, payload)
	if err != nil {
		return nil, usageError{fmt.Errorf("-server: %w", err)}
	}
	req.Header.Set("Content-Type", "application/json")
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	reply, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the server: %w", err)
	}
	if reply.StatusCode/100 == 2 {
		return reply, nil
	}
	defer reply.Body.Close()
	var refusal api.Error
	if err := json.NewDecoder(io.LimitReader(reply.Body, 1<<20)).Decode(&refusal); err != nil || refusal.Error.Message == "" {
		return nil, fmt.Errorf("the server at %s answered %s: is it an Anytime server?", c.url, reply.Status)
	}
	switch reply.StatusCode {
	case http.StatusUnauthorized:
		return nil, fmt.Errorf("%s; put it into the environment as ANYTIME_API_KEY", refusal.Error.Message)
	case http.StatusTooManyRequests:
		return nil, fmt.Errorf("%s; try again in %s s", refusal.Error.Message, reply.Header.Get("Retry-After"))
	}
	return nil, errors.New(refusal.Error.Message)
}

// ask streams a run to the console.
func (c client) ask(now, stop context.Context, a asking, out *console) error {
	body := map[string]any{"problem": a.question, "stream": true}
	for k, v := range map[string]string{"budget": a.budget, "model": a.model} {
		if v != "" {
			body[k] = v
		}
	}
	for k, v := range map[string]int{"every": a.every, "votes": a.votes} {
		if v != 0 {
			body[k] = v
		}
	}
	// The stream ends with stop only: the server then gives the run up.
	reply, err := c.call(stop, http.MethodPost, "/solve", body)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	for e, err := range sse.Read(reply.Body) {
		switch {
		case stop.Err() != nil:
			out.end()
			return errors.New("stopped")
		case err != nil:
			return fmt.Errorf("the connection broke off: %w", err)
		}
		if e.Type == "run" {
			var run struct{ ID string }
			if err := json.Unmarshal(e.Data, &run); err != nil {
				return fmt.Errorf("read the server's events: %w", err)
			}
			told := make(chan struct{})
			leave := context.AfterFunc(now, func() {
				defer close(told)
				out.note("answering now …")
				if r, err := c.call(stop, http.MethodPost, "/solve/"+url.PathEscape(run.ID)+"/interrupt", struct{}{}); err == nil {
					r.Body.Close()
				}
			})
			defer func() { // the console is the caller's again
				if !leave() {
					<-told
				}
			}()
			continue
		}
		if over, err := out.event(e); over || err != nil {
			return err
		}
	}
	if stop.Err() != nil {
		out.end()
		return errors.New("stopped")
	}
	return errors.New("the server ended the stream without an answer")
}

// console prints a run: the thinking dimmed, the answer bright.
type console struct {
	w      io.Writer
	quiet  bool
	colour bool
	answer strings.Builder

	mu   sync.Mutex // of what follows, and of writes to w
	last string     // type of what was printed last
	over bool       // nothing more is printed
}

func newConsole(w io.Writer, quiet bool) *console {
	file, ok := w.(*os.File)
	if ok {
		info, err := file.Stat()
		ok = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return &console{w: w, quiet: quiet, colour: ok && os.Getenv("NO_COLOR") == ""}
}

func (c *console) print(kind, style, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	if c.last != "" && c.last != kind {
		fmt.Fprint(c.w, "\n")
	}
	c.last = kind
	if c.colour {
		text = "\x1b[" + style + "m" + text + "\x1b[0m"
	}
	fmt.Fprint(c.w, text)
}

// unprintable is what would drive the terminal.
var unprintable = regexp.MustCompile(`[\x00-\x08\x0b-\x1f\x7f-\x9f]`)

func (c *console) note(text string) {
	if !c.quiet {
		c.print("note", "2;3", "["+text+"]")
	}
}

func (c *console) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last != "" {
		fmt.Fprintln(c.w)
	}
	c.over = true
}

// event prints an event; over says that it was the last.
func (c *console) event(e sse.Event) (over bool, err error) {
	var data struct {
		Text       string
		Reset      bool
		Tokens     int
		Answer     *string
		Summary    string
		Confidence float64
		Stop       struct {
			Cause string
			Limit int
		}
		Usage struct {
			Thinking int `json:"thinking_tokens"`
		}
		Timings struct {
			Done float64 `json:"done_ms"`
		}
		Message string
	}
	if err := json.Unmarshal(e.Data, &data); err != nil {
		return false, fmt.Errorf("read the server's events: %w", err)
	}
	text := unprintable.ReplaceAllString(data.Text, "")
	switch e.Type {
	case "thinking":
		if !c.quiet {
			c.print("thinking", "2", text)
		}
	case "checkpoint":
		if data.Answer != nil {
			c.note(fmt.Sprintf("%d tokens: %s, %.0f %%", data.Tokens, unprintable.ReplaceAllString(*data.Answer, ""), 100*data.Confidence))
		}
	case "answer":
		if data.Reset && c.answer.Len() > 0 {
			c.answer.Reset()
			c.note("once more")
		}
		c.answer.WriteString(data.Text)
		if !c.quiet {
			c.print("answer", "1", text)
		}
	case "done":
		answer := unprintable.ReplaceAllString(data.Summary, "")
		if data.Answer != nil {
			answer = unprintable.ReplaceAllString(*data.Answer, "")
		}
		if c.quiet {
			fmt.Fprintln(c.w, answer)
			return true, nil
		}
		if answer != strings.TrimSpace(c.answer.String()) {
			c.print("result", "1;32", "= "+answer)
		}
		c.note(fmt.Sprintf("%d thinking tokens, %s, %.1f s, confidence %.0f %%", data.Usage.Thinking, data.Stop.Cause, data.Timings.Done/1000, 100*data.Confidence))
		c.end()
		return true, nil
	case "error":
		c.end()
		return true, fmt.Errorf("the run failed: %s", data.Message)
	}
	return false, nil
}

// serveOnce runs a server in this process, on a free port and with a store that forgets, until end is called.
func serveOnce(stop context.Context, model string, env func(string) (string, bool), stderr io.Writer) (address string, end func(), err error) {
	args := []string{"-addr", "127.0.0.1:0", "-store", "memory", "-log-level", "error"}
	if model != "" {
		args = append(args, "-model", model)
	}
	cfg, err := load(args, env)
	if err != nil {
		return "", nil, usageError{err}
	}
	cfg.Keys, cfg.KeysFile = nil, "" // it is for this question alone, on loopback
	if len(cfg.Models) == 0 {
		return "", nil, usageError{errors.New("no server is at " + usualServer + "; name it with -server, or a model to start one with -model")}
	}
	fmt.Fprintln(stderr, "no server is at "+usualServer+": starting one for this question")
	ctx, cancel := context.WithCancel(stop)
	greeting, out := io.Pipe()
	ended := make(chan struct{})
	go func() {
		err := run(ctx, stop, cfg, out, stderr)
		out.CloseWithError(cmp.Or(err, io.EOF))
		close(ended)
	}()
	end = func() {
		cancel()
		greeting.Close()
		<-ended
	}
	text := make([]byte, 4<<10)
	n, err := greeting.Read(text)
	found := regexp.MustCompile(`http://[^ ,]+`).Find(text[:n])
	if err != nil || found == nil {
		end()
		return "", nil, fmt.Errorf("start a server: %w", cmp.Or(err, errors.New("it did not say where it is")))
	}
	return string(found), end, nil
}
