package schema

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// The texts between which a call stands: {"name": NAME, "arguments": ARGUMENTS}.
const (
	CallOpen  = "<tool_call>"
	CallClose = "</tool_call>"
)

// maxCalls bounds the calls of an answer: a small model may go on for ever.
const maxCalls = 16

// Function is a function that an answer may call.
type Function struct {
	Name       string
	Parameters json.RawMessage // a JSON Schema; nil allows any object
}

// Tools is what an answer may call, and what else it may be.
type Tools struct {
	Functions []Function
	Required  bool            // the answer is calls and nothing else
	Parallel  bool            // it may be several
	Format    json.RawMessage // a JSON Schema of answers that call nothing; nil: they are free text, before calls too
}

// FunctionError is a function whose parameters cannot be held to.
type FunctionError struct {
	Index int // in Tools.Functions
	Err   *Error
}

func (e *FunctionError) Error() string { return e.Err.Error() }

// Grammar returns the grammar of such answers. Errors are *FunctionError, or *Error for the rest.
func (t Tools) Grammar() (string, error) {
	c, err := newCompiler([]byte("{}"))
	if err != nil {
		return "", err
	}
	body, err := c.calls(t.Functions)
	if err != nil {
		return "", err
	}
	open := exactly(CallOpen)
	more := ""
	if t.Parallel {
		more = fmt.Sprintf(` ("\n" %s %s){0,%d}`, open, body, maxCalls-1)
	}
	var root string
	switch {
	case t.Required:
		root = fmt.Sprintf(`"\n\n"? %s %s%s`, open, body, more)
	case t.Format == nil:
		root = c.textUntil(CallOpen, body+more)
	default:
		answer, err := c.whole(t.Format)
		if err != nil {
			return "", err
		}
		return c.grammar(fmt.Sprintf(`"\n\n"? (%s | %s %s%s)`, answer, open, body, more))
	}
	text, err := c.grammar(root)
	return text, blame(len(t.Functions)-1, err)
}

// calls returns the rule of what follows CallOpen.
func (c *compiler) calls(functions []Function) (string, error) {
	list := make([]string, len(functions))
	for i, f := range functions {
		parameters := f.Parameters
		if s := strings.TrimSpace(string(parameters)); s == "" || s == "{}" || s == "true" {
			parameters = json.RawMessage(`{"type": "object"}`)
		}
		arguments, err := c.whole(parameters)
		if err != nil {
			return "", blame(i, err)
		}
		list[i] = exactly(quote(f.Name)+`, "arguments": `) + " " + arguments
	}
	slices.Sort(list)
	body, err := c.rule(fmt.Sprintf(`%s (%s) %s`, exactly("\n"+`{"name": `), strings.Join(slices.Compact(list), " | "), exactly("}\n"+CallClose)))
	return body, blame(len(functions)-1, err)
}

// blame makes an error of the compiler that of a function; of what they amount to together, that of the last.
func blame(i int, err error) error {
	if e, ok := err.(*Error); ok { //nolint:errorlint // the compiler's are never wrapped
		return &FunctionError{i, e}
	}
	return err
}

// whole returns an expression for a document of its own.
func (c *compiler) whole(document json.RawMessage) (string, error) {
	if err := checkDocument(document); err != nil {
		return "", err
	}
	c.document, c.refs = document, map[string]string{}
	return c.value(place{raw: document}, nil)
}

// textUntil returns the rule of any text in which, once the mark has come, only then may follow. The mark's first character must not come
// again in it. There is a rule for each beginning of the mark, as in Knuth, Morris and Pratt's search.
func (c *compiler) textUntil(mark, then string) string {
	runes := []rune(mark)
	name := func(matched int) string { return fmt.Sprintf("text%d", matched) }
	first := runes[0]
	for i, r := range runes {
		next := name(i + 1)
		if i == len(runes)-1 {
			next = then
		}
		other := classChar(r)
		again := ""
		if i > 0 {
			other += classChar(first)
			again = fmt.Sprintf(" | %s %s", exactly(string(first)), name(1))
		}
		c.define(name(i), fmt.Sprintf(`"" | %s %s%s | [^%s] %s`, exactly(string(r)), next, again, other, name(0)))
	}
	return name(0)
}
