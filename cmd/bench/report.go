package main

import (
	"errors"
	"io/fs"
	"os"
	"strings"
)

// report is the file that is written: sections by title.
type report map[string]string

// readReport reads the sections of an earlier run; none where there is no file.
func readReport(path string) (report, error) {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	r := report{}
	for _, section := range strings.Split("\n"+string(text), "\n## ")[1:] {
		title, body, _ := strings.Cut(section, "\n")
		r[title] = strings.Trim(body, "\n") + "\n"
	}
	return r, nil
}

// write puts the sections of the parts behind the head, in their order; others have had their day.
func (r report) write(path, head string, parts []part) error {
	text := head
	for _, p := range parts {
		if body := strings.Trim(r[p.title], "\n"); body != "" {
			text += "\n## " + p.title + "\n\n" + body + "\n"
		}
	}
	return os.WriteFile(path, []byte(text), 0o644) //nolint:gosec // a document
}
