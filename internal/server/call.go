package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/go-chi/chi/v5"
)

// call is a request that was found to be allowed and to keep to the contract.
type call struct {
	*http.Request
	query   url.Values
	body    []byte // JSON, query parameters that may be body fields included; nil where the operation has none
	raw     []byte // the body as it was sent, for where the order of keys counts
	key     key    // zero where the server has none
	owner   string // whose runs it may see: a digest of its key
	schema  string // the field of which the grammar of its runs was made, for errors; "": none was
	arrived time.Time
}

// path returns a path parameter.
func (c *call) path(name string) string {
	v := chi.URLParam(c.Request, name)
	if c.URL.RawPath != "" { // then chi matched the escaped path
		if plain, err := url.PathUnescape(v); err == nil {
			return plain
		}
	}
	return v
}

// flag returns a boolean query parameter.
func (c *call) flag(name string) bool {
	on, _ := strconv.ParseBool(c.query.Get(name)) // the contract has seen to its form
	return on
}

// given returns a boolean query parameter, or nil where there is none.
func (c *call) given(name string) *bool {
	if !c.query.Has(name) {
		return nil
	}
	return new(c.flag(name))
}

// wantsStream reports whether the client asked for events: by the parameter stream, or, where that is nil, by its Accept header.
func (c *call) wantsStream(stream *bool) bool {
	if stream != nil {
		return *stream
	}
	for part := range strings.SplitSeq(c.Header.Get("Accept"), ",") {
		t, params, err := mime.ParseMediaType(part)
		if err != nil || t != "text/event-stream" {
			continue
		}
		if q, err := strconv.ParseFloat(params["q"], 64); err != nil || q > 0 { // most have none
			return true
		}
	}
	return false
}

// into reads the body, which keeps to the contract, into v.
func (c *call) into(v any) error {
	err := json.Unmarshal(c.body, v)
	if err == nil {
		return nil
	}
	var e *json.UnmarshalTypeError
	if errors.As(err, &e) { // a number that the schema allows and Go's type does not hold
		return invalid(e.Field, "%s: %s does not fit", e.Field, e.Value)
	}
	return invalid("", "the body: %v", err)
}

// handle serves an operation of the contract: it checks key, parameters and body, and turns an error into a reply.
func (s *Server) handle(method, pattern string, h func(http.ResponseWriter, *call) error) {
	path := s.doc.Paths.Find(pattern)
	op := path.GetOperation(method)
	route := &routers.Route{Spec: s.doc, Path: pattern, PathItem: path, Method: method, Operation: op}
	serve := func(w http.ResponseWriter, r *http.Request) {
		c := &call{Request: r, arrived: arrived(r.Context())}
		err := s.authorize(c, op)
		if err == nil && op.Extensions["x-ends-runs"] == nil {
			err = s.countRequest(w, c)
		}
		if err == nil {
			err = s.check(w, c, route)
		}
		if err == nil {
			err = h(w, c)
		}
		if reply, ok := w.(*reply); err != nil && !(ok && reply.status != 0) { // else the client did not take it
			s.fail(w, r, err)
		}
	}
	s.router.MethodFunc(method, pattern, serve)
	// net/http leaves out the body. A stream without one would only last.
	if method == http.MethodGet && op.Responses.Status(http.StatusOK).Value.Content.Get("text/event-stream") == nil {
		s.router.MethodFunc(http.MethodHead, pattern, serve)
	}
}

// check holds a call to the contract.
func (s *Server) check(w http.ResponseWriter, c *call, route *routers.Route) error {
	if err := c.parseQuery(route); err != nil {
		return err
	}
	params := map[string]string{}
	for _, name := range chi.RouteContext(c.Context()).URLParams.Keys {
		params[name] = c.path(name)
	}
	input := &openapi3filter.RequestValidationInput{Request: c.Request, PathParams: params, QueryParams: c.query, Route: route}
	for _, p := range parameters(route) {
		if err := openapi3filter.ValidateParameter(c.Context(), input, p); err != nil {
			return parameterError(p, err)
		}
	}
	if takesFile(route.Operation) {
		return nil
	}
	data, err := s.readBody(w, c)
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return err
		}
		return &httpError{status: http.StatusBadRequest, kind: typeRequest, code: "incomplete_body", message: "the body did not arrive whole and in time"}
	}
	return c.parseBody(route, data)
}

// readBody waits for the body no longer than for a client to take a reply.
func (s *Server) readBody(w http.ResponseWriter, c *call) ([]byte, error) {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(s.cfg.Timeout)) // a writer that cannot is no connection
	data, err := io.ReadAll(http.MaxBytesReader(w, c.Body, s.cfg.MaxBody))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		s.metrics.slow.Inc()
	}
	if err == nil { // else what is left of the body must not be waited for either
		_ = control.SetReadDeadline(time.Time{})
	}
	return data, err
}

// parameters are those of the path and of the operation.
func parameters(route *routers.Route) []*openapi3.Parameter {
	var all []*openapi3.Parameter
	for _, refs := range []openapi3.Parameters{route.PathItem.Parameters, route.Operation.Parameters} {
		for _, ref := range refs {
			all = append(all, ref.Value)
		}
	}
	return all
}

func (c *call) parseQuery(route *routers.Route) (err error) {
	if c.query, err = url.ParseQuery(c.URL.RawQuery); err != nil {
		return invalid("", "the query cannot be read: %v", err)
	}
	var known []string
	for _, p := range parameters(route) {
		if p.In == openapi3.ParameterInQuery {
			known = append(known, p.Name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.query)) {
		switch {
		case !slices.Contains(known, name):
			message := fmt.Sprintf("unknown query parameter %.64q; ", name)
			if len(known) == 0 {
				message += "this path has none"
			} else {
				message += "known are " + strings.Join(known, ", ")
			}
			return &httpError{status: http.StatusBadRequest, kind: typeRequest, code: "unknown_parameter", param: name, message: message}
		case len(c.query[name]) > 1:
			return invalid(name, "%s: given %d times; give it once", name, len(c.query[name]))
		}
	}
	return nil
}

func parameterError(p *openapi3.Parameter, err error) error {
	message := err.Error()
	var schema *openapi3.SchemaError
	var parse *openapi3filter.ParseError
	switch {
	case errors.As(err, &schema):
		_, message = explain(schema)
	case errors.As(err, &parse):
		message = "must be " + strings.Join(p.Schema.Value.Type.Slice(), " or ")
	case errors.Is(err, openapi3filter.ErrInvalidRequired):
		message = "is missing"
	case errors.Is(err, openapi3filter.ErrInvalidEmptyValue):
		message = "is empty"
	}
	return invalid(p.Name, "%s %s: %s", p.In, p.Name, message)
}

func (c *call) parseBody(route *routers.Route, data []byte) error {
	data = bytes.TrimSpace(data)
	c.raw = data
	contract := route.Operation.RequestBody
	if len(data) > 0 && c.Method != http.MethodGet {
		if t, _, err := mime.ParseMediaType(c.Header.Get("Content-Type")); err != nil || t != "application/json" {
			return &httpError{status: http.StatusUnsupportedMediaType, kind: typeRequest, code: "not_json", param: "Content-Type", message: "the body must be JSON, and Content-Type say application/json"}
		}
	}
	if contract == nil {
		if len(data) > 0 && string(data) != "{}" && c.Method != http.MethodGet {
			return invalid("", "%s %s takes no body; its parameters go into the query", c.Method, route.Path)
		}
		return nil
	}
	if len(data) == 0 {
		return invalid("", "the body is missing; it must be JSON")
	}
	value, err := parseJSON(data)
	if err != nil {
		return invalid("", "the body is not JSON as it should be: %v", err)
	}
	schema := contract.Value.Content.Get("application/json").Schema.Value
	if object, ok := value.(map[string]any); ok {
		if err := c.mergeQuery(route, schema, object); err != nil {
			return err
		}
	}
	if err := validateBody(schema, value); err != nil {
		return err
	}
	c.body, err = json.Marshal(value)
	return err
}

// mergeQuery puts query parameters that are fields of the body there.
func (c *call) mergeQuery(route *routers.Route, schema *openapi3.Schema, body map[string]any) error {
	for _, p := range route.Operation.Parameters {
		name := p.Value.Name
		if p.Value.In != openapi3.ParameterInQuery || schema.Properties[name] == nil || !c.query.Has(name) {
			continue
		}
		text := c.query.Get(name)
		var value any = text
		switch t := p.Value.Schema.Value.Type; {
		case t.Is("boolean"):
			value = c.flag(name)
		case t.Is("integer"):
			value = json.Number(text)
		}
		if given, ok := body[name]; ok && fmt.Sprint(given) != fmt.Sprint(value) {
			return &httpError{status: http.StatusBadRequest, kind: typeRequest, code: "conflict", param: name,
				message: fmt.Sprintf("%s: the query says %.64q and the body %.64q; give it once", name, text, fmt.Sprint(given))}
		}
		body[name] = value
	}
	return nil
}

// writeJSON replies with v.
func (s *Server) writeJSON(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write a reply: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // a client that is gone needs no reply
	return nil
}

type contextKey int

const (
	requestIDKey contextKey = iota
	arrivedKey
)

func requestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey).(string)
	return id
}

func arrived(ctx context.Context) time.Time {
	t, _ := ctx.Value(arrivedKey).(time.Time)
	return t
}
