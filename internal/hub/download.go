package hub

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// job is one file to download.
type job struct {
	url    *url.URL
	path   string // the final name
	size   int64  // bytes; -1: not known
	sha256 string // lower-case hex; "": not known
	repo   string // owner/repo; "": not from the hub
}

// present says whether all files are under their final names. What stands there was whole when it was put there; the size
// only tells whether somebody has changed it since.
func present(jobs []job) bool {
	for _, j := range jobs {
		info, err := os.Stat(j.path)
		if err != nil || !info.Mode().IsRegular() || j.size >= 0 && info.Size() != j.size {
			return false
		}
	}
	return true
}

// downloadAll returns the path of the first file once all are there.
func (h *Hub) downloadAll(ctx context.Context, jobs []job) (string, error) {
	for _, j := range jobs {
		if err := h.download(ctx, j); err != nil {
			return "", err
		}
	}
	return jobs[0].path, nil
}

func (h *Hub) download(ctx context.Context, j job) error {
	if present([]job{j}) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(j.path), 0o755); err != nil {
		return err
	}
	p, err := h.open(ctx, j)
	if err != nil {
		return err
	}
	defer p.close()
	if present([]job{j}) { // another process has finished it while we waited
		p.discard()
		return nil
	}
	for again := true; ; again = false {
		if err := h.retry(ctx, p.state(), func() (bool, error) { return h.attempt(ctx, p) }); err != nil {
			return diskError(err, j.path)
		}
		err := p.verify()
		if err == nil {
			return diskError(p.publish(), j.path)
		}
		// What was put together from several tries may have gone wrong in between: once more from the start.
		p.discard()
		if !again || !errors.Is(err, errContent) {
			return err
		}
	}
}

// part is an unfinished download: NAME.part, which we hold locked, and what its sidecar says of it.
type part struct {
	job
	file *os.File
	meta meta
	best int64 // the most bytes we ever had; a try that does not get beyond them is no progress
}

// meta is the sidecar NAME.part.json.
type meta struct {
	Validator string `json:"validator"` // strong ETag or Last-Modified of what NAME.part is the beginning of
	Size      int64  `json:"size"`      // bytes; -1: not known
	SHA256    string `json:"sha256,omitempty"`
}

// open opens and locks NAME.part, waiting while another process has it.
func (h *Hub) open(ctx context.Context, j job) (*part, error) {
	name := j.path + ".part"
	for waited := false; ; {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return nil, diskError(err, j.path)
		}
		switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); {
		case err == nil:
			// The holder renames or removes the file that it has locked: what we locked must still have the name.
			if stillNamed(f, name) {
				p := &part{job: j, file: f, meta: meta{Size: -1}}
				p.readMeta()
				return p, nil
			}
			f.Close()
			continue
		case !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR):
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		f.Close()
		if !waited {
			waited = true
			h.progress(Progress{File: filepath.Base(j.path), Total: j.size, Note: "another process downloads it; waiting"})
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

func stillNamed(f *os.File, name string) bool {
	ours, err1 := f.Stat()
	there, err2 := os.Stat(name)
	return err1 == nil && err2 == nil && os.SameFile(ours, there)
}

func (p *part) sidecar() string { return p.path + ".part.json" }

// readMeta takes up what an earlier process left; without a readable sidecar we cannot know what the bytes are.
func (p *part) readMeta() {
	data, err := os.ReadFile(p.sidecar())
	if err != nil || json.Unmarshal(data, &p.meta) != nil || p.meta.Validator == "" {
		p.discard()
		return
	}
	p.best = p.have()
}

func (p *part) have() int64 {
	info, err := p.file.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

// discard forgets all bytes. The file is emptied before the sidecar goes, so that a sidecar never speaks of other bytes.
func (p *part) discard() {
	_ = p.file.Truncate(0) // should it fail, the checks of the whole file still stand
	_ = os.Remove(p.sidecar())
	p.meta = meta{Size: -1}
}

// close unlocks the file. One with bytes in it stays, for a later call to go on with.
func (p *part) close() {
	if p.have() == 0 && stillNamed(p.file, p.file.Name()) {
		_ = os.Remove(p.file.Name())
		_ = os.Remove(p.sidecar())
	}
	_ = p.file.Close()
}

func (p *part) total() int64 {
	if p.size >= 0 {
		return p.size
	}
	return p.meta.Size
}

func (p *part) state() Progress {
	return Progress{File: filepath.Base(p.path), Done: p.have(), Total: p.total()}
}

// attempt makes one request for the missing bytes. progress says whether it got further than any try before.
func (h *Hub) attempt(ctx context.Context, p *part) (progress bool, err error) {
	have := p.have()
	if have > 0 && have == p.total() {
		return true, nil // broken off between the last byte and the rename
	}
	if p.meta.Validator == "" {
		have = 0 // nothing could tell whether the rest belongs to what is there
	}
	ctx, alive, stop := h.watch(ctx)
	defer stop()
	sum := ""
	ctx = context.WithValue(ctx, linkedSum{}, &sum)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url.String(), nil)
	if err != nil {
		return false, err
	}
	if have > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", have))
		req.Header.Set("If-Range", p.meta.Validator)
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return false, requestError(ctx, err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		have = 0
		if err := p.begin(resp, sum); err != nil {
			return false, err
		}
	case http.StatusPartialContent:
		from, total, ok := contentRange(resp.Header.Get("Content-Range"))
		changed := validator(resp.Header) != "" && validator(resp.Header) != p.meta.Validator
		if have == 0 || !ok || from != have || changed || total >= 0 && p.total() >= 0 && total != p.total() {
			p.discard()
			return false, transient{err: errors.New("the server sent another range than was asked for")}
		}
	case http.StatusRequestedRangeNotSatisfiable:
		p.discard()
		return false, transient{err: errors.New("the server has fewer bytes than it sent before")}
	default:
		return false, h.statusError(resp, p.repo)
	}
	if err := roomFor(p.path, p.total()-have); err != nil {
		return false, err
	}
	if _, err := p.file.Seek(have, io.SeekStart); err != nil {
		return false, err
	}
	err = h.copyBody(ctx, p, resp.Body, have, alive)
	have = p.have()
	progress = have > p.best
	p.best = max(p.best, have)
	if err == nil && p.total() >= 0 && have < p.total() {
		err = transient{err: io.ErrUnexpectedEOF}
	}
	return progress, err
}

// begin starts the file anew with what the response announces.
func (p *part) begin(resp *http.Response, sum string) error {
	p.discard()
	if sum == "" {
		sum = linkedSHA256(resp.Header)
	}
	if p.size >= 0 && resp.ContentLength >= 0 && resp.ContentLength != p.size {
		return fmt.Errorf("%s has %d bytes, but the hub lists %d", show(p.url), resp.ContentLength, p.size)
	}
	p.meta = meta{Validator: validator(resp.Header), Size: resp.ContentLength, SHA256: sum}
	data, err := json.Marshal(p.meta)
	if err != nil {
		return err
	}
	return writeFile(p.sidecar(), data)
}

func (h *Hub) copyBody(ctx context.Context, p *part, body io.Reader, have int64, alive func()) error {
	state := Progress{File: filepath.Base(p.path), Done: have, Total: p.total()}
	h.progress(state)
	buf := make([]byte, 256<<10)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			alive()
			if _, err := p.file.Write(buf[:n]); err != nil {
				return err
			}
			state.Done += int64(n)
			if state.Total >= 0 && state.Done > state.Total {
				p.discard()
				return fmt.Errorf("%s sends more than its %d bytes", show(p.url), state.Total)
			}
			h.progress(state)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return requestError(ctx, err)
		}
	}
}

// errContent marks a download that arrived whole and is not what it should be.
var errContent = errors.New("wrong content")

func (p *part) verify() error {
	if have := p.have(); p.total() >= 0 && have != p.total() {
		return fmt.Errorf("%w: %s has %d bytes instead of %d", errContent, show(p.url), have, p.total())
	}
	if _, err := p.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	want := p.sha256
	if want == "" {
		want = p.meta.SHA256
	}
	if want != "" {
		sum := sha256.New()
		if _, err := io.Copy(sum, p.file); err != nil {
			return err
		}
		if got := hex.EncodeToString(sum.Sum(nil)); got != want {
			return fmt.Errorf("%w: %s has SHA-256 %s, the source announces %s", errContent, show(p.url), got, want)
		}
	}
	magic := make([]byte, 4)
	if n, _ := p.file.ReadAt(magic, 0); n < len(magic) || string(magic) != "GGUF" {
		return fmt.Errorf("%s is not a GGUF file: it begins with %q", show(p.url), magic[:n])
	}
	return nil
}

// publish gives the file its final name. Its bytes are on disk before the name is.
func (p *part) publish() error {
	if err := p.file.Sync(); err != nil {
		return err
	}
	if err := os.Rename(p.file.Name(), p.path); err != nil {
		return err
	}
	_ = os.Remove(p.sidecar()) // a sidecar without its file is ignored
	return syncDir(filepath.Dir(p.path))
}

// writeFile writes a small file atomically.
func writeFile(name string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // does nothing once it is renamed
	_, err = f.Write(data)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// roomFor refuses a download that the disk cannot hold.
func roomFor(path string, need int64) error {
	var fs syscall.Statfs_t
	if need <= 0 || syscall.Statfs(filepath.Dir(path), &fs) != nil {
		return nil
	}
	if free := uint64(fs.Bavail) * uint64(fs.Bsize); uint64(need) > free {
		return fmt.Errorf("disk full: %s needs %s more, %s has %s free",
			filepath.Base(path), mib(need), filepath.Dir(path), mib(int64(min(free, 1<<62))))
	}
	return nil
}

func diskError(err error, path string) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("disk full: make room in %s and start again, the download will go on: %w", filepath.Dir(path), err)
	}
	return err
}

// validator returns what If-Range can compare: only a strong ETag or a date tells the same bytes.
func validator(header http.Header) string {
	if tag := header.Get("ETag"); strings.HasPrefix(tag, `"`) {
		return tag
	}
	return header.Get("Last-Modified")
}

// linkedSHA256 returns the SHA-256 that a hub announces for a file in its large-file store; "" where it does not.
func linkedSHA256(header http.Header) string {
	return hexSHA256(strings.Trim(strings.TrimPrefix(header.Get("X-Linked-ETag"), "W/"), `"`))
}

// hexSHA256 returns s in lower case when it is a SHA-256 in hex, else "".
func hexSHA256(s string) string {
	if b, err := hex.DecodeString(s); err != nil || len(b) != sha256.Size {
		return ""
	}
	return strings.ToLower(s)
}

// contentRange parses "bytes from-to/total"; total is -1 for "*".
func contentRange(s string) (from, total int64, ok bool) {
	var to int64
	if n, _ := fmt.Sscanf(s, "bytes %d-%d/%d", &from, &to, &total); n == 3 {
		return from, total, true
	}
	n, _ := fmt.Sscanf(s, "bytes %d-%d/*", &from, &to)
	return from, -1, n == 2
}
