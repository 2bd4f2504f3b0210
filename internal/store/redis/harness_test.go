package redis_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"anytime/internal/store/redis"
	"anytime/internal/store/redis/redistest"
)

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// all says whether the longer tests were asked for, which want a real redis-server.
func all() bool { return os.Getenv("ANYTIME_TEST_ALL") != "" }

// eventually asks until it is so.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for !is() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("it is not so after %v: %s", patience, what)
		}
	}
}

// servers are the kinds of Redis that a test runs on: each returns its address.
func servers() map[string]func(t *testing.T) string {
	kinds := map[string]func(t *testing.T) string{
		"miniredis": func(t *testing.T) string { return "redis://" + miniredis.RunT(t).Addr() },
	}
	if all() {
		kinds["redis"] = func(t *testing.T) string { return "redis://" + redistest.Start(t).Addr }
	}
	return kinds
}

// each runs a test on every kind of Redis.
func each(t *testing.T, test func(t *testing.T, url string)) {
	for name, start := range servers() {
		t.Run(name, func(t *testing.T) { test(t, start(t)) })
	}
}

var opened int

// fresh is the address of a store that is empty, in a Redis that has others.
func fresh(url string) string {
	opened++
	return fmt.Sprintf("%s?prefix=test%d", url, opened)
}

func open(t *testing.T, url string, opts redis.Options) *redis.Store {
	t.Helper()
	address, err := redis.ParseAddress(url, "")
	if err != nil {
		t.Fatal(err)
	}
	s, err := redis.Open(t.Context(), address, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}
