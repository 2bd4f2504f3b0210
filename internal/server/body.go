package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/getkin/kin-openapi/openapi3"
)

// What a body may be: real ones have about five levels, and few of them a thousand values.
const (
	maxDepth  = 32
	maxValues = 1 << 16
)

// parseJSON reads one JSON value strictly: no duplicate keys, no invalid UTF-8, nothing behind it, bounded depth and number of values.
// Numbers stay json.Number, whole ones without a fraction or exponent. Members that are null are left out, so that null is absent.
func parseJSON(data []byte) (any, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("it is not valid UTF-8")
	}
	p := parser{Decoder: json.NewDecoder(bytes.NewReader(data))}
	p.UseNumber()
	v, err := p.value(0)
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = errors.New("it ends too early")
		}
		return nil, fmt.Errorf("%w (at byte %d)", err, p.InputOffset())
	}
	if _, err := p.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("something follows the value (at byte %d)", p.InputOffset())
	}
	return v, nil
}

// parser is a decoder that counts values.
type parser struct {
	*json.Decoder
	values int
}

func (p *parser) value(depth int) (any, error) {
	if p.values++; p.values > maxValues {
		return nil, fmt.Errorf("it holds more than %d values", maxValues)
	}
	token, err := p.Token()
	if err != nil {
		return nil, err
	}
	switch token := token.(type) {
	case json.Number:
		if _, err := token.Float64(); err != nil {
			return nil, fmt.Errorf("the number %.64s is too large", token)
		}
		return wholeNumber(token), nil
	case json.Delim:
		if depth == maxDepth {
			return nil, fmt.Errorf("it is nested more than %d levels deep", maxDepth)
		}
		if token == '[' {
			return p.array(depth)
		}
		return p.object(depth)
	default:
		return token, nil
	}
}

func (p *parser) array(depth int) (any, error) {
	list := []any{}
	for p.More() {
		v, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	_, err := p.Token()
	return list, err
}

func (p *parser) object(depth int) (any, error) {
	object := map[string]any{}
	for p.More() {
		token, err := p.Token()
		if err != nil {
			return nil, err
		}
		key, _ := token.(string) // the decoder lets nothing else be a key
		if _, twice := object[key]; twice {
			return nil, fmt.Errorf("key %.64q is there twice", key)
		}
		if object[key], err = p.value(depth + 1); err != nil {
			return nil, err
		}
	}
	maps.DeleteFunc(object, func(_ string, v any) bool { return v == nil })
	_, err := p.Token()
	return object, err
}

// wholeNumber writes 1e3 and 5.0 as integers, which they are to JSON Schema but not to encoding/json.
func wholeNumber(n json.Number) json.Number {
	const exact = 1 << 53
	if !strings.ContainsAny(n.String(), ".eE") {
		return n
	}
	f, err := n.Float64()
	if err != nil || f != math.Trunc(f) || math.Abs(f) > exact {
		return n
	}
	return json.Number(strconv.FormatInt(int64(f), 10))
}

// validateBody holds a body to its schema.
func validateBody(schema *openapi3.Schema, body any) error {
	err := schema.VisitJSON(body)
	if err == nil {
		return nil
	}
	path, message := explain(err)
	param := fieldName(path)
	code := "invalid_value"
	if strings.HasPrefix(message, unknownField) {
		code = "unknown_parameter"
	}
	if param == "" {
		return &httpError{status: 400, kind: typeRequest, code: code, message: "the body: " + message}
	}
	return &httpError{status: 400, kind: typeRequest, code: code, param: param, message: param + ": " + message}
}

const unknownField = "unknown field"

// explain finds the place and words for a violation of the schema.
func explain(err error) (path []string, message string) {
	var e *openapi3.SchemaError
	if !errors.As(err, &e) {
		return nil, err.Error()
	}
	path = e.JSONPointer()
	message = e.Reason
	switch e.SchemaField {
	case "anyOf":
		if branch := branchFor(e.Schema.AnyOf, e.Value); branch != nil {
			inner, message := explain(branch.VisitJSON(e.Value))
			return append(path, inner...), message
		}
		message = "must be " + kinds(e.Schema.AnyOf)
	case "properties": // one too many, which the path does not name
		message = unknownField + "; known are " + strings.Join(slices.Sorted(maps.Keys(e.Schema.Properties)), ", ")
		object, _ := e.Value.(map[string]any)
		for _, name := range slices.Sorted(maps.Keys(object)) {
			if e.Schema.Properties[name] == nil {
				path = append(path, name)
				break
			}
		}
	case "required":
		message = "is missing"
	case "not":
		message = "not supported"
	}
	if instead, ok := e.Schema.Extensions["x-instead"].(string); ok {
		message = instead
	}
	return path, message
}

// branchFor returns the alternative that has the value's type.
func branchFor(alternatives openapi3.SchemaRefs, value any) *openapi3.Schema {
	for _, a := range alternatives {
		t := a.Value.Type
		ok := false
		switch value.(type) {
		case string:
			ok = t.Is("string")
		case bool:
			ok = t.Is("boolean")
		case json.Number:
			ok = t.Is("integer") || t.Is("number")
		case []any:
			ok = t.Is("array")
		case map[string]any:
			ok = t.Is("object")
		}
		if ok {
			return a.Value
		}
	}
	return nil
}

func kinds(alternatives openapi3.SchemaRefs) string {
	names := make([]string, len(alternatives))
	for i, a := range alternatives {
		names[i] = strings.Join(a.Value.Type.Slice(), " or ")
	}
	return strings.Join(names, " or ")
}

// fieldName writes a path as messages[0].role.
func fieldName(path []string) string {
	var b strings.Builder
	for _, p := range path {
		if _, err := strconv.Atoi(p); err == nil {
			fmt.Fprintf(&b, "[%s]", p)
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		b.WriteString(p)
	}
	return b.String()
}
