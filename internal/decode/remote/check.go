package remote

import (
	"cmp"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"

	"anytime/internal/decode"
)

func refuse(field, format string, args ...any) error {
	return &decode.InputError{Field: field, Reason: fmt.Sprintf(format, args...)}
}

// maxVocabulary bounds token ids where the vocabulary's size is not known.
const maxVocabulary = 1 << 22

// checkParts judges a prompt or forced text.
func checkParts(parts []decode.Part, info decode.Info) error {
	tokens := 0
	for _, p := range parts {
		switch {
		case p.Text != "" && len(p.IDs) > 0:
			return refuse("prompt", "has a part with both text and token ids; a part is one of them")
		case strings.IndexByte(p.Text, 0) >= 0:
			return refuse("prompt", "holds a NUL byte; it must be text without any")
		case !utf8.ValidString(p.Text):
			return refuse("prompt", "is not valid UTF-8; cut it between characters")
		case len(p.IDs) > 0 && !info.Capabilities.TokenIDs:
			return refuse("prompt", "is given as token ids, which this engine does not take; give it as text")
		}
		for _, id := range p.IDs {
			if most := cmp.Or(info.Vocabulary, maxVocabulary); id < 0 || int(id) >= most {
				return refuse("prompt", "token id %d is out of range; the vocabulary has ids 0 to %d", id, most-1)
			}
		}
		tokens += len(p.IDs) + estimate(p.Text)*2/3 // what is surely too long; the server knows the rest
	}
	if info.ContextTokens > 0 && tokens >= info.ContextTokens {
		return decode.ErrContextFull
	}
	return nil
}

const (
	maxUntil      = 64
	maxUntilBytes = 4096
)

// checkSpan judges a span by what is wrong for every engine, and by what the server can do.
func checkSpan(s decode.Span, info decode.Info) error {
	p, can := s.Sampling, info.Capabilities
	switch {
	case s.MaxTokens < 1:
		return refuse("max_tokens", "is %d; it must be at least 1", s.MaxTokens)
	case s.MinTokens < 0 || s.MinTokens > s.MaxTokens:
		return refuse("min_tokens", "is %d; it must be from 0 to max_tokens, %d", s.MinTokens, s.MaxTokens)
	case s.TopLogProbs < 0 || s.TopLogProbs > 20:
		return refuse("top_logprobs", "is %d; it must be from 0 to 20", s.TopLogProbs)
	case s.TopLogProbs > 0 && !can.LogProbs:
		return refuse("top_logprobs", "is not supported by this engine; leave it out")
	case !(p.Temperature >= 0 && p.Temperature <= 100):
		return refuse("temperature", "is %v; it must be from 0 (greedy) to 100", p.Temperature)
	case p.TopK < 0:
		return refuse("top_k", "is %d; it must be 0 (off) or more", p.TopK)
	case !(p.TopP >= 0 && p.TopP <= 1):
		return refuse("top_p", "is %v; it must be from 0 to 1", p.TopP)
	case !(p.MinP >= 0 && p.MinP <= 1):
		return refuse("min_p", "is %v; it must be from 0 to 1", p.MinP)
	case p.Grammar != "" && !can.Grammar:
		return refuse("grammar", "is not supported by this engine; leave it out")
	case len(p.LogitBias) > 0 && !can.LogitBias:
		return refuse("logit_bias", "is not supported by this engine; leave it out")
	case len(s.Until) > maxUntil:
		return refuse("stop", "has %d strings; at most %d are allowed", len(s.Until), maxUntil)
	}
	for _, u := range s.Until {
		if u == "" || len(u) > maxUntilBytes {
			return refuse("stop", "has a string of %d bytes; each must have 1 to %d", len(u), maxUntilBytes)
		}
	}
	for id, b := range p.LogitBias {
		if id < 0 || info.Vocabulary > 0 && int(id) >= info.Vocabulary {
			return refuse("logit_bias", "token id %d is out of range; the vocabulary has ids 0 to %d", id, max(info.Vocabulary-1, 0))
		}
		if math.IsNaN(float64(b)) || b > 1e4 {
			return refuse("logit_bias", "of token %d is %v; it must be a number up to 10000, and -100 or less forbids the token", id, b)
		}
	}
	return nil
}
