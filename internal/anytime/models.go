package anytime

import (
	"context"

	"anytime/internal/budget"
	"anytime/internal/decode"
	"anytime/internal/decode/prompt"
)

// Model is a loaded model, ready to think.
type Model struct {
	ID          string // with its adapter: "id" or "id:adapter"
	Adapter     string
	Engine      decode.Engine
	Renderer    *prompt.Renderer
	Pace        *budget.Pace   // of this engine, shared by its runs, whatever adapter they have
	Length      *budget.Length // of its answers, likewise
	Curve       *budget.Curve  // its accuracy over the budget; nil not known
	MaxThinking int            // the cap that "max" stands for
}

// Models gives runs their models.
type Models interface {
	// Acquire returns a model, loading it if need be, and keeps it loaded until release is called. name may be "", "default",
	// an id, or "id:adapter". Errors: ErrUnknownModel, decode.ErrUnknownAdapter, decode.ErrUnavailable, ctx's.
	Acquire(ctx context.Context, name string) (model *Model, release func(), err error)
}
