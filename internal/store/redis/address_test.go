package redis_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"

	"anytime/internal/store"
	"anytime/internal/store/redis"
)

func TestParseAddress(t *testing.T) {
	notACert := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(notACert, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		address string
		want    string // shown, or, with an error, a part of that
		ok      bool
	}{
		{"redis://localhost", "redis://localhost:6379", true},
		{"redis://me:secret@localhost:7000/3", "redis://localhost:7000", true},
		{"redis://:se%40cr@et@[::1]", "redis://[::1]:6379", true},
		{"rediss://h?prefix=x", "rediss://h:6379", true},
		{"redis+cluster://a,b:7001,c", "redis+cluster://a:6379,b:7001,c:6379", true},
		{"rediss+sentinel://:secret@a,b:7001/mymaster/2?sentinel_password=secret", "rediss+sentinel://a:26379,b:7001", true},

		{"localhost:6379", "must begin with redis://", false},
		{"redis+other://:secret@a", "must begin with redis://", false},
		{"redis://", "must name a host", false},
		{"redis://:secret@", "must name a host", false},
		{"redis://a,b", "several hosts", false},
		{"redis+cluster://a,,b", "must name a host", false},
		{"redis+cluster://a/1", "a cluster has no numbers", false},
		{"redis://a/x", "number of a database", false},
		{"redis://a/-1", "number of a database", false},
		{"redis+sentinel://a", "must name the master", false},
		{"redis://me:%zz@a", "wrong escape", false},
		{"redis://a?colour=secret", `the parameter "colour"`, false},
		{"redis://a?prefix={x}", "prefix", false},
		{"redis://a?prefix=", "prefix", false},
		{"redis://a?ca=x", "for rediss:// only", false},
		{"rediss://a?ca=no-such-file", "cannot be read", false},
		{"rediss://a?ca=" + notACert, "no certificate", false},
		{"rediss://a?cert=" + notACert, "cannot be used", false},
		{"redis://a?%zz", "cannot be read", false},
	} {
		at, err := redis.ParseAddress(c.address, "secret")
		got := at.String()
		if err != nil {
			got = err.Error()
		}
		if (err == nil) != c.ok || !strings.Contains(got, c.want) || c.ok && got != c.want {
			t.Errorf("%s: %q, %v; want %q", c.address, got, err, c.want)
		}
		if strings.Contains(at.String()+got, "secret") {
			t.Errorf("%s: a secret is shown in %s, %q", c.address, at, got)
		}
	}
}

func TestPassword(t *testing.T) {
	m := miniredis.RunT(t)
	m.RequireUserAuth("me", "the secret")
	for _, c := range []struct {
		address, password string
		ok                bool
	}{
		{"redis://me:the%20secret@" + m.Addr(), "", true},
		{"redis://me@" + m.Addr(), "the secret", true},
		{"redis://me:the%20secret@" + m.Addr(), "another", true},
		{"redis://me:wrong-secret@" + m.Addr(), "the secret", false},
		{"redis://" + m.Addr(), "", false},
	} {
		at, err := redis.ParseAddress(c.address, c.password)
		if err != nil {
			t.Fatal(err)
		}
		s, err := redis.Open(t.Context(), at, redis.Options{})
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.address, err)
		}
		if err != nil && (!errors.Is(err, store.ErrUnavailable) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%s: %v; want ErrUnavailable, without secrets", c.address, err)
		}
		if s != nil {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	at, err := redis.ParseAddress("redis://"+m.Addr(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := redis.Open(ended, at, redis.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Open with an ended context: %v, want context.Canceled", err)
	}
}
