package sse_test

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"anytime/internal/server/sse"
)

func TestWriteAndRead(t *testing.T) {
	events := []sse.Event{
		{ID: "1", Type: "run", Data: []byte(`{"a": 1}`)},
		{Data: []byte("[DONE]")},
		{ID: "2", Data: []byte("two\nlines\n")},
		{Type: "empty"},
	}
	w := httptest.NewRecorder()
	out, err := sse.NewWriter(w, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if err := out.Comment("ping"); err != nil {
			t.Fatal(err)
		}
		if err := out.Event(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "text/event-stream" || !w.Flushed {
		t.Errorf("status %d, %v, flushed %v", w.Code, w.Header(), w.Flushed)
	}
	var got []sse.Event
	for e, err := range sse.Read(w.Body) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e)
	}
	if !reflect.DeepEqual(got, events) {
		t.Errorf("read %q, want %q", got, events)
	}
}

func TestRead(t *testing.T) {
	for text, want := range map[string][]string{
		"data: a\n\ndata: b":       {"a"}, // cut off
		"data: a\r\n\r\n":          {"a"},
		"data:a\n\n":               {"a"},
		"data:  a\n\n":             {" a"},
		": comment\n\ndata: a\n\n": {"a"},
		"retry: 5\n\n":             nil,
		"data: a\nid: 1\ndata\n\n": {"a\n"},
		"":                         nil,
	} {
		var got []string
		for e, err := range sse.Read(strings.NewReader(text)) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, string(e.Data))
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	broken := io.MultiReader(strings.NewReader("data: a\n\n"), errReader{})
	var last error
	for _, err := range sse.Read(broken) {
		last = err
	}
	if !errors.Is(last, net.ErrClosed) {
		t.Errorf("error %v", last)
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, net.ErrClosed }

// TestDeadClient writes to a client that reads nothing until the buffers are full and the timeout ends the stream; and lets a
// connection be used again after a stream that ended well.
func TestDeadClient(t *testing.T) {
	failed := make(chan error, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out, err := sse.NewWriter(w, 100*time.Millisecond)
		if err != nil {
			t.Error(err)
			return
		}
		defer out.Close()
		if r.URL.Path == "/short" {
			return
		}
		for err == nil {
			err = out.Event(sse.Event{Data: []byte(strings.Repeat("x", 1<<20))})
		}
		failed <- err
	}))
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-failed:
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the stream was not ended")
	}

	for range 2 { // the second time long after the first one's write timeout
		resp, err := server.Client().Get(server.URL + "/short")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(resp.Body); err != nil {
			t.Error(err)
		}
		_ = resp.Body.Close()
		<-time.After(150 * time.Millisecond)
	}
}
