package server

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
)

// key is an API key without its secret.
type key struct {
	name     string
	admin    bool
	priority int
	limits   Limits
	digest   [sha256.Size]byte
}

// owner is what the store keeps instead of the key.
func (k key) owner() string { return hex.EncodeToString(k.digest[:16]) }

func newKeys(configured []Key) ([]key, error) {
	keys := make([]key, 0, len(configured))
	for _, c := range configured {
		const short = 8
		if len(c.Secret) < short {
			return nil, fmt.Errorf("API key %q is shorter than %d characters", c.Name, short)
		}
		keys = append(keys, key{c.Name, c.Admin, c.Priority, c.Limits, sha256.Sum256([]byte(c.Secret))})
	}
	return keys, nil
}

// find looks a secret up. It takes as long for a wrong one as for a right one: digests are compared, and all of them.
func (s *Server) find(secret string) (found key, ok bool) {
	digest := sha256.Sum256([]byte(secret))
	for _, k := range s.keys {
		if subtle.ConstantTimeCompare(digest[:], k.digest[:]) == 1 {
			found, ok = k, true
		}
	}
	return found, ok
}

// authorize finds out whose call it is, and whether its key suffices for the operation.
func (s *Server) authorize(c *call, op *openapi3.Operation) error {
	public := op.Security != nil && len(*op.Security) == 0
	if len(s.keys) == 0 || public {
		return nil
	}
	secret := c.Header.Get("X-API-Key")
	if scheme, token, ok := strings.Cut(c.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		secret = strings.TrimSpace(token)
	}
	if secret == "" {
		return &httpError{status: http.StatusUnauthorized, kind: typeAuth, code: "missing_api_key", message: "an API key is wanted: send Authorization: Bearer KEY, or X-API-Key: KEY"}
	}
	k, ok := s.find(secret)
	if !ok {
		return &httpError{status: http.StatusUnauthorized, kind: typeAuth, code: "invalid_api_key", message: "this API key is not known"}
	}
	if admin, _ := op.Extensions["x-admin"].(bool); admin && !k.admin {
		return &httpError{status: http.StatusForbidden, kind: typePermission, code: "admin_key_required", message: "this wants an admin key"}
	}
	c.key, c.owner = k, k.owner()
	return nil
}

// guard keeps web pages of others out, which reach a loopback server through its user's browser: by their Origin, and, where there
// is no key to know, by a Host that was rebound to this address. It also sets the headers that make browsers careful, and lets pages of
// allowed origins in.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		if len(s.cfg.AllowedOrigins) > 0 {
			h.Set("Vary", "Origin")
		}
		shared := slices.Contains(s.cfg.AllowedOrigins, r.Header.Get("Origin"))
		if shared { // errors too, so that the page can read them
			h.Set("Access-Control-Allow-Origin", r.Header.Get("Origin"))
			h.Set("Access-Control-Expose-Headers", exposedHeaders)
			h.Set("Cross-Origin-Resource-Policy", "cross-origin")
		}
		if err := s.checkHost(r); err != nil {
			s.fail(w, r, err)
			return
		}
		if shared && r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
			s.preflight(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// What pages of allowed origins may send and read (CORS). Libraries of clients send headers of their own, which the server passes
// over: hence the *, which does not stand for Authorization.
const (
	sentHeaders    = "Authorization, X-API-Key, Content-Type, Budget, Last-Event-ID, X-Request-Id, Traceparent, Tracestate, *"
	exposedHeaders = "X-Request-Id, Retry-After, Location, Allow, WWW-Authenticate, X-RateLimit-Limit-Requests, X-RateLimit-Remaining-Requests, " +
		"X-RateLimit-Reset-Requests, X-RateLimit-Limit-Tokens, X-RateLimit-Remaining-Tokens, X-RateLimit-Reset-Tokens"
)

// preflight answers a browser that asks whether a page of an allowed origin may send a request. It has no key yet.
func (s *Server) preflight(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Access-Control-Allow-Methods", strings.Join(s.methods(r), ", "))
	h.Set("Access-Control-Allow-Headers", sentHeaders)
	h.Set("Access-Control-Max-Age", "3600") // seconds
	w.WriteHeader(http.StatusNoContent)
}

func (s *Server) checkHost(r *http.Request) error {
	if len(s.keys) == 0 && !s.knownHost(r.Host) {
		return &httpError{status: http.StatusForbidden, kind: typePermission, code: "host_not_allowed", param: "Host",
			message: "this host name is not served without API keys; use localhost, or allow the name in the configuration"}
	}
	origins := r.Header.Values("Origin")
	for _, origin := range origins {
		if slices.Contains(s.cfg.AllowedOrigins, origin) {
			continue
		}
		u, err := url.Parse(origin)
		if err != nil || u.Host == "" || !strings.EqualFold(u.Host, r.Host) {
			return &httpError{status: http.StatusForbidden, kind: typePermission, code: "origin_not_allowed", param: "Origin",
				message: "pages of this origin may not send requests; allow the origin in the configuration"}
		}
	}
	return nil
}

// knownHost reports whether a Host header names this machine, or a host that is allowed.
func (s *Server) knownHost(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.ToLower(strings.TrimSuffix(strings.Trim(name, "[]"), "."))
	if addr, err := netip.ParseAddr(name); err == nil && addr.Unmap().IsLoopback() {
		return true
	}
	return name == "localhost" || slices.ContainsFunc(s.cfg.AllowedHosts, func(allowed string) bool { return strings.EqualFold(allowed, name) })
}

// saneID takes over a request's own id if it can go into a log.
func saneID(id string) string {
	const longest = 64
	sane := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r)
	}
	if id != "" && len(id) <= longest && strings.IndexFunc(id, func(r rune) bool { return !sane(r) }) < 0 {
		return id
	}
	var b [8]byte
	rand.Read(b[:]) //nolint:errcheck // crypto/rand.Read never fails
	return hex.EncodeToString(b[:])
}
