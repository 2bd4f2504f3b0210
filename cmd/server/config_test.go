package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"anytime/internal/decode/prompt"
	"anytime/internal/server"
)

var update = flag.Bool("update", false, "write config.example.yaml")

// environment is a stand-in for os.LookupEnv.
func environment(pairs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for _, p := range pairs {
			if n, value, _ := strings.Cut(p, "="); n == name {
				return value, true
			}
		}
		return "", false
	}
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// samples are, of each kind of setting, values in the three notations and how they are printed when read.
var samples = map[reflect.Type]struct{ file, text, other, printed string }{
	reflect.TypeFor[string]():             {`from_file`, "b", "c", "c"},
	reflect.TypeFor[int]():                {`17`, "18", "19", "19"},
	reflect.TypeFor[float64]():            {`0.25`, "0.5", "0.75", "0.75"},
	reflect.TypeFor[time.Duration]():      {`90m`, "2h", "3s", "3s"},
	reflect.TypeFor[Size]():               {`3MiB`, "4096", "2GiB", "2GiB"},
	reflect.TypeFor[[]string]():           {`[x, y]`, "p,q", "r", "[r]"},
	reflect.TypeFor[[]ModelConfig]():      {`[{path: x}]`, "p,q", "r", fmt.Sprint([]ModelConfig{{Path: "r"}})},
	reflect.TypeFor[map[string]float64](): {`{low: 0.25}`, "low=0.5,max=0.9", "low=0.75", ""},
}

// Each setting can be given in the file, the environment and, unless it is secret, as a flag; the later ones count.
func TestPrecedence(t *testing.T) {
	c := defaults()
	for i, s := range settings(&c) {
		t.Run(s.key, func(t *testing.T) {
			sample, ok := samples[s.value.Type()]
			if !ok {
				t.Fatalf("there is no sample of type %v", s.value.Type())
			}
			read := func(env []string, args ...string) string {
				t.Helper()
				c, err := load(args, environment(env...))
				if err != nil {
					t.Fatal(err)
				}
				return fmt.Sprint(reflect.ValueOf(c).Field(i).Interface())
			}
			file := "ANYTIME_CONFIG=" + writeFile(t, s.key+": "+sample.file)
			byDefault, byFile := read(nil), read([]string{file})
			byEnv := read([]string{file, s.env + "=" + sample.text})
			seen := []string{byDefault, byFile, byEnv}
			if s.flag != "" {
				byFlag := read([]string{file, s.env + "=" + sample.text}, "-"+s.flag, sample.other)
				if sample.printed != "" && byFlag != sample.printed {
					t.Errorf("by flag %s, want %s", byFlag, sample.printed)
				}
				seen = append(seen, byFlag)
			} else if _, err := load([]string{"-" + strings.ReplaceAll(s.key, "_", "-"), "x"}, environment()); err == nil {
				t.Error("a secret is taken from the command line")
			}
			if len(slices.Compact(slices.Sorted(slices.Values(seen)))) != len(seen) {
				t.Errorf("by default, file, environment, flag: %q; each should count over those before", seen)
			}
			if empty := read([]string{s.env + "="}); empty != byDefault {
				t.Errorf("an empty variable counts as %s", empty)
			}
		})
	}
}

func TestListsAndSources(t *testing.T) {
	file := writeFile(t, "models: [{path: a, id: one}, {path: b}]\nefforts: {low: 0.2}\n")
	c, err := load([]string{"-config", file}, environment("ANYTIME_CONFIG=/nowhere", "HF_TOKEN=tok"))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Models) != 2 || c.Models[0].ID != "one" || c.Efforts["low"] != 0.2 || c.Efforts["high"] != 0.5 || c.HubToken != "tok" {
		t.Errorf("%+v", c)
	}
	c, err = load([]string{"-config", file, "-model", "c,d", "-model", "e", "-allowed-host", "h1", "-allowed-host", "h2", "-effort", "low=0.3", "-effort", "high=0.9"},
		environment("ANYTIME_HUB_TOKEN=own", "HF_TOKEN=tok"))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Models) != 2 || c.Models[0].Path != "c,d" || c.Models[1].Path != "e" || !slices.Equal(c.AllowedHosts, []string{"h1", "h2"}) ||
		c.Efforts["low"] != 0.3 || c.Efforts["high"] != 0.9 || c.HubToken != "own" {
		t.Errorf("%+v", c)
	}
	if defaults().Efforts["low"] != server.DefaultEfforts()["low"] {
		t.Error("the defaults were changed")
	}
}

func TestModelSettings(t *testing.T) {
	c := defaults()
	if err := c.decode([]byte(exampleModels(t))); err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	m, second := c.Models[0], c.Models[1]
	if m.Path == "" || m.Context != 4096 || m.GPULayers == nil || *m.GPULayers != 20 || m.Family.Name != "qwen3" || m.Adapters["math"] == "" {
		t.Errorf("%+v", m)
	}
	if big := c.Models[3]; big.ID != "big" || len(big.Engine) != 2 || big.Engine[0].KeyEnv != "GPU_KEY" || big.Engine[1].URL != "http://gpu2:8000/v1" {
		t.Errorf("%+v", big)
	}
	if f := second.Family; f.Name != "mine" || f.Open != "<reason>\n" || !slices.Equal(f.Close, []string{"</reason>"}) {
		t.Errorf("%+v", f.Family)
	}
}

func TestLoadErrors(t *testing.T) {
	for name, row := range map[string]struct {
		file string
		env  string
		args []string
		says string // ' stands for "
	}{
		"unknown key":              {file: "addr: a:1\nadr: b:2\n", says: "line 2: 'adr' is no setting"},
		"unknown key of a model":   {file: "models:\n- path: x\n  contxt: 5\n", says: "line 3: 'contxt' is no setting"},
		"unknown key of a family":  {file: "models:\n- path: x\n  family: {opn: x}\n", says: "line 3: family: 'opn' is no setting"},
		"wrong family":             {file: "models:\n- path: x\n  family: {open: x, close: [y], closing: z}\n", says: "closing must contain 'y'"},
		"unknown family":           {file: "models:\n- path: x\n  family: gwen\n", says: "line 3: family: there is no model family 'gwen'; the families are deepseek-r1,"},
		"unknown key of an engine": {file: "models:\n- id: x\n  engine: {knd: ollama}\n", says: "line 3: engine: 'knd' is no setting"},
		"engine's key":             {file: "models:\n- id: x\n  engine: {kind: openai, url: http://x, key_env: NONE}\n", says: "models[0].engine.key_env is 'NONE': it must name a variable of the environment"},
		"key twice":                {file: "addr: a:1\naddr: b:2\n", says: "already defined at line 1"},
		"wrong type":               {file: "ctx: many\n", says: "line 1: cannot unmarshal !!str `many` into int"},
		"wrong duration":           {file: "\ngrace: 10\n", says: "line 2: cannot unmarshal"},
		"wrong size":               {file: "\nmemory: 3GB\n", says: "line 2: '3GB' must be a number of bytes, such as 1048576, 512MiB or 8GiB"},
		"huge size":                {file: "memory: 99999999TiB\n", says: "less than 2^60"},
		"not YAML":                 {file: "addr: [\n", says: "yaml: line"},
		"a list":                   {file: "- addr\n", says: "line 1: cannot unmarshal !!seq"},
		"two documents":            {file: "addr: a:1\n---\naddr: b:2\n", says: "more than one document"},
		"no file":                  {args: []string{"-config", "/nowhere/at.all"}, says: "config file: open /nowhere/at.all"},
		"environment":              {env: "ANYTIME_THREADS=x", says: "ANYTIME_THREADS is 'x': it must be a whole number"},
		"flag":                     {args: []string{"-threads", "x"}, says: "-threads is 'x': it must be a whole number"},
		"float":                    {args: []string{"-top-p", "x"}, says: "-top-p is 'x': it must be a number"},
		"duration":                 {args: []string{"-grace", "10"}, says: "-grace is '10': it must be a duration, such as 500ms"},
		"size":                     {args: []string{"-memory", "-1"}, says: "-memory is '-1': it must be a number of bytes"},
		"effort":                   {args: []string{"-effort", "low"}, says: "-effort is 'low': it must be LEVEL=SHARE"},
		"effort without a level":   {args: []string{"-effort", "=1"}, says: "must be LEVEL=SHARE"},
		"unknown flag":             {args: []string{"-adr", "x"}, says: "flag provided but not defined: -adr"},
		"flag without a value":     {args: []string{"-addr"}, says: "flag needs an argument: -addr"},
		"stray word":               {args: []string{"start"}, says: "'start' is not understood"},
		"several":                  {args: []string{"-threads", "x", "-ctx", "y"}, says: "-ctx is 'y': it must be a whole number\n-threads is"},
	} {
		t.Run(name, func(t *testing.T) {
			if row.file != "" {
				row.args = append(row.args, "-config", writeFile(t, row.file))
			}
			_, err := load(row.args, environment(row.env))
			if says := strings.ReplaceAll(row.says, "'", `"`); err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("%v\nit should say %s", err, says)
			}
		})
	}
	for _, fine := range []string{"", "# nothing\n", "---\naddr: a:1\n"} {
		if _, err := load([]string{"-config", writeFile(t, fine)}, environment()); err != nil {
			t.Errorf("%q: %v", fine, err)
		}
	}
}

func TestValidate(t *testing.T) {
	minusTwo, keys := -2, []string{"me:long-enough"}
	for name, row := range map[string]struct {
		change func(*Config)
		says   string // ' stands for "; empty: it is valid
	}{
		"as it is":             {func(*Config) {}, ""},
		"no port":              {func(c *Config) { c.Addr = "localhost" }, "addr is 'localhost': it must be host:port"},
		"wrong port":           {func(c *Config) { c.Addr = "127.0.0.1:99999" }, "addr is '127.0.0.1:99999': it must be host:port"},
		"all addresses":        {func(c *Config) { c.Addr = ":8080" }, "addr is ':8080': it must be a loopback address, such as 127.0.0.1:8080, unless there are API keys"},
		"all addresses, keys":  {func(c *Config) { c.Addr, c.Keys = ":8080", keys }, ""},
		"a name":               {func(c *Config) { c.Addr = "lab.example:80" }, "must be a loopback address"},
		"localhost":            {func(c *Config) { c.Addr = "localhost:0" }, ""},
		"IPv6 loopback":        {func(c *Config) { c.Addr = "[::1]:0" }, ""},
		"no data":              {func(c *Config) { c.Data = "" }, "data is '': it must name a folder"},
		"no model":             {func(c *Config) { c.Models = nil }, "models: there is none: name one with -model"},
		"model without path":   {func(c *Config) { c.Models[0].Path = "" }, "models[0].path is '': it must name a GGUF file"},
		"model id":             {func(c *Config) { c.Models[0].ID = "a:b" }, "models[0].id is 'a:b': it must be of letters"},
		"model id default":     {func(c *Config) { c.Models[0].ID = "default" }, "and not be default"},
		"model ctx":            {func(c *Config) { c.Models[0].Context = -1 }, "models[0].ctx is -1: it must be from 0"},
		"model max_thinking":   {func(c *Config) { c.Models[0].MaxThinking = -1 }, "models[0].max_thinking is -1"},
		"model gpu_layers":     {func(c *Config) { c.Models[0].GPULayers = &minusTwo }, "models[0].gpu_layers is"},
		"model kv_type":        {func(c *Config) { c.Models[0].KVType = "q4" }, "models[0].kv_type is 'q4': it must be f16, q8_0 or f32"},
		"adapter's name":       {func(c *Config) { c.Models[0].Adapters = map[string]string{"a:b": "x"} }, "models[0].adapters is 'a:b': it must name adapters"},
		"adapter's file":       {func(c *Config) { c.Models[0].Adapters = map[string]string{"a": ""} }, "models[0].adapters.a is '': it must name the file of the adapter"},
		"no such engine":       {func(c *Config) { c.Models[0].Engine = Engines{{Kind: "vllm"}} }, "kind is 'vllm': it must be ollama or openai"},
		"spec without a URL":   {func(c *Config) { c.Models[0].Path = "openai:m" }, "models[0].engine: 'openai:m': the server"},
		"engine without an id": {func(c *Config) { c.Models = []ModelConfig{{Engine: Engines{{Kind: "openai", URL: "http://x"}}}} }, "models[0].id is '': it must be given where the engine does not name the model"},
		"engine":               {func(c *Config) { c.Models = []ModelConfig{{Engine: Engines{{Kind: "ollama", Model: "x:1b"}}}} }, ""},
		"adapters of a pool": {func(c *Config) {
			c.Models[0].Engine, c.Models[0].Adapters = Engines{{Kind: "ollama", Model: "x"}}, map[string]string{"a": "b"}
		}, "models[0].adapters: a model of several engines has none"},
		"memory":                     {func(c *Config) { c.Memory = -1 }, "memory is -1: it must be 0 or more"},
		"engine_lib":                 {func(c *Config) { c.EngineLib = "" }, "engine_lib is '': it must name the folder"},
		"adapter called bare":        {func(c *Config) { c.Models[0].Adapters = map[string]string{"bare": "x"} }, "and none bare"},
		"max_adapter":                {func(c *Config) { c.MaxAdapter = 1 }, "max_adapter is 1: it must be at least 1KiB"},
		"gate_budgets":               {func(c *Config) { c.GateBudgets = "64,x" }, "gate_budgets is '64,x': it must be ascending numbers of thinking tokens"},
		"gate_budgets descend":       {func(c *Config) { c.GateBudgets = "64, 64" }, "gate_budgets is '64, 64': it must be ascending"},
		"gate_margin":                {func(c *Config) { c.GateMargin = 1.5 }, "gate_margin is 1.5: it must be from 0 to 1"},
		"ctx":                        {func(c *Config) { c.Context = 10 }, "ctx is 10: it must be from 64 to 16777216"},
		"cache_tokens":               {func(c *Config) { c.CacheTokens = 100 }, "cache_tokens is 100: it must be 0, or from ctx, 8192, to"},
		"kv_type":                    {func(c *Config) { c.KVType = "" }, "kv_type is '': it must be f16, q8_0 or f32"},
		"flash_attention":            {func(c *Config) { c.FlashAttention = "no" }, "flash_attention is 'no': it must be auto, on or off"},
		"flash_attention and q8_0":   {func(c *Config) { c.FlashAttention, c.KVType = "off", "q8_0" }, "must be auto or on with kv_type q8_0"},
		"sequences":                  {func(c *Config) { c.Sequences = 257 }, "sequences is 257: it must be from 1 to 256"},
		"batch":                      {func(c *Config) { c.BatchTokens = 31 }, "batch is 31: it must be from 32 to 65536"},
		"threads":                    {func(c *Config) { c.Threads = -1 }, "threads is -1: it must be from 0 to 1024"},
		"gpu_layers":                 {func(c *Config) { c.GPULayers = -2 }, "gpu_layers is -2: it must be -1 (all that fit) or more"},
		"watchdog":                   {func(c *Config) { c.Watchdog = time.Millisecond }, "watchdog is 1ms: it must be at least 100ms"},
		"max_thinking":               {func(c *Config) { c.MaxThinking = -1 }, "max_thinking is -1"},
		"answer_tokens":              {func(c *Config) { c.AnswerTokens = 0 }, "answer_tokens is 0: it must be from 1 to 65536"},
		"chat_answer_tokens":         {func(c *Config) { c.ChatAnswerTokens = 0 }, "chat_answer_tokens is 0"},
		"efforts":                    {func(c *Config) { c.Efforts["low"] = 1.5 }, "efforts.low is 1.5: it must be from 0 to 1"},
		"temperature":                {func(c *Config) { c.Temperature = -1 }, "temperature is -1: it must be from 0 to 5"},
		"top_p":                      {func(c *Config) { c.TopP = 2 }, "top_p is 2: it must be from 0 to 1"},
		"min_p":                      {func(c *Config) { c.MinP = 2 }, "min_p is 2: it must be from 0 to 1"},
		"top_k":                      {func(c *Config) { c.TopK = -1 }, "top_k is -1: it must be 0 (all) or more"},
		"max_runs":                   {func(c *Config) { c.MaxRuns = 0 }, "max_runs is 0: it must be from 1"},
		"max_body":                   {func(c *Config) { c.MaxBody = 1 }, "max_body is 1: it must be from 1KiB to 1GiB"},
		"store":                      {func(c *Config) { c.Store = "postgres://localhost" }, "store is 'postgres://localhost': it must be sqlite, sqlite:PATH, memory, or an address such as redis://127.0.0.1:6379"},
		"address of a store":         {func(c *Config) { c.Store = "redis://:a-secret@" }, "store is 'redis://': it must name a host, as in redis://127.0.0.1:6379"},
		"store without path":         {func(c *Config) { c.Store = "sqlite:" }, "store is 'sqlite:'"},
		"store with path":            {func(c *Config) { c.Store = "sqlite:x.db" }, ""},
		"memory store":               {func(c *Config) { c.Store = "memory" }, ""},
		"retention_age":              {func(c *Config) { c.RetentionAge = -1 }, "retention_age is -1ns: it must be 0 (for ever) or more"},
		"retention_size":             {func(c *Config) { c.RetentionSize = 1 }, "retention_size is 1: it must be 0 (no bound) or at least 1MiB"},
		"grace":                      {func(c *Config) { c.Grace = 0 }, "grace is 0s: it must be at least 1s"},
		"log_level":                  {func(c *Config) { c.LogLevel = "loud" }, "log_level is 'loud': it must be debug, info, warn or error"},
		"log_format":                 {func(c *Config) { c.LogFormat = "xml" }, "log_format is 'xml': it must be text or json"},
		"key without secret":         {func(c *Config) { c.Keys = []string{"me:long-enough", "secretword"} }, "keys[1]: it must be NAME:SECRET"},
		"short secret":               {func(c *Config) { c.Keys = []string{"me:short:admin"} }, "keys[0]: it must be NAME:SECRET"},
		"key option":                 {func(c *Config) { c.Keys = []string{"me:long-enough:rnus=4"} }, "keys[0]: its rnus is no option of a key; admin, user, priority, runs, requests and thinking are"},
		"key runs":                   {func(c *Config) { c.Keys = []string{"me:long-enough:runs=0:admin"} }, "keys[0]: its runs must be a whole number"},
		"key requests":               {func(c *Config) { c.Keys = []string{"me:long-enough:requests=60"} }, "keys[0]: its requests must be N/TIME"},
		"key thinking":               {func(c *Config) { c.Keys = []string{"me:long-enough:thinking=5/1ms"} }, "keys[0]: its thinking must be N/TIME"},
		"key priority":               {func(c *Config) { c.Keys = []string{"me:long-enough:priority=high"} }, "keys[0]: its priority must be a whole number"},
		"key twice":                  {func(c *Config) { c.Keys = []string{"me:long-enough", "me:other-secret"} }, "keys[1]: there is a key called 'me' already"},
		"keys_file absent":           {func(c *Config) { c.KeysFile = "/nowhere/at.all" }, "keys_file is '/nowhere/at.all': it cannot be read"},
		"keys_file without a key":    {func(c *Config) { c.KeysFile = writeFile(t, "# none\n") }, "has no key"},
		"keys_file with a wrong one": {func(c *Config) { c.KeysFile = writeFile(t, "\nme\n") }, "keys_file, line 2: it must be NAME:SECRET"},
		"keys_file": {func(c *Config) {
			c.Addr, c.KeysFile = ":0", writeFile(t, "# us\nme:long-enough\n\nyou:has:colons:admin\n")
		}, ""},
		"several": {func(c *Config) { c.Data, c.TopK = "", -1 }, "data is '': it must name a folder\ntop_k is -1"},
	} {
		t.Run(name, func(t *testing.T) {
			c := defaults()
			c.Models = []ModelConfig{{Path: "x.gguf"}}
			row.change(&c)
			err := c.Validate()
			if row.says == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if says := strings.ReplaceAll(row.says, "'", `"`); err == nil || !strings.Contains(err.Error(), says) {
				t.Fatalf("%v\nit should say %s", err, says)
			}
			if !errors.As(err, new(*ConfigError)) {
				t.Errorf("%T is no ConfigError", err)
			}
			for _, secret := range []string{"secretword", "short", "other-secret", "long-enough"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("%v: it has the secret in it", err)
				}
			}
		})
	}
}

func TestKeys(t *testing.T) {
	c := defaults()
	c.Keys = []string{"a:secret-of-a", "c:secret-of-c:runs=4:requests=60/1m:thinking=1000000/24h:priority=2:user"}
	c.KeysFile = writeFile(t, "b:secret:of:b:admin\n")
	keys, err := c.keys()
	want := []server.Key{
		{Name: "a", Secret: "secret-of-a"},
		{Name: "c", Secret: "secret-of-c", Priority: 2, Limits: server.Limits{
			Runs: 4, Requests: server.Rate{N: 60, Per: time.Minute}, Thinking: server.Rate{N: 1000000, Per: 24 * time.Hour},
		}},
		{Name: "b", Secret: "secret:of:b", Admin: true},
	}
	if err != nil || !slices.Equal(keys, want) {
		t.Errorf("%+v, %v", keys, err)
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "17": 17, "17B": 17, "1KiB": 1024, "1.5 MiB": 3 << 19, "8GiB": 8 << 30, "2TiB": 2 << 40} {
		got, err := parseSize(text)
		if err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
		if again, err := parseSize(got.String()); err != nil || again != got {
			t.Errorf("%d is written as %s", got, got)
		}
	}
	for _, text := range []string{"", "-1", "1KB", "1 KiB ", "GiB", "1e3", "2000000TiB"} {
		if n, err := parseSize(text); err == nil {
			t.Errorf("%q: %d", text, n)
		}
	}
}

// The manual names every setting in each of its notations, with its default and its help.
func TestManual(t *testing.T) {
	var out bytes.Buffer
	if err := command(t.Context(), t.Context(), []string{"-h"}, environment(), nil, &out, &out); err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(out.String()), " ")
	c := defaults()
	for _, s := range slices.Concat(settings(&c), settings(&ModelConfig{}), settings(&EngineConfig{})) {
		for _, want := range []string{s.key + ":", s.help} {
			if want == "" || !strings.Contains(text, want) {
				t.Errorf("%s: %q is not there", s.key, want)
			}
		}
	}
	if _, err := prompt.Lookup("none"); !strings.Contains(text, "a name ("+strings.SplitAfter(err.Error(), "are ")[1]+")") {
		t.Errorf("not the families of: %v", err)
	}
	for _, s := range settings(&c) {
		if s.flag != "" && !strings.Contains(text, " -"+s.flag+" "+s.env+" ") || s.text() != "" && !strings.Contains(text, "("+s.text()+")") {
			t.Errorf("%s: flag, variable or default is not there", s.key)
		}
	}
}

const examplePath = "../../config.example.yaml"

// The example file is written by this test (go generate), and so has every setting.
func TestExampleFile(t *testing.T) {
	var want bytes.Buffer
	fmt.Fprint(&want, `# All settings of the server, with their defaults. What a file leaves out keeps its default; the environment and flags count over
# the file. server -h says how they are called there. Paths are relative to where the server is started; ~/ is the home folder.
`)
	comment := func(text string) {
		var lines bytes.Buffer
		wrap(&lines, text)
		for line := range strings.Lines(lines.String()) {
			fmt.Fprintf(&want, "# %s\n", strings.TrimSpace(line))
		}
	}
	c := defaults()
	for _, s := range settings(&c) {
		fmt.Fprintln(&want)
		comment(s.help)
		value := s.value.Interface()
		if s.value.Kind() == reflect.Slice {
			value = []string{}
		}
		if _, ok := value.(Size); ok {
			value = &yaml.Node{Kind: yaml.ScalarNode, Value: s.text()}
		}
		line, err := yaml.Marshal(map[string]any{s.key: value})
		if err != nil {
			t.Fatal(err)
		}
		want.Write(line)
		if s.key == "models" {
			fmt.Fprint(&want, exampleIntro)
			for line := range strings.Lines(exampleText) {
				fmt.Fprint(&want, "#|"+line)
			}
			fmt.Fprintln(&want, "#")
			for _, s := range settings(&ModelConfig{}) {
				comment(s.key + ": " + s.help)
			}
			fmt.Fprint(&want, "#\n# An engine:\n#\n")
			for _, s := range settings(&EngineConfig{}) {
				comment(s.key + ": " + s.help)
			}
		}
	}
	if *update {
		if err := os.WriteFile(examplePath, want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(examplePath)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Error("config.example.yaml is not up to date: run `make generate`")
	}
	var read Config
	if err := read.decode(got); err != nil {
		t.Fatal(err)
	}
	if len(read.Models)+len(read.Keys)+len(read.AllowedHosts)+len(read.AllowedOrigins) > 0 {
		t.Error("lists are not empty")
	}
	read.Models, read.Keys, read.AllowedHosts, read.AllowedOrigins = nil, nil, nil, nil
	if !reflect.DeepEqual(read, defaults()) {
		t.Errorf("the file has\n%+v\ndefaults are\n%+v", read, defaults())
	}
	var keys map[string]any
	if err := yaml.Unmarshal(got, &keys); err != nil {
		t.Fatal(err)
	}
	for _, s := range settings(&c) {
		delete(keys, s.key)
	}
	if len(keys) > 0 {
		t.Errorf("no settings: %v", slices.Sorted(maps.Keys(keys)))
	}
}

const exampleIntro = `# For example, without the #| before each line:
#
`

const exampleText = `models:
- path: hf.co/Qwen/Qwen3-1.7B-GGUF:Q8_0
  id: qwen
  ctx: 4096
  gpu_layers: 20
  kv_type: q8_0
  max_thinking: 3000
  template: qwen.jinja
  family: qwen3
  adapters:
    math: adapters/math.gguf
- path: ~/models/mine.gguf
  family:
    name: mine
    open: "<reason>\n"
    close: ["</reason>"]
    closing: "\n</reason>\n\n"
- path: ollama:qwen3:8b
- id: big
  engine:
  - {kind: openai, url: http://gpu1:8000/v1, model: Qwen/Qwen3-8B, key_env: GPU_KEY, patience: 5s}
  - {kind: openai, url: http://gpu2:8000/v1, model: Qwen/Qwen3-8B}
`

// exampleModels is the example of models in the file.
func exampleModels(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(examplePath)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "#|"); ok {
			b.WriteString(rest)
		}
	}
	for _, s := range settings(&ModelConfig{}) {
		if !strings.Contains(b.String(), " "+s.key+": ") && !strings.Contains(b.String(), " "+s.key+":\n") {
			t.Errorf("the example of a model has no %s", s.key)
		}
	}
	return b.String()
}
