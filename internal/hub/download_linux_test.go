package hub_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"anytime/internal/hub"
)

// A disk that fills up in the middle: Linux's /dev/full is such a disk.
func TestDiskFull(t *testing.T) {
	r := newRepository(t, map[string][]byte{"m-Q8_0.gguf": gguf(1<<20, 6)})
	dir := t.TempDir()
	folder := filepath.Join(dir, "hub", strings.ReplaceAll(strings.TrimPrefix(r.URL, "http://"), ":", "_"), "owner", "repo", commit)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/full", filepath.Join(folder, "m-Q8_0.gguf.part")); err != nil {
		t.Fatal(err)
	}
	_, err := open(t, hub.Config{Dir: dir, BaseURL: r.URL}).Fetch(t.Context(), "hf.co/owner/repo")
	if err == nil || !strings.Contains(err.Error(), "disk full: make room in") {
		t.Errorf("got error %v, want one on the full disk", err)
	}
}
