package server

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"anytime/internal/server/sse"
	"anytime/internal/store"
)

// item is an event of one of the runs that are followed, or why that one cannot be followed further.
type item struct {
	run   int
	event store.Event
	err   error
}

// follow reads runs from behind an offset until all of them have ended. The channel closes then, or soon after ctx ends.
func (s *Server) follow(ctx context.Context, after int64, ids ...string) <-chan item {
	items := make(chan item)
	var readers sync.WaitGroup
	for i, id := range ids {
		readers.Go(func() {
			for event, err := range store.Follow(ctx, s.cfg.Store, id, after) {
				select {
				case items <- item{i, event, err}:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	go func() { readers.Wait(); close(items) }()
	return items
}

// stream follows runs onto an event stream: show writes what each item amounts to. Silence is filled with comments. It returns
// when the runs have ended, with an error when the client has gone or show fails.
func (s *Server) stream(ctx context.Context, w http.ResponseWriter, after int64, ids []string, show func(*sse.Writer, item) error) (err error) {
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out, err := sse.NewWriter(w, s.cfg.Timeout)
	if err != nil {
		return err
	}
	defer out.Close()
	ping := time.NewTicker(s.cfg.Ping)
	defer ping.Stop()
	items := s.follow(ctx, after, ids...)
	for {
		select {
		case it, more := <-items:
			if !more {
				return ctx.Err()
			}
			if err := show(out, it); err != nil {
				return err
			}
			ping.Reset(s.cfg.Ping)
		case <-ping.C:
			if err := out.Comment("ping"); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
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
