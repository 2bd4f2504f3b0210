// Package server is the HTTP surface: the native /solve, what OpenAI's clients speak, health, metrics, and the contract itself.
//
// The contract is api/openapi.yaml. Every route is one of its operations, and every request is held to it before its handler
// runs, so a handler sees valid, bounded input. Handlers turn requests into anytime.Requests and runs into replies; what happens
// in between is the Solver's. Streams read runs from the store only, so what a client sees is what is kept.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"anytime/api"
	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/decode"
	"anytime/internal/store"
)

// Solver runs thoughts; *anytime.Solver is one, and its package says what is asked of each method.
type Solver interface {
	Start(ctx context.Context, req anytime.Request) (id string, err error)
	Wait(ctx context.Context, id string) (anytime.Reply, error)
	Interrupt(ctx context.Context, id string) error
	Peek(ctx context.Context, id string) (anytime.Checkpoint, error)
	Extend(ctx context.Context, id string, more anytime.Extension) error
	Leave(id string)
	Cancel(ctx context.Context, id string) error
	Explain(ctx context.Context, id string) (*anytime.Explanation, error)
}

var _ Solver = (*anytime.Solver)(nil)

// Model is a model that requests can name.
type Model struct {
	ID            string
	Default       bool
	Loaded        bool
	Created       time.Time
	ContextTokens int                      // 0 unknown
	MaxThinking   int                      // tokens; the cap of which efforts are shares
	Engine        string                   // what decodes it; "" not told
	Capabilities  []string                 // what the engine can do; nil while it is not loaded
	Path          string                   // how an engine elsewhere is used, while it is loaded
	Adapters      []string                 // named in requests as "ID:adapter"
	Adapter       string                   // the one of them that ID alone stands for; "" none
	Curves        map[string]*budget.Curve // those that are known, by adapter; catalog.Bare without one
	Examples      []string                 // questions that suit it
}

// Models gives the models, and lists what can be asked for, loaded or not: that is called for each request and must be quick.
type Models interface {
	anytime.Models
	Models() []Model
}

// Key is an API key.
type Key struct {
	Name     string // for the log, and for counting
	Secret   string
	Admin    bool // may read metrics and manage adapters
	Priority int  // of its runs, as anytime.Request.Priority
	Limits   Limits
}

// Config is what a server needs. Solver, Models, Store, Ready and Logger have no default.
type Config struct {
	Solver   Solver
	Models   Models
	Adapters Adapters // nil: adapters are not managed here
	Store    store.Store
	Ready    func(context.Context) error // nil when engine and model can answer
	Tracer   trace.TracerProvider        // nil: requests are not traced
	Metrics  *prometheus.Registry        // served at /metrics; nil: a new one
	Logger   *slog.Logger
	// Page is what people see at / and /assets/; nil: nothing.
	Page http.Handler

	// Keys are the API keys. Without any the server must listen on a loopback address only, and refuses to be built otherwise.
	Keys     []Key
	Loopback bool
	Quota    Quota // nil: counts in this process
	// AllowedHosts are names, without port, that a server without keys answers to besides localhost and loopback addresses.
	AllowedHosts []string
	// AllowedOrigins are pages elsewhere, such as https://lab.example, that may send requests.
	AllowedOrigins []string

	// Sampling of requests that do not say.
	Sampling decode.Sampling
	// Efforts are shares of the model's cap, 0 to 1. nil: DefaultEfforts.
	Efforts map[string]float64
	// ChatAnswerTokens caps a chat's answer where the request has no max_tokens. 0: 2048.
	ChatAnswerTokens int

	MaxBody int64         // bytes of a request; 0: 4 MiB
	Ping    time.Duration // between comments on a silent stream; 0: 15 s
	Timeout time.Duration // for a client to send its body, and to take what was sent; 0: 30 s
}

// DefaultEfforts returns the shares of the model's cap that efforts stand for.
func DefaultEfforts() map[string]float64 {
	return map[string]float64{"none": 0, "minimal": 1. / 16, "low": 1. / 8, "medium": 1. / 4, "high": 1. / 2, "xhigh": 1, "max": 1}
}

// Server is an http.Handler.
type Server struct {
	cfg     Config
	log     *slog.Logger
	doc     *openapi3.T
	keys    []key
	metrics *metrics
	router  *chi.Mux
	handler http.Handler // the router, traced or not
	docs    []byte
}

// New returns a Server.
func New(cfg Config) (*Server, error) {
	if len(cfg.Keys) == 0 && !cfg.Loopback {
		return nil, errors.New("without API keys only a loopback address may be served: set keys, or listen on 127.0.0.1")
	}
	if cfg.Metrics == nil {
		cfg.Metrics = prometheus.NewRegistry()
	}
	if cfg.Efforts == nil {
		cfg.Efforts = DefaultEfforts()
	}
	for level, share := range cfg.Efforts {
		if !(share >= 0 && share <= 1) { // NaN is in no range
			return nil, fmt.Errorf("effort %q is %v of the model's cap; it must be 0 to 1", level, share)
		}
	}
	if cfg.Quota == nil {
		cfg.Quota = newCounts()
	}
	setDefault(&cfg.ChatAnswerTokens, 2048)
	setDefault(&cfg.MaxBody, 4<<20)
	setDefault(&cfg.Ping, 15*time.Second)
	setDefault(&cfg.Timeout, 30*time.Second)

	doc, err := openapi3.NewLoader().LoadFromData(api.Document)
	if err != nil {
		return nil, fmt.Errorf("read the OpenAPI document: %w", err)
	}
	s := &Server{cfg: cfg, log: cfg.Logger, doc: doc, metrics: newMetrics(cfg.Metrics), router: chi.NewRouter()}
	if s.keys, err = newKeys(cfg.Keys); err != nil {
		return nil, err
	}
	if s.docs, err = renderDocs(doc); err != nil {
		return nil, fmt.Errorf("render the documentation: %w", err)
	}
	s.routes()
	if s.handler = s.router; cfg.Tracer != nil {
		s.handler = otelhttp.NewHandler(s.router, "request", otelhttp.WithTracerProvider(cfg.Tracer), otelhttp.WithPropagators(propagation.TraceContext{}),
			otelhttp.WithFilter(func(r *http.Request) bool { return !slices.Contains(probes, r.URL.Path) }))
	}
	return s, nil
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// ServeHTTP serves a request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

func (s *Server) routes() {
	s.router.Use(s.observe, s.recoverPanic, s.guard)
	s.router.NotFound(func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, &httpError{status: http.StatusNotFound, kind: typeNotFound, code: "not_found", message: "no such path; /docs lists them"})
	})
	s.router.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		for _, method := range s.methods(r) {
			w.Header().Add("Allow", method)
		}
		s.fail(w, r, &httpError{status: http.StatusMethodNotAllowed, kind: typeRequest, code: "method_not_allowed", message: r.Method + " is not a method of this path; /docs lists them"})
	})

	s.handle("POST", "/solve", s.solve)
	s.handle("GET", "/solve", s.listRuns)
	s.handle("GET", "/solve/{id}", s.getRun)
	s.handle("DELETE", "/solve/{id}", s.deleteRun)
	s.handle("GET", "/solve/{id}/events", s.runEvents)
	s.handle("POST", "/solve/{id}/interrupt", s.interruptRun)
	s.handle("POST", "/solve/{id}/extend", s.extendRun)

	s.handle("POST", "/v1/chat/completions", s.chatCompletion)
	s.handle("POST", "/v1/chat/completions/control", s.chatControl)
	s.handle("POST", "/v1/completions", s.completion)
	s.handle("POST", "/v1/responses", s.createResponse)
	s.handle("GET", "/v1/responses/{id}", s.getResponse)
	s.handle("DELETE", "/v1/responses/{id}", s.deleteResponse)
	s.handle("POST", "/v1/responses/{id}/cancel", s.cancelResponse)
	s.handle("GET", "/v1/responses/{id}/input_items", s.listInputItems)
	s.handle("GET", "/v1/models", s.listModels)
	s.handle("GET", "/v1/models/{id}", s.getModel)

	s.handle("GET", "/v1/adapters", s.listAdapters)
	s.handle("POST", "/v1/adapters", s.loadAdapter)
	s.handle("GET", "/v1/adapters/{name}", s.getAdapter)
	s.handle("DELETE", "/v1/adapters/{name}", s.deleteAdapter)
	s.handle("PUT", "/v1/adapters/files/{sha256}", s.uploadAdapter)

	s.handle("GET", "/props", s.props)
	s.handle("POST", "/tokenize", s.tokenize)
	s.handle("POST", "/detokenize", s.detokenize)
	s.handle("POST", "/apply-template", s.applyTemplate)

	s.handle("GET", "/healthz", s.healthz)
	s.handle("GET", "/readyz", s.readyz)
	s.handle("GET", "/health", s.readyz) // as llama-server and vLLM call it
	metrics := promhttp.HandlerFor(s.cfg.Metrics, promhttp.HandlerOpts{})
	s.handle("GET", "/metrics", func(w http.ResponseWriter, c *call) error {
		metrics.ServeHTTP(w, c.Request)
		return nil
	})
	s.handle("GET", "/openapi.yaml", func(w http.ResponseWriter, _ *call) error {
		w.Header().Set("Content-Type", "application/yaml")
		_, err := w.Write(api.Document)
		return err
	})
	s.handle("GET", "/docs", s.docsPage)
	if s.cfg.Page != nil {
		for _, method := range []string{"GET", "HEAD"} {
			s.router.Method(method, "/", s.cfg.Page)
			s.router.Method(method, "/assets/*", s.cfg.Page)
		}
	}
}

// methods are those of a request's path.
func (s *Server) methods(r *http.Request) (methods []string) {
	path := cmp.Or(r.URL.RawPath, r.URL.Path) // as chi does
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} {
		if s.router.Match(chi.NewRouteContext(), method, path) {
			methods = append(methods, method)
		}
	}
	return methods
}
