import {get, start} from './api.js';
import {count, h, problem} from './dom.js';

// For models that come without examples of their own.
const general = ['What is 17 × 24?', 'How many primes are there below 100?', 'A train covers 180 km in 2 h 15 min. What is its mean speed in km/h?'];

// What was asked last in this tab.
const saved = () => JSON.parse(sessionStorage.getItem('anytime-ask') ?? '{}');

/** ask is the first view: a question and how long it may think. */
export async function ask(root, {go, signal, draft}) {
  const models = (await get('v1/models', {signal})).data;
  const known = (id) => models.find((m) => m.id === id);
  const chosen = known(saved().model) ?? models.find((m) => m.default) ?? models[0];
  const before = saved();
  const cap = () => known(model.value).max_thinking_tokens ?? 4096;

  const question = h('textarea', {id: 'question', rows: 3, placeholder: 'Ask something that takes thought …', 'aria-label': 'Your question', required: true});
  question.value = draft ?? before.question ?? '';
  const model = h('select', {id: 'model'}, models.map((m) => h('option', {value: m.id, selected: m === chosen}, m.id)));
  const examples = h('div', {class: 'chips', role: 'group', 'aria-label': 'Examples'});
  const showExamples = () => {
    const m = known(model.value);
    examples.replaceChildren(...(m.examples ?? known(m.parent)?.examples ?? general).map((text) =>
      h('button', {type: 'button', class: 'chip', onclick: () => { question.value = text; question.focus(); }}, text)));
  };
  model.addEventListener('change', showExamples);
  showExamples();

  // The slider is logarithmic: what matters early is fine, what matters late is coarse.
  let unit = before.unit ?? 'tokens';
  const ranges = {tokens: [0, cap], seconds: [0.25, () => 120]};
  const amounts = {tokens: before.tokens ?? 512, seconds: before.seconds ?? 3};
  const slider = h('input', {type: 'range', min: '0', max: '100', step: '1', 'aria-label': 'Budget'});
  const number = h('input', {type: 'number', id: 'amount', 'aria-label': 'Budget', required: true});
  const units = h('div', {class: 'segments', role: 'radiogroup', 'aria-label': 'Budget in'},
    [['tokens', 'Tokens'], ['seconds', 'Seconds'], ['max', 'As long as it likes']].map(([value, text]) =>
      h('label', {}, h('input', {type: 'radio', name: 'unit', value, checked: unit === value, onchange: () => { unit = value; show(); }}), h('span', {}, text))));
  const amount = h('div', {class: 'amount'}, slider, number);
  const shape = (v) => (unit === 'tokens' ? Math.round(v) : Math.round(v * 4) / 4);
  const show = () => {
    most.textContent = `At most ${count(cap())} thinking tokens.`;
    steps.textContent = unit === 'seconds' ? 'on the way, as time allows' : 'at 8 points on the way';
    amount.hidden = unit === 'max';
    number.required = unit !== 'max';
    if (unit === 'max') return;
    const [low, high] = [ranges[unit][0], ranges[unit][1]()];
    amounts[unit] = Math.min(amounts[unit], high);
    for (const e of [slider, number]) e.setAttribute('aria-label', `Budget in ${unit}`);
    Object.assign(number, {min: String(low), max: String(high), step: unit === 'tokens' ? '1' : '0.25', value: String(amounts[unit])});
    slider.value = String(100 * Math.log1p(amounts[unit] - low) / Math.log1p(high - low));
    slider.setAttribute('aria-valuetext', `${amounts[unit]} ${unit}`);
  };
  slider.addEventListener('input', () => {
    const [low, high] = [ranges[unit][0], ranges[unit][1]()];
    amounts[unit] = shape(low + Math.expm1(slider.value / 100 * Math.log1p(high - low)));
    number.value = String(amounts[unit]);
    slider.setAttribute('aria-valuetext', `${amounts[unit]} ${unit}`);
  });
  number.addEventListener('input', () => { if (number.checkValidity()) { amounts[unit] = Number(number.value); const v = number.value; show(); number.value = v; } });
  model.addEventListener('change', show);

  // With a deadline the server takes answers on the way where there is time for them.
  const steps = h('option', {value: 'steps'});
  const along = h('select', {id: 'along'}, h('option', {value: 'end'}, 'only at the end'), steps, h('option', {value: 'compare'}, 'at budgets of my own'));
  along.value = before.along ?? 'steps';
  const budgets = h('input', {id: 'budgets', type: 'text', inputmode: 'numeric', pattern: '[0-9, ]+', placeholder: '64, 128, 256, 1024', title: 'Numbers of thinking tokens, divided by commas', value: before.budgets ?? ''});
  const own = h('p', {class: 'field'}, h('label', {for: 'budgets'}, 'Budgets to compare, in thinking tokens'), budgets);
  const showOwn = () => { own.hidden = along.value !== 'compare'; budgets.required = along.value === 'compare'; };
  along.addEventListener('change', showOwn);
  showOwn();
  const votes = h('select', {id: 'votes'}, [1, 3, 5, 9].map((n) => h('option', {value: String(n), selected: before.votes === n}, n === 1 ? 'one' : `majority of ${n}`)));
  const most = h('span', {});
  const trouble = h('div', {});
  const button = h('button', {class: 'primary', type: 'submit'}, 'Think');

  async function submit(event) {
    event.preventDefault();
    const body = {problem: question.value, model: model.value, on_disconnect: 'continue'};
    if (unit !== 'max') body.budget = unit === 'tokens' ? amounts.tokens : `${amounts.seconds * 1000}ms`;
    if (votes.value !== '1') body.votes = Number(votes.value);
    if (along.value === 'compare') {
      const list = [...new Set(budgets.value.split(/[ ,]+/).map(Number).filter((n) => n > 0))].sort((a, b) => a - b);
      if (list.length === 0 || list.at(-1) > cap()) {
        trouble.replaceChildren(problem({title: 'These budgets cannot be compared.', message: `Give numbers of thinking tokens from 1 to ${count(cap())}, divided by commas.`}));
        budgets.focus();
        return;
      }
      if (unit === 'tokens') body.budget = Math.max(amounts.tokens, list.at(-1)); // the last of them is the thought's end
      body.checkpoints = list.filter((n) => n !== body.budget);
    } else if (along.value === 'steps' && unit !== 'seconds') {
      body.every = Math.max(16, Math.ceil((unit === 'tokens' ? amounts.tokens : cap()) / 8));
    }
    sessionStorage.setItem('anytime-ask', JSON.stringify({question: question.value, model: model.value, unit, ...amounts, along: along.value, budgets: budgets.value, votes: Number(votes.value)}));
    button.disabled = true;
    trouble.replaceChildren();
    try {
      go(`#/run/${await start('solve', body)}`);
    } catch (e) {
      trouble.replaceChildren(problem(e));
      button.disabled = false;
    }
  }

  root.append(
    h('h1', {}, 'Ask. Take the answer whenever you want it.'),
    h('form', {class: 'card ask', onsubmit: submit},
      question, examples,
      h('fieldset', {}, h('legend', {}, 'How long may it think?'), units, amount),
      h('div', {class: 'fields'},
        h('p', {class: 'field'}, h('label', {for: 'along'}, 'Answers'), along),
        h('p', {class: 'field'}, h('label', {for: 'votes'}, 'Votes on the final answer'), votes),
        h('p', {class: 'field'}, h('label', {for: 'model'}, 'Model'), model)),
      own, trouble,
      h('p', {class: 'actions'}, button, h('span', {class: 'hint'}, 'Ctrl + Enter. ', most))));
  show();
  question.addEventListener('keydown', (e) => { if (e.key === 'Enter' && (e.ctrlKey || e.metaKey)) e.target.form.requestSubmit(); });
  question.focus();
}
