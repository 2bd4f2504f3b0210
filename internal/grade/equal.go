package grade

import (
	"slices"
	"strings"
	"unicode"
)

// Equal reports whether two answers mean the same. It is symmetric, and true of any
// two identical answers that are not blank; see the package comment for how
// ambiguous notation is read. It never panics, and its time and memory are bounded.
func Equal(a, b string) bool {
	return newComparer().answers(a, b)
}

// comparer compares trees.
type comparer struct {
	*evaluator
}

func newComparer() *comparer { return &comparer{newEvaluator()} }

func (c *comparer) answers(a, b string) bool {
	a, b = strings.TrimSpace(a), strings.TrimSpace(b)
	if a == "" || b == "" {
		return false
	}
	if a == b {
		return true
	}
	if a > b { // whatever follows, the order of the arguments cannot matter
		a, b = b, a
	}
	a, b = Normalize(a), Normalize(b)
	if a == "" || b == "" || len(a) > maxInput || len(b) > maxInput {
		return a != "" && a == b
	}
	variables := factors(a) + factors(b)
	as, bs := readings(a, variables), readings(b, variables)
	for _, x := range as {
		for _, y := range bs {
			if x.cut && y.cut {
				continue
			}
			if x.tree != nil && y.tree != nil {
				if c.equal(x.tree, y.tree) {
					return true
				}
			} else if text := x.text(); text != "" && text == y.text() {
				return true
			}
		}
	}
	return false
}

// reading is one way to read an answer; tree is nil where it is no mathematics.
type reading struct {
	toks []token
	tree *node
	cut  bool // a clause was left out
}

// factors returns those of f, g and h that stand in an answer without an argument: with
// them h(a+b) is a product, else a function.
func factors(s string) string {
	if !strings.ContainsAny(s, "fgh") {
		return ""
	}
	out := ""
	toks, _ := lex(s, isProse(s), false)
	for i, t := range toks {
		if t.kind == tokLetter && len(t.text) == 1 && strings.Contains("fgh", t.text) &&
			(i+1 == len(toks) || !strings.Contains("('^", toks[i+1].text)) {
			out += t.text
		}
	}
	return out
}

// readings returns the few ways to read an answer in which some letters are variables.
func readings(s, variables string) []reading {
	if sum := compound(s); sum != "" {
		s = sum
	}
	toks, ambiguous := lex(s, isProse(s), false)
	out := []reading{newReading(toks, variables)}
	if ambiguous {
		toks, _ = lex(s, false, true)
		list := newReading(toks, variables)
		if list.tree != nil && list.tree.op == opList {
			list.tree.name = "or" // whatever it is, it is no tuple
		}
		out = append(out, list)
	} else if isProse(s) && len(s) <= 3 { // abc may be a product after all
		toks, _ = lex(s, false, false)
		out = append(out, newReading(toks, variables))
	}
	if units := uprightUnits(s); units != "" {
		toks, _ = lex(units, false, false)
		out = append(out, newReading(toks, variables))
	}
	if short := withoutClause(s); short != s {
		toks, _ = lex(short, false, false)
		r := newReading(toks, variables)
		r.cut = true
		out = append(out, r)
	}
	return out
}

func newReading(toks []token, variables string) reading {
	tree, err := parse(toks, variables)
	if err != nil {
		tree = nil
	}
	return reading{toks: toks, tree: tree}
}

// text returns what is compared of an answer that is no mathematics: its letters
// and digits in lower case if it is words and numbers, else every token as it
// stands.
func (r reading) text() string {
	var all, words strings.Builder
	plain, word := true, false
	for _, t := range r.toks {
		word = word || t.kind == tokWord
		if t.text == "and" || t.text == "or" {
			t.text = ","
		}
		all.WriteString(t.text + " ")
		if t.kind == tokOp && !strings.Contains(`.,;:!?'"()%$`, t.text) || t.kind == tokNumber && strings.Contains(t.text, ".") {
			plain = false
		}
		for _, r := range t.text {
			if unicode.IsLetter(r) || unicode.IsDigit(r) {
				words.WriteRune(unicode.ToLower(r))
			}
		}
		if t.kind == tokNumber {
			words.WriteByte(' ') // 1 2 is not 12
		}
	}
	if plain && word {
		return "text " + words.String()
	}
	return all.String()
}

func (c *comparer) equal(a, b *node) bool {
	if !c.spend(1) {
		return false
	}
	a, b = c.simplify(a), c.simplify(b)
	if c.same(a, b) {
		return true
	}
	if a.op > b.op {
		a, b = b, a
	}
	if setLike(a) || setLike(b) {
		if same, ok := c.sameRegion(a, b); ok {
			return same
		}
	}
	switch {
	case b.op == opRel:
		return c.equalRelation(a, b)
	case a.op == opSeq && a.name == "()" && b.op == opList:
		return !isOr(b) && c.inOrder(a.kids, c.values(b))
	case isList(a) || isList(b):
		return c.equalItems(a, b)
	case b.scalar():
		return c.equalScalars(a, b)
	case isReals(a) || isReals(b):
		return isReals(a) && isReals(b)
	case a.op != b.op || a.name != b.name:
		return false
	case a.op == opUnion:
		return a.name == "∪" && c.matching(parts(a), parts(b)) || c.inOrder(a.kids, b.kids)
	}
	return c.inOrder(a.kids, b.kids) // tuples, rows, matrices
}

// simplify brings out the list that ± makes of an expression or an assignment, and
// reads x ∈ S as S.
func (c *comparer) simplify(n *node) *node {
	if n.op == opRel && len(n.rels) == 1 && n.rels[0] == "in" && isName(n.kids[0]) {
		n = n.kids[1]
	}
	t := c.traitsOf(n)
	if t.signs == 0 || !n.scalar() && n.op != opRel && n.op != opSeq || t.signs > maxSigns && !t.linked {
		return n
	}
	signs := t.signs
	if t.linked {
		signs = 1
	}
	list := &node{op: opList, name: "or"}
	for minus := range 1 << signs {
		list.kids = append(list.kids, withSigns(n, &minus, t.linked))
	}
	return list
}

const maxSigns = 4 // ± in one expression, each of which doubles its values

// withSigns returns n with every ± read as plus, or as minus if the next bit of minus
// says so; with linked signs all do as the first.
func withSigns(n *node, minus *int, linked bool) *node {
	opposite := n.op == opSign && (*minus&1 == 1) == (n.name == "±")
	if n.op == opSign && !linked {
		*minus >>= 1
	}
	kids := make([]*node, len(n.kids))
	for i, kid := range n.kids {
		kids[i] = withSigns(kid, minus, linked)
	}
	switch {
	case n.op != opSign:
		return &node{op: n.op, name: n.name, num: n.num, rels: n.rels, kids: kids}
	case opposite:
		return combine(opNeg, kids[0])
	}
	return kids[0]
}

// same reports whether two trees are alike node for node.
func (c *comparer) same(a, b *node) bool {
	if !c.spend(1) || a.op != b.op || a.name != b.name && a.op != opMul || len(a.kids) != len(b.kids) ||
		!slices.Equal(a.rels, b.rels) || a.op == opNumber && a.num.Cmp(b.num) != 0 {
		return false
	}
	for i := range a.kids {
		if !c.same(a.kids[i], b.kids[i]) {
			return false
		}
	}
	return true
}

func (c *comparer) inOrder(as, bs []*node) bool {
	if len(as) != len(bs) {
		return false
	}
	for i := range as {
		if !c.equal(as[i], bs[i]) {
			return false
		}
	}
	return true
}

// matching reports whether as and bs are equal in some order.
func (c *comparer) matching(as, bs []*node) bool {
	if len(as) != len(bs) {
		return false
	}
	left := slices.Clone(bs)
	for _, a := range as {
		i := slices.IndexFunc(left, func(b *node) bool { return c.equal(a, b) })
		if i < 0 {
			return false
		}
		left = slices.Delete(left, i, i+1)
	}
	return c.steps >= 0 // or items were left out
}

func isList(n *node) bool { return n.op == opList || n.op == opSet }

// equalItems compares lists and sets without order. Anything else is a list of one,
// or, beside a list, a union of intervals.
func (c *comparer) equalItems(a, b *node) bool {
	if clash(a, b) || clash(b, a) {
		return false
	}
	if a.op == opList && b.op == opList && c.named(a) != c.named(b) {
		return c.inOrder(c.values(a), c.values(b))
	}
	if a.op == opUnion || b.op == opUnion {
		as, bs := c.intervals(a), c.intervals(b)
		return as != nil && bs != nil && c.matching(as, bs)
	}
	return c.matching(c.items(a, b.op == opSet), c.items(b, a.op == opSet))
}

// items returns the items of a list or set; those of a set, or of a list that is to
// be compared with a set, each once.
func (c *comparer) items(n *node, asSet bool) []*node {
	if !isList(n) {
		return []*node{n}
	}
	var items []*node
	for _, kid := range n.kids {
		if c.steps < 0 {
			return nil
		}
		for _, x := range flat(c.simplify(kid)) {
			if (asSet || n.op == opSet) && slices.ContainsFunc(items, func(y *node) bool { return c.equal(x, y) }) {
				continue
			}
			items = append(items, x)
		}
	}
	return items
}

// clash reports whether a means and, b or, and it matters.
func clash(a, b *node) bool {
	return a.op == opList && b.op == opList && isAnd(a) && isOr(b) && (a.name == "∧" || b.name == "∨" || setLike(a) || setLike(b))
}

// named reports whether a list gives values to different names, so that its order
// matters to a list of values only: p=3, q=4 is not 4, 3.
func (c *comparer) named(list *node) bool {
	var names []*node
	for _, kid := range list.kids {
		if kid.op != opRel {
			return false
		}
		name, _ := c.assigned(kid)
		if name == nil || slices.ContainsFunc(names, func(n *node) bool { return c.same(n, name) }) {
			return false
		}
		names = append(names, name)
	}
	return true
}

// values returns the items of a list without their names, if all are named.
func (c *comparer) values(list *node) []*node {
	if !c.named(list) {
		return list.kids
	}
	var values []*node
	for _, kid := range list.kids {
		_, v := c.assigned(kid)
		values = append(values, v)
	}
	return values
}

// flat returns the items of a list within a list, which ± makes.
func flat(n *node) []*node {
	if n.op == opList {
		return n.kids
	}
	return []*node{n}
}

// parts returns what a union joins.
func parts(n *node) []*node {
	if n.op == opUnion && n.name == "∪" {
		return append(parts(n.kids[0]), parts(n.kids[1])...)
	}
	return []*node{n}
}

// intervals returns the parts of a union, or of a list of inequalities.
func (c *comparer) intervals(n *node) []*node {
	if n.op != opList {
		return parts(n)
	}
	if isAnd(n) {
		return nil
	}
	var out []*node
	for _, kid := range n.kids {
		interval, _ := c.interval(kid)
		if interval == nil {
			return nil
		}
		out = append(out, interval)
	}
	return out
}

// equalScalars compares numbers, quantities and words.
func (c *comparer) equalScalars(a, b *node) bool {
	wa, wb := words(a), words(b)
	if wa != "" && wb != "" && (onlyWords(a) || onlyWords(b)) {
		return strings.EqualFold(wa, wb)
	}
	if c.evaluator.equal(a, b) {
		return true
	}
	if !c.traitsOf(a).words && !c.traitsOf(b).words {
		return false
	}
	va, ma := unitOf(a)
	vb, mb := unitOf(b)
	switch {
	case len(ma.dimensions) == 0 && len(mb.dimensions) == 0:
		return false
	case len(ma.dimensions) == 0 || len(mb.dimensions) == 0:
		return c.evaluator.equal(va, vb)
	case !ma.sameDimensions(mb):
		return false
	}
	return c.evaluator.equal(combine(opMul, va, number(ma.size)), combine(opMul, vb, number(mb.size)))
}

// words returns the letters of a product of symbols and words, "" of anything else.
func words(n *node) string {
	switch n.op {
	case opSymbol, opWord, opConst:
		return n.name
	case opMul:
		a, b := words(n.kids[0]), words(n.kids[1])
		if a != "" && b != "" {
			return a + b
		}
	}
	return ""
}

func onlyWords(n *node) bool {
	return n.op == opWord || n.op == opMul && onlyWords(n.kids[0]) && onlyWords(n.kids[1])
}

// equalRelation compares anything with a relation b.
func (c *comparer) equalRelation(a, b *node) bool {
	if a.op != opRel {
		if _, v := c.assigned(b); v != nil {
			return c.equal(a, v)
		}
		if v := c.result(b); v != nil {
			return c.equal(a, v)
		}
		interval, _ := c.interval(b)
		return interval != nil && c.equal(a, interval)
	}
	ia, xa := c.interval(a)
	ib, xb := c.interval(b)
	if ia != nil && ib != nil {
		return c.same(xa, xb) && c.equal(ia, ib)
	}
	na, va := c.assigned(a)
	nb, vb := c.assigned(b)
	if na != nil && nb != nil && c.same(na, nb) {
		return c.equal(va, vb)
	}
	if len(a.kids) != 2 || len(b.kids) != 2 {
		return slices.Equal(a.rels, b.rels) && c.inOrder(a.kids, b.kids)
	}
	ra, da := difference(a)
	rb, db := difference(b)
	return ra == rb && da != nil && db != nil && c.proportional(da, db, ra != "=" && ra != "!=")
}

// difference reads an equation or inequality as "difference = 0" or "difference < 0".
func difference(rel *node) (relation string, d *node) {
	l, r := rel.kids[0], rel.kids[1]
	relation = rel.rels[0]
	switch relation {
	case ">":
		l, r, relation = r, l, "<"
	case ">=":
		l, r, relation = r, l, "<="
	case "=", "!=", "<", "<=":
	default:
		return relation, nil
	}
	if !l.scalar() || !r.scalar() {
		return relation, nil
	}
	return relation, combine(opAdd, l, combine(opNeg, r))
}

// assigned returns the value that an equation gives to a name: v of x=v, v=x and
// x=u=v with u equal to v, or of u=v without a name (nil) if they are equal. A
// rounded value after ≈ does not count. The value is nil if there is none.
func (c *comparer) assigned(rel *node) (name, value *node) {
	sides, rels := rel.kids, rel.rels
	switch last := len(sides) - 1; {
	case isName(sides[0]) && !contains(sides[1], symbolIn(sides[0])):
		name, sides = sides[0], sides[1:]
	case last == 1 && isName(sides[last]) && !contains(sides[0], symbolIn(sides[last])):
		name, sides = sides[last], sides[:last]
	case c.traitsOf(sides[0]).variables:
		return nil, nil
	}
	for _, r := range rels {
		if r != "=" && r != "≈" {
			return nil, nil
		}
	}
	rels = rels[len(rels)-len(sides)+1:] // between the sides that are left
	for i, side := range sides[1:] {
		if rels[i] == "≈" {
			break
		}
		if !c.equal(sides[0], side) {
			return nil, nil
		}
	}
	return name, sides[0]
}

// result returns the number at the end of m+n = 25+8 = 33, nil if there is none. An
// equation in one unknown, 2x = 33, has none: 33 is not what it asks for.
func (c *comparer) result(rel *node) *node {
	sides := rel.kids
	for i, r := range rel.rels {
		if r == "≈" {
			sides = sides[:i+1]
			break
		}
		if r != "=" {
			return nil
		}
	}
	v := sides[len(sides)-1]
	if r := c.exact(v); r != nil && r.Sign() == 0 && sides[0].op == opAdd {
		return nil // the equation of a curve
	}
	if len(sides) < 2 || !v.scalar() || c.traitsOf(v).variables || !sides[0].scalar() || !composed(sides[0], make(map[string]bool)) {
		return nil
	}
	for _, side := range sides[1 : len(sides)-1] {
		if !side.scalar() || !c.traitsOf(side).variables && !c.equal(side, v) {
			return nil
		}
	}
	return v
}

// composed reports whether an expression has several symbols, or a function of one.
func composed(n *node, symbols map[string]bool) bool {
	if n.op == opSymbol {
		symbols[n.name] = true
	}
	return n.op == opApply || len(symbols) > 1 || slices.ContainsFunc(n.kids, func(kid *node) bool { return composed(kid, symbols) }) ||
		n.op == opCall && len(symbols) > 0
}

// isName reports whether n can stand for the thing asked for: x, f(x), AB, (x, y).
func isName(n *node) bool {
	switch n.op {
	case opSymbol, opWord:
		return true
	case opMul, opSeq, opApply:
		for _, kid := range n.kids {
			if !isName(kid) {
				return false
			}
		}
		return true
	}
	return false
}

// symbolIn returns the first symbol of a name.
func symbolIn(n *node) string {
	for len(n.kids) > 0 && n.op != opApply {
		n = n.kids[0]
	}
	return n.name
}

func contains(n *node, symbol string) bool {
	if (n.op == opSymbol || n.op == opWord || n.op == opApply) && n.name == symbol {
		return true
	}
	return slices.ContainsFunc(n.kids, func(kid *node) bool { return contains(kid, symbol) })
}

// interval reads x<a, a≤x and a<x≤b as an interval of x; nil for anything else.
func (c *comparer) interval(rel *node) (interval, x *node) {
	if rel.op != opRel || len(rel.kids) > 3 {
		return nil, nil
	}
	sides, rels := slices.Clone(rel.kids), slices.Clone(rel.rels)
	for _, r := range rels {
		if r[0] != rels[0][0] || r != "<" && r != "<=" && r != ">" && r != ">=" {
			return nil, nil
		}
	}
	if rels[0][0] == '>' { // turn it round
		slices.Reverse(sides)
		slices.Reverse(rels)
		for i, r := range rels {
			rels[i] = "<" + r[1:]
		}
	}
	switch {
	case len(sides) == 3:
	case isAbs(sides[0]):
		sides = []*node{combine(opNeg, sides[1]), sides[0].kids[0], sides[1]}
		rels = []string{rels[0], rels[0]}
	case sides[0].op == opSymbol:
		sides = []*node{minusInfinity, sides[0], sides[1]}
		rels = []string{"<", rels[0]}
	default:
		sides = append(sides, infinity)
		rels = append(rels, "<")
	}
	lo, x, hi := sides[0], sides[1], sides[2]
	if x.op != opSymbol || contains(lo, x.name) || contains(hi, x.name) || !lo.scalar() || !hi.scalar() {
		return nil, nil
	}
	brackets := map[string]string{"<": "(", "<=": "["}[rels[0]] + map[string]string{"<": ")", "<=": "]"}[rels[1]]
	return &node{op: opSeq, name: brackets, kids: []*node{lo, hi}}, x
}

func isAbs(n *node) bool { return n.op == opCall && n.name == "abs" }

// isReals reports whether n is ℝ or (-∞, ∞).
func isReals(n *node) bool {
	if n.op == opSymbol {
		return n.name == "mathbb{R}"
	}
	inf := func(n *node) bool { return n.op == opConst && n.name == "inf" }
	return n.op == opSeq && n.name == "()" && len(n.kids) == 2 &&
		n.kids[0].op == opNeg && inf(n.kids[0].kids[0]) && inf(n.kids[1])
}
