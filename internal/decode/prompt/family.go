package prompt

import (
	"fmt"
	"slices"
	"strings"

	"anytime/internal/decode"
)

// Family is how a family of models thinks, stops thinking and answers. The texts are read with special tokens.
type Family struct {
	Name string `yaml:"name"`
	// Open begins the thinking. It is appended to a prompt whose template does not open the thinking itself.
	Open string `yaml:"open"`
	// Close are the texts by which the model ends its thinking; the first is also what we write.
	Close []string `yaml:"close"`
	// Closing ends a thought that was cut, in the family's own form; it contains Close[0] and Answer.
	Closing string `yaml:"closing"`
	// Answer stands between Close and the answer: another channel's header. Most families need none.
	Answer string `yaml:"answer,omitempty"`
	// Skip makes the model answer without a thought, where its template has no way to: an empty thought.
	Skip string `yaml:"skip,omitempty"`
	// Header is what the paper's suffixes put before the answer.
	Header string `yaml:"header,omitempty"`
	// Stops end the answer.
	Stops []string `yaml:"stops,omitempty"`
	// Stray are further texts that belong neither in a thought nor in an answer.
	Stray []string `yaml:"stray,omitempty"`
}

// Style is how a thought is closed.
type Style string

// The styles.
const (
	StylePaper   Style = "paper"   // the suffixes of arXiv 2505.13438, in which training rewards answers
	StyleFamily  Style = "family"  // the family's own close, then the model answers as in any chat
	StyleMessage Style = "message" // a text of the request's inside the thought, then the family's own close
)

const (
	paperCut    = "...\n\n...\n\n"
	paperHeader = "\n\n**Final Answer**\n"
	firmCut     = "\n\nI have thought enough. Without any more reasoning, this is my final answer.\n"
)

// Cut returns what closes a thought that was cut and makes the model answer. message is used by StyleMessage only.
func (f Family) Cut(style Style, message string) []decode.Part {
	switch {
	case style == StylePaper:
		return text(paperCut + f.Close[0] + f.Answer + f.Header)
	case style == StyleMessage && message != "":
		return []decode.Part{decode.Text("\n\n"), {Text: message, Literal: true}, decode.Text(f.Closing)}
	}
	return text(f.Closing)
}

// Natural returns what follows a thought that the model closed itself.
func (f Family) Natural(style Style) []decode.Part {
	if style == StylePaper {
		return text(f.Answer + f.Header)
	}
	return text(f.Answer)
}

// Firm closes a thought more firmly than Cut: for when the model went on reasoning in its answer.
func (f Family) Firm() []decode.Part { return text(firmCut + f.Close[0] + f.Answer + f.Header) }

func text(s string) []decode.Part {
	if s == "" {
		return nil
	}
	return []decode.Part{decode.Text(s)}
}

// Reasoning are the marks of thinking. None of them belongs in an answer: one that comes shows that reasoning has leaked into it.
func (f Family) Reasoning() []string {
	return slices.Concat(f.Close, f.Stray, []string{strings.TrimSpace(f.Open)})
}

// Validate checks a family from the config.
func (f Family) Validate() error {
	switch {
	case strings.TrimSpace(f.Open) == "":
		return fmt.Errorf("family %q: open is empty; it must be the text that begins the thinking, such as \"<think>\\n\"", f.Name)
	case len(f.Close) == 0 || slices.Contains(f.Close, ""):
		return fmt.Errorf("family %q: close must list the texts that end the thinking, such as \"</think>\"", f.Name)
	case !strings.Contains(f.Closing, f.Close[0]+f.Answer):
		return fmt.Errorf("family %q: closing must contain %q, the first of close and answer", f.Name, f.Close[0]+f.Answer)
	case slices.Contains(f.Stops, "") || slices.Contains(f.Stray, ""):
		return fmt.Errorf("family %q: stops and stray must not contain an empty text", f.Name)
	}
	return nil
}

// thinkTags is a family that thinks between <think> and </think>.
func thinkTags(name, closing, skip string) Family {
	return Family{Name: name, Open: "<think>\n", Close: []string{"</think>"}, Closing: closing, Skip: skip, Header: paperHeader}
}

const (
	channel      = "<|channel|>"
	finalChannel = "<|start|>assistant<|channel|>final<|message|>"
	emptyThink   = "<think>\n\n</think>\n\n"
)

var families = []Family{
	thinkTags("deepseek-r1", "\n</think>\n\n", emptyThink),
	thinkTags("qwq", "\n</think>\n\n", emptyThink),
	// The sentence of the Qwen3 technical report (arXiv 2505.09388, section 4.4), on which these models cut their own thoughts.
	thinkTags("qwen3", "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now.\n</think>\n\n", emptyThink),
	thinkTags("qwen3.5", "\n</think>\n\n", emptyThink),
	thinkTags("smollm3", "\n</think>\n", "<think>\n\n</think>\n"),
	{
		Name: "harmony", Open: channel + "analysis<|message|>", Close: []string{"<|end|>"}, Answer: finalChannel,
		Closing: "<|end|>" + finalChannel, Skip: channel + "final<|message|>", Header: "**Final Answer**\n",
		Stops: []string{"<|return|>", "<|end|>", "<|call|>"},
		Stray: []string{finalChannel, channel + "final<|message|>", "<|start|>assistant" + channel + "analysis<|message|>", channel + "commentary<|message|>",
			"<|start|>assistant", "<|start|>", "<|message|>", channel},
	},
	{
		Name: "magistral", Open: "[THINK]", Close: []string{"[/THINK]"}, Closing: "[/THINK]", Skip: "[THINK][/THINK]", Header: paperHeader,
	},
	{
		Name: "gemma", Open: "<|channel>thought\n", Close: []string{"<channel|>"}, Closing: "\n<channel|>", Skip: "<|channel>thought\n<channel|>",
		Header: paperHeader, Stops: []string{"<turn|>"}, Stray: []string{"<|channel>"},
	},
	// Any model with <think> in its template, and any without: its thinking is elicited by opening <think>.
	thinkTags("think", "\n</think>\n\n", emptyThink),
	thinkTags("plain", "\n</think>\n\n", ""),
}

// Lookup returns the family of a name, for the config.
func Lookup(name string) (Family, error) {
	var names []string
	for _, f := range families {
		if f.Name == name {
			return f, nil
		}
		names = append(names, f.Name)
	}
	return Family{}, fmt.Errorf("there is no model family %q; the families are %s", name, strings.Join(names, ", "))
}

// Detect tells a model's family: by its chat template and special tokens, else by its architecture and name.
func Detect(info decode.Info) Family {
	f, _ := Lookup(detect(info))
	return f
}

func detect(info decode.Info) string {
	template := info.ChatTemplate
	has := func(marker string) bool {
		return strings.Contains(template, marker) || slices.Contains(info.SpecialTokens, marker)
	}
	switch {
	case has(channel) && has("<|message|>"):
		return "harmony"
	case has("<|channel>") && has("<channel|>"):
		return "gemma"
	case has("[THINK]") && has("[/THINK]"):
		return "magistral"
	case template == "":
		return byName(strings.ToLower(info.Architecture + " " + info.Model))
	case !strings.Contains(template, "<think>") && !strings.Contains(template, "</think>"):
		return "plain"
	case strings.Contains(template, "<｜Assistant｜>"):
		return "deepseek-r1"
	case strings.Contains(template, "/no_think") && strings.Contains(template, "enable_thinking"):
		return "smollm3"
	case strings.Contains(template, "enable_thinking") && opensThinking(template):
		return "qwen3.5"
	case strings.Contains(template, "enable_thinking"):
		return "qwen3"
	case strings.Contains(template, `<|im_start|>assistant\n<think>`):
		return "qwq"
	}
	return "think"
}

// opensThinking says whether a template that can leave thinking out also opens it.
func opensThinking(template string) bool {
	return strings.Contains(template, `'<think>\n' }}`) || strings.Contains(template, `"<think>\n" }}`)
}

// byName knows models that came without a template. The first that matches counts.
func byName(name string) string {
	for _, known := range [][2]string{
		{"deepseek-r1", "deepseek-r1"}, {"r1-distill", "deepseek-r1"}, {"qwq", "qwq"}, {"qwen3.5", "qwen3.5"}, {"qwen35", "qwen3.5"}, {"qwen3", "qwen3"},
		{"gpt-oss", "harmony"}, {"magistral", "magistral"}, {"smollm3", "smollm3"}, {"gemma4", "gemma"}, {"gemma-4", "gemma"},
	} {
		if strings.Contains(name, known[0]) {
			return known[1]
		}
	}
	return "plain"
}
