package model

import (
	"fmt"
	"math"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	. "github.com/gomlx/gomlx/core/graph" //nolint:staticcheck // a graph reads as mathematics
)

// forward builds the graph of a pass. B: rows; T: tokens of a row; N = B·T; D: width; H: heads, K of them with keys and values of their
// own; W: width of a head; V: vocabulary.
type forward struct {
	m              *Model
	w              map[string]*Node
	tokens, parent *Node // int32 [B, T]
	angle          *Node // of rotary embedding. [B, T, W/2]
	branch, fork   *Node // int32 [B, blocks, width]; [B, 1, 1] without branches
	adapter        *Node // scale of the adapter, scalar
	dropout        float64
	random         *Node // state of the generator; nil without dropout

	stretches []stretch
	cos, sin  *Node // of rotary embedding. [B, 1, 1, T, 2, W/2]
}

// stretch is queries that are compared with the same keys: those before seen, and those of the stretch itself.
type stretch struct {
	from, to, seen int
	bias           *Node // 0 where a query sees a key, else very negative. [B·K, H/K·(to-from), seen+to-from]
}

// newForward takes the inputs of a graph: the weights, the trees' structure, the adapter's scale. It returns those left over.
func newForward(m *Model, inputs []*Node) (*forward, []*Node) {
	f := &forward{m: m, w: map[string]*Node{}}
	for i, p := range m.params {
		f.w[p.name] = inputs[i]
	}
	inputs = inputs[len(m.params):]
	f.tokens, f.parent, f.angle, f.branch, f.fork, f.adapter = inputs[0], inputs[1], inputs[2], inputs[3], inputs[4], inputs[5]
	return f, inputs[6:]
}

// logProbGraph returns the log-probability of each token. [B, T]
func (m *Model) logProbGraph(inputs []*Node) *Node {
	f, _ := newForward(m, inputs)
	logProb, _ := f.logProbs(false)
	return logProb
}

// logProbs returns the log-probability of each token and, if asked for, the entropy of the distribution it was drawn from. [B, T]
func (f *forward) logProbs(withEntropy bool) (logProb, entropy *Node) {
	n := f.m.network
	b, t := f.tokens.Shape().Dim(0), f.tokens.Shape().Dim(1)
	f.prepare()
	x := Gather(f.w["token_embd.weight"], Reshape(f.tokens, b*t, 1)) // [N, D]
	for i := range n.layers {
		if f.m.config.Recompute {
			x = x.Checkpoint()
		}
		x = f.layer(x, i)
	}
	if f.m.config.Recompute {
		x = x.StopCheckpoint()
	}
	x = f.norm(x, "output_norm.weight")
	x = Gather(x, Reshape(f.parent, b*t, 1)) // what is before a token predicts it
	target := Reshape(f.tokens, b*t, 1)

	step := f.m.config.LogitTokens
	if step == 0 {
		step = max(1<<24/n.vocabulary, 1)
	}
	var logProbs, entropies []*Node
	for from := 0; from < b*t; from += step {
		to := min(from+step, b*t)
		l, e := f.predict(Slice(x, AxisRange(from, to)), Slice(target, AxisRange(from, to)), withEntropy)
		logProbs, entropies = append(logProbs, l), append(entropies, e)
	}
	place := Iota(x.Graph(), f.tokens.Shape(), 1)
	first := Equal(place, ZerosLike(place))
	join := func(parts []*Node) *Node {
		all := parts[0]
		if len(parts) > 1 {
			all = Concatenate(parts, 0)
		}
		all = Reshape(all, b, t)
		return Where(first, ZerosLike(all), all) // nothing predicts a trunk's first token
	}
	if withEntropy {
		entropy = join(entropies)
	}
	return join(logProbs), entropy
}

// predict returns the log-probabilities of the targets [n, 1] given hidden states [n, D], and the entropies. [n]
func (f *forward) predict(x, target *Node, withEntropy bool) (logProb, entropy *Node) {
	if f.m.config.Recompute {
		x = x.Checkpoint()
	}
	output := "output.weight"
	if f.m.network.tied {
		output = "token_embd.weight"
	}
	logits := f.linear(x, output) // [n, V]
	most := StopGradient(ReduceAndKeep(logits, ReduceMax, -1))
	logits = Sub(logits, most)
	exp := Exp(logits)
	sum := ReduceSum(exp, -1)
	normalizer := Log(sum)
	row := Iota(x.Graph(), target.Shape(), 0)
	logProb = Sub(Gather(logits, Concatenate([]*Node{row, target}, 1)), normalizer)
	if withEntropy {
		entropy = Sub(normalizer, Div(ReduceSum(Mul(exp, logits), -1), sum))
	}
	if f.m.config.Recompute {
		logProb = logProb.StopCheckpoint()
		if withEntropy {
			entropy = entropy.StopCheckpoint()
		}
	}
	return logProb, entropy
}

// prepare computes what all layers share.
func (f *forward) prepare() {
	n := f.m.network
	g := f.tokens.Graph()
	b, t := f.tokens.Shape().Dim(0), f.tokens.Shape().Dim(1)
	blocks, width := f.branch.Shape().Dim(1), f.branch.Shape().Dim(2)
	if width == 1 {
		blocks = 0
	}
	trunk := t - blocks*width
	// [B, n, keys]: whether each of n queries sees each key
	add := func(from, to, seen int, visible *Node) {
		zero := Zeros(g, shapeOf(visible.Shape().Dimensions...))
		bias := Where(visible, zero, AddScalar(zero, -1e30))
		keys := seen + to - from
		bias = BroadcastToDims(Reshape(bias, b, 1, to-from, keys), b, n.heads, to-from, keys)
		f.stretches = append(f.stretches, stretch{from, to, seen, Reshape(bias, b*n.kvHeads, n.heads/n.kvHeads*(to-from), keys)})
	}
	index := func(axis int, dims ...int) *Node { return Iota(g, shapes.Make(dtypes.Int32, dims...), axis) }
	length := trunk
	for range stretchesOf(trunk) {
		length /= 2
	}
	for from := 0; from < trunk; from += length {
		dims := []int{b, length, from + length}
		add(from, from+length, from, LessOrEqual(index(2, dims...), AddScalar(index(1, dims...), float64(from))))
	}
	for i := range blocks {
		at := func(x *Node) *Node { return Slice(x, AxisRange(), AxisElem(i), AxisRange()) } // [B, 1, width]
		own := And(
			Equal(BroadcastToDims(at(f.branch), b, width, width), BroadcastToDims(Reshape(at(f.branch), b, width, 1), b, width, width)),
			LessOrEqual(index(2, b, width, width), index(1, b, width, width)))
		before := LessThan(index(2, b, width, trunk), BroadcastToDims(Reshape(at(f.fork), b, width, 1), b, width, trunk))
		from := trunk + i*width
		add(from, from+width, trunk, Concatenate([]*Node{before, own}, 2))
	}

	angle := Reshape(f.angle, b*t, n.headWidth/2)
	both := func(first, second *Node) *Node {
		return Reshape(Stack([]*Node{first, second}, 1), b, 1, 1, t, 2, n.headWidth/2)
	}
	cos, sin := Cos(angle), Sin(angle)
	f.cos, f.sin = both(cos, cos), both(Neg(sin), sin)
}

func (f *forward) layer(x *Node, i int) *Node {
	p := fmt.Sprintf("blk.%d.", i)
	x = Add(x, f.attention(f.norm(x, p+"attn_norm.weight"), p))
	h := f.norm(x, p+"ffn_norm.weight")
	gate, up := f.linear(h, p+"ffn_gate.weight"), f.linear(h, p+"ffn_up.weight")
	return Add(x, f.linear(Mul(Mul(gate, Sigmoid(gate)), up), p+"ffn_down.weight"))
}

// attention of [N, D] to itself. The H/K heads that share keys are laid behind one another as if they were more queries, so keys and
// values are never repeated.
func (f *forward) attention(x *Node, p string) *Node {
	n := f.m.network
	b, t := f.tokens.Shape().Dim(0), f.tokens.Shape().Dim(1)
	share := n.heads / n.kvHeads
	q := f.turn(f.linear(x, p+"attn_q.weight"), p+"attn_q_norm.weight", share)
	k := Reshape(f.turn(f.linear(x, p+"attn_k.weight"), p+"attn_k_norm.weight", 1), b*n.kvHeads, t, n.headWidth)
	v := Reshape(f.linear(x, p+"attn_v.weight"), b, t, n.kvHeads, n.headWidth)
	v = Reshape(TransposeAllAxes(v, 0, 2, 1, 3), b*n.kvHeads, t, n.headWidth)
	q = MulScalar(q, 1/math.Sqrt(float64(n.headWidth)))
	var out []*Node
	for _, s := range f.stretches {
		length := s.to - s.from
		mine := func(x *Node) *Node { // [B·K, seen+length, W]
			if s.seen == s.from {
				return Slice(x, AxisRange(), AxisRange(0, s.to))
			}
			return Concatenate([]*Node{Slice(x, AxisRange(), AxisRange(0, s.seen)), Slice(x, AxisRange(), AxisRange(s.from, s.to))}, 1)
		}
		queries := Reshape(Slice(q, AxisRange(), AxisRange(), AxisRange(s.from, s.to)), b*n.kvHeads, share*length, n.headWidth)
		scores := DotGeneral(queries, []int{2}, []int{0}, mine(k), []int{2}, []int{0}) // [B·K, H/K·length, seen+length]
		weights := softmax(Add(scores, s.bias))
		each := DotGeneral(weights, []int{2}, []int{0}, mine(v), []int{1}, []int{0}) // [B·K, H/K·length, W]
		out = append(out, Reshape(each, b, n.kvHeads, share, length, n.headWidth))
	}
	all := out[0]
	if len(out) > 1 {
		all = Concatenate(out, 3)
	}
	return f.linear(Reshape(TransposeAllAxes(all, 0, 3, 1, 2, 4), b*t, n.heads*n.headWidth), p+"attn_output.weight")
}

// stretchesOf is how often a trunk is halved for its attention: what its first parts need not be compared with is saved, and fewer of
// the scores of a long one are in memory at a time. Padded trunks of these lengths can be halved as often.
func stretchesOf(trunk int) (halvings int) {
	for halvings < 2 && trunk>>halvings > 64 || trunk>>halvings > 2048 {
		halvings++
	}
	return halvings
}

// softmax over the last axis, with a gradient that needs a third of the passes over memory of GoMLX's own.
func softmax(x *Node) *Node {
	linked := IdentityWithCustomGradient(x, func(x, v *Node) *Node {
		p := Softmax(x, -1) // computed once: the backend finds that it is there already
		v = Mul(v, p)
		return Sub(v, Mul(p, ReduceAndKeep(v, ReduceSum, -1)))
	})
	// The difference is 0, but hands the gradient on.
	return Add(StopGradient(Softmax(linked, -1)), Sub(linked, StopGradient(linked)))
}

// turn lays queries or keys [N, share·K·W] out by head and turns each pair of entries by its position. The pairs come to lie half a
// head apart, whichever way the model has them: a product of queries and keys does not depend on it. [B·K, share, T, W]
func (f *forward) turn(x *Node, norm string, share int) *Node {
	n := f.m.network
	b, t, half := f.tokens.Shape().Dim(0), f.tokens.Shape().Dim(1), n.headWidth/2
	if f.w[norm] != nil {
		x = Reshape(f.norm(Reshape(x, b*t*n.kvHeads*share, n.headWidth), norm), b*t, n.kvHeads*share*n.headWidth)
	}
	if n.neighbours {
		x = TransposeAllAxes(Reshape(x, b, t, n.kvHeads, share, half, 2), 0, 2, 3, 1, 5, 4)
	} else {
		x = TransposeAllAxes(Reshape(x, b, t, n.kvHeads, share, 2, half), 0, 2, 3, 1, 4, 5)
	}
	x = Add(Mul(x, f.cos), Mul(Reverse(x, 4), f.sin)) // [B, K, share, T, 2, W/2]
	return Reshape(x, b*n.kvHeads, share, t, n.headWidth)
}

// norm is RMSNorm over the last axis of x. [n, D]
func (f *forward) norm(x *Node, weight string) *Node {
	square := ReduceAndKeep(Mul(x, x), ReduceMean, -1)
	scale := Sqrt(AddScalar(square, f.m.network.eps)) // not Rsqrt: GoMLX has no gradient for it
	w := f.w[weight]
	return Mul(Mul(x, Reciprocal(scale)), Reshape(w, 1, w.Shape().Dim(0)))
}

// linear applies a matrix [out, in], its bias and its adapter to x [n, in].
func (f *forward) linear(x *Node, weight string) *Node {
	y := f.product(x, f.w[weight])
	if bias := f.w[weight[:len(weight)-len("weight")]+"bias"]; bias != nil {
		y = Add(y, Reshape(bias, 1, bias.Shape().Dim(0)))
	}
	a, b := f.w[weight+".lora_a"], f.w[weight+".lora_b"]
	if a == nil {
		return y
	}
	rank := a.Shape().Dim(0)
	low := f.product(f.drop(x), a) // [n, rank]
	low = Mul(low, MulScalar(f.adapter, float64(f.m.alpha)/float64(rank)))
	return Add(y, f.product(low, b))
}

func (f *forward) product(x, w *Node) *Node { return DotGeneral(x, []int{1}, nil, w, []int{1}, nil) }

// drop is dropout.
func (f *forward) drop(x *Node) *Node {
	if f.random == nil {
		return x
	}
	var u *Node
	f.random, u = RandomUniform(f.random, x.Shape())
	kept := GreaterOrEqual(u, Scalar(x.Graph(), x.DType(), f.dropout))
	return Where(kept, MulScalar(x, 1/(1-f.dropout)), ZerosLike(x))
}
