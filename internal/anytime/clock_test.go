package anytime_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"anytime/internal/anytime"
	"anytime/internal/budget"
	"anytime/internal/decode/decodetest"
)

// seenBefore is what time.Now returned at t, if someone has since set the clock forward by jump: the same moment of the monotonic
// clock under another time of day. A time.Time holds its seconds above 30 bits of nanoseconds in its first word.
func seenBefore(t time.Time, jump time.Duration) time.Time {
	*(*uint64)(unsafe.Pointer(&t)) -= uint64(int64(jump/time.Second)) << 30
	return t
}

// A deadline counts on the monotonic clock: setting the other one does not move it. This takes real time, for package synctest has
// no monotonic clock.
func TestClockIsSet(t *testing.T) {
	for _, jump := range []time.Duration{-10 * 365 * 24 * time.Hour, -time.Hour, time.Hour, 10 * 365 * 24 * time.Hour} {
		t.Run(jump.String(), func(t *testing.T) {
			t.Parallel()
			now := time.Now()
			if seen := seenBefore(now, jump); !seen.Round(0).Equal(now.Round(0).Add(-jump)) || seen.Sub(now) != 0 {
				t.Fatalf("%v became %v", now, seen)
			}
			b := newBench(t, decodetest.Options{Step: 5 * time.Millisecond})
			b.wait(b.start(ask("300"))) // so that the pace is known
			began := time.Now()
			req := ask("4s")
			req.Arrived = seenBefore(began, jump)
			reply := b.wait(b.start(req))
			took := time.Since(began)
			if reply.Stop.Cause != budget.CauseDeadline || reply.Answer == nil || took > time.Minute || reply.Usage.ThinkingTokens < 10 {
				t.Errorf("cause %s, answer %v, %d tokens after %v", reply.Stop.Cause, reply.Answer, reply.Usage.ThinkingTokens, took)
			}
			if left := reply.Timings.DoneMS + reply.Timings.DeadlineLeftMS; left < 3990 || left > 4010 { // two readings, one moment
				t.Errorf("timings %+v", reply.Timings)
			}
		})
	}
}

// Over a restart only the time of day is known. Where it was set back meanwhile, a deadline counts from the restart at the latest.
func TestClockIsSetBackOverARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, decodetest.Options{})
		b.wait(b.start(ask("300")))
		req := ask("5s")
		req.Arrived = time.Now().Add(24 * time.Hour) // tomorrow, by the clock that was wrong
		id := b.start(req)
		time.Sleep(time.Second)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		second := anytime.New(b.cfg)
		defer second.Close()
		began := time.Now()
		if err := second.Recover(context.Background()); err != nil {
			t.Fatal(err)
		}
		reply, err := second.Wait(context.Background(), id)
		if took := time.Since(began); err != nil || reply.Stop.Cause != budget.CauseDeadline || took > 5*time.Second {
			t.Errorf("cause %s after %v, %v", reply.Stop.Cause, took, err)
		}
	})
}
