package adapters

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"anytime/internal/budget"
	"anytime/internal/catalog"
	"anytime/internal/decode"
)

// Folder is where adapter files come from, and where what is loaded is kept:
//
//	*.gguf               whatever its owner put there, to be loaded by name
//	loaded/SHA256.gguf   what is loaded or was uploaded
//	state.json           what is loaded under which name, and the defaults
type Folder struct {
	dir   string
	most  int64 // bytes of a file
	state state // as the file has it; Manager.mu guards it once there is a Manager
}

// state is what outlives the server.
type state struct {
	Format   string              `json:"format"`
	Adapters []record            `json:"adapters"`
	Defaults map[string]string   `json:"defaults,omitempty"` // adapter by model
	Measured map[string]measured `json:"measured,omitempty"` // of bare models, by model
}

// record is an adapter that is loaded.
type record struct {
	Model  string    `json:"model"`
	Name   string    `json:"name"`
	File   string    `json:"file"` // what it was loaded from
	SHA256 string    `json:"sha256"`
	Bytes  int64     `json:"bytes"`
	Loaded time.Time `json:"loaded"`
	// Measured is what the gate found, or a curve that lay beside the file.
	Measured *measured `json:"measured,omitempty"`
}

func (r record) curve() *budget.Curve {
	if r.Measured == nil {
		return nil
	}
	return &r.Measured.Curve
}

// sound is the curve if runs may be planned by it.
func (r record) sound() *budget.Curve {
	const enough = 100 // problems
	if c := r.curve(); c != nil && c.Problems >= enough {
		return c
	}
	return nil
}

// measured is a curve of a model with or without an adapter.
type measured struct {
	By    string       `json:"by"` // the model's weights and the evaluation that it is of; "" unknown
	Curve budget.Curve `json:"curve"`
}

const (
	stateFormat = "anytime adapters 1"
	stateFile   = "state.json"
	loadedDir   = "loaded"
	maxState    = 64 << 20 // bytes
	// leftover is how old a kept file that no name leads to must be to be removed: until then it may be an upload that is to be loaded.
	leftover = time.Hour
)

// OpenFolder reads what a folder has; it need not be there yet. Files larger than mostBytes are not taken in.
func OpenFolder(dir string, mostBytes int64) (*Folder, error) {
	f := &Folder{dir: dir, most: mostBytes, state: state{Format: stateFormat}}
	path := filepath.Join(dir, stateFile)
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open adapter folder: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxState))
	if err == nil {
		err = json.Unmarshal(data, &f.state)
	}
	if err == nil && f.state.Format != stateFormat {
		err = fmt.Errorf("its format is %.32q; it must be %q", f.state.Format, stateFormat)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s, which says what adapters are loaded: %w; remove it to begin without any", path, err)
	}
	for _, r := range f.state.Adapters {
		if !hexDigest.MatchString(r.SHA256) || !Name.MatchString(r.Name) {
			return nil, fmt.Errorf("read %s: it has an adapter called %.64q with SHA-256 %.64q; remove it to begin without any", path, r.Name, r.SHA256)
		}
	}
	f.sweep(nil)
	return f, nil
}

// Restore returns what a model is to be loaded with: adapters by name, and which of them, or of those that the configuration has besides, is the
// default. What is not as it was left is reported in failed and not returned.
func (f *Folder) Restore(model string, check func(path string) error) (found map[string]catalog.AdapterConfig, standard string, failed map[string]error) {
	found, failed = map[string]catalog.AdapterConfig{}, map[string]error{}
	for _, r := range f.state.Adapters {
		if r.Model != model {
			continue
		}
		path := f.path(r.SHA256)
		err := f.verify(r.SHA256)
		if err == nil {
			err = check(path)
		}
		if err != nil {
			failed[r.Name] = err
			continue
		}
		found[r.Name] = catalog.AdapterConfig{File: path, Curve: r.sound()}
	}
	return found, f.state.Defaults[model], failed
}

// verify says whether a kept file is what its name says.
func (f *Folder) verify(sum string) error {
	file, err := os.Open(f.path(sum))
	if err != nil {
		return err
	}
	defer file.Close()
	h := sha256.New()
	if _, err := io.Copy(h, file); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != sum {
		return fmt.Errorf("%s is damaged: its SHA-256 is %s", file.Name(), got)
	}
	return nil
}

func (f *Folder) path(sum string) string { return filepath.Join(f.dir, loadedDir, sum+".gguf") }

var hexDigest = regexp.MustCompile(`^[0-9a-f]{64}$`)

// digest is how requests name an uploaded file.
const digest = "sha256:"

// take returns the SHA-256 and size of a file that a request names: one in the folder, of which a copy is kept, or one that was uploaded.
// want is the SHA-256 that it must have, or "".
func (f *Folder) take(ctx context.Context, name, want string) (sum string, size int64, err error) {
	if sum, uploaded := strings.CutPrefix(name, digest); uploaded {
		if !hexDigest.MatchString(sum) {
			return "", 0, wrong("file", "is %.80q; behind sha256: there must be 64 hexadecimal digits in lower case", name)
		}
		if want != "" && want != sum {
			return "", 0, wrong("sha256", "is %s, but file says %s", want, sum)
		}
		info, err := os.Stat(f.path(sum))
		if errors.Is(err, fs.ErrNotExist) {
			return "", 0, wrong("file", "is %q, which was not uploaded; PUT /v1/adapters/files/%s does", name, sum)
		}
		if err != nil {
			return "", 0, err
		}
		now := time.Now()
		return sum, info.Size(), os.Chtimes(f.path(sum), now, now)
	}
	source, err := f.open(name)
	if err != nil {
		return "", 0, err
	}
	defer source.Close()
	return f.keep(ctx, source, want)
}

// open opens a file of the folder and none elsewhere: os.Root follows no link out of it.
func (f *Folder) open(name string) (*os.File, error) {
	const must = "it must name a .gguf file in the server's adapter folder, or an uploaded one as sha256:…"
	if !filepath.IsLocal(name) || !strings.HasSuffix(name, ".gguf") || strings.ContainsRune(name, 0) {
		return nil, wrong("file", "is %.200q; %s", name, must)
	}
	root, err := os.OpenRoot(f.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, wrong("file", "is %.200q, which is not there; %s", name, must)
	}
	if err != nil {
		return nil, fmt.Errorf("open adapter folder: %w", err)
	}
	defer root.Close()
	file, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a named pipe must not be waited for
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, wrong("file", "is %.200q, which is not there; %s", name, must)
	case err != nil:
		return nil, wrong("file", "is %.200q, which cannot be opened within the adapter folder; %s", name, must)
	}
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		file.Close()
		return nil, wrong("file", "is %.200q, which is not a regular file; %s", name, must)
	}
	return file, nil
}

// curve reads the curve that may lie beside a file of the folder.
func (f *Folder) curve(name string) *measured {
	root, err := os.OpenRoot(f.dir)
	if err != nil {
		return nil
	}
	defer root.Close()
	file, err := root.OpenFile(budget.CurveFile(name), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer file.Close()
	c, err := budget.ReadCurve(file)
	if err != nil {
		return nil
	}
	return &measured{Curve: c}
}

// SizeError is a file that is too large.
type SizeError struct{ Limit int64 }

func (e *SizeError) Error() string {
	return fmt.Sprintf("the file is larger than %d bytes, the most that this server takes", e.Limit)
}

// keep copies a file to its place, all or nothing. want is the SHA-256 that it must have, or "".
func (f *Folder) keep(ctx context.Context, from io.Reader, want string) (sum string, size int64, err error) {
	dir := filepath.Join(f.dir, loadedDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", 0, err
	}
	part, err := os.CreateTemp(dir, "*.part")
	if err != nil {
		return "", 0, err
	}
	defer func() {
		if err != nil {
			part.Close()
			os.Remove(part.Name())
		}
	}()
	h := sha256.New()
	size, err = io.Copy(io.MultiWriter(part, h), io.LimitReader(cancellable{ctx, from}, f.most+1))
	if err != nil {
		return "", 0, err
	}
	sum = hex.EncodeToString(h.Sum(nil))
	switch {
	case size > f.most:
		return "", 0, &SizeError{f.most}
	case want != "" && want != sum:
		return "", 0, wrong("sha256", "is %s, but the file that came has %s", want, sum)
	}
	return sum, size, install(part, f.path(sum))
}

// install moves a file that was written to where it belongs, so that a crash leaves it there whole or not at all.
func install(part *os.File, path string) error {
	if err := errors.Join(part.Sync(), part.Close()); err != nil {
		return err
	}
	if err := os.Rename(part.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// cancellable is a reader that ends with its context.
type cancellable struct {
	ctx context.Context
	io.Reader
}

func (c cancellable) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.Reader.Read(p)
}

// save replaces the state file.
func (f *Folder) save(next state) (err error) {
	data, err := json.MarshalIndent(next, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return err
	}
	part, err := os.CreateTemp(f.dir, stateFile+".*.part")
	if err != nil {
		return err
	}
	if _, err = io.Copy(part, bytes.NewReader(append(data, '\n'))); err == nil {
		err = install(part, filepath.Join(f.dir, stateFile))
	}
	if err != nil {
		part.Close()
		os.Remove(part.Name())
		return fmt.Errorf("keep what adapters are loaded: %w", err)
	}
	f.state = next
	return nil
}

// clone copies a state, to be changed.
func (s state) clone() state {
	s.Adapters = slices.Clone(s.Adapters)
	s.Defaults, s.Measured = maps.Clone(s.Defaults), maps.Clone(s.Measured)
	if s.Defaults == nil {
		s.Defaults = map[string]string{}
	}
	if s.Measured == nil {
		s.Measured = map[string]measured{}
	}
	return s
}

func (s state) find(model, name string) *record {
	i := slices.IndexFunc(s.Adapters, func(r record) bool { return r.Model == model && r.Name == name })
	if i < 0 {
		return nil
	}
	return &s.Adapters[i]
}

// put adds a record, in place of one of that name.
func (s *state) put(r record) {
	if old := s.find(r.Model, r.Name); old != nil {
		*old = r
		return
	}
	s.Adapters = append(s.Adapters, r)
}

// sweep removes kept files that no name leads to and that are in nobody's hands. Whoever takes one in hand makes it young.
func (f *Folder) sweep(inHand map[string]bool) {
	named := map[string]bool{}
	for _, r := range f.state.Adapters {
		named[r.SHA256] = true
	}
	entries, _ := os.ReadDir(filepath.Join(f.dir, loadedDir))
	for _, e := range entries {
		sum := strings.TrimSuffix(e.Name(), ".gguf")
		if info, err := e.Info(); err == nil && !named[sum] && !inHand[sum] && time.Since(info.ModTime()) > leftover {
			os.Remove(filepath.Join(f.dir, loadedDir, e.Name()))
		}
	}
}

func wrong(field, format string, args ...any) error {
	return &decode.InputError{Field: field, Reason: fmt.Sprintf(format, args...)}
}
