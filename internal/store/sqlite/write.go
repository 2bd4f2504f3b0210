package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"anytime/internal/store"
)

const (
	longest    = 20 * time.Millisecond // between the starts of two transactions
	shortest   = 2 * time.Millisecond
	share      = 8 // transactions take one part in so many of the time, unless longest is shorter
	tidyEvery  = time.Minute
	grace      = time.Minute // an ended run is kept that long, whatever the bounds
	tidyRuns   = 16          // runs pruned in a transaction, so that appends need not wait long
	tidyPages  = 1024        // pages given back in a transaction
	probeBytes = 4096
)

// An op is something to be written.
type op struct {
	do   func() error // within a transaction; again, where the first one failed
	kept func()       // after the commit
	err  error        // set before done is closed
	done chan struct{}
}

// commit has the writer do something and returns once it is durable.
func (s *Store) commit(ctx context.Context, do func() error, kept func()) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	o := &op{do: do, kept: kept, done: make(chan struct{})}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return store.ErrClosed
	}
	s.pending = append(s.pending, o)
	s.mu.Unlock()
	select {
	case s.kick <- struct{}{}:
	default:
	}
	select {
	case <-o.done:
		return o.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// write is the writer.
func (s *Store) write() {
	defer close(s.ended)
	tidy := time.NewTimer(0)
	defer tidy.Stop()
	pace := time.NewTimer(0) // fires when the next transaction may start
	defer pace.Stop()
	for {
		select {
		case <-s.kick:
			select {
			case <-pace.C:
			case <-s.closing:
			}
			began := time.Now()
			large := s.commitPending()
			took := time.Since(began)
			pace.Reset(min(max(share*took, shortest), longest) - took)
			if large {
				tidy.Reset(0)
			}
		case <-tidy.C:
			if s.tidy() {
				tidy.Reset(longest)
			} else {
				tidy.Reset(tidyEvery)
			}
		case <-s.closing: // nothing becomes pending any more
			s.commitPending()
			return
		}
	}
}

// commitPending commits what is pending, and reports whether the file has grown too large.
func (s *Store) commitPending() bool {
	s.mu.Lock()
	ops := s.pending
	s.pending = nil
	s.mu.Unlock()
	if len(ops) == 0 {
		return false
	}
	together := s.transact(ops)
	for _, o := range ops {
		err := together
		if err != nil && len(ops) > 1 {
			// One by one, so that a change that cannot be kept does not take others with it.
			err = s.transact([]*op{o})
		}
		if err != nil {
			o.err = s.explain(err)
		}
		close(o.done)
	}
	if s.opts.MaxBytes == 0 {
		return false
	}
	pages, _, err := s.pages()
	return err == nil && pages*s.pageSize > s.opts.MaxBytes
}

// transact does ops in one transaction. An op that finds its run missing or there already changes nothing and fails alone; any other
// failure undoes all of them.
func (s *Store) transact(ops []*op) (err error) {
	ctx := context.Background()
	if _, err := s.writes.begin.ExecContext(ctx); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_, _ = s.writes.rollback.ExecContext(ctx) // SQLite may have rolled back already
		}
	}()
	for _, o := range ops {
		o.err = o.do()
		if o.err != nil && !errors.Is(o.err, store.ErrNotFound) && !errors.Is(o.err, store.ErrExists) {
			return o.err
		}
	}
	if _, err := s.writes.commit.ExecContext(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	s.commits++
	s.mu.Unlock()
	for _, o := range ops {
		if o.err == nil && o.kept != nil {
			o.kept()
		}
	}
	return nil
}

// writes are the writer's statements. A statement of a sql.Conn outlives it: close them first, or the database stays open.
type writes struct {
	begin, commit, rollback                          *sql.Stmt
	create, createBody, update, updateBody, addEvent *sql.Stmt
	find, deleteRun, deleteBody, deleteEvents, probe *sql.Stmt
	ended, pageCount, freePages, vacuum, checkpoint  *sql.Stmt
	all                                              []*sql.Stmt
}

func prepareWrites(ctx context.Context, conn *sql.Conn) (w writes, err error) {
	for _, p := range []struct {
		stmt  **sql.Stmt
		query string
	}{
		{&w.begin, "BEGIN IMMEDIATE"},
		{&w.commit, "COMMIT"},
		{&w.rollback, "ROLLBACK"},
		{&w.create, `INSERT INTO runs (id, owner, model, state, created, updated, last) VALUES (?, ?, ?, ?, ?, ?, 0)
			ON CONFLICT DO NOTHING RETURNING key`},
		{&w.createBody, "INSERT INTO bodies (run, request, reply) VALUES (?, ?, ?)"},
		{&w.update, "UPDATE runs SET last = last + ?, state = ifnull(?, state), updated = ? WHERE id = ? RETURNING key, last, state"},
		{&w.updateBody, "UPDATE bodies SET request = ifnull(?, request), reply = ifnull(?, reply) WHERE run = ?"},
		{&w.addEvent, "INSERT INTO events (run, offset, type, data, tokens) VALUES (?, ?, ?, ?, ?)"},
		{&w.find, "SELECT key FROM runs WHERE id = ?"},
		{&w.deleteRun, "DELETE FROM runs WHERE key = ?"},
		{&w.deleteBody, "DELETE FROM bodies WHERE run = ?"},
		{&w.deleteEvents, "DELETE FROM events WHERE run = ?"},
		{&w.probe, fmt.Sprintf("INSERT INTO bodies (run, request) VALUES (0, zeroblob(%d))", probeBytes)}, // no run has key 0
		{&w.ended, "SELECT key FROM runs WHERE state <> 'running' AND updated < ? ORDER BY updated LIMIT ?"},
		{&w.pageCount, "PRAGMA page_count"},
		{&w.freePages, "PRAGMA freelist_count"},
		{&w.vacuum, fmt.Sprintf("PRAGMA incremental_vacuum(%d)", tidyPages)},
		{&w.checkpoint, "PRAGMA wal_checkpoint(passive)"},
	} {
		if *p.stmt, err = conn.PrepareContext(ctx, p.query); err != nil {
			return w, err
		}
		w.all = append(w.all, *p.stmt)
	}
	return w, nil
}

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, r store.Run) error {
	now := time.Now()
	if r.Created.IsZero() {
		r.Created = now
	}
	err := s.commit(ctx, func() error {
		var key int64
		err := s.writes.create.QueryRow(r.ID, r.Owner, r.Model, string(cmp.Or(r.State, store.Running)), r.Created.UnixMicro(), now.UnixMicro()).Scan(&key)
		if errors.Is(err, sql.ErrNoRows) {
			return store.ErrExists
		}
		if err != nil {
			return err
		}
		_, err = s.writes.createBody.Exec(key, blob(r.Request), blob(r.Reply))
		return err
	}, nil)
	if err != nil {
		return fmt.Errorf("create run %q: %w", r.ID, err)
	}
	return nil
}

// Append implements store.Store.
func (s *Store) Append(ctx context.Context, id string, c store.Change) (int64, error) {
	var last int64
	var state store.State
	now := time.Now()
	err := s.commit(ctx, func() error {
		var set any // a state, or nil
		if c.State != "" {
			set = string(c.State)
		}
		var key int64
		err := s.writes.update.QueryRow(len(c.Events), set, now.UnixMicro(), id).Scan(&key, &last, &state)
		if errors.Is(err, sql.ErrNoRows) {
			return store.ErrNotFound
		}
		if err != nil {
			return err
		}
		if c.Request != nil || c.Reply != nil {
			if _, err := s.writes.updateBody.Exec(blob(c.Request), blob(c.Reply), key); err != nil {
				return err
			}
		}
		for i, e := range c.Events {
			offset := last - int64(len(c.Events)-1-i)
			if _, err := s.writes.addEvent.Exec(key, offset, e.Type, blob(e.Data), blob(packTokens(e.Tokens))); err != nil {
				return err
			}
		}
		return nil
	}, func() { s.wake(id, last, state, nil) })
	if err != nil {
		return 0, fmt.Errorf("append to run %q: %w", id, err)
	}
	return last, nil
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, id string) error {
	err := s.commit(ctx, func() error {
		var key int64
		err := s.writes.find.QueryRow(id).Scan(&key)
		if errors.Is(err, sql.ErrNoRows) {
			return store.ErrNotFound
		}
		if err != nil {
			return err
		}
		return s.remove(key)
	}, func() { s.wake(id, 0, "", store.ErrNotFound) })
	if err != nil {
		return fmt.Errorf("delete run %q: %w", id, err)
	}
	return nil
}

// remove is the writer's, within a transaction.
func (s *Store) remove(key int64) error {
	for _, stmt := range []*sql.Stmt{s.writes.deleteEvents, s.writes.deleteBody, s.writes.deleteRun} {
		if _, err := stmt.Exec(key); err != nil {
			return err
		}
	}
	return nil
}

// Ready implements store.Store. It commits a page, and removes it.
func (s *Store) Ready(ctx context.Context) error {
	err := s.commit(ctx, func() error {
		if _, err := s.writes.probe.Exec(); err != nil {
			return err
		}
		_, err := s.writes.deleteBody.Exec(0)
		return err
	}, nil)
	if err != nil {
		return fmt.Errorf("store cannot commit: %w", err)
	}
	return nil
}
