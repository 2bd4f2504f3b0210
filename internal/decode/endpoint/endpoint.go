// Package endpoint names models that other servers hold, in a line or in a Config, and opens the engine for one.
//
// The line is KIND:MODEL@URL, such as ollama:qwen3:8b or openai:Qwen/Qwen3-8B@http://gpu1:8000/v1. What is behind the last @ is the URL
// if it has "://" in it, so models may have @ in their names; Ollama's may be left out.
package endpoint

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"anytime/internal/decode"
	"anytime/internal/decode/ollama"
	"anytime/internal/decode/openai"
)

// Kind is what a server speaks.
type Kind string

// The kinds. OpenAI's are llama-server, vLLM, SGLang, TGI, LM Studio, another Anytime.
const (
	Ollama Kind = "ollama"
	OpenAI Kind = "openai"
)

// Config is a model on a server. Kind is needed, Model with Ollama, URL with OpenAI; other zero values are the engine's defaults.
type Config struct {
	Kind          Kind
	Model         string
	URL           string
	ContextTokens int           // longest sequence
	Sequences     int           // that the server decodes at once
	Patience      time.Duration // how long it may be away or silent before runs fail
	Log           *slog.Logger

	// OpenAI's alone, see package openai.
	Key      string
	API      string
	LogProbs bool

	// Ollama's alone, see package ollama.
	KeepAlive time.Duration
	Options   map[string]any
	Pull      bool
	Progress  func(ollama.Progress) // of the pull; may be nil
}

// IsSpec says whether a text names a model on a server, and not a file.
func IsSpec(text string) bool {
	kind, _, found := strings.Cut(text, ":")
	return found && (Kind(kind) == Ollama || Kind(kind) == OpenAI)
}

// Parse reads the line.
func Parse(spec string) (Config, error) {
	kind, rest, _ := strings.Cut(spec, ":")
	c := Config{Kind: Kind(kind), Model: rest}
	if at := strings.LastIndex(rest, "@"); at >= 0 && strings.Contains(rest[at:], "://") {
		c.Model, c.URL = rest[:at], rest[at+1:]
	}
	if c.Model == "" {
		return c, fmt.Errorf("%q names no model: it must be %s", spec, form)
	}
	if err := c.Validate(); err != nil {
		return c, fmt.Errorf("%q: %w", spec, err)
	}
	return c, nil
}

const form = "ollama:MODEL, ollama:MODEL@URL or openai:MODEL@URL, such as openai:Qwen/Qwen3-8B@http://127.0.0.1:8000/v1"

// Validate finds what no server is needed to find wrong.
func (c Config) Validate() error {
	switch {
	case c.Kind != Ollama && c.Kind != OpenAI:
		return fmt.Errorf("the engine's kind is %q: it must be %s or %s", c.Kind, Ollama, OpenAI)
	case c.Kind == Ollama && c.Model == "":
		return fmt.Errorf("the engine's model is missing: name it as `ollama list` does")
	case c.Kind == OpenAI && c.URL == "":
		return fmt.Errorf("the server's URL is missing: %s", form)
	case c.Kind == Ollama && (c.Key != "" || c.API != ""):
		return fmt.Errorf("key and api are for %s engines, not for Ollama", OpenAI)
	case c.Kind == OpenAI && (c.Pull || c.KeepAlive != 0 || len(c.Options) > 0):
		return fmt.Errorf("pull, keep_alive and options are for %s engines, not for servers that speak OpenAI's protocol", Ollama)
	case c.API != "" && !slices.Contains([]string{"completions", "chat"}, c.API):
		return fmt.Errorf("the engine's api is %q: it must be completions, chat, or empty for the best that works", c.API)
	case c.ContextTokens < 0 || c.Sequences < 0 || c.Patience < 0:
		return fmt.Errorf("context, sequences and patience must not be negative")
	case c.URL == "":
		return nil
	}
	if u, err := url.Parse(c.URL); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("the server's URL is %q: it must be one such as http://127.0.0.1:8000", c.URL)
	}
	return nil
}

// String names it for people: without the key.
func (c Config) String() string {
	spec := string(c.Kind) + ":" + c.Model
	if c.URL != "" {
		spec += "@" + c.URL
	}
	return spec
}

var oddRE = regexp.MustCompile(`^[^A-Za-z0-9]+|[^A-Za-z0-9._/-]+`)

// ID is the model's name as a name in requests can be, where a colon divides it from an adapter's; "" where Model is.
func (c Config) ID() string {
	return oddRE.ReplaceAllString(strings.ReplaceAll(strings.TrimSuffix(c.Model, ":latest"), ":", "-"), "")
}

// Open opens the engine. Its errors say what to do.
func (c Config) Open(ctx context.Context) (decode.Engine, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Kind == OpenAI {
		return openai.Open(ctx, openai.Config{
			URL: c.URL, APIKey: c.Key, Model: c.Model, ContextTokens: c.ContextTokens, Sequences: c.Sequences, Patience: c.Patience,
			API: c.API, LogProbs: c.LogProbs, Log: c.Log,
		})
	}
	e, err := ollama.Open(ctx, ollama.Config{
		URL: c.URL, Model: c.Model, ContextTokens: c.ContextTokens, KeepAlive: c.KeepAlive, Options: c.Options, Parallel: c.Sequences,
		Pull: c.Pull, Progress: c.Progress, Patience: c.Patience, Log: c.Log,
	})
	if err != nil {
		return nil, err // not a nil *Engine in an interface
	}
	return e, nil
}

// Reach returns nil if somebody listens at the server's address. It is a cheap question that a busy server answers, too.
func (c Config) Reach(ctx context.Context) error {
	u, err := url.Parse(c.URL)
	if err != nil {
		return err
	}
	host, port := u.Hostname(), u.Port()
	switch {
	case c.URL == "":
		host, port = "127.0.0.1", "11434"
	case port == "" && c.Kind == Ollama && u.Scheme == "http":
		port = "11434"
	case port == "":
		port = u.Scheme // the resolver knows both
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return err
	}
	return conn.Close()
}
