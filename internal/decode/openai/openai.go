// Package openai is the engine for servers that speak OpenAI's protocol: llama-server, vLLM, SGLang, TGI, LM Studio, another Anytime.
//
// # Model
//
// Package remote keeps the sequences; this package continues a prefix. The best of three ways is taken that the server has:
//
//  1. /v1/completions with the prefix as token ids, and the ids of what is decoded in return: exact, also where a text would be
//     tokenized otherwise than it was decoded. The server must tokenize and tell ids: llama-server, vLLM, SGLang.
//  2. /v1/completions with the prefix as text.
//  3. /v1/chat/completions with the chat's messages, and all that follows them as the beginning of the assistant's message, which
//     the server continues (`continue_final_message`). There the server's own chat template is applied, so the engine names one
//     of its own to those who make prompts: it can be read back into messages, and no user's text is mistaken for its marks.
//
// # Probing
//
// Open asks once what the server is and has: models, properties, tokenizer, adapters, thinking budgets of its own; then it has one token
// decoded in each way until one works. What was found is in Info and Describe, and logged. Thinking budgets of the server's own are
// reported only: a cut of the exact prefix does all that they do.
//
// # Streams
//
// Requests go through go-openai, but with bodies of our own (client.go says why). A stream that ends without a reason, is no JSON
// or brings an error is an error; package remote goes on from the tokens that came. When the context ends the connection is
// closed, by which servers know that nobody wants the rest.
//
// # Concurrency
//
// A server's properties are constant once it is probed. What is remembered, tokens of texts and adapters, has a mutex of its own.
package openai

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"anytime/internal/decode"
	"anytime/internal/decode/remote"
)

// Config is what an engine runs with. Zero values mean the defaults that are named; URL has none.
type Config struct {
	URL    string // such as http://127.0.0.1:8080/v1; the version may be left out
	APIKey string // sent as a bearer token; "" none
	// Model is the server's name of the model; default the only one that the server lists.
	Model string
	Name  string // id by which requests name the model; default Model
	// ContextTokens is the longest sequence, where the server does not tell or less is wanted.
	ContextTokens int
	// Sequences is how many completions the server is asked for at once; more wait. Default what the server tells, else 32.
	Sequences int
	// Patience is how long the server may be away or silent before the sequences that wait for it fail; default one minute.
	Patience time.Duration
	// API names the only way that is tried: "completions" or "chat"; default the best that works.
	API string
	// LogProbs has the log-probabilities of thoughts told, too, as training on them needs it; those of answers always are. They cost a
	// server that samples on the CPU a pass over the vocabulary for each token: llama-server 3 % of its speed with a model of 135M parameters.
	LogProbs bool
	Log      *slog.Logger // default slog.Default()
}

const defaultSequences = 32

// kind is what sort of server it is, as far as that is needed to know what it understands.
type kind string

const (
	llamaServer kind = "llama-server"
	vllm        kind = "vLLM"
	sglang      kind = "SGLang"
	tgi         kind = "TGI"
	lmStudio    kind = "LM Studio"
	anytime     kind = "Anytime"
	unknown     kind = "an OpenAI-compatible server"
)

// The values of Config.API.
const (
	completionsAPI = "completions"
	chatAPI        = "chat"
)

// Engine decodes on a server. Where the server has adapters, the engine that Open returns implements decode.Adapters, too.
type Engine struct {
	*remote.Engine
	server *server
}

// server is what was found out about a server, and the remote.Completer for it.
type server struct {
	*client
	kind     kind
	version  string
	model    string
	api      string // completionsAPI or chatAPI
	ids      bool   // prefixes are sent and tokens come as ids
	logProbs bool   // it tells them
	always   bool   // they are asked for with every token
	budgets  bool   // it has thinking budgets of its own
	renders  bool   // it applies its chat template to messages
	info     decode.Info
	slots    int
	places   *slots        // llama-server's; nil: it chooses
	health   string        // address that tells whether it is well
	encode   encoder       // nil: it does not tokenize
	bos      *decode.Token // put before prompts of token ids
	opening  string        // runes with which special tokens begin
	lora     *loras
	prefill  prefill // with chatAPI

	mu    sync.Mutex
	texts map[int32]string // of tokens that had to be asked for
}

var _ remote.Completer = (*server)(nil)

// Open asks a server what it can do. The engine returned is an *Engine, or has one embedded and adapters besides. Errors say what
// is to be done: the server is not running, has not the model, refuses the key, cannot continue a text.
func Open(ctx context.Context, c Config) (decode.Engine, error) {
	c.Log = cmp.Or(c.Log, slog.Default())
	s, err := probe(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("open engine: %w", err)
	}
	config := remote.Config{Info: s.info, Slots: s.slots, Patience: c.Patience, Log: c.Log}
	if s.info.Capabilities.Adapters {
		config.Acquire = s.lora.acquire
	}
	e := &Engine{Engine: remote.New(s, config), server: s}
	c.Log.Info("engine is connected", "model", s.info.Model, "engine", e.Describe())
	if s.info.Capabilities.Adapters {
		return adapting{e}, nil
	}
	return e, nil
}

// Close ends all sequences; the server stays as it is.
func (e *Engine) Close() error {
	err := e.Engine.Close()
	e.server.lora.wait.Wait()
	e.server.http.CloseIdleConnections()
	return err
}

// Ready implements remote.Completer.
func (s *server) Ready(ctx context.Context, _ bool) error {
	if err := s.get(ctx, s.health, nil); err != nil {
		return fmt.Errorf("%w: %w", decode.ErrUnavailable, s.explain(err))
	}
	return nil
}

// Check implements remote.Completer.
func (s *server) Check(span decode.Span) error {
	if most := s.kind.mostLogProbs(); span.TopLogProbs > most {
		return refuse("top_logprobs", "is %d; %s gives at most %d", span.TopLogProbs, s.kind, most)
	}
	return nil
}

// mostLogProbs is how many alternatives of a token a server tells in a text completion.
func (k kind) mostLogProbs() int {
	switch k {
	case llamaServer, vllm, sglang:
		return 20
	}
	return 5 // OpenAI's
}
