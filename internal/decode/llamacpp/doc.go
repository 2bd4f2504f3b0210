// Package llamacpp is the embedded engine: llama.cpp in a child process, behind package decode.
//
// # Model
//
// The parent (Engine, sequence) is what the program sees. The child (Serve, worker) is the program's own binary, started with the
// argument "engine"; it alone loads llama.cpp, which ends the process on many errors. They talk over two pipes: commands down,
// events up, one event for each decode step with all that came of it (protocol.go).
//
// A sequence is its token ids, a queue of forced texts and spans, and nothing else: the KV cache is only a cache of it. Whenever a
// sequence has to be decoded and has no slot (a llama.cpp sequence id), it gets one, the cache with the longest common beginning
// made with the same weights is copied into it, and the rest is prefilled. This one mechanism is the head fork, the fork in the
// past, the fork that had to queue, the reuse of a prompt's cache by the next request, the return after preemption and the replay
// after a crash. Weights are known by the number that an adapter got when it was loaded, so no cache outlives a reload.
//
// What is drawn is a pure function of logits, seed and position (sample.go). So all of these ways continue a sequence alike, up to
// the rounding of batches of another shape; with F32 weights, a KVType of f32 and FlashAttention off that is nearly never seen.
//
// # Steps
//
// The child's loop takes all commands that have come, plans a batch (schedule.go), decodes it, draws a token for each sequence
// whose last token was in it, and sends one event. The last token drawn is not in the cache yet: it goes into the next batch, in
// a fork together with the suffix. A batch serves one adapter; adapters take turns. In it come answers, then one token for each
// sequence that decodes, then prefill, of which there is little while others decode; each by class, deadline and age.
//
// When slots or KV cells run out, kept caches go first, longest unused first, then caches of parked sequences, then of those that
// rank lowest. The first in rank is never preempted, so everything that fits the context alone finishes.
//
// Models whose state cannot be cut back (recurrent, hybrid) share it only as a whole: a fork at the head takes its copy before
// the parent goes on, and a fork in the past is prefilled. Sliding windows keep their full cache.
//
// # Crashes
//
// The parent mirrors the tokens of every sequence from the events. When the child dies, or says nothing for Config.Watchdog (it is
// asked, so that silence means something), another is started and told everything: adapters, sequences, queues. Tokens that had
// not arrived are drawn again, the same. A sequence at which two children died in a row is replayed alone; at the third it fails with
// decode.ErrUnavailable. Children that were killed from outside count a tenth. After five failed starts all sequences fail, and the engine goes on trying.
//
// # Costs
//
// A fork costs a few microseconds and the prefill of its suffix. Prefix search compares token ids with every slot once when a
// sequence gets a slot. A token's log-probability is one pass over the logits, about 0.5 ms for a vocabulary of 150,000; sampling
// with top-p about 3 ms there; a grammar up to a second for an ambiguous one, beyond which it is refused.
//
// # Concurrency
//
// In the parent one mutex, Engine.mu, guards the engine and its sequences; nothing blocks while it is held. The supervisor goroutine
// starts the child and takes in its events. In the child one goroutine, locked to its thread, owns the llama.cpp context; another
// reads commands and tokenizes, which touches only the constant vocabulary. Queues are bounded: sequences (4096), operations of
// one (1024), tokens that its reader has not taken (256, after which only this sequence waits).
package llamacpp
