package server

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"anytime/internal/anytime"
	"anytime/internal/decode"
)

// Limits bound what a key may use. Zero is no bound.
type Limits struct {
	Runs     int  // under way at once
	Requests Rate // but for those that end runs
	// Thinking is counted when a run has ended, for only then it is known. A run that is admitted is not cut by it: what goes
	// beyond is a debt, for which later runs wait.
	Thinking Rate // tokens
}

// Rate is an allowance: at most N at once, and so many in each Per after that, evenly.
type Rate struct {
	N   int
	Per time.Duration
}

// Quota counts what keys use: for several servers together, where they share one. Its methods may be called concurrently; name is a
// key's and says what is counted.
type Quota interface {
	// Take takes n from an allowance, or, where that has less, nothing.
	Take(ctx context.Context, name string, allowed Rate, n int) (Allowance, error)
	// Charge takes n from an allowance whether it has them or not.
	Charge(ctx context.Context, name string, allowed Rate, n int) error
	// Hold takes one of most places until release is called; nil: none is free. The places of a server that dies become free again
	// by themselves.
	Hold(ctx context.Context, name string, most int) (release func(), err error)
}

// Allowance is how an allowance stands after a Take.
type Allowance struct {
	Taken bool
	Left  int           // not below 0
	Full  time.Duration // until it is whole again
	Wait  time.Duration // where nothing was taken: until it can be
}

// counts is a Quota of this process.
type counts struct {
	mu       sync.Mutex
	held     map[string]int
	limiters map[string]*rate.Limiter
}

var _ Quota = (*counts)(nil)

func newCounts() *counts {
	return &counts{held: map[string]int{}, limiters: map[string]*rate.Limiter{}}
}

func (c *counts) limiter(name string, allowed Rate) *rate.Limiter {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.limiters[name]
	if l == nil {
		l = rate.NewLimiter(rate.Limit(float64(allowed.N)/allowed.Per.Seconds()), allowed.N)
		c.limiters[name] = l
	}
	return l
}

// Take implements Quota.
func (c *counts) Take(_ context.Context, name string, allowed Rate, n int) (Allowance, error) {
	l, now := c.limiter(name, allowed), time.Now()
	taken := l.AllowN(now, n)
	left := l.TokensAt(now)
	each := float64(allowed.Per) / float64(allowed.N)
	a := Allowance{Taken: taken, Left: int(max(0, left)), Full: time.Duration((float64(allowed.N) - left) * each)}
	if !taken {
		a.Wait = time.Duration((float64(n) - left) * each)
	}
	return a, nil
}

// Charge implements Quota.
func (c *counts) Charge(_ context.Context, name string, allowed Rate, n int) error {
	l, now := c.limiter(name, allowed), time.Now()
	for ; n > 0; n -= allowed.N { // a limiter lends no more than its burst at once
		l.ReserveN(now, min(n, allowed.N))
	}
	return nil
}

// Hold implements Quota.
func (c *counts) Hold(_ context.Context, name string, most int) (release func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held[name] >= most {
		return nil, nil
	}
	c.held[name]++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.held[name]--
	}, nil
}

// countRequest counts a request of a key.
func (s *Server) countRequest(w http.ResponseWriter, c *call) error {
	return s.take(w, c, "requests", c.key.limits.Requests, "request_limit", "%d requests in %v are allowed to this key")
}

// take takes one from an allowance, and tells the client how it stands, as OpenAI's servers do.
func (s *Server) take(w http.ResponseWriter, c *call, what string, allowed Rate, code, message string) error {
	if allowed.N == 0 {
		return nil
	}
	a, err := s.cfg.Quota.Take(c.Context(), c.key.name+"/"+what, allowed, 1)
	if err != nil {
		s.uncounted(c.key, err)
		return nil
	}
	h := w.Header()
	h.Set("X-Ratelimit-Limit-"+what, strconv.Itoa(allowed.N))
	h.Set("X-Ratelimit-Remaining-"+what, strconv.Itoa(a.Left))
	h.Set("X-Ratelimit-Reset-"+what, a.Full.Round(time.Millisecond).String())
	if a.Taken {
		return nil
	}
	s.metrics.limited.WithLabelValues(what).Inc()
	wait := int(math.Ceil(a.Wait.Seconds()))
	return &httpError{status: http.StatusTooManyRequests, kind: typeRate, code: code, retryAfter: max(1, wait),
		message: fmt.Sprintf(message+"; try again in %d s", allowed.N, allowed.Per, max(1, wait))}
}

// place holds a run's place within its key's limits. The run, or who could not start it, calls ended once.
func (s *Server) place(w http.ResponseWriter, c *call) (ended func(thinkingTokens int), err error) {
	k := c.key
	release := func() {}
	if most := k.limits.Runs; most > 0 {
		held, err := s.cfg.Quota.Hold(c.Context(), k.name+"/runs", most)
		switch {
		case err != nil:
			s.uncounted(k, err)
		case held == nil:
			s.metrics.limited.WithLabelValues("runs").Inc()
			return nil, &httpError{status: http.StatusTooManyRequests, kind: typeRate, code: "run_limit", retryAfter: 1,
				message: fmt.Sprintf("%d runs at once are allowed to this key, and so many are under way; wait for one, or interrupt it", most)}
		default:
			release = held
		}
	}
	if err := s.take(w, c, "tokens", k.limits.Thinking, "thinking_limit", "%d thinking tokens in %v are allowed to this key"); err != nil {
		release()
		return nil, err
	}
	return func(tokens int) {
		release()
		if k.limits.Thinking.N == 0 {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := s.cfg.Quota.Charge(ctx, k.name+"/tokens", k.limits.Thinking, tokens-1); err != nil { // take had one already
			s.uncounted(k, err)
		}
	}, nil
}

// uncounted logs that something was let through because it could not be counted: better so than to refuse everyone.
func (s *Server) uncounted(k key, err error) {
	s.log.Warn("a key's use cannot be counted, and is not limited", "key", k.name, "error", err)
}

// start starts runs within the limits of the caller's key: all, or none.
func (s *Server) start(w http.ResponseWriter, c *call, reqs ...anytime.Request) (ids []string, err error) {
	defer func() {
		if err != nil {
			for _, id := range ids { // those that have ended do not mind
				s.cfg.Solver.Leave(id)
			}
		}
	}()
	for _, req := range reqs {
		if req.Ended, err = s.place(w, c); err != nil {
			return ids, err
		}
		id, err := s.cfg.Solver.Start(c.Context(), req)
		if err != nil {
			req.Ended(0)
			var input *decode.InputError
			if c.schema != "" && errors.As(err, &input) && input.Field == "grammar" { // which the client did not send
				err = invalid(c.schema, "%s: the grammar made of it: %s", c.schema, input.Reason)
			}
			return ids, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}
