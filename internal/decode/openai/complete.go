package openai

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"anytime/internal/decode"
	"anytime/internal/decode/remote"
)

// Complete implements remote.Completer.
func (s *server) Complete(ctx context.Context, req remote.Request, emit func(remote.Piece)) (decode.End, error) {
	way := s.completeText
	switch {
	case s.api == chatAPI:
		way = s.completeChat
	case s.kind == anytime:
		way = s.completeAnytime
	}
	end, err := way(ctx, req, emit)
	return end, s.explain(err)
}

// completeText continues the prefix by /v1/completions. llama-server can only be told that the model must not end at all: if it
// wants to before MinTokens, it is asked again for those alone, and then for the rest.
func (s *server) completeText(ctx context.Context, req remote.Request, emit func(remote.Piece)) (decode.End, error) {
	if s.kind != llamaServer {
		return s.request(ctx, req, false, emit)
	}
	most, least := req.MaxTokens, req.MinTokens
	done := 0
	grow := func(p remote.Piece) {
		done += len(p.Tokens)
		for _, t := range p.Tokens {
			part := decode.Text(t.Text)
			if t.ID >= 0 {
				part = decode.Part{IDs: []int32{t.ID}}
			}
			req.Prefix = append(slices.Clip(req.Prefix), part)
		}
		if p.EOG != nil && done < least {
			p.EOG = nil
		}
		emit(p)
	}
	mayEnd := least < most
	for {
		req.MaxTokens = most - done
		if !mayEnd {
			req.MaxTokens = least - done
		}
		end, err := s.request(ctx, req, !mayEnd, grow)
		switch {
		case err == nil && end == decode.EndEOG && done < least:
			mayEnd = false
		case err == nil && end == decode.EndLimit && done < most && done >= least && !mayEnd:
			mayEnd = true
		default:
			return end, err
		}
	}
}

// request asks once for a text completion.
func (s *server) request(ctx context.Context, req remote.Request, ignoreEOS bool, emit func(remote.Piece)) (decode.End, error) {
	r := reader{server: s, ctx: ctx, emit: emit, began: time.Now()}
	body := s.sampling(req)
	if s.ids {
		tokens, err := s.tokens(ctx, req.Prefix)
		if err != nil {
			return "", err
		}
		ids := make([]int32, len(tokens))
		for i, t := range tokens {
			ids[i] = t.ID
		}
		body["prompt"], r.prompt = ids, len(ids)
		if n := s.info.ContextTokens; n > 0 {
			if len(ids) >= n {
				return "", fmt.Errorf("%w: %d tokens of %d", decode.ErrContextFull, len(ids), n)
			}
			body["max_tokens"] = min(req.MaxTokens, n-len(ids)) // vLLM refuses what may become too long
		}
	} else {
		body["prompt"] = remote.Neutralize(req.Prefix, s.info.SpecialTokens)
	}
	switch s.kind {
	case llamaServer:
		body["cache_prompt"], body["timings_per_token"], body["ignore_eos"] = true, true, ignoreEOS
		body["verbose"] = !s.asksLogProbs(req) // either tells ids
		if s.places == nil || !s.ids {
			break
		}
		if l := s.places.take(ctx, body["prompt"].([]int32), body["max_tokens"].(int)); l != nil {
			defer l.leave()
			body["id_slot"] = l.id
			r.emit = func(p remote.Piece) {
				l.grown(p.Tokens)
				emit(p)
			}
		}
	case vllm, sglang:
		body["return_token_ids"] = true
	}
	if err := s.stream(ctx, false, body, r.take); err != nil {
		return "", err
	}
	return r.end(req.MaxTokens)
}

// sampling are the fields of a request besides its prompt.
func (s *server) sampling(req remote.Request) map[string]any {
	p := req.Sampling
	body := map[string]any{
		"model": s.model, "stream": true, "max_tokens": req.MaxTokens, "temperature": p.Temperature, "top_p": cmp.Or(p.TopP, 1),
		"seed": int64(req.Seed & math.MaxInt32), "stream_options": map[string]any{"include_usage": true},
	}
	// What is left out may have another default there than "off".
	switch s.kind {
	case llamaServer:
		body["top_k"], body["min_p"] = p.TopK, p.MinP
	case vllm, sglang:
		body["top_k"], body["min_p"], body["min_tokens"] = cmp.Or(p.TopK, -1), p.MinP, req.MinTokens
		body["skip_special_tokens"], body["spaces_between_special_tokens"] = false, false
	default:
		if p.TopK > 0 {
			body["top_k"] = p.TopK
		}
		if p.MinP > 0 {
			body["min_p"] = p.MinP
		}
	}
	if len(p.LogitBias) > 0 {
		bias := map[string]float32{}
		for id, b := range p.LogitBias {
			if s.kind != llamaServer {
				b = max(-100, min(b, 100))
			}
			bias[strconv.Itoa(int(id))] = b
		}
		body["logit_bias"] = bias
	}
	if s.asksLogProbs(req) {
		body["logprobs"] = max(req.TopLogProbs, 1)
	}
	s.lora.apply(body, req.Model)
	return body
}

// asksLogProbs says whether a completion is to tell log-probabilities.
func (s *server) asksLogProbs(req remote.Request) bool {
	return s.logProbs && (s.always || req.TopLogProbs > 0 || req.Priority.Class == decode.ClassAnswer)
}

// reader makes tokens of a stream's events.
type reader struct {
	*server
	ctx   context.Context
	emit  func(remote.Piece)
	began time.Time

	prompt    int           // tokens of the prefix; 0 unknown
	count     int           // tokens emitted
	predicted int           // tokens that the server says it decoded
	held      *decode.Token // without text: the model's end, unless something follows
	eog       *decode.Token
	finish    string
}

// take reads an event.
func (r *reader) take(e *event) error {
	if e.Usage != nil && e.Usage.CompletionTokens > 0 {
		r.predicted = e.Usage.CompletionTokens
	}
	if len(e.Choices) == 0 {
		return nil
	}
	c := e.Choices[0]
	var tokens []decode.Token
	switch {
	case r.kind == llamaServer && r.api == completionsAPI:
		tokens = r.llamaTokens(e, c)
	case len(c.TokenIDs) > 0:
		tokens = r.idTokens(c)
	case c.Text != "":
		tokens = textTokens(c)
	}
	if c.FinishReason != "" {
		r.finish = c.FinishReason
	}
	if len(tokens) > 0 {
		piece := remote.Piece{Tokens: tokens}
		if r.count == 0 {
			piece.Prefill = r.prefill(e.Timings)
		}
		r.count += len(tokens)
		r.emit(piece)
	}
	return nil
}

// add puts a token in that the server did not send.
func (r *reader) add(t decode.Token) {
	r.count++
	r.emit(remote.Piece{Tokens: []decode.Token{t}})
}

func (r *reader) prefill(t *timings) *decode.Prefill {
	took := time.Since(r.began)
	switch {
	case t != nil:
		prefilling := time.Duration(t.PromptMS * float64(time.Millisecond))
		return &decode.Prefill{Tokens: t.Cached + t.Prompt, Cached: t.Cached, Queued: max(0, took-prefilling), Took: prefilling}
	case r.prompt > 0:
		return &decode.Prefill{Tokens: r.prompt, Took: took}
	}
	return nil
}

// llamaTokens reads llama-server's events, which have one token each. A token that ends within a rune has no event; the rune's
// last token brings the text of all, and only the count tells of them.
func (r *reader) llamaTokens(e *event, c choice) (tokens []decode.Token) {
	t := decode.Token{ID: -1}
	if len(e.Verbose.Tokens) > 0 {
		t.ID = e.Verbose.Tokens[0]
	}
	if c.LogProbs != nil && len(c.LogProbs.Content) > 0 {
		t = c.LogProbs.Content[0].token()
	}
	t.Text = c.Text
	if e.Timings != nil {
		r.predicted = e.Timings.Predicted
	}
	if c.FinishReason != "" {
		return nil
	}
	if r.held != nil {
		h := *r.held
		h.Text = r.text(r.ctx, h.ID)
		tokens = append(tokens, h)
		r.held = nil
	}
	if t.Text == "" {
		r.held = &t
		return tokens
	}
	if lost := r.predicted - r.count - len(tokens) - 1; lost > 0 {
		return append(tokens, r.whole(t, lost+1)...)
	}
	return append(tokens, t)
}

// whole are the n tokens that t's text is made of, if the tokenizer agrees; else t without its id, which is the last one's.
func (r *reader) whole(t decode.Token, n int) []decode.Token {
	if r.encode != nil {
		tokens, err := r.encode(r.ctx, []string{t.Text})
		if err == nil && len(tokens) == n && tokens[n-1].ID == t.ID {
			tokens = slices.Clone(tokens)
			t.Text = tokens[n-1].Text
			tokens[n-1] = t
			return tokens
		}
	}
	t.ID = -1
	return append(slices.Repeat([]decode.Token{{ID: -1}}, n-1), t)
}

// idTokens reads events of vLLM and SGLang, which have the ids of one token or several, the last of all the model's end. Where the
// text is that of the tokens, each gets its own; text may also be held back until a rune is whole.
func (r *reader) idTokens(c choice) []decode.Token {
	tokens := make([]decode.Token, len(c.TokenIDs))
	for i, id := range c.TokenIDs {
		tokens[i].ID = id
		if p := c.LogProbs; p != nil {
			p.describe(i, &tokens[i])
		}
	}
	if c.FinishReason == "stop" {
		r.eog = &tokens[len(tokens)-1]
		tokens = tokens[:len(tokens)-1]
	}
	joined := ""
	for _, t := range tokens {
		joined += t.Text
	}
	if joined != c.Text {
		for i := range tokens {
			tokens[i].Text = ""
		}
		if len(tokens) == 0 && c.Text != "" {
			return []decode.Token{{ID: -1, Text: c.Text}}
		} else if len(tokens) > 0 {
			tokens[len(tokens)-1].Text = c.Text
		}
	}
	return tokens
}

// textTokens reads events of servers that stream text: with the tokens where log-probabilities tell them, else one of each event.
func textTokens(c choice) []decode.Token {
	var tokens []decode.Token
	if p := c.LogProbs; p != nil {
		for _, of := range p.Content {
			t := of.token()
			t.ID = -1 // text is what goes back
			for i := range t.Top {
				t.Top[i].ID = -1
			}
			tokens = append(tokens, t)
		}
		for i := range p.Tokens {
			t := decode.Token{ID: -1}
			p.describe(i, &t)
			tokens = append(tokens, t)
		}
	}
	joined := ""
	for _, t := range tokens {
		joined += t.Text
	}
	if joined == c.Text {
		return tokens
	}
	return []decode.Token{{ID: -1, Text: c.Text}}
}

// token is what the form of chats says of a token.
func (p tokenLogProb) token() decode.Token {
	id := func(id *int32) int32 {
		if id == nil {
			return -1
		}
		return *id
	}
	t := decode.Token{ID: id(p.ID), Text: p.text(), LogProb: min(p.LogProb, 0)}
	for _, alt := range p.Top {
		t.Top = append(t.Top, decode.TokenProb{ID: id(alt.ID), Text: alt.text(), LogProb: min(alt.LogProb, 0)})
	}
	return t
}

// describe adds to the i-th token what OpenAI's form of log-probabilities says of it. Alternatives come without ids.
func (p *logProbs) describe(i int, t *decode.Token) {
	if i < len(p.Tokens) {
		t.Text = p.Tokens[i]
	}
	if i < len(p.TokenLogProbs) && p.TokenLogProbs[i] != nil {
		t.LogProb = min(*p.TokenLogProbs[i], 0)
	}
	if i >= len(p.TopLogProbs) {
		return
	}
	for text, l := range p.TopLogProbs[i] {
		alt := decode.TokenProb{ID: -1, Text: text, LogProb: min(l, 0)}
		if text == t.Text {
			alt.ID = t.ID
		}
		t.Top = append(t.Top, alt)
	}
	slices.SortFunc(t.Top, func(a, b decode.TokenProb) int {
		return cmp.Or(cmp.Compare(b.LogProb, a.LogProb), cmp.Compare(a.Text, b.Text))
	})
}

// end says how the stream ended.
func (r *reader) end(most int) (decode.End, error) {
	switch r.finish {
	case "stop", "eos_token", "stop_sequence":
		if r.held != nil {
			r.eog = r.held
		}
		if r.eog != nil {
			r.emit(remote.Piece{EOG: r.eog})
		}
		return decode.EndEOG, nil
	case "length":
		if r.held != nil {
			r.held.Text = r.text(r.ctx, r.held.ID)
			r.add(*r.held)
		}
		// Tokens of a rune that the limit cut through were never sent, and an event may have brought several. Who does not count has
		// done what it was asked to.
		for said := cmp.Or(r.predicted, most); r.count < min(said, most); {
			r.add(decode.Token{ID: -1})
		}
		if r.count < most {
			return decode.EndContext, nil
		}
		return decode.EndLimit, nil
	case "":
		return "", errors.New("the stream was cut off: it ended without saying why")
	}
	return "", fmt.Errorf("the server ended the completion for the reason %q, which is none of a text's", r.finish)
}
