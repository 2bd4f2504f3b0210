package sqlite

import (
	"context"
	"time"
)

// Commits returns how many transactions the writer has committed.
func (s *Store) Commits() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commits
}

// Topics returns how many runs are waited for.
func (s *Store) Topics() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.topics)
}

// Waiters returns how many calls of Wait there are.
func (s *Store) Waiters() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.topics {
		n += t.waiters
	}
	return n
}

// Exec runs a statement on the writer's connection.
func (s *Store) Exec(query string) error {
	return s.commit(context.Background(), func() error {
		_, err := s.conn.ExecContext(context.Background(), query)
		return err
	}, nil)
}

// Slow has the writer do a transaction that takes as long.
func (s *Store) Slow(d time.Duration) error {
	return s.commit(context.Background(), func() error {
		time.Sleep(d)
		return nil
	}, nil)
}

// AddMigration puts one more step at the end of the schema's migrations, until undo is called.
func AddMigration(step string) (undo func()) {
	migrations = append(migrations, step)
	return func() { migrations = migrations[:len(migrations)-1] }
}

// Steady is the clock by which runs grow old.
var Steady = steady
