package main

import (
	"flag"
	"fmt"
	"io"
	"strings"
)

// option is a flag that shells complete.
type option struct {
	name, about string
	// values is what may follow: words, DIR, FILE, a pattern of files, "" anything, "-" nothing.
	values string
}

// options are a sub-command's flags.
func (c subcommand) options() []option {
	var list []option
	switch c.name {
	case "serve", "doctor", "health":
		list = []option{{"config", "YAML file of settings.", "*.yaml"}}
		d := defaults()
		for _, s := range settings(&d) {
			if s.flag != "" && (c.name != "health" || s.key == "addr") {
				list = append(list, option{s.flag, s.help, s.complete})
			}
		}
	case "ask":
		new(asking).flags().VisitAll(func(f *flag.Flag) {
			o := option{f.Name, f.Usage, ""}
			if b, ok := f.Value.(interface{ IsBoolFlag() bool }); ok && b.IsBoolFlag() {
				o.values = "-"
			}
			if f.Name == "model" {
				o.values = "*.gguf"
			}
			list = append(list, o)
		})
	case "completion":
		for _, shell := range []string{"bash", "fish", "zsh"} {
			list = append(list, option{name: shell})
		}
	}
	return list
}

// completion prints what a shell reads.
func completion(args []string, w io.Writer) error {
	shells := map[string]func(io.Writer){"bash": completeBash, "fish": completeFish, "zsh": completeZsh}
	if len(args) == 1 {
		if write, ok := shells[args[0]]; ok {
			write(w)
			return nil
		}
	}
	return usageError{fmt.Errorf(`it must be "server completion" and one of bash, fish and zsh, as in: source <(server completion bash)`)}
}

// brief is a help's first sentence.
func brief(help string) string {
	text, _, _ := strings.Cut(help, ". ")
	text, _, _ = strings.Cut(text, ": ")
	return strings.TrimSuffix(text, ".")
}

// dashed lists the options as they are written; the shells that can be completed for are words of their own.
func dashed(c subcommand) string {
	var words []string
	for _, o := range c.options() {
		if c.name == "completion" {
			words = append(words, o.name)
		} else {
			words = append(words, "-"+o.name)
		}
	}
	return strings.Join(words, " ")
}

// completeBash: words of the command line are looked at from the front for the sub-command, and the one before for what its value may be.
func completeBash(w io.Writer) {
	fmt.Fprint(w, `# bash: source <(server completion bash)
_anytime_server() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command=serve words=
  local first=${COMP_WORDS[1]}
  COMPREPLY=()
  case $first in
`)
	var names []string
	for _, c := range commands {
		names = append(names, c.name)
	}
	fmt.Fprintf(w, "  %s) ((COMP_CWORD > 1)) && command=$first ;;\n  esac\n  case $command:${before#-} in\n", strings.Join(names, "|"))
	var free []string
	for _, c := range commands {
		for _, o := range c.options() {
			at := "  " + c.name + ":" + o.name + ") "
			switch {
			case c.name == "completion" || o.values == "-":
			case o.values == "":
				free = append(free, c.name+":"+o.name)
			case o.values == "DIR":
				fmt.Fprintln(w, at+`mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;`)
			case o.values == "FILE":
				fmt.Fprintln(w, at+`mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;`)
			case strings.HasPrefix(o.values, "*."):
				fmt.Fprintf(w, at+`mapfile -t COMPREPLY < <(compgen -d -- "$word"; compgen -f -X '!%s' -- "$word"); return ;;`+"\n", o.values)
			default:
				fmt.Fprintf(w, at+`mapfile -t COMPREPLY < <(compgen -W '%s' -- "$word"); return ;;`+"\n", o.values)
			}
		}
	}
	fmt.Fprintf(w, "  %s) return ;;\n  esac\n  case $command in\n", strings.Join(free, "|"))
	for _, c := range commands {
		fmt.Fprintf(w, "  %s) words='%s' ;;\n", c.name, dashed(c))
	}
	fmt.Fprintf(w, `  esac
  ((COMP_CWORD == 1)) && words+=' %s'
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}
complete -o filenames -F _anytime_server server
`, strings.Join(names, " "))
}

// quoted is a text within single quotes, for shells in which a quote in them is written so.
func quoted(text, quote string) string { return "'" + strings.ReplaceAll(text, "'", quote) + "'" }

func completeFish(w io.Writer) {
	quote := func(text string) string { return quoted(strings.ReplaceAll(text, `\`, `\\`), `\'`) }
	fmt.Fprint(w, "# fish: server completion fish | source\ncomplete -c server -f\n")
	var others []string
	for _, c := range commands {
		fmt.Fprintf(w, "complete -c server -n __fish_use_subcommand -a %s -d %s\n", c.name, quote(c.about))
		if c.name != "serve" {
			others = append(others, c.name)
		}
	}
	for _, c := range commands {
		when := "__fish_seen_subcommand_from " + c.name
		if c.name == "serve" {
			when = "not __fish_seen_subcommand_from " + strings.Join(others, " ")
		}
		for _, o := range c.options() {
			line := fmt.Sprintf("complete -c server -n '%s' -o %s -d %s", when, o.name, quote(brief(o.about)))
			switch {
			case c.name == "completion":
				line = fmt.Sprintf("complete -c server -n '%s' -a %s", when, o.name)
			case o.values == "-":
			case o.values == "DIR":
				line += " -x -a '(__fish_complete_directories)'"
			case o.values == "FILE":
				line += " -r -F"
			case strings.HasPrefix(o.values, "*"):
				line += fmt.Sprintf(" -x -a '(__fish_complete_suffix %s)'", o.values[1:])
			default:
				line += " -x -a " + quote(o.values)
			}
			fmt.Fprintln(w, line)
		}
	}
}

var zshText = strings.NewReplacer("[", `\[`, "]", `\]`, ":", `\:`, "`", "", `\`, `\\`)

func completeZsh(w io.Writer) {
	quote := func(text string) string { return quoted(text, `'\''`) }
	fmt.Fprint(w, `#compdef server
# zsh, after compinit: source <(server completion zsh)
_anytime_server() {
  local -a commands=(
`)
	for _, c := range commands {
		fmt.Fprintf(w, "    %s\n", quote(c.name+":"+c.about))
	}
	fmt.Fprint(w, "  )\n  local command=serve\n  if ((CURRENT == 2)) && [[ $words[2] != -* ]]; then\n    _describe command commands\n    return\n  fi\n  (( ${commands[(I)$words[2]:*]} )) && { command=$words[2]; shift words; ((CURRENT--)) }\n  case $command in\n")
	for _, c := range commands {
		list := c.options()
		if len(list) == 0 {
			continue
		}
		if c.name == "completion" {
			fmt.Fprintf(w, "  %s) _arguments '1:shell:(%s)' ;;\n", c.name, dashed(c))
			continue
		}
		fmt.Fprintf(w, "  %s) _arguments", c.name)
		for _, o := range list {
			spec := fmt.Sprintf("*-%s[%s]", o.name, zshText.Replace(brief(o.about)))
			switch {
			case o.values == "-":
			case o.values == "DIR":
				spec += ":folder:_files -/"
			case o.values == "FILE":
				spec += ":file:_files"
			case strings.HasPrefix(o.values, "*"):
				spec += ":file:_files -g \"" + o.values + "\""
			case o.values == "":
				spec += ":value:"
			default:
				spec += ":value:(" + strings.ReplaceAll(o.values, ":", `\:`) + ")"
			}
			fmt.Fprintf(w, " \\\n    %s", quote(spec))
		}
		if c.name == "ask" {
			fmt.Fprintf(w, " \\\n    '*:question:'")
		}
		fmt.Fprintln(w, " ;;")
	}
	fmt.Fprint(w, "  esac\n}\ncompdef _anytime_server server\n")
}
