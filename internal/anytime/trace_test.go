package anytime_test

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"anytime/internal/anytime"
	"anytime/internal/decode/decodetest"
)

// attributes of a span by their names.
func attributes(s tracetest.SpanStub) map[string]any {
	m := map[string]any{}
	for _, a := range s.Attributes {
		m[string(a.Key)] = a.Value.AsInterface()
	}
	return m
}

func TestTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept := tracetest.NewInMemoryExporter()
		provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(kept))
		defer func() { _ = provider.Shutdown(context.Background()) }()
		b := newBench(t, decodetest.Options{Prefill: time.Millisecond}, func(c *anytime.Config) { c.Tracer = provider.Tracer("test") })
		ctx, request := provider.Tracer("test").Start(context.Background(), "POST /solve")
		req := ask("100")
		req.Checkpoints.At = []int{40}
		req.Sampling.Temperature, req.Sampling.TopP, req.MaxTokens = 0.5, 0.9, 400
		began := time.Now()
		id, err := b.Start(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		request.End()
		reply := b.wait(id)

		spans := kept.GetSpans()
		var names []string
		byName := map[string]tracetest.SpanStub{}
		for _, s := range spans {
			names = append(names, s.Name)
			byName[s.Name] = s
		}
		run := byName["chat scripted"]
		if want := []string{"POST /solve", "prefill", "thinking", "checkpoint", "answer", "chat scripted"}; !slices.Equal(names, want) {
			t.Fatalf("spans %q, want %q", names, want)
		}
		if run.Parent.SpanID() != request.SpanContext().SpanID() || run.SpanKind != trace.SpanKindInternal || !run.StartTime.Equal(began) {
			t.Errorf("run %+v", run)
		}
		at := began
		for _, name := range []string{"prefill", "thinking", "answer"} { // one after another, within the run
			s := byName[name]
			if s.Parent.SpanID() != run.SpanContext.SpanID() || s.StartTime.Before(at) || s.EndTime.Before(s.StartTime) || s.EndTime.After(run.EndTime) {
				t.Errorf("%s: from %v to %v, behind %v", name, s.StartTime.Sub(began), s.EndTime.Sub(began), at.Sub(began))
			}
			at = s.EndTime
		}
		if c := byName["checkpoint"]; c.EndTime.Sub(c.StartTime) < 2*step || c.EndTime.After(byName["thinking"].EndTime) {
			t.Errorf("checkpoint from %v to %v", c.StartTime.Sub(began), c.EndTime.Sub(began))
		}
		got := attributes(run)
		for name, want := range map[string]any{
			"gen_ai.operation.name": "chat", "gen_ai.provider.name": "anytime", "gen_ai.request.model": "scripted", "gen_ai.response.model": "scripted",
			"gen_ai.response.id": id, "gen_ai.request.temperature": 0.5, "gen_ai.request.max_tokens": int64(400),
			"gen_ai.usage.input_tokens": int64(reply.Usage.PromptTokens), "gen_ai.usage.output_tokens": int64(100 + reply.Usage.SummaryTokens),
			"gen_ai.usage.reasoning.output_tokens": int64(100), "anytime.stop.cause": "tokens", "anytime.stop.forced": true, "anytime.thinking.limit": int64(100),
		} {
			if got[name] != want {
				t.Errorf("%s is %v, want %v", name, got[name], want)
			}
		}
		if reasons, _ := got["gen_ai.response.finish_reasons"].([]string); !slices.Equal(reasons, []string{"stop"}) {
			t.Errorf("finish reasons %v", got["gen_ai.response.finish_reasons"])
		}
		if thinking := attributes(byName["thinking"]); thinking["anytime.tokens"] != int64(100) {
			t.Errorf("thinking %v", thinking)
		}

		kept.Reset()
		id = b.start(ask("max"))
		time.Sleep(20 * step)
		b.Leave(id)
		_, _ = b.Wait(context.Background(), id)
		spans = kept.GetSpans()
		if last := spans[len(spans)-1]; last.Name != "chat scripted" || last.Status.Code != codes.Error || !slices.Contains(last.Attributes, attribute.String("error.type", "cancelled")) {
			t.Errorf("cancelled: %+v", last)
		}
	})
}
