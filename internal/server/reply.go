package server

import (
	"errors"
	"net/http"
	"os"
	"time"
)

// reply is a ResponseWriter that knows what was written, and waits no longer than timeout for the client to take each piece of it. So
// a client that reads a byte a second, or has vanished, holds its connection that long and no more.
type reply struct {
	http.ResponseWriter
	control *http.ResponseController
	timeout time.Duration
	status  int  // 0: not begun
	late    bool // the client did not take it in time
	bytes   int
}

// piece is how much of a reply a client must take within timeout.
const piece = 64 << 10

// newReply also bounds the wait for the request's body, whoever reads it: where no handler does, net/http itself waits for the rest.
// readBody lifts that bound.
func newReply(w http.ResponseWriter, r *http.Request, timeout time.Duration) *reply {
	out := &reply{ResponseWriter: w, control: http.NewResponseController(w), timeout: timeout}
	_ = out.control.SetWriteDeadline(time.Time{}) // of this connection's last request; a writer that cannot is no connection
	if r.ContentLength != 0 {
		_ = out.control.SetReadDeadline(time.Now().Add(timeout))
	}
	return out
}

func (w *reply) WriteHeader(status int) {
	if w.status == 0 && status >= http.StatusOK {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write leaves the deadline of its last piece in force, for what net/http still has in its buffers.
func (w *reply) Write(b []byte) (n int, err error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	patience := w.timeout
	if w.bytes == 0 {
		patience *= 2 // before the first piece net/http may wait for the rest of a body that nobody has read
	}
	for ; ; patience = w.timeout {
		_ = w.control.SetWriteDeadline(time.Now().Add(patience))
		m, err := w.ResponseWriter.Write(b[n:min(n+piece, len(b))])
		n += m
		w.bytes += m
		w.late = w.late || errors.Is(err, os.ErrDeadlineExceeded)
		if err != nil || n == len(b) {
			return n, err
		}
	}
}

// Unwrap is for http.ResponseController.
func (w *reply) Unwrap() http.ResponseWriter { return w.ResponseWriter }
