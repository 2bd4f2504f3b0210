package server

import (
	"context"
	"encoding/json"
	"iter"
	"log/slog"
	"net/http"
	"sync"

	"anytime/internal/server/sse"
	"anytime/internal/store"
)

// item is an event of one of the runs that are followed, why that one cannot be followed further, or a sign of life.
type item struct {
	run   int
	event store.Event
	err   error
	quiet bool // nothing has happened for a while
}

// follow yields the events of runs from behind an offset until all of them have ended, and now and then that it is quiet. An error,
// but for ctx's, is yielded; that of one run does not end the others.
func (s *Server) follow(ctx context.Context, after int64, ids ...string) iter.Seq[item] {
	if len(ids) == 1 { // as most are: by itself, a stream that waits is to cost little
		return s.followOne(ctx, after, 0, ids[0])
	}
	return func(yield func(item) bool) {
		ctx, cancel := context.WithCancel(ctx)
		items := make(chan item)
		var readers sync.WaitGroup
		for i, id := range ids {
			readers.Go(func() {
				for it := range s.followOne(ctx, after, i, id) {
					select {
					case items <- it:
					case <-ctx.Done():
						return
					}
				}
			})
		}
		go func() { readers.Wait(); close(items) }()
		for it := range items {
			if !yield(it) {
				break
			}
		}
		cancel()
		for range items { // until all readers have left
		}
	}
}

func (s *Server) followOne(ctx context.Context, after int64, run int, id string) iter.Seq[item] {
	return func(yield func(item) bool) {
		// turn follows the run for a while, and reports whether to go on.
		turn := func() bool {
			turn, cancel := context.WithTimeout(ctx, s.cfg.Ping)
			defer cancel()
			for event, err := range store.Follow(turn, s.cfg.Store, id, after) {
				switch {
				case err == nil:
					after = event.Offset
				case ctx.Err() != nil:
					return false
				case turn.Err() != nil:
					return yield(item{run: run, quiet: true})
				}
				if !yield(item{run: run, event: event, err: err}) {
					return false
				}
			}
			return false
		}
		for turn() {
		}
	}
}

// stream follows runs onto an event stream: show writes what each item amounts to. Silence is filled with comments. It returns
// when the runs have ended, with an error when the client has gone or show fails.
func (s *Server) stream(ctx context.Context, w http.ResponseWriter, after int64, ids []string, show func(*sse.Writer, item) error) error {
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()
	out, err := sse.NewWriter(w)
	if err != nil {
		return err
	}
	for it := range s.follow(ctx, after, ids...) {
		if it.quiet {
			err = out.Comment("ping")
		} else {
			err = show(out, it)
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// streamEnded logs why a stream that had begun was broken off, unless its client did.
func (s *Server) streamEnded(r *http.Request, err error) {
	if err != nil && r.Context().Err() == nil {
		s.log.LogAttrs(r.Context(), slog.LevelWarn, "stream broken off", slog.String("request", requestID(r.Context())), slog.Any("error", err))
	}
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only our own types, which always marshal
	}
	return b
}
