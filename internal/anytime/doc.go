// Package anytime is the one loop that ties a budget, an engine and the forced summary into a run and its events.
//
// A run thinks in one sequence. Whoever wants an answer, be it a checkpoint, the token budget, the deadline, an interrupt or the
// end of the thinking, gets it from forks of that sequence, which are closed with a suffix and decode the answer beside the
// thinking. So an answer never disturbs the thought, can be taken again and again, and the thought can go on afterwards.
//
// Solver's surface, for HTTP and for tools:
//
//	Start(ctx, Request) (id, error)              validate, admit, open; the run then lives on its own
//	Wait(ctx, id) (Reply, error)                 until it is finished (a *RunError if it failed)
//	Interrupt(ctx, id) error                     answer now; Wait for the reply
//	Peek(ctx, id) (Checkpoint, error)            an answer now, while the thought goes on
//	Extend(ctx, id, Extension) error             think on from where it was cut; the answers so far are kept
//	Leave(id)                                    the client is gone: do as Request.OnDisconnect says
//	Cancel(ctx, id) error                        stop without an answer
//	Explain(ctx, id) (*Explanation, error)       where its time went, and why it was cut where it was
//	Recover(ctx) error                           take up the runs that an earlier process left unfinished
//	TakeOver(ctx)                                take up those of other servers that die, where a store is shared
//	Drain(ctx) error                             admit nothing more, force every run to its answer, wait for them
//
// Events of a run are read from the store (store.Follow), live or later, which is the only way they reach anyone.
//
// Each run has one goroutine, which owns its state and learns everything through channels: chunks of the thinking, answers of forks,
// commands, timers. A recorder goroutine beside it commits events; while one commit is under way text coalesces into the next.
package anytime
