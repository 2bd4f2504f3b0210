// Package jinja renders chat templates: the part of Jinja2 that models use, as Python's jinja2 renders it with
// trim_blocks, lstrip_blocks and loop controls, which is how chat templates are written to be rendered.
//
// It is a package of its own, not one of the Go libraries for Jinja, for two things that must hold for a template out of a
// downloaded file and that cannot be added from outside a library:
//
//   - Rendering is bounded. Every expression, iteration and byte of text made costs steps out of a fixed number; nesting is
//     limited when parsing and when rendering. So no template can hang, overflow the stack or fill the memory, and
//     no goroutine or clock is needed.
//   - Text knows its author. Each string remembers which of its bytes a user wrote, through slicing, joining and replacing, so the
//     caller can tell a special token that the template wrote from one that somebody typed.
//
// Tuples are lists here, and print as lists. Integers have 64 bits.
//
// A template is parsed into closures once and may be rendered concurrently.
package jinja

import (
	"errors"
	"fmt"
	"time"
	"unicode/utf8"
)

// Limits.
const (
	MaxSource = 256 << 10 // bytes of a template's source
	maxNest   = 300       // nesting of blocks, parentheses and operators in the source
	maxDepth  = 1000      // nesting of evaluation: calls within calls within expressions
	maxSteps  = 16 << 20  // what a rendering may cost, some two seconds of work; see machine.spend
	stepBytes = 16        // bytes of text that cost one step
)

// Template is a parsed template.
type Template struct{ body []stmt }

// Error is a template that cannot be parsed or rendered.
type Error struct {
	Line   int
	Reason string
}

func (e *Error) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Reason) }

// Raised is the template's own complaint about its input, made by raise_exception.
type Raised struct{ Message string }

func (e *Raised) Error() string { return e.Message }

// Parse compiles a template. Its errors are *Error.
func Parse(source string) (t *Template, err error) {
	if len(source) > MaxSource {
		return nil, &Error{1, fmt.Sprintf("the template has %d bytes; at most %d are read", len(source), MaxSource)}
	}
	if !utf8.ValidString(source) {
		return nil, &Error{1, "the template is not valid UTF-8"}
	}
	defer catch(&err, nil)
	p := &parser{toks: lex(source)}
	body := p.body()
	if t := p.peek(); t.kind != tokEOF {
		p.failf("unexpected {%% %s %%}", t.text)
	}
	return &Template{body}, nil
}

// Render executes the template with the variables, which are Go values as Of takes them. strftime_now tells the time now.
// Its errors are *Error and *Raised.
func (t *Template) Render(vars map[string]any, now time.Time) (out Text, err error) {
	m := &machine{now: now, scope: &scope{vars: map[string]Value{}}, line: 1}
	defer catch(&err, m)
	for name, v := range vars {
		val := Of(v)
		m.steps -= size(val) / 2 // long input earns the steps it takes to copy it a few times
		m.scope.vars[name] = val
	}
	m.scope = &scope{parent: m.scope}
	m.run(t.body)
	return m.out.text(), nil
}

// failure carries an error up to Parse or Render.
type failure struct{ err error }

// catch turns a failure into an error. No other panic is expected, but the input is a stranger's: it becomes an error too.
func catch(err *error, m *machine) {
	switch r := recover().(type) {
	case nil:
		return
	case failure:
		*err = r.err
	default:
		*err = &Error{Reason: fmt.Sprintf("the template engine failed: %v", r)}
	}
	if e := new(Error); errors.As(*err, &e) && e.Line == 0 && m != nil {
		e.Line = m.line
	}
}
