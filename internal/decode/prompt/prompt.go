// Package prompt makes prompts of chat messages, and knows how each family of models thinks and stops thinking.
//
// A Renderer holds a model's chat template, compiled once. Render fills it, opens the thinking (or an empty thought) where the
// template does not, and returns parts in which nothing that a user wrote can act as a special token.
//
// How that is kept: the template engine remembers of each byte whether a user wrote it. The finished prompt is searched for
// the texts of special tokens, wherever they begin. Of every one that has a user's byte in it, typed whole, pieced together over
// two messages, or completed by the template, the user's bytes become Literal parts. All other text stays Text, so that a prompt without
// such tricks is tokenized as one piece. No byte is changed. An engine must not join parts before it tokenizes them.
package prompt

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"anytime/internal/decode"
	"anytime/internal/decode/prompt/jinja"
)

// Message is one message of a chat.
type Message struct {
	Role       string // "system", "developer", "user", "assistant" or "tool"
	Content    string
	Reasoning  string // thinking of an assistant's message; taken out of Content where it stands there between the family's markers
	Name       string
	ToolCalls  []ToolCall // of an assistant's message
	ToolCallID string     // of a tool's message: the call that it answers
}

// ToolCall is a call of a function by the assistant.
type ToolCall struct {
	ID, Name  string
	Arguments string // JSON object
}

// Options say what the prompt is for.
type Options struct {
	Thinking bool              // open the thinking; else the model is to answer at once
	Effort   string            // reasoning_effort for templates that know it; "" the template's default
	Kwargs   map[string]any    // chat_template_kwargs: further variables, of JSON's types; enable_thinking and the like are set by Thinking
	Tools    []json.RawMessage // function definitions in OpenAI's form
	// CallTags has calls written as JSON in <tool_call> tags, whatever form the template has for them, so that they can be read of any model.
	CallTags bool
	Now      time.Time // what strftime_now tells; zero is the present
}

// Prompt is what a sequence is opened with.
type Prompt struct {
	Parts []decode.Part
	// Thinking is set when decoding starts inside a thought. A template may refuse one that was asked for (SmolLM3 does when the
	// system message says /no_think).
	Thinking bool
}

const (
	maxJSONDepth = 64       // of tools, arguments and kwargs
	maxInput     = 16 << 20 // bytes of all messages and tools
)

// reserved are the variables that kwargs cannot set.
var reserved = []string{"messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "enable_thinking", "thinking", "reasoning_effort",
	"raise_exception", "strftime_now", "namespace", "range", "dict", "joiner"}

// Templates for models that have none.
const (
	chatML = `{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}`
	plain  = `{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\n\n' }}{% else %}{{ m.role|capitalize + ': ' + m.content + '\n\n' }}{% endif %}{% endfor %}Assistant: `
)

// Renderer makes prompts for one model. It may be used concurrently.
type Renderer struct {
	info     decode.Info
	family   Family
	source   string
	template *jinja.Template
	specials *trie
}

// New compiles the model's chat template, or the one given instead. A model without any gets a simple one.
func New(info decode.Info, family Family, template string) (*Renderer, error) {
	if err := family.Validate(); err != nil {
		return nil, err
	}
	r := &Renderer{info: info, family: family, source: template, specials: &trie{}}
	if r.source == "" {
		r.source = info.ChatTemplate
	}
	if r.source == "" {
		r.source = plain
		if slices.Contains(info.SpecialTokens, "<|im_start|>") {
			r.source = chatML
		}
	}
	var err error
	if r.template, err = jinja.Parse(r.source); err != nil {
		return nil, r.templateError(err)
	}
	for _, list := range [][]string{info.SpecialTokens, family.Close, family.Stops, family.Stray,
		{info.BOS, info.EOS, strings.TrimSpace(family.Open), family.Answer}} {
		for _, s := range list {
			if strings.TrimSpace(s) != "" { // runs of white space are tokens of some models, and harmless
				r.specials.add(s)
			}
		}
	}
	if len(info.SpecialTokens) == 0 { // a remote engine's model: what its template uses
		for _, s := range specialLike.FindAllString(r.source, -1) {
			r.specials.add(s)
		}
	}
	return r, nil
}

var specialLike = regexp.MustCompile(`<[|｜][^\s<>'"{}]{1,64}>|<[^\s<>'"{}]{1,64}[|｜]>|</?[a-z_]{1,32}>|\[/?[A-Z_]{2,32}\]`)

func (r *Renderer) templateError(err error) error {
	return fmt.Errorf("chat template of model %q: %w; set the model's chat_template to one that works", r.info.Model, err)
}

// Source is the template's source, Jinja.
func (r *Renderer) Source() string { return r.source }

// Family is the model's family.
func (r *Renderer) Family() Family { return r.family }

// Render makes a prompt. Bad input, and messages that the template refuses, are *decode.InputError; any other error is the template's.
func (r *Renderer) Render(messages []Message, opts Options) (Prompt, error) {
	vars, err := r.vars(messages, opts)
	if err != nil {
		return Prompt{}, err
	}
	if opts.CallTags && !r.callTags() {
		if _, err := r.messages(messages, false); err != nil { // bad arguments are bad in any form
			return Prompt{}, err
		}
		messages = tagged(messages, opts.Tools)
		delete(vars, "tools")
	}
	now := opts.Now
	if now.IsZero() {
		now = time.Now()
	}
	render := func(argumentsAsText bool) (jinja.Text, error) {
		list, err := r.messages(messages, argumentsAsText)
		if err != nil {
			return jinja.Text{}, err
		}
		vars["messages"] = list
		return r.template.Render(vars, now)
	}
	out, err := render(false)
	// Templates want the arguments of a call as a mapping or as a string, and only trying tells which.
	if te := new(jinja.Error); errors.As(err, &te) && slices.ContainsFunc(messages, func(m Message) bool { return len(m.ToolCalls) > 0 }) {
		if again, err2 := render(true); err2 == nil {
			out, err = again, nil
		}
	}
	var raised *jinja.Raised
	var input *decode.InputError
	switch {
	case errors.As(err, &raised):
		return Prompt{}, inputError("messages", "the model's chat template refuses them: %.500s", raised.Message)
	case errors.As(err, &input):
		return Prompt{}, err
	case err != nil:
		return Prompt{}, r.templateError(err)
	}
	if strings.IndexByte(out.String, 0) >= 0 { // JSON can spell one
		return Prompt{}, inputError("messages", "the prompt would have a NUL character; remove it from the tools and kwargs")
	}
	end, thinking := r.ending(out, opts.Thinking)
	return Prompt{Parts: r.parts(out, end), Thinking: thinking}, nil
}

// vars are the template's variables, less the messages.
func (r *Renderer) vars(messages []Message, opts Options) (map[string]any, error) {
	if err := check(messages, opts); err != nil {
		return nil, err
	}
	vars := map[string]any{
		"bos_token": r.info.BOS, "eos_token": r.info.EOS, "add_generation_prompt": true,
		"enable_thinking": opts.Thinking, "thinking": opts.Thinking,
	}
	if opts.Effort != "" {
		vars["reasoning_effort"] = jinja.User(opts.Effort)
	}
	for _, name := range slices.Sorted(maps.Keys(opts.Kwargs)) {
		if slices.Contains(reserved, name) {
			return nil, inputError("chat_template_kwargs", "%q is set by the server; use the fields of the request", name)
		}
		data, err := json.Marshal(opts.Kwargs[name])
		if err != nil {
			return nil, inputError("chat_template_kwargs", "%q is not a JSON value", name)
		}
		if vars[name], err = userJSON(data); err != nil {
			return nil, inputError("chat_template_kwargs", "%q: %v", name, err)
		}
	}
	if len(opts.Tools) > 0 {
		tools := make([]any, len(opts.Tools))
		for i, t := range opts.Tools {
			v, err := userJSON(t)
			if _, ok := v.(*jinja.Dict); err == nil && !ok {
				err = errors.New("it must be an object with type and function")
			}
			if err != nil {
				return nil, inputError(fmt.Sprintf("tools[%d]", i), "%v", err)
			}
			tools[i] = v
		}
		vars["tools"] = tools
	}
	return vars, nil
}

func (r *Renderer) messages(messages []Message, argumentsAsText bool) ([]any, error) {
	list := make([]any, len(messages))
	for i, msg := range messages {
		d := jinja.NewDict()
		if msg.Role == "developer" && !strings.Contains(r.source, "developer") {
			msg.Role = "system"
		}
		d.Set("role", msg.Role)
		reasoning, content := msg.Reasoning, msg.Content
		if msg.Role == "assistant" && reasoning == "" {
			reasoning, content = r.splitReasoning(content)
		}
		if content == "" && len(msg.ToolCalls) > 0 && noneContent.MatchString(r.source) {
			d.Set("content", nil)
		} else {
			d.Set("content", jinja.User(content))
		}
		if msg.Name != "" {
			d.Set("name", jinja.User(msg.Name))
		}
		if reasoning != "" {
			d.Set("reasoning_content", jinja.User(reasoning))
			if content == "" || len(msg.ToolCalls) == 0 { // gpt-oss refuses both beside a call
				d.Set("thinking", jinja.User(reasoning))
			}
		}
		if msg.ToolCallID != "" {
			d.Set("tool_call_id", jinja.User(msg.ToolCallID))
		}
		var calls []any
		for j, c := range msg.ToolCalls {
			f := jinja.NewDict()
			f.Set("name", jinja.User(c.Name))
			f.Set("arguments", jinja.User(c.Arguments))
			v, err := userJSON([]byte(c.Arguments))
			if _, ok := v.(*jinja.Dict); err != nil || !ok {
				return nil, inputError(fmt.Sprintf("messages[%d].tool_calls[%d].arguments", i, j), "they must be a JSON object")
			}
			if !argumentsAsText {
				f.Set("arguments", v)
			}
			call := jinja.NewDict()
			call.Set("id", jinja.User(c.ID))
			call.Set("type", "function")
			call.Set("function", f)
			calls = append(calls, call)
		}
		if calls != nil {
			d.Set("tool_calls", calls)
		}
		list[i] = d
	}
	return list, nil
}

// noneContent finds templates that leave out a message's content only if it is none.
var noneContent = regexp.MustCompile(`content('\]|"\])? is not none`)

// splitReasoning takes the thinking out of an assistant's message.
func (r *Renderer) splitReasoning(content string) (reasoning, rest string) {
	for _, c := range r.family.Close {
		if i := strings.LastIndex(content, c); i >= 0 {
			_, thought, opened := strings.Cut(content[:i], strings.TrimSpace(r.family.Open))
			if !opened {
				thought = content[:i]
			}
			rest := strings.TrimPrefix(content[i+len(c):], r.family.Answer)
			return strings.Trim(thought, "\n"), strings.TrimLeft(rest, "\n")
		}
	}
	return "", content
}

// ending is what must follow the template's text, so that decoding starts in a thought or behind it, and which of these it is.
func (r *Renderer) ending(out jinja.Text, thinking bool) (end string, inside bool) {
	f := r.family
	tail := strings.TrimRight(out.String, " \n")
	if n := len(out.User); n > 0 && out.User[n-1].End >= len(tail) {
		tail = "" // a user's text is no marker
	}
	opened := strings.HasSuffix(tail, strings.TrimSpace(f.Open))
	closed := slices.ContainsFunc(f.Close, func(c string) bool { return strings.HasSuffix(tail, c) }) && f.Answer == ""
	switch {
	case closed:
		return "", false
	case thinking && opened:
		return "", true
	case thinking:
		return f.Open, true
	case opened:
		return strings.TrimPrefix(f.Skip, f.Open), false
	}
	return f.Skip, false
}

// parts splits the prompt at the places where a user's text would act as a special token.
func (r *Renderer) parts(out jinja.Text, end string) []decode.Part {
	s := out.String
	if bos := r.info.BOS; r.info.AddBOS && bos != "" && strings.HasPrefix(s, bos) && (len(out.User) == 0 || out.User[0].Start >= len(bos)) {
		out.User = slices.Clone(out.User)
		for i := range out.User {
			out.User[i].Start -= len(bos)
			out.User[i].End -= len(bos)
		}
		s = s[len(bos):]
	}
	var literal []jinja.Span // the user's bytes in special tokens
	for _, u := range out.User {
		for i := max(u.Start-r.specials.depth+1, 0); i < u.End; i++ {
			from, to := max(i, u.Start), min(i+r.specials.match(s[i:]), u.End)
			switch n := len(literal); {
			case to <= from:
			case n > 0 && from <= literal[n-1].End:
				literal[n-1].End = max(literal[n-1].End, to)
			default:
				literal = append(literal, jinja.Span{Start: from, End: to})
			}
		}
	}
	var parts []decode.Part
	at := 0
	for _, l := range literal {
		if at < l.Start {
			parts = append(parts, decode.Text(s[at:l.Start]))
		}
		parts = append(parts, decode.Part{Text: s[l.Start:l.End], Literal: true})
		at = l.End
	}
	if at < len(s) {
		parts = append(parts, decode.Text(s[at:]))
	}
	if end != "" {
		if n := len(parts); n > 0 && !parts[n-1].Literal {
			parts[n-1].Text += end
		} else {
			parts = append(parts, decode.Text(end))
		}
	}
	return parts
}

// trie finds the longest of a set of texts that another begins with.
type trie struct {
	next  map[byte]*trie
	end   bool
	depth int // at the root: length of the longest
}

func (t *trie) add(s string) {
	t.depth = max(t.depth, len(s))
	for i := 0; i < len(s); i++ {
		if t.next == nil {
			t.next = map[byte]*trie{}
		}
		n := t.next[s[i]]
		if n == nil {
			n = &trie{}
			t.next[s[i]] = n
		}
		t = n
	}
	t.end = true
}

// match is the length of the longest that s begins with, 0 for none.
func (t *trie) match(s string) int {
	n := 0
	for i := 0; i < len(s); i++ {
		if t = t.next[s[i]]; t == nil {
			break
		}
		if t.end {
			n = i + 1
		}
	}
	return n
}

func userJSON(data []byte) (any, error) { return jinja.FromJSON(data, maxJSONDepth) }

func inputError(field, format string, a ...any) error {
	return &decode.InputError{Field: field, Reason: fmt.Sprintf(format, a...)}
}

// check refuses what no prompt can be made of.
func check(messages []Message, opts Options) error {
	if len(messages) == 0 {
		return inputError("messages", "there are none; at least one is needed")
	}
	size := 0
	str := func(field string, texts ...string) error {
		for _, s := range texts {
			size += len(s)
			switch {
			case strings.IndexByte(s, 0) >= 0:
				return inputError(field, "it has a NUL character; remove it")
			case !utf8.ValidString(s):
				return inputError(field, "it is not valid UTF-8")
			case size > maxInput:
				return inputError("messages", "they have more than %d bytes", maxInput)
			}
		}
		return nil
	}
	for i, m := range messages {
		field := fmt.Sprintf("messages[%d].", i)
		if !slices.Contains([]string{"system", "developer", "user", "assistant", "tool"}, m.Role) {
			return inputError(field+"role", "%.40q is no role; the roles are system, developer, user, assistant and tool", m.Role)
		}
		if len(m.ToolCalls) > 0 && m.Role != "assistant" {
			return inputError(field+"tool_calls", "only a message of the assistant can call tools")
		}
		err := cmp.Or(str(field+"content", m.Content), str(field+"reasoning_content", m.Reasoning), str(field+"name", m.Name),
			str(field+"tool_call_id", m.ToolCallID))
		for j, c := range m.ToolCalls {
			err = cmp.Or(err, str(fmt.Sprintf("%stool_calls[%d]", field, j), c.ID, c.Name, c.Arguments))
		}
		if err != nil {
			return err
		}
	}
	for i, t := range opts.Tools {
		if err := str(fmt.Sprintf("tools[%d]", i), string(t)); err != nil {
			return err
		}
	}
	return str("reasoning_effort", opts.Effort)
}
