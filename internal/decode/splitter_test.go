package decode_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"anytime/internal/decode"
)

var (
	thinkMarkers   = decode.Markers{Open: []string{"<think>"}, Close: []string{"</think>"}}
	harmonyMarkers = decode.Markers{Open: []string{"<|channel|>analysis<|message|>"}, Close: []string{"<|end|>"},
		Header: []string{"<|start|>assistant<|channel|>final<|message|>"}, Stray: []string{"<|channel|>", "<|start|>"}}
)

type split struct {
	thinking, answer, stop string
	odd                    int
	inside                 bool
}

// run feeds a text in pieces that end at the cuts.
func run(m decode.Markers, thinking bool, stops []string, text string, cuts ...int) split {
	s := decode.NewSplitter(m, thinking, stops)
	var out split
	add := func(d decode.Delta) { out.thinking += d.Thinking; out.answer += d.Answer }
	at := 0
	for _, c := range cuts {
		if c > at && c < len(text) {
			add(s.Add(text[at:c]))
			at = c
		}
	}
	add(s.Add(text[at:]))
	add(s.Flush())
	out.stop, out.odd, out.inside = s.Stop(), s.Odd(), s.Thinking()
	return out
}

func TestSplitter(t *testing.T) {
	for _, tt := range []struct {
		name     string
		markers  decode.Markers
		thinking bool
		stops    []string
		in       string
		want     split
	}{
		{"thinking then answer", thinkMarkers, true, nil, "a < b</think>\n\n4", split{thinking: "a < b", answer: "\n\n4"}},
		{"never closed", thinkMarkers, true, nil, "a</thin", split{thinking: "a</thin", inside: true}},
		{"answer only", thinkMarkers, false, nil, "4 <th", split{answer: "4 <th"}},
		{"opened again at the start", thinkMarkers, true, nil, "\n<think>a</think>b", split{thinking: "\na", answer: "b"}},
		{"opened in the middle", thinkMarkers, true, nil, "a<think>b</think>c", split{thinking: "ab", answer: "c", odd: 1}},
		{"second close", thinkMarkers, true, nil, "a</think>b</think>c", split{thinking: "a", answer: "bc", odd: 1}},
		{"thinking opened in the answer", thinkMarkers, false, nil, "a<think>b</think>c", split{thinking: "b", answer: "ac", odd: 1}},
		{"stop only in the answer", thinkMarkers, true, []string{"STOP"}, "aSTOP</think>bSTOPc", split{thinking: "aSTOP", answer: "b", stop: "STOP"}},
		{"stop that does not come", thinkMarkers, false, []string{"STOP"}, "aSTO", split{answer: "aSTO"}},
		{"longest of two stops", thinkMarkers, false, []string{"ab", "abc"}, "xabcd", split{answer: "x", stop: "abc"}},
		{"stop that overlaps itself", thinkMarkers, false, []string{"aab"}, "aaab", split{answer: "a", stop: "aab"}},
		{"stop in a marker's beginning", thinkMarkers, false, []string{"</t"}, "a</think>b", split{answer: "ab", odd: 1}},
		{"runes", thinkMarkers, true, nil, "é🙂</think>日本", split{thinking: "é🙂", answer: "日本"}},
		{"invalid UTF-8", thinkMarkers, false, nil, "a\xe2\x82b\xff", split{answer: "a\ufffd\ufffdb\ufffd"}},
		{"invalid end", thinkMarkers, true, nil, "a\xf0\x9f", split{thinking: "a\ufffd\ufffd", inside: true}},
		{"harmony", harmonyMarkers, true, nil, "a<|end|><|start|>assistant<|channel|>final<|message|>b", split{thinking: "a", answer: "b"}},
		{"harmony without an end", harmonyMarkers, true, nil, "a<|start|>assistant<|channel|>final<|message|>b", split{thinking: "a", answer: "b"}},
		{"harmony reopened", harmonyMarkers, false, nil, "a<|channel|>analysis<|message|>b<|end|>c", split{thinking: "b", answer: "ac", odd: 1}},
		{"harmony stray", harmonyMarkers, false, nil, "a<|channel|>commentary", split{answer: "acommentary", odd: 1}},
		{"close that stops the answer", harmonyMarkers, false, []string{"<|end|>"}, "a<|end|>b", split{answer: "a", stop: "<|end|>"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var each []int
			for i := range tt.in {
				each = append(each, i)
			}
			for i := 0; i <= len(tt.in); i++ {
				if got := run(tt.markers, tt.thinking, tt.stops, tt.in, i); got != tt.want {
					t.Fatalf("cut at %d: got %+v, want %+v", i, got, tt.want)
				}
			}
			if got := run(tt.markers, tt.thinking, tt.stops, tt.in, each...); got != tt.want {
				t.Errorf("a rune at a time: got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// Text must not be held back longer than it may still become something else.
func TestSplitterHoldsBackLittle(t *testing.T) {
	s := decode.NewSplitter(thinkMarkers, true, nil)
	for _, step := range []struct{ in, want string }{{"a", "a"}, {"b<", "b"}, {"/t", ""}, {"o", "</to"}, {"é"[:1], ""}, {"é"[1:], "é"}} {
		if d := s.Add(step.in); d.Thinking != step.want {
			t.Errorf("after %q: got %q, want %q", step.in, d.Thinking, step.want)
		}
	}
}

func FuzzSplitter(f *testing.F) {
	f.Add("a</think>b<think>c</think>STOP", uint64(0b1010101), true)
	f.Add("é<th\xffink>ST\xf0\x9fOP", uint64(0xff), false)
	f.Add("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b", uint64(0x1111), true)
	stops := []string{"STOP", "ST\nOP", "</"}
	f.Fuzz(func(t *testing.T, text string, cutBits uint64, thinking bool) {
		var cuts []int
		for i := range len(text) {
			if cutBits>>(i%64)&1 == 1 {
				cuts = append(cuts, i)
			}
		}
		for _, m := range []decode.Markers{thinkMarkers, harmonyMarkers} {
			whole, pieces := run(m, thinking, stops, text), run(m, thinking, stops, text, cuts...)
			if whole != pieces {
				t.Fatalf("%q: whole %+v, in pieces %+v", text, whole, pieces)
			}
			if !utf8.ValidString(whole.thinking) || !utf8.ValidString(whole.answer) {
				t.Fatalf("%q: invalid UTF-8: %+v", text, whole)
			}
			if !strings.ContainsAny(text, "<S") && whole.thinking+whole.answer != strings.Map(func(r rune) rune { return r }, text) {
				t.Fatalf("%q: lost or added text: %+v", text, whole)
			}
		}
	})
}

func BenchmarkSplitter(b *testing.B) {
	s := decode.NewSplitter(thinkMarkers, true, []string{"\nUser:"})
	b.ReportAllocs()
	for b.Loop() {
		s.Add(" thinking")
	}
}
