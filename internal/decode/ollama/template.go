package ollama

import (
	"context"
	"strings"

	"github.com/ollama/ollama/api"
)

// Contents of the chats that are rendered to learn the template: none can be part of what is around them.
const (
	system, user, assistant, again = "XqSystemZ", "XqUserZ", "XqAssistantZ", "XqAgainZ"
)

// renderer renders a chat with the model's own template; "" if the server cannot.
type renderer func(ctx context.Context, messages []api.Message, think *bool) (string, error)

// form is what a template puts around messages: in a chat of one question, after an answer, with a system message.
type form struct {
	begin, end             string // around the only question; end opens the answer
	toAnswer, toQuestion   string // between a question and its answer, between that and the next question
	systemBegin, systemEnd string // around a system message, the latter up to the first question
	system                 bool   // there is such a place
}

// learn makes a Jinja template that renders as the model's own does: chats of user and assistant, with a system message
// first. A system message that the model's template would put elsewhere goes before the first question. "" if the server cannot render, or the model has no
// template.
func learn(ctx context.Context, render renderer, thinks bool) (string, error) {
	var forms []form
	think := []*bool{nil}
	if thinks {
		yes, no := true, false
		think = []*bool{&yes, &no}
	}
	for _, t := range think {
		f, ok, err := learnForm(ctx, render, t)
		if err != nil || !ok {
			return "", err
		}
		forms = append(forms, f)
	}
	if forms[0].begin+forms[0].end == "" {
		return "", nil
	}
	if len(forms) == 1 || forms[0] == forms[1] {
		return forms[0].jinja(), nil
	}
	return "{% if enable_thinking %}" + forms[0].jinja() + "{% else %}" + forms[1].jinja() + "{% endif %}", nil
}

func learnForm(ctx context.Context, render renderer, think *bool) (f form, ok bool, err error) {
	ask := func(contents ...string) (around []string, err error) {
		messages := make([]api.Message, len(contents))
		for i, c := range contents {
			role := "user"
			switch c {
			case system:
				role = "system"
			case assistant:
				role = "assistant"
			}
			messages[i] = api.Message{Role: role, Content: c}
		}
		text, err := render(ctx, messages, think)
		if err != nil {
			return nil, err
		}
		for _, c := range contents { // in this order, each once
			before, after, found := strings.Cut(text, c)
			if !found || strings.Contains(after, c) {
				return nil, nil
			}
			around, text = append(around, before), after
		}
		return append(around, text), nil
	}
	one, err := ask(user)
	if err != nil || one == nil {
		return f, false, err
	}
	f.begin, f.end = one[0], one[1]
	turns, err := ask(user, assistant, again)
	if err != nil {
		return f, false, err
	}
	if turns != nil {
		f.begin, f.toAnswer, f.toQuestion = turns[0], turns[1], turns[2]
	} else {
		f.toAnswer, f.toQuestion = f.end, f.begin
	}
	with, err := ask(system, user, assistant, again)
	if err != nil {
		return f, false, err
	}
	if with != nil {
		f.system, f.systemBegin, f.systemEnd = true, with[0], with[1]
	}
	return f, true, nil
}

// jinja writes the form as a template.
func (f form) jinja() string {
	quote := func(s string) string {
		return `{{ "` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\r", `\r`, "\t", `\t`).Replace(s) + `" }}`
	}
	content := "{{ m.content }}"
	open := "{% if loop.first %}" + quote(f.begin) + "{% endif %}"
	systemTurn := open + content + quote("\n\n")
	if f.system {
		systemTurn = quote(f.systemBegin) + content + quote(f.systemEnd)
	}
	return "{% for m in messages %}" +
		"{% if m.role == 'system' %}{% if not loop.first %}{{ raise_exception('a system message must be the first') }}{% endif %}" + systemTurn +
		"{% elif m.role == 'assistant' %}" + quote(f.toAnswer) + content +
		"{% else %}{% if loop.first %}" + quote(f.begin) +
		"{% elif messages[loop.index0 - 1].role == 'assistant' %}" + quote(f.toQuestion) +
		"{% elif messages[loop.index0 - 1].role != 'system' %}" + quote("\n\n") + "{% endif %}" + content +
		"{% endif %}{% endfor %}" + quote(f.end)
}
