package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/param"
	"github.com/openai/openai-go/v3/responses"
	"github.com/openai/openai-go/v3/shared"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

func (s *server) client() openai.Client {
	return openai.NewClient(option.WithBaseURL(s.url+"/v1"), option.WithAPIKey("none"), option.WithMaxRetries(0))
}

const personSchema = `{"type": "object", "additionalProperties": false, "required": ["name", "age", "tags", "kind"], "properties": {
	"name": {"type": "string", "minLength": 1, "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
	"tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}, "kind": {"$ref": "#/$defs/kind"}},
	"$defs": {"kind": {"anyOf": [{"type": "null"}, {"const": "person"}]}}}`

// keeps checks a text against a JSON Schema.
func keeps(t *testing.T, schema, text string) {
	t.Helper()
	document, err := jsonschema.UnmarshalJSON(strings.NewReader(schema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("schema.json", document); err != nil {
		t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err == nil {
		err = c.MustCompile("schema.json").Validate(value)
	}
	if err != nil {
		t.Errorf("%q: %v", text, err)
	}
}

// shapeModels are those that the tests of shapes run on: the tiny ones write gibberish, which a grammar must make JSON of all the same;
// the default model, with its vocabulary of 49,000, where the longer tests are asked for.
func shapeModels() []string {
	list := []string{talker, thinker}
	if model := os.Getenv("ANYTIME_TEST_MODEL"); model != "" && os.Getenv("ANYTIME_TEST_ALL") != "" {
		list = append(list, model)
	}
	return list
}

// However and wherever the thinking is cut, the answer keeps to its schema.
func TestJSONSchema(t *testing.T) {
	for _, model := range shapeModels() {
		s := start(t, "", exact(model)...)
		for n, cut := range []string{`"thinking_budget": 0`, `"thinking_budget": 7`, `"thinking_budget": 40, "temperature": 1`, `"think": false`, `"budget": "20,10m"`, `"stream": true, "thinking_budget": 12`} {
			format := `"response_format": {"type": "json_schema", "json_schema": {"name": "person", "strict": true, "schema": ` + personSchema + `}}`
			body := `{"messages": [{"role": "user", "content": "Who is it?"}], "seed": ` + fmt.Sprint(n) + `, ` + format + `, ` + cut + `}`
			content := ""
			if strings.Contains(cut, "stream") {
				for _, e := range s.events(context.Background(), "POST", "/v1/chat/completions", json.RawMessage(body), nil) {
					var chunk openai.ChatCompletionChunk
					if json.Unmarshal([]byte(e.data), &chunk) == nil && len(chunk.Choices) > 0 {
						content += chunk.Choices[0].Delta.Content
					}
				}
			} else {
				var reply openai.ChatCompletion
				s.into(s.do("POST", "/v1/chat/completions", body), &reply)
				content = reply.Choices[0].Message.Content
				if reply.Choices[0].FinishReason != "stop" {
					t.Errorf("%s: %s", cut, reply.Choices[0].FinishReason)
				}
			}
			keeps(t, personSchema, content)
			if at := strings.Index(content, `"name"`); at < 0 || at > strings.Index(content, `"age"`) {
				t.Errorf("not in the schema's order: %s", content)
			}
		}
	}
}

const weatherParameters = `{"type": "object", "additionalProperties": false, "required": ["place", "days"], "properties": {
	"place": {"type": "string", "maxLength": 10}, "days": {"type": "integer", "minimum": 1, "maximum": 9}}}`

func weather() openai.ChatCompletionToolUnionParam {
	var parameters shared.FunctionParameters
	if err := json.Unmarshal([]byte(weatherParameters), &parameters); err != nil {
		panic(err)
	}
	return openai.ChatCompletionFunctionTool(shared.FunctionDefinitionParam{Name: "weather", Description: param.NewOpt("How the weather is."), Parameters: parameters})
}

// A wanted call comes after a forced cut, streamed or whole, and the conversation goes on from its result.
func TestToolCalls(t *testing.T) {
	for _, model := range shapeModels() {
		s := start(t, "", exact(model)...)
		client := s.client()
		ctx := context.Background()
		params := openai.ChatCompletionNewParams{
			Model:             "default",
			Messages:          []openai.ChatCompletionMessageParamUnion{openai.DeveloperMessage("Be kind."), openai.UserMessage("Is it warm in Ulm?")},
			Tools:             []openai.ChatCompletionToolUnionParam{weather()},
			ToolChoice:        openai.ChatCompletionToolChoiceOptionUnionParam{OfAuto: param.NewOpt("required")},
			ParallelToolCalls: param.NewOpt(false),
			Temperature:       param.NewOpt(0.),
		}
		budget := option.WithJSONSet("thinking_budget", 20)
		reply, err := client.Chat.Completions.New(ctx, params, budget)
		if err != nil {
			t.Fatal(err)
		}
		check := func(how string, c openai.ChatCompletionChoice) {
			t.Helper()
			if c.FinishReason != "tool_calls" || len(c.Message.ToolCalls) != 1 || c.Message.Content != "" {
				t.Fatalf("%s: %s: %+v", how, c.FinishReason, c.Message)
			}
			call := c.Message.ToolCalls[0]
			if call.Function.Name != "weather" || call.ID == "" {
				t.Errorf("%s: %+v", how, call)
			}
			keeps(t, weatherParameters, call.Function.Arguments)
		}
		check("whole", reply.Choices[0])
		if n := reply.Usage.CompletionTokensDetails.ReasoningTokens; n == 0 || n > 20 {
			t.Errorf("%d thinking tokens", n)
		}
		stream := client.Chat.Completions.NewStreaming(ctx, params, budget)
		var sum openai.ChatCompletionAccumulator
		for stream.Next() {
			sum.AddChunk(stream.Current())
		}
		if err := stream.Err(); err != nil {
			t.Fatal(err)
		}
		check("streamed", sum.Choices[0])
		params.Messages = append(params.Messages, reply.Choices[0].Message.ToParam(), openai.ToolMessage("20 degrees", reply.Choices[0].Message.ToolCalls[0].ID))
		params.ToolChoice = openai.ChatCompletionToolChoiceOptionUnionParam{OfAuto: param.NewOpt("none")}
		next, err := client.Chat.Completions.New(ctx, params, budget, option.WithJSONSet("max_tokens", 60))
		if err != nil || next.Choices[0].Message.Content == "" || len(next.Choices[0].Message.ToolCalls) != 0 {
			t.Errorf("%v, %+v", err, next)
		}
		// The model's own choice is text or calls, and nothing in between.
		params.ToolChoice = openai.ChatCompletionToolChoiceOptionUnionParam{OfAuto: param.NewOpt("auto")}
		auto, err := client.Chat.Completions.New(ctx, params, budget, option.WithJSONSet("max_tokens", 60))
		if err != nil || strings.Contains(auto.Choices[0].Message.Content, "<tool_call>") {
			t.Errorf("%v, %+v", err, auto)
		}
	}
}

// OpenAI's Go client and /v1/responses.
func TestResponses(t *testing.T) {
	s := start(t, "", exact(talker)...)
	client := s.client()
	ctx := context.Background()
	params := responses.ResponseNewParams{
		Model: "default", Input: responses.ResponseNewParamsInputUnion{OfString: param.NewOpt("How many?")}, Instructions: param.NewOpt("Count."),
		MaxOutputTokens: param.NewOpt(int64(60)), Temperature: param.NewOpt(0.),
	}
	first, err := client.Responses.New(ctx, params)
	if err != nil || first.OutputText() == "" || first.Output[0].Type != "reasoning" || first.Usage.OutputTokensDetails.ReasoningTokens == 0 || first.Usage.OutputTokens > 60 {
		t.Fatalf("%v, %s", err, first.RawJSON())
	}
	params.PreviousResponseID = param.NewOpt(first.ID)
	stream := client.Responses.NewStreaming(ctx, params)
	text := ""
	var last responses.Response
	for stream.Next() {
		event := stream.Current()
		switch event.Type {
		case "response.output_text.delta":
			text += event.Delta
		case "response.completed", "response.incomplete":
			last = event.Response
		}
	}
	if err := stream.Err(); err != nil || text == "" || last.OutputText() != text || last.PreviousResponseID != first.ID {
		t.Errorf("%v: %q, %s", err, text, last.RawJSON())
	}
	again, err := client.Responses.Get(ctx, first.ID, responses.ResponseGetParams{})
	if err != nil || again.OutputText() != first.OutputText() {
		t.Errorf("%v, %+v", err, again)
	}
	background := params
	background.Background, background.MaxOutputTokens = param.NewOpt(true), param.Opt[int64]{}
	running, err := client.Responses.New(ctx, background)
	if err != nil || running.Status != "in_progress" {
		t.Fatalf("%v, %+v", err, running)
	}
	if cancelled, err := client.Responses.Cancel(ctx, running.ID); err != nil || cancelled.Status != "cancelled" {
		t.Errorf("%v, %+v", err, cancelled)
	}
	if err := client.Responses.Delete(ctx, first.ID); err != nil {
		t.Error(err)
	}
	if _, err := client.Responses.Get(ctx, first.ID, responses.ResponseGetParams{}); err == nil {
		t.Error("it is still there")
	}
}

// llama-server's own paths, on the real vocabulary.
func TestTokenize(t *testing.T) {
	for _, model := range shapeModels() {
		s := start(t, "", "-model", model)
		const text = "17 * 24 — <think> ä 猫 <|im_end|>"
		var tokens struct {
			Tokens []int `json:"tokens"`
		}
		s.into(s.do("POST", "/tokenize", map[string]any{"content": text}), &tokens)
		var back struct {
			Content string `json:"content"`
		}
		s.into(s.do("POST", "/detokenize", tokens), &back)
		if back.Content != text {
			t.Errorf("%q came back as %q", text, back.Content)
		}
		plain := tokens
		s.into(s.do("POST", "/tokenize", map[string]any{"content": text, "parse_special": false}), &plain)
		if len(plain.Tokens) <= len(tokens.Tokens) {
			t.Errorf("special tokens are read where they must not be: %d tokens, %d with them", len(plain.Tokens), len(tokens.Tokens))
		}
	}
}
