package llamacpp

import (
	"cmp"
	"math"
	"slices"

	"anytime/internal/decode"
)

// sampler draws tokens. What it draws is a pure function of the logits, the seed and the position, so a sequence that was
// preempted, forked or replayed in another process goes on as it would have. It truncates in llama.cpp's order: bias and
// grammar, top-k, top-p, min-p, temperature.
type sampler struct {
	adjusted []float32
	cands    []candidate
}

type candidate struct {
	id    int32
	logit float32
}

// likeliest orders candidates by logit, then id.
func likeliest(a, b candidate) int {
	switch { // not by cmp.Or: this is most of what truncating costs
	case a.logit > b.logit:
		return -1
	case a.logit < b.logit:
		return 1
	}
	return cmp.Compare(a.id, b.id)
}

// stats of a token's logits.
type stats struct {
	best   int32
	max    float32
	sum    float64 // of exp(logit - max)
	logSum float64 // natural logarithm of the sum of exp(logit)
}

// measure returns the stats of the logits; false if they are no numbers.
func measure(logits []float32) (stats, bool) {
	st := stats{max: float32(math.Inf(-1))}
	for i, l := range logits {
		if l > st.max {
			st.best, st.max = int32(i), l
		}
	}
	for _, l := range logits {
		st.sum += float64(exp32(l - st.max))
	}
	st.logSum = float64(st.max) + math.Log(st.sum)
	return st, !math.IsInf(float64(st.max), 0) && !math.IsNaN(st.logSum)
}

// adjust returns a copy of the logits with the bias added and the forbidden ids at minus infinity. It is valid until the next call.
func (s *sampler) adjust(logits []float32, bias map[int32]float32, forbidden []int32) []float32 {
	s.adjusted = append(s.adjusted[:0], logits...)
	for id, b := range bias {
		if b <= -100 {
			b = float32(math.Inf(-1))
		}
		s.adjusted[id] += b
	}
	for _, id := range forbidden {
		s.adjusted[id] = float32(math.Inf(-1))
	}
	return s.adjusted
}

// draw chooses a token with the noise of a key. It returns -1 if every token is forbidden.
func (s *sampler) draw(logits []float32, p decode.Sampling, key uint64) int32 {
	st, _ := measure(logits)
	return s.drawMeasured(logits, st, p, key)
}

// drawMeasured is draw from logits whose stats are known.
func (s *sampler) drawMeasured(logits []float32, st stats, p decode.Sampling, key uint64) int32 {
	switch {
	case math.IsInf(float64(st.max), -1):
		return -1
	case p.Temperature <= 0:
		return st.best
	}
	r := race{key: key, best: math.Inf(1)}
	if p.TopK > 0 || p.TopP > 0 && p.TopP < 1 || p.MinP > 0 {
		s.truncate(logits, st, p)
		for _, c := range s.cands {
			r.enter(c.id, exp32((c.logit-st.max)/p.Temperature))
		}
		return r.winner
	}
	for i, l := range logits {
		r.enter(int32(i), exp32((l-st.max)/p.Temperature))
	}
	return r.winner
}

// race draws a token by the Gumbel-max trick in its exponential form: every token gets an exponential time at its own rate, and
// the first wins, with the probability of its share (Maddison, Tarlow, Minka 2014, arXiv 1411.0030). A token's noise depends on nothing but
// the key and its id. So rounding of the logits changes what is drawn only where two tokens come in almost together, while the sum
// of an inverse transform is sensitive at the border of every token of the vocabulary.
type race struct {
	key    uint64
	best   float64
	winner int32
}

// enter lets a token run whose probability is in proportion to weight.
func (r *race) enter(id int32, weight float32) {
	w := float64(weight)
	u := (float64(mix(r.key+uint64(id)*golden)>>11) + 0.5) / (1 << 53)
	// The time is -log(1-u)/w, which is at least u/w: the logarithm is seldom needed.
	if u >= r.best*w || w == 0 {
		return
	}
	if t := -math.Log1p(-u) / w; t < r.best {
		r.best, r.winner = t, id
	}
}

// truncate sets cands to the tokens that top-k, top-p and min-p leave, likeliest first. To sort the whole vocabulary would cost
// more than the token, so it widens a cut below the best logit until nothing outside can matter.
func (s *sampler) truncate(logits []float32, st stats, p decode.Sampling) {
	best, total := st.max, 0.0
	if p.TopK == 0 && p.TopP > 0 && p.TopP < 1 {
		total = st.sum
	}
	for cut := float32(6); ; cut *= 2 {
		whole := cut > 100
		s.cands = s.cands[:0]
		var mass float64
		for i, l := range logits {
			if l > best-cut || whole && !math.IsInf(float64(l), -1) {
				s.cands = append(s.cands, candidate{int32(i), l})
				mass += float64(exp32(l - best))
			}
		}
		enough := whole
		switch {
		case p.TopK > 0:
			enough = enough || len(s.cands) >= p.TopK
		case total > 0:
			enough = enough || mass >= float64(p.TopP)*total
		default:
			enough = enough || float64(cut) >= -math.Log(float64(p.MinP))
		}
		if enough {
			break
		}
	}
	slices.SortFunc(s.cands, likeliest)
	if p.TopK > 0 {
		s.cands = s.cands[:min(p.TopK, len(s.cands))]
		total = 0
		for _, c := range s.cands {
			total += float64(exp32(c.logit - best))
		}
	}
	if p.TopP > 0 && p.TopP < 1 {
		var mass float64
		for i, c := range s.cands {
			if mass += float64(exp32(c.logit - best)); mass >= float64(p.TopP)*total {
				s.cands = s.cands[:i+1]
				break
			}
		}
	}
	if p.MinP > 0 {
		floor := best + float32(math.Log(float64(p.MinP)))
		n, _ := slices.BinarySearchFunc(s.cands, floor, func(c candidate, floor float32) int {
			if c.logit >= floor {
				return -1
			}
			return 1
		})
		s.cands = s.cands[:max(n, 1)]
	}
}

// top returns the k likeliest tokens.
func top(logits []float32, k int) []candidate {
	list := make([]candidate, 0, k+1)
	for i, l := range logits {
		if len(list) == k && l <= list[k-1].logit {
			continue
		}
		c := candidate{int32(i), l}
		at, _ := slices.BinarySearchFunc(list, c, likeliest)
		list = slices.Insert(list, at, c)
		list = list[:min(len(list), k)]
	}
	return list
}

// noise is the key of the noise for a seed and a position: SplitMix64 (Steele, Lea, Flood 2014) with the position as counter.
func noise(seed uint64, position int) uint64 {
	return mix(mix(seed) + uint64(position)*golden)
}

const golden = 0x9e3779b97f4a7c15

func mix(z uint64) uint64 {
	z += golden
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// powers holds 2^(i/256).
var powers = func() (p [256]float32) {
	for i := range p {
		p[i] = float32(math.Exp2(float64(i) / 256))
	}
	return p
}()

// exp32 is exp for x ≤ 0, to 2e-7 of exp(0): 2^(n/256) from a table times a polynomial for the rest. math.Exp takes several times as long,
// which at a vocabulary of 150,000 would be as much as a layer of a small model.
func exp32(x float32) float32 {
	if !(x > -87) {
		if x != x {
			return x
		}
		return 0
	}
	n := int32(x * (256 / math.Ln2))
	r := x - float32(n)*(math.Ln2/256)
	return powers[n&255] * (1 + r + r*r/2) * math.Float32frombits(uint32(n>>8+127)<<23)
}
