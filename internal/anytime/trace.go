package anytime

import (
	"context"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/trace"
)

// Attributes for which the conventions have no name.
const (
	attrCause      = attribute.Key("anytime.stop.cause")
	attrForced     = attribute.Key("anytime.stop.forced")
	attrLimit      = attribute.Key("anytime.thinking.limit")
	attrTokens     = attribute.Key("anytime.tokens")
	attrCached     = attribute.Key("anytime.tokens.cached")
	attrConfidence = attribute.Key("anytime.confidence")
	attrVotes      = attribute.Key("anytime.votes")
)

// trace tells a run that has ended as spans, by OpenTelemetry's conventions for generative models: one for the run, and in it prefill,
// thinking, checkpoints and answer. They are made of what the run has kept account of anyway, so that a run that nobody traces costs
// nothing. Texts are not told.
func (r *run) trace(reply *Reply, failure *ErrorData) {
	tracer := r.solver.cfg.Tracer
	if tracer == nil {
		return
	}
	at := func(elapsedMS float64) trace.SpanEventOption {
		return trace.WithTimestamp(r.req.Arrived.Add(time.Duration(elapsedMS * float64(time.Millisecond))))
	}
	operation := semconv.GenAIOperationNameChat
	if r.req.Raw != "" {
		operation = semconv.GenAIOperationNameTextCompletion
	}
	ctx := trace.ContextWithSpanContext(context.Background(), r.link)
	ctx, span := tracer.Start(ctx, operation.Value.AsString()+" "+r.modelID, at(0), trace.WithSpanKind(trace.SpanKindInternal))
	defer span.End(at(r.timings.DoneMS))
	if !span.IsRecording() {
		return
	}
	part := func(name string, from, to float64, attributes ...attribute.KeyValue) {
		_, s := tracer.Start(ctx, name, at(from), trace.WithAttributes(attributes...))
		s.End(at(max(from, to)))
	}

	s := r.req.Sampling
	span.SetAttributes(operation, semconv.GenAIProviderNameKey.String("anytime"), semconv.GenAIRequestModel(r.modelID), semconv.GenAIResponseModel(r.modelID),
		semconv.GenAIResponseID(r.id), semconv.GenAIRequestTemperature(float64(s.Temperature)), semconv.GenAIUsageInputTokens(r.usage.PromptTokens),
		semconv.GenAIUsageCacheReadInputTokens(r.usage.CachedTokens), semconv.GenAIUsageOutputTokens(r.thought.tokens+r.usage.SummaryTokens),
		semconv.GenAIUsageReasoningOutputTokens(r.thought.tokens))
	if s.TopP > 0 {
		span.SetAttributes(semconv.GenAIRequestTopP(float64(s.TopP)))
	}
	if s.TopK > 0 {
		span.SetAttributes(semconv.GenAIRequestTopK(float64(s.TopK)))
	}
	if r.req.MaxTokens > 0 {
		span.SetAttributes(semconv.GenAIRequestMaxTokens(r.req.MaxTokens))
	}
	if r.req.Seed != nil {
		span.SetAttributes(semconv.GenAIRequestSeed(int(*r.req.Seed)))
	}
	if len(r.req.Stop) > 0 {
		span.SetAttributes(semconv.GenAIRequestStopSequences(slices.Clone(r.req.Stop)...))
	}

	if a := &r.account; len(a.prefills) > 0 {
		p := a.prefills[0]
		from := r.timings.OpenedMS + p.QueueMS
		part("prefill", from, from+p.MS, attrTokens.Int(p.Tokens), attrCached.Int(p.Cached))
	}
	if r.timings.FirstThinkingMS > 0 {
		part("thinking", r.timings.FirstThinkingMS, r.timings.CutMS, attrTokens.Int(r.thought.tokens-r.recalled), attrCause.String(string(r.cause)))
	}
	for _, c := range r.tasks.checkpoints {
		part("checkpoint", c.ElapsedMS-c.CostMS, c.ElapsedMS, attrTokens.Int(c.Tokens), attrConfidence.Float64(c.Confidence))
	}
	if failure != nil {
		span.SetAttributes(semconv.ErrorTypeKey.String(failure.Code))
		span.SetStatus(codes.Error, failure.Message)
		return
	}
	if r.timings.CutMS > 0 {
		part("answer", r.timings.CutMS, r.timings.DoneMS, attrTokens.Int(r.usage.SummaryTokens), attrVotes.Int(r.req.Votes), attrConfidence.Float64(reply.Confidence))
	}
	finish := "length"
	if reply.Stop.Answer == "stop" || reply.Stop.Answer == "checkpoint" {
		finish = "stop"
	}
	span.SetAttributes(semconv.GenAIResponseFinishReasons(finish), attrCause.String(string(r.cause)), attrForced.Bool(reply.Stop.Forced),
		attrLimit.Int(reply.Stop.Limit), attrConfidence.Float64(reply.Confidence))
}
