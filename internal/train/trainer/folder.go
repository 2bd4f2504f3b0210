package trainer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/gofrs/flock"

	"anytime/internal/gguf"
	"anytime/internal/train/model"
)

// The files of a run's folder, beside the results.
const (
	lockFile     = "lock" // held by the process that trains
	settingsFile = "run.json"
	metricsFile  = "metrics.jsonl" // a line for each unit of work done
	checkpoints  = "checkpoint-"   // and how many units are in it
)

// Training is how a model was opened to be trained, as far as it decides what is learned.
type Training struct {
	Train     model.Train     `json:"train"`
	Adapter   string          `json:"adapter,omitempty"` // whatever tells the adapter to begin with from others
	LoRA      model.LoRA      `json:"lora"`
	Optimizer model.Optimizer `json:"optimizer"`
	Seed      uint64          `json:"seed"`
}

// folder keeps a run, and the model that it trains.
type folder struct {
	path    string
	model   *model.Model
	lock    *flock.Flock
	metrics *os.File
	done    int // units of work that are committed
}

// Open loads the model of a run, to be trained as its settings say. It is called again after a step that hung.
type Open func() (*model.Model, error)

// tries is how often a unit of work that hangs is begun.
const tries = 3

// openFolder opens the folder of a run, or begins it, and restores the model from the last checkpoint. It is an error if the run was
// begun with other settings, or another process is at it.
func openFolder(path string, settings any, open Open) (_ *folder, err error) {
	if err := os.MkdirAll(path, 0o755); err != nil { //nolint:gosec // as any output
		return nil, fmt.Errorf("open run: %w", err)
	}
	f := &folder{path: path}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
		}
	}()
	lock := flock.New(filepath.Join(path, lockFile)) // the kernel releases it when the process ends, however it ends
	switch locked, err := lock.TryLock(); {
	case err != nil:
		return nil, fmt.Errorf("lock run: %w", err)
	case !locked:
		return nil, fmt.Errorf("another process is training in %s: wait for its end, or name another folder", path)
	}
	f.lock = lock
	if err := f.begin(settings); err != nil {
		return nil, fmt.Errorf("open run %s: %w", path, err)
	}
	if f.model, err = open(); err != nil {
		return nil, err
	}
	saved, err := f.saved()
	if err != nil {
		return nil, err
	}
	if len(saved) > 0 {
		f.done = slices.Max(saved)
		if _, err := f.model.Restore(f.checkpoint(f.done)); err != nil {
			return nil, err
		}
	}
	return f, f.openMetrics()
}

// begin compares the settings with those of the folder, or writes them, and removes what a process left that was killed while it wrote.
func (f *folder) begin(settings any) error {
	is, err := json.MarshalIndent(settings, "", "  ")
	if err != nil {
		return err
	}
	is = append(is, '\n')
	was, err := os.ReadFile(filepath.Join(f.path, settingsFile))
	switch {
	case errors.Is(err, os.ErrNotExist):
		err = gguf.WriteFile(filepath.Join(f.path, settingsFile), func(w io.Writer) error {
			_, err := w.Write(is)
			return err
		})
	case err == nil && !bytes.Equal(was, is):
		err = fmt.Errorf("it was begun with the settings %s, not with %s: go on with those, or name another folder", was, is)
	}
	if err != nil {
		return err
	}
	half, err := filepath.Glob(filepath.Join(f.path, ".*.gguf.*"))
	for _, name := range half {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}

func (f *folder) checkpoint(done int) string {
	return filepath.Join(f.path, fmt.Sprintf("%s%06d.gguf", checkpoints, done))
}

// saved lists the checkpoints: one, or two after a crash between the writing of one and the removal of the one before.
func (f *folder) saved() (done []int, err error) {
	entries, err := os.ReadDir(f.path)
	if err != nil {
		return nil, fmt.Errorf("open run: %w", err)
	}
	for _, e := range entries {
		number, ok := strings.CutPrefix(strings.TrimSuffix(e.Name(), ".gguf"), checkpoints)
		if n, err := strconv.Atoi(number); ok && err == nil {
			done = append(done, n)
		}
	}
	return done, nil
}

// openMetrics drops the lines of units that were not committed.
func (f *folder) openMetrics() error {
	path := filepath.Join(f.path, metricsFile)
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("open metrics: %w", err)
	}
	whole := slices.Collect(bytes.Lines(data))
	if n := len(whole); n > 0 && !bytes.HasSuffix(whole[n-1], []byte("\n")) {
		whole = whole[:n-1]
	}
	var size int64
	for _, line := range whole[:min(f.done, len(whole))] {
		size += int64(len(line))
	}
	if f.metrics, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644); err != nil { //nolint:gosec // as any output
		return fmt.Errorf("open metrics: %w", err)
	}
	if err := f.metrics.Truncate(size); err != nil {
		return fmt.Errorf("open metrics: %w", err)
	}
	return nil
}

// record adds the metrics of a unit of work, which the next commit commits.
func (f *folder) record(metrics any) error {
	line, err := json.Marshal(metrics)
	if err != nil {
		return fmt.Errorf("record metrics: %w", err)
	}
	if _, err := f.metrics.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("record metrics: %w", err)
	}
	return nil
}

// commit writes the checkpoint behind a unit of work and removes those before it.
func (f *folder) commit(done int) error {
	if err := f.metrics.Sync(); err != nil {
		return fmt.Errorf("record metrics: %w", err)
	}
	if err := f.model.Checkpoint(f.checkpoint(done)); err != nil {
		return err
	}
	f.done = done
	saved, err := f.saved()
	for _, old := range saved {
		if old != done {
			err = errors.Join(err, os.Remove(f.checkpoint(old)))
		}
	}
	return err
}

// close may be called again.
func (f *folder) close() (err error) {
	if f.metrics != nil {
		err = f.metrics.Close()
		f.metrics = nil
	}
	if f.model != nil {
		f.model.Close()
		f.model = nil
	}
	if f.lock != nil {
		err = errors.Join(err, f.lock.Close())
		f.lock = nil
	}
	return err
}
