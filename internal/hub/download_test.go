package hub_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"anytime/internal/hub"
)

// leftovers returns the files under dir that are not listings.
func leftovers(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != "main.json" {
			names = append(names, d.Name())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestDownload(t *testing.T) {
	const n = 1 << 20
	old, body := gguf(n, 1), gguf(n, 2)
	linked := func(s string) http.Header { return http.Header{"X-Linked-Etag": {strconv.Quote(s)}} }
	tests := []struct {
		name    string
		answers []answer
		err     string   // part of the error; "": the file arrives whole
		asked   []string // Range and If-Range of each request
		left    []string // what lies in the cache after an error
	}{
		{
			name:    "whole",
			answers: []answer{{body: body, etag: `"b"`}},
			asked:   []string{""},
		},
		{
			name:    "breaks off twice",
			answers: []answer{{body: body, etag: `"b"`, breakAfter: n / 2}, {body: body, etag: `"b"`, breakAfter: n / 4}, {body: body, etag: `"b"`}},
			asked:   []string{"", fmt.Sprintf(`bytes=%d- "b"`, n/2), fmt.Sprintf(`bytes=%d- "b"`, 3*n/4)},
		},
		{
			name:    "ignores Range",
			answers: []answer{{body: body, etag: `"b"`, breakAfter: n / 2}, {body: body, etag: `"b"`, ignoreRange: true}},
			asked:   []string{"", fmt.Sprintf(`bytes=%d- "b"`, n/2)},
		},
		{
			name:    "content changes between tries",
			answers: []answer{{body: old, etag: `"a"`, breakAfter: n / 2}, {body: body, etag: `"b"`}},
			asked:   []string{"", fmt.Sprintf(`bytes=%d- "a"`, n/2)},
		},
		{
			name: "content changes and If-Range is ignored",
			answers: []answer{
				{body: old, etag: `"a"`, breakAfter: n / 2},
				{status: http.StatusPartialContent, header: http.Header{
					"Etag": {`"b"`}, "Content-Range": {fmt.Sprintf("bytes %d-%d/%d", n/2, n-1, n)},
				}},
				{body: body, etag: `"b"`},
			},
			asked: []string{"", fmt.Sprintf(`bytes=%d- "a"`, n/2), ""},
		},
		{
			name: "another range than asked",
			answers: []answer{
				{body: body, etag: `"b"`, breakAfter: n / 2},
				{status: http.StatusPartialContent, header: http.Header{
					"Etag": {`"b"`}, "Content-Range": {fmt.Sprintf("bytes %d-%d/%d", n/4, n-1, n)},
				}},
				{body: body, etag: `"b"`},
			},
			asked: []string{"", fmt.Sprintf(`bytes=%d- "b"`, n/2), ""},
		},
		{
			name:    "has become shorter",
			answers: []answer{{body: old, etag: `"a"`, breakAfter: n / 2}, {status: http.StatusRequestedRangeNotSatisfiable}, {body: body, etag: `"b"`}},
			asked:   []string{"", fmt.Sprintf(`bytes=%d- "a"`, n/2), ""},
		},
		{
			name:    "without an ETag there is nothing to go on from",
			answers: []answer{{body: old, breakAfter: n / 2}, {body: body}},
			asked:   []string{"", ""},
		},
		{
			name:    "a weak ETag is none",
			answers: []answer{{body: old, etag: `W/"a"`, breakAfter: n / 2}, {body: body}},
			asked:   []string{"", ""},
		},
		{
			name:    "overloaded first",
			answers: []answer{{status: http.StatusServiceUnavailable}, {status: http.StatusTooManyRequests}, {body: body}},
			asked:   []string{"", "", ""},
		},
		{
			name:    "right SHA-256",
			answers: []answer{{body: body, header: linked(sum(body))}},
			asked:   []string{""},
		},
		{
			name:    "SHA-256 wrong once",
			answers: []answer{{body: old, header: linked(sum(body))}, {body: body, header: linked(sum(body))}},
			asked:   []string{"", ""},
		},
		{
			name:    "SHA-256 wrong",
			answers: []answer{{body: old, header: linked(sum(body))}},
			err:     "has SHA-256 " + sum(old) + ", the source announces " + sum(body),
			asked:   []string{"", ""},
		},
		{
			name:    "always breaks off at the same byte",
			answers: []answer{{body: body, etag: `"b"`, ignoreRange: true, breakAfter: n / 2}},
			err:     "gave up after 5 tries",
			asked:   []string{"", "*", "*", "*", "*"},
			left:    []string{"m.gguf.part", "m.gguf.part.json"},
		},
		{
			name:    "not a GGUF file",
			answers: []answer{{body: []byte("<html>Please log in</html>")}},
			err:     `not a GGUF file: it begins with "<htm"`,
			asked:   []string{""},
		},
		{
			name:    "empty",
			answers: []answer{{body: nil}},
			err:     "not a GGUF file",
			asked:   []string{""},
		},
		{
			name:    "not found",
			answers: []answer{{status: http.StatusNotFound}},
			err:     "answers 404 Not Found: check the address",
			asked:   []string{""},
		},
		{
			name:    "forbidden",
			answers: []answer{{status: http.StatusForbidden}},
			err:     "wants a login",
			asked:   []string{""},
		},
		{
			name:    "too large for the disk",
			answers: []answer{{status: http.StatusOK, header: http.Header{"Content-Length": {"4611686018427387904"}}}},
			err:     "disk full: m.gguf needs",
			asked:   []string{""},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := newSource(t, test.answers...)
			dir := t.TempDir()
			path, err := open(t, hub.Config{Dir: dir}).Fetch(t.Context(), s.URL+"/m.gguf?signature=secret")
			if test.err == "" {
				if err != nil {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, body) {
					t.Errorf("the file has %d bytes that differ from the source's (%v)", len(got), err)
				}
				test.left = []string{"m.gguf"}
			} else if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("got error %v, want %q in it", err, test.err)
			} else if strings.Contains(err.Error(), "secret") {
				t.Errorf("the error shows the address's signature: %v", err)
			}
			if left := leftovers(t, dir); strings.Join(left, " ") != strings.Join(test.left, " ") {
				t.Errorf("the cache has %q, want %q", left, test.left)
			}
			seen := s.requests()
			if len(seen) != len(test.asked) {
				t.Fatalf("%d requests, want %d", len(seen), len(test.asked))
			}
			for i, want := range test.asked {
				// The source deletes Range where it ignores it.
				got := strings.TrimSpace(seen[i].Header.Get("Range") + " " + seen[i].Header.Get("If-Range"))
				if want != "*" && !test.answers[min(i, len(test.answers)-1)].ignoreRange && got != want {
					t.Errorf("request %d asked for %q, want %q", i, got, want)
				}
			}
		})
	}
}

// A process that ends in the middle leaves a part; the next one goes on from it.
func TestResumeByAnotherProcess(t *testing.T) {
	body := gguf(1<<20, 3)
	s := newSource(t, answer{body: body, etag: `"b"`, breakAfter: 300_000, hang: true}, answer{body: body, etag: `"b"`})
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	at := make(chan struct{}, 1)
	first := open(t, hub.Config{Dir: dir, Progress: func(p hub.Progress) {
		if p.Done == 300_000 {
			at <- struct{}{}
		}
	}})
	go func() {
		_, err := first.Fetch(ctx, s.URL+"/m.gguf")
		failed <- err
	}()
	<-at
	cancel()
	if err := <-failed; err == nil || !strings.Contains(err.Error(), context.Canceled.Error()) {
		t.Fatalf("got %v, want a cancelled fetch", err)
	}
	if left := leftovers(t, dir); strings.Join(left, " ") != "m.gguf.part m.gguf.part.json" {
		t.Fatalf("the cache has %q", left)
	}
	path, err := open(t, hub.Config{Dir: dir}).Fetch(t.Context(), s.URL+"/m.gguf")
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); !bytes.Equal(got, body) {
		t.Error("the file differs from the source's")
	}
	if got := s.requests()[1].Header.Get("Range"); got != "bytes=300000-" {
		t.Errorf("the second process asked for %q", got)
	}
}

// A connection that falls silent is given up and taken up again.
func TestStall(t *testing.T) {
	body := gguf(1<<20, 4)
	s := newSource(t, answer{body: body, etag: `"b"`, breakAfter: 300_000, hang: true}, answer{body: body, etag: `"b"`})
	var notes []string
	h := open(t, hub.Config{Progress: func(p hub.Progress) {
		if p.Note != "" {
			notes = append(notes, p.Note)
		}
	}})
	h.SetTiming(time.Millisecond, 200*time.Millisecond)
	if _, err := h.Fetch(t.Context(), s.URL+"/m.gguf"); err != nil {
		t.Fatal(err)
	}
	if len(notes) != 1 || !strings.Contains(notes[0], "silent") {
		t.Errorf("notes are %q, want one on the silent connection", notes)
	}
}

func TestTwoAtOnce(t *testing.T) {
	r := newRepository(t, map[string][]byte{"m-Q8_0.gguf": gguf(1<<20, 5)})
	r.delay = make(chan struct{})
	dir := t.TempDir()
	waiting := make(chan struct{}, 2)
	var wg sync.WaitGroup
	for range 2 {
		h := open(t, hub.Config{Dir: dir, BaseURL: r.URL, Progress: func(p hub.Progress) {
			if strings.Contains(p.Note, "another process") {
				waiting <- struct{}{}
			}
		}})
		wg.Go(func() {
			if _, err := h.Fetch(t.Context(), "hf.co/owner/repo"); err != nil {
				t.Error(err)
			}
		})
	}
	<-waiting
	close(r.delay)
	wg.Wait()
	if n := r.count("/resolve/"); n != 1 {
		t.Errorf("the file was asked for %d times, want once", n)
	}
	if left := leftovers(t, dir); strings.Join(left, " ") != "m-Q8_0.gguf" {
		t.Errorf("the cache has %q", left)
	}
}

func TestReporter(t *testing.T) {
	var out strings.Builder
	report := hub.Reporter(&out)
	for done := int64(0); done <= 100<<20; done += 1 << 20 {
		report(hub.Progress{File: "m.gguf", Done: done, Total: 100 << 20})
	}
	report(hub.Progress{File: "m.gguf", Note: "trying again"})
	text := out.String()
	if n := strings.Count(text, "\n"); n != 12 {
		t.Errorf("%d lines, want 12:\n%s", n, text)
	}
	for _, want := range []string{"m.gguf: 0.0 MiB of 100.0 MiB (0%)\n", "m.gguf: 100.0 MiB of 100.0 MiB (100%)\n", "m.gguf: trying again\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
}
