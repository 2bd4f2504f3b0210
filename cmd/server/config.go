package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"anytime/internal/anytime"
	"anytime/internal/catalog"
	"anytime/internal/decode"
	"anytime/internal/decode/llamacpp"
	"anytime/internal/decode/prompt"
	"anytime/internal/elastic"
	"anytime/internal/server"
	"anytime/internal/store/redis"
)

// Config is the server's settings, and its tags are the manual. The yaml tag is a setting's name in the config file; its flag and its
// environment variable are made of it (settings.go). A flag tag gives the flag another name, "-" none: secrets do not belong on
// command lines, which everyone on the machine can read. A complete tag is what shells complete (completion.go).
type Config struct {
	Addr string `yaml:"addr" help:"Address to listen on, host:port. Without API keys only loopback addresses are served. Port 0 takes a free one."`
	Data string `yaml:"data" complete:"DIR" help:"Folder for what is kept: the store (runs.db) and fetched models (models)."`

	Models    []ModelConfig `yaml:"models" flag:"model" complete:"*.gguf" help:"Model to serve: a GGUF file, a URL, or hf.co/OWNER/REPO[:QUANTIZATION or :FILE]; or one on another server, ollama:NAME, ollama:NAME@URL or openai:MODEL@URL. Several may be given; the first is the default. What is not here yet is fetched before the server starts, so that no request waits for a download; models are loaded when they are first asked for, the default at once. In the file each is a mapping, see below."`
	Memory    Size          `yaml:"memory" help:"What loaded models may take together, by an estimate: weights and KV cache. Beyond it models that are not in use are closed. 0 is 80 % of the machine's (or container's) memory; with a GPU, give what it has."`
	HubURL    string        `yaml:"hub_url" help:"The hub that hf.co/… models come from."`
	HubToken  string        `yaml:"hub_token" flag:"-" help:"Token for models that the hub gives to you only. Empty: the environment's HF_TOKEN. It is sent to the hub and nowhere else."`
	EngineLib string        `yaml:"engine_lib" complete:"DIR" help:"Folder of the llama.cpp libraries; make engine fetches them."`

	EngineKey string `yaml:"engine_key" flag:"-" help:"API key that is sent to the servers of openai: models. A model of the file may name another (key_env)."`

	Adapters     string  `yaml:"adapters" complete:"DIR" help:"Folder that LoRA adapters are loaded from while the server runs, and kept in. Empty: adapters in the data folder."`
	MaxAdapter   Size    `yaml:"max_adapter" help:"Largest file of an adapter."`
	GateProblems string  `yaml:"gate_problems" complete:"*.jsonl" help:"File of problems, JSON lines of id, problem and answers, on which an adapter is measured before it becomes a default; some hundred make a sound judgement. Empty: adapters are measured only where a request brings problems."`
	GateBudgets  string  `yaml:"gate_budgets" help:"Thinking tokens at which it is measured, ascending, with commas."`
	GateMargin   float64 `yaml:"gate_margin" help:"By how much its accuracy may fall below the bare model's at any of these, 0 to 1; more refuses it. On 400 problems chance alone makes two equal models differ by up to 0.035 (one standard deviation)."`

	Context        int           `yaml:"ctx" help:"Longest sequence in tokens, prompt, thinking and answer together; at most what the model was trained for."`
	CacheTokens    int           `yaml:"cache_tokens" help:"KV cache in tokens, shared by all sequences of a model. 0 is 4 times ctx, at most 32768, at least ctx."`
	KVType         string        `yaml:"kv_type" complete:"f16 q8_0 f32" help:"Type of the KV cache: f16, q8_0 or f32."`
	FlashAttention string        `yaml:"flash_attention" complete:"auto on off" help:"auto, on or off. Off with kv_type f32 makes forks of F32 models exact to the bit."`
	Sequences      int           `yaml:"sequences" help:"Sequences of a model that decode at once, forks for answers included; more wait. 1 to 256."`
	BatchTokens    int           `yaml:"batch" help:"Most tokens in a decode step; at least sequences."`
	Threads        int           `yaml:"threads" help:"Threads that decode. 0 is all cores but one: a step waits for its slowest thread, and the server needs a core as well."`
	GPULayers      int           `yaml:"gpu_layers" help:"Layers to put on the GPU: -1 all that fit, 0 none."`
	Watchdog       time.Duration `yaml:"watchdog" help:"How long the engine process may be silent before it is replaced."`

	MaxThinking      int                `yaml:"max_thinking" help:"Thinking tokens that budget max stands for, and the cap of all other budgets. 0 is the model's context, at most 32768."`
	AnswerTokens     int                `yaml:"answer_tokens" help:"Cap of an answer in tokens where a request of /solve does not say."`
	ChatAnswerTokens int                `yaml:"chat_answer_tokens" help:"The same for /v1/chat/completions, /v1/completions and /v1/responses."`
	Efforts          map[string]float64 `yaml:"efforts" flag:"effort" help:"Share of max_thinking that a reasoning_effort stands for, 0 to 1, as LEVEL=SHARE. What is not named keeps its default."`
	Temperature      float64            `yaml:"temperature" help:"Sampling of requests that do not say: temperature, 0 to 5; 0 is greedy."`
	TopP             float64            `yaml:"top_p" help:"Likewise: the likeliest tokens that together have this probability, 0 to 1; 1 all."`
	TopK             int                `yaml:"top_k" help:"Likewise: the so many likeliest tokens; 0 all."`
	MinP             float64            `yaml:"min_p" help:"Likewise: tokens with at least this share of the likeliest one's probability, 0 to 1; 0 all."`

	MaxRuns int  `yaml:"max_runs" help:"Runs under way at once; more are refused with status 429."`
	MaxBody Size `yaml:"max_body" help:"Largest body of a request."`

	Elastic         string  `yaml:"elastic" complete:"open all off" help:"Which thoughts are shortened when there are so many that they slow one another down: open, those with budget max, an effort or a deadline; all, those whose length was given in tokens as well; off, none. What is cut short has the cause overload."`
	ElasticSlowdown float64 `yaml:"elastic_slowdown" help:"How many times as long as alone a thought may take before it is shortened, 1 to 1000. Where a model's accuracy over the budget is known (NAME.curve.json beside its weights), what is left is thought where it helps most, else all are shortened in proportion; keys are served fairly, weighted by priority."`
	ElasticFloor    int     `yaml:"elastic_floor" help:"Thinking tokens below which nobody is shortened; where not even these fit, requests are refused with status 429."`

	ClientTimeout time.Duration `yaml:"client_timeout" help:"How long a client may take to send its request's body (and, up to 10s, the headers), and to take each piece of a reply or event of a stream; one that is slower is cut off. Its run follows on_disconnect, and an event stream can be resumed."`

	Keys           []string `yaml:"keys" flag:"-" help:"API keys, each NAME:SECRET, with a secret of at least 8 characters, and behind it any of :admin (may also read metrics and manage adapters), :priority=N (1 to 10: what its thinking is worth beside others' when there is too little time for all; 5 is usual), :runs=N (at once), :requests=N/TIME and :thinking=N/TIME (tokens), as in alice:SECRET:runs=4:requests=60/1m:thinking=1000000/24h."`
	KeysFile       string   `yaml:"keys_file" complete:"FILE" help:"File of further API keys, one a line; lines that begin with # are comments."`
	AllowedHosts   []string `yaml:"allowed_hosts" flag:"allowed-host" help:"Host name that a server without keys answers to besides localhost, against DNS rebinding."`
	AllowedOrigins []string `yaml:"allowed_origins" flag:"allowed-origin" help:"Web page's origin, such as https://lab.example, that may send requests."`

	Store         string        `yaml:"store" complete:"sqlite memory redis://" help:"Where runs are kept: sqlite (a file in the data folder), sqlite:PATH, memory, which forgets them when the server ends, or a Redis that several servers share: redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE], redis+cluster://HOST,HOST… or redis+sentinel://HOST,HOST…/MASTER, and with rediss in place of redis by TLS. See docs/redis.md."`
	RedisPassword string        `yaml:"redis_password" flag:"-" help:"Password of the Redis in store, where its address has none."`
	RetentionAge  time.Duration `yaml:"retention_age" help:"How long ended runs are kept in sqlite and Redis. 0 for ever."`
	RetentionSize Size          `yaml:"retention_size" help:"Size of the store in sqlite or memory; beyond it the oldest ended runs are dropped. 0 no bound. Redis has its own maxmemory."`

	OTLPEndpoint string `yaml:"otlp_endpoint" help:"Collector of OpenTelemetry, such as http://127.0.0.1:4318: requests and runs are told to it as traces, by OTLP over HTTP, without their texts. Empty: the environment's OTEL_EXPORTER_OTLP_ENDPOINT; with neither nothing is traced. The other OTEL_ variables count, too."`

	Grace     time.Duration `yaml:"grace" help:"After SIGTERM or SIGINT: how long runs may take to answer and readers to take their replies. A second signal cuts it short."`
	LogLevel  string        `yaml:"log_level" complete:"debug info warn error" help:"debug, info, warn or error."`
	LogFormat string        `yaml:"log_format" complete:"text json" help:"text or json, on standard error."`
}

// ModelConfig is one of Config.Models. What it leaves out is as in Config.
type ModelConfig struct {
	Path        string            `yaml:"path" help:"What -model takes; where there is an engine it may be left out."`
	Engine      Engines           `yaml:"engine" help:"Server that decodes for the model, a mapping, see below; or a list of several. With path, all of them, the embedded engine too, serve the model together: each thought stays where its cache is, and goes on elsewhere when its engine dies."`
	ID          string            `yaml:"id" help:"Name in requests. Default: the file's name without .gguf and quantization; elsewhere the model's name there, with - for a colon."`
	Context     int               `yaml:"ctx" help:"As above, for this model."`
	GPULayers   *int              `yaml:"gpu_layers" help:"As above, for this model."`
	KVType      string            `yaml:"kv_type" help:"As above, for this model."`
	MaxThinking int               `yaml:"max_thinking" help:"As above, for this model."`
	Template    string            `yaml:"template" help:"File of a Jinja chat template. Default: the model's own."`
	Family      Family            `yaml:"family" help:"How the model thinks: a name (deepseek-r1, qwq, qwen3, qwen3.5, smollm3, harmony, magistral, gemma, think, plain), or a mapping of open, close, closing and, where needed, answer, skip, header, stops, stray. Default: found out."`
	Adapters    map[string]string `yaml:"adapters" help:"LoRA adapters, NAME: FILE, asked for as ID:NAME; with an openai engine files of its machine. A model of several engines has none."`
}

// defaults returns the settings before file, environment and flags.
func defaults() Config {
	return Config{
		Addr: "127.0.0.1:8080", Data: "~/.local/share/anytime",
		HubURL: "https://huggingface.co", EngineLib: "engine/lib",
		MaxAdapter: 1 << 30, GateBudgets: "64,128,256,512", GateMargin: 0.05,
		Context: 8192, KVType: "f16", FlashAttention: "auto", Sequences: 32, BatchTokens: 512, GPULayers: llamacpp.AllLayers, Watchdog: time.Minute,
		AnswerTokens: 128, ChatAnswerTokens: 2048, Efforts: server.DefaultEfforts(), Temperature: 0.6, TopP: 0.95,
		Elastic: elasticOpen, ElasticSlowdown: 1.5, ElasticFloor: 32,
		MaxRuns: 256, MaxBody: 4 << 20, ClientTimeout: 30 * time.Second,
		Store: "sqlite", RetentionAge: 30 * 24 * time.Hour, RetentionSize: 1 << 30,
		Grace: 30 * time.Second, LogLevel: "info", LogFormat: "text",
	}
}

// readFile lays the settings of a YAML file over c.
func (c *Config) readFile(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("config file: %w", err)
	}
	if err := c.decode(data); err != nil {
		return fmt.Errorf("config file %s: %w", path, err)
	}
	return nil
}

func (c *Config) decode(data []byte) error {
	err := strict(data, c)
	if wrong := new(yaml.TypeError); errors.As(err, &wrong) {
		return errors.New(strings.Join(wrong.Errors, "; "))
	}
	return err
}

// strict decodes one YAML document and refuses keys that it does not know.
func strict(data []byte, into any) error {
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	err := d.Decode(into)
	if errors.Is(err, io.EOF) {
		return nil // nothing but comments
	}
	if wrong := new(yaml.TypeError); errors.As(err, &wrong) {
		for i, e := range wrong.Errors {
			wrong.Errors[i] = unknownKey.ReplaceAllString(e, `"$1" is no setting; server -h lists them`)
		}
		return wrong
	}
	if err == nil && !errors.Is(d.Decode(new(yaml.Node)), io.EOF) {
		return errors.New("it has more than one document; put all settings into one")
	}
	return err
}

var unknownKey = regexp.MustCompile(`field (\S+) not found in type \S+`)

// Family is a model family by name, or defined in place. Its zero value is one that is to be found out.
type Family struct{ *prompt.Family }

// UnmarshalYAML implements yaml.Unmarshaler.
func (f *Family) UnmarshalYAML(node *yaml.Node) error {
	fail := func(err error) error {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: family: %v", node.Line, err)}}
	}
	if node.Kind == yaml.ScalarNode {
		family, err := prompt.Lookup(node.Value)
		if err != nil {
			return fail(err)
		}
		f.Family = &family
		return nil
	}
	data, err := yaml.Marshal(node) // a Node by itself cannot be decoded strictly
	if err != nil {
		return fail(err)
	}
	f.Family = new(prompt.Family)
	if err := strict(data, f.Family); err != nil {
		if wrong := new(yaml.TypeError); errors.As(err, &wrong) {
			err = errors.New(innerLine.ReplaceAllString(strings.Join(wrong.Errors, ", "), ""))
		}
		return fail(err)
	}
	if err := f.Validate(); err != nil {
		return fail(err)
	}
	return nil
}

// innerLine is a line number that counts from where the family begins.
var innerLine = regexp.MustCompile(`line \d+: `)

// Size is a number of bytes. Its text is a number, or one with the unit KiB, MiB, GiB or TiB.
type Size int64

var sizeRE = regexp.MustCompile(`^(\d+(?:\.\d+)?) ?(|[KMGT]iB|B)$`)

func parseSize(text string) (Size, error) {
	m := sizeRE.FindStringSubmatch(text)
	if m == nil {
		return 0, errors.New("must be a number of bytes, such as 1048576, 512MiB or 8GiB")
	}
	n, err := strconv.ParseFloat(m[1], 64)
	n *= float64(int64(1) << (10 * (strings.Index("BKMGT", m[2][:min(1, len(m[2]))]))))
	if err != nil || n >= 1<<60 {
		return 0, errors.New("must be less than 2^60 bytes")
	}
	return Size(n), nil
}

func (s Size) String() string {
	for i, unit := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if one := Size(1) << (40 - 10*i); s >= one && s%one == 0 {
			return fmt.Sprintf("%d%s", s/one, unit)
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (s *Size) UnmarshalYAML(node *yaml.Node) (err error) {
	if *s, err = parseSize(node.Value); err != nil {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: %q %v", node.Line, node.Value, err)}}
	}
	return nil
}

// ConfigError is a setting with a wrong value.
type ConfigError struct {
	Setting string // its name in the file
	Value   any    // nil: it is secret
	Want    string
}

func (e *ConfigError) Error() string {
	if e.Value == nil {
		return fmt.Sprintf("%s: %s", e.Setting, e.Want)
	}
	if text, ok := e.Value.(string); ok {
		return fmt.Sprintf("%s is %q: it %s", e.Setting, text, e.Want)
	}
	return fmt.Sprintf("%s is %v: it %s", e.Setting, e.Value, e.Want)
}

// Validate checks all settings, and returns all errors, each a *ConfigError.
func (c *Config) Validate() error {
	var errs []error
	check := func(ok bool, setting string, value any, want string) {
		if !ok {
			errs = append(errs, &ConfigError{setting, value, want})
		}
	}
	between := func(setting string, value, low, high int) {
		check(value >= low && value <= high, setting, value, fmt.Sprintf("must be from %d to %d", low, high))
	}
	share := func(setting string, value, high float64) {
		check(value >= 0 && value <= high, setting, value, fmt.Sprintf("must be from 0 to %v", high)) // NaN is in no range
	}
	oneOf := func(setting, value string, known ...string) {
		last := len(known) - 1
		check(slices.Contains(known, value), setting, value, "must be "+strings.Join(known[:last], ", ")+" or "+known[last])
	}
	atLeast := func(setting string, value, least time.Duration) {
		check(value >= least, setting, value, fmt.Sprintf("must be at least %v", least))
	}

	keys, err := c.keys()
	if err != nil {
		errs = append(errs, err)
	}
	host, port, err := net.SplitHostPort(c.Addr)
	if n, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil {
		check(false, "addr", c.Addr, "must be host:port, such as 127.0.0.1:8080")
	} else if ip := net.ParseIP(host); len(keys) == 0 && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		check(false, "addr", c.Addr, fmt.Sprintf("must be a loopback address, such as 127.0.0.1:%d, unless there are API keys (keys, keys_file)", n))
	}
	check(c.Data != "", "data", c.Data, "must name a folder")
	check(len(c.Models) > 0, "models", nil, "there is none: name one with -model, such as -model path/to/model.gguf or -model hf.co/OWNER/REPO")
	for i, m := range c.Models {
		field := func(name string) string { return fmt.Sprintf("models[%d].%s", i, name) }
		check(m.Path != "" || len(m.Engine) > 0, field("path"), m.Path, "must name a GGUF file, a URL or hf.co/OWNER/REPO, or there must be an engine")
		at, err := m.endpoints(c)
		check(err == nil, field("engine"), nil, fmt.Sprint(err))
		check(err != nil || len(at) == 0 || m.embedded() || m.ID != "" || at[0].ID() != "", field("id"), m.ID, "must be given where the engine does not name the model")
		check(len(m.Adapters) == 0 || m.embedded() && len(at) == 0 || len(at) == 1 && !m.embedded(), field("adapters"), nil, "a model of several engines has none")
		check(m.ID == "" || modelID.MatchString(m.ID) && m.ID != "default", field("id"), m.ID,
			"must be of letters, digits, '.', '_', '-' and '/', begin with a letter or digit, and not be default")
		between(field("ctx"), m.Context, 0, maxTokens)
		between(field("max_thinking"), m.MaxThinking, 0, maxTokens)
		check(m.GPULayers == nil || *m.GPULayers >= llamacpp.AllLayers, field("gpu_layers"), m.GPULayers, "must be -1 (all that fit) or more")
		if m.KVType != "" {
			oneOf(field("kv_type"), m.KVType, kvTypes...)
		}
		for _, name := range slices.Sorted(maps.Keys(m.Adapters)) {
			check(modelID.MatchString(name) && name != catalog.Bare, field("adapters"), name,
				"must name adapters with letters, digits, '.', '_', '-' and '/', and none bare")
			check(m.Adapters[name] != "", field("adapters."+name), "", "must name the file of the adapter")
		}
	}
	check(c.Memory >= 0, "memory", c.Memory, "must be 0 or more bytes")
	check(c.EngineLib != "", "engine_lib", c.EngineLib, "must name the folder of the llama.cpp libraries")
	check(c.MaxAdapter >= 1<<10, "max_adapter", c.MaxAdapter, "must be at least 1KiB")
	_, err = parseBudgets(c.GateBudgets)
	check(err == nil, "gate_budgets", c.GateBudgets, fmt.Sprint(err))
	share("gate_margin", c.GateMargin, 1)
	between("ctx", c.Context, 64, maxTokens)
	check(c.CacheTokens == 0 || c.CacheTokens >= c.Context && c.CacheTokens <= maxTokens, "cache_tokens", c.CacheTokens,
		fmt.Sprintf("must be 0, or from ctx, %d, to %d", c.Context, maxTokens))
	oneOf("kv_type", c.KVType, kvTypes...)
	oneOf("flash_attention", c.FlashAttention, "auto", "on", "off")
	check(c.FlashAttention != "off" || c.KVType != "q8_0", "flash_attention", c.FlashAttention, "must be auto or on with kv_type q8_0")
	between("sequences", c.Sequences, 1, 256)
	between("batch", c.BatchTokens, c.Sequences, 1<<16)
	between("threads", c.Threads, 0, 1024)
	check(c.GPULayers >= llamacpp.AllLayers, "gpu_layers", c.GPULayers, "must be -1 (all that fit) or more")
	atLeast("watchdog", c.Watchdog, 100*time.Millisecond)
	between("max_thinking", c.MaxThinking, 0, maxTokens)
	between("answer_tokens", c.AnswerTokens, 1, 1<<16)
	between("chat_answer_tokens", c.ChatAnswerTokens, 1, 1<<16)
	for _, level := range slices.Sorted(maps.Keys(c.Efforts)) {
		share("efforts."+level, c.Efforts[level], 1)
	}
	share("temperature", c.Temperature, 5)
	share("top_p", c.TopP, 1)
	share("min_p", c.MinP, 1)
	check(c.TopK >= 0, "top_k", c.TopK, "must be 0 (all) or more")
	oneOf("elastic", c.Elastic, elasticOpen, elasticAll, elasticOff)
	check(c.ElasticSlowdown >= 1 && c.ElasticSlowdown <= 1000, "elastic_slowdown", c.ElasticSlowdown, "must be from 1 to 1000")
	between("elastic_floor", c.ElasticFloor, 1, maxTokens)
	between("max_runs", c.MaxRuns, 1, 1<<20)
	check(c.MaxBody >= 1<<10 && c.MaxBody <= 1<<30, "max_body", c.MaxBody, "must be from 1KiB to 1GiB")
	if u, err := url.Parse(c.OTLPEndpoint); c.OTLPEndpoint != "" {
		check(err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "", "otlp_endpoint", c.OTLPEndpoint, "must be an address such as http://127.0.0.1:4318")
	}
	atLeast("client_timeout", c.ClientTimeout, 100*time.Millisecond)
	if strings.HasPrefix(c.Store, "redis") {
		at, err := redis.ParseAddress(c.Store, c.RedisPassword)
		check(err == nil, "store", at.String(), fmt.Sprint(err)) // as it is, it may have a password in it
	} else {
		_, err = c.storePath()
		check(err == nil, "store", c.Store, "must be sqlite, sqlite:PATH, memory, or an address such as redis://127.0.0.1:6379")
	}
	check(c.RetentionAge >= 0, "retention_age", c.RetentionAge, "must be 0 (for ever) or more")
	check(c.RetentionSize == 0 || c.RetentionSize >= 1<<20, "retention_size", c.RetentionSize, "must be 0 (no bound) or at least 1MiB")
	atLeast("grace", c.Grace, time.Second)
	oneOf("log_level", c.LogLevel, "debug", "info", "warn", "error")
	oneOf("log_format", c.LogFormat, "text", "json")
	return errors.Join(errs...)
}

const maxTokens = 1 << 24

var (
	modelID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$`)
	kvTypes = []string{"f16", "q8_0", "f32"}
)

// The values of Config.Elastic.
const (
	elasticOpen = "open"
	elasticAll  = "all"
	elasticOff  = "off"
)

// elastic is what load may do to thoughts.
func (c *Config) elastic() elastic.Config {
	if c.Elastic == elasticOff {
		return elastic.Config{}
	}
	return elastic.Config{Slowdown: c.ElasticSlowdown, Floor: c.ElasticFloor}
}

// sampling is that of requests that do not say.
func (c *Config) sampling() decode.Sampling {
	return decode.Sampling{Temperature: float32(c.Temperature), TopP: float32(c.TopP), TopK: c.TopK, MinP: float32(c.MinP)}
}

// storePath returns the database's file; "" keeps runs in memory.
func (c *Config) storePath() (string, error) {
	path, named := strings.CutPrefix(c.Store, "sqlite:")
	switch {
	case named && path != "":
		return home(path), nil
	case c.Store == "sqlite":
		return filepath.Join(home(c.Data), "runs.db"), nil
	case c.Store == "memory":
		return "", nil
	}
	return "", fmt.Errorf("store %q is not known", c.Store)
}

// keys returns the API keys of both settings.
func (c *Config) keys() ([]server.Key, error) {
	var keys []server.Key
	names := map[string]bool{}
	add := func(setting, line string) error {
		key, err := parseKey(line)
		switch {
		case err != nil:
			return &ConfigError{setting, nil, err.Error()}
		case names[key.Name]:
			return &ConfigError{setting, nil, fmt.Sprintf("there is a key called %q already; give each another name", key.Name)}
		}
		names[key.Name] = true
		keys = append(keys, key)
		return nil
	}
	for i, line := range c.Keys {
		if err := add(fmt.Sprintf("keys[%d]", i), line); err != nil {
			return nil, err
		}
	}
	if c.KeysFile == "" {
		return keys, nil
	}
	data, err := os.ReadFile(home(c.KeysFile))
	if err != nil {
		return nil, &ConfigError{"keys_file", c.KeysFile, "cannot be read: " + err.Error()}
	}
	before := len(keys)
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if err := add(fmt.Sprintf("keys_file, line %d", i+1), line); err != nil {
			return nil, err
		}
	}
	if len(keys) == before {
		return nil, &ConfigError{"keys_file", c.KeysFile, "has no key; it must have one a line"}
	}
	return keys, nil
}

var keyOption = regexp.MustCompile(`:(?:(admin|user)|([a-z_]+)=([^:]+))$`)

// parseKey reads NAME:SECRET:OPTION…; the secret may have colons in it. Errors do not show it.
func parseKey(line string) (server.Key, error) {
	var k server.Key
	name, rest, _ := strings.Cut(line, ":")
	for {
		m := keyOption.FindStringSubmatch(rest)
		if m == nil {
			break
		}
		rest = rest[:len(rest)-len(m[0])]
		var err error
		switch option, value := cmp.Or(m[1], m[2]), m[3]; option {
		case "admin":
			k.Admin = true
		case "user":
		case "priority":
			if k.Priority, err = strconv.Atoi(value); err != nil || k.Priority < 1 || k.Priority > anytime.MaxPriority {
				err = fmt.Errorf("must be a whole number from 1 to %d", anytime.MaxPriority)
			}
		case "runs":
			if k.Limits.Runs, err = strconv.Atoi(value); err != nil || k.Limits.Runs < 1 {
				err = errors.New("must be a whole number, at least 1")
			}
		case "requests":
			k.Limits.Requests, err = parseRate(value)
		case "thinking":
			k.Limits.Thinking, err = parseRate(value)
		default:
			err = errors.New("is no option of a key; admin, user, priority, runs, requests and thinking are")
		}
		if err != nil {
			return k, fmt.Errorf("its %s %w", cmp.Or(m[1], m[2]), err)
		}
	}
	if k.Name, k.Secret = name, rest; name == "" || len(rest) < 8 {
		return k, errors.New("it must be NAME:SECRET and options, such as NAME:SECRET:admin, with a secret of at least 8 characters")
	}
	return k, nil
}

// parseRate reads N/TIME.
func parseRate(text string) (server.Rate, error) {
	n, per, _ := strings.Cut(text, "/")
	most, err := strconv.Atoi(n)
	window, bad := time.ParseDuration(per)
	if err != nil || bad != nil || most < 1 || most > 1<<40 || window < time.Second {
		return server.Rate{}, errors.New("must be N/TIME, with a whole number of at least 1 and a time of at least 1s, such as 60/1m")
	}
	return server.Rate{N: most, Per: window}, nil
}

// home replaces a leading ~/ by the user's home folder.
func home(path string) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		if dir, err := os.UserHomeDir(); err == nil {
			return filepath.Join(dir, rest)
		}
	}
	return path
}
