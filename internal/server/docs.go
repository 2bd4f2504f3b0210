package server

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
)

//go:embed docs.html
var docsTemplate string

// docsPage serves the contract as a page. Its only style is its own, and it has no script.
func (s *Server) docsPage(w http.ResponseWriter, _ *call) error {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	_, err := w.Write(s.docs)
	return err
}

// operation is an operation with its place.
type operation struct {
	Method, Path string
	*openapi3.Operation
	Parameters []*openapi3.Parameter
}

// renderDocs makes the page.
func renderDocs(doc *openapi3.T) ([]byte, error) {
	byTag := map[string][]operation{}
	for _, path := range doc.Paths.InMatchingOrder() {
		item := doc.Paths.Find(path)
		for method, op := range item.Operations() {
			o := operation{Method: method, Path: path, Operation: op}
			for _, refs := range []openapi3.Parameters{item.Parameters, op.Parameters} {
				for _, ref := range refs {
					o.Parameters = append(o.Parameters, ref.Value)
				}
			}
			byTag[op.Tags[0]] = append(byTag[op.Tags[0]], o)
		}
	}
	for _, list := range byTag {
		slices.SortFunc(list, func(a, b operation) int {
			return strings.Compare(a.Path+"\x00"+a.Method, b.Path+"\x00"+b.Method)
		})
	}
	page, err := template.New("docs").Funcs(template.FuncMap{
		"prose": prose, "kind": kind, "bounds": bounds, "example": example, "examples": examples, "sorted": sortedNames[*openapi3.SchemaRef, openapi3.Schemas],
		"required": func(s *openapi3.Schema, name string) bool { return slices.Contains(s.Required, name) },
		"statuses": func(r *openapi3.Responses) []string { return slices.Sorted(maps.Keys(r.Map())) },
	}).Parse(docsTemplate)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = page.Execute(&out, map[string]any{"Doc": doc, "Operations": byTag})
	return out.Bytes(), err
}

var (
	code   = regexp.MustCompile("`([^`]+)`")
	strong = regexp.MustCompile(`\*\*([^*]+)\*\*`)
)

// prose renders the little Markdown that the contract uses.
func prose(text string) template.HTML {
	var out strings.Builder
	for p := range strings.SplitSeq(strings.TrimSpace(text), "\n\n") {
		if p == "" {
			continue
		}
		p = template.HTMLEscapeString(p)
		p = code.ReplaceAllString(p, "<code>$1</code>")
		p = strong.ReplaceAllString(p, "<strong>$1</strong>")
		out.WriteString("<p>" + p + "</p>")
	}
	return template.HTML(out.String()) //nolint:gosec // escaped above, and the contract is our own
}

// kind says what values a schema takes, with links to the schemas it is made of.
func kind(ref *openapi3.SchemaRef) template.HTML {
	if name, ok := strings.CutPrefix(ref.Ref, "#/components/schemas/"); ok {
		name = template.HTMLEscapeString(name)
		return template.HTML(`<a href="#schema-` + name + `">` + name + `</a>`) //nolint:gosec // escaped above
	}
	s := ref.Value
	switch {
	case len(s.AnyOf) > 0:
		parts := make([]string, len(s.AnyOf))
		for i, a := range s.AnyOf {
			parts[i] = string(kind(a))
		}
		return template.HTML(strings.Join(parts, " or ")) //nolint:gosec // made of what kind returns
	case s.Type == nil:
		return "anything"
	case s.Type.Is("array") && s.Items != nil:
		return "list of " + kind(s.Items)
	default:
		return template.HTML(template.HTMLEscapeString(strings.Join(s.Type.Slice(), " or "))) //nolint:gosec // escaped
	}
}

// bounds says what a schema allows of its type.
func bounds(s *openapi3.Schema) string {
	var b []string
	add := func(format string, args ...any) { b = append(b, fmt.Sprintf(format, args...)) }
	if len(s.Enum) > 0 {
		values := make([]string, len(s.Enum))
		for i, v := range s.Enum {
			values[i] = fmt.Sprint(v)
		}
		add("one of %s", strings.Join(values, ", "))
	}
	switch {
	case s.Min != nil && s.Max != nil:
		add("%.10g to %.10g", *s.Min, *s.Max)
	case s.Min != nil:
		add("at least %.10g", *s.Min)
	case s.Max != nil:
		add("at most %.10g", *s.Max)
	}
	if s.MaxLength != nil {
		add("at most %d characters", *s.MaxLength)
	}
	if s.MaxItems != nil {
		add("at most %d", *s.MaxItems)
	}
	if s.Default != nil {
		add("default %v", s.Default)
	}
	if s.Nullable {
		add("or null")
	}
	if instead, ok := s.Extensions["x-instead"].(string); ok {
		add("%s", instead)
	}
	return strings.Join(b, "; ")
}

// example writes an example: text as it is, else JSON.
func example(v any) (string, error) {
	if s, ok := v.(string); ok {
		return s, nil
	}
	b, err := json.MarshalIndent(v, "", "  ")
	return string(b), err
}

// titled is an example with its summary.
type titled struct {
	Summary string
	Value   any
}

func examples(m *openapi3.MediaType) []titled {
	var list []titled
	if m.Example != nil {
		list = append(list, titled{"Example", m.Example})
	}
	for _, name := range sortedNames(m.Examples) {
		list = append(list, titled{m.Examples[name].Value.Summary, m.Examples[name].Value.Value})
	}
	return list
}

func sortedNames[V any, M ~map[string]V](m M) []string { return slices.Sorted(maps.Keys(m)) }
