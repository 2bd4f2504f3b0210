package web_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"regexp"
	"strings"
	"sync"
	"testing"

	"anytime/web"
)

var handler = sync.OnceValues(web.Handler)

// reply is one that was read whole.
type reply struct {
	status int
	header http.Header
	body   []byte
}

func get(t *testing.T, method, target string, header ...string) reply {
	t.Helper()
	h, err := handler()
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return reply{w.Code, w.Header(), w.Body.Bytes()}
}

func TestHeaders(t *testing.T) {
	for target, kind := range map[string]string{
		"/": "text/html; charset=utf-8", "/assets/app.css": "text/css; charset=utf-8", "/assets/icon.svg": "image/svg+xml",
		"/assets/js/app.js": "text/javascript; charset=utf-8", "/assets/vendor/fonts/KaTeX_Main-Regular.woff2": "font/woff2",
	} {
		r := get(t, "GET", target)
		if r.status != http.StatusOK || r.header.Get("Content-Type") != kind {
			t.Errorf("%s: %d, %s", target, r.status, r.header.Get("Content-Type"))
		}
		for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"} {
			if got := r.header.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", target, name, got, want)
			}
		}
		policy := r.header.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "script-src 'self';", "style-src 'self';", "connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"} {
			if !strings.Contains(policy, want) {
				t.Errorf("%s: the policy %q lacks %s", target, policy, want)
			}
		}
		if strings.Contains(policy, "unsafe-eval") || strings.Contains(policy, "script-src 'self' ") || strings.Contains(policy, "http") {
			t.Errorf("%s: the policy %q is too wide", target, policy)
		}
	}
	for _, target := range []string{"/assets/none.js", "/assets/", "/assets/../web.go", "/assets/js", "/none"} {
		if r := get(t, "GET", target); r.status != http.StatusNotFound {
			t.Errorf("%s: %d", target, r.status)
		}
	}
}

func TestSmallAndOnce(t *testing.T) {
	plain := get(t, "GET", "/assets/vendor/katex.min.js")
	small := get(t, "GET", "/assets/vendor/katex.min.js", "Accept-Encoding", "br, gzip")
	if plain.header.Get("Content-Encoding") != "" || small.header.Get("Content-Encoding") != "gzip" || small.header.Get("Vary") != "Accept-Encoding" {
		t.Fatalf("%v, %v", plain.header, small.header)
	}
	z, err := gzip.NewReader(bytes.NewReader(small.body))
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(z); err != nil || !bytes.Equal(body, plain.body) {
		t.Errorf("compressed it is not the same: %v", err)
	}
	if r := get(t, "GET", "/assets/vendor/fonts/KaTeX_Main-Regular.woff2", "Accept-Encoding", "gzip"); r.header.Get("Content-Encoding") != "" {
		t.Error("a font, which is compressed already, is compressed again")
	}
	again := get(t, "GET", "/", "If-None-Match", get(t, "GET", "/").header.Get("Etag"))
	if again.status != http.StatusNotModified || len(again.body) != 0 {
		t.Errorf("asked for again: %d", again.status)
	}
	if r := get(t, "GET", "/", "If-None-Match", `"other"`); r.status != http.StatusOK {
		t.Errorf("changed: %d", r.status)
	}
	if r := get(t, "HEAD", "/"); r.status != http.StatusOK || len(r.body) != 0 || r.header.Get("Content-Length") == "0" {
		t.Errorf("HEAD: %d, %v", r.status, r.header)
	}
}

var (
	addressRE = regexp.MustCompile(`(?i)(?:https?:|wss?:)?//[a-z0-9-]+(?:\.[a-z0-9-]+)+`)
	partRE    = regexp.MustCompile(`(?:from|import) '\./([a-z]+\.js)'|(?:href|src)="(assets/[^"]+)"|url\((fonts/[^)]+)\)`)
)

// Names of XML namespaces and addresses in comments and messages, of which nothing is fetched.
var names = map[string]bool{"http://www.w3.org": true, "https://github.com": true, "https://katex.org": true, "https://mths.be": true}

// Nothing that the page is made of leads elsewhere, and all that it names is there.
func TestSelfContained(t *testing.T) {
	files := 0
	err := fs.WalkDir(os.DirFS("static"), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		target := "/assets/" + name
		if name == "index.html" {
			target = "/"
		}
		r := get(t, "GET", target)
		text := r.body
		if r.status != http.StatusOK {
			t.Errorf("%s: %d", target, r.status)
		}
		switch path.Ext(name) {
		case ".woff2", ".txt":
			return nil
		}
		for _, address := range addressRE.FindAllString(string(text), -1) {
			if !names[address] {
				t.Errorf("%s names %s", name, address)
			}
		}
		if vendored := strings.HasPrefix(name, "vendor/"); !vendored && bytes.Contains(text, []byte("innerHTML")) {
			t.Errorf("%s makes markup out of text", name)
		}
		for _, m := range partRE.FindAllStringSubmatch(string(text), -1) {
			part := m[2]
			if m[1] != "" {
				part = "assets/js/" + m[1]
			} else if m[3] != "" {
				part = "assets/vendor/" + m[3]
			}
			if r := get(t, "GET", "/"+part); r.status != http.StatusOK {
				t.Errorf("%s wants %s: %d", name, part, r.status)
			}
		}
		return nil
	})
	if err != nil || files < 20 {
		t.Errorf("%d files: %v", files, err)
	}
}

// What the first view takes stays small; docs/page.md has the figures of all views.
func TestWeight(t *testing.T) {
	list := []string{"/", "/assets/app.css", "/assets/icon.svg"}
	scripts, err := fs.Glob(os.DirFS("static"), "js/*.js")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range scripts {
		list = append(list, "/assets/"+s)
	}
	raw, small := 0, 0
	for _, target := range list {
		raw += len(get(t, "GET", target).body)
		small += len(get(t, "GET", target, "Accept-Encoding", "gzip").body)
	}
	t.Logf("the first view: %d files, %d bytes, %d as sent", len(list), raw, small)
	if small > 40<<10 {
		t.Errorf("the first view takes %d bytes, more than 40 KiB", small)
	}
}
