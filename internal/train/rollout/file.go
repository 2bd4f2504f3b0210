package rollout

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"sync"
)

// File records traces as JSON lines behind a line with their settings. A line is written at once, so that whatever ends the process
// costs at most the last one. One process at a time may have it open for writing.
type File struct {
	settings Settings
	mu       sync.Mutex // guards what follows
	f        *os.File
	size     int64 // of the whole lines
	traces   map[place]Trace
}

type place struct {
	problem string
	trace   int
}

// header is a file's first line.
type header struct {
	Format   string    `json:"format"`
	Settings *Settings `json:"settings"`
}

const format = "anytime rollouts 1"

// OpenFile opens a record, or begins it. It is an error if that has traces of other settings. A last line that was not finished is
// dropped.
func OpenFile(path string, s Settings) (_ *File, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644) //nolint:gosec // as any output
	if err != nil {
		return nil, fmt.Errorf("open rollouts: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	r := &File{settings: s, f: f, traces: map[place]Trace{}}
	kept, traces, size, err := read(f, path)
	if err != nil && !errors.Is(err, errNone) {
		return nil, err
	}
	other := !reflect.DeepEqual(kept, s)
	if other && len(traces) > 0 {
		was, is := Differences(kept, s)
		return nil, fmt.Errorf("%s was begun with the settings %s, not with %s: go on with those, or name another file", path, was, is)
	}
	if other { // nothing is lost
		size = 0
	}
	r.size = size
	if err := f.Truncate(size); err != nil {
		return nil, fmt.Errorf("open rollouts: %w", err)
	}
	if size == 0 {
		return r, r.write(header{format, &s})
	}
	for _, t := range traces {
		r.traces[place{t.Problem, t.Index}] = t
	}
	return r, nil
}

// Read reads a record: its settings, and the traces in the order in which they were finished.
func Read(path string) (Settings, []Trace, error) {
	f, err := os.Open(path)
	if err != nil {
		return Settings{}, nil, fmt.Errorf("read rollouts: %w", err)
	}
	defer f.Close()
	s, traces, _, err := read(f, path)
	return s, traces, err
}

var errNone = errors.New("it has no rollouts")

// read also returns how many bytes the whole lines have.
func read(f io.Reader, path string) (s Settings, traces []Trace, size int64, err error) {
	r := bufio.NewReader(f)
	known := map[place]bool{}
	for n := 1; ; n++ {
		line, err := r.ReadBytes('\n')
		switch begun := fmt.Appendf(nil, `{"format":%q`, format); {
		case err != nil && !errors.Is(err, io.EOF):
			return s, nil, 0, fmt.Errorf("read rollouts: %w", err)
		case err != nil && n > 1: // what is left was not finished
			return s, traces, size, nil
		case err != nil && (bytes.HasPrefix(begun, line) || bytes.HasPrefix(line, begun)):
			return s, nil, 0, fmt.Errorf("%s: %w", path, errNone)
		}
		if n == 1 {
			var h header
			if err := json.Unmarshal(line, &h); err != nil || h.Format != format || h.Settings == nil {
				return s, nil, 0, fmt.Errorf("%s is no file of rollouts: its first line must be {\"format\":%q,\"settings\":…}", path, format)
			}
			if err := h.Settings.Validate(); err != nil {
				return s, nil, 0, fmt.Errorf("%s, line 1: %w", path, err)
			}
			s = *h.Settings
		} else {
			var t Trace
			err := json.Unmarshal(line, &t)
			if err == nil {
				err = t.check(s)
			}
			if at := (place{t.Problem, t.Index}); err == nil && known[at] {
				err = fmt.Errorf("rollout %d of problem %q is there already", t.Index, t.Problem)
			} else {
				known[at] = true
			}
			if err != nil {
				return s, nil, 0, fmt.Errorf("%s, line %d: %w", path, n, err)
			}
			traces = append(traces, t)
		}
		size += int64(len(line))
	}
}

// Traces returns how many traces are recorded.
func (r *File) Traces() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.traces)
}

// Close closes the file once it is on the disk.
func (r *File) Close() error {
	return errors.Join(r.f.Sync(), r.f.Close())
}

// find returns a recorded trace; of a nil File, none.
func (r *File) find(problem string, trace int) (Trace, bool) {
	if r == nil {
		return Trace{}, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	t, ok := r.traces[place{problem, trace}]
	return t, ok
}

func (r *File) append(t Trace) error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.write(t); err != nil {
		return err
	}
	r.traces[place{t.Problem, t.Index}] = t
	return nil
}

// write writes a whole line or, as far as that can be had, none. The caller holds mu.
func (r *File) write(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("record rollouts: %w", err)
	}
	n, err := r.f.Write(append(line, '\n'))
	if err != nil {
		if n > 0 {
			err = errors.Join(err, r.f.Truncate(r.size))
		}
		return fmt.Errorf("record rollouts: %w", err)
	}
	r.size += int64(n)
	return nil
}
