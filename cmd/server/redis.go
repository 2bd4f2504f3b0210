package main

import (
	"context"
	"time"

	"anytime/internal/server"
	"anytime/internal/store"
	"anytime/internal/store/redis"
)

// shared counts keys' use in Redis, for all servers that share it.
type shared struct{ *redis.Store }

var _ server.Quota = shared{}

// newQuota returns what counts keys' use where runs are kept; nil: each server counts for itself.
func newQuota(kept store.Store) server.Quota {
	if r, ok := kept.(*redis.Store); ok {
		return shared{r}
	}
	return nil
}

// Take implements server.Quota.
func (s shared) Take(ctx context.Context, name string, allowed server.Rate, n int) (server.Allowance, error) {
	taken, full, err := s.Store.Take(ctx, name, redis.Allowed(allowed), n, false)
	if err != nil {
		return server.Allowance{}, err
	}
	each := float64(allowed.Per) / float64(allowed.N)
	a := server.Allowance{Taken: taken, Left: max(0, allowed.N-int(float64(full)/each+0.999)), Full: full}
	if !taken {
		a.Wait = full - time.Duration(float64(allowed.N-n)*each)
	}
	return a, nil
}

// Charge implements server.Quota.
func (s shared) Charge(ctx context.Context, name string, allowed server.Rate, n int) error {
	_, _, err := s.Store.Take(ctx, name, redis.Allowed(allowed), n, true)
	return err
}
