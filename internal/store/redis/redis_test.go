package redis_test

import (
	"testing"

	"anytime/internal/store"
	"anytime/internal/store/redis"
	"anytime/internal/store/storetest"
)

func TestStore(t *testing.T) {
	redis.Patient(t)
	each(t, func(t *testing.T, url string) {
		storetest.Test(t, func(t *testing.T) store.Store { return open(t, fresh(url), redis.Options{}) })
	})
}

func TestReopen(t *testing.T) {
	redis.Patient(t)
	each(t, func(t *testing.T, url string) {
		storetest.TestReopen(t, func(t *testing.T) store.Store { return open(t, url, redis.Options{}) })
	})
}
