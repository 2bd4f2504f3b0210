package jinja

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

var dictMethods = map[string]func(m *machine, d *Dict, a args) Value{
	"keys": func(m *machine, d *Dict, _ args) Value { return &List{m.items(d)} },
	"values": func(m *machine, d *Dict, _ args) Value {
		out := m.items(d)
		for i, k := range out {
			out[i] = d.items[hash(k)]
		}
		return &List{out}
	},
	"items": func(m *machine, d *Dict, _ args) Value {
		out := m.items(d)
		m.spend(2 * len(out))
		for i, k := range out {
			out[i] = &List{[]Value{k, d.items[hash(k)]}}
		}
		return &List{out}
	},
	"get": func(m *machine, d *Dict, a args) Value {
		if v, ok := d.get(m.key(a.or(0, "key", nil))); ok {
			return v
		}
		return a.or(1, "default", nil)
	},
	"pop": func(m *machine, d *Dict, a args) Value {
		key := m.key(a.or(0, "key", nil))
		v, ok := d.get(key)
		if !ok {
			return a.or(1, "default", undefined{"the mapping's entry"})
		}
		m.spend(len(d.keys))
		d.remove(key)
		return v
	},
	"update": func(m *machine, d *Dict, a args) Value {
		for _, v := range a.pos {
			m.update(d, v)
		}
		for _, k := range a.kw {
			d.set(lit(k.name), k.val)
		}
		return nil
	},
	"copy": func(m *machine, d *Dict, _ args) Value {
		out := NewDict()
		m.update(out, d)
		return out
	},
}

var listMethods = map[string]func(m *machine, l *List, a args) Value{
	"append": func(m *machine, l *List, a args) Value {
		m.spend(1)
		l.Items = append(l.Items, a.or(0, "object", nil))
		return nil
	},
	"extend": func(m *machine, l *List, a args) Value {
		l.Items = append(l.Items, m.items(a.or(0, "iterable", nil))...)
		return nil
	},
	"insert": func(m *machine, l *List, a args) Value {
		m.spend(len(l.Items))
		i := m.int(a, 0, "index", 0)
		if i < 0 {
			i += len(l.Items)
		}
		l.Items = slices.Insert(l.Items, min(max(0, i), len(l.Items)), a.or(1, "object", nil))
		return nil
	},
	"pop": func(m *machine, l *List, a args) Value {
		m.spend(len(l.Items))
		i := m.int(a, 0, "index", -1)
		if i < 0 {
			i += len(l.Items)
		}
		if i < 0 || i >= len(l.Items) {
			m.failf("pop: the list has no item %d", i)
		}
		v := l.Items[i]
		l.Items = slices.Delete(l.Items, i, i+1)
		return v
	},
	"index": func(m *machine, l *List, a args) Value {
		want := a.or(0, "value", nil)
		i := slices.IndexFunc(l.Items, func(v Value) bool { return m.equal(v, want) })
		if i < 0 {
			m.failf("index: the value is not in the list")
		}
		return int64(i)
	},
	"count": func(m *machine, l *List, a args) Value {
		n := int64(0)
		for _, v := range l.Items {
			n += int64(btoi(m.equal(v, a.or(0, "value", nil))))
		}
		return n
	},
}

type textMethod = func(m *machine, t Text, a args) Value

var textMethods = map[string]textMethod{
	"strip":  trim(true, true),
	"lstrip": trim(true, false),
	"rstrip": trim(false, true),
	"lower":  mapped(strings.ToLower),
	"upper":  mapped(strings.ToUpper),
	"title": mapped(func(s string) string {
		in := false
		return strings.Map(func(r rune) rune {
			first := !in
			if in = unicode.IsLetter(r); first {
				return unicode.ToTitle(r)
			}
			return unicode.ToLower(r)
		}, s)
	}),
	"capitalize": func(_ *machine, t Text, _ args) Value {
		_, n := utf8.DecodeRuneInString(t.String)
		var b builder
		b.add(t.slice(0, n).each(strings.ToUpper))
		b.add(t.slice(n, len(t.String)).each(strings.ToLower))
		return b.text()
	},
	"startswith": affix(strings.HasPrefix),
	"endswith":   affix(strings.HasSuffix),
	"removeprefix": func(m *machine, t Text, a args) Value {
		rest := strings.TrimPrefix(t.String, m.text(a, 0, "prefix", "").String)
		return t.within(len(t.String)-len(rest), rest)
	},
	"removesuffix": func(m *machine, t Text, a args) Value {
		return t.within(0, strings.TrimSuffix(t.String, m.text(a, 0, "suffix", "").String))
	},
	"find":  find(strings.Index),
	"rfind": find(strings.LastIndex),
	"count": func(m *machine, t Text, a args) Value {
		return int64(strings.Count(t.String, m.text(a, 0, "sub", "").String))
	},
	"replace": func(m *machine, t Text, a args) Value {
		from, to := m.text(a, 0, "old", "").String, m.text(a, 1, "new", "")
		var b builder
		for i, part := range cut(m, t, from, m.int(a, 2, "count", -1)) {
			if i > 0 {
				m.spendBytes(len(to.String) + stepBytes)
				b.add(to)
			}
			b.add(part)
		}
		return b.text()
	},
	"split": func(m *machine, t Text, a args) Value {
		n := m.int(a, 1, "maxsplit", -1)
		out := &List{}
		if a.or(0, "sep", nil) != nil {
			sep := m.text(a, 0, "sep", "").String
			if sep == "" {
				m.failf("split: the separator is empty")
			}
			for _, part := range cut(m, t, sep, n) {
				out.Items = append(out.Items, part)
			}
			return out
		}
		for at := 0; ; n-- { // around runs of white space
			at += len(t.String[at:]) - len(strings.TrimLeftFunc(t.String[at:], unicode.IsSpace))
			if at == len(t.String) {
				return out
			}
			m.spend(4 + len(t.User))
			end := strings.IndexFunc(t.String[at:], unicode.IsSpace)
			if end < 0 || n == 0 {
				rest := strings.TrimRightFunc(t.String[at:], unicode.IsSpace)
				out.Items = append(out.Items, t.within(at, rest))
				return out
			}
			out.Items = append(out.Items, t.slice(at, at+end))
			at += end
		}
	},
	"rsplit": func(m *machine, t Text, a args) Value {
		sep := m.text(a, 0, "sep", " ").String
		if sep == "" {
			m.failf("rsplit: the separator is empty")
		}
		out, end := &List{}, len(t.String)
		for n := m.int(a, 1, "maxsplit", -1); n != 0; n-- {
			i := strings.LastIndex(t.String[:end], sep)
			if i < 0 {
				break
			}
			m.spend(4 + len(t.User))
			out.Items = append(out.Items, t.slice(i+len(sep), end))
			end = i
		}
		out.Items = append(out.Items, t.slice(0, end))
		slices.Reverse(out.Items)
		return out
	},
	"splitlines": func(m *machine, t Text, a args) Value {
		out := &List{}
		for at := 0; at < len(t.String); {
			m.spend(4 + len(t.User))
			end, n := strings.IndexAny(t.String[at:], "\r\n"), 1
			if end < 0 {
				end, n = len(t.String)-at, 0
			} else if strings.HasPrefix(t.String[at+end:], "\r\n") {
				n = 2
			}
			keep := btoi(truth(a.or(0, "keepends", false))) * n
			out.Items = append(out.Items, t.slice(at, at+end+keep))
			at += end + n
		}
		return out
	},
	"partition":  partition(strings.Index, false),
	"rpartition": partition(strings.LastIndex, true),
	"join": func(m *machine, t Text, a args) Value {
		return m.join(m.items(a.or(0, "iterable", nil)), t)
	},
	"format": func(m *machine, t Text, a args) Value {
		var b builder
		for i, part := range cut(m, t, "{}", -1) {
			if i > 0 {
				b.add(m.print(a.or(i-1, "", lit("{}"))))
			}
			m.spendBytes(b.b.Len())
			b.add(part)
		}
		return b.text()
	},
	"isdigit": all(unicode.IsDigit),
	"isalpha": all(unicode.IsLetter),
	"isalnum": all(func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }),
	"isspace": all(unicode.IsSpace),
	"isupper": all(func(r rune) bool { return !unicode.IsLower(r) }),
	"islower": all(func(r rune) bool { return !unicode.IsUpper(r) }),
}

// cut splits around a separator at most n times; n < 0 means always. An empty separator splits between all characters.
func cut(m *machine, t Text, sep string, n int) []Text {
	var out []Text
	at := 0
	for i := 0; n != 0; n-- {
		next := strings.Index(t.String[i:], sep)
		if next < 0 {
			break
		}
		m.spend(4 + len(t.User)) // a part, and finding whose it is
		if i += next; sep == "" {
			if at == len(t.String) && len(out) > 0 {
				break
			}
			out = append(out, t.slice(at, i))
			at = i
			_, w := utf8.DecodeRuneInString(t.String[i:])
			if i += w; w == 0 {
				break
			}
			continue
		}
		out = append(out, t.slice(at, i))
		i += len(sep)
		at = i
	}
	return append(out, t.slice(at, len(t.String)))
}

func trim(left, right bool) textMethod {
	return func(m *machine, t Text, a args) Value {
		in := unicode.IsSpace
		if chars := a.or(0, "chars", nil); chars != nil {
			set := m.print(chars).String
			m.spend(len(t.String) * len(set) / stepBytes)
			in = func(r rune) bool { return strings.ContainsRune(set, r) }
		}
		s, at := t.String, 0
		if left {
			s = strings.TrimLeftFunc(s, in)
			at = len(t.String) - len(s)
		}
		if right {
			s = strings.TrimRightFunc(s, in)
		}
		return t.within(at, s)
	}
}

func mapped(f func(string) string) textMethod {
	return func(_ *machine, t Text, _ args) Value { return t.each(f) }
}

func affix(has func(s, affix string) bool) textMethod {
	return func(m *machine, t Text, a args) Value {
		options := []Value{a.or(0, "prefix", nil)}
		if l, ok := options[0].(*List); ok {
			options = l.Items
		}
		for _, o := range options {
			s, ok := o.(Text)
			if !ok {
				m.failf("startswith and endswith take strings, not %s", kind(o))
			}
			if has(t.String, s.String) {
				return true
			}
		}
		return false
	}
}

func find(index func(s, sub string) int) textMethod {
	return func(m *machine, t Text, a args) Value {
		i := index(t.String, m.text(a, 0, "sub", "").String)
		if i < 0 {
			return int64(-1)
		}
		return int64(utf8.RuneCountInString(t.String[:i]))
	}
}

func partition(index func(s, sub string) int, last bool) textMethod {
	return func(m *machine, t Text, a args) Value {
		sep := m.text(a, 0, "sep", "").String
		i := index(t.String, sep)
		switch {
		case sep == "":
			m.failf("partition: the separator is empty")
		case i < 0 && last:
			return &List{[]Value{Text{}, Text{}, t}}
		case i < 0:
			return &List{[]Value{t, Text{}, Text{}}}
		}
		return &List{[]Value{t.slice(0, i), t.slice(i, i+len(sep)), t.slice(i+len(sep), len(t.String))}}
	}
}

func all(f func(rune) bool) textMethod {
	return func(_ *machine, t Text, _ args) Value {
		return t.String != "" && !strings.ContainsFunc(t.String, func(r rune) bool { return !f(r) })
	}
}
