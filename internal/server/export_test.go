package server

import "github.com/getkin/kin-openapi/openapi3"

// Document is the contract as the server reads it.
func (s *Server) Document() *openapi3.T { return s.doc }

// Routes are the routes that are served, "METHOD /pattern".
func (s *Server) Routes() []string {
	var all []string
	for _, r := range s.router.Routes() {
		for method := range r.Handlers {
			if method == "HEAD" {
				continue // the contract has it in GET
			}
			all = append(all, method+" "+r.Pattern)
		}
	}
	return all
}

// PublicError is what clients see of an error.
func PublicError(err error) (status int, kind, code, param string, retry bool) {
	e := publicError(err)
	return e.status, e.kind, e.code, e.param, e.retryAfter > 0
}

// NewCounts is the counting of one process.
func NewCounts() Quota { return newCounts() }
