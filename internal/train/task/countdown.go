package task

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"anytime/internal/grade"
)

const countdown = "countdown"

// Countdown is a family of puzzles: make the target of the numbers, each used exactly once, with + - * / where divisions leave no rest.
type Countdown struct {
	Numbers   int // in a puzzle: 2 to 4
	Max       int // the largest number, 1 to 25
	MaxTarget int // the largest target, from 1: 1 to 999
}

// DefaultCountdown is the family that the project's own reasoner is trained on.
var DefaultCountdown = Countdown{Numbers: 3, Max: 13, MaxTarget: 60}

// Split is one of the two disjoint parts of all puzzles.
type Split string

// The splits. A puzzle's numbers, in whatever order, and target decide where it belongs, in every family alike.
const (
	Train   Split = "train"
	HeldOut Split = "heldout" // one puzzle in eight
)

// splitOf hashes what a puzzle is. Its id is spelt with the numbers sorted.
func splitOf(id string) Split {
	sum := sha256.Sum256([]byte(id))
	if sum[0]%8 == 0 {
		return HeldOut
	}
	return Train
}

func (c Countdown) check() error {
	switch {
	case c.Numbers < 2 || c.Numbers > 4:
		return fmt.Errorf("countdown: %d numbers; a puzzle has 2 to 4", c.Numbers)
	case c.Max < 1 || c.Max > 25:
		return fmt.Errorf("countdown: the largest number is %d; it must be from 1 to 25", c.Max)
	case c.MaxTarget < 1 || c.MaxTarget > 999:
		return fmt.Errorf("countdown: the largest target is %d; it must be from 1 to 999", c.MaxTarget)
	}
	return nil
}

// Problems returns n different puzzles of a split, or all of them for n = 0, in an order and in words that the seed draws. It is
// an error to ask for more than there are.
func (c Countdown) Problems(split Split, seed uint64, n int) ([]Problem, error) {
	list, err := c.puzzles(split)
	if err != nil {
		return nil, err
	}
	if n < 0 || n > len(list) {
		return nil, fmt.Errorf("countdown: %d problems were asked for; there are %d different ones in the %s split", n, len(list), split)
	}
	shuffle(random(seed, "order"), list)
	if n > 0 {
		list = list[:n]
	}
	for i := range list {
		list[i].Text = ask(random(seed, list[i].ID), list[i].Problem)
	}
	return list, nil
}

// puzzles lists the solvable puzzles of a split, not yet in words, in the order of their numbers.
func (c Countdown) puzzles(split Split) ([]Problem, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if split != Train && split != HeldOut {
		return nil, fmt.Errorf("countdown: the split is %.32q; it must be %s or %s", split, Train, HeldOut)
	}
	var list []Problem
	reached := map[string][]int64{}
	var choose func(numbers []int64)
	choose = func(numbers []int64) {
		if len(numbers) < c.Numbers {
			for n := int64(1); n <= int64(c.Max) && (len(numbers) == 0 || n <= numbers[len(numbers)-1]); n++ {
				choose(append(slices.Clone(numbers), n))
			}
			return
		}
		for _, target := range reach(numbers, reached) {
			if target < 1 || target > int64(c.MaxTarget) {
				continue
			}
			p := Problem{ID: puzzleID(numbers, target), Task: countdown, Problem: grade.Problem{Numbers: numbers, Target: target}}
			if splitOf(p.ID) == split {
				list = append(list, p)
			}
		}
	}
	choose(nil)
	return list, nil
}

// puzzleID names a puzzle by its numbers, smallest first, and target: countdown-3-7-8-29.
func puzzleID(numbers []int64, target int64) string {
	id := []string{countdown}
	for _, n := range append(slices.Sorted(slices.Values(numbers)), target) {
		id = append(id, strconv.FormatInt(n, 10))
	}
	return strings.Join(id, "-")
}

// reach returns, sorted, what can be made of numbers, largest first, without negative steps: they make nothing more, up to the sign.
func reach(numbers []int64, known map[string][]int64) []int64 {
	if len(numbers) == 1 {
		return numbers
	}
	key := fmt.Sprint(numbers)
	if values, ok := known[key]; ok {
		return values
	}
	var values []int64
	for _, s := range steps(numbers) {
		values = append(values, reach(s.left(numbers), known)...)
	}
	slices.Sort(values)
	known[key] = slices.Compact(values)
	return known[key]
}

// step takes two of the numbers and makes one of them.
type step struct {
	i, j   int // i < j: numbers[i] is the left one
	op     byte
	result int64
}

// steps lists all steps from numbers, largest first, in the order in which the teacher thinks of them: pair by pair. Pairs that look
// alike come once, divisions only where they leave no rest.
func steps(numbers []int64) []step {
	var list []step
	seen := map[[2]int64]bool{}
	for i, a := range numbers {
		for j := i + 1; j < len(numbers); j++ {
			b := numbers[j]
			if seen[[2]int64{a, b}] {
				continue
			}
			seen[[2]int64{a, b}] = true
			list = append(list, step{i, j, '+', a + b}, step{i, j, '-', a - b}, step{i, j, '*', a * b})
			if b != 0 && a%b == 0 {
				list = append(list, step{i, j, '/', a / b})
			}
		}
	}
	return list
}

// left returns the numbers behind the step, largest first.
func (s step) left(numbers []int64) []int64 {
	left := make([]int64, 0, len(numbers)-1)
	for k, n := range numbers {
		if k != s.i && k != s.j {
			left = append(left, n)
		}
	}
	left = append(left, s.result)
	slices.SortFunc(left, func(a, b int64) int { return cmp.Compare(b, a) })
	return left
}

// phrasings ask for a puzzle; %[1]s are the numbers, %[2]d the target.
var phrasings = []string{
	"Use the numbers %[1]s, each once, with + - * / to make %[2]d.",
	"Use %[1]s, each exactly once, with + - * / to make %[2]d.",
	"Use each of the numbers %[1]s exactly once, with + - * /, to make %[2]d.",
	"Use each of %[1]s once and + - * / to get %[2]d.",
	"Using the numbers %[1]s, each once, and + - * /, make %[2]d.",
	"Using %[1]s, make %[2]d.",
	"Using the numbers %[1]s, create an equation that equals %[2]d.",
	"With the numbers %[1]s, each used once, and + - * /, reach %[2]d.",
	"With %[1]s make %[2]d.",
	"Combine the numbers %[1]s, each once, with + - * / to get %[2]d.",
	"Combine %[1]s to get %[2]d.",
	"How can you make %[2]d of %[1]s with + - * /, using each number once?",
	"How do I get %[2]d from %[1]s?",
	"Can you make %[2]d from %[1]s?",
	"Make %[2]d from the numbers %[1]s. Use each of them once, with + - * /.",
	"Make %[2]d from %[1]s.",
	"Make %[2]d using %[1]s.",
	"Make %[2]d out of the numbers %[1]s with plus, minus, times and divided by, each number once.",
	"Find a way to get %[2]d out of %[1]s with + - * /; each number is to be used once.",
	"Find an expression with the numbers %[1]s, each used once, that equals %[2]d.",
	"Reach %[2]d with %[1]s.",
	"Get to %[2]d with the numbers %[1]s, addition, subtraction, multiplication and division.",
	"Write %[2]d with the numbers %[1]s, each of them once.",
	"The numbers are %[1]s. The target is %[2]d.",
	"The target is %[2]d, the numbers are %[1]s.",
	"Numbers: %[1]s\nTarget: %[2]d",
	"numbers %[1]s target %[2]d",
	"Target: %[2]d. Numbers: %[1]s.",
	"Countdown: %[1]s, target %[2]d.",
	"Countdown puzzle: make %[2]d from %[1]s.",
	"I have the numbers %[1]s. How do I make %[2]d, using each once, with + - * /?",
	"Given %[1]s, use + - * / to make %[2]d.",
	"%[1]s -> %[2]d",
	"Combine %[1]s into %[2]d.",
	"Numbers %[1]s, goal %[2]d.",
	"Now make %[2]d from %[1]s instead.",
}

// ways to list numbers: what stands around the list, between its numbers, and before the last.
var lists = [][4]string{
	{"", ", ", " and ", ""}, {"", ", ", " and ", ""}, {"", ", ", " and ", ""}, {"", ", ", ", and ", ""}, {"", ", ", ", ", ""}, {"", " ", " ", ""},
	{"[", ", ", ", ", "]"}, {"", ",", ",", ""}, {"", " and ", " and ", ""},
}

// ask puts a puzzle into words.
func ask(rng *rand.Rand, p grade.Problem) string {
	// The plain wordings are the ones that people are shown, and come as often as all others.
	some := phrasings
	if rng.IntN(2) == 0 {
		some = phrasings[:4]
	}
	return politely(rng, fmt.Sprintf(some[rng.IntN(len(some))], list(rng, p.Numbers), p.Target))
}

// list writes numbers one after the other, in any order.
func list(rng *rand.Rand, numbers []int64) string {
	texts := make([]string, len(numbers))
	for i, n := range numbers {
		texts[i] = strconv.FormatInt(n, 10)
	}
	shuffle(rng, texts)
	last := len(texts) - 1
	way := lists[rng.IntN(len(lists))]
	text := texts[last]
	if last > 0 {
		text = strings.Join(texts[:last], way[1]) + way[2] + text
	}
	return way[0] + text + way[3]
}

// politely says a question as people may: one in three has something before it, or behind it, or is written carelessly.
func politely(rng *rand.Rand, text string) string {
	switch rng.IntN(16) {
	case 0:
		return before[rng.IntN(len(before))] + text
	case 1:
		return text + behind[rng.IntN(len(behind))]
	case 2:
		return strings.ToLower(text)
	case 3:
		return strings.TrimRight(text, ".?")
	case 4:
		return strings.ToUpper(text)
	}
	return text
}

var (
	before = []string{"Hi! ", "Hello, ", "Please ", "Please help: ", "Question: ", "Puzzle: ", "Here is a puzzle. ", "Solve this: ", "OK, ", "Can you help me? "}
	behind = []string{" Thanks!", " Please think step by step.", " Show your work.", " Is it possible?", "\n", " Go!", " Answer quickly.",
		"\n\nPlease reason step by step, and put your final answer within \\boxed{}."}
)

// random returns a generator for one purpose, the same for the same seed.
func random(seed uint64, purpose string) *rand.Rand {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s", seed, purpose))
	return rand.New(rand.NewPCG(binary.LittleEndian.Uint64(sum[:]), binary.LittleEndian.Uint64(sum[8:])))
}

func shuffle[T any](rng *rand.Rand, list []T) {
	rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
}
