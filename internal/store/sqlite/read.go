package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"anytime/internal/store"
)

// reads are the statements of the pool.
type reads struct {
	run, head, events *sql.Stmt
}

const (
	selectRuns  = `SELECT id, owner, model, state, created, updated, last, request, reply FROM runs JOIN bodies ON bodies.run = runs.key `
	selectHeads = `SELECT id, owner, model, state, created, updated, last, NULL, NULL FROM runs `
)

func prepareReads(db *sql.DB) (r reads, err error) {
	for _, p := range []struct {
		stmt  **sql.Stmt
		query string
	}{
		{&r.run, selectRuns + "WHERE id = ?"},
		{&r.head, "SELECT last, state FROM runs WHERE id = ?"},
		{&r.events, `SELECT offset, type, data, tokens FROM events
			WHERE run = (SELECT key FROM runs WHERE id = ?) AND offset > ? ORDER BY offset LIMIT ?`},
	} {
		if *p.stmt, err = db.Prepare(p.query); err != nil {
			return reads{}, err
		}
	}
	return r, nil
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, id string) (store.Run, error) {
	run, err := scanRun(s.reads.run.QueryRowContext(ctx, id))
	if err != nil {
		return store.Run{}, fmt.Errorf("get run %q: %w", id, s.readError(err))
	}
	return run, nil
}

func (s *Store) head(ctx context.Context, id string) (last int64, state store.State, err error) {
	err = s.reads.head.QueryRowContext(ctx, id).Scan(&last, &state)
	return last, state, err
}

// Events implements store.Store.
func (s *Store) Events(ctx context.Context, id string, after int64, limit int) ([]store.Event, error) {
	events, err := s.events(ctx, id, after, limit)
	if err == nil && len(events) == 0 {
		_, _, err = s.head(ctx, id) // is there such a run?
	}
	if err != nil {
		return nil, fmt.Errorf("events of run %q: %w", id, s.readError(err))
	}
	return events, nil
}

func (s *Store) events(ctx context.Context, id string, after int64, limit int) ([]store.Event, error) {
	rows, err := s.reads.events.QueryContext(ctx, id, after, max(limit, 0))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var events []store.Event
	for rows.Next() {
		var e store.Event
		var tokens sql.RawBytes
		if err := rows.Scan(&e.Offset, &e.Type, (*[]byte)(&e.Data), &tokens); err != nil {
			return nil, err
		}
		if e.Tokens, err = unpackTokens(tokens); err != nil {
			return nil, damaged(s.path, fmt.Errorf("event %d: %w", e.Offset, err))
		}
		events = append(events, e)
	}
	return events, rows.Err()
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, f store.Filter) ([]store.Run, error) {
	where, args := []string{"true"}, []any{}
	if f.Owner != nil {
		where, args = append(where, "owner = ?"), append(args, *f.Owner)
	}
	if f.State != "" {
		where, args = append(where, "state = ?"), append(args, string(f.State))
	}
	if !f.Before.IsZero() {
		where, args = append(where, "created < ?"), append(args, f.Before.UnixMicro())
	}
	query := selectRuns
	if f.Heads {
		query = selectHeads
	}
	query += "WHERE " + strings.Join(where, " AND ") + " ORDER BY created DESC, id DESC LIMIT ?"
	rows, err := s.readDB.QueryContext(ctx, query, append(args, cmp.Or(max(f.Limit, 0), 100))...)
	if err != nil {
		return nil, fmt.Errorf("list runs: %w", s.readError(err))
	}
	defer rows.Close()
	var runs []store.Run
	for rows.Next() {
		run, err := scanRun(rows)
		if err != nil {
			return nil, fmt.Errorf("list runs: %w", s.readError(err))
		}
		runs = append(runs, run)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list runs: %w", s.readError(err))
	}
	return runs, nil
}

func scanRun(row interface{ Scan(...any) error }) (r store.Run, err error) {
	var created, updated int64
	err = row.Scan(&r.ID, &r.Owner, &r.Model, &r.State, &created, &updated, &r.Last, (*[]byte)(&r.Request), (*[]byte)(&r.Reply))
	r.Created, r.Updated = time.UnixMicro(created).UTC(), time.UnixMicro(updated).UTC()
	return r, err
}

func (s *Store) readError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sql.ErrNoRows):
		return store.ErrNotFound
	}
	return s.explain(err)
}

// blob keeps nil apart from empty.
func blob(b []byte) any {
	if b == nil {
		return nil
	}
	return b
}

// packTokens writes ids as unsigned varints: most take two or three bytes.
func packTokens(tokens []int32) []byte {
	if len(tokens) == 0 {
		return nil
	}
	packed := make([]byte, 0, 3*len(tokens))
	for _, t := range tokens {
		packed = binary.AppendUvarint(packed, uint64(uint32(t)))
	}
	return packed
}

func unpackTokens(packed []byte) ([]int32, error) {
	if len(packed) == 0 {
		return nil, nil
	}
	tokens := make([]int32, 0, len(packed)/2)
	for len(packed) > 0 {
		t, n := binary.Uvarint(packed)
		if n <= 0 || t > 1<<32-1 {
			return nil, errors.New("its tokens cannot be read")
		}
		tokens = append(tokens, int32(uint32(t)))
		packed = packed[n:]
	}
	return tokens, nil
}
