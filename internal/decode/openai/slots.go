package openai

import (
	"context"
	"slices"
	"sync"
	"time"

	"anytime/internal/decode"
)

// slots are llama-server's, each with a cache of what it decoded last. The server takes an idle one for each request; but the slot in
// which a thought was just cut is not idle until it has decoded a token more, for which nobody listens, and in any other the whole
// thought would be prefilled again. So requests name their slot.
type slots struct {
	client *client

	mu  sync.Mutex
	all []slot // by id
}

type slot struct {
	has       []int32 // what we had decoded in it last, prefix and all
	lease     *lease  // nil: no request of ours has it
	left      time.Time
	cancelled time.Time // or done but for the end of its stream, the last request that was; zero if none
}

// lease is a request's slot.
type lease struct {
	slots *slots
	id    int
	over  func() error // tells when the request was cancelled; then others may have its slot
	wants int          // tokens
}

// newSlots returns nil where there is nothing to choose, or no telling what is idle (--no-slots).
func newSlots(ctx context.Context, c *client, n int) *slots {
	s := &slots{client: c, all: make([]slot, n)}
	if busy, err := s.busy(ctx); err != nil || n < 2 || len(busy) != n {
		return nil
	}
	return s
}

// busy tells of each slot whether the server works in it.
func (s *slots) busy(ctx context.Context) ([]bool, error) {
	var state []struct {
		Processing bool `json:"is_processing"`
	}
	err := s.client.get(ctx, s.client.root+"/slots", &state)
	busy := make([]bool, len(state))
	for i := range state {
		busy[i] = state[i].Processing
	}
	return busy, err
}

// take leases the best slot for a prefix and the tokens that are wanted behind it; nil leaves the choice to the server. It waits for the
// server to find out that a request of ours was cancelled, but not for a request that somebody else has it work on.
func (s *slots) take(ctx context.Context, prefix []int32, tokens int) *lease {
	const tick = 2 * time.Millisecond
	l, wait := s.lease(ctx, prefix, tokens, nil)
	for l != nil {
		switch busy, err := s.busy(ctx); {
		case err != nil || len(busy) != len(s.all):
			l.leave()
			return nil
		case !busy[l.id]:
			return l
		case time.Now().After(wait):
			l.leave()
			l, _ = s.lease(ctx, prefix, tokens, busy)
			return l
		}
		select {
		case <-time.After(tick):
		case <-ctx.Done():
		}
	}
	return nil
}

// lease leases the slot that has most of a prefix, of those that are free and not busy; or the one that was left first, if that is
// little. It returns nil if there is none, and until when it may be busy with a cancelled request.
func (s *slots) lease(ctx context.Context, prefix []int32, tokens int, busy []bool) (*lease, time.Time) {
	const unheard = time.Second
	s.mu.Lock()
	defer s.mu.Unlock()
	best, most, oldest := -1, len(prefix)/10, -1
	for id, slot := range s.all {
		if slot.lease != nil && slot.lease.over() == nil || busy != nil && busy[id] {
			continue
		}
		if n := common(slot.has, prefix); n > most {
			best, most = id, n
		}
		if oldest < 0 || slot.left.Before(s.all[oldest].left) {
			oldest = id
		}
	}
	if best < 0 {
		best = oldest
	}
	if best < 0 {
		return nil, time.Time{}
	}
	slot := &s.all[best]
	if slot.lease != nil {
		slot.cancelled = time.Now()
	}
	slot.lease, slot.has = &lease{slots: s, id: best, over: ctx.Err, wants: tokens}, slices.Clip(prefix)
	return slot.lease, slot.cancelled.Add(unheard)
}

// grown notes what was decoded in the slot. With its last token the request leaves it: what follows may come before the stream's end.
func (l *lease) grown(tokens []decode.Token) {
	if l.wants -= len(tokens); l.wants <= 0 {
		defer l.leave()
	}
	l.slots.mu.Lock()
	defer l.slots.mu.Unlock()
	if slot := &l.slots.all[l.id]; slot.lease == l {
		for _, t := range tokens {
			slot.has = append(slot.has, t.ID)
		}
	}
}

// leave gives the slot back, in which the server may still be at work if the request was cancelled or has all its tokens.
func (l *lease) leave() {
	l.slots.mu.Lock()
	defer l.slots.mu.Unlock()
	slot := &l.slots.all[l.id]
	if slot.lease != l {
		return
	}
	slot.lease, slot.left = nil, time.Now()
	if l.over() != nil || l.wants <= 0 {
		slot.cancelled = slot.left
	}
}

// common returns how many tokens two texts have in common from the beginning on.
func common(a, b []int32) (n int) {
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}
