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

// reference draws by the definition, sorting everything: the largest logit with Gumbel noise.
func reference(logits []float32, p decode.Sampling, key uint64) int32 {
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
	best, winner := math.Inf(-1), int32(-1)
	for _, c := range list {
		u := (float64(mix(key+uint64(c.id)*golden)>>11) + 0.5) / (1 << 53)
		if g := float64(c.logit-list[0].logit)/float64(p.Temperature) - math.Log(-math.Log1p(-u)); g > best {
			best, winner = g, c.id
		}
	}
	return winner
}

func TestDraw(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var s sampler
	differ, tipped := 0, 0
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
		key := r.Uint64()
		drawn := s.draw(logits, p, key)
		if drawn != reference(logits, p, key) {
			differ++
		}
		for i := range logits {
			logits[i] += float32(r.NormFloat64() * 1e-5)
		}
		if s.draw(logits, p, key) != drawn {
			tipped++
		}
	}
	if differ > 2 || tipped > 4 {
		t.Errorf("of %d draws %d differ from the definition, and rounding tips %d", rounds, differ, tipped)
	}
}

// The frequencies are those of the softmax.
func TestDrawFrequencies(t *testing.T) {
	logits := randomLogits(rand.New(rand.NewPCG(5, 6)), 12)
	st, _ := measure(logits)
	for _, temperature := range []float32{0.6, 1, 3} {
		want := make([]float64, len(logits))
		var total float64
		for i, l := range logits {
			want[i] = math.Exp(float64((l - st.max) / temperature))
			total += want[i]
		}
		var s sampler
		const rounds = 40000
		got := make([]float64, len(logits))
		for i := range rounds {
			got[s.draw(logits, decode.Sampling{Temperature: temperature}, noise(7, i))]++
		}
		for i := range got {
			share := want[i] / total
			if deviation := math.Sqrt(rounds * share * (1 - share)); math.Abs(got[i]-rounds*share) > 5*deviation+1 {
				t.Errorf("temperature %v: token %d was drawn %v times, want about %.0f", temperature, i, got[i], rounds*share)
			}
		}
	}
}

func TestDrawLimits(t *testing.T) {
	var s sampler
	warm := decode.Sampling{Temperature: 1}
	for name, test := range map[string]struct {
		logits []float32
		p      decode.Sampling
		want   int32
	}{
		"greedy":             {[]float32{1, 3, 2}, decode.Sampling{}, 1},
		"greedy takes first": {[]float32{1, 3, 3}, decode.Sampling{}, 1},
		"nothing allowed":    {[]float32{negInf, negInf}, warm, -1},
		"nothing, greedy":    {[]float32{negInf, negInf}, decode.Sampling{}, -1},
		"one allowed":        {[]float32{negInf, -900, negInf}, warm, 1},
		"tiny temperature":   {[]float32{1, 3, 2}, decode.Sampling{Temperature: 1e-38}, 1},
		"top_k 1":            {[]float32{1, 3, 2}, decode.Sampling{Temperature: 50, TopK: 1}, 1},
		"top_k over all":     {[]float32{1, 3}, decode.Sampling{Temperature: 1e-3, TopK: 1 << 40}, 1},
		"tiny top_p":         {[]float32{1, 3, 2}, decode.Sampling{Temperature: 50, TopP: 1e-9}, 1},
		"min_p 1":            {[]float32{1, 3, 2}, decode.Sampling{Temperature: 50, MinP: 1}, 1},
	} {
		for key := range uint64(100) {
			if got := s.draw(test.logits, test.p, noise(key, 0)); got != test.want {
				t.Errorf("%s: %d, want %d", name, got, test.want)
			}
		}
	}
	drawn := map[int32]bool{}
	for key := range uint64(100) {
		drawn[s.draw([]float32{-60, 0}, decode.Sampling{Temperature: 100, MinP: 1e-30}, key)] = true
	}
	if len(drawn) != 2 {
		t.Errorf("a tiny min_p left %v", drawn)
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

func TestNoise(t *testing.T) {
	seen := map[uint64]bool{}
	for seed := range uint64(100) {
		for position := range 160 {
			seen[noise(seed, position)] = true
		}
	}
	if len(seen) != 16000 {
		t.Errorf("%d distinct keys of 16000", len(seen))
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
		s.draw(logits, decode.Sampling{Temperature: 0.6, TopP: 0.95}, 5)
	}
}

func BenchmarkDrawAll(b *testing.B) {
	logits := randomLogits(rand.New(rand.NewPCG(1, 1)), 150_000)
	var s sampler
	for b.Loop() {
		s.draw(logits, decode.Sampling{Temperature: 1}, 5)
	}
}
