// Package task provides problems whose answers can be verified: data sets of them in JSON lines, and Countdown puzzles without end,
// with a teacher's thoughts about them to learn from.
package task

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"anytime/internal/grade"
)

// Problem is a question and what its answer is verified with.
type Problem struct {
	ID   string `json:"id"`
	Text string `json:"problem"`
	Task string `json:"task"` // the verifier's name: math, countdown, exact or choice
	grade.Problem
}

// Verify reports whether an answer is right. The problem must be one that Validate accepts.
func (p Problem) Verify(answer string) bool {
	verify, err := grade.VerifierOf(p.Task)
	return err == nil && verify(p.Problem, answer)
}

// Validate says what is wrong with a problem.
func (p Problem) Validate() error {
	if _, err := grade.VerifierOf(p.Task); err != nil {
		return err
	}
	switch {
	case p.ID == "":
		return errors.New(`"id" is empty; it must name the problem`)
	case strings.TrimSpace(p.Text) == "":
		return errors.New(`"problem" is empty; it must be the text of the problem`)
	case strings.IndexByte(p.Text, 0) >= 0 || !utf8.ValidString(p.Text):
		return errors.New(`"problem" has a NUL character or is not UTF-8; it must be plain text`)
	case p.Task == countdown && len(p.Numbers) < 2:
		return fmt.Errorf(`"numbers" has %d numbers; a countdown needs at least 2`, len(p.Numbers))
	case p.Task != countdown && len(p.Answers) == 0:
		return errors.New(`"answers" is missing; it must list the right answers, such as ["42"]`)
	}
	for i, a := range p.Answers {
		if strings.TrimSpace(a) == "" {
			return fmt.Errorf(`"answers"[%d] is empty; it must be a right answer`, i)
		}
	}
	return nil
}

const maxLine = 1 << 20 // bytes

// Read reads problems, one JSON object a line: {"id", "problem", "answers"}, with "task" where it is not math, or
// {"id", "problem", "numbers", "target"}. Without an id a problem is named by its line. Other keys and empty lines are skipped. name is
// that of the file, for errors and ids.
func Read(r io.Reader, name string) ([]Problem, error) {
	var list []Problem
	lines := map[string]int{} // of each id
	scan := bufio.NewScanner(r)
	scan.Buffer(nil, maxLine)
	n := 0
	for scan.Scan() {
		n++
		line := bytes.TrimSpace(scan.Bytes())
		if n == 1 {
			line = bytes.TrimPrefix(line, []byte("\uFEFF"))
		}
		if len(line) == 0 {
			continue
		}
		var p Problem
		if err := json.Unmarshal(line, &p); err != nil {
			return nil, fmt.Errorf("%s, line %d: %w; a line must be a JSON object such as %s", name, n, explain(err), example)
		}
		if p.Task == "" {
			p.Task = "math"
			if len(p.Numbers) > 0 && len(p.Answers) == 0 {
				p.Task = countdown
			}
		}
		if p.ID == "" {
			p.ID = fmt.Sprintf("%s-%d", strings.TrimSuffix(filepath.Base(name), filepath.Ext(name)), n)
		}
		if err := p.Validate(); err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", name, n, err)
		}
		if before := lines[p.ID]; before > 0 {
			return nil, fmt.Errorf("%s, line %d: the id %q is that of line %d, too; each problem needs its own", name, n, p.ID, before)
		}
		lines[p.ID] = n
		list = append(list, p)
	}
	switch err := scan.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return nil, fmt.Errorf("%s, line %d: it has more than %d bytes", name, n+1, maxLine)
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", name, err)
	case len(list) == 0:
		return nil, fmt.Errorf("%s has no problems; it must have a JSON object a line, such as %s", name, example)
	}
	return list, nil
}

const example = `{"id": "sum-1", "problem": "What is 1 + 2?", "answers": ["3"]}`

// explain says in the data set's words what json says in Go's.
func explain(err error) error {
	if t := new(json.UnmarshalTypeError); errors.As(err, &t) {
		if t.Field == "" {
			return fmt.Errorf("it is a JSON %s", t.Value)
		}
		return fmt.Errorf("%q cannot be a JSON %s", strings.TrimPrefix(t.Field, "Problem."), t.Value)
	}
	return err
}

// ReadFile reads the problems of a file.
func ReadFile(path string) ([]Problem, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read problems: %w", err)
	}
	defer f.Close()
	return Read(f, path)
}
