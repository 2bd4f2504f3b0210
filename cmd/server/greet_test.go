package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os/exec"
	"strings"
	"testing"

	"anytime/internal/catalog"
	"anytime/internal/decode"
)

// The line to try is one that a shell takes, with a question that suits the model.
func TestGreeting(t *testing.T) {
	for name, row := range map[string]struct {
		examples []string
		keys     []string
		want     string
	}{
		"any model":  {nil, nil, "What is 17 * 24?"},
		"an example": {[]string{`What's "$HOME" & why?`, "Two?"}, nil, `What's "$HOME" & why?`},
		"keys":       {nil, []string{"me:a-long-secret"}, "What is 17 * 24?"},
	} {
		models, err := catalog.New(catalog.Config{Models: []catalog.ModelConfig{{
			ID: "some", Examples: row.examples, Open: func(context.Context) (decode.Engine, error) { return nil, errors.New("not here") },
		}}})
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		greet(&out, &Config{Keys: row.keys}, &net.TCPAddr{IP: net.IPv4zero, Port: 80}, models)
		models.Close()
		_, line, _ := strings.Cut(out.String(), "\n\n")
		if !strings.HasPrefix(out.String(), "some is ready. Open http://127.0.0.1:80, ") || strings.Contains(line, "$KEY") != (row.keys != nil) {
			t.Errorf("%s: %s", name, out.String())
		}
		body, err := exec.Command("bash", "-c", `curl() { printf %s "${@: -1}"; }; `+line).Output()
		var asked struct{ Problem string }
		if err := errors.Join(err, json.Unmarshal(body, &asked)); err != nil || asked.Problem != row.want {
			t.Errorf("%s: %v: the shell makes %q of %s", name, err, body, line)
		}
	}
}
