package hub_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"anytime/internal/hub"
)

func TestNew(t *testing.T) {
	tests := []struct {
		name string
		cfg  hub.Config
		err  string
	}{
		{"default hub", hub.Config{Dir: "d"}, ""},
		{"token over https", hub.Config{Dir: "d", BaseURL: "https://mirror.example", Token: "t"}, ""},
		{"token to loopback", hub.Config{Dir: "d", BaseURL: "http://127.0.0.1:80", Token: "t"}, ""},
		{"no folder", hub.Config{}, "no cache folder"},
		{"no scheme", hub.Config{Dir: "d", BaseURL: "mirror.example"}, "want https://host"},
		{"token in the clear", hub.Config{Dir: "d", BaseURL: "http://mirror.example", Token: "t"}, "unencrypted"},
		{"token with a newline", hub.Config{Dir: "d", Token: "t\n"}, "HF_TOKEN"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { check(t, second(hub.New(test.cfg)), test.err) })
	}
}

func second[T any](_ T, err error) error { return err }

// check wants an error with a text in it, or none where the text is empty.
func check(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("got error %v, want %q", err, want)
	}
}

func TestPath(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"m.gguf", "s-00001-of-00002.gguf", "s-00002-of-00002.gguf", "x-00001-of-00002.gguf"} {
		if err := os.WriteFile(filepath.Join(dir, name), gguf(8, 1), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct{ model, path, err string }{
		{"m.gguf", "m.gguf", ""},
		{"s-00001-of-00002.gguf", "s-00001-of-00002.gguf", ""},
		{"s-00002-of-00002.gguf", "s-00001-of-00002.gguf", ""},
		{"x-00001-of-00002.gguf", "", "split into 2 parts"},
		{"s-00003-of-00002.gguf", "", "no such file"},
		{"missing.gguf", "", "no such file"},
		{"", "", "folder"},
	}
	h := open(t, hub.Config{})
	for _, test := range tests {
		t.Run(test.model, func(t *testing.T) {
			path, err := h.Fetch(t.Context(), filepath.Join(dir, test.model))
			check(t, err, test.err)
			if test.err == "" && path != filepath.Join(dir, test.path) {
				t.Errorf("got %s", path)
			}
		})
	}
	check(t, second(h.Fetch(t.Context(), "owner/repo")), "write hf.co/owner/repo")
}

// Names that are no models are refused before anything is asked or written.
func TestRefused(t *testing.T) {
	r := newRepository(t, nil)
	dir := filepath.Join(t.TempDir(), "cache")
	h := open(t, hub.Config{Dir: dir, BaseURL: r.URL})
	for model, want := range map[string]string{
		"":                                         "want a path",
		"a\x00b":                                   "control character",
		"ftp://host/m.gguf":                        `scheme "ftp"`,
		"https:///m.gguf":                          "no host",
		"hf.co/owner":                              "want hf.co/owner/repo",
		"hf.co/../repo":                            "want hf.co/owner/repo",
		"hf:owner/..":                              "want hf.co/owner/repo",
		"hf:ow%2e%2e/repo":                         "want hf.co/owner/repo",
		"hf.co/owner/repo:":                        "nothing after the colon",
		"hf.co/owner/repo:../../etc/x.gguf":        "leaves the repository",
		"hf.co/owner/repo:/etc/x.gguf":             "leaves the repository",
		"hf.co/owner/repo:a\\..\\x.gguf":           "leaves the repository",
		"hf.co/owner/repo/main/x.gguf":             "not understood",
		"hf.co/owner/repo/resolve/../x.gguf":       "revision",
		r.URL + "/owner/repo/tree/refs%2Fx":        "not understood",
		"https://huggingface.co/owner":             "want hf.co/owner/repo",
		"http://h/m-00001-of-99999.gguf":           "no such part",
		"http://h/m-00003-of-00002.gguf":           "no such part",
		"https://hf.co/owner/repo/blob/x/%2e%2e/y": "leaves the repository",
	} {
		t.Run(model, func(t *testing.T) { check(t, second(h.Fetch(t.Context(), model)), want) })
	}
	if n := r.count("/"); n != 0 {
		t.Errorf("%d requests", n)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the cache folder was made")
	}
}

func TestRepository(t *testing.T) {
	body := func(name string) []byte { return gguf(5000, uint64(len(name))) }
	files := func(names ...string) map[string][]byte {
		m := map[string][]byte{"README.md": []byte("x"), "mmproj-F16.gguf": body("p")}
		for _, name := range names {
			m[name] = body(name)
		}
		return m
	}
	many := files("m-Q8_0.gguf", "m-Q4_K_S.gguf", "m.Q4_K_M.gguf", "m-F16.gguf",
		"big/m-BF16-00001-of-00002.gguf", "big/m-BF16-00002-of-00002.gguf")
	tests := []struct {
		model string // after hf.co/owner/repo
		files map[string][]byte
		want  []string
		err   string
	}{
		{"", many, []string{"m.Q4_K_M.gguf"}, ""},
		{":q8_0", many, []string{"m-Q8_0.gguf"}, ""},
		{":m-F16.gguf", many, []string{"m-F16.gguf"}, ""},
		{"/resolve/main/m-F16.gguf", many, []string{"m-F16.gguf"}, ""},
		{"/tree/main", many, []string{"m.Q4_K_M.gguf"}, ""},
		{":BF16", many, []string{"big/m-BF16-00001-of-00002.gguf", "big/m-BF16-00002-of-00002.gguf"}, ""},
		{":big/m-BF16-00002-of-00002.gguf", many, []string{"big/m-BF16-00001-of-00002.gguf", "big/m-BF16-00002-of-00002.gguf"}, ""},
		{":Q4_K", many, nil, `no file fits "Q4_K"; owner/repo has `},
		{":Q5_0", many, nil, "m-Q8_0.gguf"}, // lists what there is
		{"", files("m-Q8_0.gguf", "m-Q5_0.gguf"), []string{"m-Q8_0.gguf"}, ""},
		{"", files("weights.gguf"), []string{"weights.gguf"}, ""},
		{"", files("a.gguf", "b.gguf"), nil, "say which quantization or file"},
		{"", files("a-Q8_0.gguf", "b-Q8_0.gguf"), nil, `2 files fit "Q8_0": name one`},
		{"", files("m-Q8_0-00001-of-00002.gguf"), nil, "lacks m-Q8_0-00002-of-00002.gguf"},
		{"", files("m.safetensors"), nil, "has no GGUF file"},
		{"", files("../../m.gguf", "/m.gguf", "a\\m.gguf"), nil, "has no GGUF file"},
		{"", files("m one-Q8_0.gguf"), []string{"m one-Q8_0.gguf"}, ""},
	}
	for _, test := range tests {
		t.Run(test.model+strings.Join(test.want, " "), func(t *testing.T) {
			r := newRepository(t, test.files)
			dir := t.TempDir()
			h := open(t, hub.Config{Dir: dir, BaseURL: r.URL})
			path, err := h.Fetch(t.Context(), "hf.co/owner/repo"+test.model)
			check(t, err, test.err)
			if test.err != "" {
				if left := leftovers(t, dir); len(left) != 0 {
					t.Errorf("the cache has %q", left)
				}
				return
			}
			root, ok := strings.CutSuffix(path, filepath.FromSlash(test.want[0]))
			if !ok {
				t.Fatalf("got %s, want it to end in %s", path, test.want[0])
			}
			for _, name := range test.want {
				if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || !bytes.Equal(got, test.files[name]) {
					t.Errorf("%s differs from the hub's (%v)", name, err)
				}
			}
			if n := r.count("/resolve/"); n != len(test.want) {
				t.Errorf("%d files were asked for, want %d", n, len(test.want))
			}
			// What is in the cache needs no hub, by any of its names.
			r.Close()
			for _, model := range []string{"hf:owner/repo", r.URL + "/owner/repo", "hf.co/owner/repo"} {
				if again, err := h.Fetch(t.Context(), model+test.model); err != nil || again != path {
					t.Errorf("offline, %s%s is %s (%v), want %s", model, test.model, again, err, path)
				}
			}
		})
	}
}

func TestRepositoryChecksContent(t *testing.T) {
	for _, linked := range []bool{false, true} {
		r := newRepository(t, map[string][]byte{"m.gguf": gguf(5000, 1)})
		r.linked = linked
		r.sums = map[string]string{"m.gguf": sum(gguf(5000, 2))}
		dir := t.TempDir()
		_, err := open(t, hub.Config{Dir: dir, BaseURL: r.URL}).Fetch(t.Context(), "hf.co/owner/repo")
		check(t, err, "the source announces "+sum(gguf(5000, 2)))
		if left := leftovers(t, dir); len(left) != 0 {
			t.Errorf("the cache has %q", left)
		}
	}
	r := newRepository(t, map[string][]byte{"m.gguf": gguf(5000, 1)})
	r.sizes = map[string]int64{"m.gguf": 4000}
	check(t, second(open(t, hub.Config{BaseURL: r.URL}).Fetch(t.Context(), "hf.co/owner/repo")), "has 5000 bytes, but the hub lists 4000")
}

func TestDenied(t *testing.T) {
	tests := []struct {
		name, token, code string
		status            int
		err               string
	}{
		{"gated", "", "GatedRepo", 401, "accept its licence at"},
		{"gated, and no access", "t", "GatedRepo", 403, "the account of HF_TOKEN may not read it"},
		{"unknown or private", "", "RepoNotFound", 401, "set HF_TOKEN"},
		{"unknown", "t", "RepoNotFound", 404, "check the name"},
		{"bad token", "t", "", 401, "does not accept the token"},
		{"anonymous", "", "", 401, "set HF_TOKEN"},
		{"revision", "", "RevisionNotFound", 404, "no such revision"},
		{"missing", "", "", 404, "there is no owner/repo"},
	}
	for _, test := range tests {
		for _, at := range []string{"/api/", "/resolve/"} {
			t.Run(test.name+at, func(t *testing.T) {
				r := newRepository(t, map[string][]byte{"m.gguf": gguf(100, 1)})
				r.deny = func(w http.ResponseWriter, req *http.Request) bool {
					if !strings.Contains(req.URL.Path, at) {
						return false
					}
					if test.code != "" {
						w.Header().Set("X-Error-Code", test.code)
					}
					w.WriteHeader(test.status)
					return true
				}
				_, err := open(t, hub.Config{BaseURL: r.URL, Token: test.token}).Fetch(t.Context(), "hf.co/owner/repo")
				check(t, err, test.err)
				if n := r.count(at); n != 1 {
					t.Errorf("asked %d times, want once", n)
				}
			})
		}
	}
}

// The token goes to the hub and to nobody else: not to the store it redirects to, not to other addresses.
func TestToken(t *testing.T) {
	body := gguf(5000, 1)
	store := newSource(t, answer{body: body})
	r := newRepository(t, map[string][]byte{"m.gguf": body})
	r.store, r.linked = store.URL, true
	h := open(t, hub.Config{BaseURL: r.URL, Token: "secret"})
	if _, err := h.Fetch(t.Context(), "hf.co/owner/repo"); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Fetch(t.Context(), store.URL+"/other.gguf"); err != nil {
		t.Fatal(err)
	}
	for _, req := range r.seen {
		if got := req.Header.Get("Authorization"); got != "Bearer secret" {
			t.Errorf("the hub got %q for %s", got, req.URL)
		}
	}
	if len(store.requests()) != 2 {
		t.Fatalf("the store was asked %d times, want 2", len(store.requests()))
	}
	for _, req := range store.requests() {
		if got, ok := req.Header["Authorization"]; ok {
			t.Errorf("another host got %q", got)
		}
	}
}

func TestRedirects(t *testing.T) {
	body := gguf(5000, 1)
	plain := newSource(t, answer{body: body})
	tests := []struct{ name, to, err string }{
		{"https to http", plain.URL + "/m.gguf", "redirect refused: from https to http"},
		{"in circles", "", "redirect refused: more than 10"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			asked := 0
			secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked++
				to := test.to
				if to == "" {
					to = r.URL.Path
				}
				http.Redirect(w, r, to, http.StatusFound)
			}))
			defer secure.Close()
			pool := x509.NewCertPool()
			pool.AddCert(secure.Certificate())
			h := open(t, hub.Config{})
			h.Trust(&tls.Config{RootCAs: pool})
			_, err := h.Fetch(t.Context(), secure.URL+"/m.gguf")
			check(t, err, test.err)
			if asked > 10 {
				t.Errorf("asked %d times", asked)
			}
		})
	}
	if n := len(plain.requests()); n != 0 {
		t.Errorf("the unencrypted server was asked %d times", n)
	}
}

func TestSplitURL(t *testing.T) {
	s := newSource(t, answer{body: gguf(5000, 1)})
	h := open(t, hub.Config{})
	path, err := h.Fetch(t.Context(), s.URL+"/m-00002-of-00003.gguf")
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"} {
		if i == 0 && filepath.Base(path) != want {
			t.Errorf("got %s", path)
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(path), want)); err != nil {
			t.Error(err)
		}
		if got := s.requests()[i].URL.Path; got != "/"+want {
			t.Errorf("request %d is for %s", i, got)
		}
	}
	if again, err := h.Fetch(t.Context(), s.URL+"/m-00001-of-00003.gguf"); err != nil || again != path || len(s.requests()) != 3 {
		t.Errorf("by its first part: %s (%v) after %d requests", again, err, len(s.requests()))
	}
}
