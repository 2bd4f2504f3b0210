package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"anytime/internal/budget"
	"anytime/internal/eval"
	"anytime/internal/gguf"
	"anytime/internal/train/rollout"
	"anytime/internal/train/task"
	"anytime/internal/train/trainer"
)

var evalCommand = command{
	name: "eval", about: "Measure the accuracy after each budget of thinking",
	manual: `
One thought about each problem (-samples for more) is forked at every budget, answers are forced there (-votes for more than one) and
graded as serving would give them. The table has for each budget the accuracy with its 95 % interval (a bootstrap that draws problems), that
of the majority of the votes, the thinking tokens used, and the share of answers in good form. The budget recommended is the knee of
the accuracy over the tokens used; where there is none, the best; where it is in doubt that more thinking gains anything, the smallest.

Problems are Countdown puzzles held out from training, or those of files (-data) with JSON lines of "id", "problem" and "answers", or of
"id", "problem", "numbers" and "target".

-out gets report.json, report.png and report.html, and rollouts.jsonl with all that the model said: run again with the same flags it goes
on where it was stopped. The curve is also kept beside the weights that were measured, model.gguf or the adapter, as model.curve.json.
-against takes another report of the same problems and compares the two, problem by problem.

`,
	setup: func(flags *flag.FlagSet) runner {
		e := evaluation{countdown: task.DefaultCountdown}
		configFlag(flags)
		e.model.define(flags)
		e.model.defineRemote(flags)
		countdownFlags(flags, &e.countdown)
		flags.StringVar(&e.data, "data", "", "`files` of problems, divided by commas")
		flags.IntVar(&e.n, "n", 500, "how `many` problems, which the seed draws; 0: all")
		flags.StringVar(&e.out, "out", "", "`folder` of the results; needed")
		flags.StringVar(&e.curve, "curve", "", "`file` of the curve, or off (default beside the adapter or the model; of a model elsewhere in -out)")
		flags.StringVar(&e.against, "against", "", "report.json `file` to compare with")
		flags.Uint64Var(&e.settings.Seed, "seed", 1, "`seed` of the problems and the sampling")
		flags.StringVar(&e.budgets, "budgets", "0,64,128,256,512", "`list` of ascending numbers of thinking tokens")
		flags.IntVar(&e.settings.Traces, "samples", 1, "`thoughts` about each problem")
		flags.IntVar(&e.settings.Summaries, "votes", 1, "`answers` at each budget of a thought")
		flags.IntVar(&e.settings.SummaryTokens, "summary-tokens", 118, "`tokens` of the longest answer")
		flags.Float64Var(&e.temperature, "temperature", 0.6, "`temperature` of the sampling, 0 to 5")
		flags.Float64Var(&e.topP, "top-p", 1, "`share` of the probability that tokens are drawn from")
		flags.StringVar(&e.settings.Instruction, "instruction", "", "`text` that follows each problem (default for -data: "+strconv.Quote(boxInstruction)+")")
		flags.IntVar(&e.concurrency, "concurrency", 0, "`thoughts` under way at once; 0: half of -sequences")
		return func(ctx context.Context, args []string, stdout, stderr io.Writer) error {
			if err := noArguments(args); err != nil {
				return err
			}
			if e.data != "" && !given(flags)["instruction"] {
				e.settings.Instruction = boxInstruction
			}
			return e.run(ctx, stdout, stderr)
		}
	},
}

type evaluation struct {
	model                              modelFlags
	countdown                          task.Countdown
	data, out, curve, against, budgets string
	n, concurrency                     int
	temperature, topP                  float64
	settings                           rollout.Settings
}

// prepare checks the flags and returns the problems and what they are called, before anything that takes long.
func (e *evaluation) prepare() (problems []task.Problem, name string, err error) {
	if err := e.model.named(); err != nil {
		return nil, "", err
	}
	switch {
	case e.out == "":
		return nil, "", usagef("-out is needed: name the folder of the results")
	case e.n < 0:
		return nil, "", usagef("-n is %d: it must be a number of problems, or 0 for all", e.n)
	case e.settings.Traces < 1 || e.settings.Summaries < 1:
		return nil, "", usagef("-samples is %d, -votes %d: each must be at least 1", e.settings.Traces, e.settings.Summaries)
	case !(e.temperature >= 0 && e.temperature <= 5):
		return nil, "", usagef("-temperature is %v: it must be from 0 to 5", e.temperature)
	case !(e.topP > 0 && e.topP <= 1):
		return nil, "", usagef("-top-p is %v: it must be above 0 and at most 1", e.topP)
	}
	if e.settings.Budgets, err = parseBudgets(e.budgets); err != nil {
		return nil, "", err
	}
	e.settings.Sampling.Temperature, e.settings.Sampling.TopP = float32(e.temperature), float32(e.topP)
	if err := e.settings.Validate(); err != nil {
		return nil, "", usageError{err}
	}
	if e.data == "" {
		if problems, err = e.countdown.Problems(task.HeldOut, e.settings.Seed, 0); err != nil {
			return nil, "", usageError{err}
		}
		name = fmt.Sprintf("Countdown held-out (%d numbers to %d, target to %d)", e.countdown.Numbers, e.countdown.Max, e.countdown.MaxTarget)
		return problems[:e.take(len(problems))], name, nil
	}
	var names []string
	files := strings.Split(e.data, ",")
	for _, path := range files {
		path = strings.TrimSpace(path)
		list, err := task.ReadFile(path)
		if err != nil {
			return nil, "", err
		}
		set := strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
		if len(files) > 1 {
			for i := range list {
				list[i].ID = set + "/" + list[i].ID
			}
		}
		names, problems = append(names, set), append(problems, list...)
	}
	rng := rand.New(rand.NewPCG(e.settings.Seed, 0))
	rng.Shuffle(len(problems), func(i, j int) { problems[i], problems[j] = problems[j], problems[i] })
	return problems[:e.take(len(problems))], strings.Join(names, dataSeparator), nil
}

// dataSeparator divides the names of several sets.
const dataSeparator = " + "

// take is how many of so many problems are asked.
func (e *evaluation) take(of int) int {
	if e.n == 0 {
		return of
	}
	return min(e.n, of)
}

func (e *evaluation) run(ctx context.Context, stdout, stderr io.Writer) (err error) {
	problems, name, err := e.prepare()
	if err != nil {
		return err
	}
	var other *eval.Report
	if e.against != "" {
		if other, err = eval.ReadFile(e.against); err != nil {
			return err
		}
		if err := other.Comparable(problems, e.settings.Budgets); err != nil {
			return fmt.Errorf("-against %s: %w", e.against, err)
		}
	}
	loaded, err := e.model.open(ctx, stderr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, loaded.engine.Close()) }()
	if err := os.MkdirAll(e.out, 0o755); err != nil { //nolint:gosec // as any output
		return err
	}
	lock, err := trainer.Lock(filepath.Join(e.out, trainer.LockFile))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	e.settings.Model, e.settings.Adapter = loaded.id, loaded.adapter
	path := filepath.Join(e.out, "rollouts.jsonl")
	record, err := rollout.OpenFile(path, e.settings)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, record.Close()) }()

	kept := record.Traces()
	bar, seen := newProgress(stderr, "thoughts", len(problems)*e.settings.Traces), tally{began: time.Now()}
	report, err := eval.Run(ctx, eval.Config{
		Config: rollout.Config{
			Settings: e.settings, Engine: loaded.engine, Renderer: loaded.renderer, Concurrency: e.concurrency, Record: record,
			OnTrace: func(t rollout.Trace) {
				seen.add(t, len(e.settings.Budgets))
				bar.set(kept+seen.traces, "%.0f tokens/s", seen.speed())
			},
		},
		Problems: problems, Data: name,
	})
	if err != nil {
		return advise(err, "%d thoughts are kept in %s, and the same command goes on from there", record.Traces(), path)
	}
	return e.write(stdout, report, other)
}

// write prints and keeps what was found.
func (e *evaluation) write(stdout io.Writer, r, other *eval.Report) error {
	page, err := evaluationPage(r, other)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name  string
		write func(io.Writer) error
	}{
		{"report.json", r.Write}, {"report.png", page.Sections[0].Chart.WritePNG}, {"report.html", page.WriteHTML},
	} {
		if err := gguf.WriteFile(filepath.Join(e.out, f.name), f.write); err != nil {
			return fmt.Errorf("write %s: %w", f.name, err)
		}
	}
	if e.curve == "" {
		weights := e.model.model
		switch {
		case e.model.adapter != "":
			weights = e.model.adapter
		case e.model.remote != "":
			weights = filepath.Join(e.out, "model.gguf")
		}
		e.curve = budget.CurveFile(weights)
	}
	if e.curve != "off" {
		if err := gguf.WriteFile(e.curve, r.Curve().Write); err != nil {
			return fmt.Errorf("write the curve: %w; -curve says where else", err)
		}
	}
	for i, s := range page.Sections {
		if s.Table == nil {
			continue
		}
		if i > 0 {
			fmt.Fprintln(stdout)
		}
		if err := s.Table.WriteText(stdout); err != nil {
			return err
		}
		if s.Note != "" {
			fmt.Fprintln(stdout, s.Note)
		}
	}
	_, err = fmt.Fprintf(stdout, "\n%s\n%s\n", page.Lead, filepath.Join(e.out, "report.html"))
	return err
}
