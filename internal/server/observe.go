package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/trace"
)

// metrics counts requests. Routes are patterns, so that ids make no new series.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	streams  prometheus.Gauge
	limited  *prometheus.CounterVec
	slow     prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "anytime_http_requests_total", Help: "Requests, by route, method and status."}, []string{"route", "method", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "anytime_http_request_duration_seconds", Help: "From a request's arrival to the end of its reply, streams included.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10), // 1 ms to 4 minutes
		}, []string{"route", "method"}),
		limited: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "anytime_limited_total", Help: "Requests refused because of a limit of their key, by limit: requests, runs or tokens (of thinking)."}, []string{"limit"}),
		slow:    prometheus.NewCounter(prometheus.CounterOpts{Name: "anytime_http_slow_clients_total", Help: "Clients cut off because they did not send their body, or take their reply, in time."}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{Name: "anytime_http_open_streams", Help: "Event streams open now."}),
	}
	reg.MustRegister(m.requests, m.duration, m.streams, m.limited, m.slow)
	return m
}

// probes are the paths that are asked for every few seconds.
var probes = []string{"/healthz", "/readyz", "/health", "/metrics"}

// observe gives each request its id and arrival, and counts and logs it when it is done.
func (s *Server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		id := saneID(r.Header.Get("X-Request-Id"))
		w.Header().Set("X-Request-Id", id)
		ctx := context.WithValue(context.WithValue(r.Context(), requestIDKey, id), arrivedKey, start)
		r = r.WithContext(ctx)
		reply := newReply(w, r, s.cfg.Timeout)
		defer func() {
			took := time.Since(start)
			route, method := chi.RouteContext(ctx).RoutePattern(), r.Method
			if reply.status == http.StatusNotFound && route == "" || reply.status == http.StatusMethodNotAllowed || route == "" {
				route, method = "none", "none" // whatever clients make up
			}
			s.metrics.requests.WithLabelValues(route, method, strconv.Itoa(reply.status)).Inc()
			s.metrics.duration.WithLabelValues(route, method).Observe(took.Seconds())
			if reply.late {
				s.metrics.slow.Inc()
			}
			level := slog.LevelInfo
			if slices.Contains(probes, route) {
				level = slog.LevelDebug
			}
			if span := trace.SpanFromContext(ctx); span.IsRecording() {
				span.SetName(method + " " + route)
				span.SetAttributes(semconv.HTTPRoute(route), attribute.String("anytime.request.id", id))
			}
			s.log.LogAttrs(ctx, level, "request", slog.String("request", id), slog.String("method", r.Method), slog.String("path", r.URL.Path),
				slog.Int("status", reply.status), slog.Int("bytes", reply.bytes), slog.Duration("took", took))
		}()
		next.ServeHTTP(reply, r)
	})
}

// recoverPanic turns a panic into a 500, or, where the reply has begun, into a broken connection.
func (s *Server) recoverPanic(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
			err := fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			if reply, ok := w.(*reply); ok && reply.status != 0 {
				s.logFailure(r.Context(), publicError(err), err)
				panic(http.ErrAbortHandler)
			}
			s.fail(w, r, err)
		}()
		next.ServeHTTP(w, r)
	})
}
