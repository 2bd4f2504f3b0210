package anytime_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"anytime/internal/budget"
	"anytime/internal/report"
)

var plots = flag.String("plots", "", "folder in which to draw the simulation, with its table")

// With -plots the simulation is longer, and drawn, for docs/elastic.md:
//
//	go test ./internal/anytime -run TestPlots -plots ../../docs/img
func TestPlots(t *testing.T) {
	if *plots == "" {
		return
	}
	write := func(name string, c report.Chart) {
		f, err := os.Create(filepath.Join(*plots, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.WritePNG(f); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	loads := []float64{0.5, 1, 2, 4}
	accuracy := report.Chart{Title: "Expected accuracy of all requests", X: "load, times what the engine can do", Y: "right answers in time", Share: true}
	inTime := report.Chart{Title: "Requests answered in time", X: accuracy.X, Y: "of all requests", Share: true}
	for _, p := range policies {
		accuracy.Series = append(accuracy.Series, report.Series{Name: p.name, X: loads})
		inTime.Series = append(inTime.Series, report.Series{Name: p.name, X: loads})
	}
	best := report.Series{Name: "bound that no schedule exceeds", X: loads, Reference: true}
	var table strings.Builder
	table.WriteString("| load | policy | expected accuracy | of the bound | answered in time | admitted: over in time | refused |\n|---|---|---|---|---|---|---|\n")
	for _, load := range loads {
		scores, bound := compare(t, 6, 160, load)
		best.Y = append(best.Y, bound)
		for i, s := range scores {
			accuracy.Series[i].Y = append(accuracy.Series[i].Y, s.accuracy)
			inTime.Series[i].Y = append(inTime.Series[i].Y, s.inTime)
			fmt.Fprintf(&table, "| %g | %s | %.3f | %.0f %% | %.3f | %.3f | %.3f |\n", load, policies[i].name, s.accuracy, 100*s.accuracy/bound, s.inTime, s.kept, s.refused)
		}
	}
	accuracy.Series = append(accuracy.Series, best)
	write("elastic-accuracy.png", accuracy)
	write("elastic-in-time.png", inTime)
	if err := os.WriteFile(filepath.Join(*plots, "elastic-table.md"), []byte(table.String()), 0o644); err != nil {
		t.Fatal(err)
	}

	thoughts := report.Chart{Title: "A rush from 30 s to 60 s: how long thoughts are", X: "arrival, s", Y: "thinking tokens"}
	waits := report.Chart{Title: "A rush from 30 s to 60 s: how long answers take", X: "arrival, s", Y: "s until the answer"}
	w := rush()
	for _, p := range []policy{{name: "elastic", elastic: simElastic, cap: 400}, {name: "as long as was asked for", cap: 400}} {
		line, wait := report.Series{Name: p.name}, report.Series{Name: p.name}
		for i, r := range play(t, w, p) {
			at := w.arrivals[i].at.Seconds()
			line.X, line.Y = append(line.X, at), append(line.Y, float64(r.thought))
			wait.X, wait.Y = append(wait.X, at), append(wait.Y, r.took.Seconds())
		}
		thoughts.Series, waits.Series = append(thoughts.Series, line), append(waits.Series, wait)
	}
	write("elastic-rush-thinking.png", thoughts)
	write("elastic-rush-waiting.png", waits)
}

// rush is a quiet world into which many come for half a minute; all would think for 400 tokens.
func rush() world {
	rng := rand.New(rand.NewPCG(5, 5))
	w := world{seed: 5, cost: cost{6 * time.Millisecond, 4 * time.Millisecond, 200 * time.Microsecond}}
	c := saturating(0.2, 0.7, 100)
	c.Points, c.Default = c.Points[:10], 384
	w.curves = []*budget.Curve{c}
	for at := 0.0; at < 90; {
		each := 0.3
		if at > 30 && at < 60 {
			each = 2
		}
		at += rng.ExpFloat64() / each
		w.arrivals = append(w.arrivals, arrival{at: time.Duration(at * float64(time.Second)), key: "a", prompt: 40})
	}
	return w
}
