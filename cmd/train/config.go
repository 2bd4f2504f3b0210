package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// configFlag gives a command a config file. Its keys are the command's flags, so that there is one definition of a setting and one
// manual.
func configFlag(flags *flag.FlagSet) {
	flags.String("config", "", "YAML `file` with any of these flags as keys, such as batch: 16; flags that are given go before it")
}

// given are the names of the flags that were set, on the command line or by the config file.
func given(flags *flag.FlagSet) map[string]bool {
	names := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { names[f.Name] = true })
	return names
}

// readConfig sets the flags that the config file has and the command line has not.
func readConfig(flags *flag.FlagSet) error {
	f := flags.Lookup("config")
	if f == nil || f.Value.String() == "" {
		return nil
	}
	path := f.Value.String()
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read config: %w", err)
	}
	var document yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(data))
	switch err := d.Decode(&document); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return usagef("config %s: %w", path, err)
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return usagef("config %s: it must be one YAML document", path)
	}
	root := document.Content[0]
	if root.Kind != yaml.MappingNode {
		return usagef("config %s, line %d: it must be lines such as batch: 16", path, root.Line)
	}
	known, before := given(flags), map[string]bool{}
	for pair := range slices.Chunk(root.Content, 2) {
		key, value := pair[0], pair[1]
		text, ok := configValue(value)
		switch {
		case key.Value == f.Name || flags.Lookup(key.Value) == nil:
			return usagef("config %s, line %d: there is no key %.64q; the keys are %s", path, key.Line, key.Value, strings.Join(configKeys(flags), ", "))
		case before[key.Value]:
			return usagef("config %s, line %d: %s comes twice", path, key.Line, key.Value)
		case !ok:
			return usagef("config %s, line %d: %s must be a value, or a list of values", path, key.Line, key.Value)
		}
		before[key.Value] = true
		if known[key.Value] {
			continue
		}
		if err := flags.Set(key.Value, text); err != nil {
			set := flags.Lookup(key.Value)
			what, usage := flag.UnquoteUsage(set)
			return usagef("config %s, line %d: %s is %.64q, which is not right: it must be %s (%s: %s)", path, key.Line, key.Value, text, kind(set), what, usage)
		}
	}
	return nil
}

// configValue is a value as it would be written on the command line. Quotes, anchors and the like are YAML's affair.
func configValue(n *yaml.Node) (text string, ok bool) {
	switch n.Kind {
	case yaml.AliasNode:
		return configValue(n.Alias)
	case yaml.ScalarNode:
		return n.Value, n.Tag != "!!null"
	case yaml.SequenceNode:
		var list []string
		for _, each := range n.Content {
			if each.Kind != yaml.ScalarNode || each.Tag == "!!null" {
				return "", false
			}
			list = append(list, each.Value)
		}
		return strings.Join(list, ","), len(list) > 0
	}
	return "", false
}

func configKeys(flags *flag.FlagSet) (names []string) {
	flags.VisitAll(func(f *flag.Flag) {
		if f.Name != "config" {
			names = append(names, f.Name)
		}
	})
	return names
}
