package pool

import (
	"encoding/binary"
	"fmt"

	"anytime/internal/decode"
)

// What a token of a completion costs elsewhere, in tokens that have to be prefilled there.
const (
	busy    = 256  // a member whose places are all taken, against one that is idle
	waiting = 4096 // likewise for each further completion, which has to wait
)

// pick chooses the member for a completion of a lineage and counts the completion in; done counts it out.
func (r *router) pick(key string, t *trail) (*member, decode.Engine, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.lineages[key]
	if l == nil {
		l = &lineage{} // closed already, or Ready's
	}
	if l.home == nil {
		least := 0
		for _, m := range r.members {
			if m.broken || m.engine == nil {
				continue
			}
			places := max(m.engine.Info().MaxSequences, 1)
			cost := t.tokens - r.seen.match(t, m) + busy*m.running/places + waiting*max(0, m.running+1-places)/places
			if l.home == nil || cost < least {
				l.home, least = m, cost
			}
		}
	}
	if l.home == nil {
		return nil, nil, fmt.Errorf("%w: no engine of model %q is there", decode.ErrUnavailable, r.info.Model)
	}
	l.home.running++
	return l.home, l.home.engine, nil
}

// done counts a completion out, and remembers where its text is in a cache.
func (r *router) done(m *member, t *trail) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m.running--
	r.seen.add(t, m)
}

// block is how many bytes of a trail are remembered together.
const block = 128

// trail is a text by the hashes of its beginnings, of each whole number of blocks.
type trail struct {
	hashes []uint64
	hash   uint64
	bytes  int
	tokens int // about as many
}

func newTrail(prefix []decode.Part) *trail {
	t := &trail{hash: 14695981039346656037} // FNV-1a
	for _, p := range prefix {
		t.text(p.Text)
		t.tokens += len(p.Text) / 4
		for _, id := range p.IDs {
			t.token(decode.Token{ID: id})
		}
	}
	return t
}

func (t *trail) text(s string) {
	for i := range len(s) {
		t.hash = (t.hash ^ uint64(s[i])) * 1099511628211
		if t.bytes++; t.bytes%block == 0 {
			t.hashes = append(t.hashes, t.hash)
		}
	}
}

// token adds a token: its id, marked by a byte that no text has, or where there is none its text.
func (t *trail) token(token decode.Token) {
	t.tokens++
	if token.ID < 0 {
		t.text(token.Text)
		return
	}
	t.text(string(binary.BigEndian.AppendUint32([]byte{0xff}, uint32(token.ID))))
}

// memory is which members had which texts of late.
type memory struct {
	at     map[entry]struct{}
	oldest []entry // a ring
	next   int
}

type entry struct {
	hash   uint64
	member *member
}

const remembered = 1 << 16 // entries; 128 bytes of text each, or 25 token ids

func newMemory() *memory {
	return &memory{at: map[entry]struct{}{}, oldest: make([]entry, remembered)}
}

func (s *memory) add(t *trail, m *member) {
	for _, h := range t.hashes {
		e := entry{h, m}
		if _, known := s.at[e]; known {
			continue
		}
		delete(s.at, s.oldest[s.next])
		s.oldest[s.next] = e
		s.next = (s.next + 1) % remembered
		s.at[e] = struct{}{}
	}
}

// match is how much of a text a member had, in tokens.
func (s *memory) match(t *trail, m *member) int {
	for i := len(t.hashes) - 1; i >= 0; i-- {
		if _, ok := s.at[entry{t.hashes[i], m}]; ok {
			return t.tokens * (i + 1) * block / t.bytes
		}
	}
	return 0
}
