package decode

import (
	"strings"
	"unicode/utf8"
)

// Gate lets tokens through once it is sure that no marker begins in them and that their text is whole UTF-8. Everything works on
// whole tokens, so that what was let through can be prefilled again from its ids; only a marker that begins inside a token splits it.
// The zero value with its Markers set is ready. A Gate is not safe for concurrent use.
type Gate struct {
	Markers []string // texts that end what the gate is for: closing marks of the thinking, stop strings of the answer
	held    []Token
	text    string // of held
}

// Push takes decoded tokens and returns those that may pass. If a marker is complete, they are all that stood before it, and the
// marker is named; what follows it is dropped, and the gate is empty. A token that was split at the marker comes with ID -1.
func (g *Gate) Push(tokens ...Token) (passed []Token, marker string) {
	for i, t := range tokens {
		g.held = append(g.held, t)
		g.text += t.Text
		if at, m := g.find(); at >= 0 {
			passed = append(passed, g.before(at)...)
			g.held, g.text = nil, ""
			return passed, m
		}
		if i == len(tokens)-1 || len(g.held) > 64 {
			passed = append(passed, g.release(len(g.text)-g.hold())...)
		}
	}
	return passed, ""
}

// Flush returns what is held: no marker can come any more. An unfinished rune at the end becomes U+FFFD.
func (g *Gate) Flush() []Token {
	passed := g.held
	if !utf8.ValidString(g.text) {
		passed = repair(passed)
	}
	g.held, g.text = nil, ""
	return passed
}

// find returns the earliest marker in the held text, the longest of those that begin there.
func (g *Gate) find() (at int, marker string) {
	at = -1
	for _, m := range g.Markers {
		if m == "" {
			continue
		}
		if i := strings.Index(g.text, m); i >= 0 && (at < 0 || i < at || i == at && len(m) > len(marker)) {
			at, marker = i, m
		}
	}
	return at, marker
}

// hold returns how many bytes at the end must wait: the longest beginning of a marker, or an unfinished rune.
func (g *Gate) hold() int {
	longest := 0
	for _, m := range g.Markers {
		for n := min(len(m)-1, len(g.text)); n > longest; n-- {
			if strings.HasSuffix(g.text, m[:n]) {
				longest = n
				break
			}
		}
	}
	for n := 1; n <= min(3, len(g.text)); n++ {
		tail := g.text[len(g.text)-n:]
		if utf8.RuneStart(tail[0]) {
			if !utf8.FullRuneInString(tail) {
				longest = max(longest, n)
			}
			break
		}
	}
	return longest
}

// release lets the tokens pass that end within the first n bytes, as far as they end between runes.
func (g *Gate) release(n int) []Token {
	count, size, end, last := 0, 0, 0, 0
	for i, t := range g.held {
		size += len(t.Text)
		if size > n {
			break
		}
		if size == len(g.text) || utf8.RuneStart(g.text[size]) {
			count, end = i+1, size
		}
		last = size
	}
	if last-end > 3 { // no rune is that long: these bytes will never become text
		for i, s := 0, 0; i < len(g.held) && s < last; i++ {
			s += len(g.held[i].Text)
			count, end = i+1, s
		}
	}
	passed := g.held[:count:count]
	if !utf8.ValidString(g.text[:end]) {
		passed = repair(passed)
	}
	g.held, g.text = g.held[count:], g.text[end:]
	return passed
}

// before returns the held tokens up to a byte, the one it falls into split.
func (g *Gate) before(at int) []Token {
	var passed []Token
	for _, t := range g.held {
		if at < len(t.Text) {
			if at > 0 {
				passed = append(passed, Token{ID: -1, Text: t.Text[:at], LogProb: t.LogProb, Top: t.Top})
			}
			break
		}
		passed = append(passed, t)
		at -= len(t.Text)
		if at == 0 {
			break
		}
	}
	if !validText(passed) {
		passed = repair(passed)
	}
	return passed
}

func validText(tokens []Token) bool {
	var b strings.Builder
	for _, t := range tokens {
		b.WriteString(t.Text)
	}
	return utf8.ValidString(b.String())
}

// repair replaces bytes that are no UTF-8 by U+FFFD. A rune that is split over tokens is shown with the last of them.
func repair(tokens []Token) []Token {
	out := make([]Token, len(tokens))
	rest := ""
	for i, t := range tokens {
		rest += t.Text
		n := len(rest)
		if i < len(tokens)-1 {
			for k := 1; k <= min(3, len(rest)); k++ {
				if tail := rest[len(rest)-k:]; utf8.RuneStart(tail[0]) {
					if !utf8.FullRuneInString(tail) {
						n -= k
					}
					break
				}
			}
		}
		out[i] = t
		out[i].Text = strings.ToValidUTF8(rest[:n], "\uFFFD")
		rest = rest[n:]
	}
	return out
}
