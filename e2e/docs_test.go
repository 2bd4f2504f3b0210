package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// What of the documentation is executed. A file's blocks of sh run one after the other in one shell, in a folder that looks like a clone
// of the project, against a server of their own that stands for 127.0.0.1:8080. A block passes if its commands exit with 0 and no curl
// in it gets a status of 400 or more.
const howToMark = `a block of sh in the documentation is run by this test. On the line before it there may stand

    <!-- not run: REASON -->     where it cannot be run here: it wants a GPU, a download, Docker, systemd, …
    <!-- long: REASON -->        where it takes more than some seconds: make test-all runs it

Otherwise put it right: write the server as 127.0.0.1:8080, keep one that serves (bin/server -model …) in the foreground, for it is stopped
as soon as it is ready, and leave no … in what is to be typed.`

// block is a fenced block of sh.
type block struct {
	line         int
	text         string
	notRun, long string // why; "" it is run
}

var (
	fence  = regexp.MustCompile("^ *```(.*)$")
	marker = regexp.MustCompile(`^ *<!-- (not run|long): (.+) -->$`)
	// A busy machine may not meet the deadlines of the examples.
	deadline = regexp.MustCompile(`\b\d+s\b`)
)

func blocks(path string) ([]block, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var list []block
	var open *block
	inside := false
	before := ""
	for i, line := range strings.Split(string(data), "\n") {
		m := fence.FindStringSubmatch(line)
		switch {
		case m != nil && !inside:
			inside = true
			if m[1] == "sh" {
				open = &block{line: i + 1}
				if why := marker.FindStringSubmatch(before); why != nil && why[1] == "long" {
					open.long = why[2]
				} else if why != nil {
					open.notRun = why[2]
				}
			}
		case m != nil:
			if inside = false; open != nil {
				list = append(list, *open)
				open = nil
			}
		case open != nil:
			open.text += line + "\n"
		case strings.TrimSpace(line) == "":
			continue // a marker may stand a line above
		}
		before = line
	}
	if inside {
		return nil, fmt.Errorf("%s: a block is not closed", path)
	}
	return list, nil
}

// shell is what the blocks run in: curl fails where the server does, but not where the next command in a pipe has read enough.
const shell = `set -eEu
curl() {
  local code=0
  command curl --fail-with-body --max-time 300 "$@" || code=$?
  case $code in 0|23|141) ;; *) printf 'curl %s: exit status %s\n' "$*" "$code" >>"$FAILED" ;; esac
  return $code
}
end_of_block() { if [ -s "$FAILED" ]; then cat "$FAILED"; exit 1; fi; }
`

// serverScript stands for bin/server. One that serves is stopped as soon as it is ready.
const serverScript = `#!/usr/bin/env bash
set -eu
case ${1-} in
ask) shift; exec "$SERVER" ask -server "$URL" "$@" ;;
doctor) exec "$SERVER" "$@" -addr 127.0.0.1:0 -threads 1 ;;
health) exec "$SERVER" health -addr "${URL#http://}" ;;
completion|version|help|-h) exec "$SERVER" "$@" ;;
esac
exec 3< <(exec "$SERVER" "$@" -addr 127.0.0.1:0 -threads 1 -data "$(mktemp -d -p "$SCRATCH")" 2>&1)
pid=$!
while read -r line <&3; do
  printf '%s\n' "$line"
  case $line in *' is ready. '*) kill -TERM "$pid" ;; esac
done
wait "$pid"
`

// trainerScript stands for bin/train. Threads of an engine wait for one another: on a busy machine one is faster than two.
const trainerScript = `#!/usr/bin/env bash
case ${1-} in
rl|rollout|eval) exec "$TRAINER" "$@" -threads 1 ;;
esac
exec "$TRAINER" "$@"
`

var trainer = sync.OnceValues(func() (string, error) {
	path := filepath.Join(filepath.Dir(binary), "train")
	build := exec.Command("go", "build", "-o", path, "anytime/cmd/train")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build bin/train: %w\n%s", err, out)
	}
	return path, nil
})

// clone makes a folder in which what the documentation says can be typed.
func clone(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if slices.Contains([]string{"bin", "data", "engine"}, e.Name()) || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if err := os.Symlink(filepath.Join(root, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	for _, sub := range []string{"bin", "engine"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	lib, err := filepath.Abs(libraries(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(lib, filepath.Join(dir, "engine", "lib")); err != nil {
		t.Fatal(err)
	}
	for name, script := range map[string]string{"server": serverScript, "train": trainerScript} {
		if err := os.WriteFile(filepath.Join(dir, "bin", name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestDocs(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Fatal("the documentation's examples want curl (Debian's package curl)")
	}
	files, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	all := os.Getenv("ANYTIME_TEST_ALL") != ""
	ran, left := 0, map[string]int{}
	for _, path := range append([]string{"../README.md"}, files...) {
		list, err := blocks(path)
		if err != nil {
			t.Fatal(err)
		}
		var run []block
		for _, b := range list {
			switch {
			case b.notRun != "":
				left[b.notRun]++
			case b.long != "" && !all:
				left["for make test-all: "+b.long]++
			default:
				run = append(run, b)
			}
		}
		if len(run) > 0 {
			t.Run(filepath.Base(path), func(t *testing.T) { ran += execute(t, path, run) })
		}
	}
	t.Logf("%d blocks ran", ran)
	for why, n := range left {
		t.Logf("%d were not run: %s", n, why)
	}
	if ran == 0 {
		t.Error("no block ran")
	}
}

// execute runs the blocks of a file, and returns how many did.
func execute(t *testing.T, path string, list []block) int {
	dir := clone(t)
	train := ""
	if slices.ContainsFunc(list, func(b block) bool { return strings.Contains(b.text, "bin/train") }) {
		var err error
		if train, err = trainer(); err != nil {
			t.Fatal(err)
		}
	}
	scratch := t.TempDir()
	// What make run serves, but for where the test stands.
	config, err := os.ReadFile(filepath.Join(dir, "models", "reasoner", "server.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	settings := filepath.Join(scratch, "server.yaml")
	if err := os.WriteFile(settings, bytes.ReplaceAll(config, []byte("models/reasoner/"), []byte(dir+"/models/reasoner/")), 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, filepath.Join(scratch, ".local", "share", "anytime"), "-config", settings)
	failed := filepath.Join(scratch, "failed")

	script := bytes.NewBufferString(shell)
	for _, b := range list {
		text := strings.NewReplacer("127.0.0.1:8080", strings.TrimPrefix(s.url, "http://"), "localhost:8080", strings.TrimPrefix(s.url, "http://")).Replace(b.text)
		text = deadline.ReplaceAllString(text, "200s")
		fmt.Fprintf(script, "echo %d >&3\n%s\nend_of_block\n", b.line, text)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute) // a last resort
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", script.String())
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "FAILED="+failed, "SCRATCH="+scratch, "SERVER="+binary, "TRAINER="+train, "URL="+s.url, "HOME="+scratch, "NO_COLOR=1")
	progress, report, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{report}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = patience
	err = cmd.Start()
	report.Close()
	if err != nil {
		t.Fatal(err)
	}
	begun := []string{}
	for lines := bufio.NewScanner(progress); lines.Scan(); {
		begun = append(begun, lines.Text())
	}
	progress.Close()
	if err := cmd.Wait(); err != nil {
		text := out.String()
		t.Errorf("%s:%s: %v\n%s\n\n%s", path, begun[len(begun)-1], err, text[max(0, len(text)-4000):], howToMark)
		return len(begun) - 1
	}
	if len(begun) != len(list) {
		t.Errorf("%s: %d of %d blocks ran; does one end the shell?", path, len(begun), len(list))
	}
	return len(begun)
}

// What the documentation links to in the project is there.
func TestDocsLinks(t *testing.T) {
	var files []string
	for _, pattern := range []string{"../*.md", "../docs/*.md", "../docs/adr/*.md", "../models/*/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	link := regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), string(m[1]))); err != nil {
				t.Errorf("%s links to %s, which is not there", path, m[1])
			}
		}
	}
}

// Every operation of the contract has a section in docs/api.md, with an example.
func TestAPIIsDocumented(t *testing.T) {
	contract, err := os.ReadFile("../api/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, part := range strings.Split(string(page), "\n### `")[1:] {
		name, text, _ := strings.Cut(part, "`")
		sections[name] = text
	}
	paths, _, _ := strings.Cut(string(contract), "\ncomponents:")
	route, known := "", map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^(?:  (/\S*):|    (get|post|put|delete):)$`).FindAllStringSubmatch(paths, -1) {
		if m[1] != "" {
			route = m[1]
			continue
		}
		name := strings.ToUpper(m[2]) + " " + route
		if known[name] = true; !strings.Contains(sections[name], "```sh") {
			t.Errorf("docs/api.md has no section \"### `%s`\" with an example in a block of sh", name)
		}
	}
	if len(known) < 20 {
		t.Errorf("only %d operations were found in the contract", len(known))
	}
	concepts, err := os.ReadFile("../docs/concepts.md")
	if err != nil {
		t.Fatal(err)
	}
	causes := regexp.MustCompile(`enum: \[(natural, [^]]+)\]`).FindSubmatch(contract)
	if causes == nil {
		t.Fatal("the contract lists no causes")
	}
	for cause := range strings.SplitSeq(string(causes[1]), ", ") {
		if !strings.Contains(string(concepts), "\n| `"+cause+"` |") {
			t.Errorf("docs/concepts.md does not explain the cause %s", cause)
		}
	}
	for name := range sections {
		if !known[name] {
			t.Errorf("docs/api.md describes %s, which the contract does not have", name)
		}
	}
}
