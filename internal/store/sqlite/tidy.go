package sqlite

import (
	"context"
	"time"
)

// tidy prunes some runs and gives some pages back to the file system, and reports whether there is more to do. What fails is left to
// the next time: it costs space only, and the next append meets the same trouble and reports it.
func (s *Store) tidy() (more bool) {
	err := s.transact([]*op{{do: func() (err error) {
		more, err = s.prune()
		return err
	}}})
	if err != nil {
		return false
	}
	_, free, err := s.pages()
	if err != nil || free == 0 {
		return more
	}
	if err := s.transact([]*op{{do: func() error {
		_, err := s.writes.vacuum.Exec()
		return err
	}}}); err != nil {
		return false
	}
	if free <= tidyPages { // the file shrinks when its log is copied back into it
		_, _ = s.writes.checkpoint.Exec()
	}
	return more || free > tidyPages
}

// prune removes at most tidyRuns runs, within a transaction. Once the file is too large it goes on until an eighth of it is free, so
// as not to have to start again with the next append.
func (s *Store) prune() (more bool, err error) {
	now := s.clock()
	if s.opts.MaxAge > 0 {
		keys, err := s.endedBefore(now.Add(-max(s.opts.MaxAge, grace)), tidyRuns)
		if err != nil {
			return false, err
		}
		for _, key := range keys {
			if err := s.remove(key); err != nil {
				return false, err
			}
		}
		if len(keys) == tidyRuns {
			return true, nil
		}
	}
	pages, free, err := s.pages()
	if err != nil || s.opts.MaxBytes == 0 || pages*s.pageSize <= s.opts.MaxBytes {
		return false, err
	}
	for range tidyRuns {
		if (pages-free)*s.pageSize <= s.opts.MaxBytes/8*7 {
			return false, nil
		}
		keys, err := s.endedBefore(now.Add(-grace), 1)
		if err != nil || len(keys) == 0 {
			return false, err
		}
		if err := s.remove(keys[0]); err != nil {
			return false, err
		}
		if pages, free, err = s.pages(); err != nil {
			return false, err
		}
	}
	return true, nil
}

// endedBefore returns the keys of at most limit runs that are not running and had their last commit before t, oldest first.
func (s *Store) endedBefore(t time.Time, limit int) (keys []int64, err error) {
	rows, err := s.writes.ended.QueryContext(context.Background(), t.UnixMicro(), limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var key int64
		if err := rows.Scan(&key); err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, rows.Err()
}

// pages returns how many pages the database has, and how many of them are free.
func (s *Store) pages() (all, free int64, err error) {
	if err := s.writes.pageCount.QueryRow().Scan(&all); err != nil {
		return 0, 0, err
	}
	err = s.writes.freePages.QueryRow().Scan(&free)
	return all, free, err
}
