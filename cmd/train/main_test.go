package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"anytime/internal/decode"
	"anytime/internal/gguf/tiny"
	"anytime/internal/train/advantage"
	trainmodel "anytime/internal/train/model"
	"anytime/internal/train/rollout"
	"anytime/internal/train/task"
	"anytime/internal/train/trainer"
)

// The test binary is the engine process, too, and in tests that kill it the command itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "engine" || os.Getenv(asCommand) != "") {
		main()
		return
	}
	os.Exit(m.Run())
}

// train runs a command and returns what it printed.
func train(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, said bytes.Buffer
	err = run(t.Context(), args, &out, &said)
	return out.String(), said.String(), err
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file.jsonl")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// failed checks an error, and whether it is one of usage.
func failed(t *testing.T, err error, usage bool, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) || errors.As(err, new(usageError)) != usage {
		t.Errorf("error %v (usage %v), want one with %q (usage %v)", err, errors.As(err, new(usageError)), want, usage)
	}
}

func TestManual(t *testing.T) {
	all, _, err := train(t, "-h")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range commands {
		if !strings.Contains(all, "train "+c.name) || !strings.Contains(all, c.about) {
			t.Errorf("the manual lacks %s", c.name)
		}
		one, _, err := train(t, c.name, "-h")
		if err != nil || !strings.Contains(one, "train "+c.name) || !strings.Contains(one, c.about) {
			t.Errorf("%s -h prints %q, error %v", c.name, one, err)
		}
		_, _, err = train(t, c.name, "-nonsense")
		failed(t, err, true, "-nonsense")
	}
	_, _, err = train(t)
	failed(t, err, true, "no command")
	_, _, err = train(t, "fly")
	failed(t, err, true, `"fly"`)
}

func TestGrade(t *testing.T) {
	path := write(t, `{"gold":"\\frac{1}{2}","answer":"0.5","id":7}`+"\n\n"+`{"gold":"a<b","answer":"3"}`+"\n")
	out, said, err := train(t, "grade", path)
	want := `{"answer":"0.5","equal":true,"gold":"\\frac{1}{2}","id":7}` + "\n" + `{"answer":"3","equal":false,"gold":"a<b"}` + "\n"
	if err != nil || out != want || said != "1 of 2 are equal\n" {
		t.Errorf("printed %s, said %q, error %v; want %s", out, said, err, want)
	}
	for line, want := range map[string]string{
		`{"gold":"1"}`:                           `line 2: "answer" must be there and be a text`,
		`{"gold":1,"answer":"1"}`:                `line 2: "gold" must be`,
		`{"gold":null,"answer":"1"}`:             `line 2: "gold" must be`,
		`nonsense`:                               `line 2: it must be a JSON object`,
		`null`:                                   `line 2: it must be a JSON object`,
		`{"gold":"` + strings.Repeat("1", 1<<20): `line 2: it has more than`,
		`{"gold":"1","answer":"1"}{"gold":"2"}`:  `line 2: it must be a JSON object`,
	} {
		_, _, err := train(t, "grade", write(t, `{"gold":"1","answer":"1"}`+"\n"+line))
		failed(t, err, false, want)
	}
	_, _, err = train(t, "grade", "nowhere.jsonl")
	failed(t, err, false, "nowhere.jsonl")
	_, _, err = train(t, "grade")
	failed(t, err, true, "one file")
}

func TestAdvantage(t *testing.T) {
	data, err := os.ReadFile("../../internal/train/advantage/testdata/advantages.json")
	if err != nil {
		t.Fatal(err)
	}
	want, err := advantage.Read(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	bare := want
	bare.Cases = append([]advantage.Case(nil), want.Cases...)
	for i := range bare.Cases {
		bare.Cases[i].ThinkingAdvantage, bare.Cases[i].SummaryAdvantage = nil, nil
	}
	text, err := json.Marshal(bare)
	if err != nil {
		t.Fatal(err)
	}
	out, _, err := train(t, "advantage", write(t, string(text)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := advantage.Read(strings.NewReader(out))
	if err != nil || len(got.Cases) != 144 {
		t.Fatalf("%d cases, %v", len(got.Cases), err)
	}
	near := func(i int, got, want [][]float64) {
		if len(got) != len(want) {
			t.Fatalf("case %d: %d rows, want %d", i, len(got), len(want))
		}
		for r := range want {
			for c := range want[r] {
				if math.Abs(got[r][c]-want[r][c]) > 1e-5 {
					t.Errorf("case %d: [%d][%d] is %v, want %v", i, r, c, got[r][c], want[r][c])
				}
			}
		}
	}
	for i, c := range want.Cases {
		near(i, got.Cases[i].ThinkingAdvantage, c.ThinkingAdvantage)
		near(i, got.Cases[i].SummaryAdvantage, c.SummaryAdvantage)
	}
	_, _, err = train(t, "advantage", write(t, `{"cases":[{"prior":"zipf"}]}`))
	failed(t, err, false, "case 0")
	for text, want := range map[string]string{"": "it is empty; it must be one JSON object with \"cases\"", "[]": "it is a JSON array;", `{"case":1}`: `there is no key "case";`} {
		_, _, err = train(t, "advantage", write(t, text))
		failed(t, err, false, want)
	}
	_, _, err = train(t, "advantage", "a", "b")
	failed(t, err, true, "one file")
}

func TestGenerate(t *testing.T) {
	out, _, err := train(t, "generate", "-n", "20", "-seed", "3")
	if err != nil {
		t.Fatal(err)
	}
	problems, err := task.Read(strings.NewReader(out), "x")
	if err != nil || len(problems) != 20 {
		t.Fatalf("%d problems, %v", len(problems), err)
	}
	again, _, _ := train(t, "generate", "-n", "20", "-seed", "3", "-split", "heldout")
	other, _, _ := train(t, "generate", "-n", "20", "-seed", "4")
	if again != out || other == out {
		t.Error("the seed does not decide what is generated")
	}
	out, _, err = train(t, "generate", "-sft", "-n", "50", "-cut", "1", "-other", "0")
	if err != nil || strings.Count(out, "\n") != 50 || strings.Count(out, `"cut":true`) != 50 || strings.Contains(out, `\u0026`) {
		t.Errorf("printed %s, error %v", out, err)
	}
	for _, args := range [][]string{
		{"-n", "100000"}, {"-split", "test"}, {"-numbers", "9"}, {"-sft"}, {"-sft", "-n", "1", "-split", "heldout"}, {"-sft", "-n", "1", "-cut", "2"}, {"x"},
	} {
		_, _, err := train(t, append([]string{"generate"}, args...)...)
		failed(t, err, true, "generate: ")
	}
}

// libDir finds the folder of the llama.cpp libraries.
func libDir(t *testing.T) string {
	if dir := os.Getenv("ANYTIME_ENGINE_LIB"); dir != "" {
		return dir
	}
	lib := filepath.Join("..", "..", "engine", "lib")
	if m, _ := filepath.Glob(filepath.Join(lib, "libllama.*")); len(m) == 0 {
		t.Fatal("the llama.cpp libraries are not there: run `make engine`")
	}
	return lib
}

func TestRollout(t *testing.T) {
	dir := t.TempDir()
	gguf, out := filepath.Join(dir, "tiny.gguf"), filepath.Join(dir, "out.jsonl")
	if err := tiny.WriteFile(gguf, 1, tiny.Options{Rate: map[string]float64{tiny.ThinkClose: 0.03}}); err != nil {
		t.Fatal(err)
	}
	args := func(more ...string) []string {
		return append([]string{"rollout", "-model", gguf, "-engine-lib", libDir(t), "-threads", "1", "-ctx", "512", "-budgets", "8,16,32",
			"-traces", "2", "-summary-tokens", "8"}, more...)
	}
	table, said, err := train(t, args("-countdown", "heldout", "-n", "3", "-out", out)...)
	if err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	settings, traces, err := rollout.Read(out)
	if err != nil || len(traces) != 6 || !strings.HasPrefix(settings.Model, "tiny.gguf@") || len(traces[0].Rewards(3)) != 3 {
		t.Fatalf("%d traces by %+v, %v", len(traces), settings, err)
	}
	if lines := strings.Split(strings.TrimSpace(table), "\n"); len(lines) != 4 || !strings.Contains(lines[3], "32") || !strings.Contains(lines[0], "95 % interval") {
		t.Errorf("printed\n%s", table)
	}
	// Once more: nothing is left to do. And with one problem more: only that one is.
	before, _ := os.ReadFile(out)
	again, _, err := train(t, args("-countdown", "heldout", "-n", "3", "-out", out)...)
	after, _ := os.ReadFile(out)
	if err != nil || again != table || !bytes.Equal(before, after) {
		t.Errorf("run again, it printed\n%s, error %v", again, err)
	}
	_, _, err = train(t, args("-countdown", "heldout", "-n", "4", "-out", out)...)
	if after, _ = os.ReadFile(out); err != nil || !bytes.HasPrefix(after, before) || bytes.Count(after, []byte("\n")) != 9 {
		t.Errorf("%d lines, error %v", bytes.Count(after, []byte("\n")), err)
	}
	_, _, err = train(t, args("-countdown", "heldout", "-n", "3", "-out", out, "-summaries", "2")...)
	failed(t, err, false, "was begun with the settings summaries 1, not with summaries 2:")
	lock, err := trainer.Lock(out + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = train(t, args("-countdown", "heldout", "-n", "3", "-out", out)...)
	failed(t, err, false, "another process is at work")
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}

	// A data set, and one with a bad line.
	sums := `{"id":"a","problem":"What is $1+2$?","answers":["3"]}` + "\n"
	if _, said, err = train(t, args("-data", write(t, sums), "-out", filepath.Join(dir, "sums.jsonl"))...); err != nil {
		t.Errorf("%v: %s", err, said)
	}
	_, _, err = train(t, args("-data", write(t, sums+`{"id":"b"}`), "-out", out)...)
	failed(t, err, false, `line 2: "problem" is empty`)
	_, _, err = train(t, args("-data", "nowhere.jsonl", "-out", out)...)
	failed(t, err, false, "nowhere.jsonl")
	_, _, err = train(t, args("-countdown", "heldout", "-n", "1", "-out", out, "-model", "nowhere.gguf")...)
	failed(t, err, false, "nowhere.gguf")
	_, _, err = train(t, args("-countdown", "heldout", "-n", "1", "-out", out, "-model", write(t, "GGUF"))...)
	failed(t, err, false, "file.jsonl")
	_, _, err = train(t, args("-countdown", "heldout", "-n", "1", "-out", out, "-adapter", "nowhere.gguf")...)
	failed(t, err, false, "adapter")
	_, _, err = train(t, args("-countdown", "heldout", "-n", "1", "-out", filepath.Join(dir, "new.jsonl"), "-budgets", "600")...)
	failed(t, err, false, "needs a context of")
	if strings.Contains(err.Error(), "goes on") {
		t.Errorf("the same command is advised: %v", err)
	}
	if _, said, err = train(t, args("-countdown", "heldout", "-n", "1", "-out", filepath.Join(dir, "new.jsonl"), "-budgets", "4")...); err != nil {
		t.Errorf("corrected: %v: %s", err, said)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := run(ctx, args("-countdown", "heldout", "-n", "1", "-out", filepath.Join(dir, "none.jsonl")), &bytes.Buffer{}, &bytes.Buffer{}); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

// TestAdvise: only where the same command goes on, that is said.
func TestAdvise(t *testing.T) {
	_, missing := os.Open("nowhere")
	for err, want := range map[error]bool{
		fmt.Errorf("step 3: %w", context.Canceled): true, decode.ErrUnavailable: true, trainmodel.ErrHung: true,
		fmt.Errorf("write checkpoint: %w", &fs.PathError{Op: "write", Path: "x", Err: errors.New("no space left on device")}): true,
		missing: false, errors.New("it was begun with other settings"): false, decode.ErrContextFull: false,
	} {
		got := advise(err, "goes on from %d", 7)
		if !errors.Is(got, err) || strings.HasSuffix(got.Error(), "; goes on from 7") != want {
			t.Errorf("%v: advised %v, want %v", err, got, want)
		}
	}
}

func TestRolloutUsage(t *testing.T) {
	for want, args := range map[string]string{
		"-model is needed":       "-out o -countdown train",
		"-out is needed":         "-model m -countdown train",
		"either -data":           "-model m -out o",
		"and not both":           "-model m -out o -countdown train -data d",
		"heldout":                "-model m -out o -countdown test",
		"not a number of tokens": "-model m -out o -countdown train -budgets 1,x",
		"ascending":              "-model m -out o -countdown train -budgets 2,1",
		"traces is 0":            "-model m -out o -countdown train -traces 0",
		"-temperature is -1":     "-model m -out o -countdown train -temperature -1",
		"-top-p is 2":            "-model m -out o -countdown train -top-p 2",
		"-n is -1":               "-model m -out o -countdown train -n -1",
		"-sequences is 1":        "-model m -out o -countdown train -sequences 1",
		"-sequences is 0":        "-model m -out o -countdown train -sequences 0",
		"-top-p is NaN":          "-model m -out o -countdown train -top-p NaN",
		"-n: it must be a whole": "-model m -out o -countdown train -n some",
		`"extra" is no flag`:     "-model m -out o -countdown train extra",
	} {
		_, _, err := train(t, append([]string{"rollout"}, strings.Fields(args)...)...)
		failed(t, err, true, want)
	}
	_, _, err := train(t, "rollout", "-out", "o", "-countdown", "train", "-model", "main.go", "-engine-lib", t.TempDir())
	failed(t, err, true, "libllama")
	if _, err := os.Stat("o"); err == nil {
		t.Error("a file was written before the model was there")
		os.Remove("o")
	}
}
