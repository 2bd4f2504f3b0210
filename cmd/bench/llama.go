package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// llama starts a llama-server on the model and hands its address to use. Without a llama-server it says so.
func (b *bench) llama(ctx context.Context, use func(address string) error, flags ...string) error {
	path := cmp.Or(os.Getenv("ANYTIME_LLAMA_SERVER"), filepath.Join("engine", "llama-server", "bin", "llama-server"))
	if _, err := os.Stat(path); err != nil {
		b.printf("Not measured: llama-server is not there; run engine/llama-server/fetch.sh, or set ANYTIME_LLAMA_SERVER.\n")
		return nil
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, append([]string{"-m", b.model, "--host", "127.0.0.1", "--port", port,
		"-t", strconv.Itoa(b.threads), "-tb", strconv.Itoa(b.threads), "--offline"}, flags...)...)
	address := "http://localhost:" + port // by a name: the server's own address is the one with a number
	return process(ctx, cmd, well(address+"/health"), func() error { return use(address) })
}

// freePort finds one.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // loopback
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

// well says whether a server replies so.
func well(url string) func() bool {
	return func() bool {
		r, err := http.Get(url) //nolint:noctx // loopback
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == http.StatusOK
	}
}

// process starts a server and ends it after use, which begins when it is ready.
func process(ctx context.Context, cmd *exec.Cmd, ready func() bool, use func() error) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ollama has a process for each model
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-ended //nolint:errcheck // it was killed
	}()
	for !ready() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			ended <- err
			return fmt.Errorf("%s ended: %w", filepath.Base(cmd.Path), cmp.Or(err, io.EOF))
		case <-time.After(50 * time.Millisecond):
		}
	}
	return use()
}
