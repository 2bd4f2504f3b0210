package endpoint_test

import (
	"net"
	"strings"
	"testing"

	"anytime/internal/decode/endpoint"
)

func TestParse(t *testing.T) {
	for _, row := range []struct{ spec, model, url, id, says string }{
		{"ollama:qwen3:8b", "qwen3:8b", "", "qwen3-8b", ""},
		{"ollama:qwen3:latest", "qwen3:latest", "", "qwen3", ""},
		{"ollama:hf.co/a/b:Q4_0@http://lab:11434", "hf.co/a/b:Q4_0", "http://lab:11434", "hf.co/a/b-Q4_0", ""},
		{"openai:Qwen/Qwen3-8B@https://lab/v1", "Qwen/Qwen3-8B", "https://lab/v1", "Qwen/Qwen3-8B", ""},
		{"openai:a@b@http://lab:80", "a@b", "http://lab:80", "ab", ""},
		{"ollama:", "", "", "", "names no model"},
		{"openai:@http://lab", "", "", "", "names no model"},
		{"openai:m", "m", "", "", "URL is missing"},
		{"openai:m@ftp://lab", "m", "ftp://lab", "", "must be one such as http://"},
		{"vllm:m@http://lab", "m", "http://lab", "", `kind is "vllm": it must be ollama or openai`},
	} {
		c, err := endpoint.Parse(row.spec)
		switch {
		case row.says != "":
			if err == nil || !strings.Contains(err.Error(), row.says) {
				t.Errorf("%s: %v, should say %s", row.spec, err, row.says)
			}
		case err != nil || c.Model != row.model || c.URL != row.url || c.ID() != row.id || c.String() != row.spec:
			t.Errorf("%s: %+v, id %q, %v", row.spec, c, c.ID(), err)
		}
	}
	for text, want := range map[string]bool{"ollama:x": true, "openai:x@http://y": true, "models/ollama:x.gguf": false, "hf.co/a/b:Q4_0": false, "ollama": false} {
		if endpoint.IsSpec(text) != want {
			t.Errorf("%s: a spec %v, want %v", text, !want, want)
		}
	}
}

func TestValidate(t *testing.T) {
	for says, c := range map[string]endpoint.Config{
		"model is missing":              {Kind: endpoint.Ollama},
		"not for Ollama":                {Kind: endpoint.Ollama, Model: "m", Key: "k"},
		"pull, keep_alive and options":  {Kind: endpoint.OpenAI, URL: "http://lab", Pull: true},
		"must be completions, chat, or": {Kind: endpoint.OpenAI, URL: "http://lab", API: "responses"},
		"must not be negative":          {Kind: endpoint.Ollama, Model: "m", Sequences: -1},
	} {
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, should say %s", err, says)
		}
		if _, err := c.Open(t.Context()); err == nil {
			t.Errorf("%+v was opened", c)
		}
	}
}

func TestReach(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := endpoint.Config{Kind: endpoint.OpenAI, URL: "http://" + l.Addr().String()}
	if err := c.Reach(t.Context()); err != nil {
		t.Error(err)
	}
	l.Close()
	if err := c.Reach(t.Context()); err == nil {
		t.Error("nobody listens, and yet it was reached")
	}
}
