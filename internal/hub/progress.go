package hub

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// Reporter returns a Config.Progress that writes to w: a bar on a terminal, else a line at each tenth of a file and at each
// note. It serves one Fetch at a time.
func Reporter(w io.Writer) func(Progress) {
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return bar(w)
	}
	return lines(w)
}

func bar(w io.Writer) func(Progress) {
	var (
		b    *progressbar.ProgressBar
		file string
	)
	return func(p Progress) {
		if p.Note != "" {
			fmt.Fprintf(w, "\n%s: %s\n", p.File, p.Note)
			return
		}
		if b == nil || p.File != file || p.Total != b.GetMax64() {
			file = p.File
			b = progressbar.NewOptions64(p.Total,
				progressbar.OptionSetWriter(w),
				progressbar.OptionSetDescription(p.File),
				progressbar.OptionShowBytes(true),
				progressbar.OptionUseIECUnits(true),
				progressbar.OptionThrottle(100*time.Millisecond),
				progressbar.OptionOnCompletion(func() { fmt.Fprintln(w) }))
		}
		_ = b.Set64(p.Done) // a bar that cannot be drawn is no reason to stop
	}
}

func lines(w io.Writer) func(Progress) {
	var (
		file string
		next int64 // bytes from which on the next line is due
	)
	return func(p Progress) {
		if p.File != file || p.Done == 0 {
			file, next = p.File, 0
		}
		switch {
		case p.Note != "":
			fmt.Fprintf(w, "%s: %s\n", p.File, p.Note)
		case p.Done < next:
		case p.Total > 0:
			fmt.Fprintf(w, "%s: %s of %s (%d%%)\n", p.File, mib(p.Done), mib(p.Total), 100*p.Done/p.Total)
			next = min(p.Total, p.Done+(p.Total+9)/10)
			if p.Done >= p.Total {
				next = p.Total + 1
			}
		default:
			fmt.Fprintf(w, "%s: %s\n", p.File, mib(p.Done))
			next = p.Done + 64<<20
		}
	}
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
