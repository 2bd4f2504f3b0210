package redis_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	goredis "github.com/redis/go-redis/v9"

	"anytime/internal/store/redis"
)

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// server is a redis-server of this test's own.
type server struct {
	t    *testing.T
	addr string
	args []string
	cmd  *exec.Cmd
}

// all says whether the longer tests were asked for, which want a real redis-server.
func all() bool { return os.Getenv("ANYTIME_TEST_ALL") != "" }

// freePort returns an address that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// startServer starts redis-server on a free port, with its data in a folder of the test; args are settings of its own.
func startServer(t *testing.T, args ...string) *server {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatal("redis-server is not installed (Debian's package redis-server): the tests of ANYTIME_TEST_ALL want it")
	}
	s := &server{t: t, addr: freePort(t)}
	_, port, _ := net.SplitHostPort(s.addr)
	s.args = append([]string{path, "--port", port, "--bind", "127.0.0.1", "--dir", t.TempDir(), "--save", "", "--appendonly", "yes", "--appendfsync", "everysec"}, args...)
	s.start()
	t.Cleanup(s.kill)
	return s
}

func (s *server) start() {
	s.t.Helper()
	s.cmd = exec.Command(s.args[0], s.args[1:]...)
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	client := goredis.NewClient(&goredis.Options{Addr: s.addr})
	defer client.Close()
	eventually(s.t, "redis-server answers", func() bool {
		err := client.Ping(context.Background()).Err()
		return err == nil || strings.Contains(err.Error(), "NOAUTH")
	})
}

func (s *server) kill() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

func (s *server) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) url() string { return "redis://" + s.addr }

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
		kinds["redis"] = func(t *testing.T) string { return startServer(t).url() }
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

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
