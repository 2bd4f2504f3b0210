package ollama

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/ollama/ollama/api"
)

// Config is where the server is and how the model is used. Only Model must be set.
type Config struct {
	URL   string // of the server; default http://127.0.0.1:11434
	Model string // as Ollama names it, such as qwen3:8b
	// ContextTokens is num_ctx, the longest sequence; default what the model's Modelfile says, else the model's own, at most 8192.
	ContextTokens int
	// KeepAlive is how long Ollama keeps the model loaded when it is not used; 0 as Ollama is set up, negative for ever.
	KeepAlive time.Duration
	// Options are further options of Ollama's that are set when the model is loaded: num_gpu, num_thread, num_batch, main_gpu, use_mmap.
	Options map[string]any
	// Parallel is how many requests for the model Ollama decodes at once, its OLLAMA_NUM_PARALLEL; 0 finds out by trying.
	Parallel int
	Pull     bool           // pull the model if it is missing
	Progress func(Progress) // of the pull; may be nil
	Patience time.Duration  // how long the server may be away before runs fail; default one minute
	Log      *slog.Logger   // default none
}

// Progress is how far a pull or the making of a model has come.
type Progress struct {
	Status           string // what is being done
	Completed, Total int64  // bytes; 0 where there is nothing to count
}

// runnerOptions are what Config.Options may set. The others are set for each request, or are others of Config's fields.
var runnerOptions = []string{"num_gpu", "num_thread", "num_batch", "main_gpu", "use_mmap"}

// parseURL reads an address as Ollama's own OLLAMA_HOST may be written: a URL, or host and port.
func parseURL(address string) (*url.URL, error) {
	address = cmp.Or(address, "http://127.0.0.1:11434")
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("ollama's address is %q; it must be a URL such as http://127.0.0.1:11434", address)
	}
	if u.Port() == "" && u.Scheme == "http" {
		u.Host += ":11434"
	}
	return u, nil
}

func report(f func(Progress)) func(api.ProgressResponse) error {
	return func(p api.ProgressResponse) error {
		if f != nil {
			f(Progress{p.Status, p.Completed, p.Total})
		}
		return nil
	}
}
