package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"anytime/internal/anytime"
)

const (
	deadlineAt   = 8                     // at a time
	deadlineLate = 50 * time.Millisecond // over the deadline that counts as in time
	answerTokens = 16
)

// asked is a request with a deadline, and what became of it as its client saw it.
type asked struct {
	at, deadline time.Duration
	fixed        bool // the budget is tokens instead of the deadline
	tokens       int

	refused bool
	retry   time.Duration // then: after which it may ask again
	whole   bool          // an answer of its own that was not cut off
	thought int
	took    time.Duration
	err     error
}

// deadlines measures how deadlines are kept: some at a time, and when twice as many come as can be served, against the same requests with
// a token budget that on an idle server would just make their deadline, served first come first served.
func (b *bench) deadlines(ctx context.Context) error {
	var closed, open []asked
	var floor, pace time.Duration
	row := func(load, server string, list []asked) { b.printf("| %s | %s | %s |\n", load, server, summary(list)) }
	const full, twice = "8 at a time", "twice as many as that"
	err := b.served(ctx, func(url string) error {
		var err error
		if floor, pace, err = measureFloor(ctx, url); err != nil {
			return err
		}
		b.printf("%d deadlines of 1.5 to 10 times what an answer at once takes, here %v with the prompt's prefill; a token of thinking takes %v\n"+
			"on the idle server. FIFO has the same requests with the token budget that would make their deadline there, %d at a time.\n"+
			"In time is by the deadline + %v, as the client sees it.\n\n", b.count, floor.Round(time.Millisecond), pace.Round(10*time.Microsecond), deadlineAt, deadlineLate)
		b.printf("| load | server | refused | admitted: in time | with a whole answer, in time | worst overshoot | of all: answered in time | thinking, tokens |\n|---|---|---|---|---|---|---|---|\n")
		rng := rand.New(rand.NewPCG(1, 1)) //nolint:gosec // not a secret
		closed = drawDeadlines(rng, floor, b.count)
		began := time.Now()
		if err := atATime(ctx, url, closed); err != nil {
			return err
		}
		row(full, "Anytime", closed)
		gap := time.Since(began) / time.Duration(b.count)
		open = drawDeadlines(rng, floor, b.count)
		at := time.Duration(0)
		for i := range open {
			at += time.Duration(rng.ExpFloat64() * float64(gap) / 2)
			open[i].at = at
		}
		if err := asTheyCome(ctx, url, open, len(open)); err != nil {
			return err
		}
		row(twice, "Anytime", open)
		return nil
	})
	if err != nil {
		return err
	}
	budgets := func(list []asked) []asked {
		fixed := make([]asked, len(list))
		for i, a := range list {
			fixed[i] = asked{at: a.at, deadline: a.deadline, fixed: true, tokens: int((a.deadline - floor) / pace)}
		}
		return fixed
	}
	closed, open = budgets(closed), budgets(open)
	return b.served(ctx, func(url string) error {
		if err := atATime(ctx, url, closed); err != nil {
			return err
		}
		row(full, "FIFO", closed)
		if err := asTheyCome(ctx, url, open, deadlineAt); err != nil {
			return err
		}
		row(twice, "FIFO", open)
		return nil
	}, "-elastic", "off")
}

// measureFloor returns what an answer at once takes, and a token of thinking, on an idle server.
func measureFloor(ctx context.Context, url string) (floor, pace time.Duration, err error) {
	var floors, paces []float64
	for range 7 {
		at := asked{fixed: true}
		think := asked{fixed: true, tokens: 100}
		at.send(ctx, url)
		think.send(ctx, url)
		if at.err != nil || think.err != nil {
			return 0, 0, fmt.Errorf("measure the floor: %w", firstError(at.err, think.err))
		}
		floors = append(floors, float64(at.took))
		paces = append(paces, float64(think.took-at.took)/float64(max(1, think.thought)))
	}
	return time.Duration(median(floors)), time.Duration(max(1, median(paces))), nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func drawDeadlines(rng *rand.Rand, floor time.Duration, n int) []asked {
	list := make([]asked, n)
	for i := range list {
		list[i].deadline = time.Duration(float64(floor) * math.Exp(math.Log(1.5)+rng.Float64()*math.Log(10/1.5)))
	}
	return list
}

// atATime sends the requests one after another, some at a time. A client that is refused waits before it asks the next.
func atATime(ctx context.Context, url string, list []asked) error {
	next := make(chan *asked)
	var wg sync.WaitGroup
	for range deadlineAt {
		wg.Go(func() {
			for a := range next {
				if a.send(ctx, url); a.refused {
					time.Sleep(a.retry) // as it was told
				}
			}
		})
	}
	for i := range list {
		next <- &list[i]
	}
	close(next)
	wg.Wait()
	return failures(list)
}

// asTheyCome sends the requests at their times, at most so many at once; the others queue.
func asTheyCome(ctx context.Context, url string, list []asked, most int) error {
	began := time.Now()
	places := make(chan struct{}, most)
	var wg sync.WaitGroup
	for i := range list {
		a := &list[i]
		select {
		case <-time.After(time.Until(began.Add(a.at))):
		case <-ctx.Done():
			return ctx.Err()
		}
		came := time.Now()
		wg.Go(func() {
			places <- struct{}{}
			a.send(ctx, url)
			<-places
			a.took = time.Since(came)
		})
	}
	wg.Wait()
	return failures(list)
}

func failures(list []asked) error {
	for _, a := range list {
		if a.err != nil {
			return a.err
		}
	}
	return nil
}

// send asks and waits for what becomes of it.
func (a *asked) send(ctx context.Context, url string) {
	began := time.Now()
	a.err = func() error {
		limit := a.deadline.Round(time.Millisecond).String()
		if a.fixed {
			limit = fmt.Sprint(a.tokens)
		}
		body, err := json.Marshal(map[string]any{"problem": problem(), "temperature": 0, "answer_tokens": answerTokens, "budget": limit})
		if err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/solve", bytes.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		r, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer r.Body.Close()
		data, err := io.ReadAll(r.Body)
		switch {
		case err != nil:
			return err
		case r.StatusCode == http.StatusTooManyRequests:
			a.refused = true
			seconds, err := strconv.Atoi(r.Header.Get("Retry-After"))
			a.retry = time.Duration(seconds) * time.Second
			return err
		case r.StatusCode != http.StatusOK:
			return fmt.Errorf("status %d: %s", r.StatusCode, data)
		}
		var reply anytime.Reply
		if err := json.Unmarshal(data, &reply); err != nil {
			return err
		}
		a.thought = reply.Usage.ThinkingTokens
		a.whole = reply.Answer != nil && (reply.Stop.Answer == "stop" || reply.Stop.Answer == "length")
		return nil
	}()
	a.took = time.Since(began)
}

// summary is a list's row.
func summary(list []asked) string {
	var refused, admitted, kept, whole float64
	worst := time.Duration(math.MinInt64)
	var thought []float64
	for _, a := range list {
		if a.refused {
			refused++
			continue
		}
		admitted++
		over := a.took - a.deadline
		worst = max(worst, over)
		if over <= deadlineLate {
			kept++
			if a.whole {
				whole++
			}
		}
		thought = append(thought, float64(a.thought))
	}
	slices.Sort(thought)
	if admitted == 0 {
		return fmt.Sprintf("%.0f | – | – | – | 0 | –", refused)
	}
	return fmt.Sprintf("%.0f | %.3f | %.3f | %v | %.3f | %.0f", refused, kept/admitted, whole/admitted, worst.Round(time.Millisecond), whole/float64(len(list)), median(thought))
}
