package ollama

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/ollama/ollama/api"

	"anytime/internal/decode"
	"anytime/internal/gguf"
)

// lora is an adapter: a model of Ollama's that was made of it.
type lora struct {
	model string
	users int
	named bool // false: replaced or unloaded, and deleted when the last user is gone
}

// namespace is the prefix of the names of models made of adapters of this base.
func (s *server) namespace() string {
	base, _, _ := strings.Cut(strings.ReplaceAll(s.config.Model, "/", "_"), "@")
	return "anytime/" + strings.ReplaceAll(base, ":", ".") + "--"
}

// created finds the adapters that were made in earlier lives.
func (s *server) created(ctx context.Context) (map[string]*lora, error) {
	list, err := s.client.api.List(ctx)
	if err != nil {
		return nil, s.client.explain(s.config.Model, err)
	}
	adapters := map[string]*lora{}
	for _, m := range list.Models { // the newest first
		rest, ours := strings.CutPrefix(m.Name, s.namespace())
		name, _, _ := strings.Cut(rest, ":")
		if ours && adapters[name] == nil {
			adapters[name] = &lora{model: m.Name, named: true}
		}
	}
	return adapters, nil
}

// acquire is remote.Config.Acquire.
func (e *Engine) acquire(name string) (string, func(), error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	a := e.adapters[name]
	if a == nil {
		return "", nil, fmt.Errorf("%w: %q", decode.ErrUnknownAdapter, name)
	}
	a.users++
	return a.model, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		a.users--
		e.drop(a)
	}, nil
}

// drop deletes an adapter's model when it has neither name nor users. The caller holds mu.
func (e *Engine) drop(a *lora) {
	if a.named || a.users > 0 {
		return
	}
	e.deleting.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := e.server.client.api.Delete(ctx, &api.DeleteRequest{Model: a.model}); err != nil {
			e.server.config.Log.Warn("Ollama did not delete the model of an adapter", "model", a.model, "error", err)
		}
	})
}

var adapterName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// LoadAdapter implements decode.Adapters.
func (e *Engine) LoadAdapter(ctx context.Context, name, path string, scale float32) error {
	if !adapterName.MatchString(name) {
		return refuse("adapter", "has the name %q; it must be of 1 to 64 letters, digits, '.', '_' and '-', the first a letter or digit", name)
	}
	file, err := openAdapter(path, scale, e.Info().Architecture)
	if err != nil {
		return err
	}
	defer file.Close()
	model := e.server.namespace() + name + ":" + file.digest[:12]
	if err := e.server.client.create(ctx, model, e.server.config.Model, file, nil); err != nil {
		return fmt.Errorf("load adapter %q: %w", name, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if old := e.adapters[name]; old != nil {
		if old.model == model {
			return nil
		}
		old.named = false
		e.drop(old)
	}
	e.adapters[name] = &lora{model: model, named: true}
	return nil
}

// UnloadAdapter implements decode.Adapters.
func (e *Engine) UnloadAdapter(_ context.Context, name string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	a := e.adapters[name]
	if a == nil {
		return fmt.Errorf("%w: %q", decode.ErrUnknownAdapter, name)
	}
	delete(e.adapters, name)
	a.named = false
	e.drop(a)
	return nil
}

// AdapterNames implements decode.Adapters.
func (e *Engine) AdapterNames() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Sorted(maps.Keys(e.adapters))
}

// Create makes a model of Ollama's from a base that it has and a LoRA adapter in a GGUF file. scale 1 applies the adapter as
// trained. address is the server's, as Config.URL; progress may be nil.
func Create(ctx context.Context, address, model, base, path string, scale float32, progress func(Progress)) error {
	c, err := newClient(address)
	if err != nil {
		return err
	}
	defer c.close()
	shown, err := c.api.Show(ctx, &api.ShowRequest{Model: base})
	if err != nil {
		return c.explain(base, err)
	}
	architecture, _ := shown.ModelInfo["general.architecture"].(string)
	file, err := openAdapter(path, scale, architecture)
	if err != nil {
		return err
	}
	defer file.Close()
	return c.create(ctx, model, base, file, progress)
}

// create uploads an adapter, unless it is there, and makes the model.
func (c *client) create(ctx context.Context, model, base string, file *adapterFile, progress func(Progress)) error {
	digest := "sha256:" + file.digest
	_ = report(progress)(api.ProgressResponse{Status: "uploading the adapter", Total: file.size})
	if err := c.api.CreateBlob(ctx, digest, file.reader()); err != nil {
		return c.explain(base, err)
	}
	err := c.api.Create(ctx, &api.CreateRequest{Model: model, From: base, Adapters: map[string]string{"adapter.gguf": digest}}, report(progress))
	if err != nil {
		return c.explain(base, err)
	}
	return nil
}

// adapterFile is a LoRA's GGUF file as it is uploaded.
type adapterFile struct {
	*os.File
	header []byte // all before the tensors' data
	size   int64
	digest string // SHA-256, hexadecimal
}

func (f *adapterFile) reader() io.Reader {
	n := int64(len(f.header))
	return io.MultiReader(bytes.NewReader(f.header), io.NewSectionReader(f, n, f.size-n))
}

// openAdapter opens and checks a file. Ollama applies adapters as they are, so a scale is written into the file's alpha.
func openAdapter(path string, scale float32, architecture string) (_ *adapterFile, err error) {
	if !(scale > 0 && scale <= 100) {
		return nil, refuse("scale", "is %v; it must be above 0, where 1 applies the adapter as trained, and at most 100", scale)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	f := &adapterFile{File: file}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	stat, err := f.Stat()
	if err != nil {
		return nil, err
	}
	f.size = stat.Size()
	header, err := gguf.ReadHeader(io.NewSectionReader(f, 0, f.size), f.size)
	if err != nil {
		return nil, refuse("adapter", "is not usable: %v", err)
	}
	if kind, _ := header.String("adapter.type"); kind != "lora" {
		return nil, refuse("adapter", "has the adapter.type %q; it must be \"lora\"", kind)
	}
	if a := header.Architecture(); architecture != "" && a != architecture {
		return nil, refuse("adapter", "is for models of architecture %q; this one is %q", a, architecture)
	}
	f.header = make([]byte, header.DataOffset)
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, f.size), f.header); err != nil {
		return nil, err
	}
	if scale != 1 {
		if err := scaleAlpha(f.header, scale); err != nil {
			return nil, err
		}
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, f.reader()); err != nil {
		return nil, err
	}
	f.digest = hex.EncodeToString(sum.Sum(nil))
	return f, nil
}

// scaleAlpha multiplies adapter.lora.alpha, by which the change of each matrix is multiplied, in a GGUF header.
func scaleAlpha(header []byte, scale float32) error {
	const key = "adapter.lora.alpha"
	const float32Type = 6
	record := append(binary.LittleEndian.AppendUint64(nil, uint64(len(key))), key...)
	record = binary.LittleEndian.AppendUint32(record, float32Type)
	i := bytes.Index(header, record)
	if i < 0 || i+len(record)+4 > len(header) {
		return refuse("scale", "is %v, but the adapter has no alpha that could be changed; it must be 1", scale)
	}
	at := header[i+len(record):]
	alpha := math.Float32frombits(binary.LittleEndian.Uint32(at))
	if alpha == 0 { // llama.cpp then does not divide by the rank
		return refuse("scale", "is %v, but the adapter's alpha is 0, which cannot be scaled; it must be 1", scale)
	}
	binary.LittleEndian.PutUint32(at, math.Float32bits(alpha*scale))
	return nil
}

func refuse(field, format string, args ...any) error {
	return &decode.InputError{Field: field, Reason: fmt.Sprintf(format, args...)}
}
