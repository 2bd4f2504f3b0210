package jinja

import (
	"slices"
	"strconv"
)

// Expressions, by rising precedence.

func (p *parser) tuple() expr {
	first := p.expression()
	if !p.is(tokOp, ",") {
		return first
	}
	items := []expr{first}
	for p.op(",") {
		if t := p.peek(); t.kind == tokEnd || t.kind == tokClose || t.kind == tokOp {
			if t.kind != tokOp || t.text == ")" || t.text == "=" {
				break
			}
		}
		items = append(items, p.expression())
	}
	return list(items)
}

func list(items []expr) expr {
	return node(func(m *machine) Value {
		l := &List{make([]Value, len(items))}
		for i, e := range items {
			l.Items[i] = e(m)
		}
		return l
	})
}

func (p *parser) expression() expr {
	p.deeper()
	defer func() { p.nest-- }()
	e := p.or()
	for p.word("if") {
		cond, yes := p.or(), e
		var no expr
		if p.word("else") {
			no = p.expression()
		}
		e = node(func(m *machine) Value {
			switch {
			case truth(cond(m)):
				return yes(m)
			case no != nil:
				return no(m)
			}
			return undefined{"of an if without else"}
		})
	}
	return e
}

func (p *parser) or() expr {
	l := p.and()
	for p.word("or") {
		a, b := l, p.and()
		l = node(func(m *machine) Value {
			if v := a(m); truth(v) {
				return v
			}
			return b(m)
		})
	}
	return l
}

func (p *parser) and() expr {
	l := p.not()
	for p.word("and") {
		a, b := l, p.not()
		l = node(func(m *machine) Value {
			if v := a(m); !truth(v) {
				return v
			}
			return b(m)
		})
	}
	return l
}

func (p *parser) not() expr {
	if !p.word("not") {
		return p.comparison()
	}
	p.deeper()
	defer func() { p.nest-- }()
	e := p.not()
	return node(func(m *machine) Value { return !truth(e(m)) })
}

func (p *parser) comparison() expr {
	type link struct {
		op string
		e  expr
	}
	first := p.sum()
	var links []link
	for {
		t := p.peek()
		op := ""
		switch {
		case t.kind == tokOp && slices.Contains([]string{"==", "!=", "<", "<=", ">", ">="}, t.text), p.is(tokName, "in"):
			op = p.next().text
		case p.is(tokName, "not") && p.toks[p.at+1].kind == tokName && p.toks[p.at+1].text == "in":
			p.at += 2
			op = "not in"
		}
		if op == "" {
			break
		}
		links = append(links, link{op, p.sum()})
	}
	if links == nil {
		return first
	}
	return node(func(m *machine) Value {
		a := first(m)
		for _, l := range links {
			b := l.e(m)
			if !m.test(l.op, a, b) {
				return false
			}
			a = b
		}
		return true
	})
}

// binary parses a left-associative level of operators.
func (p *parser) binary(operand func() expr, ops ...string) expr {
	l := operand()
	for {
		t := p.peek()
		if t.kind != tokOp || !slices.Contains(ops, t.text) {
			return l
		}
		p.at++
		a, b := l, operand()
		l = node(func(m *machine) Value {
			x := a(m)
			return m.binary(t.text, x, b(m))
		})
	}
}

func (p *parser) sum() expr     { return p.binary(p.concat, "+", "-") }
func (p *parser) concat() expr  { return p.binary(p.product, "~") }
func (p *parser) product() expr { return p.binary(p.power, "*", "/", "//", "%") }
func (p *parser) power() expr   { return p.binary(func() expr { return p.unary(true) }, "**") }

func (p *parser) unary(filters bool) expr {
	p.deeper()
	defer func() { p.nest-- }()
	var e expr
	switch {
	case p.op("-"):
		x := p.unary(false)
		e = node(func(m *machine) Value { return m.binary("-", int64(0), x(m)) })
	case p.op("+"):
		e = p.unary(false)
	default:
		e = p.postfix(p.primary(), true)
	}
	if filters {
		e = p.filtersAndTests(e)
	}
	return e
}

func (p *parser) primary() expr {
	p.deeper()
	defer func() { p.nest-- }()
	t := p.next()
	switch t.kind {
	case tokName:
		switch t.text {
		case "true", "True":
			return func(*machine) Value { return true }
		case "false", "False":
			return func(*machine) Value { return false }
		case "none", "None":
			return func(*machine) Value { return nil }
		}
		return func(m *machine) Value { m.spend(1); return m.get(t.text) }
	case tokString:
		s := lit(t.text)
		for p.peek().kind == tokString { // adjacent strings are one
			s.String += p.next().text
		}
		return func(*machine) Value { return s }
	case tokInt:
		i, err := strconv.ParseInt(t.text, 10, 64)
		if err != nil {
			p.failf("the number %s is too large", t.text)
		}
		return func(*machine) Value { return i }
	case tokFloat:
		f, _ := strconv.ParseFloat(t.text, 64)
		return func(*machine) Value { return f }
	case tokOp:
		switch t.text {
		case "(":
			if p.op(")") {
				return list(nil)
			}
			e := p.tuple()
			p.expect(tokOp, ")")
			return e
		case "[":
			var items []expr
			for !p.op("]") {
				items = append(items, p.expression())
				if !p.is(tokOp, "]") {
					p.expect(tokOp, ",")
				}
			}
			return list(items)
		case "{":
			return p.dict()
		}
	}
	p.at--
	p.failf("unexpected %q", t.text)
	return nil
}

func (p *parser) dict() expr {
	var keys, vals []expr
	for !p.op("}") {
		keys = append(keys, p.expression())
		p.expect(tokOp, ":")
		vals = append(vals, p.expression())
		if !p.is(tokOp, "}") {
			p.expect(tokOp, ",")
		}
	}
	return node(func(m *machine) Value {
		d := NewDict()
		for i, k := range keys {
			key := m.key(k(m))
			d.set(key, vals[i](m))
		}
		return d
	})
}

// postfix parses attributes, subscripts and, unless the caller wants them itself, the last call's arguments.
func (p *parser) postfix(e expr, calls bool) expr {
	for {
		obj := e
		switch {
		case p.op("."):
			if t := p.peek(); t.kind == tokInt {
				p.at++
				i, _ := strconv.ParseInt(t.text, 10, 64)
				e = node(func(m *machine) Value { return m.item(obj(m), i) })
				continue
			}
			name := p.name()
			e = node(func(m *machine) Value { return m.attr(obj(m), name) })
		case p.op("["):
			e = p.subscript(obj)
		case calls && p.is(tokOp, "("):
			a := p.args()
			e = node(func(m *machine) Value {
				f := obj(m)
				return m.call(f, a(m))
			})
		default:
			return e
		}
	}
}

func (p *parser) subscript(obj expr) expr {
	var bounds [3]expr // start, stop, step
	n := 0
	slice := false
	for !p.op("]") {
		if p.op(":") {
			slice = true
			if n++; n > 2 {
				p.failf("a slice has at most three parts")
			}
			continue
		}
		if bounds[n] != nil {
			p.failf("expected %q, found %q", "]", p.peek().text)
		}
		bounds[n] = p.expression()
	}
	if !slice {
		key := bounds[0]
		if key == nil {
			p.failf("a subscript is empty")
		}
		return node(func(m *machine) Value {
			o := obj(m)
			return m.item(o, key(m))
		})
	}
	return node(func(m *machine) Value {
		o := obj(m)
		var b [3]Value
		for i, e := range bounds {
			if e != nil {
				b[i] = e(m)
			}
		}
		return m.slice(o, b[0], b[1], b[2])
	})
}

type kwarg struct {
	name string
	val  Value
}

type args struct {
	pos []Value
	kw  []kwarg
}

// get returns the argument at a position or of a name.
func (a args) get(i int, name string) (Value, bool) {
	if i >= 0 && i < len(a.pos) {
		return a.pos[i], true
	}
	for _, k := range a.kw {
		if k.name == name {
			return k.val, true
		}
	}
	return nil, false
}

func (p *parser) args() func(m *machine) args {
	type arg struct {
		name string
		val  expr
	}
	var list []arg
	p.expect(tokOp, "(")
	for !p.op(")") {
		var a arg
		if p.peek().kind == tokName && p.toks[p.at+1].kind == tokOp && p.toks[p.at+1].text == "=" {
			a.name = p.name()
			p.at++
		}
		a.val = p.expression()
		list = append(list, a)
		if !p.is(tokOp, ")") {
			p.expect(tokOp, ",")
		}
	}
	return func(m *machine) args {
		var out args
		for _, a := range list {
			if v := a.val(m); a.name == "" {
				out.pos = append(out.pos, v)
			} else {
				out.kw = append(out.kw, kwarg{a.name, v})
			}
		}
		return out
	}
}

func noArgs(*machine) args { return args{} }

// filter parses one filter behind its "|".
func (p *parser) filter() func(m *machine, v Value) Value {
	name := p.name()
	f := filters[name]
	if f == nil {
		p.failf("there is no filter %s", name)
	}
	a := noArgs
	if p.is(tokOp, "(") {
		a = p.args()
	}
	return func(m *machine, v Value) Value { m.spend(1); return f(m, v, a(m)) }
}

func (p *parser) filtersAndTests(e expr) expr {
	for {
		in := e
		switch {
		case p.op("|"):
			f := p.filter()
			e = node(func(m *machine) Value { return f(m, in(m)) })
		case p.word("is"):
			e = p.isTest(in)
		default:
			return e
		}
	}
}

func (p *parser) isTest(in expr) expr {
	negate := p.word("not")
	name := p.name()
	test := tests[name]
	if test == nil {
		p.failf("there is no test %s", name)
	}
	a := noArgs
	t := p.peek()
	switch {
	case p.is(tokOp, "("):
		a = p.args()
	case t.kind == tokString || t.kind == tokInt || t.kind == tokFloat || t.kind == tokOp && (t.text == "[" || t.text == "{") ||
		t.kind == tokName && !slices.Contains([]string{"else", "or", "and", "is", "if", "in", "not", "recursive"}, t.text):
		e := p.postfix(p.primary(), true)
		a = func(m *machine) args { return args{pos: []Value{e(m)}} }
	}
	return node(func(m *machine) Value {
		v := in(m)
		return test(m, v, a(m)) != negate
	})
}
