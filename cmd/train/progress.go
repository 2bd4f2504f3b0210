package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"anytime/internal/train/rollout"
)

// progress shows how far something is: a bar on a terminal, elsewhere a line now and then. One goroutine uses it.
type progress struct {
	w     io.Writer
	what  string
	total int
	bar   *progressbar.ProgressBar // nil where there is no terminal
	next  time.Time                // of a line
}

// lineEvery is how often a line is written.
const lineEvery = 10 * time.Second

func newProgress(w io.Writer, what string, total int) *progress {
	p := &progress{w: w, what: what, total: total, next: time.Now().Add(lineEvery)}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.bar = progressbar.NewOptions(total, progressbar.OptionSetWriter(w), progressbar.OptionSetDescription(what), progressbar.OptionShowCount(),
			progressbar.OptionThrottle(200*time.Millisecond), progressbar.OptionClearOnFinish())
	}
	return p
}

func (p *progress) set(done int, format string, a ...any) {
	status := fmt.Sprintf(format, a...)
	if p.bar != nil {
		p.bar.Describe(p.what + ", " + status)
		_ = p.bar.Set(done) // it only shows something
		return
	}
	if now := time.Now(); done == p.total || now.After(p.next) {
		p.next = now.Add(lineEvery)
		fmt.Fprintf(p.w, "%s: %d of %d, %s\n", p.what, done, p.total, status)
	}
}

// tally is what is known of traces while they come in.
type tally struct {
	began  time.Time
	traces int
	tokens int
	sums   []float64 // of the mean rewards at each budget
}

func (t *tally) add(trace rollout.Trace, budgets int) {
	t.traces++
	t.tokens += trace.Thinking.Tokens + trace.SummaryTokens()
	if t.sums == nil {
		t.sums = make([]float64, budgets)
	}
	for i, row := range trace.Rewards(budgets) {
		for _, r := range row {
			t.sums[i] += r / float64(len(row))
		}
	}
}

func (t *tally) speed() float64 { return float64(t.tokens) / time.Since(t.began).Seconds() }

// reward is the mean over a prior. [S]
func (t *tally) reward(prior []float64) (mean float64) {
	for i, sum := range t.sums {
		mean += prior[i] * sum / float64(t.traces)
	}
	return mean
}

// accuracy is that at each budget.
func (t *tally) accuracy() string {
	var each []string
	for _, sum := range t.sums {
		each = append(each, fmt.Sprintf("%.2f", sum/float64(t.traces)))
	}
	return strings.Join(each, " ")
}
