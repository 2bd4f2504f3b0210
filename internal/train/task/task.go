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
	case !plain(p.Text):
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
		if p.Task == "choice" && !p.Verify(a) {
			return fmt.Errorf(`"answers"[%d] is %.32q; the answer to a choice must be a letter from A to E`, i, a)
		}
	}
	return nil
}

// plain says whether a text can be tokenized.
func plain(text string) bool { return strings.IndexByte(text, 0) < 0 && utf8.ValidString(text) }

const maxLine = 1 << 20 // bytes

// Read reads problems, one JSON object a line: {"id", "problem", "answers"}, with "task" where it is not math, or
// {"id", "problem", "numbers", "target"}. Without an id a problem is named by its line. Other keys and empty lines are skipped. name is
// that of the file, for errors and ids.
func Read(r io.Reader, name string) ([]Problem, error) {
	lines := map[string]int{} // of each id
	return read(r, name, "problems", example, func(line []byte, n int) (p Problem, err error) {
		if err = json.Unmarshal(line, &p); err != nil {
			return p, notSuch(err, example)
		}
		if err = p.complete(line, name, n); err != nil {
			return p, err
		}
		if before := lines[p.ID]; before > 0 {
			return p, fmt.Errorf("the id %q is that of line %d, too; each problem needs its own", p.ID, before)
		}
		lines[p.ID] = n
		return p, nil
	})
}

// ReadExamples reads examples as Read does problems. Several may have one id, but none a key that is not an example's: a misspelt one
// would leave its text out.
func ReadExamples(r io.Reader, name string) ([]Example, error) {
	return read(r, name, "examples", exampleOf, func(line []byte, n int) (e Example, err error) {
		if err = json.Unmarshal(line, &e); err == nil {
			d := json.NewDecoder(bytes.NewReader(line))
			d.DisallowUnknownFields()
			err = d.Decode(&e)
		}
		if err != nil {
			return e, notSuch(err, exampleOf)
		}
		if err = e.complete(line, name, n); err != nil {
			return e, err
		}
		switch {
		case e.Summary == "":
			err = errors.New(`"summary" is empty; it must be the answer to learn`)
		case !plain(e.Thinking) || !plain(e.Summary):
			err = errors.New(`"thinking" or "summary" has a NUL character or is not UTF-8; they must be plain text`)
		}
		return e, err
	})
}

// read reads JSON lines, which one decodes. what are the things of which example is one.
func read[T any](r io.Reader, name, what, example string, one func(line []byte, n int) (T, error)) ([]T, error) {
	var list []T
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
		v, err := one(line, n)
		if err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", name, n, err)
		}
		list = append(list, v)
	}
	switch err := scan.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return nil, fmt.Errorf("%s, line %d: it has more than %d bytes", name, n+1, maxLine)
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", name, err)
	case len(list) == 0:
		return nil, fmt.Errorf("%s has no %s; it must have a JSON object a line, such as %s", name, what, example)
	}
	return list, nil
}

// complete sets what line n of a file leaves out, and validates.
func (p *Problem) complete(line []byte, name string, n int) error {
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
		return err
	}
	var has struct{ Target *int64 }
	_ = json.Unmarshal(line, &has) // it is JSON
	if p.Task == countdown && has.Target == nil {
		return errors.New(`"target" is missing; it must be the number to make`)
	}
	return nil
}

const (
	example   = `{"id": "sum-1", "problem": "What is 1 + 2?", "answers": ["3"]}`
	exampleOf = `{"id": "a", "problem": "What is 1 + 2?", "answers": ["3"], "thinking": "1+2=3", "summary": "\\boxed{3}"}`
)

func notSuch(err error, example string) error {
	return fmt.Errorf("%w; a line must be a JSON object such as %s", Explain(err), example)
}

// Explain says in the data's words what json says in Go's.
func Explain(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("it is empty")
	}
	if t := new(json.UnmarshalTypeError); errors.As(err, &t) {
		if t.Field == "" {
			return fmt.Errorf("it is a JSON %s", t.Value)
		}
		return fmt.Errorf("%q cannot be a JSON %s", t.Field[strings.LastIndexByte(t.Field, '.')+1:], t.Value)
	}
	if _, key, ok := strings.Cut(err.Error(), "json: unknown field "); ok {
		return fmt.Errorf("there is no key %s", key)
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

// ReadExamplesFile reads the examples of a file.
func ReadExamplesFile(path string) ([]Example, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read examples: %w", err)
	}
	defer f.Close()
	return ReadExamples(f, path)
}
