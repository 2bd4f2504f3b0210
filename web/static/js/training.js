import {chart} from './chart.js';
import {count, h, percent, problem} from './dom.js';

/** training draws the curves of a run of bin/train from its metrics.jsonl, which stays in the browser. */
export async function training(root, {signal}) {
  const shown = h('div', {});
  const file = h('input', {type: 'file', id: 'metrics', accept: '.jsonl,application/x-ndjson'});
  file.addEventListener('change', async () => { if (file.files[0]) show(await file.files[0].text()).catch((e) => shown.replaceChildren(problem(e))); });
  const card = h('section', {class: 'card drop'},
    h('p', {}, 'Choose or drop the metrics.jsonl of a run of bin/train sft or bin/train rl. It is read here and sent nowhere.'),
    h('p', {class: 'field'}, h('label', {for: 'metrics'}, 'metrics.jsonl'), file));
  card.addEventListener('dragover', (e) => e.preventDefault());
  card.addEventListener('drop', async (e) => { e.preventDefault(); if (e.dataTransfer.files[0]) show(await e.dataTransfer.files[0].text()).catch((x) => shown.replaceChildren(problem(x))); });
  root.append(h('h1', {}, 'Training'), card, shown);

  async function show(text) {
    // A line without an end is still being written.
    const lines = text.slice(0, text.lastIndexOf('\n') + 1 || text.length).split('\n').filter((l) => l.trim() !== '').map((l, i) => {
      try {
        return JSON.parse(l);
      } catch {
        throw new Error(`Line ${i + 1} is not JSON. The file is metrics.jsonl in the folder of the run.`);
      }
    });
    const rounds = lines.filter((l) => Number.isFinite(l?.round));
    const steps = lines.filter((l) => Number.isFinite(l?.step));
    if (rounds.length + steps.length === 0) throw new Error('No rounds and no steps are in it. The file is metrics.jsonl in the folder of the run.');
    shown.replaceChildren();
    const plot = async (title, options) => {
      const box = h('div', {class: 'chart'});
      shown.append(h('section', {class: 'card', 'aria-label': title}, h('h2', {}, title), box));
      await chart(box, {signal, label: `${title}, by ${options.xLabel}`, ...options});
    };
    if (rounds.length > 0) {
      const x = rounds.map((r) => r.round);
      const line = (label, f) => ({label, values: rounds.map((r) => f(r) ?? null)});
      const budgets = rounds[0].accuracy ?? [];
      await plot('Reward', {x, xLabel: 'round', format: percent, y: {min: 0, max: 1}, series: [line('mean over the prior', (r) => r.reward)]});
      await plot('Accuracy at each budget', {x, xLabel: 'round', format: percent, y: {min: 0, max: 1}, series: budgets.map((b, i) => line(`${count(b.budget)} tokens`, (r) => r.accuracy?.[i]?.mean))});
      await plot('Variance of the advantages', {x, xLabel: 'round', format: (v) => v.toPrecision(2), series: [line('variance', (r) => r.advantage_variance)]});
      await plot('Thinking tokens', {x, xLabel: 'round', format: count, series: [line('mean', (r) => r.thinking)]});
    } else {
      const x = steps.map((s) => s.step);
      await plot('Loss', {x, xLabel: 'step', format: (v) => v.toPrecision(3), series: [{label: 'cross-entropy', values: steps.map((s) => s.loss)}]});
      await plot('Tokens a second', {x, xLabel: 'step', format: count, series: [{label: 'trained', values: steps.map((s) => s.tokens_per_s)}]});
    }
  }
}
