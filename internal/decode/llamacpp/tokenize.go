package llamacpp

import (
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"anytime/internal/decode"

	"github.com/hybridgroup/yzma/pkg/llama"
)

// vocab tokenizes. llama.cpp's vocabulary is constant once loaded, so it may be used beside the loop that owns the context.
type vocab struct {
	handle   llama.Vocab
	size     int
	bos      int32 // -1 none
	addBOS   bool
	eog      []int32
	maxPiece int

	special  map[int32]bool    // control and user-defined tokens that look like marks
	prefixes map[byte][]string // their texts by first byte, longest first

	mu     sync.Mutex
	pieces []string // texts of tokens met so far
	known  []bool
}

func newVocab(model llama.Model) *vocab {
	h := llama.ModelGetVocab(model)
	v := &vocab{
		handle: h, size: int(llama.VocabNTokens(h)), bos: int32(llama.VocabBOS(h)), addBOS: llama.VocabGetAddBOS(h),
		special: map[int32]bool{}, prefixes: map[byte][]string{},
	}
	v.pieces, v.known = make([]string, v.size), make([]bool, v.size)
	if v.bos < 0 || int(v.bos) >= v.size {
		v.bos, v.addBOS = -1, false
	}
	for i := range int32(v.size) {
		if llama.VocabIsEOG(h, llama.Token(i)) {
			v.eog = append(v.eog, i)
		}
		v.maxPiece = max(v.maxPiece, len(llama.VocabGetText(h, llama.Token(i))))
		attr := llama.VocabGetAttr(h, llama.Token(i))
		if attr&(llama.TokenAttrControl|llama.TokenAttrUserDef) == 0 {
			continue
		}
		// Some vocabularies define runs of blanks as tokens; they mark nothing, and single runes cannot be taken apart.
		text := v.piece(i)
		if strings.TrimFunc(text, unicode.IsSpace) == "" || utf8.RuneCountInString(text) == 1 {
			continue
		}
		v.special[i] = true
		v.prefixes[text[0]] = append(v.prefixes[text[0]], text)
	}
	for _, texts := range v.prefixes {
		slices.SortFunc(texts, func(a, b string) int { return len(b) - len(a) })
	}
	return v
}

// piece is the text of a token, special ones included. The id must be in the vocabulary.
func (v *vocab) piece(id int32) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.known[id] {
		buf := make([]byte, 64)
		n := llama.TokenToPiece(v.handle, llama.Token(id), buf, 0, true)
		if n < 0 {
			buf = make([]byte, -n)
			n = llama.TokenToPiece(v.handle, llama.Token(id), buf, 0, true)
		}
		v.pieces[id], v.known[id] = string(buf[:max(n, 0)]), true
	}
	return v.pieces[id]
}

func (v *vocab) token(id int32) decode.Token { return decode.Token{ID: id, Text: v.piece(id)} }

// join makes one part of neighbouring parts of one kind, which are tokenized as one text. A part with ids, even none, divides.
func join(parts []decode.Part) []decode.Part {
	var list []decode.Part
	for _, p := range parts {
		if n := len(list); n > 0 && p.IDs == nil && list[n-1].IDs == nil && p.Literal == list[n-1].Literal {
			list[n-1].Text += p.Text
			continue
		}
		p.IDs = slices.Clone(p.IDs)
		list = append(list, p)
	}
	return list
}

// tokenize returns the tokens of the parts, each tokenized by itself. checkParts has passed them.
func (v *vocab) tokenize(parts []decode.Part) []int32 {
	var ids []int32
	for _, p := range parts {
		ids = append(ids, p.IDs...)
		if p.Literal {
			ids = append(ids, v.literal(p.Text)...)
			continue
		}
		for _, piece := range v.stretches(p.Text) {
			ids = append(ids, v.ids(piece, true)...)
		}
	}
	return ids
}

func (v *vocab) ids(text string, special bool) []int32 {
	if text == "" {
		return nil
	}
	tokens := llama.Tokenize(v.handle, text, false, special)
	ids := make([]int32, len(tokens))
	for i, t := range tokens {
		ids[i] = int32(t)
	}
	return ids
}

// mark returns the length of the special token's text that s begins with; 0 none.
func (v *vocab) mark(s string) int {
	for _, text := range v.prefixes[s[0]] {
		if strings.HasPrefix(s, text) {
			return len(text)
		}
	}
	return 0
}

// stretches cuts a text behind special tokens: the tokens stay the same, but llama.cpp takes quadratic time in their number.
func (v *vocab) stretches(text string) []string {
	const most = 64
	var list []string
	start, marks := 0, 0
	for i := 0; i < len(text); {
		n := v.mark(text[i:])
		if n == 0 {
			i++
			continue
		}
		i += n
		if marks++; marks%most == 0 {
			list = append(list, text[start:i])
			start = i
		}
	}
	return append(list, text[start:])
}

// literal tokenizes text in which the names of special tokens are plain text. llama.cpp reads user-defined tokens even where it is
// told not to, so each name is cut behind its first rune and the pieces are tokenized apart.
func (v *vocab) literal(text string) []int32 {
	var ids []int32
	start := 0
	add := func(piece string) {
		for _, id := range v.ids(piece, false) {
			if !v.special[id] {
				ids = append(ids, id)
				continue
			}
			// A token that is special by another spelling: its text rune by rune.
			for _, r := range v.piece(id) {
				ids = append(ids, v.ids(string(r), false)...)
			}
		}
	}
	for i := range len(text) {
		if i >= start && v.mark(text[i:]) > 0 {
			_, n := utf8.DecodeRuneInString(text[i:])
			add(text[start : i+n])
			start = i + n
		}
	}
	add(text[start:])
	return ids
}

// prompt is tokenize with BOS before it if the vocabulary wants that and the prompt does not begin with it.
func (v *vocab) prompt(parts []decode.Part) []int32 {
	ids := v.tokenize(parts)
	if v.addBOS && (len(ids) == 0 || ids[0] != v.bos) {
		ids = slices.Insert(ids, 0, v.bos)
	}
	return ids
}
