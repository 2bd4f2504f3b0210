package jinja

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

type tokKind int

const (
	tokEOF   tokKind = iota
	tokData          // text outside of tags
	tokOpen          // {{
	tokClose         // }}
	tokBegin         // {%
	tokEnd           // %}
	tokName
	tokInt
	tokFloat
	tokString
	tokOp
)

type token struct {
	kind tokKind
	text string
	line int
}

type lexer struct {
	src  string
	pos  int
	line int
	toks []token
}

func (l *lexer) failf(format string, a ...any) {
	panic(failure{&Error{l.line, fmt.Sprintf(format, a...)}})
}

func (l *lexer) emit(k tokKind, text string) { l.toks = append(l.toks, token{k, text, l.line}) }

// skip moves on by n bytes and counts lines.
func (l *lexer) skip(n int) {
	l.line += strings.Count(l.src[l.pos:l.pos+n], "\n")
	l.pos += n
}

// lex splits a template into tokens. Whitespace around tags is dealt with here: "-" trims, "+" keeps, a newline after a block or
// comment is dropped (trim_blocks), and so is white space between the start of a line and a block or comment (lstrip_blocks).
func lex(src string) []token {
	src = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(src)
	l := &lexer{src: strings.TrimSuffix(src, "\n"), line: 1}
	trim := false // the tag before ended in "-"
	for l.pos < len(l.src) {
		rest := l.src[l.pos:]
		lineStart := l.pos == 0 || l.src[l.pos-1] == '\n'
		open := nextTag(rest)
		data, tag := rest, ""
		if open >= 0 {
			data, tag = rest[:open], rest[open:open+2]
		}
		mark := byte(0) // "-" or "+" behind the tag's opening
		if open >= 0 && open+2 < len(rest) && (rest[open+2] == '-' || rest[open+2] == '+') {
			mark = rest[open+2]
		}
		out := data
		if mark == '-' {
			out = strings.TrimRightFunc(out, unicode.IsSpace)
		} else if tag != "" && tag != "{{" && mark != '+' {
			nl := strings.LastIndexByte(out, '\n') + 1
			if (nl > 0 || lineStart) && strings.TrimSpace(out[nl:]) == "" {
				out = out[:nl]
			}
		}
		if trim {
			out = strings.TrimLeftFunc(out, unicode.IsSpace)
		}
		if out != "" {
			l.emit(tokData, out)
		}
		l.skip(len(data))
		if open < 0 {
			break
		}
		l.skip(2)
		if mark != 0 {
			l.skip(1)
		}
		switch tag {
		case "{#":
			trim = l.comment()
		case "{{":
			l.emit(tokOpen, "{{")
			trim = l.code("}}", tokClose)
		case "{%":
			if raw := rawBlock(l.src[l.pos:]); raw != nil {
				l.skip(raw.head)
				if raw.body != "" {
					l.emit(tokData, raw.body)
				}
				l.skip(raw.tail)
				trim = raw.trim
				continue
			}
			l.emit(tokBegin, "{%")
			trim = l.code("%}", tokEnd)
		}
	}
	l.emit(tokEOF, "the end")
	return l.toks
}

func nextTag(s string) int {
	for i := 0; i+1 < len(s); i++ {
		if s[i] == '{' && strings.IndexByte("{%#", s[i+1]) >= 0 {
			return i
		}
	}
	return -1
}

// comment skips to the end of a comment and says whether it trims what follows.
func (l *lexer) comment() (trim bool) {
	end := strings.Index(l.src[l.pos:], "#}")
	if end < 0 {
		l.failf("a comment is not closed by #}")
	}
	trim = end > 0 && l.src[l.pos+end-1] == '-'
	keep := end > 0 && l.src[l.pos+end-1] == '+'
	l.skip(end + 2)
	l.trimNewline(trim || keep)
	return trim
}

func (l *lexer) trimNewline(keep bool) {
	if !keep && strings.HasPrefix(l.src[l.pos:], "\n") {
		l.skip(1)
	}
}

type raw struct {
	head, tail int // bytes up to the body, bytes from there to behind endraw
	body       string
	trim       bool
}

// rawBlock recognises "raw %}…{% endraw %}" behind "{%".
func rawBlock(s string) *raw {
	rest := strings.TrimLeftFunc(s, unicode.IsSpace)
	rest, ok := strings.CutPrefix(rest, "raw")
	if !ok {
		return nil
	}
	rest = strings.TrimLeftFunc(rest, unicode.IsSpace)
	trimHead := strings.HasPrefix(rest, "-")
	rest, ok = strings.CutPrefix(strings.TrimPrefix(rest, "-"), "%}")
	if !ok {
		return nil
	}
	r := &raw{head: len(s) - len(rest)}
	for at := 0; ; {
		i := strings.Index(rest[at:], "{%")
		if i < 0 {
			return nil
		}
		body, tag := rest[:at+i], rest[at+i+2:]
		at += i + 2
		trimBody := strings.HasPrefix(tag, "-")
		tag = strings.TrimLeftFunc(strings.TrimPrefix(tag, "-"), unicode.IsSpace)
		if tag, ok = strings.CutPrefix(tag, "endraw"); !ok {
			continue
		}
		tag = strings.TrimLeftFunc(tag, unicode.IsSpace)
		r.trim = strings.HasPrefix(tag, "-")
		if tag, ok = strings.CutPrefix(strings.TrimPrefix(tag, "-"), "%}"); !ok {
			return nil
		}
		if !r.trim {
			tag = strings.TrimPrefix(tag, "\n")
		}
		r.tail = len(rest) - len(tag)
		if trimHead {
			body = strings.TrimLeftFunc(body, unicode.IsSpace)
		} else {
			body = strings.TrimPrefix(body, "\n")
		}
		if trimBody {
			body = strings.TrimRightFunc(body, unicode.IsSpace)
		}
		r.body = body
		return r
	}
}

var operators = []string{"**", "//", "==", "!=", "<=", ">="}

// code lexes the inside of a tag up to its end and says whether it trims what follows.
func (l *lexer) code(end string, endKind tokKind) (trim bool) {
	open := 0 // brackets
	for l.pos < len(l.src) {
		rest := l.src[l.pos:]
		c := rest[0]
		if open == 0 {
			sign := c == '-' || c == '+'
			if at := rest[min(len(rest), btoi(sign)):]; strings.HasPrefix(at, end) {
				l.emit(endKind, end)
				l.skip(btoi(sign) + 2)
				if end == "%}" {
					l.trimNewline(sign)
				}
				return c == '-'
			}
		}
		switch {
		case strings.IndexByte(" \t\n\f\v", c) >= 0:
			l.skip(1)
		case c == '"' || c == '\'':
			l.str(c)
		case c >= '0' && c <= '9':
			l.number()
		default:
			r, _ := utf8.DecodeRuneInString(rest)
			if r == '_' || unicode.IsLetter(r) {
				n := strings.IndexFunc(rest, func(r rune) bool { return r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r) })
				if n < 0 {
					n = len(rest)
				}
				l.emit(tokName, rest[:n])
				l.skip(n)
				continue
			}
			n := 1
			for _, op := range operators {
				if strings.HasPrefix(rest, op) {
					n = 2
				}
			}
			if n == 1 && strings.IndexByte("+-*/%~[](){},:.|=<>", c) < 0 {
				l.failf("unexpected character %q", r)
			}
			switch c {
			case '(', '[', '{':
				open++
			case ')', ']', '}':
				open = max(0, open-1)
			}
			l.emit(tokOp, rest[:n])
			l.skip(n)
		}
	}
	l.failf("a tag is not closed by %s", end)
	return false
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (l *lexer) number() {
	rest := l.src[l.pos:]
	digits := func(i int) int {
		for i < len(rest) && (rest[i] >= '0' && rest[i] <= '9' || rest[i] == '_') {
			i++
		}
		return i
	}
	n, kind := digits(0), tokInt
	if n+1 < len(rest) && rest[n] == '.' && rest[n+1] >= '0' && rest[n+1] <= '9' {
		n, kind = digits(n+1), tokFloat
	}
	if n < len(rest) && (rest[n] == 'e' || rest[n] == 'E') {
		at := n + 1
		if at < len(rest) && (rest[at] == '+' || rest[at] == '-') {
			at++
		}
		if e := digits(at); e > at {
			n, kind = e, tokFloat
		}
	}
	l.emit(kind, strings.ReplaceAll(rest[:n], "_", ""))
	l.skip(n)
}

// str lexes a string with Python's escapes.
func (l *lexer) str(quote byte) {
	rest := l.src[l.pos+1:]
	var b strings.Builder
	for i := 0; i < len(rest); i++ {
		c := rest[i]
		if c == quote {
			l.emit(tokString, b.String())
			l.skip(i + 2)
			return
		}
		if c != '\\' || i+1 == len(rest) {
			b.WriteByte(c)
			continue
		}
		i++
		switch c := rest[i]; c {
		case '\n':
		case '\\', '\'', '"':
			b.WriteByte(c)
		case 'x', 'u', 'U':
			n := map[byte]int{'x': 2, 'u': 4, 'U': 8}[c]
			code, err := strconv.ParseUint(rest[i+1:min(len(rest), i+1+n)], 16, 32)
			if err != nil || i+n >= len(rest) || !utf8.ValidRune(rune(code)) {
				l.failf("a string has an invalid \\%c escape", c)
			}
			b.WriteRune(rune(code))
			i += n
		default:
			if e := strings.IndexByte("abfnrtv0", c); e >= 0 {
				b.WriteByte("\a\b\f\n\r\t\v\x00"[e])
			} else {
				b.WriteByte('\\')
				b.WriteByte(c)
			}
		}
	}
	l.failf("a string is not closed by %c", quote)
}
