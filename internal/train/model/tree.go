package model

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/gomlx/compute/dtypes/gotype"
	"github.com/gomlx/gomlx/core/tensors"
)

// Tree is a sequence that may branch. Without branches it is a plain sequence.
type Tree struct {
	Trunk    []int32
	Branches []Branch
}

// Branch is a continuation of the first At tokens of the trunk, from 1. It knows nothing of the other branches.
type Branch struct {
	At     int
	Tokens []int32
}

// Len is the number of tokens in the trunk and all branches.
func (t Tree) Len() int {
	n := len(t.Trunk)
	for _, b := range t.Branches {
		n += len(b.Tokens)
	}
	return n
}

// Tokens are those of the trunk, then those of each branch in order. Everything that is given or returned per token is in this order.
func (t Tree) Tokens() []int32 {
	all := slices.Clone(t.Trunk)
	for _, b := range t.Branches {
		all = append(all, b.Tokens...)
	}
	return all
}

func (t Tree) check(vocabulary int) error {
	if len(t.Trunk) == 0 {
		return fmt.Errorf("the trunk has no tokens")
	}
	for i, b := range t.Branches {
		if b.At < 1 || b.At > len(t.Trunk) {
			return fmt.Errorf("branch %d leaves the trunk after %d tokens: it must be from 1 to %d", i, b.At, len(t.Trunk))
		}
	}
	for i, id := range t.Tokens() {
		if id < 0 || int(id) >= vocabulary {
			return fmt.Errorf("token %d is %d: the vocabulary has %d", i, id, vocabulary)
		}
	}
	return nil
}

// layout is what a row is padded to: a trunk, and behind it blocks of one width, each of which holds some branches whole. So a branch is
// only compared with the trunk and its own block, and not with the many tokens that it does not see.
type layout struct{ trunk, blocks, width int }

func (l layout) length() int { return l.trunk + l.blocks*l.width }

const mostBlocks = 4

// layoutOf finds the layout of a tree. A backend that compiles a program for each shape, which takes seconds, gets few shapes: its rows
// are padded more, but for long ones, which would lose more by it.
func layoutOf(t Tree, few bool) (l layout) {
	if l.trunk = bucket(len(t.Trunk)); few && l.trunk <= 1024 {
		l.trunk = coarse(len(t.Trunk))
	}
	longest, total := 0, t.Len()-len(t.Trunk)
	for _, b := range t.Branches {
		longest = max(longest, len(b.Tokens))
	}
	if total == 0 {
		return l
	}
	for want := max(longest, (total+mostBlocks-1)/mostBlocks); ; want = l.width + 1 {
		l.width = coarse(want)
		if l.blocks, _ = fit(t.Branches, l); l.blocks <= mostBlocks {
			break
		}
	}
	if few && l.blocks > 1 {
		l.blocks = mostBlocks
	}
	return l
}

// fit puts each branch into the first block that has room for it, and returns how many it took and where in the row each branch is.
func fit(branches []Branch, l layout) (blocks int, offsets []int) {
	var used []int // of each block
	for _, b := range branches {
		i := slices.IndexFunc(used, func(n int) bool { return n+len(b.Tokens) <= l.width })
		if i < 0 {
			i = len(used)
			used = append(used, 0)
		}
		offsets = append(offsets, l.trunk+i*l.width+used[i])
		used[i] += len(b.Tokens)
	}
	return len(used), offsets
}

// bucket is the length that a trunk of n tokens is padded to: 16, 20, 24, 28, 32, 40, 48, 56, 64, 80 …
func bucket(n int) int {
	step := 4
	for 8*step < n {
		step *= 2
	}
	return max((n+step-1)/step*step, 16)
}

// coarse is the width of a block for n tokens: 16, 24, 32, 48, 64, 96 …
func coarse(n int) int {
	width := 16
	for width < n {
		if width&(width-1) == 0 {
			width += width / 2
		} else {
			width += width / 3
		}
	}
	return width
}

// group is some trees of one layout that are computed in one pass.
type group struct {
	layout
	trees []int   // their indices
	place [][]int // where each token of each tree is, in all rows
	// Of each token, row by row. [rows * length]
	tokens, position []int32
	parent           []int32 // index of the token before, in all rows; a row's first and the padding have their own
	// Of each token of the blocks. [rows * blocks * width]
	branch []int32 // which one it is of, from 1; 0 in the padding
	fork   []int32 // how many tokens of the trunk it sees
}

// structure lists the inputs of a graph that describe the trees. Their shapes tell one layout from another.
func (m *Model) structure(g *group) []any {
	var angles []float32
	for _, p := range g.position {
		angles = m.network.turns(angles, p)
	}
	rows := len(g.trees)
	inputs := []any{
		flat(g.tokens, rows, g.length()), flat(g.parent, rows, g.length()), flat(angles, rows, g.length(), m.network.headWidth/2),
	}
	if g.blocks == 0 { // tensors without entries are not for every backend
		none := flat(make([]int32, rows), rows, 1, 1)
		return append(inputs, none, none)
	}
	return append(inputs, flat(g.branch, rows, g.blocks, g.width), flat(g.fork, rows, g.blocks, g.width))
}

// flat makes a tensor.
func flat[T gotype.Supported](values []T, dims ...int) *tensors.Tensor {
	return tensors.FromFlatDataAndDimensions(values, dims...)
}

// pack sorts trees into groups. It depends on nothing but the trees' order and shapes, and the kind of the backend.
func (m *Model) pack(trees []Tree) ([]*group, error) {
	few := strings.HasPrefix(m.config.Backend, "xla:")
	byLayout := map[layout][]int{}
	for i, t := range trees {
		if err := t.check(m.network.vocabulary); err != nil {
			return nil, fmt.Errorf("tree %d: %w", i, err)
		}
		l := layoutOf(t, few)
		byLayout[l] = append(byLayout[l], i)
	}
	order := slices.SortedFunc(maps.Keys(byLayout), func(a, b layout) int {
		return cmp.Or(cmp.Compare(a.trunk, b.trunk), cmp.Compare(a.blocks, b.blocks), cmp.Compare(a.width, b.width))
	})
	more := 2
	if few {
		more = 4
	}
	var groups []*group
	for _, l := range order {
		left := byLayout[l]
		for len(left) > 0 {
			n := 1
			for more*n <= len(left) && more*n*l.length() <= m.config.BatchTokens {
				n *= more
			}
			groups = append(groups, layOut(trees, left[:n], l))
			left = left[n:]
		}
	}
	return groups, nil
}

func layOut(trees []Tree, chosen []int, l layout) *group {
	n := len(chosen)
	g := &group{
		layout: l, trees: chosen, place: make([][]int, n),
		tokens: make([]int32, n*l.length()), position: make([]int32, n*l.length()), parent: make([]int32, n*l.length()),
		branch: make([]int32, n*l.blocks*l.width), fork: make([]int32, n*l.blocks*l.width),
	}
	for i := range g.parent {
		g.parent[i] = int32(i)
	}
	for row, i := range chosen {
		start := row * l.length()
		put := func(at, id, position, parent int) {
			g.tokens[at], g.position[at], g.parent[at] = int32(id), int32(position), int32(parent)
			g.place[row] = append(g.place[row], at)
		}
		for p, id := range trees[i].Trunk {
			put(start+p, int(id), p, max(start+p-1, start))
		}
		_, offsets := fit(trees[i].Branches, l)
		for b, branch := range trees[i].Branches {
			parent := start + branch.At - 1
			for p, id := range branch.Tokens {
				at := start + offsets[b] + p
				put(at, int(id), branch.At+p, parent)
				in := row*l.blocks*l.width + offsets[b] - l.trunk + p
				g.branch[in], g.fork[in] = int32(b+1), int32(branch.At)
				parent = at
			}
		}
	}
	return g
}

// spread lays values of each tree's tokens out as the group has them; padding and trees without get 0. [rows * length]
func (g *group) spread(of func(tree int) []float32) []float32 {
	all := make([]float32, len(g.trees)*g.length())
	for row, i := range g.trees {
		for j, v := range of(i) {
			all[g.place[row][j]] = v
		}
	}
	return all
}

// gather is the opposite: the values of a row's tokens.
func (g *group) gather(row int, all []float32) []float32 {
	values := make([]float32, len(g.place[row]))
	for j, at := range g.place[row] {
		values[j] = all[at]
	}
	return values
}
