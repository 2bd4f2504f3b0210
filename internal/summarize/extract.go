package summarize

import (
	"strings"

	"anytime/internal/grade"
)

// Extracted is an answer found in a summary.
type Extracted struct {
	Answer     string
	Start, End int  // its bytes in the summary
	Marked     bool // it was boxed or stood behind a header: it is whole even if the summary was cut behind it
}

// headers announce an answer, in the order in which they are looked for; lower case.
var headers = []string{"final answer", "the answer is", "answer:"}

// Extract finds the answer in a summary leniently, for people to read: the last \boxed{…}, else what stands behind the last
// "Final Answer" or its like in the same paragraph, else, if the text was announced by such a header, its first paragraph, else the
// whole text. (The reward of training is strict.)
func Extract(summary string, announced bool) Extracted {
	if boxed, ok := grade.Boxed(summary); ok {
		if boxed = strings.TrimSpace(boxed); boxed != "" {
			start := strings.LastIndex(summary, boxed)
			return Extracted{Answer: boxed, Start: start, End: start + len(boxed), Marked: true}
		}
	}
	lower := strings.ToLower(summary)
	if len(lower) == len(summary) { // else offsets would not agree: some letters change their length
		for _, h := range headers {
			i := strings.LastIndex(lower, h)
			if i < 0 {
				continue
			}
			start := i + len(h)
			start += len(summary[start:]) - len(strings.TrimLeft(summary[start:], "*_:#= \t\r\n"))
			end := len(summary)
			whole := false
			if n := strings.Index(summary[start:], "\n"); n >= 0 {
				end, whole = start+n, true
			}
			if e := trim(summary, start, end); e.Answer != "" {
				e.Marked = whole
				return e
			}
		}
	}
	if announced {
		if end := paragraph(summary); end >= 0 {
			e := trim(summary, 0, end)
			e.Marked = true
			return e
		}
		// Not complete, but its first line may be.
		e := trim(summary, 0, len(summary))
		if n := strings.Index(e.Answer, "\n"); n > 0 && !strings.HasSuffix(e.Answer[:n], ":") {
			e.Marked = true
		}
		return e
	}
	return trim(summary, 0, len(summary))
}

// whole is all of a text but the space around it.
func whole(text string) Extracted {
	answer := strings.TrimSpace(text)
	start := strings.Index(text, answer)
	return Extracted{Answer: answer, Start: start, End: start + len(answer)}
}

// trim cuts space, emphasis and the full stop of a sentence off an answer's ends.
func trim(summary string, start, end int) Extracted {
	const clothes = "* \t\r\n"
	text := summary[start:end]
	left := strings.TrimLeft(text, clothes)
	start += len(text) - len(left)
	answer := strings.TrimRight(left, clothes)
	if strings.HasSuffix(answer, ".") && !strings.HasSuffix(answer, "..") && !strings.ContainsAny(answer, "\n") {
		answer = strings.TrimRight(strings.TrimSuffix(answer, "."), clothes)
	}
	return Extracted{Answer: answer, Start: start, End: start + len(answer)}
}
