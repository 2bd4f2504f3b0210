// Package store keeps runs and their events, so that a reader that was cut off, a server that was restarted and a thought that
// was stopped can all go on where they were.
//
// A run's events are numbered from 1 without gaps; the number is the event's offset and, over HTTP, its id. Events are durable
// before any reader sees them: Append returns, and Wait wakes, only after the commit. Implementations are the packages beside
// this one; package storetest holds each of them to this contract.
package store

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"time"
)

// State is where a run stands.
type State string

// A running run may get events; a finished one has its reply and, extended, runs again; a failed one has only its error.
const (
	Running  State = "running"
	Finished State = "finished"
	Failed   State = "failed"
)

// Run is one question and what became of it.
type Run struct {
	ID      string
	Owner   string // whose it is: a digest of the API key; "" where the server has no keys
	Model   string
	State   State
	Created time.Time       // kept, as all times, to the microsecond; zero: when the store got it
	Updated time.Time       // its last commit; set by the store
	Request json.RawMessage // as the anytime package wrote it
	Reply   json.RawMessage // nil until it has one
	Last    int64           // offset of its last event, 0 none
}

// Event is one thing that happened in a run.
type Event struct {
	Offset int64           // of a Shared store, maybe provisional
	Type   string          // "run", "thinking", "checkpoint", "answer", "done", "error"
	Data   json.RawMessage // what clients see
	Tokens []int32         // ids of the tokens in it, for going on after a restart; never shown
}

// Change is what one commit does to a run: events are added, and what is set is replaced, all or nothing. It must not be modified
// after it was handed to Append.
type Change struct {
	Events  []Event // Offset is assigned by the store
	State   State   // "" as it was
	Request json.RawMessage
	Reply   json.RawMessage
}

// Filter selects runs for List, newest first.
type Filter struct {
	Owner  *string   // nil: any
	State  State     // "" any
	Before time.Time // created before; zero: any
	Limit  int       // not positive: 100
	Heads  bool      // Request and Reply, which may be large, are not wanted and may be left out
}

// Errors that callers test for.
var (
	ErrNotFound = errors.New("no such run")
	ErrExists   = errors.New("a run of that id exists")
	ErrClosed   = errors.New("store is closed")
	// ErrUnavailable: what is kept cannot be read or written, for a reason that is not the call's.
	ErrUnavailable = errors.New("the store is not available")
	ErrFull        = errors.New("no space left in the store") // nothing was kept; the same call works once there is space again
	ErrLeased      = errors.New("another server executes this run")
	ErrIdle        = errors.New("no server executes this run")
)

// Store is implemented by memory, sqlite and redis. Its methods may be called concurrently. What they return must not be modified.
// Those that name a run fail with ErrNotFound where there is none, and all fail with ErrClosed after Close.
type Store interface {
	// Create adds a run with no events, running unless it says otherwise; ErrExists where the id is taken.
	Create(ctx context.Context, run Run) error
	// Append commits a change and returns the offset of its last event (of the run's last event, where it has none).
	// It returns once the change is durable; changes of different runs may share a commit, those of one run keep their order.
	// Where ctx ends while it waits, the change may yet be kept.
	Append(ctx context.Context, id string, change Change) (int64, error)
	// Get returns a run as of its last commit.
	Get(ctx context.Context, id string) (Run, error)
	// Events returns at most limit events with offsets above after, in order.
	Events(ctx context.Context, id string, after int64, limit int) ([]Event, error)
	// Wait returns nil once the run has an event above after, or is not running.
	Wait(ctx context.Context, id string, after int64) error
	// List returns runs, newest first.
	List(ctx context.Context, filter Filter) ([]Run, error)
	// Delete removes a run with its events; those who wait for it get ErrNotFound.
	Delete(ctx context.Context, id string) error
	// Ready returns nil when the store could commit now.
	Ready(ctx context.Context) error
	// Close commits what is under way and closes.
	Close() error
}

// Shared is a Store that several servers use at a time. A run under way is executed by one of them, which holds its lease: the one
// that created it, that appended to it when it had ended, or that took it over. The lease lasts as long as that server and the store
// hear of one another, and until somebody takes it. Append fails with ErrLeased at all others: also at one that has lost its lease
// and does not know it yet.
//
// While the store is away, what is appended is kept in the server, and shown to its own readers, until it can be committed: the
// events at the offsets that they were shown with. Such events have provisional offsets, larger than all others and as opaque as
// any. Should the server die or lose the lease before they are committed, a reader that goes on behind one of them, at any
// server, gets an event of type Reset first.
type Shared interface {
	Store
	// TakeOver leases to this server runs whose server is dead, at most so many, and returns them.
	TakeOver(ctx context.Context, most int) ([]Run, error)
	// Release gives a lease back, so that another server takes the run over.
	Release(ctx context.Context, id string) error
	// Ask has the server that executes a run obey a command, which must do no harm if it comes twice, and returns its reply. It fails
	// with ErrIdle where the run has ended, and with ErrUnavailable where no server answers in a bounded time.
	Ask(ctx context.Context, id string, command []byte) (reply []byte, err error)
	// Obey sets what answers the commands of other servers. It may be called concurrently, and must return when ctx ends.
	Obey(func(ctx context.Context, id string, command []byte) (reply []byte))
}

// Reset is the type of an event that voids those that a reader has seen behind its offset: others will follow in their place.
const Reset = "reset"

// Follow yields a run's events above after, those to come included, until the run is no longer running and all of them were
// yielded. An error, ctx's too, is yielded last.
func Follow(ctx context.Context, s Store, id string, after int64) iter.Seq2[Event, error] {
	const page = 256
	return func(yield func(Event, error) bool) {
		for {
			if err := s.Wait(ctx, id, after); err != nil {
				yield(Event{}, err)
				return
			}
			events, err := s.Events(ctx, id, after, page)
			if err != nil {
				yield(Event{}, err)
				return
			}
			if len(events) == 0 { // so Wait returned because the run is not running
				return
			}
			for _, e := range events {
				after = e.Offset
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}
