package openai

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	openai "github.com/sashabaranov/go-openai"
)

// client talks to one server: streams through go-openai, and the questions for which that has no method with plain JSON.
type client struct {
	base string // ends in a version such as /v1
	root string // base without it
	key  string
	http *http.Client
	api  *openai.Client
}

var version = regexp.MustCompile(`/v[0-9]+[a-z0-9]*$`)

func newClient(address, key string) (*client, error) {
	u, err := url.Parse(strings.TrimRight(strings.TrimSpace(address), "/"))
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%.200q is no server's address: it must be a URL such as http://127.0.0.1:8080/v1", address)
	}
	if u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, fmt.Errorf("the server's address must be scheme, host and path alone, as http://127.0.0.1:8080/v1; the key has a field of its own")
	}
	if !version.MatchString(u.Path) {
		u.Path += "/v1"
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 64 // a connection for each sequence that decodes
	transport.MaxIdleConns = 64
	c := &client{base: u.String(), key: key, http: &http.Client{Transport: transport}}
	c.root = version.ReplaceAllString(c.base, "")
	config := openai.DefaultConfig(key)
	config.BaseURL = c.base
	config.HTTPClient = doer{c.http}
	config.EmptyMessagesLimit = math.MaxUint32 // servers keep a silent stream alive with comments
	c.api = openai.NewClientWithConfig(config)
	return c, nil
}

// bodyKey is the context's key for the body of a request.
type bodyKey struct{}

// doer sends the body that the request's context has. go-openai's requests know neither prompts of token ids nor what servers
// understand besides OpenAI's fields, leave out a temperature of 0, and refuse models that are called like some of OpenAI's.
type doer struct{ client *http.Client }

func (d doer) Do(req *http.Request) (*http.Response, error) {
	if body, ok := req.Context().Value(bodyKey{}).([]byte); ok {
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		req.Body, _ = req.GetBody()
		req.ContentLength = int64(len(body))
	}
	replayable(req)
	return d.client.Do(req)
}

// replayable has a request sent again on another connection if the server closes the one that it was sent on, as llama-server does
// after some; this header, which is not sent, says that it may be.
func replayable(req *http.Request) { req.Header["Idempotency-Key"] = []string{} }

// event is what a stream sends at once, of either kind of completion.
type event struct {
	ID      string   `json:"id"`
	Choices []choice `json:"choices"`
	Usage   *usage   `json:"usage"`
	// llama-server's, for `timings_per_token` and `verbose`.
	Timings *timings `json:"timings"`
	Verbose struct {
		Tokens []int32 `json:"tokens"`
	} `json:"__verbose"`
	// An error after the stream has begun.
	Object  string          `json:"object"`
	Message string          `json:"message"`
	Error   json.RawMessage `json:"error"`
}

type choice struct {
	Text         string    `json:"text"`
	Delta        delta     `json:"delta"`
	TokenIDs     []int32   `json:"token_ids"` // vLLM's and SGLang's, for `return_token_ids`
	LogProbs     *logProbs `json:"logprobs"`
	FinishReason string    `json:"finish_reason"`
	Reasoning    string    `json:"reasoning_content"` // Anytime's, in a text completion
	Reset        bool      `json:"reset"`             // Anytime's: the text replaces what came before
}

type delta struct {
	Content          string `json:"content"`
	ReasoningContent string `json:"reasoning_content"`
	Reasoning        string `json:"reasoning"`
}

type usage struct {
	PromptTokens     int `json:"prompt_tokens"`
	CompletionTokens int `json:"completion_tokens"`
}

type timings struct {
	Cached    int     `json:"cache_n"`
	Prompt    int     `json:"prompt_n"`
	PromptMS  float64 `json:"prompt_ms"`
	Predicted int     `json:"predicted_n"` // so far
}

// logProbs come in two forms: OpenAI's of text completions, and that of chats, which llama-server has everywhere.
type logProbs struct {
	Tokens        []string             `json:"tokens"`
	TokenLogProbs []*float32           `json:"token_logprobs"`
	TopLogProbs   []map[string]float32 `json:"top_logprobs"`

	Content []tokenLogProb `json:"content"`
}

type tokenLogProb struct {
	ID      *int32         `json:"id"`
	Token   string         `json:"token"`
	Bytes   []byteValue    `json:"bytes"`
	LogProb float32        `json:"logprob"`
	Top     []tokenLogProb `json:"top_logprobs"`
}

// byteValue is a byte that is written as a number; json would take []byte for base64.
type byteValue uint16

func (p tokenLogProb) text() string {
	if len(p.Bytes) == 0 {
		return p.Token
	}
	b := make([]byte, len(p.Bytes))
	for i, v := range p.Bytes {
		b[i] = byte(v)
	}
	return string(b)
}

// stream asks for a completion and calls each with what comes, until the server says that it is done.
func (c *client) stream(ctx context.Context, chat bool, body map[string]any, each func(*event) error) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	ctx = context.WithValue(ctx, bodyKey{}, data)
	var events interface {
		RecvRaw() ([]byte, error)
		Close() error
	}
	if chat {
		events, err = c.api.CreateChatCompletionStream(ctx, openai.ChatCompletionRequest{})
	} else {
		events, err = c.api.CreateCompletionStream(ctx, openai.CompletionRequest{Prompt: ""})
	}
	if err != nil {
		return fromLibrary(err)
	}
	defer events.Close()
	for {
		raw, err := events.RecvRaw()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fromLibrary(err)
		}
		var e event
		if err := json.Unmarshal(raw, &e); err != nil {
			return fmt.Errorf("the server sent a malformed event, %.120q: %w", raw, err)
		}
		if e.Object == "error" || len(e.Error) > 0 && string(e.Error) != "null" {
			return readError(0, raw)
		}
		if err := each(&e); err != nil {
			return err
		}
	}
}

// ask sends a question with a JSON body, if there is one, and reads the JSON answer into out.
func (c *client) ask(ctx context.Context, method, address string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}
	replayable(req)
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return readError(resp.StatusCode, data)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("%s %s: the answer is not the JSON that was expected: %w", method, address, err)
	}
	return nil
}

const (
	maxAnswer    = 64 << 20 // bytes
	probeTimeout = 30 * time.Second
)

func (c *client) get(ctx context.Context, address string, out any) error {
	return c.ask(ctx, http.MethodGet, address, nil, out)
}

func (c *client) post(ctx context.Context, address string, in, out any) error {
	return c.ask(ctx, http.MethodPost, address, in, out)
}
