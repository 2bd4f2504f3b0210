package model_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hybridgroup/yzma/pkg/llama"

	"anytime/internal/gguf"
	"anytime/internal/train/model"
)

// llama.cpp can end the process it is in, so it is loaded in a child: this test binary again, which reads jobs and writes
// results as JSON lines.
const childEnv = "MODEL_TEST_ENGINE_CHILD"

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

// job asks for the log-probability of each token given those before it.
type job struct {
	Model, Adapter string
	Tokens         []int32
}

type result struct {
	Err      string
	LogProbs []float64 // the first is 0
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
		var r result
		var err error
		if r.LogProbs, err = runJob(j); err != nil {
			r.Err = err.Error()
		}
		if err := results.Encode(r); err != nil {
			return err
		}
	}
}

var errRefused = errors.New("llama.cpp refused")

func runJob(j job) ([]float64, error) {
	params := llama.ModelDefaultParams()
	params.UseExtraBufts = 0
	model, err := llama.ModelLoadFromFile(j.Model, params)
	if err != nil || model == 0 {
		return nil, fmt.Errorf("load model: %w", cmp.Or(err, errRefused))
	}
	defer func() { _ = llama.ModelFree(model) }()
	cp := llama.ContextDefaultParams()
	cp.NCtx, cp.NBatch, cp.NUbatch = 1024, 1024, 1024
	cp.NThreads, cp.NThreadsBatch = 1, 1
	cp.TypeK, cp.TypeV = llama.GGMLTypeF32, llama.GGMLTypeF32
	cp.FlashAttentionType = llama.FlashAttentionTypeDisabled
	ctx, err := llama.InitFromModel(model, cp)
	if err != nil || ctx == 0 {
		return nil, fmt.Errorf("make context: %w", cmp.Or(err, errRefused))
	}
	defer func() { _ = llama.Free(ctx) }()
	if j.Adapter != "" {
		adapter, err := llama.AdapterLoraInit(model, j.Adapter)
		if err != nil || adapter == 0 {
			return nil, fmt.Errorf("load adapter: %w", cmp.Or(err, errRefused))
		}
		if rc := llama.SetAdaptersLora(ctx, []llama.AdapterLora{adapter}, []float32{1}); rc != 0 {
			return nil, fmt.Errorf("set adapter: %d", rc)
		}
	}
	vocabulary := int(llama.VocabNTokens(llama.ModelGetVocab(model)))
	batch := llama.BatchInit(int32(len(j.Tokens)), 0, 1)
	defer func() { _ = llama.BatchFree(batch) }()
	logProbs := make([]float64, len(j.Tokens))
	for i, id := range j.Tokens {
		if err := batch.Add(llama.Token(id), llama.Pos(i), []llama.SeqId{0}, true); err != nil {
			return nil, err
		}
	}
	if rc, err := llama.Decode(ctx, batch); rc != 0 || err != nil {
		return nil, fmt.Errorf("decode: %d, %w", rc, cmp.Or(err, errRefused))
	}
	for i, id := range j.Tokens[1:] {
		logits, err := llama.GetLogitsIth(ctx, int32(i), vocabulary)
		if err != nil {
			return nil, err
		}
		var sum float64
		for _, l := range logits {
			sum += math.Exp(float64(l - logits[id]))
		}
		logProbs[i+1] = -math.Log(sum)
	}
	return logProbs, nil
}

// engine returns a function that runs jobs in a child.
func engine(t *testing.T) func(job) []float64 {
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
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	jobs, results := json.NewEncoder(in), json.NewDecoder(out)
	return func(j job) []float64 {
		t.Helper()
		if err := jobs.Encode(j); err != nil {
			t.Fatal(err)
		}
		var r result
		if err := results.Decode(&r); err != nil {
			t.Fatalf("the engine's process ended over %s: %v", j.Model, err)
		}
		if r.Err != "" {
			t.Fatalf("%s: %s", j.Model, r.Err)
		}
		return r.LogProbs
	}
}

// engineLib finds the folder of llama.cpp's libraries: the environment's, or engine/lib in the module's root.
func engineLib(t *testing.T) string {
	t.Helper()
	lib := os.Getenv("ANYTIME_ENGINE_LIB")
	if lib == "" {
		lib = filepath.Join("..", "..", "..", "engine", "lib")
	}
	if found, _ := filepath.Glob(filepath.Join(lib, "libllama.*")); len(found) == 0 {
		t.Fatalf("llama.cpp's libraries are not in %s: run `make engine`, or set ANYTIME_ENGINE_LIB to their folder", lib)
	}
	return lib
}

// text draws tokens below 300, which are bytes and merged pieces in the tiny models.
func text(seed uint64, n int) []int32 {
	rng := rand.New(rand.NewPCG(seed, 9))
	tokens := make([]int32, n)
	for i := range tokens {
		tokens[i] = rng.Int32N(300)
	}
	return tokens
}

// apart is the largest difference.
func apart[A, B float32 | float64](a []A, b []B) float64 {
	if len(a) != len(b) {
		return math.Inf(1)
	}
	var d float64
	for i := range a {
		d = max(d, math.Abs(float64(a[i])-float64(b[i])))
	}
	return d
}

func logProbs(t testing.TB, m *model.Model, trees ...model.Tree) [][]float32 {
	t.Helper()
	all, err := m.LogProbs(t.Context(), trees)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestAgreesWithEngine compares the log-probabilities of a random text with those that llama.cpp computes.
func TestAgreesWithEngine(t *testing.T) {
	run := engine(t)
	for _, c := range []struct{ name, path string }{
		{"llama", tinyFile(t, "llama")},
		{"qwen2", tinyFile(t, "qwen2")},
		{"qwen3", tinyFile(t, "qwen3")},
		{"shared keys, tied embeddings", smallFile(t, "qwen3", true)},
		{"rope base", rewrite(t, tinyFile(t, "qwen2"), nil, gguf.Pair{Key: "qwen2.rope.freq_base", Value: float32(5e5)})},
		{"rope scaling", rewrite(t, tinyFile(t, "llama"), nil,
			gguf.Pair{Key: "llama.rope.scaling.type", Value: "linear"}, gguf.Pair{Key: "llama.rope.scaling.factor", Value: float32(2.5)})},
		{"rope factors", rewrite(t, tinyFile(t, "llama"), []float32{1, 1, 1, 1, 1, 1, 1, 1, 1.5, 2, 3, 4, 8, 8, 8, 8})},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, err := gguf.Check(c.path)
			if err != nil {
				t.Fatal(err)
			}
			tokens := text(1, 200)
			for i := range tokens {
				tokens[i] %= int32(len(h.Tokens()))
			}
			adapter := randomAdapter(t, h)
			m := open(t, c.path, model.Config{Adapter: adapter})
			tree := model.Tree{Trunk: tokens}
			base, err := m.BaseLogProbs(t.Context(), []model.Tree{tree})
			if err != nil {
				t.Fatal(err)
			}
			adapted := logProbs(t, m, tree)[0]
			if apart(base[0], adapted) < 0.3 {
				t.Fatal("the adapter changes next to nothing")
			}
			d, da := apart(base[0], run(job{Model: c.path, Tokens: tokens})), apart(adapted, run(job{Model: c.path, Adapter: adapter, Tokens: tokens}))
			t.Logf("log-probs differ by at most %.1e, with an adapter by %.1e", d, da)
			if !(d <= 1e-3 && da <= 1e-3) {
				t.Error("that is more than 0.001")
			}
		})
	}
}

// randomAdapter writes an adapter of all matrices of a model's layers, of different ranks. It is gentler than the tiny models' own,
// which blows rounding up until llama.cpp differs from itself by more than 0.001 when it decodes the same text one by one.
func randomAdapter(t *testing.T, h *gguf.Header) string {
	t.Helper()
	rng := rand.New(rand.NewPCG(3, 3))
	draw := func(n int, deviation float64) []float32 {
		values := make([]float32, n)
		for i := range values {
			values[i] = float32(rng.NormFloat64() * deviation)
		}
		return values
	}
	a := gguf.Adapter{Architecture: h.Architecture(), Name: "Random", Alpha: 6}
	for i, info := range h.Tensors {
		if !strings.HasPrefix(info.Name, "blk.") || len(info.Dims) != 2 {
			continue
		}
		l := gguf.LoRA{Tensor: info.Name, In: int(info.Dims[0]), Out: int(info.Dims[1]), Rank: 2 + i%3}
		l.A = draw(l.Rank*l.In, 1/math.Sqrt(float64(l.In)))
		l.B = draw(l.Out*l.Rank, 0.03)
		a.Weights = append(a.Weights, l)
	}
	path := filepath.Join(t.TempDir(), "adapter.gguf")
	if err := gguf.WriteFile(path, func(w io.Writer) error { return gguf.WriteAdapter(w, a) }); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestWrittenFilesAgree trains an adapter and has the engine load it, and the model into which it is merged.
func TestWrittenFilesAgree(t *testing.T) {
	run := engine(t)
	tokens := text(2, 60)
	for _, arch := range []string{"llama", "qwen2", "qwen3"} {
		t.Run(arch, func(t *testing.T) {
			path, dir := tinyFile(t, arch), t.TempDir()
			m := open(t, path, model.Config{Train: model.Adapter, LoRA: model.LoRA{Rank: 3}, Optimizer: model.Optimizer{Rate: 0.01}})
			base := logProbs(t, m, model.Tree{Trunk: tokens})[0]
			for range 3 {
				if _, err := m.Step(t.Context(), []model.Example{imitate(tokens)}, model.CrossEntropy{}); err != nil {
					t.Fatal(err)
				}
			}
			want := logProbs(t, m, model.Tree{Trunk: tokens})[0]
			if apart(base, want) < 0.5 {
				t.Fatal("three steps changed next to nothing")
			}
			adapter, merged := filepath.Join(dir, "adapter.gguf"), filepath.Join(dir, "merged.gguf")
			if err := m.WriteAdapter(adapter); err != nil {
				t.Fatal(err)
			}
			if err := m.WriteModel(merged, gguf.F32); err != nil {
				t.Fatal(err)
			}
			if d := apart(run(job{Model: path, Adapter: adapter, Tokens: tokens}), want); d > 1e-3 {
				t.Errorf("with the adapter the engine's log-probs differ by %.1e", d)
			}
			if d := apart(run(job{Model: merged, Tokens: tokens}), want); d > 1e-3 {
				t.Errorf("with the merged model the engine's log-probs differ by %.1e", d)
			}
			again := open(t, path, model.Config{Adapter: adapter})
			if d := apart(logProbs(t, again, model.Tree{Trunk: tokens})[0], want); d > 0 {
				t.Errorf("read back, the adapter gives log-probs that differ by %.1e", d)
			}
		})
	}
}
