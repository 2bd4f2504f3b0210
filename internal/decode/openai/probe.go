package openai

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"anytime/internal/decode"
	"anytime/internal/decode/remote"
)

// listedModel is an entry of /v1/models with what servers add to OpenAI's fields.
type listedModel struct {
	ID            string `json:"id"`
	OwnedBy       string `json:"owned_by"`
	Parent        string `json:"parent"`        // of an adapter
	MaxModelLen   int    `json:"max_model_len"` // vLLM, SGLang
	ContextTokens int    `json:"context_tokens"`
	Meta          struct {
		Vocabulary int `json:"n_vocab"`
	} `json:"meta"` // llama-server
}

// probe finds out what a server is and can do.
func probe(ctx context.Context, c Config) (*server, error) {
	if c.API != "" && c.API != completionsAPI && c.API != chatAPI {
		return nil, fmt.Errorf("the engine's API is %q: it must be completions, chat, or empty for the best that works", c.API)
	}
	if c.ContextTokens < 0 || c.Sequences < 0 || c.Patience < 0 {
		return nil, errors.New("the engine's context tokens, sequences and patience must not be negative")
	}
	client, err := newClient(c.URL, c.APIKey)
	if err != nil {
		return nil, err
	}
	s := &server{client: client, kind: unknown, model: c.Model, always: c.LogProbs, texts: map[int32]string{}}
	defer func() {
		if err != nil {
			client.http.CloseIdleConnections()
		}
	}()
	models, err := s.findModel(ctx)
	if err != nil {
		return nil, err
	}
	s.info.Model = cmp.Or(c.Name, s.model)
	s.lora = newLoras(client, s.kind)
	s.health = s.root + "/health"
	s.slots = defaultSequences
	switch s.kind {
	case llamaServer:
		err = s.probeLlama(ctx)
	case vllm, sglang:
		s.probeVLLM(ctx, models)
	default:
		s.health = s.base + "/models"
		s.probeOthers(ctx)
	}
	if err != nil {
		return nil, s.explain(err)
	}
	if n := c.ContextTokens; n > 0 && (s.info.ContextTokens == 0 || n < s.info.ContextTokens) {
		s.info.ContextTokens = n
	}
	s.slots = cmp.Or(c.Sequences, s.slots)
	s.info.MaxSequences = s.slots
	if err = s.choose(ctx, c.API); err != nil {
		return nil, err
	}
	return s, nil
}

// findModel asks for the models: whether the server is there, what it is, and whether it has ours.
func (s *server) findModel(ctx context.Context) ([]listedModel, error) {
	var list struct {
		Data []listedModel `json:"data"`
	}
	err := s.get(ctx, s.base+"/models", &list)
	var e *serverError
	if errors.As(err, &e) && e.status == http.StatusNotFound && s.model != "" {
		return nil, nil // some have no such list
	}
	if err != nil {
		return nil, s.explain(err)
	}
	var own []listedModel
	var ids []string
	for _, m := range list.Data {
		ids = append(ids, m.ID)
		if m.Parent == "" && s.model == "" || m.ID == s.model {
			own = append(own, m)
		}
	}
	// llama-server does not care for the name; its list has the file's.
	if len(own) == 0 && len(list.Data) == 1 && list.Data[0].OwnedBy == "llamacpp" {
		own = list.Data
	}
	names := strings.Join(ids, ", ")
	switch {
	case len(list.Data) == 0:
		return nil, fmt.Errorf("%s has no model: load one there", s.base)
	case len(own) == 0:
		return nil, fmt.Errorf("%s has no model %q: load it there, or set the engine's model to one that it has: %s", s.base, s.model, names)
	case len(own) > 1 && s.model == "":
		return nil, fmt.Errorf("%s has several models: set the engine's model to one of %s", s.base, names)
	}
	m := own[0]
	s.model = m.ID
	s.info.ContextTokens, s.info.Vocabulary = cmp.Or(m.MaxModelLen, m.ContextTokens), m.Meta.Vocabulary
	switch m.OwnedBy {
	case "llamacpp":
		s.kind = llamaServer
	case "vllm":
		s.kind = vllm
	case "sglang":
		s.kind = sglang
	case "anytime":
		s.kind = anytime
	}
	return list.Data, nil
}

// probeLlama asks llama-server for its properties, tokenizer and adapters.
func (s *server) probeLlama(ctx context.Context) error {
	var props struct {
		ChatTemplate string `json:"chat_template"`
		BOS          string `json:"bos_token"`
		EOS          string `json:"eos_token"`
		Slots        int    `json:"total_slots"`
		Build        string `json:"build_info"`
		Defaults     struct {
			ContextTokens int `json:"n_ctx"`
		} `json:"default_generation_settings"`
	}
	if err := s.get(ctx, s.root+"/props", &props); err != nil {
		return err
	}
	s.version = props.Build
	s.info.ContextTokens = cmp.Or(props.Defaults.ContextTokens, s.info.ContextTokens)
	s.info.ChatTemplate, s.info.BOS, s.info.EOS = props.ChatTemplate, props.BOS, props.EOS
	s.slots = cmp.Or(props.Slots, s.slots)
	s.places = newSlots(ctx, s.client, props.Slots)
	s.model = cmp.Or(s.model, "default")
	// One that knows the field refuses a bad value.
	var refused *serverError
	err := s.post(ctx, s.base+"/completions", map[string]any{"prompt": "a", "max_tokens": 1, "reasoning_budget_tokens": -2}, nil)
	s.budgets = errors.As(err, &refused) && strings.Contains(refused.message, "reasoning_budget_tokens")
	var rendered struct {
		Prompt string `json:"prompt"`
	}
	err = s.post(ctx, s.root+"/apply-template", map[string]any{"messages": []map[string]string{{"role": "user", "content": "Hello"}}}, &rendered)
	s.renders = err == nil && strings.Contains(rendered.Prompt, "Hello")
	if err := s.probeTokenizer(ctx, s.llamaEncoder(false), s.llamaEncoder(true)); err != nil {
		return err
	}
	var adapters []struct {
		ID    int     `json:"id"`
		Path  string  `json:"path"`
		Scale float32 `json:"scale"`
	}
	if err := s.get(ctx, s.root+"/lora-adapters", &adapters); err != nil {
		return nil // older ones have none
	}
	for _, a := range adapters {
		l := lora{id: a.ID, path: a.Path, scale: a.Scale}
		if l.scale == 0 { // --lora-init-without-apply
			l.scale = 1
		}
		s.lora.listed = append(s.lora.listed, l)
		s.lora.set(strings.TrimSuffix(filepath.Base(a.Path), ".gguf"), &l)
	}
	s.info.Capabilities.Adapters = len(adapters) > 0
	return nil
}

// probeVLLM asks vLLM or SGLang for what is there of tokenizer, chat template and adapters; they work without.
func (s *server) probeVLLM(ctx context.Context, models []listedModel) {
	var v struct {
		Version string `json:"version"`
	}
	if s.get(ctx, s.root+"/version", &v) == nil {
		s.version = v.Version
	}
	var tokenizer struct {
		ChatTemplate string `json:"chat_template"`
		BOS          any    `json:"bos_token"`
		EOS          any    `json:"eos_token"`
	}
	if s.get(ctx, s.root+"/tokenizer_info", &tokenizer) == nil { // with --enable-tokenizer-info-endpoint
		s.info.ChatTemplate = tokenizer.ChatTemplate
		s.info.BOS, s.info.EOS = tokenText(tokenizer.BOS), tokenText(tokenizer.EOS)
	}
	if s.info.ChatTemplate == "" {
		s.info.ChatTemplate = s.learnTemplate(ctx)
		s.renders = s.info.ChatTemplate != ""
	}
	if err := s.probeTokenizer(ctx, s.vllmEncoder(s.kind, s.model, false), s.vllmEncoder(s.kind, s.model, true)); err != nil {
		s.encode = nil
	}
	var schema struct {
		Paths map[string]any `json:"paths"`
		Parts struct {
			Schemas map[string]struct {
				Properties map[string]any `json:"properties"`
			} `json:"schemas"`
		} `json:"components"`
	}
	if s.get(ctx, s.root+"/openapi.json", &schema) == nil {
		_, s.budgets = schema.Parts.Schemas["CompletionRequest"].Properties["thinking_token_budget"]
		_, s.info.Capabilities.Adapters = schema.Paths["/v1/load_lora_adapter"]
	}
	for _, m := range models {
		if m.Parent == s.model && m.ID != s.model {
			s.lora.set(m.ID, &lora{model: m.ID})
			s.info.Capabilities.Adapters = true
		}
	}
}

// probeOthers looks for TGI and LM Studio, which tell of themselves elsewhere.
func (s *server) probeOthers(ctx context.Context) {
	if s.kind == anytime {
		return
	}
	var about struct {
		Version   string `json:"version"`
		Router    string `json:"router"`
		MaxTokens int    `json:"max_total_tokens"`
		Requests  int    `json:"max_concurrent_requests"`
	}
	if s.get(ctx, s.root+"/info", &about) == nil && about.MaxTokens > 0 {
		s.kind, s.version, s.info.ContextTokens = tgi, about.Version, about.MaxTokens
		s.slots = cmp.Or(about.Requests, s.slots)
		s.health = s.root + "/health"
		if tokens, err := s.tgiEncoder(ctx, []string{"one two three"}); err == nil && len(tokens) > 0 {
			s.encode = cached(s.tgiEncoder)
		}
		return
	}
	var model struct {
		Loaded int `json:"loaded_context_length"`
		Max    int `json:"max_context_length"`
	}
	if s.get(ctx, s.root+"/api/v0/models/"+path.Clean(s.model), &model) == nil && model.Max > 0 {
		s.kind, s.info.ContextTokens = lmStudio, cmp.Or(model.Loaded, model.Max)
	}
}

// wellKnown are special tokens of many models. Those that the server's tokenizer reads as one token are the model's.
var wellKnown = strings.Fields(`<s> </s> <bos> <eos> <pad> <unk> <think> </think> <tool_call> </tool_call> <tool_response> </tool_response>
	<|im_start|> <|im_end|> <|endoftext|> <|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|eom_id|>
	<|python_tag|> <|start|> <|end|> <|message|> <|channel|> <|return|> <|call|> <|constrain|> <|user|> <|assistant|> <|system|> <|observation|>
	<start_of_turn> <end_of_turn> <|turn> <turn|> <|channel> <channel|> [INST] [/INST] [THINK] [/THINK] [SYSTEM_PROMPT] [/SYSTEM_PROMPT]
	[TOOL_CALLS] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] <｜User｜> <｜Assistant｜> <｜begin▁of▁sentence｜>
	<｜end▁of▁sentence｜> <|vision_start|> <|vision_end|> <|image_pad|> <|fim_prefix|> <|fim_suffix|> <|fim_middle|> <|repo_name|> <|file_sep|>`)

var specialLike = regexp.MustCompile(`<[|｜][^\s<>'"{}]{1,64}>|<[^\s<>'"{}]{1,64}[|｜]>|</?[a-z_]{1,32}>|\[/?[A-Z_]{2,32}\]`)

// probeTokenizer tries the tokenizer: whether a prompt begins with BOS, and which texts are special tokens.
func (s *server) probeTokenizer(ctx context.Context, plain, withBOS encoder) error {
	without, err := plain(ctx, []string{"a"})
	if err != nil {
		return err
	}
	with, err := withBOS(ctx, []string{"a"})
	if err != nil {
		return err
	}
	if len(with) > len(without) && len(without) > 0 && with[0].ID != without[0].ID {
		s.info.AddBOS = true
		s.bos = &decode.Token{ID: with[0].ID, Text: s.info.BOS}
	}
	s.encode = cached(plain)
	names := slices.Concat(wellKnown, specialLike.FindAllString(s.info.ChatTemplate, -1), []string{s.info.BOS, s.info.EOS})
	slices.Sort(names)
	names = slices.DeleteFunc(slices.Compact(names), func(name string) bool { return utf8.RuneCountInString(name) < 2 })
	s.info.SpecialTokens, err = s.singleTokens(ctx, plain, names)
	for _, name := range s.info.SpecialTokens {
		if r, _ := utf8.DecodeRuneInString(name); !strings.ContainsRune(s.opening, r) {
			s.opening += string(r)
		}
	}
	return err
}

// singleTokens are the texts that are one token each.
func (s *server) singleTokens(ctx context.Context, encode encoder, texts []string) (single []string, err error) {
	if s.kind == llamaServer { // which takes all at once, and tells what is of which token
		tokens, err := encode(ctx, texts)
		for _, t := range tokens {
			if slices.Contains(texts, t.Text) && !slices.Contains(single, t.Text) {
				single = append(single, t.Text)
			}
		}
		return single, err
	}
	for _, text := range texts {
		tokens, err := encode(ctx, []string{text})
		if err != nil {
			return nil, err
		}
		if len(tokens) == 1 {
			single = append(single, text)
		}
	}
	return single, nil
}

// choose has a token decoded, in the best way that works.
func (s *server) choose(ctx context.Context, only string) error {
	s.info.Capabilities.Seed = s.kind == llamaServer || s.kind == vllm || s.kind == sglang
	var failed error
	if only != chatAPI {
		s.api, s.logProbs = completionsAPI, true
		s.ids = s.encode != nil && s.kind != tgi
		for {
			tokens, err := s.try(ctx, 1)
			var e *serverError
			switch {
			case err == nil && s.ids && (len(tokens) == 0 || tokens[0].ID < 0):
				s.ids = false // older ones do not tell ids
				continue
			case err == nil:
				s.info.Capabilities.TokenIDs, s.info.Capabilities.LogitBias = s.ids, s.ids
				s.logProbs = len(tokens) > 0 && len(tokens[0].Top) > 0
				s.info.Capabilities.LogProbs = s.logProbs
				if s.ids && s.logProbs && !s.always { // older ones tell ids with log-probabilities only
					tokens, err := s.try(ctx, 0)
					s.always = len(tokens) == 0 || tokens[0].ID < 0
					return err
				}
				return nil
			case errors.As(err, &e) && s.logProbs && (e.status == http.StatusBadRequest || e.status == http.StatusUnprocessableEntity) && strings.Contains(strings.ToLower(e.message), "logprob"):
				s.logProbs = false
				continue
			case only == "" && errors.As(err, &e) && slices.Contains([]int{http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented, http.StatusGone}, e.status) && !e.unknownModel():
				failed = err
			default:
				return err
			}
			break
		}
	}
	s.api, s.ids, s.logProbs = chatAPI, false, false
	err := s.tryChat(ctx, only == chatAPI)
	if err != nil && failed != nil {
		err = fmt.Errorf("%w (and it has no /v1/completions: %w)", err, failed)
	}
	return err
}

// try has one token decoded, of a thought.
func (s *server) try(ctx context.Context, topLogProbs int) ([]decode.Token, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var tokens []decode.Token
	req := remote.Request{
		Prefix: []decode.Part{decode.Text("1, 2, 3, 4, 5,")}, MaxTokens: 1, TopLogProbs: topLogProbs, Priority: decode.Priority{Class: decode.ClassThinking},
	}
	_, err := s.Complete(ctx, req, func(p remote.Piece) {
		tokens = append(tokens, p.Tokens...)
		if p.EOG != nil {
			tokens = append(tokens, *p.EOG)
		}
	})
	return tokens, err
}

// Describe says in a line what the server is, how it is used and what it can do.
func (e *Engine) Describe() string {
	s := e.server
	can := []string{e.Path()}
	for _, feature := range []struct {
		there bool
		name  string
	}{
		{s.encode != nil, "tokenize"}, {s.renders, "apply-template"},
		{s.info.ChatTemplate != "" && s.api != chatAPI, "chat template"},
		{s.logProbs, "log-probs"}, {s.info.Capabilities.Adapters, "LoRA adapters"}, {s.budgets, "thinking budgets of its own (not needed)"},
	} {
		if feature.there {
			can = append(can, feature.name)
		}
	}
	if s.info.ChatTemplate == "" {
		can = append(can, "chat template not told: set the model's")
	}
	return fmt.Sprintf("%s at %s: %s; context %s", strings.TrimSpace(string(s.kind)+" "+s.version), s.base, strings.Join(can, ", "),
		map[bool]string{true: fmt.Sprintf("%d tokens", s.info.ContextTokens), false: "not told"}[s.info.ContextTokens > 0])
}

// Path says how prefixes are sent to the server.
func (e *Engine) Path() string {
	switch {
	case e.server.api == chatAPI:
		return "the assistant's message continued by /v1/chat/completions"
	case e.server.ids:
		return "exact prefixes as token ids by /v1/completions"
	}
	return "prefixes as text by /v1/completions"
}
