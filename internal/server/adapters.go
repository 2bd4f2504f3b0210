package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"anytime/api"
	"anytime/internal/budget"
	"anytime/internal/catalog/adapters"
	"anytime/internal/decode"
)

// Adapters manages LoRA adapters; *adapters.Manager does, and its package says what is asked of each method.
type Adapters interface {
	List() []adapters.Adapter
	Get(name string) (adapters.Adapter, error)
	Load(ctx context.Context, req adapters.Request) (adapters.Adapter, error)
	Delete(ctx context.Context, name string) error
	Upload(ctx context.Context, sha256 string, from io.Reader) (bytes int64, err error)
}

var _ Adapters = (*adapters.Manager)(nil)

func (s *Server) listAdapters(w http.ResponseWriter, _ *call) error {
	list := api.AdapterList{Adapters: []api.Adapter{}}
	if s.cfg.Adapters != nil {
		for _, a := range s.cfg.Adapters.List() {
			list.Adapters = append(list.Adapters, describeAdapter(a))
		}
	}
	return s.writeJSON(w, http.StatusOK, list)
}

// managed returns what manages adapters.
func (s *Server) managed() (Adapters, error) {
	if s.cfg.Adapters == nil {
		return nil, &httpError{status: http.StatusNotFound, kind: typeNotFound, code: "adapters_not_managed", message: "this server manages no adapters"}
	}
	return s.cfg.Adapters, nil
}

func (s *Server) getAdapter(w http.ResponseWriter, c *call) error {
	m, err := s.managed()
	if err != nil {
		return err
	}
	a, err := m.Get(c.path("name"))
	if err != nil {
		return adapterError(err)
	}
	return s.writeJSON(w, http.StatusOK, describeAdapter(a))
}

// loadAdapter replies with 202 where the adapter is being measured first.
func (s *Server) loadAdapter(w http.ResponseWriter, c *call) error {
	m, err := s.managed()
	if err != nil {
		return err
	}
	var body api.AdapterRequest
	if err := c.into(&body); err != nil {
		return err
	}
	req := adapters.Request{
		Name: body.Name, Model: or(body.Model, ""), File: or(body.File, ""), SHA256: or(body.Sha256, ""), Default: has(body.Default),
	}
	if g := body.Gate; g != nil {
		req.Gate = &adapters.GateRequest{Budgets: or(g.Budgets, nil), Margin: g.Margin}
		if g.Problems != nil {
			var lines bytes.Buffer
			encoder := json.NewEncoder(&lines) // a line each
			for _, p := range *g.Problems {
				if err := encoder.Encode(p); err != nil {
					return err
				}
			}
			req.Gate.Problems = lines.Bytes()
		}
	}
	a, err := m.Load(c.Context(), req)
	var input *decode.InputError
	if errors.As(err, &input) && input.Field == "file" && body.File == nil && body.Default != nil {
		return invalid("default", `default: false takes nothing back; to make the bare model the default, send {"name": "bare", "default": true}`)
	}
	if err != nil {
		return adapterError(err)
	}
	status := http.StatusOK
	if a.Trial != nil && a.Trial.State == adapters.Measuring {
		status = http.StatusAccepted
		w.Header().Set("Location", "/v1/adapters/"+url.PathEscape(a.Model+":"+a.Name))
	}
	return s.writeJSON(w, status, describeAdapter(a))
}

func (s *Server) deleteAdapter(w http.ResponseWriter, c *call) error {
	m, err := s.managed()
	if err != nil {
		return err
	}
	if err := m.Delete(c.Context(), c.path("name")); err != nil {
		return adapterError(err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) uploadAdapter(w http.ResponseWriter, c *call) error {
	m, err := s.managed()
	if err != nil {
		return err
	}
	control := http.NewResponseController(w)
	sum := c.path("sha256")
	n, err := m.Upload(c.Context(), sum, arriving{c.Body, control, s.cfg.Timeout})
	if err != nil {
		// What is left of the body is not waited for.
		return adapterError(err)
	}
	_ = control.SetReadDeadline(time.Time{})
	return s.writeJSON(w, http.StatusCreated, api.AdapterFile{File: "sha256:" + sum, Bytes: n})
}

// arriving is a body of which the next piece must come in time, however long it is as a whole.
type arriving struct {
	io.Reader
	control *http.ResponseController
	timeout time.Duration
}

func (a arriving) Read(p []byte) (int, error) {
	_ = a.control.SetReadDeadline(time.Now().Add(a.timeout)) // a writer that cannot is no connection
	n, err := a.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &httpError{status: http.StatusBadRequest, kind: typeRequest, code: "incomplete_body", message: "the body did not arrive whole and in time"}
	}
	return n, err
}

// takesFile reports whether an operation reads its body itself, as a file.
func takesFile(op *openapi3.Operation) bool {
	return op.RequestBody != nil && op.RequestBody.Value.Content.Get("application/octet-stream") != nil
}

func adapterError(err error) error {
	var conflict *adapters.ConflictError
	var size *adapters.SizeError
	switch {
	case errors.As(err, &conflict):
		return &httpError{status: http.StatusConflict, kind: typeConflict, code: "adapter_conflict", param: "name", message: err.Error()}
	case errors.As(err, &size):
		return &httpError{status: http.StatusRequestEntityTooLarge, kind: typeRequest, code: "file_too_large", param: "file", message: err.Error()}
	case errors.Is(err, decode.ErrUnknownAdapter):
		return &httpError{status: http.StatusNotFound, kind: typeNotFound, code: "adapter_not_found", param: "name", message: err.Error()}
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return &httpError{status: http.StatusInsufficientStorage, kind: typeServer, code: "disk_full", message: "the disk of the adapter folder is full; nothing was changed"}
	}
	return err
}

func describeAdapter(a adapters.Adapter) api.Adapter {
	d := api.Adapter{
		Id: a.Model + ":" + a.Name, Name: a.Name, Model: a.Model, State: api.AdapterState(a.State), Default: a.Default, Configured: a.Fixed,
		File: optional(a.File), Sha256: optional(a.SHA256), Reason: optional(a.Reason), Curve: describeCurve(a.Curve),
	}
	if a.Bytes > 0 {
		d.Bytes = &a.Bytes
	}
	if !a.Loaded.IsZero() {
		d.LoadedAt = &a.Loaded
	}
	if t := a.Trial; t != nil {
		d.Trial = &api.AdapterTrial{
			State: api.AdapterTrialState(t.State), Sha256: t.SHA256, Began: t.Began, Done: t.Done, Of: t.Of, Margin: t.Margin,
			Base: describeCurve(t.Base), Adapter: describeCurve(t.Adapter), Reason: optional(t.Reason),
		}
	}
	return d
}

func describeCurve(c *budget.Curve) *[]api.CurvePoint {
	if c == nil {
		return nil
	}
	points := make([]api.CurvePoint, len(c.Points))
	for i, p := range c.Points {
		points[i] = api.CurvePoint{Budget: p.Budget, Tokens: p.Tokens, Accuracy: p.Accuracy, Low: p.Low, High: p.High}
	}
	return &points
}

// optional is nil for what is not there.
func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
