import {get} from './api.js';
import {chart} from './chart.js';
import {count, h, percent} from './dom.js';

/** models shows the models with their adapters, and how right each was at each budget when it was measured. */
export async function models(root, {signal}) {
  const list = (await get('v1/models', {signal})).data;
  const managed = await get('v1/adapters', {signal}).then((r) => r.adapters, () => []); // only an administrator may see them
  root.append(h('h1', {}, 'Models'));
  for (const m of list.filter((m) => !m.parent)) {
    const facts = [m.engine, m.context_tokens && `${count(m.context_tokens)} tokens of context`, m.max_thinking_tokens && `thinks up to ${count(m.max_thinking_tokens)}`,
      !m.loaded && 'loaded when it is asked for'];
    const card = h('section', {class: 'card', 'aria-label': m.id},
      h('h2', {}, m.id, m.default && h('span', {class: 'tag'}, 'default'), m.loaded && h('span', {class: 'tag'}, 'loaded')),
      h('p', {class: 'hint'}, facts.filter(Boolean).join(' · ')));
    root.append(card);
    const adapters = [...managed.filter((a) => a.model === m.id), ...m.adapters.filter((name) => !managed.some((a) => a.model === m.id && a.name === name))
      .map((name) => ({name, state: m.loaded ? 'loaded' : 'idle', default: name === m.default_adapter}))];
    if (adapters.length > 0) {
      card.append(h('h3', {}, 'Adapters'), h('ul', {class: 'plain'}, adapters.map((a) => h('li', {}, h('strong', {}, a.name), ' ',
        a.default && h('span', {class: 'tag'}, 'default'), h('span', {class: `tag ${a.state}`}, a.state),
        (a.reason ?? a.trial?.reason) && h('span', {class: 'hint'}, ` ${a.reason ?? a.trial.reason}`)))));
    }
    // The model's name may stand for it with its default adapter: then both are in the list by names of their own.
    const own = list.filter((o) => o.parent === m.id);
    const curves = (m.default_adapter ? own : [m, ...own]).filter((o) => o.curve?.length > 0);
    if (curves.length > 0) await accuracy(card, curves, signal);
    else card.append(h('p', {class: 'hint'}, 'How its accuracy grows with the budget was not measured: ', h('code', {}, 'bin/train eval'), ' does that, and leaves it beside the weights.'));
  }
}

async function accuracy(card, curves, signal) {
  const x = [...new Set(curves.flatMap((m) => m.curve.map((p) => p.budget)))].sort((a, b) => a - b);
  const at = (m, key) => x.map((b) => m.curve.find((p) => p.budget === b)?.[key] ?? null);
  const box = h('div', {class: 'chart'});
  card.append(h('h3', {}, 'Accuracy over the budget'), box);
  const ends = curves.map((m) => `${m.id}: ${percent(m.curve[0].accuracy)} after ${m.curve[0].budget} tokens, ${percent(m.curve.at(-1).accuracy)} after ${m.curve.at(-1).budget}`);
  await chart(box, {x, xLabel: 'thinking tokens allowed', y: {min: 0, max: 1}, format: percent, signal, label: `Accuracy over the budget. ${ends.join('; ')}.`,
    series: curves.map((m) => ({label: m.id, values: at(m, 'accuracy'), low: at(m, 'low'), high: at(m, 'high')}))});
  card.append(h('details', {}, h('summary', {}, 'As a table'), h('div', {class: 'scroll', tabindex: '0', role: 'region', 'aria-label': `Accuracy of ${curves[0].id} as a table`}, h('table', {},
    h('thead', {}, h('tr', {}, ['Thinking tokens', ...curves.map((m) => m.id)].map((t) => h('th', {scope: 'col'}, t)))),
    h('tbody', {}, x.map((b, i) => h('tr', {}, h('th', {scope: 'row'}, count(b)),
      curves.map((m) => h('td', {}, at(m, 'accuracy')[i] === null ? '–' : `${percent(at(m, 'accuracy')[i])} (${percent(at(m, 'low')[i])} to ${percent(at(m, 'high')[i])})`)))))))));
}
