package llamacpp

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"anytime/internal/decode"
)

func TestExp32(t *testing.T) {
	worst, absolute := 0.0, 0.0
	for x := float32(0); x > -88; x -= 0.00371 {
		want := math.Exp(float64(x))
		if x <= -87 {
			want = 0 // below the smallest normal numbers
		}
		if got := float64(exp32(x)); want > 0 {
			worst, absolute = max(worst, math.Abs(got-want)/want), max(absolute, math.Abs(got-want))
		} else if got != 0 {
			t.Errorf("exp(%v) = %v", x, got)
		}
	}
	if worst > 1e-5 || absolute > 2e-7 {
		t.Errorf("relative error %v, absolute %v", worst, absolute)
	}
	if exp32(0) != 1 || exp32(float32(math.Inf(-1))) != 0 || exp32(float32(math.NaN())) == exp32(float32(math.NaN())) {
		t.Error("limits are wrong")
	}
}

func randomLogits(r *rand.Rand, n int) []float32 {
	logits := make([]float32, n)
	for i := range logits {
		logits[i] = float32(r.NormFloat64() * 4)
	}
	return logits
}

// reference draws by the definition, sorting everything.
func reference(logits []float32, p decode.Sampling, u float64) int32 {
	var list []candidate
	for i, l := range logits {
		if !math.IsInf(float64(l), -1) {
			list = append(list, candidate{int32(i), l})
		}
	}
	slices.SortFunc(list, likeliest)
	if p.TopK > 0 {
		list = list[:min(p.TopK, len(list))]
	}
	weight := func(c candidate, t float64) float64 { return math.Exp(float64(c.logit-list[0].logit) / t) }
	if p.TopP > 0 && p.TopP < 1 {
		total, mass := 0.0, 0.0
		for _, c := range list {
			total += weight(c, 1)
		}
		for i, c := range list {
			if mass += weight(c, 1); mass >= float64(p.TopP)*total {
				list = list[:i+1]
				break
			}
		}
	}
	for i, c := range list {
		if weight(c, 1) < float64(p.MinP) {
			list = list[:max(i, 1)]
			break
		}
	}
	if p.TopK == 0 && p.MinP == 0 && !(p.TopP > 0 && p.TopP < 1) {
		slices.SortFunc(list, func(a, b candidate) int { return int(a.id - b.id) })
	}
	best := slices.MaxFunc(list, func(a, b candidate) int { return likeliest(b, a) })
	total, sum := 0.0, 0.0
	for _, c := range list {
		total += math.Exp(float64(c.logit-best.logit) / float64(p.Temperature))
	}
	for _, c := range list {
		if sum += math.Exp(float64(c.logit-best.logit) / float64(p.Temperature)); sum > u*total {
			return c.id
		}
	}
	return list[len(list)-1].id
}

func TestDraw(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var s sampler
	differ := 0
	const rounds = 3000
	for range rounds {
		logits := randomLogits(r, 1+r.IntN(300))
		if r.IntN(3) == 0 {
			logits[r.IntN(len(logits))] = negInf
			logits[0] = 1
		}
		p := decode.Sampling{Temperature: 0.1 + 2*r.Float32()}
		if r.IntN(2) == 0 {
			p.TopK = r.IntN(50)
		}
		if r.IntN(2) == 0 {
			p.TopP = r.Float32()
		}
		if r.IntN(2) == 0 {
			p.MinP = r.Float32() / 4
		}
		u := r.Float64()
		if s.draw(logits, p, u) != reference(logits, p, u) {
			differ++ // u within rounding of the border of two tokens
		}
	}
	if differ > rounds/500 {
		t.Errorf("%d of %d draws differ from the definition", differ, rounds)
	}
}

func TestDrawLimits(t *testing.T) {
	var s sampler
	warm := decode.Sampling{Temperature: 1}
	for name, test := range map[string]struct {
		logits []float32
		p      decode.Sampling
		u      float64
		want   int32
	}{
		"greedy":               {[]float32{1, 3, 2}, decode.Sampling{}, 0.99, 1},
		"greedy takes first":   {[]float32{1, 3, 3}, decode.Sampling{}, 0.99, 1},
		"nothing allowed":      {[]float32{negInf, negInf}, warm, 0.5, -1},
		"nothing, greedy":      {[]float32{negInf, negInf}, decode.Sampling{}, 0.5, -1},
		"one allowed":          {[]float32{negInf, -900, negInf}, warm, 0.999, 1},
		"u 0":                  {[]float32{negInf, 0, 0}, warm, 0, 1},
		"u almost 1":           {[]float32{0, 0, negInf}, warm, math.Nextafter(1, 0), 1},
		"tiny temperature":     {[]float32{1, 3, 2}, decode.Sampling{Temperature: 1e-38}, 0.999, 1},
		"top_k 1":              {[]float32{1, 3, 2}, decode.Sampling{Temperature: 50, TopK: 1}, 0.999, 1},
		"top_k over all":       {[]float32{1, 3}, decode.Sampling{Temperature: 1e-3, TopK: 1 << 40}, 0.999, 1},
		"tiny top_p":           {[]float32{1, 3, 2}, decode.Sampling{Temperature: 50, TopP: 1e-9}, 0.999, 1},
		"min_p 1":              {[]float32{1, 3, 2}, decode.Sampling{Temperature: 50, MinP: 1}, 0.999, 1},
		"tiny min_p keeps all": {[]float32{-60, 0}, decode.Sampling{Temperature: 100, MinP: 1e-30}, 0, 1},
	} {
		if got := s.draw(test.logits, test.p, test.u); got != test.want {
			t.Errorf("%s: %d, want %d", name, got, test.want)
		}
	}
	if _, ok := measure([]float32{1, float32(math.NaN())}); ok {
		t.Error("NaN was measured")
	}
	if _, ok := measure([]float32{negInf}); ok {
		t.Error("no logit was measured")
	}
	adjusted := s.adjust([]float32{1, 2, 3}, map[int32]float32{0: 5, 1: -100}, []int32{2})
	if adjusted[0] != 6 || adjusted[1] != negInf || adjusted[2] != negInf {
		t.Errorf("adjusted %v", adjusted)
	}
}

func TestMeasureAndTop(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	logits := randomLogits(r, 5000)
	st, ok := measure(logits)
	var sum float64
	for _, l := range logits {
		sum += math.Exp(float64(l))
	}
	if !ok || math.Abs(st.logSum-math.Log(sum)) > 1e-6 || logits[st.best] != slices.Max(logits) {
		t.Errorf("%+v, want log-sum %v", st, math.Log(sum))
	}
	sorted := make([]candidate, len(logits))
	for i, l := range logits {
		sorted[i] = candidate{int32(i), l}
	}
	slices.SortFunc(sorted, likeliest)
	for _, k := range []int{1, 5, 20} {
		if got := top(logits, k); !slices.Equal(got, sorted[:k]) {
			t.Errorf("top %d: %v, want %v", k, got, sorted[:k])
		}
	}
	if got := top(logits[:3], 20); len(got) != 3 {
		t.Errorf("top 20 of 3: %d", len(got))
	}
}

func TestUniform(t *testing.T) {
	var bins [16]int
	seen := map[float64]bool{}
	for seed := range uint64(100) {
		for position := range 160 {
			u := uniform(seed, position)
			if u < 0 || u >= 1 || u != uniform(seed, position) {
				t.Fatalf("uniform(%d, %d) = %v", seed, position, u)
			}
			seen[u] = true
			bins[int(u*16)]++
		}
	}
	if len(seen) < 16000 || slices.Min(bins[:]) < 850 || slices.Max(bins[:]) > 1150 {
		t.Errorf("%d distinct values, bins %v", len(seen), bins)
	}
}

func BenchmarkMeasure(b *testing.B) {
	logits := randomLogits(rand.New(rand.NewPCG(1, 1)), 150_000)
	for b.Loop() {
		measure(logits)
	}
}

func BenchmarkDrawTopP(b *testing.B) {
	logits := randomLogits(rand.New(rand.NewPCG(1, 1)), 150_000)
	var s sampler
	for b.Loop() {
		s.draw(logits, decode.Sampling{Temperature: 0.6, TopP: 0.95}, 0.5)
	}
}
