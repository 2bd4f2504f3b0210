// Package api is the HTTP contract: the OpenAPI document, and the types that oapi-codegen makes of it. Values that may come in
// several JSON forms have types written by hand in unions.go.
package api

import _ "embed"

//go:generate go tool -modfile=../tools/go.mod oapi-codegen -config oapi-codegen.yaml openapi.yaml

// Document is the OpenAPI document, YAML.
//
//go:embed openapi.yaml
var Document []byte
