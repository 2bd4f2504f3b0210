package schema_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"anytime/internal/decode/llamacpp"
	"anytime/internal/schema"
)

func TestTools(t *testing.T) {
	functions := []schema.Function{
		{Name: "weather", Parameters: json.RawMessage(`{"type": "object", "properties": {"place": {"$ref": "#/$defs/p"}}, "required": ["place"], "$defs": {"p": {"type": "string"}}}`)},
		{Name: `say "hi"`, Parameters: json.RawMessage(`{"type": "object", "properties": {"n": {"$ref": "#/$defs/p"}}, "required": ["n"], "$defs": {"p": {"type": "integer"}}}`)},
		{Name: "now"},
	}
	const (
		weather = "<tool_call>\n" + `{"name": "weather", "arguments": {"place": "Ulm"}}` + "\n</tool_call>"
		say     = "<tool_call>\n" + `{"name": "say \"hi\"", "arguments": {"n":3}}` + "\n</tool_call>"
		now     = "<tool_call>\n" + `{"name": "now", "arguments": {}}` + "\n</tool_call>"
	)
	all := schema.Tools{Functions: functions, Parallel: true}
	required, one, format := all, all, all
	required.Required = true
	one.Parallel = false
	format.Format = json.RawMessage(`{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}`)
	for _, test := range []struct {
		name  string
		tools schema.Tools
		texts
	}{
		{"auto", all, texts{
			[]string{"", "It is warm.\n\n2 < 3 <tool", "<<tool_call", weather, "Let me see.\n" + say + "\n" + now, "<tool_" + weather, "<tool_cal<tool_call" + weather},
			[]string{"<tool_call>", weather + "x", weather + "\n", "<tool_call>{}</tool_call>", "a <tool_call> b",
				"<tool_call>\n" + `{"name": "rain", "arguments": {}}` + "\n</tool_call>", "<tool_call>\n" + `{"name": "weather", "arguments": {"n": 3}}` + "\n</tool_call>"}}},
		{"required", required, texts{[]string{weather, "\n\n" + say, weather + "\n" + weather}, []string{"", "It is warm.", "x" + weather}}},
		{"one", one, texts{[]string{weather, "No."}, []string{weather + "\n" + say}}},
		{"format", format, texts{[]string{weather, `{"a": 1}`}, []string{"No.", `{"a": "x"}`, `{"a": 1}` + weather}}},
	} {
		grammar, err := test.tools.Grammar()
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range test.yes {
			if ok, err := llamacpp.Matches(grammar, text); !ok || err != nil {
				t.Errorf("%s refuses %q (%v)", test.name, text, err)
			}
		}
		for _, text := range test.no {
			if ok, err := llamacpp.Matches(grammar, text); ok || err != nil {
				t.Errorf("%s allows %q (%v)", test.name, text, err)
			}
		}
	}
	if t.Failed() {
		grammar, _ := all.Grammar()
		t.Log(grammar)
	}
}

func TestToolsRefused(t *testing.T) {
	_, err := schema.Tools{Functions: []schema.Function{{Name: "a"}, {Name: "b", Parameters: json.RawMessage(`{"properties": {"x": {"not": {}}}}`)}}}.Grammar()
	var function *schema.FunctionError
	if !errors.As(err, &function) || function.Index != 1 || function.Err.Path != "/properties/x" {
		t.Errorf("%v", err)
	}
	_, err = schema.Tools{Functions: []schema.Function{{Name: "a"}}, Format: json.RawMessage(`{"type": "x"}`)}.Grammar()
	var format *schema.Error
	if !errors.As(err, &format) {
		t.Errorf("%v", err)
	}
	// What is too large is the function with which it became so.
	list := make([]schema.Function, 5)
	for i := range list {
		list[i] = schema.Function{Name: fmt.Sprint(i), Parameters: json.RawMessage(fmt.Sprintf(`{"properties": {"x": {"type": "string", "maxLength": %d}}}`, 4000+i))}
	}
	_, err = schema.Tools{Functions: list}.Grammar()
	if !errors.As(err, &function) || function.Index != 4 || function.Err.Path != "/properties/x" || !strings.Contains(err.Error(), "too large") {
		t.Errorf("%v", err)
	}
	names := []schema.Function{{Name: "a"}, {Name: strings.Repeat("b", 1<<16)}}
	for _, tools := range []schema.Tools{{Functions: names}, {Functions: names, Required: true}} {
		if _, err = tools.Grammar(); !errors.As(err, &function) || function.Index != 1 || !strings.Contains(err.Error(), "too large") {
			t.Errorf("%v", err)
		}
	}
}
