package budget

// Cause says why a run's thinking ended.
type Cause string

// The causes, as they are reported.
const (
	CauseNatural       Cause = "natural"         // the model closed its thinking by itself
	CauseTokens        Cause = "tokens"          // the token budget, or the server's cap, was spent
	CauseDeadline      Cause = "deadline"        // the rest of the time was needed for the answer
	CauseInterrupt     Cause = "interrupt"       // someone asked for the answer
	CauseConverged     Cause = "converged"       // EarlyStop: the answers on the way had settled
	CauseConfident     Cause = "confident"       // EarlyStop: the model was sure of an answer on the way
	CauseLoop          Cause = "loop"            // the thinking repeated itself, see Loop
	CauseEOSInThinking Cause = "eos_in_thinking" // the model ended its text without closing its thinking
	CauseContext       Cause = "context"         // the model's context was full but for the answer
	CauseOverload      Cause = "overload"        // the server shortened thoughts to serve everyone
	CauseDrain         Cause = "drain"           // the server is shutting down
	CauseEngine        Cause = "engine"          // the engine was lost, and did not come back
)

// Forced reports whether the answer was forced from an unfinished thought: all causes but natural.
func (c Cause) Forced() bool { return c != CauseNatural }
