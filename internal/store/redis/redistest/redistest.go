// Package redistest has what tests of faults want: a redis-server of their own that can be stopped, paused and started again, and a
// proxy that plays a network.
package redistest

import (
	"net"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Server is a redis-server.
type Server struct {
	Addr string // host:port

	t    testing.TB
	args []string
	cmd  *exec.Cmd
}

// Start starts redis-server, or fails the test where it is not installed, on a free port. Its append-only file is in a folder of the
// test, so that it has its keys again when it is started again. args are settings of its own.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	return Run(t, append([]string{"--dir", t.TempDir(), "--save", "", "--appendonly", "yes"}, args...)...)
}

// Run starts redis-server with settings of its own alone, but for a free port.
func Run(t testing.TB, args ...string) *Server {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatal("redis-server is not installed (Debian's package redis-server): the tests of ANYTIME_TEST_ALL want it")
	}
	s := &Server{t: t, Addr: FreeAddr(t)}
	_, port, _ := net.SplitHostPort(s.Addr)
	s.args = append(append([]string{path}, args...), "--port", port, "--bind", "127.0.0.1")
	s.Restart()
	t.Cleanup(s.Kill)
	return s
}

// FreeAddr returns an address that nobody listens on.
func FreeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Restart starts it again, and returns when it listens.
func (s *Server) Restart() {
	s.t.Helper()
	s.cmd = exec.Command(s.args[0], s.args[1:]...)
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	const patience = 30 * time.Second
	for end := time.After(patience); ; {
		if c, err := net.Dial("tcp", s.Addr); err == nil {
			_ = c.Close()
			return
		}
		select {
		case <-tick.C:
		case <-end:
			s.t.Fatalf("redis-server does not listen after %v", patience)
		}
	}
}

// Kill kills it.
func (s *Server) Kill() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

// Pause has it do nothing until Resume.
func (s *Server) Pause() { s.signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (s *Server) Resume() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// Proxy stands between a client and its server, and can stall what passes, both ways, without closing a connection: a partition.
type Proxy struct {
	Addr string // host:port

	mu    sync.Mutex
	open  chan struct{} // closed while it passes
	conns []net.Conn
}

// StartProxy starts a proxy before a server, until the test ends.
func StartProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: l.Addr().String(), open: make(chan struct{})}
	close(p.open)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				_ = in.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, in, out)
			p.mu.Unlock()
			wg.Go(func() { p.pass(in, out) })
			wg.Go(func() { p.pass(out, in) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		p.Heal()
		p.mu.Lock()
		for _, c := range p.conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		wg.Wait()
	})
	return p
}

func (p *Proxy) pass(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		p.mu.Lock()
		open := p.open
		p.mu.Unlock()
		<-open
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// Stall holds up all that comes, until Heal.
func (p *Proxy) Stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open = make(chan struct{})
}

// Heal ends a Stall.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.open:
	default:
		close(p.open)
	}
}
