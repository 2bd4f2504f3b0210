package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"anytime/internal/schema"
)

// toolCall is a call that an answer holds.
type toolCall struct {
	id, name  string
	arguments string // JSON, as the model wrote it
	complete  bool
}

// callDelta is what is new of a call.
type callDelta struct {
	index     int
	begins    bool   // with id and name
	id, name  string // of the call
	arguments string // what is added
	ends      bool
}

// callReader takes the calls out of an answer's text as it comes.
type callReader struct {
	run   string   // id, of which the calls' ids are made
	whole bool     // a call is told of once it is complete: the text may yet be replaced
	stops []string // that may cut the answer
	cut   bool     // a limit did

	content string // the text beside the calls
	calls   []toolCall
	first   int    // calls before an answer that was replaced
	rest    string // text that is not told yet
	state   callState
	json    jsonObject // the arguments under way
}

type callState int

const (
	inText      callState = iota
	inCall                // behind its opening mark
	inArguments           // its name is told
	inTail                // behind the arguments
)

// callHead is how a call begins that keeps to the grammar.
var callHead = regexp.MustCompile(`^\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*`)

// reset forgets the answer so far; indices go on, for clients have seen them.
func (r *callReader) reset() {
	r.first += len(r.calls)
	r.content, r.calls, r.rest, r.state = "", nil, "", inText
}

// push takes text, and returns what is new of the text beside the calls and of the calls.
func (r *callReader) push(text string) (content string, deltas []callDelta) {
	r.rest += text
	for {
		before, state := len(r.rest), r.state
		switch r.state {
		case inText:
			content += r.text()
		case inCall:
			d, rejected := r.head()
			content += rejected
			deltas = append(deltas, d...)
		case inArguments:
			deltas = append(deltas, r.args()...)
		case inTail:
			if _, after, ok := strings.Cut(r.rest, schema.CallClose); ok {
				r.rest, r.state = after, inText
			}
		}
		if len(r.rest) == before && r.state == state {
			break
		}
	}
	r.content += content
	return content, deltas
}

// end returns the text that was held back; half a call is none, nor is half of its mark where the answer was cut there.
func (r *callReader) end() (content string) {
	switch {
	case r.cut:
	case r.state == inText && !slices.ContainsFunc(r.stops, r.stopsMark):
		content = r.rest
	case r.state == inCall && len(r.stops) == 0 && strings.Contains(r.rest, schema.CallClose):
		content = schema.CallOpen + r.rest
	}
	r.rest = ""
	if len(r.calls) > 0 && strings.TrimSpace(content) == "" {
		content = ""
	}
	r.content += content
	return content
}

// stopsMark reports whether the mark goes on with a stop string, which is not in the text, where the text ends.
func (r *callReader) stopsMark(stop string) bool {
	text := r.rest + stop
	return r.rest != "" && (strings.HasPrefix(schema.CallOpen, text) || strings.HasPrefix(text, schema.CallOpen))
}

// text tells the text up to the next call, less what may be the beginning of its mark, and less white space between calls.
func (r *callReader) text() string {
	text, after, found := strings.Cut(r.rest, schema.CallOpen)
	if found {
		r.rest, r.state = after, inCall
	} else {
		n := len(r.rest)
		for i := max(0, n-len(schema.CallOpen)+1); i < n; i++ {
			if strings.HasPrefix(schema.CallOpen, r.rest[i:]) {
				n = i
				break
			}
		}
		text, r.rest = r.rest[:n], r.rest[n:]
	}
	if len(r.calls) > 0 && strings.TrimSpace(text) == "" {
		return ""
	}
	return text
}

// head reads a call's name, or the whole call where it is not written as it should be. Something else in its place is text.
func (r *callReader) head() (deltas []callDelta, rejected string) {
	if m := callHead.FindStringSubmatchIndex(r.rest); m != nil && !r.whole {
		var name string
		if json.Unmarshal([]byte(r.rest[m[2]:m[3]]), &name) == nil && m[1] < len(r.rest) && r.rest[m[1]] == '{' {
			r.rest, r.state, r.json = r.rest[m[1]:], inArguments, jsonObject{}
			return []callDelta{r.begin(name)}, ""
		}
	}
	var body struct {
		Name                  string
		Arguments, Parameters json.RawMessage
	}
	d := json.NewDecoder(strings.NewReader(r.rest))
	err := d.Decode(&body)
	behind := r.rest
	switch {
	case err == nil:
		behind = r.rest[d.InputOffset():]
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return nil, "" // the mark of the end may be in a string
	}
	_, after, closed := strings.Cut(behind, schema.CallClose)
	if !closed {
		return nil, ""
	}
	all := r.rest[:len(r.rest)-len(after)]
	r.rest, r.state = after, inText
	arguments := body.Arguments
	if arguments == nil {
		arguments = body.Parameters
	}
	text := string(arguments)
	var quoted string
	if json.Unmarshal(arguments, &quoted) == nil { // some models write the object as text
		text = quoted
	}
	if text == "" {
		text = "{}"
	}
	if err != nil || body.Name == "" || !strings.HasPrefix(text, "{") || !json.Valid([]byte(text)) {
		return nil, schema.CallOpen + all
	}
	begin := r.begin(body.Name)
	last := &r.calls[len(r.calls)-1]
	last.arguments, last.complete = text, true
	return []callDelta{begin, {index: begin.index, id: begin.id, name: begin.name, arguments: text, ends: true}}, ""
}

func (r *callReader) begin(name string) callDelta {
	index := r.first + len(r.calls)
	id := fmt.Sprintf("call_%s_%d", strings.TrimPrefix(r.run, "run_"), index)
	r.calls = append(r.calls, toolCall{id: id, name: name})
	return callDelta{index: index, begins: true, id: id, name: name}
}

func (r *callReader) args() []callDelta {
	if r.rest == "" {
		return nil
	}
	n, over := r.json.read(r.rest)
	piece := r.rest[:n]
	r.rest = r.rest[n:]
	last := &r.calls[len(r.calls)-1]
	last.arguments += piece
	if over {
		last.complete, r.state = true, inTail
	}
	return []callDelta{{index: r.first + len(r.calls) - 1, id: last.id, name: last.name, arguments: piece, ends: over}}
}

// jsonObject finds the end of an object.
type jsonObject struct {
	depth           int
	quoted, escaped bool
}

// read returns how many bytes of the text belong to the object, and whether it ends there.
func (o *jsonObject) read(text string) (n int, over bool) {
	for i := range len(text) {
		switch b := text[i]; {
		case o.escaped:
			o.escaped = false
		case o.quoted && b == '\\':
			o.escaped = true
		case b == '"':
			o.quoted = !o.quoted
		case o.quoted:
		case b == '{' || b == '[':
			o.depth++
		case b == '}' || b == ']':
			if o.depth--; o.depth == 0 {
				return i + 1, true
			}
		}
	}
	return len(text), false
}
