package hub

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// listing is the hub's answer about a repository at a revision, as much of it as is used and kept.
type listing struct {
	Commit string `json:"sha"`
	Files  []file `json:"siblings"`
}

type file struct {
	Name string `json:"rfilename"` // with slashes
	Size *int64 `json:"size"`
	LFS  *struct {
		SHA256 string `json:"sha256"`
		OID    string `json:"oid"` // the same, as other calls of the API name it
	} `json:"lfs"`
}

func (f file) sha256() string {
	if f.LFS == nil {
		return ""
	}
	if s := hexSHA256(f.LFS.SHA256); s != "" {
		return s
	}
	return hexSHA256(strings.TrimPrefix(f.LFS.OID, "sha256:"))
}

func (f file) size() int64 {
	if f.Size == nil {
		return -1
	}
	return *f.Size
}

const maxListing = 32 << 20 // bytes

func (h *Hub) fetchRepo(ctx context.Context, r ref) (string, error) {
	dir := filepath.Join(h.dir, "hub", hostDir(h.base), r.owner, r.repo)
	kept := filepath.Join(dir, r.rev+".json")
	if data, err := os.ReadFile(kept); err == nil {
		if jobs, err := h.jobs(data, r, dir); err == nil && present(jobs) {
			return jobs[0].path, nil
		}
	}
	data, err := h.list(ctx, r)
	if err != nil {
		return "", err
	}
	jobs, err := h.jobs(data, r, dir)
	if err != nil {
		return "", err
	}
	if err := writeFile(kept, data); err != nil {
		return "", err
	}
	return h.downloadAll(ctx, jobs)
}

// list returns the JSON of the repository's listing.
func (h *Hub) list(ctx context.Context, r ref) (data []byte, err error) {
	u := h.base.JoinPath("api", "models", r.owner, r.repo, "revision", r.rev)
	u.RawQuery = "blobs=true"
	err = h.retry(ctx, Progress{File: r.owner + "/" + r.repo, Total: -1}, func() (bool, error) {
		ctx, alive, stop := h.watch(ctx)
		defer stop()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err != nil {
			return false, err
		}
		resp, err := h.client.Do(req)
		if err != nil {
			return false, requestError(ctx, err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return false, h.statusError(resp, r.owner+"/"+r.repo)
		}
		alive()
		data, err = io.ReadAll(io.LimitReader(resp.Body, maxListing+1))
		if err != nil {
			return false, requestError(ctx, err)
		}
		if len(data) > maxListing {
			return false, fmt.Errorf("the hub's listing of %s/%s is over %d MB", r.owner, r.repo, maxListing>>20)
		}
		return false, nil
	})
	return data, err
}

// jobs chooses from a listing what r asks for and says where each file comes from and goes.
func (h *Hub) jobs(data []byte, r ref, dir string) ([]job, error) {
	var l listing
	if err := json.Unmarshal(data, &l); err != nil {
		return nil, fmt.Errorf("the hub's listing of %s/%s is not understood: %w", r.owner, r.repo, err)
	}
	if l.Commit == "" {
		l.Commit = r.rev
	}
	if !validName(l.Commit) {
		return nil, fmt.Errorf("the hub's listing of %s/%s names an impossible commit %q", r.owner, r.repo, l.Commit)
	}
	files, err := l.choose(r)
	if err != nil {
		return nil, err
	}
	jobs := make([]job, len(files))
	for i, f := range files {
		jobs[i] = job{
			url:  h.base.JoinPath(append([]string{r.owner, r.repo, "resolve", l.Commit}, escaped(f.Name)...)...),
			path: filepath.Join(dir, l.Commit, filepath.FromSlash(f.Name)),
			size: f.size(), sha256: f.sha256(), repo: r.owner + "/" + r.repo,
		}
	}
	return jobs, nil
}

// escaped returns the elements of a file's name as JoinPath wants them.
func escaped(name string) []string {
	seg := strings.Split(name, "/")
	for i := range seg {
		seg[i] = url.PathEscape(seg[i])
	}
	return seg
}

// preference is the order in which a quantization is chosen where the user names none: small enough for most machines and
// still close to the original first, the original weights last.
var preference = []string{
	"Q4_K_M", "Q8_0", "Q4_K_S", "Q4_0", "Q4_1", "Q5_K_M", "Q5_K_S", "Q6_K", "MXFP4", "IQ4_NL", "IQ4_XS", "Q3_K_M",
	"BF16", "F16", "F32",
}

// choose returns the files of the one model in the listing that r.pick names, or that preference does: all parts in order.
func (l listing) choose(r ref) ([]file, error) {
	byName := make(map[string]file, len(l.Files))
	var models []string // whole files and first parts
	for _, f := range l.Files {
		base := strings.ToLower(path.Base(f.Name))
		// A projector for pictures and an importance matrix are GGUF files, but no models.
		if !strings.HasSuffix(base, ".gguf") || strings.Contains(base, "mmproj") || strings.Contains(base, "imatrix") {
			continue
		}
		if checkFile(f.Name) != nil {
			continue
		}
		byName[f.Name] = f
		if parts, err := splitParts(f.Name); err == nil && parts[0] == f.Name {
			models = append(models, f.Name)
		}
	}
	if len(models) == 0 {
		return nil, fmt.Errorf("%s/%s has no GGUF file: look for a repository of the same model with GGUF in its name", r.owner, r.repo)
	}
	found, err := match(models, r.pick)
	if err != nil {
		return nil, fmt.Errorf("%w; %s/%s has %s", err, r.owner, r.repo, enumerate(models))
	}
	parts, err := splitParts(found)
	if err != nil {
		return nil, err
	}
	files := make([]file, len(parts))
	for i, part := range parts {
		f, ok := byName[part]
		if !ok {
			return nil, fmt.Errorf("%s/%s lacks %s, one of the model's %d parts", r.owner, r.repo, part, len(parts))
		}
		files[i] = f
	}
	return files, nil
}

func match(models []string, pick string) (string, error) {
	if strings.HasSuffix(strings.ToLower(pick), ".gguf") {
		// Any part of a split model stands for all of it.
		parts, err := splitParts(pick)
		if err != nil {
			return "", err
		}
		return one(models, pick, func(name string) bool { return name == parts[0] || path.Base(name) == parts[0] })
	}
	if pick != "" {
		return one(models, pick, func(name string) bool { return hasQuant(name, pick) })
	}
	if len(models) == 1 {
		return models[0], nil
	}
	for _, quant := range preference {
		is := func(name string) bool { return hasQuant(name, quant) }
		for _, name := range models {
			if is(name) {
				return one(models, quant, is)
			}
		}
	}
	return "", fmt.Errorf("say which quantization or file, as in hf.co/owner/repo:Q4_K_M")
}

// one returns the only name that satisfies is, or the only one that does by its whole path.
func one(models []string, pick string, is func(name string) bool) (string, error) {
	var found []string
	for _, name := range models {
		if name == pick {
			return name, nil
		}
		if is(name) {
			found = append(found, name)
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("no file fits %q", pick)
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("%d files fit %q: name one", len(found), pick)
}

// hasQuant says whether quant stands in the name as a word, so that Q4_K does not fit Q4_K_M.
func hasQuant(name, quant string) bool {
	re := regexp.MustCompile(`(?i)(^|[-./])` + regexp.QuoteMeta(quant) + `([-./]|$)`)
	return re.MatchString(name)
}

func enumerate(names []string) string {
	const most = 40
	more := ""
	if len(names) > most {
		more = fmt.Sprintf(" and %d more", len(names)-most)
		names = names[:most]
	}
	return strings.Join(names, ", ") + more
}

func (h *Hub) fetchURL(ctx context.Context, u *url.URL) (string, error) {
	name := path.Base(u.Path)
	if !strings.HasSuffix(strings.ToLower(name), ".gguf") || checkFile(name) != nil {
		name = "model.gguf" // the address does not say
	}
	parts, err := splitParts(name)
	if err != nil {
		return "", err
	}
	// The hash keeps files of one name apart. The parts of a split model share it, as llama.cpp looks for them in one folder.
	folder := *u
	folder.Path, folder.RawPath = path.Join(path.Dir(u.Path), parts[0]), ""
	sum := sha256.Sum256([]byte(folder.String()))
	if len(parts) == 1 {
		sum = sha256.Sum256([]byte(u.String()))
	}
	dir := filepath.Join(h.dir, "url", hostDir(u), hex.EncodeToString(sum[:8]))
	jobs := make([]job, len(parts))
	for i, part := range parts {
		from := *u
		if len(parts) > 1 {
			from.Path, from.RawPath = path.Join(path.Dir(u.Path), part), ""
		}
		jobs[i] = job{url: &from, path: filepath.Join(dir, part), size: -1}
	}
	return h.downloadAll(ctx, jobs)
}

// hostDir names a folder for a host, whose port's colon not every file system takes.
func hostDir(u *url.URL) string {
	return strings.NewReplacer(":", "_", "[", "", "]", "").Replace(strings.ToLower(u.Host))
}
