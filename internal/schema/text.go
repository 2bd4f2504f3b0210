package schema

import (
	"encoding/json"
	"fmt"
	"regexp/syntax"
	"strings"
	"unicode"
)

// formats are those that are enforced; others only describe, as JSON Schema has it.
var formats = map[string]string{
	"date":      `^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$`,
	"time":      `^([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$`,
	"date-time": `^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$`,
	"uuid":      `^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`,
	"ipv4":      `^((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])$`,
	"email":     `^[A-Za-z0-9_+-]{1,32}(\.[A-Za-z0-9_+-]{1,32}){0,3}@([A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?\.){1,4}[A-Za-z]{2,24}$`,
	"hostname":  `^([A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?\.){0,4}[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?$`,
}

// text returns the expression of a string.
func (c *compiler) text(p place, s *object) (string, error) {
	low, high, err := s.bounds(p, "minLength", "maxLength")
	if err != nil {
		return "", err
	}
	var pattern, format string
	if raw, ok := s.values["pattern"]; ok {
		if json.Unmarshal(raw, &pattern) != nil {
			return "", p.at(raw, "pattern").refuse("a regular expression is needed here")
		}
	}
	if raw, ok := s.values["format"]; ok {
		if json.Unmarshal(raw, &format) != nil {
			return "", p.at(raw, "format").refuse("a name is needed here")
		}
		format = formats[format]
	}
	switch {
	case pattern == "" && format == "" && low == 0 && high < 0:
		return c.use("string"), nil
	case pattern == "" && format == "":
		chars, err := c.repeat(p, c.use("char"), low, high)
		if err != nil {
			return "", err
		}
		return `"\"" ` + chars + ` "\""`, nil
	case pattern != "" && format != "", low > 0, high >= 0:
		return "", p.refuse("of pattern, format and a length only one can be enforced here")
	}
	expression, err := c.pattern(p, or(pattern, format))
	if err != nil {
		return "", err
	}
	return c.rule(`"\"" ` + expression + ` "\""`)
}

// pattern turns a regular expression (those of Go, which can be matched in linear time) into an expression for the inside of
// a JSON string. Like JSON Schema's it may match anywhere unless it is anchored.
func (c *compiler) pattern(p place, text string) (string, error) {
	re, err := syntax.Parse(text, syntax.Perl&^syntax.OneLine)
	if err != nil {
		return "", p.refuse("pattern: %.80q cannot be enforced here: %.200v", text, err)
	}
	begins, ends := false, false
	list := []*syntax.Regexp{re}
	if re.Op == syntax.OpConcat {
		list = re.Sub
	}
	anchor := func(op syntax.Op, begin bool) bool {
		if begin {
			return op == syntax.OpBeginText || op == syntax.OpBeginLine
		}
		return op == syntax.OpEndText || op == syntax.OpEndLine
	}
	if len(list) > 0 && anchor(list[0].Op, true) {
		begins, list = true, list[1:]
	}
	if len(list) > 0 && anchor(list[len(list)-1].Op, false) {
		ends, list = true, list[:len(list)-1]
	}
	var parts []string
	if !begins {
		parts = append(parts, c.use("char")+"*")
	}
	for _, sub := range list {
		part, err := c.regexp(p, sub)
		if err != nil {
			return "", err
		}
		parts = append(parts, part)
	}
	if !ends {
		parts = append(parts, c.use("char")+"*")
	}
	return strings.Join(parts, " "), nil
}

// regexp returns the expression of a part: a sequence. Alternatives and what is repeated are rules of their own, so that groups do not nest
// however deep the pattern does, and that llama.cpp, which multiplies the repetitions within a group by its own, does not refuse them.
func (c *compiler) regexp(p place, re *syntax.Regexp) (string, error) {
	parts := make([]string, len(re.Sub))
	for i, sub := range re.Sub {
		var err error
		if parts[i], err = c.regexp(p, sub); err != nil {
			return "", err
		}
	}
	low, high := re.Min, re.Max // of OpRepeat
	switch re.Op {
	case syntax.OpEmptyMatch:
		return `""`, nil
	case syntax.OpLiteral:
		for _, r := range re.Rune {
			ranges := []rune{r, r}
			if re.Flags&syntax.FoldCase != 0 {
				for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
					ranges = append(ranges, f, f)
				}
			}
			parts = append(parts, class(ranges))
		}
		return strings.Join(parts, " "), nil
	case syntax.OpCharClass:
		return class(re.Rune), nil
	case syntax.OpAnyCharNotNL, syntax.OpAnyChar:
		return c.use("char"), nil
	case syntax.OpCapture:
		return parts[0], nil
	case syntax.OpConcat:
		return strings.Join(parts, " "), nil
	case syntax.OpAlternate:
		return c.rule(strings.Join(parts, " | "))
	case syntax.OpStar:
		low, high = 0, -1
	case syntax.OpPlus:
		low, high = 1, -1
	case syntax.OpQuest:
		low, high = 0, 1
	case syntax.OpRepeat:
	default:
		return "", p.refuse("pattern: %.80q cannot be enforced here; ^ may stand at the beginning only, $ at the end, and \\b nowhere", re)
	}
	item := parts[0]
	if item == `""` || high == 0 {
		return `""`, nil // nothing, however often: llama.cpp takes that for left recursion
	}
	switch re.Sub[0].Op {
	case syntax.OpCharClass, syntax.OpAnyCharNotNL, syntax.OpAnyChar: // one item as it is
	default:
		var err error
		if item, err = c.rule(item); err != nil {
			return "", err
		}
	}
	return c.repeat(p, item, low, high)
}

// class allows one character of some ranges, first and last in pairs, as it is written within a JSON string.
func class(ranges []rune) string {
	has := func(r rune) bool {
		for i := 0; i < len(ranges); i += 2 {
			if ranges[i] <= r && r <= ranges[i+1] {
				return true
			}
		}
		return false
	}
	var plain strings.Builder
	add := func(low, high rune) {
		if low <= high {
			plain.WriteString(classChar(low))
			if low < high {
				plain.WriteString("-" + classChar(high))
			}
		}
	}
	for i := 0; i < len(ranges); i += 2 {
		low, high := max(ranges[i], ' '), ranges[i+1]
		for _, hole := range []rune{'"', '\\', 0x7f} {
			if low <= hole && hole <= high {
				add(low, hole-1)
				low = hole + 1
			}
		}
		add(low, high)
	}
	var list []string
	if plain.Len() > 0 {
		list = append(list, "["+plain.String()+"]")
	}
	for r, escaped := range map[rune]string{'"': `\"`, '\\': `\\`, '\n': `\n`, '\r': `\r`, '\t': `\t`} {
		if has(r) {
			list = append(list, exactly(escaped))
		}
	}
	text, _ := alternatives(list, func(_ int, s string) (string, error) { return s, nil })
	if text == "()" {
		return "[]" // nothing that a JSON string can hold
	}
	return text
}

// classChar is a character within a GBNF class.
func classChar(r rune) string {
	switch {
	case r < ' ' || r == 0x7f || r == '-' || r == '^':
		return fmt.Sprintf(`\x%02x`, r)
	case r == '"' || r == '\\' || r == '[' || r == ']':
		return `\` + string(r)
	case r > 0xffff || unicode.Is(unicode.Cs, r) || !unicode.IsPrint(r):
		return fmt.Sprintf(`\U%08x`, r)
	}
	return string(r)
}
