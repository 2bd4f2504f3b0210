package remote

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"anytime/internal/decode"
)

// piece is forced text, or a decoded token: its id, or where there is none its text.
type piece struct {
	decode.Part
	id int32 // -1 none
}

// join makes a prompt of pieces. Half a rune at the end is left out: it cannot be sent, and the model says it again.
func join(pieces []piece) []decode.Part {
	var parts []decode.Part
	var text strings.Builder
	flush := func() {
		if text.Len() > 0 {
			parts = append(parts, decode.Text(strings.ToValidUTF8(text.String(), "")))
			text.Reset()
		}
	}
	for _, p := range pieces {
		switch {
		case p.id >= 0:
			flush()
			if n := len(parts); n == 0 || len(parts[n-1].IDs) == 0 {
				parts = append(parts, decode.Part{})
			}
			last := &parts[len(parts)-1]
			last.IDs = append(last.IDs, p.id)
		case p.Literal, len(p.IDs) > 0:
			flush()
			if n := len(parts); n > 0 && len(p.IDs) > 0 && len(parts[n-1].IDs) > 0 {
				parts[n-1].IDs = append(parts[n-1].IDs, p.IDs...)
			} else {
				parts = append(parts, decode.Part{Text: p.Text, IDs: slices.Clone(p.IDs), Literal: p.Literal})
			}
		default:
			text.WriteString(p.Text)
		}
	}
	flush()
	return parts
}

// breaker is put into the name of a special token that a user wrote: a zero-width character, so that it reads the same.
const breaker = "\u2060"

// Neutralize joins parts to a plain text in which no special token has a byte of Literal text in it. It is for servers to which the
// difference cannot be told; the names are broken by a character without width.
func Neutralize(parts []decode.Part, special []string) string {
	var text strings.Builder
	var literal []bool // of each byte
	for _, p := range parts {
		text.WriteString(p.Text)
		literal = append(literal, slices.Repeat([]bool{p.Literal}, len(p.Text))...)
	}
	s := text.String()
	if !slices.Contains(literal, true) {
		return s
	}
	breaks := map[int]bool{} // bytes before which one is put
	for _, name := range special {
		if len(name) < 2 {
			continue
		}
		for from := 0; ; {
			i := strings.Index(s[from:], name)
			if i < 0 {
				break
			}
			at := from + i
			_, first := utf8.DecodeRuneInString(name)
			if first < len(name) && slices.Contains(literal[at:at+len(name)], true) {
				breaks[at+first] = true
			}
			from = at + first
		}
	}
	if len(breaks) == 0 {
		return s
	}
	var out strings.Builder
	for i := range s {
		if breaks[i] {
			out.WriteString(breaker)
		}
		out.WriteString(s[i:nextRune(s, i)])
	}
	return out.String()
}

func nextRune(s string, i int) int {
	_, n := utf8.DecodeRuneInString(s[i:])
	return i + n
}

// Estimate divides a text into about as many tokens as a vocabulary of 50,000 to 150,000 would: words with the space before them,
// numbers of up to three digits, marks. It is for servers that do not tell.
func Estimate(text string) []decode.Token {
	var tokens []decode.Token
	for text != "" {
		n := first(text)
		tokens = append(tokens, decode.Token{ID: -1, Text: text[:n]})
		text = text[n:]
	}
	return tokens
}

// estimate is how many tokens Estimate gives.
func estimate(text string) int {
	n := 0
	for ; text != ""; n++ {
		text = text[first(text):]
	}
	return n
}

// first is the length of a text's first token.
func first(text string) int {
	const longest = 10 // letters; words that are longer are mostly of several tokens
	at := 0
	if len(text) > 1 && text[0] == ' ' && text[1] != ' ' {
		at = 1
	}
	r, size := utf8.DecodeRuneInString(text[at:])
	// run extends the token by at most n runes of a kind.
	run := func(n int, kind func(rune) bool) int {
		end := at
		for ; n > 0 && end < len(text); n-- {
			r, size := utf8.DecodeRuneInString(text[end:])
			if !kind(r) {
				break
			}
			end += size
		}
		return end
	}
	switch {
	case r < utf8.RuneSelf && unicode.IsLetter(r):
		return run(longest, func(r rune) bool { return r < utf8.RuneSelf && unicode.IsLetter(r) })
	case alphabetic(r):
		return run(3, alphabetic)
	case unicode.IsDigit(r):
		return run(3, unicode.IsDigit)
	case unicode.IsSpace(r):
		return run(16, func(other rune) bool { return other == r })
	}
	return at + size
}

// alphabetic is a letter of a script with few letters, other than ASCII's.
func alphabetic(r rune) bool { return r >= utf8.RuneSelf && r < 0x2e80 && unicode.IsLetter(r) }
