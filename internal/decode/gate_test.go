package decode_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"anytime/internal/decode"
)

// push feeds pieces as tokens and returns the text that passed, before and after Flush, and the marker.
func push(g *decode.Gate, pieces ...string) (streamed, all, marker string) {
	for i, p := range pieces {
		passed, m := g.Push(decode.Token{ID: int32(i), Text: p})
		for _, t := range passed {
			streamed += t.Text
		}
		if m != "" {
			return streamed, streamed, m
		}
	}
	all = streamed
	for _, t := range g.Flush() {
		all += t.Text
	}
	return streamed, all, ""
}

func TestGate(t *testing.T) {
	tests := []struct {
		name                  string
		markers               []string
		pieces                []string
		streamed, all, marker string
	}{
		{"no markers", nil, []string{"a", "b"}, "ab", "ab", ""},
		{"marker over tokens", []string{"</think>"}, []string{"so", " 5", "<", "/th", "ink", ">", "x"}, "so 5", "so 5", "</think>"},
		{"marker inside a token", []string{"</think>"}, []string{"so.</think>\n\nYes"}, "so.", "so.", "</think>"},
		{"held, then not a marker", []string{"</think>"}, []string{"a <", "/th", "at"}, "a </that", "a </that", ""},
		{"held at the end", []string{"</think>"}, []string{"a", " <", "/th"}, "a", "a </th", ""},
		{"marker at once", []string{"END"}, []string{"END"}, "", "", "END"},
		{"earliest of several", []string{"two", "one"}, []string{"a one two"}, "a ", "a ", "one"},
		{"longest of those at one place", []string{"\n", "\n\n"}, []string{"a", "\n\n"}, "a", "a", "\n\n"},
		{"false start before the marker", []string{"<<end"}, []string{"<", "<", "<", "end"}, "<", "<", "<<end"},
		{"rune over tokens", nil, []string{"\xe7\x8c", "\xab", "!"}, "猫!", "猫!", ""},
		{"unfinished rune at the end", nil, []string{"a", "\xe7\x8c"}, "a", "a\uFFFD", ""},
		{"no UTF-8 at all", nil, []string{"\xff", "a"}, "\uFFFDa", "\uFFFDa", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			g := &decode.Gate{Markers: test.markers}
			streamed, all, marker := push(g, test.pieces...)
			if streamed != test.streamed || all != test.all || marker != test.marker {
				t.Errorf("streamed %q, all %q, marker %q; want %q, %q, %q", streamed, all, marker, test.streamed, test.all, test.marker)
			}
		})
	}
}

// However a text is split into tokens, the same passes.
func FuzzGate(f *testing.F) {
	f.Add("so 5</think>yes", "</think>", uint64(3))
	f.Add("a\xe7\x8cb<<<end", "<<end", uint64(5))
	f.Add("\n\n\n", "\n\n", uint64(1))
	f.Add("猫猫猫", "猫猫", uint64(7))
	f.Fuzz(func(t *testing.T, text, marker string, cuts uint64) {
		if !utf8.ValidString(marker) {
			return
		}
		var pieces []string
		last := 0
		for i := 1; i < len(text); i++ {
			if cuts>>(uint(i)%64)&1 == 1 {
				pieces = append(pieces, text[last:i])
				last = i
			}
		}
		pieces = append(pieces, text[last:])
		want := text
		if before, _, found := strings.Cut(text, marker); found && marker != "" {
			want = before
		}
		_, all, _ := push(&decode.Gate{Markers: []string{marker}}, pieces...)
		if !utf8.ValidString(all) {
			t.Fatalf("not UTF-8: %q", all)
		}
		if utf8.ValidString(want) && all != want {
			t.Fatalf("pieces %q, marker %q: passed %q, want %q", pieces, marker, all, want)
		}
	})
}
