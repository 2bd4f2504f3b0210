package jinja

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// machine is one rendering.
type machine struct {
	out   builder
	scope *scope
	now   time.Time
	line  int // of the tag being rendered, for errors
	steps int // spent
	depth int
}

// scope is a level of variables. Blocks do not make one; loops, macros and with do.
type scope struct {
	vars   map[string]Value
	parent *scope
}

func (m *machine) failf(format string, a ...any) {
	panic(failure{&Error{m.line, fmt.Sprintf(format, a...)}})
}

// spend pays for work: a step an expression, an item or an iteration.
func (m *machine) spend(n int) {
	if m.steps += n; m.steps > maxSteps || n < 0 {
		m.failf("the template takes too many steps: more than %d", maxSteps)
	}
}

// spendBytes pays for making or searching n bytes of text, before it is done.
func (m *machine) spendBytes(n int) { m.spend(n / stepBytes) }

func (m *machine) enter() {
	if m.depth++; m.depth > maxDepth {
		m.failf("the template nests more than %d deep: does a macro call itself for ever?", maxDepth)
	}
}

func (m *machine) leave() { m.depth-- }

func (m *machine) get(name string) Value {
	levels := 0
	for s := m.scope; s != nil; s = s.parent {
		if v, ok := s.vars[name]; ok {
			return v
		}
		levels++
	}
	m.spend(levels / 8)
	if f, ok := globals[name]; ok {
		return f
	}
	return undefined{name}
}

func (m *machine) set(name string, v Value) {
	if m.scope.vars == nil {
		m.scope.vars = map[string]Value{}
	}
	m.scope.vars[name] = v
}

func (m *machine) write(t Text) {
	m.spendBytes(len(t.String))
	m.out.add(t)
}

func (m *machine) run(body []stmt) flow {
	m.enter()
	defer m.leave()
	for _, s := range body {
		if f := s(m); f != flowNext {
			return f
		}
	}
	return flowNext
}

// capture runs a body and returns what it wrote.
func (m *machine) capture(body []stmt) Text {
	outer := m.out
	m.out = builder{}
	m.run(body)
	t := m.out.text()
	m.out = outer
	return t
}

func (m *machine) call(f Value, a args) Value {
	fn, ok := f.(function)
	if !ok {
		m.failf("%s cannot be called", kind(f))
	}
	return fn(m, a)
}

// items lists what a loop goes over.
func (m *machine) items(v Value) []Value {
	switch v := v.(type) {
	case undefined:
		return nil
	case *List:
		m.spend(len(v.Items))
		return slices.Clone(v.Items) // the body may change the list
	case *Dict:
		m.spend(len(v.keys))
		return slices.Clone(v.keys)
	case Text:
		m.spend(4 * len(v.String))
		out := make([]Value, 0, len(v.String))
		for i, r := range v.String {
			out = append(out, v.slice(i, i+utf8.RuneLen(r)))
		}
		return out
	}
	m.failf("%s cannot be iterated over", kind(v))
	return nil
}

// loopVar is the variable "loop".
type loopVar struct {
	items []Value
	index int
	last  Value // argument of the last call of changed
	any   bool
}

func (l *loopVar) attr(name string) Value {
	i, n := int64(l.index), int64(len(l.items))
	switch name {
	case "index":
		return i + 1
	case "index0":
		return i
	case "revindex":
		return n - i
	case "revindex0":
		return n - i - 1
	case "first":
		return i == 0
	case "last":
		return i == n-1
	case "length":
		return n
	case "depth":
		return int64(1)
	case "depth0":
		return int64(0)
	case "previtem":
		if i > 0 {
			return l.items[i-1]
		}
	case "nextitem":
		if i < n-1 {
			return l.items[i+1]
		}
	case "cycle":
		return function(func(m *machine, a args) Value {
			if len(a.pos) == 0 {
				m.failf("loop.cycle needs an argument")
			}
			return a.pos[l.index%len(a.pos)]
		})
	case "changed":
		return function(func(m *machine, a args) Value {
			now := &List{a.pos}
			changed := !l.any || !m.equal(l.last, now)
			l.last, l.any = now, true
			return changed
		})
	}
	return undefined{"loop." + name}
}

// attr is obj.name: methods come before the entries of a mapping.
func (m *machine) attr(obj Value, name string) Value {
	switch o := obj.(type) {
	case undefined:
		m.failf("%s is undefined, so it has no %s", o.name, name)
	case namespace:
		if v, ok := o[name]; ok {
			return v
		}
	case *loopVar:
		return o.attr(name)
	case *Dict:
		if f := dictMethods[name]; f != nil {
			return function(func(m *machine, a args) Value { return f(m, o, a) })
		}
		if v, ok := o.get(lit(name)); ok {
			return v
		}
	case *List:
		if f := listMethods[name]; f != nil {
			return function(func(m *machine, a args) Value { return f(m, o, a) })
		}
	case Text:
		if f := textMethods[name]; f != nil {
			return function(func(m *machine, a args) Value {
				m.spendBytes(len(o.String) + stepBytes*len(o.User))
				return f(m, o, a)
			})
		}
	}
	return undefined{name}
}

// item is obj[key]: the entries of a mapping come before methods.
func (m *machine) item(obj, key Value) Value {
	switch o := obj.(type) {
	case undefined:
		m.failf("%s is undefined, so it has no [%s]", o.name, m.print(key).String)
	case *Dict:
		if v, ok := o.get(m.key(key)); ok {
			return v
		}
	case *List:
		if _, i, isInt, _ := number(key); isInt {
			if i < 0 {
				i += int64(len(o.Items))
			}
			if i >= 0 && i < int64(len(o.Items)) {
				return o.Items[i]
			}
			return undefined{"a list's item"}
		}
	case Text:
		if _, i, isInt, _ := number(key); isInt {
			offs := m.runes(o)
			n := int64(len(offs) - 1)
			if i < 0 {
				i += n
			}
			if i >= 0 && i < n {
				return o.slice(offs[i], offs[i+1])
			}
			return undefined{"a string's character"}
		}
	}
	if name, ok := key.(Text); ok {
		return m.attr(obj, name.String)
	}
	return undefined{m.print(key).String}
}

// key pays for reading a value once: looking it up as a key, converting or folding it.
func (m *machine) key(v Value) Value {
	if t, ok := v.(Text); ok {
		m.spendBytes(len(t.String))
	}
	return v
}

// runes returns the byte offset of each rune, and the length.
func (m *machine) runes(t Text) []int {
	m.spendBytes(8 * len(t.String))
	offs := make([]int, 0, len(t.String)+1)
	for i := range t.String {
		offs = append(offs, i)
	}
	return append(offs, len(t.String))
}

func (m *machine) slice(obj, start, stop, step Value) Value {
	bound := func(v Value, none int) int {
		if v == nil {
			return none
		}
		_, i, isInt, _ := number(v)
		if !isInt {
			m.failf("the bounds of a slice must be integers, not %s", kind(v))
		}
		return int(i)
	}
	var n int
	var offs []int
	switch o := obj.(type) {
	case *List:
		n = len(o.Items)
	case Text:
		offs = m.runes(o)
		n = len(offs) - 1
	default:
		m.failf("%s cannot be sliced", kind(obj))
	}
	by := bound(step, 1)
	if by == 0 {
		m.failf("the step of a slice is zero")
	}
	lo, hi := 0, n // what the bounds are clamped to
	if by < 0 {
		lo, hi = -1, n-1
	}
	clamp := func(v Value, none int) int {
		if v == nil {
			return none
		}
		i := bound(v, 0)
		if i < 0 {
			i += n
		}
		return min(max(i, lo), hi)
	}
	from, to := clamp(start, 0), clamp(stop, n)
	if by < 0 {
		from, to = clamp(start, n-1), clamp(stop, -1)
	}
	if t, ok := obj.(Text); ok && by == 1 {
		return t.slice(offs[from], offs[max(from, to)])
	}
	m.spend(n)
	out := &List{}
	for i := from; by > 0 && i < to || by < 0 && i > to; i += by {
		if t, ok := obj.(Text); ok {
			out.Items = append(out.Items, t.slice(offs[i], offs[i+1]))
		} else {
			out.Items = append(out.Items, obj.(*List).Items[i])
		}
		if i+by > n || i+by < -1 {
			break // also keeps a huge step from overflowing
		}
	}
	if offs != nil {
		return m.join(out.Items, Text{})
	}
	return out
}

func (m *machine) join(items []Value, sep Text) Text {
	var b builder
	for i, v := range items {
		t := m.print(v)
		m.spendBytes(len(t.String) + len(sep.String))
		if i > 0 {
			b.add(sep)
		}
		b.add(t)
	}
	return b.text()
}

func (m *machine) equal(a, b Value) bool {
	m.spend(1)
	m.enter()
	defer m.leave()
	if x, i, xi, ok := number(a); ok {
		y, j, yi, ok := number(b)
		if xi && yi {
			return ok && i == j
		}
		return ok && x == y
	}
	switch a := a.(type) {
	case nil:
		return b == nil
	case undefined:
		_, ok := b.(undefined)
		return ok
	case Text:
		b, ok := b.(Text)
		m.spendBytes(len(a.String))
		return ok && a.String == b.String
	case *List:
		b, ok := b.(*List)
		return ok && slices.EqualFunc(a.Items, b.Items, m.equal)
	case *Dict:
		b, ok := b.(*Dict)
		return ok && len(a.keys) == len(b.keys) && !slices.ContainsFunc(a.keys, func(k Value) bool {
			v, ok := b.get(k)
			return !ok || !m.equal(a.items[hash(k)], v)
		})
	case *loopVar:
		return a == b
	}
	return false
}

func (m *machine) compare(a, b Value) int {
	m.spend(1)
	x, _, _, ok1 := number(a)
	y, _, _, ok2 := number(b)
	s, ok3 := a.(Text)
	t, ok4 := b.(Text)
	switch {
	case ok1 && ok2 && x < y:
		return -1
	case ok1 && ok2 && x > y:
		return 1
	case ok1 && ok2:
		return 0
	case ok3 && ok4:
		m.spendBytes(min(len(s.String), len(t.String)))
		return strings.Compare(s.String, t.String)
	}
	m.failf("%s and %s cannot be put in order", kind(a), kind(b))
	return 0
}

// test is a comparison of two values.
func (m *machine) test(op string, a, b Value) bool {
	switch op {
	case "==":
		return m.equal(a, b)
	case "!=":
		return !m.equal(a, b)
	case "<":
		return m.compare(a, b) < 0
	case "<=":
		return m.compare(a, b) <= 0
	case ">":
		return m.compare(a, b) > 0
	case ">=":
		return m.compare(a, b) >= 0
	case "not in":
		return !m.contains(b, a)
	}
	return m.contains(b, a)
}

func (m *machine) contains(in, v Value) bool {
	switch in := in.(type) {
	case undefined:
		return false
	case Text:
		t, ok := v.(Text)
		if !ok {
			m.failf("a string cannot contain %s", kind(v))
		}
		m.spendBytes(len(in.String))
		return strings.Contains(in.String, t.String)
	case *List:
		return slices.ContainsFunc(in.Items, func(x Value) bool { return m.equal(x, v) })
	case *Dict:
		_, ok := in.get(m.key(v))
		return ok
	}
	m.failf("%s cannot contain anything", kind(in))
	return false
}

func (m *machine) binary(op string, a, b Value) Value {
	if op == "~" {
		return m.join([]Value{a, b}, Text{})
	}
	x, i, aInt, ok1 := number(a)
	y, j, bInt, ok2 := number(b)
	switch {
	case ok1 && ok2 && aInt && bInt && op != "/":
		return m.intOp(op, i, j)
	case ok1 && ok2:
		return m.floatOp(op, x, y)
	case op == "+":
		s, ok1 := a.(Text)
		t, ok2 := b.(Text)
		if ok1 && ok2 {
			return m.join([]Value{s, t}, Text{})
		}
		l, ok1 := a.(*List)
		r, ok2 := b.(*List)
		if ok1 && ok2 {
			m.spend(len(l.Items) + len(r.Items))
			return &List{slices.Concat(l.Items, r.Items)}
		}
	case op == "*" && (aInt || bInt):
		if aInt {
			a, j = b, i
		}
		j = max(0, j)
		switch v := a.(type) {
		case Text:
			m.spend(int(min(j, maxSteps)))
			m.spendBytes(len(v.String) * int(j))
			return m.join(slices.Repeat([]Value{v}, int(j)), Text{})
		case *List:
			m.spend(int(min(j, maxSteps)))
			m.spend(len(v.Items) * int(j))
			return &List{slices.Repeat(v.Items, int(j))}
		}
	}
	m.failf("%s %s %s cannot be computed", kind(a), op, kind(b))
	return nil
}

func (m *machine) intOp(op string, i, j int64) Value {
	switch op {
	case "+":
		return i + j
	case "-":
		return i - j
	case "*":
		return i * j
	case "**":
		if f := math.Pow(float64(i), float64(j)); j < 0 || math.Abs(f) >= 1<<53 {
			return f
		} else {
			return int64(f)
		}
	}
	if j == 0 {
		m.failf("division by zero")
	}
	if j == -1 { // the one division that overflows
		if op == "%" {
			return int64(0)
		}
		return -i
	}
	q, r := i/j, i%j
	if r != 0 && (r < 0) != (j < 0) { // Python rounds down
		q, r = q-1, r+j
	}
	if op == "%" {
		return r
	}
	return q
}

func (m *machine) floatOp(op string, x, y float64) Value {
	switch op {
	case "+":
		return x + y
	case "-":
		return x - y
	case "*":
		return x * y
	case "**":
		return math.Pow(x, y)
	}
	if y == 0 {
		m.failf("division by zero")
	}
	switch op {
	case "//":
		return math.Floor(x / y)
	case "%":
		return x - y*math.Floor(x/y)
	}
	return x / y
}
