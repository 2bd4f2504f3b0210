package grade

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Boxed returns the content of the last \boxed{…} or \fbox{…} in text whose braces
// balance, or of a last \boxed 5 without braces. ok is false if there is none.
func Boxed(text string) (content string, ok bool) {
	end := len(text)
	for range maxBoxes {
		start := max(strings.LastIndex(text[:end], `\boxed`), strings.LastIndex(text[:end], `\fbox`))
		if start < 0 {
			return "", false
		}
		rest := strings.TrimPrefix(strings.TrimPrefix(text[start:], `\boxed`), `\fbox`)
		rest = strings.TrimLeft(rest, " \t\n")
		if strings.HasPrefix(rest, "{") {
			if content, _, ok := group(rest); ok {
				return strings.TrimSpace(content), true
			}
		} else if i := strings.IndexAny(rest+" ", " \t\n$,;"); i > 0 {
			return strings.TrimRight(rest[:i], "."), true
		}
		end = start
	}
	return "", false
}

const maxBoxes = 16 // that do not close, behind the one that is looked for

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

// Normalize takes off what surrounds an answer without being part of it: a box,
// dollar signs, \( \), \[ \], emphasis, spaces, a final full stop.
func Normalize(answer string) string {
	for range maxDepth {
		s := strings.TrimSpace(answer)
		if content, ok := Boxed(s); ok {
			s = content
		}
		if strings.HasSuffix(s, ".") && !strings.HasSuffix(s, "..") {
			s = strings.TrimSuffix(s, ".")
		}
		for _, pair := range [][2]string{{"$$", "$$"}, {"$", "$"}, {`\(`, `\)`}, {`\[`, `\]`}, {"**", "**"}, {"`", "`"}} {
			inner, ok := strings.CutPrefix(s, pair[0])
			if !ok {
				continue
			}
			inner, ok = strings.CutSuffix(inner, pair[1])
			if ok && !strings.Contains(inner, pair[0]) && !strings.HasSuffix(inner, `\`) {
				s = inner
				break
			}
		}
		if s == answer {
			break
		}
		answer = s
	}
	return answer
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
	"²", "^2", "³", "^3", "⁴", "^4", "½", `\frac12 `, "⅓", `\frac13 `, "⅔", `\frac23 `, "¼", `\frac14 `, "¾", `\frac34 `,
	"⟨", `\langle `, "⟩", `\rangle `, "⌊", `\lfloor `, "⌋", `\rfloor `, "⌈", `\lceil `, "⌉", `\rceil `,
	"\u00a0", " ", "\u2009", " ", "\u202f", " ", "<=", `\le `, ">=", `\ge `, "!=", `\ne `, "==", "=", "**", "^", `+/-`, `\pm `,
)

// commands maps LaTeX commands to canonical operator tokens; "" drops the command.
var commands = map[string]string{
	"left": "", "right": "", "big": "", "Big": "", "bigg": "", "Bigg": "", "bigl": "", "bigr": "", "Bigl": "", "Bigr": "",
	"biggl": "", "biggr": "", "displaystyle": "", "textstyle": "", "limits": "", "nolimits": "", "hline": "",
	"quad": "", "qquad": "", ",": "", ";": "", ":": "", "!": "", " ": "", "(": "", ")": "", "[": "", "]": "",
	"thinspace": "", "hfill": "", "mathbf": "", "mathit": "", "boldsymbol": "", "bm": "", "mathstrut": "", "rm": "", "bf": "",
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
	"land": ",", "lor": ",", "newline": "", "to": "→", "rightarrow": "→", "implies": "→", "Rightarrow": "→",
}

// upright commands hold text, accents make one symbol with their argument.
var (
	upright = setOf("text mbox textrm textbf textit textnormal texttt mathrm mathsf operatorname hbox")
	accents = setOf("overline bar vec hat dot ddot tilde widehat widetilde overrightarrow mathcal mathbb mathfrak mathscr")
	funcs   = setOf("sin cos tan cot sec csc arcsin arccos arctan asin acos atan sinh cosh tanh ln log lg exp sqrt cbrt abs floor ceil binom")
	greek   = setOf("alpha beta gamma delta epsilon theta lambda mu omega phi psi sigma tau rho")
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
	toks    []token
}

// lex returns the tokens of an answer, and whether some bare comma was taken for a
// thousands separator that may separate a list (unless lists asks for that). Letters
// of prose are words.
func lex(answer string, prose, lists bool) (toks []token, ambiguous bool) {
	l := &lexer{src: unicodeForms.Replace(answer), lists: lists, upright: prose}
	if prose {
		l.src = strings.NewReplacer("-", " ", "'", "").Replace(answer)
	}
	l.run()
	for len(l.toks) > 0 && strings.Contains(`.,;\\`, l.toks[len(l.toks)-1].text) {
		l.toks = l.toks[:len(l.toks)-1]
	}
	return l.toks, l.grouped
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
		case r >= '0' && r <= '9', r == '.' && l.pos+1 < len(l.src) && isDigit(l.src[l.pos+1]):
			l.number()
		case unicode.IsLetter(r):
			l.word()
		case strings.HasPrefix(l.rest(), "..."):
			l.emit(tokOp, "...")
			l.pos += 3
		case r == '.' && l.upright && len(l.toks) > 0 && l.toks[len(l.toks)-1].kind == tokWord:
			l.pos++ // sq. ft.
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
	case name == "begin" || name == "end":
		env := strings.TrimSpace(l.argument())
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
	case funcs[name]:
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
	if command == "mathrm" && (content == "e" || content == "i" || content == "d") {
		l.emit(tokLetter, content)
		return
	}
	if l.nested++; l.nested > maxDepth {
		return
	}
	inner := &lexer{src: content, upright: true, depth: l.depth, nested: l.nested, lists: l.lists, space: l.space}
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
		l.emit(tokOp, ",")
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
	if rest := l.rest(); strings.HasPrefix(rest, ".") {
		for _, mark := range []string{`\overline{`, `\dot{`, `\bar{`, ""} {
			n := 1
			for n < len(rest) && isDigit(rest[n]) {
				n++
			}
			if mark == "" && n > 1 {
				digits += rest[:n]
				l.pos += n
			} else if tail, ok := strings.CutPrefix(rest[n:], mark); ok && mark != "" {
				period, _, ok := strings.Cut(tail, "}")
				if ok && period != "" && strings.Trim(period, "0123456789") == "" {
					l.pos += n + len(mark) + len(period) + 1
					l.emit(tokNumber, digits+rest[:n]+"("+period+")")
					return
				}
			}
		}
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
