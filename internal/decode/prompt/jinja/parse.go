package jinja

import (
	"fmt"
	"slices"
)

// A template is compiled to closures: an expression yields a value, a statement writes to the machine's output.
type (
	expr func(m *machine) Value
	stmt func(m *machine) flow
)

// flow is how a statement ended.
type flow int

const (
	flowNext flow = iota
	flowBreak
	flowContinue
)

type parser struct {
	toks []token
	at   int
	nest int
}

func (p *parser) failf(format string, a ...any) {
	panic(failure{&Error{p.peek().line, fmt.Sprintf(format, a...)}})
}

func (p *parser) peek() token { return p.toks[p.at] }

func (p *parser) next() token {
	t := p.toks[p.at]
	if t.kind != tokEOF {
		p.at++
	}
	return t
}

// is tells whether the next token is this operator or name.
func (p *parser) is(kind tokKind, text string) bool {
	t := p.peek()
	return t.kind == kind && t.text == text
}

func (p *parser) accept(kind tokKind, text string) bool {
	if p.is(kind, text) {
		p.at++
		return true
	}
	return false
}

func (p *parser) op(text string) bool   { return p.accept(tokOp, text) }
func (p *parser) word(text string) bool { return p.accept(tokName, text) }

func (p *parser) expect(kind tokKind, text string) {
	if !p.accept(kind, text) {
		p.failf("expected %q, found %q", text, p.peek().text)
	}
}

func (p *parser) name() string {
	t := p.peek()
	if t.kind != tokName {
		p.failf("expected a name, found %q", t.text)
	}
	p.at++
	return t.text
}

// deeper guards the parser's own recursion; the caller undoes it with p.nest--.
func (p *parser) deeper() {
	if p.nest++; p.nest > maxNest {
		p.failf("blocks or expressions are nested more than %d deep", maxNest)
	}
}

// node makes an expression that costs a step and counts as a level of evaluation.
func node(e expr) expr {
	return func(m *machine) Value {
		m.spend(1)
		m.enter()
		v := e(m)
		m.leave()
		return v
	}
}

// body parses statements up to a block tag that is not the start of one, and leaves the parser behind its "{%".
func (p *parser) body() []stmt {
	p.deeper()
	defer func() { p.nest-- }()
	var out []stmt
	for {
		t := p.next()
		switch t.kind {
		case tokData:
			text := lit(t.text)
			out = append(out, func(m *machine) flow { m.write(text); return flowNext })
		case tokOpen:
			e := p.tuple()
			p.expect(tokClose, "}}")
			out = append(out, func(m *machine) flow {
				m.line = t.line
				m.write(m.print(e(m)))
				return flowNext
			})
		case tokBegin:
			parse := statements[p.peek().text]
			if p.peek().kind != tokName || parse == nil {
				return out
			}
			p.at++
			s := parse(p)
			out = append(out, func(m *machine) flow { m.line = t.line; m.spend(1); return s(m) })
		default:
			return out // the end
		}
	}
}

// block parses the end of a tag, the statements behind it and the tag that ends them.
func (p *parser) block(end string) []stmt {
	p.expect(tokEnd, "%}")
	b := p.body()
	p.expect(tokName, end)
	p.expect(tokEnd, "%}")
	return b
}

var statements map[string]func(p *parser) stmt

func init() {
	statements = map[string]func(p *parser) stmt{
		"if": (*parser).ifStmt, "for": (*parser).forStmt, "set": (*parser).setStmt, "macro": (*parser).macroStmt,
		"call": (*parser).callStmt, "filter": (*parser).filterStmt, "with": (*parser).withStmt,
		"generation": func(p *parser) stmt { // marks what the assistant wrote, for training
			b := p.block("endgeneration")
			return func(m *machine) flow { return m.run(b) }
		},
		"break": func(p *parser) stmt {
			p.expect(tokEnd, "%}")
			return func(*machine) flow { return flowBreak }
		},
		"continue": func(p *parser) stmt {
			p.expect(tokEnd, "%}")
			return func(*machine) flow { return flowContinue }
		},
	}
}

func (p *parser) ifStmt() stmt {
	type branch struct {
		cond expr
		body []stmt
	}
	var branches []branch
	cond := p.tuple()
	for {
		p.expect(tokEnd, "%}")
		branches = append(branches, branch{cond, p.body()})
		switch {
		case p.word("elif"):
			cond = p.tuple()
			continue
		case p.word("else"):
			branches = append(branches, branch{nil, p.block("endif")})
		default:
			p.expect(tokName, "endif")
			p.expect(tokEnd, "%}")
		}
		return func(m *machine) flow {
			for _, b := range branches {
				if b.cond == nil || truth(b.cond(m)) {
					return m.run(b.body)
				}
			}
			return flowNext
		}
	}
}

// target parses the names that a loop or an assignment sets.
func (p *parser) target() func(m *machine, v Value) {
	paren := p.op("(")
	names := []string{p.name()}
	tuple := false
	for p.op(",") {
		tuple = true
		if p.peek().kind == tokName && !p.is(tokName, "in") {
			names = append(names, p.name())
		}
	}
	if paren {
		p.expect(tokOp, ")")
	}
	if !tuple {
		return func(m *machine, v Value) { m.set(names[0], v) }
	}
	return func(m *machine, v Value) {
		items := m.items(v)
		if len(items) != len(names) {
			m.failf("cannot unpack %d values into %d names", len(items), len(names))
		}
		for i, n := range names {
			m.set(n, items[i])
		}
	}
}

func (p *parser) forStmt() stmt {
	assign := p.target()
	p.expect(tokName, "in")
	iter := p.or()
	var filter expr
	if p.word("if") {
		filter = p.expression()
	}
	if p.is(tokName, "recursive") {
		p.failf("recursive loops are not supported")
	}
	p.expect(tokEnd, "%}")
	body := p.body()
	var alt []stmt
	if p.word("else") {
		alt = p.block("endfor")
	} else {
		p.expect(tokName, "endfor")
		p.expect(tokEnd, "%}")
	}
	return func(m *machine) flow {
		items := m.items(iter(m))
		outer := m.scope
		defer func() { m.scope = outer }()
		if filter != nil {
			var kept []Value
			for _, it := range items {
				m.spend(1)
				m.scope = &scope{parent: outer}
				assign(m, it)
				if truth(filter(m)) {
					kept = append(kept, it)
				}
			}
			items = kept
		}
		if len(items) == 0 {
			m.scope = outer
			return m.run(alt)
		}
		loop := &loopVar{items: items}
		for i := range items {
			m.spend(1)
			loop.index = i
			m.scope = &scope{parent: outer}
			assign(m, items[i])
			m.set("loop", loop)
			if m.run(body) == flowBreak {
				break
			}
		}
		return flowNext
	}
}

func (p *parser) setStmt() stmt {
	if p.toks[p.at+1].kind == tokOp && p.toks[p.at+1].text == "." {
		obj := p.name()
		p.at++
		attr := p.name()
		p.expect(tokOp, "=")
		e := p.tuple()
		p.expect(tokEnd, "%}")
		return func(m *machine) flow {
			ns, ok := m.get(obj).(namespace)
			if !ok {
				m.failf("cannot set %s.%s: %s is not a namespace", obj, attr, obj)
			}
			ns[attr] = e(m)
			return flowNext
		}
	}
	assign := p.target()
	if p.op("=") {
		e := p.tuple()
		p.expect(tokEnd, "%}")
		return func(m *machine) flow { assign(m, e(m)); return flowNext }
	}
	filters := p.filterChain()
	body := p.block("endset")
	return func(m *machine) flow {
		assign(m, filters(m, m.capture(body)))
		return flowNext
	}
}

// filterChain parses "| name(args) | …", possibly nothing.
func (p *parser) filterChain() func(m *machine, v Value) Value {
	var chain []func(m *machine, v Value) Value
	for p.op("|") {
		chain = append(chain, p.filter())
	}
	return func(m *machine, v Value) Value {
		for _, f := range chain {
			v = f(m, v)
		}
		return v
	}
}

func (p *parser) filterStmt() stmt {
	first, rest := p.filter(), p.filterChain()
	body := p.block("endfilter")
	return func(m *machine) flow {
		m.write(m.print(rest(m, first(m, m.capture(body)))))
		return flowNext
	}
}

func (p *parser) withStmt() stmt {
	type binding struct {
		name string
		val  expr
	}
	var binds []binding
	for !p.is(tokEnd, "%}") {
		name := p.name()
		p.expect(tokOp, "=")
		binds = append(binds, binding{name, p.expression()})
		if !p.op(",") {
			break
		}
	}
	body := p.block("endwith")
	return func(m *machine) flow {
		outer := m.scope
		inner := &scope{parent: outer}
		for _, b := range binds {
			v := b.val(m)
			m.scope = inner
			m.set(b.name, v)
			m.scope = outer
		}
		m.scope = inner
		f := m.run(body)
		m.scope = outer
		return f
	}
}

type param struct {
	name string
	def  expr
}

func (p *parser) params() []param {
	var out []param
	p.expect(tokOp, "(")
	for !p.op(")") {
		pa := param{name: p.name()}
		if p.op("=") {
			pa.def = p.expression()
		}
		out = append(out, pa)
		if !p.is(tokOp, ")") {
			p.expect(tokOp, ",")
		}
	}
	return out
}

// callable makes a function of a body: what it writes is what it returns.
func (m *machine) callable(name string, params []param, body []stmt) function {
	closure := m.scope
	return func(m *machine, a args) Value {
		outer := m.scope
		m.scope = &scope{parent: closure}
		if len(a.pos) > len(params) {
			m.failf("%s takes at most %d arguments", name, len(params))
		}
		for _, k := range a.kw {
			if k.name != "caller" && !slices.ContainsFunc(params, func(p param) bool { return p.name == k.name }) {
				m.failf("%s has no argument %s", name, k.name)
			}
		}
		for i, pa := range params {
			v, ok := a.get(i, pa.name)
			if !ok {
				v = undefined{pa.name}
				if pa.def != nil {
					v = pa.def(m)
				}
			}
			m.set(pa.name, v)
		}
		if caller, ok := a.get(-1, "caller"); ok {
			m.set("caller", caller)
		}
		out := m.capture(body)
		m.scope = outer
		return out
	}
}

func (p *parser) macroStmt() stmt {
	name, params := p.name(), p.params()
	body := p.block("endmacro")
	return func(m *machine) flow { m.set(name, m.callable(name, params, body)); return flowNext }
}

func (p *parser) callStmt() stmt {
	var params []param
	if p.is(tokOp, "(") {
		params = p.params()
	}
	fn := p.postfix(p.primary(), false)
	args := p.args()
	body := p.block("endcall")
	return func(m *machine) flow {
		f, a := fn(m), args(m)
		a.kw = append(a.kw, kwarg{"caller", m.callable("caller", params, body)})
		m.write(m.print(m.call(f, a)))
		return flowNext
	}
}
