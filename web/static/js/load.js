import {request} from './api.js';
import {chart} from './chart.js';
import {count, every, h, percent, problem} from './dom.js';

/** read parses Prometheus' text format: sums over label sets by name, and by name and one label. */
export function read(text) {
  const sums = new Map();
  for (const line of text.split('\n')) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!match) continue;
    const [, name, labels, value] = match;
    sums.set(name, (sums.get(name) ?? 0) + Number(value));
    for (const label of (labels ?? '').matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      const key = `${name}{${label[1]}=${label[2]}}`;
      sums.set(key, (sums.get(key) ?? 0) + Number(value));
    }
  }
  return (key) => sums.get(key) ?? 0;
}

/** decoded is how many tokens were decoded: those of the embedded engine as they come, else, of other servers, those of runs that have ended. */
const decoded = (get) => get('anytime_engine_batch_tokens_total') - get('anytime_engine_prefill_tokens_total')
  || get('anytime_thinking_tokens_total') + get('anytime_summary_tokens_total');

/** load is a live view of what the server is doing. */
export async function load(root, {signal}) {
  const value = (text) => {
    const strong = h('strong', {}, '–');
    return {strong, node: h('div', {class: 'figure'}, strong, h('span', {class: 'hint'}, text))};
  };
  const figures = {
    running: value('runs under way'), rate: value('tokens a second'), onTime: value('deadlines kept'),
    shrunk: value('thoughts shortened by overload'), refused: value('requests refused'), forced: value('answers forced'),
  };
  const box = h('div', {class: 'chart'});
  const trouble = h('div', {});
  root.append(h('h1', {}, 'Load'), h('div', {class: 'figures'}, Object.values(figures).map((f) => f.node)), trouble,
    h('section', {class: 'card', 'aria-label': 'Tokens a second'}, h('h2', {}, 'The last two minutes'), box));
  const width = 60;
  const interval = 2000; // ms
  const x = Array.from({length: width}, (_, i) => (i - width + 1) * interval / 1000);
  const rates = new Array(width).fill(null);
  const runs = new Array(width).fill(null);
  let before;
  async function sample() {
    let get;
    try {
      get = read(await (await request('GET', 'metrics', {signal})).text());
      trouble.replaceChildren();
    } catch (e) {
      if (!signal.aborted) trouble.replaceChildren(problem(e));
      return;
    }
    const now = {at: performance.now(), tokens: decoded(get)};
    const rate = before ? Math.max(0, (now.tokens - before.tokens) / (now.at - before.at) * 1000) : null;
    before = now;
    figures.running.strong.textContent = count(get('anytime_runs_running'));
    figures.rate.strong.textContent = rate === null ? '–' : count(rate);
    const deadlines = get('anytime_deadline_overshoot_seconds_count');
    figures.onTime.strong.textContent = deadlines === 0 ? '–' : percent(get('anytime_deadline_overshoot_seconds_bucket{le=0.05}') / deadlines);
    figures.shrunk.strong.textContent = count(get('anytime_forced_answers_total{cause=overload}'));
    figures.refused.strong.textContent = count(get('anytime_refusals_total'));
    figures.forced.strong.textContent = count(get('anytime_forced_answers_total'));
    rates.push(rate);
    rates.shift();
    runs.push(get('anytime_runs_running'));
    runs.shift();
    plot?.setData([x, [...rates], [...runs]]);
  }
  let plot;
  await sample();
  plot = await chart(box, {x, xLabel: 'seconds ago', xFormat: (t) => count(Math.abs(t)), format: count, least: 10, signal, label: 'Tokens a second and runs under way over the last two minutes',
    series: [{label: 'tokens a second', values: rates}, {label: 'runs under way', values: runs}]});
  every(interval, signal, sample);
}
