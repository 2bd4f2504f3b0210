package llamacpp

import (
	"errors"
	"slices"
	"testing"

	"anytime/internal/decode"
)

// child is a stand-in for the process: it only collects commands.
func child() *process { return &process{wake: make(chan struct{}, 1)} }

func (p *process) opened() (ids []uint64) {
	for _, c := range p.queue {
		if c.Kind == cmdOpen || c.Kind == cmdFork {
			ids = append(ids, c.Seq)
		}
	}
	p.queue = nil
	return ids
}

// A sequence that ends every child takes no other with it.
func TestPoisonIsIsolated(t *testing.T) {
	e := &Engine{seqs: map[uint64]*sequence{}, calls: map[uint64]*call{}, adapters: map[uint64]*loraAdapter{}}
	restart := func() *process {
		e.lost(crashed)
		p := child()
		if e.handle(p, event{Hello: &hello{Vocabulary: 10}}); e.proc != p {
			t.Fatal("the child is not up")
		}
		return p
	}
	e.proc = child()
	var all []*sequence
	for range 4 {
		s, err := e.newSequence(1, decode.Priority{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.restore()
		s.apply(update{Seq: s.id}) // nothing queued yet
		all = append(all, s)
	}
	parked := all[3]
	for _, s := range all[:3] {
		if err := s.enqueue(queued{span: &decode.Span{MaxTokens: 5}}); err != nil {
			t.Fatal(err)
		}
	}
	if got := restart().opened(); !slices.Equal(got, []uint64{1, 2, 3, 4}) {
		t.Errorf("after one crash %v were restored", got)
	}
	// The second crash in a row: those that decoded come one by one.
	p := restart()
	if got := p.opened(); !slices.Equal(got, []uint64{4, 1}) {
		t.Errorf("after two crashes %v were restored", got)
	}
	f, err := all[1].Fork(decode.Head, decode.ForkOptions{}) // of one that is not there yet
	if err != nil {
		t.Fatal(err)
	}
	if got := p.opened(); len(got) != 0 {
		t.Errorf("a fork of a sequence that waits was sent: %v", got)
	}
	e.handle(p, event{Updates: []update{{Seq: 1, Tokens: []decode.Token{{ID: 3}}}}})
	if got := p.opened(); !slices.Equal(got, []uint64{2}) {
		t.Errorf("after a step forward %v were restored", got)
	}
	p = restart() // 2 is the poison
	if err := all[1].err; !errors.Is(err, decode.ErrUnavailable) {
		t.Errorf("sequence 2: %v", err)
	}
	if got := p.opened(); !slices.Equal(got, []uint64{1, 4, f.(*sequence).id, 3}) {
		t.Errorf("without the poison %v were restored", got)
	}
	for _, s := range []*sequence{all[0], all[2], parked} {
		if s.err != nil {
			t.Errorf("sequence %d: %v", s.id, s.err)
		}
	}
}

// A fork that the dead child had not begun begins from what the parent knew, even if its parent is closed by now.
func TestForkOfClosedParentSurvives(t *testing.T) {
	for name, test := range map[string]struct {
		after int
		want  []int32
		err   error
	}{
		"head":        {decode.Head, []int32{1, 2, 3, 4, 9}, nil},
		"start":       {0, []int32{1, 2}, nil},
		"past":        {1, []int32{1, 2, 3}, nil},
		"not reached": {3, nil, decode.ErrNotReached},
	} {
		e := &Engine{seqs: map[uint64]*sequence{}, calls: map[uint64]*call{}, adapters: map[uint64]*loraAdapter{}, proc: child()}
		s, err := e.newSequence(1, decode.Priority{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.live = true
		s.tokens, s.base, s.decoded = []int32{1, 2, 3, 4, 9}, 2, []int32{3, 4}
		fork, err := s.Fork(test.after, decode.ForkOptions{})
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		e.lost(crashed)
		p := child()
		e.handle(p, event{Hello: &hello{}})
		f := fork.(*sequence)
		if !slices.Equal(f.tokens, test.want) || !errors.Is(f.err, test.err) {
			t.Errorf("%s: tokens %v, error %v", name, f.tokens, f.err)
		}
		if test.err == nil && (len(p.queue) != 1 || p.queue[0].Kind != cmdOpen || !slices.Equal(p.queue[0].Tokens, test.want)) {
			t.Errorf("%s: restored by %+v", name, p.queue)
		}
	}
}

// A child whose loop hangs is silent, though it still tokenizes.
func TestSilence(t *testing.T) {
	e := &Engine{seqs: map[uint64]*sequence{}, calls: map[uint64]*call{}, proc: child()}
	e.handle(e.proc, event{Beside: true, Replies: []reply{{Call: 1}}})
	if !e.frame.IsZero() {
		t.Error("text that was tokenized beside the loop counts as a sign of its life")
	}
	if e.handle(e.proc, event{Replies: []reply{{Call: 2}}}); e.frame.IsZero() {
		t.Error("an answered ping does not")
	}
}

// Children that are killed from outside are hardly held against those who decoded.
func TestKillsAreNoCrashes(t *testing.T) {
	e := &Engine{seqs: map[uint64]*sequence{}, calls: map[uint64]*call{}, adapters: map[uint64]*loraAdapter{}, proc: child()}
	s, err := e.newSequence(1, decode.Priority{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.restore()
	s.apply(update{Seq: s.id})
	if err := s.enqueue(queued{span: &decode.Span{MaxTokens: 5}}); err != nil {
		t.Fatal(err)
	}
	deaths := 0
	for ; s.err == nil && deaths < 100; deaths++ {
		e.lost(killed)
		e.handle(child(), event{Hello: &hello{Vocabulary: 10}})
	}
	if deaths != 30 || !errors.Is(s.err, decode.ErrUnavailable) {
		t.Errorf("after %d deaths: %v", deaths, s.err)
	}
}
