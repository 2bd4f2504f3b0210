package ollama

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"anytime/internal/decode"
	"anytime/internal/decode/remote"
)

// Engine decodes with a model of an Ollama server.
type Engine struct {
	*remote.Engine
	server   *server
	deleting sync.WaitGroup // models of adapters

	mu       sync.Mutex // guards adapters
	adapters map[string]*lora
}

var (
	_ decode.Engine   = (*Engine)(nil)
	_ decode.Adapters = (*Engine)(nil)
)

// Open finds the model, pulls it if it is told to, and makes Ollama load it.
func Open(ctx context.Context, c Config) (*Engine, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	client, err := newClient(c.URL)
	if err != nil {
		return nil, err
	}
	e, err := open(ctx, c, client)
	if err != nil {
		client.close()
		return nil, fmt.Errorf("open %s on Ollama: %w", c.Model, err)
	}
	return e, nil
}

func open(ctx context.Context, c Config, client *client) (*Engine, error) {
	for name := range c.Options {
		if !slices.Contains(runnerOptions, name) {
			return nil, fmt.Errorf("option %q is not one of Ollama's for loading a model, which are %s", name, strings.Join(runnerOptions, ", "))
		}
	}
	shown, err := client.show(ctx, c.Model)
	if errors.Is(err, remote.ErrFatal) && c.Pull {
		if err := client.api.Pull(ctx, &api.PullRequest{Model: c.Model}, report(c.Progress)); err != nil {
			return nil, fmt.Errorf("pull %s: %w", c.Model, client.explain(c.Model, err))
		}
		shown, err = client.show(ctx, c.Model)
	}
	if err != nil {
		return nil, err
	}
	if !slices.Contains(shown.Capabilities, model.CapabilityCompletion) {
		return nil, fmt.Errorf("the model completes no text: Ollama says that it can %v", shown.Capabilities)
	}
	s := &server{client: client, config: c, images: slices.Contains(shown.Capabilities, model.CapabilityVision)}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.cancelled.Store(true) // maybe, by one who used the model before
	if s.info, err = describe(shown, c); err != nil {
		return nil, err
	}
	if s.info.ChatTemplate, err = learn(ctx, s.render, slices.Contains(shown.Capabilities, model.CapabilityThinking)); err != nil {
		return nil, err
	}
	if s.info.ChatTemplate == "" {
		c.Log.Warn("Ollama has no chat template for the model; a plain one is used unless its chat_template is set", "model", c.Model)
	}
	s.info.MaxSequences = c.Parallel
	if c.Parallel == 0 {
		if s.info.MaxSequences, err = s.parallel(ctx); err != nil {
			return nil, err
		}
		c.Log.Info("Ollama decodes so many requests for the model at once; OLLAMA_NUM_PARALLEL sets it", "model", c.Model, "requests", s.info.MaxSequences)
	}
	e := &Engine{server: s}
	if e.adapters, err = s.created(ctx); err != nil {
		return nil, err
	}
	e.Engine = remote.New(s, remote.Config{
		Info: s.info, Slots: s.info.MaxSequences, Patience: c.Patience, Acquire: e.acquire, Log: c.Log,
	})
	return e, nil
}

// Path says how prefixes are sent to Ollama.
func (e *Engine) Path() string { return "prefixes as text by /api/generate, raw" }

// Close implements decode.Engine. The model stays loaded as long as Ollama keeps it.
func (e *Engine) Close() error {
	err := e.Engine.Close()
	e.server.stop()
	e.server.proving.Wait()
	e.deleting.Wait()
	e.server.client.close()
	return err
}

// show asks for a model with its vocabulary.
func (c *client) show(ctx context.Context, name string) (*api.ShowResponse, error) {
	shown, err := c.api.Show(ctx, &api.ShowRequest{Model: name, Verbose: true})
	if err != nil {
		return nil, c.explain(name, err)
	}
	return shown, nil
}

// describe reads what Ollama shows of a model.
func describe(shown *api.ShowResponse, c Config) (decode.Info, error) {
	meta := shown.ModelInfo
	text := func(key string) string { s, _ := meta[key].(string); return s }
	number := func(key string) (int, bool) { f, ok := meta[key].(float64); return int(f), ok }
	list := func(key string) []any { l, _ := meta[key].([]any); return l }

	info := decode.Info{
		Model: c.Model, Architecture: text("general.architecture"), ContextTokens: c.ContextTokens,
		Capabilities: decode.Capabilities{LogProbs: true, Seed: true, Adapters: true},
	}
	trained, _ := number(info.Architecture + ".context_length")
	if info.ContextTokens == 0 {
		if info.ContextTokens = parameter(shown.Parameters, "num_ctx"); info.ContextTokens == 0 {
			const most = 8192 // as of the embedded engine: a cache for all that a model was made for may not fit
			if info.ContextTokens = most; trained > 0 {
				info.ContextTokens = min(trained, most)
			}
		}
	}
	if info.ContextTokens < 8 || trained > 0 && info.ContextTokens > trained {
		return info, fmt.Errorf("ContextTokens is %d; it must be from 8 to %d, for which the model was trained", info.ContextTokens, trained)
	}
	tokens := list("tokenizer.ggml.tokens")
	token := func(key string) string {
		if id, ok := number(key); ok && id >= 0 && id < len(tokens) {
			s, _ := tokens[id].(string)
			return s
		}
		return ""
	}
	info.Vocabulary = len(tokens)
	info.BOS, info.EOS = token("tokenizer.ggml.bos_token_id"), token("tokenizer.ggml.eos_token_id")
	info.AddBOS, _ = meta["tokenizer.ggml.add_bos_token"].(bool)
	for id, kind := range list("tokenizer.ggml.token_type") {
		const control, userDefined = 3, 4 // of GGUF's token types
		if kind, _ := kind.(float64); (kind == control || kind == userDefined) && id < len(tokens) {
			if s, _ := tokens[id].(string); s != "" {
				info.SpecialTokens = append(info.SpecialTokens, s)
			}
		}
	}
	return info, nil
}

// parameter finds a number among the parameters of a Modelfile; 0 if it is not there.
func parameter(parameters, name string) int {
	for line := range strings.Lines(parameters) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && key == name {
			n, _ := strconv.Atoi(strings.TrimSpace(value))
			return n
		}
	}
	return 0
}

// server is a remote.Completer.
type server struct {
	client *client
	config Config
	info   decode.Info
	images bool // [img-0] in a prompt stands for an image

	ctx     context.Context // of what no request waits for
	stop    context.CancelFunc
	proving sync.WaitGroup
	mu      sync.Mutex
	proof   *proof    // under way, or nil
	proved  time.Time // when the server last decoded a token to show that it can

	cancelled atomic.Bool  // a stream was, or may have been, and the model was not unloaded since
	unloads   atomic.Int32 // since the last token
}

// options are those of every request: others would make Ollama load the model again.
func (s *server) options() map[string]any {
	o := map[string]any{"num_ctx": s.info.ContextTokens}
	maps.Copy(o, s.config.Options)
	return o
}

func (s *server) keepAlive() *api.Duration {
	if s.config.KeepAlive == 0 {
		return nil
	}
	return &api.Duration{Duration: s.config.KeepAlive}
}

// render is a renderer. Servers that do not know the request answer it; they are stopped after a token.
func (s *server) render(ctx context.Context, messages []api.Message, think *bool) (string, error) {
	req := &api.ChatRequest{
		Model: s.config.Model, Messages: messages, DebugRenderOnly: true, Options: s.options(), KeepAlive: s.keepAlive(), Stream: new(bool),
	}
	req.Options["num_predict"] = 1
	if think != nil {
		req.Think = &api.ThinkValue{Value: *think}
	}
	rendered := ""
	err := s.client.api.Chat(ctx, req, func(r api.ChatResponse) error {
		if r.DebugInfo != nil {
			rendered = r.DebugInfo.RenderedTemplate
		}
		return nil
	})
	if err != nil {
		return "", s.client.explain(s.config.Model, err)
	}
	return rendered, nil
}

// parallel finds out how many completions the server decodes at once, of two sent together, of four, of eight. All of them run to
// their end: one that was cancelled might keep its place (see Complete).
func (s *server) parallel(ctx context.Context) (int, error) {
	const (
		long   = 500 * time.Millisecond // for which each is to speak, so that the others have time to come
		fewest = 12                     // tokens, that quarters can be told apart
		short  = 8                      // tokens by which the pace is measured
		most   = 8
	)
	var began, last time.Time
	for {
		err := s.trial(ctx, short, func(at time.Time) {
			if began.IsZero() {
				began = at
			}
			last = at
		})
		if err == nil {
			break
		} else if !errors.Is(err, errMute) {
			return 0, err
		}
	}
	s.cancelled.Store(false) // it speaks
	pace := last.Sub(began) / (short - 1)
	tokens := min(max(int(long/max(pace, time.Microsecond)), fewest), s.info.ContextTokens/2, 1024)
	for sent := 2; ; sent *= 2 {
		n := 0
		for range 2 { // one may come late
			again, err := s.together(ctx, sent, tokens)
			if err != nil {
				return 0, err
			}
			if n = max(n, again); n == sent {
				break
			}
		}
		if n < sent || sent == most {
			return max(n, 1), nil
		}
	}
}

// trial runs a completion and calls on for each token with the server's time.
func (s *server) trial(ctx context.Context, tokens int, on func(at time.Time)) error {
	req := s.request(remote.Request{Prefix: []decode.Part{decode.Text("One, two, three, four,")}, MaxTokens: tokens})
	_, err := s.generate(ctx, req, func(m *api.GenerateResponse) {
		if !m.Done {
			on(m.CreatedAt)
		}
	})
	return err
}

// together counts how many of the trials speak at once: the stretches from their first to their third quarter overlap. Those that the
// server decodes at once overlap unless they are half of their length apart; those that it decodes after one another do not unless
// what comes is late by as much.
func (s *server) together(ctx context.Context, trials, tokens int) (int, error) {
	starts, ends, errs := make([]time.Time, trials), make([]time.Time, trials), make([]error, trials)
	var wg sync.WaitGroup
	for i := range trials {
		wg.Go(func() {
			n := 0
			errs[i] = s.trial(ctx, tokens, func(at time.Time) {
				n++
				if n <= tokens/4 {
					starts[i] = at
				}
				if n <= tokens*3/4 {
					ends[i] = at
				}
			})
		})
	}
	wg.Wait()
	atOnce := 0
	for _, start := range starts {
		n := 0
		for i := range starts {
			if !starts[i].After(start) && ends[i].After(start) {
				n++
			}
		}
		atOnce = max(atOnce, n)
	}
	return atOnce, errors.Join(errs...)
}

var imageMark = regexp.MustCompile(`\[(img-\d+\])`)

func (s *server) text(parts []decode.Part) string {
	text := remote.Neutralize(parts, s.info.SpecialTokens)
	if s.images {
		text = imageMark.ReplaceAllString(text, "[\u2060$1")
	}
	return text
}

func (s *server) request(r remote.Request) *api.GenerateRequest {
	no := false
	p := r.Sampling
	topP := p.TopP
	if topP == 0 {
		topP = 1
	}
	o := s.options()
	maps.Copy(o, map[string]any{
		"num_predict": r.MaxTokens, "seed": int(r.Seed & (1<<31 - 1)), "temperature": p.Temperature, "top_k": p.TopK, "top_p": topP, "min_p": p.MinP,
		// What a Modelfile, or Ollama by itself, would do besides.
		"typical_p": 1, "repeat_penalty": 1, "repeat_last_n": 0, "presence_penalty": 0, "frequency_penalty": 0, "stop": []string{},
	})
	name := r.Model
	if name == "" {
		name = s.config.Model
	}
	return &api.GenerateRequest{
		Model: name, Prompt: s.text(r.Prefix), Raw: true, Options: o, KeepAlive: s.keepAlive(),
		Think: &api.ThinkValue{Value: false}, Truncate: &no, Shift: &no, // nothing is to be parsed, left out or forgotten
		Logprobs: r.TopLogProbs > 0 || r.Priority.Class == decode.ClassAnswer, TopLogprobs: r.TopLogProbs,
	}
}

// Complete implements remote.Completer.
//
// Cancelling is delicate. A stream that is closed in the moment in which Ollama v0.17.4 has a further token ready leaves a goroutine of
// its behind that keeps the request's place for ever: with OLLAMA_NUM_PARALLEL=1 the model never speaks again. So a stream is closed
// right behind a token, when the next is farthest; and if after a cancellation a new stream stays silent for longer than its prefix can explain,
// the model is unloaded, which frees the places, and everything is tried again.
func (s *server) Complete(ctx context.Context, r remote.Request, emit func(remote.Piece)) (decode.End, error) {
	const (
		givesUp = 31 // equal tokens, after which Ollama ends the stream without a word
		grace   = 100 * time.Millisecond
	)
	stream, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	defer context.AfterFunc(ctx, func() {
		t := time.AfterFunc(grace, func() { stop(context.Canceled) })
		context.AfterFunc(stream, func() { t.Stop() })
	})()
	var last api.GenerateResponse
	count, equal, before := 0, 0, ""
	done, err := s.generate(stream, s.request(r), func(m *api.GenerateResponse) {
		if m.Done {
			last = *m
		} else if ctx.Err() != nil {
			stop(context.Canceled)
			return
		}
		if m.Response == "" {
			return
		}
		tokens := tokens(m)
		count += len(tokens)
		if said := strings.TrimSpace(m.Response); said == before {
			equal++
		} else {
			before, equal = said, 1
		}
		emit(remote.Piece{Tokens: tokens})
		if ctx.Err() != nil { // these were the last
			stop(context.Canceled)
		}
	})
	switch {
	case !done && ctx.Err() != nil:
		s.cancelled.Store(true)
		return "", ctx.Err()
	case err != nil:
		return "", err
	case !done && equal >= givesUp-1:
		return decode.EndLimit, nil // the rest is another completion
	case !done:
		return "", errors.New("ollama's stream ended before it was done")
	}
	decoded, end := last.EvalCount, decode.EndLimit
	switch last.DoneReason {
	case "stop":
		decoded, end = decoded-1, decode.EndEOG // which was counted
	case "length":
		if decoded < r.MaxTokens {
			end = decode.EndContext
		}
	default:
		return "", fmt.Errorf("ollama ended with the reason %q", last.DoneReason)
	}
	if missing := min(decoded, r.MaxTokens) - count; missing > 0 { // bytes that are no text, or the rest of a rune
		emit(remote.Piece{Tokens: slices.Repeat([]decode.Token{{ID: -1}}, missing)})
	}
	return end, nil
}

// How long a stream may be silent after a cancellation, before the model is unloaded: slow machines prefill 100 tokens a second.
var (
	firstToken = 10 * time.Second
	perByte    = 2500 * time.Microsecond
)

var errMute = errors.New("the model is mute")

// generate is client.generate, with an end to a silence after a cancellation: the model is unloaded and the error is errMute.
func (s *server) generate(ctx context.Context, req *api.GenerateRequest, on func(*api.GenerateResponse)) (done bool, err error) {
	stream, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	patience := (firstToken + time.Duration(len(req.Prompt))*perByte) << min(s.unloads.Load(), 6)
	var heard atomic.Bool
	var listen func()
	listen = func() {
		if heard.Load() || stream.Err() != nil || !s.cancelled.Load() {
			return
		}
		began := time.Now() // what takes long may be the loading
		if err := s.load(stream, req.Model); err == nil && time.Since(began) < time.Second && !heard.Load() {
			stop(errMute)
			return
		}
		time.AfterFunc(patience, listen)
	}
	defer time.AfterFunc(patience, listen).Stop()
	done, err = s.client.generate(stream, req, func(m *api.GenerateResponse) {
		heard.Store(true)
		s.unloads.Store(0)
		on(m)
	})
	if errors.Is(context.Cause(stream), errMute) {
		return false, s.unload(ctx, req.Model)
	}
	return done, err
}

// load returns when the model is loaded.
func (s *server) load(ctx context.Context, model string) error {
	_, err := s.client.generate(ctx, &api.GenerateRequest{Model: model, Options: s.options(), KeepAlive: s.keepAlive()}, func(*api.GenerateResponse) {})
	return err
}

// unload makes Ollama load the model anew. It returns the error with which the completion is tried again.
func (s *server) unload(ctx context.Context, model string) error {
	s.cancelled.Store(false)
	s.unloads.Add(1)
	s.config.Log.Warn("Ollama does not speak after a request was cancelled: unloading the model, to go on", "model", model)
	_, err := s.client.generate(ctx, &api.GenerateRequest{Model: model, KeepAlive: &api.Duration{}}, func(*api.GenerateResponse) {})
	if err != nil {
		return err
	}
	return errMute
}

// tokens are those of a message: one, or where log-probabilities tell of more, as many.
func tokens(m *api.GenerateResponse) []decode.Token {
	if len(m.Logprobs) == 0 {
		return []decode.Token{{ID: -1, Text: m.Response}}
	}
	tokens := make([]decode.Token, len(m.Logprobs))
	joined := ""
	for i, p := range m.Logprobs {
		tokens[i] = decode.Token{ID: -1, Text: p.Token, LogProb: float32(p.Logprob)}
		for _, c := range p.TopLogprobs {
			tokens[i].Top = append(tokens[i].Top, decode.TokenProb{ID: -1, Text: c.Token, LogProb: float32(c.Logprob)})
		}
		joined += p.Token
	}
	if joined != m.Response { // parts of a rune are no text by themselves
		for i := range tokens {
			tokens[i].Text = ""
		}
		tokens[len(tokens)-1].Text = m.Response
	}
	return tokens
}

// Check implements remote.Completer.
func (s *server) Check(decode.Span) error { return nil }

// Tokenize implements remote.Completer. Ollama does not tell.
func (s *server) Tokenize(_ context.Context, parts []decode.Part) ([]decode.Token, error) {
	return remote.Estimate(s.text(parts)), nil
}

// proof is a token that is asked for to show that the server decodes. Who asked may leave; it goes on, so that a mute model is found out.
type proof struct {
	done chan struct{}
	err  error // once done is closed
}

// Ready implements remote.Completer. Once a minute a token proves it, for it takes the place of a cache; else, and where it would
// have to wait, that the model is there is enough.
func (s *server) Ready(ctx context.Context, busy bool) error {
	const often = time.Minute
	s.mu.Lock()
	if busy || time.Since(s.proved) < often {
		s.mu.Unlock()
		_, err := s.client.api.Show(ctx, &api.ShowRequest{Model: s.config.Model})
		return s.unready(err)
	}
	p := s.proof
	if p == nil {
		p = &proof{done: make(chan struct{})}
		s.proof = p
		s.proving.Go(func() {
			_, p.err = s.Complete(s.ctx, remote.Request{Prefix: []decode.Part{decode.Text("a")}, MaxTokens: 1}, func(remote.Piece) {})
			s.mu.Lock()
			defer s.mu.Unlock()
			if p.err == nil {
				s.proved = time.Now()
			}
			s.proof = nil
			close(p.done)
		})
	}
	s.mu.Unlock()
	select {
	case <-p.done:
		return s.unready(p.err)
	case <-ctx.Done():
		return s.unready(errors.New("the model has said nothing for long"))
	}
}

func (s *server) unready(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", decode.ErrUnavailable, s.client.explain(s.config.Model, err))
}
