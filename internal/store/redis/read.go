package redis

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"anytime/internal/store"
)

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, id string) (store.Run, error) {
	run, err := s.get(ctx, id)
	if err != nil {
		return run, fmt.Errorf("get run %q: %w", id, err)
	}
	return run, nil
}

func (s *Store) get(ctx context.Context, id string) (store.Run, error) {
	if err := s.usable(ctx); err != nil {
		return store.Run{}, err
	}
	s.mu.Lock()
	if h := s.runs[id]; h != nil && h.shows() {
		run := h.visible()
		run.Last = h.show(run.Last)
		s.mu.Unlock()
		return run, nil
	}
	s.mu.Unlock()
	fields, err := s.client.HGetAll(ctx, s.runKey(id)).Result()
	if err != nil {
		return store.Run{}, s.failure(ctx, err)
	}
	return parseRun(id, fields)
}

func parseRun(id string, fields map[string]string) (store.Run, error) {
	if fields["fence"] == "" {
		return store.Run{}, store.ErrNotFound
	}
	number := func(field string) int64 {
		n, _ := strconv.ParseInt(fields[field], 10, 64) // only we write them
		return n
	}
	run := store.Run{
		ID: id, Owner: fields["owner"], Model: fields["model"], State: store.State(fields["state"]), Last: number("last"),
		Created: time.UnixMicro(number("created")).UTC(), Updated: time.UnixMicro(number("updated")).UTC(),
	}
	if v, ok := fields["request"]; ok {
		run.Request = json.RawMessage(v)
	}
	if v, ok := fields["reply"]; ok {
		run.Reply = json.RawMessage(v)
	}
	return run, nil
}

// head is how far a run has come that is not held here, and where a reader stands who is at an offset.
type head struct {
	state store.State
	last  int64
	after int64 // plain
	reset bool  // the reader has seen what was never committed
}

// reached says whether there is something for the reader, be it the end.
func (h head) reached() bool { return h.reset || h.last > h.after || h.state != store.Running }

func (s *Store) head(ctx context.Context, id string, after int64) (head, error) {
	plain, fence := split(after)
	values, err := s.client.HMGet(ctx, s.runKey(id), "state", "last", baseField(fence), "fence").Result()
	if err != nil {
		return head{}, s.failure(ctx, err)
	}
	state, ok := values[0].(string)
	if !ok {
		return head{}, store.ErrNotFound
	}
	number := func(v any) int64 {
		text, _ := v.(string)
		n, _ := strconv.ParseInt(text, 10, 64) // only we write them
		return n
	}
	h := head{state: store.State(state), last: number(values[1]), after: plain}
	current := number(values[3])
	switch {
	case fence == 0:
	case fence < current: // the lease is over
		if base := number(values[2]); plain > base {
			h.after, h.reset = base, true
		}
	case fence == current && plain > h.last && h.state != store.Running: // Redis has forgotten, and nobody is left who knows
		h.after, h.reset = h.last, true
	}
	return h, nil
}

// resetTo tells a reader that what it has seen above an offset is void.
func resetTo(offset int64) store.Event {
	data := fmt.Appendf(nil, `{"offset":%d,"message":"events after this offset were shown before they could be kept, and are lost; others take their place"}`, offset)
	return store.Event{Offset: offset, Type: store.Reset, Data: data}
}

// Events implements store.Store.
func (s *Store) Events(ctx context.Context, id string, after int64, limit int) ([]store.Event, error) {
	events, err := s.page(ctx, id, after, limit)
	if err != nil {
		return nil, fmt.Errorf("events of run %q: %w", id, err)
	}
	return events, nil
}

func (s *Store) page(ctx context.Context, id string, after int64, limit int) ([]store.Event, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	if h := s.runs[id]; h != nil && h.shows() {
		events := h.page(after, limit)
		s.mu.Unlock()
		return events, nil
	}
	s.mu.Unlock()
	h, err := s.head(ctx, id, after)
	if err != nil {
		return nil, err
	}
	var events []store.Event
	if h.reset && limit > 0 {
		events, limit = append(events, resetTo(h.after)), limit-1
	}
	if limit <= 0 || h.after >= h.last {
		return events, nil
	}
	texts, err := s.client.LRange(ctx, s.eventsKey(id), h.after, h.after+min(int64(limit), h.last-h.after)-1).Result()
	if err != nil {
		return nil, s.failure(ctx, err)
	}
	return parseEvents(events, texts, h.after)
}

// parseEvents adds events from behind an offset.
func parseEvents(events []store.Event, texts []string, after int64) ([]store.Event, error) {
	for i, text := range texts {
		e, err := decode(text, after+int64(i)+1)
		if err != nil {
			return nil, err
		}
		events = append(events, e)
	}
	return events, nil
}

// List implements store.Store. Of runs that are held here it has the last commit.
func (s *Store) List(ctx context.Context, f store.Filter) ([]store.Run, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	key := s.allKey()
	if f.Owner != nil {
		key = s.ownerKey(*f.Owner)
	}
	limit := cmp.Or(max(f.Limit, 0), 100)
	before := "+inf"
	if !f.Before.IsZero() {
		before = fmt.Sprint("(", f.Before.UTC().UnixMicro())
		if f.Before.Nanosecond()%1000 != 0 { // it is after the microsecond that it is in
			before = strings.TrimPrefix(before, "(")
		}
	}
	const page = 200
	var runs []store.Run
	for offset := int64(0); len(runs) < limit; {
		ids, err := s.client.ZRevRangeByScore(ctx, key, &redis.ZRangeBy{Min: "-inf", Max: before, Offset: offset, Count: page}).Result()
		if err != nil {
			return nil, s.failure(ctx, err)
		}
		pipe := s.client.Pipeline()
		rows := make([]*redis.MapStringStringCmd, len(ids))
		for i, id := range ids {
			rows[i] = pipe.HGetAll(ctx, s.runKey(id))
		}
		if _, err := pipe.Exec(ctx); len(ids) > 0 && err != nil {
			return nil, s.failure(ctx, err)
		}
		var gone []any
		for i, id := range ids {
			run, err := parseRun(id, rows[i].Val())
			switch {
			case err != nil:
				if s.grown(ctx, key, id) {
					gone = append(gone, id)
				}
			case (f.Owner == nil || *f.Owner == run.Owner) && (f.State == "" || f.State == run.State):
				runs = append(runs, run)
			}
		}
		if len(gone) > 0 {
			if err := s.client.ZRem(ctx, key, gone...).Err(); err != nil {
				return nil, s.failure(ctx, err)
			}
		}
		if offset += int64(len(ids) - len(gone)); len(ids) < page {
			break
		}
	}
	return slices.Clip(runs[:min(len(runs), limit)]), nil
}

// grown says whether a run that is listed and not there cannot be one that is just being created.
func (s *Store) grown(ctx context.Context, key, id string) bool {
	score, err := s.client.ZScore(ctx, key, id).Result()
	return err == nil && time.Since(time.UnixMicro(int64(score))) > time.Hour
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, id string) error {
	err := s.usable(ctx)
	if err == nil {
		var owner string
		if owner, err = s.client.HGet(ctx, s.runKey(id), "owner").Result(); err == nil {
			err = s.remove(ctx, id, owner)
		} else if errors.Is(err, redis.Nil) {
			err = store.ErrNotFound
		} else {
			err = s.failure(ctx, err)
		}
	}
	if err != nil {
		return fmt.Errorf("delete run %q: %w", id, err)
	}
	return nil
}

// remove deletes a run, wherever it is.
func (s *Store) remove(ctx context.Context, id, owner string) error {
	const grave = time.Hour // longer than any partition that a run lives through
	keys := []string{s.runKey(id), s.eventsKey(id), s.graveKey(id)}
	there, err := deleteScript.Run(ctx, s.client, keys, grave.Milliseconds(), s.channel(id)).Bool()
	if err != nil {
		return s.failure(ctx, err)
	}
	s.mu.Lock()
	if h := s.runs[id]; h != nil {
		s.drop(h, store.ErrNotFound)
	}
	s.mu.Unlock()
	if !there {
		return store.ErrNotFound
	}
	pipe := s.client.Pipeline()
	pipe.ZRem(ctx, s.allKey(), id)
	pipe.ZRem(ctx, s.ownerKey(owner), id)
	_, _ = pipe.Exec(ctx) // else List will find that it is not there
	return nil
}
