package hub_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"anytime/internal/hub"
)

// gguf makes n bytes that begin as a GGUF file does.
func gguf(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, seed))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	copy(b, "GGUF")
	return b
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// answer is how the source behaves for one request of the file; the last one stands for all that follow.
type answer struct {
	body        []byte
	etag        string
	ignoreRange bool
	breakAfter  int  // bytes of this answer; 0: does not break off
	hang        bool // at breakAfter, instead of breaking off
	status      int
	header      http.Header
}

// source serves one file and records what it was asked.
type source struct {
	*httptest.Server
	answers []answer

	mu   sync.Mutex
	seen []*http.Request
	hung chan struct{}
}

func newSource(t *testing.T, answers ...answer) *source {
	t.Helper()
	s := &source{answers: answers, hung: make(chan struct{}, 10)}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *source) requests() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

func (s *source) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	a := s.answers[min(len(s.seen), len(s.answers)-1)]
	s.seen = append(s.seen, r)
	s.mu.Unlock()
	for k, v := range a.header {
		w.Header()[k] = v
	}
	if a.status != 0 {
		w.WriteHeader(a.status)
		return
	}
	if a.etag != "" {
		w.Header().Set("ETag", a.etag)
	}
	if a.ignoreRange {
		r.Header.Del("Range")
	}
	if a.breakAfter > 0 {
		w = &breaking{ResponseWriter: w, left: a.breakAfter, hang: a.hang, hung: s.hung, r: r}
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(a.body))
}

// breaking ends the connection, or falls silent, after so many bytes of the body.
type breaking struct {
	http.ResponseWriter
	left int
	hang bool
	hung chan struct{}
	r    *http.Request
}

func (b *breaking) Write(p []byte) (int, error) {
	if len(p) < b.left {
		b.left -= len(p)
		return b.ResponseWriter.Write(p)
	}
	_, _ = b.ResponseWriter.Write(p[:b.left])
	_ = http.NewResponseController(b.ResponseWriter).Flush()
	if b.hang {
		b.hung <- struct{}{}
		<-b.r.Context().Done()
	}
	panic(http.ErrAbortHandler)
}

// open returns a Hub that does not wait long.
func open(t *testing.T, cfg hub.Config) *hub.Hub {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	h, err := hub.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	h.SetTiming(time.Millisecond, 10*time.Second)
	return h
}

// repository is a hub with one repository, owner/repo, whose files may lie on another host.
type repository struct {
	*httptest.Server
	files  map[string][]byte
	sums   map[string]string // what the listing says, where it is not the truth
	sizes  map[string]int64
	store  string // address that files are redirected to; "": served here
	linked bool   // announce the SHA-256 by X-Linked-ETag instead of the listing
	deny   func(w http.ResponseWriter, r *http.Request) bool

	mu    sync.Mutex
	seen  []*http.Request
	delay chan struct{} // files are served once it is closed
}

func newRepository(t *testing.T, files map[string][]byte) *repository {
	t.Helper()
	r := &repository{files: files}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

const commit = "0123456789abcdef0123456789abcdef01234567"

func (r *repository) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.seen = append(r.seen, req)
	r.mu.Unlock()
	if r.deny != nil && r.deny(w, req) {
		return
	}
	if req.URL.Path == "/api/models/owner/repo/revision/main" && req.URL.Query().Get("blobs") == "true" {
		var siblings []string
		for name, body := range r.files {
			size, listed := int64(len(body)), sum(body)
			if s, ok := r.sizes[name]; ok {
				size = s
			}
			if s, ok := r.sums[name]; ok {
				listed = s
			}
			lfs := fmt.Sprintf(`,"lfs":{"sha256":%q}`, listed)
			if r.linked {
				lfs = ""
			}
			siblings = append(siblings, fmt.Sprintf(`{"rfilename":%q,"size":%d%s}`, name, size, lfs))
		}
		fmt.Fprintf(w, `{"id":"owner/repo","sha":%q,"siblings":[%s]}`, commit, strings.Join(siblings, ","))
		return
	}
	name, ok := strings.CutPrefix(req.URL.Path, "/owner/repo/resolve/"+commit+"/")
	body, exists := r.files[name]
	if !ok || !exists {
		w.Header().Set("X-Error-Code", "RepoNotFound")
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if r.linked {
		listed := sum(body)
		if s, ok := r.sums[name]; ok {
			listed = s
		}
		w.Header().Set("X-Linked-ETag", strconv.Quote(listed))
	}
	if r.store != "" {
		http.Redirect(w, req, r.store+"/"+name+"?signature=secret", http.StatusFound)
		return
	}
	if r.delay != nil {
		<-r.delay
	}
	w.Header().Set("ETag", strconv.Quote(sum(body)))
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(body))
}

func (r *repository) count(part string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, req := range r.seen {
		if strings.Contains(req.URL.Path, part) {
			n++
		}
	}
	return n
}
