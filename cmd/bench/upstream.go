package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// paced serves a model of OpenAI's kind which thinks at a steady pace, a token every gap, for as many as ask, and answers at once. Its
// tokens are the times, in microseconds, at which it says them. So what is measured in front of it is the server alone.
func paced(ctx context.Context, gap time.Duration, use func(address string) error) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"object":"list","data":[{"id":"bench","object":"model","owned_by":"bench","max_model_len":8192}]}`)
	})
	mux.HandleFunc("POST /v1/completions", func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Prompt    string
			MaxTokens int `json:"max_tokens"`
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		control := http.NewResponseController(w)
		say := func(text, finish string) bool {
			fmt.Fprintf(w, "data: {\"choices\":[{\"index\":0,\"text\":%q,\"finish_reason\":%s}]}\n\n", text, finish)
			return control.Flush() == nil
		}
		wait := gap
		if strings.Contains(body.Prompt, "</think>") || body.MaxTokens == 1 { // an answer, or a probe
			wait, body.MaxTokens = 0, min(body.MaxTokens, 4)
		}
		tick := time.NewTicker(max(wait, time.Nanosecond))
		defer tick.Stop()
		for range body.MaxTokens {
			select {
			case <-tick.C:
			case <-r.Context().Done():
				return
			}
			if !say(" "+strconv.FormatInt(time.Now().UnixMicro(), 10), "null") {
				return
			}
		}
		say("", `"length"`)
		fmt.Fprint(w, "data: [DONE]\n\n")
	})
	web := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	served := make(chan struct{})
	go func() {
		_ = web.Serve(l) // until it is closed
		close(served)
	}()
	defer func() {
		web.Close()
		<-served
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return err
	}
	return use("http://localhost:" + port) // by a name: the server's own address is the one with a number
}

// lateness returns how late the tokens of a paced text are now, in milliseconds.
func lateness(text string) (late []float64) {
	now := time.Now()
	for word := range strings.FieldsSeq(text) {
		if at, err := strconv.ParseInt(word, 10, 64); err == nil && at > math.MaxInt32 {
			late = append(late, ms(now.Sub(time.UnixMicro(at))))
		}
	}
	return late
}
