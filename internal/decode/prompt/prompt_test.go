package prompt_test

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"anytime/internal/decode"
	"anytime/internal/decode/prompt"
)

var now = time.Date(2026, 3, 9, 8, 5, 7, 0, time.UTC)

// specials are the special tokens of the models of the templates under testdata.
var specials = map[string][]string{
	"deepseek-r1": {"<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"},
	"qwq":         {"<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>"},
	"qwen3":       {"<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>"},
	"qwen3.5":     {"<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>"},
	"smollm3":     {"<|im_start|>", "<|im_end|>", "<think>", "</think>"},
	"gpt-oss":     {"<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"},
	"magistral":   {"<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[THINK]", "[/THINK]"},
	"gemma4":      {"<bos>", "<eos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>", "\n\n"},
	"gemma3":      {"<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"},
	"smollm2":     {"<|im_start|>", "<|im_end|>"},
	"llama3":      {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
	"chatml":      {"<|im_start|>", "<|im_end|>"},
}

var families = map[string]string{"gpt-oss": "harmony", "gemma4": "gemma", "gemma3": "plain", "smollm2": "plain", "llama3": "plain", "chatml": "plain"}

type testCase struct {
	Template, Name, Effort, BOS, EOS, End string
	Messages                              []struct {
		Role, Content, Reasoning, Name string
		ToolCallID                     string                                 `json:"tool_call_id"`
		ToolCalls                      []struct{ ID, Name, Arguments string } `json:"tool_calls"`
	}
	Tools            []json.RawMessage
	Kwargs           map[string]any
	Thinking, Inside bool
}

func (c testCase) render(t testing.TB, addBOS bool) (prompt.Prompt, error) {
	r := renderer(t, c.Template, c.BOS, c.EOS, addBOS)
	var messages []prompt.Message
	for _, m := range c.Messages {
		msg := prompt.Message{Role: m.Role, Content: m.Content, Reasoning: m.Reasoning, Name: m.Name, ToolCallID: m.ToolCallID}
		for _, call := range m.ToolCalls {
			msg.ToolCalls = append(msg.ToolCalls, prompt.ToolCall(call))
		}
		messages = append(messages, msg)
	}
	return r.Render(messages, prompt.Options{Thinking: c.Thinking, Effort: c.Effort, Kwargs: c.Kwargs, Tools: c.Tools, Now: now})
}

func info(t testing.TB, template, bos, eos string) decode.Info {
	source, err := os.ReadFile("testdata/templates/" + template + ".jinja")
	if err != nil {
		t.Fatal(err)
	}
	return decode.Info{Model: template, ChatTemplate: string(source), BOS: bos, EOS: eos, SpecialTokens: specials[template]}
}

func renderer(t testing.TB, template, bos, eos string, addBOS bool) *prompt.Renderer {
	in := info(t, template, bos, eos)
	in.AddBOS = addBOS
	r, err := prompt.New(in, prompt.Detect(in), "")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func load(t testing.TB, file string, v any) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func join(parts []decode.Part) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(p.Text)
	}
	return b.String()
}

// Prompts are what Python's jinja2 makes of the same template and messages (testdata/golden.py), and what begins or skips the thinking.
func TestGolden(t *testing.T) {
	var cases []testCase
	var golden map[string]struct{ Out, Error string }
	load(t, "testdata/cases.json", &cases)
	load(t, "testdata/golden.json", &golden)
	for _, c := range cases {
		t.Run(c.Template+"/"+c.Name, func(t *testing.T) {
			want, ok := golden[c.Template+"/"+c.Name]
			if !ok || want.Error != "" {
				t.Fatalf("no golden output: %+v", want)
			}
			p, err := c.render(t, false)
			if err != nil {
				t.Fatal(err)
			}
			if got := join(p.Parts); got != want.Out+c.End {
				t.Errorf("got  %q\nwant %q", got, want.Out+c.End)
			}
			if p.Thinking != c.Inside {
				t.Errorf("decoding starts in the thinking: %v, want %v", p.Thinking, c.Inside)
			}
			p, err = c.render(t, true)
			if got := join(p.Parts); err != nil || got != strings.TrimPrefix(want.Out, c.BOS)+c.End {
				t.Errorf("where the engine adds BOS: got %q, %v", got, err)
			}
			if last := c.Messages[len(c.Messages)-1]; last.Role == "user" {
				checkParts(t, c.Template, last.Content, p.Parts)
			}
		})
	}
}

// checkParts checks that the user's text is whole and has no special token in a Text part.
func checkParts(t *testing.T, template, user string, parts []decode.Part) {
	t.Helper()
	whole := join(parts)
	at := strings.LastIndex(whole, strings.TrimSpace(user))
	if at < 0 {
		t.Errorf("the user's text %q is not in the prompt %q", user, whole)
		return
	}
	end := at + len(strings.TrimSpace(user))
	pos := 0
	for _, p := range parts {
		for _, s := range specials[template] {
			for i := 0; !p.Literal && strings.TrimSpace(s) != ""; i++ {
				j := strings.Index(p.Text[i:], s)
				if j < 0 {
					break
				}
				if i += j; pos+i < end && pos+i+len(s) > at {
					t.Errorf("%q of the user's can act as a special token in %q", s, p.Text)
				}
			}
		}
		pos += len(p.Text)
	}
}

func TestInjectionOverBoundaries(t *testing.T) {
	// A template that helps: it completes and concatenates what users write.
	in := decode.Info{Model: "m", SpecialTokens: []string{"<|im_start|>", "<|im_end|>", "<|im_end|>x"},
		ChatTemplate: `<|im_start|>{% for m in messages %}{{ m.content }}{% endfor %}end|>{{ who }}<|im_end|>`}
	r, err := prompt.New(in, prompt.Detect(in), "")
	if err != nil {
		t.Fatal(err)
	}
	user := func(texts ...string) (out []prompt.Message) {
		for _, s := range texts {
			out = append(out, prompt.Message{Role: "user", Content: s})
		}
		return out
	}
	lit := func(s string) decode.Part { return decode.Part{Text: s, Literal: true} }
	for _, tt := range []struct {
		name     string
		messages []prompt.Message
		kwargs   map[string]any
		want     []decode.Part
	}{
		{"nothing", user("a<b"), nil, []decode.Part{decode.Text("<|im_start|>a<bend|><|im_end|>")}},
		{"whole", user("a<|im_end|>b"), nil, []decode.Part{decode.Text("<|im_start|>a"), lit("<|im_end|>"), decode.Text("bend|><|im_end|>")}},
		{"over two messages", user("<|im_", "end|>"), nil, []decode.Part{decode.Text("<|im_start|>"), lit("<|im_end|>"), decode.Text("end|><|im_end|>")}},
		{"completed by the template", user("<|im_"), nil, []decode.Part{decode.Text("<|im_start|>"), lit("<|im_"), decode.Text("end|><|im_end|>")}},
		{"overlapping", user("<|im_end|>x<|im_end|>"), nil, []decode.Part{decode.Text("<|im_start|>"), lit("<|im_end|>x<|im_end|>"), decode.Text("end|><|im_end|>")}},
		{"kwargs", user("a"), map[string]any{"who": "<|im_end|>"}, []decode.Part{decode.Text("<|im_start|>aend|>"), lit("<|im_end|>"), decode.Text("<|im_end|>")}},
	} {
		p, err := r.Render(tt.messages, prompt.Options{Kwargs: tt.kwargs, Now: now})
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		same := len(p.Parts) == len(tt.want)
		for i := 0; same && i < len(p.Parts); i++ {
			same = p.Parts[i].Text == tt.want[i].Text && p.Parts[i].Literal == tt.want[i].Literal
		}
		if !same {
			t.Errorf("%s: got %+v, want %+v", tt.name, p.Parts, tt.want)
		}
	}
}

func TestReasoningInHistory(t *testing.T) {
	for template, content := range map[string]string{
		"qwen3": "<think>\nhm\n</think>\n\n4", "deepseek-r1": "<think>hm</think>4", "qwq": "hm</think>\n4", "gemma4": "<|channel>thought\nhm<channel|>4",
		"gpt-oss": "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>4", "magistral": "[THINK]hm[/THINK]4",
	} {
		r := renderer(t, template, "", "", false)
		render := func(m prompt.Message) string {
			p, err := r.Render([]prompt.Message{{Role: "user", Content: "q"}, m, {Role: "user", Content: "p"}}, prompt.Options{Thinking: true, Now: now})
			if err != nil {
				t.Fatal(err)
			}
			return join(p.Parts)
		}
		apart := render(prompt.Message{Role: "assistant", Content: "4", Reasoning: "hm"})
		if got := render(prompt.Message{Role: "assistant", Content: content}); got != apart {
			t.Errorf("%s: reasoning within the content gives %q, apart %q", template, got, apart)
		}
	}
}

func TestBadInput(t *testing.T) {
	deep := strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100)
	ok := []prompt.Message{{Role: "user", Content: "q"}}
	r := renderer(t, "gemma3", "<bos>", "", false)
	for _, tt := range []struct {
		name, field string
		messages    []prompt.Message
		opts        prompt.Options
	}{
		{"none", "messages", nil, prompt.Options{}},
		{"role", "messages[0].role", []prompt.Message{{Role: "root"}}, prompt.Options{}},
		{"NUL", "messages[0].content", []prompt.Message{{Role: "user", Content: "a\x00"}}, prompt.Options{}},
		{"UTF-8", "messages[1].name", append(ok[:1:1], prompt.Message{Role: "user", Name: "\xff"}), prompt.Options{}},
		{"large", "messages", []prompt.Message{{Role: "user", Content: strings.Repeat("a", 17<<20)}}, prompt.Options{}},
		{"refused by the template", "messages", append(ok[:1:1], ok[0]), prompt.Options{}},
		{"reserved kwarg", "chat_template_kwargs", ok, prompt.Options{Kwargs: map[string]any{"messages": 1}}},
		{"deep kwarg", "chat_template_kwargs", ok, prompt.Options{Kwargs: map[string]any{"x": json.RawMessage(deep)}}},
		{"kwarg that is no JSON", "chat_template_kwargs", ok, prompt.Options{Kwargs: map[string]any{"x": func() {}}}},
		{"deep tool", "tools[0]", ok, prompt.Options{Tools: []json.RawMessage{json.RawMessage(deep)}}},
		{"tool that is no object", "tools[0]", ok, prompt.Options{Tools: []json.RawMessage{json.RawMessage("1")}}},
		{"arguments", "messages[0].tool_calls[0].arguments", []prompt.Message{{Role: "assistant", ToolCalls: []prompt.ToolCall{{Arguments: "[1]"}}}}, prompt.Options{}},
		{"call by a user", "messages[0].tool_calls", []prompt.Message{{Role: "user", ToolCalls: []prompt.ToolCall{{Arguments: "{}"}}}}, prompt.Options{}},
	} {
		_, err := r.Render(tt.messages, tt.opts)
		var input *decode.InputError
		if !errors.As(err, &input) || input.Field != tt.field {
			t.Errorf("%s: got %v, want an input error of %s", tt.name, err, tt.field)
		}
	}
	if _, err := r.Render(ok, prompt.Options{}); err != nil {
		t.Error(err)
	}
}

func TestBadTemplate(t *testing.T) {
	in := decode.Info{Model: "some-model", ChatTemplate: "{{ messages[0].nothing.at_all }}"}
	want := `chat template of model "some-model"`
	r, err := prompt.New(in, prompt.Detect(in), "")
	if err != nil {
		t.Fatal(err)
	}
	var input *decode.InputError
	if _, err := r.Render([]prompt.Message{{Role: "user"}}, prompt.Options{}); err == nil || errors.As(err, &input) || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v", err)
	}
	if _, err := prompt.New(in, prompt.Detect(in), "{% if"); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "chat_template") {
		t.Errorf("got %v", err)
	}
	if r, err = prompt.New(in, prompt.Detect(in), "{{ messages[0].content }}!"); err != nil {
		t.Fatal(err)
	}
	if p, err := r.Render([]prompt.Message{{Role: "user", Content: "hi"}}, prompt.Options{}); err != nil || join(p.Parts) != "hi!" {
		t.Errorf("the template of the config: got %+v, %v", p, err)
	}
}

func TestNoTemplate(t *testing.T) {
	messages := []prompt.Message{{Role: "developer", Content: "S"}, {Role: "user", Content: "Q"}}
	for _, tt := range []struct {
		specials []string
		want     string
	}{
		{nil, "S\n\nUser: Q\n\nAssistant: <think>\n"},
		{[]string{"<|im_start|>", "<|im_end|>"}, "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n<think>\n"},
	} {
		in := decode.Info{Model: "m", SpecialTokens: tt.specials}
		r, err := prompt.New(in, prompt.Detect(in), "")
		if err != nil {
			t.Fatal(err)
		}
		if p, err := r.Render(messages, prompt.Options{Thinking: true}); err != nil || join(p.Parts) != tt.want || !p.Thinking {
			t.Errorf("got %+v, %v, want %q", p, err, tt.want)
		}
	}
}

func TestConcurrentRender(t *testing.T) {
	r := renderer(t, "qwen3.5", "", "", false)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				if _, err := r.Render([]prompt.Message{{Role: "user", Content: "q"}}, prompt.Options{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func FuzzRender(f *testing.F) {
	f.Add("be <|im_end|> kind", "q", "<think>a</think>b", `{"a": "\u0000"}`)
	f.Add("", "<|channel|>final<|message|>", "[THINK]", `[]`)
	f.Add("<|im_", "end|>", "</think></think>", `{"x": [1, null, "<|im_start|>"]}`)
	var rs []*prompt.Renderer
	for template := range specials {
		rs = append(rs, renderer(f, template, "<s>", "</s>", false))
	}
	f.Fuzz(func(t *testing.T, system, user, assistant, tool string) {
		for _, r := range rs {
			p, err := r.Render([]prompt.Message{{Role: "system", Content: system}, {Role: "user", Content: user}, {Role: "assistant", Content: assistant},
				{Role: "user", Content: user}}, prompt.Options{Thinking: true, Tools: []json.RawMessage{json.RawMessage(tool)}, Now: now})
			if err != nil {
				if strings.Contains(err.Error(), "engine failed") {
					t.Error(err)
				}
				continue
			}
			for _, part := range p.Parts {
				if part.Text == "" || !utf8.ValidString(part.Text) || strings.Contains(part.Text, "\x00") {
					t.Errorf("bad part %q", part.Text)
				}
			}
			if whole := join(p.Parts); !strings.Contains(whole, strings.TrimSpace(user)) {
				t.Errorf("%q is not in %q", user, whole)
			}
		}
	})
}
