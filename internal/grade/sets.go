package grade

import (
	"cmp"
	"slices"
	"strings"
)

// cut is a place on the real line: just before or just after a number.
type cut struct {
	at    *node
	x     float64 // its value
	after bool
}

// region is a set of real numbers: the cuts at which a point that moves from -∞ to ∞
// enters and leaves it, by turns.
type region []cut

var (
	infinity      = &node{op: opConst, name: "inf"}
	minusInfinity = combine(opNeg, infinity)
)

func (c *comparer) compareCuts(a, b cut) int {
	if !c.spend(1) || !c.evaluator.equal(a.at, b.at) {
		return cmp.Compare(a.x, b.x)
	}
	switch {
	case a.after == b.after:
		return 0
	case b.after:
		return -1
	}
	return 1
}

// merge returns the region of the points that keep wants, which is asked whether a
// point is in a and in b. It must not want those in neither.
func (c *comparer) merge(a, b region, keep func(inA, inB bool) bool) region {
	var out region
	for i, j := 0, 0; i < len(a) || j < len(b); {
		order := -1
		switch {
		case i == len(a):
			order = 1
		case j < len(b):
			order = c.compareCuts(a[i], b[j])
		}
		var at cut
		if order >= 0 {
			at = b[j]
			j++
		}
		if order <= 0 {
			at = a[i]
			i++
		}
		if keep(i%2 == 1, j%2 == 1) != (len(out)%2 == 1) {
			out = append(out, at)
		}
	}
	return out
}

func either(inA, inB bool) bool { return inA || inB }
func both(inA, inB bool) bool   { return inA && inB }
func only(inA, inB bool) bool   { return inA && !inB }

// span returns the interval between two numbers. ok is false if it is empty or its
// ends are not known numbers.
func (c *comparer) span(lo, hi *node, brackets string) (r region, ok bool) {
	for i, end := range []*node{lo, hi} {
		if !end.scalar() || c.traitsOf(end).variables {
			return nil, false
		}
		v := c.at(end, 0, reals)
		if !v.usable() || !isReal(v.v) {
			return nil, false
		}
		r = append(r, cut{end, real(v.v), brackets[i] == '(' || brackets[i] == ']'})
	}
	r[0].after = r[0].after || c.evaluator.equal(lo, minusInfinity) // infinities are outside
	r[1].after = r[1].after && !c.evaluator.equal(hi, infinity)
	return r, c.compareCuts(r[0], r[1]) < 0
}

func (c *comparer) line() region {
	r, _ := c.span(minusInfinity, infinity, "()")
	return r
}

// setLike reports whether n can only be read as a set of numbers.
func setLike(n *node) bool {
	switch n.op {
	case opUnion, opBuild:
		return true
	case opRel:
		return slices.ContainsFunc(n.rels, func(r string) bool { return strings.ContainsAny(r, "<>!") })
	case opList:
		return slices.ContainsFunc(n.kids, setLike)
	}
	return isReals(n) || isEmpty(n)
}

// isEmpty reports whether n is the empty set, or says that there is no solution.
func isEmpty(n *node) bool {
	w := strings.ToLower(words(n))
	return n.op == opSet && len(n.kids) == 0 || w == "nosolution" || w == "nosolutions"
}

// region reads n as a set of real numbers, or of the values of a variable x.
func (c *comparer) region(n *node) (r region, x string, ok bool) {
	switch n.op {
	case opSeq:
		if len(n.kids) == 2 && n.name[0] != ':' {
			r, ok = c.span(n.kids[0], n.kids[1], n.name)
		}
		return r, "", ok
	case opSet:
		for _, kid := range n.kids {
			point, ok := c.span(kid, kid, "[]")
			if !ok {
				return nil, "", false
			}
			r = c.merge(r, point, either)
		}
		return r, "", true
	case opUnion:
		return c.mergeAll(n.kids, map[string]func(a, b bool) bool{"∪": either, "∩": both, "∖": only}[n.name])
	case opBuild:
		r, x, ok = c.region(n.kids[1])
		return r, "", ok && x == n.kids[0].name
	case opRel:
		return c.solutions(n)
	case opList:
		if !slices.ContainsFunc(n.kids, func(kid *node) bool { return kid.op != opRel }) {
			return c.conditions(n)
		}
	}
	if isEmpty(n) {
		return nil, "", true
	}
	if isReals(n) || strings.HasPrefix(strings.ToLower(words(n)), "allreal") {
		return c.line(), "", true
	}
	return nil, "", false
}

// mergeAll merges the regions of nodes, which must be of one variable.
func (c *comparer) mergeAll(nodes []*node, keep func(a, b bool) bool) (r region, x string, ok bool) {
	for i, n := range nodes {
		next, name, ok := c.region(n)
		if !ok || x != "" && name != "" && x != name {
			return nil, "", false
		}
		if x == "" {
			x = name
		}
		if i > 0 {
			next = c.merge(r, next, keep)
		}
		r = next
	}
	return r, x, true
}

// conditions reads several conditions on one variable. A comma means and, or, where no
// number meets all conditions, or.
func (c *comparer) conditions(list *node) (r region, x string, ok bool) {
	if list.name == "mixed" {
		return nil, "", false
	}
	if !isOr(list) {
		if r, x, ok = c.mergeAll(list.kids, both); len(r) > 0 || !ok || isAnd(list) {
			return r, x, ok
		}
	}
	return c.mergeAll(list.kids, either)
}

func isAnd(list *node) bool { return list.name == "and" || list.name == "∧" }
func isOr(list *node) bool  { return list.name == "or" || list.name == "∨" }

// solutions returns the solutions of x ∈ S, x = a, x ≠ a and inequalities.
func (c *comparer) solutions(rel *node) (r region, x string, ok bool) {
	if interval, x := c.interval(rel); interval != nil {
		r, ok = c.span(interval.kids[0], interval.kids[1], interval.name)
		return r, x.name, ok
	}
	if less := map[string]string{">": "<=", ">=": "<"}[rel.rels[0]]; len(rel.rels) == 1 && less != "" && isAbs(rel.kids[0]) {
		r, x, ok = c.solutions(&node{op: opRel, rels: []string{less}, kids: rel.kids})
		return c.merge(c.line(), r, only), x, ok
	}
	left := rel.kids[0]
	if len(rel.rels) > 1 || left.op != opSymbol {
		return nil, "", false
	}
	switch right := rel.kids[1]; rel.rels[0] {
	case "in":
		r, _, ok = c.region(right)
	case "=", "!=":
		if r, ok = c.span(right, right, "[]"); ok && rel.rels[0] == "!=" {
			r = c.merge(c.line(), r, only)
		}
	}
	return r, left.name, ok
}

// sameRegion compares two sets; ok is false if one of them cannot be read as such.
func (c *comparer) sameRegion(a, b *node) (same, ok bool) {
	ra, xa, okA := c.region(a)
	rb, xb, okB := c.region(b)
	if !okA || !okB || xa != "" && xb != "" && xa != xb {
		return false, false
	}
	return c.steps >= 0 && slices.EqualFunc(ra, rb, func(x, y cut) bool { return c.compareCuts(x, y) == 0 }), true
}
