package e2e

import "testing"

// attempts are what is tried against the page, as docs/page.md lists them.
var attempts = []struct {
	program string
	checks  []string
}{
	{"hostile.mjs", []string{"questions, thoughts and answers", "addresses and files", "runs of other keys"}},
}

// Whatever people, models and files say is shown and does nothing; nobody's runs are shown to others.
func TestHostileContent(t *testing.T) {
	b := newBrowser(t)
	for _, a := range attempts {
		b.run(a.program, a.checks)
	}
}
