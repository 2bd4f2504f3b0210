// Package summarize takes an answer from a thought: it closes a fork of the thinking with a suffix, decodes the summary behind it,
// finds the answer in it and says how sure the model was; of several votes it takes the majority. The suffixes are those of package
// prompt: the paper's (arXiv 2505.13438) or the model family's own.
package summarize

import (
	"context"
	"math"
	"slices"
	"strings"
	"time"

	"anytime/internal/decode"
)

// Plan says how an answer is taken.
type Plan struct {
	Close []decode.Part // closes the thinking and asks for the answer; nil where there was no thinking
	Span  decode.Span   // MaxTokens caps the answer; Until is set by Take
	Stop  []string      // the user's: ends the answer, and is not part of it
	// Reasoning are the marks of thinking. One in an answer means that reasoning has leaked into it.
	Reasoning []string
	// Announced: Close ends in a header such as "Final Answer", so that the first paragraph is the answer, and the summary's end.
	Announced bool
	// Whole: the text has a form of its own, such as JSON, and is the answer as it stands.
	Whole bool
}

// Summary is an answer with the text that it was found in.
type Summary struct {
	Extracted
	Text       string
	Tokens     int // decoded, those of a stop string included
	Confidence float64
	Ended      decode.End
	Escaped    bool // reasoning leaked into the answer: Text is what stood before the mark
	Prefill    decode.Prefill
	// First is the time from the engine's turn to close the thought to the first token, Took to the last.
	First, Took time.Duration
}

// Delta is new text of a summary, as it is decoded.
type Delta struct {
	Text   string
	Tokens []decode.Token
}

// Take closes a fork and reads its summary. It returns when the summary ended, when a stop string, a mark of reasoning or the end of an
// announced paragraph came, or with an error: the engine's, or ctx's with the summary so far. The caller closes the fork. onText, which may be nil, sees the text as it comes.
func Take(ctx context.Context, fork decode.Sequence, plan Plan, onText func(Delta)) (Summary, error) {
	markers := make([]string, 0, len(plan.Stop)+len(plan.Reasoning))
	markers = append(append(markers, plan.Stop...), plan.Reasoning...)
	gate := decode.Gate{Markers: markers}
	var s Summary
	var shown []decode.Token
	var started time.Time
	over := false // the announced paragraph is complete
	pass := func(tokens []decode.Token) {
		if len(tokens) == 0 || over {
			return
		}
		var delta Delta
		for _, t := range tokens { // one by one: how they came makes no difference
			text := t.Text
			if plan.Announced {
				if end := paragraph(s.Text + text); end >= 0 {
					over = true
					text = text[:max(0, end-len(s.Text))]
				}
			}
			shown = append(shown, t)
			s.Text += text
			delta.Text += text
			delta.Tokens = append(delta.Tokens, t)
			if over {
				break
			}
		}
		if onText != nil {
			onText(delta)
		}
	}
	finish := func(err error) (Summary, error) {
		if s.Extracted = Extract(s.Text, plan.Announced); plan.Whole {
			s.Extracted = whole(s.Text)
		}
		s.Confidence = confidence(shown, s.Start, s.End)
		if !started.IsZero() {
			s.Took = time.Since(started)
		}
		return s, err
	}
	if len(plan.Close) > 0 {
		if err := fork.Append(plan.Close...); err != nil {
			return s, err
		}
	}
	span := plan.Span
	span.Until = markers
	if err := fork.Decode(span); err != nil {
		return s, err
	}
	for {
		chunk, err := fork.Next(ctx)
		if err != nil {
			pass(gate.Flush())
			return finish(err)
		}
		now := time.Now()
		if p := chunk.Prefill; p != nil {
			s.Prefill = *p
			started = now.Add(-p.Took)
		}
		if len(chunk.Tokens) > 0 {
			if started.IsZero() {
				started = now
			}
			if s.Tokens == 0 {
				s.First = now.Sub(started)
			}
			s.Tokens += len(chunk.Tokens)
		}
		passed, marker := gate.Push(chunk.Tokens...)
		pass(passed)
		if over {
			s.Ended = decode.EndUntil
			return finish(nil)
		}
		if marker != "" {
			s.Escaped = !slices.Contains(plan.Stop, marker) // a mark may be both: then it ends the answer
			s.Ended = decode.EndUntil
			return finish(nil)
		}
		if chunk.End != "" {
			pass(gate.Flush())
			s.Ended = chunk.End
			return finish(nil)
		}
	}
}

// paragraph returns where the first paragraph of a text ends, -1 if it is not complete. A line that only leads up to what follows, such as
// "The answer is:", and an open formula do not end it.
func paragraph(text string) int {
	start := len(text) - len(strings.TrimLeft(text, " \t\r\n"))
	for from := start; ; {
		n := strings.Index(text[from:], "\n\n")
		if n < 0 {
			return -1
		}
		end := from + n
		said := strings.TrimRight(text[start:end], "* \t\r\n")
		open := strings.Count(said, `\[`) > strings.Count(said, `\]`) || strings.Count(said, "$$")%2 == 1
		if said != "" && !strings.HasSuffix(said, ":") && !open {
			return end
		}
		from = end + len("\n\n")
	}
}

// confidence is the geometric mean of the probabilities of the answer's tokens: those of shown that overlap its bytes.
func confidence(shown []decode.Token, start, end int) float64 {
	sum, n, at := 0.0, 0, 0
	for _, t := range shown {
		next := at + len(t.Text)
		if next > start && at < end && strings.TrimSpace(t.Text) != "" {
			sum += float64(t.LogProb)
			n++
		}
		at = next
	}
	if n == 0 {
		return 0
	}
	return math.Exp(sum / float64(n))
}
