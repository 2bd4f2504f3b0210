package server_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"anytime/api"
	"anytime/internal/decode/decodetest"
)

// outputText joins a response's messages, as OpenAI's clients do.
func outputText(r api.Response) (text string) {
	for _, item := range r.Output {
		if item.Type == "message" {
			for _, p := range *item.Content {
				text += p.Text
			}
		}
	}
	return text
}

// responseEvents reads a response's stream, and checks that what it tells adds up to what it ends with.
func responseEvents(t *testing.T, b *site, method, path, body string) (kinds []string, last api.Response) {
	t.Helper()
	texts := map[string]string{}
	number := -1
	for _, e := range b.events(method, path, body) {
		var event struct {
			Type     string
			Number   int    `json:"sequence_number"`
			ItemID   string `json:"item_id"`
			Delta    string
			Response *api.Response
			Item     *api.ResponseItem
		}
		if err := json.Unmarshal(e.Data, &event); err != nil {
			t.Fatal(err)
		}
		if event.Type != e.Type || event.Number <= number {
			t.Errorf("event %s %s behind %d", e.Type, e.Data, number)
		}
		number = event.Number
		texts[event.ItemID] += event.Delta
		if len(kinds) == 0 || kinds[len(kinds)-1] != event.Type {
			kinds = append(kinds, event.Type)
		}
		if event.Response != nil {
			last = *event.Response
		}
	}
	for _, item := range last.Output {
		whole := ""
		for _, parts := range []*[]api.ResponsePart{item.Content, item.Summary} {
			if parts != nil && len(*parts) > 0 {
				whole += (*parts)[0].Text
			}
		}
		if item.Arguments != nil {
			whole = *item.Arguments
		}
		if texts[item.Id] != whole && path == "/v1/responses" {
			t.Errorf("%s was told as %q, and is %q", item.Id, texts[item.Id], whole)
		}
	}
	return kinds, last
}

func TestResponse(t *testing.T) {
	b := newSite(t, decodetest.Options{Step: 100 * time.Microsecond})
	const body = `{"input": "How many?", "instructions": "Count.", "thinking_budget": 20, "metadata": {"a": "b"}, "user": "u", "max_output_tokens": 400}`
	r := get[api.Response](b, "POST", "/v1/responses", body)
	if outputText(r) != `It is \boxed{20}` || r.Status != "completed" || r.Metadata["a"] != "b" || *r.Instructions != "Count." || *r.MaxOutputTokens != 400 || !r.Store {
		t.Errorf("%+v", r)
	}
	if u := r.Usage; u.OutputTokensDetails.ReasoningTokens != 20 || u.OutputTokens != 20+answerTokens || u.TotalTokens != u.InputTokens+u.OutputTokens {
		t.Errorf("%+v", u)
	}
	if o := r.Output[0]; o.Type != "reasoning" || strings.Count((*o.Content)[0].Text, " step") != 20 || len(*o.Summary) != 0 {
		t.Errorf("%+v", o)
	}
	again := get[api.Response](b, "GET", "/v1/responses/"+r.Id, "")
	if fmt.Sprint(again.Output, again.Usage) == "" || string(mustJSON(t, again)) != string(mustJSON(t, r)) {
		t.Errorf("read again it is %s, was %s", mustJSON(t, again), mustJSON(t, r))
	}

	kinds, streamed := responseEvents(t, b, "POST", "/v1/responses", strings.Replace(body, "{", `{"stream": true, `, 1))
	want := []string{
		"response.created", "response.in_progress",
		"response.output_item.added", "response.content_part.added", "response.reasoning_text.delta", "response.reasoning_text.done",
		"response.content_part.done", "response.output_item.done",
		"response.output_item.added", "response.content_part.added", "response.output_text.delta", "response.output_text.done",
		"response.content_part.done", "response.output_item.done", "response.completed",
	}
	if !slices.Equal(kinds, want) || outputText(streamed) != outputText(r) {
		t.Errorf("%q", kinds)
	}
	if kinds, _ := responseEvents(t, b, "GET", "/v1/responses/"+streamed.Id+"?stream=true&starting_after=1", ""); !slices.Equal(kinds, want[2:]) {
		t.Errorf("from the second event on: %q", kinds)
	}
	kinds, summarized := responseEvents(t, b, "POST", "/v1/responses", `{"input": "How many?", "stream": true, "reasoning": {"max_tokens": 5, "summary": "auto"}}`)
	if !slices.Contains(kinds, "response.reasoning_summary_text.delta") || slices.Contains(kinds, "response.reasoning_text.delta") || len(*summarized.Output[0].Summary) != 1 {
		t.Errorf("summary: %q", kinds)
	}
	if r := get[api.Response](b, "POST", "/v1/responses", `{"input": "How many?", "thinking_budget": 3, "max_output_tokens": 5}`); r.Status != "incomplete" || r.IncompleteDetails.Reason != "max_output_tokens" {
		t.Errorf("cut: %s", mustJSON(t, r))
	}

	// A conversation: the first one's instructions are not the second's.
	next := get[api.Response](b, "POST", "/v1/responses", `{"input": [{"role": "user", "content": [{"type": "input_text", "text": "And now?"}]}], "previous_response_id": "`+r.Id+`", "budget": 1}`)
	items := get[api.ResponseItemList](b, "GET", "/v1/responses/"+next.Id+"/input_items", "")
	var said []string
	for _, item := range items.Data {
		said = append(said, *item.Role+": "+(*item.Content)[0].Text)
	}
	if fmt.Sprintf("%q", said) != `["user: How many?" "assistant: It is \\boxed{20}" "user: And now?"]` {
		t.Errorf("%q", said)
	}

	if d := get[api.ResponseDeleted](b, "DELETE", "/v1/responses/"+r.Id, ""); !d.Deleted {
		t.Errorf("%+v", d)
	}
	b.refused(404, "response_not_found", "GET", "/v1/responses/"+r.Id, "")
	b.refused(404, "previous_response_not_found", "POST", "/v1/responses", `{"input": "x", "previous_response_id": "`+r.Id+`"}`)
	unkept := get[api.Response](b, "POST", "/v1/responses", `{"input": "x", "store": false, "budget": 0}`)
	b.refused(404, "response_not_found", "GET", "/v1/responses/"+unkept.Id, "")
	chatted := get[api.ChatCompletion](b, "POST", "/v1/chat/completions", chat(`"budget": 0`))
	b.refused(404, "response_not_found", "GET", "/v1/responses/resp_"+strings.TrimPrefix(chatted.Id, "chatcmpl-run_"), "")
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestResponseTools(t *testing.T) {
	b := says(t, "Let me see.\n", "<tool_call>\n{\"name\": \"weat", `her", "arguments": {"place`, `": "Ulm"}`, "}\n</tool_call>")
	const tools = `"tools": [{"type": "function", "name": "weather", "strict": true, "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}}], "thinking_budget": 2`
	kinds, r := responseEvents(t, b, "POST", "/v1/responses", `{"input": "Is it warm?", "stream": true, `+tools+`}`)
	n := len(r.Output)
	if call := r.Output[n-1]; call.Type != "function_call" || *call.Name != "weather" || *call.Arguments != `{"place": "Ulm"}` || strings.TrimSpace(outputText(r)) != "Let me see." {
		t.Fatalf("%s", mustJSON(t, r))
	}
	for _, kind := range []string{"response.function_call_arguments.delta", "response.function_call_arguments.done"} {
		if !slices.Contains(kinds, kind) {
			t.Errorf("%q lacks %s", kinds, kind)
		}
	}
	id := *r.Output[n-1].CallId
	for _, input := range []string{
		`"input": [{"type": "function_call_output", "call_id": "` + id + `", "output": "20 degrees"}], "previous_response_id": "` + r.Id + `"`,
		`"input": [{"role": "user", "content": "Is it warm?"}, {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
			{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see.", "annotations": []}]},
			{"type": "function_call", "call_id": "` + id + `", "name": "weather", "arguments": "{\"place\": \"Ulm\"}"}, {"type": "function_call_output", "call_id": "` + id + `", "output": "20 degrees"}]`,
	} {
		next := get[api.Response](b, "POST", "/v1/responses", `{`+input+`, `+tools+`}`)
		items := get[api.ResponseItemList](b, "GET", "/v1/responses/"+next.Id+"/input_items", "").Data
		if len(items) != 4 || items[2].Type != "function_call" || *items[2].CallId != id || items[3].Type != "function_call_output" || *items[3].Output != "20 degrees" {
			t.Errorf("%s", mustJSON(t, items))
		}
	}
}

func TestResponseBackground(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	r := get[api.Response](b, "POST", "/v1/responses", `{"input": "x", "background": true}`)
	if r.Status != "in_progress" {
		t.Errorf("%+v", r)
	}
	b.refused(409, "run_running", "POST", "/v1/responses", `{"input": "x", "previous_response_id": "`+r.Id+`"}`)
	if r := get[api.Response](b, "POST", "/v1/responses/"+r.Id+"/cancel", ""); r.Status != "cancelled" {
		t.Errorf("%+v", r)
	}
	if r := get[api.Response](b, "GET", "/v1/responses/"+r.Id, ""); r.Status != "cancelled" {
		t.Errorf("%+v", r)
	}
}

func TestResponseRefuses(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	for body, words := range map[string][]string{
		`{}`:                            {"input", "missing"},
		`{"input": []}`:                 {"input"},
		`{"input": [{"role": "user"}]}`: {"input[0].content", "missing"},
		`{"input": [{"content": "x"}]}`: {"input[0].role", "missing"},
		`{"input": [{"type": "item_reference", "id": "x"}]}`:                                                                         {"input[0].type", "references"},
		`{"input": [{"type": "function_call_output", "output": "x"}]}`:                                                               {"input[0].call_id"},
		`{"input": [{"type": "reasoning", "summary": []}]}`:                                                                          {"input", "no message"},
		`{"input": [{"role": "user", "content": [{"type": "input_image", "text": ""}]}]}`:                                            {"input[0].content[0].type", "text only"},
		`{"input": "x", "tools": [{"type": "web_search_preview"}]}`:                                                                  {"tools[0].type", "calls nothing itself"},
		`{"input": "x", "tools": [{"type": "function"}]}`:                                                                            {"tools[0].name", "missing"},
		`{"input": "x", "text": {"format": {"type": "json_schema", "name": "x"}}}`:                                                   {"text.format.schema", "missing"},
		`{"input": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object", "minProperties": 2}}}}`: {"text.format.schema", "minProperties"},
		`{"input": "x", "conversation": {"id": "y"}}`:                                                                                {"conversation", "previous_response_id"},
		`{"input": "x", "truncation": "auto"}`:                                                                                       {"truncation", "never cut"},
		`{"input": "x", "background": true, "store": false}`:                                                                         {"background", "store"},
		`{"input": "x", "reasoning": {"effort": "low"}, "thinking_budget": 3}`:                                                       {"reasoning.effort", "thinking_budget"},
	} {
		status, reply := b.call("POST", "/v1/responses", body)
		for _, w := range words {
			if status != 400 || !strings.Contains(string(reply), w) {
				t.Errorf("%s: status %d, %s lacks %q", body, status, reply, w)
			}
		}
	}
}
