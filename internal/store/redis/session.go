package redis

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"anytime/internal/store"
)

// released is the session that runs have which were given back. It is always dead.
const released = "released"

// beat lets the session live on for a lease, lists runs that it is to hold, and returns the sessions that are dead.
func (s *Store) beat(ctx context.Context, runs ...string) (dead []string, err error) {
	args := []any{s.session, s.opts.Lease.Milliseconds()}
	for _, id := range runs {
		args = append(args, id)
	}
	reply, err := beatScript.Run(ctx, s.client, []string{s.sessionsKey(), s.sessionKey(s.session)}, args...).Slice()
	if err != nil {
		return nil, s.failure(ctx, err)
	}
	if known, _ := reply[0].(int64); known == 0 {
		s.relist()
	}
	names, _ := reply[1].([]any)
	for _, name := range names {
		if name, ok := name.(string); ok && name != s.session {
			dead = append(dead, name)
		}
	}
	return dead, nil
}

// relist has all runs held here written again, for the session is not known: Redis may have forgotten them as well.
func (s *Store) relist() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.runs {
		if !h.lost {
			h.indexed = false
			h.changes++
		}
	}
}

// holds returns the runs that the session holds.
func (s *Store) holds() (ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, h := range s.runs {
		if h.indexed && !h.lost {
			ids = append(ids, id)
		}
	}
	return ids
}

func (s *Store) alive(ctx context.Context, session string) (bool, error) {
	alive, err := aliveScript.Run(ctx, s.client, []string{s.sessionsKey()}, session).Bool()
	return alive, s.failure(ctx, err)
}

// keep keeps the session alive, and tidies, until the store is closed.
func (s *Store) keep() {
	beat := time.NewTicker(s.opts.Lease / 3)
	defer beat.Stop()
	tidy := time.NewTicker(10 * time.Second)
	defer tidy.Stop()
	for {
		select {
		case <-beat.C:
			ctx, cancel := context.WithTimeout(s.ctx, patience)
			if _, err := s.beat(ctx, s.holds()...); err != nil {
				s.log.Warn("the lease is not renewed", "error", err)
			}
			s.renewPlaces(ctx)
			cancel()
		case <-tidy.C:
			_ = s.forget(s.ctx) // they are only a waste
			s.sweep()
		case <-s.ctx.Done():
			// What is left is for others, now.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), patience)
			defer cancel()
			if _, err := s.client.ZAdd(ctx, s.sessionsKey(), redis.Z{Member: s.session}).Result(); err != nil {
				s.log.Warn("the lease could not be given back; it ends by itself", "error", err)
			}
			return
		}
	}
}

// sweep drops lost runs a minute after their end, when their readers are done, and what commands were answered.
func (s *Store) sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.runs {
		switch {
		case !h.lost || h.State == store.Running:
		case h.dropped.IsZero():
			h.dropped = time.Now()
		case time.Since(h.dropped) > time.Minute:
			s.drop(h, store.ErrLeased)
		}
	}
	for call, o := range s.served {
		if time.Since(o.came) > 2*commandPatience {
			delete(s.served, call)
		}
	}
}

// claim leases a run that has ended, or whose server is dead, and holds it. With orphan, only the latter.
func (s *Store) claim(ctx context.Context, id string, orphan bool) error {
	s.claims.Lock()
	defer s.claims.Unlock()
	s.mu.Lock()
	known := s.runs[id] != nil
	s.mu.Unlock()
	if known {
		return nil
	}
	values, err := s.client.HMGet(ctx, s.runKey(id), "state", "session", "fence").Result()
	if err != nil {
		return s.failure(ctx, err)
	}
	state, _ := values[0].(string)
	session, _ := values[1].(string)
	fence, ok := values[2].(string)
	switch {
	case !ok:
		return store.ErrNotFound
	case state == string(store.Running) && session != "" && session != s.session:
		switch alive, err := s.alive(ctx, session); {
		case err != nil:
			return err
		case alive:
			return store.ErrLeased
		}
	case state != string(store.Running) && orphan:
		return store.ErrIdle
	}
	if _, err := s.beat(ctx, id); err != nil {
		return err
	}
	next, err := claimScript.Run(ctx, s.client, []string{s.runKey(id)}, fence, s.channel(id), s.session).Int64()
	if err != nil {
		return s.failure(ctx, err)
	}
	if next == 0 {
		return store.ErrLeased
	}
	return s.hold(ctx, id, next)
}

// hold reads a run that was claimed.
func (s *Store) hold(ctx context.Context, id string, fence int64) error {
	pipe := s.client.TxPipeline()
	row := pipe.HGetAll(ctx, s.runKey(id))
	list := pipe.LRange(ctx, s.eventsKey(id), 0, -1)
	if _, err := pipe.Exec(ctx); err != nil {
		return s.failure(ctx, err)
	}
	run, err := parseRun(id, row.Val())
	if err != nil {
		return err
	}
	events, err := parseEvents(nil, list.Val(), 0)
	if err != nil {
		return err
	}
	if int64(len(events)) < run.Last {
		return fmt.Errorf("%w: redis has %d of %d events of the run; it must not evict keys", store.ErrUnavailable, len(events), run.Last)
	}
	h := &held{
		Run: run, kept: run, events: events[:run.Last], fence: fence, bases: map[int64]int64{}, made: row.Val()["made"], sent: run.Last, write: "append",
		bytes: int64(runBytes + len(run.Request) + len(run.Reply)), changed: make(chan struct{}),
	}
	for _, e := range events {
		h.bytes += int64(eventBytes + len(e.Data) + 4*len(e.Tokens))
	}
	for field := range maps.Keys(row.Val()) {
		if of, ok := strings.CutPrefix(field, "base:"); ok {
			lease, _ := strconv.ParseInt(of, 10, 64) // only we write them
			h.bases[lease], _ = strconv.ParseInt(row.Val()[field], 10, 64)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runs[id] = h
	return nil
}

// TakeOver implements store.Shared.
func (s *Store) TakeOver(ctx context.Context, most int) ([]store.Run, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	dead, err := s.beat(ctx)
	if err != nil {
		return nil, err
	}
	var taken []store.Run
	for _, session := range dead {
		got, err := s.inherit(ctx, session, most-len(taken))
		if taken = append(taken, got...); err != nil {
			return taken, err
		}
	}
	return taken, nil
}

// inherit claims runs of a dead session.
func (s *Store) inherit(ctx context.Context, session string, most int) (taken []store.Run, err error) {
	key := s.sessionKey(session)
	// Some at random, so that servers that do this at the same time seldom want the same ones.
	ids, err := s.client.SRandMemberN(ctx, key, int64(max(0, most))).Result()
	if err != nil {
		return nil, s.failure(ctx, err)
	}
	for _, id := range ids {
		s.mu.Lock()
		h := s.runs[id]
		lost := h != nil && h.lost
		s.mu.Unlock()
		switch {
		case lost: // it goes on here for those who saw it, and is for others to take over
			continue
		case h == nil:
			err := s.claim(ctx, id, true)
			switch {
			case err == nil:
				s.mu.Lock()
				if h := s.runs[id]; h != nil {
					taken = append(taken, h.kept)
				}
				s.mu.Unlock()
			case errors.Is(err, store.ErrLeased):
				if alive, err := s.alive(ctx, session); err != nil || alive { // it was away for a while, and keeps what it has
					return taken, err
				}
			case errors.Is(err, store.ErrIdle), errors.Is(err, store.ErrNotFound):
			default:
				return taken, err
			}
		}
		if err := s.client.SRem(ctx, key, id).Err(); err != nil {
			return taken, s.failure(ctx, err)
		}
	}
	return taken, s.failure(ctx, buryScript.Run(ctx, s.client, []string{s.sessionsKey(), key}, session).Err())
}

// Release implements store.Shared.
func (s *Store) Release(ctx context.Context, id string) error {
	s.mu.Lock()
	h := s.runs[id]
	s.mu.Unlock()
	if h == nil {
		return store.ErrIdle
	}
	pipe := s.client.Pipeline()
	pipe.ZAdd(ctx, s.sessionsKey(), redis.Z{Member: released})
	pipe.SAdd(ctx, s.sessionKey(released), id)
	if _, err := pipe.Exec(ctx); err != nil {
		return s.failure(ctx, err)
	}
	if err := releaseScript.Run(ctx, s.client, []string{s.runKey(id)}, h.fence).Err(); err != nil {
		return s.failure(ctx, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(h, store.ErrLeased)
	return nil
}
