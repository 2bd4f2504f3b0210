import {palette} from './chart.js';
import {count, h, percent, seconds, svg} from './dom.js';

/** settled returns the index of the first answer after which all are the same. */
export function settled(answers) {
  let i = answers.length - 1;
  while (i > 0 && answers[i - 1].answer === answers[i].answer) i--;
  return i;
}

/** timeline draws the answers so far along the thought, equal ones in the same colour: [{tokens, answer, confidence, elapsed_ms, final}]. */
export function timeline(answers, {limit, thought, done}) {
  const width = 720;
  const height = 150;
  const left = 44;
  const right = 16;
  const top = 14;
  const base = height - 30;
  const most = Math.max(thought, ...answers.map((a) => a.tokens), done ? 1 : Math.min(limit || 1, Math.max(64, thought * 1.25)));
  const x = (t) => left + (width - left - right) * Math.min(1, t / most);
  const y = (c) => base - (base - top) * (c ?? 0);
  const colours = new Map();
  for (const a of answers) if (!colours.has(a.answer)) colours.set(a.answer, palette[colours.size % palette.length]);

  const drawing = svg('svg', {viewBox: `0 0 ${width} ${height}`, class: 'timeline', role: 'img',
    'aria-label': `Answers along the thought: ${answers.map((a) => `${a.answer || 'none'} after ${a.tokens} tokens`).join(', ') || 'none yet'}`});
  for (const c of [0, 0.5, 1]) {
    drawing.append(svg('line', {x1: left, x2: width - right, y1: y(c), y2: y(c), class: 'grid'}));
    const label = svg('text', {x: left - 6, y: y(c) + 4, class: 'axis', 'text-anchor': 'end'});
    label.textContent = percent(c);
    drawing.append(label);
  }
  drawing.append(svg('line', {x1: left, x2: x(thought), y1: base, y2: base, class: 'thought'}));
  for (const t of ticks(most)) {
    const label = svg('text', {x: x(t), y: height - 8, class: 'axis', 'text-anchor': 'middle'});
    label.textContent = count(t);
    drawing.append(label);
  }
  let before = -Infinity;
  answers.forEach((a, i) => {
    const at = x(a.tokens);
    if (i > 0) {
      drawing.append(svg('line', {x1: x(answers[i - 1].tokens), y1: y(answers[i - 1].confidence), x2: at, y2: y(a.confidence), class: 'link'}));
    }
    const dot = svg('circle', {cx: at, cy: y(a.confidence), r: a.final ? 7 : 5, fill: colours.get(a.answer)});
    const title = svg('title', {});
    title.textContent = `${a.answer} (${percent(a.confidence)}) after ${count(a.tokens)} tokens, ${seconds(a.elapsed_ms)}`;
    dot.append(title);
    drawing.append(dot);
    const last = i === answers.length - 1;
    if (last || (at - before > 90 && x(answers.at(-1).tokens) - at > 130)) {
      const low = y(a.confidence) < top + 16;
      const label = svg('text', {x: at, y: y(a.confidence) + (low ? 20 : -11), class: 'label',
        'text-anchor': at > width - 90 ? 'end' : at < left + 50 ? 'start' : 'middle'});
      label.textContent = a.answer.length > 18 ? `${a.answer.slice(0, 17)}…` : a.answer || '–';
      drawing.append(label);
      before = at;
    }
  });
  return drawing;
}

function ticks(most) {
  const step = [1, 2, 5].map((m) => m * 10 ** Math.floor(Math.log10(most / 4))).find((s) => most / s <= 6) ?? 10 ** Math.ceil(Math.log10(most / 4));
  const list = [];
  for (let t = 0; t <= most * 0.98; t += Math.max(1, step)) list.push(t);
  return list;
}

/** table has the same in words. */
export function table(answers) {
  return h('table', {},
    h('thead', {}, h('tr', {}, ['Thinking tokens', 'Answer', 'Confidence', 'After'].map((t) => h('th', {scope: 'col'}, t)))),
    h('tbody', {}, answers.map((a) => h('tr', {},
      h('td', {}, count(a.tokens)), h('td', {}, a.answer || '–', a.final && h('span', {class: 'tag'}, 'final')),
      h('td', {}, percent(a.confidence)), h('td', {}, seconds(a.elapsed_ms))))));
}
