package llamacpp

import (
	"errors"
	"strings"
	"testing"
	"time"

	"anytime/internal/decode"
)

const jsonGrammar = `
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
array  ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt/] | "u" [0-9a-fA-F]{4}))* "\"" ws # a comment
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws     ::= | " " | "\n" [ \t]{0,20}
`

func TestGrammarReads(t *testing.T) {
	for _, test := range []struct {
		grammar  string
		complete []string // can be read and may end there
		open     []string // can be read, but must go on
		refused  []string
	}{
		{`root ::= "yes" | "no"`, []string{"yes", "no"}, []string{"y", "n", "ye"}, []string{"x", "yess", "yn"}},
		{`root ::= "a"{2,3} "b"?`, []string{"aa", "aaa", "aab", "aaab"}, []string{"a"}, []string{"ab", "aaaa", "aabb"}},
		{`root ::= ("ab"){2}`, []string{"abab"}, []string{"ab", "aba"}, []string{"aa", "ababa"}},
		{`root ::= "ab"*`, []string{"", "ab", "abab"}, []string{"a"}, []string{"b", "abb"}},
		{`root ::= "a"{2,}`, []string{"aa", "aaaaaa"}, []string{"a"}, []string{"b"}},
		{`root ::= [^a-c\]]+`, []string{"d", "é", "xyz"}, nil, []string{"a", "xb", "]"}},
		{`root ::= .`, []string{"a", "\n", "猫"}, []string{"\xe7\x8c", "\xf0"}, []string{"ab", "\xff", "\x80"}},
		{`root ::= [а-я]+`, []string{"привет"}, []string{"\xd0"}, []string{"\xd2", "a", "\xe7"}},
		{"root ::= a\n  \na ::= \"x\" a | \"y\"\n", []string{"y", "xy", "xxxy"}, []string{"x"}, []string{"yx"}},
		{`root ::= ("a"*)*`, []string{"", "aaa"}, nil, []string{"b"}},
		{`root ::= "\x41\u00e9\U0001F600\t"`, []string{"Aé😀\t"}, []string{"Aé\xf0\x9f"}, []string{"Aé\xf0\x90"}},
		{"root ::= (\"a\" |\n \"b\") # both\n", []string{"a", "b"}, nil, []string{"c"}},
		{
			jsonGrammar, []string{`{}`, `{"a": [1, -2.5e3, "x\u00e9"], "b": {"c": null}}`},
			[]string{`{"a`, `{"a": [1,`}, []string{`[`, `{a`, `{"a": 01`, `{"a": "` + "\n"},
		},
	} {
		read := func(text string) (ok, complete bool) {
			m, err := newMatcher(test.grammar, nil)
			if err != nil {
				t.Fatalf("%s: %v", test.grammar, err)
			}
			// Byte by byte, as tokens may come.
			for i := range len(text) {
				if !m.allows(text[i : i+1]) {
					return false, false
				}
				m.accept(text[i : i+1])
			}
			whole, _ := newMatcher(test.grammar, nil)
			if text != "" && !whole.allows(text) {
				t.Errorf("%s: reads %q by bytes, but not as one", test.grammar, text)
			}
			return true, m.complete()
		}
		for _, text := range test.complete {
			if ok, complete := read(text); !ok || !complete {
				t.Errorf("%s: %q: read %v, complete %v", test.grammar, text, ok, complete)
			}
		}
		for _, text := range test.open {
			if ok, complete := read(text); !ok || complete {
				t.Errorf("%s: %q: read %v, complete %v", test.grammar, text, ok, complete)
			}
		}
		for _, text := range test.refused {
			if ok, _ := read(text); ok {
				t.Errorf("%s: %q is read", test.grammar, text)
			}
		}
	}
}

func TestGrammarRefused(t *testing.T) {
	for name, test := range map[string]struct{ grammar, want string }{
		"empty":             {"", "root"},
		"no root":           {`a ::= "x"`, "root"},
		"undefined":         {"root ::= a\n", `"a" is used but not defined`},
		"open string":       {`root ::= "a`, "is missing"},
		"open class":        {`root ::= [a-`, "is missing"},
		"open group":        {`root ::= ("a"`, "group"},
		"stray":             {`root ::= "a" )`, "')'"},
		"no ::=":            {`root = "a"`, "::="},
		"twice":             {"root ::= \"a\"\nroot ::= \"b\"", "twice"},
		"escape":            {`root ::= "\q"`, "escape"},
		"bad hex":           {`root ::= "\x0g"`, "hexadecimal"},
		"backwards":         {`root ::= [z-a]`, "backwards"},
		"repetition":        {`root ::= "a"{5,2}`, "repetition"},
		"negative":          {`root ::= "a"{-1,2}`, "repetition"},
		"huge repetition":   {`root ::= "a"{1,1000000}`, "repetition"},
		"huge number":       {`root ::= "a"{99999999999999999999}`, "repetition"},
		"nested repetition": {`root ::= ((("a"{1,100}){1,100} "b"){100}){1,1000}` + strings.Repeat(" (\"x\"{4000}){40}", 30), "elements"},
		"deep":              {"root ::= " + strings.Repeat("(", 100000) + `"a"` + strings.Repeat(")", 100000), "bytes"},
		"deep enough":       {"root ::= " + strings.Repeat("(", 1000) + `"a"` + strings.Repeat(")", 1000), "nested"},
		"left recursion":    {`root ::= root "a" | "b"`, "begins with itself"},
		"indirect":          {"root ::= a\na ::= b\nb ::= a", "no text at all"},
		"hidden by nothing": {"root ::= \"x\"? root \"a\" | \"b\"", "begins with itself"},
		"token":             {`root ::= <[5]> "a"`, "not supported"},
		"not UTF-8":         {"root ::= \"\xff\"", "UTF-8"},
		"NUL":               {"root ::= \x00", `'\x00'`},
	} {
		began := time.Now()
		err := checkGrammar(test.grammar)
		var input *decode.InputError
		if !errors.As(err, &input) || input.Field != "grammar" || !strings.Contains(input.Reason, test.want) {
			t.Errorf("%s: error %v does not say %q", name, err, test.want)
		}
		if d := time.Since(began); d > time.Minute {
			t.Errorf("%s: took %v", name, d)
		}
	}
}

// Grammars over which llama.cpp's matcher hangs or takes exponential time.
func TestGrammarAmbiguous(t *testing.T) {
	for name, grammar := range map[string]string{
		"optional chain": `root ::= ` + strings.Repeat(`"a"? `, 1000) + `"b"`,
		"stars":          `root ::= ` + strings.Repeat(`"a"* `, 500) + `"b"`,
		"nested":         `root ::= (("a"?){50}){50} "b"`,
		"two ways":       "root ::= s\ns ::= \"a\" s x | \"a\" s y | \"a\"\nx ::= \"b\"\ny ::= \"c\"",
	} {
		m, err := newMatcher(grammar, nil)
		if err != nil {
			continue // refused at once: fine, too
		}
		for range 10 { // some of them go on for ever, but every token must be judged in bounded time
			began := time.Now()
			ok := m.allows("aaaaaaaa")
			if d := time.Since(began); d > time.Minute {
				t.Errorf("%s: a token took %v", name, d)
			}
			if !ok {
				break
			}
			m.accept("aaaaaaaa")
		}
	}
}

func FuzzGrammar(f *testing.F) {
	for _, g := range []string{jsonGrammar, `root ::= "a"{2,3} | [^b-d]* (.)?`, "root ::= a\na ::= \"x\" a |\n", `root ::= (((`, "root ::= \"\\u00", `root ::= ""? ""* ""{2,3} "a"`} {
		f.Add(g, "aab{}")
	}
	f.Fuzz(func(t *testing.T, grammar, text string) {
		began := time.Now()
		m, err := newMatcher(grammar, nil)
		if d := time.Since(began); d > 10*time.Second {
			t.Fatalf("%q was checked for %v", grammar, d)
		}
		if err != nil {
			var input *decode.InputError
			if !errors.As(err, &input) {
				t.Fatalf("error %v is no InputError", err)
			}
			return
		}
		for i := range min(len(text), 8) {
			began := time.Now()
			if !m.allows(text[i : i+1]) {
				break
			}
			m.accept(text[i : i+1])
			if d := time.Since(began); d > 10*time.Second {
				t.Fatalf("%q: a byte took %v", grammar, d)
			}
			if len(m.state) == 0 {
				t.Fatalf("an allowed byte left no way to go on: %q %q", grammar, text[:i+1])
			}
		}
	})
}

// A special token comes where the grammar spells it out, not where it would be free text.
func TestGrammarSpellsSpecialTokens(t *testing.T) {
	for _, test := range []struct {
		grammar, before, token string
		want                   bool
	}{
		{`root ::= "<tool_call>" "x"`, "", "<tool_call>", true},
		{`root ::= "<tool_call>x"`, "", "<tool_call>", true},
		{`root ::= "<tool_call>x"`, "<tool", "_call>", true},
		{`root ::= "<tool_"`, "", "<tool_call>", false},
		{`root ::= .*`, "", "<think>", false},
		{`root ::= [<] [a-z]* [>]`, "", "<think>", false},
		{"root ::= \"\" | \"<\" a | [^<] root\na ::= \"b>\" | [^b] root", "x", "<b>", true},
		{"root ::= \"\" | \"<\" a | [^<] root\na ::= \"b>\" | [^b] root", "x", "<c>", false},
	} {
		m, err := newMatcher(test.grammar, nil)
		if err != nil {
			t.Fatal(err)
		}
		if test.before != "" {
			m.accept(test.before)
		}
		if got := m.allowsToken(test.token, true); got != test.want {
			t.Errorf("%s behind %q: special %q allowed: %v", test.grammar, test.before, test.token, got)
		}
	}
}
