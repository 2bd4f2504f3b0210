//go:build unix

package sqlite

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
)

// lock keeps a second server off the database, until the file is closed or the process dies. It is a file of its own, since SQLite's
// locks and ours on one file would undo one another.
func lock(path string) (*os.File, error) {
	file, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer file.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", file.Name(), err)
		}
		holder, _ := io.ReadAll(io.LimitReader(file, 20))
		return nil, fmt.Errorf("database %s is in use by another server (process %s): stop that one, or name another file",
			path, strings.TrimSpace(string(holder)))
	}
	// Only for the message above.
	if err := file.Truncate(0); err == nil {
		_, _ = fmt.Fprintln(file, os.Getpid())
	}
	return file, nil
}
