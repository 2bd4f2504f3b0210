import {ask} from './ask.js';
import {h, problem} from './dom.js';
import {load} from './load.js';
import {models} from './models.js';
import {run} from './run.js';
import {runs} from './runs.js';
import {training} from './training.js';

// Each view fills the main element and ends when its signal does. An address is all that a view needs, so it survives a reload.
const views = {'': ask, run, runs, models, load, training};
const main = document.getElementById('main');
let leave = new AbortController();
let carried = {};

function go(address, carry = {}) {
  carried = carry;
  if (location.hash === address) show();
  else location.hash = address;
}

async function show() {
  if (!location.hash.startsWith('#/') && location.hash !== '' && main.hasChildNodes()) return; // a link within the page
  leave.abort();
  leave = new AbortController();
  const {signal} = leave;
  const [name, id] = location.hash.slice(2).split('/');
  const view = Object.hasOwn(views, name) ? views[name] : missing;
  const root = h('div', {class: `view ${name || 'ask'}`});
  main.replaceChildren(root);
  for (const a of document.querySelectorAll('nav a')) {
    const here = a.getAttribute('href') === `#/${name === 'run' ? 'runs' : name}`;
    if (here) a.setAttribute('aria-current', 'page');
    else a.removeAttribute('aria-current');
  }
  const carry = carried;
  carried = {};
  try {
    await view(root, {go, signal, id: id && decodeURIComponent(id), ...carry});
  } catch (e) {
    if (signal.aborted) return;
    root.replaceChildren(h('h1', {}, e.status === 404 ? 'This is not here' : 'Anytime'), problem(e, show));
  }
  document.title = `${root.querySelector('h1')?.textContent.slice(0, 60) ?? 'Anytime'} · Anytime`;
}

function missing(root) {
  root.append(h('h1', {}, 'This is not here'), h('p', {}, h('a', {href: '#/'}, 'Ask a question')));
}

const dark = matchMedia('(prefers-color-scheme: dark)');
const theme = () => document.documentElement.dataset.theme ?? (dark.matches ? 'dark' : 'light');
const retouch = () => dispatchEvent(new Event('themechange')); // for what is painted, not styled
const setTheme = (t) => {
  document.documentElement.dataset.theme = t;
  retouch();
};
dark.addEventListener('change', retouch);
const chosen = localStorage.getItem('anytime-theme');
if (chosen) setTheme(chosen);
document.getElementById('theme').addEventListener('click', () => {
  setTheme(theme() === 'dark' ? 'light' : 'dark');
  localStorage.setItem('anytime-theme', theme());
});
document.querySelector('.skip').addEventListener('click', (e) => { e.preventDefault(); main.focus(); });
addEventListener('hashchange', () => show().then(() => {
  scrollTo(0, 0);
  if (!main.contains(document.activeElement)) main.focus({preventScroll: true});
}));
show();
