package model

import (
	"fmt"
	"maps"
	"slices"

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

// group is some trees, padded to one length, that are computed in one pass.
type group struct {
	trees  []int // their indices
	length int   // of each row
	// Of each token, row by row. [len(trees) * length]
	tokens, position []int32
	branch           []int32 // 0 in the trunk, -1 in the padding
	fork             []int32 // how many tokens of the trunk a branch sees
	parent           []int32 // index of the token before, in all rows; a row's first has itself
}

// structure lists the inputs of a graph that describe the trees.
func (m *Model) structure(g *group) []any {
	var inputs []any
	for _, values := range [][]int32{g.tokens, g.position, g.branch, g.fork, g.parent} {
		inputs = append(inputs, rows(g, values))
	}
	var angles []float32
	for _, p := range g.position {
		angles = m.network.turns(angles, p)
	}
	return append(inputs, tensors.FromFlatDataAndDimensions(angles, len(g.trees), g.length, m.network.headWidth/2))
}

// bucket is the length that a row of n tokens is padded to: 16, 20, 24, 28, 32, 40, 48, 56, 64, 80 …
func bucket(n int) int {
	step := 4
	for 8*step < n {
		step *= 2
	}
	return max((n+step-1)/step*step, 16)
}

// pack sorts trees into groups. It depends on nothing but the trees' order and lengths.
func (m *Model) pack(trees []Tree) ([]*group, error) {
	byLength := map[int][]int{}
	for i, t := range trees {
		if err := t.check(m.network.vocabulary); err != nil {
			return nil, fmt.Errorf("tree %d: %w", i, err)
		}
		byLength[bucket(t.Len())] = append(byLength[bucket(t.Len())], i)
	}
	var groups []*group
	for _, length := range slices.Sorted(maps.Keys(byLength)) {
		left := byLength[length]
		for len(left) > 0 {
			n := 1
			for 2*n <= len(left) && 2*n*length <= m.config.BatchTokens {
				n *= 2
			}
			groups = append(groups, layOut(trees, left[:n], length))
			left = left[n:]
		}
	}
	return groups, nil
}

func layOut(trees []Tree, chosen []int, length int) *group {
	g := &group{trees: chosen, length: length}
	n := len(chosen) * length
	for _, field := range []*[]int32{&g.tokens, &g.position, &g.branch, &g.fork, &g.parent} {
		*field = make([]int32, n)
	}
	for row, i := range chosen {
		start := row * length
		next := start
		put := func(id, position, branch, fork, parent int) {
			g.tokens[next], g.position[next], g.branch[next] = int32(id), int32(position), int32(branch)
			g.fork[next], g.parent[next] = int32(fork), int32(parent)
			next++
		}
		for p, id := range trees[i].Trunk {
			put(int(id), p, 0, 0, max(next-1, start))
		}
		for b, branch := range trees[i].Branches {
			parent := start + branch.At - 1
			for p, id := range branch.Tokens {
				put(int(id), branch.At+p, b+1, branch.At, parent)
				parent = next - 1
			}
		}
		for next < start+length {
			put(0, 0, -1, 0, next)
		}
	}
	return g
}

// spread lays values of each tree's tokens out as the group has them; padding and trees without get 0. [len(trees) * length]
func (g *group) spread(of func(tree int) []float32) []float32 {
	all := make([]float32, len(g.trees)*g.length)
	for row, i := range g.trees {
		copy(all[row*g.length:][:g.length], of(i))
	}
	return all
}
