package decodetest_test

import (
	"testing"

	"go.uber.org/goleak"

	"anytime/internal/decode"
	"anytime/internal/decode/decodetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestScripted(t *testing.T) {
	decodetest.Conformance(t, func(t *testing.T) decode.Engine {
		e := decodetest.New(decodetest.Options{Model: func(prefix string, seed uint64) string {
			if prefix == decodetest.Farewell {
				return ""
			}
			return decodetest.Words(prefix, seed)
		}})
		t.Cleanup(func() {
			if err := e.Close(); err != nil {
				t.Error(err)
			}
		})
		return e
	})
}
