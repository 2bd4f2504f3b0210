package sse_test

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

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
	out, err := sse.NewWriter(w)
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
