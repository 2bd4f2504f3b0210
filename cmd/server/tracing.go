package main

import (
	"context"
	"log/slog"
	"net/url"
	"os"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/trace"
)

// tracing sends traces; its zero value, none.
type tracing struct{ provider *sdktrace.TracerProvider }

// newTracing sends traces to the collector that the settings or OpenTelemetry's own variables name. One that is away costs traces and
// nothing else.
func newTracing(ctx context.Context, cfg *Config, log *slog.Logger) (tracing, error) {
	var options []otlptracehttp.Option
	if cfg.OTLPEndpoint != "" {
		u, err := url.Parse(cfg.OTLPEndpoint)
		if err != nil {
			return tracing{}, err
		}
		options = append(options, otlptracehttp.WithEndpointURL(u.JoinPath("v1/traces").String()))
	} else if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" {
		return tracing{}, nil
	}
	exporter, err := otlptracehttp.New(ctx, options...)
	if err != nil {
		return tracing{}, err
	}
	about, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithAttributes(semconv.ServiceName("anytime"), semconv.ServiceVersion(version())),
		resource.WithFromEnv()) // last, so that it counts
	if err != nil {
		return tracing{}, err
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("traces are lost", "error", err) }))
	return tracing{sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about))}, nil
}

// requests is what the handler traces with; nil: it does not.
func (t tracing) requests() trace.TracerProvider {
	if t.provider == nil {
		return nil
	}
	return t.provider
}

// runs is what runs are traced with; nil: they are not.
func (t tracing) runs() trace.Tracer {
	if t.provider == nil {
		return nil
	}
	return t.provider.Tracer("anytime/internal/anytime")
}

// Close sends what is left, for a moment.
func (t tracing) Close() error {
	if t.provider == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = t.provider.Shutdown(ctx) // its error handler has said it; that a collector is away is no failure of the server
	return nil
}
