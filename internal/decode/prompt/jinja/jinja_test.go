package jinja_test

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"anytime/internal/decode/prompt/jinja"
)

var now = time.Date(2026, 3, 9, 8, 5, 7, 0, time.UTC)

func load(t testing.TB, file string, v any) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// vars are testdata/vars.json, as a user's text, with the order of the keys.
func vars(t testing.TB) map[string]any {
	var raw map[string]json.RawMessage
	load(t, "testdata/vars.json", &raw)
	out := map[string]any{}
	for name, data := range raw {
		v, err := jinja.FromJSON(data, 10)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = v
	}
	return out
}

// Every snippet renders as Python's jinja2 rendered it, or fails where it failed. testdata/golden.py of package prompt wrote the outputs.
func TestLikePython(t *testing.T) {
	var golden []struct{ Source, Out, Error string }
	load(t, "testdata/golden.json", &golden)
	for _, g := range golden {
		tmpl, err := jinja.Parse(g.Source)
		var out jinja.Text
		if err == nil {
			out, err = tmpl.Render(vars(t), now)
		}
		if (err != nil) != (g.Error != "") {
			t.Errorf("%s\ngot error %v, Python %q", g.Source, err, g.Error)
		} else if err == nil && out.String != g.Out {
			t.Errorf("%s\ngot    %q\nPython %q", g.Source, out.String, g.Out)
		}
	}
}

func render(t testing.TB, source string, vars map[string]any) (jinja.Text, error) {
	tmpl, err := jinja.Parse(source)
	if err != nil {
		return jinja.Text{}, err
	}
	return tmpl.Render(vars, now)
}

func TestErrors(t *testing.T) {
	for _, tt := range []struct{ source, want string }{
		{"a\n{{ x", "line 2: a tag is not closed by }}"},
		{"{% if x %}", "expected \"endif\""},
		{"{% endfor %}", "unexpected {% endfor %}"},
		{"{% include 'x' %}", "unexpected {% include %}"},
		{"{{ 'abc }}", "not closed by '"},
		{"{# x", "not closed by #}"},
		{"a\xff", "not valid UTF-8"},
		{"{{ x|nope }}", "no filter nope"},
		{"{{ x is nope }}", "no test nope"},
		{"{{ 1 ! 2 }}", "unexpected character"},
		{"\n\n{{ x.y }}", "line 3: x is undefined, so it has no y"},
		{"{{ x() }}", "cannot be called"},
		{"{{ {}|tojson(indent='x') }}", "must be an integer"},
		{"{% for x in [1] recursive %}{% endfor %}", "recursive loops"},
	} {
		_, err := render(t, tt.source, nil)
		var e *jinja.Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.source, err, tt.want)
		}
	}
	_, err := render(t, "{{ raise_exception('no') }}", nil)
	var raised *jinja.Raised
	if !errors.As(err, &raised) || raised.Message != "no" {
		t.Errorf("got %v", err)
	}
}

// No template runs long, grows large or overflows the stack.
func TestBounds(t *testing.T) {
	for name, source := range map[string]string{
		"range":           "{% for x in range(10**9) %}{% endfor %}",
		"huge range":      "{{ range(-9223372036854775807, 9223372036854775807)|length }}",
		"nested loops":    "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
		"macro":           "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
		"two macros":      "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
		"doubling macro":  "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(400) }}",
		"repeat":          "{{ 'x' * 10**12 }}",
		"repeat list":     "{{ ([1] * 10**12)|length }}",
		"repeat nothing":  "{{ '' * 9223372036854775807 }}{{ [] * 9223372036854775807 }}",
		"doubling":        "{% set ns = namespace(s='xx') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
		"straight line":   "{% set s = 'xxxxxxxx' %}" + strings.Repeat("{% set s = s + s %}", 60),
		"replace":         "{% set s = 'a' * 999999 %}{{ s.replace('a', s)|length }}",
		"join":            "{% set s = 'a' * 999999 %}{{ (s|list)|join(s) }}",
		"indent":          "{{ ('a\n' * 9999)|indent(10**9) }}",
		"json indent":     "{{ [[[[1]]]]|tojson(indent=2**31) }}",
		"format":          "{{ ('{}' * 99999).format('a' * 9999) }}",
		"self in list":    "{% set l = [] %}{% set _ = l.append(l) %}{{ l }}",
		"self in json":    "{% set l = [] %}{% set _ = l.append(l) %}{{ l|tojson }}",
		"self equal":      "{% set l = [] %}{% set m = [] %}{% set _ = l.append(l) %}{% set _ = m.append(m) %}{{ l == m }}",
		"growing list":    "{% set l = [1] %}{% for i in range(99) %}{% set _ = l.extend(l) %}{% endfor %}",
		"trim set":        "{% set s = 'a' * 9999999 %}{{ s.strip('b' * 9999999 ~ 'a') }}",
		"split":           "{{ ('a,' * 3999999).split(',')|length }}",
		"map of map":      "{{ [1]|map('map', 'map')|list }}{% for i in range(10**8) %}{{ range(1000)|map('string')|join }}{% endfor %}",
		"equal strings":   "{% set s = 'a' * 9999999 %}{% set t = 'a' * 9999999 %}{% for i in range(999999) %}{{ s == t }}{% endfor %}",
		"long keys":       "{% set s = 'a' * 9999999 %}{% set d = {s: 1} %}{% for i in range(999999) %}{{ d[s] }}{% endfor %}",
		"folding":         "{% set s = 'a' * 9999999 %}{{ (([s] * 9999)|unique|list)|length }}{{ ([s] * 999999)|sort|length }}",
		"long format":     "{% set s = '%Y' * 999999 %}{% for i in range(999999) %}{{ strftime_now(s)|length }}{% endfor %}",
		"parentheses":     "{{ " + strings.Repeat("(", 100000) + "1" + strings.Repeat(")", 100000) + " }}",
		"nots":            "{{ " + strings.Repeat("not ", 50000) + "1 }}",
		"minuses":         "{{ " + strings.Repeat("-", 100000) + "1 }}",
		"ifs":             strings.Repeat("{% if 1 %}", 20000),
		"long sum":        "{{ 1" + strings.Repeat("+1", 100000) + " }}",
		"long postfix":    "{{ x" + strings.Repeat(".a", 100000) + " }}",
		"large source":    strings.Repeat("x", jinja.MaxSource+1),
		"many bad quotes": strings.Repeat("{{ '", 50000),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := render(t, source, nil)
			var e *jinja.Error
			if name != "repeat nothing" && !errors.As(err, &e) {
				t.Errorf("got %v, want an error of the template", err)
			}
		})
	}
}

// A user's bytes are known through everything that a template does to them.
func TestAuthorship(t *testing.T) {
	const user = "abcdefghijklmnopqrstuvwxyz" // the template writes in capitals and digits
	for _, source := range []string{
		"{{ u }}", "X{{ u }}X", "{{ 'X' + u ~ 'X' }}", "{{ u.strip('a') }}", "{{ u[3:9] }}X{{ u[::-1] }}{{ u[2] }}", "{{ u.split('m')|join('X') }}",
		"{{ u.replace('c', 'XYZ') }}", "{{ 'ABC'.replace('B', u) }}", "{{ {'K': u}['K'] }}", "{% set b %}X{{ u }}X{% endset %}{{ b }}",
		"{% macro m(v) %}X{{ v }}{% endmacro %}{{ m(u) }}", "{{ u|list|join('') }}", "{% for c in u %}{{ c }}X{% endfor %}", "{{ [u, u] }}",
		"{{ u.partition('k')[2] }}", "{{ 'X{}X'.format(u) }}", "{{ u|reverse }}", "{{ u|indent(2, true) }}", "{{ u.rsplit('f', 1)[0] }}",
		"{{ [u]|map('trim')|first }}", "{{ u.splitlines()[0].removeprefix('a').removesuffix('z') }}", "{{ 'X'.join([u, u]) }}",
	} {
		out, err := render(t, source, map[string]any{"u": jinja.User(user)})
		if err != nil {
			t.Fatalf("%s: %v", source, err)
		}
		for i, c := range []byte(out.String) {
			inUser := false
			for _, s := range out.User {
				inUser = inUser || s.Start <= i && i < s.End
			}
			if lower := 'a' <= c && c <= 'z'; lower != inUser {
				t.Errorf("%s: byte %d of %q: the user's is %v, want %v", source, i, out.String, inUser, lower)
				break
			}
		}
	}
	out, err := render(t, "{{ j|tojson }}", map[string]any{"j": mustJSON(t, `{"<x>":["<y>"]}`)})
	if err != nil || out.String != `{"<x>": ["<y>"]}` || len(out.User) != 2 || out.User[0] != (jinja.Span{Start: 2, End: 5}) {
		t.Errorf("got %+v, %v", out, err)
	}
}

func mustJSON(t testing.TB, s string) any {
	v, err := jinja.FromJSON([]byte(s), 5)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestFromJSON(t *testing.T) {
	for _, s := range []string{`[[[[[[1]]]]]]`, `{"a":1} x`, `{`, `[1,]`, ``, `{"a"}`} {
		if v, err := jinja.FromJSON([]byte(s), 5); err == nil {
			t.Errorf("%s: got %v, want an error", s, v)
		}
	}
}

func FuzzTemplate(f *testing.F) {
	var golden []struct{ Source string }
	load(f, "testdata/golden.json", &golden)
	for _, g := range golden {
		f.Add(g.Source)
	}
	f.Fuzz(func(t *testing.T, source string) {
		_, err := render(t, source, vars(t))
		if err != nil && strings.Contains(err.Error(), "engine failed") {
			t.Errorf("%q: %v", source, err)
		}
	})
}
