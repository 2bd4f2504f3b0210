package model

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"anytime/internal/gguf"
)

// network is the shape of a model.
type network struct {
	layers, width, heads, kvHeads, headWidth, vocabulary int

	eps float64 // of the norms
	// neighbours: the two entries that rotary embedding turns together are neighbours in a head; else they are half a head apart.
	neighbours bool
	// Rotary embedding turns pair i of a head at position p by p·ropeStep^i·ropeScale/ropeFactors[i] radians.
	ropeStep, ropeScale float32
	ropeFactors         []float32 // [headWidth/2]
	tied                bool      // the embeddings are the output matrix too
}

// layerTensors are those of a layer that the graph knows.
var layerTensors = []string{
	"attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight",
	"attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias", "attn_q_norm.weight", "attn_k_norm.weight",
	"ffn_norm.weight", "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight",
}

// ropeFactors is a tensor in models of the Llama 3 family. It is read with the weights, but is none.
const ropeFactors = "rope_freqs.weight"

// readNetwork reads the hyper-parameters of a header that passed gguf.Check, and refuses what the graph does not compute.
func readNetwork(h *gguf.Header) (n network, err error) {
	arch := h.Architecture()
	if !slices.Contains([]string{"llama", "qwen2", "qwen3"}, arch) {
		return n, fmt.Errorf("architecture is %q: llama, qwen2 and qwen3 can be trained", arch)
	}
	count := func(name string, absent int) int {
		v, ok := h.Uint(arch + "." + name)
		switch {
		case ok:
			return int(v)
		case absent > 0 && !slices.Contains(h.Keys(), arch+"."+name):
			return absent
		case err == nil:
			err = fmt.Errorf("%s.%s must be one number", arch, name)
		}
		return 1
	}
	n.layers, n.width, n.heads = count("block_count", 0), count("embedding_length", 0), max(count("attention.head_count", 0), 1)
	n.kvHeads = count("attention.head_count_kv", n.heads)
	n.headWidth = count("attention.key_length", n.width/n.heads)
	value := count("attention.value_length", n.headWidth)
	turned := count("rope.dimension_count", n.headWidth)
	switch {
	case err != nil:
		return n, err
	case value != n.headWidth || turned != n.headWidth || n.headWidth%2 != 0:
		return n, fmt.Errorf("keys have %d entries, values %d, of which %d are turned: these must be the same even number", n.headWidth, value, turned)
	case n.kvHeads < 1 || n.heads%n.kvHeads != 0:
		return n, fmt.Errorf("%d heads share %d keys: the latter must divide the former", n.heads, n.kvHeads)
	}
	if n.eps, _ = h.Float(arch + ".attention.layer_norm_rms_epsilon"); n.eps <= 0 {
		return n, fmt.Errorf("%s.attention.layer_norm_rms_epsilon is missing", arch)
	}
	for _, name := range []string{"expert_count", "attention.scale", "attention.clamp_kqv", "logit_scale", "embedding_scale", "residual_scale"} {
		key := arch + "." + name
		count, _ := h.Uint(key)
		scale, _ := h.Float(key)
		if count != 0 || scale != 0 {
			return n, fmt.Errorf("%s is set: models with it cannot be trained", key)
		}
	}
	n.neighbours = arch == "llama"
	if err := n.rope(h, arch); err != nil {
		return n, err
	}
	n.tied = true
	for _, t := range h.Tensors {
		switch rest, inLayer := strings.CutPrefix(t.Name, "blk."); {
		case inLayer:
			if _, name, _ := strings.Cut(rest, "."); !slices.Contains(layerTensors, name) {
				return n, fmt.Errorf("tensor %s: a %s model with it cannot be trained", t.Name, arch)
			}
		case t.Name == "token_embd.weight":
			n.vocabulary = int(t.Dims[1])
		case t.Name == "output.weight":
			n.tied = false
		case t.Name != "output_norm.weight" && t.Name != ropeFactors:
			return n, fmt.Errorf("tensor %s: a %s model with it cannot be trained", t.Name, arch)
		}
	}
	return n, nil
}

func (n *network) rope(h *gguf.Header, arch string) error {
	base, ok := h.Float(arch + ".rope.freq_base")
	if !ok {
		base = 10000
	}
	scaling, _ := h.String(arch + ".rope.scaling.type")
	factor, ok := h.Float(arch + ".rope.scaling.factor")
	if !ok {
		factor, _ = h.Float(arch + ".rope.scale_linear")
	}
	switch scaling {
	case "none":
		factor = 1
	case "", "linear":
		if factor == 0 {
			factor = 1
		}
	default:
		return fmt.Errorf("%s.rope.scaling.type is %q: models with none or linear scaling can be trained", arch, scaling)
	}
	n.ropeStep = float32(math.Pow(base, -2/float64(n.headWidth)))
	n.ropeScale = float32(1 / factor)
	n.ropeFactors = slices.Repeat([]float32{1}, n.headWidth/2)
	return nil
}

// turns appends the angles of all pairs of a head at a position, rounded at the steps where llama.cpp rounds on a CPU: at late positions
// the rounding is what its results differ by most.
func (n *network) turns(angles []float32, position int32) []float32 {
	turn := float32(position)
	for _, factor := range n.ropeFactors {
		angles = append(angles, turn/factor*n.ropeScale)
		turn *= n.ropeStep
	}
	return angles
}
