package jinja

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Value is a template value: nil (none), undefined, bool, int64, float64, Text, *List, *Dict, namespace, *loopVar or function.
type Value any

// Text is a string of which the bytes in the User spans were written by a user. Spans are sorted and do not touch.
type Text struct {
	String string
	User   []Span
}

// Span is the range [Start, End) of bytes.
type Span struct{ Start, End int }

// User is text that a user wrote.
func User(s string) Text {
	if s == "" {
		return Text{}
	}
	return Text{s, []Span{{0, len(s)}}}
}

func lit(s string) Text { return Text{String: s} }

func (t Text) slice(i, j int) Text {
	out := Text{String: t.String[i:j]}
	for _, u := range t.User {
		if s, e := max(u.Start, i), min(u.End, j); s < e {
			out.User = append(out.User, Span{s - i, e - i})
		}
	}
	return out
}

// within narrows t to part, which must be a substring of t.String at offset.
func (t Text) within(offset int, part string) Text { return t.slice(offset, offset+len(part)) }

// each applies f to the stretches of one author.
func (t Text) each(f func(string) string) Text {
	var b builder
	at := 0
	for _, u := range t.User {
		b.add(lit(f(t.String[at:u.Start])))
		b.add(User(f(t.String[u.Start:u.End])))
		at = u.End
	}
	b.add(lit(f(t.String[at:])))
	return b.text()
}

// builder joins texts.
type builder struct {
	b    strings.Builder
	user []Span
}

func (b *builder) add(t Text) {
	off := b.b.Len()
	b.b.WriteString(t.String)
	for _, u := range t.User {
		u.Start, u.End = u.Start+off, u.End+off
		if n := len(b.user); n > 0 && b.user[n-1].End == u.Start {
			b.user[n-1].End = u.End
		} else {
			b.user = append(b.user, u)
		}
	}
}

func (b *builder) str(s string) { b.b.WriteString(s) }

func (b *builder) text() Text { return Text{b.b.String(), b.user} }

// List is a list or tuple.
type List struct{ Items []Value }

// Dict is a mapping that keeps the order of its keys.
type Dict struct {
	keys  []Value
	items map[any]Value
}

// NewDict returns an empty mapping.
func NewDict() *Dict { return &Dict{items: map[any]Value{}} }

// Set adds or replaces an entry.
func (d *Dict) Set(key string, v any) { d.set(lit(key), Of(v)) }

func (d *Dict) set(key, v Value) {
	h := hash(key)
	if _, ok := d.items[h]; !ok {
		d.keys = append(d.keys, key)
	}
	d.items[h] = v
}

func (d *Dict) get(key Value) (Value, bool) { v, ok := d.items[hash(key)]; return v, ok }

func (d *Dict) remove(key Value) {
	h := hash(key)
	delete(d.items, h)
	d.keys = slices.DeleteFunc(d.keys, func(k Value) bool { return hash(k) == h })
}

// hash maps keys that are equal in Python to equal Go values.
func hash(v Value) any {
	switch v := v.(type) {
	case Text:
		return v.String
	case bool:
		if v {
			return int64(1)
		}
		return int64(0)
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
			return int64(v)
		}
		return v
	case nil, int64:
		return v
	}
	panic(failure{&Error{Reason: kind(v) + " cannot be a key of a mapping"}})
}

type (
	undefined struct{ name string }
	namespace map[string]Value
	function  func(m *machine, a args) Value
)

// Of makes a value of Go data: nil, bool, int, int64, float64, string, []any, map[string]any (keys sorted), Text and what this package
// makes. A Go string is the program's own text; a user's is passed as User.
func Of(v any) Value {
	switch v := v.(type) {
	case string:
		return lit(v)
	case int:
		return int64(v)
	case []any:
		l := &List{make([]Value, len(v))}
		for i, x := range v {
			l.Items[i] = Of(x)
		}
		return l
	case map[string]any:
		d := NewDict()
		for _, k := range slices.Sorted(maps.Keys(v)) {
			d.Set(k, v[k])
		}
		return d
	}
	return v
}

// FromJSON decodes a JSON value that a user wrote: all its strings and keys are the user's, and the order of keys is kept.
func FromJSON(data []byte, maxDepth int) (Value, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	v, err := fromJSON(dec, maxDepth)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("there is more than one JSON value")
	}
	return v, nil
}

func fromJSON(dec *json.Decoder, depth int) (Value, error) {
	tok, err := dec.Token()
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	switch t := tok.(type) {
	case string:
		return User(t), nil
	case json.Number:
		if i, err := t.Int64(); err == nil {
			return i, nil
		}
		return t.Float64()
	case json.Delim:
		if depth == 0 {
			return nil, errors.New("it is nested too deeply")
		}
		list, dict := &List{}, NewDict()
		for dec.More() {
			var key string
			if t == '{' {
				k, err := dec.Token()
				if err != nil {
					return nil, err
				}
				key = k.(string) // the decoder lets nothing else pass
			}
			v, err := fromJSON(dec, depth-1)
			if err != nil {
				return nil, err
			}
			if t == '{' {
				dict.set(User(key), v)
			} else {
				list.Items = append(list.Items, v)
			}
		}
		if _, err := dec.Token(); err != nil {
			return nil, err
		}
		if t == '{' {
			return dict, nil
		}
		return list, nil
	}
	return tok, nil // bool, nil
}

// size is about the bytes that a value holds.
func size(v Value) int {
	n := 8
	switch v := v.(type) {
	case Text:
		n += len(v.String)
	case *List:
		for _, x := range v.Items {
			n += size(x)
		}
	case *Dict:
		for _, k := range v.keys {
			n += size(k) + size(v.items[hash(k)])
		}
	}
	return n
}

func truth(v Value) bool {
	switch v := v.(type) {
	case nil, undefined:
		return false
	case bool:
		return v
	case int64:
		return v != 0
	case float64:
		return v != 0
	case Text:
		return v.String != ""
	case *List:
		return len(v.Items) > 0
	case *Dict:
		return len(v.keys) > 0
	}
	return true
}

func kind(v Value) string {
	switch v := v.(type) {
	case nil:
		return "none"
	case undefined:
		return "undefined " + v.name
	case bool:
		return "a boolean"
	case int64, float64:
		return "a number"
	case Text:
		return "a string"
	case *List:
		return "a list"
	case *Dict:
		return "a mapping"
	case function:
		return "a function"
	}
	return "an object"
}

// number returns the value as a float, and as an int if it is one. Booleans count as in Python.
func number(v Value) (f float64, i int64, isInt, ok bool) {
	switch v := v.(type) {
	case int64:
		return float64(v), v, true, true
	case bool:
		if v {
			return 1, 1, true, true
		}
		return 0, 0, true, true
	case float64:
		return v, 0, false, true
	}
	return
}

// formatFloat is Python's repr.
func formatFloat(f float64) string {
	switch {
	case math.IsNaN(f):
		return "nan"
	case math.IsInf(f, 1):
		return "inf"
	case math.IsInf(f, -1):
		return "-inf"
	}
	if a := math.Abs(f); a != 0 && (a < 1e-4 || a >= 1e16) {
		return strconv.FormatFloat(f, 'e', -1, 64)
	}
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// print is Python's str.
func (m *machine) print(v Value) Text {
	switch v := v.(type) {
	case Text:
		return v
	case undefined:
		return Text{}
	}
	var b builder
	m.repr(&b, v)
	return b.text()
}

// repr is Python's repr.
func (m *machine) repr(b *builder, v Value) {
	m.spend(1)
	m.enter()
	defer m.leave()
	switch v := v.(type) {
	case nil:
		b.str("None")
	case undefined:
		b.str("Undefined")
	case bool:
		if v {
			b.str("True")
		} else {
			b.str("False")
		}
	case int64:
		b.str(strconv.FormatInt(v, 10))
	case float64:
		b.str(formatFloat(v))
	case Text:
		m.spendBytes(len(v.String))
		quote := "'"
		if strings.Contains(v.String, "'") && !strings.Contains(v.String, `"`) {
			quote = `"`
		}
		b.str(quote)
		b.add(v.each(func(s string) string { return pyEscape(s, quote) }))
		b.str(quote)
	case *List:
		b.str("[")
		for i, x := range v.Items {
			if i > 0 {
				b.str(", ")
			}
			m.repr(b, x)
		}
		b.str("]")
	case *Dict:
		b.str("{")
		for i, k := range v.keys {
			if i > 0 {
				b.str(", ")
			}
			m.repr(b, k)
			b.str(": ")
			m.repr(b, v.items[hash(k)])
		}
		b.str("}")
	default:
		b.str("<" + kind(v) + ">")
	}
}

func pyEscape(s, quote string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\\', string(r) == quote:
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < 0x100 && !unicode.IsPrint(r):
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// jsonStyle is how json.dumps writes.
type jsonStyle struct {
	indent     int // < 0 none
	item, pair string
	sort       bool
	ascii      bool
}

func (m *machine) json(b *builder, v Value, st jsonStyle, level int) {
	m.spend(1)
	m.enter()
	defer m.leave()
	line := func(level int) {
		if st.indent >= 0 {
			m.spendBytes(level * st.indent)
			b.str("\n" + strings.Repeat(" ", level*st.indent))
		}
	}
	switch v := v.(type) {
	case nil:
		b.str("null")
	case bool:
		b.str(strconv.FormatBool(v))
	case int64:
		b.str(strconv.FormatInt(v, 10))
	case float64:
		b.str(formatFloat(v))
	case Text:
		m.spendBytes(len(v.String))
		b.str(`"`)
		b.add(v.each(func(s string) string { return jsonEscape(s, st.ascii) }))
		b.str(`"`)
	case *List:
		b.str("[")
		for i, x := range v.Items {
			if i > 0 {
				b.str(st.item)
			}
			line(level + 1)
			m.json(b, x, st, level+1)
		}
		if len(v.Items) > 0 {
			line(level)
		}
		b.str("]")
	case *Dict:
		b.str("{")
		keys := v.keys
		if st.sort {
			keys = slices.Clone(keys)
			slices.SortStableFunc(keys, func(a, b Value) int { return m.compare(a, b) })
		}
		for i, k := range keys {
			if i > 0 {
				b.str(st.item)
			}
			line(level + 1)
			m.json(b, m.print(k), st, level+1)
			b.str(st.pair)
			m.json(b, v.items[hash(k)], st, level+1)
		}
		if len(keys) > 0 {
			line(level)
		}
		b.str("}")
	default:
		m.failf("tojson: %s cannot be written as JSON", kind(v))
	}
}

func jsonEscape(s string, ascii bool) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\b':
			b.WriteString(`\b`)
		case r == '\f':
			b.WriteString(`\f`)
		case r < 0x20, ascii && r > 0x7e && r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		case ascii && r >= 0x10000:
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+(r-0x10000)>>10, 0xdc00+(r-0x10000)&0x3ff)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
