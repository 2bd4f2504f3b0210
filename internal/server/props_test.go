package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"anytime/api"
	"anytime/internal/decode"
	"anytime/internal/decode/decodetest"
	"anytime/internal/server"
)

func TestLlamaServerPaths(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	p := get[api.Props](b, "GET", "/props?model=scripted", "")
	if p.ModelAlias != "scripted" || p.ChatTemplate == "" || p.DefaultGenerationSettings.Params.Temperature != 0.6 {
		t.Errorf("%+v", p)
	}
	type tokens struct{ Tokens []int32 }
	type pieces struct {
		Tokens []struct {
			ID    int32
			Piece string
		}
	}
	const text = "one two ä <think>"
	plain := get[tokens](b, "POST", "/tokenize", `{"content": "`+text+`"}`).Tokens
	whole := ""
	for i, p := range get[pieces](b, "POST", "/tokenize", `{"content": "`+text+`", "with_pieces": true}`).Tokens {
		whole += p.Piece
		if p.ID != plain[i] {
			t.Errorf("token %d is %d, or %d", i, p.ID, plain[i])
		}
	}
	if whole != text {
		t.Errorf("pieces %q", whole)
	}
	ids := strings.ReplaceAll(fmt.Sprint(plain), " ", ",")
	if r := get[api.DetokenizeReply](b, "POST", "/detokenize", `{"tokens": `+ids+`}`); r.Content != text {
		t.Errorf("%q", r.Content)
	}
	if r := get[api.DetokenizeReply](b, "POST", "/detokenize", `{"tokens": []}`); r.Content != "" {
		t.Errorf("%q", r.Content)
	}
	if r := get[api.TemplateReply](b, "POST", "/apply-template", chat(`"think": false`)); !strings.Contains(r.Prompt, "How many?") {
		t.Errorf("%q", r.Prompt)
	}
	b.refused(404, "model_not_found", "GET", "/props?model=x", "")
	b.refused(400, "invalid_value", "POST", "/tokenize", `{"content": "a\u0000b"}`, "content", "NUL")
	b.refused(400, "invalid_value", "POST", "/detokenize", `{"tokens": [2147483647]}`, "tokens")
	b.refused(400, "invalid_value", "POST", "/detokenize", `{"tokens": [-1]}`, "tokens[0]")
	b.refused(405, "method_not_allowed", "POST", "/props", `{}`)
}

// crammed is an engine for which every text is too long.
type crammed struct{ decode.Engine }

func (crammed) Tokenize(context.Context, ...decode.Part) ([]decode.Token, error) {
	return nil, decode.ErrContextFull
}

func TestTokenizeTooLong(t *testing.T) {
	b := newSite(t, decodetest.Options{}, func(c *server.Config) {
		m := *c.Models.(models).model
		m.Engine = crammed{m.Engine}
		c.Models = models{&m}
	})
	var e api.Error
	status, reply := b.call("POST", "/tokenize", `{"content": "one"}`)
	if err := json.Unmarshal(reply, &e); err != nil || status != 400 || *e.Error.Param != "content" || !strings.Contains(e.Error.Message, "65536 tokens") {
		t.Errorf("status %d, %s", status, reply)
	}
}
