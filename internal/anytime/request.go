package anytime

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"anytime/internal/budget"
	"anytime/internal/decode"
	"anytime/internal/decode/prompt"
	"anytime/internal/store"
)

// Request is a question and how its answer is wanted. It is kept with its run, so that the run can go on after a restart.
type Request struct {
	Model    string           `json:"model,omitempty"` // id, or "id:adapter"; "" or "default" the default model
	Messages []prompt.Message `json:"messages,omitempty"`
	// Raw is a prompt that no template is applied to, instead of Messages.
	Raw string `json:"raw,omitempty"`
	// Template is what the model's chat template is told besides the messages: thinking on or off, effort, tools.
	Template prompt.Options `json:"template"`

	Budget       budget.Budget    `json:"budget"`
	MaxTokens    int              `json:"max_tokens,omitempty"`    // thinking and answer together; 0 no such cap
	AnswerTokens int              `json:"answer_tokens,omitempty"` // cap of the answer, and what is reserved for it; 0 the server's default
	Checkpoints  budget.Schedule  `json:"checkpoints"`
	EarlyStop    budget.EarlyStop `json:"early_stop"`
	Votes        int              `json:"votes,omitempty"` // answers sampled at the end, of which the majority counts; 0 as 1
	// VoteTemperature is that of several votes; nil is the request's, or 0.6 where that is greedy.
	VoteTemperature *float32 `json:"vote_temperature,omitempty"`

	Sampling decode.Sampling `json:"sampling"` // its grammar and logit bias hold for the answer only
	// Structured: the grammar makes the answer JSON or calls of tools, which is taken as it stands. Optional: an engine that knows no
	// grammars may answer without.
	Structured      bool     `json:"structured,omitempty"`
	GrammarOptional bool     `json:"grammar_optional,omitempty"`
	Seed            *uint64  `json:"seed,omitempty"`
	Stop            []string `json:"stop,omitempty"` // ends the answer
	TopLogProbs     int      `json:"top_logprobs,omitempty"`
	LogProbs        bool     `json:"logprobs,omitempty"` // answer events list the tokens' log-probabilities

	// Style is how the thinking is closed and the answer asked for; "" is prompt.StylePaper.
	Style         prompt.Style `json:"style,omitempty"`
	BudgetMessage string       `json:"budget_message,omitempty"` // for prompt.StyleMessage: said inside the thinking before it is closed

	OnDisconnect OnDisconnect `json:"on_disconnect,omitempty"`

	// Priority, 1 to MaxPriority, is what the run's thinking is worth beside others' when there is too little time for all; 0 is DefaultPriority.
	Priority int `json:"priority,omitempty"`

	// Client is kept with the run for whoever started it, and means nothing here.
	Client json.RawMessage `json:"client,omitempty"`

	Owner   string    `json:"-"`       // whose run it is; kept in the store's own column
	Arrived time.Time `json:"arrived"` // deadlines count from here
	// Ended, if set, is called once when the run that was started has ended, however it did, but not again after a restart.
	Ended func(thinkingTokens int) `json:"-"`
}

// Priorities of a Request.
const (
	MaxPriority     = 10
	DefaultPriority = 5
)

// OnDisconnect says what becomes of a run whose client leaves.
type OnDisconnect string

// Cancel frees the engine at once, the thought so far is kept; Answer forces the answer and stores it; Continue thinks on.
const (
	Cancel   OnDisconnect = "cancel"
	Answer   OnDisconnect = "answer"
	Continue OnDisconnect = "continue"
)

// RequestOf returns what a run in the store was asked; of an extended run the latest.
func RequestOf(run store.Run) (Request, error) {
	var kept record
	if err := json.Unmarshal(run.Request, &kept); err != nil {
		return Request{}, fmt.Errorf("read the request of run %s: %w", run.ID, err)
	}
	kept.Request.Owner = run.Owner
	return kept.Request, nil
}

// Reply is what became of a run: the JSON answer of /solve and the data of its "done" event.
type Reply struct {
	ID          string       `json:"id"`
	Model       string       `json:"model"`
	Answer      *string      `json:"answer"` // extracted; nil where not even a checkpoint was there in time
	Summary     string       `json:"summary"`
	Thinking    string       `json:"thinking"` // HTTP leaves it out unless asked for
	Stop        Stop         `json:"stop"`
	Confidence  float64      `json:"confidence"` // 0 to 1
	Checkpoints []Checkpoint `json:"checkpoints"`
	Usage       Usage        `json:"usage"`
	Timings     Timings      `json:"timings"`
}

// Stop says why the thinking, and how the answer, ended.
type Stop struct {
	Cause  budget.Cause `json:"cause"`
	Forced bool         `json:"forced"`
	Limit  int          `json:"limit"` // thinking tokens that were allowed
	// Answer is how the answer's decoding ended: "stop" by itself or a stop string, "length" at its cap, "deadline" cut at the deadline,
	// "checkpoint": it is a checkpoint's, on which the thinking settled, or the newest where the last was not in time.
	Answer string `json:"answer"`
}

// Checkpoint is an answer taken on the way.
type Checkpoint struct {
	Tokens     int     `json:"tokens"` // of thinking that it was taken from
	Answer     string  `json:"answer"`
	Summary    string  `json:"summary"`
	Confidence float64 `json:"confidence"`
	ElapsedMS  float64 `json:"elapsed_ms"` // since the request's arrival
	CostMS     float64 `json:"cost_ms"`    // from fork to answer
}

// Usage counts tokens; forced text counts as none of them.
type Usage struct {
	PromptTokens     int  `json:"prompt_tokens"`
	CachedTokens     int  `json:"cached_tokens"` // of the prompt
	ThinkingTokens   int  `json:"thinking_tokens"`
	SummaryTokens    int  `json:"summary_tokens"`    // of the answer returned
	CheckpointTokens int  `json:"checkpoint_tokens"` // of answers taken on the way and of votes not returned
	Approximate      bool `json:"approximate,omitempty"`
}

// Timings are milliseconds since the request's arrival, but the last three.
type Timings struct {
	OpenedMS        float64 `json:"opened_ms"` // admitted, model there, prompt handed to the engine
	FirstThinkingMS float64 `json:"first_thinking_ms"`
	CutMS           float64 `json:"cut_ms"` // thinking ended
	FirstAnswerMS   float64 `json:"first_answer_ms"`
	DoneMS          float64 `json:"done_ms"`
	AnswerLatencyMS float64 `json:"answer_latency_ms"` // from the end of the thinking to the answer's first token
	PerThinkingMS   float64 `json:"per_thinking_ms"`   // per token
	DeadlineLeftMS  float64 `json:"deadline_left_ms"`  // when done; negative is overshoot; 0 without a deadline
}

// The event types of a run, in the store and on the wire.
const (
	EventRun        = "run"        // RunData, first
	EventThinking   = "thinking"   // TextData
	EventCheckpoint = "checkpoint" // Checkpoint
	EventAnswer     = "answer"     // TextData
	EventDone       = "done"       // Reply; the last until the run is extended
	EventError      = "error"      // ErrorData; likewise
)

// RunData opens a run's events, and those of every extension.
type RunData struct {
	ID      string        `json:"id"`
	Model   string        `json:"model"`
	Budget  budget.Budget `json:"budget"`
	Limit   int           `json:"limit"` // thinking tokens allowed
	Created time.Time     `json:"created"`
}

// TextData is text of the thinking or of the answer.
type TextData struct {
	Text   string `json:"text"`
	Tokens int    `json:"tokens"` // so far, this text included
	// Reset says that the answer's text so far is void and this one replaces it: reasoning had leaked into it, or the server restarted.
	Reset    bool           `json:"reset,omitempty"`
	LogProbs []TokenLogProb `json:"logprobs,omitempty"`
}

// TokenLogProb is a token's log-probability with the likeliest alternatives.
type TokenLogProb struct {
	Token   string         `json:"token"`
	LogProb float32        `json:"logprob"`
	Top     []TokenLogProb `json:"top_logprobs,omitempty"`
}

// ErrorData is why a run failed.
type ErrorData struct {
	Code    string `json:"code"` // "cancelled", "engine", "store", "internal"
	Message string `json:"message"`
}

// Errors that callers test for; *decode.InputError, decode.ErrContextFull and store.ErrNotFound come through as they are.
var (
	ErrBusy         = errors.New("too many runs are waiting")
	ErrDraining     = errors.New("server is shutting down")
	ErrUnknownModel = errors.New("no such model")
	ErrNotRunning   = errors.New("run is not running")
	ErrRunning      = errors.New("run is still running")
)

// RequestError is a field of a Request that is out of bounds.
type RequestError struct {
	Field  string
	Reason string
}

func (e *RequestError) Error() string { return fmt.Sprintf("%s: %s", e.Field, e.Reason) }

func mustJSON(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only our own types, which always marshal
	}
	return b
}
