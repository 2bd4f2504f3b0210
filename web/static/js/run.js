import {events, get, post, request} from './api.js';
import {count, h, percent, problem, seconds, why} from './dom.js';
import {rich} from './rich.js';
import {settled, table, timeline} from './timeline.js';

/** run watches a run, from its first event to its answer, and what can be done with it. */
export async function run(root, {go, signal, id}) {
  const path = `solve/${encodeURIComponent(id)}`;
  const status = await get(path, {signal});
  const state = {limit: 0, tokens: 0, checkpoints: [], summary: '', reply: null, error: null, running: true, began: new Date(status.created)};

  const say = h('p', {class: 'status', role: 'status'});
  const meter = h('progress', {max: 1, value: 0, 'aria-label': 'Thinking tokens used'});
  const numbers = h('span', {class: 'numbers'});
  const answer = h('section', {class: 'card answer', 'aria-label': 'Answer', hidden: true});
  const along = h('section', {class: 'card', 'aria-label': 'Answers so far', hidden: true});
  const thought = h('pre', {class: 'thought-text', tabindex: '0', 'aria-label': 'The thinking'});
  const preview = h('span', {class: 'preview'});
  const folded = h('details', {class: 'card thought'}, h('summary', {}, h('strong', {}, 'Thinking'), ' ', preview), thought);
  const explain = h('details', {class: 'card explain', hidden: true}, h('summary', {}, h('strong', {}, 'Where the time went')));
  const trouble = h('div', {});
  const actions = h('p', {class: 'actions'});
  root.append(
    h('h1', {class: 'question'}, status.problem ?? 'A run'),
    h('div', {class: 'card live'}, h('div', {class: 'meter'}, meter, numbers), say, actions, trouble),
    answer, along, folded, explain,
    h('p', {class: 'hint'}, `${status.model} · `, h('a', {href: `#/run/${id}`}, id)));

  const attempt = (f) => async (event) => {
    const button = event.currentTarget;
    button.disabled = true;
    trouble.replaceChildren();
    try {
      await f();
    } catch (e) {
      if (!signal.aborted && e.status !== 409) trouble.replaceChildren(problem(e)); // 409: it had just ended, which is seen anyway
    }
    button.disabled = false;
  };
  const button = (text, f, kind) => h('button', {type: 'button', class: kind, onclick: attempt(f)}, text);
  const more = h('input', {type: 'text', id: 'more', value: '+512', size: 7, 'aria-label': 'How much more', title: 'Tokens such as +512, or a time such as 5s'});
  const running = [
    button('Answer now', () => post(`${path}/interrupt`), 'primary'),
    button('Answer, but think on', () => post(`${path}/interrupt?continue=true`)),
    button('Stop', async () => { await request('DELETE', path); go('#/', {draft: status.problem}); }, 'danger'),
  ];
  const finished = [
    button('Think more', async () => {
      const leave = new AbortController();
      await request('POST', `${path}/extend?budget=${encodeURIComponent(more.value.trim())}`, {headers: {Accept: 'text/event-stream'}, signal: leave.signal});
      leave.abort();
      watch();
    }, 'primary'), more,
    button('Ask again', () => go('#/', {draft: status.problem})),
    button('Remove', async () => { await request('DELETE', path); go('#/runs'); }, 'danger'),
  ];

  // Text comes faster than frames: what came is drawn once a frame.
  let waiting = '';
  let frame = 0;
  let last = '';
  const draw = () => {
    frame = 0;
    if (waiting !== '') {
      const follow = thought.scrollTop + thought.clientHeight > thought.scrollHeight - 40;
      thought.append(waiting);
      last = (last + waiting).slice(-160);
      waiting = '';
      preview.textContent = last.replace(/\s+/g, ' ');
      if (follow && folded.open) thought.scrollTop = thought.scrollHeight;
    }
    const elapsed = state.reply && !state.running ? state.reply.timings?.done_ms : Date.now() - state.began;
    meter.value = state.limit > 0 ? Math.min(1, state.tokens / state.limit) : 0;
    numbers.textContent = `${count(state.tokens)}${state.limit ? ` of ${count(state.limit)}` : ''} tokens · ${seconds(elapsed)}`;
  };
  const soon = () => { frame ||= requestAnimationFrame(draw); };

  const answers = () => {
    const list = state.checkpoints.map((c) => ({...c}));
    if (state.reply && !state.running) {
      list.push({tokens: state.reply.usage?.thinking_tokens ?? state.tokens, answer: state.reply.answer ?? '', confidence: state.reply.confidence, elapsed_ms: state.reply.timings?.done_ms, final: true});
    }
    return list.sort((a, b) => a.tokens - b.tokens);
  };
  const showAlong = () => {
    const list = answers();
    along.hidden = list.length < 2 && (state.checkpoints.length === 0);
    if (along.hidden) return;
    const at = settled(list);
    along.replaceChildren(
      h('h2', {}, 'Answers along the thought'),
      h('p', {class: 'hint'}, list.length > 1 && at < list.length - 1
        ? `“${list[at].answer}” since ${count(list[at].tokens)} tokens; the thought went on to ${count(state.tokens)}.`
        : list.length > 1 ? 'The answer changed up to the last one.' : 'One answer so far.'),
      timeline(list, {limit: state.limit, thought: state.tokens, done: !state.running}),
      h('div', {class: 'columns'}, list.map((a, i) => h('div', {class: a.final ? 'column final' : 'column'},
        h('span', {class: 'hint'}, `${count(a.tokens)} tokens`), h('strong', {}, a.answer || '–'),
        h('span', {class: 'hint'}, `${percent(a.confidence)}${i === at ? ' · settled' : ''}`)))),
      h('details', {}, h('summary', {}, 'As a table'), table(list)));
  };
  const showAnswer = async () => {
    const text = state.reply?.summary ?? state.summary;
    answer.hidden = !text && !state.reply;
    if (answer.hidden) return;
    const body = h('div', {class: 'rich'});
    body.append(state.reply ? await rich(text) : text);
    answer.replaceChildren(
      h('h2', {}, 'Answer'),
      state.reply?.answer && h('p', {class: 'result'}, await rich(plainOrFormula(state.reply.answer))),
      body,
      state.reply && h('p', {class: 'hint'}, why(state.reply.stop, state.reply.usage?.thinking_tokens), ' ',
        `Confidence ${percent(state.reply.confidence)}; answered ${seconds(state.reply.timings?.answer_latency_ms)} after the thinking ended.`,
        state.reply.stop?.answer === 'length' ? ' The answer was cut at its cap.' : ''));
  };
  const showState = () => {
    actions.replaceChildren(...(state.running ? running : state.error ? finished.slice(2) : finished));
    say.textContent = state.running ? 'Thinking …' : state.error ? '' : 'Done.';
    explain.hidden = state.running || !!state.error;
    if (state.error) {
      trouble.replaceChildren(problem({title: 'This run failed.', message: {
        cancelled: 'It was cancelled before it had answered.', engine: 'The engine could not go on with it. Ask again.',
      }[state.error.code] ?? state.error.message ?? 'Ask again.'}));
    }
  };

  const take = {
    run(d) { state.limit = d.limit ?? state.limit; state.running = true; state.reply = null; state.summary = ''; answer.hidden = true; showState(); },
    thinking(d) { waiting += d.text; state.tokens += d.tokens ?? 0; soon(); },
    checkpoint(d) { state.checkpoints.push(d); showAlong(); },
    answer(d) {
      if (d.reset) state.summary = '';
      state.summary += d.text ?? '';
      say.textContent = 'Answering …';
      showAnswer();
    },
    done(d) { finish(d); },
    error(d) { state.error = d.error ?? d; state.running = false; showState(); },
  };
  function finish(reply) {
    Object.assign(state, {reply, running: false, tokens: reply.usage?.thinking_tokens ?? state.tokens, limit: reply.stop?.limit ?? state.limit,
      checkpoints: reply.checkpoints ?? state.checkpoints});
    explain.replaceChildren(explain.firstElementChild);
    explain.open = false;
    showState();
    showAnswer();
    showAlong();
    soon();
  }
  explain.addEventListener('toggle', async () => {
    if (!explain.open || explain.children.length > 1) return;
    try {
      explain.append(explanation((await get(`${path}?explain=1`, {signal})).explanation));
    } catch (e) {
      explain.append(problem(e));
    }
  });

  let after = 0;
  async function watch() {
    state.running = true;
    showState();
    try {
      for await (const e of events(id, {after, signal, onState: (s) => { if (state.running) say.textContent = s === 'lost' ? 'The connection is lost. Trying again …' : 'Thinking …'; }})) {
        after = e.id ?? after;
        take[e.type]?.(e.data);
      }
      if (!signal.aborted && state.running) { // it ended without saying so, as a run that was cancelled does
        const now = await get(path, {signal});
        if (now.state === 'failed') take.error(now.error ?? {message: 'It was ended.'});
        else finish(now);
      }
    } catch (e) {
      if (signal.aborted) return;
      state.running = false;
      if (e.status === 404) {
        root.replaceChildren(h('h1', {}, 'This run is not here'), problem({title: 'Not found.', message: 'It was removed, or belongs to another key.'}), h('p', {}, h('a', {href: '#/'}, 'Ask a question')));
      } else {
        trouble.replaceChildren(problem(e, watch));
      }
    }
  }
  const clock = setInterval(() => state.running && soon(), 200);
  signal.addEventListener('abort', () => { clearInterval(clock); cancelAnimationFrame(frame); });
  showState();
  watch();
}

const plainOrFormula = (text) => (/[\\^_{}]/.test(text) && !/\$/.test(text) ? `$${text}$` : text);

function explanation(x) {
  if (!x) return h('p', {}, 'Nothing is known of it.');
  const row = (k, v) => h('tr', {}, h('th', {scope: 'row'}, k), h('td', {}, v));
  return h('table', {class: 'facts'}, h('tbody', {},
    row('Admitted after', seconds(x.opened_ms)),
    (x.prefills ?? []).map((p) => row('Prefill', `${count(p.tokens)} tokens (${count(p.cached)} from the cache) in ${seconds(p.ms)}, after waiting ${seconds(p.queue_ms)}`)),
    x.pace && row('Pace', `${x.pace.tokens_per_second.toFixed(1)} tokens/s; a token takes ${seconds(x.pace.per_token_ms)} ± ${seconds(x.pace.deviation_ms)}`),
    x.cut && row('Cut', `at ${seconds(x.cut.at_ms)}, after ${count(x.cut.tokens)} tokens: ${x.cut.why}`),
    x.reserve_ms > 0 && row('Kept back for the answer', seconds(x.reserve_ms)),
    (x.checkpoints ?? []).map((c) => row(`Answer at ${count(c.tokens)} tokens`, `${seconds(c.ms)}${c.slowed ? `; thinking was ${percent(c.slowed)} slower meanwhile` : ''}`)),
    (x.answers ?? []).map((c) => row('Final answer', `${count(c.answer_tokens)} tokens in ${seconds(c.ms)}`)),
    x.setbacks && (x.setbacks.preempted || x.setbacks.restarts || x.setbacks.reopened || x.setbacks.resumed)
      ? row('Setbacks', `${x.setbacks.preempted} preemptions, ${x.setbacks.restarts} engine restarts, ${x.setbacks.reopened} times opened again${x.setbacks.resumed ? ', resumed after a restart of the server' : ''}`) : null));
}
