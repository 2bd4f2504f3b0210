package grade

import (
	"errors"
	"math/big"
	"slices"
	"strings"
)

// op says what a node is. The kids of each are named after it.
type op int

const (
	opNumber op = iota // num
	opSymbol           // name: a variable
	opConst            // name: pi, e, i, inf
	opWord             // name: a unit or a word, a variable to evaluation
	opAdd              // a, b
	opNeg              // a
	opMul              // a, b; name "implicit" where no sign was written
	opDiv              // a, b
	opPow              // base, exponent
	opRoot             // radicand, index
	opCall             // argument and, for log, base; name: the function
	opApply            // arguments; name: a function that is not known
	opFact             // a
	opBinom            // n, k
	opSign             // a: plus or minus a; name: ± or ∓

	// Not numbers:
	opSeq    // items of a tuple or interval; name: its two brackets, ":", or ":0" for a time
	opSet    // items
	opList   // items with no bracket around them; name: and, or, ∧, ∨, "mixed", "" for commas
	opUnion  // a, b; name: ∪, ∩, ∖
	opMatrix // rows, each an opSeq; name: v for a determinant's bars
	opBuild  // x, condition: {x | condition} over the reals
	opRel    // sides; rels between them
)

type node struct {
	op   op
	name string
	num  *big.Rat
	rels []string
	kids []*node
}

func (n *node) scalar() bool { return n.op < opSeq }

func number(r *big.Rat) *node { return &node{op: opNumber, num: r} }
func integer(i int64) *node   { return number(big.NewRat(i, 1)) }

// combine makes an arithmetic node.
func combine(o op, kids ...*node) *node { return &node{op: o, kids: kids} }

var errSyntax = errors.New("not a mathematical expression that is understood")

// parser is a recursive descent over tokens. The first error sticks: the position
// moves to the end, so that every loop stops.
type parser struct {
	toks  []token
	i     int
	depth int
	bars  int // open |
	// those of f, g and h that are no functions
	variables string
	bad       bool
}

// parse builds the tree of an answer.
func parse(toks []token, variables string) (*node, error) {
	p := &parser{toks: slices.Clone(toks), variables: variables}
	n := p.list()
	if p.bad || p.i < len(p.toks) {
		return nil, errSyntax
	}
	return n, nil
}

func (p *parser) fail() *node {
	p.bad = true
	p.i = len(p.toks)
	return integer(0)
}

func (p *parser) peek() token {
	if p.i < len(p.toks) {
		return p.toks[p.i]
	}
	return token{text: "end of answer"}
}

// op returns the operator here, or "" if something else stands here.
func (p *parser) op() string { return p.opAt(p.i) }

func (p *parser) opAt(i int) string {
	if i < len(p.toks) && p.toks[i].kind == tokOp {
		return p.toks[i].text
	}
	return ""
}

func (p *parser) accept(op string) bool {
	if p.op() != op {
		return false
	}
	p.i++
	return true
}

// enter counts nesting; the caller must leave again.
func (p *parser) enter() bool {
	if p.depth++; p.depth > maxDepth {
		p.fail()
		return false
	}
	return true
}

func (p *parser) leave() { p.depth-- }

// list parses items up to something that cannot go on: the end or a closing bracket.
func (p *parser) list() *node {
	list := combine(opList, p.relation())
	for separators[p.op()] {
		for separators[p.op()] { // ", and"
			switch sep := p.op(); {
			case sep == "," || sep == ";" || sep == list.name:
			case list.name == "":
				list.name = sep
			default:
				list.name = "mixed"
			}
			p.i++
		}
		list.kids = append(list.kids, p.relation())
	}
	if len(list.kids) == 1 {
		return list.kids[0]
	}
	return list
}

var separators = setOf(", ; and or ∧ ∨")

var relations = setOf("= < <= > >= != ≈ in →")

func (p *parser) relation() *node {
	if p.op() == "=" || p.op() == "≈" {
		p.i++ // "= 5" and "≈ 5" are what was meant by 5
	}
	rel := &node{op: opRel, kids: []*node{p.ratio()}}
	for relations[p.op()] {
		rel.rels = append(rel.rels, p.op())
		p.i++
		rel.kids = append(rel.kids, p.ratio())
	}
	if len(rel.kids) == 1 {
		return rel.kids[0]
	}
	return rel
}

func (p *parser) ratio() *node {
	n := p.union()
	if p.op() != ":" {
		return n
	}
	n = &node{op: opSeq, name: ":", kids: []*node{n}}
	for p.accept(":") {
		if t := p.peek(); t.kind == tokNumber && len(t.text) == 2 && t.text[0] == '0' {
			n.name = ":0" // 3:05 is a time, and not 3:5
		}
		n.kids = append(n.kids, p.union())
	}
	return n
}

func (p *parser) union() *node {
	n := p.sum()
	for p.op() == "∪" || p.op() == "∩" || p.op() == "∖" {
		name := p.op()
		p.i++
		n = &node{op: opUnion, name: name, kids: []*node{n, p.sum()}}
	}
	return n
}

// scalar insists on a scalar operand.
func (p *parser) scalar(n *node) *node {
	if !n.scalar() {
		return p.fail()
	}
	return n
}

func (p *parser) sum() *node {
	n := p.term()
	for {
		switch o := p.op(); o {
		case "+", "-", "±", "∓":
			p.i++
			b := p.scalar(p.term())
			if o == "-" {
				b = combine(opNeg, b)
			} else if o != "+" {
				b = &node{op: opSign, name: o, kids: []*node{b}}
			}
			n = combine(opAdd, p.scalar(n), b)
		case "over":
			p.i++
			return combine(opDiv, p.scalar(n), p.scalar(p.sum()))
		case "choose":
			p.i++
			return combine(opBinom, p.scalar(n), p.scalar(p.sum()))
		default:
			return n
		}
	}
}

// term parses products. A product without a sign binds like one with it, so 1/2x is
// (1/2)x.
func (p *parser) term() *node {
	n := p.signed()
	for {
		switch {
		case p.accept("*"):
			n = p.product(n, p.signed(), "")
		case p.accept("/"):
			n = combine(opDiv, p.scalar(n), p.scalar(p.signed()))
		case p.startsOperand():
			n = p.product(n, p.mixed(), "implicit")
		default:
			return n
		}
	}
}

func (p *parser) product(a, b *node, name string) *node {
	for _, pair := range [][2]*node{{a, b}, {b, a}} {
		if m := pair[0]; m.op == opMatrix && pair[1].scalar() {
			scaled := &node{op: opMatrix, name: m.name}
			for _, row := range m.kids {
				r := &node{op: opSeq}
				for _, x := range row.kids {
					r.kids = append(r.kids, combine(opMul, pair[1], x))
				}
				scaled.kids = append(scaled.kids, r)
			}
			return scaled
		}
	}
	return &node{op: opMul, name: name, kids: []*node{p.scalar(a), p.scalar(b)}}
}

func (p *parser) signed() *node {
	if !p.enter() {
		return p.fail()
	}
	defer p.leave()
	switch o := p.op(); o {
	case "-":
		p.i++
		if n := p.signed(); n.op == opMatrix {
			return p.product(integer(-1), n, "")
		} else {
			return combine(opNeg, p.scalar(n))
		}
	case "+":
		p.i++
		return p.scalar(p.signed())
	case "±", "∓":
		p.i++
		return &node{op: opSign, name: o, kids: []*node{p.scalar(p.signed())}}
	}
	return p.mixed()
}

// startsOperand reports whether a factor may follow here without a sign. A number
// may not follow a number, a letter or a word, unless it is a power behind a letter:
// n2^n is n·2^n, and n2 a name.
func (p *parser) startsOperand() bool {
	switch t := p.peek(); t.kind {
	case tokNumber:
		last := p.toks[p.i-1]
		return last.kind == tokOp || last.kind == tokLetter && (len(last.text) > 1 || p.opAt(p.i+1) == "^")
	case tokOp:
		switch t.text {
		case "(", "[", "{", "lfloor", "lceil", "frac", "sqrt", "binom", "$", "€", "£", "inf":
			return true
		case "|":
			return p.bars == 0
		}
		return strings.HasPrefix(t.text, "begin ")
	}
	return p.i < len(p.toks)
}

// mixed parses a factor; 1\frac45 and 1 4/5 are mixed numbers if the fraction is
// proper and of plain integers.
func (p *parser) mixed() *node {
	start := p.i
	n := p.power()
	if p.bad || p.i != start+1 || n.op != opNumber || !n.num.IsInt() {
		return n
	}
	switch {
	case p.op() == "frac":
		f := p.primary()
		if f.op == opDiv && proper(f.kids[0], f.kids[1]) {
			return p.postfix(mixedNumber(n, f.kids[0], f.kids[1]))
		}
		return p.product(n, p.postfix(f), "implicit")
	case p.peek().kind == tokNumber && p.peek().space && p.opAt(p.i+1) == "/" &&
		p.i+2 < len(p.toks) && p.toks[p.i+2].kind == tokNumber:
		a, b := p.literal(p.toks[p.i].text), p.literal(p.toks[p.i+2].text)
		if !proper(a, b) {
			return p.fail()
		}
		p.i += 3
		return p.postfix(mixedNumber(n, a, b))
	}
	return n
}

func mixedNumber(n, a, b *node) *node {
	r := new(big.Rat).Quo(a.num, b.num)
	return number(r.Add(r, n.num))
}

func proper(a, b *node) bool {
	return a.op == opNumber && b.op == opNumber && a.num.IsInt() && b.num.IsInt() &&
		a.num.Sign() > 0 && a.num.Cmp(b.num) < 0
}

// power parses a primary with its postfixes and exponents.
func (p *parser) power() *node { return p.postfix(p.primary()) }

func (p *parser) postfix(n *node) *node {
	for {
		switch {
		case p.op() == "!":
			n = p.factorial(n)
		case p.op() == "%" || p.op() == "$" || p.op() == "€" || p.op() == "£":
			n = p.measure(n, p.op())
			p.i++
		case p.op() == "deg":
			p.i++
			n = p.degree(n)
		case p.op() == "'":
			n = p.measure(n, strings.Repeat("'", p.primes()))
		case p.op() == "^" && p.superscript("deg") > 0:
			p.i += p.superscript("deg")
			n = p.degree(n)
		case p.op() == "^" && p.superscript("'") > 0:
			n = p.measure(n, strings.Repeat("'", p.primes()))
		case p.accept("^"):
			return combine(opPow, p.scalar(n), p.scalar(p.exponent()))
		default:
			return n
		}
	}
}

// factorial parses ! and !!, the double factorial.
func (p *parser) factorial(n *node) *node {
	p.i++
	if p.accept("!") {
		return &node{op: opCall, name: "!!", kids: []*node{p.scalar(n)}}
	}
	return combine(opFact, p.scalar(n))
}

func (p *parser) measure(n *node, unit string) *node {
	return p.product(n, &node{op: opWord, name: unit}, "")
}

// degree parses what follows a degree sign: nothing, or a temperature scale.
func (p *parser) degree(n *node) *node {
	if t := p.peek(); t.kind != tokOp && (t.text == "C" || t.text == "F") {
		p.i++
		return p.measure(n, "°"+t.text)
	}
	return p.measure(n, "°")
}

// superscript returns the length of ^sign, ^{sign}, ^{sign sign}, or 0.
func (p *parser) superscript(sign string) int {
	if p.opAt(p.i) != "^" {
		return 0
	}
	if p.opAt(p.i+1) == sign {
		return 2
	}
	j := p.i + 2
	for p.opAt(p.i+1) == "{" && p.opAt(j) == sign {
		j++
	}
	if j > p.i+2 && p.opAt(j) == "}" {
		return j + 1 - p.i
	}
	return 0
}

// primes skips ' or ^{\prime} and returns how many there were.
func (p *parser) primes() int {
	end := p.i + max(p.superscript("'"), 1)
	n := 0
	for ; p.i < end || p.op() == "'"; p.i++ {
		if p.op() == "'" {
			n++
		}
	}
	return n
}

func (p *parser) exponent() *node {
	switch p.op() {
	case "-":
		p.i++
		return combine(opNeg, p.scalar(p.exponentBase()))
	case "+":
		p.i++
	}
	return p.exponentBase()
}

// exponentBase lets 2^3^2 associate to the right.
func (p *parser) exponentBase() *node {
	n := p.primary()
	if p.op() == "!" {
		n = p.factorial(n)
	}
	if p.op() == "^" && p.enter() {
		defer p.leave()
		p.i++
		return combine(opPow, p.scalar(n), p.scalar(p.exponent()))
	}
	return n
}
