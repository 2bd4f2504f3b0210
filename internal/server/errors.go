package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"anytime/api"
	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/decode"
	"anytime/internal/store"
)

// The types of errors, as OpenAI's clients know them.
const (
	typeRequest     = "invalid_request_error"
	typeAuth        = "authentication_error"
	typePermission  = "permission_error"
	typeNotFound    = "not_found_error"
	typeConflict    = "conflict_error"
	typeRate        = "rate_limit_error"
	typeServer      = "server_error"
	typeUnavailable = "unavailable_error"
)

// statusClientGone is what is counted where nobody was left to read a reply.
const statusClientGone = 499

// httpError is an error as clients see it.
type httpError struct {
	status     int
	kind       string // type
	code       string
	param      string
	message    string
	retryAfter int           // seconds; 0 do not
	shortest   time.Duration // deadline that could be met; 0 says nothing
}

func (e *httpError) Error() string { return e.message }

// invalid is a bad value in a field.
func invalid(param, format string, args ...any) error {
	return &httpError{status: http.StatusBadRequest, kind: typeRequest, code: "invalid_value", param: param, message: fmt.Sprintf(format, args...)}
}

// errorTable says what clients see of an error: the first row that matches. A row fills in what it finds in the error.
var errorTable = []struct {
	httpError
	match func(err error, e *httpError) bool
}{
	{httpError{status: 400, kind: typeRequest, code: "invalid_value"}, as(func(err *decode.InputError, e *httpError) { e.param, e.message = err.Field, err.Error() })},
	{httpError{status: 400, kind: typeRequest, code: "invalid_value"}, as(func(err *anytime.RequestError, e *httpError) { e.param, e.message = err.Field, err.Error() })},
	{httpError{status: 400, kind: typeRequest, code: "invalid_value", param: "budget"}, as(func(err *budget.SyntaxError, e *httpError) { e.message = err.Error() })},
	{httpError{status: 400, kind: typeRequest, code: "context_length_exceeded", param: "messages"}, is(decode.ErrContextFull)},
	{httpError{status: 404, kind: typeNotFound, code: "model_not_found", param: "model"}, is(anytime.ErrUnknownModel)},
	{httpError{status: 404, kind: typeNotFound, code: "model_not_found", param: "model"}, is(decode.ErrUnknownAdapter)},
	// One text for what is not there and for what is another key's.
	{httpError{status: 404, kind: typeNotFound, code: "run_not_found", param: "id", message: store.ErrNotFound.Error()}, is(store.ErrNotFound)},
	{httpError{status: 409, kind: typeConflict, code: "run_not_running", param: "id"}, is(anytime.ErrNotRunning)},
	{httpError{status: 409, kind: typeConflict, code: "run_running", param: "id"}, is(anytime.ErrRunning)},
	{httpError{status: 413, kind: typeRequest, code: "body_too_large"}, as(func(err *http.MaxBytesError, e *httpError) {
		e.message = fmt.Sprintf("the body is larger than %d bytes", err.Limit)
	})},
	{httpError{status: 429, kind: typeRate, code: "deadline_too_short", param: "budget"}, as(func(err *anytime.DeadlineError, e *httpError) {
		e.message, e.shortest, e.retryAfter = err.Error(), err.Shortest, seconds(err.Retry)
	})},
	{httpError{status: 429, kind: typeRate, code: "overloaded"}, as(func(err *anytime.OverloadError, e *httpError) {
		e.message, e.retryAfter = err.Error(), seconds(err.Retry)
	})},
	{httpError{status: 429, kind: typeRate, code: "busy", retryAfter: 1}, is(anytime.ErrBusy)},
	{httpError{status: 503, kind: typeUnavailable, code: "shutting_down", retryAfter: 5}, is(anytime.ErrDraining)},
	// These tell their own text alone: the rest names the server's files.
	{httpError{status: 503, kind: typeUnavailable, code: "engine_unavailable", retryAfter: 5, message: decode.ErrUnavailable.Error()}, is(decode.ErrUnavailable)},
	{httpError{status: 503, kind: typeUnavailable, code: "store_closed", retryAfter: 5}, is(store.ErrClosed)},
	{httpError{status: 503, kind: typeUnavailable, code: "store_unavailable", retryAfter: 5, message: store.ErrUnavailable.Error()}, is(store.ErrUnavailable)},
	{httpError{status: 503, kind: typeUnavailable, code: "store_full", retryAfter: 5, message: store.ErrFull.Error()}, is(store.ErrFull)},
	{httpError{status: 409, kind: typeConflict}, failed("cancelled")},
	{httpError{status: 503, kind: typeUnavailable, retryAfter: 1}, failed("engine", "restart")},
	{httpError{status: 500, kind: typeServer}, failed("")},
	{httpError{status: statusClientGone, kind: typeRequest, code: "client_closed_request"}, is(context.Canceled)},
	{httpError{status: 500, kind: typeServer, code: "internal_error", message: "internal error; the server's log knows it by its request id"},
		func(error, *httpError) bool { return true }},
}

// seconds rounds up.
func seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

func is(target error) func(error, *httpError) bool {
	return func(err error, e *httpError) bool {
		e.message = err.Error()
		return errors.Is(err, target)
	}
}

func as[T error](fill func(T, *httpError)) func(error, *httpError) bool {
	return func(err error, e *httpError) bool {
		var found T
		ok := errors.As(err, &found)
		if ok {
			fill(found, e)
		}
		return ok
	}
}

// failed matches runs that failed with one of the codes; "" is any.
func failed(codes ...string) func(error, *httpError) bool {
	return func(err error, e *httpError) bool {
		var run *anytime.RunError
		if !errors.As(err, &run) {
			return false
		}
		e.code, e.message = "run_"+run.Code, run.Message
		for _, c := range codes {
			if c == "" || c == run.Code {
				return true
			}
		}
		return false
	}
}

// publicError returns what clients may see of an error.
func publicError(err error) *httpError {
	var own *httpError
	if errors.As(err, &own) {
		return own
	}
	for _, row := range errorTable {
		if e := row.httpError; row.match(err, &e) {
			if row.message != "" {
				e.message = row.message
			}
			return &e
		}
	}
	panic("unreachable: the last row matches")
}

// body is the error in OpenAI's envelope.
func (e *httpError) body(requestID string) []byte {
	optional := func(s string) *string {
		if s == "" {
			return nil
		}
		return &s
	}
	body := api.ErrorBody{Message: e.message, Type: e.kind, Param: optional(e.param), Code: optional(e.code), RequestId: optional(requestID)}
	if e.shortest > 0 {
		body.ShortestDeadlineMs = new(int(e.shortest.Milliseconds()))
	}
	b, err := json.Marshal(api.Error{Error: body})
	if err != nil {
		panic(err) // only strings, which always marshal
	}
	return b
}

// fail replies with an error, and logs what is the server's own fault.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	e := publicError(err)
	s.logFailure(r.Context(), e, err)
	h := w.Header()
	h.Set("Content-Type", "application/json")
	if e.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(e.retryAfter))
	}
	if e.status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="anytime"`)
	}
	w.WriteHeader(e.status)
	_, _ = w.Write(append(e.body(requestID(r.Context())), '\n')) // a client that is gone needs no error
}

func (s *Server) logFailure(ctx context.Context, e *httpError, err error) {
	if e.status >= 500 {
		s.log.LogAttrs(ctx, slog.LevelError, "request failed", slog.String("request", requestID(ctx)), slog.Int("status", e.status), slog.Any("error", err))
	}
}
