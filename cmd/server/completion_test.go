package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// bash itself says what it would offer.
func TestCompletionBash(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"one.gguf", "my two.gguf", "notes.txt", "set.yaml"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "models"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		line []string // the last word is completed
		want []string
	}{
		{[]string{"server", "do"}, []string{"doctor"}},
		{[]string{"server", "-flash"}, []string{"-flash-attention"}},
		{[]string{"server", "-flash-attention", ""}, []string{"auto", "off", "on"}},
		{[]string{"server", "serve", "-model", ""}, []string{"models", "my two.gguf", "one.gguf"}},
		{[]string{"bin/server", "doctor", "-conf"}, []string{"-config"}},
		{[]string{"server", "-config", "s"}, []string{"set.yaml"}},
		{[]string{"server", "-engine-lib", ""}, []string{"models"}},
		{[]string{"server", "-addr", ""}, nil},
		{[]string{"server", "ask", "-v"}, []string{"-votes"}},
		{[]string{"server", "ask", "-quiet", "-ser"}, []string{"-server"}},
		{[]string{"server", "ask", "-kv"}, nil},
		{[]string{"server", "health", "-"}, []string{"-addr", "-config"}},
		{[]string{"server", "completion", ""}, []string{"bash", "fish", "zsh"}},
		{[]string{"server", "-keys"}, []string{"-keys-file"}}, // secrets are no flags
	} {
		var script bytes.Buffer
		if err := completion([]string{"bash"}, &script); err != nil {
			t.Fatal(err)
		}
		script.WriteString("COMP_WORDS=(\"$@\") COMP_CWORD=$(($# - 1))\n_anytime_server\n((${#COMPREPLY[@]})) && printf '%s\\n' \"${COMPREPLY[@]}\"\ntrue\n")
		cmd := exec.Command("bash", append([]string{"-u", "-c", script.String(), "bash"}, row.line...)...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v: %s", row.line, err, out)
		}
		got := strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' })
		if slices.Sort(got); !slices.Equal(got, row.want) {
			t.Errorf("%q: %q, want %q", row.line, got, row.want)
		}
	}
}

// Every flag and sub-command is in what each shell reads, which the shell, where it is here, finds well written.
func TestCompletionShells(t *testing.T) {
	for _, shell := range []string{"bash", "fish", "zsh"} {
		var script bytes.Buffer
		if err := completion([]string{shell}, &script); err != nil {
			t.Fatal(err)
		}
		for _, c := range commands {
			if !strings.Contains(script.String(), c.name) {
				t.Errorf("%s: %s is missing", shell, c.name)
			}
			for _, o := range c.options() {
				if !strings.Contains(script.String(), o.name) {
					t.Errorf("%s: %s of %s is missing", shell, o.name, c.name)
				}
			}
		}
		file := filepath.Join(t.TempDir(), "script")
		if err := os.WriteFile(file, script.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		if path, err := exec.LookPath(shell); err == nil {
			if out, err := exec.Command(path, "-n", file).CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("%s: %v: %s", shell, err, out)
			}
		}
	}
	for _, args := range [][]string{nil, {"tcsh"}, {"bash", "zsh"}} {
		err := command(t.Context(), t.Context(), append([]string{"completion"}, args...), environment(), nil, io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), "one of bash, fish and zsh") {
			t.Errorf("%q: %v", args, err)
		}
	}
}

// What is offered for a setting is what it may be.
func TestCompletionValues(t *testing.T) {
	c := defaults()
	c.Models = []ModelConfig{{Path: "x"}}
	for _, s := range settings(&c) {
		switch s.complete {
		case "", "DIR", "FILE":
			continue
		}
		for _, value := range strings.Fields(s.complete) {
			if strings.HasPrefix(value, "*") {
				continue
			}
			if value == "redis://" {
				value += "127.0.0.1"
			}
			was := s.text()
			if err := s.set([]string{value}); err != nil {
				t.Errorf("%s %q: %v", s.key, value, err)
			}
			if err := c.Validate(); err != nil {
				t.Errorf("%s %q: %v", s.key, value, err)
			}
			if err := s.set([]string{was}); err != nil {
				t.Fatal(err)
			}
		}
	}
}
