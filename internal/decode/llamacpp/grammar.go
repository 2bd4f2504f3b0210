package llamacpp

import (
	"math"
	"slices"
	"sort"
	"sync"
	"unicode/utf8"
)

// The grammar is matched here and not by llama.cpp's sampler, which a dozen bytes of grammar can hang for ever (`"a"?` a few
// hundred times: it follows every way to read a token) or end with the process (deep nesting, a token that was not allowed).
// Here equal ways are followed once, and the steps for a token are bounded.

// Steps that may be taken to judge all tokens of the vocabulary, less than a second; to enter a rule; to enter each rule once.
const (
	maxTokenSteps = 1 << 21
	maxEnterSteps = 1 << 16
	maxCheckSteps = 1 << 21
)

var negInf = float32(math.Inf(-1))

// node is a way in which the text so far can be read: a place in the grammar, and where to go on when its rule is over.
type node struct {
	at   int
	up   *node
	mark int // the last set that it was put into
}

type nodeKey struct {
	at int
	up *node
}

// matcher follows a grammar along a text.
type matcher struct {
	grammar *gbnf
	pieces  *pieces
	state   []*node // all ways to read the text so far, each at a class of characters; nil: the text can end here
	partial string  // the beginning of a character whose rest is in the next token
	nodes   map[nodeKey]*node
	sets    int
	steps   int // taken
	limit   int // of steps
}

// pieces are the texts that tokens add, sorted, for all tokens that a grammar may allow.
type pieces struct {
	once  sync.Once
	vocab *vocab
	text  []string
	ids   []int32
}

func (p *pieces) load() {
	p.once.Do(func() {
		for id := range int32(p.vocab.size) {
			if text := p.vocab.piece(id); text != "" && !p.vocab.special[id] && !slices.Contains(p.vocab.eog, id) {
				p.ids = append(p.ids, id)
			}
		}
		slices.SortFunc(p.ids, func(a, b int32) int {
			switch x, y := p.vocab.piece(a), p.vocab.piece(b); {
			case x < y:
				return -1
			case x > y:
				return 1
			}
			return int(a - b)
		})
		for _, id := range p.ids {
			p.text = append(p.text, p.vocab.piece(id))
		}
	})
}

// checkGrammar returns an *decode.InputError for a grammar that cannot be followed.
func checkGrammar(text string) error {
	_, err := newMatcher(text, nil)
	return err
}

func newMatcher(text string, p *pieces) (*matcher, error) {
	g, err := parseGrammar(text)
	if err != nil {
		return nil, err
	}
	m := &matcher{grammar: g, pieces: p, nodes: map[nodeKey]*node{}}
	// A rule that begins with itself would be entered for ever.
	total := 0
	for i := range g.rules {
		m.allow(maxEnterSteps)
		m.enter(i, nil, nil)
		if m.exhausted() {
			return nil, refuse("grammar", "a rule begins with itself (left recursion); the recursion must come last")
		}
		if total += m.steps; total > maxCheckSteps {
			return nil, refuse("grammar", "has too many optional elements in a row; it must be less ambiguous")
		}
		if len(m.nodes) > 0 {
			m.nodes = map[nodeKey]*node{}
		}
	}
	m.allow(maxTokenSteps)
	if m.state = m.enter(g.root, nil, nil); len(m.state) == 0 {
		return nil, refuse("grammar", "allows no text at all; the rules that root leads to must end somewhere")
	}
	return m, nil
}

// allow sets how many steps may be taken from here on.
func (m *matcher) allow(steps int) { m.steps, m.limit = 0, steps }

func (m *matcher) exhausted() bool { return m.steps > m.limit }

func (m *matcher) node(at int, up *node) *node {
	key := nodeKey{at, up}
	n := m.nodes[key]
	if n == nil {
		m.steps += 8 // what it costs
		n = &node{at: at, up: up}
		m.nodes[key] = n
	}
	return n
}

// enter returns a new set: the ways into a rule after which up goes on.
func (m *matcher) enter(rule int, up *node, set []*node) []*node {
	m.sets++
	for _, at := range m.grammar.rules[rule] {
		set = m.follow(at, up, set)
	}
	return set
}

// follow adds the ways from a place on to the set being made.
func (m *matcher) follow(at int, up *node, set []*node) []*node {
	if m.steps++; m.exhausted() {
		return set
	}
	switch e := &m.grammar.code[at]; e.kind {
	case endElement:
		if up != nil {
			return m.follow(up.at, up.up, set)
		}
		if !slices.Contains(set, nil) {
			set = append(set, nil)
		}
	case classElement, ruleElement:
		n := m.node(at, up)
		if n.mark == m.sets {
			return set
		}
		n.mark = m.sets
		if e.kind == classElement {
			return append(set, n)
		}
		if m.grammar.code[at+1].kind != endElement { // else it goes on where this rule goes on
			up = m.node(at+1, up)
		}
		for _, at := range m.grammar.rules[e.rule] {
			set = m.follow(at, up, set)
		}
	}
	return set
}

// step returns the ways that are left behind a character.
func (m *matcher) step(set []*node, r rune) []*node {
	m.sets++
	var next []*node
	for _, n := range set {
		if m.steps++; n != nil && m.grammar.code[n.at].matches(r, r) {
			next = m.follow(n.at+1, n.up, next)
		}
	}
	return next
}

// begins says whether a character that begins with these bytes, an incomplete rune, can come.
func (m *matcher) begins(set []*node, bytes string) bool {
	low, high := runesFrom(bytes)
	return high >= low && slices.ContainsFunc(set, func(n *node) bool { return n != nil && m.grammar.code[n.at].matches(low, high) })
}

// runesFrom returns the first and last character whose UTF-8 begins with the bytes.
func runesFrom(bytes string) (low, high rune) {
	fill := func(b byte) rune {
		full := []byte(bytes)
		for len(full) < utf8.UTFMax {
			full = append(full, b)
			if utf8.FullRune(full) {
				break
			}
		}
		r, n := utf8.DecodeRune(full)
		if n == 1 {
			return -1
		}
		return r
	}
	for b := byte(0x80); b <= 0xbf && low <= 0; b++ { // some second bytes are not allowed behind some first ones
		low = fill(b)
	}
	for b := byte(0xbf); b >= 0x80 && high <= 0; b-- {
		high = fill(b)
	}
	if low <= 0 || high <= 0 {
		return 1, 0
	}
	return low, high
}

// read follows a text from a set on; it returns the set behind it and the incomplete character at its end.
func (m *matcher) read(set []*node, text string) (_ []*node, partial string) {
	for text != "" && len(set) > 0 {
		if !utf8.FullRuneInString(text) {
			if !m.begins(set, text) {
				return nil, ""
			}
			return set, text
		}
		r, n := utf8.DecodeRuneInString(text)
		if r == utf8.RuneError && n == 1 {
			return nil, ""
		}
		set = m.step(set, r)
		text = text[n:]
	}
	return set, ""
}

// accept moves on by a token that mask allows.
func (m *matcher) accept(text string) {
	m.allow(maxTokenSteps)
	if len(m.nodes) > 1<<16 {
		m.nodes = map[nodeKey]*node{} // ways are still followed, only those that meet again may be followed twice
	}
	m.state, m.partial = m.read(m.state, m.partial+text)
}

// complete says whether the text may end here.
func (m *matcher) complete() bool { return m.partial == "" && slices.Contains(m.state, nil) }

// allows says whether a token with this text may come.
func (m *matcher) allows(text string) bool {
	if text == "" {
		return false
	}
	m.allow(maxTokenSteps)
	set, _ := m.read(m.state, m.partial+text)
	return len(set) > 0 && !m.exhausted()
}

// allowsToken is allows for a token that may be a special one.
func (m *matcher) allowsToken(text string, special bool) bool {
	if !special {
		return m.allows(text)
	}
	m.allow(maxTokenSteps)
	return m.spells(text) && !m.exhausted()
}

// mask puts every logit at minus infinity whose token the grammar does not allow. It returns an *decode.InputError if that takes
// too long to find out.
func (m *matcher) mask(logits []float32, eog []int32) error {
	m.pieces.load()
	m.allow(maxTokenSteps)
	allowed := make([]bool, len(logits))
	if m.partial == "" {
		m.walk(0, len(m.pieces.ids), 0, m.state, allowed)
	} else {
		for i, text := range m.pieces.text {
			if text[0]&0xc0 == 0x80 { // else it does not complete the character
				set, _ := m.read(m.state, m.partial+text)
				allowed[m.pieces.ids[i]] = len(set) > 0
			}
		}
	}
	for id := range m.pieces.vocab.special {
		allowed[id] = m.spells(m.pieces.vocab.piece(id))
	}
	if m.exhausted() {
		return refuse("grammar", "can read the text so far in too many ways; it must be less ambiguous")
	}
	for _, id := range eog {
		allowed[id] = m.complete()
	}
	for i := range logits {
		if !allowed[i] {
			logits[i] = negInf
		}
	}
	return nil
}

// spells says whether the grammar has this text, letter by letter, at this place. A special token comes only where it is spelled out: not
// where it would merely be free text.
func (m *matcher) spells(text string) bool {
	set := m.state
	if m.partial != "" || text == "" {
		return false
	}
	for _, r := range text {
		var exact []*node
		for _, n := range set {
			if n != nil && m.grammar.code[n.at].isOnly(r) {
				exact = append(exact, n)
			}
		}
		if set = m.step(exact, r); len(set) == 0 {
			return false
		}
	}
	return true
}

// walk marks the tokens from low to high, whose first depth bytes are the same and lead to set.
func (m *matcher) walk(low, high, depth int, set []*node, allowed []bool) {
	text := m.pieces.text
	for low < high && len(text[low]) == depth {
		allowed[m.pieces.ids[low]] = true
		low++
	}
	for low < high && !m.exhausted() {
		rest := text[low][depth:]
		r, n := utf8.DecodeRuneInString(rest)
		if r == utf8.RuneError && n == 1 {
			if !utf8.FullRuneInString(rest) && m.begins(set, rest) {
				allowed[m.pieces.ids[low]] = true
			}
			low++
			continue
		}
		// The same character goes on up to here.
		end := low + sort.Search(high-low, func(i int) bool {
			other := text[low+i][depth:]
			return len(other) < n || other[:n] != rest[:n]
		})
		if next := m.step(set, r); len(next) > 0 {
			m.walk(low, end, depth+n, next, allowed)
		}
		low = end
	}
}

// Matches says whether a grammar reads a text to its end. An error is an *decode.InputError about the grammar.
func Matches(grammar, text string) (bool, error) {
	m, err := newMatcher(grammar, nil)
	if err != nil {
		return false, err
	}
	m.accept(text)
	return m.complete() && !m.exhausted(), nil
}
