package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts requests. Routes are patterns, so that ids make no new series.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	streams  prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "anytime_http_requests_total", Help: "Requests, by route, method and status."}, []string{"route", "method", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "anytime_http_request_duration_seconds", Help: "From a request's arrival to the end of its reply, streams included.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10), // 1 ms to 4 minutes
		}, []string{"route", "method"}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{Name: "anytime_http_open_streams", Help: "Event streams open now."}),
	}
	reg.MustRegister(m.requests, m.duration, m.streams)
	return m
}

// observe gives each request its id and arrival, and counts and logs it when it is done.
func (s *Server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		id := saneID(r.Header.Get("X-Request-Id"))
		w.Header().Set("X-Request-Id", id)
		ctx := context.WithValue(context.WithValue(r.Context(), requestIDKey, id), arrivedKey, start)
		r = r.WithContext(ctx)
		reply := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
		defer func() {
			took := time.Since(start)
			route, method := chi.RouteContext(ctx).RoutePattern(), r.Method
			if reply.Status() == http.StatusNotFound && route == "" || reply.Status() == http.StatusMethodNotAllowed || route == "" {
				route, method = "none", "none" // whatever clients make up
			}
			s.metrics.requests.WithLabelValues(route, method, strconv.Itoa(reply.Status())).Inc()
			s.metrics.duration.WithLabelValues(route, method).Observe(took.Seconds())
			level := slog.LevelInfo
			if route == "/healthz" || route == "/readyz" || route == "/metrics" { // asked every few seconds
				level = slog.LevelDebug
			}
			s.log.LogAttrs(ctx, level, "request", slog.String("request", id), slog.String("method", r.Method), slog.String("path", r.URL.Path),
				slog.Int("status", reply.Status()), slog.Int("bytes", reply.BytesWritten()), slog.Duration("took", took))
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
			if reply, ok := w.(middleware.WrapResponseWriter); ok && reply.Status() != 0 {
				s.logFailure(r.Context(), publicError(err), err)
				panic(http.ErrAbortHandler)
			}
			s.fail(w, r, err)
		}()
		next.ServeHTTP(w, r)
	})
}
