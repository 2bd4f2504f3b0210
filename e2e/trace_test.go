package e2e

import (
	"compress/gzip"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// The server tells a collector of OpenTelemetry what it does: requests, whose traces may come from outside, and their runs.
func TestTraces(t *testing.T) {
	var mu sync.Mutex
	spans := map[string]*otlp.Span{} // by name
	service := ""
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			zipped, err := gzip.NewReader(body)
			if err != nil {
				t.Error(err)
				return
			}
			body = zipped
		}
		data, err := io.ReadAll(body)
		var export collector.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(data, &export)
		}
		if err != nil || r.URL.Path != "/v1/traces" || r.Method != "POST" {
			t.Errorf("%s %s: %v", r.Method, r.URL, err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, resource := range export.ResourceSpans {
			for _, a := range resource.Resource.Attributes {
				if a.Key == "service.name" {
					service = a.Value.GetStringValue()
				}
			}
			for _, scope := range resource.ScopeSpans {
				for _, s := range scope.Spans {
					spans[s.Name] = s
				}
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	defer receiver.Close()

	s := start(t, "", append(exact(talker), "-otlp-endpoint", receiver.URL)...)
	const traceID, spanID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	r := s.do("POST", "/solve?budget=60&checkpoints=20", asked("Trace.", 1), "Traceparent", "00-"+traceID+"-"+spanID+"-01")
	if r.status != http.StatusOK {
		t.Fatalf("status %d: %s", r.status, r.body)
	}
	stop(s) // which sends what is left

	mu.Lock()
	defer mu.Unlock()
	request, run := spans["POST /solve"], spans["chat talker"]
	if request == nil || run == nil || service != "anytime" {
		t.Fatalf("service %q, spans %v", service, spans)
	}
	if hex.EncodeToString(request.TraceId) != traceID || hex.EncodeToString(request.ParentSpanId) != spanID || request.Kind != otlp.Span_SPAN_KIND_SERVER {
		t.Errorf("request %v", request)
	}
	if string(run.ParentSpanId) != string(request.SpanId) || run.EndTimeUnixNano <= run.StartTimeUnixNano {
		t.Errorf("run %v", run)
	}
	for _, name := range []string{"prefill", "thinking", "checkpoint", "answer"} {
		if part := spans[name]; part == nil || string(part.ParentSpanId) != string(run.SpanId) {
			t.Errorf("%s: %v", name, part)
		}
	}
	if spans["GET /readyz"] != nil {
		t.Error("probes are traced")
	}

	// A collector that is away costs nothing but the traces.
	receiver.Close()
	s = start(t, "", append(exact(talker), "-otlp-endpoint", receiver.URL)...)
	if reply := s.solve("budget=5", asked("Trace.", 2)); reply.Answer == nil {
		t.Errorf("%+v", reply)
	}
	stop(s)
}
