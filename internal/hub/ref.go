package hub

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// ref is a parsed model argument: a path, or a URL, or a repository.
type ref struct {
	path string

	url *url.URL

	owner, repo string
	rev         string // branch, tag or commit
	pick        string // quantization or file, may be empty
}

var hubHosts = []string{"hf.co", "huggingface.co"}

func (h *Hub) parse(model string) (ref, error) {
	if model == "" {
		return ref{}, errors.New("want a path, a URL or hf.co/owner/repo[:quantization or file]")
	}
	if strings.ContainsFunc(model, func(r rune) bool { return r < ' ' }) {
		return ref{}, errors.New("it has a control character in it")
	}
	if rest, ok := strings.CutPrefix(model, "hf:"); ok {
		return parseRepo(rest)
	}
	for _, host := range hubHosts {
		if rest, ok := strings.CutPrefix(model, host+"/"); ok {
			return parseRepo(rest)
		}
	}
	scheme, _, ok := strings.Cut(model, "://")
	if !ok {
		return ref{path: model}, nil
	}
	if scheme != "http" && scheme != "https" {
		return ref{}, fmt.Errorf("scheme %q is not known: want http or https", scheme)
	}
	u, err := url.Parse(model)
	if err != nil {
		return ref{}, fmt.Errorf("not a URL: %w", errors.Unwrap(err))
	}
	if u.Host == "" {
		return ref{}, errors.New("the URL has no host")
	}
	host := strings.ToLower(u.Host)
	if host == hubHosts[0] || host == hubHosts[1] || host == strings.ToLower(h.base.Host) {
		return parseRepo(strings.TrimPrefix(u.Path, "/"))
	}
	u.Fragment = ""
	return ref{url: u}, nil
}

// parseRepo parses owner/repo[:pick], or the path of a repository's or a file's page on the hub.
func parseRepo(s string) (ref, error) {
	s, pick, picked := strings.Cut(strings.TrimSuffix(s, "/"), ":")
	if picked && pick == "" {
		return ref{}, errors.New("nothing after the colon: want a quantization such as Q4_K_M, or a file of the repository")
	}
	seg := strings.Split(s, "/")
	if len(seg) < 2 || !validName(seg[0]) || !validName(seg[1]) {
		return ref{}, errors.New("want hf.co/owner/repo[:quantization or file], of letters, digits, '-', '_' and '.'")
	}
	r := ref{owner: seg[0], repo: seg[1], rev: "main", pick: pick}
	switch rest := seg[2:]; {
	case len(rest) == 0:
	case len(rest) == 2 && rest[0] == "tree":
		r.rev = rest[1]
	case len(rest) > 2 && (rest[0] == "resolve" || rest[0] == "blob") && !picked:
		r.rev, r.pick = rest[1], strings.Join(rest[2:], "/")
	default:
		return ref{}, fmt.Errorf("%q after the repository is not understood: want :quantization or :file", strings.Join(rest, "/"))
	}
	if !validName(r.rev) {
		return ref{}, fmt.Errorf("revision %q: want letters, digits, '-', '_' and '.'", r.rev)
	}
	if r.pick != "" {
		if err := checkFile(r.pick); err != nil {
			return ref{}, err
		}
	}
	return r, nil
}

var nameRE = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)

// validName says whether s can be an owner, a repository, a revision or a commit, and so one element of a path.
func validName(s string) bool { return nameRE.MatchString(s) && !strings.Contains(s, "..") }

// checkFile refuses a name that could leave the folder which it is put in.
func checkFile(name string) error {
	if name != path.Clean(name) || !filepath.IsLocal(filepath.FromSlash(name)) ||
		strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == '\\' || r == ':' }) {
		return fmt.Errorf("file name %q leaves the repository or has a character that names may not have", name)
	}
	return nil
}

var splitRE = regexp.MustCompile(`(?i)^(.*)-(\d{5})-of-(\d{5})\.gguf$`)

// maxParts bounds what a split file's name can make us ask for.
const maxParts = 1000

// splitParts returns the names of all parts of a split model of which name is one; of another model, its own name.
func splitParts(name string) ([]string, error) {
	m := splitRE.FindStringSubmatch(name)
	if m == nil {
		return []string{name}, nil
	}
	i, _ := strconv.Atoi(m[2]) // five digits
	n, _ := strconv.Atoi(m[3])
	if i < 1 || i > n || n > maxParts {
		return nil, fmt.Errorf("%s: no such part (a model has at most %d, counted from 00001)", name, maxParts)
	}
	suffix := name[len(name)-len(".gguf"):]
	parts := make([]string, n)
	for k := range parts {
		parts[k] = fmt.Sprintf("%s-%05d-of-%05d%s", m[1], k+1, n, suffix)
	}
	return parts, nil
}
