package tiny

import (
	"strings"

	"anytime/internal/gguf"
)

// Special tokens of the vocabulary. A chat turn ends with EOS.
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

// merges are the rules of the vocabulary, as text: "_" stands for a space and "/" for a line break.
const merges = `_ t|h e|_t he|i n|e r|a n|_ a|o n|r e|_ s|_ w|a t|e n|o u|_ o|i s|o r|e s|_a n|_an d|in g|_t o|_o f|i t|_i s|_ b|_ c|` +
	`_ i|_i n|_ f|_ m|_ p|_ d|a r|a l|e d|l e|_ n|_ =|_ +|_ -|_ *|_ h|_h e|o w|l l|s t|_w e|_ l|_ g|e t|_t h|_th at|_s o|` +
	`_f or|_ y|_y ou|_b e|v e|_h a|_ha ve|c h|a y|_s ay|n e|_n o|_no t|_ 1|_ 2|_ 3|1 0|_ (|t er|_a re|_ u|_w h|_wh at|_a n s|` +
	`w er|_an s|_ans wer|_s um|_n um|b er|_num ber|_l et|_m e|_ x|_ e|_i f|u t|_b ut|m e|_t i|_ti me|/ /|. /|: /`

const chatTemplate = `{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}`

// tokenizer builds the vocabulary: 256 bytes, whose ids are their values, merged pieces, special tokens.
func tokenizer() gguf.Tokenizer {
	t := gguf.Tokenizer{Pre: "qwen2", ChatTemplate: chatTemplate}
	for b := range 256 {
		t.Tokens = append(t.Tokens, letter(byte(b)))
	}
	known := map[string]bool{}
	for _, text := range t.Tokens {
		known[text] = true
	}
	for rule := range strings.SplitSeq(merges, "|") {
		left, right, _ := strings.Cut(rule, " ")
		left, right = spell(blanks.Replace(left)), spell(blanks.Replace(right))
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

var blanks = strings.NewReplacer("_", " ", "/", "\n")

// spell writes a text in the alphabet of the vocabulary.
func spell(text string) string {
	var s strings.Builder
	for _, b := range []byte(text) {
		s.WriteString(letter(b))
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
