package sqlite_test

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"anytime/internal/store"
	"anytime/internal/store/sqlite"
)

// What Open refuses, it leaves as it is.
func TestOpenRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(t *testing.T, path string)
		want []string // in the error, beside the path
	}{
		{"text", func(t *testing.T, path string) { write(t, path, []byte(strings.Repeat("not a database ", 100))) },
			[]string{"damaged or not a database", "move the file away"}},
		{"truncated", func(t *testing.T, path string) {
			data := filled(t, path)
			write(t, path, data[:len(data)/2])
		}, []string{"damaged", "move the file away"}},
		{"overwritten inside", func(t *testing.T, path string) {
			data := filled(t, path)
			copy(data[3*4096:], bytes.Repeat([]byte{0xa5}, len(data)-4*4096))
			write(t, path, data)
		}, []string{"damaged", "move the file away"}},
		{"overwritten header", func(t *testing.T, path string) {
			data := filled(t, path)
			copy(data, bytes.Repeat([]byte{0}, 100))
			write(t, path, data)
		}, []string{"damaged", "move the file away"}},
		{"of another program", func(t *testing.T, path string) { execute(t, path, "CREATE TABLE films (title TEXT)") },
			[]string{"another program", "name another file"}},
		{"of a newer version", func(t *testing.T, path string) {
			filled(t, path)
			execute(t, path, "PRAGMA user_version = 99")
		}, []string{"version 99", "versions up to 1", "newer program"}},
		{"a directory", func(t *testing.T, path string) { mkdir(t, path) }, []string{"is a directory"}},
		{"below a file", func(t *testing.T, path string) { write(t, filepath.Dir(path), nil) }, []string{"not a directory"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "data", "runs.db")
			if c.name != "below a file" {
				mkdir(t, filepath.Dir(path))
			}
			c.make(t, path)
			before, _ := os.ReadFile(path)
			for range 2 { // nor does it leave it locked
				s, err := sqlite.Open(path, sqlite.Options{})
				if err == nil {
					s.Close()
					t.Fatal("opened")
				}
				for _, want := range append(c.want, filepath.Dir(path)) {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("error %q does not say %q", err, want)
					}
				}
			}
			if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
				t.Error("the file was changed")
			}
		})
	}
}

func TestOpenTwice(t *testing.T) {
	path := newPath(t)
	first := open(t, path, sqlite.Options{})
	_, err := sqlite.Open(path, sqlite.Options{})
	if err == nil || !strings.Contains(err.Error(), "in use by another server") || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("a second Open: %v", err)
	}
	if err := first.Ready(t.Context()); err != nil {
		t.Errorf("the first is no longer ready: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path, sqlite.Options{}).Close()
}

// Another program that holds SQLite's own lock.
func TestOpenLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "runs.db")
	filled(t, path)
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	for _, query := range []string{"PRAGMA locking_mode = exclusive", "PRAGMA user_version = 1"} {
		if _, err := db.Exec(query); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := sqlite.Open(path, sqlite.Options{}); err == nil {
		s.Close()
		t.Error("opened a locked database")
	} else if !strings.Contains(err.Error(), "locked by another program") {
		t.Error(err)
	}
}

func TestFilesArePrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data", "runs.db")
	s := open(t, path, sqlite.Options{})
	defer s.Close()
	if err := s.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, path + "-wal", path + "-shm", path + ".lock"} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", filepath.Base(name), info.Mode(), err)
		}
	}
}

func TestMigrate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "runs.db")
	filled(t, path)

	undo := sqlite.AddMigration("CREATE TABLE more (x); INSERT INTO missing VALUES (1)")
	s, err := sqlite.Open(path, sqlite.Options{})
	undo()
	if err == nil {
		s.Close()
		t.Fatal("a migration that fails did not fail")
	}
	if !strings.Contains(err.Error(), "schema version 2") || !strings.Contains(err.Error(), "missing") {
		t.Errorf("a migration that fails: %v", err)
	}
	open(t, path, sqlite.Options{}).Close() // it was undone

	undo = sqlite.AddMigration("ALTER TABLE runs ADD COLUMN more TEXT")
	s = open(t, path, sqlite.Options{})
	if r, err := s.Get(t.Context(), "0"); err != nil || r.Last == 0 {
		t.Errorf("after a migration, Get = %v, %v", r, err)
	}
	s.Close()
	open(t, path, sqlite.Options{}).Close() // and it is done once
	undo()
	if s, err := sqlite.Open(path, sqlite.Options{}); err == nil {
		s.Close()
		t.Error("the program before the migration opened the database after it")
	}
}

// The database may not grow any more, then may again.
func TestFull(t *testing.T) {
	s := open(t, newPath(t), sqlite.Options{})
	defer s.Close()
	if err := s.Create(t.Context(), store.Run{ID: "r"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Exec("PRAGMA max_page_count = 40"); err != nil {
		t.Fatal(err)
	}
	var last int64
	for _, events := range []int{500, 20, 1} { // to the last page
		var err error
		if last, err = fill(t.Context(), s, events); !errors.Is(err, store.ErrFull) {
			t.Fatalf("after event %d: %v, want ErrFull", last, err)
		}
		expect(t, s, "r", last)
	}
	if err := s.Ready(t.Context()); !errors.Is(err, store.ErrFull) {
		t.Errorf("Ready: %v, want ErrFull", err)
	}
	if err := s.Exec("PRAGMA max_page_count = 1000000"); err != nil {
		t.Fatal(err)
	}
	if err := s.Ready(t.Context()); err != nil {
		t.Errorf("Ready, with space: %v", err)
	}
	if next, err := s.Append(t.Context(), "r", thought(0)); err != nil || next != last+1 {
		t.Errorf("Append, with space, after %d = %d, %v", last, next, err)
	}
	expect(t, s, "r", last+1)
}

// The same by the kernel: in a process that may not write larger files, then may again.
func TestWriteFails(t *testing.T) {
	path := newPath(t)
	if out, err := child(t, "limited", path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s := open(t, path, sqlite.Options{})
	defer s.Close()
	r, err := s.Get(t.Context(), "r")
	if err != nil {
		t.Fatal(err)
	}
	expect(t, s, "r", r.Last)
}

// What was acknowledged before a kill -9 is there after it, and nothing is there in part.
func TestKill(t *testing.T) {
	path := newPath(t)
	acknowledged := make(map[string]int64)
	for round := range 3 {
		cmd := child(t, "append", path)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := 0
		for in := bufio.NewScanner(out); in.Scan(); {
			var id string
			var last int64
			if _, err := fmt.Sscan(in.Text(), &id, &last); err != nil {
				break // the last line, cut off
			}
			acknowledged[id] = max(acknowledged[id], last)
			if lines++; lines == 150*(round+1) {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait()
		s := open(t, path, sqlite.Options{})
		if len(acknowledged) < 10 {
			t.Errorf("only %d runs got anything", len(acknowledged))
		}
		for id, last := range acknowledged {
			r, err := s.Get(t.Context(), id)
			if err != nil || r.Last < last || r.State != store.Running {
				t.Fatalf("run %s has last event %d, %v; %d was acknowledged", id, r.Last, err, last)
			}
			expect(t, s, id, r.Last)
			acknowledged[id] = r.Last
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

var children = map[string]func(path string) error{"append": appendForever, "limited": appendLimited}

func child(t *testing.T, name, path string) *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), "SQLITE_TEST_CHILD="+name, "SQLITE_TEST_PATH="+path)
	return cmd
}

// appendForever prints what it has got acknowledged. It goes on where an earlier one was killed.
func appendForever(path string) error {
	s, err := sqlite.Open(path, sqlite.Options{})
	if err != nil {
		return err
	}
	ctx := context.Background()
	failed := make(chan error)
	var printing sync.Mutex
	for i := range 10 {
		go func() {
			id := fmt.Sprint(i)
			err := s.Create(ctx, store.Run{ID: id})
			if errors.Is(err, store.ErrExists) {
				err = nil
			}
			r, getErr := s.Get(ctx, id)
			err = errors.Join(err, getErr)
			for n := int(r.Last); err == nil; n += 2 {
				change := thought(n)
				change.Events = append(change.Events, thought(n+1).Events...)
				var last int64
				last, err = s.Append(ctx, id, change)
				if err == nil {
					printing.Lock()
					fmt.Println(id, last)
					printing.Unlock()
				}
			}
			failed <- err
		}()
	}
	return <-failed
}

func appendLimited(path string) error {
	signal.Ignore(syscall.SIGXFSZ) // so that a write fails instead
	s, err := sqlite.Open(path, sqlite.Options{})
	if err != nil {
		return err
	}
	defer s.Close()
	ctx := context.Background()
	if err := s.Create(ctx, store.Run{ID: "r"}); err != nil {
		return err
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	for range 2 {
		tight := limit
		tight.Cur = 1 << 18
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &tight); err != nil {
			return err
		}
		last, err := fill(ctx, s, 500)
		if err == nil || !strings.Contains(err.Error(), path) {
			return fmt.Errorf("over the limit, Append returned %w, which does not name the file", err)
		}
		if r, err := s.Get(ctx, "r"); err != nil || r.Last != last {
			return fmt.Errorf("over the limit, Get returned %d, %w, where %d was acknowledged", r.Last, err, last)
		}
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
			return err
		}
		if next, err := s.Append(ctx, "r", thought(int(last))); err != nil || next != last+1 {
			return fmt.Errorf("with space again, Append after %d returned %d, %w", last, next, err)
		}
	}
	return s.Close()
}

// fill appends some events at a time until that fails, and returns the last event that was acknowledged.
func fill(ctx context.Context, s *sqlite.Store, events int) (last int64, err error) {
	r, err := s.Get(ctx, "r")
	if err != nil {
		return 0, err
	}
	for last = r.Last; last < r.Last+100_000; {
		change := store.Change{}
		for n := range events {
			change.Events = append(change.Events, thought(int(last)+n).Events...)
		}
		next, err := s.Append(ctx, "r", change)
		if err != nil {
			return last, err
		}
		last = next
	}
	return last, nil
}

// expect wants events 1 to last, whole.
func expect(t *testing.T, s *sqlite.Store, id string, last int64) {
	t.Helper()
	events, err := s.Events(t.Context(), id, 0, int(last)+1)
	if err != nil || int64(len(events)) != last {
		t.Fatalf("run %s has %d events, %v; want %d", id, len(events), err, last)
	}
	for i, e := range events {
		if e.Offset != int64(i+1) || len(e.Tokens) != 4 {
			t.Fatalf("run %s: event %d is %v", id, i+1, e)
		}
	}
}

// filled makes a database of some runs and returns its bytes.
func filled(t *testing.T, path string) []byte {
	t.Helper()
	s := open(t, path, sqlite.Options{})
	each(t, 10, func(id string) error {
		if err := s.Create(t.Context(), store.Run{ID: id, Request: bytes.Repeat([]byte("1"), 5000)}); err != nil {
			return err
		}
		var change store.Change
		for n := range 50 {
			change.Events = append(change.Events, thought(n).Events...)
		}
		_, err := s.Append(t.Context(), id, change)
		return err
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if names, _ := filepath.Glob(path + "-*"); len(names) > 0 {
		t.Errorf("Close left %v", names)
	}
	return data
}

func execute(t *testing.T, path, query string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(query); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
}
