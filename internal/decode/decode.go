// Package decode is the seam between the anytime loop and the engine that decodes tokens.
//
// The model is a Sequence: a growing text of which the engine decodes the end, its head. A sequence works off a queue of
// operations in order. Append adds forced text at the head; Decode lets the model go on for a Span; between spans the
// sequence is parked and costs nothing but its cache. Fork makes a second sequence that shares everything up to a position
// of the span: the thinking decodes on while its forks are closed, summarised and thrown away. Operations are queued without
// waiting, so an engine in another process runs freely up to the end of a span and never overshoots it; only Next waits.
//
// An engine says in its Capabilities what it can do; package decodetest holds every engine to what it declares.
package decode

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Engine decodes with one loaded model. Its methods may be called concurrently.
type Engine interface {
	// Info describes the model. It does not change while the engine is open.
	Info() Info
	// Open starts a sequence with the prompt and parks it at the prompt's end. Prefill begins at once.
	// Errors: *InputError for a prompt the engine must not be given, ErrContextFull for one that is too long,
	// ErrUnknownAdapter, ErrUnavailable.
	Open(ctx context.Context, req Request) (Sequence, error)
	// Tokenize returns the tokens of a text as Open would see them: for counting and for the tokenize endpoints.
	Tokenize(ctx context.Context, parts ...Part) ([]Token, error)
	// Check returns the *InputError with which Decode would refuse a span, so that a request can be refused before it runs.
	Check(Span) error
	// Ready returns nil when the engine has just decoded a token, or could: it asks the engine itself.
	Ready(ctx context.Context) error
	// Close ends all sequences and frees the model.
	Close() error
}

// Sequence is one growing text. One goroutine at a time may call Next; the other methods may be called concurrently
// with it. After Close every method returns ErrClosed.
type Sequence interface {
	// Append queues forced text at the head.
	Append(parts ...Part) error
	// Decode queues a span.
	Decode(Span) error
	// Next waits for the next tokens of the spans in the order they were queued. Each span ends with one Chunk whose End is set.
	// With no span queued it waits for one. An engine that died and came back does not show: Next just takes longer.
	Next(ctx context.Context) (Chunk, error)
	// Cut ends the span under way after the token under way, or before its first token while forced text before it is being
	// prefilled; Next reports it with End "cut". No effect on a parked sequence.
	Cut()
	// Fork returns a sequence, parked, that shares this one up to the position behind its `after`-th decoded token, counted over all
	// spans since Open (what was appended right behind that token is not shared); after = Head means wherever the head is when
	// the engine gets to it. The fork may be asked for before the head is there: its operations wait until then, and if this
	// sequence is closed before, its Next returns ErrNotReached. A fork outlives its parent.
	Fork(after int, opts ForkOptions) (Sequence, error)
	// SetPriority changes where the engine places the sequence in its batches.
	SetPriority(Priority)
	// Close frees the sequence's slot within a decode step. The engine may keep its cache for prompts that begin the same.
	Close() error
}

// Adapters is implemented by engines whose Capabilities.Adapters is set.
type Adapters interface {
	// LoadAdapter makes the LoRA adapter file available under a name, replacing one of that name; sequences opened before keep
	// the weights that they were opened with. scale 1 applies it as trained.
	LoadAdapter(ctx context.Context, name, path string, scale float32) error
	// UnloadAdapter forgets a name; its memory is freed when no sequence uses it.
	UnloadAdapter(ctx context.Context, name string) error
	// AdapterNames lists what is loaded, sorted.
	AdapterNames() []string
}

// Head is the position for Sequence.Fork that means the head as it is when the engine gets to it.
const Head = -1

// Info describes a loaded model.
type Info struct {
	Model         string   // id by which requests name it
	Architecture  string   // GGUF general.architecture, such as "qwen2"; "" unknown
	ContextTokens int      // longest sequence, prompt included; 0 unknown
	Vocabulary    int      // number of token ids; 0 unknown
	ChatTemplate  string   // Jinja source; "" none known
	BOS, EOS      string   // texts of those tokens, for the template
	AddBOS        bool     // the engine puts BOS before a prompt by itself
	SpecialTokens []string // texts that the tokenizer reads as single control or user-defined tokens
	MaxSequences  int      // sequences that can decode at once, forks included
	// AnswerSteps: while an answer with a deadline decodes, thoughts join only every so many-th step. 0 and 1: all of them.
	AnswerSteps  int
	Capabilities Capabilities
}

// Capabilities is what an engine can do. What is not declared is refused by Open or Decode with *InputError.
type Capabilities struct {
	TokenIDs  bool // tokens carry ids, prompts may be given as ids, counts are exact
	LogProbs  bool // tokens carry log-probabilities
	Grammar   bool // spans may be constrained by a GBNF grammar
	LogitBias bool
	Seed      bool // the same seed, prompt and spans give the same tokens
	Forks     bool // a fork shares its parent's cache instead of replaying the prefix
	Adapters  bool
}

// Request opens a sequence.
type Request struct {
	Prompt   []Part
	Adapter  string // loaded adapter; "" the bare model
	Seed     uint64 // of the sampling, with Capabilities.Seed
	Priority Priority
}

// ForkOptions is what a fork does not share with its parent.
type ForkOptions struct {
	Seed     uint64
	Priority Priority
}

// Part is a piece of a prompt or of forced text: text, or token ids where the engine has them.
type Part struct {
	Text string
	IDs  []int32
	// Literal text comes from a user: the name of a special token in it is plain text.
	Literal bool
}

// Text is a Part in which special tokens count.
func Text(s string) Part { return Part{Text: s} }

// Class orders sequences in an engine's batches; lower is served first.
type Class int

// An answer is awaited by someone now, thinking by nobody yet.
const (
	ClassAnswer Class = iota
	ClassThinking
	ClassBackground
)

// Priority places a sequence in the batches: by class, then earliest deadline.
type Priority struct {
	Class    Class
	Deadline time.Time // zero: none, after all that have one
}

// Span is a stretch of decoding.
type Span struct {
	MaxTokens int // ≥ 1
	// MinTokens is how many tokens come before the model may end by itself: an answer is never empty.
	MinTokens int
	// Until ends the span once its text contains one of these; the token that completes it is the last, whatever more it brings.
	// They may begin inside an earlier token, but not before the span.
	Until    []string
	Sampling Sampling
	// TopLogProbs is how many of the likeliest tokens each Token lists, 0 to 20.
	TopLogProbs int
}

// Sampling says how tokens are drawn. Its zero value is greedy.
type Sampling struct {
	Temperature float32           `json:"temperature"`          // 0 greedy
	TopK        int               `json:"top_k,omitempty"`      // 0 off
	TopP        float32           `json:"top_p,omitempty"`      // 0 or 1 off
	MinP        float32           `json:"min_p,omitempty"`      // 0 off
	LogitBias   map[int32]float32 `json:"logit_bias,omitempty"` // added to the logits; -100 and less forbids
	Grammar     string            `json:"grammar,omitempty"`    // GBNF with a rule "root"
}

// Token is one decoded token.
type Token struct {
	ID      int32   // -1 where the engine has no ids
	Text    string  // the bytes it adds; a rune may be split over tokens
	LogProb float32 // natural logarithm, of the model at temperature 1 without restrictions
	Top     []TokenProb
}

// TokenProb is a candidate for a token's place.
type TokenProb struct {
	ID      int32
	Text    string
	LogProb float32
}

// End says why a span ended.
type End string

// The reasons. EndEOG is the model's own end: the end-of-generation token is reported as Chunk.EOG, but neither counted nor kept in
// the sequence.
const (
	EndLimit   End = "limit"   // Span.MaxTokens
	EndUntil   End = "until"   // one of Span.Until
	EndEOG     End = "eog"     // end of sequence, end of turn
	EndCut     End = "cut"     // Sequence.Cut
	EndContext End = "context" // the context is full
	EndGrammar End = "grammar" // the grammar is complete, or allows nothing
)

// Chunk is what was decoded since the last one.
type Chunk struct {
	Tokens []Token
	End    End // "" while the span goes on
	// EOG is the token by which the model ended a span with EndEOG, where the engine has ids and log-probabilities; else nil.
	EOG *Token
	// Prefill is set on the first chunk after forced text was prefilled.
	Prefill *Prefill
	// How often, since the last chunk, the sequence lost its cache to others, and its engine was replaced under it.
	Preempted, Restarted int
}

// Prefill tells what forced text cost.
type Prefill struct {
	Tokens int           // of the text, cached ones included; approximate without Capabilities.TokenIDs
	Cached int           // taken from a cache
	Queued time.Duration // waited before the first of them was decoded
	Took   time.Duration // from then until the last was
}

// Errors that callers test for.
var (
	ErrClosed         = errors.New("sequence is closed")
	ErrNotReached     = errors.New("the sequence was closed before it reached the fork's position")
	ErrContextFull    = errors.New("prompt does not fit the model's context")
	ErrUnknownAdapter = errors.New("no such adapter is loaded")
	ErrUnavailable    = errors.New("engine is not available")
)

// InputError is input that an engine refuses.
type InputError struct {
	Field  string // "prompt", "grammar", "temperature", …
	Reason string // what was wrong and what is right
}

func (e *InputError) Error() string { return fmt.Sprintf("%s: %s", e.Field, e.Reason) }
