package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"anytime/api"
	"anytime/internal/anytime"
	"anytime/internal/decode/prompt"
	"anytime/internal/schema"
)

// anyObject is the schema of response_format json_object.
var anyObject = json.RawMessage(`{"type": "object"}`)

// shape is what an answer has to be, where it is not just text: JSON, calls of tools, or either.
type shape struct {
	format json.RawMessage // JSON Schema; nil: text
	tools  []tool
	choice *api.ToolChoiceValue
	single bool // one call at most
	// Fields of the request, for errors.
	formatField, parametersField string // the latter with a %d
}

// tool is a function as the request defines it, with its schemas' keys in their order.
type tool struct {
	Function toolFunction `json:"function"`
	raw      json.RawMessage
}

type toolFunction struct {
	Name       string          `json:"name"`
	Parameters json.RawMessage `json:"parameters"`
}

// present returns nil for a null.
func present(raw json.RawMessage) json.RawMessage {
	if string(bytes.TrimSpace(raw)) == "null" {
		return nil
	}
	return raw
}

// chatShape reads response_format and tools of a chat completion. Schemas come from the body as it was sent: the order of their keys is
// that of the answer's.
func (c *call) chatShape(body *api.ChatCompletionRequest) (shape, error) {
	var raw struct {
		Tools  []json.RawMessage `json:"tools"`
		Format struct {
			JSONSchema struct {
				Schema json.RawMessage `json:"schema"`
			} `json:"json_schema"`
		} `json:"response_format"`
	}
	if err := json.Unmarshal(c.raw, &raw); err != nil {
		return shape{}, invalid("", "the body: %v", err)
	}
	s := shape{
		choice: body.ToolChoice, single: body.ParallelToolCalls != nil && !*body.ParallelToolCalls,
		formatField: "response_format.json_schema.schema", parametersField: "tools[%d].function.parameters",
	}
	if f := body.ResponseFormat; f != nil {
		switch f.Type {
		case api.ResponseFormatTypeJsonObject:
			s.format, s.formatField = anyObject, "response_format"
		case api.ResponseFormatTypeJsonSchema:
			if s.format = present(raw.Format.JSONSchema.Schema); s.format == nil {
				return s, invalid("response_format.json_schema", "response_format.json_schema: is missing, or has no schema")
			}
		}
	}
	for _, r := range raw.Tools {
		t := tool{raw: r}
		if err := json.Unmarshal(r, &t); err != nil {
			return s, invalid("tools", "tools: %v", err)
		}
		s.tools = append(s.tools, t)
	}
	return s, nil
}

// callsTools reports whether the answer may hold calls.
func (s shape) callsTools() bool {
	return len(s.tools) > 0 && (s.choice == nil || s.choice.Mode != "none")
}

// field is the one that the grammar is made of.
func (s shape) field() string {
	switch {
	case s.callsTools():
		return "tools"
	case s.format != nil:
		return s.formatField
	}
	return ""
}

// apply makes a run's answer be of the shape.
func (s shape) apply(req *anytime.Request) error {
	if s.choice != nil && (s.choice.Mode == "required" || s.choice.Mode == "") && len(s.tools) == 0 {
		return invalid("tool_choice", "tool_choice: wants a call, but there are no tools")
	}
	told := slices.ContainsFunc(req.Messages, func(m prompt.Message) bool { return m.Role == "tool" || len(m.ToolCalls) > 0 })
	req.Template.CallTags = told || s.callsTools()
	if s.format == nil && !s.callsTools() {
		return nil
	}
	if req.Sampling.Grammar != "" {
		return &httpError{status: 400, kind: typeRequest, code: "conflict", param: "grammar", message: "grammar: beside tools or a format of the answer it cannot be held to; give one of them"}
	}
	var err error
	if s.callsTools() {
		err = s.applyTools(req)
	} else {
		req.Sampling.Grammar, err = schema.Grammar(s.format)
	}
	var function *schema.FunctionError
	var format *schema.Error
	switch {
	case errors.As(err, &function):
		return schemaError(fmt.Sprintf(s.parametersField, function.Index), function.Err)
	case errors.As(err, &format):
		return schemaError(s.formatField, format)
	}
	req.Structured = true
	return err
}

func schemaError(field string, err *schema.Error) error { return invalid(field, "%s: %v", field, err) }

func (s shape) applyTools(req *anytime.Request) error {
	calls := schema.Tools{Parallel: !s.single, Format: s.format}
	names := map[string]bool{}
	for i, t := range s.tools {
		f := schema.Function{Name: t.Function.Name, Parameters: present(t.Function.Parameters)}
		if names[f.Name] {
			return invalid("tools", "tools: %.64q is there twice", f.Name)
		}
		names[f.Name] = true
		var object struct {
			Type any `json:"type"`
		}
		if f.Parameters != nil && (json.Unmarshal(f.Parameters, &object) != nil || object.Type != nil && object.Type != "object") {
			field := fmt.Sprintf(s.parametersField, i)
			return invalid(field, "%s: must be the schema of an object", field)
		}
		req.Template.Tools = append(req.Template.Tools, t.raw)
		calls.Functions = append(calls.Functions, f)
	}
	switch choice := s.choice; {
	case choice == nil || choice.Mode == "auto":
		req.GrammarOptional = s.format == nil
	case choice.Mode == "required":
		calls.Required = true
	default:
		if !names[choice.Function] {
			return invalid("tool_choice", "tool_choice: %.64q is not among the tools", choice.Function)
		}
		calls.Required, calls.Parallel = true, false
		calls.Functions = slices.DeleteFunc(calls.Functions, func(f schema.Function) bool { return f.Name != choice.Function })
	}
	var err error
	req.Sampling.Grammar, err = calls.Grammar()
	return err
}
