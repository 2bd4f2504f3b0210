// Package sse writes and reads server-sent events.
package sse

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"iter"
	"net/http"
	"strings"
)

// Event is one event; empty fields are left out.
type Event struct {
	ID   string
	Type string
	Data []byte
}

// Writer writes events to one reply, each flushed. It is for one goroutine.
type Writer struct {
	w       http.ResponseWriter
	control *http.ResponseController
	buf     bytes.Buffer
}

// NewWriter begins an event stream with status 200. How long it waits for its client is w's affair.
func NewWriter(w http.ResponseWriter) (*Writer, error) {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-cache")
	h.Set("X-Accel-Buffering", "no") // nginx would hold events back
	w.WriteHeader(http.StatusOK)
	out := &Writer{w: w, control: http.NewResponseController(w)}
	return out, out.flush()
}

// Event writes an event.
func (w *Writer) Event(e Event) error {
	if e.ID != "" {
		w.field("id", []byte(e.ID))
	}
	if e.Type != "" {
		w.field("event", []byte(e.Type))
	}
	for line := range bytes.SplitSeq(e.Data, []byte("\n")) {
		w.field("data", line)
	}
	w.buf.WriteByte('\n')
	return w.flush()
}

// Comment writes a line that readers skip; it keeps the connection open, and finds out whether it is.
func (w *Writer) Comment(text string) error {
	w.field("", []byte(text))
	w.buf.WriteByte('\n')
	return w.flush()
}

func (w *Writer) field(name string, value []byte) {
	w.buf.WriteString(name)
	w.buf.WriteString(": ")
	w.buf.Write(value)
	w.buf.WriteByte('\n')
}

func (w *Writer) flush() error {
	_, err := w.w.Write(w.buf.Bytes())
	w.buf.Reset()
	if err != nil {
		return err
	}
	if err := w.control.Flush(); !errors.Is(err, http.ErrNotSupported) { // by writers that are no connections
		return err
	}
	return nil
}

// maxLine is more than any event of ours has in one line.
const maxLine = 64 << 20

// Read yields the events of a stream until it ends; an event that the end cut off is dropped. Comments are skipped.
func Read(r io.Reader) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, maxLine)
		var e Event
		some := false
		for lines.Scan() {
			line := strings.TrimSuffix(lines.Text(), "\r")
			if line == "" {
				if some && !yield(e, nil) {
					return
				}
				e, some = Event{}, false
				continue
			}
			name, value, _ := strings.Cut(line, ":")
			value = strings.TrimPrefix(value, " ")
			switch name {
			case "id":
				e.ID, some = value, true
			case "event":
				e.Type, some = value, true
			case "data":
				if e.Data != nil {
					e.Data = append(e.Data, '\n')
				}
				e.Data, some = append(e.Data, value...), true
			}
		}
		if err := lines.Err(); err != nil {
			yield(Event{}, err)
		}
	}
}
