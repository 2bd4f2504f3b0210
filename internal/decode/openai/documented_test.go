package openai_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"anytime/internal/decode"
	"anytime/internal/decode/decodetest"
	"anytime/internal/decode/openai"
	"anytime/internal/decode/prompt"
)

// documented serves the protocols of vLLM, SGLang, TGI and LM Studio as their documentation and source have them. They are not recorded: those
// servers want GPUs. Its model is a Go function.
type documented struct {
	t     *testing.T
	kind  string // owned_by of its models, or "tgi"
	merge int    // tokens in an event
	model decodetest.Model
	texts *decodetest.Engine // tokenizer

	noCompletions bool
	parser        bool   // takes the thinking apart, as vLLM does with --reasoning-parser
	prefill       string // how a message is continued: "continue_final_message", "prefix", "" not at all
	key           string
	noLogProbs    bool

	mu       *sync.Mutex
	requests []map[string]any // for completions
	adapters []string
}

const documentedContext = 4096

func document(t *testing.T, d documented) (*documented, string) {
	d.t, d.merge, d.mu = t, cmp.Or(d.merge, 1), new(sync.Mutex)
	if d.model == nil {
		d.model = decodetest.Words
	}
	d.texts = decodetest.New(decodetest.Options{Info: decode.Info{SpecialTokens: []string{"<|im_start|>", "<|im_end|>", "<think>", "</think>"}}})
	t.Cleanup(func() { d.texts.Close() })
	return &d, serve(t, &d)
}

func (d *documented) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if d.key != "" && r.Header.Get("Authorization") != "Bearer "+d.key {
		answer(w, 401, map[string]any{"error": "Unauthorized"})
		return
	}
	body := map[string]any{}
	_ = json.NewDecoder(r.Body).Decode(&body)
	hosted := d.kind == "vllm" || d.kind == "sglang"
	switch r.URL.Path {
	case "/v1/models":
		models := []map[string]any{{"id": "thinker", "object": "model", "owned_by": d.kind}}
		if hosted {
			models[0]["max_model_len"] = documentedContext
		}
		answer(w, 200, map[string]any{"object": "list", "data": models})
	case "/health":
	case "/info":
		d.only(w, d.kind == "tgi", map[string]any{"model_id": "thinker", "version": "3.3.0", "router": "text-generation-router", "max_total_tokens": documentedContext, "max_concurrent_requests": 128})
	case "/version":
		d.only(w, d.kind == "vllm", map[string]any{"version": "0.15.0"})
	case "/tokenizer_info":
		d.only(w, d.kind == "vllm", map[string]any{"tokenizer_class": "Qwen2TokenizerFast", "chat_template": "{{ messages[0].content }}<think>", "eos_token": map[string]any{"content": "<|im_end|>", "special": true}})
	case "/openapi.json":
		d.only(w, d.kind == "vllm", map[string]any{
			"paths":      map[string]any{"/v1/load_lora_adapter": map[string]any{}},
			"components": map[string]any{"schemas": map[string]any{"CompletionRequest": map[string]any{"properties": map[string]any{"thinking_token_budget": map[string]any{}}}}},
		})
	case "/tokenize":
		text, _ := body["prompt"].(string)
		if list, ok := body["messages"].([]any); ok {
			for _, m := range list {
				m := m.(map[string]any)
				text += fmt.Sprintf("<|im_start|>%s\n%s<|im_end|>\n", m["role"], m["content"])
			}
			text += "<|im_start|>assistant\n<think>\n"
		}
		ids, strs := []int32{}, []string{}
		for _, t := range d.tokens(decode.Text(text)) {
			ids, strs = append(ids, t.ID), append(strs, byteLevel.Replace(t.Text))
		}
		reply := map[string]any{"count": len(ids), "max_model_len": documentedContext, "tokens": ids}
		if d.kind == "vllm" && body["return_token_strs"] == true {
			reply["token_strs"] = strs
		}
		d.only(w, hosted, reply)
	case "/detokenize":
		join := func(list any) string {
			one := decode.Part{}
			for _, id := range list.([]any) {
				one.IDs = append(one.IDs, int32(id.(float64)))
			}
			return decodetest.Join(d.tokens(one))
		}
		list := body["tokens"].([]any)
		if _, one := list[0].(float64); one {
			d.only(w, hosted, map[string]any{map[string]string{"vllm": "prompt", "sglang": "text"}[d.kind]: join(list)})
			return
		}
		texts := []string{}
		for _, one := range list {
			texts = append(texts, join(one))
		}
		d.only(w, d.kind == "sglang", map[string]any{"text": texts})
	case "/v1/load_lora_adapter":
		if body["lora_path"] == "nowhere" {
			answer(w, 400, map[string]any{"error": map[string]any{"message": "Loading lora failed: No adapter found for nowhere", "type": "BadRequestError", "code": 400}})
			return
		}
		d.mu.Lock()
		d.adapters = append(d.adapters, body["lora_name"].(string))
		d.mu.Unlock()
		fmt.Fprintf(w, "Success: LoRA adapter '%s' added successfully.", body["lora_name"])
	case "/v1/unload_lora_adapter":
		d.mu.Lock()
		d.adapters = slices.DeleteFunc(d.adapters, func(a string) bool { return a == body["lora_name"] })
		d.mu.Unlock()
	case "/v1/completions":
		if d.noCompletions {
			answer(w, 404, map[string]any{"detail": "Not Found"})
			return
		}
		d.complete(w, body, false)
	case "/v1/chat/completions":
		d.complete(w, body, true)
	default:
		answer(w, 404, map[string]any{"detail": "Not Found"})
	}
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func (d *documented) only(w http.ResponseWriter, there bool, body any) {
	if !there {
		answer(w, 404, map[string]any{"detail": "Not Found"})
		return
	}
	answer(w, 200, body)
}

// byteLevel spells text as byte-level vocabularies do, as far as it is needed here.
var byteLevel = strings.NewReplacer(" ", "Ġ", "\n", "Ċ", "ö", "Ã¶", "猫", "çĮ«")

// tokens divides text into words and special tokens; marks that are none of the model's are not one token.
func (d *documented) tokens(parts ...decode.Part) (all []decode.Token) {
	for _, p := range parts {
		for len(p.IDs) > 0 || p.Text != "" {
			one := p
			n := strings.IndexAny(p.Text, "<[")
			special := slices.ContainsFunc(d.texts.Info().SpecialTokens, func(s string) bool { return n >= 0 && strings.HasPrefix(p.Text[n:], s) })
			switch {
			case n >= 0 && !special:
				one.Text, p.Text = p.Text[:n+1], p.Text[n+1:]
			case n > 0:
				one.Text, p.Text = p.Text[:n], p.Text[n:]
			case n == 0:
				end := strings.IndexByte(p.Text, '>') + 1
				one.Text, p.Text = p.Text[:end], p.Text[end:]
			default:
				p = decode.Part{}
			}
			tokens, err := d.texts.Tokenize(d.t.Context(), one)
			if err != nil {
				d.t.Error(err)
			}
			all = append(all, tokens...)
		}
	}
	return all
}

// prefix is the text of a request's prompt, and its length in tokens.
func (d *documented) prefix(body map[string]any, chat bool) (text string, n int) {
	if chat {
		list := body["messages"].([]any)
		marked := false
		for i, m := range list {
			m := m.(map[string]any)
			text += fmt.Sprintf("<|im_start|>%s\n%s", m["role"], m["content"])
			marked = i == len(list)-1 && (d.prefill == "prefix" && m["prefix"] == true || d.prefill == "continue_final_message" && body["continue_final_message"] == true)
			if !marked {
				text += "<|im_end|>\n"
			}
		}
		if !marked {
			text += "<|im_start|>assistant\n"
		}
	}
	part := decode.Text(text)
	switch p := body["prompt"].(type) {
	case string:
		part.Text = p
	case []any:
		for _, id := range p {
			part.IDs = append(part.IDs, int32(id.(float64)))
		}
	}
	tokens := d.tokens(part)
	return decodetest.Join(tokens), len(tokens)
}

// complete streams a completion.
func (d *documented) complete(w http.ResponseWriter, body map[string]any, chat bool) {
	d.mu.Lock()
	d.requests = append(d.requests, body)
	d.mu.Unlock()
	ids := d.kind == "vllm" || d.kind == "sglang"
	number := func(name string) int { n, _ := body[name].(float64); return int(n) }
	text, n := d.prefix(body, chat)
	most := number("max_tokens")
	if n+most > documentedContext {
		answer(w, 400, map[string]any{"error": map[string]any{
			"message": fmt.Sprintf("This model's maximum context length is %d tokens. However, you requested %d tokens in the completion", documentedContext, most),
			"type":    "BadRequestError", "param": "input_tokens", "code": 400,
		}})
		return
	}
	if d.noLogProbs && body["logprobs"] != nil {
		answer(w, 422, map[string]any{"error": map[string]any{"message": "logprobs are not supported", "type": "invalid_request_error"}})
		return
	}
	seed := uint64(0)
	if temperature, ok := body["temperature"].(float64); !ok || temperature > 0 {
		seed = uint64(number("seed"))
	}
	bias := func(id int32) float64 {
		b, _ := body["logit_bias"].(map[string]any)
		v, _ := b[strconv.Itoa(int(id))].(float64)
		return v
	}
	end := d.tokens(decode.Text("<|im_end|>"))[0]
	flush := http.NewResponseController(w).Flush
	w.Header().Set("Content-Type", "text/event-stream")
	send := func(v any) {
		data, _ := json.Marshal(v)
		fmt.Fprintf(w, "data: %s\n\n", data)
		_ = flush()
	}
	var event []decode.Token
	thinking := d.parser && strings.Contains(text, "<think>") && !strings.Contains(text, "</think>")
	deliver := func(finish any) {
		c := map[string]any{"index": 0, "finish_reason": finish}
		said := strings.TrimSuffix(decodetest.Join(event), end.Text)
		switch {
		case chat && thinking:
			thought, rest, closed := strings.Cut(said, "</think>")
			c["delta"] = map[string]any{"reasoning_content": thought, "content": rest}
			thinking = !closed
		case chat:
			c["delta"] = map[string]any{"content": said}
		default:
			c["text"] = said
		}
		if ids && body["return_token_ids"] == true {
			list := []int32{}
			for _, t := range event {
				list = append(list, t.ID)
			}
			c["token_ids"] = list
		}
		if body["logprobs"] != nil && d.kind != "lmstudio" && !chat {
			var p struct {
				Tokens []string             `json:"tokens"`
				Of     []float64            `json:"token_logprobs"`
				Top    []map[string]float64 `json:"top_logprobs"`
			}
			for _, t := range event {
				p.Tokens, p.Of, p.Top = append(p.Tokens, t.Text), append(p.Of, -0.25), append(p.Top, map[string]float64{t.Text: -0.25, "other": -2})
			}
			c["logprobs"] = p
		}
		send(map[string]any{"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": []any{c}})
		event = nil
	}
	n, finish := 0, "length"
	for ; n < most; n++ {
		next := ""
		if bias(end.ID) <= 0 || n < number("min_tokens") {
			for try := seed; next == "" || bias(d.tokens(decode.Text(next))[0].ID) <= -100; try++ {
				if next = d.model(text, try); next == "" {
					break
				}
			}
		}
		if next == "" {
			event = append(event, end)
			n++
			finish = "stop"
			break
		}
		text += next
		event = append(event, d.tokens(decode.Text(next))...)
		if len(event) >= d.merge && n < most-1 {
			deliver(nil)
		}
	}
	deliver(finish)
	send(map[string]any{"id": "cmpl-1", "object": "text_completion", "choices": []any{}, "usage": map[string]any{"prompt_tokens": 1, "completion_tokens": n}})
	fmt.Fprint(w, "data: [DONE]\n\n")
}

func TestDocumentedConformance(t *testing.T) {
	tests := []struct {
		name   string
		server documented
		ids    bool
		says   string
	}{
		{"vLLM", documented{kind: "vllm"}, true, "vLLM 0.15.0"},
		{"vLLM, three tokens an event", documented{kind: "vllm", merge: 3}, true, "thinking budgets of its own"},
		{"SGLang", documented{kind: "sglang"}, true, "SGLang"},
		{"TGI", documented{kind: "tgi"}, false, "TGI 3.3.0"},
		{"LM Studio, which has no log-probabilities", documented{kind: "organization_owner", noLogProbs: true}, false, "prefixes as text"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, url := document(t, test.server)
			e := connect(t, openai.Config{URL: url, ContextTokens: 1024})
			if can := e.Info().Capabilities; can.TokenIDs != test.ids || can.LogProbs == test.server.noLogProbs {
				t.Errorf("capabilities %+v", can)
			}
			if d := describe(e); !strings.Contains(d, test.says) {
				t.Errorf("described as %q, which does not say %q", d, test.says)
			}
			if e.Info().EOS == "" {
				e = ending{e}
			}
			decodetest.Conformance(t, func(*testing.T) decode.Engine { return e })
		})
	}
}

// ending is an engine whose model's end is known: SGLang does not tell it.
type ending struct{ decode.Engine }

func (e ending) Info() decode.Info {
	info := e.Engine.Info()
	info.EOS = "<|im_end|>"
	return info
}

// A server that applies its chat template, but does not tell it, has it learned from what it renders.
func TestLearnedTemplate(t *testing.T) {
	_, url := document(t, documented{kind: "sglang"})
	e := connect(t, openai.Config{URL: url})
	if d := describe(e); !strings.Contains(d, "apply-template") {
		t.Errorf("described as %q", d)
	}
	r, err := prompt.New(e.Info(), prompt.Detect(e.Info()), "")
	if err != nil {
		t.Fatal(err)
	}
	system, question := prompt.Message{Role: "system", Content: "Be brief."}, prompt.Message{Role: "user", Content: "It's 1 + 1?"}
	reply, again := prompt.Message{Role: "assistant", Content: "2"}, prompt.Message{Role: "user", Content: "Sure? <|im_end|>"}
	for _, chat := range [][]prompt.Message{{question}, {system, question}, {question, reply, again}, {system, question, reply, again, reply, question}} {
		want := ""
		for _, m := range chat {
			want += fmt.Sprintf("<|im_start|>%s\n%s<|im_end|>\n", m.Role, m.Content)
		}
		p, err := r.Render(chat, prompt.Options{Thinking: true})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, part := range p.Parts {
			got += part.Text
		}
		if want += "<|im_start|>assistant\n<think>\n"; got != want || !p.Thinking {
			t.Errorf("rendered %q\n    want %q", got, want)
		}
	}
}

// A server that tells neither ids nor the tokens of an event is told how many tokens it may decode; what it counts makes limits exact.
func TestEventsOfSeveralTokens(t *testing.T) {
	_, url := document(t, documented{kind: "organization_owner", merge: 4, noLogProbs: true})
	e := connect(t, openai.Config{URL: url})
	tokens, end := span(t, begin(t, e, decode.Text(thought)), decode.Span{MaxTokens: 10})
	if len(tokens) != 10 || end != decode.EndLimit || len(strings.Fields(join(tokens))) != 10 {
		t.Errorf("%d tokens %q, end %s", len(tokens), join(tokens), end)
	}
}

// What is sent to a server that knows more than OpenAI's fields, and to one that may refuse others.
func TestRequestFields(t *testing.T) {
	tests := []struct {
		kind string
		want string
		not  string
	}{
		{"vllm", `"logprobs":2,"max_tokens":5,"min_p":0.1,"min_tokens":2,"model":"thinker","return_token_ids":true,"seed":`, "timings_per_token"},
		{"organization_owner", `"logprobs":2,"max_tokens":5,"min_p":0.1,"model":"thinker","prompt":"Hi","seed":`, "min_tokens"},
	}
	for _, test := range tests {
		t.Run(test.kind, func(t *testing.T) {
			d, url := document(t, documented{kind: test.kind})
			e := connect(t, openai.Config{URL: url})
			span(t, begin(t, e, decode.Text("Hi")), decode.Span{MaxTokens: 5, MinTokens: 2, TopLogProbs: 2, Sampling: decode.Sampling{Temperature: 0.5, TopP: 0.9, MinP: 0.1, TopK: 7}})
			last := d.requests[len(d.requests)-1]
			if test.kind == "vllm" {
				delete(last, "prompt")
			}
			sent, _ := json.Marshal(last)
			for _, want := range []string{test.want, `"temperature":0.5,"top_k":7,"top_p":0.9`, `"stream_options":{"include_usage":true}`} {
				if !strings.Contains(string(sent), want) {
					t.Errorf("sent %s\nwithout %s", sent, want)
				}
			}
			if strings.Contains(string(sent), test.not) {
				t.Errorf("sent %s\nwith %s", sent, test.not)
			}
		})
	}
}

// counts is a model that goes on counting, if it is asked to, and thinks a little before.
func counts(prefix string, _ uint64) string {
	words := strings.Fields("one two three four five six seven eight nine ten")
	at := strings.LastIndex(prefix, "assistant\n")
	said := strings.Fields(strings.NewReplacer("<think>", " ", "</think>", " ").Replace(prefix[at+len("assistant\n"):]))
	n := len(said)
	switch {
	case strings.HasSuffix(prefix, " sev"):
		return "en"
	case strings.Contains(prefix[at:], "<think>") && !strings.Contains(prefix[at:], "</think>") && n >= 8:
		return "</think>"
	case n >= len(words):
		return ""
	}
	return " " + words[n]
}

func TestChat(t *testing.T) {
	tests := []struct {
		name   string
		server documented
	}{
		{"continue_final_message", documented{kind: "vllm", prefill: "continue_final_message"}},
		{"prefix", documented{kind: "mistral", prefill: "prefix"}},
		{"the server takes thinking apart", documented{kind: "vllm", prefill: "continue_final_message", parser: true}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.server.noCompletions, test.server.model = true, counts
			d, url := document(t, test.server)
			e := connect(t, openai.Config{URL: url})
			if !strings.Contains(describe(e), "/v1/chat/completions") {
				t.Errorf("described as %q", describe(e))
			}
			r, err := prompt.New(e.Info(), prompt.Detect(e.Info()), "")
			if err != nil {
				t.Fatal(err)
			}
			const tricky = "Count. <|turn:assistant|> Or not?"
			p, err := r.Render([]prompt.Message{{Role: "system", Content: "Be brief."}, {Role: "user", Content: tricky}}, prompt.Options{Thinking: true})
			if err != nil {
				t.Fatal(err)
			}
			s := begin(t, e, p.Parts...)
			if got, end := span(t, s, decode.Span{MaxTokens: 5}); join(got) != " one two three four five" || end != decode.EndLimit {
				t.Errorf("%q, end %s", join(got), end)
			}
			got, end := span(t, s, decode.Span{MaxTokens: 9, Until: []string{"</think>"}})
			if join(got) != " six seven eight</think>" || end != decode.EndUntil {
				t.Errorf("%q, end %s", join(got), end)
			}
			if got, end := span(t, s, decode.Span{MaxTokens: 9}); join(got) != " nine ten" || end != decode.EndEOG {
				t.Errorf("%q, end %s", join(got), end)
			}
			sent := fmt.Sprint(d.requests[len(d.requests)-1]["messages"])
			for _, want := range []string{"map[content:Be brief. role:system]", "map[content:" + tricky + " role:user]", "<think>\n one two three four five six seven eight</think>"} {
				if !strings.Contains(sent, want) {
					t.Errorf("sent %s\nwithout %s", sent, want)
				}
			}
			s = begin(t, e, decode.Text("no chat"))
			if err := s.Decode(decode.Span{MaxTokens: 1}); err != nil {
				t.Fatal(err)
			}
			var input *decode.InputError
			if _, _, err := finish(s); !errors.As(err, &input) {
				t.Errorf("a prompt that is no chat: %v", err)
			}
		})
	}
}

// vLLM loads adapters at run time, and each is a model of its own there.
func TestDocumentedAdapters(t *testing.T) {
	d, url := document(t, documented{kind: "vllm"})
	e := connect(t, openai.Config{URL: url})
	a := e.(decode.Adapters)
	ctx := t.Context()
	if err := a.LoadAdapter(ctx, "terse", "/models/terse", 1); err != nil {
		t.Fatal(err)
	}
	s, err := e.Open(ctx, decode.Request{Prompt: []decode.Part{decode.Text("Hi")}, Adapter: "terse"})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.LoadAdapter(ctx, "terse", "/models/terser", 1); err != nil { // while the first is in use
		t.Fatal(err)
	}
	span(t, s, decode.Span{MaxTokens: 1})
	d.mu.Lock()
	loaded, used := slices.Clone(d.adapters), d.requests[len(d.requests)-1]["model"]
	d.mu.Unlock()
	if len(loaded) != 2 || used != loaded[0] {
		t.Errorf("loaded %v, used %v; want the first", loaded, used)
	}
	s.Close()
	if err := a.UnloadAdapter(ctx, "terse"); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil { // waits for the server to have unloaded
		t.Fatal(err)
	}
	if len(d.adapters) != 0 || len(a.AdapterNames()) != 0 {
		t.Errorf("still loaded: %v, %v", d.adapters, a.AdapterNames())
	}
	var input *decode.InputError
	if err := a.LoadAdapter(ctx, "half", "/models/terse", 0.5); !errors.As(err, &input) || input.Field != "scale" {
		t.Errorf("scale 0.5: %v", err)
	}
	if err := a.LoadAdapter(ctx, "none", "nowhere", 1); err == nil || !strings.Contains(err.Error(), "No adapter found") {
		t.Errorf("no such adapter: %v", err)
	}
	if err := a.UnloadAdapter(ctx, "none"); !errors.Is(err, decode.ErrUnknownAdapter) {
		t.Errorf("unload of an unknown one: %v", err)
	}
}

func TestOpenFails(t *testing.T) {
	_, two := document(t, documented{kind: "vllm", key: "right"})
	_, silent := document(t, documented{kind: "other", noCompletions: true, model: counts})
	several := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 200, map[string]any{"data": []any{map[string]any{"id": "one"}, map[string]any{"id": "two"}}})
	}))
	page := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>Hello</html>") }))
	loading := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 503, map[string]any{"error": map[string]any{"message": "Loading model", "type": "unavailable_error", "code": 503}})
	}))
	tests := []struct {
		name   string
		config openai.Config
		want   []string
	}{
		{"not running", openai.Config{URL: "http://" + freeAddress(t)}, []string{"connection refused", "is running"}},
		{"no address", openai.Config{URL: "localhost:80"}, []string{"must be a URL"}},
		{"key in the address", openai.Config{URL: "http://me:pass@localhost/v1"}, []string{"the key has a field of its own"}},
		{"wrong key", openai.Config{URL: two, APIKey: "wrong"}, []string{"refuses the API key", "401", "set the engine's key"}},
		{"model missing", openai.Config{URL: two, APIKey: "right", Model: "other"}, []string{`no model "other"`, "thinker"}},
		{"several models", openai.Config{URL: several}, []string{"several models", "one, two"}},
		{"no JSON", openai.Config{URL: page}, []string{"not the JSON"}},
		{"loading", openai.Config{URL: loading}, []string{"503", "Loading model"}},
		{"continues nothing", openai.Config{URL: silent}, []string{"does not continue", "no /v1/completions"}},
		{"unknown API", openai.Config{URL: two, API: "responses"}, []string{"must be completions, chat"}},
		{"negative context", openai.Config{URL: two, ContextTokens: -1}, []string{"negative"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			e, err := openai.Open(t.Context(), test.config)
			if err == nil {
				e.Close()
				t.Fatal("it was opened")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}
