package main

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"time"
)

// Connections that are made and not accepted yet when the door closes are still served; later ones are refused.
func TestTurnAway(t *testing.T) {
	l, err := listen(t.Context(), "127.0.0.1:0", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	made, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer made.Close()
	unaccepted := turnAway(l)
	if n := unaccepted(); n != 1 {
		t.Fatalf("%d connections wait, want 1", n)
	}
	var failed net.Error
	if c, err := net.DialTimeout("tcp", l.Addr().String(), 50*time.Millisecond); !errors.As(err, &failed) || !failed.Timeout() {
		t.Errorf("one more: %v, %v", c, err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n := unaccepted(); n != 0 {
		t.Errorf("%d connections wait after that, want none", n)
	}
	_ = l.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := made.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	if c, err := net.Dial("tcp", l.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after it is closed: %v, %v", c, err)
	}
}
