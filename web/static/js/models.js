import {get} from './api.js';
import {chart} from './chart.js';
import {count, h, percent} from './dom.js';

/** models shows the models with their adapters, and how right each was at each budget when it was measured. */
export async function models(root, {signal}) {
  const list = (await get('v1/models', {signal})).data;
  const managed = await get('v1/adapters', {signal}).then((r) => r.adapters, () => []);
  root.append(h('h1', {}, 'Models'));
  for (const m of list.filter((m) => !m.parent)) {
    const adapters = managed.filter((a) => a.model === m.id);
    const card = h('section', {class: 'card', 'aria-label': m.id},
      h('h2', {}, m.id, m.default && h('span', {class: 'tag'}, 'default'), m.loaded && h('span', {class: 'tag'}, 'loaded')),
      h('p', {class: 'hint'}, [m.context_tokens && `${count(m.context_tokens)} tokens of context`, m.max_thinking_tokens && `thinks up to ${count(m.max_thinking_tokens)}`].filter(Boolean).join(' · ') || 'It is loaded when it is asked for.'));
    root.append(card);
    const names = adapters.length > 0 ? adapters : m.adapters.map((name) => ({name, state: 'loaded', default: name === m.default_adapter}));
    if (names.length > 0) {
      card.append(h('h3', {}, 'Adapters'), h('ul', {class: 'plain'}, names.map((a) => h('li', {}, h('strong', {}, a.name), ' ',
        h('span', {class: `tag ${a.state}`}, a.default ? 'default' : a.state), a.error && h('span', {class: 'hint'}, ` ${a.error}`)))));
    }
    const curves = [[m.id, m.curve], ...list.filter((o) => o.parent === m.id).map((o) => [o.id, o.curve]), ...adapters.map((a) => [`${m.id}:${a.name}`, a.curve])]
      .filter(([name, c], i, all) => c?.points?.length > 0 && all.findIndex(([n]) => n === name) === i);
    if (curves.length === 0) {
      card.append(h('p', {class: 'hint'}, 'Its accuracy over budgets was not measured yet: bin/train eval does that.'));
      continue;
    }
    const x = [...new Set(curves.flatMap(([, c]) => c.points.map((p) => p.tokens)))].sort((a, b) => a - b);
    const at = (c, key) => x.map((t) => c.points.find((p) => p.tokens === t)?.[key] ?? null);
    const box = h('div', {class: 'chart'});
    card.append(h('h3', {}, 'Accuracy over budgets'), box);
    await chart(box, {x, xLabel: 'thinking tokens', y: {min: 0, max: 1}, format: percent, signal,
      series: curves.map(([label, c]) => ({label, values: at(c, 'accuracy'), low: at(c, 'low'), high: at(c, 'high')}))});
    card.append(h('details', {}, h('summary', {}, 'As a table'), h('table', {},
      h('thead', {}, h('tr', {}, h('th', {scope: 'col'}, 'Thinking tokens'), curves.map(([n]) => h('th', {scope: 'col'}, n)))),
      h('tbody', {}, x.map((t, i) => h('tr', {}, h('th', {scope: 'row'}, count(t)), curves.map(([, c]) => h('td', {}, percent(at(c, 'accuracy')[i])))))))));
  }
}
