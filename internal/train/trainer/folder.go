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
	"anytime/internal/train/rollout"
)

// The files of a run's folder, beside the results.
const (
	LockFile     = "lock" // held by the process that works in the folder
	settingsFile = "run.json"
	metricsFile  = "metrics.jsonl" // a line for each unit of work done
	// Behind these stands how many units are in it.
	checkpoints = "checkpoint-"
	adapters    = "adapter-"
	rollouts    = "rollouts-"
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
	lines   [][]byte // of the metrics, as they were found
	done    int      // units of work that are committed
}

// Open loads the model of a run, to be trained as its settings say. It is called again after a step that hung.
type Open func() (*model.Model, error)

// tries is how often a unit of work that hangs is begun.
const tries = 3

// Lock locks a file, which is made for that, against other processes. The kernel releases it when the process ends, however it ends.
func Lock(path string) (*flock.Flock, error) {
	lock := flock.New(path)
	switch locked, err := lock.TryLock(); {
	case err != nil:
		return nil, fmt.Errorf("lock: %w", err)
	case !locked:
		return nil, fmt.Errorf("another process is at work and holds %s: wait for its end, or write elsewhere", path)
	}
	return lock, nil
}

// openFolder opens the folder of a run, or begins it, and restores the model from the last checkpoint, of which there is one after every
// so many units of work. It is an error if the run was begun with other settings, or another process is at it.
func openFolder(path string, settings any, every int, open Open) (_ *folder, err error) {
	if err := os.MkdirAll(path, 0o755); err != nil { //nolint:gosec // as any output
		return nil, fmt.Errorf("open run: %w", err)
	}
	f := &folder{path: path}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
		}
	}()
	if f.lock, err = Lock(filepath.Join(path, LockFile)); err != nil {
		return nil, err
	}
	if err := f.survey(every); err != nil {
		return nil, fmt.Errorf("open run %s: %w", path, err)
	}
	if err := f.begin(settings); err != nil {
		return nil, fmt.Errorf("open run %s: %w", path, err)
	}
	if f.model, err = open(); err != nil {
		return nil, err
	}
	if f.done > 0 {
		if _, err := f.model.Restore(f.checkpoint(f.done)); err != nil {
			return nil, err
		}
	}
	return f, f.openMetrics()
}

// survey finds out how far the run has come, and whether it lacks what says so.
func (f *folder) survey(every int) error {
	var err error
	if f.done, err = f.last(checkpoints, ".gguf"); err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(f.path, metricsFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f.lines = slices.Collect(bytes.Lines(data))
	if n := len(f.lines); n > 0 && !bytes.HasSuffix(f.lines[n-1], []byte("\n")) {
		f.lines = f.lines[:n-1]
	}
	for i := range f.done {
		var of struct{ Step, Round int } // a run has one of the two
		if i < len(f.lines) && json.Unmarshal(f.lines[i], &of) == nil && of.Step+of.Round == i+1 {
			continue
		}
		return fmt.Errorf("%s, line %d: it must be of step or round %d, as the checkpoint is of %d: put the file back as it was, or name another folder", metricsFile, i+1, i+1, f.done)
	}
	adapter, err := f.last(adapters, ".gguf")
	if err != nil {
		return err
	}
	sampled, err := f.last(rollouts, ".jsonl")
	if err != nil {
		return err
	}
	if come := max(len(f.lines), adapter, sampled); come > f.done+every {
		return fmt.Errorf("it had come to %d, but the last checkpoint is of %d (0: there is none): put the lost one back, or name another folder", come, f.done)
	}
	return nil
}

// last is the highest number among the files of a kind; 0: there is none.
func (f *folder) last(prefix, suffix string) (int, error) {
	all, err := f.numbers(prefix, suffix)
	return slices.Max(append(all, 0)), err
}

// unused says whether no work is in the folder.
func (f *folder) unused() bool {
	all, err := f.numbers(rollouts, ".jsonl")
	return err == nil && f.done == 0 && len(f.lines) == 0 && !slices.ContainsFunc(all, func(n int) bool {
		data, err := os.ReadFile(filepath.Join(f.path, fmt.Sprintf("%s%06d.jsonl", rollouts, n)))
		return err != nil || bytes.Count(data, []byte("\n")) > 1 // the first line has the settings
	})
}

// begin compares the settings with those of the folder, or writes them where there is no work of others, and removes what a process left
// that was killed while it wrote.
func (f *folder) begin(settings any) error {
	is, err := json.MarshalIndent(settings, "", "  ")
	if err != nil {
		return err
	}
	is = append(is, '\n')
	was, err := os.ReadFile(filepath.Join(f.path, settingsFile))
	switch {
	case errors.Is(err, os.ErrNotExist), err == nil && !bytes.Equal(was, is) && f.unused():
		err = gguf.WriteFile(filepath.Join(f.path, settingsFile), func(w io.Writer) error {
			_, err := w.Write(is)
			return err
		})
	case err == nil && !bytes.Equal(was, is):
		of, than := rollout.Differences(json.RawMessage(was), settings)
		err = fmt.Errorf("it was begun with the settings %s, not with %s: go on with those, or name another folder", of, than)
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

// numbers lists the files of a kind. Of checkpoints there is one, or two after a crash between the writing of one and the removal of the
// one before.
func (f *folder) numbers(prefix, suffix string) (all []int, err error) {
	entries, err := os.ReadDir(f.path)
	for _, e := range entries {
		number, ok := strings.CutPrefix(strings.TrimSuffix(e.Name(), suffix), prefix)
		if n, err := strconv.Atoi(number); ok && err == nil {
			all = append(all, n)
		}
	}
	return all, err
}

// openMetrics drops the lines of units that were not committed.
func (f *folder) openMetrics() error {
	var size int64
	for _, line := range f.lines[:f.done] {
		size += int64(len(line))
	}
	var err error
	if f.metrics, err = os.OpenFile(filepath.Join(f.path, metricsFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644); err != nil { //nolint:gosec // as any output
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
	saved, err := f.numbers(checkpoints, ".gguf")
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
