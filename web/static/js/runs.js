import {get} from './api.js';
import {ago, h, problem} from './dom.js';

/** runs lists what was asked before, newest first. */
export async function runs(root, {signal}) {
  root.append(h('h1', {}, 'Runs'));
  const body = h('tbody', {});
  const more = h('button', {type: 'button', hidden: true}, 'Earlier ones');
  let before = '';
  async function page() {
    const list = (await get(`solve?limit=50${before && `&before=${encodeURIComponent(before)}`}`, {signal})).runs;
    body.append(...list.map((r) => h('tr', {},
      h('td', {}, h('a', {href: `#/run/${r.id}`}, r.problem || r.id)),
      h('td', {}, r.state === 'finished' ? r.answer ?? '–' : h('span', {class: `tag ${r.state}`}, r.state)),
      h('td', {class: 'hint'}, r.model), h('td', {class: 'hint'}, h('time', {datetime: r.created, title: new Date(r.created).toLocaleString()}, ago(r.created))))));
    before = list.at(-1)?.created ?? '';
    more.hidden = list.length < 50;
    return body.children.length;
  }
  if (await page() === 0) {
    root.append(h('p', {}, 'Nothing was asked yet. ', h('a', {href: '#/'}, 'Ask something.')));
    return;
  }
  more.addEventListener('click', () => page().catch((e) => more.replaceWith(problem(e))));
  root.append(h('div', {class: 'card scroll', tabindex: '0', role: 'region', 'aria-label': 'Runs'}, h('table', {class: 'wide'},
    h('thead', {}, h('tr', {}, ['Question', 'Answer', 'Model', 'Asked'].map((t) => h('th', {scope: 'col'}, t)))), body)), more);
}
