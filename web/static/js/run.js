import {events, get, post, request} from './api.js';
import {count, h, milliseconds, percent, problem, seconds, why} from './dom.js';
import {result, rich} from './rich.js';
import {settled, table, timeline} from './timeline.js';

/** run watches a run, from its first event to its answer, and what can be done with it. */
export async function run(root, {go, signal, id}) {
  const path = `solve/${encodeURIComponent(id)}`;
  const status = await get(path, {signal}).catch((e) => {
    if (e.status !== 404) throw e;
  });
  if (!status) {
    gone(root);
    return;
  }
  const fresh = () => ({limit: 0, deadline: 0, tokens: 0, began: new Date(status.created), checkpoints: [], summary: '', reply: null, error: null, running: true});
  let state = fresh();

  const say = h('p', {class: 'status', role: 'status'});
  const news = h('p', {class: 'unseen', role: 'log', 'aria-label': 'Answers on the way'}); // for screen readers
  const meter = h('progress', {max: 1, value: 0, 'aria-label': 'Budget used'});
  const numbers = h('span', {class: 'numbers'});
  const answer = h('section', {class: 'card answer', 'aria-label': 'Answer', hidden: true});
  const along = h('section', {class: 'card', 'aria-label': 'Answers along the thought', hidden: true});
  const thought = h('div', {class: 'thought-text', tabindex: '0', role: 'region', 'aria-label': 'The thinking'});
  const preview = h('span', {class: 'preview', 'aria-hidden': 'true'});
  const folded = h('details', {class: 'card thought'}, h('summary', {}, h('strong', {}, 'Thinking'), ' ', preview), thought);
  const explain = h('details', {class: 'card explain', hidden: true}, h('summary', {}, h('strong', {}, 'Where the time went')));
  const trouble = h('div', {});
  const actions = h('p', {class: 'actions'});
  root.append(
    h('h1', {class: 'question'}, status.problem || 'A run'),
    h('div', {class: 'card live'}, h('div', {class: 'meter'}, meter, numbers), say, actions, trouble, news),
    answer, along, folded, explain,
    h('p', {class: 'hint'}, `${status.model} · `, h('a', {href: `#/run/${id}`}, id)));

  const attempt = (f) => async (event) => {
    const button = event.currentTarget;
    if (button.ariaDisabled) return;
    button.ariaDisabled = 'true'; // and not disabled, which would lose the focus
    trouble.replaceChildren();
    try {
      await f(button);
    } catch (e) {
      if (!signal.aborted && e.status !== 409) trouble.replaceChildren(problem(e)); // 409: it had just ended, which is seen anyway
    }
    button.ariaDisabled = null;
  };
  const button = (text, f, kind) => h('button', {type: 'button', class: kind, onclick: attempt(f)}, text);
  const more = h('input', {type: 'text', id: 'more', value: '+512', size: 7, 'aria-label': 'How much more, in tokens such as +512 or in time such as 5s', title: 'Tokens such as +512, or a time such as 5s'});
  const running = [
    button('Answer now', () => post(`${path}/interrupt`), 'primary'),
    button('Answer, but think on', () => post(`${path}/interrupt?continue=true`)),
    button('Stop', async () => { await request('DELETE', path); go('#/', {draft: status.problem}); }, 'danger'),
  ];
  const thinkMore = button('Think more', () => extend(), 'primary');
  const finished = [
    thinkMore, more,
    button('Ask again', () => go('#/', {draft: status.problem})),
    button('Remove', async (b) => {
      if (b.textContent === 'Remove') b.textContent = 'Remove for good';
      else {
        await request('DELETE', path);
        go('#/runs');
      }
    }, 'danger'),
  ];
  more.addEventListener('keydown', (e) => e.key === 'Enter' && thinkMore.click());

  async function extend() {
    const leave = new AbortController();
    for (let tries = 0; ; tries++) {
      try {
        await request('POST', `${path}/extend?budget=${encodeURIComponent(more.value.trim())}`, {headers: {Accept: 'text/event-stream'}, signal: leave.signal});
        break;
      } catch (e) {
        // Its end may be seen a moment before the server lets go of it; or it thinks more already, asked from elsewhere.
        if (e.status !== 409 || tries === 20) throw e;
        if ((await get(path, {signal})).state === 'running') break;
        await new Promise((resolve) => { setTimeout(resolve, 50); });
      }
    }
    leave.abort();
    watch();
  }

  // Text comes faster than frames: what came is drawn once a frame.
  let waiting = '';
  let frame = 0;
  let line = null;
  let last = '';
  const draw = () => {
    frame = 0;
    if (waiting !== '') {
      const follow = thought.scrollTop + thought.clientHeight > thought.scrollHeight - 40;
      for (const part of waiting.split(/(?<=\n)/)) { // a block for each line, so that only the last is laid out again
        if (!line) thought.append(line = h('div', {}));
        line.append(part);
        if (part.endsWith('\n')) line = null;
      }
      last = (last + waiting).slice(-160);
      waiting = '';
      preview.textContent = last.replace(/\s+/g, ' ');
      if (follow && folded.open) thought.scrollTop = thought.scrollHeight;
    }
    const elapsed = state.running ? Math.max(0, Date.now() - state.began) : state.reply?.timings?.done_ms;
    meter.value = Math.min(1, Math.max(state.limit > 0 ? state.tokens / state.limit : 0, state.deadline > 0 ? (elapsed ?? 0) / state.deadline : 0));
    numbers.textContent = [`${count(state.tokens)}${state.limit > 0 ? ` of ${count(state.limit)}` : ''} tokens`,
      elapsed !== undefined && `${seconds(elapsed)}${state.deadline > 0 ? ` of ${seconds(state.deadline)}` : ''}`].filter(Boolean).join(' · ');
  };
  const soon = () => { frame ||= requestAnimationFrame(draw); };
  folded.addEventListener('toggle', () => { if (folded.open) thought.scrollTop = thought.scrollHeight; });

  const answers = () => {
    const list = [...state.checkpoints];
    if (state.reply) list.push({tokens: state.tokens, answer: state.reply.answer, confidence: state.reply.confidence, elapsed_ms: state.reply.timings?.done_ms, final: true});
    return list.map((a) => ({...a, answer: a.answer ?? ''}));
  };
  const showAlong = () => {
    const list = answers();
    along.hidden = state.checkpoints.length === 0;
    if (along.hidden) return;
    const at = settled(list);
    const stays = list.length > 1 && at < list.length - 1;
    const open = along.querySelector('details')?.open;
    along.replaceChildren(
      h('h2', {}, 'Answers along the thought'),
      h('p', {class: 'hint'}, stays ? `“${list[at].answer || '–'}” since ${count(list[at].tokens)} tokens; the thought went on to ${count(state.tokens)}.`
        : list.length > 1 ? 'The answer changed up to the last one.' : 'One answer so far.', ' The higher, the surer.'),
      timeline(list, {limit: state.limit, thought: state.tokens, done: !state.running}),
      h('div', {class: 'columns'}, list.map((a, i) => h('div', {class: a.final ? 'column final' : 'column'},
        h('span', {class: 'hint'}, `${count(a.tokens)} tokens`), h('strong', {title: a.answer}, a.answer || '–'),
        h('span', {class: 'hint'}, `${percent(a.confidence)}${stays && i === at ? ' · settled' : ''}`)))),
      h('details', {open: !!open}, h('summary', {}, 'As a table'), h('div', {class: 'scroll', tabindex: '0', role: 'region', 'aria-label': 'Answers as a table'}, table(list))));
  };
  let shown = 0;
  const showAnswer = async () => {
    const turn = ++shown;
    const {reply} = state;
    const text = reply?.summary ?? state.summary;
    answer.hidden = !text && !reply;
    if (answer.hidden) return;
    if (!reply) {
      answer.replaceChildren(h('h2', {}, 'Answer'), h('div', {class: 'rich raw'}, text));
      return;
    }
    // An answer that says nothing beyond its result is not shown twice.
    const alone = reply.answer && [reply.answer, `\\boxed{${reply.answer}}`].includes(text.trim());
    const parts = await Promise.all([reply.answer && result(reply.answer), !alone && rich(text)]).catch(() => [reply.answer, text]); // what renders it could not be had
    if (turn !== shown) return;
    answer.replaceChildren(
      h('h2', {}, 'Answer'),
      ...(parts[0] ? [h('p', {class: 'result'}, parts[0])] : []),
      ...(parts[1] ? [h('div', {class: 'rich'}, parts[1])] : []),
      h('p', {class: 'hint'}, [why(reply.stop, reply.usage?.thinking_tokens), `Confidence ${percent(reply.confidence)};`,
        `answered ${seconds(reply.timings?.answer_latency_ms)} after the thinking ended.`,
        reply.stop?.answer === 'length' && 'The answer was cut at its cap.'].filter(Boolean).join(' ')));
  };
  const showState = () => {
    const set = state.running ? running : state.error ? finished.slice(2) : finished;
    if (actions.firstChild !== set[0]) {
      const focused = actions.contains(document.activeElement);
      actions.replaceChildren(...set.flatMap((b) => [b, ' ']));
      if (focused) set[0].focus();
    }
    const heard = state.reply?.answer && h('span', {class: 'unseen'}, ` The answer is ${state.reply.answer}`);
    say.replaceChildren(...(state.running ? ['Thinking …'] : state.error ? [] : ['Done.', heard || '']));
    explain.hidden = state.running || !!state.error;
    if (state.error) {
      trouble.replaceChildren(problem({title: 'This run failed.', message: {
        cancelled: 'It was cancelled before it had answered.', engine: 'The engine could not go on with it. Ask again.',
      }[state.error.code] ?? state.error.message ?? 'Ask again.'}));
    }
  };

  function clear() {
    state = fresh();
    waiting = last = '';
    line = null;
    for (const e of [thought, preview, news, trouble]) e.replaceChildren();
    answer.hidden = along.hidden = true;
    showState();
  }
  const take = {
    reset: clear,
    run(d) {
      const earlier = answers().at(-1);
      if (earlier?.final) state.checkpoints.push({...earlier, final: false});
      Object.assign(state, {limit: d.limit, deadline: milliseconds(d.budget), began: new Date(d.created), running: true, reply: null, summary: ''});
      shown++;
      answer.hidden = true;
      showState();
      showAlong();
    },
    thinking(d) { waiting += d.text; state.tokens = d.tokens; soon(); },
    checkpoint(d) {
      state.checkpoints.push(d);
      news.textContent = `After ${count(d.tokens)} tokens: ${d.answer ?? 'no answer'}, ${percent(d.confidence)}.`;
      showAlong();
    },
    answer(d) {
      state.summary = (d.reset ? '' : state.summary) + d.text;
      say.textContent = 'Answering …';
      showAnswer();
    },
    done: finish,
    error(d) { state.error = d.error ?? d; state.running = false; showState(); soon(); },
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
      explain.append(explanation((await get(`${path}?explain=true`, {signal})).explanation));
    } catch (e) {
      explain.append(problem(e));
    }
  });

  let after = 0;
  let watching = false;
  async function watch() {
    if (watching) return;
    watching = true;
    try {
      for await (const e of events(id, {after, signal, onState})) {
        take[e.type]?.(e.data);
        after = e.type === 'reset' ? 0 : e.id ?? after;
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
        gone(root);
      } else {
        trouble.replaceChildren(problem(e, () => { trouble.replaceChildren(); watch(); }));
      }
    } finally {
      watching = false;
    }
  }
  function onState(s) {
    if (state.running) say.textContent = s === 'lost' ? 'The connection is lost. Trying again …' : state.summary ? 'Answering …' : 'Thinking …';
  }
  // It may think more because it was asked to in another tab.
  const look = async () => {
    if (document.hidden || watching || state.running) return;
    const now = await get(path, {signal}).catch(() => null);
    if (now?.last_event > after) watch();
  };
  document.addEventListener('visibilitychange', look, {signal});
  addEventListener('focus', look, {signal});
  const clock = setInterval(() => state.running && soon(), 200);
  signal.addEventListener('abort', () => { clearInterval(clock); cancelAnimationFrame(frame); });
  showState();
  watch();
}

function gone(root) {
  root.replaceChildren(h('h1', {}, 'This run is not here'), problem({title: 'Not found.', message: 'It was removed, or belongs to another key.'}),
    h('p', {}, h('a', {href: '#/runs'}, 'See your runs'), ', or ', h('a', {href: '#/'}, 'ask a question'), '.'));
}

function explanation(x) {
  if (!x) return h('p', {}, 'Nothing is known of it.');
  const row = (k, v) => h('tr', {}, h('th', {scope: 'row'}, k), h('td', {}, v));
  const fork = (c) => `${count(c.answer_tokens)} tokens in ${seconds(c.ms)}${c.queue_ms >= 1 ? `, after waiting ${seconds(c.queue_ms)}` : ''}`;
  const s = x.setbacks ?? {};
  const setbacks = [s.preempted && `preempted ${s.preempted} times`, s.restarts && `${s.restarts} engine restarts`, s.reopened && `opened again ${s.reopened} times`,
    s.resumed && 'resumed after a restart of the server'].filter(Boolean);
  return h('table', {class: 'facts'}, h('tbody', {},
    row('Admitted after', seconds(x.opened_ms)),
    (x.prefills ?? []).map((p) => row('Prefill', `${count(p.tokens)} tokens (${count(p.cached)} from the cache) in ${seconds(p.ms)}, after waiting ${seconds(p.queue_ms)}`)),
    x.pace?.tokens_per_second > 0 && row('Pace', `${x.pace.tokens_per_second.toFixed(1)} tokens/s; a token takes ${seconds(x.pace.per_token_ms)} ± ${seconds(x.pace.deviation_ms)}`),
    x.cut && row('Cut', `at ${seconds(x.cut.at_ms)}, after ${count(x.cut.tokens)} tokens: ${x.cut.why}`),
    x.reserve_ms > 0 && row('Kept back for the answer', seconds(x.reserve_ms)),
    (x.checkpoints ?? []).map((c) => row(`Answer at ${count(c.tokens)} tokens`, `${fork(c)}${c.slowed >= 0.01 ? `; thinking was ${c.slowed < 1 ? `${percent(c.slowed)} slower` : `${(1 + c.slowed).toFixed(0)} times slower`} meanwhile` : ''}`)),
    (x.answers ?? []).map((c) => row('Final answer', fork(c))),
    setbacks.length > 0 && row('Setbacks', setbacks.join(', '))));
}
