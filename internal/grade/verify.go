package grade

import (
	"fmt"
	"maps"
	"math/big"
	"regexp"
	"slices"
	"strings"
)

// Problem is what a verifier needs to know about a task.
type Problem struct {
	Answers []string `json:"answers,omitempty"` // any one is right: math, exact, choice
	Numbers []int64  `json:"numbers,omitempty"` // countdown: each is to be used once
	Target  int64    `json:"target,omitempty"`  // countdown: what they are to make
}

// Verifier reports whether an answer, or a text whose last box holds it, is right.
type Verifier func(p Problem, answer string) bool

var verifiers = map[string]Verifier{
	"math":      verifyMath,
	"exact":     verifyExact,
	"choice":    verifyChoice,
	"countdown": verifyCountdown,
}

// VerifierOf returns the verifier of a kind of task: math (equal to any of the
// answers), exact (the same text as one), choice (the same letter A to E) or
// countdown (an expression with + - × ÷ that uses each number once and makes the
// target, alone or in an equation with the target).
func VerifierOf(task string) (Verifier, error) {
	if v, ok := verifiers[task]; ok {
		return v, nil
	}
	return nil, fmt.Errorf("unknown task %q: it must be one of %s", task,
		strings.Join(slices.Sorted(maps.Keys(verifiers)), ", "))
}

func verifyMath(p Problem, answer string) bool {
	return slices.ContainsFunc(p.Answers, func(gold string) bool {
		return Equal(gold, answer) || lettered.MatchString(gold) && choice(gold) == choice(answer)
	})
}

func verifyExact(p Problem, answer string) bool {
	answer = Normalize(answer)
	return slices.ContainsFunc(p.Answers, func(gold string) bool { return answer != "" && Normalize(gold) == answer })
}

func verifyChoice(p Problem, answer string) bool {
	letter := choice(answer)
	return slices.ContainsFunc(p.Answers, func(gold string) bool { return letter != "" && choice(gold) == letter })
}

var (
	lettered      = regexp.MustCompile(`^\$?\\(text|textbf|mathrm|mathbf|textrm|mbox)\s*\{\s*\([A-E]\)\s*\}\$?$`) // a choice among the answers of a math task
	choiceClothes = regexp.MustCompile(`\\(text|textbf|textsf|mathrm|mathbf|mathsf|textrm|mbox)\b|\\[ ,;!]|[{}$*~"“”]`)
	choiceLetter  = regexp.MustCompile(`^(?i:(?:(?:the )?(?:correct |final |right )*(?:answer|option|choice)\s*(?:is)?:?\s*(?:(?:option|choice)\s*)?)?)(?:[(\[]([A-Ea-e])[)\]]|([A-Ea-e])(?:[).:,]|\s+(?:[-–—]|is (?:the|right|true|correct)\b)|$))`)
	otherChoice   = regexp.MustCompile(`[(\[][A-E][)\]]|\b[B-E]\b|\bA(?:\b[^ ]|$)|^[\s,]*(?:and|or)\b|(?i:^\W*(?:is|was)\s+(?:not|wrong|false|incorrect)\b)`)
)

// choice returns the letter of an answer such as B, (b), \text{B}, B. or B) 12, in
// upper case, or "" if there is none, or a second one: (B) or (C), B is wrong.
func choice(answer string) string {
	answer = strings.TrimSpace(choiceClothes.ReplaceAllString(Normalize(answer), ""))
	m := choiceLetter.FindStringSubmatch(answer)
	if m == nil || otherChoice.MatchString(answer[len(m[0]):]) {
		return ""
	}
	return strings.ToUpper(m[1] + m[2])
}

// timesX is a multiplication sign among numbers, typed as a letter.
var timesX = regexp.MustCompile(`([0-9)}\s])[xX]([0-9({\s])`)

func verifyCountdown(p Problem, answer string) bool {
	answer = Normalize(answer)
	if len(answer) > maxInput {
		return false
	}
	for range 2 { // those of 3x7x8 share the 7
		answer = timesX.ReplaceAllString(answer, "$1*$2")
	}
	toks, _ := lex(answer, false, false)
	tree, err := parse(toks, "")
	if err != nil {
		return false
	}
	target := big.NewRat(p.Target, 1)
	if tree.op == opRel {
		if len(tree.kids) != 2 || tree.rels[0] != "=" {
			return false
		}
		left, right := tree.kids[0], tree.kids[1]
		if isInteger(left, target) { // 29 = 3*7+8
			left, right = right, left
		}
		if !isInteger(right, target) {
			return false
		}
		tree = left
	}
	var used []int64
	if !arithmetic(tree, &used) {
		return false
	}
	slices.Sort(used)
	if !slices.Equal(used, slices.Sorted(slices.Values(p.Numbers))) {
		return false
	}
	value := newEvaluator().exact(tree)
	return value != nil && value.Cmp(target) == 0
}

func isInteger(n *node, value *big.Rat) bool {
	if n.op == opNeg {
		return isInteger(n.kids[0], new(big.Rat).Neg(value))
	}
	return n.op == opNumber && n.num.Cmp(value) == 0
}

// arithmetic reports whether n is integers joined by written + - × ÷ signs, and
// collects them.
func arithmetic(n *node, used *[]int64) bool {
	switch n.op {
	case opNumber:
		if !n.num.IsInt() || !n.num.Num().IsInt64() {
			return false
		}
		*used = append(*used, n.num.Num().Int64())
		return true
	case opAdd, opNeg, opMul, opDiv:
		if n.name == "implicit" {
			return false
		}
		return !slices.ContainsFunc(n.kids, func(kid *node) bool { return !arithmetic(kid, used) })
	}
	return false
}
