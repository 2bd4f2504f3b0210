package openai

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"anytime/internal/decode"
	"anytime/internal/decode/remote"
)

// errThoughtEnded stops a stream that has come from the thinking to an answer, which is not wanted.
var errThoughtEnded = errors.New("the thought has ended")

// completeAnytime continues a prefix by another Anytime. That goes on from a thought's end to an answer, so a prefix that is in a thought
// gets a budget as large as the completion, and is left when the answer begins; how many tokens the thought had is told by its
// run. Where there is no thought the budget has no effect, and max_tokens allows for an answer as large as the thought.
func (s *server) completeAnytime(ctx context.Context, req remote.Request, emit func(remote.Piece)) (decode.End, error) {
	body := s.sampling(req)
	body["prompt"] = remote.Neutralize(req.Prefix, s.info.SpecialTokens)
	body["budget"], body["max_tokens"], body["logprobs"] = req.MaxTokens, 2*req.MaxTokens, req.TopLogProbs
	r := reader{server: s, ctx: ctx, emit: emit, began: time.Now()}
	run, thinking := "", false
	err := s.stream(ctx, false, body, func(e *event) error {
		run = strings.TrimPrefix(e.ID, "cmpl-")
		if len(e.Choices) == 0 {
			return nil
		}
		switch c := &e.Choices[0]; {
		case c.Reset:
			return errors.New("the server began its answer anew")
		case c.Reasoning != "":
			thinking = true
			c.Text, c.LogProbs = c.Reasoning, nil
		case thinking:
			return errThoughtEnded
		}
		return r.take(e)
	})
	if !errors.Is(err, errThoughtEnded) {
		if err != nil {
			return "", err
		}
		return r.end(req.MaxTokens)
	}
	var about struct {
		ThinkingTokens int `json:"thinking_tokens"`
	}
	if err := s.get(ctx, s.root+"/solve/"+run, &about); err != nil {
		return "", fmt.Errorf("ask how long the thought was: %w", err)
	}
	for r.count < min(about.ThinkingTokens, req.MaxTokens) {
		r.add(decode.Token{ID: -1}) // an event may have brought several
	}
	if about.ThinkingTokens < req.MaxTokens { // the model ended it
		r.add(decode.Token{ID: -1, Text: closingMark(req)})
	}
	return decode.EndLimit, nil // of the thought; there may be tokens left for what follows
}

// closingMark is the text by which a thought ends, where a server leaves it out: the one that the caller waits for.
func closingMark(req remote.Request) string {
	if len(req.Until) > 0 {
		return req.Until[0]
	}
	return "</think>"
}
