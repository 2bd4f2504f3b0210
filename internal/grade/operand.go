package grade

import (
	"math/big"
	"slices"
	"strconv"
	"strings"
)

// primary parses one operand.
func (p *parser) primary() *node {
	if !p.enter() {
		return p.fail()
	}
	defer p.leave()
	t := p.peek()
	if p.i >= len(p.toks) {
		return p.fail()
	}
	p.i++
	switch t.kind {
	case tokNumber:
		if p.op() == "_" { // a number in another base
			return p.based(t.text)
		}
		return p.literal(t.text)
	case tokLetter:
		return p.symbol(t.text)
	case tokFunc:
		return p.call(t.text)
	case tokWord:
		if _, isUnit := unitTable[t.text]; !isUnit && p.op() == "(" && !p.peek().space {
			return p.apply(t.text)
		}
		return &node{op: opWord, name: t.text}
	}
	switch t.text {
	case "(", "[":
		n := p.bracketed(t.text)
		if p.op() == "_" && n.op == opNumber && n.num.IsInt() {
			return p.based(n.num.RatString())
		}
		return n
	case "{":
		return p.closing("}", opSet)
	case "set{":
		if p.accept("set}") {
			return combine(opSet)
		}
		if n := p.builder(); n != nil {
			return n
		}
		n := p.closing("set}", opSet)
		if n.op != opSet {
			n = combine(opSet, n)
		}
		return n
	case "empty":
		return combine(opSet)
	case "|":
		p.bars++
		n := p.scalar(p.sum())
		p.bars--
		if !p.accept("|") {
			return p.fail()
		}
		return &node{op: opCall, name: "abs", kids: []*node{n}}
	case "lfloor", "lceil":
		bars := p.bars
		p.bars = 0
		n := p.scalar(p.sum())
		p.bars = bars
		if !p.accept("r" + t.text[1:]) {
			return p.fail()
		}
		return &node{op: opCall, name: t.text[1:], kids: []*node{n}}
	case "frac":
		a := p.argument()
		return combine(opDiv, a, p.argument())
	case "binom":
		a := p.argument()
		return combine(opBinom, a, p.argument())
	case "sqrt":
		index := integer(2)
		if p.accept("[") {
			if index = p.scalar(p.sum()); !p.accept("]") {
				return p.fail()
			}
		}
		return combine(opRoot, p.argument(), index)
	case "inf":
		return &node{op: opConst, name: "inf"}
	case "$", "€", "£":
		return p.measure(p.power(), t.text)
	}
	if strings.HasPrefix(t.text, "begin ") {
		return p.matrix(strings.TrimPrefix(t.text, "begin "))
	}
	return p.fail()
}

// literal reads a number token exactly.
func (p *parser) literal(text string) *node {
	mantissa, exp, scientific := strings.Cut(strings.ToLower(text), "e")
	mantissa, period, recurring := strings.Cut(strings.TrimSuffix(mantissa, ")"), "(")
	if strings.HasPrefix(mantissa, ".") {
		mantissa = "0" + mantissa
	}
	r, ok := new(big.Rat).SetString(mantissa)
	if !ok {
		return p.fail()
	}
	if recurring { // 0.1(6) = 0.1 + 0.6/(9·10)
		_, fraction, _ := strings.Cut(mantissa, ".")
		whole, ok := new(big.Int).SetString(period, 10)
		if !ok {
			return p.fail()
		}
		scale := new(big.Int).Sub(pow10(len(period)), big.NewInt(1))
		r.Add(r, new(big.Rat).SetFrac(whole, scale.Mul(scale, pow10(len(fraction)))))
	}
	if scientific {
		e, err := strconv.Atoi(exp)
		if err != nil || e > maxBits/4 || e < -maxBits/4 {
			return p.fail()
		}
		if e < 0 {
			r.Quo(r, new(big.Rat).SetInt(pow10(-e)))
		} else {
			r.Mul(r, new(big.Rat).SetInt(pow10(e)))
		}
	}
	return number(r)
}

func pow10(n int) *big.Int { return new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(n)), nil) }

// based parses the base behind the digits of a number: 5, (5) or five.
func (p *parser) based(digits string) *node {
	base := strings.Trim(p.subscript(), "_()")
	base = strings.TrimPrefix(base, "base")
	if i := slices.Index(baseNames, strings.ToLower(base)); i >= 0 {
		base = strconv.Itoa(i + 2)
	}
	return &node{op: opSymbol, name: digits + "_" + base}
}

var baseNames = strings.Fields("two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen")

// builder parses what follows the brace of {x | x > 2}; it returns nil and moves
// nowhere if something else follows.
func (p *parser) builder() *node {
	j := p.i + 1
	if p.opAt(j) == "in" && j+1 < len(p.toks) && p.toks[j+1].text == "mathbb{R}" {
		j += 2
	}
	if p.peek().kind != tokLetter || p.opAt(j) != "|" && p.opAt(j) != ":" {
		return nil
	}
	x := &node{op: opSymbol, name: p.peek().text}
	p.i = j + 1
	bars := p.bars
	p.bars = 0
	condition := p.list()
	p.bars = bars
	if !p.accept("set}") {
		return p.fail()
	}
	return combine(opBuild, x, condition)
}

// apply parses the arguments of a function that is not known.
func (p *parser) apply(name string) *node {
	arg := p.primary()
	n := &node{op: opApply, name: name, kids: []*node{arg}}
	if !arg.scalar() {
		n.kids = arg.kids
	}
	for _, kid := range n.kids {
		p.scalar(kid)
	}
	return n
}

// symbol parses a variable with its subscripts and primes, or a constant. A name
// called on a literal, I(0), is one symbol, and f, g and h before a bracket are
// functions; another name called on anything else cannot be told from a product, and
// as a product it is read.
func (p *parser) symbol(name string) *node {
	switch name {
	case "pi", "e", "i":
		named := p.op() == "(" && p.opAt(p.i+2) == ")" && p.opAt(p.i+3) == "=" && p.toks[p.i+1].kind == tokNumber
		if p.op() != "_" && !named {
			return &node{op: opConst, name: name}
		}
	}
	for {
		switch {
		case p.op() == "_":
			name += p.subscript()
		case p.op() == "'" || p.superscript("'") > 0:
			name += strings.Repeat("'", p.primes())
		case p.op() == "(" && p.opAt(p.i+2) == ")" && p.toks[p.i+1].kind == tokNumber:
			name += "(" + p.toks[p.i+1].text + ")"
			p.i += 3
		case p.op() == "(" && strings.Contains("fgh", name[:1]) && (len(name) == 1 || !isLetter(name[1])) && !strings.Contains(p.variables, name):
			return p.apply(name)
		default:
			return &node{op: opSymbol, name: name}
		}
	}
}

// subscript returns _ and the text of the subscript.
func (p *parser) subscript() string {
	p.i++
	text := "_"
	for depth := 0; p.i < len(p.toks); {
		t := p.toks[p.i]
		p.i++
		if t.kind == tokOp && t.text == "{" {
			depth++
		} else if t.kind == tokOp && t.text == "}" {
			depth--
		} else {
			text += t.text
		}
		if depth <= 0 {
			return text
		}
	}
	p.fail()
	return text
}

// argument parses the argument of \frac, \sqrt or \binom: a group, or one digit or
// symbol.
func (p *parser) argument() *node {
	t := p.peek()
	if t.kind == tokNumber && len(t.text) > 1 {
		p.split()
	}
	if t.kind == tokOp && t.text == "-" { // \frac-12
		p.i++
		return combine(opNeg, p.scalar(p.argument()))
	}
	return p.scalar(p.primary())
}

// split cuts the number token here after its first digit.
func (p *parser) split() {
	t := p.toks[p.i]
	p.toks[p.i] = token{tokNumber, t.text[:1], t.space}
	p.toks = slices.Insert(p.toks, p.i+1, token{tokNumber, t.text[1:], false})
}

// call parses the argument of a function: a bracket, or a product up to the next
// sign, bracket or function, as in \sin 2x \cos x.
func (p *parser) call(name string) *node {
	if !funcs[name] {
		if !p.startsOperand() && p.op() != "set{" {
			return &node{op: opSymbol, name: name}
		}
		return p.apply(name)
	}
	n := &node{op: opCall, name: name}
	var exponent *node
	if name == "log" && p.accept("_") {
		n.kids = []*node{nil, p.argument()}
	}
	if p.op() == "^" {
		p.i++
		exponent = p.scalar(p.exponent())
	}
	if name == "log" && n.kids == nil && p.accept("_") {
		n.kids = []*node{nil, p.argument()}
	}
	var arg *node
	switch {
	case p.op() == "(" || p.op() == "{":
		arg = p.primary()
	case p.op() == "-":
		arg = p.signed()
	case name == "sqrt" || name == "cbrt":
		arg = p.power()
	default:
		arg = p.power()
		for p.startsOperand() && p.op() != "(" && p.peek().kind != tokFunc && p.peek().kind != tokWord {
			arg = p.product(arg, p.power(), "implicit")
		}
	}
	if name == "binom" && arg.op == opSeq && len(arg.kids) == 2 {
		return combine(opBinom, arg.kids...)
	}
	if name == "log" && arg.op == opSeq && arg.name == "()" && len(arg.kids) == 2 && n.kids == nil { // log(x, base)
		n.kids = []*node{nil, p.scalar(arg.kids[1])}
		arg = arg.kids[0]
	}
	arg = p.scalar(arg)
	switch name {
	case "sqrt":
		n = combine(opRoot, arg, integer(2))
	case "cbrt":
		n = combine(opRoot, arg, integer(3))
	default:
		if n.kids == nil {
			n.kids = make([]*node, 1)
		}
		n.kids[0] = arg
	}
	if exponent == nil {
		return n
	}
	inverse := exponent.op == opNeg && exponent.kids[0].op == opNumber && exponent.kids[0].num.Cmp(big.NewRat(1, 1)) == 0
	if inverse && funcs["arc"+name] { // \sin^{-1}, \sinh^{-1}
		n.name = "arc" + name
		return n
	}
	return combine(opPow, n, exponent)
}

// closing parses a list up to the closing token; several items make an o node.
func (p *parser) closing(closer string, o op) *node {
	bars := p.bars
	p.bars = 0
	n := p.list()
	p.bars = bars
	if !p.accept(closer) {
		return p.fail()
	}
	if n.op == opList {
		n = combine(o, n.kids...)
	}
	return n
}

// bracketed parses a parenthesis, a tuple or an interval.
func (p *parser) bracketed(opener string) *node {
	bars := p.bars
	p.bars = 0
	n := p.list()
	p.bars = bars
	closer := p.op()
	if closer != ")" && closer != "]" {
		return p.fail()
	}
	p.i++
	if n.op == opList {
		n = combine(opSeq, n.kids...)
		n.name = opener + closer
		if opener+closer == "(]" || opener+closer == "[)" {
			if len(n.kids) != 2 {
				return p.fail()
			}
		}
		return n
	}
	if opener == "(" && closer != ")" || opener == "[" && closer != "]" {
		return p.fail()
	}
	return n
}

func (p *parser) matrix(env string) *node {
	m := &node{op: opMatrix}
	switch strings.TrimSuffix(env, "*") {
	case "pmatrix", "bmatrix", "Bmatrix", "matrix", "smallmatrix", "array":
	case "vmatrix", "Vmatrix":
		m.name = "v"
	default:
		return p.fail()
	}
	row := &node{op: opSeq}
	for {
		row.kids = append(row.kids, p.scalar(p.relation()))
		if p.accept("&") {
			continue
		}
		m.kids = append(m.kids, row)
		if p.accept(`\\`) {
			row = &node{op: opSeq}
			if p.op() != "end "+env {
				continue
			}
		}
		if !p.accept("end " + env) {
			return p.fail()
		}
		return m
	}
}
