package grade_test

import (
	"strings"
	"testing"

	"anytime/internal/grade"
)

func TestBoxed(t *testing.T) {
	for _, test := range []struct {
		text, want string
		ok         bool
	}{
		{`\boxed{5}`, "5", true},
		{`first \boxed{4}, then \boxed{5}.`, "5", true},
		{`\boxed{\frac{1}{2}}`, `\frac{1}{2}`, true},
		{`\boxed{\{1,2\}}`, `\{1,2\}`, true},
		{`\boxed{\left\{ 1 \right.}`, `\left\{ 1 \right.`, true},
		{`\fbox{ 7 }`, "7", true},
		{`\boxed{1} and \fbox{2}`, "2", true},
		{`\boxed 5`, "5", true},
		{`$\boxed 5$.`, "5", true},
		{`\boxed {5}`, "5", true},
		{`\boxed{5} but \boxed{6`, "5", true},
		{`\boxed{}`, "", true},
		{`\boxed{5} and remember to use \boxed{}.`, "5", true},
		{`\boxed{4}. Check: \boxed{5}`, "5", true},
		{`\boxed\frac{1}{2}.`, `\frac{1}{2}`, true},
		{`{\boxed 5}`, "5", true},
		{`\boxed{6`, "", false},
		{`\boxed`, "", false},
		{`no box`, "", false},
		{``, "", false},
	} {
		if got, ok := grade.Boxed(test.text); got != test.want || ok != test.ok {
			t.Errorf("Boxed(%q) = %q, %v, want %q, %v", test.text, got, ok, test.want, test.ok)
		}
	}
}

// However long a text is, only its end is searched, and once.
func TestBoxedIsBounded(t *testing.T) {
	far := strings.Repeat(" .", grade.MaxTail/2)
	for _, text := range []string{`\boxed{5}` + far, strings.Repeat(`\boxed{`, 20) + strings.Repeat("x", 1<<20)} {
		if content, ok := grade.Boxed(text); ok {
			t.Errorf("Boxed(%.20q…) = %q", text, content)
		}
	}
	if got := grade.Normalize("5" + far); got != "5" {
		t.Errorf("Normalize of an answer with many full stops = %.20q", got)
	}
	if content, ok := grade.Boxed(far + `\boxed{5}`); content != "5" || !ok {
		t.Errorf("Boxed of a long text = %q, %v", content, ok)
	}
}

func TestNormalize(t *testing.T) {
	for in, want := range map[string]string{
		" $5$. ":                         "5",
		`\[ x^2 \]`:                      "x^2",
		`so \boxed{$\frac12$}`:           `\frac12`,
		"**42**":                         "42",
		"$1$, $2$":                       "$1$, $2$",
		`\$5`:                            `\$5`,
		"1, 2, ...":                      "1, 2, ...",
		`\text{Evelyn}`:                  `\text{Evelyn}`,
		"":                               "",
		`\boxed{\boxed{\text{a}}}`:       `\text{a}`,
		`so \boxed{1}, \boxed{2}.`:       `\boxed{1}, \boxed{2}`,
		`$x=\boxed{1}$ or $x=\boxed{2}$`: `x=\boxed{1}$ or $x=\boxed{2}`,
		`\boxed{1}, then \boxed{2}`:      "2",
		`***5***`:                        "5",
		`"5."`:                           "5",
		"5. .":                           "5",
	} {
		if got := grade.Normalize(in); got != want {
			t.Errorf("Normalize(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestVerifiers(t *testing.T) {
	countdown := grade.Problem{Numbers: []int64{3, 7, 8}, Target: 29}
	twice := grade.Problem{Numbers: []int64{5, 5, 1}, Target: 24}
	letter := grade.Problem{Answers: []string{"B"}}
	two := grade.Problem{Answers: []string{`\frac{1}{2}`, "7"}}
	for _, test := range []struct {
		task   string
		p      grade.Problem
		answer string
		want   bool
	}{
		{"math", two, "0.5", true},
		{"math", two, `We get \boxed{7}.`, true},
		{"math", two, "0.7", false},
		{"math", two, "", false},
		{"math", grade.Problem{}, "7", false},

		{"exact", two, `$\frac{1}{2}$`, true},
		{"exact", two, "7.", true},
		{"exact", two, "0.5", false},
		{"exact", two, "", false},

		{"choice", letter, "B", true},
		{"choice", letter, "b", true},
		{"choice", letter, "(B)", true},
		{"choice", letter, "B.", true},
		{"choice", letter, `\text{B}`, true},
		{"choice", letter, `$\textbf{(B)}\ 12$`, true},
		{"choice", letter, "B) 12", true},
		{"choice", letter, "B: twelve", true},
		{"choice", letter, "**B**", true},
		{"choice", letter, "The answer is (B).", true},
		{"choice", letter, "Answer: B", true},
		{"choice", letter, `\boxed{\text{(B)}}`, true},
		{"choice", grade.Problem{Answers: []string{`\text{(B)}`}}, "B", true},
		{"choice", letter, "B is correct", true},
		{"choice", letter, "The answer is option B", true},
		{"choice", letter, "[B]", true},
		{"choice", letter, `\textsf{(B)}`, true},
		{"choice", letter, "B - twelve", true},
		{"choice", letter, `"B"`, true},
		{"choice", letter, "B) not enough information", true},
		{"choice", letter, "(B) A dog", true},
		{"choice", letter, "C", false},
		{"choice", letter, "(B) or (C)", false},
		{"choice", letter, "B or C", false},
		{"choice", letter, "B, C", false},
		{"choice", letter, "(B), (A)", false},
		{"choice", letter, "B) is wrong; the answer is C", false},
		{"choice", letter, "B is not correct", false},
		{"choice", letter, `\boxed{B}, \boxed{C}`, false},
		{"choice", letter, "not B", false},
		{"choice", letter, "B is wrong", false},
		{"math", grade.Problem{Answers: []string{`\text{(B)}`}}, "B)", true},
		{"math", grade.Problem{Answers: []string{`\text{(B)}`}}, `\textbf{(B)}\ 12`, true},
		{"math", grade.Problem{Answers: []string{`\text{(B)}`}}, `\textbf{(C)}\ 12`, false},
		{"math", grade.Problem{Answers: []string{`\text{(B)}`}}, "(B) or (C)", false},
		{"choice", letter, "(C) B", false},
		{"choice", letter, "A or B", false},
		{"choice", letter, "Both", false},
		{"choice", letter, "12", false},
		{"choice", letter, "", false},

		{"countdown", countdown, "3*7+8", true},
		{"countdown", countdown, "3*7+8=29", true},
		{"countdown", countdown, "29 = 8 + 7*3", true},
		{"countdown", countdown, "(3 × 7) + 8", true},
		{"countdown", countdown, `\boxed{3 \times 7 + 8 = 29}`, true},
		{"countdown", countdown, `$3\cdot 7+8$.`, true},
		{"countdown", countdown, "3 x 7 + 8", true},
		{"countdown", countdown, "3x7+8", true},
		{"countdown", grade.Problem{Numbers: []int64{2, 3, 4}, Target: 24}, "2x3x4", true},
		{"countdown", countdown, "3•7+8", true},
		{"countdown", countdown, "３×７＋８＝２９", true},
		{"countdown", countdown, "3 x 8 + 7", false},
		{"countdown", countdown, "3 xx 7 + 8", false},
		{"countdown", countdown, "3*8+7", false},     // 31
		{"countdown", countdown, "3*8+7=29", false},  // false
		{"countdown", countdown, "3*7+8=30", false},  // false
		{"countdown", countdown, "29", false},        // uses nothing
		{"countdown", countdown, "29=29", false},     // uses nothing
		{"countdown", countdown, "3*7+8+8-8", false}, // 8 three times
		{"countdown", countdown, "3*7+8*1", false},   // 1 is not given
		{"countdown", countdown, "37-8", false},      // 37 is not given
		{"countdown", countdown, "3*7=21+8=29", false},
		{"countdown", countdown, "3(7)+8", false}, // no sign written
		{"countdown", countdown, "3*7+8/1", false},
		{"countdown", countdown, "3*7+8!", false},
		{"countdown", countdown, "3*7+8 or 8+7*3", false},
		{"countdown", countdown, "3*7+x", false},
		{"countdown", countdown, "3*7+", false},
		{"countdown", countdown, "", false},
		{"countdown", twice, "5*5-1", true},
		{"countdown", twice, "5*5-1=24", true},
		{"countdown", twice, "5^2-1", false},
		{"countdown", twice, "25-1", false},
		{"countdown", grade.Problem{Numbers: []int64{3, 3, 8, 8}, Target: 24}, "8/(3-8/3)", true},
		{"countdown", grade.Problem{Numbers: []int64{3, 3, 8, 8}, Target: 24}, `\frac{8}{3-\frac{8}{3}}`, true},
		{"countdown", grade.Problem{Numbers: []int64{3, 3, 8, 8}, Target: 24}, "8 ÷ (3 − 8 ÷ 3)", true},
		{"countdown", grade.Problem{Numbers: []int64{1, 2, 4}, Target: 2}, "1 2/4", false},
		{"countdown", grade.Problem{Numbers: []int64{1, 1, 5}, Target: 5}, "5/(1-1)", false},
		{"countdown", grade.Problem{Numbers: []int64{10, 3, 1}, Target: 3}, "10/3-1", false}, // exact, not rounded
		{"countdown", grade.Problem{Numbers: []int64{2, 5}, Target: -3}, "2-5=-3", true},
	} {
		verify, err := grade.VerifierOf(test.task)
		if err != nil {
			t.Fatal(err)
		}
		if got := verify(test.p, test.answer); got != test.want {
			t.Errorf("%s %v: %q = %v, want %v", test.task, test.p, test.answer, got, test.want)
		}
	}
	if _, err := grade.VerifierOf("essay"); err == nil {
		t.Error("VerifierOf(essay) gave no error")
	}
}
