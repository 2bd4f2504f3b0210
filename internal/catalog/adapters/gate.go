package adapters

import (
	"context"
	"errors"
	"fmt"
	"time"

	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/catalog"
)

// Gate makes evaluations.
type Gate interface {
	// Evaluation returns how models are measured: on problems, JSON lines, at budgets of thinking tokens; nil for the gate's own. It returns
	// nil if neither are there any problems nor were any asked for. Errors: *decode.InputError.
	Evaluation(problems []byte, budgets []int) (*Evaluation, error)
}

// Evaluation measures models, all in the same way.
type Evaluation struct {
	Key      string // tells what is measured, and how, from all else
	Thoughts int    // that it takes
	// Run measures a model, at the lowest priority. It calls onThought, not concurrently, after each thought.
	Run func(ctx context.Context, m *anytime.Model, onThought func()) (budget.Curve, error)
}

// evaluation is what a change is measured with.
func (c *change) evaluation(gate Gate, asked *GateRequest) (err error) {
	if asked == nil {
		asked = &GateRequest{}
	} else if asked.Margin != nil {
		c.margin = *asked.Margin
	}
	if !(c.margin >= 0 && c.margin <= 1) {
		return wrong("gate.margin", "is %v; it must be from 0 to 1", c.margin)
	}
	c.gate, err = gate.Evaluation(asked.Problems, asked.Budgets)
	if err == nil && c.gate == nil && (asked.Budgets != nil || asked.Margin != nil) {
		err = wrong("gate.problems", "is missing; the server was not given any (gate_problems), so the request must bring them")
	}
	return err
}

// Trial is an adapter being measured, or what came of it.
type Trial struct {
	State    State // Measuring, Passed, Refused or Failed
	SHA256   string
	Began    time.Time
	Done, Of int     // thoughts
	Margin   float64 // by which the accuracy may fall
	Base     *budget.Curve
	Adapter  *budget.Curve
	Reason   string // why it is refused, or could not be measured
}

// trial is one with what ends it. The Trial is guarded by Manager.mu.
type trial struct {
	*Trial
	cancel context.CancelFunc
	done   chan struct{}
}

var errDeleted = errors.New("the adapter was deleted meanwhile")

// measure makes a change depend on what is found. It returns at once; the name stays reserved until the trial has ended.
func (m *Manager) measure(c change) error {
	ctx, cancel := context.WithCancelCause(m.ctx)
	t := trial{
		Trial: &Trial{
			State: Measuring, SHA256: c.record.SHA256, Began: time.Now().UTC().Truncate(time.Second), Of: 2 * c.gate.Thoughts, Margin: c.margin,
		},
		cancel: func() { cancel(errDeleted) }, done: make(chan struct{}),
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for at, other := range m.trials {
		if other.State == Measuring {
			cancel(nil)
			c.discard()
			return conflict("adapter %s is being measured; one is measured at a time", at)
		}
	}
	m.trials[c.place] = t
	m.log.Info("adapter is being measured", "model", c.place.model, "adapter", c.name, "sha256", t.SHA256, "thoughts", t.Of)
	m.wg.Go(func() {
		defer close(t.done)
		defer cancel(nil)
		state, err := m.try(ctx, c, t)
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if t.State = state; err != nil {
			t.Reason = err.Error()
		}
		delete(m.busy, c.place) // with the state, so that who sees it can go on
		m.log.Info("adapter was measured", "model", c.place.model, "adapter", c.name, "state", state, "reason", t.Reason)
	})
	return nil
}

// try measures an adapter and the bare model, and makes the change or gives it up.
func (m *Manager) try(ctx context.Context, c change, t trial) (State, error) {
	base, adapter, err := m.curves(ctx, &c, t)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		c.discard()
		return Failed, err
	}
	if err := fall(base, adapter, c.margin); err != nil {
		c.discard()
		return Refused, err
	}
	if err := m.commit(c); err != nil {
		return Failed, err
	}
	return Passed, nil
}

// curves measures what was not measured before.
func (m *Manager) curves(ctx context.Context, c *change, t trial) (base, adapter budget.Curve, err error) {
	hash, err := c.model.Hash()
	if err != nil {
		return base, adapter, fmt.Errorf("tell the model's weights from others: %w", err)
	}
	by := hash + " " + c.gate.Key
	name := c.place.model + ":" + catalog.Bare
	m.mu.Lock()
	known, ok := m.folder.state.Measured[c.place.model]
	m.mu.Unlock()
	if !ok || known.By != by {
		if known.Curve, err = m.run(ctx, c.gate, t, name, nil); err != nil {
			return base, adapter, fmt.Errorf("measure %s: %w", name, err)
		}
		known.By = by
		m.mu.Lock()
		next := m.folder.state.clone()
		next.Measured[c.place.model] = known
		err = m.folder.save(next)
		m.mu.Unlock()
		if err != nil {
			return base, adapter, err
		}
	}
	m.note(func() { t.Base, t.Done = &known.Curve, c.gate.Thoughts })
	if c.record.Measured == nil || c.record.Measured.By != by {
		found := measured{By: by}
		if found.Curve, err = m.run(ctx, c.gate, t, c.place.String(), c.candidate); err != nil {
			return base, adapter, fmt.Errorf("measure %s: %w", c.place, err)
		}
		found.Curve.Adapter = c.record.SHA256
		c.record.Measured = &found
	}
	m.note(func() { t.Adapter, t.Done = &c.record.Measured.Curve, t.Of })
	return known.Curve, c.record.Measured.Curve, nil
}

// run measures a candidate, or else what a name stands for.
func (m *Manager) run(ctx context.Context, gate *Evaluation, t trial, name string, candidate *catalog.Candidate) (budget.Curve, error) {
	var model *anytime.Model
	if candidate != nil {
		model = candidate.Model()
	} else {
		acquired, release, err := m.cfg.Catalog.Acquire(ctx, name)
		if err != nil {
			return budget.Curve{}, err
		}
		defer release()
		model = acquired
	}
	return gate.Run(ctx, model, func() { m.note(func() { t.Done++ }) })
}

func (m *Manager) note(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

// fall says at which budget an adapter's accuracy is below the bare model's by more than the margin, at the one where it falls most.
func fall(base, adapter budget.Curve, margin float64) error {
	if len(base.Points) != len(adapter.Points) {
		return fmt.Errorf("it was measured at %d budgets, the bare model at %d", len(adapter.Points), len(base.Points))
	}
	const rounding = 1e-9
	worst, most := -1, margin+rounding
	for i, b := range base.Points {
		if d := b.Accuracy - adapter.Points[i].Accuracy; d > most {
			worst, most = i, d
		}
	}
	if worst < 0 {
		return nil
	}
	b, a := base.Points[worst], adapter.Points[worst]
	return fmt.Errorf("with %d thinking tokens its accuracy is %.3f, the bare model's %.3f: that is %.3f less, and the margin is %.3f",
		b.Budget, a.Accuracy, b.Accuracy, most, margin)
}

// discard gives the adapter up that was loaded.
func (c change) discard() {
	if c.candidate != nil {
		c.candidate.Discard()
	}
}
