package task

import (
	"cmp"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
)

// Example is a problem with a thought and a summary to learn from. It is a Problem in JSON, too.
type Example struct {
	Problem
	Thinking string `json:"thinking"`
	Cut      bool   `json:"cut"` // the thought breaks off before its end, and is closed as one that was cut
	Summary  string `json:"summary"`
}

// Mix says what of the examples is out of the ordinary, as shares from 0 to 1.
type Mix struct {
	Cut   float64 // thoughts cut at a random byte before their end, one in four before its first
	Other float64 // questions that are no puzzles
}

// DefaultMix is what the project's own reasoner is trained on.
var DefaultMix = Mix{Cut: 0.5, Other: 0.08}

// Examples returns examples without end, of the training split only. Every puzzle comes once before any comes again, each time in other
// words and with another thought; all is a function of the seed.
//
// A thought begins with the puzzle, "12,10,4=5", its numbers sorted, and tries all ways in a fixed order, of which only that of the first
// pairs is drawn, until one hits. With three numbers a line is "12-10=2:4+2=6?5;4-2=2?5;4*2=8?5;4/2=2?5": a first step, and all second
// ones. Behind each result stands the target, so that they can be compared where they stand; one that hits ends in "!", and the thought
// with it.
// Behind a thought that was cut stands the answer that it would have found: the teacher knows it, and the best that a model can learn
// to say there is how likely each is.
func (c Countdown) Examples(seed uint64, mix Mix) (iter.Seq[Example], error) {
	if !(mix.Cut >= 0 && mix.Cut <= 1 && mix.Other >= 0 && mix.Other < 1) {
		return nil, fmt.Errorf("countdown: the shares of cut thoughts and other questions are %v and %v; they must be from 0 to 1, the second below 1", mix.Cut, mix.Other)
	}
	puzzles, err := c.puzzles(Train)
	switch {
	case err != nil:
		return nil, err
	case len(puzzles) == 0:
		return nil, fmt.Errorf("countdown: there are no puzzles of %d numbers to %d with targets to %d", c.Numbers, c.Max, c.MaxTarget)
	}
	return func(yield func(Example) bool) {
		list := slices.Clone(puzzles)
		next := len(list)
		for i, epoch := 0, 0; ; i++ {
			rng := random(seed, fmt.Sprint("example ", i))
			var e Example
			if rng.Float64() < mix.Other {
				e = other(rng, i)
			} else {
				if next == len(list) {
					shuffle(random(seed, fmt.Sprint("epoch ", epoch)), list)
					next = 0
					epoch++
				}
				e = teach(rng, list[next])
				next++
			}
			if rng.Float64() < mix.Cut {
				e.Cut = true
				switch n := len(e.Thinking); {
				case n > 0 && rng.IntN(4) == 0: // as a budget of 0 does
					e.Thinking = ""
				case n > 0:
					e.Thinking = e.Thinking[:rng.IntN(n)]
				}
			}
			if !yield(e) {
				return
			}
		}
	}, nil
}

// teach thinks a puzzle through.
func teach(rng *rand.Rand, p Problem) Example {
	p.Text = ask(rng, p.Problem)
	t := teacher{rng: rng, target: p.Target}
	var numbers []string
	var terms []term
	for _, n := range slices.Backward(slices.Sorted(slices.Values(p.Numbers))) {
		numbers = append(numbers, strconv.FormatInt(n, 10))
		terms = append(terms, term{n, strconv.FormatInt(n, 10)})
	}
	fmt.Fprintf(&t.thought, "%s=%d", strings.Join(numbers, ","), p.Target)
	t.try(terms, "")
	return Example{Problem: p, Thinking: t.thought.String(), Summary: `\boxed{` + t.answer + "}"}
}

// term is a number and how it was made.
type term struct {
	value int64
	text  string
}

type teacher struct {
	rng     *rand.Rand
	target  int64
	thought strings.Builder
	answer  string
}

// try writes all ways to use up the terms, whose making is in line, until one makes the target.
func (t *teacher) try(terms []term, line string) bool {
	slices.SortStableFunc(terms, func(a, b term) int { return cmp.Compare(b.value, a.value) })
	values := make([]int64, len(terms))
	for i, term := range terms {
		values[i] = term.value
	}
	if len(terms) == 2 {
		t.thought.WriteString("\n" + line)
	}
	for _, pair := range t.pairs(steps(values)) {
		for i, s := range pair {
			a, b := terms[s.i], terms[s.j]
			step := fmt.Sprintf("%d%c%d=%d", a.value, s.op, b.value, s.result)
			made := term{s.result, bracket(a.text) + string(s.op) + bracket(b.text)}
			if len(terms) > 2 {
				left := []term{made}
				for k, term := range terms {
					if k != s.i && k != s.j {
						left = append(left, term)
					}
				}
				if t.try(left, line+step+":") {
					return true
				}
				continue
			}
			if i > 0 {
				t.thought.WriteByte(';')
			}
			fmt.Fprintf(&t.thought, "%s?%d", step, t.target)
			if s.result == t.target {
				t.thought.WriteByte('!')
				t.answer = made.text
				return true
			}
		}
	}
	return false
}

// pairs groups steps by their pair and draws the order of the groups.
func (t *teacher) pairs(list []step) [][]step {
	var groups [][]step
	for i, s := range list {
		if i == 0 || s.i != list[i-1].i || s.j != list[i-1].j {
			groups = append(groups, nil)
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], s)
	}
	shuffle(t.rng, groups)
	return groups
}

func bracket(expression string) string {
	if strings.ContainsAny(expression, "+-*/") {
		return "(" + expression + ")"
	}
	return expression
}
