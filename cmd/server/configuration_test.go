package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
)

const configurationPath = "../../docs/configuration.md"

const configurationIntro = `# Configuration

*Generated from the settings of ` + "`cmd/server`" + ` by ` + "`make generate`" + `; a test holds it to them. ` + "`server -h`" + ` says the same.*

A setting is taken from the defaults, then the YAML file that ` + "`-config`" + ` or ` + "`ANYTIME_CONFIG`" + ` names, then the environment, then flags. An unknown key,
flag or value is refused with its name and what would be right. A flag that may be given several times replaces what the file has; in the
environment, commas divide several values. What has no flag is secret: command lines can be read by everyone on the machine.
[config.example.yaml](../config.example.yaml) is a file with all of them.

` + "```sh" + `
cat >server.yaml <<'END'
models:
- path: models/reasoner/reasoner.gguf
  id: puzzles
  max_thinking: 512
max_runs: 64
store: memory
END
bin/server doctor -config server.yaml
ANYTIME_MAX_RUNS=32 bin/server -config server.yaml -log-level debug
` + "```" + `
`

// TestConfigurationPage holds docs/configuration.md to the settings; with -update it writes it.
func TestConfigurationPage(t *testing.T) {
	var want bytes.Buffer
	want.WriteString(configurationIntro)
	cell := func(text string) string { return strings.ReplaceAll(text, "|", `\|`) }
	c := defaults()
	fmt.Fprint(&want, "\n## Settings\n\n| key | flag | environment | default | |\n|---|---|---|---|---|\n")
	for _, s := range settings(&c) {
		name, standard := "–", "–"
		if s.flag != "" {
			name = "`-" + s.flag + "`"
		}
		if text := s.text(); text != "" {
			standard = "`" + text + "`"
		}
		fmt.Fprintf(&want, "| `%s` | %s | `%s` | %s | %s |\n", s.key, name, s.env, standard, cell(s.help))
	}
	for _, part := range []struct {
		title, intro string
		fields       any
	}{
		{"Models", "Each of `models` in the file may have:", &ModelConfig{}},
		{"Engines", "A model's `engine`, or each of them, may have ([engines.md](engines.md)):", &EngineConfig{}},
	} {
		fmt.Fprintf(&want, "\n## %s\n\n%s\n\n| key | |\n|---|---|\n", part.title, part.intro)
		for _, s := range settings(part.fields) {
			fmt.Fprintf(&want, "| `%s` | %s |\n", s.key, cell(s.help))
		}
	}
	if *update {
		if err := os.WriteFile(configurationPath, want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(configurationPath)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Error("docs/configuration.md is not up to date: run `make generate`")
	}
}
