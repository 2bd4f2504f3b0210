// Package sqlite keeps runs in a SQLite database file.
//
// One goroutine owns the only connection that writes. It takes whatever is pending, of all runs, into one transaction, and then waits
// until transactions take an eighth of the time, but 20 ms at most; when the last one is longer ago it commits at once. A transaction
// is on the disk (WAL, synchronous=FULL) before those who wait for it return and those who wait for its runs wake. Reads have a pool of connections and never wait for
// the writer; who waits for a run holds no connection, but shares a channel.
//
// Between commits the writer prunes, a few runs at a time: ended runs that are too old, and the oldest ended ones while the file is
// too large; then it gives the free pages back to the file system. It never prunes a run that is running, or that ended within the
// last minute, so that its readers get to its end.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"

	"anytime/internal/store"
)

// Options bound a store. Zero is no bound.
type Options struct {
	MaxAge   time.Duration // of ended runs, since their last commit
	MaxBytes int64         // of the database file; its write-ahead log, some megabytes, comes on top
}

// Store is a store.Store in a SQLite database file.
type Store struct {
	path  string
	opts  Options
	lock  *os.File
	close func() error

	// The writer's alone, once Open has returned.
	writeDB  *sql.DB
	conn     *sql.Conn
	writes   writes
	pageSize int64

	readDB *sql.DB
	reads  reads

	clock func() time.Time // what is too old, is by it

	closing chan struct{} // closed by Close
	kick    chan struct{} // something is pending
	ended   chan struct{} // closed by the writer when it returns

	mu      sync.Mutex // guards what follows
	closed  bool
	pending []*op
	topics  map[string]*topic // by the id of a run that is waited for

	commits int64 // transactions of the writer; guarded by mu, for tests
}

var _ store.Store = (*Store)(nil)

const (
	applicationID = 0x416e7974 // "Anyt", in the file's header
	readers       = 4
	moveAway      = "stop the server, move the file away together with its -wal and -shm files, and start again with an empty one"
)

// migrations lead from each version of the schema (PRAGMA user_version) to the next. They are only ever added to.
var migrations = []string{`
-- What every append changes is kept apart from what is large, since SQLite writes whole rows.
CREATE TABLE runs (
	key     INTEGER PRIMARY KEY,
	id      TEXT NOT NULL UNIQUE,
	owner   TEXT NOT NULL,
	model   TEXT NOT NULL,
	state   TEXT NOT NULL,
	created INTEGER NOT NULL, -- microseconds since 1970
	updated INTEGER NOT NULL,
	last    INTEGER NOT NULL
);
CREATE INDEX runs_created ON runs (created);
CREATE INDEX runs_owner ON runs (owner, created);
CREATE INDEX runs_state ON runs (state, created);
CREATE INDEX runs_ended ON runs (updated) WHERE state <> 'running';
CREATE TABLE bodies (
	run     INTEGER PRIMARY KEY,
	request BLOB,
	reply   BLOB
);
CREATE TABLE events (
	run    INTEGER NOT NULL,
	offset INTEGER NOT NULL,
	type   TEXT NOT NULL,
	data   BLOB,
	tokens BLOB, -- unsigned varints
	PRIMARY KEY (run, offset)
) WITHOUT ROWID;
`}

// Open opens the database at path, and makes it where there is none. A file that is damaged, in use by another server, of another
// program or of a newer version is an error and left as it is.
func Open(path string, opts Options) (_ *Store, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{
		path:    path,
		opts:    opts,
		clock:   steady(time.Now()),
		closing: make(chan struct{}),
		kick:    make(chan struct{}, 1),
		ended:   make(chan struct{}),
		topics:  make(map[string]*topic),
	}
	s.close = sync.OnceValue(s.shut)
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open store: %w", err), s.release())
		}
	}()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if s.lock, err = lock(path); err != nil {
		return nil, err
	}
	// Made here, so that nobody else can read what people ask; SQLite's other files take its mode. It is closed before SQLite
	// opens it, for closing it later would drop SQLite's own locks.
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := file.Close(); err != nil {
		return nil, err
	}
	if err := s.openWriter(); err != nil {
		return nil, s.explain(err)
	}
	if err := s.openReaders(); err != nil {
		return nil, s.explain(err)
	}
	go s.write()
	return s, nil
}

// steady returns a clock that goes on from start, whatever the machine's is set to meanwhile: a clock that jumps forward must not make
// everything old at once.
func steady(start time.Time) func() time.Time {
	return func() time.Time { return start.Add(time.Since(start)) }
}

func (s *Store) openWriter() (err error) {
	ctx := context.Background()
	if s.writeDB, err = sql.Open("sqlite", s.dsn("_busy_timeout=2000")); err != nil {
		return err
	}
	if s.conn, err = s.writeDB.Conn(ctx); err != nil {
		return err
	}
	if err := s.check(ctx); err != nil {
		return err
	}
	// auto_vacuum only takes in a file without tables.
	for _, pragma := range []string{"auto_vacuum = incremental", "journal_mode = wal", "synchronous = full", "journal_size_limit = 16777216"} {
		if _, err := s.conn.ExecContext(ctx, "PRAGMA "+pragma); err != nil {
			return err
		}
	}
	if err := s.migrate(ctx); err != nil {
		return err
	}
	if err := s.conn.QueryRowContext(ctx, "PRAGMA page_size").Scan(&s.pageSize); err != nil {
		return err
	}
	s.writes, err = prepareWrites(ctx, s.conn)
	return err
}

// check refuses a database that is not ours or not whole.
func (s *Store) check(ctx context.Context) error {
	var application, version, tables int
	for query, into := range map[string]*int{
		"PRAGMA application_id":              &application,
		"PRAGMA user_version":                &version,
		"SELECT count(*) FROM sqlite_schema": &tables,
	} {
		if err := s.conn.QueryRowContext(ctx, query).Scan(into); err != nil {
			return err
		}
	}
	if tables > 0 && application != applicationID {
		return fmt.Errorf("%s is the database of another program; name another file", s.path)
	}
	if version > len(migrations) {
		return fmt.Errorf("database %s has schema version %d, this program knows versions up to %d; use the newer program, or %s",
			s.path, version, len(migrations), moveAway)
	}
	var found string
	if err := s.conn.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&found); err != nil {
		return err
	}
	if found != "ok" {
		return damaged(s.path, errors.New(found))
	}
	return nil
}

func (s *Store) migrate(ctx context.Context) error {
	var version int
	if err := s.conn.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	for ; version < len(migrations); version++ {
		_, err := s.conn.ExecContext(ctx, fmt.Sprintf("BEGIN IMMEDIATE; %s; PRAGMA application_id = %d; PRAGMA user_version = %d; COMMIT",
			migrations[version], applicationID, version+1))
		if err != nil {
			_, _ = s.conn.ExecContext(ctx, "ROLLBACK") // fails where BEGIN did
			return fmt.Errorf("bring database %s to schema version %d: %w", s.path, version+1, err)
		}
	}
	return nil
}

func (s *Store) openReaders() (err error) {
	if s.readDB, err = sql.Open("sqlite", s.dsn("_busy_timeout=2000&_query_only=1")); err != nil {
		return err
	}
	s.readDB.SetMaxOpenConns(readers)
	s.readDB.SetMaxIdleConns(readers)
	s.reads, err = prepareReads(s.readDB)
	return err
}

func (s *Store) dsn(query string) string {
	return "file:" + (&url.URL{Path: s.path}).EscapedPath() + "?" + query
}

// Close implements store.Store. Waiters get store.ErrClosed.
func (s *Store) Close() error { return s.close() }

func (s *Store) shut() error {
	s.mu.Lock()
	s.closed = true
	close(s.closing)
	s.mu.Unlock()
	<-s.ended
	return s.release()
}

// release closes what is open. The readers go first, since the last connection tidies the log away.
func (s *Store) release() error {
	var errs []error
	if s.readDB != nil {
		errs = append(errs, s.readDB.Close())
	}
	for _, stmt := range s.writes.all {
		errs = append(errs, stmt.Close())
	}
	if s.conn != nil {
		errs = append(errs, s.conn.Close())
	}
	if s.writeDB != nil {
		errs = append(errs, s.writeDB.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// explain makes of an error of SQLite one that says what it means here.
func (s *Store) explain(err error) error {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		switch e.Code() & 0xff {
		case lib.SQLITE_FULL:
			return fmt.Errorf("%w: database %s: %w", store.ErrFull, s.path, err)
		case lib.SQLITE_CORRUPT, lib.SQLITE_NOTADB:
			return damaged(s.path, err)
		case lib.SQLITE_BUSY:
			return fmt.Errorf("%w: database %s is locked by another program: %w", store.ErrUnavailable, s.path, err)
		}
		return fmt.Errorf("%w: database %s: %w", store.ErrUnavailable, s.path, err)
	}
	select {
	case <-s.closing: // the pool's own error says less
		if !errors.Is(err, store.ErrNotFound) {
			return store.ErrClosed
		}
	default:
	}
	return err
}

func damaged(path string, err error) error {
	return fmt.Errorf("%w: database %s is damaged or not a database (%w): %s", store.ErrUnavailable, path, err, moveAway)
}
