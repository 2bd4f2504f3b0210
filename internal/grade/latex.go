package grade

import (
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Boxed returns the content of the last \boxed{…} or \fbox{…} in text that is not
// empty and whose braces balance, or of a last \boxed 5 without braces. It looks at the
// last maxTail bytes; ok is false if there is no box.
func Boxed(text string) (content string, ok bool) {
	content, _, ok = boxes(text)
	return content, ok
}

// boxes returns the content of the last box and, as boxes joined by commas, and, or are
// one answer, the whole of that: the text from the first to the last of them.
func boxes(text string) (content, whole string, ok bool) {
	text = text[max(0, len(text)-maxTail):]
	var last box
	empty := false
	end := len(text)
	for range maxBoxes {
		b := lastBox(text[:end])
		if b.start < 0 {
			break
		}
		end = b.start
		switch {
		case b.end < 0: // never closed
		case b.content == "":
			empty = true
		case last.end > 0 && joint.MatchString(text[b.end:last.start]):
			last.start = b.start
			whole = text[b.start-len(assignment.FindString(text[:b.start])) : last.end]
		case last.end > 0:
			return content, whole, true
		default:
			last, content, whole = b, b.content, b.content
		}
	}
	return content, whole, empty || content != ""
}

const (
	maxTail  = 1 << 15 // bytes at the end of a text in which its answer is looked for
	maxBoxes = 16      // that are looked at
)

// what may stand between two boxes of one answer, and before the first
var (
	joint      = regexp.MustCompile(`^(?:[\s$~]|\\[()\[\],; ]|\\quad)*(?:,|;|,?\s*(?:\\(?:text|mbox)\{)?\s*(?:and|or)\b\s*\}?)(?:[\s$~]|\\[()\[\],; ]|\\quad)*(?:[A-Za-z]\w*\s*=\s*\$*)?$`)
	assignment = regexp.MustCompile(`\b[A-Za-z]\w*\s*=\s*\$*$`)
)

// box is a box in a text; start is negative if there is none, end if it is not closed.
type box struct {
	start, end int
	content    string
}

func lastBox(text string) box {
	start := max(strings.LastIndex(text, `\boxed`), strings.LastIndex(text, `\fbox`))
	if start < 0 {
		return box{start: -1}
	}
	rest := strings.TrimPrefix(strings.TrimPrefix(text[start:], `\boxed`), `\fbox`)
	rest = strings.TrimLeft(rest, " \t\n")
	if strings.HasPrefix(rest, "{") {
		if content, after, ok := group(rest); ok {
			return box{start, len(text) - len(after), strings.TrimSpace(content)}
		}
	} else if i := strings.IndexAny(rest+" ", " \t\n$,;"); i > 0 {
		for depth, j := 0, 0; j < i; j++ { // a brace that closes what is around the box ends it
			switch rest[j] {
			case '{':
				depth++
			case '}':
				if depth--; depth < 0 {
					i = j
				}
			}
		}
		return box{start, len(text) - len(rest) + i, strings.TrimRight(rest[:i], ".")}
	}
	return box{start: start, end: -1}
}

// group splits s, which starts with a brace, after the brace that closes it.
func group(s string) (content, rest string, ok bool) {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++ // an escaped brace is a letter of the text
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				return s[1:i], s[i+1:], true
			}
		}
	}
	return "", "", false
}

// Normalize takes off what surrounds an answer without being part of it: a box (of
// several that are one answer, what is around them),
// dollar signs, \( \), \[ \], quotes, emphasis, spaces, final full stops.
func Normalize(answer string) string {
	answer = undress(answer)
	if _, whole, ok := boxes(answer); ok {
		answer = undress(whole)
	}
	return answer
}

// clothes come in pairs around an answer.
var clothes = [][2]string{{"$$", "$$"}, {"$", "$"}, {`\(`, `\)`}, {`\[`, `\]`}, {"***", "***"}, {"**", "**"}, {"*", "*"}, {"`", "`"}, {`"`, `"`}, {"“", "”"}}

// undress takes off every pair at most once: what a pair encloses has no more of it.
func undress(s string) string {
	for range clothes {
		s = strings.TrimSpace(s)
		for strings.HasSuffix(s, ".") && !strings.HasSuffix(s, "..") {
			s = strings.TrimSpace(s[:len(s)-1])
		}
		worn := slices.IndexFunc(clothes, func(pair [2]string) bool {
			inner, opened := strings.CutPrefix(s, pair[0])
			inner, closed := strings.CutSuffix(inner, pair[1])
			return opened && closed && inner != "" && !strings.Contains(inner, pair[0]) && !strings.HasSuffix(inner, `\`)
		})
		if worn < 0 {
			break
		}
		s = s[len(clothes[worn][0]) : len(s)-len(clothes[worn][1])]
	}
	return s
}

// kind says what a token is.
type kind int

const (
	tokOp     kind = iota // operator, bracket, relation or structure, by its canonical name
	tokNumber             // unsigned decimal: 12, .5, 1e5, 0.1(6) with recurring digits
	tokLetter             // a symbol: x, \alpha, \dot{x}
	tokFunc               // sin, ln, …
	tokWord               // upright text: a unit or a word
)

type token struct {
	kind  kind
	text  string
	space bool // white space before it
}

// unicodeForms maps what people and models write outside LaTeX to LaTeX.
var unicodeForms = strings.NewReplacer(
	"−", "-", "–", "-", "—", "-", "×", `\times `, "÷", `\div `, "·", `\cdot `, "⋅", `\cdot `, "∗", "*",
	"≤", `\le `, "≥", `\ge `, "⩽", `\le `, "⩾", `\ge `, "≠", `\ne `, "≈", `\approx `, "∈", `\in `,
	"∪", `\cup `, "∩", `\cap `, "∖", `\setminus `, "∅", `\emptyset `, "∞", `\infty `, "±", `\pm `, "∓", `\mp `,
	"π", `\pi `, "θ", `\theta `, "α", `\alpha `, "β", `\beta `, "γ", `\gamma `, "λ", `\lambda `, "μ", `\mu `,
	"ω", `\omega `, "φ", `\phi `, "σ", `\sigma `, "τ", `\tau `, "ρ", `\rho `, "δ", `\delta `, "ε", `\epsilon `,
	"√", " sqrt ", "∛", " cbrt ", "°", `\degree `, "′", "'", "″", "''", "’", "'", "ℝ", `\mathbb{R}`, "ℤ", `\mathbb{Z}`, "ℕ", `\mathbb{N}`,
	"½", `\frac12 `, "⅓", `\frac13 `, "⅔", `\frac23 `, "¼", `\frac14 `, "¾", `\frac34 `, "⅕", `\frac15 `, "⅖", `\frac25 `, "⅗", `\frac35 `,
	"⅘", `\frac45 `, "⅙", `\frac16 `, "⅚", `\frac56 `, "⅛", `\frac18 `, "⅜", `\frac38 `, "⅝", `\frac58 `, "⅞", `\frac78 `,
	"∙", `\cdot `, "•", `\cdot `, "º", `\degree `, "˚", `\degree `, "∕", "/", "⁄", "/", "Ω", `\Omega `, "Ω", `\Omega `, "∧", `\land `, "∨", `\lor `,
	"\u200b", "", "\u200c", "", "\u200d", "", "\u2060", "", "\ufeff", "", "∀", `\forall `, "∴", "", "∣", `\mid `, "﹣", "-", "，", ",", "。", ".",
	"⟨", `\langle `, "⟩", `\rangle `, "⌊", `\lfloor `, "⌋", `\rfloor `, "⌈", `\lceil `, "⌉", `\rceil `,
	"\u00a0", " ", "\u2009", " ", "\u202f", " ", "<=", `\le `, ">=", `\ge `, "!=", `\ne `, "==", "=", "**", "^", `+/-`, `\pm `,
)

// raised and lowered list the digits, signs and letters of Unicode's super- and subscripts.
var (
	raised  = scripts("⁰0¹1²2³3⁴4⁵5⁶6⁷7⁸8⁹9⁺+⁻-⁽(⁾)ⁿnⁱi")
	lowered = scripts("₀0₁1₂2₃3₄4₅5₆6₇7₈8₉9₊+₋-₍(₎)ₙnᵢiₖkₓx")
)

func scripts(pairs string) map[rune]rune {
	table := make(map[rune]rune)
	runes := []rune(pairs)
	for i := 0; i < len(runes); i += 2 {
		table[runes[i]] = runes[i+1]
	}
	return table
}

// latex rewrites what people and models write outside LaTeX: a run of superscripts is
// one exponent, and full-width signs are plain ones.
func latex(s string) string {
	var b strings.Builder
	open := ""
	for _, r := range s {
		script, mark := raised[r], "^{"
		if script == 0 {
			script, mark = lowered[r], "_{"
		}
		if script == 0 {
			mark = ""
		}
		if mark != open {
			if open != "" {
				b.WriteByte('}')
			}
			b.WriteString(mark)
			open = mark
		}
		switch {
		case script != 0:
			b.WriteRune(script)
		case r > 0xff00 && r < 0xff5f:
			b.WriteRune(r - 0xfee0)
		default:
			b.WriteRune(r)
		}
	}
	if open != "" {
		b.WriteByte('}')
	}
	return halfDay.ReplaceAllStringFunc(unicodeForms.Replace(b.String()), func(s string) string {
		return s[:1] + `\text{ ` + strings.ToLower(halfDay.FindStringSubmatch(s)[1]) + "m}"
	})
}

var halfDay = regexp.MustCompile(`(?i)[0-9](?:\s|~|\\[ ,;:])*(?:\\(?:text|mbox|mathrm|textrm)\{\s*)?\b([ap])(?:\.\s?m\.?|m)\s*\}?$`)

// commands maps LaTeX commands to canonical operator tokens; "" drops the command.
var commands = map[string]string{
	"left": "", "right": "", "middle": "", "big": "", "Big": "", "bigg": "", "Bigg": "", "bigl": "", "bigr": "", "Bigl": "", "Bigr": "",
	"biggl": "", "biggr": "", "displaystyle": "", "textstyle": "", "limits": "", "nolimits": "", "hline": "",
	"quad": "", "qquad": "", ",": "", ";": "", ":": "", "!": "", " ": "", "(": "", ")": "", "[": "", "]": "",
	"thinspace": "", "hfill": "", "mathbf": "", "mathit": "", "boldsymbol": "", "bm": "", "mathstrut": "", "rm": "", "bf": "",
	"boxed": "", "fbox": "", "pmb": "", "bold": "", "normalsize": "", "scriptstyle": "", "footnotesize": "", "enspace": "",
	"square": "", "Box": "", "blacksquare": "", "qed": "", "checkmark": "", "therefore": "", "ensuremath": "",
	"underline": "", "tiny": "", "small": "", "large": "", "Large": "", "LARGE": "", "huge": "", "Huge": "",
	"cdot": "*", "times": "*", "ast": "*", "div": "/", "pm": "±", "mp": "∓",
	"frac": "frac", "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "sqrt": "sqrt",
	"binom": "binom", "dbinom": "binom", "tbinom": "binom", `\`: `\\`,
	"{": "set{", "}": "set}", "lbrace": "set{", "rbrace": "set}", "langle": "(", "rangle": ")",
	"lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "|": "|", "lfloor": "lfloor", "rfloor": "rfloor", "lceil": "lceil", "rceil": "rceil",
	"lbrack": "[", "rbrack": "]", "lparen": "(", "rparen": ")",
	"le": "<=", "leq": "<=", "leqslant": "<=", "ge": ">=", "geq": ">=", "geqslant": ">=", "lt": "<", "gt": ">",
	"ne": "!=", "neq": "!=", "approx": "≈", "in": "in", "colon": ":",
	"cup": "∪", "bigcup": "∪", "cap": "∩", "setminus": "∖", "backslash": "∖",
	"prime": "'", "circ": "deg", "degree": "deg", "infty": "inf", "emptyset": "empty", "varnothing": "empty",
	"ldots": "...", "cdots": "...", "dots": "...", "%": "%", "$": "$", "#": "#", "_": "_", "&": "&",
	"land": "∧", "wedge": "∧", "lor": "∨", "vee": "∨", "over": "over", "choose": "choose", "newline": "", "to": "→", "rightarrow": "→", "implies": "→", "Rightarrow": "→",
}

// upright commands hold text, accents make one symbol with their argument.
var (
	upright = setOf("text mbox textrm textbf textit textnormal texttt textsf textup emph unit mathrm mathsf operatorname hbox")
	accents = setOf("overline bar vec hat dot ddot tilde widehat widetilde overrightarrow mathcal mathbb mathfrak mathscr")
	funcs   = setOf("sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc asin acos atan sinh cosh tanh " +
		"arcsinh arccosh arctanh arsinh arcosh artanh asinh acosh atanh cis ln log lg exp sqrt cbrt abs floor ceil binom")
	opaque = setOf("gcd max min sup det arg Pr") // of which only the arguments are compared
	greek  = setOf("alpha beta gamma delta epsilon theta lambda mu omega phi psi sigma tau rho")
)

func setOf(words string) map[string]bool {
	set := make(map[string]bool)
	for _, w := range strings.Fields(words) {
		set[w] = true
	}
	return set
}

// lexer cuts LaTeX or plain text into tokens. It takes any input: what it does not
// know becomes an operator that the parser refuses.
type lexer struct {
	src     string
	pos     int
	depth   int  // open brackets; inside them a comma never groups thousands
	nested  int  // of groups of text
	upright bool // inside \text and the like
	space   bool
	lists   bool // read 100,200 as a list
	grouped bool // a bare comma was read as a thousands separator
	display int  // open environments such as aligned; in them & is nothing and \\ a comma
	matrix  int  // open environments of another kind
	toks    []token
}

// lex returns the tokens of an answer, and whether some bare comma was taken for a
// thousands separator that may separate a list (unless lists asks for that). Letters
// of prose are words.
func lex(answer string, prose, lists bool) (toks []token, ambiguous bool) {
	l := &lexer{src: latex(answer), lists: lists, upright: prose}
	if prose {
		l.src = strings.NewReplacer("-", " ", "'", "").Replace(answer)
	}
	l.run()
	for len(l.toks) > 0 && strings.Contains(`.,;\\`, l.toks[len(l.toks)-1].text) {
		l.toks = l.toks[:len(l.toks)-1]
	}
	return l.toks, l.grouped
}

// clause is what may follow an answer and say what its variables are: for all n,
// k ∈ ℤ, where k is an integer. It must not say which of them.
var clause = regexp.MustCompile(`^(.*?[^\s,(~])(?:[\s,~($]|\\(?:q?quad\b|[ ,;:(]))*` +
	`(?:(?:\\(?:text|mbox|textrm)\s*\{\s*|\b)(?:for (?:all|every|any|each)|where)\b|\\forall\b|[,(]\s*\$*[A-Za-z]\s*\\in\b)` +
	`(?:[\s{}$~,()]|\\(?:text|mbox|textrm|mathbb|q?quad|in\b|[ ,;:)])|\b(?:reals?|integers?|numbers?|is|any|an|a|[A-Za-z])\b)*$`)

// withoutClause returns an answer without such a clause.
func withoutClause(answer string) string {
	latex := latex(answer)
	opened := func(word string) bool { return strings.Contains(latex, word) }
	if slices.ContainsFunc([]string{"for ", "where", `\forall`, `\in`}, opened) && !isProse(answer) {
		if m := clause.FindStringSubmatch(latex); m != nil {
			return m[1]
		}
	}
	return answer
}

// isProse reports whether s is words only, at least one of them no product of
// variables by its look: three letters and a vowel.
func isProse(s string) bool {
	prose := false
	for _, w := range strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune(" -'.,!?", r) }) {
		for _, r := range w {
			if r >= utf8.RuneSelf || !unicode.IsLetter(r) {
				return false
			}
		}
		if funcs[w] || greek[w] || constantWords[w] != "" {
			return false
		}
		prose = prose || len(w) >= 3 && strings.ContainsAny(w, "aeiouAEIOU")
	}
	return prose
}

// displays are environments around one formula or more, a line each.
var displays = setOf("aligned align alignat equation gathered gather split multline displaymath math")

// siunitx turns the names of units of \SI{20}{\meter\per\second} into units.
var siunitx = strings.NewReplacer(`\per`, "/", `\squared`, "^2", `\cubed`, "^3", `\square`, "square ", `\cubic`, "cubic ", `\`, " ")

const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

var constantWords = map[string]string{"infinity": "inf", "infty": "inf", "oo": "inf", "inf": "inf", "pi": "pi"}

func (l *lexer) emit(k kind, text string) {
	l.toks = append(l.toks, token{k, text, l.space})
	l.space = false
}

func (l *lexer) rest() string { return l.src[l.pos:] }

func (l *lexer) run() {
	for l.pos < len(l.src) {
		r, size := utf8.DecodeRuneInString(l.rest())
		switch {
		case r == '$' && strings.Count(l.src, "$") == 1 && l.pos+1 < len(l.src) && isDigit(l.src[l.pos+1]):
			l.emit(tokOp, "$") // $5 is money, $5$ is mathematics
			l.pos++
		case unicode.IsSpace(r) || r == '~' || r == '$':
			l.space = true
			l.pos += size
		case r == '\\':
			l.command()
		case r >= '0' && r <= '9', r == '.' && (l.pos+1 < len(l.src) && isDigit(l.src[l.pos+1]) || recurring.MatchString(l.rest())):
			l.number()
		case unicode.IsLetter(r):
			l.word()
		case strings.HasPrefix(l.rest(), "..."):
			l.emit(tokOp, "...")
			l.pos += 3
		case r == '.' && l.upright && len(l.toks) > 0 && l.toks[len(l.toks)-1].kind == tokWord:
			l.pos++ // sq. ft.
		case r == '&' && l.display > 0 && l.matrix == 0:
			l.pos++
		default:
			l.bracket(string(r))
			l.emit(tokOp, string(r))
			l.pos += size
		}
	}
}

func (l *lexer) bracket(op string) {
	switch op {
	case "(", "[", "set{", "begin":
		l.depth++
	case ")", "]", "set}", "end":
		l.depth--
	}
}

// argument reads the argument of a command: a group, or one character or command.
func (l *lexer) argument() string {
	rest := strings.TrimLeft(l.rest(), " ")
	if content, after, ok := group(rest); ok && rest[0] == '{' {
		l.pos = len(l.src) - len(after)
		return content
	}
	if rest == "" {
		l.pos = len(l.src)
		return ""
	}
	_, n := utf8.DecodeRuneInString(rest)
	if rest[0] == '\\' {
		for n < len(rest) && isLetter(rest[n]) {
			n++
		}
	}
	l.pos = len(l.src) - len(rest) + n
	return rest[:n]
}

func (l *lexer) command() {
	l.pos++
	start := l.pos
	for l.pos < len(l.src) && isLetter(l.src[l.pos]) {
		l.pos++
	}
	if l.pos == start && l.pos < len(l.src) {
		_, n := utf8.DecodeRuneInString(l.rest())
		l.pos += n
	}
	name := l.src[start:l.pos]
	op, known := commands[name]
	switch {
	case upright[name]:
		l.text(name)
	case accents[name]:
		l.emit(tokLetter, name+"{"+strings.ReplaceAll(l.argument(), " ", "")+"}")
	case name == "color" || name == "textcolor" || name == "hspace" || name == "vspace" || name == "phantom":
		l.argument()
		l.space = true
	case name == "tag":
		l.argument()
	case name == "SI" || name == "qty":
		l.within(l.argument(), false)
		l.within(siunitx.Replace(l.argument()), true)
	case name == "begin" || name == "end":
		env := strings.TrimSpace(l.argument())
		step := 1
		if name == "end" {
			step = -1
		}
		if displays[strings.TrimSuffix(env, "*")] {
			l.display += step
			return
		}
		l.matrix += step
		if name == "begin" && env == "array" {
			l.argument() // the columns
		}
		l.bracket(name)
		l.emit(tokOp, name)
		l.toks[len(l.toks)-1].text += " " + env
	case name == "left" || name == "right":
		if strings.HasPrefix(l.rest(), ".") {
			l.pos++
		}
	case name == `\` && l.display > 0 && l.matrix == 0:
		l.emit(tokOp, ",")
	case name == `\` && strings.HasPrefix(l.rest(), "["): // \\[4pt]
		if i := strings.IndexByte(l.rest(), ']'); i > 0 {
			l.pos += i + 1
		}
		l.emit(tokOp, `\\`)
	case known && op == "":
		l.space = true
	case known:
		l.bracket(op)
		l.emit(tokOp, op)
	case funcs[name] || opaque[name]:
		l.emit(tokFunc, name)
	case name == "":
		l.emit(tokOp, `\`)
	default:
		l.emit(tokLetter, name)
	}
}

// text reads the argument of an upright command: e and i there are still constants,
// names of functions still functions, digits and signs as elsewhere; letters are words.
func (l *lexer) text(command string) {
	content := l.argument()
	name := strings.Trim(content, " ~")
	switch _, isUnit := unitTable[name]; {
	case isUnit && (name != "e" && name != "i" && name != "d") || funcs[name] || strings.Trim(name, letters) != "" || name == "":
	case command == "operatorname":
		l.emit(tokFunc, name)
		return
	case len(name) == 1:
		l.emit(tokLetter, name)
		return
	case command == "mathrm" && len(name) <= 3 && !strings.ContainsAny(name, "aeiouy"): // R times C
		for i := range name {
			l.emit(tokLetter, name[i:i+1])
		}
		return
	}
	l.within(content, true)
}

// within cuts a part of the answer into tokens.
func (l *lexer) within(content string, upright bool) {
	if l.nested++; l.nested > maxDepth {
		return
	}
	inner := &lexer{src: content, upright: upright, depth: l.depth, nested: l.nested, lists: l.lists, space: l.space}
	inner.run()
	l.toks = append(l.toks, inner.toks...)
	l.grouped = l.grouped || inner.grouped
	l.space = inner.space
}

func (l *lexer) word() {
	rest := l.rest()
	n := 0
	for n < len(rest) {
		r, size := utf8.DecodeRuneInString(rest[n:])
		if !unicode.IsLetter(r) {
			break
		}
		n += size
	}
	w := rest[:n]
	l.pos += n
	afterValue := false
	if len(l.toks) > 0 {
		last := l.toks[len(l.toks)-1]
		afterValue = last.kind == tokNumber || last.kind == tokWord || last.text == ")" || last.text == "}"
	}
	_, isUnit := unitTable[w]
	ascii := len(w) == utf8.RuneCountInString(w)
	switch {
	case w == "and" || w == "or":
		l.emit(tokOp, w)
	case w == "per" && afterValue:
		l.emit(tokOp, "/")
	case constantWords[w] == "pi":
		l.emit(tokLetter, "pi")
	case constantWords[w] != "":
		l.emit(tokOp, constantWords[w])
	case funcs[w]:
		l.emit(tokFunc, w)
	case l.upright || !ascii:
		l.emit(tokWord, w)
	case greek[w]:
		l.emit(tokLetter, w)
	case afterValue && l.space && isProse(l.src[l.pos-n:]) && strings.Contains(l.rest(), " "): // of the cake
		l.upright = true
		l.emit(tokWord, w)
	case isUnit && afterValue && len(w) > 1 && (l.space || len(w) > 2 || w[0] != 'm'): // 2mg is 2·m·g
		l.emit(tokWord, w)
	case len(w) >= 4 && strings.ContainsAny(w, "aeiouAEIOU") && (l.space || !afterValue):
		l.emit(tokWord, w)
	default:
		l.letters(w)
	}
}

// letters emits a run of italic letters: sinx, xsin( and else a product of symbols.
func (l *lexer) letters(w string) {
	if n := len(w) - 1; n > 0 && funcs[w[:n]] {
		l.emit(tokFunc, w[:n])
		w = w[n:]
	}
	called := strings.HasPrefix(l.rest(), "(")
	for i := range w {
		if called && len(w)-i <= 6 && funcs[w[i:]] {
			l.emit(tokFunc, w[i:])
			return
		}
		l.emit(tokLetter, w[i:i+1])
	}
}

// number reads digits with their thousands separators, fraction, recurring digits
// and exponent.
func (l *lexer) number() {
	digits := l.digits()
	if sep := l.thousands(len(digits)); digits != "" && digits[0] != '0' && sep != nil {
		for n := l.separator(sep); n > 0; n = l.separator(sep) {
			l.pos += n
			digits += l.digits()
		}
	}
	if m := recurring.FindStringSubmatch(l.rest()); m != nil {
		l.pos += len(m[0])
		l.emit(tokNumber, digits+"."+m[1]+"("+strings.Join(m[2:], "")+")")
		return
	}
	if rest := l.rest(); len(rest) > 1 && rest[0] == '.' && isDigit(rest[1]) {
		l.pos++
		digits += "." + l.digits()
	}
	if rest := l.rest(); len(rest) > 1 && (rest[0] == 'e' || rest[0] == 'E') {
		n := 1
		if rest[n] == '-' || rest[n] == '+' {
			n++
		}
		start := n
		for n < len(rest) && isDigit(rest[n]) {
			n++
		}
		if n > start {
			digits += rest[:n]
			l.pos += n
		}
	}
	l.emit(tokNumber, digits)
}

// recurring matches .1\overline{6}, .\dot{1}4285\dot{7} and .(3), but not .1(6), which
// may be a product.
var recurring = regexp.MustCompile(`^\.(?:([0-9]*)\\(?:overline|bar|dot) ?(?:\{([0-9]+)\}|([0-9]))(?:([0-9]*)\\dot ?(?:\{([0-9])\}|([0-9])))?|\(([0-9]+)\))`)

func (l *lexer) digits() string {
	start := l.pos
	for l.pos < len(l.src) && isDigit(l.src[l.pos]) {
		l.pos++
	}
	return l.src[start:l.pos]
}

// thousands returns the separators that may group the number of which n leading
// digits have been read, nil if none does. A bare comma must group the whole run
// of digits and commas around it, or the run is a list.
func (l *lexer) thousands(n int) []string {
	if n == 0 || n > 3 {
		return nil
	}
	always := []string{`{,}`, `,\!`, `\,`, `\ `, `\;`, ` `}
	if l.separator(always) > 0 {
		return always
	}
	start, end := l.pos-n, l.pos
	for end < len(l.src) && (isDigit(l.src[end]) || l.src[end] == ',' && end+1 < len(l.src) && isDigit(l.src[end+1])) {
		end++
	}
	run := l.src[start:end]
	if l.depth > 0 || !strings.Contains(run, ",") || start > 0 && l.src[start-1] == ',' {
		return nil
	}
	zeros := false // 1,000 can be no list
	for _, g := range strings.Split(run, ",")[1:] {
		if len(g) != 3 {
			return nil
		}
		zeros = zeros || g[0] == '0'
	}
	if l.lists && !zeros {
		return nil
	}
	l.grouped = l.grouped || !zeros
	return []string{","}
}

// separator returns the length of the thousands separator here, which exactly three
// digits must follow, or 0.
func (l *lexer) separator(forms []string) int {
	for _, sep := range forms {
		rest, ok := strings.CutPrefix(l.rest(), sep)
		if !ok {
			continue
		}
		tail := strings.TrimLeft(rest, " ")
		if sep == " " && tail != rest {
			continue
		}
		if len(tail) >= 3 && isDigit(tail[0]) && isDigit(tail[1]) && isDigit(tail[2]) && (len(tail) == 3 || !isDigit(tail[3])) {
			return len(l.rest()) - len(tail)
		}
	}
	return 0
}

func isDigit(c byte) bool  { return c >= '0' && c <= '9' }
func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }
