package llamacpp

import (
	"slices"
	"testing"

	"anytime/internal/decode"
)

// Answers with a deadline have most steps to themselves, the rest every joins-th; without such an answer all have every step.
func TestSchedulerMakesWayForAnswers(t *testing.T) {
	m := newModel(t, 8, 1000, 32, 8, false)
	m.joins = 4
	m.open(seq{class: decode.ClassThinking, tokens: tokens(2, 1)}, 1000)
	m.open(seq{class: decode.ClassAnswer, tokens: tokens(2, 2)}, 1000)
	m.step()
	for range 8 {
		if got := ids(m.step()); !slices.Equal(got, []string{"2:1", "1:1"}) {
			t.Errorf("no hurry: %v", got)
		}
	}
	hasty := m.open(seq{class: decode.ClassAnswer, deadline: 9, tokens: tokens(10, 3)}, 1000)
	served := map[uint64]int{}
	for range 40 {
		for _, w := range m.step() {
			served[w.seq.id]++
		}
	}
	if served[3] != 40 || served[1] != 10 || served[2] != 10 {
		t.Errorf("of 40 steps %v", served)
	}
	hasty.wanted = false
	if got := ids(m.step()); !slices.Equal(got, []string{"2:1", "1:1"}) {
		t.Errorf("afterwards: %v", got)
	}
}

// An answer that cannot begin, for what it waits for makes way itself, does not stop everything.
func TestSchedulerDoesNotWaitForItself(t *testing.T) {
	m := newModel(t, 4, 4000, 64, 8, false)
	m.joins = 4
	m.open(seq{class: decode.ClassAnswer, deadline: 5, tokens: tokens(300, 1)}, 400)
	m.open(seq{class: decode.ClassAnswer, deadline: 9, tokens: append(tokens(300, 1), 2)}, 400)
	for range 400 {
		if len(m.step()) == 0 {
			break
		}
	}
	for q := range m.goal {
		if q.wanted {
			t.Errorf("sequence %d is still waiting", q.id)
		}
	}
}

// When the cache is full it is the thought without a deadline, then the one with the latest, that loses its cache, and an answer never does.
func TestSchedulerPreemptsWhatCanWait(t *testing.T) {
	m := newModel(t, 8, 130, 64, 64, false)
	late := m.open(seq{class: decode.ClassThinking, deadline: 90, tokens: tokens(20, 1)}, 60)
	open := m.open(seq{class: decode.ClassThinking, tokens: tokens(20, 2)}, 60)
	soon := m.open(seq{class: decode.ClassThinking, deadline: 10, tokens: tokens(20, 3)}, 60)
	answer := m.open(seq{class: decode.ClassAnswer, deadline: 50, tokens: tokens(20, 4)}, 60)
	var lost []*seq
	for range 200 {
		m.step()
		for _, q := range []*seq{late, open, soon, answer} {
			if q.wanted && q.slot < 0 && len(q.tokens) > 21 && !slices.Contains(lost, q) {
				lost = append(lost, q)
			}
		}
	}
	if len(lost) == 0 || lost[0] != open || slices.Contains(lost, answer) || slices.Contains(lost, soon) {
		t.Errorf("lost their caches: %d sequences, the first %d", len(lost), lost[0].id)
	}
	for q := range m.goal {
		if q.wanted {
			t.Errorf("sequence %d did not finish", q.id)
		}
	}
}
