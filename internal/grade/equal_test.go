package grade_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"anytime/internal/grade"
)

// lines returns the lines of a file in testdata.
func lines(t testing.TB, name string) []string {
	t.Helper()
	f, err := os.Open("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		out = append(out, sc.Text())
	}
	return out
}

type pair struct {
	equal bool
	a, b  string
}

// golden returns the pairs of golden.tsv.
func golden(t testing.TB) []pair {
	t.Helper()
	var pairs []pair
	for i, line := range lines(t, "golden.tsv") {
		if strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Split(line, "\t")
		if len(fields) != 3 || fields[0] != "=" && fields[0] != "!" {
			t.Fatalf("golden.tsv:%d: %q: want = or !, tab, answer, tab, answer", i+1, line)
		}
		pairs = append(pairs, pair{fields[0] == "=", fields[1], fields[2]})
	}
	return pairs
}

func TestGolden(t *testing.T) {
	pairs := golden(t)
	for _, p := range pairs {
		if got := grade.Equal(p.a, p.b); got != p.equal {
			t.Errorf("Equal(%q, %q) = %v, want %v", p.a, p.b, got, p.equal)
		}
		if got := grade.Equal(p.b, p.a); got != p.equal {
			t.Errorf("Equal(%q, %q) = %v, want %v", p.b, p.a, got, p.equal)
		}
	}
	t.Logf("%d pairs", len(pairs))
}

// answers returns the answers of the evaluation sets.
func answers(t testing.TB) []string {
	t.Helper()
	var all []string
	for i, line := range lines(t, "answers.jsonl") {
		var problem struct{ Answers []string }
		if err := json.Unmarshal([]byte(line), &problem); err != nil || len(problem.Answers) == 0 {
			t.Fatalf("answers.jsonl:%d: %v", i+1, err)
		}
		all = append(all, problem.Answers...)
	}
	return all
}

// rewritings keep the meaning of any answer.
var rewritings = map[string]func(string) string{
	"dollars":      func(s string) string { return "$" + bare(s) + "$" },
	"brackets":     func(s string) string { return `\(` + bare(s) + `\)` },
	"boxed":        func(s string) string { return `The answer is \boxed{` + s + `}, I think.` },
	"fbox":         func(s string) string { return `\fbox{` + s + `}` },
	"full stop":    func(s string) string { return strings.TrimSuffix(s, ".") + "." },
	"dfrac":        func(s string) string { return strings.ReplaceAll(s, `\frac`, `\dfrac`) },
	"tfrac":        func(s string) string { return strings.ReplaceAll(s, `\frac`, `\tfrac`) },
	"displaystyle": func(s string) string { return `\displaystyle ` + s },
	"left, right": func(s string) string {
		s = strings.NewReplacer(`\left`, "", `\right`, "").Replace(s)
		return strings.NewReplacer("(", `\left(`, ")", `\right)`).Replace(s)
	},
	"no left, right": func(s string) string {
		return strings.NewReplacer(`\left`, "", `\right`, "").Replace(s)
	},
	"wide": func(s string) string {
		return strings.NewReplacer("+", " + ", "=", " = ", `\pi`, `\pi `, "{", "{ ", "(", `(\,`).Replace(s)
	},
	"mbox":      func(s string) string { return strings.ReplaceAll(s, `\text{`, `\mbox{`) },
	"times":     func(s string) string { return strings.ReplaceAll(s, `\times`, `\cdot`) },
	"degrees":   func(s string) string { return strings.NewReplacer(`^\circ`, "°", `^{\circ}`, "°").Replace(s) },
	"pi":        func(s string) string { return strings.ReplaceAll(s, `\pi`, "π") },
	"minus":     func(s string) string { return strings.ReplaceAll(s, "-", "−") },
	"le":        func(s string) string { return strings.ReplaceAll(s, `\geqslant`, `\geq`) },
	"one minus": func(s string) string { return strings.ReplaceAll(s, "{-", "{ - ") },
}

// bare takes the dollar signs of mathematics off.
func bare(s string) string {
	return strings.NewReplacer(`\$`, `\$`, "$", "").Replace(s)
}

// perturbations change the meaning, where they change anything at all.
var perturbations = map[string]func(string) string{
	"first digit": func(s string) string { return changeDigit(s, strings.IndexAny(s, "0123456789")) },
	"last digit":  func(s string) string { return changeDigit(s, strings.LastIndexAny(s, "0123456789")) },
	"doubled": func(s string) string {
		if strings.ContainsAny(s, ",=") || strings.Contains(s, "in") || strings.ContainsAny(s, "[({") || !strings.ContainsAny(s, "0123456789") || s == "0" {
			return s
		}
		return "2(" + strings.Trim(s, "$") + ")"
	},
	"one more": func(s string) string {
		if strings.Contains(s, `\text`) || strings.Contains(s, "where") {
			return s
		}
		return strings.TrimSuffix(strings.TrimSuffix(s, "."), "$") + ", 987"
	},
	"longer": func(s string) string {
		if i := strings.LastIndexAny(s, "0123456789"); i >= 0 && s[max(i-1, 0)] != '0' {
			return s[:i+1] + "7" + s[i+1:]
		}
		return s
	},
	"open": func(s string) string {
		if strings.Contains(s, `\infty`) || strings.Contains(s, `\cup`) {
			return s
		}
		return strings.Replace(s, "]", ")", 1)
	},
}

func changeDigit(s string, i int) string {
	if i < 0 {
		return s
	}
	return s[:i] + string('0'+(s[i]-'0'+3)%10) + s[i+1:]
}

func TestSetAnswers(t *testing.T) {
	rewritten, perturbed := 0, 0
	for _, a := range answers(t) {
		if !grade.Equal(a, a) {
			t.Errorf("Equal(%q, itself) = false", a)
		}
		for name, rewrite := range rewritings {
			if b := rewrite(a); b != a {
				rewritten++
				if !grade.Equal(a, b) {
					t.Errorf("%s: Equal(%q, %q) = false", name, a, b)
				}
			}
		}
		for name, perturb := range perturbations {
			if b := perturb(a); b != a {
				perturbed++
				if grade.Equal(a, b) {
					t.Errorf("%s: Equal(%q, %q) = true", name, a, b)
				}
			}
		}
	}
	t.Logf("%d rewritten, %d perturbed", rewritten, perturbed)
}

func TestSetAnswersParse(t *testing.T) {
	const malformed = "$t(0,4]$" // the set's own misprint of (0,4]
	all := answers(t)
	parsed := 0
	for _, a := range all {
		if grade.IsMathematics(a) {
			parsed++
		} else if a != malformed {
			t.Errorf("%q does not parse as mathematics", a)
		}
	}
	t.Logf("%d of %d answers parse", parsed, len(all))
}

// hostile inputs are made to cost time, memory or stack.
var hostile = []string{
	"9^9^9^9", "10^{10^{10^{10}}}", "1e999999999", "2^{-99999999999999999999}", "(1/3)^{100000}",
	strings.Repeat("900!+", 300) + "1",
	strings.Repeat("(", 1000) + "1" + strings.Repeat(")", 1000),
	strings.Repeat("{", 1000), strings.Repeat("-", 2000) + "1", strings.Repeat("|", 1001),
	strings.Repeat("x+1,", 500) + "y",
	`\{` + strings.Repeat("1,", 900) + `2\}`,
	strings.Repeat(`\sqrt{`, 300) + "x" + strings.Repeat("}", 300),
	strings.Repeat("(1/3)^{2000}+(1/7)^{1900}+", 70) + "1",
	strings.Repeat(`\sqrt[59]{2^{8000}+1}+`, 80) + "1",
	strings.Repeat(`\boxed{`, 20000), strings.Repeat("5. ", 40000), strings.Repeat("$", 40000) + "5",
	strings.Repeat("x", 100000), strings.Repeat("x=", 900) + "1",
	strings.Repeat(`\text{`, 300) + "a" + strings.Repeat("}", 300),
	strings.Repeat(`\frac12`, 280), strings.Repeat(`\pm1`, 400), strings.Repeat("a", 1000) + "sin(x)",
	strings.Repeat(`\binom{2000}{1000}+`, 100) + "1",
	strings.Repeat("(1,", 55) + "2" + strings.Repeat(")", 55),
	strings.Repeat(`\{x=`, 50) + "2" + strings.Repeat(`\}`, 50),
	`\\`, `\`, "{", "}", "^", "_", `\frac`, `\frac{`, `\begin{pmatrix}`, `\end{`, "\x00", "\xff\xfe", `\left`, `\text`, "$", "é²½",
	strings.Repeat(`(\pm1,\pm2,\pm3,\pm4),`, 60) + "1", strings.Repeat(`\SI{`, 200) + "5", strings.Repeat("f(", 59) + "x" + strings.Repeat(")", 59),
	strings.Repeat(`(1,2)\cup`, 200) + "(3,4)", strings.Repeat("x<1 or ", 250) + "x<2", strings.Repeat(`\sqrt[59]{\pi+`, 50) + "1" + strings.Repeat("}", 50),
	strings.Repeat(`\sin(\exp(`, 25) + "1" + strings.Repeat("))", 25), strings.Repeat("⁵₅", 300), strings.Repeat("599!!+", 150) + "1",
	"x^", "x_", "1_", "'", "-", "±", `\sqrt[`, `\sqrt[0]{2}`, `\log_0 1`, `\log_1 2`, "0^{-1}", "(-1)!", `\binom{-1}{2}`, "1/0", `\infty-\infty`,
}

func TestHostile(t *testing.T) {
	for i, a := range hostile {
		for _, b := range []string{"1", "x", a + "+1", hostile[(i+1)%len(hostile)]} {
			if a == b {
				continue
			}
			if steps := grade.Steps(a, b); steps > 2*grade.MaxSteps {
				t.Errorf("Equal(%.40q, %.40q) took %d steps", a, b, steps)
			}
			if grade.Equal(a, b) {
				t.Errorf("Equal(%.40q, %.40q) = true", a, b)
			}
		}
	}
}

// What cannot be decided within the budget is not equal.
func TestBudget(t *testing.T) {
	var a, b strings.Builder
	for i := range 150 {
		fmt.Fprintf(&a, `\sin x+%d,`, i)
		fmt.Fprintf(&b, `\cos x+%d,`, i)
	}
	x, y := `\{`+a.String()+`0\}`, `\{`+b.String()+`1\}`
	if steps := grade.Steps(x, y); steps <= grade.MaxSteps {
		t.Errorf("%d steps are within the budget: the test needs larger sets", steps)
	}
	if grade.Equal(x, y) {
		t.Error("two large sets that differ are equal")
	}
}

func TestBlank(t *testing.T) {
	for _, s := range []string{"", " ", "\t\n"} {
		if grade.Equal(s, s) || grade.Equal(s, "5") {
			t.Errorf("blank %q equals something", s)
		}
	}
}

func FuzzEqual(f *testing.F) {
	for _, p := range golden(f) {
		f.Add(p.a, p.b)
	}
	for _, s := range hostile {
		f.Add(s, "1")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		if got, back := grade.Equal(a, b), grade.Equal(b, a); got != back {
			t.Errorf("Equal(%q, %q) = %v, turned round %v", a, b, got, back)
		}
		for _, s := range []string{a, b} {
			if blank := strings.TrimSpace(s) == ""; grade.Equal(s, s) == blank {
				t.Errorf("Equal(%q, itself) = %v", s, !blank)
			}
		}
		if steps := grade.Steps(a, b); steps > 2*grade.MaxSteps {
			t.Errorf("Equal(%q, %q) took %d steps", a, b, steps)
		}
		grade.Normalize(a)
		if content, ok := grade.Boxed(a); ok && len(content) > len(a) {
			t.Errorf("Boxed(%q) = %q", a, content)
		}
		for _, task := range []string{"math", "exact", "choice", "countdown"} {
			verify, err := grade.VerifierOf(task)
			if err != nil {
				t.Fatal(err)
			}
			verify(grade.Problem{Answers: []string{a}, Numbers: []int64{1, 2}, Target: 3}, b)
		}
	})
}
