package hub

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// maxTries is how many tries in a row may fail without a single new byte.
const maxTries = 5

// maxRetryAfter bounds the wait that a server may ask for.
const maxRetryAfter = time.Minute

// transient is an error after which it makes sense to try again.
type transient struct {
	err   error
	after time.Duration // at least
}

func (t transient) Error() string { return t.err.Error() }
func (t transient) Unwrap() error { return t.err }

// retry calls try until it succeeds, fails for good, or fails maxTries times in a row without progress.
func (h *Hub) retry(ctx context.Context, state Progress, try func() (progress bool, err error)) error {
	for fails := 0; ; {
		progress, err := try()
		var t transient
		if !errors.As(err, &t) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if progress {
			fails = 0
		}
		if fails++; fails == maxTries {
			return fmt.Errorf("gave up after %d tries: %w", maxTries, err)
		}
		wait := h.backoff << (fails - 1)
		wait = max(t.after, wait+rand.N(wait/4+1)) // many machines must not come back at the same moment
		state.Note = fmt.Sprintf("%v; trying again in %v", err, wait.Round(time.Millisecond))
		h.progress(state)
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

var errStalled = errors.New("the connection is silent")

// watch derives a context that ends when alive has not been called for the stall time.
func (h *Hub) watch(ctx context.Context) (_ context.Context, alive, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(h.stall, func() { cancel(errStalled) })
	return ctx, func() { timer.Reset(h.stall) }, func() { timer.Stop(); cancel(nil) }
}

// requestError says of a failed request whether it may be tried again: a broken connection may, a refused redirect not.
func requestError(ctx context.Context, err error) error {
	var of *url.Error
	if errors.As(err, &of) { // its text has the whole address in it
		err = of.Err
		if at, parseErr := url.Parse(of.URL); parseErr == nil {
			err = fmt.Errorf("%s: %w", show(at), of.Err)
		}
	}
	if errors.Is(err, errRedirect) {
		return err
	}
	if cause := context.Cause(ctx); errors.Is(cause, errStalled) {
		err = cause
	}
	return transient{err: err}
}

// statusError explains a status other than success. repo is "" for a file that is not the hub's.
func (h *Hub) statusError(resp *http.Response, repo string) error {
	from := show(resp.Request.URL)
	switch code := resp.StatusCode; {
	case code == http.StatusTooManyRequests, code == http.StatusRequestTimeout, code >= 500:
		seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After")) // a date or nothing: our own backoff
		return transient{
			err:   fmt.Errorf("%s answers %s", from, resp.Status),
			after: min(time.Duration(max(seconds, 0))*time.Second, maxRetryAfter),
		}
	case repo == "" && (code == http.StatusUnauthorized || code == http.StatusForbidden):
		return fmt.Errorf("%s answers %s: this address wants a login, which is not supported for URLs outside the hub", from, resp.Status)
	case repo == "":
		return fmt.Errorf("%s answers %s: check the address", from, resp.Status)
	case !strings.EqualFold(resp.Request.URL.Host, h.base.Host):
		// The store behind the hub: its addresses are signed for a short time, the next try gets a new one.
		return transient{err: fmt.Errorf("%s answers %s", from, resp.Status)}
	}
	page := h.base.JoinPath(repo)
	switch code := resp.Header.Get("X-Error-Code"); {
	case code == "GatedRepo" && h.token == "", code == "" && resp.StatusCode == http.StatusUnauthorized && h.token == "":
		return fmt.Errorf("%s is gated or private: accept its licence at %s with your account, make a token there and set HF_TOKEN to it", repo, page)
	case code == "GatedRepo", resp.StatusCode == http.StatusForbidden:
		return fmt.Errorf("%s is gated, and the account of HF_TOKEN may not read it: accept its licence at %s, or use another token", repo, page)
	case code == "RevisionNotFound":
		return fmt.Errorf("%s has no such revision: see %s", repo, page)
	case code == "EntryNotFound":
		return fmt.Errorf("%s has no such file any more: see %s", repo, page)
	case code == "RepoNotFound" && h.token == "":
		return fmt.Errorf("there is no %s, or it is private: check the name at %s, or set HF_TOKEN", repo, page)
	case resp.StatusCode == http.StatusUnauthorized && code == "":
		return fmt.Errorf("the hub does not accept the token in HF_TOKEN (%s)", resp.Status)
	case resp.StatusCode == http.StatusNotFound, code == "RepoNotFound":
		return fmt.Errorf("there is no %s, or this account may not see it: check the name at %s", repo, page)
	}
	return fmt.Errorf("%s answers %s", from, strings.TrimSpace(resp.Status))
}
