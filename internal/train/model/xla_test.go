package model_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestXLA compares the log-probabilities and gradients of XLA's CPU plugin with the engine's and those of separate sequences: the same tests
// as of the Go backend, in a program built with the tag xla.
func TestXLA(t *testing.T) {
	if os.Getenv("ANYTIME_TEST_REAL") == "" {
		t.Skip("a longer test, which fetches a plugin: make test-all runs it")
	}
	fetch := exec.Command(filepath.Join("..", "..", "..", "runs", "xla.sh"))
	var said strings.Builder
	fetch.Stderr = &said
	plugin, err := fetch.Output()
	if err != nil {
		t.Skipf("NOT TESTED: the plugin was not to be had: %s", said.String())
	}
	if _, err := exec.LookPath("cc"); err != nil {
		t.Skip("NOT TESTED: there is no C compiler to build with XLA")
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-tags", "xla", "-count=1", "-timeout=20m", "-v", "-run",
		"^(TestPackedEqualsSeparate|TestAgreesWithEngine|TestWrittenFilesAgree)$", ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1", "ANYTIME_TEST_REAL=", "ANYTIME_TEST_BACKEND=xla:"+strings.TrimSpace(string(plugin)))
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !strings.Contains(string(out), "PASS: TestAgreesWithEngine/qwen3") {
		t.Errorf("the tests fail on XLA: %v", err)
	}
}
