package llamacpp

import (
	"bufio"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// process is a running child.
type process struct {
	cmd    *exec.Cmd
	out    *encoder[command]
	pipe   *os.File // the child's commands
	events *gob.Decoder
	stderr *tail
	wg     sync.WaitGroup

	mu      sync.Mutex
	queue   []command // not yet written; bounded by what the sequences may queue
	wake    chan struct{}
	dead    chan struct{}
	closers []io.Closer
}

// startProcess starts the child and hands it its config. The caller's goroutine must be locked to its thread until wait returns.
func startProcess(argv []string, c childConfig, log *slog.Logger) (_ *process, err error) {
	p := &process{wake: make(chan struct{}, 1), dead: make(chan struct{}), stderr: &tail{log: log}}
	defer func() {
		if err != nil {
			p.closeAll()
		}
	}()
	pipe := func() (r, w *os.File) {
		if err != nil {
			return nil, nil
		}
		if r, w, err = os.Pipe(); err == nil {
			p.closers = append(p.closers, r, w)
		}
		return r, w
	}
	commandR, commandW := pipe()
	eventR, eventW := pipe()
	errR, errW := pipe()
	if err != nil {
		return nil, fmt.Errorf("start engine: %w", err)
	}
	p.cmd = exec.Command(argv[0], argv[1:]...)
	// llama.cpp's own backtrace starts a debugger when it aborts.
	p.cmd.Env = append(os.Environ(), "GGML_NO_BACKTRACE=1")
	p.cmd.ExtraFiles = []*os.File{commandR, eventW} // 3 and 4
	p.cmd.Stdout, p.cmd.Stderr = errW, errW
	p.cmd.SysProcAttr = childAttributes()
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start engine: %w", err)
	}
	for _, f := range []*os.File{commandR, eventW, errW} {
		f.Close()
	}
	p.pipe, p.out = commandW, newEncoder[command](commandW)
	p.events = gob.NewDecoder(bufio.NewReaderSize(eventR, 1<<16))
	p.wg.Go(func() { p.stderr.read(errR) })
	p.wg.Go(func() {
		if p.out.gob.Encode(c) == nil {
			p.write()
		}
	})
	return p, nil
}

// send queues a command.
func (p *process) send(c command) {
	p.mu.Lock()
	p.queue = append(p.queue, c)
	p.mu.Unlock()
	notify(p.wake)
}

// write carries the queue to the child until it is dead.
func (p *process) write() {
	for {
		p.mu.Lock()
		list := p.queue
		p.queue = nil
		p.mu.Unlock()
		if p.out.send(list...) != nil {
			return // the reader of events sees the end, too
		}
		select {
		case <-p.wake:
		case <-p.dead:
			return
		}
	}
}

func (p *process) kill() { _ = p.cmd.Process.Kill() }

// wait ends the process and its goroutines, and returns how it ended.
func (p *process) wait() error {
	p.kill()
	err := p.cmd.Wait()
	close(p.dead)
	p.pipe.Close() // a write under way fails
	p.wg.Wait()
	p.closeAll()
	if err == nil {
		err = errors.New("it ended by itself")
	}
	if last := p.stderr.last(); last != "" {
		err = fmt.Errorf("%w (its last words: %s)", err, last)
	}
	return err
}

func (p *process) closeAll() {
	for _, c := range p.closers {
		c.Close()
	}
}

// tail logs lines and remembers the last.
type tail struct {
	log *slog.Logger

	mu    sync.Mutex
	lines []string
}

func (t *tail) read(r io.Reader) {
	lines := bufio.NewReaderSize(r, 4096)
	for {
		line, _, err := lines.ReadLine()
		if err != nil {
			return
		}
		text := strings.TrimSpace(strings.ToValidUTF8(string(line), "?"))
		if strings.Trim(text, ".") == "" {
			continue
		}
		t.log.Debug("llama.cpp", "line", text)
		t.mu.Lock()
		t.lines = append(t.lines, text)
		t.lines = t.lines[max(0, len(t.lines)-3):]
		t.mu.Unlock()
	}
}

func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.lines, " | ")
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// pause waits; false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
