package schema_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"anytime/internal/decode/llamacpp"
	"anytime/internal/schema"
)

// texts says what a schema allows and what not.
type texts struct{ yes, no []string }

var cases = map[string]texts{
	`{"type": "boolean"}`:                                {[]string{"true", "false"}, []string{"null", "True", "1", ""}},
	`{"type": ["string", "null"]}`:                       {[]string{`"a"`, `null`, `"\u00e9 \"x\""`, `"ä"`}, []string{`1`, `"a`, "\"a\nb\""}},
	`{"type": "integer"}`:                                {[]string{"0", "-7", "123"}, []string{"01", "1.5", "+1", "1e3"}},
	`{"type": "number"}`:                                 {[]string{"0", "-7.25", "1e-3"}, []string{".5", "1.", "NaN"}},
	`{"const": {"a": [1, "x"]}}`:                         {[]string{`{"a":[1,"x"]}`}, []string{`{"a":[1,"y"]}`, "1"}},
	`{"enum": ["red", "green", 3]}`:                      {[]string{`"red"`, "3"}, []string{`red`, `"blue"`}},
	`{"type": "string", "minLength": 2, "maxLength": 3}`: {[]string{`"ab"`, `"abc"`, `"\n\n"`}, []string{`"a"`, `"abcd"`, `""`}},
	`{"type": "string", "pattern": "^[a-c]+[0-9]{2}$"}`:  {[]string{`"ab12"`, `"c00"`}, []string{`"12"`, `"ab1"`, `"xab12"`, `"ab12 "`}},
	`{"type": "string", "pattern": "b"}`:                 {[]string{`"abc"`, `"b"`}, []string{`"ac"`}},
	`{"type": "string", "pattern": "^(a|\"|\\\\)$"}`:     {[]string{`"a"`, `"\""`, `"\\"`}, []string{`"b"`, `"""`, `"\"`}},
	`{"type": "string", "pattern": "^(?i)ja?$"}`:         {[]string{`"j"`, `"JA"`}, []string{`"ya"`}},
	`{"type": "string", "pattern": "^[a-z]{1,33}$"}`:     {[]string{`"a"`, quoted("a", 33)}, []string{`""`, quoted("a", 34), `"A"`}},
	`{"type": "string", "pattern": "^[a-z]{3,64}$"}`:     {[]string{`"abc"`, quoted("z", 64)}, []string{`"ab"`, quoted("z", 65)}},
	`{"type": "string", "pattern": "^[a-z0-9-]{1,63}$"}`: {[]string{`"a-1"`, quoted("-", 63)}, []string{`""`, quoted("a", 64), `"a_b"`}},
	`{"type": "string", "pattern": "^(ab?|c{2,}){2,40}x{0}(){3}(_(y|z+)*)?$"}`: {
		[]string{`"aa"`, `"abccccab"`, quoted("ab", 40), `"aa_"`, `"aa_yzzy"`}, []string{`"a"`, `"aax"`, `"cab"`, quoted("ab", 41), `"aay"`}},
	`{"type": "string", "pattern": "^([a-d]{1,20}(-[a-d]{1,20}){0,2}/){1,10}$"}`: {
		[]string{`"a/"`, `"a-b/c/"`, quoted("abcd-dcba-a/", 10)}, []string{`""`, `"a"`, `"a-/"`, `"a-b-c-d/"`, quoted("a/", 11)}},
	`{"type": "string", "pattern": "` + alternatives(90) + `"}`: {[]string{`"a"`, `"bba"`, quoted("b", 90)}, []string{`"b"`, quoted("b", 91)}},
	`{"type": "string", "format": "date"}`:                      {[]string{`"2026-11-22"`}, []string{`"2026-13-22"`, `"today"`}},
	`{"type": "string", "format": "time"}`:                      {[]string{`"23:59:00Z"`, `"01:02:03.5+01:00"`}, []string{`"24:00:00Z"`, `"12:00"`}},
	`{"type": "string", "format": "date-time"}`:                 {[]string{`"2026-11-22T23:59:00Z"`, `"2026-01-02T01:02:03.25-05:30"`}, []string{`"2026-11-22"`, `"2026-11-22 10:00:00Z"`}},
	`{"type": "string", "format": "uuid"}`:                      {[]string{`"123e4567-e89b-12d3-a456-426614174000"`}, []string{`"123e4567e89b12d3a456426614174000"`, `"123e4567-e89b-12d3-a456-42661417400g"`}},
	`{"type": "string", "format": "ipv4"}`:                      {[]string{`"0.0.0.0"`, `"192.168.2.255"`}, []string{`"1.2.3"`, `"1.2.3.256"`, `"01.2.3.4"`}},
	`{"type": "string", "format": "email"}`: {
		[]string{`"a@b.de"`, `"first.last+tag@mail-1.example.com"`}, []string{`"a"`, `"@b.de"`, `"a@b"`, `"a@-b.de"`, `"a@b-.de"`, `"a..b@c.de"`, `"a b@c.de"`}},
	`{"type": "string", "format": "hostname"}`: {
		[]string{`"a"`, `"www.example.com"`, `"a-b.c1"`, quoted("h", 32)}, []string{`""`, `"-a"`, `"a-"`, `"a..b"`, `"a_b"`, quoted("h", 33), `"a."`}},
	`{"type": "string", "format": "color"}`: {[]string{`"anything"`}, []string{"1"}},
	`{"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3}`: {
		[]string{"[1]", "[1, 2]", "[1,2,\n  3]"}, []string{"[]", "[1,2,3,4]", "[1,]", `["a"]`}},
	`{"type": "array"}`:                {[]string{"[]", `[1, "a", {"b": [null]}]`}, []string{"[1,]", "{}"}},
	`{"type": "array", "maxItems": 0}`: {[]string{"[]"}, []string{"[1]"}},
	`{"prefixItems": [{"type": "integer"}, {"type": "string"}], "items": false}`: {
		[]string{"[]", "[1]", `[1, "a"]`}, []string{`["a"]`, `[1, "a", 2]`}},
	`{"prefixItems": [{"type": "integer"}], "items": {"type": "string"}, "minItems": 2}`: {
		[]string{`[1, "a"]`, `[1, "a", "b"]`}, []string{"[]", "[1]", `[1, 2]`}},
	`{"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"type": "null"}}, "required": ["b"]}`: {
		[]string{`{"b": "x"}`, `{"a": 1, "b": "x"}`, `{"a":1,"b":"x","c":null}`, `{ "b" : "x", "c": null }`},
		[]string{`{}`, `{"a": 1}`, `{"b": "x", "d": 1}`, `{"b": "x",}`, `{,"b": "x"}`, `{"b": "x" "c": null}`}},
	`{"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}`: {
		[]string{`{}`, `{"a": 1}`, `{"b": ""}`, `{"a": 1, "b": ""}`}, []string{`{"b": "", "a": 1, "a": 1}`, `{"c": 1}`}},
	`{"type": "object", "additionalProperties": {"type": "integer"}}`: {[]string{`{}`, `{"x": 1, "y z": 2}`}, []string{`{"x": "1"}`}},
	`{"type": "object", "properties": {"ab": {"type": "integer"}}, "required": ["ab"], "additionalProperties": {"type": "string"}}`: {
		[]string{`{"ab": 1}`, `{"ab": 1, "a": "x"}`, `{"ab": 1, "abc": "x", "": "y"}`}, []string{`{"ab": 1, "ab": "x"}`, `{"a": "x"}`, `{"ab": "x"}`}},
	`{"type": "object", "properties": {}}`:                         {[]string{"{}", "{ }", `{"a": 1}`}, []string{"", "[]"}},
	`{"type": "object", "additionalProperties": false}`:            {[]string{"{}"}, []string{`{"a": 1}`}},
	`{"properties": {"a\"b": {"const": 1}}, "required": ["a\"b"]}`: {[]string{`{"a\"b": 1}`}, []string{`{"ab": 1}`}},
	`{"anyOf": [{"type": "integer"}, {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}]}`: {
		[]string{"1", `{"x": 2}`}, []string{`"1"`, `{}`}},
	`{"allOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]}, {"$ref": "#/$defs/b"}], "$defs": {"b": {"properties": {"b": {"const": 2}}}}}`: {
		[]string{`{"a": 1}`, `{"a": 1, "b": 2}`}, []string{`{"b": 2}`}},
	`{"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}, "required": ["value"]}}}`: {
		[]string{`{"value": 1}`, `{"value": 1, "children": [{"value": 2, "children": []}, {"value": 3}]}`}, []string{`{"value": 1, "children": [2]}`}},
	`{"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["next"]}`: {
		[]string{`{"next": {"next": null}}`}, []string{`{"next": 1}`, `{}`}},
	`{"type": "integer", "minimum": 7, "maximum": 1234}`: {
		[]string{"7", "9", "10", "99", "100", "999", "1000", "1234"}, []string{"6", "0", "-8", "1235", "2000", "07", "12345"}},
	`{"type": "integer", "minimum": -12, "exclusiveMaximum": 5}`: {[]string{"-12", "-9", "-1", "0", "4"}, []string{"-13", "5", "-20", "12"}},
	`{"type": "integer", "exclusiveMinimum": 0}`:                 {[]string{"1", "10", "98765"}, []string{"0", "-1"}},
	`{"type": "integer", "maximum": -3}`:                         {[]string{"-3", "-30", "-4"}, []string{"-2", "0", "3", "-0"}},
	`{"type": "number", "minimum": 0, "maximum": 1}`:             {[]string{"0", "0.5", "1", "1.0", "0.999"}, []string{"1.5", "-0.1", "2", "1e3", "10"}},
	`{"type": "number", "minimum": -2}`:                          {[]string{"-2", "-1.5", "0", "12.25", "-0.3", "-2.0"}, []string{"-2.5", "-3", "-10"}},
	`{"type": "object", "title": "T", "description": "d", "properties": {"x": {"type": "string", "default": "y", "examples": ["z"]}}, "x-own": 1}`: {
		[]string{`{"x": "q"}`}, []string{`{"x": 1}`}},
	`true`:    {[]string{`{"a": [1, {"b": null}]}`, `"x"`}, []string{`{a: 1}`, ""}},
	anyOf(64): {[]string{"0", "63", "null"}, []string{"64", ""}},
}

// quoted is a JSON string of a text so many times.
func quoted(text string, times int) string { return `"` + strings.Repeat(text, times) + `"` }

// alternatives is a pattern of groups in groups, so deep.
func alternatives(deep int) string {
	return "^" + strings.Repeat("(a|b", deep) + strings.Repeat(")", deep) + "$"
}

// anyOf is a schema of so many anyOf, each within the one before.
func anyOf(deep int) string {
	text := `{"type": "null"}`
	for i := range deep {
		text = fmt.Sprintf(`{"anyOf": [{"const": %d}, %s]}`, i, text)
	}
	return text
}

func TestGrammar(t *testing.T) {
	for text, test := range cases {
		grammar, err := schema.Grammar([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		document, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		c := jsonschema.NewCompiler()
		c.AssertFormat()
		if err := c.AddResource("schema.json", document); err != nil {
			t.Fatal(err)
		}
		validator := c.MustCompile("schema.json")
		for _, yes := range test.yes {
			if ok, err := llamacpp.Matches(grammar, yes); !ok || err != nil {
				t.Errorf("%s refuses %s (%v); its grammar is\n%s", text, yes, err, grammar)
			}
			value, err := jsonschema.UnmarshalJSON(strings.NewReader(yes))
			if err != nil || validator.Validate(value) != nil {
				t.Errorf("%s should refuse %s", text, yes)
			}
		}
		for _, no := range test.no {
			if ok, err := llamacpp.Matches(grammar, no); ok || err != nil {
				t.Errorf("%s allows %s (%v); its grammar is\n%s", text, no, err, grammar)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	deep := strings.Repeat(`{"items": `, 100) + "true" + strings.Repeat("}", 100)
	lengths := ""
	for i := range 6 {
		lengths += fmt.Sprintf(`"p%d": {"maxLength": %d}, `, i, 4000+i)
	}
	for text, want := range map[string]string{
		`{`:                                "valid JSON",
		`3`:                                "object",
		`false`:                            "nothing",
		`{"type": "strin"}`:                "strin",
		`{"type": []}`:                     "type must be",
		`{"not": {}}`:                      `"not" cannot`,
		`{"properties": {"a": {"if": 1}}}`: "/properties/a",
		`{"enum": []}`:                     "/enum",
		`{"required": ["a"]}`:              `"a" is required`,
		`{"$ref": "other.json"}`:           "leads elsewhere",
		`{"$ref": "http://x/y"}`:           "leads elsewhere",
		`{"$ref": "#/$defs/a"}`:            "not in the schema",
		`{"$ref": "#"}`:                    "itself",
		`{"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}}}`: "itself",
		`{"allOf": [{"$ref": "#"}]}`:                       "within an allOf",
		`{"minLength": -1}`:                                "from 0",
		`{"minLength": 3, "maxLength": 2}`:                 "between",
		`{"maxItems": 99999}`:                              "4096",
		`{"pattern": "(?=x)"}`:                             "cannot be enforced",
		`{"pattern": "a\\b"}`:                              "cannot be enforced",
		`{"pattern": "a", "minLength": 3}`:                 "only one",
		`{"type": "integer", "minimum": 3, "maximum": 2}`:  "no number",
		`{"type": "number", "minimum": 0.5}`:               "whole number",
		`{"type": "number", "exclusiveMinimum": 0}`:        "use minimum",
		`{"type": "integer", "minimum": 1e300}`:            "between",
		`{"properties": {"a": {}, "a": {}, "a": {"x":1}}}`: "twice",
		deep: "deep",
		`{"properties": {` + lengths + `"q": {}}}`:                    "/properties/p1: the schema is too large",
		`"` + strings.Repeat("x", 70000) + `"`:                        "65536",
		`{"pattern": "` + strings.Repeat("(a{1000}){1000}", 1) + `"}`: "cannot be enforced",
	} {
		_, err := schema.Grammar([]byte(text))
		var refused *schema.Error
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.100s: %v, want an error with %q", text, err, want)
		}
	}
}

// Whatever comes in, what comes out is a grammar that the engine takes, or an *Error.
func FuzzGrammar(f *testing.F) {
	for text := range cases {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		grammar, err := schema.Grammar(text)
		if err != nil {
			var refused *schema.Error
			if !errors.As(err, &refused) {
				t.Fatal(err)
			}
			return
		}
		if _, err := llamacpp.Matches(grammar, "{}"); err != nil && !strings.Contains(err.Error(), "ambiguous") && !strings.Contains(err.Error(), "no text") {
			t.Errorf("%s gives\n%s: %v", text, grammar, err)
		}
	})
}
