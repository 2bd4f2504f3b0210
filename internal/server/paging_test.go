package server_test

import (
	"net/url"
	"testing"
	"time"

	"anytime/api"
	"anytime/internal/decode/decodetest"
)

// Runs that begin in one moment are listed page by page, none left out and none twice.
func TestPages(t *testing.T) {
	b := newSite(t, decodetest.Options{})
	const runs = 12
	for range runs / 4 {
		get[api.ChatCompletion](b, "POST", "/v1/chat/completions", chat(`"n": 4, "thinking_budget": 2`))
	}
	seen := map[string]int{}
	path := "/solve?limit=1"
	for range runs + 1 {
		page := get[api.RunList](b, "GET", path, "")
		for _, r := range page.Runs {
			seen[r.Id]++
			path = "/solve?limit=1&before=" + url.QueryEscape(r.Created.Format(time.RFC3339Nano))
		}
	}
	if len(seen) != runs {
		t.Errorf("%d of %d runs are on the pages", len(seen), runs)
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("run %s is on %d pages", id, n)
		}
	}
}
