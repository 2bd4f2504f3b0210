// Building and wording: what every view uses.

/** h makes an element: h('p', {class: 'x', onclick: f}, 'text', child). Text is text: nothing is parsed as markup. */
export function h(tag, props, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(props ?? {})) {
    if (v === undefined || v === null || v === false) continue;
    if (k.startsWith('on')) e.addEventListener(k.slice(2), v);
    else if (k === 'class') e.className = v;
    else if (k in e && typeof v !== 'string') e[k] = v;
    else e.setAttribute(k, v === true ? '' : v);
  }
  e.append(...children.flat().filter((c) => c !== undefined && c !== null && c !== false));
  return e;
}

/** svg makes an SVG element. */
export function svg(tag, props, ...children) {
  const e = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [k, v] of Object.entries(props ?? {})) e.setAttribute(k, v);
  e.append(...children);
  return e;
}

export const count = (n) => Math.round(n).toLocaleString('en');

export function seconds(ms) {
  if (ms === undefined || ms === null) return '–';
  if (ms > 0 && ms < 1) return '< 1 ms';
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`;
}

/** milliseconds reads the deadline in a budget as the API writes it, such as 512,1m30s; 0 where it has none. */
export function milliseconds(budget) {
  const units = {ms: 1, s: 1000, m: 60000, h: 3600000};
  return [...(budget ?? '').matchAll(/(\d+(?:\.\d+)?)(ms|s|m|h)/g)].reduce((sum, [, n, unit]) => sum + n * units[unit], 0);
}

export const percent = (p) => (p === undefined || p === null ? '–' : `${Math.round(p * 100)} %`);

export function ago(time) {
  const s = (Date.now() - new Date(time)) / 1000;
  if (s < 60) return 'just now';
  const units = [['day', 86400], ['hour', 3600], ['minute', 60]];
  const [name, size] = units.find(([, size]) => s >= size);
  return new Intl.RelativeTimeFormat('en').format(-Math.floor(s / size), name);
}

/** why says in words why a thought ended. */
export function why(stop, tokens) {
  const n = tokens === undefined ? 'its tokens' : `${count(tokens)} tokens`;
  return {
    natural: 'The thought came to its own end.',
    tokens: tokens === 0 ? 'Answered at once, without thinking.' : `Cut at its budget of ${n}.`,
    deadline: `Cut after ${n} to be on time.`,
    interrupt: `You asked for the answer after ${n}.`,
    converged: `Its answers had settled, so it stopped after ${n}.`,
    confident: `It was sure enough, so it stopped after ${n}.`,
    loop: `It went in circles, so it was stopped after ${n}.`,
    eos_in_thinking: `The model ended its text after ${n}.`,
    context: `The model's context was full after ${n}.`,
    overload: `The server is busy: its budget was shortened to ${n}.`,
    drain: `The server is shutting down, so it answered after ${n}.`,
    engine: `The engine was lost after ${n}.`,
  }[stop?.cause] ?? '';
}

/** problem is an error in words that a person can act on. */
export function problem(error, retry) {
  return h('div', {class: 'problem', role: 'alert'},
    h('strong', {}, error.title ?? 'That did not work'), ' ', h('span', {}, error.message),
    retry && h('p', {class: 'actions'}, h('button', {type: 'button', onclick: retry}, 'Try again')));
}

/** every calls f each interval while the page is visible and signal has not ended. */
export function every(ms, signal, f) {
  const timer = setInterval(() => document.hidden || f(), ms);
  signal.addEventListener('abort', () => clearInterval(timer));
}
