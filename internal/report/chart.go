// Package report draws figures and sets them, with tables and text, into pages: of HTML, which need nothing from outside, and of Markdown.
package report

import (
	"bytes"
	"errors"
	"fmt"
	"image/color"
	"io"
	"math"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Chart is a figure of lines.
type Chart struct {
	Title  string
	X, Y   string // what the axes show, with its unit
	Share  bool   // the values are shares of 1 and are shown in percent
	Series []Series
}

// Series is a line of a Chart.
type Series struct {
	Name      string
	X, Y      []float64
	Low, High []float64 // the interval of each value, drawn as a band; nil: none
	Reference bool      // something to compare the others with: grey and dashed
}

// palette is that of Okabe and Ito, which colour-blind people can tell apart, without its yellow, too light for a line.
var palette = []color.NRGBA{
	{0x00, 0x72, 0xb2, 0xff}, {0xd5, 0x5e, 0x00, 0xff}, {0x00, 0x9e, 0x73, 0xff}, {0xcc, 0x79, 0xa7, 0xff},
	{0xe6, 0x9f, 0x00, 0xff}, {0x56, 0xb4, 0xe9, 0xff}, {0x00, 0x00, 0x00, 0xff},
}

var (
	ink   = color.NRGBA{0x1f, 0x23, 0x28, 0xff}
	grey  = color.NRGBA{0x6e, 0x77, 0x81, 0xff}
	faint = color.NRGBA{0xdf, 0xe3, 0xe8, 0xff}
)

// marks and dashes tell the lines apart without their colours.
var (
	marks  = []draw.GlyphDrawer{draw.CircleGlyph{}, draw.BoxGlyph{}, draw.PyramidGlyph{}}
	dashes = [][]vg.Length{nil, {9, 2}, {2, 2}}
)

const (
	width  = 8.4 * vg.Inch
	height = 4.6 * vg.Inch
	dpi    = 150
)

// WritePNG draws the chart as a picture.
func (c Chart) WritePNG(w io.Writer) error {
	canvas := vgimg.PngCanvas{Canvas: vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(dpi))}
	if err := c.draw(draw.New(canvas)); err != nil {
		return err
	}
	_, err := canvas.WriteTo(w)
	return err
}

// svg draws the chart as an element of HTML.
func (c Chart) svg() ([]byte, error) {
	canvas := vgsvg.New(width, height)
	if err := c.draw(draw.New(canvas)); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if _, err := canvas.WriteTo(&out); err != nil {
		return nil, err
	}
	_, element, _ := bytes.Cut(out.Bytes(), []byte("<svg"))
	// Not everybody has gonum's font; these are as wide.
	element = bytes.ReplaceAll(element, []byte("font-family:Liberation Sans"), []byte("font-family:'Liberation Sans',Arial,Helvetica,sans-serif"))
	return append([]byte("<svg"), element...), nil
}

// check says why a chart cannot be drawn.
func (c Chart) check() error {
	points := 0
	for _, s := range c.Series {
		if len(s.X) != len(s.Y) || s.Low != nil && (len(s.Low) != len(s.X) || len(s.High) != len(s.X)) {
			return fmt.Errorf("chart %q: %q has %d, %d, %d and %d values", c.Title, s.Name, len(s.X), len(s.Y), len(s.Low), len(s.High))
		}
		for _, values := range [][]float64{s.X, s.Y, s.Low, s.High} {
			for _, v := range values {
				if math.IsNaN(v) || math.IsInf(v, 0) {
					return fmt.Errorf("chart %q: %q has the value %v", c.Title, s.Name, v)
				}
			}
		}
		points += len(s.X)
	}
	if points == 0 {
		return errors.New("chart " + strconv.Quote(c.Title) + ": it has no values")
	}
	return nil
}

func (c Chart) draw(canvas draw.Canvas) error {
	if err := c.check(); err != nil {
		return err
	}
	p := plot.New()
	p.BackgroundColor = color.White
	p.X.Label.Text, p.Y.Label.Text = c.X, c.Y
	title := p.Title.TextStyle
	legend := plot.NewLegend()
	for _, style := range []*draw.TextStyle{&title, &p.X.Label.TextStyle, &p.Y.Label.TextStyle, &p.X.Tick.Label, &p.Y.Tick.Label, &legend.TextStyle} {
		style.Font.Variant, style.Font.Size, style.Color = "Sans", 11, ink
	}
	title.Font.Size = 13
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Label.Padding = 6
		axis.LineStyle.Color, axis.Tick.LineStyle.Color = grey, grey
	}
	p.X.Tick.Marker, p.Y.Tick.Marker = ticks{}, ticks{c.Share}
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = faint, faint
	p.Add(grid)

	low, high := c.span()
	if c.Share {
		high = min(high, 1.02)
	}
	p.Y.Min, p.Y.Max = low, high
	lines := 0
	var drawn []plot.Plotter // over all bands
	for _, s := range c.Series {
		at := lines % len(palette)
		look := draw.LineStyle{Color: palette[at], Width: vg.Points(2), Dashes: dashes[at/len(marks)]}
		mark := draw.GlyphStyle{Color: palette[at], Radius: vg.Points(3.2), Shape: marks[at%len(marks)]}
		if s.Reference {
			look = draw.LineStyle{Color: grey, Width: vg.Points(1.6), Dashes: []vg.Length{vg.Points(5), vg.Points(3)}}
			mark = draw.GlyphStyle{Color: grey, Radius: vg.Points(2.6), Shape: draw.CircleGlyph{}}
		} else {
			lines++
		}
		if len(s.X) == 0 {
			continue
		}
		if s.Low != nil {
			p.Add(s.band(look.Color))
		}
		line := &plotter.Line{XYs: s.xys(s.Y), LineStyle: look}
		drawn = append(drawn, line)
		thumbnails := []plot.Thumbnailer{line}
		if len(s.X) <= 16 {
			points := &plotter.Scatter{XYs: s.xys(s.Y), GlyphStyle: mark}
			drawn = append(drawn, points)
			thumbnails = append(thumbnails, points)
		}
		legend.Add(s.Name, thumbnails...)
	}
	p.Add(drawn...)
	if p.X.Min == p.X.Max { // a single budget
		p.X.Min, p.X.Max = p.X.Min-1, p.X.Max+1
	}
	p.X.Max += (p.X.Max - p.X.Min) * 0.02 // the last mark is whole
	const margin = 10
	canvas.FillPolygon(color.White, []vg.Point{{}, {X: canvas.Max.X}, canvas.Max, {Y: canvas.Max.Y}})
	canvas = draw.Crop(canvas, margin, -margin, margin, -margin)
	if wide := title.Width(c.Title); wide > canvas.Size().X {
		title.Font.Size *= canvas.Size().X / wide
	}
	canvas.FillText(title, vg.Point{X: canvas.Center().X, Y: canvas.Max.Y}, c.Title)
	canvas = draw.Crop(canvas, 0, 0, 0, -title.Font.Size-14)
	if len(c.Series) > 1 { // beside the data, never over them
		legend.Top, legend.Left, legend.Padding, legend.ThumbnailWidth = true, true, vg.Points(5), vg.Points(26)
		right := legend.Rectangle(canvas).Size().X + 12
		legend.Draw(draw.Crop(canvas, canvas.Size().X-right, 0, 0, 0))
		canvas = draw.Crop(canvas, 0, -right-8, 0, 0)
	}
	p.Draw(canvas)
	return nil
}

// span is what the Y axis shows: all values, and 0 if that is not far below.
func (c Chart) span() (low, high float64) {
	low, high = math.Inf(1), math.Inf(-1)
	for _, s := range c.Series {
		for _, values := range [][]float64{s.Y, s.Low, s.High} {
			for _, v := range values {
				low, high = min(low, v), max(high, v)
			}
		}
	}
	pad := (high - low) * 0.06
	if pad == 0 {
		pad = max(0.05, math.Abs(high)*0.1)
	}
	if low >= 0 && low-pad < 0.4*high {
		return 0, high + pad
	}
	return low - pad, high + pad
}

func (s Series) xys(y []float64) plotter.XYs {
	list := make(plotter.XYs, len(s.X))
	for i, x := range s.X {
		list[i] = plotter.XY{X: x, Y: y[i]}
	}
	return list
}

func (s Series) band(c color.Color) *plotter.Polygon {
	edge := s.xys(s.High)
	for i := len(s.X) - 1; i >= 0; i-- {
		edge = append(edge, plotter.XY{X: s.X[i], Y: s.Low[i]})
	}
	r, g, b, _ := c.RGBA()
	shade := color.NRGBA{uint8(r >> 8), uint8(g >> 8), uint8(b >> 8), 0x2c} //nolint:gosec // from 16 bits
	return &plotter.Polygon{XYs: []plotter.XYs{edge}, Color: shade}
}

// ticks are round numbers, about six; in percent where values are shares.
type ticks struct{ share bool }

func (t ticks) Ticks(low, high float64) (list []plot.Tick) {
	unit := 1.0
	if t.share {
		unit = 0.01
	}
	rough := (high - low) / unit / 6
	step := math.Pow(10, math.Floor(math.Log10(rough)))
	for _, m := range []float64{5, 2} { // else 1
		if step*m <= rough*1.25 {
			step *= m
			break
		}
	}
	last := int(math.Floor(high/unit/step + 1e-9))
	for n := int(math.Ceil(low/unit/step - 1e-9)); n <= last; n++ {
		value := float64(n) * step
		label := strconv.FormatFloat(value, 'f', max(0, int(math.Ceil(-math.Log10(step)-1e-9))), 64)
		if t.share {
			label += " %"
		}
		list = append(list, plot.Tick{Value: value * unit, Label: label})
	}
	return list
}
