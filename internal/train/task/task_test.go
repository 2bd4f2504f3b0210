package task_test

import (
	"strings"
	"testing"

	"anytime/internal/train/task"
)

func TestRead(t *testing.T) {
	text := "\uFEFF" + `{"id":"a-1","problem":"What is $1+2$?","answers":["3","three"],"solution":"…"}` + "\n\n" +
		`{"id":"b","problem":"Make 29.","numbers":[3,7,8],"target":29}` + "\r\n" +
		`{"problem":"A or B?","answers":["B"],"task":"choice"}`
	list, err := task.Read(strings.NewReader(text), "sets/mine.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct{ id, task, right, wrong string }{
		{"a-1", "math", `\boxed{3}`, "4"},
		{"b", "countdown", "3*7+8", "3+7+8"},
		{"mine-4", "choice", "(B)", "A"},
	} {
		p := list[i]
		if p.ID != want.id || p.Task != want.task || !p.Verify(want.right) || p.Verify(want.wrong) {
			t.Errorf("problem %d: %+v, want %+v", i, p, want)
		}
	}
	if len(list) != 3 {
		t.Errorf("%d problems", len(list))
	}
}

func TestReadBadLine(t *testing.T) {
	const good = `{"id":"a","problem":"p","answers":["1"]}`
	for name, test := range map[string]struct{ line, want string }{
		"not JSON":        {`{"id":`, "line 2: unexpected end of JSON input; a line must be a JSON object"},
		"an array":        {`[1]`, "it is a JSON array"},
		"answers a text":  {`{"id":"b","problem":"p","answers":"1"}`, `"answers" cannot be a JSON string`},
		"number as text":  {`{"id":"b","problem":"p","numbers":["1"],"target":1}`, `"numbers" cannot be a JSON string`},
		"fraction":        {`{"id":"b","problem":"p","numbers":[1,2.5],"target":1}`, "numbers"},
		"no answers":      {`{"id":"b","problem":"p"}`, `"answers" is missing`},
		"empty answer":    {`{"id":"b","problem":"p","answers":["1"," "]}`, `"answers"[1] is empty`},
		"no problem":      {`{"id":"b","answers":["1"]}`, `"problem" is empty`},
		"NUL":             {`{"id":"b","problem":"a\u0000","answers":["1"]}`, "NUL"},
		"unknown task":    {`{"id":"b","problem":"p","answers":["1"],"task":"essay"}`, "choice, countdown, exact, math"},
		"no target":       {`{"id":"b","problem":"p","numbers":[1,2]}`, `"target" is missing`},
		"no letter":       {`{"id":"b","problem":"p","answers":["B","12"],"task":"choice"}`, `"answers"[1] is "12"; the answer to a choice must be a letter from A to E`},
		"one number":      {`{"id":"b","problem":"p","numbers":[1],"target":1}`, `at least 2`},
		"same id":         {good, "that of line 1"},
		"more behind":     {good + good, "line 2"},
		"a line too long": {`{"id":"` + strings.Repeat("x", 1<<20) + `"}`, "line 2: it has more than"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := task.Read(strings.NewReader(good+"\n"+test.line+"\n"), "set.jsonl")
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "set.jsonl, line 2") {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
	if _, err := task.Read(strings.NewReader("\n\n"), "set.jsonl"); err == nil || !strings.Contains(err.Error(), "no problems") {
		t.Errorf("of an empty file: %v", err)
	}
	if _, err := task.ReadFile("nowhere.jsonl"); err == nil || !strings.Contains(err.Error(), "nowhere.jsonl") {
		t.Errorf("of no file: %v", err)
	}
}

func TestReadExamples(t *testing.T) {
	const good = `{"id":"a","problem":"p","answers":["1"],"thinking":"t","cut":true,"summary":"s"}`
	text := "\uFEFF" + good + "\n\n" + good + "\n" + `{"problem":"Make 29.","numbers":[3,7,8],"target":29,"summary":"s"}`
	list, err := task.ReadExamples(strings.NewReader(text), "mine.jsonl")
	if err != nil || len(list) != 3 || list[0].Thinking != "t" || !list[0].Cut || list[0].Task != "math" || list[2].Task != "countdown" || list[2].ID != "mine-4" {
		t.Errorf("read %+v, %v", list, err)
	}
	for line, want := range map[string]string{
		`{"problem":"p","answers":["1"],"thinkng":"t","summary":"s"}`:        `there is no key "thinkng"; a line must be a JSON object such as`,
		`{"problem":"p","answers":["1"],"thinking":1,"summary":"s"}`:         `"thinking" cannot be a JSON number`,
		`{"problem":"p","answers":"1","summary":"s"}`:                        `"answers" cannot be a JSON string`,
		`{"problem":"p","answers":["1"],"thinking":"a\u0000","summary":"s"}`: "NUL",
		`{"problem":"p","answers":["1"],"summary":"a\u0000"}`:                "NUL",
		`{"problem":"p","answers":["1"],"thinking":"t"}`:                     `"summary" is empty`,
		`{"problem":"p","numbers":[1,2],"summary":"s"}`:                      `"target" is missing`,
	} {
		_, err := task.ReadExamples(strings.NewReader(good+"\n"+line), "mine.jsonl")
		if err == nil || !strings.Contains(err.Error(), "mine.jsonl, line 2: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", line, err, want)
		}
	}
}
