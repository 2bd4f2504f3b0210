package server_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/shared"

	"anytime/api"
	"anytime/internal/decode"
	"anytime/internal/decode/decodetest"
	"anytime/internal/server"
	"anytime/internal/server/sse"
)

// answerTokens is how many tokens of the scripted answer are left to decode behind a closing that ends in an empty line.
const answerTokens = 4

const question = `"messages": [{"role": "user", "content": "How many?"}]`

func chat(fields string) string {
	if fields != "" {
		fields = ", " + fields
	}
	return "{" + question + fields + "}"
}

func TestChat(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	reply := get[api.ChatCompletion](b, "POST", "/v1/chat/completions", chat(`"model": "default", "thinking_token_budget": 32, "user": "u", "metadata": {"a": "b"}, "store": true, "parallel_tool_calls": false, "presence_penalty": 0, "tools": null`))
	choice := reply.Choices[0]
	if c := choice.Message.Content; c == nil || *c != `It is \boxed{32}` || choice.FinishReason != api.FinishReasonStop {
		t.Errorf("choice %+v", choice)
	}
	if r := choice.Message; r.ReasoningContent == nil || strings.Count(*r.ReasoningContent, " step") != 32 || *r.Reasoning != *r.ReasoningContent {
		t.Errorf("message %+v", r)
	}
	if r := reply.Budget; r.Limit != 32 || r.Used != 32 || !r.Forced || r.Cause != api.Tokens || r.AnswerLatencyMs <= 0 {
		t.Errorf("budget %+v", r)
	}
	u := reply.Usage
	if u.CompletionTokensDetails.ReasoningTokens != 32 || u.CompletionTokens != 32+answerTokens || u.PromptTokens == 0 || u.TotalTokens != u.PromptTokens+u.CompletionTokens {
		t.Errorf("usage %+v", u)
	}
	if !strings.HasPrefix(reply.Id, "chatcmpl-") || reply.Model != "scripted" || reply.Created == 0 {
		t.Errorf("reply %+v", reply)
	}

	short := get[api.ChatCompletion](b, "POST", "/v1/chat/completions", chat(`"max_tokens": 3`))
	if c := short.Choices[0]; c.FinishReason != api.FinishReasonLength || *c.Message.Content == "" || short.Usage.CompletionTokens > 3 {
		t.Errorf("max_tokens 3: %+v %+v", c, short.Usage)
	}
	if stopped := get[api.ChatCompletion](b, "POST", "/v1/chat/completions", chat(`"budget": 8, "stop": "boxed"`)); *stopped.Choices[0].Message.Content != `It is \` || stopped.Usage.CompletionTokensDetails.ReasoningTokens != 8 {
		t.Errorf("stop: %+v", stopped.Choices[0])
	}
	if hidden := get[api.ChatCompletion](b, "POST", "/v1/chat/completions", chat(`"budget": 8, "include_reasoning": false`)); hidden.Choices[0].Message.Reasoning != nil {
		t.Errorf("include_reasoning false: %+v", hidden.Choices[0])
	}
	off := get[api.ChatCompletion](b, "POST", "/v1/chat/completions", chat(`"think": false`))
	if c := off.Choices[0]; *c.Message.Content == "" || c.Message.Reasoning != nil || off.Usage.CompletionTokensDetails.ReasoningTokens != 0 {
		t.Errorf("think false: %+v", c)
	}

	two := get[api.ChatCompletion](b, "POST", "/v1/chat/completions", chat(`"budget": 4, "n": 2, "seed": 7, "logprobs": true, "top_logprobs": 2`))
	if len(two.Choices) != 2 || two.Choices[1].Index != 1 || two.Usage.CompletionTokensDetails.ReasoningTokens != 8 {
		t.Errorf("n 2: %+v", two)
	}
	for _, c := range two.Choices {
		text := ""
		for _, l := range c.Logprobs.Content {
			text += l.Token
			if l.Logprob > 0 || math.IsInf(float64(l.Logprob), 0) || len(l.Bytes) != len(l.Token) {
				t.Errorf("log-probability %+v", l)
			}
		}
		if strings.TrimSpace(text) != *c.Message.Content {
			t.Errorf("log-probabilities of %q for %q", text, *c.Message.Content)
		}
	}
}

func TestChatRefuses(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	for fields, words := range map[string][]string{
		`"tools": [{"type": "web_search", "function": {"name": "f"}}]`:                                                               {"tools[0].type", "function"},
		`"tools": [{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "f"}}]`:                {"tools", "twice"},
		`"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]`:                                {"tools[0].function.parameters", "object"},
		`"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"not": {}}}}}}]`:               {"tools[0].function.parameters", "/properties/x"},
		`"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": {"type": "function", "function": {"name": "g"}}`: {"tool_choice", "among"},
		`"tools": [{"type": "function", "function": {"name": "f"}}], "grammar": "root ::= \"a\""`:                                    {"grammar", "tools"},
		`"functions": [{}]`:                          {"functions", "not supported"},
		`"tool_choice": "required"`:                  {"tool_choice", "tools"},
		`"response_format": {"type": "json_schema"}`: {"response_format.json_schema", "missing"},
		`"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"properties": {"a": {"type": "int"}}}}}`: {"response_format.json_schema.schema", "/properties/a"},
		`"response_format": {"type": "yaml"}`:            {"response_format.type", "json_schema"},
		`"presence_penalty": 0.5`:                        {"presence_penalty", "set 0"},
		`"frequency_penalty": -0.5`:                      {"frequency_penalty", "set 0"},
		`"repetition_penalty": 1.1`:                      {"repetition_penalty", "set 1"},
		`"audio": {"voice": "x"}`:                        {"audio", "text only"},
		`"modalities": ["text", "audio"]`:                {"modalities[1]", "text only"},
		`"n": 100`:                                       {"n", "16"},
		`"top_logprobs": 3`:                              {"top_logprobs", "logprobs"},
		`"max_tokens": 0`:                                {"max_tokens", "at least 1"},
		`"max_tokens": 5, "max_completion_tokens": 6`:    {"max_tokens", "max_completion_tokens"},
		`"stop": ["a", 5]`:                               {"stop[1]", "string"},
		`"stream_options": {"usage": true}`:              {"stream_options.usage", "include_usage"},
		`"thinking_bugdet": 5`:                           {"thinking_bugdet", "unknown field", "thinking_budget"},
		`"messages": [{"role": "user", "content": "x"}]`: {"twice"},
	} {
		status, reply := b.call("POST", "/v1/chat/completions", chat(fields))
		if status != 400 {
			t.Errorf("%s: status %d, %s", fields, status, reply)
			continue
		}
		for _, w := range words {
			if !strings.Contains(string(reply), w) {
				t.Errorf("%s: %s lacks %q", fields, reply, w)
			}
		}
	}
	b.refused(400, "invalid_value", "POST", "/v1/chat/completions", `{}`, "messages", "missing")
	b.refused(400, "unknown_parameter", "POST", "/v1/chat/completions?budget=5", chat(""), "budget")
	b.refused(404, "model_not_found", "POST", "/v1/chat/completions", chat(`"model": "gpt"`))
	b.refused(404, "model_not_found", "POST", "/v1/chat/completions", chat(`"model": "gpt", "reasoning_effort": "low"`))
	for fields, words := range map[string][]string{
		`"prompt": ""`:                         {"prompt"},
		`"prompt": [1, 2]`:                     {"prompt[0]", "token ids"},
		`"prompt": "x", "echo": true`:          {"echo"},
		`"prompt": "x", "suffix": "y"`:         {"suffix"},
		`"prompt": "x", "best_of": 2`:          {"best_of", "n"},
		`"prompt": ["a", "b"], "n": 9`:         {"16"},
		`"prompt": "x", "logprobs": 6`:         {"logprobs", "5"},
		`"prompt": "x", "logit_bias": {"a":1}`: {"logit_bias"},
	} {
		status, reply := b.call("POST", "/v1/completions", "{"+fields+"}")
		for _, w := range words {
			if status != 400 || !strings.Contains(string(reply), w) {
				t.Errorf("%s: status %d, %s lacks %q", fields, status, reply, w)
			}
		}
	}
}

// chunks reads the chunks of a stream, which must end with [DONE].
func chunks[T any](b *site, path, body string) (all []T) {
	b.t.Helper()
	events := b.events("POST", path, body)
	if len(events) == 0 || string(events[len(events)-1].Data) != "[DONE]" {
		b.t.Fatalf("%s: %v", body, events)
	}
	for _, e := range events[:len(events)-1] {
		var c T
		if err := json.Unmarshal(e.Data, &c); err != nil {
			b.t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

func TestChatStream(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	schema := b.server.Document().Components.Schemas["ChatCompletionChunk"].Value
	for _, c := range chunks[any](b, "/v1/chat/completions", chat(`"budget": 16, "stream": true, "logprobs": true, "stream_options": {"include_usage": true}`)) {
		if err := keeps(schema, c, "chunk"); err != nil {
			t.Error(err)
		}
	}
	all := chunks[api.ChatCompletionChunk](b, "/v1/chat/completions", chat(`"budget": 16, "n": 2, "stream": true, "stream_options": {"include_usage": true}`))
	var content, thinking [2]string
	var finish [2]*string
	var began [2]bool
	for i, c := range all[:len(all)-1] {
		if c.Id != all[0].Id || len(c.Choices) != 1 || c.Usage != nil {
			t.Fatalf("chunk %d: %+v", i, c)
		}
		choice := c.Choices[0]
		if began[choice.Index] != (choice.Delta.Role == nil) {
			t.Errorf("chunk %d: role %v", i, choice.Delta.Role)
		}
		began[choice.Index] = true
		if choice.Delta.Content != nil {
			content[choice.Index] += *choice.Delta.Content
		}
		if choice.Delta.Reasoning != nil {
			thinking[choice.Index] += *choice.Delta.ReasoningContent
		}
		if choice.FinishReason != nil {
			finish[choice.Index] = choice.FinishReason
			if c.Budget == nil || c.Budget.Used != 16 || choice.Budget.Cause != api.Tokens {
				t.Errorf("budget %+v", c.Budget)
			}
		}
	}
	for i := range 2 {
		if content[i] != `It is \boxed{16}` || strings.Count(thinking[i], " step") != 16 || finish[i] == nil || *finish[i] != "stop" {
			t.Errorf("choice %d: %q after %q", i, content[i], thinking[i])
		}
	}
	if last := all[len(all)-1]; last.Usage == nil || last.Usage.CompletionTokensDetails.ReasoningTokens != 32 || len(last.Choices) != 0 {
		t.Errorf("last chunk %+v", last)
	}
	if plain := chunks[api.ChatCompletionChunk](b, "/v1/chat/completions", chat(`"budget": 2, "stream": true`)); plain[len(plain)-1].Usage != nil {
		t.Error("usage was not asked for")
	}
}

// TestChatControl ends the thinking of both choices of a completion.
func TestChatControl(t *testing.T) {
	b := newSite(t, slow)
	resp := b.send("POST", "/v1/chat/completions", chat(`"n": 2, "stream": true`))
	defer resp.Body.Close()
	id, ends := "", 0
	for e, err := range sse.Read(resp.Body) {
		if err != nil {
			t.Fatal(err)
		}
		if string(e.Data) == "[DONE]" {
			break
		}
		var c api.ChatCompletionChunk
		if err := json.Unmarshal(e.Data, &c); err != nil {
			t.Fatal(err)
		}
		if id == "" && c.Choices[0].Delta.Reasoning != nil {
			id = c.Id
			done := get[api.ControlReply](b, "POST", "/v1/chat/completions/control", fmt.Sprintf(`{"id": %q, "action": "reasoning_end"}`, id))
			if !done.Success {
				t.Errorf("control: %+v", done)
			}
		}
		if c.Budget != nil {
			ends++
			if c.Budget.Cause != api.Interrupt {
				t.Errorf("budget %+v", c.Budget)
			}
		}
	}
	if ends != 2 {
		t.Errorf("%d choices ended", ends)
	}
	body := fmt.Sprintf(`{"id": %q, "action": "reasoning_end"}`, id)
	b.refused(409, "run_not_running", "POST", "/v1/chat/completions/control", body)
	b.refused(404, "run_not_found", "POST", "/v1/chat/completions/control", `{"id": "chatcmpl-none", "action": "reasoning_end"}`)
	b.refused(404, "run_not_found", "POST", "/v1/chat/completions/control", `{"id": "none", "action": "reasoning_end"}`)
	b.refused(400, "invalid_value", "POST", "/v1/chat/completions/control", `{"id": "x", "action": "dance"}`, "reasoning_end")
}

// TestChatFailure shows a failure before and behind the first byte.
func TestChatFailure(t *testing.T) {
	b := newSite(t, slow)
	resp := b.send("POST", "/v1/chat/completions", chat(`"stream": true`))
	defer resp.Body.Close()
	var last []string
	for e, err := range sse.Read(resp.Body) {
		if err != nil {
			t.Fatal(err)
		}
		last = append(last, string(e.Data))
		if len(last) == 2 {
			if err := b.solver.Cancel(context.Background(), started(t, b)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := len(last); n < 2 || last[n-1] != "[DONE]" || !strings.Contains(last[n-2], `"code":"run_cancelled"`) {
		t.Errorf("stream %v", last)
	}
	down := newSite(t, decodetest.Options{OnOpen: func(decode.Request) error { return decode.ErrUnavailable }})
	down.refused(503, "engine_unavailable", "POST", "/v1/chat/completions", chat(`"stream": true`))
}

func TestCompletions(t *testing.T) {
	b := newSite(t, decodetest.Options{Model: decodetest.Words})
	reply := get[api.Completion](b, "POST", "/v1/completions", `{"prompt": ["One", "Two"], "n": 2, "max_tokens": 5, "logprobs": 1}`)
	if len(reply.Choices) != 4 || !strings.HasPrefix(reply.Id, "cmpl-") {
		t.Fatalf("%+v", reply)
	}
	for _, c := range reply.Choices {
		if c.Text == "" || *c.FinishReason != "length" || len(c.Logprobs.Tokens) != 5 || strings.Join(c.Logprobs.Tokens, "") != c.Text {
			t.Errorf("choice %+v", c)
		}
		if c.Logprobs.TextOffset[1] != len(c.Logprobs.Tokens[0]) {
			t.Errorf("offsets %v of %q", c.Logprobs.TextOffset, c.Logprobs.Tokens)
		}
	}
	all := chunks[api.Completion](b, "/v1/completions", `{"prompt": "One", "max_tokens": 5, "stream": true, "stream_options": {"include_usage": true}, "seed": 0, "logprobs": 0}`)
	text, offset := "", 0
	for _, c := range all[:len(all)-1] {
		text += c.Choices[0].Text
		if p := c.Choices[0].Logprobs; p != nil {
			if p.TextOffset[0] != offset {
				t.Errorf("offset %d, want %d", p.TextOffset[0], offset)
			}
			offset += len(strings.Join(p.Tokens, ""))
		}
	}
	if len(strings.Fields(text)) < 5 || all[len(all)-1].Usage == nil {
		t.Errorf("%q, %+v", text, all[len(all)-1])
	}
}

func TestModels(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	list := get[api.ModelList](b, "GET", "/v1/models", "")
	if len(list.Data) != 2 || list.Data[0].Id != "scripted" || !list.Data[0].Default || list.Data[1].Id != "scripted:tuned" || *list.Data[1].Parent != "scripted" {
		t.Errorf("%+v", list)
	}
	for name, id := range map[string]string{"default": "scripted", "scripted": "scripted", "scripted:tuned": "scripted:tuned", "scripted%3Atuned": "scripted:tuned"} {
		if m := get[api.Model](b, "GET", "/v1/models/"+name, ""); m.Id != id {
			t.Errorf("%s: %+v", name, m)
		}
	}
	b.refused(404, "model_not_found", "GET", "/v1/models/scripted%2Fother", "", "/v1/models")
}

// TestOpenAIClient drives the server with OpenAI's own client.
func TestOpenAIClient(t *testing.T) {
	b := newSite(t, decodetest.Options{}, func(c *server.Config) { c.Keys = []server.Key{{Name: "test", Secret: "sk-0123456789"}} })
	ctx := context.Background()
	client := openai.NewClient(option.WithBaseURL(b.url+"/v1"), option.WithAPIKey("sk-0123456789"), option.WithHTTPClient(b.client), option.WithMaxRetries(0))
	params := openai.ChatCompletionNewParams{
		Model:               "default",
		Messages:            []openai.ChatCompletionMessageParamUnion{openai.DeveloperMessage("Count."), openai.UserMessage("How many?")},
		ReasoningEffort:     shared.ReasoningEffortLow,
		MaxCompletionTokens: openai.Int(1000),
		Logprobs:            openai.Bool(true),
		Stop:                openai.ChatCompletionNewParamsStopUnion{OfStringArray: []string{"nothing"}},
		StreamOptions:       openai.ChatCompletionStreamOptionsParam{IncludeUsage: openai.Bool(true)},
	}
	const low = maxThinking / 8
	answer := fmt.Sprintf(`It is \boxed{%d}`, low)
	plain := params
	plain.StreamOptions = openai.ChatCompletionStreamOptionsParam{}
	reply, err := client.Chat.Completions.New(ctx, plain)
	if err != nil {
		t.Fatal(err)
	}
	if c := reply.Choices[0]; c.Message.Content != answer || c.FinishReason != "stop" || len(c.Logprobs.Content) != answerTokens {
		t.Errorf("content %q, finish_reason %q, %d log-probabilities", c.Message.Content, c.FinishReason, len(c.Logprobs.Content))
	}
	if reply.Usage.CompletionTokensDetails.ReasoningTokens != low {
		t.Errorf("usage %+v", reply.Usage)
	}

	stream := client.Chat.Completions.NewStreaming(ctx, params)
	var sum openai.ChatCompletionAccumulator
	thinking := ""
	for stream.Next() {
		chunk := stream.Current()
		if !sum.AddChunk(chunk) {
			t.Errorf("chunk does not fit: %s", chunk.RawJSON())
		}
		for _, c := range chunk.Choices {
			if f, ok := c.Delta.JSON.ExtraFields["reasoning_content"]; ok {
				var text string
				if err := json.Unmarshal([]byte(f.Raw()), &text); err != nil {
					t.Fatal(err)
				}
				thinking += text
			}
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if c := sum.Choices[0]; c.Message.Content != answer || c.FinishReason != "stop" || strings.Count(thinking, " step") != low || sum.Usage.CompletionTokensDetails.ReasoningTokens != low {
		t.Errorf("content %q, finish_reason %q, usage %+v", c.Message.Content, c.FinishReason, sum.Usage)
	}

	text, err := client.Completions.New(ctx, openai.CompletionNewParams{Model: "scripted", Prompt: openai.CompletionNewParamsPromptUnion{OfString: openai.String("How many? <think>\n step</think>")}})
	if err != nil || text.Choices[0].Text == "" {
		t.Errorf("completion %+v, %v", text, err)
	}
	page, err := client.Models.List(ctx)
	if err != nil || len(page.Data) != 2 {
		t.Errorf("models %+v, %v", page, err)
	}
	if m, err := client.Models.Get(ctx, "scripted:tuned"); err != nil || m.ID != "scripted:tuned" {
		t.Errorf("model %+v, %v", m, err)
	}
	bad := plain
	bad.Model = "gpt-5"
	_, err = client.Chat.Completions.New(ctx, bad)
	var refused *openai.Error
	if !errors.As(err, &refused) || refused.StatusCode != http.StatusNotFound || refused.Code != "model_not_found" || refused.Param != "model" {
		t.Errorf("error %v", err)
	}
}

// TestChatReset lets reasoning leak into an answer, which is then replaced.
func TestChatReset(t *testing.T) {
	say := func(after string, tokens ...string) string {
		for n := len(tokens); n > 0; n-- {
			if strings.HasSuffix(after, strings.Join(tokens[:n], "")) {
				return append(tokens, "")[n]
			}
		}
		return tokens[0]
	}
	b := newSite(t, decodetest.Options{Model: func(prefix string, _ uint64) string {
		thought, after, closed := strings.Cut(prefix, "</think>")
		switch {
		case !closed:
			return " step"
		case strings.Contains(thought, "thought enough"):
			return say(after, "It is", " 7")
		default:
			return say(after, "Hmm,", " wait", "<think>", " more")
		}
	}})
	reply := get[api.ChatCompletion](b, "POST", "/v1/chat/completions", chat(`"budget": 4, "logprobs": true`))
	if c := reply.Choices[0]; *c.Message.Content != "It is 7" || len(c.Logprobs.Content) != 2 {
		t.Errorf("content %q, log-probabilities %+v", *c.Message.Content, c.Logprobs)
	}
	content, before := "", ""
	for _, c := range chunks[api.ChatCompletionChunk](b, "/v1/chat/completions", chat(`"budget": 4, "stream": true`)) {
		d := c.Choices[0].Delta
		if d.Reset != nil {
			before, content = content, ""
		}
		if d.Content != nil {
			content += *d.Content
		}
	}
	if before != "Hmm, wait" || content != "\n\nIt is 7" {
		t.Errorf("content %q, replaced by %q", before, content)
	}
}

// Each of several prompts counts once, however many completions it has.
func TestUsageOfPrompts(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	count := func(prompts string) int {
		return get[api.Completion](b, "POST", "/v1/completions", `{"prompt": `+prompts+`, "n": 2, "max_tokens": 8}`).Usage.PromptTokens
	}
	one, other := count(`"How many?"`), count(`"How many of them are there by now?"`)
	if both := count(`["How many?", "How many of them are there by now?"]`); one == 0 || both != one+other {
		t.Errorf("%d tokens of prompts of %d and %d", both, one, other)
	}
}
