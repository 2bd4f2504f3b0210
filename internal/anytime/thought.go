package anytime

import (
	"context"
	"encoding/json"
	"fmt"

	"anytime/internal/decode"
	"anytime/internal/store"
)

// thought is thinking as it can be put back into a prompt.
type thought struct {
	parts  []decode.Part
	text   string
	tokens int // decoded; forced text counts as none
	// reopen: the model had ended it by itself, so that something must be said before it goes on.
	reopen bool
	ended  bool // only the answer is missing
}

// reopening makes a model think on that had finished (budget forcing, arXiv 2501.19393).
const reopening = "\n\nWait,"

// add takes tokens that passed the gate.
func (t *thought) add(tokens []decode.Token) {
	for _, tok := range tokens {
		t.text += tok.Text
		if tok.ID < 0 {
			t.addText(tok.Text)
			continue
		}
		if n := len(t.parts); n == 0 || len(t.parts[n-1].IDs) == 0 {
			t.parts = append(t.parts, decode.Part{})
		}
		last := &t.parts[len(t.parts)-1]
		last.IDs = append(last.IDs, tok.ID)
	}
	t.tokens += len(tokens)
}

func (t *thought) addText(text string) {
	if n := len(t.parts); n > 0 && len(t.parts[n-1].IDs) == 0 {
		t.parts[n-1].Text += text
		return
	}
	t.parts = append(t.parts, decode.Text(text))
}

// recall reads from a run's events how far its thinking had come.
func (s *Solver) recall(ctx context.Context, kept store.Run) (record, thought, error) {
	var rec record
	var t thought
	if err := json.Unmarshal(kept.Request, &rec); err != nil {
		return rec, t, fmt.Errorf("read the request of run %s: %w", kept.ID, err)
	}
	rec.Request.Owner = kept.Owner
	t.ended = rec.Cause != ""
	const page = 512
	for after := int64(0); after < kept.Last; {
		events, err := s.cfg.Store.Events(ctx, kept.ID, after, page)
		if err != nil {
			return rec, t, err
		}
		if len(events) == 0 {
			break
		}
		for _, e := range events {
			after = e.Offset
			switch e.Type {
			case EventRun: // an extension: what came before is in the record
				rec.events = nil
			case EventThinking:
				var data TextData
				if err := json.Unmarshal(e.Data, &data); err != nil {
					return rec, t, fmt.Errorf("read event %d of run %s: %w", e.Offset, kept.ID, err)
				}
				t.text += data.Text
				t.tokens = data.Tokens
				if len(e.Tokens) > 0 {
					t.parts = append(t.parts, decode.Part{IDs: e.Tokens})
				} else {
					t.addText(data.Text)
				}
			case EventCheckpoint:
				var c Checkpoint
				if err := json.Unmarshal(e.Data, &c); err != nil {
					return rec, t, fmt.Errorf("read event %d of run %s: %w", e.Offset, kept.ID, err)
				}
				rec.events = append(rec.events, c)
			}
		}
	}
	return rec, t, nil
}
