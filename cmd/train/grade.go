package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"

	"anytime/internal/grade"
)

var gradeCommand = command{
	name: "grade", args: " FILE", about: "Compare answers with the right ones",
	manual: `
FILE has JSON lines with the texts "gold" and "answer". Each is printed with "equal": whether the two are equal as mathematics.
`,
	setup: func(*flag.FlagSet) runner { return runGrade },
}

const maxLine = 1 << 20 // bytes

func runGrade(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f, err := input(args)
	if err != nil {
		return err
	}
	defer f.Close()
	out := bufio.NewWriter(stdout)
	scan := bufio.NewScanner(f)
	scan.Buffer(nil, maxLine)
	n, pairs, equal := 0, 0, 0
	for scan.Scan() && ctx.Err() == nil {
		n++
		if len(bytes.TrimSpace(scan.Bytes())) == 0 {
			continue
		}
		line, same, err := gradeLine(scan.Bytes())
		if err != nil {
			return errors.Join(fmt.Errorf("%s, line %d: %w", args[0], n, err), out.Flush())
		}
		pairs++
		if same {
			equal++
		}
		if _, err := out.Write(append(line, '\n')); err != nil {
			return err
		}
	}
	err = scan.Err()
	if errors.Is(err, bufio.ErrTooLong) {
		err = fmt.Errorf("%s, line %d: it has more than %d bytes", args[0], n+1, maxLine)
	}
	fmt.Fprintf(stderr, "%d of %d are equal\n", equal, pairs)
	return errors.Join(err, ctx.Err(), out.Flush())
}

// gradeLine adds "equal" to a line; what else is in it stays.
func gradeLine(line []byte) ([]byte, bool, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(line, &fields); err != nil || fields == nil {
		return nil, false, errors.New(`it must be a JSON object such as {"gold": "1/2", "answer": "0.5"}`)
	}
	text := func(key string) (s string, err error) {
		if err := json.Unmarshal(fields[key], &s); err != nil || string(fields[key]) == "null" {
			return "", fmt.Errorf("%q must be there and be a text", key)
		}
		return s, nil
	}
	gold, err := text("gold")
	if err != nil {
		return nil, false, err
	}
	answer, err := text("answer")
	if err != nil {
		return nil, false, err
	}
	same := grade.Equal(gold, answer)
	fields["equal"] = fmt.Append(nil, same)
	var out bytes.Buffer
	err = plainJSON(&out).Encode(fields)
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), same, err
}

// plainJSON writes JSON lines in which <, > and & are themselves.
func plainJSON(w io.Writer) *json.Encoder {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e
}
