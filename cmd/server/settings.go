package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// setting is a field of Config by its names.
type setting struct {
	key      string // in the file
	flag     string // "" none
	env      string
	help     string
	complete string
	value    reflect.Value
}

// settings lists the fields of Config, or of another struct with its tags, in order.
func settings(c any) []setting {
	v := reflect.ValueOf(c).Elem()
	var list []setting
	for i := range v.NumField() {
		if !v.Type().Field(i).IsExported() {
			continue
		}
		tag := v.Type().Field(i).Tag
		s := setting{key: tag.Get("yaml"), flag: tag.Get("flag"), help: tag.Get("help"), complete: tag.Get("complete"), value: v.Field(i)}
		if s.flag == "" {
			s.flag = strings.ReplaceAll(s.key, "_", "-")
		}
		s.env = "ANYTIME_" + strings.ToUpper(strings.ReplaceAll(s.flag, "-", "_"))
		if s.flag == "-" {
			s.flag, s.env = "", "ANYTIME_"+strings.ToUpper(s.key)
		}
		list = append(list, s)
	}
	return list
}

// load returns the settings: defaults, then the file, then the environment, then flags. They are not validated. env is os.LookupEnv.
// -h is flag.ErrHelp.
func load(args []string, env func(string) (string, bool)) (Config, error) {
	c := defaults()
	list := settings(&c)
	given := map[string][]string{} // by flag
	set := flag.NewFlagSet("server", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	file, _ := env("ANYTIME_CONFIG")
	set.StringVar(&file, "config", file, "")
	for _, s := range list {
		if s.flag != "" {
			set.Func(s.flag, "", func(text string) error {
				given[s.flag] = append(given[s.flag], text)
				return nil
			})
		}
	}
	if err := set.Parse(args); err != nil {
		return c, err
	}
	if set.NArg() > 0 {
		return c, fmt.Errorf("%q is not understood: settings are flags, and server -h lists them", set.Arg(0))
	}
	if file != "" {
		if err := c.readFile(file); err != nil {
			return c, err
		}
	}
	var errs []error
	apply := func(s setting, source string, texts []string) {
		if err := s.set(texts); err != nil {
			if s.flag == "" {
				texts = []string{"wrong"} // it is secret
			}
			errs = append(errs, fmt.Errorf("%s is %q: it %w", source, strings.Join(texts, ", "), err))
		}
	}
	for _, s := range list {
		if text, ok := env(s.env); ok && text != "" {
			texts := []string{text}
			if s.isList() {
				texts = strings.Split(text, ",")
			}
			apply(s, s.env, texts)
		}
		if texts := given[s.flag]; texts != nil {
			apply(s, "-"+s.flag, texts)
		}
	}
	if token, ok := env("HF_TOKEN"); ok && c.HubToken == "" {
		c.HubToken = token
	}
	errs = append(errs, c.readKeys(env))
	return c, errors.Join(errs...)
}

func (s setting) isList() bool {
	k := s.value.Kind()
	return k == reflect.Slice || k == reflect.Map
}

// set takes a value from its text. A list is replaced by all texts; of other settings the last counts.
func (s setting) set(texts []string) (err error) {
	text := texts[len(texts)-1]
	switch v := s.value.Addr().Interface().(type) {
	case *string:
		*v = text
	case *int:
		if *v, err = strconv.Atoi(text); err != nil {
			return errors.New("must be a whole number")
		}
	case *float64:
		if *v, err = strconv.ParseFloat(text, 64); err != nil {
			return errors.New("must be a number")
		}
	case *time.Duration:
		if *v, err = time.ParseDuration(text); err != nil {
			return errors.New("must be a duration, such as 500ms, 30s or 720h")
		}
	case *Size:
		*v, err = parseSize(text)
	case *[]string:
		*v = texts
	case *[]ModelConfig:
		*v = nil
		for _, path := range texts {
			*v = append(*v, ModelConfig{Path: path})
		}
	case *map[string]float64:
		for _, text := range texts {
			level, share, _ := strings.Cut(text, "=")
			if (*v)[level], err = strconv.ParseFloat(share, 64); err != nil || level == "" {
				return errors.New("must be LEVEL=SHARE, such as low=0.125")
			}
		}
	default:
		panic(fmt.Sprintf("setting %s has a type that no text is read for", s.key))
	}
	return err
}

// text is the value as it is written.
func (s setting) text() string {
	switch v := s.value.Interface().(type) {
	case []string:
		return strings.Join(v, ",")
	case []ModelConfig:
		return ""
	case map[string]float64:
		var all []string
		for _, level := range slices.Sorted(maps.Keys(v)) {
			all = append(all, fmt.Sprintf("%s=%v", level, v[level]))
		}
		return strings.Join(all, ",")
	default:
		return fmt.Sprint(v)
	}
}

// manual writes what -h shows.
func manual(w io.Writer) {
	fmt.Fprint(w, "server serves reasoning models: an answer at any thinking budget, deadline or interrupt.\n\n")
	for _, c := range commands {
		fmt.Fprintf(w, "  server %-19s %s\n", c.name+" "+c.args, c.about)
	}
	fmt.Fprint(w, `
A setting is taken from the defaults, then the YAML file that -config or ANYTIME_CONFIG names, then the environment, then flags.
A flag that may be given several times replaces what the file has; in the environment, commas divide several values.

`)
	c := defaults()
	for _, s := range settings(&c) {
		names := []string{"-" + s.flag, s.env, s.key + ":"}
		if s.flag == "" {
			names = names[1:]
		}
		fmt.Fprintf(w, "  %s", strings.Join(names, "  "))
		if text := s.text(); text != "" {
			fmt.Fprintf(w, "  (%s)", text)
		}
		fmt.Fprintln(w)
		wrap(w, s.help)
	}
	for _, part := range []struct {
		of     string
		fields any
	}{{"the models in the file", &ModelConfig{}}, {"a model's engines", &EngineConfig{}}} {
		fmt.Fprintf(w, "\nEach of %s may have:\n\n", part.of)
		for _, s := range settings(part.fields) {
			fmt.Fprintf(w, "  %s:\n", s.key)
			wrap(w, s.help)
		}
	}
	fmt.Fprint(w, `
Files: engine_lib (read), data (written). It listens on addr only, and speaks to nobody but the hub, the addresses of -model and the
engines.
SIGTERM or SIGINT ends it: nothing more is admitted, runs in flight answer from the thinking they have, replies are delivered.
It exits with 0 when all that was done within grace, with 1 if not or after another error, with 2 if its settings are wrong.
`)
}

// wrap writes indented lines of a text.
func wrap(w io.Writer, text string) {
	const width = 100
	line := "     "
	for _, word := range strings.Fields(text) {
		if len(line)+1+len(word) > width {
			fmt.Fprintln(w, line)
			line = "     "
		}
		line += " " + word
	}
	fmt.Fprintln(w, line)
}
