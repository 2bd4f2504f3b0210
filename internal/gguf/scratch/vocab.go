package scratch

import (
	"cmp"
	"maps"
	"regexp"
	"slices"
	"strings"

	"anytime/internal/gguf"
)

// Special tokens of a vocabulary. A chat turn ends with EOS.
const (
	BOS        = "<|endoftext|>"
	TurnStart  = "<|im_start|>"
	EOS        = "<|im_end|>"
	ThinkOpen  = "<think>"
	ThinkClose = "</think>"
)

// special lists them in the order of their ids, the last of the vocabulary. As in many reasoning models the thinking markers are
// user-defined tokens: a tokenizer finds them in any text.
var special = []struct {
	text string
	typ  gguf.TokenType
}{
	{BOS, gguf.TokenControl},
	{TurnStart, gguf.TokenControl},
	{EOS, gguf.TokenControl},
	{ThinkOpen, gguf.TokenUserDefined},
	{ThinkClose, gguf.TokenUserDefined},
}

// Merge is a rule of byte pair encoding: two texts that are tokens make a third.
type Merge struct{ Left, Right string }

// Tokenizer builds a vocabulary: 256 bytes, whose ids are their values, what the merges make of them, the special tokens. Merges of what
// is no token yet, or whose result is one already, are left out. It has no chat template.
func Tokenizer(merges []Merge) gguf.Tokenizer {
	t := gguf.Tokenizer{Pre: "qwen2"}
	known := map[string]bool{}
	for b := range 256 {
		t.Tokens = append(t.Tokens, letter(byte(b)))
		known[t.Tokens[b]] = true
	}
	for _, m := range merges {
		left, right := Spell(m.Left), Spell(m.Right)
		if known[left] && known[right] && !known[left+right] {
			known[left+right] = true
			t.Tokens = append(t.Tokens, left+right)
			t.Merges = append(t.Merges, left+" "+right)
		}
	}
	for range t.Tokens {
		t.Types = append(t.Types, gguf.TokenNormal)
	}
	for _, s := range special {
		switch s.text {
		case BOS:
			t.BOS = len(t.Tokens)
		case EOS:
			t.EOS = len(t.Tokens)
		}
		t.Tokens = append(t.Tokens, s.text)
		t.Types = append(t.Types, s.typ)
	}
	return t
}

// pieces splits a text as Qwen2's tokenizer does before it merges: words with the sign or space before them, single digits, runs of other
// signs, blanks. (Of several spaces before a word it leaves the last to the word; here they are one piece.)
var pieces = regexp.MustCompile(`[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+`)

// Learn learns at most n merges from texts, the most frequent pair of tokens first (arXiv 1508.07909). What comes once is not merged.
func Learn(texts []string, n int) []Merge {
	counts := map[string]int{}
	for _, t := range texts {
		for _, p := range pieces.FindAllString(t, -1) {
			counts[p]++
		}
	}
	type word struct {
		tokens []string
		count  int
	}
	var words []word
	for _, p := range slices.Sorted(maps.Keys(counts)) {
		w := word{count: counts[p]}
		for i := range len(p) {
			w.tokens = append(w.tokens, p[i:i+1])
		}
		words = append(words, w)
	}
	var merges []Merge
	for len(merges) < n {
		pairs := map[Merge]int{}
		for _, w := range words {
			for i := 1; i < len(w.tokens); i++ {
				pairs[Merge{w.tokens[i-1], w.tokens[i]}] += w.count
			}
		}
		if len(pairs) == 0 {
			break
		}
		best := slices.MinFunc(slices.Collect(maps.Keys(pairs)), func(a, b Merge) int {
			return cmp.Or(cmp.Compare(pairs[b], pairs[a]), strings.Compare(a.Left, b.Left), strings.Compare(a.Right, b.Right))
		})
		if pairs[best] < 2 {
			break
		}
		merges = append(merges, best)
		for i, w := range words {
			words[i].tokens = join(w.tokens, best)
		}
	}
	return merges
}

// join applies a merge to the tokens of a word.
func join(tokens []string, m Merge) []string {
	joined := tokens[:0]
	for i := 0; i < len(tokens); i++ {
		if i+1 < len(tokens) && tokens[i] == m.Left && tokens[i+1] == m.Right {
			joined = append(joined, m.Left+m.Right)
			i++
			continue
		}
		joined = append(joined, tokens[i])
	}
	return joined
}

// Spell writes a text in the alphabet of the vocabulary.
func Spell(text string) string {
	var s strings.Builder
	for i := range len(text) {
		s.WriteString(letter(text[i]))
	}
	return s.String()
}

// letter spells a byte in GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes are U+0100 and up, in order.
func letter(b byte) string {
	plain := func(b int) bool { return b > ' ' && b < 0x7f || b > 0xa0 && b != 0xad }
	if plain(int(b)) {
		return string(rune(b))
	}
	others := 0
	for i := range int(b) {
		if !plain(i) {
			others++
		}
	}
	return string(rune(0x100 + others))
}
