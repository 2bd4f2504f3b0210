package jinja

import (
	"html"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

var globals = map[string]Value{
	"namespace": function(func(m *machine, a args) Value {
		ns := namespace{}
		for _, v := range a.pos {
			if d, ok := v.(*Dict); ok {
				m.spend(len(d.keys))
				for _, k := range d.keys {
					ns[m.print(k).String] = d.items[hash(k)]
				}
			}
		}
		for _, k := range a.kw {
			ns[k.name] = k.val
		}
		return ns
	}),
	"dict": function(func(m *machine, a args) Value {
		d := NewDict()
		for _, v := range a.pos {
			m.update(d, v)
		}
		for _, k := range a.kw {
			d.set(lit(k.name), k.val)
		}
		return d
	}),
	"range": function(func(m *machine, a args) Value {
		bounds := [3]int64{0, 0, 1}
		if len(a.pos) < 1 || len(a.pos) > 3 {
			m.failf("range takes 1 to 3 integers")
		}
		for i, v := range a.pos {
			_, n, isInt, _ := number(v)
			if !isInt {
				m.failf("range takes integers, not %s", kind(v))
			}
			bounds[i] = n
		}
		if len(a.pos) == 1 {
			bounds[0], bounds[1] = 0, bounds[0]
		}
		l, by := &List{}, bounds[2]
		if by == 0 {
			m.failf("the step of range is zero")
		}
		for i := bounds[0]; by > 0 && i < bounds[1] || by < 0 && i > bounds[1]; {
			m.spend(4)
			l.Items = append(l.Items, i)
			next := i + by
			if (next > i) != (by > 0) {
				break // overflow
			}
			i = next
		}
		return l
	}),
	"raise_exception": function(func(m *machine, a args) Value {
		msg, _ := a.get(0, "message")
		panic(failure{&Raised{m.print(msg).String}})
	}),
	"strftime_now": function(func(m *machine, a args) Value {
		format, _ := a.get(0, "format")
		layout := m.print(format).String
		m.spend(len(layout))
		return lit(strftime(m.now, layout))
	}),
	"joiner": function(func(m *machine, a args) Value {
		sep, used := a.or(0, "sep", lit(", ")), false
		return function(func(*machine, args) Value {
			if !used {
				used = true
				return Text{}
			}
			return sep
		})
	}),
}

// strftime formats a time as C's strftime does.
func strftime(t time.Time, format string) string {
	layouts := map[byte]string{
		'Y': "2006", 'm': "01", 'd': "02", 'H': "15", 'M': "04", 'S': "05", 'y': "06", 'B': "January", 'b': "Jan", 'h': "Jan", 'A': "Monday",
		'a': "Mon", 'p': "PM", 'I': "03", 'Z': "MST", 'z': "-0700", 'j': "002", 'e': "_2", 'F': "2006-01-02", 'T': "15:04:05", 'D': "01/02/06", 'R': "15:04",
		'c': "Mon Jan _2 15:04:05 2006", 'x': "01/02/06", 'X': "15:04:05",
	}
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		i++
		pad := format[i] != '-'
		if !pad && i+1 < len(format) {
			i++
		}
		switch layout, ok := layouts[format[i]]; {
		case ok && pad:
			b.WriteString(t.Format(layout))
		case ok:
			b.WriteString(strings.TrimLeft(t.Format(layout), "0 "))
		case format[i] == '%':
			b.WriteByte('%')
		default:
			b.WriteString("%" + format[i:i+1])
		}
	}
	return b.String()
}

// or returns an argument or what it is without.
func (a args) or(i int, name string, def Value) Value {
	if v, ok := a.get(i, name); ok {
		return v
	}
	return def
}

// text returns an argument that must be a string; absent or none, it is def.
func (m *machine) text(a args, i int, name, def string) Text {
	switch v := a.or(i, name, nil).(type) {
	case nil:
		return lit(def)
	case Text:
		return v
	default:
		m.failf("the argument %s must be a string, not %s", name, kind(v))
	}
	return Text{}
}

// int returns an argument that must be an integer; absent or none, it is def.
func (m *machine) int(a args, i int, name string, def int) int {
	v := a.or(i, name, nil)
	if v == nil {
		return def
	}
	_, n, isInt, _ := number(v)
	if !isInt {
		m.failf("the argument %s must be an integer, not %s", name, kind(v))
	}
	return int(max(min(n, math.MaxInt32), math.MinInt32))
}

var tests map[string]func(m *machine, v Value, a args) bool

func init() {
	is := func(f func(v Value) bool) func(*machine, Value, args) bool {
		return func(_ *machine, v Value, _ args) bool { return f(v) }
	}
	op := func(op string) func(*machine, Value, args) bool {
		return func(m *machine, v Value, a args) bool {
			if len(a.pos) != 1 {
				m.failf("the test %s needs one argument", op)
			}
			return m.test(op, v, a.pos[0])
		}
	}
	isInt := func(v Value) bool { _, ok := v.(int64); return ok }
	text := func(f func(s string) string) func(*machine, Value, args) bool {
		return is(func(v Value) bool {
			t, ok := v.(Text)
			return ok && f(t.String) == t.String && strings.ContainsFunc(t.String, unicode.IsLetter)
		})
	}
	mod := func(n int64) func(*machine, Value, args) bool {
		return is(func(v Value) bool { i, ok := v.(int64); return ok && (i%2+2)%2 == n })
	}
	iterable := func(v Value) bool {
		switch v.(type) {
		case undefined, Text, *List, *Dict: // undefined iterates over nothing
			return true
		}
		return false
	}
	tests = map[string]func(m *machine, v Value, a args) bool{
		"defined":   is(func(v Value) bool { _, ok := v.(undefined); return !ok }),
		"undefined": is(func(v Value) bool { _, ok := v.(undefined); return ok }),
		"none":      is(func(v Value) bool { return v == nil }),
		"boolean":   is(func(v Value) bool { _, ok := v.(bool); return ok }),
		"true":      is(func(v Value) bool { b, ok := v.(bool); return ok && b }),
		"false":     is(func(v Value) bool { b, ok := v.(bool); return ok && !b }),
		"integer":   is(isInt),
		"float":     is(func(v Value) bool { _, ok := v.(float64); return ok }),
		"number":    is(func(v Value) bool { _, _, _, ok := number(v); return ok }),
		"string":    is(func(v Value) bool { _, ok := v.(Text); return ok }),
		"mapping":   is(func(v Value) bool { _, ok := v.(*Dict); return ok }),
		"callable":  is(func(v Value) bool { _, ok := v.(function); return ok }),
		"iterable":  is(iterable),
		"sequence":  is(iterable),
		"even":      mod(0),
		"odd":       mod(1),
		"upper":     text(strings.ToUpper),
		"lower":     text(strings.ToLower),
		"divisibleby": func(m *machine, v Value, a args) bool {
			return m.equal(m.binary("%", v, a.or(0, "num", nil)), int64(0))
		},
		"eq": op("=="), "equalto": op("=="), "==": op("=="), "sameas": op("=="), "ne": op("!="), "!=": op("!="),
		"gt": op(">"), "greaterthan": op(">"), ">": op(">"), "ge": op(">="), ">=": op(">="),
		"lt": op("<"), "lessthan": op("<"), "<": op("<"), "le": op("<="), "<=": op("<="), "in": op("in"),
	}
}

var filters map[string]func(m *machine, v Value, a args) Value

func init() {
	// text makes a filter of a method of strings.
	text := func(name string) func(*machine, Value, args) Value {
		return func(m *machine, v Value, a args) Value {
			t := m.print(v)
			m.spendBytes(len(t.String) + stepBytes*len(t.User))
			return textMethods[name](m, t, a)
		}
	}
	length := func(m *machine, v Value, _ args) Value {
		switch v := v.(type) {
		case undefined:
			return int64(0)
		case Text:
			m.spendBytes(len(v.String))
			return int64(utf8.RuneCountInString(v.String))
		case *List:
			return int64(len(v.Items))
		case *Dict:
			return int64(len(v.keys))
		}
		m.failf("%s has no length", kind(v))
		return nil
	}
	def := func(_ *machine, v Value, a args) Value {
		_, undef := v.(undefined)
		if undef || truth(a.or(1, "boolean", false)) && !truth(v) {
			return a.or(0, "default_value", Text{})
		}
		return v
	}
	escape := func(m *machine, v Value, _ args) Value {
		t := m.print(v)
		m.spendBytes(6 * len(t.String))
		return t.each(html.EscapeString)
	}
	same := func(_ *machine, v Value, _ args) Value { return v }
	filters = map[string]func(m *machine, v Value, a args) Value{
		"lower": text("lower"), "upper": text("upper"), "title": text("title"), "capitalize": text("capitalize"), "trim": text("strip"),
		"replace": text("replace"), "length": length, "count": length, "default": def, "d": def, "escape": escape, "e": escape, "safe": same,
		"string": func(m *machine, v Value, _ args) Value { return m.print(v) },
		"list":   func(m *machine, v Value, _ args) Value { return &List{m.items(v)} },
		"tojson": toJSON,
		"items": func(m *machine, v Value, a args) Value {
			switch v := v.(type) {
			case undefined:
				return &List{}
			case *Dict:
				return dictMethods["items"](m, v, a)
			}
			m.failf("items: %s is not a mapping", kind(v))
			return nil
		},
		"dictsort": func(m *machine, v Value, a args) Value {
			d, ok := v.(*Dict)
			if !ok {
				m.failf("dictsort: %s is not a mapping", kind(v))
			}
			by := btoi(m.text(a, 1, "by", "key").String == "value")
			pairs := dictMethods["items"](m, d, args{}).(*List)
			m.sort(pairs.Items, truth(a.or(0, "case_sensitive", false)), truth(a.or(2, "reverse", false)),
				func(v Value) Value { return v.(*List).Items[by] })
			return pairs
		},
		"sort": func(m *machine, v Value, a args) Value {
			items, attr := m.items(v), m.text(a, 2, "attribute", "").String
			m.sort(items, truth(a.or(1, "case_sensitive", false)), truth(a.or(0, "reverse", false)), func(v Value) Value { return m.path(v, attr) })
			return &List{items}
		},
		"unique": func(m *machine, v Value, a args) Value {
			attr, seen := m.text(a, 1, "attribute", "").String, map[any]bool{}
			return &List{slices.DeleteFunc(m.items(v), func(v Value) bool {
				k := hash(m.fold(m.path(v, attr), truth(a.or(0, "case_sensitive", false))))
				was := seen[k]
				seen[k] = true
				return was
			})}
		},
		"reverse": func(m *machine, v Value, _ args) Value {
			items := m.items(v)
			slices.Reverse(items)
			if _, ok := v.(Text); ok {
				return m.join(items, Text{})
			}
			return &List{items}
		},
		"first": func(m *machine, v Value, _ args) Value { return m.end(v, 0) },
		"last":  func(m *machine, v Value, _ args) Value { return m.end(v, -1) },
		"min":   func(m *machine, v Value, a args) Value { return m.extreme(v, a, -1) },
		"max":   func(m *machine, v Value, a args) Value { return m.extreme(v, a, 1) },
		"sum": func(m *machine, v Value, a args) Value {
			total, attr := a.or(1, "start", int64(0)), m.text(a, 0, "attribute", "").String
			for _, it := range m.items(v) {
				total = m.binary("+", total, m.path(it, attr))
			}
			return total
		},
		"join": func(m *machine, v Value, a args) Value {
			items, attr := m.items(v), m.text(a, 1, "attribute", "").String
			for i, it := range items {
				items[i] = m.path(it, attr)
			}
			return m.join(items, m.text(a, 0, "d", ""))
		},
		"map":    mapFilter,
		"select": func(m *machine, v Value, a args) Value { return m.pick(v, a, false, true) },
		"reject": func(m *machine, v Value, a args) Value { return m.pick(v, a, false, false) },
		"selectattr": func(m *machine, v Value, a args) Value {
			return m.pick(v, a, true, true)
		},
		"rejectattr": func(m *machine, v Value, a args) Value {
			return m.pick(v, a, true, false)
		},
		"abs": func(m *machine, v Value, _ args) Value {
			if m.compare(v, int64(0)) < 0 {
				return m.binary("-", int64(0), v)
			}
			return v
		},
		"int":   toInt,
		"float": toFloat,
		"round": func(m *machine, v Value, a args) Value {
			f, _, _, ok := number(v)
			if !ok {
				m.failf("round: %s is not a number", kind(v))
			}
			pow := math.Pow(10, float64(m.int(a, 0, "precision", 0)))
			switch m.text(a, 1, "method", "common").String {
			case "ceil":
				return math.Ceil(f*pow) / pow
			case "floor":
				return math.Floor(f*pow) / pow
			}
			return math.RoundToEven(f*pow) / pow
		},
		"indent": func(m *machine, v Value, a args) Value {
			t := m.print(v)
			var pad Text
			switch w := a.or(0, "width", int64(4)).(type) {
			case Text:
				pad = w
			default:
				pad = m.binary("*", lit(" "), w).(Text)
			}
			first, blank := truth(a.or(1, "first", false)), truth(a.or(2, "blank", false))
			lines := textMethods["split"](m, t, args{pos: []Value{lit("\n")}}).(*List).Items
			for i, l := range lines {
				if (i > 0 || first) && (blank || l.(Text).String != "") {
					lines[i] = m.join([]Value{pad, l}, Text{})
				}
			}
			return m.join(lines, lit("\n"))
		},
	}
}

func toJSON(m *machine, v Value, a args) Value {
	st := jsonStyle{indent: m.int(a, 1, "indent", -1), item: ", ", pair: ": ", sort: truth(a.or(3, "sort_keys", false)),
		ascii: truth(a.or(0, "ensure_ascii", false))}
	if st.indent >= 0 {
		st.item = ","
	}
	if sep, ok := a.or(2, "separators", nil).(*List); ok && len(sep.Items) == 2 {
		st.item, st.pair = m.print(sep.Items[0]).String, m.print(sep.Items[1]).String
	}
	var b builder
	m.json(&b, v, st, 0)
	return b.text()
}

func toInt(m *machine, v Value, a args) Value {
	if f, i, isInt, ok := number(v); isInt {
		return i
	} else if ok {
		return int64(f)
	}
	if t, ok := m.key(v).(Text); ok {
		s := strings.TrimSpace(t.String)
		if i, err := strconv.ParseInt(s, 10, 64); err == nil {
			return i
		}
		if f, err := strconv.ParseFloat(s, 64); err == nil {
			return int64(f)
		}
	}
	return a.or(0, "default", int64(0))
}

func toFloat(m *machine, v Value, a args) Value {
	if f, _, _, ok := number(v); ok {
		return f
	}
	if t, ok := m.key(v).(Text); ok {
		if f, err := strconv.ParseFloat(strings.TrimSpace(t.String), 64); err == nil {
			return f
		}
	}
	return a.or(0, "default", 0.0)
}

// path follows a dotted attribute; "" is the value itself.
func (m *machine) path(v Value, attr string) Value {
	if attr == "" {
		return v
	}
	for name := range strings.SplitSeq(attr, ".") {
		m.spend(1 + len(name)/stepBytes)
		if i, err := strconv.ParseInt(name, 10, 64); err == nil {
			v = m.item(v, i)
		} else {
			v = m.item(v, lit(name))
		}
	}
	return v
}

func (m *machine) fold(v Value, caseSensitive bool) Value {
	if t, ok := m.key(v).(Text); ok && !caseSensitive {
		return lit(strings.ToLower(t.String))
	}
	return v
}

func (m *machine) sort(items []Value, caseSensitive, reverse bool, key func(Value) Value) {
	slices.SortStableFunc(items, func(a, b Value) int {
		c := m.compare(m.fold(key(a), caseSensitive), m.fold(key(b), caseSensitive))
		if reverse {
			return -c
		}
		return c
	})
}

// end is the first (0) or last (-1) item.
func (m *machine) end(v Value, i int) Value {
	items := m.items(v)
	if len(items) == 0 {
		return undefined{"an empty list's item"}
	}
	if i < 0 {
		i += len(items)
	}
	return items[i]
}

func (m *machine) extreme(v Value, a args, sign int) Value {
	items, attr := m.items(v), m.text(a, 1, "attribute", "").String
	if len(items) == 0 {
		return undefined{"an empty list's item"}
	}
	best := items[0]
	for _, it := range items[1:] {
		if m.compare(m.fold(m.path(it, attr), false), m.fold(m.path(best, attr), false))*sign > 0 {
			best = it
		}
	}
	return best
}

// mapFilter is map(attribute=…) and map("filter", …).
func mapFilter(m *machine, v Value, a args) Value {
	items := m.items(v)
	attr, ok := a.get(-1, "attribute")
	if ok {
		def := a.or(-1, "default", nil)
		for i, it := range items {
			items[i] = m.path(it, m.print(attr).String)
			if _, undef := items[i].(undefined); undef && def != nil {
				items[i] = def
			}
		}
		return &List{items}
	}
	name := m.text(a, 0, "name", "").String
	f := filters[name]
	if f == nil {
		m.failf("map: there is no filter %q", name)
	}
	m.enter()
	for i, it := range items {
		m.spend(1)
		items[i] = f(m, it, args{pos: a.pos[min(1, len(a.pos)):], kw: a.kw})
	}
	m.leave()
	return &List{items}
}

// pick is select, reject, selectattr and rejectattr.
func (m *machine) pick(v Value, a args, byAttr, keep bool) Value {
	attr := ""
	if byAttr {
		attr = m.text(a, 0, "attribute", "").String
		a.pos = a.pos[min(1, len(a.pos)):]
	}
	test := func(_ *machine, v Value, _ args) bool { return truth(v) }
	if len(a.pos) > 0 {
		name := m.print(a.pos[0]).String
		if test = tests[name]; test == nil {
			m.failf("there is no test %q", name)
		}
		a.pos = a.pos[1:]
	}
	return &List{slices.DeleteFunc(m.items(v), func(it Value) bool { return test(m, m.path(it, attr), a) != keep })}
}

// update adds the entries of a mapping or of a list of pairs.
func (m *machine) update(d *Dict, v Value) {
	if from, ok := v.(*Dict); ok {
		m.spend(len(from.keys))
		for _, k := range from.keys {
			d.set(k, from.items[hash(k)])
		}
		return
	}
	for _, it := range m.items(v) {
		pair := m.items(it)
		if len(pair) != 2 {
			m.failf("a mapping is made of pairs")
		}
		d.set(pair[0], pair[1])
	}
}
