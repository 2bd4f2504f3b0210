package redis

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"anytime/internal/store"
)

// roundBytes is about how much one round of commits sends at most, but for a single run.
const roundBytes = 4 << 20

// commit sends what is pending, until the store is closed.
func (s *Store) commit() {
	again := time.NewTicker(retry)
	defer again.Stop()
	for {
		select {
		case <-s.kick:
		case <-again.C:
		case <-s.closing:
			ctx, cancel := context.WithTimeout(s.ctx, 2*patience)
			defer cancel()
			for s.round(ctx) {
			}
			s.stop()
			return
		}
		begun := time.Now()
		for s.round(s.ctx) {
		}
		select {
		case <-time.After(spacing - time.Since(begun)):
		case <-s.closing:
		}
	}
}

// write is a commit under way.
type write struct {
	h       *held
	run     store.Run // as it is written
	changes int64
	reply   *redis.Cmd
}

// round commits what is pending of all runs, as far as it goes into one round, and reports whether there is more that can go at once.
func (s *Store) round(ctx context.Context) (more bool) {
	s.mu.Lock()
	var writes []*write
	var size int64
	for _, h := range s.runs {
		if h.committed == h.changes || h.lost {
			continue
		}
		if size > roundBytes {
			more = true
			break
		}
		writes = append(writes, &write{h: h, run: h.Run, changes: h.changes})
		for _, e := range h.events[h.sent:] {
			size += int64(eventBytes + len(e.Data))
		}
	}
	ended, away := s.ended, s.away
	s.ended = nil
	s.mu.Unlock()
	if len(writes) == 0 && len(ended) == 0 && !away {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, patience+time.Duration(size)*time.Second/roundBytes) // more at 4 MiB/s
	defer cancel()
	if err := s.index(ctx, writes, ended); err != nil {
		s.mu.Lock()
		s.ended = append(s.ended, ended...)
		s.mu.Unlock()
		s.failed(writes, err)
		return false
	}
	if len(writes) == 0 {
		if away && s.client.Ping(ctx).Err() == nil {
			s.back()
		}
		return false
	}
	// Scripts that a node does not know yet are sent whole.
	for _, run := range []func(redis.Pipeliner, []string, []any) *redis.Cmd{
		func(p redis.Pipeliner, keys []string, args []any) *redis.Cmd {
			return appendScript.EvalSha(ctx, p, keys, args...)
		},
		func(p redis.Pipeliner, keys []string, args []any) *redis.Cmd {
			return appendScript.Eval(ctx, p, keys, args...)
		},
	} {
		pipe := s.client.Pipeline()
		sent := 0
		for _, w := range writes {
			if w.reply == nil || redis.HasErrorPrefix(w.reply.Err(), "NOSCRIPT") {
				w.reply = run(pipe, []string{s.runKey(w.run.ID), s.eventsKey(w.run.ID), s.graveKey(w.run.ID)}, s.arguments(w))
				sent++
			}
		}
		if sent > 0 {
			_, _ = pipe.Exec(ctx) // each has its error
		}
	}
	return s.settle(writes) || more
}

// arguments are what scripts/append.lua wants.
func (s *Store) arguments(w *write) []any {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, r := w.h, &w.run
	var fields []any
	if h.write != "append" {
		fields = append(fields, "made", h.made, "owner", r.Owner, "model", r.Model, "created", r.Created.UnixMicro())
		for fence, base := range h.bases {
			fields = append(fields, baseField(fence), base)
		}
	}
	fields = append(fields, "state", string(r.State), "updated", r.Updated.UnixMicro())
	whole := h.write != "append"
	if r.Request != nil && (whole || h.request > h.committed) {
		fields = append(fields, "request", []byte(r.Request))
	}
	if r.Reply != nil && (whole || h.reply > h.committed) {
		fields = append(fields, "reply", []byte(r.Reply))
	}
	args := append([]any{h.write, h.fence, h.sent, s.opts.MaxAge.Milliseconds(), s.channel(r.ID), s.session, len(fields)}, fields...)
	for _, e := range h.events[h.sent:r.Last] {
		args = append(args, encode(e))
	}
	return args
}

// index puts runs that are new here into the lists before they are written, so that none is ever missing there, and takes those out
// that this session has no more.
func (s *Store) index(ctx context.Context, writes []*write, ended []string) error {
	pipe := s.client.Pipeline()
	var fresh []*held
	var ids []string
	s.mu.Lock()
	for _, w := range writes {
		if !w.h.indexed {
			fresh, ids = append(fresh, w.h), append(ids, w.run.ID)
			s.list(ctx, pipe, w.run)
		}
	}
	for _, id := range ended {
		if s.runs[id] == nil {
			pipe.SRem(ctx, s.sessionKey(s.session), id)
		}
	}
	s.mu.Unlock()
	if pipe.Len() == 0 {
		return nil
	}
	if fresh != nil {
		if _, err := s.beat(ctx, ids...); err != nil {
			return err
		}
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range fresh {
		h.indexed = true
	}
	return nil
}

func (s *Store) list(ctx context.Context, pipe redis.Pipeliner, r store.Run) {
	for _, key := range []string{s.allKey(), s.ownerKey(r.Owner)} {
		pipe.ZAddNX(ctx, key, redis.Z{Score: float64(r.Created.UnixMicro()), Member: r.ID})
		if age := s.opts.MaxAge; age > 0 { // lists reach back twice as far as runs are kept
			pipe.ZRemRangeByScore(ctx, key, "-inf", fmt.Sprint("(", time.Now().Add(-2*age).UnixMicro()))
			pipe.Expire(ctx, key, 2*age)
		}
	}
}

// settle takes in what became of commits, and reports whether some can be made again at once.
func (s *Store) settle(writes []*write) (again bool) {
	var failed []*write
	var failure error
	s.mu.Lock()
	for _, w := range writes {
		h := w.h
		result, err := w.reply.Slice()
		if err != nil {
			failed, failure = append(failed, w), err
			continue
		}
		code, _ := result[0].(string)
		last, _ := result[1].(int64)
		switch code {
		case "ok":
			h.write, h.sent, h.kept, h.committed = "append", w.run.Last, w.run, w.changes
			if h.committed == h.changes {
				h.late = false
			}
			h.tell()
			if h.committed == h.changes && h.State != store.Running {
				s.drop(h, nil)
			}
		case "exists":
			s.drop(h, store.ErrExists)
		case "deleted":
			s.drop(h, store.ErrNotFound)
		case "leased":
			s.lose(h)
		case "missing":
			s.log.Warn("redis has forgotten a run, it is written again", "run", h.ID)
			h.write, h.sent, h.indexed, again = "restore", 0, false, true
		case "behind":
			s.log.Warn("redis has forgotten events, they are written again", "run", h.ID, "last", last)
			h.sent, again = last, true
		}
	}
	s.mu.Unlock()
	switch {
	case failed != nil:
		s.failed(failed, failure)
		return false
	case !again:
		s.back()
	}
	return again
}

// back notes that all that was sent got through.
func (s *Store) back() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away {
		s.away = false
		s.log.Info("redis is back")
	}
}

// lose takes in that another server has the lease. It wants mu.
func (s *Store) lose(h *held) {
	s.log.Warn("another server has taken a run over", "run", h.ID, "uncommitted events were shown", h.shown)
	if !h.shown {
		s.drop(h, store.ErrLeased)
		return
	}
	h.lost, h.late = true, true
	s.ended = append(s.ended, h.ID)
	h.tell()
}

// failed notes that Redis is away: what is pending is shown as it is.
func (s *Store) failed(writes []*write, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.away {
		s.log.Error("redis is away; runs go on and their commits are kept", "error", err, "runs", len(writes))
	}
	s.away = true
	for _, h := range s.runs {
		if h.committed < h.changes && !h.late {
			h.late = true
			h.tell()
		}
	}
}
