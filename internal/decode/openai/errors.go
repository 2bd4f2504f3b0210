package openai

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	openai "github.com/sashabaranov/go-openai"

	"anytime/internal/decode"
	"anytime/internal/decode/remote"
)

// serverError is what a server answered instead of doing what it was asked to.
type serverError struct {
	status  int // 0: it came in a stream
	kind    string
	message string
}

func (e *serverError) Error() string {
	if e.status == 0 {
		return fmt.Sprintf("the server broke off: %.500s", e.message)
	}
	return fmt.Sprintf("the server answered %d %s: %.500s", e.status, http.StatusText(e.status), e.message)
}

// readError reads the errors of all kinds of servers: OpenAI's envelope, vLLM's older one, FastAPI's, TGI's, or text.
func readError(status int, body []byte) error {
	e := &serverError{status: status}
	var envelope struct {
		Error   json.RawMessage `json:"error"`
		Type    string          `json:"type"`
		Kind    string          `json:"error_type"`
		Message string          `json:"message"`
		Detail  json.RawMessage `json:"detail"`
	}
	var inner struct {
		Message string          `json:"message"`
		Type    string          `json:"type"`
		Code    json.RawMessage `json:"code"`
	}
	if json.Unmarshal(body, &envelope) == nil {
		var text string
		if json.Unmarshal(envelope.Error, &inner) != nil {
			_ = json.Unmarshal(envelope.Error, &text)
		}
		e.message = cmp.Or(inner.Message, text, envelope.Message, string(envelope.Detail))
		e.kind = strings.Join([]string{inner.Type, string(inner.Code), envelope.Type, envelope.Kind}, " ")
	}
	e.message = cmp.Or(e.message, strings.TrimSpace(string(body)), "no reason given")
	return e
}

// fromLibrary makes a serverError of go-openai's errors.
func fromLibrary(err error) error {
	var api *openai.APIError
	var request *openai.RequestError
	switch {
	case errors.As(err, &api):
		return &serverError{status: api.HTTPStatusCode, kind: fmt.Sprint(api.Type, " ", api.Code), message: api.Message}
	case errors.As(err, &request) && request.HTTPStatusCode > 0:
		return readError(request.HTTPStatusCode, request.Body)
	}
	return err
}

// contextFull recognises the errors by which servers refuse what is longer than their model's context.
func (e *serverError) contextFull() bool {
	text := strings.ToLower(e.kind + " " + e.message)
	for _, words := range [][]string{
		{"context_length_exceeded"}, {"exceed_context_size"}, {"maximum context length"}, {"context length", "exceed"}, {"context length", "longer"},
		{"context length", "greater"}, {"context length", "overflow"}, {"context size", "exceed"}, {"context window", "exceed"},
		{"max_new_tokens", "must be <="}, {"inputs", "must have less than"},
	} {
		all := true
		for _, w := range words {
			all = all && strings.Contains(text, w)
		}
		if all {
			return true
		}
	}
	return false
}

func (e *serverError) unknownModel() bool {
	text := strings.ToLower(e.kind + " " + e.message)
	return strings.Contains(text, "model") && (e.status == http.StatusNotFound || e.status == http.StatusBadRequest) &&
		(strings.Contains(text, "not found") || strings.Contains(text, "not exist") || strings.Contains(text, "model_not_found") || strings.Contains(text, "no such model"))
}

// explain says what is to be done about an error, and whether trying again can mend it.
func (s *server) explain(err error) error {
	if err == nil {
		return nil
	}
	var e *serverError
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		return fmt.Errorf("%s cannot be reached: see that the server is running, and that its address is right: %w", s.base, err)
	}
	if !errors.As(err, &e) {
		return fmt.Errorf("%s: %w", s.base, err)
	}
	switch {
	case (e.status == http.StatusBadRequest || e.status == http.StatusRequestEntityTooLarge || e.status == http.StatusUnprocessableEntity) && e.contextFull():
		return fmt.Errorf("%w: %w", decode.ErrContextFull, err)
	case e.status == http.StatusUnauthorized || e.status == http.StatusForbidden:
		return fmt.Errorf("%s refuses the API key (%w): set the engine's key to one that the server accepts; %w", s.base, err, remote.ErrFatal)
	case e.unknownModel():
		return fmt.Errorf("%s has no model %q (%w): load it there, or set the engine's model to one that %s/models lists; %w", s.base, s.model, err, s.base, remote.ErrFatal)
	case e.status >= 400 && e.status < 500 && e.status != http.StatusRequestTimeout && e.status != http.StatusTooManyRequests && e.status != http.StatusConflict,
		e.status == http.StatusNotImplemented:
		return fmt.Errorf("%s: %w; %w", s.base, err, remote.ErrFatal)
	}
	return fmt.Errorf("%s: %w", s.base, err)
}
