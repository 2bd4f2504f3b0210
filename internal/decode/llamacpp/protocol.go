package llamacpp

import (
	"bufio"
	"encoding/gob"
	"errors"
	"io"
	"sync"
	"time"

	"anytime/internal/decode"
)

// The protocol between parent and child: gob streams of command on one pipe and of event on the other. The first thing on the
// command pipe is the Config. Commands about a sequence are worked off in the order in which they were sent; closing the command
// pipe ends the child.

type commandKind uint8

const (
	cmdOpen     commandKind = iota + 1 // Seq begins with Tokens (empty but for a sequence that is being restored)
	cmdFork                            // Seq begins with what From has behind its After-th decoded token
	cmdAppend                          // Parts at the head of Seq
	cmdSpan                            // decode a Span, of which the last Done tokens are there already
	cmdCut                             // end the span being decoded
	cmdPriority                        // Class, Deadline
	cmdAck                             // the reader has taken Count decoded tokens since Open
	cmdClose                           // Seq
	cmdTokenize                        // Parts; replied to
	cmdPing                            // replied to by the loop that owns the model
	cmdAdapter                         // load Path as Adapter with Scale; replied to
	cmdUnload                          // free Adapter once no sequence uses it
)

// command is a message to the child.
type command struct {
	Kind commandKind
	Seq  uint64
	Call uint64 // echoed by the reply

	Tokens   []int32
	Decoded  []int32 // len of the sequence behind each decoded token
	Base     int     // len of the sequence where its own spans began
	Adapter  uint64  // 0 none
	Seed     uint64
	Class    decode.Class
	Deadline int64 // Unix nanoseconds, 0 none
	From     uint64
	After    int
	Prompt   bool // the parts are the prompt: BOS comes before them, and they must fit
	Parts    []decode.Part
	Span     *decode.Span
	Done     int
	Count    int
	Path     string
	Scale    float32
}

// event is a message from the child: all that happened in a step of its loop.
type event struct {
	Hello    *hello  // once the model is loaded
	Progress float32 // of loading
	Fatal    string  // why the child gives up
	Replies  []reply
	Updates  []update
	Counts   counts
	Took     time.Duration // of the step
	Beside   bool          // not from the loop that decodes, so that it says nothing about that
}

// hello describes the loaded model.
type hello struct {
	Vocabulary int
	AddBOS     bool
	BOS, EOS   string
	MaxPiece   int // bytes of the longest token
	GPULayers  int
}

type reply struct {
	Call   uint64
	Err    *wireError
	Tokens []decode.Token
}

// update is news of one sequence.
type update struct {
	Seq     uint64
	Forked  bool    // a fork has begun …
	Shared  int     // … with that many of its parent's tokens
	Applied bool    // the oldest append is at the head …
	Forced  []int32 // … as these tokens
	Tokens  []decode.Token
	Prefill *decode.Prefill
	End     decode.End
	EOG     *decode.Token
	// Preempted is how often the sequence has lost its cache to others since its last token.
	Preempted int
	Err       *wireError // the sequence is over
	Closed    bool       // the sequence is forgotten
}

// counts are the child's counters since it started.
type counts struct {
	Steps, BatchTokens, PrefillTokens, CachedTokens, Preemptions, Evictions uint64
	Running, Waiting, CellsUsed                                             int
}

// wireError carries the errors of package decode over the pipe.
type wireError struct{ Code, Field, Reason string }

const (
	codeInput      = "input"
	codeContext    = "context"
	codeNotReached = "fork"
	codeFailed     = "failed"
)

func toWire(err error) *wireError {
	var input *decode.InputError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &input):
		return &wireError{codeInput, input.Field, input.Reason}
	case errors.Is(err, decode.ErrContextFull):
		return &wireError{Code: codeContext}
	case errors.Is(err, decode.ErrNotReached):
		return &wireError{Code: codeNotReached}
	}
	return &wireError{Code: codeFailed, Reason: err.Error()}
}

func (w *wireError) error() error {
	switch {
	case w == nil:
		return nil
	case w.Code == codeInput:
		return &decode.InputError{Field: w.Field, Reason: w.Reason}
	case w.Code == codeContext:
		return decode.ErrContextFull
	case w.Code == codeNotReached:
		return decode.ErrNotReached
	}
	return errors.New(w.Reason)
}

func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// encoder writes one kind of message; it may be used concurrently.
type encoder[T any] struct {
	mu  sync.Mutex
	buf *bufio.Writer
	gob *gob.Encoder
}

func newEncoder[T any](w io.Writer) *encoder[T] {
	buf := bufio.NewWriterSize(w, 1<<16)
	return &encoder[T]{buf: buf, gob: gob.NewEncoder(buf)}
}

// send writes messages and flushes them together.
func (e *encoder[T]) send(messages ...T) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range messages {
		if err := e.gob.Encode(&messages[i]); err != nil {
			return err
		}
	}
	return e.buf.Flush()
}
