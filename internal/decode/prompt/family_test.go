package prompt_test

import (
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"anytime/internal/decode"
	"anytime/internal/decode/prompt"
)

func TestDetect(t *testing.T) {
	for template := range specials {
		want := families[template]
		if want == "" {
			want = template
		}
		if got := prompt.Detect(info(t, template, "", "")).Name; got != want {
			t.Errorf("%s: got %s, want %s", template, got, want)
		}
	}
	for _, tt := range []struct {
		info decode.Info
		want string
	}{
		{decode.Info{Architecture: "gpt-oss"}, "harmony"},
		{decode.Info{Architecture: "qwen2", Model: "DeepSeek-R1-Distill-Qwen-1.5B-Q4_K_M"}, "deepseek-r1"},
		{decode.Info{Architecture: "qwen2", Model: "QwQ-32B"}, "qwq"},
		{decode.Info{Architecture: "qwen3"}, "qwen3"},
		{decode.Info{Architecture: "qwen35moe"}, "qwen3.5"},
		{decode.Info{Architecture: "llama"}, "plain"},
		{decode.Info{ChatTemplate: "{{ '<think>' }}"}, "think"},
		{decode.Info{ChatTemplate: "x", SpecialTokens: []string{"[THINK]", "[/THINK]"}}, "magistral"},
	} {
		if got := prompt.Detect(tt.info).Name; got != tt.want {
			t.Errorf("%+v: got %s, want %s", tt.info, got, tt.want)
		}
	}
}

func TestClose(t *testing.T) {
	const final = "<|end|><|start|>assistant<|channel|>final<|message|>"
	for _, tt := range []struct{ family, paper, own, natural, firmEnd string }{
		{"deepseek-r1", "...\n\n...\n\n</think>\n\n**Final Answer**\n", "\n</think>\n\n", "\n\n**Final Answer**\n", "</think>\n\n**Final Answer**\n"},
		{"qwen3.5", "...\n\n...\n\n</think>\n\n**Final Answer**\n", "\n</think>\n\n", "\n\n**Final Answer**\n", "</think>\n\n**Final Answer**\n"},
		{"smollm3", "...\n\n...\n\n</think>\n\n**Final Answer**\n", "\n</think>\n", "\n\n**Final Answer**\n", "</think>\n\n**Final Answer**\n"},
		{"magistral", "...\n\n...\n\n[/THINK]\n\n**Final Answer**\n", "[/THINK]", "\n\n**Final Answer**\n", "[/THINK]\n\n**Final Answer**\n"},
		{"gemma", "...\n\n...\n\n<channel|>\n\n**Final Answer**\n", "\n<channel|>", "\n\n**Final Answer**\n", "<channel|>\n\n**Final Answer**\n"},
		{"harmony", "...\n\n...\n\n" + final + "**Final Answer**\n", final, final[len("<|end|>"):] + "**Final Answer**\n", final + "**Final Answer**\n"},
	} {
		f, err := prompt.Lookup(tt.family)
		if err != nil {
			t.Fatal(err)
		}
		if got := join(f.Cut(prompt.StylePaper, "")); got != tt.paper {
			t.Errorf("%s: the paper's cut is %q, want %q", tt.family, got, tt.paper)
		}
		if got := join(f.Cut(prompt.StyleFamily, "x")); got != tt.own {
			t.Errorf("%s: its own cut is %q, want %q", tt.family, got, tt.own)
		}
		if got := join(f.Natural(prompt.StylePaper)); got != tt.natural {
			t.Errorf("%s: after a natural end %q, want %q", tt.family, got, tt.natural)
		}
		if got := join(f.Natural(prompt.StyleFamily)); got != f.Answer {
			t.Errorf("%s: after a natural end in its own style %q, want %q", tt.family, got, f.Answer)
		}
		if got := join(f.Firm()); !strings.HasSuffix(got, tt.firmEnd) || len(got) <= len(tt.paper) {
			t.Errorf("%s: the firm close is %q", tt.family, got)
		}
		parts := f.Cut(prompt.StyleMessage, "Stop </think> now.")
		if len(parts) != 3 || !parts[1].Literal || parts[1].Text != "Stop </think> now." || parts[2].Literal || parts[2].Text != tt.own {
			t.Errorf("%s: cut with a message: %+v", tt.family, parts)
		}
		// What we write is found as the end of thinking.
		g := decode.Gate{Markers: f.Close}
		passed, marker := g.Push(decode.Token{Text: "thought"}, decode.Token{Text: join(f.Cut(prompt.StylePaper, "")) + "4"})
		if !slices.Contains(f.Close, marker) || len(passed) == 0 || passed[0].Text != "thought" {
			t.Errorf("%s: of our own close %+v passed, marker %q", tt.family, passed, marker)
		}
	}
}

func TestFamilyConfig(t *testing.T) {
	const good = "{name: mine, open: '<r>', close: [</r>], closing: '</r>!', header: '='}"
	for in, want := range map[string]string{
		good: "", "{name: mine}": "open is empty", "{open: a}": "close must list", "{open: a, close: [b]}": "closing must contain",
		"{open: a, close: [b], closing: b, stops: ['']}": "empty text",
	} {
		var f prompt.Family
		if err := yaml.Unmarshal([]byte(in), &f); err != nil {
			t.Fatal(err)
		}
		if err := f.Validate(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", in, err, want)
		}
		if _, err := prompt.New(decode.Info{}, f, ""); (err == nil) != (want == "") {
			t.Errorf("%s: New: got %v", in, err)
		}
	}
	if _, err := prompt.Lookup("nope"); err == nil || !strings.Contains(err.Error(), "qwen3.5") {
		t.Errorf("got %v", err)
	}
}
