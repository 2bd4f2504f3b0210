package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"anytime/internal/anytime"
	"anytime/internal/server/sse"
)

// errEnough ends a stream of which its reader has seen what it wanted.
var errEnough = errors.New("enough was said")

// client keeps a connection for each stream of the largest benchmark.
var client = &http.Client{Transport: &http.Transport{MaxIdleConns: 2000, MaxIdleConnsPerHost: 2000}}

// post sends a body and hands the reply's body to use.
func post(ctx context.Context, url string, body any, use func(io.Reader) error) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	r, err := client.Do(req)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		data, _ := io.ReadAll(r.Body)
		return fmt.Errorf("%s: status %d: %s", url, r.StatusCode, data)
	}
	return use(r.Body)
}

// stream posts a body and calls each with the events that come, until it returns errEnough, which is no error, or another.
func stream(ctx context.Context, url string, body any, each func(sse.Event) error) error {
	err := post(ctx, url, body, func(r io.Reader) error {
		for e, err := range sse.Read(r) {
			if err == nil {
				err = each(e)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// said is how many tokens of thinking a stream has brought with an event; 0 for an event of another kind.
func said(e sse.Event) int {
	var text anytime.TextData
	if e.Type != anytime.EventThinking || json.Unmarshal(e.Data, &text) != nil {
		return 0
	}
	return text.Tokens
}

// problem is new each time, so that no thought of it is cached. SmolLM2's greedy thought about it does not end.
func problem() string {
	return fmt.Sprintf("Write down all whole numbers, one a line, that follow %d.", time.Now().UnixNano())
}

var common = strings.Fields("time year people way day man thing woman life child world school state family student group country problem hand part " +
	"place case week company system program question work government number night point home water room mother area money story fact")

// words is a text of n tokens that no cache has seen: each of the words is one.
func words(n int) string {
	var text strings.Builder
	for range n {
		text.WriteString(" " + common[rand.IntN(len(common))])
	}
	return text.String()
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// postJSON posts a body and decodes the reply.
func postJSON(ctx context.Context, url string, body, reply any) error {
	return post(ctx, url, body, func(r io.Reader) error { return json.NewDecoder(r).Decode(reply) })
}
