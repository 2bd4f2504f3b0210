package tiny

import (
	"strings"

	"anytime/internal/gguf"
	"anytime/internal/gguf/scratch"
)

// Special tokens of the vocabulary. A chat turn ends with EOS.
const (
	BOS        = scratch.BOS
	TurnStart  = scratch.TurnStart
	EOS        = scratch.EOS
	ThinkOpen  = scratch.ThinkOpen
	ThinkClose = scratch.ThinkClose
)

// merges are the rules of the vocabulary, as text: "_" stands for a space and "/" for a line break.
const merges = `_ t|h e|_t he|i n|e r|a n|_ a|o n|r e|_ s|_ w|a t|e n|o u|_ o|i s|o r|e s|_a n|_an d|in g|_t o|_o f|i t|_i s|_ b|_ c|` +
	`_ i|_i n|_ f|_ m|_ p|_ d|a r|a l|e d|l e|_ n|_ =|_ +|_ -|_ *|_ h|_h e|o w|l l|s t|_w e|_ l|_ g|e t|_t h|_th at|_s o|` +
	`_f or|_ y|_y ou|_b e|v e|_h a|_ha ve|c h|a y|_s ay|n e|_n o|_no t|_ 1|_ 2|_ 3|1 0|_ (|t er|_a re|_ u|_w h|_wh at|_a n s|` +
	`w er|_an s|_ans wer|_s um|_n um|b er|_num ber|_l et|_m e|_ x|_ e|_i f|u t|_b ut|m e|_t i|_ti me|/ /|. /|: /`

const chatTemplate = `{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}`

// tokenizer builds the vocabulary.
func tokenizer() gguf.Tokenizer {
	var rules []scratch.Merge
	for rule := range strings.SplitSeq(merges, "|") {
		left, right, _ := strings.Cut(rule, " ")
		rules = append(rules, scratch.Merge{Left: blanks.Replace(left), Right: blanks.Replace(right)})
	}
	t := scratch.Tokenizer(rules)
	t.ChatTemplate = chatTemplate
	return t
}

var blanks = strings.NewReplacer("_", " ", "/", "\n")
