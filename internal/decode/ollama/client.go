package ollama

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/ollama/ollama/api"

	"anytime/internal/decode"
	"anytime/internal/decode/remote"
)

// client talks to one server. Its errors say what to do.
type client struct {
	base *url.URL
	http *http.Client
	api  *api.Client
}

func newClient(address string) (*client, error) {
	u, err := parseURL(address)
	if err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 64
	h := &http.Client{Transport: transport}
	return &client{base: u, http: h, api: api.NewClient(u, h)}, nil
}

func (c *client) close() { c.http.CloseIdleConnections() }

const maxLine = 1 << 20 // bytes of a streamed message

// generate streams a completion. It is what api.Client.Generate does, which allocates 8 MiB for each request, and says nothing of
// a stream that breaks off between two messages. done is false if it did.
func (c *client) generate(ctx context.Context, req *api.GenerateRequest, on func(*api.GenerateResponse)) (done bool, err error) {
	body, err := json.Marshal(req)
	if err != nil {
		return false, err
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base.JoinPath("/api/generate").String(), bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	post.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(post)
	if err != nil {
		return false, c.explain(req.Model, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		said := api.StatusError{StatusCode: resp.StatusCode, Status: resp.Status}
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxLine))
		if json.Unmarshal(text, &said) != nil {
			said.ErrorMessage = strings.TrimSpace(string(text[:min(len(text), 500)]))
		}
		return false, c.explain(req.Model, said)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var message struct {
			api.GenerateResponse
			Error string `json:"error"`
		}
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		if err := json.Unmarshal(line, &message); err != nil {
			return false, fmt.Errorf("ollama sent what is not JSON: %.200q", line)
		}
		if message.Error != "" {
			return false, c.explain(req.Model, errors.New(message.Error))
		}
		on(&message.GenerateResponse)
		if message.Done {
			_, _ = io.Copy(io.Discard, resp.Body) // so that the connection is used again
			return true, nil
		}
	}
	if err := lines.Err(); err != nil {
		return false, fmt.Errorf("ollama's stream broke off: %w", err)
	}
	return false, nil
}

// explain says what to do about an error of the server's.
func (c *client) explain(model string, err error) error {
	var status api.StatusError
	if errors.As(err, &status) {
		err = errors.New(strings.TrimSpace(status.ErrorMessage)) // the status line says less
		if status.ErrorMessage == "" {
			err = errors.New(status.Status)
		}
	}
	said := strings.ToLower(err.Error())
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(said, w) {
				return true
			}
		}
		return false
	}
	var dial *url.Error
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.As(err, &dial):
		return fmt.Errorf("ollama does not answer at %s: %w; start it with `ollama serve`, or name its address", c.base, dial.Err)
	case has("exceeds the context length", "exceed context"):
		return fmt.Errorf("%w: %w", decode.ErrContextFull, err)
	case status.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%w: Ollama has no model %q: get it with `ollama pull %s`, or set pull: true for it in the configuration", remote.ErrFatal, model, model)
	case has("more system memory", "out of memory", "cudamalloc", "unable to allocate", "failed to allocate", "insufficient memory"):
		return fmt.Errorf("ollama has too little memory for %s (%w): unload others (`ollama ps`, `ollama stop MODEL`), or take a shorter context or a smaller quantization", model, err)
	case status.StatusCode == http.StatusUnauthorized, status.StatusCode == http.StatusForbidden:
		return fmt.Errorf("%w: Ollama at %s refuses: %w", remote.ErrFatal, c.base, err)
	case status.StatusCode == http.StatusBadRequest:
		return fmt.Errorf("%w: Ollama refuses the request: %w", remote.ErrFatal, err)
	}
	return fmt.Errorf("ollama failed: %w", err)
}
