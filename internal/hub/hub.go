// Package hub turns what a user calls a model into a GGUF file on this machine.
//
// A model is a path, an http(s) address, or a repository of a Hugging Face hub: hf.co/owner/repo, with an optional
// :quantization or :file. Fetch looks into the cache folder first and asks nobody when the model is there whole; else it
// lists the repository, chooses a file and downloads it, all parts of a split one.
//
// A download grows in NAME.part, which its process holds locked, so that two processes never fetch the same file at once.
// Beside it a sidecar keeps what the server called that content (its ETag); after a break, also of the process, the rest is
// asked for by Range and If-Range, and content that has changed meanwhile is begun anew. Only a file of the right size, with
// the right SHA-256 where the source gives one, and with a GGUF's magic number is synced and renamed to NAME: under its final
// name a file is whole or absent.
//
// The token goes to the hub's own scheme, host and port and nowhere else, whatever redirects say; a redirect from https to
// http is refused.
//
// The cache holds DIR/hub/HOST/OWNER/REPO/COMMIT/FILE for hubs, so that the parts of a split model are of one commit, and
// DIR/url/HOST/HASH/FILE for other addresses.
package hub

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// DefaultBaseURL is the public Hugging Face hub.
const DefaultBaseURL = "https://huggingface.co"

// Config says where models come from and where they are kept.
type Config struct {
	Dir      string         // cache folder, made when it is needed
	BaseURL  string         // the hub; empty: DefaultBaseURL
	Token    string         // bearer token for the hub (HF_TOKEN), may be empty; needs https or a loopback host
	Progress func(Progress) // told of downloads, by one goroutine per Fetch; may be nil
}

// Progress is the state of one file's download.
type Progress struct {
	File  string // base name
	Done  int64  // bytes on disk
	Total int64  // bytes; -1: the source does not say
	Note  string // what holds the download up, when something does
}

// Hub fetches models. Its methods may be called concurrently, also by several processes with one cache folder.
type Hub struct {
	dir      string
	base     *url.URL
	token    string
	progress func(Progress)
	client   *http.Client

	backoff time.Duration // wait after the first failed try; doubles with each further one
	stall   time.Duration // a connection that is silent for this long is given up
}

// New checks cfg and returns a Hub. It makes no request.
func New(cfg Config) (*Hub, error) {
	if cfg.Dir == "" {
		return nil, errors.New("hub: no cache folder given")
	}
	if cfg.BaseURL == "" {
		cfg.BaseURL = DefaultBaseURL
	}
	base, err := url.Parse(strings.TrimRight(cfg.BaseURL, "/"))
	if err != nil || base.Host == "" || (base.Scheme != "https" && base.Scheme != "http") {
		return nil, fmt.Errorf("hub: base URL %q: want https://host", cfg.BaseURL)
	}
	if cfg.Token != "" && base.Scheme == "http" && !loopback(base.Hostname()) {
		return nil, fmt.Errorf("hub: base URL %s would get the token unencrypted: use https", base)
	}
	if strings.ContainsFunc(cfg.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("hub: the token has a space or a non-ASCII character in it: check HF_TOKEN")
	}
	if cfg.Progress == nil {
		cfg.Progress = func(Progress) {}
	}
	h := &Hub{
		dir: cfg.Dir, base: base, token: cfg.Token, progress: cfg.Progress,
		backoff: 500 * time.Millisecond, stall: time.Minute,
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableCompression = true // sizes and ranges count the file's own bytes
	h.client = &http.Client{Transport: &authorizer{hub: h, next: transport}, CheckRedirect: checkRedirect}
	return h, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Fetch returns the path of the GGUF file that model names, downloading it where it is not in the cache. Of a split model
// it is the first part; the others lie beside it.
func (h *Hub) Fetch(ctx context.Context, model string) (string, error) {
	ref, err := h.parse(model)
	if err != nil {
		return "", fmt.Errorf("model %q: %w", model, err)
	}
	var path string
	switch {
	case ref.path != "":
		path, err = local(ref.path)
	case ref.url != nil:
		model = show(ref.url)
		path, err = h.fetchURL(ctx, ref.url)
	default:
		path, err = h.fetchRepo(ctx, ref)
	}
	if err != nil {
		return "", fmt.Errorf("model %q: %w", model, err)
	}
	return path, nil
}

// local checks that a path leads to a file and, where its name is a part's, that all parts are there.
func local(path string) (string, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		hint := ""
		if owner, repo, ok := strings.Cut(path, "/"); ok && validName(owner) && validName(repo) {
			hint = fmt.Sprintf(" (for the hub's repository write hf.co/%s)", path)
		}
		return "", fmt.Errorf("no such file%s", hint)
	case err != nil:
		return "", err
	case info.IsDir():
		return "", errors.New("this is a folder: name the GGUF file in it")
	case !info.Mode().IsRegular():
		return "", errors.New("this is not a regular file")
	}
	parts, err := splitParts(filepath.Base(path))
	if err != nil {
		return "", err
	}
	for _, part := range parts {
		if _, err := os.Stat(filepath.Join(filepath.Dir(path), part)); err != nil {
			return "", fmt.Errorf("the model is split into %d parts: %w", len(parts), err)
		}
	}
	return filepath.Join(filepath.Dir(path), parts[0]), nil
}

// authorizer adds the token to requests to the hub itself. Because it looks at each request that goes out, no redirect can
// carry the token elsewhere.
type authorizer struct {
	hub  *Hub
	next http.RoundTripper
}

func (a *authorizer) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	if base := a.hub.base; a.hub.token != "" && req.URL.Scheme == base.Scheme && strings.EqualFold(req.URL.Host, base.Host) {
		req.Header.Set("Authorization", "Bearer "+a.hub.token)
	}
	return a.next.RoundTrip(req)
}

var errRedirect = errors.New("redirect refused")

func checkRedirect(req *http.Request, via []*http.Request) error {
	switch {
	case len(via) >= 10:
		return fmt.Errorf("%w: more than 10", errRedirect)
	case req.URL.Scheme != "https" && via[len(via)-1].URL.Scheme == "https":
		return fmt.Errorf("%w: from https to %s", errRedirect, req.URL.Scheme)
	}
	// The hub announces a file's SHA-256 where it redirects to its store.
	if sum, ok := req.Context().Value(linkedSum{}).(*string); ok && *sum == "" && req.Response != nil {
		*sum = linkedSHA256(req.Response.Header)
	}
	return nil
}

// linkedSum is the context key of the *string that takes the SHA-256 which a redirecting hub announces.
type linkedSum struct{}

// show returns an address for messages, without what may be secret in it: user, password, and a query that may be signed.
func show(u *url.URL) string {
	shown := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	return shown.String()
}
