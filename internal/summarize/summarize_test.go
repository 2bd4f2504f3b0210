package summarize_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"anytime/internal/decode"
	"anytime/internal/decode/decodetest"
	"anytime/internal/grade"
	"anytime/internal/summarize"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestExtract(t *testing.T) {
	tests := []struct {
		name, summary string
		announced     bool
		answer        string
		marked        bool
	}{
		{"boxed", `So \(17 \cdot 24\) is \boxed{408}.`, false, "408", true},
		{"the last box", `\boxed{1}, no: \boxed{\frac{1}{2}}`, true, `\frac{1}{2}`, true},
		{"an open box is none", `It is \boxed{40`, false, `It is \boxed{40`, false},
		{"header", "Well.\n\n**Final Answer**\n42\n\nGoodbye.", false, "42", true},
		{"header in the line", "The answer is 7.", false, "7", false},
		{"the last header", "Answer: 1\nThe final answer is: **2**\n", false, "is: **2", true},
		{"announced, one paragraph", " 42.\n", true, "42", false},
		{"announced, more follows", "12 + 30 = 42.\n\nThis is a classic", true, "12 + 30 = 42", true},
		{"announced, a whole line and half a one", "12 + 30 = 42\nThis is a cl", true, "12 + 30 = 42\nThis is a cl", true},
		{"announced, leading space", "\n\n 42\n\nmore", true, "42", true},
		{"neither", "Paris\n\nis nice.", false, "Paris\n\nis nice.", false},
		{"nothing", " \n", true, "", false},
		{"dots stay", "1, 2, ...", false, "1, 2, ...", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			e := summarize.Extract(test.summary, test.announced)
			if e.Answer != test.answer || e.Marked != test.marked {
				t.Errorf("answer %q, marked %v; want %q, %v", e.Answer, e.Marked, test.answer, test.marked)
			}
			if test.summary[e.Start:e.End] != e.Answer {
				t.Errorf("bytes %d to %d are %q", e.Start, e.End, test.summary[e.Start:e.End])
			}
		})
	}
}

func FuzzExtract(f *testing.F) {
	f.Add(`\boxed{4`, true)
	f.Add("Final Answer\n\n\u0130 7", false)
	f.Fuzz(func(t *testing.T, summary string, announced bool) {
		e := summarize.Extract(summary, announced)
		if e.Start < 0 || e.End > len(summary) || summary[e.Start:e.End] != e.Answer {
			t.Errorf("%+v of %q", e, summary)
		}
	})
}

func TestMajority(t *testing.T) {
	vote := func(answer string, confidence float64) summarize.Summary {
		return summarize.Summary{Extracted: summarize.Extracted{Answer: answer}, Confidence: confidence}
	}
	tests := []struct {
		name       string
		votes      []summarize.Summary
		winner     int
		confidence float64
	}{
		{"one", []summarize.Summary{vote("1", .8)}, 0, .8},
		{"equal in meaning", []summarize.Summary{vote("3", .9), vote("0.5", .6), vote(`\frac12`, .8)}, 1, 1.4 / 3},
		{"a tie goes to the surer", []summarize.Summary{vote("1", .2), vote("2", .9)}, 1, .45},
		{"empty answers agree with nobody", []summarize.Summary{vote("", 1), vote("", 1), vote("4", .5)}, 2, .5 / 3},
		{"none", []summarize.Summary{vote("", 1)}, -1, 0},
		{"no votes", nil, -1, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			winner, confidence := summarize.Majority(test.votes, grade.Equal)
			if winner != test.winner || math.Abs(confidence-test.confidence) > 1e-9 {
				t.Errorf("winner %d, %v; want %d, %v", winner, confidence, test.winner, test.confidence)
			}
		})
	}
}

// says is a model that answers with the given tokens whatever is asked.
func says(tokens ...string) decodetest.Model {
	return decodetest.Script([]string{" thought"}, "<think>", "</think>", func(string) []string { return tokens })
}

func TestTake(t *testing.T) {
	tests := []struct {
		name    string
		plan    summarize.Plan
		says    []string
		text    string
		answer  string
		escaped bool
		end     decode.End
	}{
		{"to its end", summarize.Plan{}, []string{" It", " is", " \\boxed{4}"}, ` It is \boxed{4}`, "4", false, decode.EndEOG},
		{"a stop string over tokens", summarize.Plan{Stop: []string{"#END"}}, []string{" 4", "#", "EN", "D", " more"}, " 4", "4", false, decode.EndUntil},
		{"one paragraph, announced", summarize.Plan{Announced: true}, []string{"\n\n", " 12", "\n", "\nThis", " is"}, "\n\n 12\n", "12", false, decode.EndUntil},
		{"the line before it", summarize.Plan{Announced: true}, []string{"So:", "\n\n", "\\[", "\n\n12", "\n\n\\]", "\n\nWell"}, "So:\n\n\\[\n\n12\n\n\\]", "So:\n\n\\[\n\n12\n\n\\]", false, decode.EndUntil},
		{"several paragraphs, not announced", summarize.Plan{}, []string{" 12", "\n\n", "Well"}, " 12\n\nWell", "12\n\nWell", false, decode.EndEOG},
		{"capped", summarize.Plan{Span: decode.Span{MaxTokens: 2}}, []string{" a", " b", " c"}, " a b", "a b", false, decode.EndLimit},
		{"reasoning opens again", summarize.Plan{Reasoning: []string{"<think>"}}, []string{" 4", " <thi", "nk> hm"}, " 4 ", "4", true, decode.EndUntil},
		{"a mark that is a stop too ends the answer", summarize.Plan{Stop: []string{"<|end|>"}, Reasoning: []string{"<|end|>"}}, []string{" 4", "<|end|>"}, " 4", "4", false, decode.EndUntil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			e := decodetest.New(decodetest.Options{Model: says(test.says...)})
			defer e.Close()
			s, err := e.Open(t.Context(), decode.Request{Prompt: []decode.Part{decode.Text("<think> thought")}})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			test.plan.Close = []decode.Part{decode.Text("</think>")}
			if test.plan.Span.MaxTokens == 0 {
				test.plan.Span.MaxTokens = 50
			}
			var streamed strings.Builder
			got, err := summarize.Take(t.Context(), s, test.plan, func(d summarize.Delta) { streamed.WriteString(d.Text) })
			if err != nil {
				t.Fatal(err)
			}
			if got.Text != test.text || got.Answer != test.answer || got.Escaped != test.escaped || got.Ended != test.end {
				t.Errorf("%+v", got)
			}
			if streamed.String() != got.Text {
				t.Errorf("streamed %q of %q", streamed.String(), got.Text)
			}
			if want := math.Exp(-0.25); math.Abs(got.Confidence-want) > 1e-6 {
				t.Errorf("confidence %v, want %v", got.Confidence, want)
			}
		})
	}
}

// What there is when time is up comes with the context's error.
func TestTakeCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := decodetest.New(decodetest.Options{Model: says(" one", " two", " three"), Step: time.Second})
		defer e.Close()
		s, err := e.Open(t.Context(), decode.Request{Prompt: []decode.Part{decode.Text("<think> thought")}})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		got, err := summarize.Take(ctx, s, summarize.Plan{Close: []decode.Part{decode.Text("</think>")}, Span: decode.Span{MaxTokens: 9}}, nil)
		if !errors.Is(err, context.DeadlineExceeded) || got.Text != " one two" {
			t.Errorf("%q, %v", got.Text, err)
		}
	})
}
