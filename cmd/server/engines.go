package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"

	"anytime/internal/catalog"
	"anytime/internal/catalog/adapters"
	"anytime/internal/decode"
	"anytime/internal/decode/endpoint"
	"anytime/internal/decode/ollama"
	"anytime/internal/decode/pool"
	"anytime/internal/gguf"
	"anytime/internal/hub"
)

// EngineConfig is a server that decodes for a model.
type EngineConfig struct {
	Kind      string         `yaml:"kind" help:"ollama; or openai for any server that speaks OpenAI's protocol: llama-server, vLLM, SGLang, TGI, LM Studio, another Anytime."`
	URL       string         `yaml:"url" help:"Address of the server, such as http://gpu1:8000/v1. Default for ollama: http://127.0.0.1:11434."`
	Model     string         `yaml:"model" help:"The model's name there. For openai it may be left out where the server has one only."`
	KeyEnv    string         `yaml:"key_env" help:"For openai: environment variable that holds the server's API key. Default: engine_key."`
	API       string         `yaml:"api" help:"For openai: completions or chat, the only way that is tried. Default: the best that works."`
	Sequences int            `yaml:"sequences" help:"Requests that the server decodes at once. Default: found out."`
	Patience  time.Duration  `yaml:"patience" help:"How long the server may be away, or silent between two tokens, before runs fail, or go on at another of the model's engines. Default 1m, 15s beside other engines."`
	Pull      bool           `yaml:"pull" help:"For ollama: pull the model when it is first loaded, if it is missing."`
	KeepAlive time.Duration  `yaml:"keep_alive" help:"For ollama: how long the model stays loaded when it is not used; negative for ever. Default: as Ollama is set up."`
	Options   map[string]any `yaml:"options" help:"For ollama: num_gpu, num_thread, num_batch, main_gpu, use_mmap."`

	key string // what KeyEnv holds
}

// Engines is one EngineConfig in the file, or a list of them.
type Engines []EngineConfig

// UnmarshalYAML implements yaml.Unmarshaler.
func (e *Engines) UnmarshalYAML(node *yaml.Node) error {
	data, err := yaml.Marshal(node) // a Node by itself cannot be decoded strictly
	if err == nil {
		if node.Kind == yaml.SequenceNode {
			err = strict(data, (*[]EngineConfig)(e))
		} else {
			*e = make(Engines, 1)
			err = strict(data, &(*e)[0])
		}
	}
	if wrong := new(yaml.TypeError); errors.As(err, &wrong) {
		err = errors.New(innerLine.ReplaceAllString(strings.Join(wrong.Errors, ", "), ""))
	}
	if err != nil {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: engine: %v", node.Line, err)}}
	}
	return nil
}

// readKeys takes the keys of the engines from the environment.
func (c *Config) readKeys(env func(string) (string, bool)) error {
	var errs []error
	for i, m := range c.Models {
		for j, e := range m.Engine {
			if e.KeyEnv == "" {
				continue
			}
			key, _ := env(e.KeyEnv)
			if key == "" {
				errs = append(errs, &ConfigError{fmt.Sprintf("models[%d].engine.key_env", i), e.KeyEnv, "must name a variable of the environment that holds the server's key, and there is none of that name"})
			}
			m.Engine[j].key = key
		}
	}
	return errors.Join(errs...)
}

// embedded says whether the model's weights are decoded by this server itself.
func (m ModelConfig) embedded() bool { return m.Path != "" && !endpoint.IsSpec(m.Path) }

// endpoints are the servers that decode for a model.
func (m ModelConfig) endpoints(c *Config) ([]endpoint.Config, error) {
	var list []endpoint.Config
	if endpoint.IsSpec(m.Path) {
		e, err := endpoint.Parse(m.Path)
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	for _, e := range m.Engine {
		list = append(list, endpoint.Config{
			Kind: endpoint.Kind(e.Kind), URL: e.URL, Model: e.Model, Key: e.key, API: e.API, Sequences: e.Sequences, Patience: e.Patience,
			Pull: e.Pull, KeepAlive: e.KeepAlive, Options: e.Options,
		})
	}
	for i := range list {
		e := &list[i]
		if e.Kind == endpoint.OpenAI {
			e.Key = cmp.Or(e.Key, c.EngineKey)
		}
		e.ContextTokens = m.Context
		if err := e.Validate(); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// poolPatience is an endpoint's where there are others to go on at.
const poolPatience = 15 * time.Second

// remoteModel makes a model of servers, or adds them to the embedded engine that c opens already.
func remoteModel(c *catalog.ModelConfig, list []endpoint.Config, progress io.Writer, log *slog.Logger) {
	bar := hub.Reporter(progress)
	var kinds []string
	var members []pool.Member
	if c.Open != nil {
		kinds = []string{c.Engine}
		members = []pool.Member{{Name: c.Engine, Open: c.Open}}
	}
	for _, e := range list {
		e.Log = log
		e.Progress = func(p ollama.Progress) { bar(hub.Progress{File: p.Status, Done: p.Completed, Total: p.Total}) }
		if len(list)+len(members) > 1 && e.Patience == 0 {
			e.Patience = poolPatience
		}
		kinds = append(kinds, string(e.Kind))
		members = append(members, pool.Member{Name: e.String(), Open: e.Open, Reach: e.Reach})
	}
	c.Engine = strings.Join(kinds, " + ")
	c.Open = members[0].Open
	if len(members) > 1 {
		c.Open = func(ctx context.Context) (decode.Engine, error) {
			return pool.Open(ctx, pool.Config{Model: c.ID, Members: members, Log: log})
		}
	}
}

// remoteAdapters gives a model on another server its adapters. Ollama is sent them as the embedded engine is given them; other servers take
// only what is on their own machines, so there the configuration names files of theirs.
func remoteAdapters(c *catalog.ModelConfig, m ModelConfig, at endpoint.Config, folder *adapters.Folder, log *slog.Logger) (adapters.Model, error) {
	if at.Kind == endpoint.Ollama {
		// What a name stands for there may change, so what was measured holds only as long as this process lives.
		hash := sync.OnceValues(func() (string, error) { return fmt.Sprintf("%s since %d", at, time.Now().UnixNano()), nil })
		return addAdapters(c, m, checkLoRA, hash, folder, log)
	}
	host := adapters.Model{ID: c.ID, Check: func(string) error {
		return errors.New("its server takes adapters from its own machine only: name them in the model's adapters")
	}}
	c.Adapters = map[string]catalog.AdapterConfig{}
	for _, name := range slices.Sorted(maps.Keys(m.Adapters)) {
		c.Adapters[name] = catalog.AdapterConfig{File: m.Adapters[name]}
		host.Fixed = append(host.Fixed, adapters.Fixed{Name: name, File: m.Adapters[name]})
	}
	return host, nil
}

// checkLoRA judges an adapter without its model, which is elsewhere.
func checkLoRA(file string) error {
	header, err := gguf.ReadFile(file)
	if err != nil {
		return err
	}
	for key, want := range map[string]string{"general.type": "adapter", "adapter.type": "lora"} {
		if got, _ := header.String(key); got != want {
			return fmt.Errorf("%s is %q: it must be %q", key, got, want)
		}
	}
	return nil
}
