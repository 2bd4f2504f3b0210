package llamacpp

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits of a grammar.
const (
	maxGrammarBytes    = 64 << 10
	maxGrammarDepth    = 64
	maxGrammarElements = 1 << 16 // repetitions multiplied out
	maxRepetition      = 1 << 12
)

// gbnf is a compiled grammar. The notation is llama.cpp's GBNF, without its elements for single tokens:
// https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md
type gbnf struct {
	code  []element
	rules [][]int // where each alternative of a rule begins in code
	root  int
}

// element is a step of an alternative: a class of characters, a reference to a rule, or the alternative's end.
type element struct {
	kind    elementKind
	rule    int
	ranges  []rune // first and last, in pairs
	negated bool
}

type elementKind uint8

const (
	endElement elementKind = iota
	classElement
	ruleElement
)

// matches says whether a class holds one of the characters from low to high.
func (e *element) matches(low, high rune) bool {
	for i := 0; i < len(e.ranges); i += 2 {
		if !e.negated && low <= e.ranges[i+1] && high >= e.ranges[i] {
			return true
		}
		if e.negated && low >= e.ranges[i] && high <= e.ranges[i+1] {
			return false
		}
	}
	return e.negated
}

// isOnly says whether a class holds this character and no other.
func (e *element) isOnly(r rune) bool {
	return !e.negated && len(e.ranges) == 2 && e.ranges[0] == r && e.ranges[1] == r
}

// parseGrammar compiles a grammar; errors are *decode.InputError.
func parseGrammar(text string) (*gbnf, error) {
	p := grammarParser{text: text, names: map[string]int{}, used: map[string]int{}}
	g, err := p.parse()
	if err != nil {
		return nil, refuse("grammar", "line %d: %s", 1+strings.Count(text[:min(p.at, len(text))], "\n"), err)
	}
	return g, nil
}

type grammarParser struct {
	gbnf
	text  string
	at    int
	depth int
	names map[string]int
	used  map[string]int // name: where it is used first
}

func (p *grammarParser) parse() (*gbnf, error) {
	if len(p.text) > maxGrammarBytes {
		return nil, fmt.Errorf("it has %d bytes; at most %d are allowed", len(p.text), maxGrammarBytes)
	}
	if !utf8.ValidString(p.text) {
		return nil, fmt.Errorf("it is not valid UTF-8")
	}
	for p.space(true); p.at < len(p.text); p.space(true) {
		name := p.name()
		if name == "" {
			return nil, fmt.Errorf("a rule must begin with its name, not with %s", p.here())
		}
		p.space(false)
		if !p.skip("::=") {
			return nil, fmt.Errorf("%q must be followed by ::=, not by %s", name, p.here())
		}
		p.space(true)
		alternatives, err := p.alternatives()
		if err != nil {
			return nil, err
		}
		if p.at < len(p.text) && p.text[p.at] != '\n' {
			return nil, fmt.Errorf("rule %q ends before %s", name, p.here())
		}
		id := p.rule(name)
		if p.rules[id] != nil {
			return nil, fmt.Errorf("rule %q is defined twice", name)
		}
		if err := p.define(id, alternatives); err != nil {
			return nil, err
		}
	}
	root, ok := p.names["root"]
	if !ok || p.rules[root] == nil {
		return nil, fmt.Errorf(`it has no rule "root"; it must begin with root ::= …`)
	}
	for name, at := range p.used {
		if p.rules[p.names[name]] == nil {
			p.at = at
			return nil, fmt.Errorf("rule %q is used but not defined", name)
		}
	}
	p.gbnf.root = root
	return &p.gbnf, nil
}

// here names what stands at the parser's place.
func (p *grammarParser) here() string {
	if p.at >= len(p.text) {
		return "the end"
	}
	r, _ := utf8.DecodeRuneInString(p.text[p.at:])
	return strconv.QuoteRune(r)
}

func (p *grammarParser) space(newlines bool) {
	for p.at < len(p.text) {
		switch c := p.text[p.at]; {
		case c == ' ' || c == '\t' || c == '\r' || newlines && c == '\n':
			p.at++
		case c == '#':
			for p.at < len(p.text) && p.text[p.at] != '\n' {
				p.at++
			}
		default:
			return
		}
	}
}

func (p *grammarParser) skip(s string) bool {
	if !strings.HasPrefix(p.text[p.at:], s) {
		return false
	}
	p.at += len(s)
	return true
}

func (p *grammarParser) name() string {
	start := p.at
	for p.at < len(p.text) {
		c := p.text[p.at]
		if c != '-' && c != '_' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			break
		}
		p.at++
	}
	return p.text[start:p.at]
}

func (p *grammarParser) rule(name string) int {
	id, ok := p.names[name]
	if !ok {
		id = p.newRule()
		p.names[name] = id
	}
	return id
}

func (p *grammarParser) newRule() int {
	p.rules = append(p.rules, nil)
	return len(p.rules) - 1
}

func (p *grammarParser) define(id int, alternatives [][]element) error {
	p.rules[id] = []int{}
	for _, a := range alternatives {
		p.rules[id] = append(p.rules[id], len(p.code))
		p.code = append(append(p.code, a...), element{kind: endElement})
	}
	if len(p.code) > maxGrammarElements {
		return fmt.Errorf("it has more than %d elements, repetitions multiplied out", maxGrammarElements)
	}
	return nil
}

func (p *grammarParser) alternatives() ([][]element, error) {
	if p.depth++; p.depth > maxGrammarDepth {
		return nil, fmt.Errorf("groups are nested more than %d deep", maxGrammarDepth)
	}
	defer func() { p.depth-- }()
	var list [][]element
	for {
		s, err := p.sequence()
		if err != nil {
			return nil, err
		}
		list = append(list, s)
		if !p.skip("|") {
			return list, nil
		}
		p.space(true)
	}
}

func (p *grammarParser) sequence() ([]element, error) {
	var list []element
	for p.at < len(p.text) {
		item, ok, err := p.item()
		if err != nil || !ok {
			return list, err
		}
		if item, err = p.repetition(item); err != nil {
			return nil, err
		}
		if list = append(list, item...); len(list) > maxGrammarElements {
			return nil, fmt.Errorf("it has more than %d elements, repetitions multiplied out", maxGrammarElements)
		}
		p.space(p.depth > 1)
	}
	return list, nil
}

// item reads what a repetition can stand behind; false if none is here.
func (p *grammarParser) item() (list []element, ok bool, err error) {
	switch c := p.text[p.at]; c {
	case '"':
		p.at++
		for !p.skip(`"`) {
			r, err := p.char('"')
			if err != nil {
				return nil, false, err
			}
			list = append(list, element{kind: classElement, ranges: []rune{r, r}})
		}
		return list, true, nil
	case '[':
		p.at++
		e := element{kind: classElement, negated: p.skip("^")}
		for !p.skip("]") {
			low, err := p.char(']')
			if err != nil {
				return nil, false, err
			}
			high := low
			if strings.HasPrefix(p.text[p.at:], "-") && !strings.HasPrefix(p.text[p.at:], "-]") {
				p.at++
				if high, err = p.char(']'); err != nil {
					return nil, false, err
				}
			}
			if high < low {
				return nil, false, fmt.Errorf("the range %q-%q runs backwards", low, high)
			}
			e.ranges = append(e.ranges, low, high)
		}
		return []element{e}, true, nil
	case '.':
		p.at++
		return []element{{kind: classElement, negated: true}}, true, nil
	case '(':
		p.at++
		p.space(true)
		alternatives, err := p.alternatives()
		if err != nil {
			return nil, false, err
		}
		if !p.skip(")") {
			return nil, false, fmt.Errorf("a group must end with ), not with %s", p.here())
		}
		id := p.newRule()
		return []element{{kind: ruleElement, rule: id}}, true, p.define(id, alternatives)
	case '<', '!':
		return nil, false, fmt.Errorf("elements for single tokens, %c, are not supported; write their text", c)
	}
	at := p.at
	name := p.name()
	if name == "" {
		return nil, false, nil
	}
	if _, seen := p.used[name]; !seen {
		p.used[name] = at
	}
	return []element{{kind: ruleElement, rule: p.rule(name)}}, true, nil
}

// char reads a character of a literal or class, escapes resolved.
func (p *grammarParser) char(end byte) (rune, error) {
	if p.at >= len(p.text) || p.text[p.at] == '\n' {
		return 0, fmt.Errorf("%q is missing", end)
	}
	r, n := utf8.DecodeRuneInString(p.text[p.at:])
	p.at += n
	if r != '\\' {
		return r, nil
	}
	if p.at >= len(p.text) {
		return 0, fmt.Errorf("%q is missing", end)
	}
	c := p.text[p.at]
	p.at++
	switch c {
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case '\\', '"', '[', ']':
		return rune(c), nil
	case 'x', 'u', 'U':
		digits := map[byte]int{'x': 2, 'u': 4, 'U': 8}[c]
		if p.at+digits <= len(p.text) {
			if n, err := strconv.ParseUint(p.text[p.at:p.at+digits], 16, 32); err == nil && n <= utf8.MaxRune {
				p.at += digits
				return rune(n), nil
			}
		}
		return 0, fmt.Errorf(`\%c must be followed by %d hexadecimal digits of a character`, c, digits)
	}
	return 0, fmt.Errorf(`\%c is no escape; they are \n \r \t \\ \" \[ \] \x \u \U`, c)
}

// repetition reads what stands behind an item, if anything, and returns the item repeated.
func (p *grammarParser) repetition(item []element) ([]element, error) {
	low, high := 1, 1
	switch {
	case p.skip("*"):
		low, high = 0, -1
	case p.skip("+"):
		high = -1
	case p.skip("?"):
		low = 0
	case p.skip("{"):
		body, _, found := strings.Cut(p.text[p.at:], "}")
		first, second, ranged := strings.Cut(body, ",")
		var err, err2 error
		low, err = strconv.Atoi(strings.TrimSpace(first))
		if high = low; ranged {
			if high = -1; strings.TrimSpace(second) != "" {
				high, err2 = strconv.Atoi(strings.TrimSpace(second))
			}
		}
		if !found || err != nil || err2 != nil || low < 0 || low > maxRepetition || high > maxRepetition || high != -1 && high < low {
			return nil, fmt.Errorf("a repetition must be {m}, {m,} or {m,n} with 0 ≤ m ≤ n ≤ %d", maxRepetition)
		}
		p.at += len(body) + 1
	default:
		return item, nil
	}
	if len(item) != 1 { // a literal is repeated as a whole
		id := p.newRule()
		if err := p.define(id, [][]element{item}); err != nil {
			return nil, err
		}
		item = []element{{kind: ruleElement, rule: id}}
	}
	var list []element
	for range low {
		list = append(list, item...)
	}
	if high < 0 {
		// r ::= item r |
		id := p.newRule()
		again := element{kind: ruleElement, rule: id}
		return append(list, again), p.define(id, [][]element{{item[0], again}, {}})
	}
	// r1 ::= item r2 | … : once one is missing there is no more
	var rest []element
	for range high - low {
		id := p.newRule()
		if err := p.define(id, [][]element{append(item[:1:1], rest...), {}}); err != nil {
			return nil, err
		}
		rest = []element{{kind: ruleElement, rule: id}}
	}
	return append(list, rest...), nil
}
