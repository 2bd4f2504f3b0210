package task_test

import (
	"encoding/json"
	"fmt"
	"math/big"
	"regexp"
	"slices"
	"strings"
	"testing"

	"anytime/internal/grade"
	"anytime/internal/train/task"
)

func problems(t *testing.T, c task.Countdown, split task.Split, seed uint64, n int) []task.Problem {
	t.Helper()
	list, err := c.Problems(split, seed, n)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// solve makes every number that can be made of all the numbers, by brute force over ordered pairs and rationals.
func solve(numbers []*big.Rat, found map[string]bool) {
	if len(numbers) == 1 {
		found[numbers[0].RatString()] = true
	}
	for i, a := range numbers {
		for j, b := range numbers {
			if i == j {
				continue
			}
			var rest []*big.Rat
			for k, n := range numbers {
				if k != i && k != j {
					rest = append(rest, n)
				}
			}
			results := []*big.Rat{new(big.Rat).Add(a, b), new(big.Rat).Sub(a, b), new(big.Rat).Mul(a, b)}
			if b.Sign() != 0 {
				if q := new(big.Rat).Quo(a, b); q.IsInt() {
					results = append(results, q)
				}
			}
			for _, r := range results {
				solve(append(slices.Clone(rest), r), found)
			}
		}
	}
}

// TestPool compares the puzzles of both splits with those that brute force finds.
func TestPool(t *testing.T) {
	for _, c := range []task.Countdown{{Numbers: 2, Max: 9, MaxTarget: 30}, {Numbers: 3, Max: 6, MaxTarget: 60}, {Numbers: 4, Max: 3, MaxTarget: 20}} {
		want := map[string]bool{}
		var choose func(numbers []int64)
		choose = func(numbers []int64) {
			if len(numbers) < c.Numbers {
				for n := int64(1); n <= int64(c.Max); n++ {
					choose(append(slices.Clone(numbers), n))
				}
				return
			}
			if !slices.IsSorted(numbers) {
				return
			}
			found := map[string]bool{}
			var rats []*big.Rat
			for _, n := range numbers {
				rats = append(rats, big.NewRat(n, 1))
			}
			solve(rats, found)
			for target := 1; target <= c.MaxTarget; target++ {
				if found[fmt.Sprint(target)] {
					want[fmt.Sprint(numbers, target)] = true
				}
			}
		}
		choose(nil)
		got := map[string]task.Split{}
		for _, split := range []task.Split{task.Train, task.HeldOut} {
			for _, p := range problems(t, c, split, 1, 0) {
				key := fmt.Sprint(slices.Sorted(slices.Values(p.Numbers)), p.Target)
				if got[key] != "" {
					t.Errorf("%v: %s is in %s and %s", c, key, got[key], split)
				}
				got[key] = split
				if !want[key] {
					t.Errorf("%v: %s cannot be solved", c, key)
				}
			}
		}
		if len(got) != len(want) {
			t.Errorf("%v: %d puzzles, brute force finds %d", c, len(got), len(want))
		}
	}
}

func TestDefaultPool(t *testing.T) {
	train, held := problems(t, task.DefaultCountdown, task.Train, 1, 0), problems(t, task.DefaultCountdown, task.HeldOut, 1, 0)
	t.Logf("%d puzzles to train on, %d held out", len(train), len(held))
	if share := float64(len(held)) / float64(len(held)+len(train)); len(held) < 500 || share < 0.10 || share > 0.15 {
		t.Errorf("%d of %d are held out, want an eighth and at least 500", len(held), len(held)+len(train))
	}
	ids := map[string]bool{}
	asked := regexp.MustCompile(`\d+`)
	for _, p := range slices.Concat(train, held) {
		if ids[p.ID] {
			t.Errorf("%s comes twice", p.ID)
		}
		ids[p.ID] = true
		if err := p.Validate(); err != nil {
			t.Errorf("%s: %v", p.ID, err)
		}
		// The words name the numbers and the target, and no others.
		want := []string{fmt.Sprint(p.Target)}
		for _, n := range p.Numbers {
			want = append(want, fmt.Sprint(n))
			if n < 1 || n > 13 {
				t.Errorf("%s has the number %d", p.ID, n)
			}
		}
		got := asked.FindAllString(p.Text, -1)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) || p.Target < 1 || p.Target > 60 || strings.Contains(p.Text, "%!") {
			t.Errorf("%s is asked as %q", p.ID, p.Text)
		}
	}
}

// A smaller family's puzzles are on the same side as in a larger one.
func TestSplitIsOfThePuzzle(t *testing.T) {
	held := map[string]bool{}
	for _, p := range problems(t, task.DefaultCountdown, task.HeldOut, 1, 0) {
		held[p.ID] = true
	}
	for _, p := range problems(t, task.Countdown{Numbers: 3, Max: 7, MaxTarget: 30}, task.Train, 2, 0) {
		if held[p.ID] {
			t.Errorf("%s is in both splits", p.ID)
		}
	}
}

func TestSeeds(t *testing.T) {
	all := func(seed uint64) string {
		return fmt.Sprint(problems(t, task.DefaultCountdown, task.HeldOut, seed, 50))
	}
	first := all(7)
	if all(7) != first {
		t.Error("the same seed gave different problems")
	}
	if all(8) == first {
		t.Error("different seeds gave the same problems")
	}
	texts := map[string]bool{}
	for _, p := range problems(t, task.DefaultCountdown, task.HeldOut, 7, 50) {
		texts[regexp.MustCompile(`\d+`).ReplaceAllString(p.Text, "N")] = true
	}
	if len(texts) < 6 {
		t.Errorf("%d phrasings in 50 problems", len(texts))
	}
}

func TestBadFamily(t *testing.T) {
	for name, test := range map[string]struct {
		c     task.Countdown
		split task.Split
		n     int
		want  string
	}{
		"five numbers": {task.Countdown{Numbers: 5, Max: 13, MaxTarget: 60}, task.Train, 1, "2 to 4"},
		"large":        {task.Countdown{Numbers: 3, Max: 100, MaxTarget: 60}, task.Train, 1, "1 to 25"},
		"no target":    {task.Countdown{Numbers: 3, Max: 13}, task.Train, 1, "1 to 999"},
		"split":        {task.DefaultCountdown, "test", 1, "heldout"},
		"too many":     {task.DefaultCountdown, task.HeldOut, 1 << 20, "there are"},
		"negative":     {task.DefaultCountdown, task.HeldOut, -1, "there are"},
	} {
		if _, err := test.c.Problems(test.split, 1, test.n); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, test.want)
		}
	}
	for _, mix := range []task.Mix{{Cut: -1}, {Cut: 2}, {Other: 1}} {
		if _, err := task.DefaultCountdown.Examples(1, mix); err == nil {
			t.Errorf("%+v was accepted", mix)
		}
	}
}

func examples(t *testing.T, c task.Countdown, seed uint64, mix task.Mix, n int) []task.Example {
	t.Helper()
	seq, err := c.Examples(seed, mix)
	if err != nil {
		t.Fatal(err)
	}
	var list []task.Example
	for e := range seq {
		if list = append(list, e); len(list) == n {
			break
		}
	}
	return list
}

var written = regexp.MustCompile(`^(\d+)([-+*/])(\d+)=(\d+)$`)

// follow makes a step of a thought with the numbers that there are, and returns its result and the numbers behind it.
func follow(have []int64, text string) (result int64, left []int64, err error) {
	m := written.FindStringSubmatch(text)
	if m == nil {
		return 0, nil, fmt.Errorf("%q is no step", text)
	}
	var a, b int64
	if _, err := fmt.Sscan(m[1]+" "+m[3]+" "+m[4], &a, &b, &result); err != nil {
		return 0, nil, err
	}
	value, ok := map[string]int64{"+": a + b, "-": a - b, "*": a * b}[m[2]]
	if !ok && b != 0 && a%b == 0 {
		value, ok = a/b, true
	}
	if !ok || value != result || a < b {
		return 0, nil, fmt.Errorf("%q is wrong", text)
	}
	left = slices.Clone(have)
	for _, n := range []int64{a, b} {
		at := slices.Index(left, n)
		if at < 0 {
			return 0, nil, fmt.Errorf("%q uses %d, and there are %v", text, n, left)
		}
		left = slices.Delete(left, at, at+1)
	}
	return result, append(left, result), nil
}

// checkThought follows a thought: it begins with the puzzle, every step is right, whole ways use every number once, none comes twice, and
// only a hit is marked and ends it. It returns how many ways it tried.
func checkThought(t *testing.T, e task.Example) (ways int) {
	t.Helper()
	lines := strings.Split(e.Thinking, "\n")
	numbers := strings.Trim(strings.ReplaceAll(fmt.Sprint(slices.Sorted(slices.Values(e.Numbers))), " ", ","), "[]")
	sorted := strings.Split(numbers, ",")
	slices.Reverse(sorted)
	puzzle := fmt.Sprintf("%s=%d", strings.Join(sorted, ","), e.Target)
	if lines[0] != puzzle && !(e.Cut && len(lines) == 1 && strings.HasPrefix(puzzle, lines[0])) {
		t.Errorf("%s: a thought begins with %q", e.ID, lines[0])
	}
	seen := map[string]bool{}
	for i, line := range lines[1:] {
		parts := strings.Split(line, ":")
		have := e.Numbers
		tried := strings.Split(parts[len(parts)-1], ";")
		broken := e.Cut && i == len(lines)-2
		for _, step := range parts[:len(parts)-1] {
			var err error
			if _, have, err = follow(have, step); err != nil {
				t.Errorf("%s: line %q: %v", e.ID, line, err)
				return 0
			}
		}
		for j, step := range tried {
			last := j == len(tried)-1
			if broken && last {
				break
			}
			step, hit := strings.CutSuffix(step, "!")
			step, shown := strings.CutSuffix(step, fmt.Sprintf("?%d", e.Target))
			result, left, err := follow(have, step)
			if err != nil || !shown || len(left) != 1 || hit != (result == e.Target) || hit != (last && i == len(lines)-2) {
				t.Errorf("%s: line %q, %q: hit %v, %v left, %v", e.ID, line, step, hit, left, err)
			}
			way := strings.Join(parts[:len(parts)-1], ":") + ":" + step
			if seen[way] {
				t.Errorf("%s: %q comes twice in %q", e.ID, way, e.Thinking)
			}
			seen[way] = true
			ways++
		}
	}
	return ways
}

func TestExamples(t *testing.T) {
	const n = 4000
	cut, other, bytes, whole, longest := 0, 0, 0, 0, 0
	for _, e := range examples(t, task.DefaultCountdown, 3, task.DefaultMix, n) {
		if e.Cut {
			cut++
		}
		answer, boxed := grade.Boxed(e.Summary)
		if e.Task == "exact" {
			other++
			if e.Thinking != "" || e.Summary != task.Elsewhere || !e.Verify(e.Summary) || strings.Contains(e.Text, "%!") {
				t.Errorf("%+v", e)
			}
			continue
		}
		if !boxed || !e.Verify(answer) {
			t.Errorf("%s: the answer %q is wrong", e.ID, e.Summary)
		}
		if e.Cut == strings.Contains(e.Thinking, "!") {
			t.Errorf("%s: cut %v, thought %q", e.ID, e.Cut, e.Thinking)
		}
		checkThought(t, e)
		if !e.Cut {
			bytes += len(e.Thinking)
			whole++
			longest = max(longest, len(e.Thinking))
		}
	}
	t.Logf("a whole thought has %d bytes on average, the longest %d", bytes/whole, longest)
	if cut < n*47/100 || cut > n*53/100 || other < n*6/100 || other > n*10/100 {
		t.Errorf("of %d examples %d were cut, %d were other questions", n, cut, other)
	}
}

func TestExamplesOfOtherFamilies(t *testing.T) {
	for _, c := range []task.Countdown{{Numbers: 2, Max: 13, MaxTarget: 60}, {Numbers: 4, Max: 6, MaxTarget: 100}} {
		for _, e := range examples(t, c, 3, task.Mix{}, 100) {
			if checkThought(t, e) == 0 || !e.Verify(e.Summary) {
				t.Errorf("%+v", e)
			}
		}
	}
}

// All puzzles come before one comes again, never one of the held out, and the second time differs from the first.
func TestEpochs(t *testing.T) {
	c := task.Countdown{Numbers: 3, Max: 5, MaxTarget: 40}
	train := problems(t, c, task.Train, 1, 0)
	list := examples(t, c, 5, task.Mix{}, 2*len(train))
	first := map[string]task.Example{}
	for _, e := range list[:len(train)] {
		first[e.ID] = e
	}
	for _, p := range train {
		if _, ok := first[p.ID]; !ok {
			t.Errorf("%s did not come", p.ID)
		}
	}
	same := 0
	for _, e := range list[len(train):] {
		if f := first[e.ID]; f.Text == e.Text && f.Thinking == e.Thinking {
			same++
		}
	}
	if same > len(train)/4 {
		t.Errorf("%d of %d examples came again as they were", same, len(train))
	}
	if again := examples(t, c, 5, task.Mix{}, 2*len(train)); fmt.Sprint(again) != fmt.Sprint(list) {
		t.Error("the same seed gave other examples")
	}
}

// An example written as JSON reads back, as a problem too.
func TestExampleJSON(t *testing.T) {
	e := examples(t, task.DefaultCountdown, 3, task.Mix{Cut: 1}, 1)[0]
	data, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	var again task.Example
	if err := json.Unmarshal(data, &again); err != nil || fmt.Sprint(again) != fmt.Sprint(e) {
		t.Errorf("%s reads as %+v, %v", data, again, err)
	}
	list, err := task.Read(strings.NewReader(string(data)), "x")
	if err != nil || fmt.Sprint(list[0]) != fmt.Sprint(e.Problem) {
		t.Errorf("%s reads as %+v, %v", data, list, err)
	}
}
