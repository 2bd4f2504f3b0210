package decode

import (
	"unicode"
	"unicode/utf8"
)

// Markers are the texts by which a model tells its thinking from its answer.
type Markers struct {
	Open   []string // begin thinking
	Close  []string // end thinking
	Header []string // may stand between Close and the answer, and begin an answer by themselves
	Stray  []string // belong nowhere
}

// Delta is what a piece of output added to the thinking and to the answer, as valid UTF-8.
type Delta struct{ Thinking, Answer string }

// Splitter separates a model's output into thinking and answer as its tokens come. How the text is divided into tokens makes
// no difference to the sum of what comes out. Text is held back while it may be part of a rune, a marker or a stop string.
// Markers are dropped; nothing else is, up to a stop string. A byte that is not UTF-8 becomes U+FFFD.
type Splitter struct {
	thinking bool
	blank    bool // only white space since the last change between thinking and answer
	odd      int
	stop     string
	sets     [2]patterns // of the answer, of the thinking
	held     []byte
	out      [2][]byte // reused between calls
}

type markerKind int

const (
	markOpen markerKind = iota
	markClose
	markHeader
	markStray
	markStop
)

type pattern struct {
	text string
	kind markerKind
}

type patterns struct {
	list  []pattern
	first [256]bool // bytes that one begins with
}

func (p *patterns) add(kind markerKind, texts []string) {
	for _, t := range texts {
		if t != "" {
			p.list = append(p.list, pattern{t, kind})
			p.first[t[0]] = true
		}
	}
}

// NewSplitter returns a splitter for output that starts in the thinking or in the answer. The first of stops ends the answer;
// they do not count in the thinking.
func NewSplitter(m Markers, thinking bool, stops []string) *Splitter {
	s := &Splitter{thinking: thinking, blank: true}
	s.sets[0].add(markStop, stops) // before the markers: it wins over one that is the same
	for i := range s.sets {
		s.sets[i].add(markOpen, m.Open)
		s.sets[i].add(markClose, m.Close)
		s.sets[i].add(markHeader, m.Header)
		s.sets[i].add(markStray, m.Stray)
	}
	return s
}

// Add takes the text of the next token.
func (s *Splitter) Add(text string) Delta {
	if s.stop != "" {
		return Delta{}
	}
	s.held = append(s.held, text...)
	return s.split(false)
}

// Flush ends the output and returns what was held back.
func (s *Splitter) Flush() Delta { return s.split(true) }

// Thinking tells whether the output is in the thinking now.
func (s *Splitter) Thinking() bool { return s.thinking }

// Stop is the stop string that ended the answer, "" while none has.
func (s *Splitter) Stop() string { return s.stop }

// Odd counts markers in places where none belong: a second end of thinking, thinking opened again in the answer, a header in the
// middle. It is a sign that reasoning went on into the answer.
func (s *Splitter) Odd() int { return s.odd }

func (s *Splitter) split(flush bool) Delta {
	s.out[0], s.out[1] = s.out[0][:0], s.out[1][:0]
	i := 0
	for i < len(s.held) && s.stop == "" {
		side := s.side()
		set, rest := &s.sets[side], s.held[i:]
		if set.first[rest[0]] {
			p, wait := set.match(rest)
			if wait && !flush {
				break
			}
			if p != nil {
				i += len(p.text)
				s.mark(*p)
				continue
			}
		}
		if n := set.plain(rest); n > 0 {
			s.emit(side, rest[:n])
			i += n
			continue
		}
		if !flush && !utf8.FullRune(rest) {
			break
		}
		r, n := utf8.DecodeRune(rest)
		s.blank = s.blank && unicode.IsSpace(r)
		s.out[side] = utf8.AppendRune(s.out[side], r)
		i += n
	}
	if s.stop != "" {
		i = len(s.held)
	}
	s.held = append(s.held[:0], s.held[i:]...)
	return Delta{Thinking: string(s.out[1]), Answer: string(s.out[0])}
}

func (s *Splitter) side() int {
	if s.thinking {
		return 1
	}
	return 0
}

func (s *Splitter) emit(side int, b []byte) {
	for i := 0; s.blank && i < len(b); i++ {
		s.blank = unicode.IsSpace(rune(b[i]))
	}
	s.out[side] = append(s.out[side], b...)
}

// match returns the longest pattern that b begins with, and whether b is too short to tell.
func (p *patterns) match(b []byte) (best *pattern, wait bool) {
	for i := range p.list {
		q := &p.list[i]
		switch {
		case len(q.text) > len(b):
			wait = wait || q.text[:len(b)] == string(b)
		case q.text == string(b[:len(q.text)]) && (best == nil || len(q.text) > len(best.text)):
			best = q
		}
	}
	return best, wait
}

// plain is how many bytes of b are ASCII and begin no pattern.
func (p *patterns) plain(b []byte) int {
	n := 0
	for n < len(b) && b[n] < utf8.RuneSelf && (n == 0 || !p.first[b[n]]) {
		n++
	}
	return n
}

// mark acts on a marker.
func (s *Splitter) mark(p pattern) {
	switch {
	case p.kind == markStop:
		s.stop = p.text
	case p.kind == markStray:
		s.odd++
	case s.thinking && p.kind == markOpen:
		if !s.blank { // one at the start only repeats the prompt's
			s.odd++
		}
	case s.thinking: // Close, Header
		s.thinking, s.blank = false, true
	case p.kind == markHeader:
		if !s.blank {
			s.odd++
		}
	default: // Open, Close
		s.odd++
		s.thinking, s.blank = p.kind == markOpen, true
	}
}
