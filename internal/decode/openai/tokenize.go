package openai

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"anytime/internal/decode"
	"anytime/internal/decode/remote"
)

// An encoder returns the tokens of pieces of text, each tokenized by itself, with the names of special tokens read as such.
type encoder func(ctx context.Context, pieces []string) ([]decode.Token, error)

// llamaEncoder asks llama-server, which tokenizes a list of pieces at once and tells the bytes of each token.
func (c *client) llamaEncoder(withBOS bool) encoder {
	return func(ctx context.Context, pieces []string) ([]decode.Token, error) {
		var answer struct {
			Tokens []struct {
				ID    int32           `json:"id"`
				Piece json.RawMessage `json:"piece"`
			} `json:"tokens"`
		}
		in := map[string]any{"content": pieces, "add_special": withBOS, "parse_special": true, "with_pieces": true}
		if err := c.post(ctx, c.root+"/tokenize", in, &answer); err != nil {
			return nil, err
		}
		tokens := make([]decode.Token, len(answer.Tokens))
		for i, t := range answer.Tokens {
			tokens[i].ID = t.ID
			var bytes []byteValue // of a token that is no whole UTF-8
			if json.Unmarshal(t.Piece, &tokens[i].Text) != nil {
				if err := json.Unmarshal(t.Piece, &bytes); err != nil {
					return nil, fmt.Errorf("/tokenize: the piece of token %d is %.40s", t.ID, t.Piece)
				}
				tokens[i].Text = tokenLogProb{Bytes: bytes}.text()
			}
		}
		return tokens, nil
	}
}

// vllmEncoder asks vLLM or SGLang, which take one piece at a time.
func (c *client) vllmEncoder(k kind, model string, withBOS bool) encoder {
	return func(ctx context.Context, pieces []string) ([]decode.Token, error) {
		var all []decode.Token
		for _, text := range pieces {
			var answer struct {
				Tokens []int32  `json:"tokens"`
				Texts  []string `json:"token_strs"`
			}
			in := map[string]any{"model": model, "prompt": text, "add_special_tokens": withBOS, "return_token_strs": true}
			if err := c.post(ctx, c.root+"/tokenize", in, &answer); err != nil {
				return nil, err
			}
			if k == sglang { // which tells ids only, but the texts of many at once
				var back struct {
					Text []string `json:"text"`
				}
				lists := make([][]int32, len(answer.Tokens))
				for i, id := range answer.Tokens {
					lists[i] = []int32{id}
				}
				if c.post(ctx, c.root+"/detokenize", map[string]any{"model": model, "tokens": lists, "skip_special_tokens": false}, &back) == nil {
					answer.Texts = back.Text
				}
			}
			all = append(all, spell(answer.Tokens, answer.Texts, text)...)
		}
		return all, nil
	}
}

// spell gives tokens their texts: as they are told, or as byte-level and SentencePiece vocabularies spell them, whichever joins to the
// text; else the first has the text of all.
func spell(ids []int32, told []string, text string) []decode.Token {
	for _, decoded := range []func(string) string{func(s string) string { return s }, fromByteLevel, fromSentencePiece} {
		if len(told) != len(ids) {
			break
		}
		tokens, joined := make([]decode.Token, len(ids)), ""
		for i, id := range ids {
			tokens[i] = decode.Token{ID: id, Text: decoded(told[i])}
			joined += tokens[i].Text
		}
		if joined == text {
			return tokens
		}
	}
	return untold(ids, text)
}

// fromByteLevel reads GPT-2's spelling of bytes: those that print stand for themselves, the others for runes from 256 on.
func fromByteLevel(s string) string {
	b := make([]byte, 0, len(s))
	for _, r := range s {
		n := int(r)
		switch {
		case n >= 256 && n < 256+33: // 0 to 32
			n -= 256
		case n >= 256+33 && n < 256+33+34: // 127 to 160
			n += 127 - 256 - 33
		case n == 256+33+34: // 173
			n = 173
		case n > 255:
			return s // none of that spelling: a special token
		}
		b = append(b, byte(n))
	}
	return string(b)
}

func fromSentencePiece(s string) string { return strings.ReplaceAll(s, "▁", " ") }

// tgiEncoder asks TGI, which takes no ids back: it is good for counting.
func (c *client) tgiEncoder(ctx context.Context, pieces []string) ([]decode.Token, error) {
	var all []decode.Token
	for _, text := range pieces {
		var answer []struct{}
		if err := c.post(ctx, c.root+"/tokenize", map[string]any{"inputs": text, "add_special_tokens": false}, &answer); err != nil {
			return nil, err
		}
		all = append(all, untold(slices.Repeat([]int32{-1}, len(answer)), text)...)
	}
	return all, nil
}

// untold are tokens whose own texts are not known.
func untold(ids []int32, text string) []decode.Token {
	tokens := make([]decode.Token, len(ids))
	for i, id := range ids {
		tokens[i] = decode.Token{ID: id, Text: text}
		text = ""
	}
	return tokens
}

// cached remembers what an encoder said: the prompt of a sequence is sent again with each of its completions, and of all its forks.
func cached(ask encoder) encoder {
	const most = 8 << 20 // bytes of text
	var mu sync.Mutex
	known, size := map[string][]decode.Token{}, 0
	return func(ctx context.Context, pieces []string) ([]decode.Token, error) {
		key := strings.Join(pieces, "\x00") // which no text has
		mu.Lock()
		tokens, ok := known[key]
		mu.Unlock()
		if ok {
			return tokens, nil
		}
		tokens, err := ask(ctx, pieces)
		if err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		if size += len(key); size > most {
			clear(known)
			size = len(key)
		}
		if len(key) <= most {
			known[key] = tokens
		}
		return tokens, nil
	}
}

// Tokenize implements remote.Completer.
func (s *server) Tokenize(ctx context.Context, parts []decode.Part) ([]decode.Token, error) {
	if s.encode == nil {
		return remote.Estimate(remote.Neutralize(parts, nil)), nil
	}
	tokens, err := s.tokens(ctx, parts)
	return tokens, s.explain(err)
}

// tokens are those of a prompt: BOS before it if the model wants that, and the prompt does not begin with it.
func (s *server) tokens(ctx context.Context, parts []decode.Part) ([]decode.Token, error) {
	var tokens []decode.Token
	for len(parts) > 0 {
		if ids := parts[0].IDs; len(ids) > 0 {
			for _, id := range ids {
				tokens = append(tokens, decode.Token{ID: id, Text: s.known(id)})
			}
			parts = parts[1:]
			continue
		}
		n := 0
		for n < len(parts) && len(parts[n].IDs) == 0 {
			n++
		}
		more, err := s.encode(ctx, s.pieces(parts[:n]))
		if err != nil {
			return nil, err
		}
		tokens = append(tokens, more...)
		parts = parts[n:]
	}
	if s.bos != nil && (len(tokens) == 0 || tokens[0].ID != s.bos.ID) {
		tokens = slices.Insert(tokens, 0, *s.bos)
	}
	return tokens, nil
}

// known is the text of a token, if it has been told.
func (s *server) known(id int32) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.texts[id]
}

// mostPieces bounds into how many requests to the tokenizer a text that is full of special tokens' names is divided.
const mostPieces = 256

// pieces divides text so that no special token has a byte of Literal text in it. Pieces are tokenized apart, so literal text is cut
// behind each rune with which special tokens begin. Where that cannot be, the names are broken.
func (s *server) pieces(parts []decode.Part) []string {
	if !s.ids {
		return []string{remote.Neutralize(parts, s.info.SpecialTokens)}
	}
	var list []string
	for _, p := range parts {
		if !p.Literal {
			list = append(list, p.Text)
			continue
		}
		start := 0
		for i, r := range p.Text {
			if end := i + utf8.RuneLen(r); strings.ContainsRune(s.opening, r) && end < len(p.Text) {
				list = append(list, p.Text[start:end])
				start = end
			}
		}
		list = append(list, p.Text[start:])
	}
	list = slices.DeleteFunc(list, func(t string) bool { return t == "" })
	if s.kind != llamaServer && len(list) > mostPieces {
		return []string{remote.Neutralize(parts, s.info.SpecialTokens)}
	}
	return list
}

// text asks for the text of a token that came without: a control token, which llama-server does not write out.
func (s *server) text(ctx context.Context, id int32) string {
	s.mu.Lock()
	text, ok := s.texts[id]
	s.mu.Unlock()
	if ok || id < 0 {
		return text
	}
	var answer struct {
		Content string `json:"content"`
	}
	if err := s.ask(ctx, http.MethodPost, s.root+"/detokenize", map[string]any{"tokens": []int32{id}}, &answer); err != nil {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.texts[id] = answer.Content
	return answer.Content
}
