// Package schema turns a JSON Schema into a grammar in GBNF, so that an answer, one forced from half a thought included, is JSON of that
// form.
//
// A schema either holds or is refused: a keyword that a grammar of bounded size cannot enforce is an error that names it, not a promise
// that is silently broken. Keywords that only describe, and those that JSON Schema does not know, are passed over. Two
// liberties: properties come in the order of the schema, and where additionalProperties is absent an object with properties
// has no others. References lead within the schema only.
package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits of a schema.
const (
	maxBytes   = 64 << 10
	maxDepth   = 64
	maxRules   = 4096
	maxGrammar = 64 << 10 // bytes, and elements that repetitions add: less than an engine takes of either
	maxNested  = 16       // anyOf within anyOf, before one is a rule of its own
)

// Error is a schema that cannot be held to.
type Error struct {
	Path   string // JSON pointer of the place
	Reason string
}

func (e *Error) Error() string {
	if e.Path == "" {
		return e.Reason
	}
	return fmt.Sprintf("%.200s: %s", e.Path, e.Reason)
}

func refuse(path, format string, args ...any) error {
	return &Error{Path: path, Reason: fmt.Sprintf(format, args...)}
}

// Grammar returns the grammar of the JSON texts that a schema allows. Errors are *Error.
func Grammar(schema []byte) (string, error) {
	c, err := newCompiler(schema)
	if err != nil {
		return "", err
	}
	root, err := c.value(place{raw: c.document}, nil)
	if err != nil {
		return "", err
	}
	return c.grammar(root)
}

// compiler collects the rules of a grammar.
type compiler struct {
	document json.RawMessage
	rules    []string
	size     int               // of the rules, as maxGrammar counts it
	named    map[string]string // rules by the text of what they are made of
	refs     map[string]string // rules of what was referred to
}

func newCompiler(schema []byte) (*compiler, error) {
	if err := checkDocument(schema); err != nil {
		return nil, err
	}
	return &compiler{document: schema, named: map[string]string{}, refs: map[string]string{}}, nil
}

func checkDocument(schema []byte) error {
	switch {
	case len(schema) > maxBytes:
		return refuse("", "the schema has %d bytes; at most %d are allowed", len(schema), maxBytes)
	case !json.Valid(schema):
		return refuse("", "the schema is not valid JSON")
	case !utf8.Valid(schema):
		return refuse("", "the schema is not valid UTF-8")
	}
	return nil
}

// What every grammar may use. White space is bounded: a model could go on with it for ever.
const (
	space    = `[ \n]?[ ]{0,16}`
	freeText = `[^"\\\x00-\x1f\x7f]`
)

// shared are rules that are written only where they are used.
var shared = map[string]string{
	"ws":      space,
	"char":    freeText + ` | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})`,
	"string":  `"\"" char* "\""`,
	"integer": `"-"? ("0" | [1-9] [0-9]{0,15})`,
	"number":  `integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})?`,
	"boolean": `"true" | "false"`,
	"null":    `"null"`,
	"any":     `string | number | boolean | null | "{" ws (string ws ":" ws any (ws "," ws string ws ":" ws any)*)? ws "}" | "[" ws (any (ws "," ws any)*)? ws "]"`,
}

var needs = map[string][]string{
	"string": {"char"}, "number": {"integer"}, "any": {"string", "number", "boolean", "null", "ws"},
}

// use names a shared rule.
func (c *compiler) use(name string) string {
	if c.named[name] == "" {
		c.named[name] = name
		c.define(name, shared[name])
		for _, n := range needs[name] {
			c.use(n)
		}
	}
	return name
}

func (c *compiler) define(name, expression string) {
	c.rules = append(c.rules, name+" ::= "+expression)
	c.size += len(c.rules[len(c.rules)-1]) + 1
}

// fits returns an error once the grammar is too large; p is what came to it last.
func (c *compiler) fits(p place) error {
	if c.size > maxGrammar {
		return p.refuse("the schema is too large: with all that may be repeated (maxLength, maxItems, a pattern's {m,n}) its grammar comes to %d elements so far; at most %d are allowed",
			c.size, maxGrammar)
	}
	return nil
}

// rule gives an expression a name, unless it has one.
func (c *compiler) rule(expression string) (string, error) {
	if name := c.named[expression]; name != "" {
		return name, nil
	}
	if len(c.rules) >= maxRules {
		return "", refuse("", "the schema is too large: its grammar has more than %d rules", maxRules)
	}
	name := "r" + strconv.Itoa(len(c.rules))
	c.named[expression], c.named[name] = name, name
	c.define(name, expression)
	return name, c.fits(place{})
}

func (c *compiler) grammar(root string) (string, error) {
	first := "root ::= " + root + "\n"
	c.size += len(first)
	return first + strings.Join(c.rules, "\n") + "\n", c.fits(place{})
}

// place is a schema within the document.
type place struct {
	path  string
	raw   json.RawMessage
	depth int
}

func (p place) refuse(format string, args ...any) error { return refuse(p.path, format, args...) }

func (p place) at(raw json.RawMessage, steps ...any) place {
	for _, s := range steps {
		p.path += "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(fmt.Sprint(s))
	}
	return place{path: p.path, raw: raw, depth: p.depth + 1}
}

// enforced are the keywords that this package holds to; refused those that mean something and that it cannot.
var (
	enforced = map[string][]string{
		"object":  {"properties", "required", "additionalProperties"},
		"array":   {"items", "prefixItems", "minItems", "maxItems"},
		"string":  {"minLength", "maxLength", "pattern", "format"},
		"number":  {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
		"integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
	}
	refused = []string{"not", "if", "then", "else", "patternProperties", "propertyNames", "dependentRequired", "dependentSchemas", "dependencies",
		"contains", "minContains", "maxContains", "uniqueItems", "multipleOf", "minProperties", "maxProperties", "unevaluatedProperties",
		"unevaluatedItems", "$dynamicRef", "$recursiveRef"}
	types = []string{"object", "array", "string", "number", "integer", "boolean", "null"}
)

// value returns an expression for what a schema allows. via are the references that were followed since the text last moved on.
func (c *compiler) value(p place, via []string) (string, error) {
	if p.depth > maxDepth {
		return "", p.refuse("schemas are nested more than %d deep", maxDepth)
	}
	switch string(p.raw) {
	case "true", "{}":
		return c.use("any"), nil
	case "false":
		return "", p.refuse("false allows nothing")
	}
	s, err := p.object()
	if err != nil {
		return "", err
	}
	for _, k := range refused {
		if raw, ok := s.values[k]; ok && !(k == "uniqueItems" && string(raw) == "false") {
			return "", p.refuse("%q cannot be enforced here; leave it out", k)
		}
	}
	if raw, ok := s.values["$ref"]; ok {
		return c.reference(p.at(raw, "$ref"), via)
	}
	if raw, ok := s.values["const"]; ok {
		return literal(raw), nil
	}
	if raw, ok := s.values["enum"]; ok {
		list, err := p.at(raw, "enum").list()
		if err != nil {
			return "", err
		}
		return alternatives(list, func(_ int, raw json.RawMessage) (string, error) { return literal(raw), nil })
	}
	for _, k := range []string{"anyOf", "oneOf"} {
		raw, ok := s.values[k]
		if !ok {
			continue
		}
		list, err := p.at(raw, k).list()
		if err != nil {
			return "", err
		}
		for _, sibling := range []string{"properties", "items", "allOf", "required", "pattern"} {
			if _, ok := s.values[sibling]; ok {
				return "", p.refuse("%q beside %q cannot be enforced here; put it into each of them", sibling, k)
			}
		}
		expression, err := alternatives(list, func(i int, raw json.RawMessage) (string, error) { return c.value(p.at(raw, k, i), via) })
		if err == nil && p.depth%maxNested == 0 {
			return c.rule(expression)
		}
		return expression, err
	}
	if raw, ok := s.values["allOf"]; ok {
		if s, err = c.merge(p, s, raw); err != nil {
			return "", err
		}
	}
	list, err := s.types(p)
	if err != nil {
		return "", err
	}
	return alternatives(list, func(_ int, t string) (string, error) { return c.typed(p, s, t) })
}

func (c *compiler) typed(p place, s *object, t string) (string, error) {
	switch t {
	case "object":
		return c.object(p, s)
	case "array":
		return c.array(p, s)
	case "string":
		return c.text(p, s)
	case "integer", "number":
		return c.number(p, s, t == "integer")
	default:
		return c.use(t), nil
	}
}

// types are those that a schema names or, where it names none, those that its keywords are about.
func (s *object) types(p place) ([]string, error) {
	raw, ok := s.values["type"]
	if !ok {
		for _, t := range types {
			if slices.ContainsFunc(enforced[t], func(k string) bool { return s.values[k] != nil }) {
				return []string{t}, nil
			}
		}
		return types, nil
	}
	var one string
	list := []string{}
	if json.Unmarshal(raw, &one) == nil {
		list = []string{one}
	} else if json.Unmarshal(raw, &list) != nil || len(list) == 0 {
		return nil, p.refuse("type must be one of %s, or a list of them", strings.Join(types, ", "))
	}
	for _, t := range list {
		if !slices.Contains(types, t) {
			return nil, p.refuse("type is %.40q; it must be one of %s", t, strings.Join(types, ", "))
		}
	}
	if slices.Contains(list, "number") {
		list = slices.DeleteFunc(list, func(t string) bool { return t == "integer" })
	}
	return slices.Compact(list), nil
}

func alternatives[T any](list []T, f func(int, T) (string, error)) (string, error) {
	texts := make([]string, len(list))
	for i, v := range list {
		var err error
		if texts[i], err = f(i, v); err != nil {
			return "", err
		}
	}
	slices.Sort(texts)
	if texts = slices.Compact(texts); len(texts) == 1 {
		return texts[0], nil
	}
	return "(" + strings.Join(texts, " | ") + ")", nil
}

// reference follows a $ref. What it leads to has a rule of its own, so that it may lead to itself.
func (c *compiler) reference(p place, via []string) (string, error) {
	target, err := c.resolve(p)
	if err != nil {
		return "", err
	}
	if slices.Contains(via, target.path) {
		return "", p.refuse("%q leads to itself with nothing in between", target.path)
	}
	if name, ok := c.refs[target.path]; ok {
		return name, nil
	}
	name := fmt.Sprintf("ref%d", len(c.rules))
	c.refs[target.path] = name
	at := len(c.rules)
	c.rules = append(c.rules, "")
	target.depth = p.depth
	expression, err := c.value(target, append(slices.Clip(via), target.path))
	if err != nil {
		return "", err
	}
	if expression == name {
		return "", p.refuse("%q leads to itself with nothing in between", target.path)
	}
	c.rules[at] = name + " ::= " + expression
	c.size += len(c.rules[at]) + 1
	return name, nil
}

// resolve finds what a $ref names: a JSON pointer (RFC 6901) into the document.
func (c *compiler) resolve(p place) (place, error) {
	var ref string
	if json.Unmarshal(p.raw, &ref) != nil {
		return place{}, p.refuse("a $ref must be text")
	}
	pointer, local := strings.CutPrefix(ref, "#")
	if !local || pointer != "" && pointer[0] != '/' {
		return place{}, p.refuse("%.80q leads elsewhere; only references within the schema, as #/$defs/NAME, are followed", ref)
	}
	at := place{raw: c.document, path: ""}
	if pointer == "" {
		return at, nil
	}
	for _, step := range strings.Split(pointer[1:], "/") {
		step = strings.NewReplacer("~1", "/", "~0", "~").Replace(step)
		var list []json.RawMessage
		if json.Unmarshal(at.raw, &list) == nil {
			if i, err := strconv.Atoi(step); err == nil && i >= 0 && i < len(list) {
				at = at.at(list[i], step)
				continue
			}
		} else if o, err := at.object(); err == nil && o.values[step] != nil {
			at = at.at(o.values[step], step)
			continue
		}
		return place{}, p.refuse("%.80q is not in the schema", ref)
	}
	return at, nil
}

// merge puts the schemas of an allOf, which must be objects' and agree, into the one that they stand in.
func (c *compiler) merge(p place, s *object, raw json.RawMessage) (*object, error) {
	list, err := p.at(raw, "allOf").list()
	if err != nil {
		return nil, err
	}
	all := &object{values: map[string]json.RawMessage{}}
	properties, required := &object{values: map[string]json.RawMessage{}}, []json.RawMessage{}
	add := func(p place, s *object) error {
		for _, k := range s.keys {
			switch k {
			case "allOf":
			case "properties":
				more, err := p.at(s.values[k], k).object()
				if err != nil {
					return err
				}
				for _, name := range more.keys {
					if !properties.set(name, more.values[name]) {
						return p.refuse("two schemas of an allOf say what %.40q is, which cannot be enforced here", name)
					}
				}
			case "required":
				more, err := p.at(s.values[k], k).list()
				if err != nil {
					return err
				}
				required = append(required, more...)
			default:
				if !all.set(k, s.values[k]) && slices.ContainsFunc(types, func(t string) bool { return slices.Contains(enforced[t], k) }) {
					return p.refuse("two schemas of an allOf have %q, which cannot be enforced here", k)
				}
			}
		}
		return nil
	}
	if err := add(p, s); err != nil {
		return nil, err
	}
	for i, raw := range list {
		at := p.at(raw, "allOf", i)
		o, err := at.object()
		for n := 0; err == nil && o.values["$ref"] != nil; n++ {
			if n > maxDepth {
				return nil, at.refuse("its $ref leads to itself")
			}
			if at, err = c.resolve(at.at(o.values["$ref"], "$ref")); err == nil {
				o, err = at.object()
			}
		}
		if err != nil {
			return nil, err
		}
		for _, k := range append([]string{"anyOf", "oneOf", "allOf", "enum", "const"}, refused...) {
			if o.values[k] != nil {
				return nil, at.refuse("%q within an allOf cannot be enforced here", k)
			}
		}
		if err := add(at, o); err != nil {
			return nil, err
		}
	}
	if len(properties.keys) > 0 {
		all.set("properties", properties.json())
	}
	if len(required) > 0 {
		text, err := json.Marshal(required)
		if err != nil {
			return nil, err
		}
		all.set("required", text)
	}
	return all, nil
}

// object is a JSON object that knows the order of its keys.
type object struct {
	keys   []string
	values map[string]json.RawMessage
}

// set adds a value; false if another one is there.
func (s *object) set(key string, raw json.RawMessage) bool {
	if old, ok := s.values[key]; ok {
		return bytes.Equal(old, raw)
	}
	s.keys = append(s.keys, key)
	s.values[key] = raw
	return true
}

func (s *object) json() json.RawMessage {
	var text []byte
	for _, k := range s.keys {
		text = append(text, ',')
		text = append(text, quote(k)...)
		text = append(append(text, ':'), s.values[k]...)
	}
	text[0] = '{'
	return append(text, '}')
}

func (p place) object() (*object, error) {
	d := json.NewDecoder(bytes.NewReader(p.raw))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, p.refuse("an object is needed here")
	}
	o := &object{values: map[string]json.RawMessage{}}
	for d.More() {
		key, err := d.Token()
		var raw json.RawMessage
		if err = errors.Join(err, d.Decode(&raw)); err != nil && !errors.Is(err, io.EOF) {
			return nil, p.refuse("it is not valid JSON")
		}
		if !o.set(key.(string), raw) {
			return nil, p.refuse("%.40q comes twice", key)
		}
	}
	return o, nil
}

func (p place) list() ([]json.RawMessage, error) {
	var list []json.RawMessage
	if json.Unmarshal(p.raw, &list) != nil || len(list) == 0 {
		return nil, p.refuse("a list with something in it is needed here")
	}
	return list, nil
}

// count reads a number of items or characters; absent returns otherwise.
func (s *object) count(p place, key string, otherwise int) (int, error) {
	raw, ok := s.values[key]
	if !ok {
		return otherwise, nil
	}
	var n float64
	if json.Unmarshal(raw, &n) != nil || n != float64(int(n)) || n < 0 || n > maxRepetition {
		return 0, p.at(raw, key).refuse("it must be a whole number from 0 to %d", maxRepetition)
	}
	return int(n), nil
}

const maxRepetition = 4096 // of GBNF

// bounds reads two counts, the smallest and the largest; -1 stands for no largest one.
func (s *object) bounds(p place, low, high string) (int, int, error) {
	m, err := s.count(p, low, 0)
	if err != nil {
		return 0, 0, err
	}
	n, err := s.count(p, high, -1)
	if err == nil && n >= 0 && n < m {
		err = p.refuse("%s is %d and %s %d: nothing is between them", low, m, high, n)
	}
	return m, n, err
}

// repeat returns the rule of an item, a class or a name, so many times; high is -1 where there is no end.
func (c *compiler) repeat(p place, item string, low, high int) (string, error) {
	expression := fmt.Sprintf("%s{%d,%d}", item, low, high)
	if high < 0 {
		expression = fmt.Sprintf("%s{%d,}", item, low)
	}
	if c.named[expression] == "" {
		// The item is written down for each time that must come, and a rule is made for each that may.
		c.size += low + 4*max(1, high-low)
		if err := c.fits(p); err != nil {
			return "", err
		}
	}
	return c.rule(expression)
}

// quote is the JSON of a text, with nothing escaped that need not be.
func quote(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // text can always be encoded
	return strings.TrimSuffix(b.String(), "\n")
}

// literal allows one JSON value as it is written without white space.
func literal(raw json.RawMessage) string {
	var b bytes.Buffer
	_ = json.Compact(&b, raw) // it is part of a valid document
	return exactly(b.String())
}

// exactly is a GBNF literal.
func exactly(text string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
