package anytime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"anytime/internal/budget"
	"anytime/internal/decode"
	"anytime/internal/store"
)

// takeOverEvery is how often a server looks for runs whose server is dead.
const takeOverEvery = 2 * time.Second

// orphaned is how long servers without its model or adapter leave a run to one another.
const orphaned = 10 * time.Minute

// TakeOver takes up runs of servers that died, in a store that several share, until ctx ends. In any other store there are none.
func (s *Solver) TakeOver(ctx context.Context) {
	if s.shared == nil {
		return
	}
	look := time.NewTicker(takeOverEvery)
	defer look.Stop()
	for {
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
		if _, err := s.takeOver(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Logger.Warn("cannot look for runs of dead servers", "error", err)
		}
	}
}

// takeOver takes up as many such runs as there is room for, and returns how many it has taken up.
func (s *Solver) takeOver(ctx context.Context) (taken int, err error) {
	s.mu.Lock()
	room := s.cfg.MaxRuns - len(s.live)
	if s.draining {
		room = 0
	}
	s.mu.Unlock()
	if room <= 0 {
		return 0, nil
	}
	left, err := s.shared.TakeOver(ctx, room)
	for _, kept := range left {
		failed := s.takeUp(ctx, kept)
		switch {
		case failed == nil:
			s.cfg.Logger.Info("run of a dead server taken up", "run", kept.ID)
			taken++
		case ctx.Err() != nil, errors.Is(failed, ErrBusy), errors.Is(failed, ErrDraining), errors.Is(failed, ErrRunning),
			time.Since(kept.Updated) < orphaned && (errors.Is(failed, ErrUnknownModel) || errors.Is(failed, decode.ErrUnknownAdapter)): // another server may
			s.cfg.Logger.Warn("run of a dead server is left to others", "run", kept.ID, "error", failed)
			err = errors.Join(err, s.shared.Release(context.WithoutCancel(ctx), kept.ID))
		default:
			err = errors.Join(err, s.giveUp(ctx, kept.ID, failed))
		}
	}
	return taken, err
}

// What servers ask of one another.
const (
	doInterrupt = "interrupt"
	doPeek      = "peek"
	doExplain   = "explain"
	doCancel    = "cancel"
)

// order is a command to the server that executes a run, and outcome its reply.
type order struct {
	Do string `json:"do"`
}

type outcome struct {
	NotRunning  bool         `json:"not_running,omitempty"`
	Error       string       `json:"error,omitempty"`
	Checkpoint  *Checkpoint  `json:"checkpoint,omitempty"`
	Explanation *Explanation `json:"explanation,omitempty"`
}

// elsewhere says whether a run may be executed by another server.
func (s *Solver) elsewhere(id string) bool { return s.shared != nil && s.find(id) == nil }

// ask has the server that executes a run do something.
func (s *Solver) ask(ctx context.Context, id, do string) (outcome, error) {
	var o outcome
	reply, err := s.shared.Ask(ctx, id, mustJSON(order{do}))
	if errors.Is(err, store.ErrIdle) {
		err = ErrNotRunning
	}
	if err != nil {
		return o, err
	}
	if err := json.Unmarshal(reply, &o); err != nil {
		return o, fmt.Errorf("read the reply of the server that executes run %s: %w", id, err)
	}
	switch {
	case o.NotRunning:
		return o, ErrNotRunning
	case o.Error != "":
		return o, fmt.Errorf("the server that executes run %s: %s", id, o.Error)
	}
	return o, nil
}

// obey does what another server asks of a run that is executed here.
func (s *Solver) obey(ctx context.Context, id string, text []byte) []byte {
	var given order
	var o outcome
	err := json.Unmarshal(text, &given)
	if err == nil {
		switch given.Do {
		case doInterrupt:
			err = s.command(ctx, id, command{cut: budget.CauseInterrupt})
		case doPeek:
			var c Checkpoint
			c, err = s.peek(ctx, id)
			o.Checkpoint = &c
		case doExplain:
			o.Explanation, err = s.explain(ctx, id)
		case doCancel:
			err = s.cancel(ctx, id)
		default:
			err = fmt.Errorf("%q is not known here: is it of another version?", given.Do)
		}
	}
	if err != nil {
		o = outcome{NotRunning: errors.Is(err, ErrNotRunning), Error: err.Error()}
	}
	return mustJSON(o)
}
