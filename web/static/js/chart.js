import {count} from './dom.js';
import {load, style} from './vendor.js';

// Told apart by those who see colours differently, too (Okabe and Ito).
export const palette = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#b58900', '#56b4e9', '#7a5195'];

/**
 * chart draws lines: x [N], series [{label, values [N], low?, high?}]. Intervals are bands. y is {min, max}, or absent: from 0 to the most,
 * or to least if that is more. format formats its values, xFormat those of x; label says what is shown to those who do not see it. It returns the plot, whose setData takes
 * [x, ...values].
 */
export async function chart(box, {x, series, xLabel, label, y, format = String, least = 1e-9, xFormat = count, height = 260, signal}) {
  style('uPlot.min.css');
  await load('uPlot.iife.min.js');
  const colour = (name) => () => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const shown = (f) => (u, v) => (v === null || v === undefined ? '–' : f(v));
  const data = [x];
  const lines = [{label: xLabel, value: shown(xFormat)}];
  const bands = [];
  series.forEach((s, i) => {
    const stroke = palette[i % palette.length];
    data.push(s.values);
    lines.push({label: s.label, stroke, width: 2, spanGaps: true, points: {show: x.length < 40, size: 6, fill: stroke}, value: shown(format)});
    if (s.low) {
      data.push(s.high, s.low);
      const edge = {stroke: 'transparent', spanGaps: true, points: {show: false}, class: 'edge'};
      lines.push(edge, {...edge});
      bands.push({series: [data.length - 2, data.length - 1], fill: `${stroke}2e`});
    }
  });
  const axis = {stroke: colour('--soft'), grid: {stroke: colour('--line'), width: 1}, ticks: {stroke: colour('--line'), width: 1}, font: '12px system-ui'};
  const size = () => ({width: Math.max(240, box.clientWidth), height});
  box.setAttribute('role', 'img');
  box.setAttribute('aria-label', label);
  const plot = new window.uPlot({
    ...size(), bands, series: lines,
    scales: {x: {time: false}, y: {range: y ? [y.min, y.max] : (u, low, high) => window.uPlot.rangeNum(Math.min(0, low ?? 0), Math.max(high ?? 0, least), 0.1, true)}},
    axes: [{...axis, label: xLabel, labelFont: '12px system-ui', labelSize: 20, values: (u, list) => list.map(xFormat)}, {...axis, size: 56, values: (u, list) => list.map(format)}],
    cursor: {drag: {x: false, y: false}},
  }, data, box);
  const resize = new ResizeObserver(() => plot.setSize(size()));
  resize.observe(box);
  const redraw = () => plot.redraw(false);
  addEventListener('themechange', redraw);
  signal.addEventListener('abort', () => { resize.disconnect(); removeEventListener('themechange', redraw); plot.destroy(); });
  return plot;
}
