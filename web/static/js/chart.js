import {load} from './rich.js';

const palette = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#b58900', '#56b4e9'];

/**
 * chart draws lines: x [N], series [{label, values [N], low?, high?}]. Intervals are bands. y is {min, max} or absent, format formats
 * its values. It returns the plot, whose setData takes [x, ...values].
 */
export async function chart(box, {x, series, xLabel, y, format = String, log = false, height = 260, signal}) {
  if (!document.querySelector('link[href="assets/vendor/uPlot.min.css"]')) {
    const l = document.createElement('link');
    l.rel = 'stylesheet';
    l.href = 'assets/vendor/uPlot.min.css';
    document.head.append(l);
  }
  await load('uPlot.iife.min.js');
  const ink = getComputedStyle(document.documentElement).getPropertyValue('--ink').trim();
  const grid = getComputedStyle(document.documentElement).getPropertyValue('--line').trim();
  const data = [x];
  const lines = [{label: xLabel}];
  const bands = [];
  series.forEach((s, i) => {
    const colour = palette[i % palette.length];
    data.push(s.values);
    lines.push({label: s.label, stroke: colour, width: 2, points: {show: x.length < 40, size: 6, fill: colour}, value: (u, v) => (v === null || v === undefined ? '–' : format(v))});
    if (s.low) {
      data.push(s.high, s.low);
      const hidden = {stroke: 'transparent', points: {show: false}, value: (u, v) => (v === null || v === undefined ? '–' : format(v))};
      lines.push({...hidden, label: `${s.label}, high`}, {...hidden, label: `${s.label}, low`});
      bands.push({series: [data.length - 2, data.length - 1], fill: `${colour}2e`});
    }
  });
  const axis = {stroke: ink, grid: {stroke: grid, width: 1}, ticks: {stroke: grid, width: 1}, font: '12px system-ui'};
  const plot = new window.uPlot({
    width: Math.max(280, box.clientWidth), height, bands, series: lines,
    scales: {x: {time: false, ...(log && {distr: 3})}, y: y ? {range: () => [y.min, y.max]} : {}},
    axes: [{...axis, label: xLabel, labelFont: '12px system-ui', labelSize: 22}, {...axis, size: 56, values: (u, list) => list.map((v) => format(v))}],
    legend: {live: series.length > 0}, cursor: {drag: {x: false, y: false}},
  }, data, box);
  const resize = new ResizeObserver(() => plot.setSize({width: Math.max(280, box.clientWidth), height}));
  resize.observe(box);
  signal.addEventListener('abort', () => { resize.disconnect(); plot.destroy(); });
  return plot;
}
