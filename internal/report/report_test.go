package report_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"image/png"
	"io"
	"math"
	"strings"
	"testing"

	"anytime/internal/report"
)

func chart() report.Chart {
	x := []float64{0, 64, 128, 512}
	return report.Chart{Title: "Accuracy & budget", X: "budget (tokens)", Y: "right", Share: true, Series: []report.Series{
		{Name: "base <1>", X: x, Y: []float64{.1, .2, .3, .3}, Reference: true},
		{Name: "tuned", X: x, Y: []float64{.2, .4, .5, .55}, Low: []float64{.1, .3, .4, .45}, High: []float64{.3, .5, .6, 1}},
	}}
}

func TestPNG(t *testing.T) {
	var out bytes.Buffer
	if err := chart().WritePNG(&out); err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(&out)
	if err != nil {
		t.Fatal(err)
	}
	size := img.Bounds().Size()
	seen := map[[3]uint32]bool{}
	for x := range size.X {
		for y := range size.Y {
			r, g, b, _ := img.At(x, y).RGBA()
			seen[[3]uint32{r >> 8, g >> 8, b >> 8}] = true
		}
	}
	if size.X < 1000 || size.Y < 500 || !seen[[3]uint32{0x00, 0x72, 0xb2}] || !seen[[3]uint32{0x1f, 0x23, 0x28}] {
		t.Errorf("a picture of %v without the line's or the text's colour", size)
	}
	if r, g, b, _ := img.At(0, 0).RGBA(); r+g+b != 3*0xffff {
		t.Error("its background is not white")
	}
}

func TestBadCharts(t *testing.T) {
	for want, change := range map[string]func(*report.Chart){
		"no values":     func(c *report.Chart) { c.Series = nil },
		"4, 3, 0 and 0": func(c *report.Chart) { c.Series[0].Y = c.Series[0].Y[:3] },
		"4, 4, 4 and 0": func(c *report.Chart) { c.Series[1].High = nil },
		"value NaN":     func(c *report.Chart) { c.Series[1].Y[2] = math.NaN() },
		"value -Inf":    func(c *report.Chart) { c.Series[1].Low[2] = math.Inf(-1) },
	} {
		c := chart()
		change(&c)
		if err := c.WritePNG(io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
		if err := (report.Page{Sections: []report.Section{{Chart: &c}}}).WriteHTML(io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("as HTML: error %v, want %q", err, want)
		}
	}
}

// Nothing about the values makes a chart fail: one point, one value, none in a series, tiny and huge ones.
func TestAnyValues(t *testing.T) {
	for name, series := range map[string][]report.Series{
		"one point":  {{Name: "a", X: []float64{7}, Y: []float64{0}}},
		"one value":  {{Name: "a", X: []float64{1, 2}, Y: []float64{3, 3}}},
		"one series": {{Name: "a", X: []float64{1, 2}, Y: []float64{3, 4}}, {Name: "none"}},
		"tiny":       {{Name: "a", X: []float64{1, 2}, Y: []float64{1e-12, 3e-12}}},
		"huge":       {{Name: "a", X: []float64{1, 2e9}, Y: []float64{-1e12, 3e12}}},
		"many":       make([]report.Series, 20),
	} {
		for i := range series {
			if name == "many" {
				series[i] = report.Series{Name: strings.Repeat("m", i), X: []float64{1, 2}, Y: []float64{float64(i), 3}}
			}
		}
		for _, share := range []bool{false, true} {
			c := report.Chart{Title: name, Share: share, Series: series}
			if err := (report.Page{Sections: []report.Section{{Chart: &c}}}).WriteHTML(io.Discard); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func page() report.Page {
	c := chart()
	return report.Page{Title: "A < B", Lead: "Lead & more", Sections: []report.Section{
		{Heading: "First", Text: []string{"One.", "Two."}, Chart: &c, File: "a.png", Note: "5 % | 6 %"},
		{Table: &report.Table{Head: []string{"budget", "right"}, Rows: [][]string{{"0", "5.0 %"}, {"1024", "a|b"}}}},
	}}
}

func TestHTML(t *testing.T) {
	var out bytes.Buffer
	if err := page().WriteHTML(&out); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	for _, want := range []string{"<title>A &lt; B</title>", "Lead &amp; more", "<h2>First</h2>", "<p>Two.</p>", "base &lt;1&gt;", "Accuracy &amp; budget",
		`<th scope="col">budget</th>`, "<td>1024</td>", "default-src 'none'"} {
		if !strings.Contains(text, want) {
			t.Errorf("it lacks %s", want)
		}
	}
	for _, outside := range []string{"src=", "href=\"http", "url(", "@import", "<script", "<?xml"} {
		if strings.Contains(text, outside) {
			t.Errorf("it has %s", outside)
		}
	}
	_, svg, _ := strings.Cut(text, "<svg")
	svg, _, _ = strings.Cut(svg, "</svg>")
	for d := xml.NewDecoder(strings.NewReader("<svg" + svg + "</svg>")); ; {
		if _, err := d.Token(); err != nil {
			if !errors.Is(err, io.EOF) {
				t.Errorf("the chart is not well-formed: %v", err)
			}
			break
		}
	}
}

func TestMarkdown(t *testing.T) {
	var out bytes.Buffer
	if err := page().WriteMarkdown(&out); err != nil {
		t.Fatal(err)
	}
	want := "# A < B\n\nLead & more\n\n## First\n\nOne.\n\nTwo.\n\n![Accuracy & budget](a.png)\n\n*5 % | 6 %*\n\n" +
		"| budget | right |\n| --- | ---: |\n| 0 | 5.0 % |\n| 1024 | a\\|b |\n"
	if out.String() != want {
		t.Errorf("wrote\n%s\nwant\n%s", out.String(), want)
	}
}

func TestText(t *testing.T) {
	var out bytes.Buffer
	if err := page().Sections[1].Table.WriteText(&out); err != nil {
		t.Fatal(err)
	}
	if want := "budget  right\n0       5.0 %\n1024      a|b\n"; out.String() != want {
		t.Errorf("wrote\n%s\nwant\n%s", out.String(), want)
	}
}
