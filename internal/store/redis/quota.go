package redis

import (
	"context"
	"crypto/rand"
	"time"

	"anytime/internal/store"
)

// place is one that is held.
type place struct{ name, holder string }

// Allowed is an allowance: at most N at once, and so many in each Per after that, evenly.
type Allowed struct {
	N   int
	Per time.Duration
}

// Take takes n from an allowance, which servers share, or, where that has less, nothing; with debt it takes them in any case. It
// returns how long the allowance takes to be whole again.
func (s *Store) Take(ctx context.Context, name string, allowed Allowed, n int, debt bool) (taken bool, full time.Duration, err error) {
	ctx, cancel, err := s.briefly(ctx)
	if err != nil {
		return false, 0, err
	}
	defer cancel()
	each := float64(allowed.Per.Microseconds()) / float64(allowed.N)
	must := 0
	if debt {
		must = 1
	}
	reply, err := takeScript.Run(ctx, s.client, []string{s.allowanceKey(name)}, allowed.N, each, n, must).Int64Slice()
	if err != nil {
		return false, 0, s.failure(ctx, err)
	}
	return reply[0] == 1, time.Duration(reply[1]) * time.Microsecond, nil
}

// Hold takes one of most places, which servers share, until release is called or this server is dead; nil: none is free.
func (s *Store) Hold(ctx context.Context, name string, most int) (release func(), err error) {
	ctx, cancel, err := s.briefly(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	p := place{name, rand.Text()}
	free, err := holdScript.Run(ctx, s.client, []string{s.placesKey(name)}, most, s.placeLives(), p.holder).Bool()
	if err != nil || !free {
		return nil, s.failure(ctx, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.places[p] = struct{}{}
	return func() {
		s.mu.Lock()
		delete(s.places, p)
		s.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), patience)
		defer cancel()
		if err := s.client.ZRem(ctx, s.placesKey(name), p.holder).Err(); err != nil {
			s.log.Debug("a place is not given back; it becomes free by itself", "error", err)
		}
	}, nil
}

// briefly bounds a call that a request waits for. It fails at once while Redis is away.
func (s *Store) briefly(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if err := s.usable(ctx); err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	away := s.away
	s.mu.Unlock()
	if away {
		return nil, nil, store.ErrUnavailable
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	return ctx, cancel, nil
}

func (s *Store) placeLives() int64 { return 3 * s.opts.Lease.Milliseconds() }

// renewPlaces keeps the places that are held.
func (s *Store) renewPlaces(ctx context.Context) {
	s.mu.Lock()
	pipe := s.client.Pipeline()
	for p := range s.places {
		holdScript.Eval(ctx, pipe, []string{s.placesKey(p.name)}, 0, s.placeLives(), p.holder)
	}
	s.mu.Unlock()
	if pipe.Len() == 0 {
		return
	}
	if _, err := pipe.Exec(ctx); err != nil {
		s.log.Debug("places are not renewed", "error", err)
	}
}
