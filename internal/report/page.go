package report

import (
	"bufio"
	"fmt"
	"html/template"
	"io"
	"strings"
	"unicode/utf8"

	_ "embed"
)

// Page is a report for people.
type Page struct {
	Title    string
	Lead     string // what is most to be known
	Sections []Section
}

// Section is a part of a Page. What is empty is left out; the rest comes in this order.
type Section struct {
	Heading string
	Text    []string // paragraphs
	Chart   *Chart
	File    string // of the chart as a picture, for Markdown; relative to the page
	Table   *Table
	Note    string // on what stands above it
}

// Table is a table whose first column has names and whose others have figures.
type Table struct {
	Head []string
	Rows [][]string
}

//go:embed page.html
var pageHTML string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"svg": func(c *Chart) (template.HTML, error) {
		svg, err := c.svg()
		return template.HTML(svg), err //nolint:gosec // gonum escapes what is written in it
	},
}).Parse(pageHTML))

// WriteHTML writes the page as one file, charts included.
func (p Page) WriteHTML(w io.Writer) error {
	return pageTemplate.Execute(w, p)
}

// WriteMarkdown writes the page with links to the pictures of its charts.
func (p Page) WriteMarkdown(w io.Writer) error {
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, "# %s\n\n%s\n", p.Title, p.Lead)
	for _, s := range p.Sections {
		if s.Heading != "" {
			fmt.Fprintf(out, "\n## %s\n", s.Heading)
		}
		for _, text := range s.Text {
			fmt.Fprintf(out, "\n%s\n", text)
		}
		if s.Chart != nil {
			fmt.Fprintf(out, "\n![%s](%s)\n", s.Chart.Title, s.File)
		}
		if s.Table != nil {
			fmt.Fprintln(out)
			s.Table.markdown(out)
		}
		if s.Note != "" {
			fmt.Fprintf(out, "\n*%s*\n", s.Note)
		}
	}
	return out.Flush()
}

func (t Table) markdown(w io.Writer) {
	rule := make([]string, len(t.Head))
	for i := range rule {
		rule[i] = "---:"
	}
	rule[0] = "---"
	for _, row := range append([][]string{t.Head, rule}, t.Rows...) {
		for _, cell := range row {
			fmt.Fprintf(w, "| %s ", strings.ReplaceAll(cell, "|", `\|`))
		}
		fmt.Fprintln(w, "|")
	}
}

// WriteText writes the table for a terminal.
func (t Table) WriteText(w io.Writer) error {
	rows := append([][]string{t.Head}, t.Rows...)
	widths := make([]int, len(t.Head))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	out := bufio.NewWriter(w)
	for _, row := range rows {
		line := ""
		for i, cell := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i == 0 {
				line = cell + pad
			} else {
				line += "  " + pad + cell
			}
		}
		fmt.Fprintln(out, line)
	}
	return out.Flush()
}
