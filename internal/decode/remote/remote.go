// Package remote makes a decode.Engine of a server that can only continue a text: the client's side of sequences, forks and cuts
// for engines in other processes and on other machines.
//
// The model: a Completer continues an exact prefix and streams what comes; it knows one server's protocol and nothing of
// sequences. An Engine keeps the sequences. A sequence is the prefix so far and a queue of operations; forced text only grows the
// prefix, a span is one completion, or several in a row: when the stream breaks, or the reader is slow, or an answer needs the
// slot, the completion is cancelled and a later one goes on from the tokens that are there. A fork is a copy of the prefix up to
// its position; the server's prefix cache makes the replay cheap. Nothing is sent before something is to be decoded.
//
// Cost: a prefix is sent whole with every completion, so bytes on the wire grow with completions × length, and prefill is what the
// server's cache does not have. Slots bounds how many completions run at once; with slots an answer (decode.ClassAnswer)
// takes that of a thought, which pauses meanwhile.
//
// Concurrency: one mutex for each engine guards all of its sequences; each completion runs in a goroutine of its own, which Close waits for.
package remote

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"anytime/internal/decode"
)

// Completer speaks one server's protocol. Its methods may be called concurrently.
type Completer interface {
	// Complete asks the server to continue the prefix and calls emit for what arrives, as it arrives, from the goroutine that called
	// it. It returns when the server says that it is done, with why, or with an error. When ctx ends, the request is cancelled
	// upstream and the error does not matter.
	//
	// A stream that breaks off, is malformed, or ends without saying that it is done is an error; what was emitted before counts, and
	// the next request goes on behind it. Errors that are *decode.InputError, decode.ErrContextFull, decode.ErrUnknownAdapter or wrap ErrFatal
	// fail the sequence; all others are tried again.
	Complete(ctx context.Context, req Request, emit func(Piece)) (decode.End, error)
	// Check returns the *decode.InputError with which the server, or Complete, would refuse a span. What the engine's Capabilities
	// exclude and what is wrong for every engine is checked already.
	Check(span decode.Span) error
	// Tokenize returns the tokens of a text, estimated where the server does not tell: then with ID -1. Texts join to the text.
	Tokenize(ctx context.Context, parts []decode.Part) ([]decode.Token, error)
	// Ready asks the server whether it could decode. busy: completions are under way, behind which another would have to wait.
	Ready(ctx context.Context, busy bool) error
}

// Request is one completion.
type Request struct {
	// Prefix is everything before the head: prompt, forced text and decoded tokens, neighbours of the same kind joined. Parts with IDs
	// are there only with Capabilities.TokenIDs. Text is valid UTF-8 with no NUL; nothing of it may be changed or left out, except to keep
	// the name of a special token in Literal text from being one (Neutralize does it in plain text).
	Prefix      []decode.Part
	Model       string   // what Config.Acquire returned for the sequence's adapter; "" the bare model
	Seed        uint64   // of this completion: of the sequence's seed and its place
	MaxTokens   int      // ≥ 1, exact: the server is to stop there by itself
	MinTokens   int      // before the model may end by itself; a server that cannot do it ignores it
	Until       []string // the client ends the completion at these; no need to send them. Their text must be emitted
	Sampling    decode.Sampling
	TopLogProbs int
	Priority    decode.Priority // for servers that have some
}

// Piece is what arrived at once.
type Piece struct {
	// Tokens that arrived. A server that streams text makes one token of each chunk, ID -1. When its count at the end tells of
	// more tokens than it streamed (half a rune, say), tokens without text make up for them, so that limits stay exact.
	Tokens []decode.Token
	// Prefill is what the whole prefix cost, if the server tells it with the first tokens. What it does not tell the engine measures.
	Prefill *decode.Prefill
	// EOG is the token by which the model ends, if the server tells: before Complete returns decode.EndEOG.
	EOG *decode.Token
}

// Config is what an Engine is told about its server.
type Config struct {
	// Info describes the model. MaxSequences is what the server decodes at once.
	Info decode.Info
	// Slots is how many completions run at once; 0 as many as there are. With slots an answer takes that of a thought.
	Slots int
	// Patience is how long the server may be away, or silent between two tokens, before the sequences that wait fail with
	// decode.ErrUnavailable. Default one minute. Until then they try again. The first token may take ten times as long.
	Patience time.Duration
	// Acquire returns for an adapter's name the model that Request.Model is to hold, and what to call when no sequence uses it any more.
	// Errors: decode.ErrUnknownAdapter. Nil where there are no adapters.
	Acquire func(adapter string) (model string, release func(), err error)
	Log     *slog.Logger // default none
}

// ErrFatal is wrapped by errors of a Completer that trying again cannot mend: a missing model, a refused key.
var ErrFatal = errors.New("the engine cannot be used")
