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

	"anytime/internal/gguf"
	"anytime/internal/train/model"
)

// The files of a run's folder, beside the results.
const (
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

// folder keeps a run.
type folder struct {
	path    string
	model   *model.Model
	metrics *os.File
	done    int // units of work that are committed
}

// openFolder opens the folder of a run, or begins it, and restores the model from the last checkpoint. It is an error if the run was
// begun with other settings.
func openFolder(path string, settings any, m *model.Model) (_ *folder, err error) {
	if err := os.MkdirAll(path, 0o755); err != nil { //nolint:gosec // as any output
		return nil, fmt.Errorf("open run: %w", err)
	}
	is, err := json.MarshalIndent(settings, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("open run %s: %w", path, err)
	}
	is = append(is, '\n')
	was, err := os.ReadFile(filepath.Join(path, settingsFile))
	switch {
	case errors.Is(err, os.ErrNotExist):
		err = gguf.WriteFile(filepath.Join(path, settingsFile), func(w io.Writer) error {
			_, err := w.Write(is)
			return err
		})
	case err == nil && !bytes.Equal(was, is):
		err = fmt.Errorf("it was begun with the settings %s, not with %s: go on with those, or name another folder", was, is)
	}
	if err != nil {
		return nil, fmt.Errorf("open run %s: %w", path, err)
	}
	f := &folder{path: path, model: m}
	saved, err := f.saved()
	if err != nil {
		return nil, err
	}
	if len(saved) > 0 {
		f.done = slices.Max(saved)
		if _, err := m.Restore(f.checkpoint(f.done)); err != nil {
			return nil, err
		}
	}
	return f, f.openMetrics()
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
		f.metrics.Close()
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

func (f *folder) close() error { return f.metrics.Close() }
