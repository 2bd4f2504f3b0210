package tiny_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/hybridgroup/yzma/pkg/llama"
)

// llama.cpp can end the process it is in, so it is loaded in a child: this test binary again, which reads jobs and writes
// results as JSON lines.
const childEnv = "GGUF_TEST_ENGINE_CHILD"

func TestMain(m *testing.M) {
	if lib := os.Getenv(childEnv); lib != "" {
		if err := serveJobs(lib, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// job asks the child to load a model, tokenize Texts and decode Steps tokens after Prompt.
type job struct {
	Model, Adapter string
	Prompt         string
	Texts          []string
	Steps          int
	Temperature    float64 // 0 takes the likeliest token
}

type result struct {
	Err       string
	RoundTrip []string // Texts after tokenizing and detokenizing
	Counts    []int    // their numbers of tokens
	Tokens    []int32  // decoded
	Logits    []float32
	Vocab     int
}

func serveJobs(lib string, in io.Reader, out io.Writer) error {
	if err := llama.Load(lib); err != nil {
		return err
	}
	llama.LogSet(llama.LogSilent())
	llama.Init()
	jobs, results := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var j job
		if err := jobs.Decode(&j); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		r, err := runJob(j)
		if err != nil {
			r.Err = err.Error()
		}
		if err := results.Encode(r); err != nil {
			return err
		}
	}
}

func runJob(j job) (r result, err error) {
	params := llama.ModelDefaultParams()
	params.UseExtraBufts = 0
	model, err := llama.ModelLoadFromFile(j.Model, params)
	if err != nil || model == 0 {
		return r, fmt.Errorf("load model: %w", orRefused(err))
	}
	defer llama.ModelFree(model) //nolint:errcheck // the process ends with the job
	cp := llama.ContextDefaultParams()
	cp.NCtx, cp.NBatch, cp.NUbatch = 4096, 512, 512
	cp.NThreads, cp.NThreadsBatch = 1, 1
	cp.TypeK, cp.TypeV = llama.GGMLTypeF32, llama.GGMLTypeF32
	cp.FlashAttentionType = llama.FlashAttentionTypeDisabled
	ctx, err := llama.InitFromModel(model, cp)
	if err != nil || ctx == 0 {
		return r, fmt.Errorf("make context: %w", orRefused(err))
	}
	defer llama.Free(ctx) //nolint:errcheck // likewise
	if j.Adapter != "" {
		adapter, err := llama.AdapterLoraInit(model, j.Adapter)
		if err != nil || adapter == 0 {
			return r, fmt.Errorf("load adapter: %w", orRefused(err))
		}
		if rc := llama.SetAdaptersLora(ctx, []llama.AdapterLora{adapter}, []float32{1}); rc != 0 {
			return r, fmt.Errorf("set adapter: %d", rc)
		}
	}
	vocab := llama.ModelGetVocab(model)
	r.Vocab = int(llama.VocabNTokens(vocab))
	for _, text := range j.Texts {
		tokens := llama.Tokenize(vocab, text, false, true)
		r.Counts = append(r.Counts, len(tokens))
		r.RoundTrip = append(r.RoundTrip, llama.Detokenize(vocab, tokens, false, true))
	}
	next := llama.Tokenize(vocab, j.Prompt, false, true)
	rng := rand.New(rand.NewPCG(1, 2))
	for range j.Steps {
		if rc, err := llama.Decode(ctx, llama.BatchGetOne(next)); rc != 0 || err != nil {
			return r, fmt.Errorf("decode: %d, %w", rc, err)
		}
		logits, err := llama.GetLogitsIth(ctx, -1, r.Vocab)
		if err != nil {
			return r, err
		}
		if r.Logits == nil {
			for _, l := range logits {
				if math.IsNaN(float64(l)) || math.IsInf(float64(l), 0) {
					return r, errors.New("logits are not finite")
				}
			}
			r.Logits = append(r.Logits, logits...)
		}
		id := sample(logits, j.Temperature, rng)
		r.Tokens = append(r.Tokens, id)
		next = []llama.Token{llama.Token(id)}
	}
	return r, nil
}

func orRefused(err error) error {
	if err == nil {
		return errors.New("llama.cpp refused")
	}
	return err
}

func sample(logits []float32, temperature float64, rng *rand.Rand) int32 {
	best := 0
	for i, l := range logits {
		if l > logits[best] {
			best = i
		}
	}
	if temperature == 0 {
		return int32(best)
	}
	var sum float64
	cumulated := make([]float64, len(logits))
	for i, l := range logits {
		sum += math.Exp(float64(l-logits[best]) / temperature)
		cumulated[i] = sum
	}
	u := rng.Float64() * sum
	for i, c := range cumulated {
		if u < c {
			return int32(i)
		}
	}
	return int32(best)
}

// engine is a child that runs jobs.
type engine struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startEngine(t *testing.T) *engine {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+engineLib(t), "GGML_NO_BACKTRACE=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	e := &engine{t, cmd, in, bufio.NewReader(out)}
	t.Cleanup(func() {
		e.in.Close()
		_ = e.cmd.Wait() // it may have been killed
	})
	return e
}

// try runs a job; died is set if the child ended over it.
func (e *engine) try(j job) (r result, died bool) {
	e.t.Helper()
	if err := json.NewEncoder(e.in).Encode(j); err != nil {
		return r, true
	}
	line, err := e.out.ReadBytes('\n')
	if err != nil {
		return r, true
	}
	if err := json.Unmarshal(line, &r); err != nil {
		e.t.Fatalf("child wrote %q: %v", line, err)
	}
	return r, false
}

// run runs a job that must succeed.
func (e *engine) run(j job) result {
	e.t.Helper()
	r, died := e.try(j)
	if died {
		e.t.Fatalf("the engine's process ended over %s", j.Model)
	}
	if r.Err != "" {
		e.t.Fatalf("%s: %s", j.Model, r.Err)
	}
	return r
}

// engineLib finds the folder of llama.cpp's libraries: the environment's, or engine/lib in the module's root.
func engineLib(t *testing.T) string {
	t.Helper()
	lib := os.Getenv("ANYTIME_ENGINE_LIB")
	if lib == "" {
		dir, err := os.Getwd()
		for err == nil && dir != filepath.Dir(dir) {
			if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
				break
			}
			dir = filepath.Dir(dir)
		}
		lib = filepath.Join(dir, "engine", "lib")
	}
	if found, _ := filepath.Glob(filepath.Join(lib, "libllama.*")); len(found) == 0 {
		t.Fatalf("llama.cpp's libraries are not in %s: run `make engine`, or set ANYTIME_ENGINE_LIB to their folder", lib)
	}
	return lib
}

// cycle returns the length of the loop that the tokens end in, up to a quarter of them; 0 for none.
func cycle(tokens []int32) int {
	n := len(tokens)
	for period := 1; period <= n/4; period++ {
		same := true
		for i := n - 2*period; i < n; i++ {
			same = same && tokens[i] == tokens[i-period]
		}
		if same {
			return period
		}
	}
	return 0
}
