package ollama_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/ollama/ollama/api"

	"anytime/internal/decode"
	"anytime/internal/decode/ollama"
	"anytime/internal/decode/prompt"
)

// What is learned of templates as Ollama's models have them renders chats as they do.
func TestLearn(t *testing.T) {
	user := func(s string) prompt.Message { return prompt.Message{Role: "user", Content: s} }
	assistant := func(s string) prompt.Message { return prompt.Message{Role: "assistant", Content: s} }
	system := func(s string) prompt.Message { return prompt.Message{Role: "system", Content: s} }
	chats := [][]prompt.Message{
		{user("one \\ \"two\" {{ x }}")},
		{user("1"), assistant("2"), user("3")},
		{system("s"), user("1")},
		{system("s"), user("1"), assistant("2"), user("3"), assistant("4"), user("5")},
	}
	for name, test := range map[string]struct {
		template string
		thinks   bool
		chats    int // of those above, the first that it is learned to render exactly; all if 0
	}{
		"chatml":                        {"{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n", false, 0},
		"llama3":                        {"<s>{{ range .Messages }}<|h|>{{ .Role }}<|/h|>\n\n{{ .Content }}<|eot|>{{ end }}<|h|>assistant<|/h|>\n\n", false, 0},
		"thinks":                        {"{{ range $i, $m := .Messages }}<|{{ .Role }}|>{{ .Content }}{{ if and (eq .Role \"user\") (eq $i $.Last) }}{{ if $.Think }} /think{{ else }} /no_think{{ end }}{{ end }}\t\"\n{{ end }}<|assistant|>{{ if not .Think }}<think>\n\n</think>{{ end }}", true, 0},
		"a default system message":      {"{{ if .System }}{{ else }}<|system|>Be good.\n{{ end }}{{ range .Messages }}<|{{ .Role }}|>{{ .Content }}\n{{ end }}<|assistant|>", false, 0},
		"no place for a system message": {"{{ range .Messages }}{{ if ne .Role \"system\" }}<|{{ .Role }}|>{{ .Content }}\n{{ end }}{{ end }}<|assistant|>", false, 2},
		"the last question only":        {"Q: {{ .Question }} A:", false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			parsed, err := template.New("").Parse(test.template)
			if err != nil {
				t.Fatal(err)
			}
			render := func(_ context.Context, messages []api.Message, think *bool) (string, error) {
				var out strings.Builder
				last := len(messages) - 1
				err := parsed.Execute(&out, map[string]any{
					"Messages": messages, "Last": last, "Question": messages[last].Content, "Think": think != nil && *think,
					"System": slices.ContainsFunc(messages, func(m api.Message) bool { return m.Role == "system" }),
				})
				return out.String(), err
			}
			jinja, err := ollama.Learn(t.Context(), render, test.thinks)
			if err != nil {
				t.Fatal(err)
			}
			family := prompt.Family{Name: "x", Open: "<think>\n", Close: []string{"</think>"}, Closing: "</think>", Skip: ""}
			r, err := prompt.New(decode.Info{}, family, jinja)
			if err != nil {
				t.Fatalf("%v\n%s", err, jinja)
			}
			for i, chat := range chats {
				if test.chats > 0 && i >= test.chats {
					break
				}
				for _, think := range []bool{true, false} {
					p, err := r.Render(chat, prompt.Options{Thinking: think, Now: time.Unix(0, 0)})
					if err != nil {
						t.Fatal(err)
					}
					got := ""
					for _, part := range p.Parts {
						got += part.Text
					}
					var messages []api.Message
					for _, m := range chat {
						messages = append(messages, api.Message{Role: m.Role, Content: m.Content})
					}
					want, err := render(t.Context(), messages, &think)
					if err != nil {
						t.Fatal(err)
					}
					if think {
						want += family.Open // which Render adds
					}
					if got != want {
						t.Errorf("thinking %v:\n got %q\nwant %q", think, got, want)
					}
				}
			}
		})
	}
	for name, text := range map[string]string{"nothing around": "{{ range .Messages }}{{ .Content }}{{ end }}", "no chat at all": "x"} {
		jinja, err := ollama.Learn(t.Context(), func(_ context.Context, messages []api.Message, _ *bool) (string, error) {
			var out strings.Builder
			err := template.Must(template.New("").Parse(text)).Execute(&out, map[string]any{"Messages": messages})
			return out.String(), err
		}, false)
		if jinja != "" || err != nil {
			t.Errorf("%s: learned %q, %v", name, jinja, err)
		}
	}
}
