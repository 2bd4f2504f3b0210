package hub

import (
	"crypto/tls"
	"net/http"
	"time"
)

// SetTiming shortens the waits.
func (h *Hub) SetTiming(backoff, stall time.Duration) { h.backoff, h.stall = backoff, stall }

// Trust makes the client accept the certificate of a test server.
func (h *Hub) Trust(config *tls.Config) {
	h.client.Transport.(*authorizer).next.(*http.Transport).TLSClientConfig = config
}
